"""Hair that falls below the jaw: near the head it moves with the head, further down with the shoulders."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.arrays import evenly
from shared.camera import NO_ROTATION, mean_rotation, project, quaternion_from_matrix, quaternion_multiply
from shared.clip import HEAD, Clip
from shared.torso_motion import SIMILARITY

CHIN = 8
JAW_CORNERS = [3, 13]  # at their height, beside the jaw, hair may begin to follow the shoulders
FADE = 0.03  # metres below that over which it comes to follow them as far as it is trained to
CLEAR = 0.02  # metres from the nearest landmark at which a Gaussian belongs to the face by 1/e
START, LOWER = -2.2, 44.0  # logit of the share at that height, and its increase for a metre further down, at the start
MOST = 3.0  # the logit's limit at the start
BELOW = 0.015  # metres below the chin: what is labelled head there is hair
LEAST = 0.003  # of the picture: less of it is not modelled
VIEWS = 16  # frames that are looked at


class FallingHair(nn.Module):
    """How much of each Gaussian's motion is that of the shoulders, and their pose.

    Two motions are blended linearly in camera space: that of the head's pose, and the rest pose followed by the torso motion.
    The latter, a similarity of the picture (dx, dy, angle, scale about its middle), moves points of camera space by a linear
    map: a larger picture is a nearer point.
    """

    rest: Tensor
    camera: Tensor
    reach: Tensor

    def __init__(self, count: int) -> None:
        super().__init__()
        self.follow = nn.Parameter(torch.zeros(count))
        self.register_buffer("reach", torch.zeros(count))
        self.register_buffer("rest", F.pad(torch.tensor(NO_ROTATION), (0, 1)))
        self.register_buffer("camera", torch.ones(6))

    def set_rest(self, poses: Tensor, torso: Tensor, intrinsics: tuple[float, ...], width: int, height: int) -> None:
        """Set the camera, and as rest pose the mean of training poses (T, 4, 4) after their torso motion (T, 4) is undone."""
        self.camera.copy_(torch.tensor([*intrinsics, width, height]))
        undone = torch.linalg.inv(self._moves(torso)) @ poses[:, :3]
        self.rest[:, :3] = mean_rotation(undone[:, :, :3])
        self.rest[:, 3] = undone[:, :, 3].mean(0)

    def set_start(self, means: Tensor, centres: Tensor) -> None:
        """Shares at the start for canonical means (N, 3) metres and landmarks (68, 3) of the neutral face."""
        self.reach.copy_(self._reach(means, centres))
        self.follow.data.copy_(self._start(means, centres))

    @torch.no_grad()
    def select(self, rows: Tensor) -> None:
        """Keep the Gaussians `rows` (n,), possibly repeated."""
        self.follow = nn.Parameter(self.follow[rows], requires_grad=self.follow.requires_grad)
        self.reach = self.reach[rows]

    @staticmethod
    def _reach(means: Tensor, centres: Tensor) -> Tensor:
        below = centres[JAW_CORNERS, 1].mean() - means[:, 1]
        nearest = torch.cdist(means, centres).amin(1)
        return (below / FADE).clamp(0, 1) * (1 - torch.exp(-((nearest / CLEAR) ** 2)))

    @staticmethod
    def _start(means: Tensor, centres: Tensor) -> Tensor:
        return (START + LOWER * (centres[JAW_CORNERS, 1].mean() - means[:, 1])).clamp(-MOST, MOST)

    def shares(self) -> Tensor:
        """(N,) in 0..1: 0 moves with the head, 1 with the shoulders."""
        return self.reach * torch.sigmoid(self.follow)

    def _moves(self, torso: Tensor) -> Tensor:
        """Torso motion (B, 4) -> linear maps of camera space (B, 3, 3)."""
        fx, fy, cx, cy, width, height = self.camera
        dx, dy, angle, scale = torso[:, :SIMILARITY].unbind(-1)
        cos, sin, zero = torch.cos(angle), torch.sin(angle), torch.zeros_like(angle)
        x, y = (width / 2 - cx) / fx, (height / 2 - cy) / fy  # the picture's middle, at a depth of 1
        rows = [cos, -sin, (x + dx / fx) / scale - (cos * x - sin * y), sin, cos, (y + dy / fy) / scale - (sin * x + cos * y),
                zero, zero, 1 / scale]
        return torch.stack(rows, -1).unflatten(-1, (3, 3))

    def shoulders(self, torso: Tensor) -> Tensor:
        """Torso motion (B, 4) -> the shoulders' pose (B, 3, 4): affine, head space at rest → camera."""
        return self._moves(torso) @ self.rest

    def forward(self, means: Tensor, poses: Tensor, torso: Tensor) -> tuple[Tensor, Tensor]:
        """means (B, N, 3) in head space, poses (B, 4, 4), torso motion (B, 4) -> means (B, N, 3) in camera space, and the
        rotations head → camera as quaternions (B, N, 4)."""
        share, shoulders = self.shares()[:, None], self.shoulders(torso)
        with_head = means @ poses[:, :3, :3].mT + poses[:, None, :3, 3]
        with_torso = means @ shoulders[:, :, :3].mT + shoulders[:, None, :, 3]
        half, none = torso[:, 2] / 2, torch.zeros_like(torso[:, 2])
        roll = torch.stack([torch.cos(half), none, none, torch.sin(half)], -1)
        turned = quaternion_multiply(roll, quaternion_from_matrix(self.rest[:, :3]))
        head = quaternion_from_matrix(poses[:, :3, :3])
        turned = turned * torch.where((turned * head).sum(-1, keepdim=True) < 0, -1.0, 1.0)
        return torch.lerp(with_head, with_torso, share), torch.lerp(head[:, None], turned[:, None], share)

    @torch.no_grad()
    def canonical(self, points: Tensor, centres: Tensor, pose: Tensor, torso: Tensor) -> Tensor:
        """Points (N, 3) in head space as one frame with `pose` (4, 4) and `torso` (4,) shows them -> canonical ones, (N, 3)."""
        share = (self._reach(points, centres) * torch.sigmoid(self._start(points, centres)))[:, None, None]
        blended = torch.lerp(pose[None, :3], self.shoulders(torso[None]), share)
        seen = points @ pose[:3, :3].T + pose[:3, 3]
        return torch.linalg.solve(blended[:, :, :3], seen - blended[:, :, 3])


def has_falling_hair(clip: Clip, indices: np.ndarray) -> bool:
    """Whether half of the frames `indices` (n,) show head, by their labels, on more than LEAST of the picture below the chin."""
    info, neutral = clip.info, clip.load_neutral()[0]
    views = indices[evenly(len(indices), VIEWS)]
    below = project(neutral[CHIN][None] - [0, BELOW, 0], clip.load_poses()[views], info.intrinsics)[:, 0, 1]
    shares = [(labels[max(0, math.ceil(row)) :] == HEAD).sum() / labels.size
              for labels, row in zip(clip.read_labels(views), below)]
    return float(np.median(shares)) > LEAST
