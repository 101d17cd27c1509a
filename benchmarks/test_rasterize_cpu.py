"""Speed of the CPU rasteriser on splats as numerous, large and deep as those of trained heads, one frame at a time.

Targets on two cores: forward 15 ms at 256² and 35 ms at 512², a quarter of what a picture may take at 25 and 8 a second
shared with deformation and torso; with gradients 40 ms and 90 ms.
"""

import pytest
import torch

from stage2_gaussian.rasterize import rasterize


def head(count: int, low: float, high: float) -> list[torch.Tensor]:
    """Splats of `low` to `high` metres on a head-sized ellipsoid 0.8 m away that covers a quarter of the image."""
    g = torch.Generator().manual_seed(0)
    shell = torch.nn.functional.normalize(torch.randn(1, count, 3, generator=g), dim=-1)
    means = shell * torch.tensor([0.08, 0.11, 0.09]) + torch.tensor([0, 0, 0.8])
    quats = torch.randn(1, count, 4, generator=g)
    scales = low * (high / low) ** torch.rand(1, count, 3, generator=g)
    opacities = 0.2 + 0.8 * torch.rand(1, count, generator=g)
    colors = torch.rand(1, count, 3, generator=g)
    return [x.requires_grad_() for x in (means, quats, scales, opacities, colors)]


@pytest.fixture(params=[(10000, 256), (35000, 256), (35000, 512)], ids=["10k_256px", "35k_256px", "35k_512px"])
def scene(request) -> tuple:
    """Arguments of `rasterize`: what the demo trains, and what is trained at 512², shown at half and at full size."""
    count, size = request.param
    low, high = (0.001, 0.004) if count == 10000 else (0.0004, 0.004)
    return (*head(count, low, high), (2.2 * size, 2.2 * size, size / 2, size / 2), size, size)


def test_forward(benchmark, scene):
    with torch.no_grad():
        benchmark(rasterize, *scene)


def test_forward_and_backward(benchmark, scene):
    def step():
        rgb, alpha = rasterize(*scene)
        (rgb.sum() + alpha.sum()).backward()

    benchmark(step)
