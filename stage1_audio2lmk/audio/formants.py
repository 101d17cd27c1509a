"""Formants F1–F3 with bandwidths, voicing, F0 and energy, by weighted linear prediction. Vectorised over analyses.

Each sample's error is weighted by the energy of the samples just before it (Ma, Kamp and Willems, Speech Communication
1993): what follows a glottal pulse is loud, free of excitation and least touched by noise, so that resonances are not drawn
to the harmonics of a high voice. The window is brought to 10.67 kHz by its own Fourier transform, cut at 5.33 kHz, so that an
analysis depends on its window alone; only the choice which resonance is which formant depends on the past.
"""

import functools

import numpy as np

from shared.compiled import cached_njit
from shared.landmarks import SAMPLE_RATE
from stage1_audio2lmk.audio.formant_tracker import DECAY, FormantTracker

WINDOW = 512  # samples, 32 ms
PITCH_WINDOW = 640  # samples, 40 ms: two periods of 50 Hz
PRE_EMPHASIS = 0.97
BAND = SAMPLE_RATE / 3  # 0 to 5.33 kHz carry the first formants
ORDER = 14  # five resonances, and four poles for the source and the noise
ENERGY_SPAN = 24  # samples at 2·BAND, 2.25 ms, whose energy weights the one after them
EDGE = 16  # samples at 2·BAND that the cut spectrum bends at each end of a window
NOISE_SHARE = 0.7  # of the white noise that the covariance could hold at most is taken away
F0_RANGE = (65.0, 400.0)
NEUTRAL_F0 = 150.0
PITCH_BAND = 1000.0  # Hz: higher harmonics of a voice that glides are no longer periodic within the window
LOWEST, HIGHEST, WIDEST = 120.0, 5000.0, 900.0  # Hz: resonances outside these are none
RESONANCES = 7
UNVOICED, VOICED = 0.25, 0.6  # voicing from which formants are trusted a little and entirely; white noise has 0.22
QUIET_DB = -50.0  # sound below this level has no formants
BLOCK = 32  # analyses at once: what they need stays in the cache
COLUMNS = ("F1", "F2", "F3", "B1", "B2", "B3", "voicing", "F0", "energy dB")


class FormantStream:
    """Analyses in the order of time; a new one starts after endless silence."""

    def __init__(self) -> None:
        self.tracker, self.f0 = FormantTracker(), NEUTRAL_F0

    def push(self, windows: np.ndarray) -> np.ndarray:
        """Windows (n, 640) float of 16 kHz sound, 20 ms apart -> (n, 9) float32.

        Columns are F1 F2 F3 B1 B2 B3 in Hz, voicing 0–1, F0 in Hz and energy in dB of full scale. Formants are those of the
        last 512 samples, pitch that of all 640. Where there is no voice, formants and F0 hold and decay to neutral ones.
        """
        rows = [self._block(windows[i : i + BLOCK]) for i in range(0, len(windows), BLOCK)]
        return np.concatenate([np.zeros((0, len(COLUMNS)), np.float32), *rows])

    def _block(self, windows: np.ndarray) -> np.ndarray:
        windows = np.asarray(windows, np.float64)
        energy, recent = level(windows), level(windows[:, -WINDOW:])
        f0, voicing = pitch(windows)
        loud = np.minimum(energy, recent) > QUIET_DB
        voicing = np.where(loud, voicing, 0)
        found = np.full((len(windows), RESONANCES, 2), np.inf)
        if loud.any():
            found[loud] = resonances(predict_weighted(windows[loud, -WINDOW:]))
        trust = np.clip((voicing - UNVOICED) / (VOICED - UNVOICED), 0, 1)
        table = self.tracker.follow(found, trust)
        return np.column_stack([table, voicing, self._hold(f0, trust), energy]).astype(np.float32)

    def _hold(self, f0: np.ndarray, trust: np.ndarray) -> np.ndarray:
        """F0 (n,) where there is a voice, else the last one on its way to NEUTRAL_F0."""
        held = np.empty(len(f0))
        for i, (value, sure) in enumerate(zip(f0, trust)):
            self.f0 += sure * (value - self.f0) if sure > 0.5 else DECAY * (NEUTRAL_F0 - self.f0)
            held[i] = self.f0
        return held


def level(windows: np.ndarray) -> np.ndarray:
    """Windows (n, m) -> (n,) dB of full scale, −100 at least."""
    return 10 * np.log10((windows**2).mean(1) + 1e-10)


def predict_weighted(frames: np.ndarray) -> np.ndarray:
    """Frames (n, 512) -> prediction polynomials (n, ORDER + 1), leading 1, at a sampling rate of 2·BAND."""
    emphasised = frames - PRE_EMPHASIS * np.concatenate([frames[:, :1], frames[:, :-1]], 1)
    size = int(WINDOW * 2 * BAND / SAMPLE_RATE)  # 341 for 341.33: frequencies are 0.1 % too high
    slow = np.fft.irfft(np.fft.rfft(emphasised)[:, : size // 2 + 1], size)[:, EDGE:-EDGE]
    total = np.cumsum(slow**2, 1)
    weight = total[:, ENERGY_SPAN:-1] - total[:, : -ENERGY_SPAN - 1]
    weight = weight / weight.max(1, keepdims=True) + 1e-4
    # contiguous rows let its inner loop run in vectors
    covariance = weighted_covariance(np.ascontiguousarray(slow[:, ENERGY_SPAN + 1 - ORDER :]), weight)
    noise, whiten = white_noise()
    least = np.linalg.eigvalsh(whiten @ covariance @ whiten.T)[:, :1, None]
    covariance = covariance - NOISE_SHARE * np.maximum(least, 0) * noise
    normal = covariance[:, 1:, 1:]
    normal = normal + 1e-6 / ORDER * np.trace(normal, axis1=1, axis2=2)[:, None, None] * np.eye(ORDER)
    found = np.linalg.solve(normal, -covariance[:, 1:, :1])[:, :, 0]
    return np.concatenate([np.ones((len(found), 1)), found], 1)


@cached_njit(fastmath=True)
def weighted_covariance(samples: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """samples (n, ORDER + m), weight (n, m) -> (n, ORDER + 1, ORDER + 1): Σ_t w_t·x_(t−i)·x_(t−j), t from ORDER on."""
    count, size = weight.shape
    out = np.empty((count, ORDER + 1, ORDER + 1))
    for n in range(count):
        for i in range(ORDER + 1):
            weighted = weight[n] * samples[n, ORDER - i : ORDER - i + size]
            for j in range(i + 1):
                delayed, total = samples[n, ORDER - j : ORDER - j + size], 0.0
                for t in range(size):
                    total += weighted[t] * delayed[t]
                out[n, i, j] = out[n, j, i] = total
    return out


@functools.cache
def white_noise() -> tuple[np.ndarray, np.ndarray]:
    """Covariance (ORDER + 1,)² of white noise after the pre-emphasis and the cut, and what makes it an identity.

    The least eigenvalue of a covariance whitened so is the most noise that it can hold (Pisarenko 1973).
    """
    frequency = np.linspace(0, BAND, 513)
    power = np.abs(1 - PRE_EMPHASIS * np.exp(-2j * np.pi * frequency / SAMPLE_RATE)) ** 2
    lag = np.abs(np.subtract.outer(np.arange(ORDER + 1), np.arange(ORDER + 1)))
    noise = np.fft.irfft(power)[lag]
    return noise, np.linalg.inv(np.linalg.cholesky(noise))


def resonances(polynomials: np.ndarray) -> np.ndarray:
    """Prediction polynomials (n, p + 1) -> (n, RESONANCES, 2): frequency, rising, and bandwidth in Hz, inf if absent.

    A root r·exp(iθ) is a resonance at θ·rate/2π with bandwidth |ln r|·rate/π; the prediction may be unstable.
    """
    order = polynomials.shape[1] - 1
    companion = np.zeros((len(polynomials), order, order))
    companion[:, 0] = -polynomials[:, 1:]
    companion[:, np.arange(1, order), np.arange(order - 1)] = 1
    roots = np.linalg.eigvals(companion)
    rate = 2 * BAND
    frequency = np.angle(roots) * rate / (2 * np.pi)
    bandwidth = np.abs(np.log(np.maximum(np.abs(roots), 1e-6))) * rate / np.pi
    valid = (frequency > LOWEST) & (frequency < HIGHEST) & (bandwidth < WIDEST)
    found = np.where(valid[:, :, None], np.stack([frequency, bandwidth], 2), np.inf)
    order_by = np.argsort(found[:, :, 0], axis=1)[:, :RESONANCES]
    return np.take_along_axis(found, order_by[:, :, None], 1)


def pitch(frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Frames (n, 640) -> F0 (n,) in Hz and voicing (n,) in 0–1, from the autocorrelation below 1 kHz, normalised.

    The first peak nearly as high as the highest is taken, so that a multiple of the period is not.
    """
    centred = frames - frames.mean(1, keepdims=True)
    spectrum = np.fft.rfft(centred, 2 * PITCH_WINDOW)
    frequency = np.arange(PITCH_WINDOW + 1) * (SAMPLE_RATE / 2 / PITCH_WINDOW)
    correlation = np.fft.irfft((spectrum.real**2 + spectrum.imag**2) / (1 + (frequency / PITCH_BAND) ** 4))
    low, high = int(SAMPLE_RATE / F0_RANGE[1]), int(SAMPLE_RATE / F0_RANGE[0])
    lags = np.arange(low - 1, high + 2)
    normal = correlation[:, low - 1 : high + 2] / (correlation[:, :1] + 1e-9) * (PITCH_WINDOW / (PITCH_WINDOW - lags))
    before, span, after = normal[:, :-2], normal[:, 1:-1], normal[:, 2:]
    peaks = np.where((span >= before) & (span > after), span, 0)
    best = (peaks >= 0.88 * peaks.max(1, keepdims=True)).argmax(1)
    row = np.arange(len(frames))
    left, middle, right = before[row, best], span[row, best], after[row, best]
    # the top of the parabola through the three
    offset = np.clip(0.5 * (left - right) / np.minimum(left - 2 * middle + right, -1e-9), -0.5, 0.5)
    return SAMPLE_RATE / (low + best + offset), np.clip(peaks[row, best], 0, 1)
