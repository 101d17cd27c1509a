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
from stage1_audio2lmk import train as training
from stage1_audio2lmk.audio.augment import shift_voice
from stage1_audio2lmk.audio.dc_blocker import DCBlocker
from stage1_audio2lmk.audio.features import FEATURE_SIZE
from stage1_audio2lmk.baselines import mean_face, ridge
from stage1_audio2lmk.checkpoint import save_model
from stage1_audio2lmk.config import Stage1Config
from stage1_audio2lmk.dataset import (
    SILENCE_LEVELS,
    VOICES,
    Recording,
    Windows,
    augmented_voices,
    clip_samples,
    load_recording,
    make_feature_fn,
    synthetic_silence,
    weighed,
)
from stage1_audio2lmk.encoders.base import encode_in_pieces
from stage1_audio2lmk.evaluate import evaluate
from stage1_audio2lmk.kernel_ridge import SILENCE_POINTS
from stage1_audio2lmk.losses import lip_error
from stage1_audio2lmk.model import new_model
from stage1_audio2lmk.statistics import set_statistics, statistics
from stage1_audio2lmk.stream import LandmarkStream, load_predictor, predict
from stage1_audio2lmk.train import train

SMALL = Stage1Config(dim=32, layers=1, heads=2, window=10, support_points=444, steps=60, batch=4, length=50,
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
    config, out = Stage1Config(steps=60), folder / "m.safetensors"
    numbers = train([actor_clip], out, config=config, device=CPU, state_dir=folder / "state", quiet=True)
    recording = load_recording(actor_clip, 1, config)
    tail = recording.displacement[(torch.arange(len(recording.good)) >= recording.val_start) & recording.good]
    assert numbers["val_lips_mm"] < 0.8 * float(lip_error(torch.zeros_like(tail), tail))  # of a mouth that does not move
    assert list(folder.glob("*partial*")) == []
    return out


@pytest.mark.slow
def test_learns_the_actor(trained: Path, actor_clip: Clip) -> None:
    table = evaluate(actor_clip, trained, splits=["test"], device=CPU)
    ours, linear, mean = (table[f"test: {name}"] for name in ("stage 1", "ridge ±4", "mean face"))
    assert ours["opening r"] > 0.6 and ours["opening r"] > linear["opening r"] - 0.05
    assert ours["lips px"] < 0.9 * mean["lips px"]
    assert mean["opening r"] == 0 and mean["velocity"] == 0
    assert abs(ours["lag ms"]) < 40
    assert abs(ours["silence mm"]) < 1.5


@pytest.mark.slow
def test_silence_closes_the_mouth(trained: Path, actor_clip: Clip) -> None:
    predictor, neutral = load_predictor(trained, CPU), actor_clip.load_neutral()
    rest = lip_opening(neutral)[0]
    speech = predict(predictor, actor_clip.load_audio(), neutral, blinks=False)
    for level in (0.0, 1e-4, 1e-3):
        noise = level * np.random.default_rng(0).normal(size=3 * 16000)
        quiet = lip_opening(predict(predictor, noise.astype(np.float32), neutral, blinks=False)[25:])
        assert abs(quiet.mean() - rest) < 0.25 * (lip_opening(speech).max() - rest)


@pytest.mark.slow
def test_nothing_pops_where_a_quiet_file_begins_or_ends(trained: Path, actor_clip: Clip) -> None:
    """Without sound every frame is the same; in faint noise the lips stay within a tenth of what they do in speech."""
    predictor, neutral = load_predictor(trained, CPU), actor_clip.load_neutral()
    spread = np.ptp(lip_opening(predict(predictor, actor_clip.load_audio(), neutral, blinks=False)))
    for level in (0.0, 1e-4, 1e-3):
        noise = level * np.random.default_rng(0).normal(size=3 * 16000)
        opening = lip_opening(predict(predictor, noise.astype(np.float32), neutral, blinks=False))
        assert np.abs(opening - opening[10:-10].mean()).max() <= (0.1 if level else 1e-5) * spread


def test_resumed_equals_uninterrupted(actor_clip: Clip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"config": dataclasses.replace(SMALL, min_gain=-10.0), "device": CPU, "quiet": True}
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
    assert "transformer.head.weight" in once
    for name in once:
        torch.testing.assert_close(once[name], twice[name], atol=1e-6, rtol=1e-5)


def save_base(clip: Clip, path: Path) -> None:
    """A base model without support points whose transformer is random."""
    model, recordings = new_model(SMALL, 1), [load_recording(clip, 1, SMALL)]
    assert model.transformer is not None
    set_statistics(model, statistics(recordings, recordings, SMALL))
    torch.nn.init.normal_(model.transformer.head.weight, std=0.1, generator=torch.Generator().manual_seed(0))
    save_model(path, model, ["base"])


@pytest.mark.slow
def test_finetuning_is_the_same_in_another_process(actor_clip: Clip, tmp_path: Path) -> None:
    """From a base with a transformer, whatever the global random state."""
    save_base(actor_clip, tmp_path / "base.safetensors")
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        out = tmp_path / f"{seed}.safetensors"
        train([actor_clip], out, config=dataclasses.replace(SMALL, steps=2), device=CPU, state_dir=tmp_path / str(seed),
              base=tmp_path / "base.safetensors", quiet=True)
        found.append(weights(out))
    for name in found[0]:
        torch.testing.assert_close(found[0][name], found[1][name], atol=1e-6, rtol=1e-5)


@pytest.mark.slow
def test_other_settings_do_not_continue_a_training(actor_clip: Clip, tmp_path: Path,
                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    def dies(*arguments: object) -> None:
        raise Killed

    few = dataclasses.replace(SMALL, steps=2, save_every=1)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(training, "save_model", dies)
        train([actor_clip], tmp_path / "m", config=few, device=CPU, state_dir=tmp_path / "s", quiet=True)
    with pytest.raises(TalkheadError, match="other settings"):
        train([actor_clip], tmp_path / "m", config=dataclasses.replace(few, lr=1e-4), device=CPU,
              state_dir=tmp_path / "s", quiet=True)


@pytest.mark.slow
def test_pretrain_on_two_then_finetune(actor_clip: Clip, make_clip: Callable[..., Clip], tmp_path: Path) -> None:
    """What a base learned helps a third who has two seconds, and goes into that person's file; settings are one's own."""
    sound, landmarks, neutral = actor_clip.load_audio(), actor_clip.load_landmarks(), actor_clip.load_neutral()
    other = make_clip(tmp_path / "other", sound, neutral + 0.7 * (landmarks - neutral), neutral,
                       {"train": [(0, len(landmarks) // 2)]})
    base = tmp_path / "base.safetensors"
    train([actor_clip, other], base, config=dataclasses.replace(SMALL, steps=20), device=CPU,
          state_dir=tmp_path / "s0", quiet=True)
    assert load_predictor(base, CPU).speakers == ["actor", "other"]
    few = make_clip(tmp_path / "few", sound, landmarks, neutral,
                     {"train": [(0, 50)], "test": [(len(landmarks) // 2, len(landmarks))]})
    rows = {}
    for name, init in (("alone", None), ("from the base", base)):
        out = tmp_path / f"{name}.safetensors"
        train([few], out, config=dataclasses.replace(SMALL, dim=16, steps=20), device=CPU, state_dir=tmp_path / name,
              base=init, quiet=True)
        rows[name] = evaluate(few, out, splits=["test"], device=CPU)["test: stage 1"]
    model, theirs = (load_predictor(path, CPU).model for path in (tmp_path / "from the base.safetensors", base))
    assert model.prior is not None and 0 < model.share <= 1 and len(model.kernel.support_mel) == 50 + SILENCE_POINTS
    for name, value in model.prior.state_dict().items():
        assert torch.equal(value, theirs.state_dict()[name])
    with pytest.raises(TalkheadError, match="from the base.safetensors is a person's model, which has a base itself; name a"):
        train([few], tmp_path / "x", config=SMALL, device=CPU, state_dir=tmp_path / "y", quiet=True,
              base=tmp_path / "from the base.safetensors")
    assert rows["from the base"]["opening r"] > rows["alone"]["opening r"] + 0.05


def test_too_short_a_clip_is_refused(actor_clip: Clip, make_clip: Callable[..., Clip], tmp_path: Path) -> None:
    landmarks = actor_clip.load_landmarks()[:30]
    short = make_clip(tmp_path / "short", np.zeros(30 * 640, np.float32), landmarks, landmarks[0], {"train": [(0, 10)]})
    with pytest.raises(TalkheadError, match="10 good frames"):
        train([short], tmp_path / "m", config=SMALL, device=CPU, state_dir=tmp_path / "s", quiet=True)


def test_windows_keep_to_the_fitting_part_and_follow_the_generator(actor_clip: Clip) -> None:
    recording = load_recording(actor_clip, 1, SMALL)
    assert int(recording.good.sum()) == len(actor_clip.split("train"))
    assert 0 < recording.val_start < int(torch.nonzero(recording.good)[-1])
    poisoned = dataclasses.replace(recording, features=recording.features.clone())
    poisoned.features[recording.val_start :] = torch.nan
    quiet = synthetic_silence(300, np.random.default_rng(0)).features
    windows = Windows([poisoned], SMALL, quiet, torch.ones(recording.features.shape[1]), left=6, ahead=SMALL.look_ahead)
    a, b = (windows.draw(torch.Generator().manual_seed(3)) for _ in range(2))
    for first, second in zip(a, b):
        assert torch.isfinite(first).all() and torch.equal(first, second)
    assert a[1].shape[:2] == a[2].shape == (SMALL.batch, SMALL.length)
    assert a[0].shape[:2] == (SMALL.batch, 6 + SMALL.length + SMALL.look_ahead)
    assert set(torch.cat([windows.draw(torch.Generator().manual_seed(k))[3] for k in range(10)]).tolist()) == {0, 1}


def test_windows_of_several_recordings_start_where_a_list_of_all_places_says(actor_clip: Clip) -> None:
    recording = load_recording(actor_clip, 1, SMALL)
    recordings = [dataclasses.replace(recording, val_start=val_start, speaker=k) for k, val_start in enumerate((40, 10, 60), 1)]
    config = dataclasses.replace(SMALL, batch=500, unknown_share=0.0)
    windows = Windows(recordings, config, synthetic_silence(300, np.random.default_rng(0)).features,
                      torch.ones(recording.features.shape[1]), left=6, ahead=SMALL.look_ahead)
    asked: list[tuple[int, int]] = []
    windows._window = lambda which, start, rng: asked.append((which, start)) or (torch.zeros(1),) * 3  # type: ignore[method-assign]
    speakers = windows.draw(torch.Generator().manual_seed(5))[3]
    places = [(k, t) for k, r in enumerate(recordings) for t in range(max(1, r.val_start - SMALL.length + 1))]
    rows = torch.randint(len(places), (500,), generator=torch.Generator().manual_seed(5))
    assert asked == [places[row] for row in rows] and set(asked) == set(places)
    assert speakers.tolist() == [which + 1 for which, _ in asked]


def test_windows_teach_no_velocity_across_cuts(actor_clip: Clip) -> None:
    """And lose no more than the first frame of each shot that begins inside them."""
    cuts = (0, 30, 31, 77)
    recording = dataclasses.replace(load_recording(actor_clip, 1, SMALL), cuts=cuts)
    count = torch.arange(len(recording.good))
    shot = torch.bucketize(count, torch.tensor(cuts), right=True)
    recording = dataclasses.replace(recording, displacement=torch.stack([shot, count], 1).float().repeat(1, 56)[:, :111])
    config = dataclasses.replace(SMALL, silence_share=0.0, batch=64)
    windows = Windows([recording], config, synthetic_silence(300, np.random.default_rng(0)).features,
                      torch.zeros(recording.features.shape[1]), left=6, ahead=SMALL.look_ahead)
    _, y, w, _ = windows.draw(torch.Generator().manual_seed(0))
    assert ((y.diff(dim=1)[..., 0] != 0) <= (w[:, 1:] * w[:, :-1] == 0)).all()
    assert torch.equal(w[:, 1:] == 0, torch.isin(y[:, 1:, 1], torch.tensor(cuts).float())) and (w[:, 0] == 1).all()
    assert (w == 0).any()


def test_windows_include_what_lies_before_and_after_them(actor_clip: Clip) -> None:
    """And silence where the recording has not begun or where its validation split would be."""
    recording = load_recording(actor_clip, 1, SMALL)
    count = torch.arange(len(recording.good)).float()[:, None]
    recording = dataclasses.replace(recording, displacement=count.expand(-1, 111), features=recording.features + 1 + count / 100)
    config = dataclasses.replace(SMALL, silence_share=0.0, batch=32, look_ahead=3)
    silence = synthetic_silence(300, np.random.default_rng(0)).features
    voice = [column for column in range(320, recording.features.shape[1]) if column not in (328, 337)]  # louder and quieter
    for val_start in (recording.val_start, 30):  # the second is shorter than a window
        short = dataclasses.replace(recording, val_start=val_start)
        windows = Windows([short], config, silence, torch.zeros(recording.features.shape[1]), left=6, ahead=3)
        starts = []
        x, y, w, _ = windows.draw(torch.Generator().manual_seed(0))
        for sound, moved, weight in zip(x, y, w):
            start = int(moved[0, 0])
            starts.append(start)
            for row, t in zip(sound, range(start - 6, start + config.length + 3)):
                expected = recording.features[t] if 0 <= t < val_start else silence[0]
                assert torch.equal(row[voice], expected[voice])
            known = torch.arange(start, start + config.length) < val_start
            assert torch.equal(weight > 0, known)
            assert moved[known, 0].tolist() == list(range(start, start + int(known.sum())))
        assert set(starts) == {0} if val_start == 30 else len(set(starts)) > 10


def test_synthetic_silence_is_at_rest() -> None:
    count = 20 * len(SILENCE_LEVELS)
    silence = synthetic_silence(count, np.random.default_rng(0))
    assert silence.weight == 1 and silence.good.all() and silence.val_start == len(silence.features) == count
    assert not silence.displacement.any()
    level = silence.features[:, :320].mean(1).unflatten(0, (len(SILENCE_LEVELS), 20))
    assert (level[0] == level[0, 0]).all() and (level[:, 2:].mean(1).diff() > 0.1).all()  # from digital silence upwards


def test_silence_weighs_a_third_of_the_speech_however_short() -> None:
    silence = synthetic_silence(24, np.random.default_rng(0))
    good = torch.arange(100) % 2 == 0
    short = Recording("short", torch.zeros(100, FEATURE_SIZE), torch.zeros(100, 111), good, 1, 80)
    found = weighed(silence, [short, dataclasses.replace(short, weight=0.5)])
    assert 24 * found.weight == pytest.approx((40 + 20) / 3) and found.features is silence.features


def test_the_same_lips_augmented_voices(actor_clip: Clip) -> None:
    own = load_recording(actor_clip, 1, SMALL)
    voices = augmented_voices(actor_clip, own, 0.3)
    assert len(voices) == len(VOICES)
    for voice in voices:
        assert voice.weight == 0.3 and voice.speaker == own.speaker and voice.val_start == own.val_start
        assert voice.displacement is own.displacement and voice.good is own.good
        assert voice.features.shape == own.features.shape and (voice.features - own.features)[:, :320].abs().mean() > 0.2


@pytest.mark.slow
def test_augmented_voices_are_understood_better(actor_clip: Clip, tmp_path: Path) -> None:
    """The test words in a voice that no training had, with pitch and formants a fifth higher."""
    test, neutral = actor_clip.split("test"), actor_clip.load_neutral()
    sound = shift_voice(torch.from_numpy(clip_samples(actor_clip)), 1.2, 1.2).clamp(-1, 1).numpy()
    found = {}
    for augmented in (True, False):
        out = tmp_path / f"{augmented}.safetensors"
        config = Stage1Config(steps=0, voice_augmentation=augmented)
        train([actor_clip], out, config=config, device=CPU, state_dir=tmp_path / "s", quiet=True)
        spoken = predict(load_predictor(out, CPU), sound, neutral, blinks=False)
        found[augmented] = correlation(lip_opening(spoken)[test], lip_opening(actor_clip.load_landmarks())[test])
    assert found[True] > found[False] + 0.02


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


class ToyEncoder:
    """Loudness of a frame, and of the one after it: an encoder that talkhead knows nothing about."""

    size, look_ahead = 2, 1

    def info(self) -> dict[str, object]:
        return {"kind": "toy", "columns": ["now", "next"]}

    def encode(self, samples: np.ndarray, features: np.ndarray) -> np.ndarray:
        return encode_in_pieces(self.stream(), samples, features)

    def stream(self) -> "ToyStream":
        return ToyStream()


class ToyStream:
    def __init__(self) -> None:
        self.waiting = np.zeros((0, 1), np.float32)

    def push(self, samples: np.ndarray, features: np.ndarray) -> np.ndarray:
        power = np.square(samples.reshape(-1, 640)).mean(1, keepdims=True)
        self.waiting = np.concatenate([self.waiting, np.log10(power + 1e-8) / 3 + 2])
        now, self.waiting = self.waiting, self.waiting[-1:]
        return np.concatenate([now[:-1], now[1:]], 1).astype(np.float32)

    def flush(self) -> np.ndarray:
        return self.push(np.zeros(640, np.float32), np.zeros((1, 0), np.float32))


def test_any_encoder_that_keeps_to_the_protocol_will_do(actor_clip: Clip, tmp_path: Path) -> None:
    """Training, a base for another training, prediction at once and in a stream."""
    toy, settings = ToyEncoder(), {"device": CPU, "quiet": True}
    config = dataclasses.replace(SMALL, steps=4, check_every=2, min_gain=-10.0, mel_terms=False, voice_augmentation=False)
    base, out = tmp_path / "base", tmp_path / "m"
    train([actor_clip], base, config=config, state_dir=tmp_path / "a", encoder=toy, **settings)
    train([actor_clip], out, config=dataclasses.replace(config, mel_terms=True), state_dir=tmp_path / "b", base=base, encoder=toy,
          **settings)
    predictor, sound = load_predictor(out, CPU, toy), actor_clip.load_audio()[: 640 * 60]
    model = predictor.model
    assert model.size == 2 and model.transformer is not None and predictor.look_ahead == 2
    rows = make_feature_fn(toy)(DCBlocker().pass_through(sound))
    with torch.no_grad():
        whole = model(torch.from_numpy(rows)[None], torch.tensor([1]))[0].numpy()
    neutral = np.zeros((68, 3), np.float32)
    np.testing.assert_allclose(predict(predictor, sound, neutral, blinks=False), whole, rtol=0, atol=1e-5)
    stream = LandmarkStream(predictor, neutral, blinks=False)
    pieces = [stream.push(part) for part in np.split(sound, [1, 700, 5000, 5001, 30000])]
    np.testing.assert_allclose(np.concatenate([*pieces, stream.flush()]), whole, rtol=0, atol=1e-5)
    with pytest.raises(TalkheadError, match="m needs an encoder that talkhead cannot load, {.*'toy'"):
        load_predictor(out, CPU)
