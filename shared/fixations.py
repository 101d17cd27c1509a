"""Seeded eye movements: fixations between saccades, where no recorded gaze belongs to the motion that is shown.

Fixations last log-normal times; a saccade takes one to three frames, by its size.
"""

from functools import lru_cache

import numpy as np

from shared.landmarks import FPS

SECONDS, SPREAD = 0.9, 0.6  # median of a fixation, and standard deviation of its logarithm
SHORTEST, LONGEST = 0.4, 3.0  # seconds
AT_CENTRE = 0.5  # share of the fixations that are at the centre
SACCADES = (0.04, 0.12)  # size beyond which a saccade takes two and three frames instead of one
BLOCK = 1000  # frames whose fixations are drawn together, so that any stretch of a long sequence is quickly made
STREAM = 30  # of the seed


class Fixations:
    """Gaze of any number of frames, the same for the same places and seed.

    `places` (M, 2) are where the eyes may look, such as a recorded gaze in eye widths: fixations are at random ones of them, and
    mostly at their median. NaN gives NaN.
    """

    def __init__(self, places: np.ndarray, seed: int = 0) -> None:
        self.places, self.seed = np.asarray(places, np.float32), seed
        self.centre = np.median(self.places, axis=0)
        self._drawn = lru_cache(maxsize=4)(self._draw)

    def _draw(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        """First frames (n,) of the fixations of a block, and where they look (n, 2)."""
        rng = np.random.default_rng([self.seed, STREAM, block])
        most = int(BLOCK / (SHORTEST * FPS)) + 1
        seconds = np.exp(rng.normal(np.log(SECONDS), SPREAD, most)).clip(SHORTEST, LONGEST)
        starts = np.cumsum(np.append(0, np.round(FPS * seconds[:-1]).astype(int)))
        places = self.places[rng.integers(0, len(self.places), most)]
        places[rng.random(most) < AT_CENTRE] = self.centre
        used = starts <= BLOCK - SHORTEST * FPS  # the next block begins with a fixation of its own
        return BLOCK * block + starts[used], places[used]

    def at(self, start: int, stop: int) -> np.ndarray:
        """The gaze (n, 2) float32 of frames start ≤ t < stop."""
        blocks = range(start // BLOCK, (stop - 1) // BLOCK + 1)
        drawn = [self._drawn(block) for block in blocks]
        before = self._drawn(blocks[0] - 1)[1][-1:] if blocks[0] else self.centre[None]
        starts = np.concatenate([part[0] for part in drawn])
        places = np.concatenate([before, *(part[1] for part in drawn)])
        frames = np.arange(start, stop)
        now = np.searchsorted(starts, frames, "right")  # of `places`; the one before is where the saccade came from
        step = places[now] - places[now - 1]
        length = 1 + (np.linalg.norm(step, axis=1, keepdims=True) > SACCADES).sum(1)
        done = np.minimum((frames - starts[now - 1] + 1) / length, 1)[:, None]
        return (places[now] - (1 - done) * step).astype(np.float32)
