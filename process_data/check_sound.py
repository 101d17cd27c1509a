"""What a recording's sound is like: loudness of the speech, noise under it, reverberation."""

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import binary_closing, uniform_filter1d

from process_data.lip_lag import HOP, band_power
from shared.landmarks import SAMPLE_RATE
from shared.media.sound_check import CLIPPED

BLOCK = 6000  # hops whose spectra are in memory at once
HOPS_PER_SECOND = SAMPLE_RATE / HOP
SPEECH_DB = 22  # speech is at most so much quieter than the loudest twentieth of the hops
GAP = 30  # hops; a shorter quiet stretch belongs to the speech around it
QUIETEST = -60.0  # dBFS; where the loudest twentieth of the hops is below, nobody speaks
NOISE_QUANTILE = 0.05  # of the hops' levels: the noise floor
FIRST_BAND, GROUPS = 4, 4  # mel bands from about 600 Hz on, in so many groups, each of which decays by itself
SMOOTHING = 3  # hops
LEAST_HOPS, LEAST_DB = 12, 10.0  # of a stretch that counts as a decay
SKIPPED = 2  # hops at the beginning of a decay, which the speaker's own offset shapes
LEAST_DECAYS = 10
STEEP_QUANTILE = 0.2  # of the decay times: those of the offsets that stop at once, so that the room alone rings


@dataclass(frozen=True)
class Sound:
    """Levels in dBFS (a full-scale square wave is 0), NaN where there is no speech; seconds of speech, its short pauses
    included; share of the samples at full scale; reverberation time in seconds, None where it cannot be told."""

    speech_seconds: float
    speech_level: float
    noise_level: float
    clipped: float
    reverberation: float | None


def measure_sound(samples: np.ndarray) -> Sound:
    """Samples (n,) in [−1, 1] at 16 kHz, n ≥ HOP -> what they are like."""
    level = levels(samples)
    loud = np.quantile(level, 0.95)
    clipped = float((np.abs(samples) > CLIPPED).mean())
    if loud < QUIETEST:
        return Sound(0.0, float("nan"), float("nan"), clipped, None)
    speech = level > loud - SPEECH_DB
    power = 10 ** (level[speech] / 10)
    spoken = binary_closing(np.pad(speech, GAP), np.ones(GAP))
    seconds = float(spoken.sum()) / HOPS_PER_SECOND
    return Sound(seconds, float(10 * np.log10(power.mean())), float(np.quantile(level, NOISE_QUANTILE)), clipped,
                 reverberation_time(samples))


def levels(samples: np.ndarray) -> np.ndarray:
    """Samples (n,) -> root mean square of each hop of 10 ms (n // HOP,) in dBFS, at least −120."""
    hops = samples[: len(samples) // HOP * HOP].reshape(-1, HOP)
    return 10 * np.log10(np.square(hops, dtype=np.float64).mean(axis=1) + 1e-12)


def reverberation_time(samples: np.ndarray) -> float | None:
    """Samples (n,) of speech at 16 kHz -> seconds in which the room's sound falls by 60 dB; None with too few decays.

    Blind: wherever a band's level falls for LEAST_HOPS on end, its slope is fitted, 60 dB over it being a decay time; speech
    itself stops more slowly or more quickly than the room, never more quickly than the room lets it, so the steep end of
    their distribution tells (free decays of speech: Ratnam et al., "Blind estimation of reverberation time", JASA 114, 2003;
    the choice among them by their distribution: Wen, Habets and Naylor, ICASSP 2008).
    """
    count = len(samples) // HOP
    times: list[float] = []
    for start in range(0, count, BLOCK):
        power = band_power(samples, start, min(BLOCK, count - start))[:, FIRST_BAND:]
        for band in np.array_split(power, GROUPS, axis=1):
            energy = uniform_filter1d(band.sum(axis=1), SMOOTHING)
            times += _decay_times(10 * np.log10(energy + 1e-12))
    return float(np.quantile(times, STEEP_QUANTILE)) if len(times) >= LEAST_DECAYS else None


def _decay_times(level: np.ndarray) -> list[float]:
    """Levels (n,) dB of hops -> 60 dB over the slope of each decay, seconds."""
    falling = np.flatnonzero(np.diff(level) < 0)
    found = []
    for run in np.split(falling, np.flatnonzero(np.diff(falling) > 1) + 1):
        if len(run) < LEAST_HOPS or level[run[0]] - level[run[-1] + 1] < LEAST_DB:
            continue
        part = level[run[0] + SKIPPED : run[-1] + 2]
        slope = np.polyfit(np.arange(len(part)), part, 1)[0] * HOPS_PER_SECOND
        found.append(60.0 / -slope)
    return found

