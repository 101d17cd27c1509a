"""Rasterisation of Gaussians: gsplat on CUDA, an implementation of the same equations in numba on the CPU."""

import functools
import math
from typing import NamedTuple

import torch
from torch import Tensor

from stage2_gaussian.rasterize.cpu import rasterize_cpu

TILE = 16


class Projected(NamedTuple):
    """Gaussians in the image plane, on CUDA; B images of N each."""

    radii: Tensor  # (B, 1, N, 2) pixels, int32, 0 where a Gaussian is not visible
    means: Tensor  # (B, 1, N, 2) pixels
    depths: Tensor  # (B, 1, N) metres
    conics: Tensor  # (B, 1, N, 3) upper triangle of the inverse covariance
    opacities: Tensor  # (B, 1, N)
    colors: Tensor  # (B, 1, N, C)


def rasterize(means: Tensor, quats: Tensor, scales: Tensor, opacities: Tensor, colors: Tensor,
              intrinsics: tuple[float, ...] | Tensor, width: int, height: int) -> tuple[Tensor, Tensor]:
    """Rasterise B images of N Gaussians each, differentiably.

    means (B, N, 3) metres in camera space (x right, y down, z forward), quats (B, N, 4) wxyz of any length,
    scales (B, N, 3) metres, opacities (B, N) in 0..1, colors (B, N, C); intrinsics (fx, fy, cx, cy) in pixels, shared by
    the batch. Returns colour premultiplied by alpha (B, H, W, C) and alpha (B, H, W, 1). Both backends give the same
    image to 1e-3.
    """
    camera = tuple(float(value) for value in intrinsics)
    if means.device.type != "cuda":
        return rasterize_cpu(means, quats, scales, opacities, colors, camera, width, height)
    return blend(project_splats(means, quats, scales, opacities, colors, camera, width, height), width, height)


def project_splats(means: Tensor, quats: Tensor, scales: Tensor, opacities: Tensor, colors: Tensor,
                   intrinsics: tuple[float, ...], width: int, height: int) -> Projected:
    """First half of `rasterize` on CUDA: no shape depends on values, so that it can be part of a CUDA graph."""
    from gsplat import fully_fused_projection  # builds its kernels on first use, so never imported without a GPU

    view, pinhole = _camera(intrinsics, means.device)
    count = len(means)
    radii, centres, depths, conics, _ = fully_fused_projection(
        means, None, quats, scales, view.expand(count, 1, 4, 4), pinhole.expand(count, 1, 3, 3), width, height, eps2d=0.3,
        near_plane=0.01, packed=False, opacities=opacities)
    return Projected(radii, centres, depths, conics, opacities[:, None], colors[:, None])


@functools.lru_cache(maxsize=16)
def _camera(intrinsics: tuple[float, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """Identity view (4, 4) and pinhole matrix (3, 3) on the device."""
    fx, fy, cx, cy = intrinsics
    return torch.eye(4, device=device), torch.tensor([[fx, 0, cx], [0, fy, cy], [0, 0, 1]], dtype=torch.float32, device=device)


def blend(projected: Projected, width: int, height: int) -> tuple[Tensor, Tensor]:
    """Second half of `rasterize` on CUDA: sort by tile and depth, blend front to back; returns the same."""
    from gsplat import isect_offset_encode, isect_tiles, rasterize_to_pixels

    count, tiles = len(projected.means), (math.ceil(width / TILE), math.ceil(height / TILE))
    _, keys, order = isect_tiles(projected.means, projected.radii, projected.depths, TILE, *tiles, packed=False)
    offsets = isect_offset_encode(keys, count, *tiles).view(count, 1, tiles[1], tiles[0])
    rgb, alpha = rasterize_to_pixels(projected.means, projected.conics, projected.colors, projected.opacities, width, height,
                                     TILE, offsets, order, packed=False)
    return rgb[:, 0], alpha[:, 0]
