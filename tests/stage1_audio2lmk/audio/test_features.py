import numpy as np
import pytest
import torch

from stage1_audio2lmk.audio.features import (
    FEATURE_SIZE,
    FFT,
    HOP,
    HOPS,
    MEL_FLOOR,
    MELS,
    WINDOW,
    FeatureStream,
    features,
    frames_of,
    log_mel,
    mel_filters,
)


def test_leaving_out_the_voice_changes_no_log_mel() -> None:
    samples = np.random.default_rng(0).normal(size=640 * 30).astype(np.float32)
    mels = HOPS * MELS
    assert np.array_equal(FeatureStream(voice=False).push(samples)[:, :mels], features(samples)[:, :mels])


def test_log_mel_equals_a_slow_reference() -> None:
    samples = np.random.default_rng(0).normal(size=352 + 5 * HOP)
    got = log_mel(torch.from_numpy(samples.astype(np.float32))).numpy()
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)
    for k in range(5):
        start = k * HOP + (FFT - WINDOW) // 2
        power = np.abs(np.fft.rfft(samples[start : start + WINDOW] * hann, FFT)) ** 2
        np.testing.assert_allclose(got[k], np.log(power @ mel_filters().numpy() + MEL_FLOOR), atol=1e-3)


def test_every_filter_hears_something_and_a_tone_lands_in_its_own() -> None:
    filters = mel_filters().numpy()
    assert (filters.max(0) > 0).all() and (filters >= 0).all()
    time = np.arange(16000) / 16000
    for tone in (300.0, 1000.0, 4000.0):
        mel = features((0.3 * np.sin(2 * np.pi * tone * time)).astype(np.float32))[10, :MELS]
        assert abs(filters[:, mel.argmax()].argmax() * 16000 / FFT - tone) < 0.06 * tone + 32


@pytest.mark.parametrize("size", [1, 3, 17])
def test_pieces_equal_the_whole(speech: np.ndarray, size: int) -> None:
    """To the bit in the formants, whose tracker decides, and to the rounding of a matrix product in the spectra."""
    whole, stream = features(speech), FeatureStream()
    assert whole.shape == (len(speech) // 640, FEATURE_SIZE) and whole.dtype == np.float32 and np.isfinite(whole).all()
    rows = np.concatenate([stream.push(speech[i : i + 640 * size]) for i in range(0, len(speech), 640 * size)])
    np.testing.assert_allclose(rows[:, : HOPS * MELS], whole[:, : HOPS * MELS], atol=1e-5)
    np.testing.assert_array_equal(rows[:, HOPS * MELS :], whole[:, HOPS * MELS :])


def test_a_file_begins_after_endless_silence(speech: np.ndarray) -> None:
    later = features(np.concatenate([np.zeros(640 * 30, np.float32), speech]))
    np.testing.assert_allclose(later[30:], features(speech), atol=1e-5)


def test_formants_are_of_order_one(speech: np.ndarray) -> None:
    table = features(speech)[:, HOPS * MELS :]
    assert np.abs(table).max() < 10 and np.abs(table).mean(0).min() > 0.1


def test_without_formants_the_spectra_stay(speech: np.ndarray) -> None:
    rows = FeatureStream(voice=False).push(speech)
    np.testing.assert_array_equal(rows[:, : HOPS * MELS], features(speech)[:, : HOPS * MELS])
    assert rows.shape == (len(speech) // 640, FEATURE_SIZE) and not rows[:, HOPS * MELS :].any()


def test_a_part_of_a_frame_is_refused() -> None:
    with pytest.raises(ValueError, match="^expected a multiple of 640 samples, found 641$"):
        FeatureStream().push(np.zeros(641, np.float32))
    assert FeatureStream().push(np.zeros(0, np.float32)).shape == (0, FEATURE_SIZE)


def test_a_row_ends_with_its_own_frame(speech: np.ndarray) -> None:
    changed = speech.copy()
    changed[640 * 50 :] = 0.5
    before, after = features(speech), features(changed)
    np.testing.assert_array_equal(before[:50], after[:50])
    assert np.abs(before[50] - after[50]).max() > 0.1


def test_the_last_samples_of_a_frame_are_heard(speech: np.ndarray) -> None:
    changed = speech.copy()
    changed[640 * 51 - 60 : 640 * 51 - 20] += 0.3
    assert np.abs(features(speech)[50] - features(changed)[50])[3 * MELS : HOPS * MELS].max() > 0.1


@pytest.mark.parametrize("count, frames", [(0, 1), (1, 1), (640, 1), (641, 2)])
def test_part_of_a_frame_counts(count: int, frames: int) -> None:
    assert len(frames_of(np.ones(count, np.float32))) == 640 * frames
