"""Level, noise, speech and reverberation of sound whose truth is known."""

from pathlib import Path

import numpy as np
import pytest
from scipy.signal import fftconvolve

from process_data.check_sound import levels, measure_sound, reverberation_time
from shared.landmarks import SAMPLE_RATE
from shared.media.audio_io import load_audio

SPEECH = load_audio(Path(__file__).resolve().parents[2] / "process_data/data/actor_speech.flac")


def room(seconds, rng):
    """Impulse response: the direct sound, then noise of the same energy that falls by 60 dB in `seconds`."""
    t = np.arange(int(1.2 * SAMPLE_RATE * seconds)) / SAMPLE_RATE
    tail = rng.standard_normal(len(t)) * 10 ** (-3 * t / seconds) * (t > 0.0025)
    tail /= np.linalg.norm(tail)
    tail[0] = 1
    return tail


@pytest.mark.parametrize("seconds", [0.3, 0.5, 0.7])
def test_the_reverberation_of_a_known_room_is_found(seconds):
    found = reverberation_time(fftconvolve(SPEECH, room(seconds, np.random.default_rng(0)))[: len(SPEECH)])
    assert found == pytest.approx(seconds, rel=0.15)


def test_dry_speech_has_little_reverberation_and_noise_none_that_can_be_told():
    assert reverberation_time(SPEECH) < 0.25
    assert reverberation_time(0.1 * np.random.default_rng(0).standard_normal(SAMPLE_RATE)) is None


def test_a_sine_has_its_level():
    sine = 0.1 * np.sin(2 * np.pi * 200 * np.arange(SAMPLE_RATE) / SAMPLE_RATE)
    assert np.allclose(levels(sine), 20 * np.log10(0.1) - 10 * np.log10(2), atol=0.01)


def test_speech_is_told_from_pauses_and_noise():
    noise = 10 ** (-50 / 20) * np.random.default_rng(0).standard_normal(30 * SAMPLE_RATE)
    tone = 0.1 * np.sin(2 * np.pi * 200 * np.arange(8 * SAMPLE_RATE) / SAMPLE_RATE)
    samples = noise.copy()
    samples[2 * SAMPLE_RATE : 10 * SAMPLE_RATE] += tone
    samples[10 * SAMPLE_RATE + 3200 : 18 * SAMPLE_RATE + 3200] += tone  # after a pause of 0.2 s, which belongs to the speech
    found = measure_sound(samples)
    assert found.speech_seconds == pytest.approx(16.2, abs=0.05)
    assert found.speech_level == pytest.approx(-23.0, abs=0.1)
    assert found.noise_level == pytest.approx(-50, abs=1.5)
    assert found.clipped == 0


def test_silence_is_no_speech_and_clipping_is_counted():
    silent = measure_sound(np.zeros(SAMPLE_RATE))
    assert silent.speech_seconds == 0 and np.isnan(silent.speech_level) and silent.reverberation is None
    assert measure_sound(np.clip(3 * np.sin(np.arange(SAMPLE_RATE) / 10), -1, 1)).clipped > 0.5
