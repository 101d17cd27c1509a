import numpy as np
import pytest

from shared.errors import TalkheadError
from shared.landmark_edit import apply_blink, blink, mouth_gain, natural_blinks, retime, smile, smooth
from shared.landmarks import JAW, LIPS, eye_opening


@pytest.fixture
def face():
    lm = np.random.default_rng(1).normal(size=(68, 3)) * 0.02
    lm[[37, 38, 43, 44], 1] = 0.005
    lm[[41, 40, 47, 46], 1] = -0.005
    lm[48], lm[54] = [-0.025, -0.07, 0.01], [0.025, -0.07, 0.01]
    return lm


def test_mouth_gain_scales_only_lips_and_jaw(face):
    moved = np.stack([face, face + 0.001])
    out = mouth_gain(moved, face, 1.5)
    np.testing.assert_allclose(out[1, JAW + LIPS], face[JAW + LIPS] + 0.0015)
    others = [k for k in range(68) if k not in JAW + LIPS]
    np.testing.assert_array_equal(out[:, others], moved[:, others])
    np.testing.assert_allclose(mouth_gain(moved, face, 1.0), moved)


def test_smile_moves_corners_out_and_up(face):
    out = smile(face[None], 1.0)[0] - face
    assert out[48, 0] < -0.005 and out[54, 0] > 0.005
    assert out[48, 1] > 0.005 and out[54, 1] > 0.005
    assert np.abs(out[:48]).max() == 0


def test_blink_closes_the_lids_completely(face):
    closed = apply_blink(np.stack([face, face]), np.array([0.0, 1.0]))
    np.testing.assert_allclose(eye_opening(closed)[1], 0, atol=1e-12)
    np.testing.assert_array_equal(closed[0], face)


def test_natural_blinks_are_seeded_and_as_frequent_as_people_blink():
    a = natural_blinks(25 * 600, np.random.default_rng(3))
    np.testing.assert_array_equal(a, natural_blinks(25 * 600, np.random.default_rng(3)))
    assert not np.array_equal(a, natural_blinks(25 * 600, np.random.default_rng(4)))
    count = ((a[1:] > 0.8) & (a[:-1] <= 0.8)).sum()
    assert 100 < count < 260  # 10 to 26 a minute
    assert a.min() == 0 and a.max() <= 1
    assert natural_blinks(100, np.random.default_rng(0), rate=0).max() == 0


def test_smooth_keeps_a_parabola_and_reduces_noise():
    t = np.linspace(-1, 1, 41)
    clean = np.broadcast_to((t**2)[:, None, None], (41, 68, 3))
    np.testing.assert_allclose(smooth(clean, 3), clean, atol=1e-12)
    noise = np.random.default_rng(0).normal(size=(200, 68, 3))
    assert smooth(noise, 3).std() < 0.7 * noise.std()
    for frames in (1, 2, 3):
        assert smooth(noise[:2], frames).shape == (2, 68, 3)
    np.testing.assert_array_equal(smooth(noise, 0), noise)
    with pytest.raises(TalkheadError, match="found -1"):
        smooth(noise, -1)


def test_retime_changes_the_length_and_keeps_the_ends():
    lm = np.random.default_rng(0).normal(size=(50, 68, 3))
    fast = retime(lm, 2.0)
    assert fast.shape == (25, 68, 3)
    np.testing.assert_allclose(fast[[0, -1]], lm[[0, -1]], atol=1e-12)
    assert retime(lm, 0.5).shape[0] == 100
    assert retime(lm[:1], 0.5).shape[0] == 2
    with pytest.raises(TalkheadError, match="found 0"):
        retime(lm, 0)


def test_blink_refuses_a_negative_rate(face):
    with pytest.raises(TalkheadError, match="found -1"):
        blink(face[None], -1, np.random.default_rng(0))
