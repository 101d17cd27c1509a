import numpy as np
import pytest

from process_data.actor.actor import actor_landmarks
from process_data.lip_lag import SHORTEST, band_power, estimate_lag, shift_audio
from shared.landmarks import SAMPLE_RATE, SAMPLES_PER_FRAME, lip_opening


@pytest.fixture(scope="module")
def actor():
    sound, landmarks = actor_landmarks("train", 0)
    return sound[: len(landmarks) * SAMPLES_PER_FRAME], landmarks


def test_the_actor_is_in_sync(actor):
    assert abs(estimate_lag(*actor)) < 30  # less than a frame


@pytest.mark.parametrize("late_ms", [-200, -80, -40, 13, 40, 120, 200])
def test_a_known_shift_is_found(actor, late_ms):
    sound, landmarks = actor
    found = estimate_lag(shift_audio(sound, -late_ms), landmarks) - estimate_lag(sound, landmarks)
    assert found == pytest.approx(late_ms, abs=5)


def test_lips_some_frames_late_have_a_positive_lag(actor):
    sound, landmarks = actor
    late = np.concatenate([np.repeat(landmarks[:1], 3, axis=0), landmarks[:-3]])
    assert estimate_lag(sound, late) - estimate_lag(sound, landmarks) == pytest.approx(120, abs=8)


def test_shifting_by_the_lag_brings_sound_and_lips_together(actor):
    sound, landmarks = actor
    early = shift_audio(sound, -100)
    assert abs(estimate_lag(shift_audio(early, estimate_lag(early, landmarks)), landmarks)) < 5


def test_short_clips_and_loudness_and_noise(actor):
    sound, landmarks = actor
    whole = estimate_lag(sound, landmarks)
    part = slice(0, 250)
    assert estimate_lag(sound[: 250 * SAMPLES_PER_FRAME], landmarks[part]) == pytest.approx(whole, abs=25)
    assert estimate_lag(0.01 * sound, landmarks) == pytest.approx(whole, abs=1)
    noise = np.random.default_rng(0).normal(0, 0.02, sound.shape).astype(np.float32)
    assert estimate_lag(sound + noise, landmarks) == pytest.approx(whole, abs=25)


def test_nothing_is_told_where_nothing_can_be(actor):
    sound, landmarks = actor
    noise = np.random.default_rng(0).normal(0, 0.1, sound.shape).astype(np.float32)
    assert estimate_lag(noise, landmarks) is None
    assert estimate_lag(np.zeros_like(sound), landmarks) is None
    assert estimate_lag(sound, np.repeat(landmarks[:1], len(landmarks), axis=0)) is None
    assert estimate_lag(sound[::-1], landmarks) is None
    assert estimate_lag(np.roll(sound, len(sound) // 2), landmarks) is None
    short = SHORTEST - 1
    assert estimate_lag(sound[: short * SAMPLES_PER_FRAME], landmarks[:short]) is None


def test_half_a_second_out_of_reach_is_not_a_small_lag(actor):
    sound, landmarks = actor
    assert estimate_lag(shift_audio(sound, 600), landmarks) is None


def test_shift_audio_moves_and_fills_with_silence():
    sound = np.arange(1, 65, dtype=np.float32)
    late = shift_audio(sound, 1)  # 16 samples
    assert (late[:16] == 0).all() and (late[16:] == sound[:-16]).all() and late.dtype == np.float32
    early = shift_audio(sound, -1)
    assert (early[-16:] == 0).all() and (early[:-16] == sound[16:]).all()
    assert (shift_audio(sound, 0) == sound).all()
    assert (shift_audio(sound, 1e6) == 0).all() and len(shift_audio(sound, -1e6)) == 64


def test_band_power_finds_a_tone_and_does_not_depend_on_blocks():
    time = np.arange(SAMPLE_RATE) / SAMPLE_RATE
    tone = np.sin(2 * np.pi * 1108 * time).astype(np.float32)
    power = band_power(tone, 0, 100)
    assert (power[5:95].argmax(axis=1) == 5).all()  # the sixth band is centred on 1108 Hz
    np.testing.assert_allclose(np.concatenate([band_power(tone, 0, 30), band_power(tone, 30, 70)]), power, rtol=1e-5)


def test_the_actor_moves_enough_for_these_tests(actor):
    assert np.ptp(lip_opening(actor[1])) > 0.008
