"""Splats that no picture shows: found after training and left out of the file."""

import numpy as np
import torch
from torch import Tensor

from stage2_gaussian.dataset import HeadFrames, batches
from stage2_gaussian.head import Head
from stage2_gaussian.rasterize import rasterize

LEAST = 0.05  # pixels: a splat that never covers as much, over a whole picture, may go
FRAMES = 128  # looked at, drawn as training draws them
BATCH = 8


def coverage(head: Head, data: HeadFrames, rows: np.ndarray) -> Tensor:
    """(N,) the most that each splat covers of one of the frames `rows`, in pixels: its blending weights, summed.

    The gradient of a picture's sum by the splat's colour is that sum.
    """
    most = torch.zeros_like(head.opacities)
    for part in batches(rows, BATCH):
        chosen = torch.from_numpy(part).to(data.device)
        with torch.no_grad():
            splats = head(data.landmarks[chosen], data.poses[chosen])
        white = torch.ones_like(splats.opacities)[..., None].requires_grad_()
        rgb, _ = rasterize(splats.means, splats.quats, splats.scales, splats.opacities, white, data.intrinsics, data.width,
                           data.height)
        (weights,) = torch.autograd.grad(rgb.sum(), white)
        most = torch.maximum(most, weights[..., 0].amax(0))
    return most


def prune(head: Head, data: HeadFrames, rng: np.random.Generator) -> int:
    """Take away the splats that hardly show in any of FRAMES training frames -> how many went."""
    rows = np.unique(data.sample(FRAMES, rng))
    keep = coverage(head, data, rows) >= LEAST
    head.select(torch.nonzero(keep)[:, 0])
    return int((~keep).sum())
