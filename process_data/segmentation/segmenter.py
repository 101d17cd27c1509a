"""Alpha and one of five labels for each pixel, from person mattes, landmarks, background plate and the person's colours."""

import cv2
import numpy as np

from process_data.segmentation import matting
from process_data.segmentation.colors import FACE_OUTLINE, HEAD_WIDTHS, TOLD, PersonColors, above_jaw, filled
from shared.clip import BACKGROUND, HEAD, MOUTH, NECK, TORSO
from shared.landmarks import LIPS_INNER, N_LANDMARKS

PERSON = 127  # alpha above which a pixel is the person
SPECK = 0.004  # of the picture: smaller parts that are not connected to the person are removed
HOLE = 0.001  # of the picture: smaller holes in the person are filled
HAIR_FALL = 1.5  # face widths below the chin that hair may fall
EVIDENCE = 4.0  # largest log likelihood ratio that one pixel's colour contributes
SMOOTHING = 1 / 64  # of the picture's size, over which colour evidence is averaged
BESIDE_NECK = 4.0  # subtracted from the log likelihood of skin beside the neck
CLOTHES_MARGIN = 2.0  # log likelihood by which clothes must beat skin below the chin
# falling hair is a region of hair below the jaw. In a picture of 512 pixels it must overlap the head by HAIR_PIXELS pixels and
# the torso by four times as many; torso that it encloses is hair up to eight times as many
HAIR_PIXELS = 100
CLOSING, OPENING = 1 / 40, 1 / 100  # of the picture's size: smaller gaps in the neck are closed, smaller specks removed
NECK_REACH = 0.055  # metres below the chin that may still be neck


class Segmenter:
    """Segments the frames of one shot, each by itself."""

    def __init__(self, colors: PersonColors, plate: np.ndarray, seen: np.ndarray) -> None:
        """The person's colours; the shot's background plate (H,W,3) uint8 and which of its pixels were seen (H,W) bool."""
        self.colors, self.plate, self.seen = colors, np.ascontiguousarray(plate), np.ascontiguousarray(seen, bool)
        self.noise = matting.plate_noise(self.plate, self.seen)

    def __call__(self, frame: np.ndarray, mattes: np.ndarray, pixels: np.ndarray, metre: float) -> tuple[np.ndarray, np.ndarray]:
        """Labels (H,W) uint8 and alpha (H,W) uint8, 255 for all person, of a frame (H,W,3) uint8.

        mattes (k,h,w) uint8: coarse mattes of the frame and its neighbours; pixels (68,2): projected landmarks; metre: pixels
        to a metre at the head's depth.
        """
        height, width = frame.shape[:2]
        face = filled(pixels[FACE_OUTLINE], height, width)
        alpha = matting.refine(np.ascontiguousarray(frame), mattes, self.plate, self.seen, self.noise)
        np.copyto(alpha, 255, where=face)
        tidy(alpha, pixels[30])
        person = alpha > PERSON
        labels = person * np.uint8(TORSO)
        np.copyto(labels, HEAD, where=person & above_jaw(pixels, height, width))
        self._below_jaw(labels, frame, pixels, face, metre)
        np.copyto(labels, MOUTH, where=person & filled(pixels[LIPS_INNER], height, width))
        return labels, alpha

    def _below_jaw(self, labels: np.ndarray, frame: np.ndarray, pixels: np.ndarray, face: np.ndarray, metre: float) -> None:
        """Label falling hair as head and the skin of the neck as neck, in place; `face` (H,W) bool is inside the outline."""
        height, width = labels.shape
        middle, breadth = pixels[[0, 16]].mean(0), float(np.linalg.norm(pixels[16] - pixels[0]))
        top = min(pixels[[2, 14], 1])
        x0, x1 = np.clip([middle[0] - HEAD_WIDTHS * breadth, middle[0] + HEAD_WIDTHS * breadth], 0, width).astype(int)
        y0, y1 = np.clip([top, pixels[8, 1] + HAIR_FALL * breadth], 0, height).astype(int)
        if x1 - x0 < 4 or y1 - y0 < 4:
            return
        window = (slice(y0, y1), slice(x0, x1))
        part = labels[window]
        left, right = np.clip(pixels[[3, 13], 0], x0, x1).astype(int) - x0
        skin, hair = self._by_color(frame[window], left, right, width)
        if self.colors.apart:
            hair &= (part != BACKGROUND) & ~face[window]
            enough = HAIR_PIXELS * (width / 512) ** 2
            falling = _joined(_closed(hair, CLOSING, width), part == HEAD, enough)
            falling = _joined(falling, part == TORSO, 4 * enough)
            part[falling & (part == TORSO)] = HEAD
            if falling.any():
                part[_enclosed(part == TORSO, 8 * enough)] = HEAD
        below = part == TORSO
        below[:, :left] = below[:, right:] = False
        below[max(0, int(pixels[8, 1] + NECK_REACH * metre) - y0) :] = False
        neck = _opened(_closed(skin & below, CLOSING, width), OPENING, width)
        # a beard or a shadow may separate the neck's skin from the jaw
        jaw = cv2.dilate(face[window].astype(np.uint8), _square(2 * CLOSING * width)) > 0
        part[_joined(neck | jaw, jaw, 1) & neck & below] = NECK

    def _by_color(self, picture: np.ndarray, left: int, right: int, width: int) -> tuple[np.ndarray, np.ndarray]:
        """Where a part (h,w,3) of a picture of `width` pixels has colours of skin, and where surely those of hair, (h,w) bool.

        The neck lies between the columns `left` and `right`; beside them skin is less likely. Likelihoods are computed at half
        the resolution and averaged, against flicker by noise.
        """
        height, breadth = picture.shape[:2]
        small = cv2.resize(picture, (breadth // 2, height // 2), interpolation=cv2.INTER_AREA)
        skin, hair, clothes = cv2.split(self.colors.evidence(small))
        size = 2 * max(1, round(SMOOTHING * width / 4)) + 1

        def averaged(ratio: np.ndarray) -> np.ndarray:
            mean = cv2.blur(np.clip(ratio, -EVIDENCE, EVIDENCE), (size, size))
            return cv2.resize(mean, (breadth, height), interpolation=cv2.INTER_LINEAR)

        neck = averaged(np.minimum(skin - self.colors.skin_level, skin - clothes + CLOTHES_MARGIN)) > 0
        skin[:, : left // 2] -= BESIDE_NECK
        skin[:, right // 2 :] -= BESIDE_NECK
        hair = np.minimum(hair - np.maximum(skin, clothes) - TOLD, hair - self.colors.hair_level)
        return neck, averaged(hair) > 0


def tidy(alpha: np.ndarray, inside: np.ndarray) -> None:
    """Remove small parts of alpha (H,W) that are not connected to the person at pixel `inside` (2,), and fill small holes, in
    place."""
    person = (alpha > PERSON).astype(np.uint8)
    _, parts, stats, _ = cv2.connectedComponentsWithStats(person, connectivity=8)
    x, y = np.clip(inside, 0, [alpha.shape[1] - 1, alpha.shape[0] - 1]).astype(int)
    small = stats[:, cv2.CC_STAT_AREA] < SPECK * alpha.size
    small[[0, parts[y, x]]] = False
    if small.any():
        specks = cv2.dilate(small[parts].astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
        alpha[specks & ~((person > 0) & ~small[parts])] = 0
    np.copyto(alpha, 255, where=_enclosed(person == 0, HOLE * alpha.size))


def _joined(mask: np.ndarray, anchor: np.ndarray, seeds: float) -> np.ndarray:
    """The connected parts of `mask` (H,W) bool of which at least `seeds` pixels are in `anchor`."""
    _, parts = cv2.connectedComponents(mask.astype(np.uint8), connectivity=4)
    anchored = np.bincount(parts[anchor], minlength=parts.max() + 1) >= max(1, seeds)
    anchored[0] = False
    return anchored[parts]


def _enclosed(mask: np.ndarray, most: float) -> np.ndarray:
    """The connected parts of `mask` (H,W) bool of fewer than `most` pixels that do not touch its border."""
    _, parts, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    left, top, breadth, height, area = stats.T[:5]
    small = (area < most) & (left > 0) & (top > 0) & (left + breadth < mask.shape[1]) & (top + height < mask.shape[0])
    small[0] = False
    return small[parts] if small.any() else np.zeros_like(mask)


def _closed(mask: np.ndarray, share: float, width: int) -> np.ndarray:
    return cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_CLOSE, _square(share * width)) > 0


def _opened(mask: np.ndarray, share: float, width: int) -> np.ndarray:
    return cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_OPEN, _square(share * width)) > 0


def _square(side: float) -> np.ndarray:
    size = 2 * max(1, round(side / 2)) + 1
    return np.ones((size, size), np.uint8)


def face_is_inside(pixels: np.ndarray, width: int, height: int) -> np.ndarray:
    """Projected landmarks (T,68,2) pixels -> (T,) bool: at least nine in ten lie in the picture."""
    inside = (pixels[..., 0] >= 0) & (pixels[..., 0] < width) & (pixels[..., 1] >= 0) & (pixels[..., 1] < height)
    return inside.sum(1) >= 0.9 * N_LANDMARKS
