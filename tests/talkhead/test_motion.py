"""Less head motion, and motion of another person's clip."""

from types import SimpleNamespace

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from shared.camera import pose_matrix
from talkhead import motion
from talkhead.motion import beyond, borrowed, clip_folder, middle, moved, rest_pose, scaled

FRONT = np.diag([1.0, -1, -1])


def nod(degrees, places=None, about="x"):
    """Poses (T,4,4) of a head that turns by `degrees` (T,) as the camera sees it."""
    turns = Rotation.from_euler(about, np.asarray(degrees, float)[:, None], degrees=True).as_matrix()
    return pose_matrix(turns @ FRONT, np.array([0.1, 0.2, 0.8]) + np.zeros((len(turns), 3)) + (0 if places is None else places))


def angles(poses, about=0):
    return np.degrees(Rotation.from_matrix(poses[:, :3, :3] @ FRONT.T).as_rotvec()[:, about])


def test_the_middle_is_the_frame_nearest_to_the_mean():
    assert middle(nod([-10, -8, 1, 9, 10])) == 2
    assert middle(nod([5])) == 0


@pytest.mark.parametrize("gain", [0, 0.3, 1])
def test_motion_is_scaled_about_the_middle_frame(gain):
    degrees, places = np.array([-10.0, -4, 1, 3, 12]), np.random.default_rng(0).normal(size=(5, 3)) * 0.02
    torso = np.random.default_rng(1).normal(size=(5, 4)).astype(np.float32)
    poses, moves = scaled(nod(degrees, places), torso, gain)
    at = 2
    np.testing.assert_allclose(angles(poses), degrees[at] + gain * (degrees - degrees[at]), atol=1e-3)
    np.testing.assert_allclose(poses[:, :3, 3], [0.1, 0.2, 0.8] + places[at] + gain * (places - places[at]), atol=1e-6)
    np.testing.assert_allclose(moves, torso[at] + gain * (torso - torso[at]), atol=1e-6)
    if gain == 1:
        np.testing.assert_allclose(poses, nod(degrees, places), atol=1e-6)


def test_deviations_go_on_another_rest():
    turned = nod([20], about="y")[0]
    made = moved(nod([-5, 0, 5]), nod([0])[0], turned)
    seen = made[:, :3, :3] @ turned[:3, :3].T  # what the camera sees turn
    np.testing.assert_allclose(np.degrees(Rotation.from_matrix(seen).as_rotvec()), [[-5, 0, 0], [0, 0, 0], [5, 0, 0]], atol=1e-3)


def test_the_motion_of_another_clip_is_put_on_the_avatars_own_mean(monkeypatch):
    degrees = np.array([0.0, 2, 4, 6, 8, 99])
    other = nod(degrees, np.linspace(0, 0.05, 6)[:, None] * [1, 0, 0])
    other[:, 2, 3] = 1.6
    torso = np.arange(24.0).reshape(6, 4)
    clip = SimpleNamespace(load_poses=lambda: other, load_torso_motion=lambda: torso,
                           info=SimpleNamespace(intrinsics=(1000, 1000, 256, 256)))
    monkeypatch.setattr(motion, "motion_track", lambda _: (np.arange(5), 0))
    own = nod([9, 10, 11])
    own_torso = np.full((3, 4), 7.0, np.float32)
    avatar = SimpleNamespace(load_motion=lambda: (own, own_torso), info=SimpleNamespace(intrinsics=(250, 250, 64, 64)))
    poses, moves = borrowed(clip, avatar)
    np.testing.assert_allclose(angles(poses), 10 + degrees[:5] - 4, atol=1e-3)
    np.testing.assert_allclose(poses[:, :3, 3], [0.1, 0.2, 0.8] + np.linspace(-0.02, 0.02, 5)[:, None] * [1, 0, 0], atol=1e-6)
    pixels = (250 / 0.8) / (1000 / 1.6)
    np.testing.assert_allclose(moves, 7 + (torso[:5] - torso[:5].mean(0)) * [pixels, pixels, 1, 1], atol=1e-5)
    np.testing.assert_allclose(rest_pose(poses), rest_pose(own), atol=1e-6)
    torso = np.pad(torso, ((0, 0), (0, 18)), constant_values=5)
    own_torso = np.pad(own_torso, ((0, 0), (0, 32)), constant_values=3)
    warped = borrowed(clip, avatar)[1]
    np.testing.assert_array_equal(warped[:, :4], moves)
    assert warped.shape == (5, 36) and (warped[:, 4:] == 3).all(), "the warp is the avatar's own"


def test_a_clip_is_known_by_its_folder_or_its_poses(tmp_path):
    clip = tmp_path / "clip"
    clip.mkdir()
    (clip / "clip.json").touch()
    for path in (clip, clip / "poses.npy", clip / "poses_fitted.npy"):
        assert clip_folder(path) == clip
    for path in (tmp_path, tmp_path / "poses.npy", clip / "notes.txt", "still"):
        assert clip_folder(path) is None


def test_how_far_poses_leave_the_own_track():
    own = nod([-5, 0, 5])
    assert beyond(own, own) == pytest.approx(0, abs=0.1)
    assert beyond(nod([-7, 0, 25]), own) == pytest.approx(20, abs=0.1)
    assert beyond(np.tile(nod([10]), (3000, 1, 1)), own) == pytest.approx(5, abs=0.1)
