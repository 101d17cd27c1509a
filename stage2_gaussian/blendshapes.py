"""Low-rank blendshapes: landmark displacements -> a few coefficients -> a change of each Gaussian per coefficient."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.gaze import GAZE
from shared.landmarks import BROW_LEFT, BROW_RIGHT, EYE_LEFT, EYE_RIGHT, JAW, LIPS, N_LANDMARKS, NOSE

CHANNELS = 13  # mean 3, rotation vector 3, log scale 3, colour 3, opacity logit 1
STEPS = (0.002,) * 3 + (0.1,) * 3 + (0.1,) * 3 + (0.1,) * 3 + (0.5,)  # change of each channel for a basis entry of 1
DISPLACEMENT = 0.005  # metres, the displacement of a landmark that is 1 at the networks' input
# Landmarks that each group of coefficients depends on, and the group's share of the rank. Lids close the same way whatever
# mouth and brows do, so an unseen combination of expressions is the sum of its parts.
GROUPS = ((JAW + NOSE + LIPS, 0.5), (EYE_RIGHT, 0.15), (EYE_LEFT, 0.15), (BROW_RIGHT, 0.1), (BROW_LEFT, 0.1))
FALLOFF = 0.03  # metres from the nearest landmark of its group at which a coefficient's effect has fallen to 1/e
MARGIN = 0.1  # of a landmark coordinate's range in training, by which the networks' input may exceed that range
EYES = (1, 2)  # the groups whose networks hear where the eyes look, too
LOOK = 0.05  # eye widths, the gaze that is 1 at the networks' input
GAZE_TAIL = 0.005  # share of the training frames on either side that the range of the gaze leaves out


class GazeBlend(nn.Module):
    """Where the eyes look -> what the networks of both eyes hear of it, and two coefficients, the gaze itself, for the first
    `eyes` Gaussians.

    Both are zero at the usual gaze of the training frames; beyond their range a gaze is clamped, as landmarks are.
    """

    usual: Tensor
    low: Tensor
    high: Tensor

    def __init__(self, eyes: int, hidden: int) -> None:
        super().__init__()
        self.heard = nn.Parameter(torch.zeros(len(EYES), GAZE, hidden))
        self.basis = nn.Parameter(torch.zeros(GAZE, eyes, CHANNELS))
        for name in ("usual", "low", "high"):
            self.register_buffer(name, torch.zeros(GAZE))

    def set_range(self, gaze: Tensor) -> None:
        """Set the usual gaze and the range from those of the training frames (T, 2), eye widths."""
        for bound, share in ((self.usual, 0.5), (self.low, GAZE_TAIL), (self.high, 1 - GAZE_TAIL)):
            bound.copy_(gaze.quantile(share, dim=0))

    def coefficients(self, gaze: Tensor) -> Tensor:
        """gaze (B, 2) eye widths, NaN where it is not known -> (B, 2), zero for the usual gaze."""
        return torch.nan_to_num(torch.clamp(gaze, self.low, self.high) - self.usual) / LOOK


class LowRankBlendshapes(nn.Module):
    """Displacements of the 68 landmarks -> changes of `moving` Gaussians, as a sum of `rank` basis changes each.

    The networks do not extrapolate: outside the training range their output ends in glare and holes. Each coordinate is
    therefore clamped to its range in training (see `set_range`); skinning alone carries what exceeds it.
    """

    steps: Tensor
    low: Tensor
    high: Tensor
    falloff: Tensor | None

    def __init__(self, moving: int, rank: int, hidden: int, eyes: int = 0) -> None:
        """`eyes`: how many Gaussians, the first ones, move with the gaze; 0 for a head that does not know it."""
        super().__init__()
        self.gaze = GazeBlend(eyes, hidden) if eyes else None
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
        self.register_buffer("falloff", None)
        self.register_buffer("low", torch.full((N_LANDMARKS, 3), -1.0))
        self.register_buffer("high", torch.full((N_LANDMARKS, 3), 1.0))

    def set_range(self, displacements: Tensor) -> None:
        """Set each coordinate's range from training displacements (T, 68, 3) metres, widened by MARGIN."""
        low, high = displacements.amin(0), displacements.amax(0)
        room = MARGIN * (high - low)
        self.low.copy_(low - room)
        self.high.copy_(high + room)

    def set_falloff(self, means: Tensor, centres: Tensor) -> None:
        """Set the spatial falloff (rank, moving): exp(-(d / FALLOFF)²), d the distance of means (moving, 3) from the nearest
        of the group's landmarks among centres (68, 3), metres."""
        falloff = []
        for (part, _), share in zip(GROUPS, self.shares):
            nearest = torch.cdist(means, centres[part]).amin(1)
            falloff.append(torch.exp(-((nearest / FALLOFF) ** 2)).expand(share, -1))
        self.falloff = torch.cat(falloff)

    def local_basis(self) -> Tensor:
        """The basis (rank, moving, 13) times the spatial falloff; in a loaded head the product is stored."""
        return self.basis if self.falloff is None else self.basis * self.falloff[..., None]

    def coefficients(self, displacements: Tensor, looks: Tensor | None = None) -> Tensor:
        """displacements (B, 68, 3) metres, coefficients of the gaze (B, 2) -> (B, rank), zero for the neutral face."""
        clamped = torch.clamp(displacements, self.low, self.high)
        found = []
        for k, network in enumerate(self.networks):
            assert isinstance(network, nn.Sequential)
            flat = clamped.index_select(1, self.get_buffer(f"part{k}")).flatten(1) / DISPLACEMENT
            first = network[0](F.pad(flat, (0, 0, 0, 1)))  # the appended row of zeros is the neutral face
            if looks is not None and self.gaze is not None and k in EYES:
                first = first + F.pad(looks @ self.gaze.heard[EYES.index(k)], (0, 0, 0, 1))
            outputs = network[1:](first)
            found.append(outputs[:-1] - outputs[-1:])
        return torch.cat(found, 1)

    def forward(self, displacements: Tensor, gaze: Tensor | None = None) -> Tensor:
        """displacements (B, 68, 3) metres, gaze (B, 2) eye widths -> changes (B, moving, 13) in the units of the attributes."""
        looks = None if self.gaze is None or gaze is None else self.gaze.coefficients(gaze)
        changes = self.coefficients(displacements, looks) @ self.local_basis().flatten(1)
        changes = changes.view(len(displacements), -1, CHANNELS)
        if looks is not None and self.gaze is not None:
            turned = (looks @ self.gaze.basis.flatten(1)).view(len(looks), -1, CHANNELS)
            changes = changes + F.pad(turned, (0, 0, 0, changes.shape[1] - turned.shape[1]))
        return changes * self.steps
