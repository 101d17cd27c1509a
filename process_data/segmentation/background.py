"""The background plate: a masked median over time, filled smoothly where the background was never seen."""

import cv2
import numpy as np

BAND = 64  # rows whose median is computed at once, to bound memory
COVERED = 256  # value of covered pixels, larger than every grey level
SEEN_SHARE = 0.05  # of the frames: a pixel must be free of the person in so many to count as seen


def masked_median(frames: np.ndarray, person: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Median over time of the pixels that the person does not cover.

    frames (n,H,W,3) uint8, person (n,H,W) bool -> median (H,W,3) float32, 0 where a pixel is always covered, and the number
    of frames in which it is not, (H,W) int.
    """
    median = np.zeros(frames.shape[1:], np.float32)
    free = (~person).sum(axis=0)
    for top in range(0, frames.shape[1], BAND):
        rows = slice(top, top + BAND)
        values = np.where(person[:, rows, :, None], COVERED, frames[:, rows].astype(np.int16))
        values = np.sort(np.ascontiguousarray(values.transpose(1, 2, 3, 0)), axis=-1)
        count = free[rows, :, None, None]
        low, high = (np.take_along_axis(values, np.maximum(place, 0), -1)[..., 0] for place in ((count - 1) // 2, count // 2))
        median[rows] = np.where(count[..., 0] > 0, (low + high) / 2, 0)
    return median, free


def fill_smoothly(image: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Fill an image (H,W,C) float32 where known (H,W) bool is false, coarse to fine (push-pull); known pixels stay."""
    if known.all() or not known.any():
        return image.copy()
    weight = known.astype(np.float32)[..., None]
    levels = [(image * weight, weight)]
    while min(levels[-1][0].shape[:2]) > 1 and levels[-1][1].min() <= 0:
        color, w = levels[-1]
        size = (max(1, color.shape[1] // 2), max(1, color.shape[0] // 2))
        levels.append((cv2.resize(color, size, interpolation=cv2.INTER_AREA).reshape(size[1], size[0], -1),
                       cv2.resize(w, size, interpolation=cv2.INTER_AREA).reshape(size[1], size[0], 1)))
    color, w = levels[-1]
    filled = color / np.maximum(w, 1e-6)
    for color, w in reversed(levels[:-1]):
        size = (color.shape[1], color.shape[0])
        coarse = cv2.resize(filled, size, interpolation=cv2.INTER_LINEAR).reshape(color.shape)
        trust = np.clip(w * 4, 0, 1)
        filled = trust * color / np.maximum(w, 1e-6) + (1 - trust) * coarse
    return np.where(known[..., None], image, filled)


def background_plate(frames: np.ndarray, person: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Frames (n,H,W,3) uint8 of one shot and person masks (n,H,W) bool -> background plate (H,W,3) uint8, seen (H,W) bool.

    A pixel counts as seen if it is free of the person in one frame of twenty, at least in one; the others are filled in.
    """
    median, free = masked_median(frames, person)
    seen = free >= max(1, int(np.ceil(SEEN_SHARE * len(frames))))
    return np.clip(fill_smoothly(median, seen), 0, 255).round().astype(np.uint8), seen
