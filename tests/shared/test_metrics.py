import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from shared import metrics
from shared.camera import pose_matrix, rotation_from_rotvec


def test_psnr_of_known_noise_and_mask():
    a = np.zeros((2, 8, 8, 3))
    b = a + 0.1
    assert metrics.psnr(a, b) == pytest.approx(20, abs=1e-4)
    mask = np.zeros((2, 8, 8))
    mask[:, :4] = 1
    b[:, 4:] = 0.9
    assert metrics.psnr(a, b, mask) == pytest.approx(20, abs=1e-4)
    assert metrics.psnr((a * 255).astype(np.uint8), (a * 255 + 51).astype(np.uint8)) == pytest.approx(13.979, abs=1e-3)


def test_ssim_against_scipy_filters():
    rng = np.random.default_rng(0)
    x, y = rng.random((40, 40)), rng.random((40, 40))
    y = 0.7 * x + 0.3 * y

    def blur(z):
        return gaussian_filter(z, 1.5, truncate=5 / 1.5, mode="constant")

    mx, my = blur(x), blur(y)
    value = (2 * mx * my + 1e-4) * (2 * (blur(x * y) - mx * my) + 9e-4)
    value /= (mx**2 + my**2 + 1e-4) * (blur(x * x) - mx**2 + blur(y * y) - my**2 + 9e-4)

    def three(z):
        return np.repeat(z[None, :, :, None], 3, 3)

    assert metrics.ssim(three(x), three(y)) == pytest.approx(value.mean(), abs=1e-4)
    assert metrics.ssim(three(x), three(x)) == pytest.approx(1, abs=1e-6)


def test_landmark_distance_is_pixels_at_the_asked_size():
    poses = pose_matrix(np.diag([1.0, -1, -1]), np.array([0, 0, 0.5]))[None]
    true = np.zeros((1, 68, 3))
    shifted = true + [0.001, 0, 0]
    camera = (1000, 1000, 128, 128)
    assert metrics.landmark_distance(shifted, true, [48, 54], poses, camera) == pytest.approx(2, rel=1e-4)
    assert metrics.landmark_distance(shifted, true, [48], poses, camera, size=512) == pytest.approx(4, rel=1e-4)


def test_lag_is_positive_for_a_late_curve():
    t = np.arange(400)

    def curve(shift):
        return np.sin((t - shift) / 7) + np.sin((t - shift) / 3.1)

    assert metrics.lag_ms(curve(0), curve(2)) == pytest.approx(80, abs=2)
    assert metrics.lag_ms(curve(0), curve(-1.5)) == pytest.approx(-60, abs=4)
    assert metrics.lag_ms(curve(0), np.zeros(400)) == 0


def test_velocity_ratio_and_correlation():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(50, 68, 3))
    assert metrics.velocity_ratio(0.5 * x, x, [48, 49]) == pytest.approx(0.5)
    assert metrics.correlation(x[:, 0, 0], -2 * x[:, 0, 0] + 1) == pytest.approx(-1)
    assert metrics.correlation(x[:, 0, 0], np.ones(50)) == 0


def test_tracker_errors_forgive_constants_only():
    rng = np.random.default_rng(0)
    true = rng.normal(size=(30, 68, 3)) * 0.01
    offset = rng.normal(size=(1, 68, 3))
    assert metrics.landmark_motion_error(true + offset, true, [30, 48]) == pytest.approx(0, abs=1e-12)
    wave = np.where(np.arange(30) % 2, 0.001, -0.001)[:, None]
    moved = true.copy()
    moved[:, :, 0] += wave
    assert metrics.landmark_motion_error(moved + offset, true, [30, 48]) == pytest.approx(0.001)

    angles = np.linspace(0, 0.4, 9)
    turn = rotation_from_rotvec(np.stack([0 * angles, angles, 0 * angles], -1))
    poses, half = np.tile(np.eye(4), (9, 1, 1)), np.tile(np.eye(4), (9, 1, 1))
    poses[:, :3, :3] = turn
    half[:, :3, :3] = rotation_from_rotvec(np.stack([0 * angles, angles / 2, 0 * angles], -1))
    assert metrics.rotation_error_degrees(poses, poses) == pytest.approx(0, abs=1e-5)
    assert metrics.rotation_error_degrees(half, poses) == pytest.approx(np.degrees(0.1), rel=1e-4)
