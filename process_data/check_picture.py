"""What a recording's picture is like: the face's light and sharpness, the background, the camera."""

import cv2
import numpy as np

from process_data.segmentation.colors import filled
from shared.landmarks import BROW_LEFT, BROW_RIGHT, JAW

CELL = 9  # pixels of the re-blur, after Crete et al.
SHARP_SIZE = 256  # side to which a larger face is shrunk before its blur is measured: a larger one is not learned from
FULL = 250  # grey levels from which a channel counts as burnt out
SMALL = 320  # longer side of the pictures in which the background is compared
CORNERS, FEWEST_CORNERS = 200, 12
CHANGED = 15  # grey levels by which a part of the background differs
PERSON = 25  # of 255: where a matte, widened by WIDER of the picture, is above, the background is not compared
WIDER = 0.04
BROWS = BROW_RIGHT + BROW_LEFT


def blur_of(gray: np.ndarray) -> float:
    """Picture (H,W) uint8 -> its blur, 0 sharp to 1 flat.

    The share of the differences between neighbours that is left when the picture is blurred once more, in the direction in
    which more is left (Crete, Dolmiere, Ladret and Nicolas, "The blur effect", SPIE 6492, 2007).
    """
    picture = gray.astype(np.float32)
    found = []
    for axis, size in ((0, (1, CELL)), (1, (CELL, 1))):
        again = cv2.blur(picture, size)
        before, after = (np.abs(np.diff(image, axis=axis)) for image in (picture, again))
        lost = np.maximum(before - after, 0).sum()
        found.append(1 - lost / max(float(before.sum()), 1e-6))
    return float(max(found))


def face_box(points: np.ndarray, shape: tuple[int, ...]) -> tuple[slice, slice]:
    """Landmarks (68,2) pixels -> the rows and columns of a picture of `shape` that hold them."""
    low, high = np.floor(points.min(0)).astype(int), np.ceil(points.max(0)).astype(int) + 1
    left, top = np.clip(low, 0, [shape[1] - 1, shape[0] - 1])
    right, bottom = np.clip(high, [left + 1, top + 1], [shape[1], shape[0]])
    return slice(int(top), int(bottom)), slice(int(left), int(right))


def face_blur(frame: np.ndarray, points: np.ndarray) -> float:
    """`blur_of` the face with landmarks points (68,2) pixels in a frame (H,W,3), at its own size or SHARP_SIZE."""
    face = cv2.cvtColor(frame[face_box(points, frame.shape)], cv2.COLOR_RGB2GRAY)
    scale = SHARP_SIZE / max(face.shape)
    return blur_of(cv2.resize(face, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA) if scale < 1 else face)


def face_light(frame: np.ndarray, points: np.ndarray) -> tuple[float, float, float]:
    """Frame (H,W,3) and landmarks (68,2) pixels -> the light on the face: grey level of its brightest twentieth (0–255),
    share of it that is burnt out, and by how many stops (log₂) its halves differ in linear light."""
    rows, columns = face_box(points, frame.shape)
    face, inside = frame[rows, columns], points - [columns.start, rows.start]
    mask = filled(np.concatenate([inside[JAW], inside[BROWS[::-1]]]), *face.shape[:2])
    if not mask.any():
        return float("nan"), float("nan"), float("nan")
    gray = cv2.cvtColor(face, cv2.COLOR_RGB2GRAY)
    burnt = float((face.max(axis=2)[mask] >= FULL).mean())
    x, y = np.meshgrid(np.arange(face.shape[1]), np.arange(face.shape[0]))
    top, chin = inside[27], inside[8]
    side = (chin[0] - top[0]) * (y - top[1]) - (chin[1] - top[1]) * (x - top[0]) > 0  # of the line from nose to chin
    linear = (gray / 255.0) ** 2.2
    halves = [linear[mask & half].mean() if (mask & half).any() else np.nan for half in (side, ~side)]
    return float(np.quantile(gray[mask], 0.95)), burnt, float(abs(np.log2((halves[0] + 1e-4) / (halves[1] + 1e-4))))


def small_gray(frame: np.ndarray) -> np.ndarray:
    """A frame (H,W,3) in grey, its longer side SMALL."""
    scale = SMALL / max(frame.shape[:2])
    return cv2.cvtColor(cv2.resize(frame, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2GRAY)


def background_change(first: np.ndarray, last: np.ndarray, mattes: list[np.ndarray]) -> tuple[float | None, float | None]:
    """Two grey pictures (H,W) and mattes (h,w) 0–255 of the person -> what became of the background between them: its median
    shift as a share of the picture's longer side, None where nothing in it can be followed, and the share of it that
    changed, None where the person fills the picture."""
    height, width = first.shape
    covered = np.max([cv2.resize(matte, (width, height)) for matte in mattes], axis=0) > PERSON
    reach = 2 * round(WIDER * max(first.shape)) + 1
    free = cv2.dilate(covered.astype(np.uint8), np.ones((reach, reach), np.uint8)) == 0
    if free.mean() < WIDER:
        return None, None
    soft = [cv2.GaussianBlur(picture, (0, 0), 1.0).astype(np.float32) for picture in (first, last)]
    changed = float((np.abs(soft[0] - soft[1])[free] > CHANGED).mean())
    corners = cv2.goodFeaturesToTrack(first, CORNERS, 0.02, 5, mask=free.astype(np.uint8))
    if corners is None or len(corners) < FEWEST_CORNERS:
        return None, changed
    moved, found, _ = cv2.calcOpticalFlowPyrLK(first, last, corners, None, winSize=(15, 15))
    seen = found.ravel() == 1
    if seen.sum() < FEWEST_CORNERS:
        return None, changed
    shift = np.median((moved - corners).reshape(-1, 2)[seen], axis=0)
    return float(np.linalg.norm(shift)) / SMALL, changed


def flicker_of(level: np.ndarray) -> float:
    """Mean grey levels (T,) of frames that follow each other -> deviation from a smooth course, as a share of the level.

    From second differences, whose variance is six times that of independent deviations.
    """
    if len(level) < 3:
        return 0.0
    return float(np.sqrt(np.square(np.diff(level, n=2)).mean() / 6) / max(float(level.mean()), 1.0))
