"""Interface of a detector: face points, person matte, face boxes and hands of one frame."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import numpy as np

MATTE_SIZE = 256


@dataclass(frozen=True, eq=False)
class Scheme:
    """Which of a detector's points are used for what; points are given by their numbers."""

    count: int  # of all points
    landmarks68: np.ndarray  # (68,) the point that stands for each iBUG landmark
    rigid: np.ndarray  # (R,) points that speech and blinking hardly move
    rigid_weight: np.ndarray  # (R,) how far each of them is trusted, 0 … 1
    irises: tuple[list[int], list[int]] | None  # points of the right and the left iris, centre first


class Detector(Protocol):
    """One per worker process. Frames are uint8 (H,W,3) RGB. `points` and `everyone` follow faces from frame to frame, so
    frames must come in order of time; of one frame call one of the two."""

    scheme: Scheme

    def points(self, frame: np.ndarray) -> np.ndarray | None:
        """(count,3) float32 pixels of the largest face: x right, y down, z away from the camera in the same scale; None without
        a face."""

    def everyone(self, frame: np.ndarray) -> np.ndarray:
        """(n,count,3) float32 pixels of every face, in no particular order."""

    def person(self, frame: np.ndarray) -> np.ndarray:
        """(256,256) uint8 matte: the person's share of each pixel of the shrunken frame, 255 for all of it."""

    def faces(self, frame: np.ndarray) -> np.ndarray:
        """(n,4) float32 left, top, right, bottom in pixels, largest first."""

    def hands(self, frame: np.ndarray) -> list[np.ndarray]:
        """The hands, each (21,2) float32 pixels; [] if there are none or the detector has no model for them."""

    def restart(self) -> None:
        """Forget the frames seen so far, so that later results do not depend on them."""

    def close(self) -> None:
        """Release the models."""


@contextmanager
def quiet_native_logs() -> Iterator[None]:
    """Discard what native code prints on stderr, while models load."""
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
