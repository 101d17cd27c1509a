"""The lag between sound and lips, and how to remove it.

For every shift within reach, lip opening and width are predicted from the log-mel spectrum at one moment, by ridge
regression fitted to the clip itself and tested on stretches that were left out. The lag is the shift that predicts best.
"""

import numpy as np
from scipy.ndimage import gaussian_filter1d

from shared.landmarks import FPS, SAMPLE_RATE, SAMPLES_PER_FRAME, lip_opening

HOP = 160  # samples, 10 ms
HOPS_PER_FRAME = SAMPLES_PER_FRAME // HOP
WINDOW = 512  # samples of one spectrum
BANDS = 16  # mel bands
LOWEST, HIGHEST = 80.0, 7600.0  # Hz
FLOOR = 1e-4  # of the clip's mean band power
SMOOTHING = 2.0  # hops; standard deviation of the spectra's smoothing, about one video frame in all
REACH = 40  # largest shift to each side, hops
STEP = 2  # hops between the shifts that are tried
FOLDS = 10  # stretches, each predicted from the others
FOLD_FRAMES = 750  # longest stretch: of a long clip ten times half a minute are used
SHORTEST = 100  # frames of a clip whose lag can be told
PENALTY = 0.03  # of the ridge regression, per sample of unit variance
DRIFT = 25  # frames; slower changes of the lips are not speech

# A lag is told only if all of these hold; values from 21 clips, parts of them, and clips with the sound of another.
LEAST_CORRELATION = 0.15
CHANCE_CORRELATION = 0.5  # divided by the root of the clip's seconds and added to it: short clips correlate by chance
LEAST_LEAD = 0.08  # of the best correlation over those more than ELSEWHERE_MS away
ELSEWHERE_MS = 160
LARGEST_ERROR_MS = 20  # standard error of the lag
LARGEST_SPLIT_MS = 60  # difference between the halves of the clip
# Best shift of clips in sync; not 0, since a filmed frame shows about the moment at which it begins, while its sound is
# centred 20 ms later. Measured between -35 and 4 ms; 11 for the synthetic actor, whose frames show their middle.
NATURAL_LAG_MS = -12.0


def mel_filters(bands: int = BANDS, window: int = WINDOW) -> np.ndarray:
    """(window // 2 + 1, bands) triangular filters, evenly spaced on the mel scale 2595·log10(1 + f/700)."""
    low, high = (2595 * np.log10(1 + f / 700) for f in (LOWEST, HIGHEST))
    edges = 700 * (10 ** (np.linspace(low, high, bands + 2) / 2595) - 1)
    f = np.fft.rfftfreq(window, 1 / SAMPLE_RATE)[:, None]
    rising, falling = (f - edges[:-2]) / np.diff(edges)[:-1], (edges[2:] - f) / np.diff(edges)[1:]
    return np.clip(np.minimum(rising, falling), 0, None)


def band_power(samples: np.ndarray, first: int, count: int) -> np.ndarray:
    """Mel power (count, BANDS) of samples (n,): hop k is centred on sample HOP·(first + k); silence beyond the ends."""
    start = HOP * first - WINDOW // 2
    stop = start + HOP * (count - 1) + WINDOW
    inside = samples[max(0, start) : max(0, stop)]
    padded = np.zeros(stop - start, np.float32)
    padded[max(0, -start) : max(0, -start) + len(inside)] = inside
    pieces = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::HOP]
    return np.abs(np.fft.rfft(pieces * np.hanning(WINDOW).astype(np.float32), axis=1)) ** 2 @ mel_filters()


def _folds(frames: int) -> list[tuple[int, int]]:
    """Stretches start ≤ t < stop, evenly spread; in longer clips so far from the ends that every shift stays inside."""
    margin = REACH // HOPS_PER_FRAME if frames > 4 * SHORTEST else 0
    length = min(FOLD_FRAMES, (frames - 2 * margin) // FOLDS)
    starts = np.linspace(margin, frames - margin - length, FOLDS).round().astype(int)
    return [(int(a), int(a) + length) for a in starts]


def _speech_motion(landmarks: np.ndarray) -> np.ndarray:
    """(T,68,3) -> (T,2): lip opening and width without their slow drift, unit variance (zeros where nothing moves)."""
    lips = np.stack([lip_opening(landmarks), landmarks[:, 54, 0] - landmarks[:, 48, 0]], axis=1).astype(float)
    lips -= gaussian_filter1d(lips, DRIFT, axis=0)
    deviation = lips.std(axis=0)
    return np.where(deviation > 1e-5, lips / np.maximum(deviation, 1e-5), 0.0)


def _moments(samples: np.ndarray, landmarks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Shifts (S,) ms and the held-out sums (S, FOLDS, 3, 2) of p·y, p², y² for prediction p and truth y of both lip curves."""
    lips = _speech_motion(landmarks)
    folds = _folds(len(landmarks))
    first = [HOPS_PER_FRAME * a + HOPS_PER_FRAME // 2 - REACH for a, _ in folds]
    power = [band_power(samples, k, HOPS_PER_FRAME * (b - a) + 2 * REACH) for k, (a, b) in zip(first, folds)]
    floor = FLOOR * max(float(np.mean([p.mean() for p in power])), 1e-12)
    sound = [gaussian_filter1d(np.log(p + floor), SMOOTHING, axis=0) for p in power]
    y = [lips[a:b] for a, b in folds]
    shifts = np.arange(-REACH, REACH + 1, STEP)
    return shifts * 1000.0 * HOP / SAMPLE_RATE, np.stack([_held_out(
        [s[REACH - shift :][: HOPS_PER_FRAME * len(part) : HOPS_PER_FRAME] for s, part in zip(sound, y)], y)
        for shift in shifts])


def _held_out(x: list[np.ndarray], y: list[np.ndarray]) -> np.ndarray:
    """Ridge regression on all folds but one, tested on that one: (FOLDS, 3, targets) sums of p·y, p², y².

    x: spectra (n, BANDS) and y: lip curves (n, targets) of each fold.
    """
    every = np.concatenate(x)
    mean, deviation = every.mean(0), every.std(0) + 1e-6
    x = [(part - mean) / deviation for part in x]
    gram, cross = [part.T @ part for part in x], [a.T @ b for a, b in zip(x, y)]
    all_gram, all_cross = np.sum(gram, axis=0), np.sum(cross, axis=0)
    penalty = PENALTY * len(every) * np.eye(x[0].shape[1])
    out = []
    for part, target, g, c in zip(x, y, gram, cross):
        guess = part @ np.linalg.solve(all_gram - g + penalty, all_cross - c)
        out.append([(guess * target).sum(0), (guess**2).sum(0), (target**2).sum(0)])
    return np.array(out)


def _correlation(moments: np.ndarray) -> np.ndarray:
    """Held-out sums (S, folds, 3, targets) -> (S,) correlation, the mean over targets."""
    total = moments.sum(axis=1)
    return (total[:, 0] / np.sqrt(total[:, 1] * total[:, 2] + 1e-12)).mean(axis=-1)


def _peak(shifts: np.ndarray, curve: np.ndarray) -> float:
    """Shift at the maximum of curve (S,), refined by a parabola through it and its neighbours."""
    k = int(curve.argmax())
    if k in (0, len(curve) - 1):
        return float(shifts[k])
    left, middle, right = curve[k - 1 : k + 2]
    return float(shifts[k] + 0.5 * (left - right) / min(left - 2 * middle + right, -1e-12) * (shifts[1] - shifts[0]))


def estimate_lag(samples: np.ndarray, landmarks: np.ndarray) -> float | None:
    """Milliseconds by which the lips, landmarks (T,68,3), come after the sound (640·T,) at 16 kHz; None if it cannot be told.

    It cannot be told in clips shorter than four seconds, if sound and lips do not correlate, or if the parts of the clip
    disagree. Lags of up to about a third of a second are found.
    """
    if len(landmarks) < SHORTEST:
        return None
    shifts, moments = _moments(samples, landmarks)
    curve = _correlation(moments)
    best = _peak(shifts, curve)
    elsewhere = curve[np.abs(shifts - best) > ELSEWHERE_MS].max()
    left_out = np.array([_peak(shifts, _correlation(np.delete(moments, k, axis=1))) for k in range(FOLDS)])
    error = np.sqrt((FOLDS - 1) / FOLDS * np.square(left_out - left_out.mean()).sum())  # jackknife
    halves = [_peak(shifts, _correlation(half)) for half in (moments[:, : FOLDS // 2], moments[:, FOLDS // 2 :])]
    least = LEAST_CORRELATION + CHANCE_CORRELATION / np.sqrt(len(landmarks) / FPS)
    sure = (abs(best) < shifts[-1] - 1000 / FPS and curve.max() > least
            and curve.max() - elsewhere > LEAST_LEAD and error < LARGEST_ERROR_MS
            and abs(halves[0] - halves[1]) < LARGEST_SPLIT_MS)
    return best - NATURAL_LAG_MS if sure else None


def shift_audio(samples: np.ndarray, lag_ms: float) -> np.ndarray:
    """Sound (n,) at 16 kHz delayed by `lag_ms`, so that it goes with lips that came so much later; same length, silence
    where sound is missing."""
    delay = int(np.clip(round(lag_ms * SAMPLE_RATE / 1000), -len(samples), len(samples)))
    out = np.zeros_like(samples)
    if delay >= 0:
        out[delay:] = samples[: len(samples) - delay]
    else:
        out[:delay] = samples[-delay:]
    return out
