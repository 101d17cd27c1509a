"""Alpha and one of five labels for each pixel, from person mattes, landmarks, background plate, the person's colours and what
moves with the head.

Head and torso are told apart by log odds at half the picture's size: how far a pixel lies above or below the line of the jaw,
whether its colour is more like hair or like skin and clothes, and whether the layer that moves with the head or the one that
moves with the torso explains it. The sum is smoothed along the picture's edges by a guided filter.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from process_data.segmentation import matting
from process_data.segmentation.colors import FACE_OUTLINE, PersonColors, above_jaw, filled
from process_data.segmentation.layers import Sample, ShotLayers, moved
from process_data.tracking.torso_motion import face_similarity
from shared.clip import HEAD, MOUTH, NECK, TORSO
from shared.landmarks import LIPS_INNER, N_LANDMARKS

PERSON = 127  # alpha above which a pixel is the person
SPECK = 0.004  # of the picture: smaller parts that are not connected to the person are removed
HOLE = 0.001  # of the picture: smaller holes in the person are filled
EVIDENCE = 4.0  # largest log likelihood ratio that one pixel's colour contributes
COLOR = 1.5  # weight of the colour's log likelihood ratio
TOLD = 0.3  # log likelihood ratio that hair must exceed to be more likely than skin and clothes
STRANGE = 4.0  # how fast colours that hair hardly has count against it
ALIKE = 0.5  # the same in favour of hair where hair and clothes have the same colours
# log odds of head against torso by place: at the line of the jaw, their growth with each face width above it, and the most;
# the same below it, downwards; what is added around the skull
ABOVE, ABOVE_RATE, ABOVE_MOST = 0.5, 12.0, 5.0
BELOW, BELOW_RATE, BELOW_MOST = 0.5, 1.0, 6.0
SKULL, SKULL_AXES, SKULL_LIFT = 4.0, (0.75, 0.95), 0.1  # of the face's width: half axes across and down; its middle's height
SURE = 3.0  # most log odds of one pixel, and those of what lies within the face's outline
GUIDE_RADIUS, GUIDE_EPSILON = 1 / 48, 40.0  # of the smoothing: of the picture's size, grey levels squared
BESIDE_NECK = 4.0  # subtracted from the log likelihood of skin beside the neck
CLOTHES_MARGIN = 2.0  # log likelihood by which clothes must beat skin below the chin
CRUMB = 1 / 4000  # of the picture: smaller parts of head or torso within the other are given to it
CLOSING = 1 / 40  # of the picture's size: smaller gaps between neck and jaw are closed
UNDER_CHIN = (4, 12)  # landmarks of the jaw between whose columns skin lies in the chin's shadow
NECK_REACH = 0.055  # metres below the chin that may still be neck


@dataclass(frozen=True)
class Draft:
    """One frame before its torso is matched: alpha (H,W) uint8; labels (H,W) uint8 without motion; at half the size picture
    (h,w,3) uint8, person (h,w) bool, coarse matte (h,w) uint8 and log odds (h,w) float32 of head against torso and of neck;
    its landmarks (68,2) and pixels to a metre."""

    alpha: np.ndarray
    labels: np.ndarray
    picture: np.ndarray
    person: np.ndarray
    matte: np.ndarray
    odds: np.ndarray
    neck: np.ndarray
    pixels: np.ndarray
    metre: float

    def sample(self, face: np.ndarray, torso: np.ndarray) -> Sample:
        """What layers are built from; face (68,2): landmarks of the reference, torso (2,3): similarity from it."""
        return Sample(self.picture, self.person, self.odds, self.matte, face_similarity(face, self.pixels), torso)


class Segmenter:
    """Segments the frames of one shot, each by itself."""

    def __init__(self, colors: PersonColors, plate: np.ndarray, seen: np.ndarray, layers: ShotLayers | None = None) -> None:
        """The person's colours; the shot's background plate (H,W,3) uint8, which of its pixels were seen (H,W) bool, and what
        moves with head and torso in it, if known."""
        self.colors, self.plate, self.seen = colors, np.ascontiguousarray(plate), np.ascontiguousarray(seen, bool)
        self.noise, self.layers = matting.plate_noise(self.plate, self.seen), layers

    def __call__(self, frame: np.ndarray, mattes: np.ndarray, pixels: np.ndarray, metre: float,
                 torso: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Labels (H,W) uint8 and alpha (H,W) uint8, 255 for all person; `draft` and `labels` in one, which see."""
        draft = self.draft(frame, mattes, pixels, metre)
        return self.labels(draft, torso), draft.alpha

    def draft(self, frame: np.ndarray, mattes: np.ndarray, pixels: np.ndarray, metre: float) -> Draft:
        """Alpha and preliminary labels of a frame (H,W,3) uint8.

        mattes (k,h,w) uint8: coarse mattes of the frame and its neighbours; pixels (68,2): projected landmarks; metre: pixels
        to a metre at the head's depth.
        """
        height, width = frame.shape[:2]
        half = width // 2, height // 2
        frame = np.ascontiguousarray(frame)
        alpha = matting.refine(frame, mattes, self.plate, self.seen, self.noise, self._expected(mattes.shape[1:], pixels, width))
        np.copyto(alpha, 255, where=filled(pixels[FACE_OUTLINE], height, width))
        tidy(alpha, pixels[30])
        picture = cv2.resize(frame, half, interpolation=cv2.INTER_AREA)
        person = cv2.resize(alpha, half, interpolation=cv2.INTER_AREA) > PERSON
        odds, neck = self._odds(picture, person, pixels / 2)
        size = 2 * max(1, round(GUIDE_RADIUS * half[0])) + 1
        face = filled(pixels[FACE_OUTLINE] / 2, *person.shape)
        bare = _neck((cv2.blur(neck, (size, size)) > 0) & person, face, pixels / 2, metre / 2)
        guess = _labels(cv2.blur(odds, (size, size)), bare, alpha, pixels)
        return Draft(alpha, guess, picture, person, cv2.resize(matting.steady_matte(mattes), half), odds, neck, pixels, metre)

    def labels(self, draft: Draft, torso: np.ndarray | None = None) -> np.ndarray:
        """Labels (H,W) uint8 of a draft; torso (2,3): its torso's similarity from the shot's reference, None if unknown."""
        odds = draft.odds
        if self.layers is not None:
            head = face_similarity(self.layers.face, draft.pixels)
            odds = odds + self.layers.evidence(draft.picture, head, torso) * draft.person
        radius = max(2, round(GUIDE_RADIUS * draft.picture.shape[1]))
        face = filled(draft.pixels[FACE_OUTLINE] / 2, *odds.shape)
        planes = np.dstack([np.clip(odds, -SURE, SURE) * ~face, draft.neck])  # the face is known, and says nothing of the neck
        smooth = cv2.ximgproc.guidedFilter(draft.picture, planes, radius, GUIDE_EPSILON, scale=0.5)
        odds, neck = np.ascontiguousarray(smooth[..., 0]), smooth[..., 1] > 0
        odds[face] = 1  # about as far from 0 as the smoothed skin beside it
        _tidy_odds(odds, draft.person, face)
        odds = np.where(draft.person, odds, cv2.blur(odds * draft.person, (5, 5)))  # soft edges belong to what is beside them
        bare = _neck(neck & draft.person, face, draft.pixels / 2, draft.metre / 2)
        return _labels(odds, bare, draft.alpha, draft.pixels)

    def _expected(self, shape: tuple[int, int], pixels: np.ndarray, width: int) -> np.ndarray | None:
        """The coarse matte (h,w) uint8 of `shape` that the layers expect above the jaw; None without layers."""
        if self.layers is None:
            return None
        expected = cv2.resize(moved(self.layers.matte, face_similarity(self.layers.face, pixels)), shape[::-1])
        return expected * above_jaw(pixels * (shape[1] / width), *shape)

    def _odds(self, picture: np.ndarray, person: np.ndarray, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Log odds (h,w) float32 of head against torso, and of skin of the neck against all else, by place and colour.

        picture (h,w,3) uint8 of half size, person (h,w) bool, pixels (68,2) landmarks in it. 0 where there is no person.
        """
        height, width = person.shape
        skin, hair, clothes, body = cv2.split(self.colors.evidence(picture))
        color = hair - np.maximum(np.maximum(skin, clothes), body) - TOLD
        color += STRANGE * np.minimum(hair - self.colors.hair_level, 0)
        above = above_jaw(pixels, height, width)
        under = _under_chin(pixels, above) & (skin > self.colors.skin_level)
        color[under] = np.minimum(color[under], 0)  # the chin's shadow makes skin as dark as hair
        odds = np.clip(COLOR * color, -EVIDENCE, EVIDENCE if self.colors.apart else ALIKE) + place_odds(pixels, above)
        odds[filled(pixels[FACE_OUTLINE], height, width)] = SURE
        left, right = np.clip(pixels[[3, 13], 0], 0, width).astype(int)
        neck = np.minimum(skin - self.colors.skin_level, skin - clothes + CLOTHES_MARGIN)
        neck[:, :left] -= BESIDE_NECK
        neck[:, right:] -= BESIDE_NECK
        return odds * person, np.clip(neck, -EVIDENCE, EVIDENCE) * person


def place_odds(pixels: np.ndarray, above: np.ndarray) -> np.ndarray:
    """Log odds (H,W) float32 of head against torso by place alone, for landmarks (68,2) pixels and what is `above_jaw`."""
    breadth = max(float(np.linalg.norm(pixels[16] - pixels[0])), 1e-6)
    inside, outside = (cv2.distanceTransform(mask.view(np.uint8), cv2.DIST_L2, 3) / breadth if mask.any() else np.inf
                       for mask in (above, ~above))
    odds = np.where(above, np.minimum(ABOVE + ABOVE_RATE * inside, ABOVE_MOST),
                    -np.minimum(BELOW + BELOW_RATE * outside, BELOW_MOST)).astype(np.float32)
    across = (pixels[45] - pixels[36]) / max(np.linalg.norm(pixels[45] - pixels[36]), 1e-6)
    middle = pixels[[0, 16]].mean(0) + SKULL_LIFT * breadth * np.array([across[1], -across[0]])
    circle = np.linspace(0, 2 * np.pi, 36, endpoint=False)
    ring = breadth * np.array(SKULL_AXES) * np.column_stack([np.cos(circle), np.sin(circle)])
    skull = filled(middle + ring @ np.array([across, [-across[1], across[0]]]), *above.shape)
    odds[above & skull] += SKULL
    return odds


def _under_chin(pixels: np.ndarray, above: np.ndarray) -> np.ndarray:
    """(H,W) bool: not `above_jaw` of landmarks (68,2) pixels, and between the columns of its UNDER_CHIN points."""
    left, right = np.clip(pixels[list(UNDER_CHIN), 0], 0, above.shape[1]).round().astype(int)
    under = ~above
    under[:, :left] = under[:, right:] = False
    return under


def _labels(odds: np.ndarray, neck: np.ndarray, alpha: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """Labels (H,W) uint8 from log odds (h,w) of head against torso and neck (h,w) bool, of half size, and alpha (H,W)."""
    height, width = alpha.shape
    person = alpha > PERSON
    head = cv2.resize(odds, (width, height), interpolation=cv2.INTER_LINEAR) > 0
    bare = cv2.resize(neck.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR) > 0.5
    labels = person * np.uint8(TORSO)
    np.copyto(labels, NECK, where=person & bare)
    np.copyto(labels, HEAD, where=person & head)
    np.copyto(labels, MOUTH, where=person & filled(pixels[LIPS_INNER], height, width))
    return labels


def _tidy_odds(odds: np.ndarray, person: np.ndarray, face: np.ndarray) -> None:
    """Turn the sign of odds (h,w) in place where torso is a crumb beside the head, or head is not connected to the `face` (h,w)
    bool, or torso lies above it, connected with nothing below."""
    crumb = CRUMB * odds.size
    head = (odds > 0) & person
    loose = head & ~_joined(head, face, 1)
    odds[loose] *= -1
    torso = (odds <= 0) & person
    _, parts, stats, _ = cv2.connectedComponentsWithStats(torso.astype(np.uint8), connectivity=8)
    chin = np.flatnonzero(face.any(1))[-1] if face.any() else 0
    lowest = stats[:, cv2.CC_STAT_TOP] + stats[:, cv2.CC_STAT_HEIGHT]
    given = (stats[:, cv2.CC_STAT_AREA] < crumb) | (lowest <= chin)
    beside = cv2.dilate((head & ~loose).view(np.uint8), np.ones((3, 3), np.uint8)) > 0
    given &= np.bincount(parts[beside], minlength=len(stats)) > 0
    given[0] = False
    turned = given[parts]
    odds[turned] = np.maximum(-odds[turned], 0.5)


def _neck(skin: np.ndarray, face: np.ndarray, pixels: np.ndarray, metre: float) -> np.ndarray:
    """The neck (h,w) bool: `skin` (h,w) bool between the columns of the jaw, as far as it is connected to it.

    face (h,w) bool: inside the face's outline; pixels (68,2) and metre: landmarks and pixels to a metre, of the same size.
    """
    height, width = skin.shape
    left, right = np.clip(pixels[[3, 13], 0], 0, width).astype(int)
    below = np.zeros_like(skin)
    below[: max(0, int(pixels[8, 1] + NECK_REACH * metre)), left:right] = True
    # a beard or a shadow may separate the neck's skin from the jaw
    reach = 2 * max(1, round(CLOSING * width)) + 1
    jaw = cv2.dilate(face.astype(np.uint8), np.ones((reach, reach), np.uint8)) > 0
    neck = cv2.morphologyEx(skin.view(np.uint8), cv2.MORPH_CLOSE, np.ones((reach, reach), np.uint8)) > 0
    neck &= below
    return _joined(neck | jaw, jaw, 1) & neck


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


def face_is_inside(pixels: np.ndarray, width: int, height: int) -> np.ndarray:
    """Projected landmarks (T,68,2) pixels -> (T,) bool: at least nine in ten lie in the picture."""
    inside = (pixels[..., 0] >= 0) & (pixels[..., 0] < width) & (pixels[..., 1] >= 0) & (pixels[..., 1] < height)
    return inside.sum(1) >= 0.9 * N_LANDMARKS
