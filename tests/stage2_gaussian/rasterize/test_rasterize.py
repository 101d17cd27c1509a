"""The CPU rasteriser against the slow reference, finite differences, and gsplat where there is a GPU."""

import numba
import numpy as np
import pytest
import torch
from torch import Tensor

from shared.camera import matrix_from_quaternion
from stage2_gaussian.rasterize import cpu, rasterize

SIZE = (53, 38)  # width, height: not whole tiles
CAMERA = (90.0, 84.0, 25.0, 20.5)
NAMES = ("means", "quats", "scales", "opacities", "colors")


def rasterize_reference(means: Tensor, quats: Tensor, scales: Tensor, opacities: Tensor, colors: Tensor,
                        intrinsics: tuple[float, float, float, float], width: int,
                        height: int) -> tuple[Tensor, Tensor]:
    """Splatting written for clarity: dense, pure torch, float64. Arguments and results as `rasterize`."""
    pairs = [_one(*image, intrinsics, width, height) for image in zip(means, quats, scales, opacities, colors)]
    return torch.stack([rgb for rgb, _ in pairs]), torch.stack([alpha for _, alpha in pairs])


def _one(means, quats, scales, opacities, colors, intrinsics, width, height):
    fx, fy, cx, cy = intrinsics
    order = torch.argsort(means[:, 2], stable=True)
    order = order[means[order, 2] >= 0.01]
    means, quats, scales, opacities, colors = (x[order] for x in (means, quats, scales, opacities, colors))
    x, y, z = means.unbind(-1)
    tx = (x / z).clamp(-cx / fx - 0.15 * width / fx, (width - cx) / fx + 0.15 * width / fx) * z
    ty = (y / z).clamp(-cy / fy - 0.15 * height / fy, (height - cy) / fy + 0.15 * height / fy) * z
    zero = torch.zeros_like(z)
    jacobian = torch.stack([fx / z, zero, -fx * tx / z**2, zero, fy / z, -fy * ty / z**2], -1).reshape(-1, 2, 3)
    axes = jacobian @ matrix_from_quaternion(quats) @ torch.diag_embed(scales)
    conic = torch.linalg.inv(axes @ axes.mT + 0.3 * torch.eye(2, dtype=means.dtype))
    centre = torch.stack([fx * x / z + cx, fy * y / z + cy], -1)
    rows, columns = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    offset = centre[:, None] - torch.stack([columns, rows], -1).reshape(1, -1, 2).to(means)
    sigma = 0.5 * torch.einsum("npi,nij,npj->np", offset, conic, offset)
    alpha = (opacities[:, None] * torch.exp(-sigma)).clamp_max(0.999)
    alpha = torch.where(alpha >= 1 / 255, alpha, torch.zeros_like(alpha))
    through = torch.cumprod(1 - alpha, 0)
    before = torch.cat([torch.ones_like(through[:1]), through[:-1]])
    weight = torch.where(through > 1e-4, alpha * before, torch.zeros_like(alpha))
    rgb = (weight.T @ colors).reshape(height, width, -1)
    return rgb, weight.sum(0).reshape(height, width, 1)


def scene(seed: int, count: int = 150, images: int = 2, channels: int = 3, opaque: bool = False) -> list[torch.Tensor]:
    """Random splats, some outside the image, some behind the camera, some nearly transparent."""
    g = torch.Generator().manual_seed(seed)
    means = torch.randn(images, count, 3, generator=g) * torch.tensor([0.3, 0.25, 0.2]) + torch.tensor([0, 0, 1.0])
    means[:, ::29, 2] -= 1.2
    quats = torch.randn(images, count, 4, generator=g)
    scales = torch.exp(torch.randn(images, count, 3, generator=g) * 0.8 - 4)
    opacities = torch.rand(images, count, generator=g) * 0.995
    if opaque:
        scales, opacities = scales * 6, opacities * 0 + 0.9995
    return [means, quats, scales, opacities, torch.rand(images, count, channels, generator=g)]


def gradients(function, inputs, weights):
    leaves = [x.clone().requires_grad_() for x in inputs]
    rgb, alpha = function(*leaves, CAMERA, *SIZE)
    ((rgb * weights[0].to(rgb)).sum() + (alpha * weights[1].to(rgb)).sum()).backward()
    return rgb.detach(), alpha.detach(), [x.grad for x in leaves]


def random_weights(channels: int = 3, images: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(9)
    return (torch.randn(images, SIZE[1], SIZE[0], channels, generator=g),
            torch.randn(images, SIZE[1], SIZE[0], 1, generator=g))


@pytest.mark.parametrize("channels,opaque", [(3, False), (3, True), (4, False), (7, False), (1, False)])
def test_image_and_gradients_equal_the_reference(channels, opaque):
    inputs = scene(channels, channels=channels, opaque=opaque)
    weights = random_weights(channels)
    rgb, alpha, grads = gradients(rasterize, inputs, weights)
    rgb_ref, alpha_ref, grads_ref = gradients(rasterize_reference, [x.double() for x in inputs], weights)
    assert rgb.shape == (2, SIZE[1], SIZE[0], channels) and alpha.shape == (2, SIZE[1], SIZE[0], 1)
    assert (rgb - rgb_ref).abs().max() < 1e-4
    assert (alpha - alpha_ref).abs().max() < 1e-4
    for name, ours, theirs in zip(NAMES, grads, grads_ref):
        assert (ours - theirs).norm() <= 2e-4 * theirs.norm() + 1e-6, name


def test_needles_and_tiny_splats_equal_the_reference():
    """Ellipses that are long and thin, and splats less than a pixel wide: the search for touched blocks misses no pixel."""
    inputs = scene(11, count=400)
    inputs[2] = inputs[2][..., :1] * torch.tensor([12, 0.1, 0.1])
    inputs[2][:, ::2] = 1e-4
    for image, reference in zip(rasterize(*inputs, CAMERA, *SIZE),
                                rasterize_reference(*[x.double() for x in inputs], CAMERA, *SIZE)):
        assert (image - reference).abs().max() < 1e-4


def test_splats_that_are_not_finite_are_left_out():
    inputs = scene(12)
    expected = rasterize(*[x[:, 10:] for x in inputs], CAMERA, *SIZE)
    for k in range(3):
        inputs[k][:, 3 * k : 3 * k + 3, -1] = torch.nan
    inputs[3][:, 9] = torch.nan
    for image, without in zip(rasterize(*inputs, CAMERA, *SIZE), expected):
        assert torch.equal(image, without)


def test_splats_are_sorted_by_depth_and_equal_ones_stay_in_order():
    g = torch.Generator().manual_seed(0)
    for depths in (0.7 + 0.2 * torch.rand(5000, generator=g), torch.rand(300, generator=g).round(decimals=1) * 1e4 + 0.02,
                   torch.full((7,), 0.8), torch.zeros(0)):
        keys = depths.numpy().view(np.uint32).copy()
        keys[::5] = 0  # not in view
        order = np.empty(len(keys), np.int32)
        seen = np.flatnonzero(keys)
        assert cpu._sort(keys, order) == len(seen)
        assert np.array_equal(order[: len(seen)], seen[np.argsort(depths.numpy()[seen], kind="stable")])


def test_an_image_changed_in_place_has_no_gradient():
    inputs = [x.requires_grad_() for x in scene(13)]
    rgb, _ = rasterize(*inputs, CAMERA, *SIZE)
    rgb.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        rgb.sum().backward()


def test_reference_gradients_equal_finite_differences():
    inputs = [x[:1, :12].double() for x in scene(3)]
    inputs[3] = inputs[3] * 0.5 + 0.3

    def total(*leaves):
        rgb, alpha = rasterize_reference(*leaves, CAMERA, 20, 16)
        return (rgb * torch.linspace(0, 1, 20, dtype=rgb.dtype)[:, None]).sum() + alpha.sum()

    leaves = [x.clone().requires_grad_() for x in inputs]
    total(*leaves).backward()
    g = torch.Generator().manual_seed(1)
    for k, name in enumerate(NAMES):
        direction = torch.randn(inputs[k].shape, generator=g, dtype=torch.float64)
        step = 1e-7
        moved = [[x + sign * step * direction if i == k else x for i, x in enumerate(inputs)] for sign in (1, -1)]
        slope = (total(*moved[0]) - total(*moved[1])) / (2 * step)
        assert slope == pytest.approx(float((leaves[k].grad * direction).sum()), rel=2e-3, abs=1e-3), name


def test_result_does_not_depend_on_the_number_of_threads():
    inputs, weights = scene(5), random_weights()
    many = gradients(rasterize, inputs, weights)
    before = numba.get_num_threads()
    numba.set_num_threads(1)
    try:
        one = gradients(rasterize, inputs, weights)
    finally:
        numba.set_num_threads(before)
    assert torch.equal(many[0], one[0]) and torch.equal(many[1], one[1])
    assert all(torch.equal(a, b) for a, b in zip(many[2], one[2]))


def test_images_of_a_batch_are_independent():
    inputs = scene(6)
    both, _ = rasterize(*inputs, CAMERA, *SIZE)
    second, _ = rasterize(*[x[1:] for x in inputs], CAMERA, *SIZE)
    assert torch.equal(both[1:], second)


def test_nothing_in_view_is_transparent_black():
    inputs = scene(7)
    inputs[0][..., 2] = -1
    rgb, alpha, grads = gradients(rasterize, inputs, random_weights())
    assert not rgb.any() and not alpha.any() and not any(g.any() for g in grads)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("opaque", [False, True])
def test_gsplat_agrees(opaque):
    inputs = scene(8, count=400, opaque=opaque)
    weights = random_weights()
    rgb, alpha, grads = gradients(rasterize, inputs, weights)
    rgb_gpu, alpha_gpu, grads_gpu = gradients(rasterize, [x.cuda() for x in inputs], weights)
    assert (rgb - rgb_gpu.cpu()).abs().max() < 1e-3
    assert (alpha - alpha_gpu.cpu()).abs().max() < 1e-3
    for name, ours, theirs in zip(NAMES, grads, grads_gpu):
        assert (ours - theirs.cpu()).norm() <= 2e-3 * theirs.norm().cpu() + 1e-6, name
