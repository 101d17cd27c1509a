"""Edits of a landmark sequence, each a function of arrays: mouth gain, smile, blinks, smoothing, speed."""

import numpy as np

from shared.arrays import savgol
from shared.errors import TalkheadError
from shared.landmarks import FPS, JAW, LIPS

# how far the mouth corner travels at amount 1, metres: outwards, up, back
SMILE_TRAVEL = np.array([0.006, 0.007, -0.003])
# distance over which a corner drags its neighbours, metres
SMILE_REACH = 0.018
# closure of the lids frame by frame during one blink: fast to close, slower to open
BLINK_PROFILE = np.array([0.35, 0.85, 1.0, 1.0, 0.75, 0.45, 0.2, 0.07])
BLINK_MEAN_SECONDS = 3.6
# of the way between the lids, the share that the upper lid goes
UPPER_LID_SHARE = 0.88
_LIDS = [(37, 41), (38, 40), (43, 47), (44, 46)]


def _check(what: str, value: float, low: float, high: float) -> None:
    """Raise TalkheadError unless low <= value <= high; nan is not."""
    if not low <= value <= high:
        raise TalkheadError(f"{what} between {low:g} and {high:g}, found {value}")


def mouth_gain(landmarks: np.ndarray, neutral: np.ndarray, gain: float) -> np.ndarray:
    """Scale the displacement of lips and jaw from `neutral` (68,3) by `gain`; landmarks (T,68,3) -> (T,68,3)."""
    _check("--mouth-gain takes a factor", gain, -5, 5)
    out = landmarks.copy()
    moving = JAW + LIPS
    base = neutral.reshape(68, 3)[moving]
    out[:, moving] = base + gain * (landmarks[:, moving] - base)
    return out


def smile(landmarks: np.ndarray, amount: float) -> np.ndarray:
    """Pull the mouth corners out, up and back, the lips following; amount 1 is a broad smile, negative a frown."""
    _check("--smile takes an amount", amount, -3, 3)
    out = landmarks.copy()
    for corner, side in ((48, -1.0), (54, 1.0)):
        distance = np.linalg.norm(landmarks[:, LIPS] - landmarks[:, corner : corner + 1], axis=2)
        weight = np.exp(-0.5 * (distance / SMILE_REACH) ** 2)
        out[:, LIPS] += amount * weight[..., None] * SMILE_TRAVEL * [side, 1, 1]
    return out


def smooth(landmarks: np.ndarray, frames: int) -> np.ndarray:
    """Savitzky–Golay filter of order 2 over `frames` neighbours on each side (edges use a shorter polynomial fit)."""
    _check("--smooth takes a number of frames", frames, 0, 250)
    window = min(2 * frames + 1, (len(landmarks) - 1) // 2 * 2 + 1)
    if window < 5:
        if frames == 0 or len(landmarks) < 3:
            return landmarks.copy()
        padded = np.concatenate([landmarks[:1], landmarks, landmarks[-1:]])
        return (padded[:-2] + 2 * padded[1:-1] + padded[2:]) / 4
    return savgol(landmarks, window)


def retime(landmarks: np.ndarray, speed: float) -> np.ndarray:
    """Play `speed` times faster: (T,68,3) -> (round(T/speed),68,3), cubic in time."""
    _check("--retime takes a speed", speed, 0.1, 10)
    count = len(landmarks)
    length = max(1, round(count / speed))
    if count < 2:
        return np.repeat(landmarks[:1], length, axis=0)
    times = np.linspace(0, count - 1, length)
    from scipy.interpolate import CubicSpline  # takes a second

    return CubicSpline(np.arange(count), landmarks, axis=0)(times).astype(landmarks.dtype)


class Blinks:
    """Seeded closure of the lids, piece by piece: pieces of any length give the same as the whole.

    `rate` 1 is one blink in about 3.6 s, 0 none; intervals are log-normal and never shorter than half a second.
    """

    def __init__(self, seed: int | np.random.Generator, rate: float = 1.0) -> None:
        self.rng, self.mean = np.random.default_rng(seed), BLINK_MEAN_SECONDS / rate if rate > 0 else np.inf
        self.at = self.rng.uniform(0.3, 1.0) * self.mean  # when the next one begins, seconds
        self.now = 0  # frames given out
        self.tail = np.zeros(len(BLINK_PROFILE))  # of blinks that reach into the next piece

    def take(self, frames: int) -> np.ndarray:
        """The next (frames,) closures in [0, 1]."""
        closure = np.concatenate([self.tail, np.zeros(frames)])
        while self.at * FPS < self.now + frames:
            start = int(self.at * FPS) - self.now
            piece = closure[start : start + len(BLINK_PROFILE)]
            np.maximum(piece, self.rng.uniform(0.92, 1.0) * BLINK_PROFILE, out=piece)
            self.at += max(0.5, self.rng.lognormal(np.log(self.mean) - 0.18, 0.6))
        self.now += frames
        self.tail = closure[frames:].copy()
        return closure[:frames]


def natural_blinks(frames: int, rng: np.random.Generator, rate: float = 1.0) -> np.ndarray:
    """Closure of the lids (frames,) in [0, 1] with seeded blinks; `rate` 1 is one in about 3.6 s, 0 none."""
    return Blinks(rng, rate).take(frames)


def apply_blink(landmarks: np.ndarray, closure: np.ndarray) -> np.ndarray:
    """Close the lids by `closure` (T,): 0 leaves them, 1 brings upper and lower lid together; (T,68,3) -> (T,68,3)."""
    out = landmarks.copy()
    amount = np.clip(closure, 0, 1)[:, None]
    for upper, lower in _LIDS:
        gap = landmarks[:, upper] - landmarks[:, lower]
        out[:, upper] -= UPPER_LID_SHARE * amount * gap
        out[:, lower] += (1 - UPPER_LID_SHARE) * amount * gap
    return out


def blink(landmarks: np.ndarray, rate: float, rng: np.random.Generator) -> np.ndarray:
    """Add seeded natural blinks at `rate` times the usual frequency; blinks already there stay."""
    _check("--blink takes a rate", rate, 0, 20)
    return apply_blink(landmarks, natural_blinks(len(landmarks), rng, rate))
