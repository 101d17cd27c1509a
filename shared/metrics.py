"""Figures of merit for pictures, landmarks and timing; each says its unit."""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from shared.camera import project, rotvec_from_rotation
from shared.landmarks import FPS


def _as_images(image: np.ndarray | Tensor) -> Tensor:
    tensor = torch.as_tensor(image)
    return (tensor.float() / 255 if tensor.dtype == torch.uint8 else tensor.float()).reshape(-1, *tensor.shape[-3:])


def _as_mask(mask: np.ndarray | Tensor | None, like: Tensor) -> Tensor:
    if mask is None:
        return torch.ones(like.shape[:3], device=like.device)
    return torch.as_tensor(mask, device=like.device).float().reshape(like.shape[:3])


def psnr(a: np.ndarray | Tensor, b: np.ndarray | Tensor, mask: np.ndarray | Tensor | None = None) -> float:
    """Peak signal-to-noise ratio in dB of images (..., H, W, 3), floats in [0, 1] or uint8: the mean over images.

    `mask` (..., H, W) restricts the mean square to its weights; images with an empty mask are left out.
    """
    x, y = _as_images(a), _as_images(b)
    weight = _as_mask(mask, x)
    total = weight.sum((1, 2))
    error = (((x - y) ** 2).mean(-1) * weight).sum((1, 2))[total > 0] / total[total > 0]
    return float(decibel(error).mean())


def decibel(squares: Tensor) -> Tensor:
    """Mean squares of errors, of values in [0, 1] -> PSNR in dB of each, at most 100."""
    return -10 * torch.log10(squares.clamp_min(1e-10))


def ssim_map(x: Tensor, y: Tensor, stride: int = 1) -> Tensor:
    """Structural similarity of images (B, C, H, W) in [0, 1] -> (B, C, H, W); 11×11 Gaussian, σ 1.5 (Wang et al. 2004).

    With `stride`, only of every so many pixels each way, from the first: (B, C, ⌈H/stride⌉, ⌈W/stride⌉).
    Subtracts squared means, so it needs true float32: TF32 must be off.
    """
    line = torch.exp(-((torch.arange(11, device=x.device, dtype=x.dtype) - 5) ** 2) / (2 * 1.5**2))
    line = line / line.sum()
    _, channels, height, width = x.shape
    blur = _blur_as_products(line, height, width, stride) if x.is_cuda else _blur_as_convolutions(line, channels, stride)
    mean_x, mean_y = blur(x), blur(y)
    var_x, var_y, cov = blur(x * x) - mean_x**2, blur(y * y) - mean_y**2, blur(x * y) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    return (2 * mean_x * mean_y + c1) * (2 * cov + c2) / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))


def _blur_as_convolutions(line: Tensor, channels: int, stride: int) -> Callable[[Tensor], Tensor]:
    rows, columns = line.view(1, 1, -1, 1).repeat(channels, 1, 1, 1), line.view(1, 1, 1, -1).repeat(channels, 1, 1, 1)
    half = len(line) // 2

    def blur(image: Tensor) -> Tensor:
        down = F.conv2d(image, rows, stride=(stride, 1), padding=(half, 0), groups=channels)
        return F.conv2d(down, columns, stride=(1, stride), padding=(0, half), groups=channels)

    return blur


def _blur_as_products(line: Tensor, height: int, width: int, stride: int) -> Callable[[Tensor], Tensor]:
    """The same as two products with banded matrices, in full float32 whatever cuDNN may do."""
    def band(size: int) -> Tensor:
        offset = torch.arange(size, device=line.device)
        offset = offset - offset[:, None] + len(line) // 2
        return torch.where((offset >= 0) & (offset < len(line)), line[offset.clamp(0, len(line) - 1)], line.new_zeros(()))

    rows, columns = band(height)[::stride].contiguous(), band(width)[:, ::stride].contiguous()
    return lambda image: rows @ (image @ columns)


def ssim_of_pixels(x: Tensor, y: Tensor) -> Tensor:
    """Structural similarity of images (B, H, W, 3) in [0, 1], mean over colours -> (B, H, W)."""
    tf32 = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        return ssim_map(x.movedim(-1, 1), y.movedim(-1, 1)).mean(1)
    finally:
        torch.backends.cudnn.allow_tf32 = tf32


def ssim(a: np.ndarray | Tensor, b: np.ndarray | Tensor, mask: np.ndarray | Tensor | None = None) -> float:
    """Mean structural similarity of images (..., H, W, 3), floats in [0, 1] or uint8, over `mask` (..., H, W)."""
    x, y = _as_images(a), _as_images(b)
    weight = _as_mask(mask, x)
    values, total = ssim_of_pixels(x, y), weight.sum((1, 2))
    return float(((values * weight).sum((1, 2))[total > 0] / total[total > 0]).mean())


def landmark_distance(predicted: np.ndarray, true: np.ndarray, indices: list[int], poses: np.ndarray,
                      intrinsics: tuple[float, ...], size: float | None = None) -> float:
    """Mean distance in pixels between projected landmarks (T,68,3) at `indices`, both seen with the same poses (T,4,4).

    `intrinsics` belong to an image 2·cx wide; with `size`, pixels are those of a `size`-wide image (512 in the tables).
    """
    scale = 1.0 if size is None else size / (2 * intrinsics[2])
    a = project(predicted[:, indices], poses, intrinsics)
    b = project(true[:, indices], poses, intrinsics)
    return float(np.linalg.norm(a - b, axis=-1).mean() * scale)


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson's r of two curves (T,); 0 where one of them is constant up to float32 rounding."""
    curves = [np.asarray(curve, float) for curve in (a, b)]
    x, y = (curve - curve.mean() for curve in curves)
    if any(np.ptp(curve) <= 1e-6 * np.abs(curve).max() for curve in curves):
        return 0.0
    return float(x @ y / np.sqrt((x @ x) * (y @ y)))


def velocity_ratio(predicted: np.ndarray, true: np.ndarray, indices: list[int]) -> float:
    """Mean speed of predicted landmarks (T,68,3) over that of the true ones, at `indices`; 1 is as lively."""
    speed = [np.linalg.norm(np.diff(x[:, indices], axis=0), axis=-1).mean() for x in (predicted, true)]
    return float(speed[0] / max(speed[1], 1e-12))


def lag_ms(reference: np.ndarray, curve: np.ndarray, max_frames: int = 8) -> float:
    """By how many milliseconds `curve` (T,) comes after `reference` (T,), from the peak of their cross-correlation.

    Sub-frame by a parabola through the peak; 0 if neither moves.
    """
    a, b = np.asarray(reference, float), np.asarray(curve, float)
    reach = min(max_frames, (len(a) - 3) // 2)
    if reach < 1 or a.std() < 1e-12 or b.std() < 1e-12:
        return 0.0
    shifts = range(-reach, reach + 1)
    values = np.array(
        [correlation(a[max(0, -s) : len(a) - max(0, s)], b[max(0, s) : len(b) + min(0, s)]) for s in shifts]
    )
    k = int(values.argmax())
    offset = 0.0
    if 0 < k < len(values) - 1:
        left, mid, right = values[k - 1 : k + 2]
        offset = 0.5 * (left - right) / min(left - 2 * mid + right, -1e-12)
    return float((shifts[k] + offset) * 1000 / FPS)


def landmark_motion_error(predicted: np.ndarray, true: np.ndarray, indices: list[int]) -> float:
    """Root mean square of the in-plane (x, y) difference in metres at `indices`, each point's mean offset taken out.

    What a landmark *is* may differ between two sources by a constant; how it moves may not.
    """
    difference = (predicted[:, indices, :2] - true[:, indices, :2]).astype(float)
    difference -= difference.mean(axis=0)
    return float(np.sqrt((difference**2).sum(-1).mean()))


def rotation_error_degrees(predicted: np.ndarray, true: np.ndarray) -> float:
    """Mean angle between the rotations of poses (T,4,4), each taken relative to its own first frame."""
    relative = [poses[:, :3, :3] @ poses[0, :3, :3].T for poses in (predicted, true)]
    between = np.einsum("tij,tkj->tik", relative[0], relative[1])
    return float(np.degrees(np.linalg.norm(rotvec_from_rotation(between), axis=-1)).mean())
