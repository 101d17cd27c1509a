"""Pose-dependent shading: colours change as the head turns under lights that stand still."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.camera import NO_ROTATION, mean_rotation, turn_from

CHANNELS = 3
STEP = 0.1  # change of colour for a basis entry and a coefficient of 1
LEAST_SPREAD = 1e-2  # about half a degree: keeps the normalisation finite where the head did not turn
SATURATION = 2.0  # standard deviations at which the input of the network saturates


class PoseShading(nn.Module):
    """Head rotations -> change of every Gaussian's colour, as a sum of `rank` basis colours per Gaussian.

    The network sees the rotation relative to the mean of the training frames, in standard deviations, saturated at
    SATURATION: views from outside the training range keep the shading of its border.
    """

    rest: Tensor
    spread: Tensor

    def __init__(self, count: int, rank: int, hidden: int = 16) -> None:
        """count: number of Gaussians."""
        super().__init__()
        self.register_buffer("rest", torch.tensor(NO_ROTATION))
        self.register_buffer("spread", torch.ones(3))
        self.network = nn.Sequential(nn.Linear(3, hidden), nn.SiLU(), nn.Linear(hidden, rank, bias=False))
        self.basis = nn.Parameter(torch.zeros(rank, count, CHANNELS))

    def set_range(self, poses: Tensor) -> None:
        """Set mean rotation and spread from training poses (T, 4, 4)."""
        self.rest.copy_(mean_rotation(poses[:, :3, :3]))
        self.spread.copy_(turn_from(self.rest, poses[:, :3, :3]).square().mean(0).sqrt().clamp_min(LEAST_SPREAD))

    def forward(self, poses: Tensor) -> Tensor:
        """poses (B, 4, 4) head → camera -> changes of colour (B, N, 3), zero at the mean rotation."""
        turn = turn_from(self.rest, poses[:, :3, :3]) / self.spread
        saturated = SATURATION * torch.tanh(turn / SATURATION)
        outputs = self.network(F.pad(saturated, (0, 0, 0, 1)))  # the appended row of zeros is the mean rotation
        return STEP * ((outputs[:-1] - outputs[-1:]) @ self.basis.flatten(1)).view(len(poses), -1, CHANNELS)
