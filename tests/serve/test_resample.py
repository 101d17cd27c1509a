import numpy as np
import pytest

from serve.protocol import ProtocolError, SessionInit
from serve.resample import SoundIn


def heard(init: SessionInit, data: bytes, pieces: list[int]) -> np.ndarray:
    sound, out, at = SoundIn(init), [], 0
    for size in pieces:
        out.append(sound.push(data[at : at + size * init.bytes_per_sample]))
        at += size * init.bytes_per_sample
    out += [sound.push(data[at:]), sound.flush()]
    return np.concatenate(out)


@pytest.mark.parametrize("rate", [8000, 11025, 16000, 22050, 24000, 44100, 48000, 96000])
def test_pieces_of_any_size_give_the_same_16_khz_sound(rate):
    time = np.arange(rate) / rate
    samples = (0.5 * np.sin(2 * np.pi * 440 * time) * 32767).astype("<i2")
    init, rng = SessionInit(sample_rate=rate), np.random.default_rng(0)
    whole = heard(init, samples.tobytes(), [])
    pieces = heard(init, samples.tobytes(), rng.integers(1, rate // 20, 20).tolist())
    assert len(whole) == len(pieces) and abs(len(whole) - 16000) <= 32
    np.testing.assert_allclose(pieces, whole, atol=1e-6)
    expected = 0.5 * np.sin(2 * np.pi * 440 * np.arange(len(whole)) / 16000)
    middle = slice(1000, len(whole) - 1000)
    assert np.sqrt(np.mean((whole[middle] - expected[middle]) ** 2)) < 0.01


def test_floats_are_taken_and_cut_at_full_scale():
    init = SessionInit(format="f32")
    assert SoundIn(init).push(np.array([0.25, 3, -9], "<f4").tobytes()).tolist() == [0.25, 1, -1]


@pytest.mark.parametrize("format, data, message", [
    ("s16", b"abc", "sound should come in whole samples of 2 bytes, found 3 bytes"),
    ("f32", b"abcdef", "sound should come in whole samples of 4 bytes, found 6 bytes"),
    ("f32", np.array([np.nan], "<f4").tobytes(), "sound should be finite numbers, found NaN or infinity"),
])
def test_what_is_no_sound_is_refused(format, data, message):
    with pytest.raises(ProtocolError) as caught:
        SoundIn(SessionInit(format=format)).push(data)
    assert str(caught.value) == message
