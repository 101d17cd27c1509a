"""The torso model of one person: plate, fixed noise, motion statistics and the StyleUNet that refines the plate."""


import torch
from torch import Tensor, nn

from torso_styleunet.config import TorsoConfig
from torso_styleunet.generator import StyleUNet
from torso_styleunet.warp import frame_to_plate, pixel_centres, sample

CODE_DIM = 10
CODE_LIMIT = 3.0  # standard deviations; motion beyond what training saw is held there


class Torso(nn.Module):
    """Rendered head, head pose and torso motion -> torso and neck.

    The plate (straight RGB and alpha logit) is warped by the frame's similarity; the network bends that warp by a
    small smooth offset field and adds a residual of colour and alpha logit. Clothes are therefore looked up, not
    regenerated. The plate is a parameter: training sharpens what the median of misaligned frames has blurred.
    The noise lies on the plate and moves with it, so it is the same for every frame of an avatar.
    """

    plate: Tensor
    noise: Tensor
    intrinsics: Tensor
    mean_rotation: Tensor
    code_mean: Tensor
    code_scale: Tensor

    def __init__(self, config: TorsoConfig, width: int, height: int, margin: int) -> None:
        """`config` resolved. All weights that are not random (plate, noise, statistics) start empty."""
        super().__init__()
        self.config, self.width, self.height, self.margin = config, width, height, margin
        self.generator = StyleUNet(CODE_DIM, config.channels, config.levels, config.max_channels, config.style_dim,
                                   config.stride)
        size = (height + 2 * margin, width + 2 * margin)
        self.plate = nn.Parameter(torch.zeros(4, *size))
        self.register_buffer("noise", torch.zeros(1, *size))
        self.register_buffer("intrinsics", torch.ones(4))
        self.register_buffer("mean_rotation", torch.eye(3))
        self.register_buffer("code_mean", torch.zeros(CODE_DIM))
        self.register_buffer("code_scale", torch.ones(CODE_DIM))

    def set_statistics(self, poses: Tensor, motion: Tensor, intrinsics: Tensor) -> None:
        """Mean rotation, mean and standard deviation of the motion code over the training frames."""
        u, _, vt = torch.linalg.svd(poses[:, :3, :3].mean(0))
        self.intrinsics.copy_(intrinsics)
        self.mean_rotation.copy_(u @ torch.diag(torch.tensor([1, 1, torch.det(u @ vt).sign()]).to(u)) @ vt)
        code = self.raw_code(poses, motion)
        floor = torch.tensor([0.01] * 3 + [0.005 * self.width] * 2 + [0.01] + [0.005 * self.width] * 2 + [0.01] * 2)
        self.code_mean.copy_(code.mean(0))
        self.code_scale.copy_(code.std(0, correction=0).clamp(min=floor.to(code)))

    def raw_code(self, poses: Tensor, motion: Tensor) -> Tensor:
        """poses (B, 4, 4), motion (B, 4) -> (B, 10): how the head sits on the torso, then the torso motion.

        Rotation from the mean rotation (sin of the angle times the axis, 3), the head's origin carried onto the
        plate (2, pixels), log of its depth with the torso's scale taken out, dx, dy (pixels), angle, log scale. The
        first six do not change when the camera reframes.
        """
        turn = poses[:, :3, :3] @ self.mean_rotation.t()
        skew = (turn - turn.transpose(1, 2)) / 2
        fx, fy, cx, cy = self.intrinsics.unbind()
        x, y, z = poses[:, :3, 3].unbind(-1)
        depth = z.clamp(min=1e-3)
        origin = torch.stack([fx * x / depth + cx, fy * y / depth + cy], -1)
        origin = frame_to_plate(origin, motion, self.width, self.height)
        log_scale = motion[:, 3].clamp(min=1e-3).log()
        return torch.cat([
            torch.stack([skew[:, 2, 1], skew[:, 0, 2], skew[:, 1, 0]], -1), origin,
            torch.stack([depth.log() + log_scale, motion[:, 0], motion[:, 1], motion[:, 2], log_scale], -1),
        ], -1)

    def code(self, poses: Tensor, motion: Tensor) -> Tensor:
        """The normalised motion code (B, 10), held within ±3 standard deviations."""
        return ((self.raw_code(poses, motion) - self.code_mean) / self.code_scale).clamp(-CODE_LIMIT, CODE_LIMIT)

    def forward(self, head: Tensor, poses: Tensor, motion: Tensor) -> tuple[Tensor, Tensor]:
        """head (B, 4, H, W) premultiplied RGBA, poses (B, 4, 4), motion (B, 4)
        -> (B, 4, H, W) straight RGB and alpha logit of torso and neck, and the offset field (B, 2, H, W), pixels."""
        grid = pixel_centres(self.height, self.width, head.device).expand(len(head), -1, -1, -1)
        points = frame_to_plate(grid, motion, self.width, self.height)
        warped = sample(torch.cat([self.plate.detach(), self.noise]), points, self.margin)
        alpha = torch.sigmoid(warped[:, 3:4])
        seen = torch.cat([warped[:, :3] * alpha, alpha], 1)
        residual, flow = self.generator(head, seen, warped[:, 4:], self.code(poses, motion))
        flow = flow * (self.config.flow_limit * self.width)
        return sample(self.plate, points + flow.permute(0, 2, 3, 1), self.margin) + residual, flow


def over(head: Tensor, torso: Tensor, background: Tensor) -> Tensor:
    """background ← torso ← head: head (B, 4, H, W) premultiplied, torso (B, 4, H, W) straight colour and alpha,
    background (B or 1, 3, H, W) -> (B, 3, H, W)."""
    alpha = torso[:, 3:]
    return head[:, :3] + (1 - head[:, 3:]) * (torso[:, :3] * alpha + (1 - alpha) * background)
