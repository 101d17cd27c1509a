"""The built-in encoder behind the protocol of `encoders.base`: a stream against one pass of the network over everything."""

from pathlib import Path

import numpy as np
import pytest
import torch

from shared.landmarks import SAMPLES_PER_FRAME
from stage1_audio2lmk.audio.features import features, silence_row
from stage1_audio2lmk.encoders.base import Encoder
from stage1_audio2lmk.encoders.speech_encoder import (
    LEFT_CONTEXT,
    SpeechEncoder,
    SpeechEncoderConfig,
    load_speech_encoder,
    save_speech_encoder,
)


def made(**sizes: int) -> SpeechEncoder:
    """An encoder whose every weight is random."""
    config = SpeechEncoderConfig(**{"dim": 16, "layers": 2, "heads": 2, "window": 5, "size": 8} | sizes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder = SpeechEncoder(config).eval().requires_grad_(False)
        for value in (*encoder.parameters(), encoder.centre):
            torch.nn.init.normal_(value, std=0.3)
    encoder.mean.fill_(-6)
    encoder.scale.fill_(3)
    return encoder


@pytest.mark.parametrize("look_ahead", [0, 2, 3])
@pytest.mark.parametrize("cuts", [[], [1, 2, 3, 4, 30], [0, 1, 50]])
def test_a_stream_equals_one_pass_with_silence_around(speech: np.ndarray, look_ahead: int, cuts: list[int]) -> None:
    encoder: Encoder = made(look_ahead=look_ahead)
    assert isinstance(encoder, SpeechEncoder) and (encoder.size, encoder.look_ahead) == (8, look_ahead)
    sound = speech[: SAMPLES_PER_FRAME * 60]
    rows = features(sound)
    quiet = np.repeat(silence_row()[None], LEFT_CONTEXT, 0)
    padded = torch.from_numpy(np.concatenate([quiet, rows, quiet[:look_ahead]]))[None]
    with torch.no_grad():
        whole = encoder(padded)[0][0].numpy() / 8**0.5
    np.testing.assert_allclose(encoder.encode(sound, rows), whole, rtol=0, atol=1e-5)
    stream, found = encoder.stream(), []
    for samples, part in zip(np.split(sound, [640 * cut for cut in cuts]), np.split(rows, cuts)):
        found.append(stream.push(samples, part))
    assert sum(map(len, found)) == 60 - look_ahead
    np.testing.assert_allclose(np.concatenate([*found, stream.flush()]), whole, rtol=0, atol=1e-5)


@pytest.mark.parametrize("halves", [True, False])
def test_frame_by_frame_equals_one_pass(speech: np.ndarray, halves: bool) -> None:
    """With weights as files keep them and with others, beyond the room of the caches."""
    encoder = made()
    if halves:
        encoder = encoder.half().float()
    sound = speech[: SAMPLES_PER_FRAME * 60]
    rows = features(sound)
    with torch.no_grad():
        quiet = np.repeat(silence_row()[None], LEFT_CONTEXT, 0)
        whole = encoder(torch.from_numpy(np.concatenate([quiet, rows, quiet[:2]]))[None])[0][0].numpy() / 8**0.5
    for stream in (encoder.stream(), encoder.stream()):
        found = [stream.push(sound[640 * k : 640 * (k + 1)], rows[k : k + 1]) for k in range(60)]
        np.testing.assert_allclose(np.concatenate([*found, stream.flush()]), whole, rtol=0, atol=1e-5)


def test_what_is_made_of_the_weights_goes_when_they_do() -> None:
    encoder = made()
    before = encoder.single
    assert encoder.single is before and encoder.half().float().single is not before
    rows = np.repeat(silence_row()[None], 9, 0)
    encoder.requires_grad_(True)  # in training
    stream = encoder.stream()
    first = [stream.push(np.zeros(640, np.float32), row[None]) for row in rows][-1]
    encoder.narrow.bias.data += 1
    stream = encoder.stream()
    second = [stream.push(np.zeros(640, np.float32), row[None]) for row in rows][-1]
    np.testing.assert_allclose(second - first, 1 / 8**0.5, rtol=0, atol=1e-5)


def test_digital_silence_is_one_row() -> None:
    rows = made().encode(np.zeros(640 * 20, np.float32), np.repeat(silence_row()[None], 20, 0))
    np.testing.assert_allclose(rows, np.repeat(rows[:1], 20, 0), rtol=0, atol=1e-6)


def test_short_and_no_sound() -> None:
    encoder = made()
    assert encoder.encode(np.zeros(640, np.float32), silence_row()[None]).shape == (1, 8)
    assert encoder.encode(np.zeros(0, np.float32), silence_row()[None][:0]).shape == (0, 8)


def test_what_is_loaded_is_frozen_and_the_same_to_half_precision(speech: np.ndarray, tmp_path: Path) -> None:
    encoder = made()
    save_speech_encoder(tmp_path / "e", encoder, {})
    loaded = load_speech_encoder(tmp_path / "e")
    assert not loaded.training and not any(value.requires_grad for value in loaded.parameters())
    assert loaded.info() == encoder.info() and loaded.info()["kind"] == "speech encoder"
    rows = features(speech)
    np.testing.assert_allclose(loaded.encode(speech, rows), encoder.encode(speech, rows), rtol=0, atol=5e-3)
