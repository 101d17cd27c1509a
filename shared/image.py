"""Alpha compositing of picture tensors, float in [0, 1], with channels last or in any other dimension."""

import torch
from torch import Tensor

LEAST_ALPHA = 1e-4  # keeps `straight` finite where nothing is seen


def over(rgba: Tensor, backdrop: Tensor, dim: int = -1) -> Tensor:
    """Premultiplied RGBA over an opaque RGB backdrop -> RGB. 4 and 3 channels in dimension `dim`, other dimensions alike."""
    rgb, alpha = rgba.split([3, 1], dim)
    return rgb + (1 - alpha) * backdrop


def premultiply(rgba: Tensor, dim: int = -1) -> Tensor:
    """Straight RGBA -> RGBA with the colours multiplied by alpha."""
    rgb, alpha = rgba.split([3, 1], dim)
    return torch.cat([rgb * alpha, alpha], dim)


def straight(rgba: Tensor, dim: int = -1) -> Tensor:
    """Premultiplied RGBA -> RGBA with straight colours."""
    rgb, alpha = rgba.split([3, 1], dim)
    return torch.cat([rgb / alpha.clamp_min(LEAST_ALPHA), alpha], dim)
