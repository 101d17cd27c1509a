"""Stage 1 with a speech encoder of the transformers library: one path for embeddings, in training, in streams and on disk."""

import copy
import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from shared.checkpoint import load_checkpoint
from shared.clip import Clip
from shared.errors import TalkheadError
from stage1_audio2lmk import train as training
from stage1_audio2lmk.audio.dc_blocker import DCBlocker
from stage1_audio2lmk.audio.features import FEATURE_SIZE
from stage1_audio2lmk.checkpoint import load_model, save_model
from stage1_audio2lmk.closed_form import set_statistics
from stage1_audio2lmk.config import Stage1Config
from stage1_audio2lmk.dataset import hearing, load_recording
from stage1_audio2lmk.encoders import finetuning
from stage1_audio2lmk.encoders.pretrained import Encoder, load_encoder
from stage1_audio2lmk.encoders.speech_encoder import SpeechEncoderConfig
from stage1_audio2lmk.evaluate import evaluate
from stage1_audio2lmk.model import LandmarkModel
from stage1_audio2lmk.predict import Predictor, load_predictor, predict
from stage1_audio2lmk.stream import LandmarkStream
from stage1_audio2lmk.train import train
from tests.stage1_audio2lmk.tiny_encoders import save_models

pytest.importorskip("transformers", reason="speech encoders need the extra `encoders`")

pytestmark = pytest.mark.slow  # loads models of the transformers library

CPU = torch.device("cpu")
SPEAKER = torch.tensor([1])
NEUTRAL = np.zeros((68, 3), np.float32)
SMALL = Stage1Config(dim=16, layers=1, heads=2, window=6, components=4, centres=200, encoder_size=6, encoder_context=4,
                     encoder_block=3, steps=6, batch=2, length=40, check_every=3, save_every=2, worthwhile=-10.0)


class Killed(Exception):
    """Stands for a process that dies."""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_models(tmp_path_factory.mktemp("models"), "wavlm", "hubert")


@pytest.fixture(scope="module")
def config(models: Path) -> Stage1Config:
    return dataclasses.replace(SMALL, encoder=str(models / "wavlm"))


def made(config: Stage1Config, encoder: Encoder, rows: np.ndarray) -> LandmarkModel:
    """A model whose every weight is random and whose kernel compares to rows (T, F)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LandmarkModel(config, 1, heard=(encoder.layers, encoder.size)).eval()
        for value in (*model.parameters(), model.basis):
            torch.nn.init.normal_(value, std=0.1)
        model.mean.fill_(-3.0)
        model.scale.fill_(3.0)
        model.kernel.mean.fill_(-3.0)
        model.kernel.scale.fill_(3.0)
        padded = model.pad(torch.from_numpy(rows)[None])
        model.whiten(torch.from_numpy(rows), both=False)
        embedding = model.embed(padded)[0]
        assert embedding is not None
        model.set_centres(model.windows(padded)[0, ::3], embedding[0, ::3])
        torch.nn.init.normal_(model.kernel_head.weight, std=0.3)
    return model


def heard(encoder: Encoder, sound: np.ndarray) -> np.ndarray:
    return np.concatenate([hearing(None, Path())(sound), encoder.encode(sound).reshape(len(sound) // 640, -1)], 1)


def in_pieces(stream: LandmarkStream, sound: np.ndarray, sizes: list[int]) -> np.ndarray:
    rows, at, turn = [], 0, 0
    while at < len(sound):
        rows.append(stream.push(sound[at : at + sizes[turn % len(sizes)]]))
        at, turn = at + sizes[turn % len(sizes)], turn + 1
    return np.concatenate([*rows, stream.flush()])


@pytest.mark.parametrize("block, ahead, look_ahead", [(3, 0, 2), (5, 0, 2), (2, 3, 1), (1, 0, 4), (3, 1, 0)])
def test_a_stream_equals_one_pass_over_everything(config: Stage1Config, speech: np.ndarray, block: int, ahead: int,
                                                  look_ahead: int) -> None:
    """And it waits for what is ahead, of the encoder's block or of the model, not for one after the other."""
    config = dataclasses.replace(config, look_ahead=look_ahead)
    encoder = load_encoder(config.encoder or "", CPU, block=block, context=4, ahead=ahead)
    sound = speech[: 640 * 44]
    rows = heard(encoder, DCBlocker().pass_through(sound))
    model = made(config, encoder, rows)
    with torch.no_grad():
        whole = model(torch.from_numpy(rows)[None], torch.tensor([1]))[0].numpy()
    predictor = Predictor(model, ["one"], CPU, encoder)
    assert predictor.look_ahead == max(look_ahead, block - 1 + ahead)
    for sizes in ([640], [999, 1, 0, 5000], [64000]):
        stream = LandmarkStream(predictor, NEUTRAL, blinks=False)
        for _ in range(2):
            np.testing.assert_allclose(in_pieces(stream, sound, sizes), whole, rtol=0, atol=1e-5)
            stream.reset()
    counts = np.cumsum([len(stream.push(sound[640 * k : 640 * (k + 1)])) for k in range(44)])
    expected = [min(max(0, k - look_ahead), max(0, k - ahead) // block * block) for k in range(1, 45)]
    assert counts.tolist() == expected
    assert min(expected[k] - (k + 1) for k in range(44)) >= -predictor.look_ahead - (block > 1)
    assert len(predict(predictor, sound[:100], NEUTRAL)) == 1


def test_sound_after_the_look_ahead_is_not_heard(config: Stage1Config, speech: np.ndarray) -> None:
    encoder = load_encoder(config.encoder or "", CPU, block=5, context=4)
    sound = speech[: 640 * 44]
    model = made(config, encoder, heard(encoder, sound))
    predictor, changed = Predictor(model, ["one"], CPU, encoder), sound.copy()
    changed[640 * 25 :] = 0.3 * np.random.default_rng(1).normal(size=640 * 19)
    difference = np.abs(predict(predictor, sound, NEUTRAL, blinks=False)
                        - predict(predictor, changed, NEUTRAL, blinks=False)).max((1, 2))
    assert predictor.look_ahead == 4 and difference[: 25 - 2].max() < 1e-7 and difference[23:25].min() > 1e-5
    changed[640 * 24 : 640 * 25] = 0.1  # the last frame of a block, which its first row hears
    difference = np.abs(predict(predictor, sound, NEUTRAL, blinks=False)
                        - predict(predictor, changed, NEUTRAL, blinks=False)).max((1, 2))
    assert difference[:20].max() < 1e-7 and difference[20] > 1e-5


@torch.no_grad()
def test_rows_forget_what_lies_beyond_their_reach(config: Stage1Config) -> None:
    """`reach_back` counts the encoder's past too."""
    model = LandmarkModel(config, 1, heard=(3, 16))
    assert model.reach_back == LandmarkModel(dataclasses.replace(config, encoder=None), 1).reach_back + 4 + 3


def test_kernel_compares_layers_that_stay_and_the_transformer_hears_all(config: Stage1Config) -> None:
    model = LandmarkModel(dataclasses.replace(config, encoder_tune=1), 1, heard=(3, 16)).eval()
    rows = torch.randn(1, 30, FEATURE_SIZE + 48, generator=torch.Generator().manual_seed(0))
    model.whiten(rows[0], both=True)
    torch.nn.init.normal_(model.head.weight)
    changed = rows.clone()
    changed[..., -16:] += torch.randn(16, generator=torch.Generator().manual_seed(1))  # the last layer
    said = []
    for x in (rows, changed):
        padded = model.pad(x)
        said.append((model.embed(padded)[0], model.correction(padded, None, SPEAKER)[0]))
    assert torch.equal(said[0][0], said[1][0]) and (said[0][1] - said[1][1]).abs().max() > 1e-2
    torch.testing.assert_close(said[0][0][0].T @ said[0][0][0] / 29, torch.eye(6), atol=1e-3, rtol=0)
    said[0][1].square().sum().backward()
    assert model.mix.weights.grad.abs().min() > 0
    assert not any(value.requires_grad for value in model.kernel_mix.parameters())


@pytest.fixture(scope="module")
def trained(actor_clip: Clip, config: Stage1Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    train([actor_clip], folder / "m.safetensors", config=config, device=CPU, state_dir=folder / "state", quiet=True)
    return folder / "m.safetensors"


def test_trains_frozen_and_keeps_rows_on_disk(trained: Path, actor_clip: Clip, config: Stage1Config, tmp_path: Path,
                                              monkeypatch: pytest.MonkeyPatch) -> None:
    files = list((actor_clip.training / "encoder").iterdir())
    assert len(files) == 2 and all(file.name.startswith("wavlm-") for file in files)  # the clip and made silence
    monkeypatch.setattr(Encoder, "forward", lambda *_: pytest.fail("the encoder ran again"))
    train([actor_clip], tmp_path / "again", config=config, device=CPU, state_dir=tmp_path / "state", quiet=True)
    once, twice = load_checkpoint(trained)[0], load_checkpoint(tmp_path / "again")[0]
    assert once.keys() == twice.keys() and not any(name.startswith("tuned.") for name in once)
    for name, value in once.items():
        torch.testing.assert_close(value, twice[name], atol=1e-6, rtol=1e-5)
    assert once["mix.weights"].abs().max() > 0 and not once["kernel_mix.weights"].any()
    assert once["kernel.embedded"].shape[1] == 6 and once["kernel.embedded"].float().std() > 0.5


def test_a_checkpoint_names_its_encoder(trained: Path, actor_clip: Clip, models: Path) -> None:
    _, meta = load_checkpoint(trained)
    encoder = load_encoder(str(models / "wavlm"), CPU, block=3, context=4)
    assert meta["encoder"] == encoder.card() and meta["config"]["encoder"] == str(models / "wavlm")
    loaded = load_predictor(trained, CPU)
    assert loaded.encoder is not None and loaded.model.card == meta["encoder"]
    table = evaluate(actor_clip, trained, splits=["test"], device=CPU)
    assert table["test: stage 1"]["opening r"] > 0.5


def test_an_encoder_that_moved_or_is_absent(trained: Path, models: Path, tmp_path: Path, speech: np.ndarray,
                                            monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = Path(shutil.copytree(models / "wavlm", tmp_path / "moved"))
    here, there = load_predictor(trained, CPU), load_predictor(trained, CPU, str(elsewhere))
    np.testing.assert_array_equal(predict(here, speech, NEUTRAL), predict(there, speech, NEUTRAL))
    with pytest.raises(TalkheadError, match="is not the encoder that this model was trained with: its weights"):
        load_predictor(trained, CPU, str(models / "hubert"))
    gone = models / "gone"
    (models / "wavlm").rename(gone)
    try:
        with pytest.raises(TalkheadError, match="neither a folder nor in the local cache, and HF_HUB_OFFLINE is set; download"):
            load_predictor(trained, CPU)
    finally:
        gone.rename(models / "wavlm")


def test_a_model_that_needs_no_encoder_takes_none(predictor: Predictor, tmp_path: Path) -> None:
    save_model(tmp_path / "plain", predictor.model, ["one", "two"])
    assert load_model(tmp_path / "plain", CPU)[2] is None
    with pytest.raises(TalkheadError, match=r"plain hears with log-mel \+ formants and takes no encoder, found some/where$"):
        load_predictor(tmp_path / "plain", CPU, "some/where")


@pytest.mark.parametrize("changes, message", [
    ({"encoder": None, "encoder_tune": 1}, "encoder_tune is 1, but there is no encoder; name one with --encoder$"),
    ({"encoder_tune": 3}, "wavlm has 2 layers to tune, found 3$"),
    ({"encoder_tune": -1}, "encoder_tune should be at least 0, found -1$"),
    ({"speech": SpeechEncoderConfig()}, "with one encoder, either `speech` or .*wavlm, not with both$")])
def test_settings_that_do_not_go_together(actor_clip: Clip, config: Stage1Config, tmp_path: Path, changes: dict,
                                          message: str) -> None:
    with pytest.raises(TalkheadError, match=message):
        train([actor_clip], tmp_path / "m", config=dataclasses.replace(config, **changes), device=CPU,
              state_dir=tmp_path / "s", quiet=True)


def test_what_is_tuned_hears_in_windows_what_it_hears_in_the_file(actor_clip: Clip, config: Stage1Config) -> None:
    """For a window that starts where a block does."""
    encoder = load_encoder(config.encoder or "", CPU, block=3, context=4)
    model = LandmarkModel(config, 1, heard=(encoder.layers, encoder.size))
    sound = load_recording(actor_clip, 1, config, finetuning.features_and_sound)
    whole = finetuning.heard_by(encoder, sound, sound)
    reference = load_recording(actor_clip, 1, config, hearing(encoder, actor_clip.training / "encoder"))
    torch.testing.assert_close(whole.features, reference.features, atol=5e-3, rtol=1e-3)  # those of the disk are float16
    before, start = finetuning.rows_before(model, encoder), 30
    assert before == 5
    window = sound.features[start - before : start + 12 + config.look_ahead][None]
    encoder.tune(1)
    padded = finetuning.heard_in(window, model, encoder)
    assert padded.shape[1] == model.before + 12 + config.look_ahead and padded.requires_grad
    expected = whole.features[start : start + 12, FEATURE_SIZE:].unflatten(1, (3, 16))
    torch.testing.assert_close(model.outside(padded)[0].detach(), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(padded[0, :, :FEATURE_SIZE].detach(),
                               sound.features[start - model.before : start + 12 + config.look_ahead, :FEATURE_SIZE])


def test_tuned_layers_learn_are_stored_and_a_training_goes_on(actor_clip: Clip, config: Stage1Config, models: Path,
                                                              tmp_path: Path, speech: np.ndarray,
                                                              monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"config": dataclasses.replace(config, encoder_tune=1, lr=0.1), "device": CPU, "quiet": True}
    train([actor_clip], tmp_path / "a", state_dir=tmp_path / "sa", **settings)
    tensors, meta = load_checkpoint(tmp_path / "a")
    tuned = {name.removeprefix("tuned.0."): value for name, value in tensors.items() if name.startswith("tuned.")}
    before = load_encoder(str(models / "wavlm"), CPU).model.encoder.layers[1].state_dict()
    assert meta["encoder"]["tuned"] == 1 and tuned.keys() == before.keys()
    moved = {name: (value.float() - before[name]).abs().max() for name, value in tuned.items()}
    assert max(moved.values()) > 5e-4 and tensors["kernel_mix.weights"].shape == (2,) and tensors["mix.weights"].shape == (3,)

    loaded = load_predictor(tmp_path / "a", CPU)
    torch.nn.init.normal_(loaded.model.head.weight, generator=torch.Generator().manual_seed(0))  # a loud transformer
    untouched = load_encoder(str(models / "wavlm"), CPU, block=3, context=4)
    plain = Predictor(copy.deepcopy(loaded.model), loaded.speakers, CPU, untouched)
    ours, theirs = (predict(one, speech, NEUTRAL, blinks=False) for one in (loaded, plain))
    assert np.abs(ours - theirs).max() > 1e-6  # the transformer hears the difference
    loaded.model.head.weight.data.zero_()
    loaded.model.head.bias.data.zero_()
    plain.model.load_state_dict(loaded.model.state_dict())
    ours, theirs = (predict(one, speech, NEUTRAL, blinks=False) for one in (loaded, plain))
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)  # the kernel does not

    calls, real = 0, training.landmark_loss

    def dies_at_step_4(*arguments: object) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise Killed
        return real(*arguments)

    monkeypatch.setattr(training, "landmark_loss", dies_at_step_4)
    with pytest.raises(Killed):
        train([actor_clip], tmp_path / "b", state_dir=tmp_path / "sb", **settings)
    train([actor_clip], tmp_path / "b", state_dir=tmp_path / "sb", **settings)
    assert calls == 4 + 4
    for name, value in load_checkpoint(tmp_path / "b")[0].items():
        torch.testing.assert_close(value, tensors[name], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("tuned", [0, 1])
def test_finetuning_starts_from_a_model_with_an_encoder(actor_clip: Clip, make_clip: Callable[..., Clip], config: Stage1Config,
                                                        models: Path, tmp_path: Path, tuned: int) -> None:
    """Encoder, its settings and what was tuned are the base's, the kernel's embedding is made anew."""
    base = tmp_path / "base"
    train([actor_clip], base, config=dataclasses.replace(config, encoder_tune=tuned, lr=1e-2), device=CPU,
          state_dir=tmp_path / "s", quiet=True)
    landmarks = actor_clip.load_landmarks()[:200]
    other = make_clip(tmp_path / "other", actor_clip.load_audio()[: 640 * 200], landmarks, actor_clip.load_neutral(),
                      {"train": [(0, 200)]})
    moved = Path(shutil.copytree(models / "wavlm", tmp_path / "moved"))
    train([other], tmp_path / "m", config=dataclasses.replace(SMALL, steps=0, encoder=str(moved), encoder_block=7), device=CPU,
          state_dir=tmp_path / "t", init=base, quiet=True)
    theirs, _ = load_checkpoint(base)
    ours, meta = load_checkpoint(tmp_path / "m")
    assert meta["config"]["encoder_block"] == 3 and meta["encoder"]["name"] == str(moved) and meta["encoder"]["tuned"] == tuned
    same = [name for name in ours if name.startswith(("mix.", "tuned.", "stem.", "blocks."))]
    assert len(same) > 10 and all(torch.equal(ours[name], theirs[name]) for name in same)
    assert not torch.equal(ours["kernel_mix.linear.weight"], theirs["kernel_mix.linear.weight"])


def test_the_encoder_inside_a_model_is_stored_in_half_precision(tmp_path: Path, actor_clip: Clip) -> None:
    """A base of the usual sizes takes less than 10 MB."""
    config = Stage1Config(speech=SpeechEncoderConfig())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LandmarkModel(config, 1)
    set_statistics(model, [load_recording(actor_clip, 1, config)])
    save_model(tmp_path / "base", model, ["one"])
    tensors, meta = load_checkpoint(tmp_path / "base")
    assert (tmp_path / "base").stat().st_size < 10e6 and meta["encoder"] == "log-mel, speech encoder + formants"
    assert all(value.dtype == torch.float16 for name, value in tensors.items() if name.startswith("encoder."))
    loaded, _, _ = load_model(tmp_path / "base", CPU)
    for name, value in model.state_dict().items():
        found = loaded.state_dict()[name]
        assert found.dtype == value.dtype
        torch.testing.assert_close(found, value.half().float() if name.startswith("encoder.") else value, atol=0, rtol=0)
