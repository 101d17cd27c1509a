"""Sharpness of the mouth's interior: against a slow reference, and what blur, noise and shifts do to it."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from shared.camera import pose_matrix, project
from shared.landmarks import LIPS_INNER
from stage2_gaussian.evaluation.sharpness import (
    FINE,
    Detail,
    band,
    measure_detail,
    polygon_mask,
    sharpness,
    shifted,
)

SIZE, CAMERA = 96, (700.0, 700.0, 48.0, 48.0)


@pytest.fixture(scope="module")
def mouths():
    """Landmarks (3, 68, 3) with lips 12 mm, 10 mm and 0 mm apart, poses (3, 4, 4), and pictures of teeth (3, 96, 96, 3)."""
    angle = np.linspace(np.pi, -np.pi, 8, endpoint=False)
    landmarks = np.zeros((3, 68, 3), np.float32)
    for k, opening in enumerate((0.012, 0.01, 0.0)):
        outer = np.linspace(np.pi, -np.pi, 12, endpoint=False)
        landmarks[k, 48:60, :2] = np.stack([0.025 * np.cos(outer), 0.012 * np.sin(outer)], 1)
        landmarks[k, LIPS_INNER, :2] = np.stack([0.02 * np.cos(angle), opening / 1.6 * np.sin(angle)], 1)
    poses = np.repeat(pose_matrix(np.diag([1.0, -1, -1]), np.array([0, 0, 0.5]))[None], 3, 0).astype(np.float32)
    x, y = np.meshgrid(np.arange(SIZE), np.arange(SIZE))
    teeth = 0.5 + 0.2 * np.sin(x * 0.9) * np.cos(y * 0.3)
    pictures = np.repeat(teeth[None, ..., None], 3, 0).repeat(3, -1) * [1, 0.9, 0.8]
    return torch.from_numpy(landmarks), torch.from_numpy(poses), torch.from_numpy(pictures).float()


def winds(corners, height: int, width: int) -> np.ndarray:
    """Whether a polygon winds round each pixel centre, (H, W): the angles under which its sides are seen, summed."""
    rays = corners - np.stack(np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5), -1)[:, :, None]
    a, b = rays, np.roll(rays, -1, 2)
    turns = np.arctan2(a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0], (a * b).sum(-1)).sum(-1)
    return np.abs(turns) > np.pi


def figures(mouths, shown) -> dict[str, float]:
    landmarks, poses, pictures = mouths
    return sharpness(measure_detail(torch.as_tensor(shown).float(), pictures, landmarks, poses, CAMERA))


def test_a_polygon_holds_the_pixel_centres_inside_it():
    rng = np.random.default_rng(0)
    for count in (3, 8, 11):
        angle = np.sort(rng.uniform(0, 2 * np.pi, count))
        corners = np.stack([20 + rng.uniform(3, 18, count) * np.cos(angle), 15 + rng.uniform(3, 14, count) * np.sin(angle)], 1)
        np.testing.assert_array_equal(polygon_mask(torch.from_numpy(corners), 30, 40).numpy(), winds(corners, 30, 40))


def test_the_band_is_that_of_normalised_convolution_and_sees_nothing_outside_the_mask():
    rng = np.random.default_rng(0)
    picture, mask = rng.uniform(0, 255, (30, 40)), np.zeros((30, 40))
    mask[8:20, 5:33] = 1
    padded, weight = np.pad(picture * mask, 20), np.pad(mask, 20)
    lows = [gaussian_filter(padded, s, truncate=9) / np.maximum(gaussian_filter(weight, s, truncate=9), 1e-6) for s in (1.0, 2.0)]
    expected = ((lows[0] - lows[1])[20:-20, 20:-20] * mask)
    found = band(torch.from_numpy(np.stack([picture, picture + 50 * (1 - mask)])), torch.from_numpy(mask), 1.0).numpy()
    np.testing.assert_allclose(found[0], expected, atol=1e-9)
    np.testing.assert_array_equal(found[0], found[1])


def test_shifts_by_whole_pixels_are_exact():
    picture = torch.from_numpy(np.random.default_rng(0).uniform(size=(20, 30)))
    moved = shifted(picture, 1.2).unflatten(0, (5, 5))  # −1, −½, 0, ½, 1 down and across
    torch.testing.assert_close(moved[2, 2], picture)
    torch.testing.assert_close(moved[4, 0, :-1, 1:], picture[1:, :-1])
    assert not torch.allclose(moved[2, 3], picture, atol=0.05)


def test_energies_equal_a_slow_reference(mouths):
    landmarks, poses, pictures = mouths
    shown = pictures * 0.5
    found = measure_detail(shown, pictures, landmarks, poses, CAMERA)
    assert found.video.isfinite().tolist() == [True, True, False]
    fine = FINE * CAMERA[0] / 0.5
    for k in (0, 1):
        mask = winds(project(landmarks[k, LIPS_INNER], poses[k], CAMERA).numpy(), SIZE, SIZE)
        mask = np.all([np.roll(mask, (a, b), (0, 1)) for a in (-1, 0, 1) for b in (-1, 0, 1)], 0).astype(float)
        grey = 255 * pictures[k].numpy().astype(float) @ [0.299, 0.587, 0.114]
        low = [gaussian_filter(grey * mask, s, truncate=9) / np.maximum(
            gaussian_filter(mask, s, truncate=9), 1e-6) for s in (fine, 2 * fine)]
        energy = (((low[0] - low[1]) * mask) ** 2).sum()
        assert float(found.video[k]) == pytest.approx(energy, rel=1e-4)
        assert float(found.render[k]) == pytest.approx(energy / 4, rel=1e-4)
        assert float(found.shared[k]) == pytest.approx(energy / 2, rel=1e-4)


def test_the_video_itself_is_as_sharp_as_the_video_wherever_it_lies_and_blur_is_not(mouths):
    pictures = mouths[2].numpy()
    assert figures(mouths, pictures) == pytest.approx({"contrast": 1, "sharpness": 1}, abs=1e-6)
    assert figures(mouths, np.roll(pictures, (1, -1), (1, 2)))["sharpness"] == pytest.approx(1, abs=0.01)
    last = 1.0
    for deviation in (0.5, 1.0, 2.0):
        blurred = figures(mouths, gaussian_filter(pictures, (0, deviation, deviation, 0)))
        assert max(blurred.values()) < last - 0.05
        last = min(blurred.values())


def test_noise_raises_contrast_and_not_sharpness(mouths):
    pictures = mouths[2].numpy()
    blurred = gaussian_filter(pictures, (0, 1, 1, 0))
    noisy = blurred + np.random.default_rng(0).normal(0, 0.3, pictures.shape[:-1])[..., None]
    plain, tricked = figures(mouths, blurred), figures(mouths, noisy)
    assert tricked["contrast"] > 1 > 0.8 > plain["contrast"]
    assert tricked["sharpness"] == pytest.approx(plain["sharpness"], abs=0.12)
    elsewhere = figures(mouths, gaussian_filter(np.random.default_rng(1).normal(0.5, 0.4, pictures.shape), (0, 1, 1, 0)))
    assert elsewhere["sharpness"] < 0.5 * elsewhere["contrast"]


def test_without_an_open_mouth_there_is_no_figure(mouths):
    landmarks, poses, pictures = (x[2:] for x in mouths)
    found = measure_detail(pictures, pictures, landmarks, poses, CAMERA)
    assert all(x.isnan().all() for x in found)
    assert sharpness(found) == {}
    assert sharpness(Detail(*torch.tensor([[4.0, np.nan], [1.0, np.nan], [2.0, np.nan]]))) == {"contrast": 0.5, "sharpness": 0.5}


def test_outside_the_picture_nothing_is_measured(mouths):
    landmarks, poses, pictures = (x[:1] for x in mouths)
    away = poses.clone()
    away[:, 0, 3] = 0.5
    assert measure_detail(pictures, pictures, landmarks, away, CAMERA).video.isnan().all()
