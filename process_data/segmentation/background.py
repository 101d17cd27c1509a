"""The background plate: a median over the frames in which the person is far, filled smoothly where none shows the background."""

import cv2
import numpy as np

BAND = 64  # rows whose median is computed at once, to bound memory
COVERED = 256  # value of covered pixels, larger than every grey level
SEEN_SHARE = 0.05  # of the frames: a pixel must be clear of the person in so many to count as seen
WANTED_SHARE = 0.25  # of the frames: those in which the person is farthest from a pixel give its colour
FAR = 1 / 24  # of the picture's size: frames in which the person is farther are used too
LEAST_CLEAR = 0.02  # of the picture: fewer pixels that are always clear do not tell how the light changes
MOST_GAIN = 1.5  # of a frame, against changing light
COARSE = 4  # pixels over which the distance to the person is taken to be the same


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


def background_plate(frames: np.ndarray, person: np.ndarray, margin: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Frames (n,H,W,3) uint8 of one shot, person masks (n,H,W) bool -> background plate (H,W,3) uint8, seen (H,W) bool.

    A pixel is seen if it is clear (`often_clear`) of the person by `margin` pixels; the others are filled in. Of its clear
    frames, those in which the person is farthest away give the colour, since hair reaches beyond its mask.
    """
    far = min(255.0, max(margin, FAR * frames.shape[1]))
    away = np.stack([_distance(mask) for mask in person])
    wanted = len(frames) - max(1, round(WANTED_SHARE * len(frames)))
    enough = np.partition(away[:, ::COARSE, ::COARSE], wanted, axis=0)[wanted]
    enough = cv2.resize(enough, person.shape[:0:-1], interpolation=cv2.INTER_NEAREST).astype(np.float32) - 2 * COARSE
    clear = away > margin
    frames = same_light(frames, np.all(clear, axis=0))
    seen = _often(clear)
    median, used = masked_median(frames, ~clear | (away < np.minimum(enough, far)))
    seen &= used > 0
    return np.clip(fill_smoothly(median, seen), 0, 255).round().astype(np.uint8), seen


def often_clear(person: np.ndarray, margin: float) -> np.ndarray:
    """Person masks (n,H,W) bool -> (H,W) bool: more than `margin` pixels away in one frame of twenty, at least in one."""
    return _often(np.stack([_distance(mask) > margin for mask in person]))


def _often(clear: np.ndarray) -> np.ndarray:
    return clear.sum(0) >= max(1, int(np.ceil(SEEN_SHARE * len(clear))))


def same_light(frames: np.ndarray, always: np.ndarray) -> np.ndarray:
    """Frames (n,H,W,3) uint8 as if their light had not changed, as judged by pixels `always` (H,W) bool that show the background
    in each. Else neighbouring pixels, whose colours come from different frames, would not match."""
    if always.mean() < LEAST_CLEAR:
        return frames
    levels = np.stack([frame[always].mean(0) for frame in frames]) + 1
    gains = np.clip(np.median(levels, axis=0) / levels, 1 / MOST_GAIN, MOST_GAIN)
    steps = np.arange(256)[:, None]
    return np.stack([cv2.LUT(frame, np.clip(steps * gain, 0, 255).round().astype(np.uint8)[:, None])
                     for frame, gain in zip(frames, gains)])


def _distance(person: np.ndarray) -> np.ndarray:
    """Pixels (H,W) uint8, at most 255, to the nearest pixel of a mask (H,W) bool."""
    if not person.any():
        return np.full(person.shape, 255, np.uint8)
    return np.minimum(np.ceil(cv2.distanceTransform((~person).astype(np.uint8), cv2.DIST_L2, 3)), 255).astype(np.uint8)
