import numpy as np
import pytest

from process_data.detection.mesh68 import MESH68, RIGID, RIGID_WEIGHT
from process_data.tracking import bundle_adjustment
from process_data.tracking.track import head_space, neutral_face
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
    poses = pose_matrix(bundle_adjustment.FRONTAL @ rotation_from_rotvec(turn), shift)
    camera = np.einsum("tij,nj->tni", poses[:, :3, :3], shape) + poses[:, None, :3, 3]
    mesh = np.empty((120, 478, 3))
    mesh[..., :2] = project(shape, poses.astype(float), CAMERA) + rng.normal(size=(120, 478, 2)) * 0.4
    # the detector's own depth: in pixels, flattened by a tenth and noisy
    mesh[..., 2] = (camera[..., 2] - poses[:, None, 2, 3]) * 1126 / 0.75 * 0.9 + rng.normal(size=(120, 478)) * 2
    return shape, poses, mesh


def fit(mesh, shots):
    shape = bundle_adjustment.mean_shape(mesh, RIGID, RIGID_WEIGHT, MESH68)
    first = bundle_adjustment.initial_poses(mesh[:, RIGID], shape[RIGID], RIGID_WEIGHT, CAMERA)
    tracks = bundle_adjustment.Tracks(mesh[:, RIGID, :2], np.full((len(mesh), 1), -1), 1 / np.sqrt(RIGID_WEIGHT), shape[RIGID],
                                      len(RIGID))
    return first, bundle_adjustment.fit(tracks, first, shots, CAMERA, iterations=10, smoothness=3.0)


def test_fit_recovers_poses_and_shape(scene):
    shape, poses, mesh = scene
    first, fitted = fit(mesh, [(0, 120)])
    assert fitted.rms[0] < 0.7  # the noise is 0.4 a coordinate
    assert rotation_error_degrees(fitted.poses, poses) < 0.4
    assert rotation_error_degrees(fitted.poses, poses) < rotation_error_degrees(first, poses)
    corners = fitted.points[[RIGID.tolist().index(k) for k in (33, 263)]]
    assert abs(np.linalg.norm(corners[1] - corners[0]) / EYE_CORNER_DISTANCE - 1) < 0.05


def test_exact_corners_beat_a_biased_detector(scene):
    """Two references, whose corners are seen without error, correct a detector that flattens every nod."""
    shape, poses, mesh = scene
    biased = mesh.copy()
    nod = euler_degrees(poses[:, :3, :3])[:, 1]
    biased[..., 1] += 0.4 * nod[:, None] * (shape[:, 2] / 0.05)  # grows with depth, as a nod that is not followed
    start, plain = fit(biased, [(0, 120)])
    corners = 30
    reference = np.where(np.arange(120) < 70, 0, 1)[:, None]
    own = np.stack([shape[40 : 40 + corners], shape[90 : 90 + corners]])
    exact = project(own[reference[:, 0]], poses.astype(float), CAMERA)
    exact[5:9, :12] = np.nan  # some are lost for a while
    exact[20, 3] += 30  # one match is wrong
    rough = own.reshape(-1, 3) + np.random.default_rng(1).normal(size=(2 * corners, 3)) * [0, 0, 0.003]
    unused = np.full_like(exact, np.nan)  # a second reference, which no frame has
    reference = np.concatenate([reference, -np.ones_like(reference)], 1)
    tracks = bundle_adjustment.Tracks(np.concatenate([biased[:, RIGID, :2], exact, unused], 1), reference,
                         np.concatenate([1.5 / np.sqrt(RIGID_WEIGHT), np.full(2 * corners, 0.3)]),
                         np.concatenate([plain.points, rough]), len(RIGID))
    both = bundle_adjustment.fit(tracks, plain.poses.astype(float), [(0, 120)], CAMERA, iterations=10, smoothness=3.0)
    assert rotation_error_degrees(both.poses, poses) < 0.75 * rotation_error_degrees(plain.poses, poses)
    assert both.rms[1] < 1


def test_the_banded_system_equals_the_dense_one():
    rng = np.random.default_rng(3)
    count, shots, weight = 9, [(0, 5), (5, 9)], 7.0
    root = rng.normal(size=(count, 6, 8))
    hess, grad = root @ root.swapaxes(1, 2), rng.normal(size=(count, 6))
    poses = np.tile(np.eye(4), (count, 1, 1))
    poses[:, :3, 3] = rng.normal(size=(count, 3))
    scale = 0.1 * weight * np.array([1, 1, 1, *[1 / bundle_adjustment.TRANSLATION_UNIT] * 3])
    bend = np.zeros((5, count))
    for row, t in enumerate((0, 1, 2, 5, 6)):
        bend[row, t : t + 3] = [1, -2, 1]
    dense = np.kron(bend.T @ bend, np.diag(scale**2))
    state = np.concatenate([np.zeros((count, 3)), poses[:, :3, 3]], -1)
    right = -(grad.reshape(-1) + dense @ state.reshape(-1))
    for t in range(count):
        dense[6 * t : 6 * t + 6, 6 * t : 6 * t + 6] += hess[t]
    found = bundle_adjustment._banded_step(hess, grad, poses, shots, weight)
    np.testing.assert_allclose(found.reshape(-1), np.linalg.solve(dense + 1e-6 * np.eye(6 * count), right), rtol=1e-6, atol=1e-9)


def test_the_compiled_sums_equal_numeric_derivatives():
    """Jacobians by central differences of weighted residuals, the weights held; a point that is not seen counts for nothing."""
    rng = np.random.default_rng(3)
    points, sigma = rng.normal(0, 0.05, (7, 3)), rng.uniform(0.5, 2, 7)
    index = np.array([[0, 1, 2, 3, 4], [0, 1, 2, 5, 6]])
    poses = pose_matrix(rotation_from_rotvec(rng.normal(0, 0.4, (2, 3))), rng.normal([0, 0, 0.8], 0.05, (2, 3))).astype(float)
    intrinsics = (700.0, 650.0, 256.0, 250.0)
    observed = project(points[index], poses, intrinsics) + rng.normal(0, 4, (2, 5, 2))
    observed[1, 3] = np.nan
    hess, grad, rows, residuals = bundle_adjustment._sums(points, index, observed, sigma, poses, *intrinsics, True)

    def error(t, step):
        pose = bundle_adjustment._moved(poses[t : t + 1], step[None, :6])[0]
        return project(points[index[t]] + step[6:], pose, intrinsics) - observed[t]

    for t in range(2):
        size = np.linalg.norm(error(t, np.zeros(9)), axis=-1) / sigma[index[t]]
        root = 1 / np.sqrt(1 + (size / bundle_adjustment.CAUCHY) ** 2) / sigma[index[t]]
        slow = np.stack([(error(t, step) - error(t, -step)) / 2e-4 for step in np.eye(9) * 1e-4], -1) * root[:, None, None]
        slow = np.nan_to_num(slow)
        rest = np.nan_to_num(error(t, np.zeros(9)) * root[:, None])
        scale = np.abs(slow).max()
        assert np.abs(rows[t] - slow).max() < 1e-4 * scale
        assert np.allclose(residuals[t], rest)
        flat = slow[..., :6].reshape(-1, 6)
        assert np.abs(hess[t] - flat.T @ flat).max() < 1e-3 * np.abs(hess[t]).max()
        assert np.abs(grad[t] - flat.T @ rest.reshape(-1)).max() < 1e-3 * np.abs(grad[t]).max()


def test_unprojected_points_project_back(scene):
    shape, poses, mesh = scene
    pixels = mesh[:, MESH68, :2]
    points = bundle_adjustment.unproject(pixels, shape[MESH68, 2], poses, CAMERA)
    np.testing.assert_allclose(points[..., 2], np.tile(shape[MESH68, 2], (120, 1)), atol=1e-9)
    np.testing.assert_allclose(project(points, poses.astype(float), CAMERA), pixels, atol=1e-6)


def test_the_move_to_head_space_moves_no_pixel(scene):
    shape, poses, mesh = scene
    landmarks = bundle_adjustment.unproject(mesh[:, MESH68, :2], shape[MESH68, 2], poses, CAMERA)
    space = head_space(landmarks, np.ones(120, bool))
    moved, turned = space.landmarks(landmarks), space.poses(poses)
    neutral = neutral_face(moved)[0]
    np.testing.assert_allclose(neutral[36], [-0.045, 0, 0], atol=2e-5)
    np.testing.assert_allclose(neutral[45], [0.045, 0, 0], atol=2e-5)
    np.testing.assert_allclose(project(moved.astype(float), turned.astype(float), CAMERA),
                               project(landmarks, poses.astype(float), CAMERA), atol=0.02)


def test_a_cut_is_not_smoothed_over(scene):
    _, _, mesh = scene
    jumped = np.concatenate([mesh[:60], mesh[60:] + [40, 0, 0]])
    step = np.diff(fit(jumped, [(0, 60), (60, 120)])[1].poses[:, 0, 3])
    assert step[59] > 0.02 and np.abs(np.delete(step, 59)).max() < 0.004


def test_the_68_points_are_distinct_and_mirror_each_other():
    assert len(MESH68) == 68 and len(RIGID) == len(set(RIGID.tolist()))
    assert len(set(MESH68.tolist())) == 68
    pairs = {int(MESH68[k]): int(MESH68[MIRROR[k]]) for k in range(68)}
    assert all(pairs[b] == a for a, b in pairs.items())
    assert pairs[33] == 263 and pairs[61] == 291 and pairs[152] == 152
    assert abs(euler_degrees(bundle_adjustment.FRONTAL)).max() < 1e-9
