"""Sound on the device where training runs: what is changed there comes back once, and torchaudio resamples on CUDA.

What torchaudio is used for is `functional.resample` alone. Its `pitch_shift` and `phase_vocoder` move formants together with
the pitch, which `augment.shift_voice` does not.
"""

import functools
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

FILTERS = 1000  # at most, one for each place that an output sample has between two input samples
DRIFT = 0.5  # samples by which a ratio of such small numbers may be off at the end of a sound
# torchaudio's setting for high quality: 64 zero crossings under a Kaiser window, flat up to 0.9 of the lower Nyquist frequency
QUALITY = {"lowpass_filter_width": 64, "rolloff": 0.9475937167399596, "resampling_method": "sinc_interp_kaiser",
           "beta": 14.769656459379492}


def change_on(device: torch.device, samples: np.ndarray, change: Callable[[Tensor], Tensor]) -> np.ndarray:
    """`change` of samples (n,) on `device`, brought back; on the CPU where that device's memory does not suffice.

    What `change` draws must start anew at each call.
    """
    sound = torch.from_numpy(samples)
    try:
        return change(sound.to(device)).cpu().numpy()
    except torch.OutOfMemoryError:
        if device.type == "cpu":
            raise
    return change(sound).numpy()


@functools.cache
def torchaudio_resample() -> Callable[..., Tensor] | None:
    """`torchaudio.functional.resample`, or None where torchaudio is not installed or does not fit this torch."""
    try:
        from torchaudio.functional import resample
    except (ImportError, OSError, RuntimeError, AttributeError):  # its libraries are of one version of torch
        return None
    return resample


def resample_on_gpu(samples: Tensor, factor: float, count: int) -> Tensor | None:
    """Samples (..., n) on CUDA, `count` output samples -> (..., count) double, played `factor` times faster, by torchaudio.

    None where this is not for torchaudio: on a CPU, without it, or if no ratio of small numbers is near enough to `factor`.
    """
    if not samples.is_cuda or (resample := torchaudio_resample()) is None:
        return None
    return resample_by(resample, samples, factor, count)


def resample_by(resample: Callable[..., Tensor], samples: Tensor, factor: float, count: int) -> Tensor | None:
    """`resample_on_gpu` by a function called as `torchaudio.functional.resample` is, on any device."""
    ratio = Fraction(factor).limit_denominator(FILTERS)
    if abs(float(ratio) / factor - 1) * count > DRIFT:
        return None
    # in double precision, in which alone convolutions on CUDA are exact by default; silence, so that the last sample is there
    rows = F.pad(samples.reshape(-1, samples.shape[-1]).double(), (0, 16)).contiguous()
    found = resample(rows, ratio.numerator, ratio.denominator, **QUALITY)
    return found[:, :count].reshape(*samples.shape[:-1], count)
