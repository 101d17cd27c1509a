import pytest
import torch
import torch.nn.functional as F

from torso_styleunet.discriminator import PatchDiscriminator
from torso_styleunet.generator import StyleUNet
from torso_styleunet.losses import discriminator_adversarial, generator_adversarial, r1_penalty
from torso_styleunet.ops import halve_noise, modulated_conv2d


@pytest.mark.parametrize("demodulate", [True, False])
def test_modulated_conv_equals_one_kernel_per_sample(demodulate: bool) -> None:
    rng = torch.Generator().manual_seed(0)
    x, weight = torch.randn(3, 5, 9, 8, generator=rng), torch.randn(4, 5, 3, 3, generator=rng)
    style = torch.randn(3, 5, generator=rng)
    slow = []
    for picture, scale in zip(x, style):
        kernel = weight * scale[None, :, None, None]
        if demodulate:
            kernel = kernel / (kernel.square().sum((1, 2, 3), keepdim=True) + 1e-8).sqrt()
        slow.append(F.conv2d(picture[None], kernel, padding=1))
    torch.testing.assert_close(modulated_conv2d(x, weight, style, demodulate), torch.cat(slow), rtol=1e-4, atol=1e-5)


def test_demodulated_output_keeps_unit_variance_for_any_style_scale() -> None:
    rng = torch.Generator().manual_seed(0)
    x, weight = torch.randn(2, 32, 24, 24, generator=rng), torch.randn(8, 32, 3, 3, generator=rng)
    small = modulated_conv2d(x, weight, torch.full((2, 32), 0.01))
    large = modulated_conv2d(x, weight, torch.full((2, 32), 100.0))
    torch.testing.assert_close(small, large, rtol=1e-2, atol=1e-2)
    assert abs(large[..., 2:-2, 2:-2].std().item() - 1) < 0.1


def test_halved_noise_keeps_its_variance() -> None:
    noise = torch.randn(1, 1, 128, 128, generator=torch.Generator().manual_seed(1))
    assert abs(halve_noise(noise).std().item() - 1) < 0.05


@pytest.mark.parametrize(("levels", "stride", "size"), [(1, 1, (16, 16)), (3, 2, (37, 50)), (4, 4, (64, 64))])
def test_untrained_network_leaves_the_plate_alone(levels: int, stride: int, size: tuple[int, int]) -> None:
    network = StyleUNet(10, 4, levels, 16, 8, stride)
    residual, flow = network(torch.rand(2, 4, *size), torch.rand(2, 4, *size), torch.randn(2, 1, *size),
                             torch.randn(2, 10))
    assert residual.shape == (2, 4, *size) and flow.shape == (2, 2, *size)
    assert residual.abs().max() == 0 and flow.abs().max() == 0


def test_style_reaches_both_outputs_and_every_parameter_gets_a_gradient() -> None:
    torch.manual_seed(0)
    network = StyleUNet(10, 4, 3, 16, 8, 2)
    for layer in (network.residual, network.flow):
        torch.nn.init.normal_(layer.weight)
    pictures = torch.rand(1, 4, 32, 32), torch.rand(1, 4, 32, 32), torch.randn(1, 1, 32, 32)
    one, other = (network(*pictures, torch.full((1, 10), value)) for value in (-1.0, 1.0))
    assert all((a - b).abs().max() > 1e-3 for a, b in zip(one, other))
    (one[0].sum() + one[1].sum()).backward()
    silent = [name for name, value in network.named_parameters() if value.grad is None or not value.grad.any()]
    assert not silent


def test_discriminator_learns_to_tell_and_r1_is_the_gradient_norm() -> None:
    torch.manual_seed(0)
    discriminator = PatchDiscriminator(4)
    optimizer = torch.optim.Adam(discriminator.parameters(), 2e-3)
    stripes = (torch.arange(32) % 2).float().expand(4, 3, 32, 32)
    grey = torch.full((4, 3, 32, 32), 0.5)
    for _ in range(15):
        real = stripes.clone().requires_grad_()
        logits = discriminator(real)
        loss = discriminator_adversarial(logits, discriminator(grey)) + 0.1 * r1_penalty(real, logits)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert discriminator(stripes).mean() > discriminator(grey).mean() + 1
    assert generator_adversarial(discriminator(stripes)) < generator_adversarial(discriminator(grey))

    real = stripes.clone().requires_grad_()
    (slow,) = torch.autograd.grad(discriminator(real).sum(), real)
    expected = sum(float((g**2).sum()) for g in slow) / len(slow) / 2
    assert r1_penalty(real, discriminator(real)).item() == pytest.approx(expected, rel=1e-4)
