"""Flicker: change of pixels from frame to frame while the person hardly moves, compared with that of the video.

The measure is the second difference in time, x[t-1] - 2 x[t] + x[t+1], divided by √6: noise that is independent between
frames keeps its standard deviation, while motion slower than about half a second contributes little. The video has the noise
of its camera and its compression; a ratio of 1 means that the render flickers as much as the video.
"""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from shared.camera import project
from shared.clip import BACKGROUND, HEAD, MOUTH, Clip
from shared.image import over
from stage2_gaussian.dataset import BAND, HeadDataset, batches
from stage2_gaussian.head import Head
from stage2_gaussian.render import render_head

SHORTEST, LONGEST = 15, 50  # frames of a still stretch
CALM = 1.5  # limit for the motion of a longer stretch, over that of the stillest of the shortest ones
PERCENTILE = 95  # of the pixels, for flicker confined to small areas


class FlickerStats(NamedTuple):
    """Flicker of one region in grey levels of 255: mean and PERCENTILE over its pixels."""

    mean: float
    high: float


def landmark_motion(landmarks: np.ndarray, poses: np.ndarray, intrinsics: tuple[float, ...]) -> np.ndarray:
    """landmarks (T, 68, 3), poses (T, 4, 4) -> (T,) mean distance in pixels of the landmarks from the frame before; [0] is 0."""
    pixels = project(landmarks, poses, intrinsics)
    return np.concatenate([[0.0], np.linalg.norm(np.diff(pixels, axis=0), axis=-1).mean(-1)])


def stillest_stretch(motion: np.ndarray, indices: np.ndarray, shots: np.ndarray) -> np.ndarray:
    """The longest stretch of SHORTEST to LONGEST frames whose RMS motion is at most CALM times that of the stillest SHORTEST
    frames -> rows (L,) of `indices`, (0,) if there is none.

    motion (T,), pixels since the previous frame, and shots (T,), shot numbers, both by frame of the clip; indices (n,)
    frames to choose from, ascending. A stretch has no gap and no cut.
    """
    breaks = np.flatnonzero((np.diff(indices) != 1) | (np.diff(shots[indices]) != 0)) + 1
    runs = np.split(np.arange(len(indices)), breaks)
    found = {length: _stillest(motion, indices, runs, length) for length in range(SHORTEST, LONGEST + 1)}
    limit = CALM * found[SHORTEST][0]
    for length in range(LONGEST, SHORTEST - 1, -1):
        moved, first = found[length]
        if np.isfinite(moved) and moved <= limit:
            return np.arange(first, first + length)
    return np.arange(0)


def _stillest(motion: np.ndarray, indices: np.ndarray, runs: list[np.ndarray], length: int) -> tuple[float, int]:
    """RMS motion and first row of the stillest `length` frames within one run; infinite where all runs are shorter."""
    best = (float("inf"), 0)
    for run in runs:
        if len(run) >= length:
            moved = np.concatenate([[0.0], np.cumsum(motion[indices[run[1:]]] ** 2)])
            squares = (moved[length - 1 :] - moved[: len(moved) - length + 1]) / (length - 1)
            best = min(best, (float(np.sqrt(max(squares.min(), 0))), int(run[squares.argmin()])))
    return best


def deviation(frames: Tensor) -> Tensor:
    """(T, H, W, 3) grey levels, T ≥ 3 -> (H, W): root mean square over time and colour of the second difference over √6."""
    total = torch.zeros(frames.shape[1:], device=frames.device)
    for before, now, after in zip(frames, frames[1:], frames[2:]):
        total += (before.float() - 2 * now.float() + after.float()).square()
    return (total.mean(-1) / (6 * (len(frames) - 2))).sqrt()


def still_regions(labels: Tensor, reach: int) -> dict[str, Tensor]:
    """Labels (T, H, W) of a still stretch -> bool (H, W) by name.

    "head": head or mouth in every frame and `reach` pixels from anything else. "hair edge": within `reach` of where head
    meets background in any frame, and never closer than that to neck or torso.
    """
    def grown(mask: Tensor) -> Tensor:
        return F.max_pool2d(mask.float()[None, None], 2 * reach + 1, 1, reach)[0, 0] > 0

    head = (labels == HEAD) | (labels == MOUTH)
    body = grown((~head & (labels != BACKGROUND)).any(0))
    inside = ~grown(~head.all(0))
    return {"head": inside, "hair edge": grown(head.any(0)) & ~inside & ~body}


def measure_flicker(head: Head, data: HeadDataset, poses: Tensor, batch: int) -> dict[str, tuple[FlickerStats, FlickerStats]]:
    """{region: (of the video, of the render)}; `data` holds a still stretch, `poses` (T, 4, 4) are what is rendered.

    The render is composited over the plate everywhere, so that flickering labels do not contribute.
    """
    true, shown = [], []
    for rows in batches(np.arange(len(data)), batch):
        frames = data.batch(rows)
        true.append((frames.frames * 255).round().byte())
        plates = data.plates[data.shots[rows]].float() / 255
        with torch.no_grad():
            rgba = render_head(head, frames.landmarks, poses[rows], data.intrinsics, data.width, data.height, frames.torso,
                               frames.gaze)
        shown.append((over(rgba, plates).clamp(0, 1) * 255).round().byte())
    labels = torch.from_numpy(_labels(data.clip, data)).to(data.device)
    regions = still_regions(labels, max(1, round(BAND * data.clip.info.width)))
    planes = [deviation(torch.cat(pictures)) for pictures in (true, shown)]
    return {name: (_stats(planes[0], mask), _stats(planes[1], mask)) for name, mask in regions.items() if mask.any()}


def _labels(clip: Clip, data: HeadDataset) -> np.ndarray:
    return np.ascontiguousarray(clip.read_labels(data.indices)[:, data.rows, data.columns])


def _stats(plane: Tensor, mask: Tensor) -> FlickerStats:
    values = plane[mask].cpu().numpy()
    return FlickerStats(float(values.mean()), float(np.percentile(values, PERCENTILE)))
