"""Skinning: how much each Gaussian moves with each landmark, from learned anisotropic Gaussian windows."""

import numpy as np
import torch
from torch import Tensor, nn

from shared.camera import matrix_from_quaternion
from shared.landmarks import N_LANDMARKS

UNIT = 0.01  # metres; distances are computed in centimetres, where float32 loses nothing
FLOOR = 0.2  # added to the sum of the windows: a Gaussian whose windows sum to far less than this does not move
NEIGHBOURS = 3  # landmarks whose mean distance is the width of a window at the start
WIDTHS = (0.006, 0.02)  # metres, bounds of that width: lips and lids lie closer together, the jaw's landmarks farther apart


class Skinning(nn.Module):
    """One learned anisotropic Gaussian window per landmark, in canonical head space -> skinning weights.

    With d the Mahalanobis distance of a point from landmark k in the metric of k's window, the raw weight is exp(-d²/2);
    weights are divided by their sum plus FLOOR, so that they nearly sum to one on the face and vanish away from it.
    """

    centres: Tensor

    def __init__(self, neutral: Tensor) -> None:
        """neutral (68, 3) metres. A window starts as a sphere as wide as the mean distance to its landmark's neighbours."""
        super().__init__()
        self.register_buffer("centres", neutral.detach().clone())
        points = neutral.double()
        distances = (points[:, None] - points).norm(dim=-1).sort(1).values[:, 1 : NEIGHBOURS + 1]
        width = np.clip(distances.mean(1).numpy(), *WIDTHS)
        self.log_scales = nn.Parameter(torch.from_numpy(np.log(width)).float()[:, None].repeat(1, 3))
        rotations = torch.zeros(N_LANDMARKS, 4)
        rotations[:, 0] = 1
        self.rotations = nn.Parameter(rotations)

    def weights(self, means: Tensor) -> Tensor:
        """Canonical means (N, 3) metres -> skinning weights (N, 68), differentiable in means and windows.

        d² = xᵀPx - 2cᵀPx + cᵀPc is one product of the ten monomials of x with a (10, 68) matrix.
        """
        x, centres = means / UNIT, self.centres / UNIT
        rotation = matrix_from_quaternion(self.rotations)
        precision = rotation * (torch.exp(self.log_scales) / UNIT).pow(-2)[:, None] @ rotation.mT
        linear = -2 * (precision @ centres[..., None])[..., 0]
        constant = -0.5 * (linear * centres).sum(-1, keepdim=True)
        p = precision.flatten(1)
        matrix = torch.cat([p[:, 0:9:4], 2 * p[:, 1:3], 2 * p[:, 5:6], linear, constant], 1)
        a, b, c = x[:, :1], x[:, 1:2], x[:, 2:]
        monomials = torch.cat([x * x, a * b, a * c, b * c, x, torch.ones_like(a)], 1)
        raw = torch.exp(monomials @ (-0.5 * matrix.T))
        return raw * (raw.sum(1, keepdim=True) + FLOOR).reciprocal()
