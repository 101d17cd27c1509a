"""What a face does that sound does not tell: seeded blinks, and brows and lids that go up a little with emphasis.

All of it is a recursion from frame to frame with a small state, so chunks of any size give the same as the whole.
Amplitudes follow three tracked speakers: brow height varies by 0.3–1.6 mm (standard deviation, 0.2–2 s), 0.15–0.18 of it
correlated with the level of the voice, and the upper lid follows the brow by 0.17–0.39 mm a millimetre.
"""

import math

import numpy as np

from shared.landmark_edit import Blinks, apply_blink
from shared.landmarks import BROW_LEFT, BROW_RIGHT, FPS, N_LANDMARKS

QUIET_DB, LOUD_DB = -50.0, -15.0  # levels, relative to full scale, that count as none and as all of the voice
MEAN_SECONDS = 3.0  # over which the usual loudness of the voice is learned
MOOD_SECONDS = 1.5  # for which the brows stay willing or unwilling to follow
SMOOTH_SECONDS = 0.12  # of each of two low-pass filters
BROW_TRAVEL = 0.006  # metres that a brow goes up at emphasis 1, as long as that is little
HIGHEST_BROW = 0.002  # metres, approached but never reached
LID_SHARE = 0.25  # of the brow's way that the upper lids go
BROW_DIRECTION = np.array([0.0, 1.0, -0.2], np.float32)  # along the forehead
BROW_WEIGHTS = np.array([0.6, 0.85, 1.0, 1.0, 0.9], np.float32)  # from the outer end to the nose
UPPER_LIDS = [37, 38, 43, 44]
LIFT = np.zeros((N_LANDMARKS, 3), np.float32)  # where each point goes when the brows go up by one
LIFT[BROW_RIGHT] = BROW_WEIGHTS[:, None] * BROW_DIRECTION
LIFT[BROW_LEFT] = BROW_WEIGHTS[::-1, None] * BROW_DIRECTION
LIFT[UPPER_LIDS, 1] = LID_SHARE
MOOD_KEEP = math.exp(-1 / (FPS * MOOD_SECONDS))
FOLLOW = 1 - math.exp(-1 / (FPS * SMOOTH_SECONDS))


class Brows:
    """Loudness -> height of the brows: up when the voice is louder than it usually is, how willingly is left to chance."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng((seed, 1))
        self.mood = self.rng.normal()
        self.usual, self.first, self.second = 0.5, 0.0, 0.0

    def take(self, levels: np.ndarray) -> np.ndarray:
        """Levels (t,) in dB relative to full scale -> height (t,) in metres above rest, 0 to HIGHEST_BROW."""
        loudness = np.clip((levels - QUIET_DB) / (LOUD_DB - QUIET_DB), 0, 1)
        heights = np.empty(len(levels))
        for k, (loud, chance) in enumerate(zip(loudness.tolist(), self.rng.normal(size=len(levels)).tolist())):
            self.mood = MOOD_KEEP * self.mood + (1 - MOOD_KEEP**2) ** 0.5 * chance
            emphasis = max(0.0, loud - self.usual) * min(max(0.5 + 0.5 * self.mood, 0.0), 1.5)
            self.first += FOLLOW * (emphasis - self.first)
            self.second += FOLLOW * (self.first - self.second)
            if loud > 0:
                self.usual += (loud - self.usual) / (FPS * MEAN_SECONDS)
            heights[k] = self.second
        return HIGHEST_BROW * np.tanh(BROW_TRAVEL / HIGHEST_BROW * heights)


def raise_brows(landmarks: np.ndarray, heights: np.ndarray) -> np.ndarray:
    """Lift the brows by `heights` (T,) metres and the upper lids by a share of it; (T,68,3) -> (T,68,3)."""
    return landmarks + heights.astype(landmarks.dtype)[:, None, None] * LIFT


class Liveliness:
    """Blinks and brows for a sequence that comes in pieces; `gain` scales the brows, 0 leaves blinks alone."""

    def __init__(self, seed: int, gain: float = 1.0) -> None:
        self.blinks, self.brows, self.gain = Blinks(seed), Brows(seed), gain

    def apply(self, landmarks: np.ndarray, levels: np.ndarray) -> np.ndarray:
        """The next landmarks (t,68,3) and the levels (t,) of their sound in dB -> (t,68,3); lips and jaw stay."""
        landmarks = raise_brows(landmarks, self.gain * self.brows.take(levels))
        closure = self.blinks.take(len(landmarks)).astype(np.float32)
        return apply_blink(landmarks, closure) if closure.any() else landmarks
