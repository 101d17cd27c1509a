"""Vowels by source and filter, with formants, F0 and noise that are known at every sample."""

import numba
import numpy as np
from scipy.signal import lfilter

RATE = 16000
# F1, F2, F3 in Hz of an adult man (Peterson and Barney 1952; /e/, /o/, /y/ and schwa after Fant 1973)
VOWELS = {"i": (270, 2290, 3010), "e": (400, 2000, 2550), "a": (730, 1090, 2440), "o": (430, 800, 2400),
          "u": (300, 870, 2240), "y": (260, 1750, 2150), "schwa": (500, 1500, 2500), "ae": (660, 1720, 2410)}
TRACTS = {"man": 1.0, "woman": 1.17, "child": 1.35}  # formants against those of a man: shorter tracts
BANDWIDTHS = (60.0, 90.0, 120.0, 180.0, 250.0, 300.0, 350.0)


@numba.njit(cache=True)
def resonate(source: np.ndarray, frequency: np.ndarray, bandwidth: np.ndarray) -> np.ndarray:
    """source (n,) through resonators in series, whose frequency and bandwidth (n, k) in Hz change with time."""
    sound = source.copy()
    for k in range(frequency.shape[1]):
        first = second = 0.0
        for n in range(len(sound)):
            radius = np.exp(-np.pi * bandwidth[n, k] / RATE)
            a1, a2 = 2 * radius * np.cos(2 * np.pi * frequency[n, k] / RATE), radius * radius
            first, second = (1 - a1 + a2) * sound[n] + a1 * first - a2 * second, first
            sound[n] = first
    return sound


def voice(track: np.ndarray, f0: np.ndarray | float, tract: float = 1.0, snr: float | None = None,
          seed: int = 0) -> np.ndarray:
    """Formants F1–F3 (n, 3) in Hz and F0 (n,) or one number -> sound (n,) with a peak of 0.3.

    Band-limited pulses with a slope of −12 dB an octave above 100 Hz, further resonances at 3.5, 4.5, 5.5 and 6.5 kHz
    times `tract` (those below 7.5 kHz), +6 dB an octave of the lips, then white noise at `snr` dB.
    """
    rng = np.random.default_rng(seed)
    pitch = np.broadcast_to(np.asarray(f0, float), len(track))
    phase = 2 * np.pi * (np.cumsum(pitch) / RATE + rng.random())
    source = np.zeros(len(track))
    for k in range(1, int(7800 / pitch.min()) + 1):
        source += np.cos(k * phase) * (k * pitch < 7800)
    pole = np.exp(-2 * np.pi * 100 / RATE)
    source = lfilter([1], np.convolve([1, -pole], [1, -pole]), source)
    upper = np.array([3500, 4500, 5500, 6500]) * tract
    frequency = np.column_stack([track, np.tile(upper[upper < 7500], (len(track), 1))])
    bandwidth = np.tile(BANDWIDTHS[: frequency.shape[1]], (len(track), 1))
    sound = lfilter([1, -0.98], [1], resonate(source, frequency, bandwidth))
    sound = 0.3 * sound / np.abs(sound).max()
    if snr is not None:
        sound = sound + rng.normal(size=len(sound)) * np.sqrt((sound**2).mean()) * 10 ** (-snr / 20)
    return sound


def steady(name: str, tract: float, seconds: float = 0.6) -> np.ndarray:
    """Track (n, 3) of a vowel that is held."""
    return np.tile(np.array(VOWELS[name], float) * tract, (int(seconds * RATE), 1))


def glide(names: list[str], tract: float, seconds: float = 0.25) -> np.ndarray:
    """Track (n, 3) through vowels, with half a cosine of `seconds` from each to the next."""
    turn = (1 - np.cos(np.pi * np.arange(int(seconds * RATE)) / (seconds * RATE))) / 2
    points = np.array([VOWELS[name] for name in names], float) * tract
    return np.concatenate([a + turn[:, None] * (b - a) for a, b in zip(points[:-1], points[1:])])
