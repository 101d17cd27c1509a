"""Stage 1 with a speech encoder of the transformers library: in training, as part of a base, in streams and on disk."""

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
from shared.landmarks import load_landmarks
from shared.media.audio_io import load_audio
from stage1_audio2lmk.audio.dc_blocker import DCBlocker
from stage1_audio2lmk.checkpoint import load_model, save_model
from stage1_audio2lmk.config import Stage1Config
from stage1_audio2lmk.dataset import make_feature_fn
from stage1_audio2lmk.encoders.transformers_encoder import Projection, TransformersEncoder, load_encoder
from stage1_audio2lmk.evaluate import evaluate
from stage1_audio2lmk.stream import LandmarkStream, Predictor, load_predictor, predict
from stage1_audio2lmk.train import fit_projection, train
from tests.stage1_audio2lmk.conftest import random_model
from tests.stage1_audio2lmk.tiny_encoders import save_models

pytest.importorskip("transformers", reason="speech encoders need the extra `encoders`")

pytestmark = pytest.mark.slow  # loads models of the transformers library

CPU = torch.device("cpu")
NEUTRAL = np.zeros((68, 3), np.float32)
SMALL = Stage1Config(dim=16, layers=1, heads=2, window=6, components=4, support_points=320, encoder_size=6, encoder_context=4,
                     encoder_block=3, encoder_ahead=0, steps=6, batch=2, length=40, check_every=3, save_every=2, min_gain=-10.0)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_models(tmp_path_factory.mktemp("models"), "wavlm", "hubert")


@pytest.fixture(scope="module")
def config(models: Path) -> Stage1Config:
    return dataclasses.replace(SMALL, encoder=str(models / "wavlm"))


def made(config: Stage1Config, sound: np.ndarray, **frames: int) -> Predictor:
    """An encoder whose projection is fitted to the sound, and a random model."""
    encoder = load_encoder(config.encoder or "", CPU, **frames)
    encoder.projection = Projection((0, 1, 2), encoder.width, config.encoder_size)
    encoder.projection.fit(encoder.projection.pool(torch.from_numpy(np.concatenate(list(encoder.hidden_states(sound))))))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Predictor(random_model(config, 1, encoder.size), ["one"], CPU, encoder)


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
    sound = speech[: 640 * 44]
    predictor = made(dataclasses.replace(config, look_ahead=look_ahead), sound, block=block, context=4, ahead=ahead)
    rows = make_feature_fn(predictor.encoder)(DCBlocker().pass_through(sound))
    with torch.no_grad():
        whole = predictor.model(torch.from_numpy(rows)[None], torch.tensor([1]))[0].numpy()
    assert predictor.look_ahead == max(look_ahead, block - 1 + ahead) and np.abs(whole).max() > 1e-4
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


def test_sound_after_the_look_ahead_changes_nothing(config: Stage1Config, speech: np.ndarray) -> None:
    sound = speech[: 640 * 44]
    predictor, changed = made(config, sound, block=5, context=4, ahead=0), sound.copy()
    changed[640 * 25 :] = 0.3 * np.random.default_rng(1).normal(size=640 * 19)
    difference = np.abs(predict(predictor, sound, NEUTRAL, blinks=False)
                        - predict(predictor, changed, NEUTRAL, blinks=False)).max((1, 2))
    assert predictor.look_ahead == 4 and difference[: 25 - 2].max() < 1e-7 and difference[23:25].min() > 1e-6
    changed[640 * 24 : 640 * 25] = 0.1  # the last frame of a block, which its first row depends on
    difference = np.abs(predict(predictor, sound, NEUTRAL, blinks=False)
                        - predict(predictor, changed, NEUTRAL, blinks=False)).max((1, 2))
    assert difference[:20].max() < 1e-7 and difference[20] > 1e-6


@pytest.fixture(scope="module")
def trained(actor_clip: Clip, config: Stage1Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    train([actor_clip], folder / "m.safetensors", config=config, device=CPU, state_dir=folder / "state", quiet=True)
    return folder / "m.safetensors"


def test_hidden_states_are_kept_on_disk(trained: Path, actor_clip: Clip, config: Stage1Config, tmp_path: Path,
                                        monkeypatch: pytest.MonkeyPatch) -> None:
    files = list((actor_clip.training / "encoder").iterdir())
    assert len(files) == 2 and all(file.name.startswith("wavlm-") for file in files)  # the clip and synthetic silence
    monkeypatch.setattr(TransformersEncoder, "forward", lambda *_: pytest.fail("the encoder ran again"))
    train([actor_clip], tmp_path / "again", config=config, device=CPU, state_dir=tmp_path / "state", quiet=True)
    once, twice = load_checkpoint(trained)[0], load_checkpoint(tmp_path / "again")[0]
    assert once.keys() == twice.keys()
    for name, value in once.items():
        torch.testing.assert_close(value, twice[name], atol=1e-6, rtol=1e-5)
    assert once["kernel.support_embedding"].float().var(0).sum() == pytest.approx(1, abs=0.3)
    assert {name for name in once if name.startswith("encoder.")} == {"encoder.mean", "encoder.components"}


def test_a_checkpoint_names_its_encoder(trained: Path, actor_clip: Clip, models: Path) -> None:
    _, meta = load_checkpoint(trained)
    encoder = load_encoder(str(models / "wavlm"), CPU, block=3, context=4, ahead=0)
    layers = meta["encoder"]["layers"]
    assert layers in ([0], [1], [2], [0, 1], [1, 2]) and meta["encoder"] == encoder.info() | {"layers": layers, "size": 6}
    loaded = load_predictor(trained, CPU)
    assert loaded.encoder is not None and loaded.encoder.info() == meta["encoder"]
    assert evaluate(actor_clip, trained, splits=["test"], device=CPU)["test: stage 1"]["opening r"] > 0.5


def planted(clip: Clip, *layers: int) -> Callable[..., np.ndarray]:
    """A stand-in for `cached_hidden_states`: layers that together tell the lips' motion, and noise."""
    count = len(clip.load_landmarks())
    motion = (clip.load_landmarks() - clip.load_neutral())[:, 48:].reshape(count, -1)
    motion = 3 * motion / motion.std()
    rng = np.random.default_rng(0)

    def states(encoder: TransformersEncoder, samples: np.ndarray, folder: Path) -> np.ndarray:
        rows = 0.3 * rng.normal(size=(len(samples) // 640, encoder.n_layers, encoder.width))
        if len(rows) == count:
            hidden = rng.normal(size=(count, encoder.width)) * (len(layers) > 1)  # its signs differ, so a mean is without it
            for layer, sign in zip(layers, (1, -1)):
                rows[:, layer] += motion @ MIX[:, : encoder.width] + 9 * sign * hidden
        return rows.astype(np.float16)
    return states


MIX = np.random.default_rng(5).normal(size=(60, 16)) / 8


@pytest.mark.parametrize("layers", [(0,), (2,), (1, 2)])
def test_the_layer_that_tells_most_about_lips_is_chosen(actor_clip: Clip, config: Stage1Config, monkeypatch: pytest.MonkeyPatch,
                                                        layers: tuple[int, ...]) -> None:
    monkeypatch.setattr("stage1_audio2lmk.train.cached_hidden_states", planted(actor_clip, *layers))
    found = fit_projection(load_encoder(config.encoder or "", CPU), [actor_clip], config)
    assert found.layers == layers and found.size == 6 and found.components.square().sum() > 0


@pytest.mark.realdata
def test_whispers_first_layers_help_a_talker_and_stream(realdata_dir: Path, make_clip: Callable[..., Clip],
                                                        tmp_path: Path) -> None:
    """23 s of a talker: 18 to learn from, 5 held out; 80 ms of look-ahead, the same rows in pieces."""
    encoder = realdata_dir / "models" / "whisper-tiny-encoder"
    if not encoder.is_dir():
        pytest.skip(f"no {encoder.name} among the models")
    folder = realdata_dir / "talkers" / "elo_t4"
    landmarks, sound = load_landmarks(folder / "landmarks.npy")[:580], load_audio(folder / "audio.flac")[: 640 * 580]
    clip = make_clip(tmp_path / "clip", sound, landmarks, load_landmarks(folder / "neutral.npy"),
                     {"train": [(0, 455)], "test": [(455, 580)]})
    plain = Stage1Config(steps=0, voice_augmentation=False, support_points=500, choose_embedding=False)
    found = tmp_path / "with"
    for out, config in ((tmp_path / "without", plain), (found, dataclasses.replace(plain, encoder=str(encoder)))):
        train([clip], out, config=config, device=CPU, state_dir=tmp_path / "state", quiet=True)
    without, helped = (evaluate(clip, path, splits=["test"], device=CPU)["test: stage 1"]["opening r"]
                       for path in (tmp_path / "without", found))
    assert helped > without + 0.01, (helped, without)
    predictor = load_predictor(found, CPU)
    info = load_checkpoint(found)[1]["encoder"]
    assert min(info["layers"]) >= 1 and info["block"] == 1 and predictor.look_ahead == 2
    whole = predict(predictor, sound[: 640 * 30], NEUTRAL, blinks=False)
    pieces = in_pieces(LandmarkStream(predictor, NEUTRAL, blinks=False), sound[: 640 * 30], [640, 100, 3000])
    np.testing.assert_allclose(pieces.reshape(whole.shape), whole, rtol=0, atol=1e-6)


def test_an_encoder_that_moved_or_is_absent(trained: Path, models: Path, tmp_path: Path, speech: np.ndarray) -> None:
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
    assert load_model(tmp_path / "plain", CPU).encoder is None
    with pytest.raises(TalkheadError, match="plain has no encoder and takes none, found some/where$"):
        load_predictor(tmp_path / "plain", CPU, "some/where")


def test_a_projection_of_another_size_is_damage(trained: Path, tmp_path: Path) -> None:
    from shared.checkpoint import save_checkpoint

    tensors, meta = load_checkpoint(trained)
    save_checkpoint(tmp_path / "m", tensors | {"encoder.mean": torch.zeros(3)}, meta)
    with pytest.raises(TalkheadError, match="m is damaged: the projection in it is not of its encoder"):
        load_model(tmp_path / "m", CPU)


def test_a_base_brings_its_encoder_and_projection(trained: Path, actor_clip: Clip, make_clip: Callable[..., Clip], models: Path,
                                                  tmp_path: Path) -> None:
    """Wherever the encoder lies now; blocks and projection are the base's, whatever the settings."""
    landmarks = actor_clip.load_landmarks()[:200]
    other = make_clip(tmp_path / "other", actor_clip.load_audio()[: 640 * 200], landmarks, actor_clip.load_neutral(),
                      {"train": [(0, 200)]})
    moved = Path(shutil.copytree(models / "wavlm", tmp_path / "moved"))
    train([other], tmp_path / "m", config=dataclasses.replace(SMALL, steps=0, encoder=str(moved), encoder_block=7), device=CPU,
          state_dir=tmp_path / "t", base=trained, quiet=True)
    theirs, before = load_checkpoint(trained)
    ours, meta = load_checkpoint(tmp_path / "m")
    assert meta["encoder"] == before["encoder"] | {"name": str(moved)}
    assert all(torch.equal(ours[name], theirs[name]) for name in ("encoder.mean", "encoder.components"))
    assert meta["model"]["share"] > 0 and torch.equal(ours["prior.kernel.weights"], theirs["kernel.weights"])
