import numpy as np
import pytest

from chain.evaluate import mouth_box_mask
from chain.synthesize import Motion, ping_pong, rebatch
from shared.avatar import Avatar
from shared.camera import pose_matrix, project
from shared.landmarks import LIPS, save_array


def test_ping_pong_never_jumps_and_visits_everything():
    index = ping_pong(50, 7)
    assert index[:14].tolist() == [0, 1, 2, 3, 4, 5, 6, 5, 4, 3, 2, 1, 0, 1]
    assert np.abs(np.diff(index)).max() == 1 and set(index) == set(range(7))
    assert ping_pong(3, 1).tolist() == [0, 0, 0]
    assert ping_pong(4, 2).tolist() == [0, 1, 0, 1]


def test_rebatch_keeps_order_whatever_the_chunks():
    rows = np.arange(50)[:, None]
    for cuts in ([7, 8, 30], [1], [49], []):
        pieces = list(rebatch(np.split(rows, cuts), 8))
        assert [len(piece) for piece in pieces] == [8, 8, 8, 8, 8, 8, 2]
        np.testing.assert_array_equal(np.concatenate(pieces), rows)


@pytest.fixture
def avatar(tmp_path):
    avatar = Avatar(tmp_path)
    poses = np.tile(np.eye(4, dtype=np.float32), (5, 1, 1)) * np.arange(1, 6)[:, None, None]
    save_array(avatar.poses, poses)
    save_array(avatar.motion, np.arange(20).reshape(5, 4))
    return avatar


def test_motion_loops_stands_still_or_follows_a_file(avatar, tmp_path):
    poses, torso = Motion(avatar, "loop").at(3, 7)
    assert poses[:, 0, 0].tolist() == [4, 5, 4, 3] and torso[:, 0].tolist() == [12, 16, 12, 8]
    assert len(set(Motion(avatar, "still").at(0, 9)[0][:, 0, 0])) == 1
    save_array(tmp_path / "own.npy", np.tile(np.eye(4), (12, 1, 1)) * 7)
    poses, torso = Motion(avatar, str(tmp_path / "own.npy")).at(0, 12)
    assert (poses[:, 0, 0] == 7).all() and torso[:, 0].tolist() == [0, 4, 8, 12, 16, 12, 8, 4, 0, 4, 8, 12]


def test_mouth_box_holds_the_lips_and_little_else():
    rng = np.random.default_rng(0)
    landmarks = rng.normal(size=(2, 68, 3)) * [0.02, 0.01, 0.005]
    poses = np.stack([pose_matrix(np.diag([1.0, -1, -1]), np.array([0, 0, 0.6]))] * 2)
    camera = (600.0, 600.0, 64.0, 64.0)
    mask = mouth_box_mask(landmarks, poses, camera, 128, 128)
    pixels = project(landmarks[:, LIPS], poses, camera)
    for t in range(2):
        for u, v in pixels[t]:
            assert mask[t, min(127, int(v)), min(127, int(u))]
        width = np.ptp(pixels[t, :, 0]) * 1.5
        height = np.ptp(pixels[t, :, 1]) + np.ptp(pixels[t, :, 0]) * 0.5
        assert abs(mask[t].sum() - width * height) < 0.1 * width * height
