"""Building blocks of the StyleUNet: modulated convolution, the style network, resampling without blur kernels."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SLOPE = 0.2  # of the leaky ReLU, as in StyleGAN2


def modulated_conv2d(x: Tensor, weight: Tensor, style: Tensor, demodulate: bool = True) -> Tensor:
    """Convolution whose input channels are scaled by a style (Karras et al., StyleGAN2, CVPR 2020, eq. 1–3).

    x (B, I, H, W), weight (O, I, k, k) with odd k, style (B, I) -> (B, O, H, W), same size by zero padding.
    Scaling a kernel's input channels equals scaling the input, and demodulation, w / sqrt(sum w² + eps) over input
    channels and taps, equals scaling the output: one shared convolution serves the whole batch.
    """
    y = F.conv2d(x * style[:, :, None, None].to(x.dtype), weight.to(x.dtype), padding=weight.shape[-1] // 2)
    if demodulate:
        energy = style.square() @ weight.square().sum((2, 3)).t()
        y = y * torch.rsqrt(energy + 1e-8)[:, :, None, None].to(y.dtype)
    return y


class ModulatedConv(nn.Module):
    """Modulated 3×3 (or k×k) convolution + fixed noise with a learned gain + bias + leaky ReLU.

    forward: x (B, I, H, W), style (B, S), noise (B, 1, H, W) -> (B, O, H, W). The gain starts at zero.
    """

    def __init__(self, inputs: int, outputs: int, style_dim: int, kernel: int = 3) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs, kernel, kernel))
        nn.init.kaiming_normal_(self.weight, a=SLOPE)
        self.affine = nn.Linear(style_dim, inputs)
        nn.init.normal_(self.affine.weight, std=0.05)
        nn.init.ones_(self.affine.bias)
        self.noise_gain = nn.Parameter(torch.zeros(()))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor, style: Tensor, noise: Tensor) -> Tensor:
        y = modulated_conv2d(x, self.weight, self.affine(style))
        y = y + (self.noise_gain * noise).to(y.dtype) + self.bias[:, None, None].to(y.dtype)
        return F.leaky_relu(y, SLOPE)


class StyleNetwork(nn.Module):
    """Motion code (B, N), normalised to about unit range -> style (B, S), by a three-layer perceptron."""

    def __init__(self, inputs: int, style_dim: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            [nn.Linear(inputs, style_dim), nn.Linear(style_dim, style_dim), nn.Linear(style_dim, style_dim)]
        )

    def forward(self, code: Tensor) -> Tensor:
        for layer in self.layers:
            code = F.leaky_relu(layer(code), SLOPE)
        return code


class DownConv(nn.Module):
    """3×3 convolution with stride 2 + leaky ReLU: (B, I, H, W) -> (B, O, H/2, W/2)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(self.conv(x), SLOPE)


def upsample2(x: Tensor) -> Tensor:
    """Bilinear doubling of (B, C, H, W)."""
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


def halve_noise(noise: Tensor) -> Tensor:
    """(B, 1, H, W) white noise -> (B, 1, H/2, W/2) of the same variance: the mean of four, doubled."""
    return 2 * F.avg_pool2d(noise, 2)
