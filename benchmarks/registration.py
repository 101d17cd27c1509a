"""How exact torso motion and landmarks are: flicker of torso and head after they were warped onto one common picture."""

import cv2
import numpy as np

from process_data.tracking.torso_motion import compose, face_similarity, inverse, pixel_numbers
from shared.arrays import evenly
from shared.camera import project
from shared.clip import BACKGROUND, HEAD, MOUTH, TORSO, Clip, good_frames

REGIONS = ("torso", "shoulders", "head")
LEAST_IN_SHOT = 8  # sampled frames of each shot
BAND = 0.01  # half width of the band along the shoulders, of the picture's width
MARGIN = 0.025  # of the picture's width: distance of the band from the picture's sides and bottom, the head and the neck
SHOWN = 0.7  # a pixel counts if this share of the samples shows it


def registration(clip: Clip, samples: int = 60) -> dict[str, float]:
    """Temporal standard deviation of sampled frames warped onto a common picture: root mean square in grey levels 0–255.

    By region: "torso", where mostly torso is seen, and "shoulders", a band along the line between torso and background, both
    warped by the clip's torso motion; "head", warped by the similarity of the steady landmarks. Then the same for every
    shot, as "torso shot 0" and so on. About `samples` frames in all, at least 8 of each shot if it has them. NaN for a region
    that is never seen; 0 for a perfect registration without noise.
    """
    height, width = clip.info.height, clip.info.width
    motion, centre = clip.load_torso_motion()[:, :4], np.array([width / 2, height / 2])
    pixels = project(clip.load_landmarks(), clip.load_poses(), clip.info.intrinsics)
    chosen = _sample(clip, samples)
    anchor = chosen[len(chosen) // 2]
    shot_of = clip.shot_of_frames()
    shots = {int(shot): _Still(height, width) for shot in np.unique(shot_of[chosen])}
    wanted = set(chosen)
    for t, (frame, labels) in enumerate(zip(clip.frames(), clip.label_frames())):
        if t in wanted:
            head = inverse(face_similarity(pixels[anchor], pixels[t]))
            shots[int(shot_of[t])].add(frame, labels, inverse(compose(motion[t], centre)), head)
    whole = _Still(height, width)
    for still in shots.values():
        whole.merge(still)
    values = dict(zip(REGIONS, whole.deviations()))
    for shot, still in shots.items():
        values |= {f"{region} shot {shot}": value for region, value in zip(REGIONS, still.deviations())}
    return values


def _sample(clip: Clip, samples: int) -> list[int]:
    """Frame numbers, evenly within each shot, without the excluded spans."""
    good = good_frames(clip.info.excluded, clip.info.frames)
    chosen: list[int] = []
    for shot in clip.info.shots:
        frames = np.flatnonzero(good[shot.start : shot.stop]) + shot.start
        count = max(LEAST_IN_SHOT, round(samples * len(frames) / clip.info.frames))
        chosen += frames[evenly(len(frames), count)].tolist()
    return chosen or [0]


class _Still:
    """Sums over warped frames: grey levels of torso or background, and of the head, and how often each is seen."""

    def __init__(self, height: int, width: int) -> None:
        self.count = 0
        self.sums = np.zeros((7, height, width))  # n, Σ, Σ² under the torso's motion; torso seen; n, Σ, Σ² of the head

    def add(self, frame: np.ndarray, labels: np.ndarray, torso: np.ndarray, head: np.ndarray) -> None:
        """Frame (H,W,3), labels (H,W), the similarities (2,3) from the frame to the common picture."""
        gray = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY).astype(np.float32)
        still, marks = _warp(gray, labels, torso)
        shown = (marks == BACKGROUND) | (marks == TORSO)
        self.sums[:3] += [shown, shown * still, shown * still**2]
        self.sums[3] += marks == TORSO
        still, marks = _warp(gray, labels, head)
        shown = (marks == HEAD) | (marks == MOUTH)
        self.sums[4:] += [shown, shown * still, shown * still**2]
        self.count += 1

    def merge(self, other: "_Still") -> None:
        """Add the sums of another."""
        self.sums += other.sums
        self.count += other.count

    def deviations(self) -> list[float]:
        """Standard deviations of torso, shoulders and head, grey levels."""
        torso, shoulders, enough = self._masks()
        body, head = _variance(*self.sums[:3]), _variance(*self.sums[4:])
        return [_root_mean(body, torso), _root_mean(body, shoulders), _root_mean(head, self.sums[4] >= enough)]

    def _masks(self) -> tuple[np.ndarray, np.ndarray, float]:
        height, width = self.sums.shape[1:]
        enough = max(1.0, SHOWN * self.count)
        shown = self.sums[0] >= enough
        mostly = self.sums[3] > self.sums[0] / 2
        band, margin = max(2, round(BAND * width)), max(2, round(MARGIN * width))
        shoulders = _grow(mostly & shown, band) & _grow(~mostly & shown, band) & ~_grow(~shown, margin)
        shoulders[height - margin :] = False
        shoulders[:, :margin] = shoulders[:, width - margin :] = False
        return mostly & shown, shoulders, enough


def _warp(gray: np.ndarray, labels: np.ndarray, matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Grey levels (bilinear) and labels (nearest) warped by a similarity (2,3) of continuous coordinates; label 255 outside."""
    centred = pixel_numbers(matrix)
    size = gray.shape[::-1]
    seen = cv2.warpAffine(np.ones_like(labels), centred, size, flags=cv2.INTER_LINEAR)
    marks = cv2.warpAffine(labels, centred, size, flags=cv2.INTER_NEAREST, borderValue=255)
    marks[seen == 0] = 255
    return cv2.warpAffine(gray, centred, size, flags=cv2.INTER_LINEAR), marks


def _variance(count: np.ndarray, total: np.ndarray, squares: np.ndarray) -> np.ndarray:
    count = np.maximum(count, 1)
    return np.maximum(squares / count - (total / count) ** 2, 0)


def _root_mean(variance: np.ndarray, mask: np.ndarray) -> float:
    return float(np.sqrt(variance[mask].mean())) if mask.any() else float("nan")


def _grow(mask: np.ndarray, pixels: int) -> np.ndarray:
    return cv2.dilate(mask.astype(np.uint8), np.ones((2 * pixels + 1, 2 * pixels + 1), np.uint8)) > 0
