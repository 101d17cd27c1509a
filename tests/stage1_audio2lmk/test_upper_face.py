import numpy as np
import pytest

from shared.landmark_edit import natural_blinks
from shared.landmarks import BROW_LEFT, BROW_RIGHT, JAW, LIPS, MIRROR, NOSE, eye_opening
from stage1_audio2lmk.stream import Predictor, predict
from stage1_audio2lmk.upper_face import HIGHEST_BROW, LID_SHARE, Blinks, Brows, Liveliness, raise_brows

MINUTE = 1500


@pytest.fixture
def levels() -> np.ndarray:
    """(4500,) dB of three minutes of phrases: two seconds of syllables at 4 Hz, half a second of pause."""
    rng = np.random.default_rng(1)
    time = np.arange(3 * MINUTE) / 25
    loud = -24 + 6 * np.sin(2 * np.pi * 4 * time) + np.repeat(rng.normal(scale=4, size=len(time) // 10), 10)
    return np.where(time % 2.5 < 2, loud, -62)


@pytest.mark.parametrize("seed", [0, 1, 7])
def test_blinks_are_the_natural_ones_in_pieces(seed: int) -> None:
    blinks = Blinks(seed)
    pieces = [blinks.take(size) for size in (0, 1, 1, 7, 3, 250, 0, 11, 1000, 4000)]
    together = np.concatenate(pieces)
    np.testing.assert_array_equal(together, natural_blinks(len(together), np.random.default_rng(seed)))


def test_blinks_come_at_realistic_intervals() -> None:
    closure = Blinks(3).take(60 * MINUTE)
    starts = np.flatnonzero((closure[1:] > 0.5) & (closure[:-1] <= 0.5))
    gaps = np.diff(starts) / 25
    assert 14 < len(starts) / 60 < 20  # a minute
    assert 0.5 <= gaps.min() + 0.04 and np.percentile(gaps, 90) > 2 * np.median(gaps) * 0.8
    assert gaps.std() / gaps.mean() > 0.4  # irregular


def test_the_state_of_an_hour_is_that_of_a_second() -> None:
    blinks = Blinks(0)
    for _ in range(60):
        blinks.take(MINUTE)
    assert len(blinks.tail) == 8 and blinks.tail.base is None


def test_brows_in_pieces_are_those_of_the_whole(levels: np.ndarray) -> None:
    brows = Brows(2)
    parts = [brows.take(part) for part in np.split(levels, [1, 2, 2, 500, 503])]
    np.testing.assert_allclose(np.concatenate(parts), Brows(2).take(levels), rtol=0, atol=1e-12)


def test_brows_follow_emphasis_and_stay_small(levels: np.ndarray) -> None:
    heights = Brows(0).take(levels)
    assert 0 <= heights.min() and heights.max() <= HIGHEST_BROW
    assert 0.0001 < heights.std() < 0.0006 and 0.0005 < heights.max()
    assert np.abs(np.diff(heights)).max() < 0.0004  # smooth: less than a pixel a frame at 512²
    lag = max(range(-12, 13), key=lambda k: np.corrcoef(np.roll(heights, -k)[20:-20], np.clip(levels, -50, -15)[20:-20])[0, 1])
    assert 0 <= lag <= 5
    assert np.abs(heights - Brows(1).take(levels)).max() > 0.0002  # the seed decides how willingly


def test_brows_rest_in_silence_and_get_used_to_a_steady_voice() -> None:
    assert Brows(0).take(np.full(500, -100.0)).max() == 0
    steady = Brows(0).take(np.full(1500, -20.0))
    assert steady[-25:].max() < 1e-6 < steady.max()


def test_only_brows_and_upper_lids_are_lifted_the_same_on_both_sides() -> None:
    face = np.random.default_rng(0).normal(size=(2, 68, 3))
    moved = raise_brows(face, np.array([0.0, 0.001])) - face
    assert np.abs(moved[0]).max() == 0
    still = sorted(set(range(68)) - set(BROW_RIGHT + BROW_LEFT + [37, 38, 43, 44]))
    assert np.abs(moved[:, still]).max() == 0
    np.testing.assert_allclose(moved[:, MIRROR], moved)
    assert moved[1, 19, 1] == pytest.approx(0.001) and moved[1, 37, 1] == pytest.approx(LID_SHARE * 0.001)


def test_lids_still_close_under_raised_brows(levels: np.ndarray) -> None:
    face = np.zeros((len(levels), 68, 3), np.float32)
    face[:, [37, 38, 43, 44], 1] = 0.01
    opening = eye_opening(Liveliness(0).apply(face, levels))
    assert opening.min() == pytest.approx(0, abs=0.001) and 0.01 <= opening.max() <= 0.01 + LID_SHARE * HIGHEST_BROW


def test_gain_zero_is_blinks_alone_and_false_is_nothing(predictor: Predictor, speech: np.ndarray) -> None:
    neutral = np.random.default_rng(3).normal(scale=0.03, size=(68, 3)).astype(np.float32)
    sound = np.tile(speech, 3)
    rows = [predict(predictor, sound, neutral, seed=1, **extra) for extra in
            ({}, {}, {"liveliness": 0.0}, {"blinks": False}, {"liveliness": 2.0})]
    brows = [np.abs(r[:, BROW_RIGHT + BROW_LEFT] - neutral[BROW_RIGHT + BROW_LEFT]).max() for r in rows]
    np.testing.assert_array_equal(rows[0], rows[1])
    assert brows[2] == brows[3] == 0 and brows[4] == pytest.approx(2 * brows[0], rel=1e-3) and brows[0] > 1e-4
    assert np.abs(rows[2] - rows[3]).max() > 1e-3
    for other in rows[1:]:
        np.testing.assert_array_equal(other[:, JAW + LIPS + NOSE], rows[0][:, JAW + LIPS + NOSE])
