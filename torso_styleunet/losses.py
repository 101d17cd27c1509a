"""Loss terms of the torso's training, and the regions that weigh more."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from shared.clip import BACKGROUND, HEAD, NECK, TORSO

CONTOUR_DISCOUNT = 0.75  # of the weight of the labels as targets for alpha


class Regions(NamedTuple):
    """Masks (B, 1, H, W) float from the labels: torso or neck, head, and a band on either side of their contours."""

    person: Tensor
    head: Tensor
    contour: Tensor
    seam: Tensor


def regions(labels: Tensor, band: int) -> Regions:
    """labels (B, H, W) uint8. `contour` lies within `band` pixels of both torso and background, `seam` within `band`
    of both torso or neck and head."""
    person = ((labels == TORSO) | (labels == NECK)).float()[:, None]
    head = (labels >= HEAD).float()[:, None]
    background = (labels == BACKGROUND).float()[:, None]
    masks = torch.cat([person, head, background], 1)
    rows = F.max_pool2d(masks, (2 * band + 1, 1), 1, (band, 0))  # a square window, separated into two directions
    near_person, near_head, near_background = F.max_pool2d(rows, (1, 2 * band + 1), 1, (0, band)).split(1, 1)
    return Regions(person, head, near_person * near_background, near_person * near_head)


def weighted_mean(values: Tensor, weights: Tensor) -> Tensor:
    """Mean of values (B, C, H, W), weighted by weights (B, 1, H, W)."""
    return (values * weights).sum() / (weights.sum() * values.shape[1]).clamp(min=1)


def laplacian_l1(difference: Tensor, weights: Tensor, levels: int = 3) -> Tensor:
    """Weighted L1 of the Laplacian pyramid of a difference image (B, C, H, W), mean over `levels` octaves or as many as fit.

    The pyramid is linear, so this compares the pyramids of two images: edges and texture independently of brightness.
    """
    total, used = difference.new_zeros(()), 0
    for _ in range(levels):
        if min(difference.shape[-2:]) < 4:
            break
        coarse = F.avg_pool2d(difference, 2)
        smooth = F.interpolate(coarse, size=difference.shape[-2:], mode="bilinear", align_corners=False)
        total = total + weighted_mean((difference - smooth).abs(), weights)
        difference, weights, used = coarse, F.avg_pool2d(weights, 2), used + 1
    return total / max(used, 1)


def alpha_loss(logits: Tensor, where: Regions) -> Tensor:
    """Binary cross-entropy of alpha logits (B, 1, H, W) against the labels, where the head does not hide them.

    Within the contour band, where hard labels misrepresent a soft edge, the weight is reduced by CONTOUR_DISCOUNT: there the
    colour of the composite determines alpha.
    """
    weights = (1 - where.head) * (1 - CONTOUR_DISCOUNT * where.contour)
    return weighted_mean(F.binary_cross_entropy_with_logits(logits, where.person, reduction="none"), weights)


def temporal_l1(difference: Tensor, weights: Tensor) -> Tensor:
    """Weighted L1 of the change of the error between consecutive frames: difference (2·B, C, H, W) holds frames, then their
    successors."""
    first, second = difference.chunk(2)
    return weighted_mean((second - first).abs(), weights.chunk(2)[0])


def generator_adversarial(fake_logits: Tensor) -> Tensor:
    """Non-saturating generator loss, -log sigmoid(D(fake)) (Goodfellow et al. 2014)."""
    return F.softplus(-fake_logits).mean()


def discriminator_adversarial(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """-log sigmoid(D(real)) - log(1 - sigmoid(D(fake)))."""
    return F.softplus(-real_logits).mean() + F.softplus(fake_logits).mean()


def r1_penalty(real: Tensor, real_logits: Tensor) -> Tensor:
    """Half the squared gradient of D at real images (Mescheder et al., ICML 2018); `real` must require gradients."""
    (gradient,) = torch.autograd.grad(real_logits.sum(), real, create_graph=True)
    return gradient.square().sum((1, 2, 3)).mean() / 2
