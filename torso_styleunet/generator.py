"""StyleUNet: encoder–decoder with skips at every level whose decoder is modulated by head pose and torso motion."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torso_styleunet.ops import SLOPE, DownConv, ModulatedConv, StyleNetwork, halve_noise, upsample2

FLOW_LEVEL = 2  # levels below the trunk at which the offset field is predicted: smooth, and cheap


class StyleUNet(nn.Module):
    """Predicts the residual and the offset field that turn the warped plate into this frame's torso.

    The input is folded by `stride` (pixel unshuffle) before the first convolution and the residual unfolded at the end, so
    that the trunk runs at 1/stride of the resolution without loss of pixels. Both outputs start at exactly zero: an untrained
    network does not change the plate.
    """

    def __init__(self, code_dim: int, channels: int, levels: int, max_channels: int, style_dim: int, stride: int) -> None:
        super().__init__()
        widths = [min(channels * 2**level, max_channels) for level in range(levels + 1)]
        self.stride, self.levels = stride, levels
        self.style = StyleNetwork(code_dim, style_dim)
        self.stem = nn.Conv2d(8 * stride**2, widths[0], 3, padding=1)
        self.down = nn.ModuleList([DownConv(a, b) for a, b in zip(widths, widths[1:])])
        self.middle = ModulatedConv(widths[-1], widths[-1], style_dim)
        self.up = nn.ModuleList(
            [ModulatedConv(widths[level] + widths[level + 1], widths[level], style_dim) for level in range(levels)]
        )
        self.residual = nn.Conv2d(widths[0], 4 * stride**2, 3, padding=1)
        self.flow = nn.Conv2d(widths[min(FLOW_LEVEL, levels)], 2, 3, padding=1)
        for parameter in (*self.residual.parameters(), *self.flow.parameters()):
            nn.init.zeros_(parameter)

    @property
    def multiple(self) -> int:
        """Heights and widths are padded to a multiple of this inside `forward`."""
        return self.stride * 2**self.levels

    def forward(self, head: Tensor, plate: Tensor, noise: Tensor, code: Tensor) -> tuple[Tensor, Tensor]:
        """head and plate (B, 4, H, W) premultiplied RGBA, noise (B, 1, H, W), code (B, N) normalised motion
        -> residual (B, 4, H, W) to add to the plate's straight colour and alpha logit, and flow (B, 2, H, W), the
        offset (x, y) in units of the largest allowed one, within ±1."""
        height, width = head.shape[-2:]
        pad = (0, -width % self.multiple, 0, -height % self.multiple)
        x = F.pad(torch.cat([head, plate, noise], 1), pad, mode="replicate")
        noises = [F.avg_pool2d(x[:, 8:], self.stride) * self.stride]
        for _ in range(self.levels):
            noises.append(halve_noise(noises[-1]))

        style = self.style(code)
        x = F.pixel_unshuffle(x[:, :8], self.stride).contiguous(memory_format=torch.channels_last)
        x = F.leaky_relu(self.stem(x), SLOPE)
        skips = [x]
        for layer in self.down:
            skips.append(layer(skips[-1]))
        x = self.middle(skips[-1], style, noises[-1])
        flow = self.flow(x) if self.levels <= FLOW_LEVEL else None
        for level in reversed(range(self.levels)):
            x = self.up[level](torch.cat([skips[level], upsample2(x)], 1), style, noises[level])
            if level == FLOW_LEVEL:
                flow = self.flow(x)
        assert flow is not None
        residual = F.pixel_shuffle(self.residual(x), self.stride)
        flow = F.interpolate(torch.tanh(flow.float()), size=residual.shape[-2:], mode="bilinear", align_corners=False)
        return residual[..., :height, :width].float(), flow[..., :height, :width]
