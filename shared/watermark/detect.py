"""Finding the mark in a video of unknown size, start and crop."""

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np

from shared.landmarks import FPS
from shared.watermark.mark import PERIOD
from shared.watermark.payload import CELLS, PILOTS, Payload, layout, messages

VIEW = 96  # pixels along each side that a frame is scaled to
SHORTEST, WINDOW = 2.0, 24.0  # seconds: of a video in which the mark is looked for, and of what is looked at in one go
LIMIT = 3.0  # grey levels of change in time beyond which a pixel counts less, as it rather shows motion
STEP, MOST_CUT = 1 / 64, 10  # of the picture: how finely crops are tried, and how many steps they take off an axis at most
FINER = (STEP / 2, STEP / 4, STEP / 8)
TRIED = 3  # best crops that are looked at more closely
CHANCE = 1e-4  # that the pilots of an unmarked window fit by accident
CRC_CHANCE = 2.0**-20  # that a message of random bits has the right check and version

Crop = tuple[float, float, float, float]  # left, right, top, bottom edge of what is seen, 0 … 1 of the whole picture


@dataclass(frozen=True)
class Found:
    """A mark: its payload; `chance`, a bound of the probability of finding any in a video that has none; the crop of the marked
    picture that is seen, (left, right, top, bottom) in 0 … 1; whether it is mirrored; and from when to when, in seconds, it was
    looked at."""

    payload: Payload
    chance: float
    crop: Crop
    mirrored: bool
    start: float
    stop: float


def detect(frames: Iterable[np.ndarray], fps: float = FPS) -> Found | None:
    """The mark in uint8 (H, W, 3) RGB frames of any size, `fps` a second, of which at least SHORTEST seconds are needed.

    Looks at windows of WINDOW seconds until one holds a mark, then at all windows together; memory does not grow with length.
    """
    size, start = round(WINDOW * fps), 0
    whole: Evidence | None = None
    windows = 0
    views = map(_view, frames)
    while views_now := list(itertools.islice(views, size)):
        if len(views_now) >= SHORTEST * fps:
            evidence = Evidence.of(np.stack(views_now), start, fps)
            found = evidence.read()
            if found is not None:
                return found
            whole, windows = evidence if whole is None else whole + evidence, windows + 1
        start += len(views_now)
    return whole.read() if whole is not None and windows > 1 else None


def _view(frame: np.ndarray) -> np.ndarray:
    """uint8 (H, W, 3) -> luma (VIEW, VIEW) float32."""
    grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
    return cv2.resize(grey, (VIEW, VIEW), interpolation=cv2.INTER_AREA).astype(np.float32)


@dataclass(frozen=True)
class Evidence:
    """What is left of the frames start ≤ t < stop (seconds): `wave` (VIEW, VIEW) complex, the amplitude at the mark's frequency;
    `power` (VIEW, VIEW), the summed squares of what it was measured in."""

    wave: np.ndarray
    power: np.ndarray
    start: float
    stop: float

    @classmethod
    def of(cls, views: np.ndarray, first: int, fps: float) -> "Evidence":
        """views (T, VIEW, VIEW), the first of them frame number `first`.

        Each frame less the mean of those half a period before and after, in which the mark has the opposite sign: what stands
        still or changes steadily is gone, and the mark doubled. Larger changes are motion and count less and less.
        """
        half = max(1, round(PERIOD * fps / 2))
        change = views[half:-half] - (views[: -2 * half] + views[2 * half :]) / 2
        change /= 1 + (change / LIMIT) ** 2
        times = (np.arange(half, len(views) - half) + first) / fps
        wave = np.tensordot(np.exp(2j * np.pi * times / PERIOD).astype(np.complex64), change, 1)
        return cls(wave, np.square(change).sum(0), first / fps, (first + len(views)) / fps)

    def __add__(self, other: "Evidence") -> "Evidence":
        return Evidence(self.wave + other.wave, self.power + other.power, self.start, other.stop)

    def read(self) -> Found | None:
        """The mark that fits best, if it fits better than chance allows."""
        ranked = []
        for mirrored in (False, True):
            wave, power = (self.wave[:, ::-1], self.power[:, ::-1]) if mirrored else (self.wave, self.power)
            ranked += [(fit, mirrored, crop) for fit, crop in search(wave, power)]
        for fit, mirrored, crop in sorted(ranked, reverse=True)[:TRIED]:
            wave, power = (self.wave[:, ::-1], self.power[:, ::-1]) if mirrored else (self.wave, self.power)
            fit, crop = refine(wave, power, fit, crop)
            chance = 2 * len(cuts()) ** 2 * math.exp(-fit)
            if chance > CHANCE:
                continue
            order, signs = layout()
            received = cell_values(wave, power, crop).ravel()
            received = received * np.exp(-1j * np.angle(pilot_sum(received)))
            data = (received.real * signs[:, 0] + 1j * received.imag * signs[:, 1])[order[PILOTS:]]
            for message in (likeliest := messages(data)):
                payload = Payload.from_bytes(message)
                if payload is not None:
                    return Found(payload, min(1.0, chance * len(likeliest) * CRC_CHANCE), crop, mirrored, self.start, self.stop)
        return None


@cache
def cuts() -> list[tuple[float, float]]:
    """The first and last edge, along one axis, of every crop that is tried."""
    return [(left * STEP, 1 - right * STEP) for left in range(MOST_CUT + 1) for right in range(MOST_CUT + 1 - left)]


def template(first: float, last: float) -> np.ndarray:
    """(VIEW, CELLS): how much each cell of the pattern adds to each pixel of an axis seen from `first` to `last`."""
    at = (first + (last - first) * (np.arange(VIEW) + 0.5) / VIEW) * CELLS - 0.5
    return np.maximum(0, 1 - np.abs(np.clip(at, 0, CELLS - 1)[:, None] - np.arange(CELLS))).astype(np.float32)


def pilot_sum(received: np.ndarray) -> np.ndarray:
    """Cells (..., 1024) complex -> (...) their correlation with the pilots."""
    order, signs = layout()
    pilots = order[:PILOTS]
    return received[..., pilots] @ (signs[pilots, 0] - 1j * signs[pilots, 1])


def cell_values(wave: np.ndarray, power: np.ndarray, crop: Crop) -> np.ndarray:
    """(CELLS, CELLS) complex: the wave at each cell, over what it may be by chance; 0 for cells that are not seen."""
    columns, rows = template(*crop[:2]), template(*crop[2:])
    spread = np.sqrt(rows.T**2 @ power @ columns**2)
    return rows.T @ wave @ columns / np.where(spread > 0, spread, 1)


def goodness(received: np.ndarray) -> np.ndarray:
    """Cells (..., 1024) -> (...): squared correlation with the pilots over its mean for random signs, by which it has an
    exponential distribution of mean 1, however the picture moves."""
    pilots = layout().order[:PILOTS]
    energy = 2 * np.square(np.abs(received[..., pilots])).sum(-1)
    return np.square(np.abs(pilot_sum(received))) / np.where(energy > 0, energy, 1)


def search(wave: np.ndarray, power: np.ndarray) -> list[tuple[float, Crop]]:
    """The TRIED best crops, each with its goodness."""
    tried = cuts()
    axes = np.stack([template(*cut) for cut in tried])  # (n, VIEW, CELLS)
    across = axes.transpose(1, 0, 2).reshape(VIEW, -1)
    fits = np.empty((len(tried), len(tried)))
    seen, noise = wave @ across, power @ across**2
    for k, down in enumerate(axes):
        spread = np.sqrt(down.T**2 @ noise)
        values = (down.T @ seen / np.where(spread > 0, spread, 1)).reshape(CELLS, len(tried), CELLS)
        fits[k] = goodness(values.transpose(1, 0, 2).reshape(len(tried), -1))
    best = np.argsort(-fits, axis=None)[:TRIED]
    return [(float(fits.flat[at]), (*tried[at % len(tried)], *tried[at // len(tried)])) for at in best]


def refine(wave: np.ndarray, power: np.ndarray, fit: float, crop: Crop) -> tuple[float, Crop]:
    """Move the edges, one at a time in ever finer steps, while that makes the fit better."""
    for step in FINER:
        for edge, way in itertools.product(range(4), (-step, step)):
            left, right, top, bottom = (place + way * (k == edge) for k, place in enumerate(crop))
            moved = left, right, top, bottom
            better = float(goodness(cell_values(wave, power, moved).ravel()))
            if better > fit:
                fit, crop = better, moved
    return fit, crop
