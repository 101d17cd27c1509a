"""Light, sharpness and background of pictures whose truth is known."""

import cv2
import numpy as np
import pytest

from process_data.check_picture import background_change, blur_of, face_box, face_light, flicker_of
from shared.camera import project
from shared.face_check import TEMPLATE

SIZE = 256
POSE = np.array([[1, 0, 0, 0], [0, -1, 0, 0], [0, 0, -1, 0.6], [0, 0, 0, 1]], np.float32)[None]
FACE = project(TEMPLATE[None].astype(np.float32), POSE, (500.0, 500.0, SIZE / 2, SIZE / 2))[0]
NOBODY = [np.zeros((SIZE, SIZE), np.uint8)]


def texture(rng, size=SIZE):
    """Smooth blobs with edges, as a grey picture."""
    return ((cv2.GaussianBlur(rng.standard_normal((size, size)), (0, 0), 5) > 0) * 160 + 40).astype(np.uint8)


def test_a_picture_that_is_blurred_more_has_more_blur():
    picture = texture(np.random.default_rng(0))
    found = [blur_of(picture), *(blur_of(cv2.GaussianBlur(picture, (0, 0), sigma)) for sigma in (0.5, 1, 2, 4))]
    assert found == sorted(found) and found[0] < 0.3 and found[-1] > 0.7


def test_blur_along_one_direction_counts_as_motion_does():
    picture = texture(np.random.default_rng(0))
    assert blur_of(cv2.blur(picture, (15, 1))) > blur_of(picture) + 0.2


def test_the_face_is_cut_to_the_picture():
    rows, columns = face_box(np.array([[-5.0, 10.2], [30.5, 90.0]]), (64, 48, 3))
    assert (rows.start, rows.stop, columns.start, columns.stop) == (10, 64, 0, 32)


def test_even_light_one_sided_light_and_burnt_out_skin():
    even = np.full((SIZE, SIZE, 3), 120, np.uint8)
    bright, burnt, sides = face_light(even, FACE)
    assert (bright, burnt) == (120, 0) and sides == pytest.approx(0, abs=1e-6)
    lit = even.copy()
    lit[:, : SIZE // 2] = 240
    assert face_light(lit, FACE)[2] == pytest.approx(2.2, abs=0.15)  # twice the grey level is 2.2 stops
    lit[:] = 252
    assert face_light(lit, FACE)[1] == 1


def test_a_shifted_background_is_the_camera_and_a_changed_one_is_not():
    rng = np.random.default_rng(1)
    wide = texture(rng, 400)
    first, moved = wide[:SIZE, :320], wide[3 : SIZE + 3, 4:324]
    shift, _ = background_change(first, moved, NOBODY)
    assert shift == pytest.approx(5 / 320, rel=0.1)
    changed = first.copy()
    changed[:64, :80] = 255 - changed[:64, :80]
    shift, share = background_change(first, changed, NOBODY)
    assert shift < 0.001 and share == pytest.approx(64 * 80 / first.size, rel=0.2)


def test_the_person_is_no_background():
    first = texture(np.random.default_rng(2))
    changed = first.copy()
    changed[100:, 60:200] = 255 - changed[100:, 60:200]
    matte = np.zeros((SIZE, SIZE), np.uint8)
    matte[100:, 60:200] = 255
    assert background_change(first, changed, [matte])[1] == 0
    assert background_change(first, changed, [np.full((SIZE, SIZE), 255, np.uint8)]) == (None, None)


def test_flicker_is_what_is_left_of_a_smooth_course():
    t = np.arange(500)
    smooth = 100 + 20 * np.sin(t / 40)
    assert flicker_of(smooth) < 1e-3
    assert flicker_of(smooth + np.random.default_rng(0).standard_normal(500)) == pytest.approx(0.01, rel=0.15)
