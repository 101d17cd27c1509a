import time

import numpy as np
import pytest
from scipy.signal import lfilter

from stage1_audio2lmk.audio import formants
from stage1_audio2lmk.audio.formant_tracker import NEUTRAL, FormantTracker
from stage1_audio2lmk.audio.formants import PITCH_WINDOW, WINDOW, FormantStream
from tests.stage1_audio2lmk.synthetic_vowels import RATE, TRACTS, VOWELS, glide, steady, voice

STEP = 320  # samples between analyses
DELAY = WINDOW // 2  # an analysis tells of the middle of its window


def analyse(sound: np.ndarray) -> np.ndarray:
    """Sound (n,) after silence -> (n // 320, 9)."""
    padded = np.concatenate([np.zeros(PITCH_WINDOW - STEP), sound])
    return FormantStream().push(np.lib.stride_tricks.sliding_window_view(padded, PITCH_WINDOW)[::STEP])


def errors(track: np.ndarray, f0: np.ndarray | float, tract: float, snr: float | None, seed: int) -> np.ndarray:
    """|found − true| / true (n, 3) of the analyses after the first three."""
    found = analyse(voice(track, f0, tract, snr, seed))[3:, :3]
    truth = track[(np.arange(len(found)) + 4) * STEP - DELAY]
    return np.abs(found - truth) / truth


@pytest.mark.parametrize("tract", TRACTS)
@pytest.mark.parametrize("snr", [None, 20.0])
def test_known_vowels(tract: str, snr: float | None) -> None:
    """Half of all vowels and voices within 5 % (F1, F2) and 10 % (F3), and every vowel of a voice up to 200 Hz without noise."""
    seed, pooled = 0, []
    for name in VOWELS:
        for f0 in (80.0, 120.0, 170.0, 230.0, 300.0):
            track = steady(name, TRACTS[tract], 0.3)
            one = np.median(errors(track, f0 * np.geomspace(0.9, 1.1, len(track)), TRACTS[tract], snr, seed), axis=0)
            pooled.append(one)
            seed += 1
            if snr is None and f0 < 200:
                assert (one < [0.12, 0.08, 0.08]).all(), (name, f0, one)
    assert (np.median(pooled, axis=0) < [0.05, 0.05, 0.1]).all(), np.median(pooled, axis=0)


@pytest.mark.parametrize("tract", TRACTS)
@pytest.mark.parametrize("names", ["a i", "i u", "schwa y", "o i a u", "ae i o e a y"])
def test_glides_keep_their_order_and_do_not_swap(names: str, tract: str) -> None:
    track = glide(names.split(), TRACTS[tract])
    found = analyse(voice(track, np.geomspace(110, 150, len(track)), TRACTS[tract]))[3:, :3]
    truth = track[(np.arange(len(found)) + 4) * STEP - DELAY]
    assert (np.diff(found, axis=1) > 0).all()
    nearest = np.abs(np.log(found[:, :, None] / truth[:, None])).argmin(2)
    assert (nearest == [0, 1, 2]).mean() > 0.97, nearest
    assert (np.quantile(np.abs(found / truth - 1), 0.9, axis=0) < [0.15, 0.15, 0.1]).all()


def test_a_stray_resonance_does_not_take_a_track_over() -> None:
    usual = np.array([[500, 80], [1500, 100], [2500, 120], [3500, 200], [np.inf, np.inf]])
    stray = np.array([[500, 80], [1000, 60], [1500, 100], [2500, 120], [3500, 200]])
    found = FormantTracker().follow(np.stack([usual] * 20 + [stray] * 3 + [usual] * 5), np.ones(28))
    np.testing.assert_allclose(found[10:, :3], [[500, 1500, 2500]] * 18, rtol=1e-6)


def test_a_formant_without_a_resonance_is_held_and_found_again() -> None:
    both = np.array([[400, 80], [1900, 100], [2600, 120]])
    gone = np.array([[400, 80], [2600, 120], [np.inf, np.inf]])
    found = FormantTracker().follow(np.stack([both] * 20 + [gone] * 4 + [both] * 4), np.ones(28))
    np.testing.assert_allclose(found[10:, :3], [[400, 1900, 2600]] * 18, rtol=1e-6)


def test_a_lost_track_is_found_again() -> None:
    before, after = np.array([[300, 50], [2200, 60], [2900, 80]]), np.array([[700, 50], [1100, 60], [2500, 80]])
    found = FormantTracker().follow(np.stack([before] * 20 + [after] * 10), np.ones(30))
    np.testing.assert_allclose(found[-5:, :3], [[700, 1100, 2500]] * 5, rtol=1e-6)


def test_tracks_hold_without_trust_and_end_in_neutral() -> None:
    tracker = FormantTracker()
    vowel = np.array([[300.0, 80.0], [2200, 100], [2900, 120]])
    last = tracker.follow(np.stack([vowel] * 20), np.ones(20))[-1]
    quiet = tracker.follow(np.full((200, 3, 2), np.inf), np.zeros(200))
    assert np.abs(np.diff(np.log(np.vstack([last, quiet])[:, :3]), axis=0)).max() < 0.05
    np.testing.assert_allclose(quiet[-1, :3], np.exp(NEUTRAL), rtol=1e-2)


def test_order_holds_for_any_resonances() -> None:
    rng = np.random.default_rng(0)
    found = np.sort(rng.uniform(120, 5000, (300, 7)), axis=1)
    bandwidth = rng.uniform(20, 900, (300, 7))
    count = rng.integers(0, 8, 300)
    resonances = np.where((np.arange(7) < count[:, None])[:, :, None], np.stack([found, bandwidth], 2), np.inf)
    out = FormantTracker().follow(resonances, rng.random(300))
    assert np.isfinite(out).all() and (np.diff(out[:, :3], axis=1) > 0).all() and (out[:, 3:] > 0).all()


def test_weighted_covariance_equals_a_slow_reference() -> None:
    rng = np.random.default_rng(1)
    order, samples, weight = formants.ORDER, rng.normal(size=(2, formants.ORDER + 40)), rng.random((2, 40))
    got = formants.weighted_covariance(samples, weight)
    for n in range(2):
        for i in range(order + 1):
            for j in range(order + 1):
                want = sum(weight[n, t] * samples[n, order + t - i] * samples[n, order + t - j] for t in range(40))
                assert got[n, i, j] == pytest.approx(want, rel=1e-9)


def test_white_noise_has_its_covariance() -> None:
    """Without weights, noise after pre-emphasis and cut has the covariance that is taken away, up to its level."""
    noise = np.random.default_rng(2).normal(size=200000)
    emphasised = lfilter([1, -formants.PRE_EMPHASIS], [1], noise)
    slow = np.fft.irfft(np.fft.rfft(emphasised)[: int(len(noise) / 3) + 1])
    lags = np.array([slow[: len(slow) - k] @ slow[k:] for k in range(formants.ORDER + 1)])
    expected, whiten = formants.white_noise()
    np.testing.assert_allclose(lags / lags[0], expected[0] / expected[0, 0], atol=0.02)
    np.testing.assert_allclose(whiten @ expected @ whiten.T, np.eye(formants.ORDER + 1), atol=1e-9)


@pytest.mark.parametrize("stable", [True, False])
def test_roots_give_frequency_and_bandwidth(stable: bool) -> None:
    """An unstable prediction, which weights allow, has the resonances of its mirror image."""
    rate, polynomial = 2 * formants.BAND, np.ones(1)
    for frequency, bandwidth in ((500, 60), (1500, 100), (2500, 150)):
        radius, angle = np.exp(-np.pi * bandwidth / rate), 2 * np.pi * frequency / rate
        radius = radius if stable else 1 / radius
        polynomial = np.convolve(polynomial, [1, -2 * radius * np.cos(angle), radius**2])
    found = formants.resonances(polynomial[None])[0]
    np.testing.assert_allclose(found[:3], [[500, 60], [1500, 100], [2500, 150]], rtol=1e-6)
    assert np.isinf(found[3:]).all()


@pytest.mark.parametrize("f0", [80.0, 125.0, 210.0, 300.0])
def test_pitch_and_voicing_of_a_vowel(f0: float) -> None:
    table = analyse(voice(steady("a", 1.0), f0, snr=20))[3:]
    np.testing.assert_allclose(table[:, 7], f0, rtol=0.02)
    assert np.median(table[:, 6]) > 0.8


def test_silence_is_neutral_and_noise_has_no_voice() -> None:
    silent = analyse(np.zeros(RATE))
    np.testing.assert_allclose(silent, [[500, 1500, 2500, 200, 200, 200, 0, 150, -100]] * 50, rtol=1e-6)
    noise = analyse(0.1 * np.random.default_rng(0).normal(size=RATE))
    assert np.median(noise[:, 6]) < 0.3 and np.abs(np.diff(np.log(noise[:, :3]), axis=0)).mean() < 0.05


def test_nothing_odd_for_sounds_that_are_not_speech() -> None:
    rng, at = np.random.default_rng(3), np.arange(RATE) / RATE
    click, burst = np.zeros(RATE), np.zeros(RATE)
    click[[1000, 5119, 9600, 12799]] = 1.0
    burst[5000:5100] = 0.5
    sounds = [click, burst, np.full(RATE, 0.5), np.sin(2 * np.pi * 440 * at), np.sign(np.sin(2 * np.pi * 97 * at)),
              np.clip(5 * rng.normal(size=RATE), -1, 1), 1e-30 * rng.normal(size=RATE)]
    for sound in sounds:
        assert np.isfinite(analyse(sound)).all()


def test_level_shifts_energy_only() -> None:
    sound = voice(steady("a", 1.0, 0.3), 110.0)
    loud, quiet = analyse(sound), analyse(0.1 * sound)
    np.testing.assert_allclose(loud[:, 8] - quiet[:, 8], 20, atol=0.01)
    np.testing.assert_allclose(loud[2:, :8], quiet[2:, :8], rtol=1e-2)


@pytest.mark.parametrize("size", [1, 2, 7, 32, 45])
def test_pieces_equal_the_whole(size: int) -> None:
    sound = voice(glide(["a", "i", "u"], 1.0), 140.0, snr=20)
    windows = np.lib.stride_tricks.sliding_window_view(sound, PITCH_WINDOW)[::STEP]
    stream = FormantStream()
    pieces = np.concatenate([stream.push(windows[i : i + size]) for i in range(0, len(windows), size)])
    np.testing.assert_array_equal(pieces, FormantStream().push(windows))


def test_much_faster_than_real_time() -> None:
    """The benchmark says how much; here is room for a busy machine."""
    sound = voice(glide(["a", "i", "u", "e", "o"], 1.0, 2.0), 140.0, snr=20)
    analyse(sound[:STEP])
    start = time.process_time()
    analyse(sound)
    assert time.process_time() - start < len(sound) / RATE / 25
