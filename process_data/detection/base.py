"""What finds the person in a frame: face points, person matte, faces and hands, whichever library does it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import numpy as np

MATTE_SIZE = 256


@dataclass(frozen=True, eq=False)
class Scheme:
    """How a detector's points are used; all entries are numbers of points."""

    count: int
    landmarks68: np.ndarray  # (68,) the point that stands for each iBUG landmark
    rigid: np.ndarray  # (R,) points that speech and blinking hardly move
    rigid_weight: np.ndarray  # (R,) trust in each of them, 0 … 1
    irises: tuple[list[int], list[int]] | None  # points of the right and the left iris, centre first


class Detector(Protocol):
    """One per worker process. Frames are uint8 (H,W,3) RGB; `points` follows the face, so they come in order of time."""

    scheme: Scheme

    def points(self, frame: np.ndarray) -> np.ndarray | None:
        """(count,3) float32 pixels: x right, y down, z away from the camera in the same scale; of the largest face, None where
        no face is."""

    def everyone(self, frame: np.ndarray) -> np.ndarray:
        """(n,count,3) float32: the points of every face, in no order; of one frame either this is asked for or `points`."""

    def person(self, frame: np.ndarray) -> np.ndarray:
        """(256,256) uint8 share of the person in each pixel of the shrunken frame."""

    def faces(self, frame: np.ndarray) -> np.ndarray:
        """(n,4) float32 left, top, right, bottom in pixels, largest first."""

    def hands(self, frame: np.ndarray) -> list[np.ndarray]:
        """Each (21,2) float32 pixels; [] where there is none or no model for hands."""

    def restart(self) -> None:
        """Forget the frames seen so far: what follows does not depend on them."""

    def close(self) -> None:
        """Give the models' memory back."""


@contextmanager
def quiet_native_logs() -> Iterator[None]:
    """Send what native code prints on stderr to nowhere while the models load."""
    os.environ.setdefault("GLOG_minloglevel", "3")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    saved = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(nowhere)
