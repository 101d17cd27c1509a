"""How the light on a splat changes as the head turns and moves under lamps that stand still."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CHANNELS = 3
STEP = 0.1  # what a basis entry of 1 changes


class PoseShading(nn.Module):
    """Head rotations -> changes of colour of every splat, by way of `rank` coefficients.

    The rotation enters as its difference from the mean one of the training frames, in standard deviations, and saturates
    at about two of them, so that a view from outside the training range has the light of its border.
    """

    rest: Tensor
    spread: Tensor

    def __init__(self, count: int, rank: int, hidden: int = 16) -> None:
        super().__init__()
        self.register_buffer("rest", torch.eye(3))
        self.register_buffer("spread", torch.ones(3))
        self.network = nn.Sequential(nn.Linear(3, hidden), nn.SiLU(), nn.Linear(hidden, rank, bias=False))
        self.basis = nn.Parameter(torch.zeros(rank, count, CHANNELS))

    def set_range(self, poses: Tensor) -> None:
        """Take mean and spread from training poses (T, 4, 4)."""
        left, _, right = torch.linalg.svd(poses[:, :3, :3].mean(0))
        self.rest.copy_(left @ right)
        self.spread.copy_(self._turn(poses).square().mean(0).sqrt().clamp_min(1e-2))

    def _turn(self, poses: Tensor) -> Tensor:
        """(B, 3): the sine of the rotation from rest about the camera's axes."""
        turn = poses[:, :3, :3] @ self.rest.T
        odd = turn - turn.mT
        return 0.5 * torch.stack([odd[:, 2, 1], odd[:, 0, 2], odd[:, 1, 0]], 1)

    def forward(self, poses: Tensor) -> Tensor:
        """poses (B, 4, 4) head → camera -> changes of colour (B, N, 3)."""
        seen = 2 * torch.tanh(0.5 * self._turn(poses) / self.spread)
        made = self.network(F.pad(seen, (0, 0, 0, 1)))  # the row of zeros added is the head at rest
        return STEP * ((made[:-1] - made[-1:]) @ self.basis.flatten(1)).view(len(poses), -1, CHANNELS)
