import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from shared.clip import Clip
from shared.errors import TalkheadError
from shared.landmarks import LIPS, lip_opening
from shared.metrics import correlation
from stage1_audio2lmk import closed_form
from stage1_audio2lmk import train as training
from stage1_audio2lmk.baselines import mean_face, ridge
from stage1_audio2lmk.config import Stage1Config
from stage1_audio2lmk.dataset import Windows, load_recording, silence_features
from stage1_audio2lmk.evaluate import evaluate
from stage1_audio2lmk.model import MOVING, LandmarkModel
from stage1_audio2lmk.predict import load_predictor, predict
from stage1_audio2lmk.train import train

SMALL = Stage1Config(dim=32, layers=1, heads=2, window=10, wide_features=128, steps=60, batch=4, length=50,
                     check_every=10, save_every=20)
CPU = torch.device("cpu")


class Killed(Exception):
    """Stands for a process that dies."""


def weights(path: Path) -> dict[str, torch.Tensor]:
    return load_predictor(path, CPU).model.state_dict()


@pytest.fixture(scope="module")
def trained(actor_clip: Clip, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of the actor with all settings at their defaults but fewer steps."""
    folder = tmp_path_factory.mktemp("trained")
    numbers = train([actor_clip], folder / "m.safetensors", config=Stage1Config(steps=60), device=CPU,
                    state_dir=folder / "state", quiet=True)
    assert numbers["seconds"] > 0 and numbers["held-out lip mm"] <= numbers["wide path alone mm"]
    assert list(folder.glob("*partial*")) == []
    return folder / "m.safetensors"


def test_learns_the_actor(trained: Path, actor_clip: Clip) -> None:
    table = evaluate(actor_clip, trained, splits=["test"], device=CPU)
    ours, linear, mean = (table[f"test: {name}"] for name in ("stage 1", "ridge ±4", "mean face"))
    assert ours["opening r"] > 0.6 and ours["opening r"] > linear["opening r"] - 0.05
    assert ours["lips px"] < 0.9 * mean["lips px"]
    assert mean["opening r"] == 0 and mean["velocity"] == 0
    assert abs(ours["lag ms"]) < 40
    assert abs(ours["silence mm"]) < 1.5


def test_silence_closes_the_mouth(trained: Path, actor_clip: Clip) -> None:
    predictor, neutral = load_predictor(trained, CPU), actor_clip.load_neutral()
    rest = lip_opening(neutral)[0]
    speech = predict(predictor, actor_clip.load_audio(), neutral, blinks=False)
    for level in (0.0, 1e-4, 1e-3):
        noise = level * np.random.default_rng(0).normal(size=3 * 16000)
        quiet = lip_opening(predict(predictor, noise.astype(np.float32), neutral, blinks=False)[25:])
        assert abs(quiet.mean() - rest) < 0.25 * (lip_opening(speech).max() - rest)


def test_resumed_equals_uninterrupted(actor_clip: Clip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"config": SMALL, "device": CPU, "quiet": True}
    train([actor_clip], tmp_path / "a.safetensors", state_dir=tmp_path / "a", **settings)
    calls = 0
    real = training.landmark_loss

    def dies_at_step_47(*arguments: object) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 47:
            raise Killed
        return real(*arguments)

    monkeypatch.setattr(training, "landmark_loss", dies_at_step_47)
    with pytest.raises(Killed):
        train([actor_clip], tmp_path / "b.safetensors", state_dir=tmp_path / "b", **settings)
    assert not (tmp_path / "b.safetensors").exists() and (tmp_path / "b" / "state.safetensors").exists()
    torch.manual_seed(99)  # another process starts with other global state
    train([actor_clip], tmp_path / "b.safetensors", state_dir=tmp_path / "b", **settings)
    assert calls < 47 + 30
    once, twice = weights(tmp_path / "a.safetensors"), weights(tmp_path / "b.safetensors")
    for name in once:
        torch.testing.assert_close(once[name], twice[name], atol=1e-6, rtol=1e-5)


def test_other_settings_do_not_continue_a_training(actor_clip: Clip, tmp_path: Path,
                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    def dies(*arguments: object) -> None:
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(training, "save_model", dies)
        train([actor_clip], tmp_path / "m", config=SMALL, device=CPU, state_dir=tmp_path / "s", quiet=True)
    with pytest.raises(TalkheadError, match="other settings"):
        train([actor_clip], tmp_path / "m", config=dataclasses.replace(SMALL, lr=1e-4), device=CPU,
              state_dir=tmp_path / "s", quiet=True)


def test_pretrain_on_two_then_finetune(actor_clip: Clip, make_clip: Callable[..., Clip], tmp_path: Path) -> None:
    """A base of two speakers helps a third who has two seconds; the base's sizes win over the config's."""
    sound, landmarks, neutral = actor_clip.load_audio(), actor_clip.load_landmarks(), actor_clip.load_neutral()
    other = make_clip(tmp_path / "other", sound, neutral + 0.7 * (landmarks - neutral), neutral,
                       {"train": [(0, len(landmarks) // 2)]})
    base = tmp_path / "base.safetensors"
    train([actor_clip, other], base, config=SMALL, device=CPU, state_dir=tmp_path / "s0", quiet=True)
    assert load_predictor(base, CPU).speakers == ["actor", "other"]
    few = make_clip(tmp_path / "few", sound, landmarks, neutral,
                     {"train": [(0, 50)], "test": [(len(landmarks) // 2, len(landmarks))]})
    rows = {}
    for name, init in (("alone", None), ("from the base", base)):
        out = tmp_path / f"{name}.safetensors"
        train([few], out, config=dataclasses.replace(SMALL, dim=16, steps=20), device=CPU, state_dir=tmp_path / name,
              init=init, quiet=True)
        rows[name] = evaluate(few, out, splits=["test"], device=CPU)["test: stage 1"]
    assert load_predictor(tmp_path / "from the base.safetensors", CPU).model.config.dim == 32
    assert rows["from the base"]["opening r"] > rows["alone"]["opening r"] + 0.05


def test_too_short_a_clip_is_refused(actor_clip: Clip, make_clip: Callable[..., Clip], tmp_path: Path) -> None:
    landmarks = actor_clip.load_landmarks()[:30]
    short = make_clip(tmp_path / "short", np.zeros(30 * 640, np.float32), landmarks, landmarks[0], {"train": [(0, 10)]})
    with pytest.raises(TalkheadError, match="10 good frames"):
        train([short], tmp_path / "m", config=SMALL, device=CPU, state_dir=tmp_path / "s", quiet=True)


def test_windows_keep_to_the_fitting_part_and_follow_the_generator(actor_clip: Clip) -> None:
    recording = load_recording(actor_clip, 1, SMALL)
    assert int(recording.good.sum()) == len(actor_clip.split("train"))
    assert 0 < recording.held_from < int(torch.nonzero(recording.good)[-1])
    poisoned = dataclasses.replace(recording, features=recording.features.clone())
    poisoned.features[recording.held_from :] = torch.nan
    quiet = silence_features(300, np.random.default_rng(0))
    windows = Windows([poisoned], SMALL, quiet, torch.ones(recording.features.shape[1]))
    a, b = (windows.draw(torch.Generator().manual_seed(3)) for _ in range(2))
    for first, second in zip(a, b):
        assert torch.isfinite(first).all() and torch.equal(first, second)
    assert a[0].shape[:2] == a[1].shape[:2] == a[2].shape == (SMALL.batch, SMALL.length)
    assert set(torch.cat([windows.draw(torch.Generator().manual_seed(k))[3] for k in range(10)]).tolist()) == {0, 1}


def test_targets_invert_expand(actor_clip: Clip) -> None:
    recording = load_recording(actor_clip, 1, SMALL)
    model = LandmarkModel(SMALL, 1)
    closed_form.set_statistics(model, [recording])
    weights = torch.randn(7, SMALL.components, generator=torch.Generator().manual_seed(0))
    moved = model.expand(weights)[:, MOVING].reshape(7, -1)
    torch.testing.assert_close(model.expand(closed_form.targets(model, moved).float()), model.expand(weights), atol=1e-6,
                               rtol=1e-3)


def test_wide_path_solves_its_least_squares(actor_clip: Clip) -> None:
    """The sum of moments gives what a direct regularised solution on the same rows gives, pulled to the prior."""
    recording, silence = load_recording(actor_clip, 1, SMALL), silence_features(300, np.random.default_rng(0))
    model = LandmarkModel(SMALL, 1)
    closed_form.set_statistics(model, [recording])
    torch.nn.init.normal_(model.wide.weight, std=0.1, generator=torch.Generator().manual_seed(0))
    torch.nn.init.zeros_(model.wide.bias)
    prior = model.wide.weight.detach().double().T
    wide = closed_form.WidePath(model, [recording], silence)
    fit = torch.nonzero(recording.good[: recording.held_from])[:, 0]
    x = torch.cat([model.kernel_features(recording.features[None])[0][fit], model.kernel_features(silence[None])[0]])
    y = torch.cat([closed_form.targets(model, recording.displacement[fit]),
                   closed_form.targets(model, torch.zeros(len(silence), recording.displacement.shape[1]))])
    share = torch.cat([torch.ones(len(fit)), torch.full((len(silence),), closed_form.SILENCE_WEIGHT)]).double()
    x = torch.cat([x.detach().double(), torch.ones(len(x), 1)], 1)
    gradient = x.T @ (share[:, None] * (x @ torch.cat([model.wide.weight.T, model.wide.bias[None]]).detach().double() - y))
    gradient[:-1] += wide.penalty * (model.wide.weight.detach().double().T - prior)
    assert gradient.abs().max() < 1e-2 * (x.T @ (share[:, None] * y)).abs().max()
    at = model.wide.weight.detach().clone()
    wide.misses()
    assert torch.equal(model.wide.weight, at)


def test_kernel_features_approach_the_kernel() -> None:
    config = dataclasses.replace(SMALL, wide_features=20000)
    model = LandmarkModel(config, 1)
    sound = torch.randn(1, 8, model.mean.numel(), generator=torch.Generator().manual_seed(0))
    rows = model.kernel_features(sound)[0]
    inputs = rows[:, : -config.wide_features] * (model.directions.shape[0] / config.wide_linear) ** 0.5
    distance = ((inputs[:, None] - inputs[None]) ** 2).mean(-1)
    linear = config.wide_linear * (inputs[:, None] * inputs[None]).mean(-1)
    torch.testing.assert_close(rows @ rows.T, linear + torch.exp(-config.wide_sharpness * distance), atol=0.03, rtol=0)


def test_baselines(actor_clip: Clip) -> None:
    landmarks, fit = actor_clip.load_landmarks(), actor_clip.split("train")
    held = actor_clip.split("test")
    sound = actor_clip.load_audio()[: 640 * len(landmarks)]
    np.testing.assert_allclose(mean_face(landmarks, fit, 3), np.repeat(landmarks[fit].mean(0)[None], 3, 0))
    rows = ridge(sound, landmarks, fit)
    assert rows.shape == landmarks.shape
    assert correlation(lip_opening(rows[held]), lip_opening(landmarks[held])) > 0.6
    leaked = landmarks.copy()
    leaked[held] += 1.0
    np.testing.assert_array_equal(ridge(sound, leaked, fit)[:, LIPS], rows[:, LIPS])
