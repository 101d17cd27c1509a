import dataclasses
import math
import time
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.linalg import solve_toeplitz
from scipy.signal import lfilter
from torch import Tensor

from shared.errors import TalkheadError
from stage1_audio2lmk.audio import augment
from stage1_audio2lmk.audio.augment import (
    NOISES,
    VoiceRanges,
    add_noise,
    augment_voice,
    band_limit,
    clip,
    gain,
    mask_features,
    reverb,
    shift_voice,
    shift_voices,
    speed,
)

RATE = 16000
# F1, F2, F3 in Hz of adult male vowels (Peterson and Barney 1952)
VOWELS = {"i": (270, 2290, 3010), "a": (730, 1090, 2440), "ae": (660, 1720, 2410), "er": (490, 1350, 1690)}
EVERYTHING = VoiceRanges(speed_share=0, shift_share=1, reverb_share=1, noise_share=1, clip_share=1, band_share=1, gain_share=1)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def vowel(name: str, f0: float, seconds: float = 0.6) -> Tensor:
    """Source and filter: every harmonic of f0 at −12 dB/octave through resonators, +6 dB/octave of the lips; (n,) double."""
    t = np.arange(int(seconds * RATE)) / RATE
    sound = sum(np.cos(2 * np.pi * k * f0 * t) for k in range(1, int(7900 // f0) + 1))
    sound = lfilter([1], np.convolve([1, -0.98], [1, -0.98]), sound)
    for frequency, bandwidth in zip((*VOWELS[name], 3500.0, 4500.0), (60, 90, 120, 180, 250)):
        radius, angle = np.exp(-np.pi * bandwidth / RATE), 2 * np.pi * frequency / RATE
        sound = lfilter([1], [1, -2 * radius * np.cos(angle), radius**2], sound)
    sound = lfilter([1, -0.98], [1], sound)
    return torch.from_numpy(0.3 * sound / np.abs(sound).max())


def voice(sound: Tensor) -> np.ndarray:
    """F1, F2, F3 and F0 in Hz of the middle of a vowel (4,), by linear prediction below 5.33 kHz and autocorrelation."""
    middle = sound.numpy()[2000:-2000]
    frames = np.lib.stride_tricks.sliding_window_view(np.diff(middle), 512)[::40] * np.hamming(512)
    power = (np.abs(np.fft.rfft(frames, 1024)) ** 2).mean(0)
    r = np.fft.irfft(power[:342])[:13]
    roots = np.roots([1, *-solve_toeplitz(r[:12], r[1:13])])
    hz, width = np.angle(roots) * 16000 / 3 / np.pi, -np.log(np.abs(roots)) * 32000 / 3 / np.pi
    resonances = np.sort(hz[(hz > 150) & (width < 700)])[:3]
    fine = np.fft.irfft(np.abs(np.fft.rfft(middle * np.hanning(len(middle)), 2**15)) ** 2, 2**18)  # 8 values a sample
    low, high = 8 * RATE // 300, 8 * RATE // 70
    return np.array([*resonances, 8 * RATE / (low + fine[low:high].argmax())])


def tone(hz: float, count: int = RATE) -> Tensor:
    return torch.sin(2 * math.pi * hz * torch.arange(count, dtype=torch.float64) / RATE)


def burst(place: int, count: int = RATE, length: int = 80) -> Tensor:
    """5 ms of noise in silence."""
    sound = torch.zeros(count, dtype=torch.float64)
    sound[place : place + length] = torch.randn(length, generator=seeded(place), dtype=torch.float64)
    return sound


def centre(sound: Tensor) -> float:
    energy = sound.double().square()
    return float((energy * torch.arange(len(sound))).sum() / energy.sum())


@pytest.mark.parametrize("factor", [0.9, 1.1, 1.0371])
def test_speed_of_a_tone(factor: float) -> None:
    found = speed(tone(1000) * torch.hann_window(RATE, dtype=torch.float64), factor)
    assert len(found) == round(RATE / factor)
    t = torch.arange(len(found), dtype=torch.float64) * factor
    expected = torch.sin(2 * math.pi * 1000 * t / RATE) * (0.5 - 0.5 * torch.cos(2 * math.pi * t / RATE))
    assert (found - expected).abs().max() < 1000 * 2 * math.pi / RATE  # not a sample late anywhere


def test_speed_lets_nothing_alias() -> None:
    window = torch.hann_window(RATE, dtype=torch.float64)
    assert speed(tone(7600) * window, 1.1).square().mean() < 1e-6
    assert speed(tone(7000) * window, 1.1).square().mean() > 0.1
    assert torch.equal(speed(tone(440), 1), tone(440))


def test_shift_by_nothing_returns_the_input() -> None:
    sound = torch.cat([vowel("a", 110), 0.1 * torch.randn(5000, generator=seeded(), dtype=torch.float64)])
    assert (shift_voice(sound, 1, 1) - sound).abs().max() < 1e-12


@pytest.mark.parametrize("pitch,resonance", [(0.8, 1.0), (1.25, 1.0), (1.0, 0.83), (1.0, 1.2), (0.8, 0.83), (1.25, 1.2)])
def test_known_vowels_are_shifted_as_asked(pitch: float, resonance: float) -> None:
    ratios = []
    for name in VOWELS:
        for f0 in (100.0, 125.0, 180.0):
            sound = vowel(name, f0)
            ratios.append(voice(shift_voice(sound, pitch, resonance)) / voice(sound))
    found = np.array(ratios)
    assert np.median(found[:, 3]) == pytest.approx(pitch, rel=0.005)
    assert np.median(np.abs(found[:, 3] / pitch - 1)) < 0.01
    assert np.abs(np.median(found[:, :3], axis=0) / resonance - 1).max() < 0.05
    assert np.median(np.abs(found[:, :3] / resonance - 1)) < 0.03


@pytest.mark.parametrize("pitch,resonance", [(0.8, 1.2), (1.25, 0.83), (1.25, 1.2)])
def test_a_burst_stays_at_its_time(pitch: float, resonance: float) -> None:
    for place in (3000, 8037, 8080, 12111):
        sound = burst(place)
        shifted = shift_voice(sound, pitch, resonance)
        assert abs(centre(shifted) - centre(sound)) < 0.002 * RATE
        spread = (shifted.square().cumsum(0) / shifted.square().sum()).double()
        first, last = (int(torch.searchsorted(spread, torch.tensor(q, dtype=torch.float64))) for q in (0.05, 0.95))
        assert place - 0.005 * RATE < first and last < place + 80 + 0.005 * RATE


def test_a_lowered_voice_keeps_its_treble() -> None:
    noise = torch.randn(2 * RATE, generator=seeded(), dtype=torch.float64)
    power = torch.fft.rfft(shift_voice(noise, 0.8, 1.0)).abs().square().unflatten(0, (1, -1))[0, :-1].reshape(16, -1).mean(1)
    assert (10 * torch.log10(power / (2 * RATE))).abs().max() < 1.0  # dB, in bands of 500 Hz up to 8 kHz


def test_no_beat_at_the_frame_rate() -> None:
    """Phases that do not fit from frame to frame would make a steady sound throb 100 times a second."""
    for f0 in (110.0, 170.0):
        sound = shift_voice(vowel("a", f0, 2.0), 1.2, 1.0)[4000:-4000]
        lines = torch.fft.rfft(sound * torch.hann_window(len(sound), dtype=torch.float64)).abs().square()
        hz = torch.arange(len(lines)) * RATE / len(sound)
        near = (hz - 1.2 * f0 * torch.round(hz / (1.2 * f0))).abs() < 8
        assert lines[~near & (hz > 80)].sum() < 0.01 * lines[near].sum()


def test_phases_follow_the_peaks_as_in_the_loop_of_the_paper() -> None:
    sound = vowel("ae", 130)[:4000] + 0.01 * torch.randn(4000, generator=seeded(), dtype=torch.float64)
    spectrum = torch.stft(sound[None], augment.FFT, augment.HOP, window=torch.hann_window(augment.FFT, dtype=torch.float64),
                          pad_mode="constant", return_complex=True).mT
    magnitude, phase = spectrum.abs()[0].numpy(), spectrum.angle()[0].numpy()
    count, bins = magnitude.shape
    turn = np.zeros((count, bins))
    for t in range(count):
        m = magnitude[t]
        near = [range(max(0, j - 2), min(bins, j + 3)) for j in range(bins)]
        peaks = np.array([j for j in range(bins) if m[j] == max(m[i] for i in near[j])])
        for j in range(bins):
            peak = peaks[np.argmin(np.abs(peaks - j))]
            if t:
                centred = 2 * np.pi * peak * augment.HOP / augment.FFT
                change = (phase[t, peak] - phase[t - 1, peak] - centred + np.pi) % (2 * np.pi) - np.pi
                turn[t, j] = turn[t - 1, peak] + 0.2 * (centred + change)
    found = 0.2 * augment._rotation(spectrum, spectrum.abs())[0].numpy()
    assert np.abs(np.exp(1j * found) - np.exp(1j * turn)).max() < 1e-9


def test_rows_are_shifted_alone() -> None:
    rows = torch.stack([vowel("i", 120), vowel("a", 200), torch.zeros(9600, dtype=torch.float64)]).float()
    together = shift_voice(rows, 1.2, 0.9)
    assert together.shape == rows.shape and together.dtype == torch.float32
    for row, expected in zip(rows, together):
        assert (shift_voice(row, 1.2, 0.9) - expected).abs().max() < 1e-6
    assert not together[2].any()


def test_voices_of_one_analysis_are_those_of_one_each() -> None:
    rows = torch.stack([vowel("i", 120), vowel("a", 200)])
    voices = [(1.25, 1.15), (1.0, 1.1), (0.8, 0.87), (1.0, 1.0)]
    together = shift_voices(rows, voices)
    assert together.shape == (4, *rows.shape)
    for found, wanted in zip(together, voices):
        assert (found - shift_voice(rows, *wanted)).abs().max() < 1e-12
    assert shift_voices(rows.float(), voices[:1]).dtype == torch.float32


@pytest.mark.parametrize("change,expected", [
    (lambda x: shift_voice(x, 1.25, 1.15), [0.069133822, 0.044782106, -0.030999875, -0.088629234]),
    (lambda x: shift_voice(x, 0.8, 0.87), [-0.046956639, -0.066465734, 0.108970586, 0.114650445]),
    (lambda x: speed(x, 1.1), [0.062097619, 0.001984631, 0.103426810, 0.053098953])])
def test_values_stay_as_they_were(change: Callable[[Tensor], Tensor], expected: list[float]) -> None:
    """Of the version that analysed sound anew for each voice."""
    assert change(vowel("ae", 130))[[1500, 3001, 4502, 6003]].tolist() == pytest.approx(expected, abs=2e-9)


@pytest.mark.parametrize("kind", NOISES)
def test_noise_has_the_power_asked_for(kind: str) -> None:
    sound = torch.stack([tone(300), 0.01 * tone(500), torch.zeros(RATE, dtype=torch.float64)])
    noise = add_noise(sound, 12.0, kind, seeded()) - sound
    level = 10 * torch.log10(sound.square().mean(1) / noise.square().mean(1))
    assert level[:2] == pytest.approx([12, 12], abs=1e-6)
    assert not noise[2].any()
    assert torch.equal(noise, add_noise(sound, 12.0, kind, seeded()) - sound)
    assert not torch.equal(noise, add_noise(sound, 12.0, kind, seeded(1)) - sound)


@pytest.mark.parametrize("kind,slope", [("white", 0.0), ("pink", -3.01), ("brown", -6.02)])
def test_colours_of_noise(kind: str, slope: float) -> None:
    sound = tone(1000, 8 * RATE)
    power = torch.fft.rfft(add_noise(sound, 0.0, kind, seeded()) - sound).abs().square()
    octaves = [10 * math.log10(power[8 * low : 16 * low].mean()) for low in (100, 200, 400, 800, 1600, 3200)]
    assert np.diff(octaves) == pytest.approx([slope] * 5, abs=0.6)


def test_hum_is_the_mains() -> None:
    sound = tone(1000)
    for seed in range(4):
        power = torch.fft.rfft(add_noise(sound, 0.0, "hum", seeded(seed)) - sound).abs().square()
        lines = power > 1e-6 * power.max()
        base = 50 if lines[50] else 60
        assert lines.nonzero().flatten().tolist() == [base * k for k in range(1, 11) if lines[base * k]] and lines.sum() > 5


def test_reverberation_time_and_direct_sound() -> None:
    impulse = torch.zeros(RATE, dtype=torch.float64)
    impulse[0] = 1
    room = reverb(impulse, 0.5, 0.4, seeded())
    assert room[0].item() == pytest.approx(0.4**0.5)
    assert room.square().sum().item() == pytest.approx(1, abs=1e-6)
    left = room[1:].square().flip(0).cumsum(0).flip(0)  # Schroeder's backward integral
    level = 10 * torch.log10(left / left[0])
    assert (level[RATE // 4] - level[RATE // 20]).item() == pytest.approx(-60 * 0.2 / 0.5, abs=1.5)
    late = reverb(impulse.roll(777), 0.5, 0.4, seeded())
    assert late.abs().argmax() == 777 and late[:777].abs().max() < 1e-12
    assert (reverb(tone(300), 0.3, 1.0, seeded()) - tone(300)).abs().max() < 1e-12


def test_gain_band_and_clipping() -> None:
    assert gain(tone(300), -20.0).abs().max().item() == pytest.approx(0.1, rel=1e-3)
    middle = slice(4000, 12000)
    for hz, kept in ((60, 0.0), (100, 0.0), (1000, 1.0), (2000, 1.0), (6000, 0.02), (300, 0.5), (3400, 0.5)):
        heard = band_limit(tone(hz), 300, 3400)[middle]
        assert (heard - kept * tone(hz)[middle]).abs().max() < 0.02
    struck = torch.zeros(4001, dtype=torch.float64)
    struck[2000] = 1
    assert (band_limit(struck, 300, 3400) - band_limit(struck, 300, 3400).flip(0)).abs().max() < 1e-6  # no delay
    hard, soft = clip(tone(300), -6.0), clip(tone(300), -6.0, soft=True)
    ceiling = tone(300).abs().max() * 10 ** (-6 / 20)
    assert hard.abs().max() == ceiling and torch.equal(hard, tone(300).clamp(-ceiling, ceiling))
    assert soft.abs().max() < ceiling and (soft * tone(300) >= 0).all()


def test_augmentation_is_reproducible_and_keeps_the_timing() -> None:
    sound = torch.stack([burst(4000), burst(9000), burst(12000)]).float()
    ranges = dataclasses.replace(EVERYTHING, snr_db=(40, 40), direct=(0.95, 0.95))
    for seed in range(5):
        found = augment_voice(sound, ranges, seeded(seed))
        assert found.shape == sound.shape and found.dtype == sound.dtype
        assert torch.equal(found, augment_voice(sound, ranges, seeded(seed)))
        assert not torch.equal(found, augment_voice(sound, ranges, seeded(seed + 100)))
        for row, place in zip(found, (4000, 9000, 12000)):
            level = row.square().unfold(0, 80, 16).mean(1)
            assert abs(int(level.argmax()) * 16 - place) < 0.005 * RATE
    assert augment_voice(sound[0], ranges, seeded()).shape == (RATE,)


def test_nothing_drawn_is_nothing_changed_and_speed_is_one_for_all() -> None:
    sound = torch.stack([tone(200), tone(300)])
    none = VoiceRanges(**{f.name: 0.0 for f in dataclasses.fields(VoiceRanges) if f.name.endswith("_share")})
    assert torch.equal(augment_voice(sound, none, seeded()), sound)
    faster = augment_voice(sound, dataclasses.replace(none, speed=(1.08, 1.08), speed_share=1), seeded())
    assert torch.equal(faster, speed(sound, math.exp(math.log(1.08))))


@pytest.mark.parametrize("count", [1, 2, 3, 100, 641, 2000])
def test_odd_sounds_stay_finite(count: int) -> None:
    sounds = torch.stack([torch.zeros(count), torch.ones(count), -torch.ones(count), 1e-30 * torch.ones(count),
                          100 * torch.sign(torch.randn(count, generator=seeded()))])
    changes: list[Callable[[Tensor], Tensor]] = [
        lambda x: speed(x, 1.1), lambda x: speed(x, 0.9), lambda x: shift_voice(x, 0.8, 1.2),
        lambda x: shift_voice(x, 1.25, 0.83),
        *(lambda x, kind=kind: add_noise(x, 5, kind, seeded()) for kind in NOISES), lambda x: reverb(x, 0.3, 0.5, seeded()),
        lambda x: gain(x, -60), lambda x: band_limit(x, 0, 3400), lambda x: clip(x, -10), lambda x: clip(x, -10, soft=True),
        lambda x: augment_voice(x, EVERYTHING, seeded())]
    for change in changes:
        found = change(sounds)
        assert found.isfinite().all() and found.abs().max() < 1000
        assert not found[0].any()  # silence stays silence


def test_masks_hide_stretches_of_time_and_bands() -> None:
    mel = torch.randn(6, 4, 100, 80, generator=seeded()).double()
    found = mask_features(mel, seeded(), time_masks=2, longest=10, bands=1, widest=16)
    changed = found != mel
    assert (found[changed] == math.log(1e-5)).all()
    rows, columns = changed.all(-1), changed.all(-2)
    assert torch.equal(changed, rows[..., None] | columns[..., None, :])
    assert rows.sum(-1).max() <= 20 and columns.sum(-1).max() <= 16
    assert rows.sum(-1).double().mean() == pytest.approx(10, abs=2) and columns.sum(-1).double().mean() == pytest.approx(8, abs=3)
    assert len({tuple(r.tolist()) for r in rows.flatten(0, 1)}) > 20  # each sequence its own
    assert ((columns[..., 1:] != columns[..., :-1]).sum(-1) <= 2).all()  # one stretch
    assert torch.equal(found, mask_features(mel, seeded(), time_masks=2, longest=10, bands=1, widest=16))
    often = mask_features(torch.zeros(500, 30, 80), seeded(), longest=5, widest=5) != 0
    assert often.all(-1).any(0).all() and often.all(-2).any(0).all()  # anywhere, the ends too
    mean = mask_features(mel[0, 0], seeded(), fill=None)
    assert (mean[mean != mel[0, 0]] == mel[0, 0].mean()).all() and (mean != mel[0, 0]).any()
    assert torch.equal(mask_features(mel, seeded(), time_masks=0, bands=0), mel)
    assert (mask_features(mel[0, 0, :3], seeded(1), longest=50, widest=500) == math.log(1e-5)).any()


@pytest.mark.parametrize("call,message", [
    (lambda x: speed(x, 0), "speed must be from 0.25 to 4, found 0"),
    (lambda x: shift_voice(x, float("nan"), 1), "pitch must be from 0.25 to 4, found nan"),
    (lambda x: shift_voice(x, 1, 5), "formants must be from 0.25 to 4, found 5"),
    (lambda x: add_noise(x, 5, "grey", seeded()), "noise must be one of white, pink, brown, hum, found 'grey'"),
    (lambda x: add_noise(x, -100, "hum", seeded()), "noise ratio must be from -60 to 120, found -100"),
    (lambda x: reverb(x, 0, 0.5, seeded()), "reverberation time must be from 0.01 to 5, found 0"),
    (lambda x: reverb(x, 0.5, 1.5, seeded()), "direct sound's share must be from 0.001 to 1, found 1.5"),
    (lambda x: gain(x, 100), "gain must be from -120 to 60, found 100"),
    (lambda x: band_limit(x, 500, 100), "a band goes from low to high, in Hz from 0, found 500 to 100"),
    (lambda x: clip(x, 3), "ceiling must be from -60 to 0, found 3"),
    (lambda x: gain(x[:0], 0), "sound must be a tensor (..., n) of floats, found shape (0,) of torch.float32"),
    (lambda x: gain(x.int(), 0), "sound must be a tensor (..., n) of floats, found shape (100,) of torch.int32"),
    (lambda x: augment_voice(x[None, None], VoiceRanges(), seeded()), "sound must be (n,) or (B, n), found shape (1, 1, 100)"),
    (lambda x: VoiceRanges(noise_share=1.5), "noise_share must be from 0 to 1, found 1.5"),
    (lambda x: VoiceRanges(pitch=(1.2, 0.8)), "pitch must go up from a positive number, found (1.2, 0.8)"),
    (lambda x: mask_features(x, seeded()), "log-mel must be (..., T, M), found shape (100,)"),
    (lambda x: mask_features(x[None], seeded(), widest=-1), "widest must not be negative, found -1"),
])
def test_bad_input_is_named(call: Callable[[Tensor], object], message: str) -> None:
    with pytest.raises(TalkheadError) as error:
        call(torch.zeros(100))
    assert str(error.value) == message


def test_a_voice_is_shifted_much_faster_than_it_speaks() -> None:
    sound = torch.randn(10 * RATE, generator=seeded())
    shift_voice(sound, 0.85, 1.1)
    started = time.process_time()
    shift_voice(sound, 0.85, 1.1)
    assert time.process_time() - started < 10 / 20


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_gpu_equals_cpu() -> None:
    noise = 0.01 * torch.randn(3, RATE, generator=seeded())
    rows = torch.stack([torch.cat([vowel(name, 130), torch.zeros(RATE - 9600)]) for name in ("i", "a", "ae")]).float() + noise
    for pitch, resonance in ((0.8, 1.2), (1.25, 0.83)):
        assert (shift_voice(rows, pitch, resonance) - shift_voice(rows.cuda(), pitch, resonance).cpu()).abs().max() < 1e-3
    for seed in range(5):
        found = augment_voice(rows.cuda(), EVERYTHING, seeded(seed))
        assert found.is_cuda and (augment_voice(rows, EVERYTHING, seeded(seed)) - found.cpu()).abs().max() < 1e-3
    assert torch.equal(mask_features(rows[None], seeded()), mask_features(rows[None].cuda(), seeded()).cpu())
