"""The plate behind the person: a masked median over time, and a smooth filling of what was never seen."""

import cv2
import numpy as np

BAND = 64  # rows of the median done at once, to bound memory


def masked_median(frames: np.ndarray, person: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """frames (n,H,W,3) uint8, person (n,H,W) bool -> median (H,W,3) float32 of the uncovered pixels, seen (H,W) bool."""
    median = np.zeros(frames.shape[1:], np.float32)
    for top in range(0, frames.shape[1], BAND):
        rows = slice(top, top + BAND)
        values = np.where(person[:, rows, :, None], np.nan, frames[:, rows].astype(np.float32))
        hidden = np.isnan(values).all(axis=0)
        values[0][hidden] = 0
        median[rows] = np.nanmedian(values, axis=0)
    return median, ~person.all(axis=0)


def fill_smoothly(image: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Fill the unknown part of an image (H,W,C) float32 from the known one, coarse to fine; known pixels stay."""
    if known.all() or not known.any():
        return image.copy()
    weight = known.astype(np.float32)[..., None]
    levels = [(image * weight, weight)]
    while min(levels[-1][0].shape[:2]) > 1 and levels[-1][1].min() <= 0:
        colour, w = levels[-1]
        size = (max(1, colour.shape[1] // 2), max(1, colour.shape[0] // 2))
        levels.append((cv2.resize(colour, size, interpolation=cv2.INTER_AREA).reshape(size[1], size[0], -1),
                       cv2.resize(w, size, interpolation=cv2.INTER_AREA).reshape(size[1], size[0], 1)))
    colour, w = levels[-1]
    filled = colour / np.maximum(w, 1e-6)
    for colour, w in reversed(levels[:-1]):
        size = (colour.shape[1], colour.shape[0])
        coarse = cv2.resize(filled, size, interpolation=cv2.INTER_LINEAR).reshape(colour.shape)
        trust = np.clip(w * 4, 0, 1)
        filled = trust * colour / np.maximum(w, 1e-6) + (1 - trust) * coarse
    return np.where(known[..., None], image, filled)


def background_plate(frames: np.ndarray, person: np.ndarray) -> np.ndarray:
    """frames (n,H,W,3) uint8 of one shot and person masks (n,H,W) bool -> plate (H,W,3) uint8."""
    median, seen = masked_median(frames, person)
    return np.clip(fill_smoothly(median, seen), 0, 255).round().astype(np.uint8)
