"""Compositing against its definition, pixel by pixel, in both layouts."""

import torch

from shared.image import over, premultiply, straight

G = torch.Generator().manual_seed(0)
RGBA, BACKDROP = torch.rand(2, 3, 5, 4, generator=G), torch.rand(2, 3, 5, 3, generator=G)


def test_straight_undoes_premultiply():
    torch.testing.assert_close(straight(premultiply(RGBA)), RGBA)
    assert torch.equal(straight(torch.zeros(1, 1, 4)), torch.zeros(1, 1, 4))  # where nothing is seen


def test_a_layer_hides_its_share_of_the_backdrop():
    shown = over(premultiply(RGBA), BACKDROP)
    for channel in range(3):
        expected = RGBA[..., channel] * RGBA[..., 3] + BACKDROP[..., channel] * (1 - RGBA[..., 3])
        torch.testing.assert_close(shown[..., channel], expected)


def test_channels_may_come_first():
    first, plate = RGBA.movedim(-1, 1), BACKDROP.movedim(-1, 1)
    assert torch.equal(over(premultiply(first, 1), plate, 1).movedim(1, -1), over(premultiply(RGBA), BACKDROP))
    assert torch.equal(straight(first, 1).movedim(1, -1), straight(RGBA))
