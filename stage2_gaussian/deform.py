"""The low-rank blend: landmark displacements become a few coefficients, and each splat owns a change per coefficient."""

import torch
from torch import Tensor, nn

from shared.landmarks import N_LANDMARKS

CHANNELS = 13  # position 3, rotation vector 3, log scale 3, colour 3, opacity logit 1
STEPS = (0.002,) * 3 + (0.1,) * 3 + (0.1,) * 3 + (0.1,) * 3 + (0.5,)  # what a basis entry of 1 changes
DISPLACEMENT = 0.005  # metres, the size of a displacement that the network sees as 1


class LowRankBlend(nn.Module):
    """displacements of the 68 landmarks -> changes of `moving` splats, by way of `rank` coefficients."""

    steps: Tensor

    def __init__(self, moving: int, rank: int, hidden: int) -> None:
        super().__init__()
        self.network = nn.Sequential(
            nn.Linear(3 * N_LANDMARKS, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(),
            nn.Linear(hidden, rank, bias=False),
        )
        self.basis = nn.Parameter(torch.zeros(rank, moving, CHANNELS))
        self.register_buffer("steps", torch.tensor(STEPS), persistent=False)

    def coefficients(self, displacements: Tensor) -> Tensor:
        """displacements (B, 68, 3) metres -> (B, rank), zero for the neutral face."""
        flat = displacements.flatten(1) / DISPLACEMENT
        return self.network(flat) - self.network(torch.zeros_like(flat[:1]))

    def forward(self, displacements: Tensor) -> Tensor:
        """displacements (B, 68, 3) metres -> changes (B, moving, 13) in the units of the attributes."""
        changes = self.coefficients(displacements) @ self.basis.flatten(1)
        return changes.view(len(displacements), -1, CHANNELS) * self.steps
