"""Gaze in the head: nothing at the usual gaze, clamped beyond the training range, kept by files, and the irises follow it."""

import dataclasses

import numpy as np
import pytest
import torch

from shared.camera import project
from shared.errors import TalkheadError
from shared.landmarks import EYE_LEFT, EYE_RIGHT, LIPS
from stage2_gaussian.blendshapes import LOOK
from stage2_gaussian.checkpoint import load_head, save_head
from stage2_gaussian.config import Stage2Config
from stage2_gaussian.head import Head
from stage2_gaussian.initialization import make_canonical
from stage2_gaussian.render import render_head, render_sequence
from stage2_gaussian.train import new_head, train

CPU = torch.device("cpu")
CAMERA, SIZE = (200.0, 200.0, 48.0, 48.0), 96
POSE = torch.tensor([[1.0, 0, 0, 0], [0, -1, 0, 0], [0, 0, -1, 0.8], [0, 0, 0, 1]])
USUAL, RANGE = torch.tensor([0.02, -0.1]), torch.tensor([[-0.1, -0.15], [0.15, -0.05]])


@pytest.fixture
def head(face) -> Head:
    """60 splats around the eyes, 40 of them with blendshapes, 20 with a gaze."""
    rng = np.random.default_rng(0)
    means = torch.from_numpy(face[rng.choice([*EYE_RIGHT, *EYE_LEFT], 60)] + rng.normal(0, 0.003, (60, 3))).float()
    made = Head(torch.from_numpy(face), means, torch.full((60,), 0.004), torch.from_numpy(rng.random((60, 3))).float(),
                moving=40, rank=8, hidden=8, pose_rank=2, eyes=20)
    assert made.blend.gaze is not None
    made.blend.set_range(torch.tensor([[-0.01], [0.01]])[..., None].expand(2, 68, 3))
    made.blend.gaze.set_range(torch.cat([USUAL.expand(999, 2), RANGE]))
    made.blend.gaze.low.copy_(RANGE[0])
    made.blend.gaze.high.copy_(RANGE[1])
    for parameter in (made.blend.basis, made.blend.gaze.basis, made.blend.gaze.heard):
        parameter.data = torch.from_numpy(rng.normal(0, 1, parameter.shape)).float()
    return made.eval().requires_grad_(False)


def gaussians(head: Head, gaze: torch.Tensor | None, landmarks: torch.Tensor | None = None) -> torch.Tensor:
    shapes = head.code.centres[None] if landmarks is None else landmarks
    return torch.cat(head(shapes, POSE[None], gaze=gaze)[:1], -1)[0]


def test_at_the_usual_gaze_and_without_one_nothing_changes(head, face):
    assert torch.allclose(head.blend.gaze.usual, USUAL)
    landmarks = torch.from_numpy(face)[None] + 0.002 * torch.randn(1, 68, 3, generator=torch.Generator().manual_seed(0))
    plain = gaussians(head, None, landmarks)
    for gaze in (USUAL[None], torch.full((1, 2), torch.nan)):
        assert torch.allclose(gaussians(head, gaze, landmarks), plain, atol=1e-7)
    moved = gaussians(head, USUAL[None] + LOOK, landmarks) - plain
    assert (moved[:20].norm(dim=1) > 1e-4).all(), "its own coefficients move the eyes' splats"
    assert (moved[20:40].norm(dim=1) > 1e-6).any(), "the networks of the eyes hear it"
    assert torch.equal(moved[40:], torch.zeros(20, 3))


def test_gaze_is_clamped_to_its_range_as_landmarks_are(head):
    far = torch.tensor([[3.0, -0.1]])
    assert torch.equal(gaussians(head, far), gaussians(head, torch.tensor([[0.15, -0.1]])))
    assert not torch.equal(gaussians(head, far), gaussians(head, torch.tensor([[0.14, -0.1]])))


def test_the_gaze_alone_is_linear_and_gradients_reach_all_of_it(head):
    head.blend.gaze.heard.zero_()
    rest, half, whole = (gaussians(head, USUAL[None] + step * LOOK) for step in (0, 0.5, 1))
    assert torch.allclose(half - rest, (whole - rest) / 2, atol=1e-6)
    expected = head.blend.gaze.basis.sum(0)[:, :3] * 0.002 * torch.tensor([1, -1, -1])
    assert torch.allclose((whole - rest)[:20], expected, atol=1e-6)
    head.requires_grad_(True)
    gaussians(head, USUAL[None] + LOOK).square().sum().backward()
    assert head.blend.gaze.basis.grad[:, :, :3].abs().min() > 0 and head.blend.gaze.heard.grad.abs().max() > 0


def test_a_head_file_keeps_the_gaze_and_one_without_is_read(head, tmp_path):
    save_head(tmp_path / "head", head, {})
    again = load_head(tmp_path / "head", CPU)
    landmarks, poses = head.code.centres.expand(3, -1, -1), POSE.expand(3, 4, 4)
    gaze = torch.stack([USUAL, USUAL + LOOK, USUAL - LOOK])
    shown = [render_head(h, landmarks, poses, CAMERA, SIZE, SIZE, gaze=gaze) for h in (head, again)]
    assert float((shown[0] - shown[1]).abs().max()) < 0.03 and float((shown[1][0] - shown[1][1]).abs().max()) > 0.1
    parts = render_sequence(again, landmarks, poses, CAMERA, SIZE, SIZE, batch=2, gaze=gaze)
    assert torch.allclose(torch.cat(list(parts)), shown[1], atol=1e-5)
    head.blend.gaze = None
    save_head(tmp_path / "plain", head, {})
    plain = load_head(tmp_path / "plain", CPU)
    assert plain.blend.gaze is None
    pair = [render_head(plain, landmarks, poses, CAMERA, SIZE, SIZE, gaze=looks) for looks in (gaze, None)]
    assert torch.equal(*pair)


def test_more_eyes_than_moving_splats_are_refused(head, tmp_path):
    head.blend.gaze.basis = torch.nn.Parameter(torch.zeros(2, 41, 13))
    save_head(tmp_path / "head", head, {})
    with pytest.raises(TalkheadError, match="head is damaged: 60 splats, 40 that move by 8 coefficients, 41 with the gaze and 68 "
                                            "landmarks do not go together"):
        load_head(tmp_path / "head", CPU)


def test_chosen_splats_keep_their_gaze(head):
    gaze = USUAL[None] + LOOK
    before = gaussians(head, gaze)
    rows = torch.tensor([0, 3, 3, 19, 20, 45])
    head.select(rows)
    assert head.blend.gaze.basis.shape[1] == 4 and torch.allclose(gaussians(head, gaze), before[rows], atol=1e-7)


def test_the_splats_of_both_eyes_come_first_and_have_blendshapes(cartoon, face):
    made = make_canonical(cartoon, cartoon.split("train"), 1500, np.random.default_rng(0))
    opening = face[[*EYE_RIGHT, *EYE_LEFT], :2]
    distance = np.linalg.norm(made.means[:, None, :2] - opening, axis=2).min(1)
    assert 20 < made.eyes < 200 and distance[: made.eyes].max() < 0.008 and (distance[made.eyes :] > 0.0025).all()
    for eye in (EYE_RIGHT, EYE_LEFT):
        middle = face[eye, :2].mean(0)
        assert (np.linalg.norm(made.means[: made.eyes, :2] - middle, axis=1) < 0.02).sum() > 8
    rest = made.means[made.eyes : made.eyes + 200, :2]
    assert np.median(np.linalg.norm(rest[:, None] - face[LIPS, :2], axis=2).min(1)) < 0.02, "then those that move most"


def test_gaze_is_learned_only_where_the_clip_has_one_and_the_setting_wants_it(cartoon, looking_cartoon):
    config = Stage2Config(splats=300, moving=100, rank=6, hidden=8)
    frames = cartoon.split("train")
    assert new_head(cartoon, frames, config).blend.gaze is None
    assert new_head(looking_cartoon, frames, dataclasses.replace(config, gaze=False)).blend.gaze is None
    gaze = new_head(looking_cartoon, frames, config).blend.gaze
    true = looking_cartoon.load_gaze()[frames]
    np.testing.assert_allclose(gaze.usual, np.median(true, 0), atol=1e-6)
    assert (gaze.low.numpy() >= true.min(0)).all() and (gaze.high.numpy() <= true.max(0)).all()


@pytest.mark.slow
def test_resumed_equals_uninterrupted(looking_cartoon, tmp_path, killed_at):
    config = Stage2Config(splats=300, steps=8, rank=6, hidden=8, fits=0, save_seconds=0.0)
    train(looking_cartoon, tmp_path / "whole", config=config, device=CPU, state_dir=tmp_path / "a", quiet=True)
    with killed_at(5):
        train(looking_cartoon, tmp_path / "halves", config=config, device=CPU, state_dir=tmp_path / "b", quiet=True)
    train(looking_cartoon, tmp_path / "halves", config=config, device=CPU, state_dir=tmp_path / "b", quiet=True)
    assert (tmp_path / "whole").read_bytes() == (tmp_path / "halves").read_bytes()


@pytest.mark.slow
def test_irises_follow_the_gaze(looking_cartoon, tmp_path):
    config = Stage2Config(splats=1500, steps=150, rank=8, hidden=16, fits=0)
    train(looking_cartoon, tmp_path / "head", config=config, device=CPU, state_dir=tmp_path / "state", quiet=True)
    head, info = load_head(tmp_path / "head", CPU), looking_cartoon.info
    poses, landmarks = torch.from_numpy(looking_cartoon.load_poses()[:1]), torch.from_numpy(looking_cartoon.load_landmarks()[:1])
    pixels = project(landmarks[0].numpy(), poses[0].numpy(), info.intrinsics)
    found = []
    for step in (-0.12, 0.12):
        gaze = head.blend.gaze.usual[None] + torch.tensor([[step, 0.0]])
        rgba = render_head(head, landmarks, poses, info.intrinsics, info.width, info.height, gaze=gaze)[0].numpy()
        darkest = []
        for eye in (EYE_RIGHT, EYE_LEFT):
            (left, top), (right, bottom) = np.floor(pixels[eye].min(0)).astype(int), np.ceil(pixels[eye].max(0)).astype(int)
            darkness = np.clip(0.7 - rgba[top : bottom + 1, left : right + 1, 0], 0, 1).sum(0)
            darkest.append((darkness * np.arange(len(darkness))).sum() / darkness.sum())
        found.append(np.array(darkest))
    assert (found[1] - found[0] > 0.8).all(), "of 1.9 pixels that the irises are to move"
