"""The gaze file: where the irises are between the corners of the eyes, frame by frame. docs/formats.md defines it.

In memory a gaze (T, 2) may be NaN where it is not known; a head then looks as its person usually does.
"""

from pathlib import Path

import numpy as np

from shared.errors import TalkheadError
from shared.files import remove
from shared.landmarks import load_array, save_array

GAZE = 2  # numbers a frame: across and down, eye widths
FARTHEST = 1.0  # eye widths from the middle of the eye; an iris never leaves it


def load_gaze(path: Path) -> np.ndarray:
    """(T, 2) float32 eye widths. Raises TalkheadError for anything else, such as pixels or degrees."""
    gaze = load_array(path, (GAZE,))
    far = np.argwhere(np.abs(gaze) > FARTHEST)
    if len(far):
        row, column = map(int, far[0])
        raise TalkheadError(f"{path}: a gaze is in eye widths from the middle of the eye, {-FARTHEST:g} to {FARTHEST:g}, found "
                            f"{gaze[row, column]:g} in row {row}")
    return gaze


def optional_gaze(path: Path, frames: int) -> np.ndarray:
    """(frames, 2) of a gaze file that may be missing: NaN then. Raises TalkheadError for a wrong file, also of another length."""
    if not path.is_file():
        return np.full((frames, GAZE), np.nan, np.float32)
    gaze = load_gaze(path)
    if len(gaze) != frames:
        raise TalkheadError(f"{path}: expected {frames} frames, as many as there are poses, found {len(gaze)}")
    return gaze


def save_gaze(path: Path, gaze: np.ndarray) -> None:
    """Write a gaze (T, 2); one that is not known leaves no file."""
    if np.isnan(gaze).all():
        remove(path)
    else:
        save_array(path, gaze)
