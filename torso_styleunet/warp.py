"""Between a frame and the reference plate: the torso's motion, and sampling the plate through it.

Points are continuous image coordinates: a picture spans [0, W] × [0, H], the centre of pixel (row i, column j) is
(j + 0.5, i + 0.5). A motion (dx, dy, angle, scale, then n² control points or none) takes a frame's point p to
x = c + R(-angle)·(p - c - (dx, dy)) / scale with c = (W/2, H/2), and x to the plate's point x + d(x): d is the quadratic
B-spline with n × n control points spread evenly over the picture, d beyond it that of its border. The plate may reach beyond
the frame by a margin of whole pixels on every side.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from shared.torso_motion import SIMILARITY, grid_of

INVERSIONS = 6  # steps of the fixed-point iteration x = q - d(x); each makes the error smaller by d's gradient, .1 or so


def pixel_centres(height: int, width: int, device: torch.device | str) -> Tensor:
    """(H, W, 2) continuous (x, y) of every pixel centre."""
    y = torch.arange(height, device=device, dtype=torch.float32) + 0.5
    x = torch.arange(width, device=device, dtype=torch.float32) + 0.5
    return torch.stack(torch.broadcast_tensors(x[None, :], y[:, None]), -1)


def plate_to_frame(points: Tensor, motion: Tensor, width: int, height: int) -> Tensor:
    """points (B, ..., 2) on the plate, motion (B, 4 + 2·n²) -> (B, ..., 2) in the frame; pixels."""
    field = warp_field(motion, width, height)
    if field is not None:
        target = points
        for _ in range(INVERSIONS):
            points = target - _at(field, points)
    centre, cos, sin, shift = _parts(points, motion, width, height)
    x, y = (points - centre).unbind(-1)
    return centre + torch.stack([cos * x - sin * y, sin * x + cos * y], -1) * _like(motion[:, 3:4], points) + shift


def frame_to_plate(points: Tensor, motion: Tensor, width: int, height: int) -> Tensor:
    """The inverse of plate_to_frame: points (B, ..., 2) in the frame -> (B, ..., 2) on the plate; pixels."""
    centre, cos, sin, shift = _parts(points, motion, width, height)
    x, y = ((points - centre - shift) / _like(motion[:, 3:4], points)).unbind(-1)
    points = centre + torch.stack([cos * x + sin * y, cos * y - sin * x], -1)
    field = warp_field(motion, width, height)
    return points if field is None else points + _at(field, points)


def warp_field(motion: Tensor, width: int, height: int) -> Tensor | None:
    """Motion (B, 4 + 2·n²) -> the offset d at every pixel centre, (B, 2, H, W) pixels; None for n = 0."""
    n = grid_of(motion.shape[1])
    if n == 0:
        return None
    control = motion[:, SIMILARITY:].reshape(-1, n, n, 2)
    with torch.autocast(motion.device.type, enabled=False):  # half precision would shift the plate
        return torch.einsum("yi,bijc,xj->bcyx", _weights(height, n, motion), control, _weights(width, n, motion))


def _weights(pixels: int, n: int, like: Tensor) -> Tensor:
    """(pixels, n) weights of n control points along a side at its pixel centres: n - 2 intervals, control point k in the middle
    of interval k - 1."""
    place = (torch.arange(pixels, device=like.device, dtype=like.dtype) + 0.5) * ((n - 2) / pixels)
    away = (place[:, None] - torch.arange(n, device=like.device, dtype=like.dtype) + 0.5).abs()
    return torch.where(away < 0.5, 0.75 - away**2, (1.5 - away).clamp(min=0) ** 2 / 2)


def _at(field: Tensor, points: Tensor) -> Tensor:
    """A field (B, 2, H, W) at points (B, ..., 2) -> (B, ..., 2)."""
    found = sample(field, points.reshape(len(points), 1, -1, 2))
    return found[:, :, 0].transpose(1, 2).reshape(points.shape)


def _like(value: Tensor, points: Tensor) -> Tensor:
    """(B, C) -> (B, 1, ..., 1, C) against points (B, ..., 2)."""
    return value.reshape(len(value), *[1] * (points.dim() - 2), value.shape[-1])


def _pair(x: float, y: float, like: Tensor) -> Tensor:
    """(2,) on the device of `like`, without a copy from the host, which no CUDA graph can hold."""
    return torch.cat([like.new_full((1,), x), like.new_full((1,), y)])


def _parts(points: Tensor, motion: Tensor, width: int, height: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    centre = _pair(width / 2, height / 2, points)
    angle = _like(motion[:, 2:3], points)[..., 0]
    return centre, torch.cos(angle), torch.sin(angle), _like(motion[:, :2], points)


def sample(image: Tensor, points: Tensor, margin: int = 0) -> Tensor:
    """Bilinear look-up: image (B, C, h, w) or (C, h, w) shared by the batch, points (B, H, W, 2) -> (B, C, H, W).

    `margin` is how many pixels the image reaches beyond the origin of the points. Outside the image its border
    is repeated.
    """
    if image.dim() == 3:
        image = image.expand(len(points), *image.shape)
    size = _pair(image.shape[-1], image.shape[-2], points)
    return F.grid_sample(image, (points + margin) * (2 / size) - 1, padding_mode="border", align_corners=False)


def margin_of(motions: Tensor, width: int, height: int, limit: float = 0.5) -> int:
    """How far, in whole pixels, frames with these motions (T, ≥ 4) reach beyond the plate's frame by their similarities; at most
    `limit`·W."""
    corners = torch.tensor([[0.0, 0.0], [width, 0.0], [0.0, height], [width, height]], device=motions.device)
    points = frame_to_plate(corners.expand(len(motions), 4, 2), motions[:, :SIMILARITY], width, height)
    size = torch.tensor([width, height], device=motions.device, dtype=points.dtype)
    reach = torch.maximum(-points, points - size).amax()
    return int(min(max(torch.ceil(reach).item(), 0), limit * width))
