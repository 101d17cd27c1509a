"""Other voices, rooms and microphones out of one recording, so that a model hears what is said and not who says it.

Waveforms (..., n) at 16 kHz of order one; each row is changed alone, on its own device. What is random is drawn on the CPU
from the generator that is passed, so a seed gives the same sound everywhere. Only `speed` changes the timing.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from shared.errors import TalkheadError
from shared.landmarks import SAMPLE_RATE
from stage1_audio2lmk.audio.device_front_end import resample_on_gpu
from stage1_audio2lmk.audio.features import MEL_FLOOR

FFT = 1024  # 64 ms hold four periods of 62 Hz, which keeps the harmonics of a low voice apart
HOP = 160
PITCH_LAGS = (40, 246)  # samples: 400 to 65 Hz
RUMBLE = 70.0  # Hz below which sound says nothing about pitch
CEPSTRUM = (20, 50)  # least and most samples of quefrency in an envelope
ENVELOPE_STEPS = 10
FLOOR_DB = -80.0  # below a spectrum's maximum, where an envelope ends
FILL_WIDTH = 500.0  # Hz over which a lowered voice hands over to the unshifted treble
FACTORS = (0.25, 4.0)  # of speed, pitch and formants
COLOURS = {"white": 0.0, "pink": 1.0, "brown": 2.0}  # noise power falls as 1/f to this power
HUMS = (50.0, 60.0)  # Hz of the mains
NOISES = (*COLOURS, "hum")


def speed(samples: Tensor, factor: float) -> Tensor:
    """(..., n) -> (..., round(n / factor)): played faster, so tempo, pitch and formants all change by `factor`.

    Band-limited: the spectrum is cut or filled with zeros, which equals interpolation by a periodic sinc. On CUDA
    torchaudio does it, if installed; up to 0.9 of the lower Nyquist frequency the two agree.
    """
    _check(samples)
    _check_factor("speed", factor)
    count = samples.shape[-1]
    if factor == 1:
        return samples.clone()
    wanted = max(1, round(count / factor))
    found = resample_on_gpu(samples, factor, wanted)
    if found is not None:
        return found.to(samples.dtype)
    pad = 1024  # silence between the end and the start, which are neighbours for a Fourier transform
    old = 2 * ((count + 2 * pad) // 2)
    new = 2 * round(old / factor / 2)
    spectrum = torch.fft.rfft(F.pad(samples.double(), (0, old - count)))
    kept = min(old, new) // 2
    stretched = torch.fft.irfft(F.pad(spectrum[..., :kept], (0, new // 2 + 1 - kept)), new) * (new / old)
    return stretched[..., :wanted].to(samples.dtype)


def shift_voice(samples: Tensor, pitch: float, formants: float) -> Tensor:
    """(..., n) -> (..., n): F0 times `pitch`, resonances times `formants`, each alone, at the same time as before.

    A phase vocoder with identity phase locking (Laroche and Dolson, IEEE Trans. Speech Audio Process. 1999) whose
    inverse transform is 1/pitch as long, which resamples every grain about its own middle. Before that the magnitudes
    go to the warped envelope; it is a true envelope (Imai and Abe 1979; Röbel and Rodet, DAFx 2005). What a lowered
    voice leaves empty near 8 kHz is filled with the unshifted treble. `pitch` is met to 0.1 %.
    """
    return shift_voices(samples, [(pitch, formants)])[0]


def shift_voices(samples: Tensor, voices: Sequence[tuple[float, float]]) -> Tensor:
    """(..., n) -> (V, ..., n): `shift_voice` by each (pitch, formants), of sound that is analysed once for all of them."""
    _check(samples)
    for pitch, formants in voices:
        _check_factor("pitch", pitch)
        _check_factor("formants", formants)
    # single precision would let CPU and GPU choose other peaks
    analysis = _analyse(samples.reshape(-1, samples.shape[-1]).double(), turned=any(_size(pitch) != FFT for pitch, _ in voices))
    out = samples.new_empty(len(voices), *samples.shape)
    for k, (pitch, formants) in enumerate(voices):
        out[k] = _synthesise(analysis, pitch, formants, samples.shape[-1]).reshape(samples.shape)
    return out


class _Analysis(NamedTuple):
    """What sound gives to all voices that are made of it, each (B, T, bins)."""

    spectrum: Tensor
    envelope: Tensor  # see `spectral_envelope`
    turn: Tensor | None  # see `_rotation`


def _size(pitch: float) -> int:
    """Samples of an inverse transform that raises a voice to `pitch`."""
    return 2 * round(FFT / pitch / 2)


def _analyse(rows: Tensor, turned: bool) -> _Analysis:
    spectrum = torch.stft(rows, FFT, HOP, window=_hann(FFT, rows), pad_mode="constant", return_complex=True).mT
    magnitude = spectrum.abs()
    return _Analysis(spectrum, spectral_envelope(magnitude), _rotation(spectrum, magnitude) if turned else None)


def _synthesise(analysis: _Analysis, pitch: float, formants: float, count: int) -> Tensor:
    """One voice (B, count) in double precision."""
    spectrum, envelope, turn = analysis
    out_size = _size(pitch)
    pitch = FFT / out_size
    strength = torch.exp(_stretched(envelope, formants / pitch) - envelope)
    if out_size != FFT and turn is not None:
        shifted = spectrum * torch.polar(strength, turn * (pitch - 1))
    else:
        shifted = spectrum * strength
    low, high = _hand_over(pitch, envelope)
    shifted = shifted * low
    bins = out_size // 2 + 1
    shifted = F.pad(shifted, (0, max(0, bins - FFT // 2 - 1)))[..., :bins] / pitch
    voice = torch.istft(shifted.mT, out_size, HOP, window=_hann(out_size, envelope), length=count)
    if pitch < 1:
        treble = spectrum * (torch.exp(_stretched(envelope, formants) - envelope) * high)
        voice = voice + torch.istft(treble.mT, FFT, HOP, window=_hann(FFT, envelope), length=count)
    return voice


def _hand_over(pitch: float, like: Tensor) -> tuple[Tensor, Tensor]:
    """Weights over frequency (bins,): of a voice before its pitch changes, and of the unshifted treble that goes on above it."""
    frequency = torch.linspace(0, SAMPLE_RATE / 2, FFT // 2 + 1, dtype=like.dtype, device=like.device)
    if pitch >= 1:
        return torch.ones_like(frequency), torch.zeros_like(frequency)
    top = pitch * SAMPLE_RATE / 2

    def ramp(f: Tensor) -> Tensor:
        return ((f - top + FILL_WIDTH) / FILL_WIDTH).clamp(0, 1) * math.pi / 2

    return ramp(frequency * pitch).cos(), ramp(frequency).sin()


def spectral_envelope(magnitude: Tensor) -> Tensor:
    """Magnitudes (..., T, FFT/2 + 1) -> natural logarithm of the smooth curve over their harmonics, same shape.

    True envelope: smooth the logarithm by its cepstrum, lift what lies below the smooth curve up to it, again. The
    cepstrum is cut at half the period of the voice, above which it would follow single harmonics.
    """
    bins = torch.arange(magnitude.shape[-1], dtype=magnitude.dtype, device=magnitude.device)
    window = torch.fft.irfft(torch.fft.rfft(F.pad(_hann(FFT, magnitude), (0, FFT))).abs().square())
    lags = slice(PITCH_LAGS[0], PITCH_LAGS[1] + 1)
    # magnitude, not power, so that one formant does not decide; what a window takes from long lags is given back (Boersma 1993)
    heard = magnitude * (bins * SAMPLE_RATE / FFT > RUMBLE)
    period = PITCH_LAGS[0] + (torch.fft.irfft(heard)[..., lags] / window[lags]).argmax(-1)
    order = (period.to(magnitude.dtype) / 2).clamp(*CEPSTRUM)[..., None]
    quefrency = bins[: 4 * CEPSTRUM[1] // 3 + 1]
    lifter = torch.cos(((1.5 * quefrency / order - 1).clamp(0, 1)) * math.pi / 2) ** 2  # from 2/3 to 4/3 of the order
    waves = torch.cos(2 * math.pi / FFT * bins[:, None] * quefrency)
    ends = torch.where((bins == 0) | (bins == FFT // 2), 1.0, 2.0)[:, None]
    into = waves * ends / FFT * torch.where(quefrency == 0, 1.0, 2.0)
    floor = magnitude.amax(-1, keepdim=True) * 10 ** (FLOOR_DB / 20) + 1e-9
    target = torch.maximum(magnitude, floor).log()
    lifted = target
    for _ in range(ENVELOPE_STEPS):
        smooth = (lifted @ into * lifter) @ waves.T
        lifted = torch.maximum(target, smooth)
    return smooth


def _stretched(envelope: Tensor, factor: float) -> Tensor:
    """Curve (..., bins) over frequency -> the curve whose value at f is the old one at f/factor; flat above its end."""
    last = envelope.shape[-1] - 1
    place = (torch.arange(last + 1, dtype=envelope.dtype, device=envelope.device) / factor).clamp(max=last)
    left = place.long().clamp(max=last - 1)
    return torch.lerp(envelope[..., left], envelope[..., left + 1], place - left)


def _rotation(spectrum: Tensor, magnitude: Tensor) -> Tensor:
    """(B, T, bins) -> radians (B, T, bins); bins turned by `excess` times as much make partials run at 1 + excess times their
    frequency.

    A peak turns on from where its bin stood one frame before, by frequency · hop, and all bins nearest to it turn with
    it. This recursion over frames goes along a tree, which is summed by doubling: log2(T) steps for all.
    """
    count, bins = spectrum.shape[-2:]
    index = torch.arange(bins, device=spectrum.device)
    around = F.pad(magnitude, (2, 2), value=-1.0)
    peak = (magnitude > around[..., 1:-3]) & (magnitude >= around[..., 3:-1])
    peak &= (magnitude > around[..., :-4]) & (magnitude >= around[..., 4:])
    left = torch.where(peak, index, -bins).cummax(-1).values
    right = torch.where(peak, index, 2 * bins).flip(-1).cummin(-1).values.flip(-1)
    owner = torch.where(index - left <= right - index, left, right)
    owner = torch.where((owner >= 0) & (owner < bins), owner, index)
    middle = 2 * math.pi / FFT * HOP * index
    change = (spectrum[..., 1:, :] * spectrum[..., :-1, :].conj()).angle() - middle
    advance = middle + torch.remainder(change + math.pi, 2 * math.pi) - math.pi
    turn = F.pad(advance, (0, 0, 1, 0)).gather(-1, owner)
    step = 1
    while step < count:
        came = owner[..., step:, :]
        turn = torch.cat([turn[..., :step, :], turn[..., step:, :] + turn[..., :-step, :].gather(-1, came)], -2)
        owner = torch.cat([owner[..., :step, :], owner[..., :-step, :].gather(-1, came)], -2)
        step *= 2
    return turn


def coloured(white: Tensor, kind: str) -> Tensor:
    """White noise (..., n) double -> noise of one of COLOURS (..., n), from 20 Hz; its power is another."""
    count = white.shape[-1]
    frequency = torch.fft.rfftfreq(count, 1 / SAMPLE_RATE, dtype=torch.float64, device=white.device).clamp_min(20)
    return torch.fft.irfft(torch.fft.rfft(white) * frequency ** (-COLOURS[kind] / 2), count)


def add_noise(samples: Tensor, snr_db: float, kind: str, generator: torch.Generator) -> Tensor:
    """(..., n) -> (..., n) with noise whose mean power is `snr_db` below each row's own; silence stays silence.

    Kinds: "white", "pink" (power 1/f), "brown" (1/f²), each from 20 Hz, and "hum": ten harmonics of 50 or 60 Hz.
    """
    _check(samples)
    _check_number("noise ratio", snr_db, -60, 120)
    if kind not in NOISES:
        raise TalkheadError(f"noise must be one of {', '.join(NOISES)}, found {kind!r}")
    count = samples.shape[-1]
    if kind == "hum":
        draws = torch.rand((*samples.shape[:-1], 21), generator=generator, dtype=torch.float64)
        draws = draws.to(samples.device)
        base = torch.where(draws[..., :1] < 0.5, *HUMS)
        harmonic, time = torch.arange(1, 11, device=samples.device), torch.arange(count, device=samples.device)
        phase = 2 * math.pi * (draws[..., 11:, None] + (base * harmonic)[..., None] * time / SAMPLE_RATE)
        noise = (draws[..., 1:11, None] / harmonic[:, None] * phase.sin()).sum(-2)
    else:
        white = torch.randn(samples.shape, generator=generator, dtype=torch.float64).to(samples.device)
        noise = coloured(white, kind)
    noise = noise.to(samples)
    power = noise.square().mean(-1, keepdim=True).clamp_min(1e-20)
    wanted = samples.square().mean(-1, keepdim=True) * 10 ** (-snr_db / 10)
    return samples + noise * (wanted / power).sqrt()


def reverb(samples: Tensor, rt60: float, direct_ratio: float, generator: torch.Generator) -> Tensor:
    """(..., n) -> (..., n) as in a room whose sound falls by 60 dB in `rt60` seconds; the direct sound stays at its time.

    Impulse response: 1 at time 0, then white Gaussian noise under an exponential (Polack 1988). `direct_ratio`, in
    (0, 1], is the direct sound's share of the response's energy, which is 1 in all.
    """
    _check(samples)
    _check_number("reverberation time", rt60, 0.01, 5)
    _check_number("direct sound's share", direct_ratio, 1e-3, 1)
    count = samples.shape[-1]
    size = min(count, round(rt60 * SAMPLE_RATE) + 1)
    tail = torch.randn((*samples.shape[:-1], size), generator=generator, dtype=torch.float64).to(samples.device)
    tail *= 10 ** (-3 * torch.arange(size, device=samples.device) / (rt60 * SAMPLE_RATE))
    tail[..., 0] = 0
    tail *= ((1 - direct_ratio) / tail.square().sum(-1, keepdim=True).clamp_min(1e-20)).sqrt()
    tail[..., 0] = direct_ratio**0.5
    room = tail.to(samples)
    length = 1 << (count + size - 1).bit_length()  # few lengths: a GPU prepares each anew
    return torch.fft.irfft(torch.fft.rfft(samples, length) * torch.fft.rfft(room, length), length)[..., :count]


def gain(samples: Tensor, db: float) -> Tensor:
    """(..., n) times 10^(db/20)."""
    _check(samples)
    _check_number("gain", db, -120, 60)
    return samples * 10 ** (db / 20)


def band_limit(samples: Tensor, low_hz: float, high_hz: float) -> Tensor:
    """(..., n) -> (..., n) between `low_hz` and `high_hz`, as over a telephone (300 to 3400), with no delay.

    Zero phase: |H|² of Butterworth filters of fourth order, 1 / (1 + (low/f)⁸) / (1 + (f/high)⁸), on the spectrum.
    """
    _check(samples)
    if not 0 <= low_hz < high_hz:
        raise TalkheadError(f"a band goes from low to high, in Hz from 0, found {low_hz} to {high_hz}")
    count = samples.shape[-1]
    length = count + 2048  # a filter's ringing must not come back at the other end
    frequency = torch.fft.rfftfreq(length, 1 / SAMPLE_RATE, dtype=torch.float64).to(samples.device)
    response = 1 / (1 + (low_hz / frequency.clamp_min(1e-3)) ** 8) / (1 + (frequency / high_hz) ** 8)
    return torch.fft.irfft(torch.fft.rfft(samples, length) * response.to(samples.dtype), length)[..., :count]


def clip(samples: Tensor, ceiling_db: float, soft: bool = False) -> Tensor:
    """(..., n) cut at `ceiling_db` (at most 0) relative to each row's peak; `soft` bends it by tanh instead."""
    _check(samples)
    _check_number("ceiling", ceiling_db, -60, 0)
    ceiling = samples.abs().amax(-1, keepdim=True) * 10 ** (ceiling_db / 20)
    if soft:
        safe = ceiling.clamp_min(1e-20)
        return safe * torch.tanh(samples / safe)
    return samples.clamp(-ceiling, ceiling)


@dataclass(frozen=True)
class VoiceRanges:
    """From where to where `augment_voice` draws, evenly (ratios on a logarithmic scale), and with which probability.

    A vocal tract of a child is about 0.8 times a man's, hence the formants; `speed_share` is 0 because lips that go with
    the sound must be moved too, by n / len(result).
    """

    speed: tuple[float, float] = (0.9, 1.1)
    speed_share: float = 0.0
    pitch: tuple[float, float] = (0.8, 1.25)
    formants: tuple[float, float] = (0.83, 1.2)
    shift_share: float = 0.7
    rt60: tuple[float, float] = (0.1, 0.8)  # seconds
    direct: tuple[float, float] = (0.3, 0.95)  # share of energy
    reverb_share: float = 0.3
    snr_db: tuple[float, float] = (5.0, 40.0)
    noise_share: float = 0.6
    ceiling_db: tuple[float, float] = (-20.0, -3.0)
    clip_share: float = 0.1
    low_hz: tuple[float, float] = (50.0, 300.0)
    high_hz: tuple[float, float] = (3400.0, 7500.0)
    band_share: float = 0.2
    gain_db: tuple[float, float] = (-60.0, 0.0)
    gain_share: float = 0.5

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if name.endswith("_share"):
                _check_number(name, value, 0, 1)
            elif not value[0] <= value[1] or value[0] <= 0 and not name.endswith("_db"):
                raise TalkheadError(f"{name} must go up from a positive number, found {value}")


def augment_voice(samples: Tensor, ranges: VoiceRanges, generator: torch.Generator) -> Tensor:
    """(n,) or (B, n) -> the same shape (fewer or more samples after a drawn speed): another voice, room and microphone.

    Every row has its own draws, but for the speed, which all rows share so that they stay as long as each other. The
    order is that of the world: speed, voice, room, noise, distortion, band, level.
    """
    _check(samples)
    if samples.ndim > 2:
        raise TalkheadError(f"sound must be (n,) or (B, n), found shape {tuple(samples.shape)}")

    def uniform() -> float:
        return float(torch.rand((), generator=generator, dtype=torch.float64))

    def between(ends: tuple[float, float]) -> float:
        return ends[0] + (ends[1] - ends[0]) * uniform()

    def factor(ends: tuple[float, float]) -> float:
        return math.exp(between((math.log(ends[0]), math.log(ends[1]))))

    if uniform() < ranges.speed_share:
        samples = speed(samples, factor(ranges.speed))
    out = []
    for row in samples.reshape(-1, samples.shape[-1]):
        if uniform() < ranges.shift_share:
            row = shift_voice(row, factor(ranges.pitch), factor(ranges.formants))
        if uniform() < ranges.reverb_share:
            row = reverb(row, factor(ranges.rt60), between(ranges.direct), generator)
        if uniform() < ranges.noise_share:
            row = add_noise(row, between(ranges.snr_db), NOISES[int(uniform() * len(NOISES))], generator)
        if uniform() < ranges.clip_share:
            row = clip(row, between(ranges.ceiling_db), soft=uniform() < 0.5)
        if uniform() < ranges.band_share:
            row = band_limit(row, factor(ranges.low_hz), factor(ranges.high_hz))
        if uniform() < ranges.gain_share:
            row = gain(row, between(ranges.gain_db))
        out.append(row)
    return torch.stack(out).reshape(samples.shape)


def mask_features(mel: Tensor, generator: torch.Generator, *, time_masks: int = 2, longest: int = 8, bands: int = 2,
                  widest: int = 16, fill: float | None = math.log(MEL_FLOOR)) -> Tensor:
    """Log-mel (..., T, M) -> a copy with hidden times and bands (SpecAugment, Park et al., Interspeech 2019), each sequence
    its own.

    Each of `time_masks` masks hides 0 to `longest` rows, each of `bands` 0 to `widest` columns. They become `fill`, by
    default the log-mel of silence, or with None the sequence's mean, which tells the network least.
    """
    if mel.ndim < 2:
        raise TalkheadError(f"log-mel must be (..., T, M), found shape {tuple(mel.shape)}")
    for name, number in (("time_masks", time_masks), ("longest", longest), ("bands", bands), ("widest", widest)):
        if number < 0:
            raise TalkheadError(f"{name} must not be negative, found {number}")
    lead = mel.shape[:-2]

    def hidden(size: int, count: int, most: int) -> Tensor:
        """(*lead, size) bool: `count` stretches of 0 to `most` places, anywhere."""
        width = (torch.rand((*lead, count, 1), generator=generator) * (min(most, size) + 1)).floor()
        start = (torch.rand((*lead, count, 1), generator=generator) * (size - width + 1)).floor()
        place = torch.arange(size)
        return ((place >= start) & (place < start + width)).any(-2)

    rows, columns = hidden(mel.shape[-2], time_masks, longest), hidden(mel.shape[-1], bands, widest)
    mask = rows.to(mel.device)[..., :, None] | columns.to(mel.device)[..., None, :]
    value = mel.mean((-2, -1), keepdim=True) if fill is None else mel.new_tensor(fill)
    return torch.where(mask, value, mel)


def _hann(size: int, like: Tensor) -> Tensor:
    return torch.hann_window(size, dtype=like.dtype, device=like.device)


def _check(samples: Tensor) -> None:
    if samples.ndim < 1 or samples.shape[-1] == 0 or not samples.is_floating_point():
        raise TalkheadError(f"sound must be a tensor (..., n) of floats, found shape {tuple(samples.shape)} of {samples.dtype}")


def _check_factor(name: str, value: float) -> None:
    _check_number(name, value, *FACTORS)


def _check_number(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise TalkheadError(f"{name} must be from {low:g} to {high:g}, found {value}")
