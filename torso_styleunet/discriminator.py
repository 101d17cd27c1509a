"""A light patch discriminator for the optional adversarial term."""

import torch.nn.functional as F
from torch import Tensor, nn

from torso_styleunet.ops import SLOPE


class PatchDiscriminator(nn.Module):
    """Pictures (B, 3, H, W) -> logits (B, 1, H/8, W/8), each classifying a patch of 54 pixels as real or composited.

    No normalisation layers, which would couple the pictures of a batch in the gradient penalty R1.
    """

    def __init__(self, channels: int = 32) -> None:
        super().__init__()
        widths = [3, channels, 2 * channels, 4 * channels]
        self.convs = nn.ModuleList([nn.Conv2d(a, b, 4, stride=2, padding=1) for a, b in zip(widths, widths[1:])])
        self.mix = nn.Conv2d(widths[-1], widths[-1], 3, padding=1)
        self.logits = nn.Conv2d(widths[-1], 1, 3, padding=1)

    def forward(self, pictures: Tensor) -> Tensor:
        x = 2 * pictures - 1
        for conv in self.convs:
            x = F.leaky_relu(conv(x), SLOPE)
        return self.logits(F.leaky_relu(self.mix(x), SLOPE))
