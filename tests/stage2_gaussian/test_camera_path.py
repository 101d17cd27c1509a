"""The camera's swing around the head."""

import numpy as np

from shared.camera import euler_degrees, pose_matrix, project, rotation_from_rotvec
from stage2_gaussian.camera_path import head_centre, orbit, swing

CAMERA = (400.0, 400.0, 100.0, 100.0)


def frontal(frames):
    return np.repeat(pose_matrix(np.diag([1.0, -1, -1]), np.array([0.02, 0.01, 0.8]))[None], frames, 0)


def test_a_swing_starts_in_the_middle_and_comes_back():
    angles = swing(101, 30, 50)
    assert angles[0] == 0 and np.isclose(angles[[12, 13]].max(), 30, atol=0.1) and np.isclose(angles[[50, 100]], 0).all()
    np.testing.assert_allclose(angles[25:50], -angles[0:25], atol=1e-9)
    np.testing.assert_allclose(swing(101, -30, 50), -angles)


def test_the_centre_stays_in_place_and_the_distances_too(face):
    neutral = face.astype(float)
    centre, poses = head_centre(neutral), frontal(40)
    np.testing.assert_allclose(centre, (neutral[0] + neutral[16]) / 2)
    moved = orbit(poses, 35, 40, centre)
    assert moved.dtype == np.float32 and moved.shape == (40, 4, 4)
    np.testing.assert_allclose(moved[0], poses[0], atol=1e-7)
    np.testing.assert_allclose(moved[:, :3, :3] @ centre + moved[:, :3, 3], poses[:, :3, :3] @ centre + poses[:, :3, 3],
                               atol=1e-6)
    np.testing.assert_allclose(moved[:, :3, :3] @ moved[:, :3, :3].swapaxes(1, 2), np.tile(np.eye(3), (40, 1, 1)), atol=1e-6)
    np.testing.assert_allclose(np.abs(euler_degrees(moved[:, :3, :3])[:, 0]), np.abs(swing(40, 35, 40)), atol=1e-3)
    np.testing.assert_allclose(euler_degrees(moved[:, :3, :3])[:, 1:], 0, atol=1e-3)


def test_the_camera_goes_to_the_subjects_left_first(face):
    """From there the nose moves to the left of the picture, and the left ear (point 16) away from its edge."""
    centre, poses = head_centre(face.astype(float)), frontal(40)
    before = project(face, poses[10], CAMERA)
    after = project(face, orbit(poses, 35, 40, centre)[10], CAMERA)
    assert after[30, 0] < before[30, 0] - 5
    eye = -orbit(poses, 35, 40, centre)[10, :3, 3] @ orbit(poses, 35, 40, centre)[10, :3, :3]
    assert eye[0] > 0.3  # +x is the subject's left


def test_a_moving_head_keeps_its_own_motion():
    rng = np.random.default_rng(0)
    poses = pose_matrix(np.diag([1.0, -1, -1]) @ rotation_from_rotvec(0.1 * rng.normal(size=(9, 3))),
                        np.array([0, 0, 0.8]) + 0.01 * rng.normal(size=(9, 3)))
    np.testing.assert_allclose(orbit(poses, 0, 9, np.array([0, 0, -0.08])), poses, atol=1e-6)
    moved, angles = orbit(poses, 20, 9, np.zeros(3)), np.radians(swing(9, 20, 9))
    expected = rotation_from_rotvec(angles[:, None] * [0, 1, 0]) @ poses[:, :3, :3]
    np.testing.assert_allclose(moved[:, :3, :3], expected, atol=1e-6)
    np.testing.assert_allclose(moved[:, :3, 3], poses[:, :3, 3], atol=1e-6)  # head space's origin was the centre
