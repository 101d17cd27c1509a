"""The low-rank blend: landmark displacements become a few coefficients, and each splat owns a change per coefficient."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.landmarks import BROW_LEFT, BROW_RIGHT, EYE_LEFT, EYE_RIGHT, JAW, LIPS, N_LANDMARKS, NOSE

CHANNELS = 13  # position 3, rotation vector 3, log scale 3, colour 3, opacity logit 1
STEPS = (0.002,) * 3 + (0.1,) * 3 + (0.1,) * 3 + (0.1,) * 3 + (0.5,)  # what a basis entry of 1 changes
DISPLACEMENT = 0.005  # metres, the size of a displacement that the network sees as 1
# Which landmarks a coefficient hears, and its share of the rank: lids close the same way whatever mouth and brows do, so
# that a combination nobody filmed is the sum of its parts.
GROUPS = ((JAW + NOSE + LIPS, 0.5), (EYE_RIGHT, 0.15), (EYE_LEFT, 0.15), (BROW_RIGHT, 0.1), (BROW_LEFT, 0.1))
REACH = 0.03  # metres from the nearest landmark of its group at which a coefficient has lost most of its effect
MARGIN = 0.1  # of each landmark coordinate's range in training, by which the networks may see it leave that range


class LowRankBlend(nn.Module):
    """displacements of the 68 landmarks -> changes of `moving` splats, by way of `rank` coefficients.

    What was learned says nothing about faces wider than those seen, and continued there it ends in glare and holes. So each
    coordinate is held within its range in training (see `set_range`); the landmarks' windows carry what goes beyond.
    """

    steps: Tensor
    low: Tensor
    high: Tensor
    masks: Tensor | None

    def __init__(self, moving: int, rank: int, hidden: int) -> None:
        super().__init__()
        shares = [max(1, round(rank * share)) for _, share in GROUPS]
        shares[0] = rank - sum(shares[1:])
        self.shares = shares
        self.networks = nn.ModuleList(
            nn.Sequential(nn.Linear(3 * len(part), hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(),
                          nn.Linear(hidden, share, bias=False))
            for (part, _), share in zip(GROUPS, shares))
        for k, (part, _) in enumerate(GROUPS):  # an index on the device, which a CUDA graph can use
            self.register_buffer(f"part{k}", torch.tensor(part), persistent=False)
        self.basis = nn.Parameter(torch.zeros(rank, moving, CHANNELS))
        self.register_buffer("steps", torch.tensor(STEPS), persistent=False)
        self.register_buffer("masks", None)
        self.register_buffer("low", torch.full((N_LANDMARKS, 3), -1.0))
        self.register_buffer("high", torch.full((N_LANDMARKS, 3), 1.0))

    def set_range(self, displacements: Tensor) -> None:
        """Take the range of every coordinate from training displacements (T, 68, 3) metres, and MARGIN of it beyond."""
        low, high = displacements.amin(0), displacements.amax(0)
        room = MARGIN * (high - low)
        self.low.copy_(low - room)
        self.high.copy_(high + room)

    def localise(self, places: Tensor, centres: Tensor) -> None:
        """Let each coefficient fade with the distance of the splats at places (moving, 3) from its group's centres (68, 3)."""
        fades = []
        for (part, _), share in zip(GROUPS, self.shares):
            nearest = torch.cdist(places, centres[part]).amin(1)
            fades.append(torch.exp(-((nearest / REACH) ** 2)).expand(share, -1))
        self.masks = torch.cat(fades)

    def local_basis(self) -> Tensor:
        """(rank, moving, 13) as it is used: with what `localise` takes from it."""
        return self.basis if self.masks is None else self.basis * self.masks[..., None]

    def coefficients(self, displacements: Tensor) -> Tensor:
        """displacements (B, 68, 3) metres -> (B, rank), zero for the neutral face."""
        known = torch.clamp(displacements, self.low, self.high)
        found = []
        for k, network in enumerate(self.networks):
            flat = known.index_select(1, self.get_buffer(f"part{k}")).flatten(1) / DISPLACEMENT
            made = network(F.pad(flat, (0, 0, 0, 1)))  # the row of zeros added is the neutral face
            found.append(made[:-1] - made[-1:])
        return torch.cat(found, 1)

    def forward(self, displacements: Tensor) -> Tensor:
        """displacements (B, 68, 3) metres -> changes (B, moving, 13) in the units of the attributes."""
        changes = self.coefficients(displacements) @ self.local_basis().flatten(1)
        return changes.view(len(displacements), -1, CHANNELS) * self.steps
