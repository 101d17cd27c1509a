import cv2
import numpy as np
import pytest

from process_data.segmentation.matting import FILLED, NOISE, plate_noise, refine, steady_matte

SIZE = 256
PERSON = np.array([60, 40, 30], np.float32)


@pytest.fixture(scope="module")
def plate():
    rng = np.random.default_rng(0)
    return cv2.resize(rng.integers(120, 256, (6, 6, 3)).astype(np.uint8), (SIZE, SIZE), interpolation=cv2.INTER_CUBIC)


def disc(x, y, radius, softness):
    rows, columns = np.mgrid[:SIZE, :SIZE]
    distance = np.hypot(columns - x, rows - y)
    return np.clip((radius - distance) / softness + 0.5, 0, 1).astype(np.float32)


def scene(plate, alpha, noise=1.5):
    rng = np.random.default_rng(1)
    frame = alpha[..., None] * PERSON + (1 - alpha[..., None]) * plate + rng.normal(size=plate.shape) * noise
    return np.clip(frame.round(), 0, 255).astype(np.uint8)


def rough(x, y, radius):
    """A matte that is off by three pixels."""
    return (disc(x + 2, y - 2, radius + 2, 4) * 255).astype(np.uint8)


def test_a_flicker_leaves_no_trace_and_motion_is_followed():
    still, moving = rough(128, 128, 60), [rough(124 + 4 * k, 128, 60) for k in range(3)]
    np.testing.assert_array_equal(steady_matte(np.stack([still, np.zeros_like(still), still])), still)
    wrong = np.abs(steady_matte(np.stack(moving)).astype(int) - moving[1])
    assert wrong.mean() < 0.2
    np.testing.assert_array_equal(steady_matte(still[None]), still)


def test_the_plate_tells_the_share_of_mixed_pixels(plate):
    truth = disc(128, 128, 60, 7)
    frame, matte = scene(plate, truth), np.stack([rough(128, 128, 60)] * 3)
    seen = np.ones((SIZE, SIZE), bool)
    alpha = refine(frame, matte, plate, seen, plate_noise(plate, seen)) / 255
    band = (truth > 0) & (truth < 1)
    coarse = matte[0] / 255
    assert np.abs(alpha - truth)[band].mean() < 0.07 < 0.15 < np.abs(coarse - truth)[band].mean()
    assert (alpha[disc(128, 128, 75, 1) == 0] == 0).all() and (alpha[disc(128, 128, 45, 1) == 1] == 1).all()


def test_an_unseen_plate_is_trusted_less_and_the_frames_edges_are_followed(plate):
    truth = disc(128, 128, 60, 2)
    frame, matte = scene(plate, truth), np.stack([rough(128, 128, 60)] * 3)
    seen = disc(128, 128, 66, 1) == 0
    unknown = plate.copy()
    unknown[~seen] = 128
    alpha = refine(frame, matte, unknown, seen, plate_noise(unknown, seen)) / 255
    assert ((alpha > 0.5) == (truth > 0.5)).mean() > 0.99
    nothing = np.zeros_like(seen)
    alpha = refine(frame, matte, unknown, nothing, plate_noise(unknown, nothing)) / 255
    assert ((alpha > 0.5) == (truth > 0.5)).mean() > 0.98


def test_a_change_of_light_does_not_make_the_background_a_person(plate):
    truth = disc(128, 128, 60, 4)
    frame = np.clip(scene(plate, truth).astype(int) - 10, 0, 255).astype(np.uint8)
    seen = np.ones((SIZE, SIZE), bool)
    alpha = refine(frame, np.stack([rough(128, 128, 60)] * 2), plate, seen, plate_noise(plate, seen)) / 255
    assert np.abs(alpha - truth).mean() < 0.012


def test_noise_is_higher_where_the_filling_is_a_guess():
    rng = np.random.default_rng(3)
    plate = np.full((128, 128, 3), 100, np.uint8)
    plate[64:] = rng.integers(0, 256, (64, 128, 3))
    seen = np.ones((128, 128), bool)
    seen[:, 60:64] = False
    noise = plate_noise(plate, seen)
    assert (noise[seen] == NOISE).all()
    assert noise[20, 62] == pytest.approx(FILLED) and noise[100, 62] > 10 * FILLED
