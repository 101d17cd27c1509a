"""The features of stage 1: for each video frame four log-mel spectra and two formant analyses.

Every window ends inside its own video frame, so features look into no future at all, and the same numbers come out
offline and in a stream. Formants remember the past. Nothing is normalised over the file.
"""

import functools

import numpy as np
import torch
from torch import Tensor

from shared.landmarks import SAMPLE_RATE, SAMPLES_PER_FRAME
from stage1_audio2lmk.audio import formants

MELS = 80
HOP = 160
WINDOW = 400
FFT = 512
HOPS = SAMPLES_PER_FRAME // HOP
FORMANTS_A_FRAME = 2
HISTORY = formants.PITCH_WINDOW - SAMPLES_PER_FRAME // FORMANTS_A_FRAME  # samples before a frame that it needs
MEL_FLOOR = 1e-5
FORMANT_SIZE = FORMANTS_A_FRAME * len(formants.COLUMNS)
ENERGY_SCALE = 30  # dB that are 1 in the column of the energy
FEATURE_SIZE = HOPS * MELS + FORMANT_SIZE


@functools.cache
def mel_filters() -> Tensor:
    """(257, 80) triangular filters between 60 and 7600 Hz, evenly spaced on the mel scale 2595·log10(1 + f/700)."""
    low, high = 2595 * np.log10(1 + np.array([60.0, 7600.0]) / 700)
    mel = np.linspace(low, high, MELS + 2)
    edges = 700 * (10 ** (mel / 2595) - 1)
    frequency = np.linspace(0, SAMPLE_RATE / 2, FFT // 2 + 1)[:, None]
    rising = (frequency - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - frequency) / (edges[2:] - edges[1:-1])
    return torch.tensor(np.maximum(0, np.minimum(rising, falling)), dtype=torch.float32)


@functools.cache
def constants(device: torch.device) -> tuple[Tensor, Tensor]:
    """The Hann window in the middle of zeros (512,) and `mel_filters` on a device, made once: a stream asks 25 times a second."""
    with torch.inference_mode(False):  # whoever asks first, training may use them too
        side = (FFT - WINDOW) // 2
        return torch.nn.functional.pad(torch.hann_window(WINDOW, device=device), (side, side)), mel_filters().to(device)


def power_spectrum(samples: Tensor) -> Tensor:
    """samples (..., 352 + 160·n) -> power (..., n, 257); window k is centred in samples 160·k + [0, 512)."""
    window, _ = constants(samples.device)
    return torch.view_as_real(torch.fft.rfft(samples.unfold(-1, FFT, HOP) * window)).square().sum(-1)


def mel_of(power: Tensor) -> Tensor:
    """Power spectrum (..., 257) -> (..., 80) natural logarithm of mel power."""
    _, filters = constants(power.device)
    return torch.log(power @ filters + MEL_FLOOR)


def log_mel(samples: Tensor) -> Tensor:
    """samples (..., 352 + 160·n) -> (..., n, 80): `mel_of` the `power_spectrum`."""
    return mel_of(power_spectrum(samples))


class FeatureStream:
    """Features of sound that comes in pieces: the same numbers as of the whole. A new one starts after endless silence.

    `voice` False leaves the columns of the formants at 0, for a model that does not use them. Spectra are made on `device`.
    """

    def __init__(self, voice: bool = True, device: torch.device | str = "cpu") -> None:
        self.history, self.voice = np.zeros(HISTORY, np.float32), formants.FormantStream() if voice else None
        self.device = device

    def push(self, samples: np.ndarray) -> np.ndarray:
        """samples (640·n,) at 16 kHz -> (n, FEATURE_SIZE) float32: 4·80 log-mels, then 2·9 scaled formant values.

        Raises ValueError for a part of a frame.
        """
        if len(samples) % SAMPLES_PER_FRAME:
            raise ValueError(f"expected a multiple of {SAMPLES_PER_FRAME} samples, found {len(samples)}")
        count = len(samples) // SAMPLES_PER_FRAME
        if count == 0:
            return np.zeros((0, FEATURE_SIZE), np.float32)
        padded = np.concatenate([self.history, samples]).astype(np.float32)
        self.history = padded[-HISTORY:].copy()
        # `power_spectrum` centres a 400-sample window in 512 samples: start so that the window itself ends with its hop
        offset = HISTORY - (FFT - HOP) + (FFT - WINDOW) // 2
        tail = np.zeros((FFT - WINDOW) // 2, np.float32)  # zeros under the window's padding, never used
        heard = torch.from_numpy(np.concatenate([padded[offset:], tail])).to(self.device)
        mel = log_mel(heard)[: count * HOPS].cpu().numpy()
        if self.voice is None:
            return np.concatenate([mel.reshape(count, -1), np.zeros((count, FORMANT_SIZE), np.float32)], axis=1)
        step = SAMPLES_PER_FRAME // FORMANTS_A_FRAME
        windows = np.lib.stride_tricks.sliding_window_view(padded, formants.PITCH_WINDOW)[: count * SAMPLES_PER_FRAME : step]
        voice = scale_formants(self.voice.push(windows))
        return np.concatenate([mel.reshape(count, -1), voice.reshape(count, -1)], axis=1)


def features(samples: np.ndarray, device: torch.device | str = "cpu", voice: bool = True) -> np.ndarray:
    """samples (640·T,) at 16 kHz of a whole file -> (T, FEATURE_SIZE) float32, as of `FeatureStream`."""
    return FeatureStream(voice, device).push(samples)


@functools.cache
def silence_row(voice: bool = True) -> np.ndarray:
    """(FEATURE_SIZE,) the features of a frame of endless digital silence, see `FeatureStream`; not to be written to."""
    row = features(np.zeros(SAMPLES_PER_FRAME, np.float32), voice=voice)[0]
    row.setflags(write=False)
    return row


def mean_log_mel(rows: Tensor) -> Tensor:
    """Feature rows (..., ≥ FEATURE_SIZE) -> (..., 80): the mean log-mel of each video frame."""
    return rows[..., : HOPS * MELS].unflatten(-1, (HOPS, MELS)).mean(-2)


def scale_formants(table: np.ndarray) -> np.ndarray:
    """(n, 9) of `FormantStream` -> (n, 9) of order one."""
    return (table / np.array([1000, 2000, 3000, 200, 200, 200, 1, 200, ENERGY_SCALE], np.float32)).astype(np.float32)


def frames_of(samples: np.ndarray) -> np.ndarray:
    """Pad (n,) samples with silence to whole video frames, at least one."""
    count = max(1, -(-len(samples) // SAMPLES_PER_FRAME))
    return np.pad(samples, (0, count * SAMPLES_PER_FRAME - len(samples)))


def levels(samples: np.ndarray) -> np.ndarray:
    """Samples (n,) -> level of each video frame (ceil(n/640),) in dB of full scale, −100 at least; the last one filled up."""
    if missing := -len(samples) % SAMPLES_PER_FRAME:
        samples = np.pad(samples, (0, missing))
    power = samples.astype(np.float64).reshape(-1, SAMPLES_PER_FRAME) ** 2
    return 10 * np.log10(power.mean(1) + 1e-10)
