import numpy as np
import pytest

from process_data import pose
from process_data.config import ProcessConfig
from process_data.landmarks68 import MESH68, RIGID
from shared.camera import euler_degrees, pose_matrix, project, rotation_from_rotvec
from shared.landmarks import EYE_CORNER_DISTANCE, MIRROR
from shared.metrics import rotation_error_degrees

CAMERA = (1126.0, 1126.0, 256.0, 256.0)


@pytest.fixture(scope="module")
def scene():
    """A face-like rigid mesh (478,3), known poses (T,4,4), and noisy weak-perspective measurements of it."""
    rng = np.random.default_rng(0)
    shape = rng.uniform(-1, 1, (478, 3)) * [0.07, 0.09, 0.0]
    shape[:, 2] = 0.05 - 9 * shape[:, 0] ** 2 - 4 * shape[:, 1] ** 2 + rng.normal(size=478) * 0.004
    shape[33], shape[263] = [-0.045, 0, 0], [0.045, 0, 0]
    shape[10], shape[152] = [0, 0.07, 0.02], [0, -0.11, 0.02]
    t = np.arange(120) / 25
    turn = np.stack([0.15 * np.sin(1.3 * t), 0.25 * np.sin(0.9 * t), 0.08 * np.sin(2 * t)], -1)
    shift = np.stack([0.02 * np.sin(t), 0.01 * np.cos(t), 0.75 + 0.02 * np.sin(0.5 * t)], -1)
    poses = pose_matrix(pose.FRONTAL @ rotation_from_rotvec(turn), shift)
    camera = np.einsum("tij,nj->tni", poses[:, :3, :3], shape) + poses[:, None, :3, 3]
    mesh = np.empty((120, 478, 3))
    mesh[..., :2] = project(shape, poses.astype(float), CAMERA) + rng.normal(size=(120, 478, 2)) * 0.4
    # the detector's own depth: in pixels, flattened by a tenth and noisy
    mesh[..., 2] = (camera[..., 2] - poses[:, None, 2, 3]) * 1126 / 0.75 * 0.9 + rng.normal(size=(120, 478)) * 2
    return shape, poses, mesh


def test_fit_recovers_poses_and_shape(scene):
    shape, poses, mesh = scene
    fitted = pose.fit(mesh, [(0, 120)], CAMERA, ProcessConfig(), 1.0)
    assert fitted.rms < 0.7  # the noise is 0.4 a coordinate
    assert rotation_error_degrees(fitted.poses, poses) < 0.4
    scale = np.linalg.norm(fitted.shape[263] - fitted.shape[33]) / EYE_CORNER_DISTANCE
    assert abs(scale - 1) < 0.05
    before = pose.initial_poses(mesh, pose.mean_shape(mesh), CAMERA)
    start = pose_matrix(*before)
    assert rotation_error_degrees(fitted.poses, poses) < rotation_error_degrees(start, poses)


def test_landmarks_project_back_onto_their_pixels(scene):
    _, _, mesh = scene
    fitted = pose.fit(mesh, [(0, 120)], CAMERA, ProcessConfig(), 1.0)
    landmarks = pose.landmarks_in_head_space(mesh, fitted, CAMERA, [(0, 120)], ProcessConfig())
    lips = list(range(48, 68))
    back = project(landmarks[:, lips].astype(float), fitted.poses.astype(float), CAMERA)
    np.testing.assert_allclose(back, mesh[:, MESH68[lips], :2], atol=0.02)  # lips are not smoothed at all


def test_the_convention_moves_head_space_but_no_pixel(scene):
    _, _, mesh = scene
    fitted = pose.fit(mesh, [(0, 120)], CAMERA, ProcessConfig(), 1.0)
    landmarks = pose.landmarks_in_head_space(mesh, fitted, CAMERA, [(0, 120)], ProcessConfig())
    moved, poses = pose.to_convention(landmarks, fitted.poses)
    neutral = pose.neutral_face(moved)[0]
    np.testing.assert_allclose(neutral[36], [-0.045, 0, 0], atol=2e-5)
    np.testing.assert_allclose(neutral[45], [0.045, 0, 0], atol=2e-5)
    for a, b in ((landmarks, fitted.poses), (moved, poses)):
        pixels = project(a.astype(float), b.astype(float), CAMERA)
        np.testing.assert_allclose(pixels, project(landmarks.astype(float), fitted.poses.astype(float), CAMERA), atol=0.02)


def test_a_cut_is_not_smoothed_over(scene):
    _, poses, mesh = scene
    jumped = np.concatenate([mesh[:60], mesh[60:] + [40, 0, 0]])
    fitted = pose.fit(jumped, [(0, 60), (60, 120)], CAMERA, ProcessConfig(), 1.0)
    step = np.diff(fitted.poses[:, 0, 3])
    assert step[59] > 0.02 and np.abs(np.delete(step, 59)).max() < 0.004


def test_the_68_points_are_distinct_and_mirror_each_other():
    assert len(MESH68) == 68 and len(RIGID) == len(set(RIGID.tolist()))
    assert len(set(MESH68.tolist())) == 68
    pairs = {int(MESH68[k]): int(MESH68[MIRROR[k]]) for k in range(68)}
    assert all(pairs[b] == a for a, b in pairs.items())
    assert pairs[33] == 263 and pairs[61] == 291 and pairs[152] == 152
    assert abs(euler_degrees(pose.FRONTAL)).max() < 1e-9
