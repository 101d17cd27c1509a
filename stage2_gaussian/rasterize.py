"""One function for splatting: gsplat on CUDA, the numba twin on the CPU."""

import torch
from torch import Tensor

from stage2_gaussian.rasterize_cpu import rasterize_cpu


def rasterize(means: Tensor, quats: Tensor, scales: Tensor, opacities: Tensor, colors: Tensor,
              intrinsics: tuple[float, ...] | Tensor, width: int, height: int) -> tuple[Tensor, Tensor]:
    """Splat B images of N Gaussians each, differentiably.

    means (B, N, 3) metres in camera space (x right, y down, z forward), quats (B, N, 4) wxyz of any length,
    scales (B, N, 3) metres, opacities (B, N) in 0..1, colors (B, N, C); intrinsics (fx, fy, cx, cy) in pixels, shared by
    the batch. Returns colour premultiplied by alpha (B, H, W, C) and alpha (B, H, W, 1). Both backends give the same
    image to 1e-3.
    """
    camera = tuple(float(value) for value in intrinsics)
    if means.device.type != "cuda":
        return rasterize_cpu(means, quats, scales, opacities, colors, camera, width, height)
    from gsplat import rasterization  # builds its kernels on first use, so never imported without a GPU

    fx, fy, cx, cy = camera
    view = torch.eye(4, device=means.device).expand(len(means), 1, 4, 4)
    pinhole = torch.tensor([[fx, 0, cx], [0, fy, cy], [0, 0, 1]], device=means.device).expand(len(means), 1, 3, 3)
    rgb, alpha, _ = rasterization(means, quats, scales, opacities, colors, view, pinhole, width, height,
                                  near_plane=0.01, eps2d=0.3, packed=False)
    return rgb[:, 0], alpha[:, 0]
