"""How far the tracked points of each frame lie from where the fitted head puts them."""

from dataclasses import dataclass

import numpy as np

from process_data.tracking.bundle_adjustment import PoseFit, Tracks, projected
from shared.camera import project

EXAMPLES = 40  # stretches of the good frames, of each of which the worst frame is kept


@dataclass(frozen=True)
class Residuals:
    """Of T frames: `detector` and `corners` (T,), median distances in pixels between the detector's rigid points, or the skin
    corners, and their projections, NaN without any; `followed` (T,), share of the corners of the frame's nearest reference that
    were found. `examples`: of the worst frames, found corners and where they should be, (n,2) pixels each."""

    detector: np.ndarray
    corners: np.ndarray
    followed: np.ndarray
    examples: dict[int, tuple[np.ndarray, np.ndarray]]


def residuals(tracks: Tracks, fit: PoseFit, count: np.ndarray, good: np.ndarray, intrinsics: tuple[float, ...]) -> Residuals:
    """Residuals of a fit to `tracks`, whose common points are the detector's.

    count (S,): corners of each set, the rest of a set being empty; good (T,) bool: frames with a face, of which the examples are.
    """
    total, size = len(tracks.pixels), (tracks.pixels.shape[1] - tracks.common) // tracks.reference.shape[1]
    medians = np.full((total, 2), np.nan)
    for part, pixels in projected(tracks, fit.points, fit.poses, intrinsics):
        distance = np.linalg.norm(pixels - tracks.pixels[part], axis=-1)
        for k, columns in enumerate((slice(0, tracks.common), slice(tracks.common, None))):
            known = np.isfinite(distance[:, columns]).any(1)
            medians[part][known, k] = np.nanmedian(distance[known, columns], axis=1)
    nearest = tracks.reference[:, 0]
    found = np.isfinite(tracks.pixels[:, tracks.common : tracks.common + size, 0]).sum(1)
    followed = np.where(nearest >= 0, found / np.maximum(count[nearest], 1), 0.0)
    frames = np.flatnonzero(good & np.isfinite(medians[:, 1]))
    worst = [int(part[medians[part, 1].argmax()]) for part in np.array_split(frames, EXAMPLES) if len(part)]
    return Residuals(medians[:, 0], medians[:, 1], followed, {t: _corners(tracks, fit, t, intrinsics) for t in worst})


def _corners(tracks: Tracks, fit: PoseFit, t: int, intrinsics: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray]:
    seen = tracks.pixels[t, tracks.common :]
    there = np.isfinite(seen[:, 0])
    points = fit.points[tracks.index(slice(t, t + 1))[0, tracks.common :]]
    return seen[there], project(points[there], fit.poses[t].astype(float), intrinsics)
