import time

import numpy as np
import pytest
from scipy.linalg import solve_toeplitz
from scipy.signal import lfilter

from stage1_audio2lmk import formants

RATE = 16000
# F1, F2, F3 in Hz of adult male vowels (Peterson and Barney 1952)
VOWELS = {"i": (270, 2290, 3010), "a": (730, 1090, 2440), "u": (300, 870, 2240), "ae": (660, 1720, 2410),
          "er": (490, 1350, 1690)}


def vowel(resonances: tuple[float, ...], f0: float, seconds: float = 0.5) -> np.ndarray:
    """Source and filter: pulses with a −12 dB/octave slope through resonators, +6 dB/octave of the lips."""
    count = int(seconds * RATE)
    source = np.zeros(count)
    source[np.round(np.arange(0, count, RATE / f0)).astype(int)[:-1]] = 1.0
    sound = lfilter([1], np.convolve([1, -0.98], [1, -0.98]), source)
    for frequency, bandwidth in zip((*resonances, 3500.0, 4500.0), (60, 90, 120, 180, 250)):
        radius, angle = np.exp(-np.pi * bandwidth / RATE), 2 * np.pi * frequency / RATE
        sound = lfilter([1], [1, -2 * radius * np.cos(angle), radius**2], sound)
    sound = lfilter([1, -0.98], [1], sound)
    return 0.3 * sound / np.abs(sound).max()


def windows(sound: np.ndarray) -> np.ndarray:
    return np.lib.stride_tricks.sliding_window_view(sound, formants.PITCH_WINDOW)[2000::160]


@pytest.mark.parametrize("name", VOWELS)
@pytest.mark.parametrize("f0", [100.0, 125.0])
def test_known_vowels(name: str, f0: float) -> None:
    table = formants.analyse(windows(vowel(VOWELS[name], f0)))
    found = np.median(table[:, :3], axis=0)
    for got, true in zip(found, VOWELS[name]):
        assert abs(got - true) < max(60, 0.08 * true), (name, found)
    assert np.median(table[:, 7]) == pytest.approx(f0, rel=0.03)
    assert np.median(table[:, 6]) > 0.8
    assert ((table[:, 3:6] > 0) & (table[:, 3:6] < formants.WIDEST_BANDWIDTH)).mean() > 0.9


def test_levinson_solves_the_normal_equations() -> None:
    rng = np.random.default_rng(1)
    frames = rng.normal(size=(5, 400))
    r = np.stack([np.correlate(f, f, "full")[399 : 399 + 13] for f in frames])
    for row, polynomial in zip(r, formants.levinson(r)):
        np.testing.assert_allclose(polynomial[1:], solve_toeplitz(row[:-1], -row[1:]), rtol=1e-5, atol=1e-7)


def test_roots_give_frequency_and_bandwidth() -> None:
    rate, polynomial = 2 * formants.BAND, np.ones(1)
    for frequency, bandwidth in ((500, 60), (1500, 100), (2500, 150)):
        radius, angle = np.exp(-np.pi * bandwidth / rate), 2 * np.pi * frequency / rate
        polynomial = np.convolve(polynomial, [1, -2 * radius * np.cos(angle), radius**2])
    np.testing.assert_allclose(formants.formants(polynomial[None])[0], [500, 1500, 2500, 60, 100, 150], rtol=1e-6)


def test_pre_emphasis_lifts_high_frequencies() -> None:
    """The filter is 1 − 0.97 z⁻¹: with the sign the other way the resonance at 3 kHz of a steep source is lost."""
    table = formants.analyse(windows(vowel((500, 1500, 3000), 100)))
    assert abs(np.median(table[:, 2]) - 3000) < 150


def test_silence_and_noise_have_no_voice() -> None:
    silent = formants.analyse(np.zeros((4, formants.PITCH_WINDOW)))
    assert (silent[:, :8] == 0).all() and np.isfinite(silent).all()
    noise = formants.analyse(0.1 * np.random.default_rng(0).normal(size=(50, formants.PITCH_WINDOW)))
    assert (noise[:, 7] == 0).mean() > 0.9


def test_level_shifts_energy_only() -> None:
    frames = windows(vowel(VOWELS["a"], 110))
    loud, quiet = formants.analyse(frames), formants.analyse(frames * 0.1)
    np.testing.assert_allclose(loud[:, 8] - quiet[:, 8], 20, atol=0.01)
    np.testing.assert_allclose(loud[:, :3], quiet[:, :3], rtol=1e-2)


def test_much_faster_than_real_time() -> None:
    sound = np.random.default_rng(0).normal(size=10 * RATE) * 0.1
    frames = np.lib.stride_tricks.sliding_window_view(sound, formants.PITCH_WINDOW)[:: RATE // 50]
    start = time.perf_counter()
    formants.analyse(frames)
    assert time.perf_counter() - start < 10 / 20
