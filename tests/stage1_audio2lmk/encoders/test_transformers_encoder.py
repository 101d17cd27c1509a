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
from stage1_audio2lmk.encoders.base import Encoder
from stage1_audio2lmk.encoders.transformers_encoder import (
    CachedEncoder,
    HiddenStateStream,
    Projection,
    TransformersEncoder,
    WhisperLogMel,
    cached_hidden_states,
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
def wavlm(models: Path) -> TransformersEncoder:
    return load_encoder(str(models / "wavlm"), "cpu", block=3, context=4, ahead=0)


def copy_of(models: Path, kind: str, to: Path) -> Path:
    return Path(shutil.copytree(models / kind, to / kind))


def hidden(encoder: TransformersEncoder, sound: np.ndarray, layers: tuple[int, ...] | None = None) -> np.ndarray:
    """Hidden states (T, len(layers), width) of a whole recording, all if None."""
    return np.concatenate(list(encoder.hidden_states(sound, layers)))


def message(name: str, **frames: int) -> str:
    with pytest.raises(TalkheadError) as caught:
        load_encoder(name, "cpu", **frames)
    return str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
def test_every_family_loads_from_a_folder_and_gives_rows_of_all_layers(models: Path, speech: np.ndarray, kind: str) -> None:
    encoder = load_encoder(str(models / kind), "cpu")
    rows = hidden(encoder, speech[: 640 * 13])
    assert (encoder.family, encoder.n_layers, encoder.width, encoder.look_ahead) == (kind, 3, 16, 2)
    assert rows.shape == (13, 3, 16) and rows.dtype == np.float32 and np.isfinite(rows).all()
    assert (rows.std(0) > 1e-4).all() and np.abs(rows[:, 0] - rows[:, 1]).max() > 1e-2


@pytest.mark.parametrize("kind, block, ahead", [(kind, 1, 2) for kind in KINDS] + [
    (kind, *frames) for kind in MAIN for frames in ((5, 0), (3, 2))])
def test_a_stream_equals_the_whole(models: Path, speech: np.ndarray, kind: str, block: int, ahead: int) -> None:
    encoder = load_encoder(str(models / kind), "cpu", block=block, context=6, ahead=ahead)
    sound = speech[: 640 * 32]
    whole = hidden(encoder, sound)
    assert len(whole) == 32
    for _ in range(2):
        stream, rows, done = HiddenStateStream(encoder), [], 0
        for size in (1, 0, 4, 7, 1, 2, 17):
            rows.append(stream.push(sound[640 * done : 640 * (done + size)]))
            done += size
            assert sum(map(len, rows)) == max(0, done - ahead) // block * block
            assert len(stream.sound) < encoder.window
        rows.append(stream.flush())
        np.testing.assert_allclose(np.concatenate(rows), whole, atol=1e-5)


@pytest.mark.parametrize("count", [0, 640, 640 * 6, 640 * 7])
def test_a_row_for_each_frame(wavlm: TransformersEncoder, speech: np.ndarray, count: int) -> None:
    assert hidden(wavlm, speech[:count]).shape == (count // 640, 3, 16)


def test_a_part_of_a_frame_is_refused_by_the_stream(wavlm: TransformersEncoder) -> None:
    with pytest.raises(ValueError, match="expected a multiple of 640 samples, found 641"):
        HiddenStateStream(wavlm).push(np.zeros(641, np.float32))


@pytest.mark.parametrize("kind", MAIN)
def test_rows_see_their_block_what_is_ahead_and_the_context_only(models: Path, speech: np.ndarray, kind: str) -> None:
    encoder = load_encoder(str(models / kind), "cpu", block=3, context=4, ahead=1)
    sound = speech[: 640 * 18]
    rows = hidden(encoder, sound)
    for frame, first, last in ((10, 9, 17), (9, 6, 14), (8, 6, 14)):  # changed frame -> rows that may change: blocks and all
        changed = sound.copy()
        changed[640 * frame : 640 * (frame + 1)] += 0.1 * np.sin(np.arange(640)).astype(np.float32)
        moved = np.abs(hidden(encoder, changed) - rows).max((1, 2))
        assert not moved[:first].any() and not moved[last + 1 :].any(), moved
        assert moved[first] > 1e-5 and moved[frame] > 1e-3, moved
    assert encoder.look_ahead == 3  # row 6 sees frame 9, row 9 does not change with frame 13
    changed = sound.copy()
    changed[640 * 13 :] = 0
    np.testing.assert_array_equal(hidden(encoder, changed)[:12], rows[:12])


def test_rows_are_means_of_the_models_own_outputs(models: Path, speech: np.ndarray) -> None:
    """By hand: the convolutions make an output each 20 ms, which sees 25 ms and here ends with its own frame."""
    encoder = load_encoder(str(models / "wav2vec2"), "cpu", block=2, context=3, ahead=1)
    assert encoder.lead == 80 and encoder.window == 80 + 640 * 6
    window = speech[640 * 3 - 80 : 640 * 9]  # three frames of context, the frames 6 and 7, one ahead
    done = torch.from_numpy((window - window.mean()) / np.sqrt(window.var() + 1e-7))[None]
    model = transformers.Wav2Vec2Model.from_pretrained(models / "wav2vec2").eval()
    with torch.no_grad():
        states = torch.stack(model(done, output_hidden_states=True).hidden_states, 2)[0].numpy()
    assert len(states) == 12
    np.testing.assert_allclose(hidden(encoder, speech)[6:8], states.reshape(6, 2, 3, 16).mean(1)[3:5], atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_hidden_states_are_those_of_transformers_and_no_layer_runs_in_vain(models: Path, speech: np.ndarray, kind: str) -> None:
    """One window at a time, by way of `output_hidden_states`; Whisper's positions cut to the window, as it takes no shorter."""
    encoder = load_encoder(str(models / kind), "cpu", block=4, context=0, ahead=0)
    window = speech[640 * 8 - encoder.lead : 640 * 12]
    found = hidden(encoder, speech[: 640 * 12])[8:]
    own, inputs = encoder.model, torch.from_numpy(window)[None]
    ran: list[int] = []
    layers = own.layers if kind == "whisper" else own.encoder.layers
    for k, layer in enumerate(layers):
        layer.register_forward_hook(lambda *_, k=k: ran.append(k + 1))
    for wanted in ((0,), (1,), (2,), (0, 1)):
        ran.clear()
        np.testing.assert_array_equal(hidden(encoder, speech[: 640 * 12], wanted)[8:], found[:, list(wanted)])
        assert max(ran, default=0) <= max(1, *wanted) and encoder.n_layers == 3
    if kind == "whisper":
        inputs = encoder.log_mel(inputs)
        assert inputs.shape == (1, 80, 16)
        own.config.max_source_positions = 8
        own.embed_positions = torch.nn.Embedding.from_pretrained(own.embed_positions.weight[:8])
    else:
        inputs = encoder.extractor([window], sampling_rate=16000, return_tensors="pt")[own.main_input_name]
    with torch.no_grad():
        states = own(inputs, output_hidden_states=True).hidden_states
    for k, state in enumerate(states):
        frames = torch.nn.functional.adaptive_avg_pool1d(state[0].T, 4).T
        np.testing.assert_allclose(found[:, k], frames, atol=1e-5)


def test_log_mel_is_whispers_but_for_the_floor(models: Path, speech: np.ndarray) -> None:
    """Its columns are centred on multiples of 10 ms; 120 zeros before the sound shift it onto them."""
    extractor = transformers.WhisperFeatureExtractor.from_pretrained(models / "whisper")
    sound = speech[640 * 10 : 640 * 40 + 240]
    theirs = extractor(np.pad(sound, (120, 0)), sampling_rate=16000, return_tensors="np")["input_features"][0]
    ours = WhisperLogMel(extractor)(torch.from_numpy(sound)[None])[0].numpy()
    assert ours.shape == (80, 120)
    floor = max(-0.75, theirs.max() - 2)  # log10 of −7 is (−7 + 4)/4
    np.testing.assert_allclose(np.maximum(ours, floor), np.maximum(theirs[:, 2:122], floor), atol=1e-4)
    assert (WhisperLogMel(extractor)(torch.zeros(1, 1200)) == -0.75).all()


def test_windows_that_are_too_long_or_too_short(models: Path, tmp_path: Path) -> None:
    assert message(str(models / "whisper"), context=80) == (
        f"{models / 'whisper'} takes 3 s of sound at most, but context 80, block 1 and ahead 2 are 3.32 s")
    slow = KINDS["wav2vec2"][1] | {"conv_kernel": [10, 3, 3, 3, 3, 2, 32], "conv_stride": [5, 2, 2, 2, 2, 2, 16]}
    transformers.Wav2Vec2Model(transformers.Wav2Vec2Config(**slow)).save_pretrained(tmp_path)
    transformers.Wav2Vec2FeatureExtractor().save_pretrained(tmp_path)
    assert message(str(tmp_path), context=1, ahead=0) == (
        f"{tmp_path} hears 0.325 s of sound at once, but context 1, block 1 and ahead 0 are 0.245 s; give it more context")
    assert load_encoder(str(tmp_path), "cpu", context=3, ahead=0).look_ahead == 0


def fitted(encoder: TransformersEncoder, sound: np.ndarray, layers: tuple[int, ...] = (0, 1, 2)) -> TransformersEncoder:
    """The encoder with a projection to five columns, fitted to the sound."""
    encoder.projection = Projection(layers, encoder.width, 5)
    encoder.projection.fit(encoder.projection.pool(torch.from_numpy(hidden(encoder, sound, layers))))
    return encoder


@pytest.mark.parametrize("layers", [(0, 1, 2), (1,)])
def test_the_embedding_is_principal_components_of_unit_total_variance(wavlm: TransformersEncoder, speech: np.ndarray,
                                                                      layers: tuple[int, ...]) -> None:
    sound, nothing = speech[: 640 * 60], np.zeros((60, 0), np.float32)
    found = fitted(wavlm, sound, layers).encode(sound, nothing)
    pooled = hidden(wavlm, sound)[:, list(layers)].mean(1).astype(float)
    values, vectors = np.linalg.eigh(np.cov(pooled.T))
    best = (pooled - pooled.mean(0)) @ vectors[:, :-6:-1] / values[:-6:-1].sum() ** 0.5
    np.testing.assert_allclose(np.abs(found), np.abs(best), atol=1e-3)
    assert found.shape == (60, 5) == (60, wavlm.size) and found.dtype == np.float32
    assert found.var(0, ddof=1).sum() == pytest.approx(1, abs=1e-3)
    assert not wavlm.train().training and not any(value.requires_grad for value in wavlm.model.parameters())


def test_where_there_are_fewer_components_the_others_are_zero(wavlm: TransformersEncoder, speech: np.ndarray) -> None:
    found = fitted(wavlm, speech[: 640 * 4]).encode(speech[: 640 * 9], np.zeros((9, 0), np.float32))
    assert np.isfinite(found).all() and (found[:, 3:] == 0).all() and (found[:, :3] != 0).any()


def test_an_embedding_in_a_stream_and_from_a_cache_is_that_of_the_whole(wavlm: TransformersEncoder, speech: np.ndarray,
                                                                        tmp_path: Path) -> None:
    with pytest.raises(TalkheadError, match="wavlm has no projection yet; fit one to its hidden states"):
        wavlm.stream()
    sound, nothing = speech[: 640 * 40], np.zeros((40, 0), np.float32)
    whole = fitted(wavlm, sound).encode(sound, nothing)
    stream = wavlm.stream()
    parts = [stream.push(part, nothing) for part in np.split(sound, [640, 640 * 3, 640 * 20])]
    np.testing.assert_allclose(np.concatenate([*parts, stream.flush()]), whole, atol=1e-5)
    cached: Encoder = CachedEncoder(wavlm, tmp_path)
    assert (cached.size, cached.look_ahead, cached.info()) == (5, 2, wavlm.info())
    for _ in range(2):
        np.testing.assert_allclose(cached.encode(sound, nothing), whole, atol=5e-3)


def test_an_encoder_is_found_again_elsewhere_and_another_is_refused(models: Path, wavlm: TransformersEncoder,
                                                                    speech: np.ndarray, tmp_path: Path) -> None:
    info = json.loads(json.dumps(fitted(wavlm, speech, (1, 2)).info()))
    assert info == {"kind": "transformers", "name": str(models / "wavlm"), "family": "wavlm", "weights": wavlm.weights,
                    "block": 3, "context": 4, "ahead": 0, "layers": [1, 2], "size": 5}
    again = load_encoder_of(info, "cpu", str(copy_of(models, "wavlm", tmp_path)))
    again.fitted.load_state_dict(wavlm.fitted.state_dict())
    nothing = np.zeros((10, 0), np.float32)
    np.testing.assert_array_equal(again.encode(speech[:6400], nothing), wavlm.encode(speech[:6400], nothing))
    other = load_encoder(str(models / "hubert"), "cpu")
    with pytest.raises(TalkheadError) as caught:
        load_encoder_of(info, "cpu", str(models / "hubert"))
    assert str(caught.value) == (f"{models / 'hubert'} is not the encoder that this model was trained with: its weights have the "
                                 f"fingerprint {other.weights}, expected {wavlm.weights} of {models / 'wavlm'}")
    for key, wrong in (("block", None), ("layers", [7]), ("layers", []), ("layers", ["a"]), ("size", 10**9), ("name", 3)):
        with pytest.raises(TalkheadError, match="layers|hidden states|description"):
            load_encoder_of({**info, key: wrong}, "cpu")


def test_the_cache_spares_the_model_and_notices_every_change(models: Path, wavlm: TransformersEncoder, speech: np.ndarray,
                                                             tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stage1_audio2lmk.encoders.transformers_encoder.BATCH", 8)
    calls: list[int] = []
    wavlm.model.register_forward_hook(lambda *_: calls.append(1))
    sound, whole = speech[: 640 * 51], hidden(wavlm, speech[: 640 * 51])
    calls.clear()
    rows = cached_hidden_states(wavlm, sound, tmp_path / "rows")
    assert len(calls) == 3 and isinstance(rows, np.memmap)  # 17 blocks, 8 at once
    assert rows.shape == (51, 3, 16) and rows.dtype == np.float16 and not rows.flags.writeable
    np.testing.assert_array_equal(rows, whole.astype(np.float16))
    [file] = (tmp_path / "rows").iterdir()
    assert re.fullmatch(r"wavlm-[0-9a-f]{16}\.npy", file.name)
    np.testing.assert_array_equal(cached_hidden_states(wavlm, sound, tmp_path / "rows"), rows)
    np.testing.assert_array_equal(cached_hidden_states(wavlm, sound, tmp_path / "rows", (1,)), rows[:, [1]])
    assert len(calls) == 3 and list((tmp_path / "rows").iterdir()) == [file]  # a file of all serves for any
    some = cached_hidden_states(wavlm, sound, tmp_path / "some", (0, 1))
    np.testing.assert_array_equal(some, rows[:, :2])
    assert isinstance(some, np.memmap) and len(calls) == 6
    louder = sound.copy()
    louder[1000] += 1e-4
    for encoder in (load_encoder(str(models / "wavlm"), "cpu", block=4, context=4, ahead=0),
                    load_encoder(str(models / "wavlm"), "cpu", block=3, context=5, ahead=0),
                    load_encoder(str(models / "hubert"), "cpu", block=3, context=4, ahead=0)):
        cached_hidden_states(encoder, sound, tmp_path / "rows")
    cached_hidden_states(wavlm, louder, tmp_path / "rows")
    assert len(calls) == 9 and len(list((tmp_path / "rows").iterdir())) == 5
    assert cached_hidden_states(wavlm, sound[:0], tmp_path).shape == (0, 3, 16)


@pytest.mark.parametrize("damage", [b"", b"nonsense", None])
def test_a_damaged_cache_file_is_written_anew(wavlm: TransformersEncoder, speech: np.ndarray, tmp_path: Path,
                                              damage: bytes | None) -> None:
    rows = np.array(cached_hidden_states(wavlm, speech[:6400], tmp_path))
    [file] = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-7] if damage is None else damage)
    np.testing.assert_array_equal(cached_hidden_states(wavlm, speech[:6400], tmp_path), rows)
    assert list(tmp_path.iterdir()) == [file] and len(np.load(file)) == 10


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


def test_a_file_without_the_weight_of_masking_is_whole(models: Path, wavlm: TransformersEncoder, tmp_path: Path) -> None:
    """Checkpoints of tuned models often lack it; transformers then draws another one each time."""
    folder = copy_of(models, "wavlm", tmp_path)
    tensors = load_file(folder / "model.safetensors")
    del tensors["masked_spec_embed"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert load_encoder(str(folder), "cpu").weights == wavlm.weights


def test_another_sampling_rate(models: Path, tmp_path: Path) -> None:
    folder = copy_of(models, "wavlm", tmp_path)
    transformers.Wav2Vec2FeatureExtractor(sampling_rate=24000).save_pretrained(folder)
    assert message(str(folder)) == f"{folder} takes sound at 24000 Hz, but stage 1 works at 16000 Hz"


def test_frames_that_cannot_be(models: Path) -> None:
    assert message(str(models / "wavlm"), block=0, context=-1) == (
        "an encoder needs block >= 1, context >= 0 and ahead >= 0 video frames, found 0, -1 and 2")
