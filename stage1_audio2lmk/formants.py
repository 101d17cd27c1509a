"""Formants F1–F3 with bandwidths, voicing, F0 and energy, by linear prediction. Vectorised over frames.

Selective linear prediction (Makhoul, Proc. IEEE 1975): the autocorrelation is taken from the power spectrum below
5.33 kHz only, which equals resampling to 10.67 kHz but needs no filter, so that a frame depends on its own window alone.
"""

import numpy as np

from shared.landmarks import SAMPLE_RATE

WINDOW = 512  # samples, 32 ms
PITCH_WINDOW = 640  # samples, 40 ms: two periods of 50 Hz
PRE_EMPHASIS = 0.97
BAND = SAMPLE_RATE / 3  # 0 to 5.33 kHz carry the first formants
ORDER = 12  # two plus the resampled rate in kHz
F0_RANGE = (65.0, 400.0)
LOWEST_FORMANT, WIDEST_BANDWIDTH = 150.0, 700.0
QUIET_DB = -50.0  # frames below this level have no formants
COLUMNS = ("F1", "F2", "F3", "B1", "B2", "B3", "voicing", "F0", "energy dB")


def analyse(frames: np.ndarray) -> np.ndarray:
    """Frames (n, 640) float of 16 kHz sound -> (n, 9): F1 F2 F3 B1 B2 B3 in Hz, voicing 0–1, F0 in Hz, energy in dB.

    Absent formants and F0 are 0. Formants are those of the last 512 samples, pitch of all 640.
    """
    frames = np.asarray(frames, np.float64)
    energy = 10 * np.log10((frames**2).mean(1) + 1e-10)
    f0, voicing = pitch(frames)
    loud = energy > QUIET_DB
    table = np.zeros((len(frames), 6))
    if loud.any():
        table[loud] = formants(lpc(frames[loud, -WINDOW:]))
    voiced = (voicing > 0.45) & loud
    return np.column_stack([table, np.where(loud, voicing, 0), np.where(voiced, f0, 0), energy]).astype(np.float32)


def lpc(frames: np.ndarray) -> np.ndarray:
    """Frames (n, 512) -> prediction polynomials (n, ORDER + 1), leading 1, at a sampling rate of 2·BAND."""
    emphasised = frames - PRE_EMPHASIS * np.concatenate([frames[:, :1], frames[:, :-1]], 1)
    spectrum = np.abs(np.fft.rfft(emphasised * np.hamming(WINDOW), 2 * WINDOW)) ** 2
    kept = spectrum[:, : int(len(spectrum[0]) * BAND / (SAMPLE_RATE / 2)) + 1]
    return levinson(np.fft.irfft(kept)[:, : ORDER + 1])


def levinson(r: np.ndarray) -> np.ndarray:
    """Autocorrelations (n, p + 1) -> prediction polynomials (n, p + 1), by the Levinson–Durbin recursion."""
    count, size = r.shape
    a = np.zeros((count, size))
    a[:, 0] = 1
    error = r[:, 0] * (1 + 1e-9) + 1e-12
    for i in range(1, size):
        k = -(a[:, :i] * r[:, i:0:-1]).sum(1) / error
        a[:, 1 : i + 1] += k[:, None] * a[:, i - 1 :: -1][:, :i]
        error *= 1 - k**2
    return a


def formants(polynomials: np.ndarray) -> np.ndarray:
    """Prediction polynomials (n, p + 1) -> (n, 6): the three lowest resonances in Hz and their bandwidths, 0 if absent.

    A root r·exp(iθ) is a resonance at θ·rate/2π with bandwidth −ln(r)·rate/π.
    """
    order = polynomials.shape[1] - 1
    companion = np.zeros((len(polynomials), order, order))
    companion[:, 0] = -polynomials[:, 1:]
    companion[:, np.arange(1, order), np.arange(order - 1)] = 1
    roots = np.linalg.eigvals(companion)
    rate = 2 * BAND
    frequency = np.angle(roots) * rate / (2 * np.pi)
    bandwidth = -np.log(np.maximum(np.abs(roots), 1e-6)) * rate / np.pi
    valid = (frequency > LOWEST_FORMANT) & (frequency < BAND - 150) & (bandwidth < WIDEST_BANDWIDTH)
    order_by = np.argsort(np.where(valid, frequency, np.inf), axis=1)[:, :3]
    chosen = np.take_along_axis(valid, order_by, 1)
    return np.concatenate([np.where(chosen, np.take_along_axis(frequency, order_by, 1), 0),
                           np.where(chosen, np.take_along_axis(bandwidth, order_by, 1), 0)], axis=1)


def pitch(frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Frames (n, 640) -> F0 (n,) in Hz and voicing (n,) in 0–1, from the normalised autocorrelation's highest peak."""
    centred = frames - frames.mean(1, keepdims=True)
    size = 2 * PITCH_WINDOW
    correlation = np.fft.irfft(np.abs(np.fft.rfft(centred, size)) ** 2)[:, :PITCH_WINDOW]
    lags = np.arange(PITCH_WINDOW)
    correlation = correlation / (correlation[:, :1] + 1e-9) * (PITCH_WINDOW / (PITCH_WINDOW - lags))
    low, high = int(SAMPLE_RATE / F0_RANGE[1]), int(SAMPLE_RATE / F0_RANGE[0])
    span = correlation[:, low : high + 1]
    # the first peak nearly as high as the highest, so that a multiple of the period is not taken for it
    near = (span >= 0.9 * span.max(1, keepdims=True)).argmax(1)
    local = np.stack([span[np.arange(len(span)), np.minimum(near + d, span.shape[1] - 1)] for d in range(24)])
    best = near + local.argmax(0)
    best = np.minimum(best, span.shape[1] - 1)
    return SAMPLE_RATE / (low + best), np.clip(span[np.arange(len(span)), best], 0, 1)
