"""Removal, after training, of Gaussians that contribute to no picture."""

import numpy as np
import torch
from torch import Tensor

from stage2_gaussian.dataset import HeadDataset, batches
from stage2_gaussian.head import Head
from stage2_gaussian.rasterize import rasterize

LEAST = 0.05  # pixels: a Gaussian that contributes less than this to every frame looked at is removed
FRAMES = 128  # looked at, sampled as in training
BATCH = 8  # frames rendered at once


def contribution(head: Head, data: HeadDataset, rows: np.ndarray) -> Tensor:
    """(N,) each Gaussian's largest contribution to one of the frames `rows`, in pixels: the sum of its blending weights.

    That sum is the gradient of the sum of a picture's pixels by the Gaussian's colour.
    """
    largest = torch.zeros_like(head.opacities)
    for part in batches(rows, BATCH):
        chosen = torch.from_numpy(part).to(data.device)
        with torch.no_grad():
            gaussians = head(data.landmarks[chosen], data.poses[chosen], data.torso[chosen], data.gaze[chosen])
        white = torch.ones_like(gaussians.opacities)[..., None].requires_grad_()
        rgb, _ = rasterize(gaussians.means, gaussians.quats, gaussians.scales, gaussians.opacities, white, data.intrinsics,
                           data.width, data.height)
        (weights,) = torch.autograd.grad(rgb.sum(), white)
        largest = torch.maximum(largest, weights[..., 0].amax(0))
    return largest


def prune(head: Head, data: HeadDataset, rng: np.random.Generator) -> int:
    """Remove the Gaussians that contribute less than LEAST to each of FRAMES training frames; returns how many."""
    rows = np.unique(data.sample(FRAMES, rng))
    keep = contribution(head, data, rows) >= LEAST
    head.select(torch.nonzero(keep)[:, 0])
    return int((~keep).sum())
