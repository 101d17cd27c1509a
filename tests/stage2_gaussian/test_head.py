"""Landmark windows, the low-rank blend, and the head made of them."""

import numpy as np
import pytest
import torch

from shared.camera import matrix_from_quaternion
from stage2_gaussian.head import Head
from stage2_gaussian.pose_refinement import apply_refinement
from stage2_gaussian.render import render_head, render_sequence
from stage2_gaussian.skinning import FLOOR, Skinning

CAMERA, SIZE = (160.0, 160.0, 32.0, 32.0), 64
POSE = torch.tensor([[1.0, 0, 0, 0], [0, -1, 0, 0.02], [0, 0, -1, 0.8], [0, 0, 0, 1]])


@pytest.fixture
def head(face) -> Head:
    """300 splats around the neutral face, 120 of them with a random basis."""
    g = torch.Generator().manual_seed(0)
    neutral = torch.from_numpy(face)
    means = neutral[torch.randint(68, (300,), generator=g)] + 0.004 * torch.randn(300, 3, generator=g)
    made = Head(neutral, means, torch.full((300,), 0.004), torch.rand(300, 3, generator=g), moving=120,
                rank=6, hidden=16, pose_rank=2)
    with torch.no_grad():
        made.log_scales.add_(0.3 * torch.randn(300, 3, generator=g))
        made.code.log_scales.add_(0.3 * torch.randn(68, 3, generator=g))
        made.blend.basis.copy_(torch.randn(made.blend.basis.shape, generator=g))
        made.shading.basis.copy_(0.1 * torch.randn(made.shading.basis.shape, generator=g))
        for parameter in made.blend.networks.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=g))
    return made


def test_window_weights_equal_their_definition(face):
    g = torch.Generator().manual_seed(1)
    skinning = Skinning(torch.from_numpy(face)).double()
    with torch.no_grad():
        skinning.rotations.copy_(torch.randn(68, 4, generator=g))
        skinning.log_scales.add_(0.3 * torch.randn(68, 3, generator=g))
    means = skinning.centres[:40] + 0.01 * torch.randn(40, 3, generator=g, dtype=torch.float64)
    axes = matrix_from_quaternion(skinning.rotations)
    offset = means[:, None] - skinning.centres
    scaled = torch.einsum("kji,nkj->nki", axes, offset) / torch.exp(skinning.log_scales)
    raw = torch.exp(-0.5 * (scaled**2).sum(-1))
    expected = raw / (raw.sum(1, keepdim=True) + FLOOR)
    assert torch.allclose(skinning.weights(means), expected, atol=1e-9)
    single = skinning.float().weights(means.float())
    assert torch.allclose(single.double(), expected, atol=1e-3)


def test_windows_vanish_away_from_the_face(face):
    skinning = Skinning(torch.from_numpy(face))
    assert skinning.weights(torch.tensor([[0.0, 0.15, -0.05]])).sum() < 1e-3
    assert skinning.weights(skinning.centres).sum(1).min() > 0.75


def test_gradients_reach_every_parameter(head):
    landmarks = head.code.centres[None] + 0.003
    pose = apply_refinement(POSE[None], torch.tensor([[0.1, -0.2, 0.05, 0.1, 0.2, 0.3]]))
    rgba = render_head(head, landmarks, pose, CAMERA, SIZE, SIZE)
    (rgba * torch.linspace(0, 1, SIZE)[:, None]).sum().backward()
    silent = [name for name, p in head.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert silent == []


def test_neutral_landmarks_leave_the_splats_in_place(head):
    splats = head(head.code.centres[None], torch.eye(4)[None])
    assert torch.allclose(splats.means[0], head.positions, atol=1e-6)
    assert torch.allclose(splats.scales[0], torch.exp(head.log_scales))


def test_the_head_moves_rigidly_with_its_pose(head):
    landmarks = head.code.centres[None] + 0.002
    turn = apply_refinement(POSE[None], torch.tensor([[0.1, -0.2, 0.05, 0.1, 0.2, 0.3]]))
    still, moved = head(landmarks, POSE[None]), head(landmarks, turn)
    relative = turn @ torch.linalg.inv(POSE[None])
    expected = still.means @ relative[:, :3, :3].mT + relative[:, None, :3, 3]
    assert torch.allclose(moved.means, expected, atol=1e-5)
    rotations = matrix_from_quaternion(moved.quats), relative[:, None, :3, :3] @ matrix_from_quaternion(still.quats)
    assert torch.allclose(*rotations, atol=1e-4)


def test_frames_are_independent_of_their_batch(head):
    g = torch.Generator().manual_seed(2)
    head.requires_grad_(False)
    landmarks = head.code.centres + 0.002 * torch.randn(5, 68, 3, generator=g)
    poses = apply_refinement(POSE.expand(5, 4, 4), 0.02 * torch.randn(5, 6, generator=g))
    whole = render_head(head, landmarks, poses, CAMERA, SIZE, SIZE)
    parts = torch.cat(list(render_sequence(head, landmarks, poses, CAMERA, SIZE, SIZE, batch=2)))
    assert whole.shape == (5, SIZE, SIZE, 4) and torch.allclose(whole, parts, atol=1e-5)
    assert float(whole[..., 3].max()) <= 1 and float((whole[..., :3] - 1.5 * whole[..., 3:]).max()) < 1


def test_landmarks_far_outside_the_training_range_stay_finite(head):
    landmarks = head.code.centres[None] + 0.05 * torch.from_numpy(np.random.default_rng(0).normal(size=(1, 68, 3))).float()
    assert torch.isfinite(render_head(head, landmarks, POSE[None], CAMERA, SIZE, SIZE)).all()
