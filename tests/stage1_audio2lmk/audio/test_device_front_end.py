"""What a GPU and torchaudio do with sound is what the CPU does without them."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from stage1_audio2lmk.audio import device_front_end
from stage1_audio2lmk.audio.augment import band_limit, shift_voices, speed
from stage1_audio2lmk.audio.device_front_end import change_on, resample_by, resample_on_gpu, torchaudio_resample
from stage1_audio2lmk.audio.features import HOPS, MELS, features
from stage1_audio2lmk.dataset import VOICES

RATE = 16000
FACTORS = (0.9, 1.1, 1.25, 0.8)
ODD_FACTORS = (1.0371, 0.8123456789)
LENGTH, SHORT = 3960 * 12 - 2048, 3960 * 2 - 2048  # samples that `speed` plays at exactly FACTORS, rather than up to a sample off
AGREES = 1e-3  # relative to the sound's peak, on what lies below 0.9 of the lower Nyquist frequency
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
needs_torchaudio = pytest.mark.skipif(torchaudio_resample() is None, reason="needs torchaudio, which talkhead[gpu] brings")


def band_limited(seed: int = 0, count: int = LENGTH) -> Tensor:
    """(2, n) noise below 5 kHz that swells from nothing and fades to nothing, peak about 1."""
    noise = torch.randn(2, count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    spectrum = torch.fft.rfft(noise)
    spectrum[:, int(5000 * count / RATE):] = 0
    sound = torch.fft.irfft(spectrum, count) * torch.hann_window(count, dtype=torch.float64)
    return sound / sound.abs().max()


def windowed_sinc(waveform: Tensor, orig_freq: int, new_freq: int, *, lowpass_filter_width: int, rolloff: float,
                  resampling_method: str, beta: float) -> Tensor:
    """What torchaudio documents of `functional.resample`, one output sample after the other: x(t) by sincs that cut at `rolloff`
    of the lower Nyquist frequency, under a Kaiser window over `lowpass_filter_width` of their zero crossings to either side.
    """
    assert resampling_method == "sinc_interp_kaiser" and waveform.dtype == torch.float64 and waveform.is_contiguous()
    cut = min(1.0, new_freq / orig_freq) * rolloff
    count = waveform.shape[-1]
    found = []
    for k in range(math.ceil(count * new_freq / orig_freq)):
        moment = k * orig_freq / new_freq
        reach = lowpass_filter_width / cut
        at = torch.arange(max(0, math.ceil(moment - reach)), min(count, math.floor(moment + reach) + 1))
        t = (at.double() - moment) * cut
        window = torch.i0(beta * (1 - (t / lowpass_filter_width).square()).clamp_min(0).sqrt()) / torch.i0(torch.tensor(beta))
        found.append((waveform[:, at] * torch.sinc(t) * window * cut).sum(1))
    return torch.stack(found, 1)


@pytest.mark.parametrize("factor", FACTORS)
def test_a_windowed_sinc_as_it_is_asked_for_agrees_with_speed(factor: float) -> None:
    sound = band_limited(count=SHORT)
    expected = speed(sound, factor)
    found = resample_by(windowed_sinc, sound, factor, expected.shape[1])
    assert found is not None and found.shape == expected.shape and (found - expected).abs().max() < AGREES


@needs_torchaudio
@pytest.mark.parametrize("factor", FACTORS)
def test_torchaudio_agrees_with_speed(factor: float) -> None:
    resample, sound = torchaudio_resample(), band_limited()
    assert resample is not None
    expected = speed(sound, factor)
    found = resample_by(resample, sound, factor, expected.shape[1])
    assert found is not None and found.shape == expected.shape and (found - expected).abs().max() < AGREES
    short = band_limited(count=SHORT)
    reference, found = (resample_by(function, short, factor, 1000) for function in (windowed_sinc, resample))
    assert reference is not None and found is not None and (found - reference).abs().max() < 1e-5


@pytest.mark.parametrize("factor", [ODD_FACTORS[0], pytest.param(ODD_FACTORS[1], marks=pytest.mark.slow)])
def test_by_an_odd_factor_nothing_is_half_a_sample_late(factor: float) -> None:
    sound = torch.sin(2 * math.pi * 1000 * torch.arange(SHORT) / RATE) * torch.hann_window(SHORT, dtype=torch.float64)
    found = resample_by(windowed_sinc, sound, factor, round(SHORT / factor))
    t = torch.arange(round(SHORT / factor), dtype=torch.float64) * factor
    expected = torch.sin(2 * math.pi * 1000 * t / RATE) * (0.5 - 0.5 * torch.cos(2 * math.pi * t / SHORT))
    assert found is not None and (found - expected).abs().max() < 0.5 * 1000 * 2 * math.pi / RATE


def test_a_ratio_that_would_drift_is_not_for_torchaudio() -> None:
    def unasked(*_: Any, **__: Any) -> Tensor:
        pytest.fail("the nearest ratio is 1, which is off by 19 ms in a minute")

    assert resample_by(unasked, torch.zeros(60 * RATE), 1.00031, 60 * RATE) is None


def test_on_a_cpu_nobody_asks_torchaudio(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_front_end, "torchaudio_resample", lambda: pytest.fail("asked"))
    assert resample_on_gpu(band_limited(), 1.1, 100) is None
    assert speed(band_limited(), 1.1).shape == (2, round(LENGTH / 1.1))


def test_where_the_device_lacks_memory_the_cpu_does_it() -> None:
    """PyTorch's meta device stands for one that runs out."""
    seen: list[str] = []

    def double(sound: Tensor) -> Tensor:
        seen.append(sound.device.type)
        if sound.device.type == "meta":
            raise torch.OutOfMemoryError
        return 2 * sound

    samples = np.arange(5, dtype=np.float32)
    np.testing.assert_array_equal(change_on(torch.device("meta"), samples, double), 2 * samples)
    assert seen == ["meta", "cpu"]


@pytest.mark.gpu
@needs_gpu
@needs_torchaudio
@pytest.mark.parametrize("factor", FACTORS)
def test_speed_by_torchaudio_on_the_gpu_equals_speed_on_the_cpu(factor: float) -> None:
    sound = band_limited().float()
    expected, found = speed(sound, factor), speed(sound.cuda(), factor)
    assert found.is_cuda and found.dtype == torch.float32 and found.shape == expected.shape
    assert resample_on_gpu(sound.cuda(), factor, expected.shape[1]) is not None  # it was torchaudio
    assert (found.cpu() - expected).abs().max() < AGREES


@pytest.mark.gpu
@needs_gpu
def test_speed_without_torchaudio_on_the_gpu_equals_speed_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_front_end, "torchaudio_resample", lambda: None)
    sound = band_limit(band_limited(), 0, 3000).float()
    assert (speed(sound.cuda(), 1.0371).cpu() - speed(sound, 1.0371)).abs().max() < 1e-6


@pytest.mark.gpu
@needs_gpu
def test_voices_and_spectra_on_the_gpu_equal_those_on_the_cpu(speech: np.ndarray) -> None:
    cuda = torch.device("cuda")
    expected = shift_voices(torch.from_numpy(speech), VOICES).numpy()
    found = change_on(cuda, speech, lambda sound: shift_voices(sound, VOICES))
    assert np.abs(found - expected).max() < 1e-3
    here, there = features(expected[0]), features(expected[0], cuda)
    np.testing.assert_allclose(there[:, : HOPS * MELS], here[:, : HOPS * MELS], atol=1e-3)
    np.testing.assert_array_equal(there[:, HOPS * MELS :], here[:, HOPS * MELS :])  # formants come from the CPU
