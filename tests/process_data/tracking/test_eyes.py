import numpy as np
import pytest

from process_data.tracking.eyes import FARTHEST, HIDDEN, blink, iris_offset, track_gaze
from shared.landmarks import EYE_LEFT, EYE_RIGHT


def face_with_lids(right: np.ndarray, left: np.ndarray) -> np.ndarray:
    """(T,68,3) landmarks with these lid openings in metres."""
    landmarks = np.zeros((len(right), 68, 3), np.float32)
    for upper, lower, opening in (([37, 38], [41, 40], right), ([43, 44], [47, 46], left)):
        landmarks[:, upper, 1] = opening[:, None] / 2
        landmarks[:, lower, 1] = -opening[:, None] / 2
    return landmarks


def test_blink_is_relative_to_each_eye():
    wide, narrow = np.full(100, 0.010), np.full(100, 0.004)
    wide[50], narrow[50] = 0.0, 0.0
    wide[60], narrow[60] = 0.010 * 0.575, 0.004 * 0.575  # half way to shut
    closing = blink(face_with_lids(wide, narrow))
    assert closing.shape == (100, 2) and closing.dtype == np.float32
    np.testing.assert_allclose(closing[0], 0, atol=1e-5)
    np.testing.assert_allclose(closing[50], 1, atol=1e-5)
    np.testing.assert_allclose(closing[60], 0.5, atol=1e-3)


def test_blink_stays_within_its_range_and_ignores_outliers():
    opening = np.full(200, 0.008)
    opening[::20] = 0.0005
    opening[7], opening[9] = 0.03, -0.002
    closing = blink(face_with_lids(opening, opening))[:, 0]
    assert closing.min() == 0 and closing.max() == 1
    assert closing[20] == 1 and np.median(closing) < 0.01


def test_blink_of_an_eye_that_never_opens_is_finite():
    assert np.isfinite(blink(face_with_lids(np.zeros(5), np.zeros(5)))).all()


def eyes_in_picture() -> np.ndarray:
    """(68,2) pixels with eyes 40 pixels wide, in the middle row 100."""
    pixels = np.zeros((68, 2))
    for eye, start in ((EYE_RIGHT, 60.0), (EYE_LEFT, 140.0)):
        pixels[eye] = [[start, 100], [start + 10, 95], [start + 30, 95], [start + 40, 100], [start + 30, 105], [start + 10, 105]]
    return pixels


def test_gaze_is_in_eye_widths_and_follows_the_head():
    pixels = eyes_in_picture()
    irises = np.array([[80 + 8, 100 - 2], [160 + 8, 100 - 2]], float)
    np.testing.assert_allclose(iris_offset(irises[None], pixels[None])[0], [0.2, -0.05], atol=1e-6)
    angle = np.radians(25)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    moved = iris_offset((2 * irises @ turn.T + 30)[None], (2 * pixels @ turn.T + 30)[None])[0]
    np.testing.assert_allclose(moved, [0.2, -0.05], atol=1e-6)


@pytest.mark.parametrize("lost", [0, 1])
def test_gaze_of_one_eye_stands_for_both(lost):
    pixels = eyes_in_picture()
    irises = np.array([[84.0, 100], [164.0, 100]])
    irises[lost] = np.nan
    np.testing.assert_allclose(iris_offset(irises[None], pixels[None])[0], [0.1, 0], atol=1e-6)
    assert np.isnan(iris_offset(np.full((1, 2, 2), np.nan), pixels[None])).all()


def test_gaze_of_an_eye_without_width_is_unknown():
    assert np.isnan(iris_offset(np.ones((1, 2, 2)), np.zeros((1, 68, 2)))).all()


def looking(offset: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Irises (T,2,2), pixels (T,68,2) and landmarks (T,68,3) with open lids of a face whose gaze is offset (T,2)."""
    pixels = np.repeat(eyes_in_picture()[None], len(offset), axis=0)
    irises = np.array([[80.0, 100], [160, 100]]) + 40 * offset[:, None]
    opened = np.full(len(offset), 0.01)
    return irises, pixels, face_with_lids(opened, opened)


def test_tracked_gaze_keeps_jumps_sharp_and_takes_out_single_faults():
    true = np.zeros((40, 2))
    true[20:] = [0.2, 0.05]
    irises, pixels, landmarks = looking(true)
    irises[7] += 5
    found = track_gaze(irises, pixels, landmarks, np.ones(40, bool), [(0, 40)])
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, true, atol=1e-6)


def test_gaze_behind_lids_and_in_bad_frames_is_filled_from_both_sides():
    true = np.stack([np.linspace(-0.1, 0.29, 40), np.zeros(40)], 1)
    irises, pixels, landmarks = looking(true)
    good = np.ones(40, bool)
    landmarks[10:12, [37, 38, 43, 44], 1] = landmarks[10:12, [41, 40, 47, 46], 1] + 0.0015  # a blink pulls the irises down
    assert blink(landmarks)[10:12].min() > HIDDEN
    irises[9:13, :, 1] += 12
    irises[20:23], good[20:25] = np.nan, False
    irises[23:25] += 7
    irises[30, :, 0] += 40 * FARTHEST  # not in the eye
    found = track_gaze(irises, pixels, landmarks, good, [(0, 18), (18, 40)])
    np.testing.assert_allclose(found, true, atol=2e-3)


def test_gaze_of_a_clip_without_irises_is_none():
    irises, pixels, landmarks = looking(np.zeros((5, 2)))
    assert track_gaze(np.full_like(irises, np.nan), pixels, landmarks, np.ones(5, bool), [(0, 5)]) is None
    assert track_gaze(irises, pixels, landmarks, np.zeros(5, bool), [(0, 5)]) is None
