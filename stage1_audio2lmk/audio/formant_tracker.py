"""Formants over time: which of the resonances of each analysis are F1, F2 and F3, given all that came before.

A beam of hypotheses, each of three frequencies, goes from analysis to analysis (Viterbi's forward pass over states that lie
on no grid). Every step extends each hypothesis by every rising choice of resonances, where a formant may also be held, and
keeps the cheapest few. The cheapest one is the answer at once: nothing waits for the future.
"""

import numpy as np

from shared.compiled import cached_njit

NEUTRAL = np.log([500.0, 1500.0, 2500.0])  # a tube of 17 cm closed at one end; frequencies here are logarithms of Hz
NEUTRAL_BANDWIDTH = 200.0
BEAM = 8
JUMP = 0.1  # a change from one analysis to the next that costs 1, a larger one its square
FARTHEST = 4.0  # what any jump costs at most, so that a lost track is found again
SPREAD = np.array([1.0, 1.0, 0.45])  # distance from neutral that costs 0.5
STRANGEST = 2.5  # what any such distance costs at most: a child's tract is a third shorter
BROAD = 140.0  # Hz of bandwidth that cost 1
HELD = 4.5  # the cost of a formant without a resonance
SKIPPED, NARROW = 2.8, 150.0  # the cost of leaving out a resonance below F3, less by e for each 150 Hz of its bandwidth
DECAY = 0.04  # of the way to neutral in an analysis without trust
LEARN, FORGET = 0.2, 0.1  # how fast the past gains and loses its say
NEAREST = 0.05  # between neighbours
SAME = 0.01  # hypotheses nearer than this are one


class FormantTracker:
    """State of the recursion; a new one starts after endless silence."""

    def __init__(self) -> None:
        self.tracks = np.tile(np.concatenate([NEUTRAL, np.full(3, NEUTRAL_BANDWIDTH)]), (BEAM, 1))
        self.costs = np.where(np.arange(BEAM) == 0, 0.0, np.inf)
        self.known = np.zeros(1)  # 0–1: the say of the past

    def follow(self, resonances: np.ndarray, trust: np.ndarray) -> np.ndarray:
        """Resonances (n, k, 2) in Hz, frequencies rising and inf where there is none, and trust (n,) in 0–1 -> (n, 6) Hz.

        Columns are F1 < F2 < F3 and their bandwidths. Without trust they hold and decay to 500, 1500 and 2500 Hz.
        """
        out = np.empty((len(trust), 6))
        for t in range(len(trust)):
            out[t] = step(resonances[t, :, 0], resonances[t, :, 1], trust[t], self.tracks, self.costs, self.known)
        out[:, :3] = np.exp(out[:, :3])
        return out


@cached_njit()
def step(frequency, bandwidth, trust, tracks, costs, known):
    """One analysis: resonances (k,) in Hz -> the cheapest track (6,); `tracks` (BEAM, 6), `costs`, `known` are updated."""
    count = 0
    while trust > 0 and count < len(frequency) and np.isfinite(frequency[count]):
        count += 1
    # the last choice, `count`, is to hold
    value, price = np.empty((3, count + 1)), np.empty((3, count + 1))
    log_frequency, skip = np.log(frequency[:count]), SKIPPED * np.exp(-bandwidth[:count] / NARROW)
    new_tracks, new_costs = np.empty_like(tracks), np.full(BEAM, np.inf)
    worst = 0
    for h in range(BEAM):
        if costs[h] == np.inf:
            continue
        for k in range(3):
            value[k, count] = tracks[h, k] + (1 - trust) * DECAY * (NEUTRAL[k] - tracks[h, k])
            price[k, count] = HELD
            for i in range(count):
                strange = ((log_frequency[i] - NEUTRAL[k]) / SPREAD[k]) ** 2 / 2
                change = ((log_frequency[i] - tracks[h, k]) / JUMP) ** 2
                value[k, i] = log_frequency[i]
                price[k, i] = min(strange, STRANGEST) + bandwidth[i] / BROAD + known[0] * min(change, FARTHEST)
        for a in range(count + 1):
            for b in range(count + 1):
                if value[1, b] < value[0, a] + NEAREST:
                    continue
                two = costs[h] + trust * (price[0, a] + price[1, b])
                if two >= new_costs[worst]:
                    continue
                for c in range(count + 1):
                    if value[2, c] < value[1, b] + NEAREST:
                        continue
                    skipped = 0.0
                    for i in range(count):
                        if log_frequency[i] < value[2, c] and i != a and i != b and i != c:
                            skipped += skip[i]
                    cost = two + trust * (price[2, c] + skipped)
                    if cost < new_costs[worst]:
                        track = extend(tracks[h], value, bandwidth, (a, b, c), trust)
                        worst = keep(new_tracks, new_costs, track, cost, worst)
    best = new_costs.argmin()
    costs[:] = new_costs - new_costs[best]
    tracks[:] = new_tracks
    known[0] += (LEARN if trust > known[0] else FORGET) * (trust - known[0])
    return new_tracks[best]


@cached_njit()
def extend(track, value, bandwidth, choice, trust):
    """The track (6,) after this choice: a held formant decays, another goes as far to its resonance as it is trusted."""
    count, new = value.shape[1] - 1, np.empty(6)
    for k in range(3):
        held = choice[k] == count
        gain = (1 - trust) * DECAY if held else trust
        target = NEUTRAL_BANDWIDTH if held else bandwidth[choice[k]]
        new[k] = value[k, count] if held else track[k] + gain * (value[k, choice[k]] - track[k])
        new[3 + k] = track[3 + k] + gain * (target - track[3 + k])
    return new


@cached_njit()
def keep(tracks, costs, track, cost, worst):
    """Put a track into the beam in place of its twin, if that is dearer, or else of the dearest; returns who is dearest now."""
    place = worst
    for h in range(BEAM):
        if costs[h] < np.inf and np.abs(tracks[h, :3] - track[:3]).max() < SAME:
            if costs[h] <= cost:
                return worst
            place = h
            break
    tracks[place], costs[place] = track, cost
    return costs.argmax()
