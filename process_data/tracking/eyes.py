"""The eyes: closing of the lids, and gaze, where the irises are between the corners of the eyes."""

from collections.abc import Sequence

import numpy as np

from shared.landmarks import EYE_LEFT, EYE_RIGHT, eye_opening

OPEN_QUANTILE = 0.75  # of the lid openings: the usual one, since blinks are short and looking down is rarer than ahead
SHUT_SHARE = 0.15  # of the usual opening: lids that touch still leave the tracked lid lines a little apart
SHORTEST_EYE = 1e-6  # pixels; of a narrower eye the gaze is NaN
FARTHEST = 0.5  # eye widths: an iris seen outside the corners of the eye is a fault
HIDDEN = 0.4  # closing of a lid that hides half of the iris, whose centre then follows the lid
AROUND = 1  # frames before and after such a closing that are not trusted either
SPIKE = 0.05  # eye widths from the median of three frames: eyes do not jump there and back within two frames


def blink(landmarks: np.ndarray) -> np.ndarray:
    """Landmarks (T,68,3) -> closing (T,2) of the right and the left lid: 0 open as usual for this person … 1 closed.

    Each eye is measured against its own usual opening; an eye that never opens is 0.
    """
    opening = eye_opening(landmarks)
    usual = np.quantile(opening, OPEN_QUANTILE, axis=0)
    shut = SHUT_SHARE * usual
    closing = (usual - opening) / np.where(usual > 0, usual - shut, np.inf)
    return np.clip(closing, 0, 1).astype(np.float32)


def iris_offset(irises: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """Iris centres (T,2,2) pixels, right and left, and landmarks (T,68,2) pixels -> gaze (T,2), across and down.

    Distance of the iris from the middle between the eye's corners, in eye widths, along and perpendicular to the line
    between them; positive is right and down in the picture. The mean of both eyes; of one where the other's iris is NaN.
    """
    both = []
    for iris, eye in zip(np.moveaxis(np.asarray(irises, float), 1, 0), (EYE_RIGHT, EYE_LEFT)):
        left, right = pixels[:, eye[0]].astype(float), pixels[:, eye[3]].astype(float)  # as they lie in the picture
        along = right - left
        width = np.linalg.norm(along, axis=1, keepdims=True)
        along = along / np.where(width > SHORTEST_EYE, width, np.nan)
        offset = (iris - (left + right) / 2) / np.where(width > SHORTEST_EYE, width, np.nan)
        down = np.stack([-along[:, 1], along[:, 0]], axis=1)
        both.append(np.stack([(offset * along).sum(1), (offset * down).sum(1)], axis=1))
    values = np.stack(both)
    known = np.isfinite(values)
    mean = np.where(known, values, 0).sum(0) / np.maximum(known.sum(0), 1)
    return np.where(known.any(0), mean, np.nan).astype(np.float32)


def track_gaze(irises: np.ndarray, pixels: np.ndarray, landmarks: np.ndarray, good: np.ndarray,
               spans: Sequence[tuple[int, int]]) -> np.ndarray | None:
    """The gaze (T,2) of a clip, float32 and finite, as `iris_offset` of the same irises (T,2,2) and pixels (T,68,2).

    Frames that are not good (T,) bool, that have no iris or whose lids hide it, by landmarks (T,68,3), are filled linearly
    from those around them, and single faults are taken out, within each of the shots `spans`, start ≤ t < stop. Nothing else is
    smoothed: that lost more of what the eyes do than noise. None where no frame shows an iris.
    """
    offset = iris_offset(irises, pixels)
    hidden = np.convolve(blink(landmarks).max(1) > HIDDEN, np.ones(2 * AROUND + 1), "same") > 0.5
    seen = good & ~hidden & np.isfinite(offset).all(1) & (np.abs(np.nan_to_num(offset)) < FARTHEST).all(1)
    known = np.flatnonzero(seen)
    if len(known) == 0:
        return None
    gaze = np.stack([np.interp(np.arange(len(offset)), known, column[known]) for column in offset.T], -1)
    for start, stop in spans:
        padded = np.pad(gaze[start:stop], ((1, 1), (0, 0)), mode="edge")
        usual = np.median([padded[:-2], padded[1:-1], padded[2:]], axis=0)
        gaze[start:stop] = np.where(np.abs(gaze[start:stop] - usual) > SPIKE, usual, gaze[start:stop])
    return gaze.astype(np.float32)
