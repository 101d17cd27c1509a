"""Hair between head and shoulders: the shoulders' pose against the picture's similarity, shares, files."""

import numpy as np
import pytest
import torch

from shared.camera import matrix_from_quaternion, project
from shared.clip import HEAD
from shared.media.video_io import GrayVideoWriter
from stage2_gaussian.checkpoint import load_head, save_head
from stage2_gaussian.falling_hair import FallingHair, has_falling_hair
from stage2_gaussian.head import Head
from stage2_gaussian.pose_refinement import apply_refinement
from stage2_gaussian.render import render_head

CAMERA, SIZE = (300.0, 300.0, 61.0, 70.0), (128, 140)  # the head's axis is not the picture's middle
REST = torch.tensor([[1.0, 0, 0, 0.01], [0, -1, 0, 0.02], [0, 0, -1, 0.8], [0, 0, 0, 1]])
TORSO = torch.tensor([[0.0, 0, 0, 1], [7, -3, 0.1, 1.1], [-12, 4, -0.2, 0.9]])


@pytest.fixture
def hair(face) -> tuple[FallingHair, torch.Tensor]:
    """40 points from the jaw to 15 cm below it, on both sides."""
    g = torch.Generator().manual_seed(0)
    means = torch.tensor([0.07, -0.05, -0.02]) - torch.rand(40, 3, generator=g) * torch.tensor([0.14, 0.2, 0.02])
    made = FallingHair(40)
    made.set_rest(REST.repeat(3, 1, 1), torch.tensor([[0.0, 0, 0, 1]]).repeat(3, 1), CAMERA, *SIZE)
    made.set_start(means, torch.from_numpy(face))
    return made, means


def similarity(points: np.ndarray, motion: np.ndarray) -> np.ndarray:
    """Pixels (N, 2) after a torso motion, as docs/formats.md defines it."""
    dx, dy, angle, scale = motion
    middle = np.array(SIZE) / 2
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return middle + scale * (points - middle) @ turn.T + [dx, dy]


def test_the_shoulders_move_in_the_picture_as_the_torso_does(hair):
    falling, means = hair
    at_rest = project(means.numpy(), REST.numpy(), CAMERA)
    for motion, pose in zip(TORSO, falling.shoulders(TORSO)):
        seen = project(means.numpy(), pose.numpy(), CAMERA)
        assert np.abs(seen - similarity(at_rest, motion.numpy())).max() < 1e-2


def test_the_rest_pose_is_that_of_a_head_that_moves_with_its_torso(hair):
    falling, _ = hair
    moved = torch.cat([falling.shoulders(TORSO), REST[None, 3:].expand(3, 1, 4)], 1)
    found = FallingHair(1)
    found.set_rest(moved, TORSO, CAMERA, *SIZE)
    assert torch.allclose(found.rest, REST[:3], atol=1e-5)


def test_shares_blend_the_two_motions_and_the_face_stays_with_the_head(hair, face):
    falling, means = hair
    pose = apply_refinement(REST[None], torch.tensor([[0.1, 0.2, 0.0, 0.1, 0.0, 0.2]]))
    with torch.no_grad():
        shares = falling.shares()
        placed, turned = falling(means[None], pose, TORSO[1:2])
    with_head = means @ pose[0, :3, :3].T + pose[0, :3, 3]
    shoulders = falling.shoulders(TORSO[1:2])[0]
    with_torso = means @ shoulders[:, :3].T + shoulders[:, 3]
    expected = torch.stack([(1 - w) * a + w * b for w, a, b in zip(shares, with_head, with_torso)])
    assert torch.allclose(placed[0], expected, atol=1e-6)
    order = means[:, 1].argsort()
    assert shares[order[:5]].mean() > 0.7 and shares[order[-5:]].max() < 0.2
    assert FallingHair._reach(torch.from_numpy(face), torch.from_numpy(face)).max() < 1e-4
    pure = falling(means[None], REST[None], TORSO[:1])[1][0]  # head and shoulders turned alike: no blend to be seen
    assert torch.allclose(matrix_from_quaternion(pure), REST[:3, :3].expand(40, 3, 3), atol=1e-5)


def test_canonical_points_are_seen_where_they_were_taken_from(hair, face):
    falling, seen = hair
    centres = torch.from_numpy(face)
    pose = apply_refinement(REST[None], torch.tensor([[0.05, -0.1, 0.1, 0.1, 0.2, -0.1]]))[0]
    canonical = falling.canonical(seen, centres, pose, TORSO[1])
    assert (canonical - seen).norm(dim=1).max() > 0.005
    with torch.no_grad():
        placed, _ = falling(canonical[None], pose[None], TORSO[1:2])  # its shares are those at `seen`
    assert torch.allclose(placed[0], seen @ pose[:3, :3].T + pose[:3, 3], atol=1e-5)


def test_the_share_learns_and_gradients_are_those_of_finite_differences(hair):
    falling, means = hair
    pose = apply_refinement(REST[None], torch.tensor([[0.1, 0.2, 0.0, 0.1, 0.0, 0.2]])).double()
    falling.double()

    def loss() -> torch.Tensor:
        placed, turned = falling(means[None].double(), pose, TORSO[1:2].double())
        return placed.square().sum() + (turned * torch.arange(4)).sum()

    loss().backward()
    assert falling.follow.grad is not None
    step = 1e-5
    for k in (3, 17, 30):
        with torch.no_grad():
            falling.follow[k] += step
            above = loss()
            falling.follow[k] -= 2 * step
            below = loss()
            falling.follow[k] += step
        assert float(falling.follow.grad[k]) == pytest.approx(float(above - below) / (2 * step), rel=1e-4, abs=1e-9)


@pytest.fixture
def head(face, hair) -> Head:
    falling, means = hair
    made = Head(torch.from_numpy(face), means, torch.full((40,), 0.006), torch.rand(40, 3, generator=torch.Generator()), moving=5,
                rank=5, hidden=8, pose_rank=2, falling=True)
    made.falling.load_state_dict(falling.state_dict())
    return made.eval().requires_grad_(False)


def test_a_head_file_keeps_the_shares(head, face, tmp_path):
    save_head(tmp_path / "head.safetensors", head, {})
    again = load_head(tmp_path / "head.safetensors", "cpu")
    landmarks = torch.from_numpy(face)[None].repeat(3, 1, 1)
    shown = [render_head(h, landmarks, REST[None].repeat(3, 1, 1), CAMERA, *SIZE, torso=TORSO) for h in (head, again)]
    assert float((shown[0] - shown[1]).abs().max()) < 0.02
    still = render_head(again, landmarks, REST[None].repeat(3, 1, 1), CAMERA, *SIZE)
    assert torch.equal(still[0], still[1]) and float((shown[1][1] - still[1]).abs().max()) > 0.3
    assert torch.allclose(still[0], shown[1][0], atol=1e-5)  # TORSO[0] is rest


def test_chosen_splats_keep_their_shares(head):
    before = head.falling.shares()
    rows = torch.tensor([0, 2, 2, 7])
    head.select(rows)
    assert torch.equal(head.falling.shares(), before[rows])


def test_hair_falls_where_labels_show_head_below_the_chin(cartoon, tmp_path):
    frames = np.arange(4)
    assert not has_falling_hair(cartoon, frames)
    labels = cartoon.read_labels(np.arange(cartoon.info.frames))
    size = labels.shape[1]
    labels[:, size * 7 // 10 :, : size // 5] = HEAD
    with GrayVideoWriter(tmp_path / "labels.mkv", size, size) as video:
        for picture in labels:
            video.write(picture)
    changed = type(cartoon)(cartoon.root)
    changed.labels = tmp_path / "labels.mkv"
    changed.cache = tmp_path / "cache"
    assert has_falling_hair(changed, frames)
