"""Refinement of tracked head poses against the pictures, the same for training and held-out frames.

Lucas and Kanade's registration (IJCAI 1981) with a known surface: the rendered depth gives the motion of every pixel with
the pose, the gradient of the rendered colours the change of the picture. A few damped Gauss–Newton steps from coarse to fine,
with Cauchy weights, so that what the head cannot show (a hand, an unknown expression) has little influence.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from shared.camera import so3_exp
from shared.image import over
from shared.progress import progress
from stage2_gaussian.dataset import Batch, HeadDataset, batches
from stage2_gaussian.head import Head
from stage2_gaussian.rasterize import rasterize

SCALES = (4, 2, 1, 1)  # reduction of the picture in each step
NOISE = 0.1  # colour difference at which a pixel's Cauchy weight is a half
CORRELATED = 50.0  # pixels with correlated errors, which count as one measurement
PRIOR = (0.05,) * 3 + (0.1,) * 3  # radians, tenths of metres: standard deviation of the tracked pose's error
BATCH, BATCH_ON_GPU = 16, 48  # frames refined at once
LEAST_ALPHA = 0.05  # of a pixel whose depth is used


def apply_refinement(poses: Tensor, refinement: Tensor) -> Tensor:
    """poses (B, 4, 4) rotated and shifted in the camera's frame by refinement (B, 6): rotation vector in radians, shift in
    tenths of metres."""
    turn, shift = so3_exp(refinement[:, :3]), 0.1 * refinement[:, 3:]
    top = torch.cat([turn @ poses[:, :3, :3], (poses[:, :3, 3] + shift)[..., None]], -1)
    return torch.cat([top, poses[:, 3:]], 1)


@torch.no_grad()
def refine_poses(head: Head, data: HeadDataset, rows: np.ndarray | None = None, *, quiet: bool = True) -> Tensor:
    """Refined poses (n, 4, 4) of the frames `rows` of `data` (all by default), starting from the tracked poses."""
    rows = np.arange(len(data)) if rows is None else rows
    found = []
    with progress(len(rows), "refining poses", quiet=quiet, unit="frame") as bar:
        for part in batches(rows, BATCH if data.device.type == "cpu" else BATCH_ON_GPU):
            found.append(refine_batch(head, data.batch(part), data))
            bar.update(len(part))
    return torch.cat(found)


@torch.no_grad()
def refine_batch(head: Head, batch: Batch, data: HeadDataset) -> Tensor:
    """Refined poses (B, 4, 4) of one batch."""
    refinement = torch.zeros(len(batch.poses), 6, device=batch.poses.device)
    prior = torch.tensor(PRIOR, device=refinement.device).pow(-2)
    for scale in SCALES:
        jacobian, difference = _linearise(head, batch, apply_refinement(batch.poses, refinement), data, scale)
        weight = 1 / (1 + (difference / NOISE).square()) / (NOISE**2 * CORRELATED / scale**2)
        weighted = (jacobian * weight[..., None]).mT
        curvature = (weighted @ jacobian).sum(1) + torch.diag(prior)  # line by line: one long product is slow on a GPU
        slope = (weighted @ difference[..., None]).sum(1)[..., 0] + prior * refinement
        refinement = refinement - torch.linalg.solve(curvature, slope)
    return apply_refinement(batch.poses, refinement)


def _linearise(head: Head, batch: Batch, poses: Tensor, data: HeadDataset, scale: int) -> tuple[Tensor, Tensor]:
    """Jacobian of the composite at `poses` by the refinement (B, L, W, 6), and its difference from the picture (B, L, W).

    L are the rows of the three colour planes of the picture reduced by `scale`, one after the other.
    """
    fx, fy, cx, cy = data.intrinsics
    gaussians = head(batch.landmarks, poses, batch.torso, batch.gaze)
    features = [gaussians.colors, gaussians.means[..., 2:]]
    if head.falling is not None:  # hair that moves with the shoulders says nothing about the head
        features.append((1 - head.falling.shares())[:, None].expand_as(features[1]))
    blended, alpha = rasterize(gaussians.means, gaussians.quats, gaussians.scales, gaussians.opacities,
                               torch.cat(features, -1),
                               data.intrinsics, data.width, data.height)
    shown = over(torch.cat([blended[..., :3], alpha], -1), batch.backdrop)
    depth, share = blended[..., 3:4] / alpha.clamp_min(1e-3), (alpha > LEAST_ALPHA).float() * alpha.sqrt()
    if head.falling is not None:
        share = share * blended[..., 4:] / alpha.clamp_min(1e-3)
    planes = torch.cat([shown, batch.frames, depth * share, share], -1).movedim(-1, 1)
    planes = F.avg_pool2d(planes, scale)
    shown, frames, share = planes[:, :3], planes[:, 3:6], planes[:, 7]
    z = planes[:, 6] / share.clamp_min(1e-3) + (share < 1e-3)
    height, width = z.shape[1:]
    x = ((torch.arange(width, device=z.device) + 0.5) * scale - cx) / fx * z
    y = ((torch.arange(height, device=z.device) + 0.5)[:, None] * scale - cy) / fy * z
    across, down = _slopes(shown)
    gx, gy = -across * fx / scale / z[:, None], -down * fy / scale / z[:, None]
    push = torch.stack([gx, gy, -(gx * (x / z)[:, None] + gy * (y / z)[:, None])], -1)  # d colour / d camera-space point
    lever = torch.stack([x, y, z], -1) - poses[:, None, None, :3, 3]
    turn = torch.linalg.cross(lever[:, None].expand_as(push), push)  # push · (w × lever) = w · (lever × push)
    jacobian = torch.cat([turn, 0.1 * push], -1) * share[:, None, ..., None]
    return jacobian.flatten(1, 2), ((shown - frames) * share[:, None]).flatten(1, 2)


def _slopes(images: Tensor) -> tuple[Tensor, Tensor]:
    """Central differences of images (B, C, H, W) along x and y, zero at the border."""
    across, down = torch.zeros_like(images), torch.zeros_like(images)
    across[..., 1:-1] = (images[..., 2:] - images[..., :-2]) / 2
    down[..., 1:-1, :] = (images[..., 2:, :] - images[..., :-2, :]) / 2
    return across, down
