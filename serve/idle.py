"""What a head does between words: where it goes on along the avatar's own motion track, and a resting face."""

from typing import NamedTuple

import numpy as np

from shared.landmarks import FPS

CALM_SECONDS = 4.0  # of the track in which a silent head moves


class Place(NamedTuple):
    """Frame of the motion track, and whether the head goes on forwards (1) or back (-1)."""

    frame: int
    step: int


class MotionCursor:
    """Goes along a track of `count` frames back and forth while the head speaks; a silent head goes to the stretch `calm`
    (first, last) and back and forth there. Never jumps: from one picture to the next it is one frame."""

    def __init__(self, count: int, calm: tuple[int, int]) -> None:
        self.count, self.calm = count, calm
        self.place = Place((calm[0] + calm[1]) // 2, 1)

    def next(self, speaking: bool) -> Place:
        """The place of the next picture."""
        frame, step = self.place
        low, high = (0, self.count - 1) if speaking else self.calm
        if low == high == frame:
            return self.place
        if frame <= low:
            step = 1
        elif frame >= high:
            step = -1
        self.place = Place(frame + step, step)
        return self.place


def calm_stretch(poses: np.ndarray, seconds: float = CALM_SECONDS) -> tuple[int, int]:
    """First and last frame of the stretch of poses (T,4,4) in which the head moves least: radians it turns and distances it goes
    by, over the distance from the camera, summed."""
    length = min(len(poses), round(seconds * FPS))
    if length < 2:
        return 0, len(poses) - 1
    cosines = (np.einsum("tij,tij->t", poses[1:, :3, :3], poses[:-1, :3, :3]) - 1) / 2
    turns = np.arccos(cosines.clip(-1, 1))
    shifts = np.linalg.norm(np.diff(poses[:, :3, 3], axis=0), axis=1) / poses[:, 2, 3].mean()
    moved = np.concatenate([[0.0], np.cumsum(turns + shifts)])
    first = int((moved[length - 1 :] - moved[: len(poses) - length + 1]).argmin())
    return first, first + length - 1
