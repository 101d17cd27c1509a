import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from shared.errors import TalkheadError
from stage1_audio2lmk.encoders.pretrained import (
    Encoder,
    EncoderStream,
    LayerMix,
    cached_rows,
    load_encoder,
    load_encoder_of,
)
from tests.stage1_audio2lmk.tiny_encoders import KINDS, save_models

transformers = pytest.importorskip("transformers", reason="speech encoders need the extra `encoders`")

MAIN = ("wav2vec2", "hubert", "wavlm", "whisper")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of tiny models with random weights, one of each kind."""
    return save_models(tmp_path_factory.mktemp("models"), *KINDS)


@pytest.fixture
def wavlm(models: Path) -> Encoder:
    return load_encoder(str(models / "wavlm"), "cpu", block=3, context=4)


def copy_of(models: Path, kind: str, to: Path) -> Path:
    return Path(shutil.copytree(models / kind, to / kind))


def message(name: str, **frames: int) -> str:
    with pytest.raises(TalkheadError) as caught:
        load_encoder(name, "cpu", **frames)
    return str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
def test_every_family_loads_from_a_folder_and_gives_rows_of_all_layers(models: Path, speech: np.ndarray, kind: str) -> None:
    encoder = load_encoder(str(models / kind), "cpu")
    rows = encoder.encode(speech[:8001])
    assert (encoder.family, encoder.layers, encoder.size, encoder.look_ahead) == (kind, 3, 16, 4)
    assert rows.shape == (13, 3, 16) and rows.dtype == np.float32 and np.isfinite(rows).all()
    assert (rows.std(0) > 1e-4).all() and np.abs(rows[:, 0] - rows[:, 1]).max() > 1e-2


@pytest.mark.parametrize("kind", MAIN)
@pytest.mark.parametrize("block, ahead", [(5, 0), (3, 2)])
def test_a_stream_equals_the_whole(models: Path, speech: np.ndarray, kind: str, block: int, ahead: int) -> None:
    encoder = load_encoder(str(models / kind), "cpu", block=block, context=6, ahead=ahead)
    sound = speech[: 640 * 32]
    whole = encoder.encode(sound)
    assert len(whole) == 32
    with torch.no_grad():
        np.testing.assert_allclose(encoder.forward_blocks(torch.from_numpy(sound)).numpy(), whole, atol=1e-5)
    stream = EncoderStream(encoder)
    for _ in range(2):  # after a flush a new file begins
        rows, heard = [], 0
        for size in (1, 0, 4, 7, 1, 2, 17):
            rows.append(stream.push(sound[640 * heard : 640 * (heard + size)]))
            heard += size
            assert sum(map(len, rows)) == max(0, heard - ahead) // block * block
            assert len(stream.sound) < encoder.window
        rows.append(stream.flush())
        np.testing.assert_allclose(np.concatenate(rows), whole, atol=1e-5)


@pytest.mark.parametrize("count", [0, 1, 640, 641, 640 * 6, 640 * 7 - 1])
def test_a_row_for_each_frame_begun(wavlm: Encoder, speech: np.ndarray, count: int) -> None:
    assert wavlm.encode(speech[:count]).shape == (-(-count // 640), 3, 16)


def test_a_part_of_a_frame_is_refused_by_the_stream(wavlm: Encoder) -> None:
    with pytest.raises(ValueError, match="expected a multiple of 640 samples, found 641"):
        EncoderStream(wavlm).push(np.zeros(641, np.float32))


@pytest.mark.parametrize("kind", MAIN)
def test_rows_hear_their_block_what_is_ahead_and_the_context_only(models: Path, speech: np.ndarray, kind: str) -> None:
    encoder = load_encoder(str(models / kind), "cpu", block=3, context=4, ahead=1)
    sound = speech[: 640 * 18]
    rows = encoder.encode(sound)
    for frame, first, last in ((10, 9, 17), (9, 6, 14), (8, 6, 14)):  # changed frame -> rows that may change: blocks and all
        changed = sound.copy()
        changed[640 * frame : 640 * (frame + 1)] += 0.1 * np.sin(np.arange(640)).astype(np.float32)
        moved = np.abs(encoder.encode(changed) - rows).max((1, 2))
        assert not moved[:first].any() and not moved[last + 1 :].any(), moved
        assert moved[first] > 1e-5 and moved[frame] > 1e-3, moved
    assert encoder.look_ahead == 3  # row 6 hears frame 9, row 9 does not change with frame 13
    changed = sound.copy()
    changed[640 * 13 :] = 0
    np.testing.assert_array_equal(encoder.encode(changed)[:12], rows[:12])


def test_rows_are_means_of_the_models_own_outputs(models: Path, speech: np.ndarray) -> None:
    """By hand: the convolutions make an output each 20 ms, which hears 25 ms and here ends with its own frame."""
    encoder = load_encoder(str(models / "wav2vec2"), "cpu", block=2, context=3, ahead=1)
    assert encoder.lead == 80 and encoder.window == 80 + 640 * 6
    window = speech[640 * 3 - 80 : 640 * 9]  # three frames of context, the frames 6 and 7, one ahead
    heard = torch.from_numpy((window - window.mean()) / np.sqrt(window.var() + 1e-7))[None]
    model = transformers.Wav2Vec2Model.from_pretrained(models / "wav2vec2").eval()
    with torch.no_grad():
        states = torch.stack(model(heard, output_hidden_states=True).hidden_states, 2)[0].numpy()
    assert len(states) == 12
    np.testing.assert_allclose(encoder.encode(speech)[6:8], states.reshape(6, 2, 3, 16).mean(1)[3:5], atol=1e-5)


def test_whisper_hears_the_window_and_silence_up_to_its_fixed_length(models: Path, speech: np.ndarray) -> None:
    encoder = load_encoder(str(models / "whisper"), "cpu", block=2, context=3)
    extractor = transformers.WhisperFeatureExtractor.from_pretrained(models / "whisper")
    mels = extractor(speech[640 * 3 : 640 * 8], sampling_rate=16000, return_tensors="pt")["input_features"]
    assert mels.shape == (1, 80, 300)
    model = transformers.WhisperModel.from_pretrained(models / "whisper").encoder.eval()
    with torch.no_grad():
        states = torch.stack(model(mels, output_hidden_states=True).hidden_states, 2)[0, :10].numpy()
    np.testing.assert_allclose(encoder.encode(speech)[6:8], states.reshape(5, 2, 3, 16).mean(1)[3:], atol=1e-5)
    assert message(str(models / "whisper"), context=80) == (
        f"{models / 'whisper'} hears 3 s of sound at most, but context 80, block 5 and ahead 0 are 3.4 s")


def test_frozen_until_tuned_and_always_the_same(wavlm: Encoder, speech: np.ndarray) -> None:
    sound = torch.from_numpy(speech[: 640 * 7])
    assert not wavlm.forward_blocks(sound).requires_grad and not any(p.requires_grad for p in wavlm.parameters())
    before = {name: value.clone() for name, value in wavlm.state_dict().items()}
    free = wavlm.tune(1)
    assert not wavlm.train().training and not wavlm.model.training
    rows = wavlm.forward_blocks(sound)
    torch.testing.assert_close(rows, wavlm.forward_blocks(sound), rtol=0, atol=0)
    assert rows.shape == (7, 3, 16)
    rows[:, 2].square().sum().backward()
    assert all(value.grad is not None and value.grad.abs().max() > 0 for value in free if value.dim() > 1)
    torch.optim.SGD(wavlm.parameters(), 0.1).step()
    changed = {name for name, value in wavlm.state_dict().items() if not torch.equal(value, before[name])}
    assert changed and all(name.startswith("model.encoder.layers.1.") for name in changed)
    for layers in (0, 3):
        with pytest.raises(TalkheadError, match=rf"wavlm has 2 layers to tune, found {layers}$"):
            wavlm.tune(layers)


def test_gradients_equal_finite_differences(models: Path, speech: np.ndarray) -> None:
    encoder = load_encoder(str(models / "whisper"), "cpu", block=2, context=2)
    weight = encoder.tune(2)[-3]
    sound, target = torch.from_numpy(speech[: 640 * 5]), torch.linspace(-1, 1, 16)

    def loss() -> torch.Tensor:
        return (encoder.forward_blocks(sound)[:, 1:] * target).mean()

    loss().backward()
    place, step = np.unravel_index(int(weight.grad.abs().argmax()), weight.shape), 1e-2
    with torch.no_grad():
        weight[place] += step
        high = loss()
        weight[place] -= 2 * step
        low = loss()
    assert float((high - low) / (2 * step)) == pytest.approx(float(weight.grad[place]), rel=0.02)


def test_tuned_layers_go_through_a_card(models: Path, wavlm: Encoder, speech: np.ndarray) -> None:
    wavlm.tune(2)
    with torch.no_grad():
        for value in wavlm.tuned_layers.parameters():
            value.add_(0.1)
    card = json.loads(json.dumps(wavlm.card()))
    assert card == {"name": str(models / "wavlm"), "family": "wavlm", "weights": wavlm.weights, "block": 3, "context": 4,
                    "ahead": 0, "tuned": 2}
    again = load_encoder_of(card, "cpu")
    again.tuned_layers.load_state_dict(wavlm.tuned_layers.state_dict())
    np.testing.assert_array_equal(again.encode(speech[:6400]), wavlm.encode(speech[:6400]))


def test_a_card_knows_its_encoder_in_another_place_and_refuses_another(models: Path, wavlm: Encoder, tmp_path: Path) -> None:
    elsewhere = copy_of(models, "wavlm", tmp_path)
    assert load_encoder_of(wavlm.card(), "cpu", str(elsewhere)).weights == wavlm.weights
    other = load_encoder(str(models / "hubert"), "cpu")
    with pytest.raises(TalkheadError) as caught:
        load_encoder_of(wavlm.card(), "cpu", str(models / "hubert"))
    assert str(caught.value) == (f"{models / 'hubert'} is not the encoder that this model was trained with: its weights have the "
                                 f"fingerprint {other.weights}, expected {wavlm.weights} of {models / 'wavlm'}")


def test_blocks_can_begin_anywhere(models: Path, speech: np.ndarray) -> None:
    """Several sounds at once, blocks from the 13th frame on: as if that were where a block begins in a file."""
    encoder = load_encoder(str(models / "wavlm"), "cpu", block=3, context=4, ahead=1)
    batch = torch.from_numpy(speech[: 640 * 46].copy()).reshape(2, -1)
    with torch.no_grad():
        rows = encoder.forward_blocks(batch, 13)
        assert rows.shape == (2, 10, 3, 16)
        for sound, found in zip(batch, rows):
            torch.testing.assert_close(found, torch.from_numpy(encoder.encode(sound[640:].numpy()))[12:], atol=1e-5, rtol=0)
        early = encoder.forward_blocks(batch, 1)  # less sound before it than context: zeros
        quiet = torch.nn.functional.pad(batch, (640 * 5, 0))
        torch.testing.assert_close(early, encoder.forward_blocks(quiet, 6), atol=1e-5, rtol=0)


def test_layer_mix_is_whitened_in_closed_form() -> None:
    """Principal components of the layers' mean, of unit variance, the largest first; what there is no more of is 0."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        rows = torch.randn(200, 3, 16) @ torch.randn(16, 16) + 3
        mix, few = LayerMix(3, 16, 5), LayerMix(3, 16, 20)
    mix.whiten(rows)
    found = mix(rows)
    torch.testing.assert_close(found.mean(0), torch.zeros(5), atol=1e-4, rtol=0)
    torch.testing.assert_close(torch.cov(found.T), torch.eye(5), atol=1e-3, rtol=0)
    plain = torch.nn.functional.layer_norm(rows.mean(1), (16,))
    spread, vectors = torch.linalg.eigh(torch.cov(plain.T))
    best = (plain - plain.mean(0)) @ vectors[:, -5:].flip(1) / spread[-5:].flip(0).sqrt()
    torch.testing.assert_close(found.abs(), best.abs().detach(), atol=1e-3, rtol=1e-3)
    few.whiten(rows[:4])
    assert few(rows).isfinite().all() and (few(rows)[:, 3:] == 0).all() and few(rows[:4])[:, :3].std(0).min() > 0.9


def test_layer_mix_is_a_weighted_mean_that_learns() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        mix, rows = LayerMix(3, 16, 5), torch.randn(2, 7, 3, 16)
    reference = mix.linear(torch.nn.functional.layer_norm(rows.mean(-2), (16,)))
    torch.testing.assert_close(mix(rows), reference)
    torch.testing.assert_close(mix(rows.half()), reference, atol=5e-3, rtol=0)
    with torch.no_grad():
        mix.weights.copy_(torch.tensor([0.0, 20.0, 0.0]))
    torch.testing.assert_close(mix(rows), mix.linear(torch.nn.functional.layer_norm(rows[..., 1, :], (16,))), atol=1e-5, rtol=0)
    with torch.no_grad():
        mix.weights.copy_(torch.tensor([0.3, -0.2, 0.1]))
    double = mix.double()
    assert torch.autograd.gradcheck(lambda w: torch.func.functional_call(double, {"weights": w}, rows.double()),
                                    double.weights)


def test_the_cache_spares_the_model_and_notices_every_change(models: Path, wavlm: Encoder, speech: np.ndarray,
                                                             tmp_path: Path) -> None:
    calls: list[int] = []
    wavlm.model.register_forward_hook(lambda *_: calls.append(1))
    sound, whole = speech[: 640 * 50 + 1], wavlm.encode(speech[: 640 * 50 + 1])
    calls.clear()
    rows = cached_rows(wavlm, sound, tmp_path / "rows")
    assert len(calls) == 3 and isinstance(rows, np.memmap)  # 17 blocks, 8 at once
    assert rows.shape == (51, 3, 16) and rows.dtype == np.float16 and not rows.flags.writeable
    np.testing.assert_array_equal(rows, whole.astype(np.float16))
    [file] = (tmp_path / "rows").iterdir()
    assert re.fullmatch(r"wavlm-[0-9a-f]{16}\.npy", file.name)
    np.testing.assert_array_equal(cached_rows(wavlm, sound, tmp_path / "rows"), rows)
    assert len(calls) == 3
    louder = sound.copy()
    louder[1000] += 1e-4
    for encoder in (load_encoder(str(models / "wavlm"), "cpu", block=4, context=4),
                    load_encoder(str(models / "wavlm"), "cpu", block=3, context=5),
                    load_encoder(str(models / "hubert"), "cpu", block=3, context=4)):
        cached_rows(encoder, sound, tmp_path / "rows")
    cached_rows(wavlm, louder, tmp_path / "rows")
    assert len(calls) == 6 and len(list((tmp_path / "rows").iterdir())) == 5
    assert cached_rows(wavlm, sound[:0], tmp_path).shape == (0, 3, 16)


@pytest.mark.parametrize("damage", [b"", b"nonsense", None])
def test_a_damaged_cache_file_is_written_anew(wavlm: Encoder, speech: np.ndarray, tmp_path: Path, damage: bytes | None) -> None:
    rows = np.array(cached_rows(wavlm, speech[:6400], tmp_path))
    [file] = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-7] if damage is None else damage)
    np.testing.assert_array_equal(cached_rows(wavlm, speech[:6400], tmp_path), rows)
    assert list(tmp_path.iterdir()) == [file] and len(np.load(file)) == 10


def test_only_frozen_rows_are_cached(wavlm: Encoder, speech: np.ndarray, tmp_path: Path) -> None:
    wavlm.tune(1)
    wavlm.requires_grad_(False)
    with pytest.raises(TalkheadError, match="wavlm is tuned: only the rows of a frozen encoder can be cached$"):
        cached_rows(wavlm, speech, tmp_path)


def test_offline_and_absent() -> None:
    assert message("somebody/no-such-encoder") == (
        "somebody/no-such-encoder is neither a folder nor in the local cache, and HF_HUB_OFFLINE is set; download it once with "
        "`hf download somebody/no-such-encoder`, or name a folder")


def test_online_and_unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("We couldn't connect to the hub.\nCheck your connection.")

    monkeypatch.setattr("huggingface_hub.is_offline_mode", lambda: False)
    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", refuse)
    assert message("somebody/encoder") == (
        "somebody/encoder is neither a folder nor in the local cache, and downloading it failed (We couldn't connect to the "
        "hub.); download it once with `hf download somebody/encoder`, or name a folder")


def test_transformers_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert message("any") == ("speech encoders need the package transformers, which is not installed: "
                              "pip install 'talkhead[encoders]'")


def test_folders_that_hold_no_speech_encoder(models: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    assert message(str(empty)).startswith(f"{empty} holds no speech encoder: Unrecognized model in {empty}.")
    transformers.BertConfig(hidden_size=16).save_pretrained(tmp_path / "bert")
    assert message(str(tmp_path / "bert")) == (
        f"{tmp_path / 'bert'} is a model of the kind 'bert'; stage 1 takes the speech encoders data2vec-audio, hubert, sew, "
        "unispeech, unispeech-sat, wav2vec2, wav2vec2-bert, wav2vec2-conformer, wavlm, whisper")
    bare = copy_of(models, "hubert", tmp_path)
    weights = (bare / "model.safetensors").read_bytes()
    (bare / "model.safetensors").write_bytes(weights[:3000])
    assert message(str(bare)).startswith(f"{bare} holds no speech encoder: Error while deserializing header")
    (bare / "preprocessor_config.json").unlink()
    assert message(str(bare)).startswith(f"{bare} holds no speech encoder: Can't load feature extractor for '{bare}'")


def test_weights_of_another_model(models: Path, tmp_path: Path) -> None:
    folder = copy_of(models, "hubert", tmp_path)
    shutil.copy(models / "whisper" / "model.safetensors", folder)
    found = message(str(folder))
    assert re.fullmatch(re.escape(str(folder)) + r": \d+ of the encoder's weights are not in its file, first encoder\.\S+; the "
                        "file belongs to another model", found), found


def test_a_file_without_the_weight_of_masking_is_whole(models: Path, wavlm: Encoder, tmp_path: Path) -> None:
    """Checkpoints of tuned models often lack it; transformers then draws another one each time."""
    folder = copy_of(models, "wavlm", tmp_path)
    tensors = load_file(folder / "model.safetensors")
    del tensors["masked_spec_embed"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert load_encoder(str(folder), "cpu").weights == wavlm.weights


def test_another_sampling_rate(models: Path, tmp_path: Path) -> None:
    folder = copy_of(models, "wavlm", tmp_path)
    transformers.Wav2Vec2FeatureExtractor(sampling_rate=24000).save_pretrained(folder)
    assert message(str(folder)) == f"{folder} hears sound at 24000 Hz, but stage 1 works at 16000 Hz"


def test_frames_that_cannot_be(models: Path) -> None:
    assert message(str(models / "wavlm"), block=0, context=-1) == (
        "an encoder needs block >= 1, context >= 0 and ahead >= 0 video frames, found 0, -1 and 0")
