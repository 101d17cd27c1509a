"""The loss of how much detail the mouth shows."""

import numpy as np
import pytest
import torch
from scipy.ndimage import uniform_filter

from stage2_gaussian.config import Stage2Config
from stage2_gaussian.losses import DETAIL, LEAST_DETAIL, NAMES, PictureLoss, local_detail


@pytest.fixture
def pictures() -> torch.Tensor:
    return torch.rand(2, 30, 40, 3, generator=torch.Generator().manual_seed(0))


def test_local_detail_equals_its_definition(pictures):
    found = local_detail(pictures).numpy()
    grey = pictures.double().mean(-1).numpy()
    near, far, window = DETAIL
    for picture, plane in zip(grey, found):
        band = uniform_filter(picture, near) - uniform_filter(picture, far)
        expected = np.sqrt(uniform_filter(band**2, window) + LEAST_DETAIL**2)
        inner = np.s_[far:-far, far:-far]
        np.testing.assert_allclose(plane[inner], expected[inner], atol=1e-6)


def test_the_mean_of_two_pictures_has_too_little_detail_and_one_of_them_has_not(pictures):
    height, width = pictures.shape[1:3]
    config = Stage2Config(detail_weight=1.0)
    opaque = torch.ones(1, height, width, 1)
    grey = torch.zeros(1, height, width, dtype=torch.uint8)
    boxes = torch.tensor([[[8.0, 8, 32, 22]] * 3])

    def term(shown, true, settings=config):
        frames = (true * 255).round().byte()
        losses = PictureLoss(settings)(shown, opaque, frames, torch.zeros_like(frames), grey, grey, boxes)
        return float(losses[NAMES.index("detail")])

    a, b = pictures[:1], pictures[1:]
    assert term(a, a) < 1e-3
    assert term((a + b) / 2, a) > 1.5 * term(b, a) > 0
    outside = a.clone()
    outside[:, :, 39:] = 0.5  # further from the box than any filter reaches
    assert term(outside, a) == pytest.approx(term(a, a), abs=1e-6)
    assert term((a + b) / 2, a, Stage2Config()) == 0
