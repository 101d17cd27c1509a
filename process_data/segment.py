"""Five labels a pixel from the person matte, the landmarks and the skin's colour."""

import cv2
import numpy as np

from shared.camera import project
from shared.clip import BACKGROUND, HEAD, MOUTH, NECK, TORSO
from shared.landmarks import LIPS_INNER, N_LANDMARKS

GUIDE_RADIUS = 1 / 64  # of the picture's size
GUIDE_EPSILON = 1e-4  # of full scale squared
PERSON_ALPHA = 0.5
JAW_CURVE = list(range(3, 14))  # jaw points that part the head from the neck
NECK_REACH = 0.055  # metres below the chin that may still be neck
SKIN_DISTANCE = 3.5  # Mahalanobis


def sharpen_matte(frame: np.ndarray, matte: np.ndarray) -> np.ndarray:
    """Frame (H,W,3) uint8 and coarse matte (h,w) uint8 -> alpha (H,W) float32 that follows the frame's edges.

    Guided filter (He, Sun, Tang, PAMI 2013) with the frame as guide.
    """
    height, width = frame.shape[:2]
    coarse = cv2.resize(matte, (width, height), interpolation=cv2.INTER_CUBIC).astype(np.float32) / 255
    radius = max(2, round(GUIDE_RADIUS * width))
    guide = frame.astype(np.float32) / 255
    alpha = cv2.ximgproc.guidedFilter(guide, coarse, radius, GUIDE_EPSILON)
    return np.clip((alpha - 0.5) * 1.6 + 0.5, 0, 1)


class Segmenter:
    """Labels frame after frame; learns the skin's colour from the cheeks and keeps it as a running estimate."""

    def __init__(self, landmarks: np.ndarray, poses: np.ndarray, intrinsics: tuple[float, ...]) -> None:
        """landmarks (T,68,3) metres, poses (T,4,4), intrinsics in pixels of the frames."""
        self.pixels = project(landmarks.astype(float), poses.astype(float), intrinsics)
        self.metre = intrinsics[0] / poses[:, 2, 3]  # pixels a metre at the head's depth
        self.skin: tuple[np.ndarray, np.ndarray] | None = None

    def labels(self, t: int, frame: np.ndarray, matte: np.ndarray) -> np.ndarray:
        """Frame t (H,W,3) uint8 and its coarse matte (h,w) -> labels (H,W) uint8."""
        height, width = frame.shape[:2]
        person = sharpen_matte(frame, matte) > PERSON_ALPHA
        points = self.pixels[t]
        person |= _polygon(points[list(range(17)) + list(range(26, 16, -1))], height, width)
        above = self._above_jaw(points, height, width)
        label = np.where(person, TORSO, BACKGROUND).astype(np.uint8)
        label[person & above] = HEAD
        label[self._neck(t, frame, person & ~above, points)] = NECK
        label[_polygon(points[LIPS_INNER], height, width) & person] = MOUTH
        return label

    def _above_jaw(self, points: np.ndarray, height: int, width: int) -> np.ndarray:
        """Everything above the jaw, whose curve is prolonged sideways along the line of the eyes."""
        across = points[45] - points[36]
        across = across / np.linalg.norm(across)
        up = np.array([across[1], -across[0]])
        far = 2 * max(height, width)
        curve = points[JAW_CURVE]
        outline = np.concatenate([
            [curve[0] - far * across + far * up], [curve[0] - far * across], curve, [curve[-1] + far * across],
            [curve[-1] + far * across + far * up]])
        return _polygon(outline, height, width)

    def _neck(self, t: int, frame: np.ndarray, below: np.ndarray, points: np.ndarray) -> np.ndarray:
        lab = cv2.cvtColor(frame, cv2.COLOR_RGB2LAB).astype(np.float32)
        height, width = below.shape
        cheeks = _polygon(points[[2, 4, 48, 31]], height, width) | _polygon(points[[14, 12, 54, 35]], height, width)
        if cheeks.sum() >= 20:
            samples = lab[cheeks]
            mean, deviation = samples.mean(0), np.maximum(samples.std(0), [14, 4, 4])
            old = self.skin or (mean, deviation)
            self.skin = (0.9 * old[0] + 0.1 * mean, 0.9 * old[1] + 0.1 * deviation)
        if self.skin is None:
            return np.zeros_like(below)
        distance = np.sqrt((((lab - self.skin[0]) / self.skin[1]) ** 2 * [0.3, 1, 1]).sum(-1))
        reach = NECK_REACH * self.metre[t]
        zone = np.zeros(below.shape, np.uint8)
        left, right = points[[4, 12], 0]
        bottom = points[8, 1] + reach
        cv2.rectangle(zone, (int(left), 0), (int(right), int(bottom)), 1, -1)
        neck = (below & (zone > 0) & (distance < SKIN_DISTANCE)).astype(np.uint8)
        kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (5, 5))
        return cv2.morphologyEx(cv2.morphologyEx(neck, cv2.MORPH_CLOSE, kernel), cv2.MORPH_OPEN, kernel) > 0


def _polygon(points: np.ndarray, height: int, width: int) -> np.ndarray:
    mask = np.zeros((height, width), np.uint8)
    limited = np.clip(points, -4 * max(height, width), 4 * max(height, width))
    cv2.fillPoly(mask, [np.round(limited * 16 - 8).astype(np.int32)], 1, shift=4)
    return mask > 0


def face_is_inside(pixels: np.ndarray, width: int, height: int) -> np.ndarray:
    """Projected landmarks (T,68,2) -> (T,) bool: at least nine in ten lie in the picture."""
    inside = (pixels[..., 0] >= 0) & (pixels[..., 0] < width) & (pixels[..., 1] >= 0) & (pixels[..., 1] < height)
    return inside.sum(1) >= 0.9 * N_LANDMARKS
