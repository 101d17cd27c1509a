"""Colour distributions of skin, hair and clothes, learned once from sample frames of the whole clip."""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from shared.landmarks import LIPS_OUTER

FACE_OUTLINE = list(range(17)) + list(range(26, 16, -1))
JAW_CURVE = list(range(3, 14))  # jaw points between head and neck
HEAD_WIDTHS = 1.6  # face widths to either side of the face's middle that hair may reach
CHEST = (0.3, 0.65)  # the chest is less than this beside and more than this below the chin, in face widths
CHEST_SHARE = 0.85  # of the height visible below the chin, if that is less than CHEST[1]
SHOULDERS = (1.25, 0.3)  # the outer shoulders are more than this beside and more than this below the chin, in face widths
SHOULDERS_SHARE = (0.9, 0.5)  # of what is visible beside and below the chin, if that is less
BINS = (32, 64, 64)  # of lightness and the two colour axes of CIELAB as OpenCV scales it to bytes
SHIFTS = (3, 2, 2)  # bits dropped from a byte to give its bin
BLUR = (1.5, 1.2, 1.2)  # standard deviation of the histograms' smoothing, bins
RARE = 0.02  # share of the hair with the rarest colours, which are not recognised as hair elsewhere
APART = 0.75  # share of the hair that must differ from the clothes for falling hair to be segmented at all
TOLD = 1.2  # log likelihood ratio from which a colour is recognised for sure
SKIN_DEVIATION = (14.0, 5.0, 5.0)  # least standard deviation of skin in CIELAB bytes
LIGHT = 0.3  # weight of lightness in the distance from the skin's mean, so that shadows are skin too
SKIN_DISTANCE = 4.5  # standard deviations within which a colour is skin
DOUBT = 4.0  # likelihood ratio to the other kind at which half of a colour's pixels are kept
FLOOR = 1e-7  # likelihood of a colour that was never seen
INSIDE = 230  # of 255: a larger matte is surely the person
PER_FRAME = 2000  # pixels of each kind and frame that are counted


@dataclass(frozen=True)
class PersonColors:
    """Log likelihoods (bins,4) float32 of skin, hair, clothes and body for each CIELAB bin; the least log likelihoods of skin
    and of hair; whether hair and clothes differ enough.

    Body is all that chest and shoulders show, clothes and bare skin.
    """

    table: np.ndarray
    skin_level: float
    hair_level: float
    apart: bool

    def evidence(self, frame: np.ndarray) -> np.ndarray:
        """Log likelihoods (H,W,4) float32 of skin, hair, clothes and body for an RGB picture (H,W,3) uint8."""
        lab = cv2.cvtColor(np.ascontiguousarray(frame), cv2.COLOR_RGB2LAB)
        return np.take(self.table, _bins(lab), axis=0)


def filled(points: np.ndarray, height: int, width: int) -> np.ndarray:
    """The inside of a polygon (k,2) in pixels as (H,W) bool."""
    mask = np.zeros((height, width), np.uint8)
    limited = np.clip(points, -4 * max(height, width), 4 * max(height, width))
    cv2.fillPoly(mask, [np.round(limited * 16 - 8).astype(np.int32)], 1, shift=4)
    return mask > 0


def _bins(lab: np.ndarray) -> np.ndarray:
    """CIELAB (...,3) uint8 -> the number of the bin (...) int32."""
    wide = lab.astype(np.int32)
    place = wide[..., 0] >> SHIFTS[0]
    for axis in (1, 2):
        place = place * BINS[axis] + (wide[..., axis] >> SHIFTS[axis])
    return place


def histogram(pixels: np.ndarray) -> np.ndarray:
    """RGB pixels (n,3) uint8 -> how many fall into each CIELAB bin."""
    if len(pixels) == 0:
        return np.zeros(BINS)
    lab = cv2.cvtColor(pixels[None], cv2.COLOR_RGB2LAB)[0]
    return np.bincount(_bins(lab), minlength=int(np.prod(BINS))).reshape(BINS).astype(float)


def _likelihood(counts: np.ndarray) -> np.ndarray:
    from scipy.ndimage import gaussian_filter  # slow to load, and not needed in the workers

    smooth = gaussian_filter(counts, BLUR)
    return smooth / max(smooth.sum(), 1e-12) + FLOOR


def _pick(frame: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """At most PER_FRAME pixels (n,3) of those in `mask` (H,W) bool, spread evenly."""
    places = np.flatnonzero(mask)
    return frame.reshape(-1, 3)[places[:: max(1, -(-len(places) // PER_FRAME))]]


def above_jaw(points: np.ndarray, height: int, width: int) -> np.ndarray:
    """(H,W) bool: above the jaw of landmarks (68,2) pixels, continued sideways parallel to the line of the eyes, and within
    HEAD_WIDTHS of the face's middle."""
    across = points[45] - points[36]
    across = across / np.linalg.norm(across)
    up = np.array([across[1], -across[0]])
    far = 2 * max(height, width)
    curve = points[JAW_CURVE]
    middle = points[[0, 16]].mean(0)
    reach = HEAD_WIDTHS * np.linalg.norm(points[16] - points[0])
    first = curve[0] - max(0.0, float((curve[0] - middle) @ across) + reach) * across
    last = curve[-1] + max(0.0, reach - float((curve[-1] - middle) @ across)) * across
    return filled(np.concatenate([[first + far * up, first], curve, [last, last + far * up]]), height, width)


def sample_masks(matte: np.ndarray, points: np.ndarray, height: int, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where samples of skin, hair and clothes are taken, three (H,W) bool, from a matte (h,w) uint8 and landmarks (68,2) pixels.

    Skin: the cheeks. Hair: the person above the jaw and outside the face. Clothes: the chest, and the outer shoulders, since
    long hair may lie between.
    """
    inside = cv2.erode(cv2.resize(matte, (width, height)), np.ones((9, 9), np.uint8)) > INSIDE
    across = points[16] - points[0]
    breadth = max(float(np.linalg.norm(across)), 1e-6)
    across = across / breadth
    x, y = np.arange(width)[None] - points[8, 0], np.arange(height)[:, None] - points[8, 1]
    right, down = (x * across[0] + y * across[1]) / breadth, (y * across[0] - x * across[1]) / breadth
    right = np.abs(right)
    cheeks = filled(points[[2, 4, 48, 31]], height, width) | filled(points[[14, 12, 54, 35]], height, width)
    cheeks &= ~filled(points[LIPS_OUTER], height, width)
    hair = above_jaw(points, height, width) & ~filled(points[FACE_OUTLINE], height, width)
    beside, below = max(points[8, 0], width - points[8, 0]) / breadth, (height - points[8, 1]) / breadth
    outer, lower = (min(most, share * room) for most, share, room in zip(SHOULDERS, SHOULDERS_SHARE, (beside, below)))
    clothes = (right < CHEST[0]) & (down > min(CHEST[1], CHEST_SHARE * below)) | (right > outer) & (down > lower)
    return cheeks & inside, hair & inside, clothes & inside


def learn_colors(frames: Sequence[np.ndarray], mattes: Sequence[np.ndarray], pixels: np.ndarray) -> PersonColors:
    """Sample frames (H,W,3) uint8, their coarse mattes (h,w) uint8 and landmarks (n,68,2) pixels -> the person's colours.

    The order of the samples does not matter. Colours of skin are removed from the clothes; the hair is weighted down where
    skin explains it, the clothes where hair explains them, and the body, less so, likewise.
    """
    skin, hair, clothes = np.zeros(BINS), np.zeros(BINS), np.zeros(BINS)
    for frame, matte, points in zip(frames, mattes, pixels):
        for seen, mask in zip((skin, hair, clothes), sample_masks(matte, points, *frame.shape[:2])):
            seen += histogram(_pick(frame, mask))
    skin_log, level = _skin_model(skin)
    skin_like = np.exp(skin_log) + FLOOR
    hair *= _share(hair, skin_like)
    body = clothes * _share(clothes, _likelihood(hair), doubt=1.0)
    clothes[skin_log > level] = 0
    for _ in range(3):
        clothes *= _share(clothes, _likelihood(hair))
    models = skin_like, _likelihood(hair), _likelihood(clothes), _likelihood(body)
    table = np.stack([np.log(model).ravel() for model in models], 1).astype(np.float32)
    counts, total = hair.ravel(), hair.sum()
    if total == 0:
        return PersonColors(table, level, 0.0, False)
    order = np.argsort(table[:, 1])
    rare = order[np.searchsorted(np.cumsum(counts[order]), RARE * total)]
    told = counts[table[:, 1] - table[:, 2] > TOLD].sum()
    return PersonColors(table, level, float(table[rare, 1]), bool(told > APART * total))


def _skin_model(counts: np.ndarray) -> tuple[np.ndarray, float]:
    """Counts (BINS) -> log likelihoods (BINS) of a Gaussian in CIELAB, wide in lightness, and its value at SKIN_DISTANCE."""
    axes = [(np.arange(n) + 0.5) * 2**shift for n, shift in zip(BINS, SHIFTS)]
    total = max(counts.sum(), 1.0)
    distance, volume = np.zeros(BINS), 1.0
    for k, (values, least) in enumerate(zip(axes, SKIN_DEVIATION)):
        share = counts.sum(tuple(axis for axis in range(3) if axis != k)) / total
        mean = share @ values
        deviation = max(float(np.sqrt(share @ (values - mean) ** 2)), least) / (LIGHT**0.5 if k == 0 else 1)
        distance += ((values - mean) ** 2 / deviation**2).reshape([-1 if axis == k else 1 for axis in range(3)])
        volume *= deviation * (2 * np.pi) ** 0.5 / 2 ** SHIFTS[k]
    return -0.5 * distance - np.log(volume), float(-0.5 * SKIN_DISTANCE**2 - np.log(volume))


def _share(counts: np.ndarray, other: np.ndarray, doubt: float = DOUBT) -> np.ndarray:
    """Share of the pixels in each bin that the likelihood of the other kind, `doubt` times it, does not explain."""
    own = _likelihood(counts)
    return own / (own + doubt * other)
