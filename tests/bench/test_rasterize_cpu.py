"""Speed of the CPU rasteriser: 10,000 Gaussians at 256², targets 40 ms forward and 160 ms with gradients on two cores."""

import pytest
import torch

from stage2_gaussian.rasterize import rasterize

SIZE = 256
CAMERA = (2.6 * SIZE, 2.6 * SIZE, SIZE / 2, SIZE / 2)


@pytest.fixture
def head() -> list[torch.Tensor]:
    """10,000 splats of 1 to 4 mm on a head-sized ellipsoid 0.8 m away: about a third of the image, four pixels across."""
    g = torch.Generator().manual_seed(0)
    shell = torch.nn.functional.normalize(torch.randn(1, 10000, 3, generator=g), dim=-1)
    means = shell * torch.tensor([0.08, 0.11, 0.09]) + torch.tensor([0, 0, 0.8])
    quats = torch.randn(1, 10000, 4, generator=g)
    scales = 0.001 + 0.003 * torch.rand(1, 10000, 3, generator=g)
    opacities = 0.2 + 0.8 * torch.rand(1, 10000, generator=g)
    colors = torch.rand(1, 10000, 3, generator=g)
    return [x.requires_grad_() for x in (means, quats, scales, opacities, colors)]


def test_forward(benchmark, head):
    with torch.no_grad():
        benchmark(rasterize, *head, CAMERA, SIZE, SIZE)


def test_forward_and_backward(benchmark, head):
    def step():
        rgb, alpha = rasterize(*head, CAMERA, SIZE, SIZE)
        (rgb.sum() + alpha.sum()).backward()

    benchmark(step)
