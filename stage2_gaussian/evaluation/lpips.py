"""LPIPS, a perceptual distance (Zhang et al., CVPR 2018, arXiv 1801.03924), version 0.1 on AlexNet, from the user's weights.

The folder holds two files: torchvision's AlexNet and the linear weights of the lpips package (lpips/weights/v0.1/alex.pth).
"""

import pickle
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.errors import TalkheadError

BACKBONE = "alexnet-owt-7be5be79.pth"
LINEAR = "alex.pth"
# number in torchvision's `features`, channels in and out, kernel, stride, padding
LAYERS = ((0, 3, 64, 11, 4, 2), (3, 64, 192, 5, 1, 2), (6, 192, 384, 3, 1, 1), (8, 384, 256, 3, 1, 1),
          (10, 256, 256, 3, 1, 1))
POOLED = (1, 2)  # layers whose input is max-pooled
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # of colours in [-1, 1]
TINY = 1e-10  # keeps the feature vectors' normalisation finite


class Lpips(nn.Module):
    """Distances of pictures: 0 for the same, about 0.01 to 0.1 for good renders, 0.5 and more for unlike ones."""

    shift: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(nn.Conv2d(into, out, kernel, stride, padding)
                                          for _, into, out, kernel, stride, padding in LAYERS)
        self.linear = nn.ParameterList(torch.zeros(1, layer[2], 1, 1) for layer in LAYERS)
        self.register_buffer("shift", torch.tensor(SHIFT).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor(SCALE).view(1, 3, 1, 1))

    def _features(self, pictures: Tensor) -> list[Tensor]:
        """(B, H, W, 3) in [0, 1] -> after each convolution (B, C, h, w), every pixel's vector of length 1."""
        x = (2 * pictures.movedim(-1, 1) - 1 - self.shift) / self.scale
        found = []
        for number, convolution in enumerate(self.convolutions):
            x = F.relu(convolution(F.max_pool2d(x, 3, 2) if number in POOLED else x))
            found.append(x / (torch.linalg.vector_norm(x, dim=1, keepdim=True) + TINY))
        return found

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """FrameTensors (B, H, W, 3) in [0, 1], at least 31 pixels a side -> distances (B,) and where they come from (B, H, W).

        The distance is the sum over the layers of their spatial means; the map is the sum of the layers' maps enlarged
        bilinearly, for means over regions.
        """
        layers = [F.conv2d((x - y).square(), weight)
                  for x, y, weight in zip(self._features(a), self._features(b), self.linear)]
        enlarged = [F.interpolate(layer, a.shape[1:3], mode="bilinear", align_corners=False) for layer in layers]
        return torch.stack([layer.mean((1, 2, 3)) for layer in layers]).sum(0), torch.cat(enlarged, 1).sum(1)


def load_lpips(folder: Path | str, device: torch.device | str) -> Lpips:
    """LPIPS with the weights in `folder`, for measuring and as a loss. Raises TalkheadError for missing or other files."""
    folder = Path(folder)
    model = Lpips()
    with torch.no_grad():
        backbone = _read(folder / BACKBONE)
        for convolution, layer in zip(model.convolutions, LAYERS):
            for part in ("weight", "bias"):
                _copy(backbone, f"features.{layer[0]}.{part}", getattr(convolution, part), folder / BACKBONE)
        linear = _read(folder / LINEAR)
        for k, weight in enumerate(model.linear):
            _copy(linear, f"lin{k}.model.1.weight", weight, folder / LINEAR)
    return model.to(device).eval().requires_grad_(False)


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise TalkheadError(f"{path} does not exist; LPIPS needs torchvision's {BACKBONE} and, from the lpips package's "
                            f"weights/v0.1, {LINEAR} in one folder")
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, ValueError, KeyError, pickle.UnpicklingError) as error:
        raise TalkheadError(f"{path} is not a file of PyTorch weights, or it is damaged: {str(error).splitlines()[0]}") from error
    if not isinstance(tensors, dict):
        raise TalkheadError(f"{path}: expected a dictionary of tensors, found {type(tensors).__name__}")
    return tensors


def _copy(tensors: dict[str, Tensor], name: str, into: Tensor, path: Path) -> None:
    found = tensors.get(name)
    if not isinstance(found, Tensor) or found.shape != into.shape:
        what = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else "none"
        raise TalkheadError(f"{path}: expected a tensor {name} of shape {tuple(into.shape)}, found {what}")
    into.copy_(found)
