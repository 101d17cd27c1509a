"""A visible label on frames, drawn with OpenCV's own letters."""

from functools import lru_cache

import numpy as np

from shared.config import shown
from shared.errors import TalkheadError
from shared.landmarks import FPS

TEXT = "AI-generated"
SECONDS = 2.0  # that a label is shown for, unless throughout
HEIGHT = 0.05  # of a capital letter, of the picture's shorter side; the least that GB 45438-2025 allows
WIDEST = 0.9  # of the picture's width
SMALLEST = 0.2  # scale of the font, below which nothing can be read
PLATE = 0.55  # how dark the plate behind the letters is


def label(frames: np.ndarray, first: int, *, fps: float = FPS, throughout: bool = False, text: str = TEXT) -> np.ndarray:
    """uint8 (B,H,W,3), the first of them frame number `first` -> the same with white letters on a dark plate in the upper left
    corner, in the first SECONDS or throughout. Letters are of HEIGHT where that fits; tiny pictures cut them off.

    Raises TalkheadError for a text that OpenCV has no letters for.
    """
    shown_for = len(frames) if throughout else max(0, min(len(frames), int(np.ceil(SECONDS * fps)) - first))
    if shown_for == 0:
        return frames
    letters, plate = _drawing(*frames.shape[1:3], text)
    height, width = plate.shape
    labelled = frames.copy()
    corner = labelled[:shown_for, :height, :width].astype(np.float32) * (1 - plate)[..., None]
    labelled[:shown_for, :height, :width] = (corner + 255 * letters[..., None]).clip(0, 255).round().astype(np.uint8)
    return labelled


@lru_cache(maxsize=8)
def _drawing(height: int, width: int, text: str) -> tuple[np.ndarray, np.ndarray]:
    """(h, w) float32 each, for the upper left corner of a picture: how white letters cover it, and how dark it gets."""
    if not text.strip() or not (text.isascii() and text.isprintable()):
        raise TalkheadError(f"a label is one line of ASCII letters, found {shown(text)}")
    import cv2

    scale = SMALLEST
    (across, capital), below = _size(text, scale)
    while capital < HEIGHT * min(height, width) and _size(text, scale + 0.02)[0][0] < WIDEST * width:
        scale += 0.02
        (across, capital), below = _size(text, scale)
    edge = max(2, capital // 2)
    drawn = np.zeros((3 * edge + capital + below, 3 * edge + across), np.uint8)
    cv2.putText(drawn, text, (2 * edge, 2 * edge + capital), cv2.FONT_HERSHEY_DUPLEX, scale, 255, _stroke(scale), cv2.LINE_AA)
    ink = drawn[:height, :width] / np.float32(255)
    plate = np.zeros_like(ink)
    plate[edge:, edge:] = PLATE
    return ink, np.maximum(plate, ink)


def _size(text: str, scale: float) -> tuple[tuple[int, int], int]:
    """(width, height), and what hangs below the line, in pixels."""
    import cv2

    return cv2.getTextSize(text, cv2.FONT_HERSHEY_DUPLEX, scale, _stroke(scale))


def _stroke(scale: float) -> int:
    """Thickness of the letters' lines in pixels."""
    return max(1, round(1.6 * scale))
