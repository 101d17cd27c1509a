"""Two layers of a shot: what stays in place when its frames are aligned by the head's motion, and when by the torso's.

Hair that moves with the head is constant in the first and changes in the second; with shoulders and clothes it is the other
way round. So the layer that explains a pixel better tells which of the two it belongs to. Layers have half the picture's
size and lie where the shot's reference frame shows them; similarities (2,3) lead from the reference to a frame, in pixels of
the whole picture, as in `tracking.torso_motion`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from process_data.segmentation.background import masked_median
from process_data.tracking.torso_motion import pixel_numbers
from shared.compiled import cached_njit
from shared.files import write_arrays

NOISE = 7.0  # grey levels: standard deviation by compression, light and alignment
LEAST_SHARE = 0.25  # of the samples that must show a place for it to be known
LEAST_SAMPLES = 8  # of a shot whose layers can be told apart
FREEDOM = 3.0  # degrees of freedom of Student's distribution, against what changes for other reasons
TEMPER = 0.4  # weight of a pixel's log likelihood, since its three colours are not independent
USUAL_MOST = 2.0  # log odds that the samples contribute at most
HEADLIKE, TORSOLIKE = 3.0, 0.6  # log odds that motion contributes at most: hair that lies on the shoulders moves with them


class Sample(NamedTuple):
    """A frame at half size: picture (h,w,3) uint8, person (h,w) bool, log odds (h,w) float32 of head against torso, coarse
    matte (h,w) uint8; similarities (2,3) from the reference to it by head and by torso."""

    picture: np.ndarray
    person: np.ndarray
    odds: np.ndarray
    matte: np.ndarray
    head: np.ndarray
    torso: np.ndarray


@dataclass(frozen=True)
class Layer:
    """color (h,w,4) float32: median RGB and variance in grey levels squared, 0 where unknown; odds (h,w) float32: log
    odds of head against torso in the samples, 0 where unknown."""

    color: np.ndarray
    odds: np.ndarray


@dataclass(frozen=True)
class ShotLayers:
    """The layers of one shot; matte (h,w) uint8: the mean coarse matte in the head's alignment; face (68,2): projected
    landmarks of the reference, pixels."""

    head: Layer
    torso: Layer
    matte: np.ndarray
    face: np.ndarray

    def evidence(self, picture: np.ndarray, head: np.ndarray, torso: np.ndarray | None) -> np.ndarray:
        """Log odds (h,w) float32 of head against torso, by motion and by what the samples show at the same place.

        picture (h,w,3) uint8 of half size; head and torso (2,3): their similarities, torso None where it was not found.
        """
        odds = moved(self.head.odds, head)
        if torso is None:
            return odds
        return self.motion(picture, head, torso) + (odds + moved(self.torso.odds, torso)) / 2

    def motion(self, picture: np.ndarray, head: np.ndarray, torso: np.ndarray) -> np.ndarray:
        """Log odds (h,w) float32 of head against torso by motion alone; arguments as for `evidence`."""
        odds = _motion_odds(picture, moved(self.head.color, head), moved(self.torso.color, torso), np.float32(NOISE**2),
                            np.float32(FREEDOM), np.float32(TEMPER))
        return np.clip(odds, -TORSOLIKE, HEADLIKE)

    def save(self, path: Path) -> None:
        write_arrays(path, matte=self.matte, face=self.face, **{
            f"{name}_{part}": getattr(layer, part) for name, layer in (("head", self.head), ("torso", self.torso))
            for part in ("color", "odds")})

    @staticmethod
    def load(path: Path) -> "ShotLayers":
        with np.load(path) as stored:
            head, torso = (Layer(stored[f"{name}_color"], stored[f"{name}_odds"]) for name in ("head", "torso"))
            return ShotLayers(head, torso, stored["matte"], stored["face"])


@cached_njit(fastmath=True, error_model="numpy")
def _motion_odds(picture, head, torso, noise, freedom, temper):
    """Log odds (h,w) float32 that a picture (h,w,3) uint8 shows the layer head (h,w,4) and not torso (h,w,4): colours and
    variance, Student's distribution; 0 where either is unknown, that is of a variance below `noise`."""
    height, width = picture.shape[:2]
    odds = np.zeros((height, width), np.float32)
    for y in range(height):
        for x in range(width):
            near, far = head[y, x, 3], torso[y, x, 3]
            if near < noise or far < noise:
                continue
            a, b = np.float32(0), np.float32(0)
            for c in range(3):
                value = np.float32(picture[y, x, c])
                a += (value - head[y, x, c]) ** 2
                b += (value - torso[y, x, c]) ** 2
            fit = (1 + b / (far * freedom)) / (1 + a / (near * freedom))
            odds[y, x] = temper * (np.float32(0.5) * (freedom + 3) * np.log(fit) + np.float32(1.5) * np.log(far / near))
    return odds


def moved(layer: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """A layer (h,w) or (h,w,c) of half size in place of the reference -> in place of the frame; 0 beyond its edges."""
    return cv2.warpAffine(layer, pixel_numbers(matrix, 0.5), layer.shape[1::-1], flags=cv2.INTER_LINEAR)


def _back(image: np.ndarray, matrix: np.ndarray, flags: int = cv2.INTER_LINEAR) -> np.ndarray:
    """An image of half size in place of a frame -> in place of the reference; 0 beyond its edges."""
    return cv2.warpAffine(image, pixel_numbers(matrix, 0.5), image.shape[1::-1], flags=flags | cv2.WARP_INVERSE_MAP)


def build_layers(samples: Sequence[Sample], face: np.ndarray) -> ShotLayers | None:
    """Layers of sample frames of one shot, whose reference has landmarks face (68,2) in pixels; None for too few samples."""
    if len(samples) < LEAST_SAMPLES:
        return None
    by_head, by_torso = [sample.head for sample in samples], [sample.torso for sample in samples]
    mattes = np.mean([_back(sample.matte, matrix) for sample, matrix in zip(samples, by_head)], axis=0)
    flat = np.zeros(samples[0].odds.shape, np.float32)
    layers = ShotLayers(Layer(_colors(samples, by_head), flat), Layer(_colors(samples, by_torso), flat),
                        mattes.round().astype(np.uint8), np.asarray(face))
    odds = [(sample.odds + layers.motion(sample.picture, sample.head, sample.torso)) * sample.person for sample in samples]
    head, torso = (Layer(layer.color, _usual_odds(odds, samples, matrices) * (layer.color[..., 3] > 0))
                   for layer, matrices in ((layers.head, by_head), (layers.torso, by_torso)))
    return replace(layers, head=head, torso=torso)


def _colors(samples: Sequence[Sample], matrices: Sequence[np.ndarray]) -> np.ndarray:
    """Median RGB and variance (h,w,4) float32 of samples aligned by `matrices` (2,3); 0 where seldom a person is seen."""
    pictures = np.stack([_back(sample.picture, matrix) for sample, matrix in zip(samples, matrices)])
    hidden = np.stack([_back(sample.person.view(np.uint8), matrix, cv2.INTER_NEAREST) == 0
                       for sample, matrix in zip(samples, matrices)])
    median, count = masked_median(pictures, hidden)
    away = np.abs(pictures.astype(np.int16) - median.round().astype(np.int16)).mean(-1, keepdims=True)
    spread = 1.4826 * masked_median(away.round().astype(np.uint8), hidden)[0]
    known = count >= max(2, LEAST_SHARE * len(samples))
    return np.concatenate([median, spread**2 + NOISE**2], -1).astype(np.float32) * known[..., None]


def _usual_odds(odds: Sequence[np.ndarray], samples: Sequence[Sample], matrices: Sequence[np.ndarray]) -> np.ndarray:
    """Log odds (h,w) float32 of the mean probability of head, given the samples' log odds (h,w), aligned by `matrices` (2,3),
    where they show the person."""
    total, count = np.zeros(odds[0].shape, np.float32), np.full(odds[0].shape, 1e-6, np.float32)
    for values, sample, matrix in zip(odds, samples, matrices):
        total += _back(sample.person * np.tanh(values / 2), matrix)
        count += _back(sample.person.astype(np.float32), matrix)
    return np.clip(2 * np.arctanh(np.clip(total / count, -0.99, 0.99)), -USUAL_MOST, USUAL_MOST)
