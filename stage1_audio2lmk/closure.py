"""Whether lips close where speech closes them, stay open where it opens them, and rest where nobody speaks.

Openings are `lip_opening` (T,) in metres, 25 a second; frame t is shown at t/25 s. `seen` (T,) says which frames count: a phone
is measured only where all its frames do. No figure is good alone: a mouth that never opens has every contact, and one that
never closes has every peak and no false contact, so read contact, false contact and peaks together, and beside the tracked row.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
from scipy.signal import butter, sosfilt

from shared.landmarks import FPS, LIPS, SAMPLE_RATE, SAMPLES_PER_FRAME, lip_opening
from shared.phones import SILENCE, UNKNOWN, Marks, Phone, intervals

CONTACT = 0.15  # of the spread above closed lips: lips below it touch
CLOSED_AND_OPEN = (5, 90)  # percentiles of the tracked opening
LEAST_SPREAD = 0.002  # metres
CLOSED_PHONES = frozenset("P B M".split())
NARROW_PHONES = CLOSED_PHONES | {"F", "V", "W", SILENCE, UNKNOWN}  # lips may touch in and around them
OPEN_PHONES = frozenset("AA AE AO AW AY EH EY IH IY".split())  # vowels without rounding; AH may be a schwa
PEAK_PHONES = frozenset("AA AE AO AW AY EH EY".split())  # vowels that open the mouth
AROUND = 0.06  # seconds on each side of a phone that belong to its contact or peak
AWAY = 0.08  # seconds between a false contact and the next narrow phone
PEAK = 0.5  # of the spread: the least height of a tracked peak
TRUE_RISE, RISE = 0.15, 0.05  # of the spread: how much lips open on both sides of a tracked and of a predicted apex
APEX_REACH = 3  # frames from the tracked apex to the predicted one at most
APEX_SIDE = 4  # frames on each side in which lips open
NO_APEX_MS = 1000 * APEX_REACH / FPS  # what counts for a phone at which the predicted lips do not dip
LEAST_PAUSE, AFTER = 0.3, 0.2  # seconds: of a pause, and of its beginning in which movement is measured
SETTLE_FRAMES = 25  # of a sound in which nobody speaks
SHORT_SECONDS, LONG_SECONDS = 4, 8


class Scale(NamedTuple):
    """What one person's lip openings are compared with, all in metres.

    `closed` is the opening of closed lips, `spread` how far above it the tracked lips open; below `contact` lips touch.
    """

    closed: float
    spread: float
    contact: float


def opening_scale(tracked: np.ndarray, rest: float) -> Scale:
    """Tracked openings (n,) of good frames, and the neutral's. The same scale serves tracked and predicted lips.

    Closed lips are the neutral's, or, of a neutral that stands open, those of the least open twentieth of the frames.
    """
    low, high = np.percentile(tracked, CLOSED_AND_OPEN)
    closed = min(rest, float(low))
    spread = max(float(high) - closed, LEAST_SPREAD)
    return Scale(closed, spread, closed + CONTACT * spread)


def frames_of(start: float, stop: float, count: int) -> np.ndarray:
    """Frames shown at start ≤ t ≤ stop seconds, of `count` in all."""
    return np.arange(max(0, int(np.ceil(start * FPS - 1e-6))), min(count - 1, int(np.floor(stop * FPS + 1e-6))) + 1)


def _measured(phones: list[Phone], names: frozenset[str], seen: np.ndarray, around: float = AROUND) -> list[np.ndarray]:
    """Frames of each phone of these names with what is around it, if all are seen."""
    found = [frames_of(phone.start - around, phone.stop + around, len(seen)) for phone in phones if phone.name in names]
    return [frames for frames in found if len(frames) and seen[frames].all()]


def contact_recall(opening: np.ndarray, scale: Scale, phones: list[Phone], seen: np.ndarray) -> float:
    """Share of /p b m/ in which, give or take AROUND, the lips touch; nan where there are none."""
    found = [opening[frames].min() < scale.contact for frames in _measured(phones, CLOSED_PHONES, seen)]
    return float(np.mean(found)) if found else np.nan


def open_frames(phones: list[Phone], seen: np.ndarray) -> np.ndarray:
    """(T,) bool: frames within vowels that call for open lips, AWAY from whatever lets them touch."""
    wanted, narrow = np.zeros(len(seen), bool), np.zeros(len(seen), bool)
    for phone in phones:
        if phone.name in OPEN_PHONES:
            wanted[frames_of(phone.start, phone.stop - 1e-3, len(seen))] = True
        elif phone.name in NARROW_PHONES:
            narrow[frames_of(phone.start - AWAY + 1e-3, phone.stop + AWAY - 1e-3, len(seen))] = True
    return wanted & ~narrow & seen


def false_contacts(opening: np.ndarray, scale: Scale, phones: list[Phone], seen: np.ndarray) -> float:
    """Share of `open_frames` in which the lips touch; nan where there are none.

    A share of the frames that should be open, not of the contacts: lips that always touch get 1.
    """
    frames = open_frames(phones, seen)
    return float((opening[frames] < scale.contact).mean()) if frames.any() else np.nan


def _dips(opening: np.ndarray, frame: int, rise: float) -> bool:
    """Whether the lips open by `rise` before and after a lowest frame."""
    before, after = opening[max(0, frame - APEX_SIDE) : frame], opening[frame + 1 : frame + 1 + APEX_SIDE]
    return bool(len(before) and len(after) and min(before.max(), after.max()) - opening[frame] >= rise)


def _lowest(opening: np.ndarray, frames: np.ndarray) -> tuple[int, float]:
    """The lowest of these frames, and the same between frames by a parabola through it and its neighbours."""
    k = int(frames[np.argmin(opening[frames])])
    if not 0 < k < len(opening) - 1:
        return k, float(k)
    left, middle, right = opening[k - 1 : k + 2].astype(float)
    bend = left - 2 * middle + right
    return k, k + (float(np.clip(0.5 * (left - right) / bend, -0.5, 0.5)) if bend > 1e-9 and min(left, right) >= middle else 0.0)


def apex_errors_ms(opening: np.ndarray, tracked: np.ndarray, scale: Scale, phones: list[Phone], seen: np.ndarray) -> np.ndarray:
    """(n,) how far the predicted lips' lowest moment is from the tracked one's, for each /p b m/ where those touch and dip.

    The predicted one is looked for within APEX_REACH frames of the tracked one; where the lips do not dip there, NO_APEX_MS.
    Phones are left out where the tracked lips do not open before and after, as after a pause, and where they are closer yet
    within that reach, as for another phone: their closing has no moment.
    """
    errors, last = [], len(seen) - 1
    for frames in _measured(phones, CLOSED_PHONES, seen):
        true, at = _lowest(tracked, frames)
        near = np.arange(true - APEX_REACH - APEX_SIDE, true + APEX_REACH + APEX_SIDE + 1)
        if tracked[true] >= scale.contact or near[0] < 0 or near[-1] > last or not seen[near].all():
            continue
        if tracked[near[APEX_SIDE:-APEX_SIDE]].min() < tracked[true] or not _dips(tracked, true, TRUE_RISE * scale.spread):
            continue
        found, when = _lowest(opening, near[APEX_SIDE:-APEX_SIDE])
        late = 1000 * abs(when - at) / FPS
        errors.append(min(late, NO_APEX_MS) if _dips(opening, found, RISE * scale.spread) else NO_APEX_MS)
    return np.array(errors)


def peak_retention(opening: np.ndarray, tracked: np.ndarray, scale: Scale, phones: list[Phone], seen: np.ndarray) -> np.ndarray:
    """(n,) predicted over tracked height above closed lips of the widest opening in each open vowel whose tracked peak is one."""
    peaks = [(opening[frames].max() - scale.closed, tracked[frames].max() - scale.closed)
             for frames in _measured(phones, PEAK_PHONES, seen)]
    return np.array([found / true for found, true in peaks if true >= PEAK * scale.spread])


def speed_after_speech(landmarks: np.ndarray, phones: list[Phone], seen: np.ndarray) -> np.ndarray:
    """Landmarks (T,68,3) -> (n,) mean speed in mm/s of the 20 lip points in the AFTER seconds that follow speech, for each pause.

    The tracked lips move then, too: they close. Less is not better; more than the tracked row is babble.
    """
    found = []
    for before, phone in zip(phones, phones[1:]):
        if phone.name != SILENCE or before.name in (SILENCE, UNKNOWN) or phone.stop - phone.start < LEAST_PAUSE - 1e-6:
            continue
        first = int(np.ceil(phone.start * FPS - 1e-6))
        frames = np.arange(first, first + round(AFTER * FPS) + 1)
        if frames[-1] < len(seen) and seen[frames].all():
            steps = np.diff(landmarks[frames][:, LIPS].astype(float), axis=0)
            found.append(1000 * FPS * np.linalg.norm(steps, axis=-1).mean())
    return np.array(found)


def phone_figures(predicted: np.ndarray, tracked: np.ndarray, scale: Scale, marks: Marks, seen: np.ndarray) -> dict[str, float]:
    """Landmarks (T,68,3) beside the tracked ones -> the columns of a row; those of which there is nothing are left out.

    "p b m" and "vowels": how many /p b m/ and opening peaks. "contact", "false contact", "peaks": shares and median, see the
    functions. "apex ms": median. "after speech mm/s": mean.
    """
    phones = intervals(marks, len(seen) / FPS)
    opening, true = lip_opening(predicted), lip_opening(tracked)
    apexes, peaks = apex_errors_ms(opening, true, scale, phones, seen), peak_retention(opening, true, scale, phones, seen)
    speeds = speed_after_speech(predicted, phones, seen)
    row = {"p b m": float(len(_measured(phones, CLOSED_PHONES, seen))), "contact": contact_recall(opening, scale, phones, seen),
           "false contact": false_contacts(opening, scale, phones, seen),
           "apex ms": float(np.median(apexes)) if len(apexes) else np.nan, "vowels": float(len(peaks)),
           "peaks": float(np.median(peaks)) if len(peaks) else np.nan,
           "after speech mm/s": float(speeds.mean()) if len(speeds) else np.nan}
    return {name: value for name, value in row.items() if not np.isnan(value)}


def gap_figures(gap: np.ndarray) -> dict[str, float]:
    """Lip openings above the neutral's (n,), metres, in a sound in which nobody speaks -> mean and 95th percentile, mm."""
    gap = 1000 * gap
    return {"mean mm": float(gap.mean()), "95 % mm": float(np.percentile(gap, 95))}


# Sounds in which nobody speaks: (640·T,) float32, the same ones for the same seed.


def _at_level(samples: np.ndarray, db: float) -> np.ndarray:
    """Scaled to a root mean square of `db` below full scale."""
    return samples * (10 ** (db / 20) / np.sqrt((samples**2).mean()))


def white_noise(db: float, seed: int = 0, seconds: float = SHORT_SECONDS) -> np.ndarray:
    """Noise of the same power at all frequencies."""
    return (10 ** (db / 20) * np.random.default_rng(seed).normal(size=_samples(seconds))).astype(np.float32)


def room_noise(db: float, seed: int = 0, seconds: float = SHORT_SECONDS) -> np.ndarray:
    """Noise whose power falls with f^−1.5 above 40 Hz, between pink and brown, as that of rooms."""
    noise = np.random.default_rng(seed).normal(size=_samples(seconds))
    return _at_level(_tilted(noise, 0.75), db).astype(np.float32)


def breath(db: float = -35.0, seed: int = 0, seconds: float = LONG_SECONDS) -> np.ndarray:
    """Breaths of 0.4 to 0.8 s, 0.3 to 0.8 s apart, in a room at −70 dB; each has a root mean square of `db`.

    Turbulence between 300 and 5000 Hz that rises over two thirds of a breath and falls more quickly.
    """
    rng = np.random.default_rng(seed)
    band = butter(2, (300, 5000), "bandpass", fs=SAMPLE_RATE, output="sos")
    sound, at = room_noise(-70.0, seed + 1, seconds), int(0.2 * SAMPLE_RATE)
    while True:
        length = int(rng.uniform(0.4, 0.8) * SAMPLE_RATE)
        if at + length > len(sound):
            return sound
        part = np.linspace(0, 1, length)
        envelope = np.sin(np.pi / 2 * np.minimum(part / 0.66, (1 - part) / 0.34)) ** 2
        puff = sosfilt(band, _tilted(rng.normal(size=length), 0.25)) * envelope
        sound[at : at + length] += _at_level(puff, db).astype(np.float32)
        at += length + int(rng.uniform(0.3, 0.8) * SAMPLE_RATE)


def music(db: float = -20.0, seed: int = 0, seconds: float = LONG_SECONDS) -> np.ndarray:
    """Chords with harmonics, a bass line and drums at 120 beats a minute, without a voice."""
    rng = np.random.default_rng(seed)
    beat = SAMPLE_RATE // 2
    sound = np.zeros(_samples(seconds))

    def add(at: int, part: np.ndarray) -> None:
        sound[at : at + len(part)] += part[: max(0, len(sound) - at)]

    def note(pitch: float, count: int, harmonics: int, fall: float) -> np.ndarray:
        time = np.arange(count) / SAMPLE_RATE
        tone = sum(np.sin(2 * np.pi * k * pitch * time) / k**1.5 for k in range(1, harmonics + 1) if k * pitch < 7000)
        return tone * np.exp(-time / fall) * np.minimum(1, time / 0.01) * np.minimum(1, (count - np.arange(count)) / 200)

    def drum(count: int, low: float, fall: float) -> np.ndarray:
        hiss = sosfilt(butter(2, low, "highpass", fs=SAMPLE_RATE, output="sos"), rng.normal(size=count))
        return hiss * np.exp(-np.arange(count) / SAMPLE_RATE / fall)

    chords = ((0, 4, 7), (9, 12, 16), (5, 9, 12), (7, 11, 14))  # half tones above C: C, A minor, F, G
    time = np.arange(beat) / SAMPLE_RATE
    for k, at in enumerate(range(0, len(sound), beat)):
        chord = chords[k // 4 % len(chords)]
        if k % 2 == 0:
            for tone in chord:
                add(at, 0.3 * note(261.63 * 2 ** (tone / 12), 2 * beat, 8, 0.6))
        for half in (0, beat // 2):
            add(at + half, 0.5 * note(65.41 * 2 ** (chord[0] / 12), beat // 2, 5, 0.3))
            add(at + half, 0.1 * drum(beat // 4, 6000, 0.03))
        if k % 2 == 0:
            add(at, 0.9 * np.sin(2 * np.pi * (50 * time + 2.5 * (1 - np.exp(-time / 0.03)))) * np.exp(-time / 0.12))
        else:
            add(at, 0.4 * drum(beat // 2, 800, 0.08))
    return _at_level(sound, db).astype(np.float32)


def _samples(seconds: float) -> int:
    return round(seconds * FPS) * SAMPLES_PER_FRAME


def _tilted(noise: np.ndarray, power: float) -> np.ndarray:
    """Noise with its amplitude times f^−power above 40 Hz, and nothing below 20 Hz."""
    frequency = np.fft.rfftfreq(len(noise), 1 / SAMPLE_RATE)
    gain = np.where(frequency < 20, 0.0, np.maximum(frequency, 40.0) ** -power)
    return np.fft.irfft(np.fft.rfft(noise) * gain, len(noise))


SOUNDS: dict[str, Callable[[], np.ndarray]] = {
    "digital silence": lambda: np.zeros(_samples(SHORT_SECONDS), np.float32),
    "white noise −40 dB": partial(white_noise, -40.0),
    **{f"room noise −{level} dB": partial(room_noise, -float(level)) for level in (60, 50, 40, 30)},
    "breath": breath, "music": music,
}
