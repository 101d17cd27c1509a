"""One person's head: canonical Gaussians, landmark windows and the low-rank blend."""

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.camera import quaternion_from_matrix, quaternion_multiply
from stage2_gaussian.blendshapes import LowRankBlend
from stage2_gaussian.shading import PoseShading
from stage2_gaussian.skinning import LandmarkCode

LARGEST = math.log(0.02)  # metres: a splat never grows beyond this
START_OPACITY = 0.7
ATTRIBUTES = ("positions", "rotations", "log_scales", "opacities", "colors")  # what each splat has of its own


class Splats(NamedTuple):
    """Per-frame Gaussians in camera space, ready for `rasterize`."""

    means: Tensor  # (B, N, 3) metres
    quats: Tensor  # (B, N, 4) wxyz
    scales: Tensor  # (B, N, 3) metres
    opacities: Tensor  # (B, N)
    colors: Tensor  # (B, N, 3)


class Head(nn.Module):
    """landmarks and head poses -> Gaussians in camera space. The first `moving` splats are those that the blend moves."""

    def __init__(self, neutral: Tensor, places: Tensor, sizes: Tensor, colors: Tensor, *, moving: int, rank: int,
                 hidden: int, pose_rank: int) -> None:
        """neutral (68, 3) and places (N, 3) metres in head space, sizes (N,) metres, colors (N, 3) in 0..1."""
        super().__init__()
        count = len(places)
        self.positions = nn.Parameter(places.detach().clone())
        self.log_scales = nn.Parameter(torch.log(sizes)[:, None].repeat(1, 3))
        self.rotations = nn.Parameter(F.pad(torch.ones(count, 1), (0, 3)))
        self.opacities = nn.Parameter(torch.full((count,), math.log(START_OPACITY / (1 - START_OPACITY))))
        self.colors = nn.Parameter(colors.detach().clone())
        self.code = LandmarkCode(neutral)
        self.blend = LowRankBlend(moving, rank, hidden)
        self.shading = PoseShading(count, pose_rank)
        self._windows: Tensor | None = None
        self.graphs: dict[tuple, Any] = {}  # captured by `render.render_head`

    @torch.no_grad()
    def select(self, rows: Tensor) -> None:
        """Keep the splats `rows` (n,), ascending and possibly repeated, each with its share of blend and shading."""
        for name in ATTRIBUTES:
            old = getattr(self, name)
            setattr(self, name, nn.Parameter(old[rows], requires_grad=old.requires_grad))
        for part in (self.blend, self.shading):
            own = rows[rows < part.basis.shape[1]]
            part.basis = nn.Parameter(part.basis[:, own], requires_grad=part.basis.requires_grad)
        if self.blend.masks is not None:
            self.blend.masks = self.blend.masks[:, rows[rows < self.blend.masks.shape[1]]]
        self._windows = None
        self.graphs.clear()

    def windows(self) -> Tensor:
        """(N, 68) weights of the landmarks at the splats' canonical places; kept where nothing is trained."""
        if self.positions.requires_grad:
            return self.code.weights(self.positions)
        if self._windows is None:
            self._windows = self.code.weights(self.positions)
        return self._windows

    def forward(self, landmarks: Tensor, poses: Tensor) -> Splats:
        """landmarks (B, 68, 3) metres in head space, poses (B, 4, 4) head → camera."""
        displacements = landmarks - self.code.centres
        change = self.blend(displacements)
        change = F.pad(change, (0, 0, 0, len(self.positions) - change.shape[1]))
        pushed = self.windows() @ displacements.movedim(0, 1).flatten(1)  # (N, B * 3): one product for the batch
        places = self.positions + pushed.unflatten(1, (-1, 3)).movedim(1, 0) + change[..., :3]
        rotation = poses[:, :3, :3]
        turn = F.pad(0.5 * change[..., 3:6], (1, 0), value=1.0)  # small rotation vector as a quaternion
        quats = quaternion_multiply(quaternion_from_matrix(rotation)[:, None], quaternion_multiply(turn, self.rotations))
        return Splats(
            means=places @ rotation.mT + poses[:, None, :3, 3],
            quats=quats,
            scales=torch.exp((self.log_scales + change[..., 6:9]).clamp_max(LARGEST)),
            opacities=torch.sigmoid(self.opacities + change[..., 12]),
            colors=(self.colors + change[..., 9:12] + self.shading(poses)).clamp_min(0),
        )
