"""The torso model of one person: plate, fixed noise, motion statistics and the StyleUNet that changes the warped plate."""

import torch
from torch import Tensor, nn

from shared.camera import NO_ROTATION, mean_rotation, turn_from
from shared.image import over, premultiply
from shared.torso_motion import SIMILARITY
from torso_styleunet.config import TorsoConfig
from torso_styleunet.generator import StyleUNet
from torso_styleunet.warp import frame_to_plate, pixel_centres, sample

CODE_DIM = 10
CODE_LIMIT = 3.0  # standard deviations at which the motion code is clamped: the network does not extrapolate
# Least standard deviations of the motion code, below which differences are noise of the tracking: angles in radians and
# logarithms of scales; positions in picture widths
LEAST_ANGLE, LEAST_SHIFT = 0.01, 0.005
LEAST_DEPTH = 1e-3  # metres, and least scale of a motion: keeps logarithms finite


class Torso(nn.Module):
    """Rendered head, head pose and torso motion -> torso and neck.

    The plate (straight RGB and alpha logit) is warped by the frame's torso motion; the network adds a small smooth offset field
    to that warp, and a residual to colour and alpha logit, so that clothes are sampled from the plate, not generated. The
    plate is a parameter: training sharpens what the median of misaligned frames has blurred. The noise is fixed to the plate
    and moves with it.
    """

    plate: Tensor
    noise: Tensor
    intrinsics: Tensor
    mean_rotation: Tensor
    code_mean: Tensor
    code_scale: Tensor

    def __init__(self, config: TorsoConfig, width: int, height: int, margin: int) -> None:
        """`config` resolved. Plate, noise and statistics have to be set afterwards."""
        super().__init__()
        self.config, self.width, self.height, self.margin = config, width, height, margin
        self.generator = StyleUNet(CODE_DIM, config.channels, config.levels, config.max_channels, config.style_dim,
                                   config.stride)
        size = (height + 2 * margin, width + 2 * margin)
        self.plate = nn.Parameter(torch.zeros(4, *size))
        self.register_buffer("noise", torch.zeros(1, *size))
        self.register_buffer("intrinsics", torch.ones(4))
        self.register_buffer("mean_rotation", torch.tensor(NO_ROTATION))
        self.register_buffer("code_mean", torch.zeros(CODE_DIM))
        self.register_buffer("code_scale", torch.ones(CODE_DIM))

    def set_statistics(self, poses: Tensor, motion: Tensor, intrinsics: Tensor) -> None:
        """Set mean rotation, and mean and standard deviation of the motion code, from training poses (T, 4, 4) and motion
        (T, 4 + 2·n²); intrinsics (4,) fx, fy, cx, cy in pixels."""
        self.intrinsics.copy_(intrinsics)
        self.mean_rotation.copy_(mean_rotation(poses[:, :3, :3]))
        code = self.raw_code(poses, motion)
        shift = LEAST_SHIFT * self.width
        floor = torch.tensor([LEAST_ANGLE] * 3 + [shift] * 2 + [LEAST_ANGLE] + [shift] * 2 + [LEAST_ANGLE] * 2)
        self.code_mean.copy_(code.mean(0))
        self.code_scale.copy_(code.std(0, correction=0).clamp(min=floor.to(code)))

    def raw_code(self, poses: Tensor, motion: Tensor) -> Tensor:
        """poses (B, 4, 4), motion (B, ≥ 4), of which the similarity is used -> (B, 10): position of the head relative to the
        torso (6), torso motion (4).

        Rotation relative to the mean rotation (sine of the angle times the axis, 3), the head's origin mapped onto the plate
        (2, pixels), log of its depth divided by the torso's scale; dx, dy (pixels), angle, log scale. The first six do not
        change when the camera reframes.
        """
        fx, fy, cx, cy = self.intrinsics.unbind()
        x, y, z = poses[:, :3, 3].unbind(-1)
        depth = z.clamp(min=LEAST_DEPTH)
        origin = torch.stack([fx * x / depth + cx, fy * y / depth + cy], -1)
        origin = frame_to_plate(origin, motion[:, :SIMILARITY], self.width, self.height)
        log_scale = motion[:, 3].clamp(min=LEAST_DEPTH).log()
        return torch.cat([
            turn_from(self.mean_rotation, poses[:, :3, :3]), origin,
            torch.stack([depth.log() + log_scale, motion[:, 0], motion[:, 1], motion[:, 2], log_scale], -1),
        ], -1)

    def code(self, poses: Tensor, motion: Tensor) -> Tensor:
        """The normalised motion code (B, 10), clamped to ±CODE_LIMIT standard deviations."""
        return ((self.raw_code(poses, motion) - self.code_mean) / self.code_scale).clamp(-CODE_LIMIT, CODE_LIMIT)

    def forward(self, head: Tensor, poses: Tensor, motion: Tensor) -> tuple[Tensor, Tensor]:
        """head (B, 4, H, W) premultiplied RGBA, poses (B, 4, 4), motion (B, 4 + 2·n²)
        -> (B, 4, H, W) straight RGB and alpha logit of torso and neck, and the offset field (B, 2, H, W), pixels."""
        grid = pixel_centres(self.height, self.width, head.device).expand(len(head), -1, -1, -1)
        points = frame_to_plate(grid, motion, self.width, self.height)
        warped = sample(torch.cat([self.plate.detach(), self.noise]), points, self.margin)
        alpha = torch.sigmoid(warped[:, 3:4])
        plate = torch.cat([warped[:, :3] * alpha, alpha], 1)
        residual, flow = self.generator(head, plate, warped[:, 4:], self.code(poses, motion))
        flow = flow * (self.config.flow_limit * self.width)
        return sample(self.plate, points + flow.permute(0, 2, 3, 1), self.margin) + residual, flow


def composite_layers(head: Tensor, torso: Tensor, background: Tensor) -> Tensor:
    """Head over torso over background: head (B, 4, H, W) premultiplied, torso (B, 4, H, W) straight colour and alpha,
    background (B or 1, 3, H, W) -> (B, 3, H, W)."""
    return over(head, over(premultiply(torso, 1), background, 1), 1)
