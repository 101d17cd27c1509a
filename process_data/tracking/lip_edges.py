"""Corrects the inner lip points: they are moved to the edge between lip and mouth in the picture.

A mesh network opens a wide-open mouth too far and a narrow one too little. In every frame, the place where the lip's
colour ends is found along short profiles across the lip (change point by cumulative log-likelihood, Page 1954). Single
frames are unreliable, so the correction of a point is a smooth robust function of the mouth opening, fitted to the whole
clip, plus a small part on which neighbouring frames agree.
"""

import cv2
import numpy as np

POINTS = np.array([61, 62, 63, 67, 66, 65])  # upper lip, then the points that face them
FACING = POINTS[[3, 4, 5, 0, 1, 2]]
OUTER = np.array([50, 51, 52, 58, 57, 56])
UPPER = 3  # number of POINTS on the upper lip, which come first

# all lengths are in pixels of a 512² picture, positive into the mouth
STEP = 0.5  # between the samples of a profile
ALONG = np.arange(-9.0, 7.0 + STEP / 2, STEP)  # samples of a profile, from the detector's point
ACROSS = np.array([-1.5, 0.0, 1.5])  # parallel lines whose mean is the profile
LIP = (0.75, 0.3)  # distances from the inner contour, of the lip's thickness, between which a sample certainly is lip
REACH = 3.5  # largest distance of an edge from the detector's point
BEFORE, AFTER_UPPER, AFTER_LOWER = 2, 5, 4  # samples around the change point among which the steepest step is taken
NARROWEST = 1.5  # least opening with a visible mouth between the lips
DARK = 12, 8  # grey levels added to luminance and to colours before the logarithm, against noise in the dark
LUMA = [0.299, 0.587, 0.114]  # ITU-R BT.601

# standard deviation of a lip's log luminance and of its two log colour ratios; the underside of the upper lip is shaded
SPREAD = np.array([[0.3, 0.1, 0.15]] * UPPER + [[0.18, 0.1, 0.15]] * UPPER)
MOST = 4.0  # largest log-likelihood ratio of one sample against lip, so that no sample decides alone
PRIOR = 1.5  # subtracted from it: what a sample must exceed to count against lip

KNOT = 1.0  # opening between the knots of the curve
STIFFNESS = 5.0  # weight of the curve's second differences, in frames
SHRINKAGE = 2.0  # weight of a correction of zero, in frames
DOUBT = 0.6  # residuals beyond this count linearly (Huber)
NEIGHBOURS = 1.0  # standard deviation of the average over neighbouring frames
MOST_OWN = 1.5  # largest difference of a frame from the curve
OWN_SHRINKAGE = 0.3  # weight of no such difference, in frames
TOGETHER = 0.5  # share of the way that each point moves to the mean correction of its lip
SEEN = (0.45, 0.75)  # shares of frames with an edge between which the correction of that opening grows from none to full
FADE = (1.5, 5.0)  # openings between which corrections grow from none to full
ROUNDS = 8  # of the reweighting of the robust fit


def lip_evidence(frame: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """Lip edges in one frame (H,W,3) uint8 with landmarks (68,2) pixels.

    Returns (6,2) float32, for each of POINTS: the distance of the edge into the mouth in pixels of a 512² picture, and its
    trust from 0 (no edge seen) to 1.
    """
    right, up = _axes(pixels[None].astype(float))
    unit = frame.shape[0] / 512
    inward = np.where(np.arange(len(POINTS))[:, None] < UPPER, -up[0], up[0])
    inner = pixels[POINTS].astype(float)
    room = ((pixels[FACING] - inner) * inward).sum(1) / unit
    thickness = ((inner - pixels[OUTER]) * inward).sum(1) / unit
    found = np.zeros((len(POINTS), 2), np.float32)
    if room.max() < NARROWEST or not np.isfinite(inner).all():
        return found
    colors = _profiles(frame, inner, inward, right[0], unit)
    features = _features(colors)
    for k in np.flatnonzero(room >= NARROWEST):
        found[k] = _edge(colors[k], features[k], SPREAD[k], room[k], thickness[k], upper=bool(k < UPPER))
    return found


def _axes(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors (T,2) in the picture, to the subject's left and up, of landmarks (T,68,2) pixels."""
    right = pixels[:, 45] - pixels[:, 36]
    right = right / np.maximum(np.linalg.norm(right, axis=1, keepdims=True), 1e-9)
    return right, np.stack([right[:, 1], -right[:, 0]], axis=1)


def _profiles(frame: np.ndarray, inner: np.ndarray, inward: np.ndarray, right: np.ndarray, unit: float) -> np.ndarray:
    """Colours (6,S,3) at ALONG from the points `inner` (6,2) in the directions `inward` (6,2), the mean over ACROSS."""
    along = ALONG[:, None, None] * inward[:, None, None]
    grid = inner[:, None, None] + unit * (along + ACROSS[:, None] * right) - 0.5
    flat = grid.astype(np.float32).reshape(-1, len(ACROSS), 2)
    colors = cv2.remap(frame, flat, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return colors.reshape(*grid.shape[:3], 3).mean(2)


def _features(colors: np.ndarray) -> np.ndarray:
    """Colours (...,3) -> log luminance and log ratios of red to green and of green to blue (...,3)."""
    luminance = np.log(colors @ LUMA + DARK[0])
    red, green, blue = np.moveaxis(np.log(colors + DARK[1]), -1, 0)
    return np.stack([luminance, red - green, green - blue], axis=-1)


def _edge(colors: np.ndarray, features: np.ndarray, spread: np.ndarray, room: float, thickness: float,
          upper: bool) -> tuple[float, float]:
    """Place along one profile, colours and features (S,3), where the lip ends, and its trust; (0, 0) if no edge is seen.

    spread (3,): deviation of the features within the lip; room: distance to the other lip; thickness of the lip.
    """
    lip = (ALONG >= -LIP[0] * thickness) & (ALONG <= -LIP[1] * thickness)
    if lip.sum() < 3:
        return 0.0, 0.0
    distance = np.linalg.norm((features - np.median(features[lip], axis=0)) / spread, axis=1)
    seen = (ALONG >= -LIP[0] * thickness) & (ALONG <= room / 2 + 1)
    against = np.where(seen, np.minimum(distance**2 / 2, MOST) - PRIOR, 0)
    total = np.cumsum(against)
    at = int(np.where(np.abs(ALONG) < REACH, total[-1] - 2 * total, -np.inf).argmax())
    inside, outside = against[at + 1:at + 6], against[max(at - 5, 0):at + 1]
    trust = min(inside.mean(), -2 * outside.mean() / PRIOR - 1, 0.5 - outside[-2:].mean() / PRIOR, 1.0)
    if trust <= 0:
        return 0.0, 0.0
    # the steepest step nearby: blur does not move it, and shading has none
    slope = np.linalg.norm(colors[2:] - colors[:-2], axis=1)
    first = max(at - 1 - BEFORE, 1)
    i = first + int(slope[first:at + (AFTER_UPPER if upper else AFTER_LOWER)].argmax())
    low, high = slope[i - 1], slope[min(i + 1, len(slope) - 1)]
    bend = low + high - 2 * slope[i]
    place = ALONG[i + 1] + (STEP * np.clip(0.5 * (low - high) / bend, -0.5, 0.5) if bend < 0 else 0.0)
    return float(place), float(trust)


def correct_lips(pixels: np.ndarray, evidence: np.ndarray, good: np.ndarray, unit: float) -> np.ndarray:
    """Landmarks (T,68,2) pixels with the inner lips corrected by the `lip_evidence` (T,6,2) of the whole clip.

    good (T,) bool: frames with a face; only these are used and changed. unit: pixels of the picture to one of a 512² picture.
    """
    corrected = np.array(pixels, dtype=float)
    up = _axes(corrected)[1]
    gap = ((corrected[:, POINTS[:UPPER]] - corrected[:, POINTS[UPPER:]]) * up[:, None]).sum(2).mean(1) / unit
    usable = good & np.isfinite(gap)
    if not usable.any():
        return corrected
    opening = np.where(usable, gap, 0.0)
    share = np.clip((opening - FADE[0]) / (FADE[1] - FADE[0]), 0, 1) * usable
    trust = np.where(usable[:, None], evidence[..., 1], 0.0).astype(float)
    offset = np.where(trust > 0, evidence[..., 0], 0.0)
    for lip, inwards in ((slice(0, UPPER), -up), (slice(UPPER, None), up)):
        moves = np.stack([_correction(opening, *one) for one in zip(offset[:, lip].T, trust[:, lip].T)], axis=1)
        moves += TOGETHER * (moves.mean(1, keepdims=True) - moves)
        moves *= (share * _belief(opening, trust[:, lip]) * unit)[:, None]
        corrected[:, POINTS[lip]] += moves[..., None] * inwards[:, None]
    return corrected


def _correction(opening: np.ndarray, offset: np.ndarray, trust: np.ndarray) -> np.ndarray:
    """Correction (T,) of one point into the mouth, from the offsets and trust (T,) of single frames."""
    curve = _curve(opening, offset, trust)
    own = trust * np.clip(offset - curve, -MOST_OWN, MOST_OWN)
    own = _blurred(own, NEIGHBOURS) / (_blurred(trust, NEIGHBOURS) + OWN_SHRINKAGE)
    return np.clip(curve + own, -REACH, REACH)


def _blurred(values: np.ndarray, deviation: float) -> np.ndarray:
    from scipy.ndimage import gaussian_filter1d  # slow to load, and not needed in the workers

    return gaussian_filter1d(values, deviation, mode="constant")


def _belief(opening: np.ndarray, trust: np.ndarray) -> np.ndarray:
    """Factor 0 … 1 (T,) for a lip with trust (T,3): low where few frames of about the same opening show an edge."""
    knot = np.round(np.clip(opening, 0, None) / KNOT).astype(int)
    wide = opening >= NARROWEST
    frames, shown = (_blurred(np.bincount(knot, wide * each, knot.max() + 1), 1.5) for each in (1.0, (trust > 0).mean(1)))
    share = (shown / (frames + 1e-9))[knot]
    return np.clip((share - SEEN[0]) / (SEEN[1] - SEEN[0]), 0, 1)


def _curve(opening: np.ndarray, offset: np.ndarray, trust: np.ndarray) -> np.ndarray:
    """Robust smooth fit (T,) of the offset by the opening: linear between knots, penalised second differences (P-splines,
    Eilers and Marx 1996)."""
    place = np.clip(opening / KNOT, 0, None)
    knots = int(np.ceil(place.max())) + 2
    left = np.minimum(place.astype(int), knots - 2)
    right = place - left
    bend = np.diff(np.eye(knots), 2, axis=0)
    hold = STIFFNESS * bend.T @ bend + SHRINKAGE / knots * np.eye(knots)
    hats = ((left, 1 - right), (left + 1, right))
    fitted = np.zeros_like(offset)
    for _ in range(ROUNDS):
        weight = trust / np.maximum(np.abs(offset - fitted) / DOUBT, 1)
        side = sum(np.bincount(i, weight * a * offset, knots) for i, a in hats)
        normal = sum(np.bincount(i * knots + j, weight * a * b, knots * knots) for i, a in hats for j, b in hats)
        value = np.linalg.solve(hold + np.reshape(normal, (knots, knots)), side)
        fitted = (1 - right) * value[left] + right * value[left + 1]
    return fitted
