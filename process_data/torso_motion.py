"""The torso's own motion: a similarity a frame against one reference frame, from tracked corners of the clothes."""

from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
from scipy.signal import savgol_filter

from shared.clip import TORSO

CORNERS = 400
RANSAC_PIXELS = 1.5
FORWARD_BACKWARD_PIXELS = 1.0
LEAST_POINTS = 12
WINDOW = 7  # Savitzky–Golay, frames
LUCAS_KANADE: dict[str, Any] = dict(winSize=(21, 21), maxLevel=4,
                    criteria=(cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 30, 0.01))


def decompose(matrix: np.ndarray, center: np.ndarray) -> np.ndarray:
    """Similarity matrix (2,3) acting on pixels -> (dx, dy, angle, scale) about `center` (2,)."""
    scale = float(np.hypot(matrix[0, 0], matrix[1, 0]))
    angle = float(np.arctan2(matrix[1, 0], matrix[0, 0]))
    shift = matrix[:, :2] @ center + matrix[:, 2] - center
    return np.array([*shift, angle, scale])


def compose(motion: np.ndarray, center: np.ndarray) -> np.ndarray:
    """(dx, dy, angle, scale) about `center` -> similarity matrix (2,3) acting on pixels; inverse of `decompose`."""
    dx, dy, angle, scale = motion
    linear = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return np.column_stack([linear, center + [dx, dy] - linear @ center])


class TorsoTracker:
    """Matches every frame directly to the reference, so nothing drifts; starts anew where it loses the torso."""

    def __init__(self, reference: np.ndarray, labels: np.ndarray) -> None:
        """Reference frame (H,W,3) uint8 and its labels (H,W)."""
        self.gray = _gray(reference)
        height, width = self.gray.shape
        self.center = np.array([width / 2, height / 2])
        torso = cv2.erode((labels == TORSO).astype(np.uint8), np.ones((5, 5), np.uint8))
        found = cv2.goodFeaturesToTrack(self.gray, CORNERS, 0.004, 4, mask=torso, blockSize=5)
        self.points = np.zeros((0, 1, 2), np.float32) if found is None else found
        self.last = np.array([0.0, 0.0, 0.0, 1.0])

    def restart(self) -> None:
        """Forget the last motion, as after a cut."""
        self.last = np.array([0.0, 0.0, 0.0, 1.0])

    def motion(self, frame: np.ndarray, labels: np.ndarray) -> np.ndarray | None:
        """Frame (H,W,3) and labels -> (dx, dy, angle, scale), or None where too few corners agree."""
        if len(self.points) < LEAST_POINTS:
            return None
        gray = _gray(frame)
        guess = cv2.transform(self.points + 0.5, compose(self.last, self.center)) - 0.5
        there, ok, _ = cv2.calcOpticalFlowPyrLK(self.gray, gray, self.points, guess.astype(np.float32),
                                                flags=cv2.OPTFLOW_USE_INITIAL_FLOW, **LUCAS_KANADE)
        back, ok_back, _ = cv2.calcOpticalFlowPyrLK(gray, self.gray, there, self.points.copy(),
                                                    flags=cv2.OPTFLOW_USE_INITIAL_FLOW, **LUCAS_KANADE)
        good = (ok & ok_back).ravel().astype(bool)
        good &= np.linalg.norm(back - self.points, axis=2).ravel() < FORWARD_BACKWARD_PIXELS
        x, y = np.round(there[:, 0]).astype(int).T
        inside = (x >= 0) & (y >= 0) & (x < gray.shape[1]) & (y < gray.shape[0])
        good &= inside
        good[inside] &= labels[y[inside], x[inside]] == TORSO
        if good.sum() < LEAST_POINTS:
            return None
        matrix, agree = cv2.estimateAffinePartial2D(self.points[good] + 0.5, there[good] + 0.5,
                                                    ransacReprojThreshold=RANSAC_PIXELS, maxIters=500, refineIters=20)
        if matrix is None or agree.sum() < LEAST_POINTS:
            return None
        found = decompose(matrix, self.center)
        if not 0.5 < found[3] < 2:
            return None
        self.last = found
        return found


def track_torso(frames: Iterator[tuple[np.ndarray, np.ndarray]], reference: tuple[np.ndarray, np.ndarray],
                shots: list[tuple[int, int]]) -> np.ndarray:
    """Stream of (frame, labels), the reference pair and the shots -> torso motion (T,4) float32, gaps interpolated."""
    tracker = TorsoTracker(*reference)
    starts = {start for start, _ in shots}
    rows = []
    for t, (frame, labels) in enumerate(frames):
        if t in starts:
            tracker.restart()
        found = tracker.motion(frame, labels)
        rows.append(np.full(4, np.nan) if found is None else found)
    motion = np.array(rows)
    for start, stop in shots:
        motion[start:stop] = _fill_and_smooth(motion[start:stop])
    return motion.astype(np.float32)


def _fill_and_smooth(motion: np.ndarray) -> np.ndarray:
    known = np.flatnonzero(~np.isnan(motion[:, 0]))
    if len(known) == 0:
        return np.tile([0.0, 0.0, 0.0, 1.0], (len(motion), 1))
    filled = np.stack([np.interp(np.arange(len(motion)), known, column[known]) for column in motion.T], -1)
    return savgol_filter(filled, WINDOW, 2, axis=0) if len(filled) > WINDOW else filled


def _gray(frame: np.ndarray) -> np.ndarray:
    return cv2.createCLAHE(4.0, (8, 8)).apply(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY))
