import numpy as np
import torch
from scipy.spatial.transform import Rotation

from shared import camera


def test_rotation_vectors_match_scipy_and_so3_exp():
    vectors = np.random.default_rng(0).normal(size=(4, 5, 3))
    matrices = camera.rotation_from_rotvec(vectors)
    np.testing.assert_allclose(matrices[1, 2], Rotation.from_rotvec(vectors[1, 2]).as_matrix())
    np.testing.assert_allclose(camera.so3_exp(torch.tensor(vectors)).numpy(), matrices, atol=1e-9)
    small = vectors / 4
    np.testing.assert_allclose(camera.rotvec_from_rotation(camera.rotation_from_rotvec(small)), small, atol=1e-12)


def test_so3_exp_has_a_gradient_at_zero():
    vector = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    camera.so3_exp(vector)[2, 1].backward()
    np.testing.assert_allclose(vector.grad.numpy(), [1, 0, 0], atol=1e-6)


def test_quaternions_round_trip_in_every_branch():
    rotations = torch.tensor(Rotation.random(200, random_state=0).as_matrix())
    quaternions = camera.quaternion_from_matrix(rotations)
    np.testing.assert_allclose(camera.matrix_from_quaternion(quaternions).numpy(), rotations.numpy(), atol=1e-9)
    product = camera.quaternion_multiply(quaternions[:100], quaternions[100:])
    np.testing.assert_allclose(
        camera.matrix_from_quaternion(product).numpy(), (rotations[:100] @ rotations[100:]).numpy(), atol=1e-9
    )


def test_projection_of_a_frontal_face_is_upright():
    pose = camera.pose_matrix(np.diag([1.0, -1, -1]), np.array([0, 0, 0.5]))
    pixels = camera.project(np.array([[0.0, 0, 0], [0.05, 0, 0], [0, 0.05, 0]]), pose, (1000, 1000, 256, 256))
    np.testing.assert_allclose(pixels, [[256, 256], [356, 256], [256, 156]], atol=1e-4)
    np.testing.assert_allclose(camera.euler_degrees(pose[:3, :3]), 0, atol=1e-6)
    poses = torch.tensor(pose).expand(2, 4, 4)
    as_tensor = camera.project(torch.zeros(2, 1, 3), poses, torch.tensor([1000.0, 1000, 256, 256]))
    assert as_tensor.shape == (2, 1, 2)


def test_umeyama_recovers_a_similarity():
    rng = np.random.default_rng(0)
    points = rng.normal(size=(20, 3))
    rotation = Rotation.random(random_state=1).as_matrix()
    target = 1.7 * points @ rotation.T + [1, 2, 3]
    scale, r, t = camera.umeyama(points, target)
    np.testing.assert_allclose((scale, *t), (1.7, 1, 2, 3), atol=1e-9)
    np.testing.assert_allclose(r, rotation, atol=1e-9)
