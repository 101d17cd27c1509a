"""One person's head: canonical Gaussians, skinning to the landmarks, low-rank blendshapes and pose-dependent shading."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.camera import quaternion_from_matrix, quaternion_multiply
from stage2_gaussian.blendshapes import GazeBlend, LowRankBlendshapes
from stage2_gaussian.falling_hair import FallingHair
from stage2_gaussian.shading import PoseShading
from stage2_gaussian.skinning import Skinning

LARGEST = math.log(0.02)  # metres, the largest standard deviation of a Gaussian
START_OPACITY = 0.7
ATTRIBUTES = ("positions", "rotations", "log_scales", "opacities", "colors")  # each Gaussian's own parameters, in a file too


class CameraGaussians(NamedTuple):
    """Gaussians of B frames in camera space, the input of `rasterize`."""

    means: Tensor  # (B, N, 3) metres
    quats: Tensor  # (B, N, 4) wxyz
    scales: Tensor  # (B, N, 3) metres
    opacities: Tensor  # (B, N) in 0..1
    colors: Tensor  # (B, N, 3)


class Head(nn.Module):
    """Landmarks, gaze and head poses -> Gaussians in camera space. The first `moving` Gaussians have blendshapes, the first
    `eyes` of them move with the gaze.

    The names of attributes are keys of checkpoints (docs/formats.md): `positions` are the canonical means, `rotations` the
    canonical quaternions, `code` is the skinning, `blend` the blendshapes, `falling` is there if hair falls below the jaw.
    """

    def __init__(self, neutral: Tensor, means: Tensor, scales: Tensor, colors: Tensor, *, moving: int, rank: int,
                 hidden: int, pose_rank: int, falling: bool = False, eyes: int = 0) -> None:
        """neutral (68, 3) and means (N, 3) metres in head space, scales (N,) metres, colors (N, 3) in 0..1; the first `eyes`
        Gaussians are those of the eyes."""
        super().__init__()
        count = len(means)
        self.positions = nn.Parameter(means.detach().clone())
        self.log_scales = nn.Parameter(torch.zeros(count, 3))
        if not scales.is_meta:  # where only shapes are asked for, arithmetic would import torch's compiler: two seconds
            self.log_scales.data += torch.log(scales)[:, None]
        self.rotations = nn.Parameter(F.pad(torch.ones(count, 1), (0, 3)))
        self.opacities = nn.Parameter(torch.full((count,), math.log(START_OPACITY / (1 - START_OPACITY))))
        self.colors = nn.Parameter(colors.detach().clone())
        self.code = Skinning(neutral)
        self.blend = LowRankBlendshapes(moving, rank, hidden, eyes)
        self.shading = PoseShading(count, pose_rank)
        self.falling = FallingHair(count) if falling else None
        self.brightest = 1.0  # no splat is brighter than a picture can be
        self._skinning_weights: Tensor | None = None

    @torch.no_grad()
    def select(self, rows: Tensor) -> None:
        """Keep the Gaussians `rows` (n,), ascending and possibly repeated, each with its part of blendshapes and shading."""
        for name in ATTRIBUTES:
            old = getattr(self, name)
            setattr(self, name, nn.Parameter(old[rows], requires_grad=old.requires_grad))
        parts: list[LowRankBlendshapes | GazeBlend | PoseShading] = [self.blend, self.shading]
        for part in parts + ([] if self.blend.gaze is None else [self.blend.gaze]):
            own = rows[rows < part.basis.shape[1]]
            part.basis = nn.Parameter(part.basis[:, own], requires_grad=part.basis.requires_grad)
        if self.blend.gaze is not None and not self.blend.gaze.basis.shape[1]:
            self.blend.gaze = None  # no splat of the eyes is left
        if self.falling is not None:
            self.falling.select(rows)
        if self.blend.falloff is not None:
            self.blend.falloff = self.blend.falloff[:, rows[rows < self.blend.falloff.shape[1]]]
        self._skinning_weights = None

    def skinning_weights(self) -> Tensor:
        """(N, 68) weights of the landmarks at the canonical means; cached while the means are not trained."""
        if self.positions.requires_grad:
            return self.code.weights(self.positions)
        if self._skinning_weights is None:
            self._skinning_weights = self.code.weights(self.positions)
        return self._skinning_weights

    def forward(self, landmarks: Tensor, poses: Tensor, torso: Tensor | None = None,
                gaze: Tensor | None = None) -> CameraGaussians:
        """landmarks (B, 68, 3) metres in head space, poses (B, 4, 4) head → camera, torso motion (B, 4): without it, falling
        hair moves with the head; gaze (B, 2) eye widths: without it, and where it is NaN, the eyes look as they usually do."""
        displacements = landmarks - self.code.centres
        change = self.blend(displacements, gaze)
        change = F.pad(change, (0, 0, 0, len(self.positions) - change.shape[1]))
        skinned = self.skinning_weights() @ displacements.movedim(0, 1).flatten(1)  # (N, B * 3): one product for the batch
        means = self.positions + skinned.unflatten(1, (-1, 3)).movedim(1, 0) + change[..., :3]
        turn = F.pad(0.5 * change[..., 3:6], (1, 0), value=1.0)  # small rotation vector as a quaternion
        if self.falling is None or torso is None:
            rotation = poses[:, :3, :3]
            means, turned = means @ rotation.mT + poses[:, None, :3, 3], quaternion_from_matrix(rotation)[:, None]
        else:
            means, turned = self.falling(means, poses, torso)
        return CameraGaussians(
            means=means,
            quats=quaternion_multiply(turned, quaternion_multiply(turn, self.rotations)),
            scales=torch.exp((self.log_scales + change[..., 6:9]).clamp_max(LARGEST)),
            opacities=torch.sigmoid(self.opacities + change[..., 12]),
            colors=(self.colors + change[..., 9:12] + self.shading(poses)).clamp(0, self.brightest),
        )
