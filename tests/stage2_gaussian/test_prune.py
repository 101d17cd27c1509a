"""Gaussians that contribute to no picture: found as a slow count finds them, removed without changing the picture."""

import numpy as np
import torch

from stage2_gaussian.config import Stage2Config, resolve
from stage2_gaussian.dataset import HeadDataset
from stage2_gaussian.prune import contribution, prune
from stage2_gaussian.render import render_head
from stage2_gaussian.train import new_head

CPU = torch.device("cpu")


def trained_enough(cartoon):
    """A head with a hundred splats hidden behind the face, and its data."""
    head = new_head(cartoon, cartoon.split("train"), resolve(Stage2Config(splats=600, rank=6, hidden=16), CPU, 96, 96))
    with torch.no_grad():
        head.positions[500:, 2] -= 0.2
        head.positions[500:, :2] *= 0.3
        head.opacities[:500] = 6.0
        head.log_scales[:500] += 0.7  # no gaps
    return head, HeadDataset(cartoon, cartoon.split("train"), CPU)


def test_coverage_is_what_the_picture_loses(cartoon):
    head, data = trained_enough(cartoon)
    found = contribution(head, data, np.array([4]))

    def white(opacities):
        kept = head.opacities.data.clone()
        with torch.no_grad():
            head.opacities.copy_(opacities)
            head.colors.fill_(1.0)
            head.shading.basis.zero_()
            alpha = render_head(head, data.landmarks[4:5], data.poses[4:5], data.intrinsics, data.width, data.height)[..., 3]
            head.opacities.copy_(kept)
        return float(alpha.sum())

    whole = white(head.opacities.data)
    front = int(found.argmax())
    without = head.opacities.data.clone()
    without[front] = -20
    assert whole - white(without) <= float(found[front]) + 1e-3  # what lies behind shines through
    assert abs(float(found.sum()) - whole) < 1e-2 * whole  # weights of all splats make up alpha


def test_hidden_splats_go_and_the_picture_stays(cartoon):
    head, data = trained_enough(cartoon)
    view = data.landmarks[:3], data.poses[:3], data.intrinsics, data.width, data.height
    with torch.no_grad():
        before = render_head(head, *view)
    gone = prune(head, data, np.random.default_rng(0))
    with torch.no_grad():
        after = render_head(head, *view)
    assert 60 < gone < 300 and len(head.positions) == 600 - gone
    assert head.blend.basis.shape[1] <= head.shading.basis.shape[1] == 600 - gone
    assert float((before - after).abs().max()) < 0.05 and float((before - after).abs().mean()) < 2e-4
