import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from shared.checkpoint import load_checkpoint
from shared.errors import TalkheadError
from shared.media.audio_io import load_audio, save_wav
from shared.resume import STATE, TrainState
from shared.training import generator
from stage1_audio2lmk.audio.features import HOPS, MELS, features
from stage1_audio2lmk.encoders import train_speech_encoder
from stage1_audio2lmk.encoders.speech_encoder import LEFT_CONTEXT, SpeechEncoderConfig, load_speech_encoder, save_speech_encoder
from stage1_audio2lmk.encoders.teacher import Teacher
from stage1_audio2lmk.encoders.train_speech_encoder import (
    NO_AUGMENT,
    AugmentConfig,
    Corpus,
    SpeechTraining,
    Student,
    augment_log_mel,
    find_recordings,
    fold,
    made_voices,
    read_corpus,
    train,
    train_encoder,
)
from tests.stage1_audio2lmk.tiny_encoders import save_models

pytest.importorskip("transformers")
CPU = torch.device("cpu")
SMALL = SpeechEncoderConfig(dim=32, layers=1, heads=2, window=5, size=8, dropout=0.0)
TRAINING = SpeechTraining(steps=60, batch=8, length=25, lr=3e-3, real_voices=1)


def harmonics(seed: int) -> np.ndarray:
    """Two seconds of harmonics, high or low, and pauses, each 0.16 to 0.4 s long."""
    rng, pieces = np.random.default_rng(seed), []
    for _ in range(14):
        time = np.arange(rng.integers(4, 11) * 640) / 16000
        pitch = rng.choice([0.0, 300.0, 2500.0])
        pieces.append(0.2 * sum(np.sin(2 * np.pi * k * pitch * time) for k in (1, 1.5, 2)) + 1e-3 * rng.normal(size=len(time)))
    return np.concatenate(pieces).astype(np.float32)[: 640 * 50]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_models(tmp_path_factory.mktemp("models"), "whisper")


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sources")
    for k in range(8):
        save_wav(root / "read" / f"{'8' if k < 2 else '1'}-{k}.wav", harmonics(k))
        save_wav(root / "made" / f"said{k}.wav", harmonics(100 + k))
    for k in range(2):
        folder = root / "talkers" / f"talker{k}"
        save_wav(root / "sound.wav", np.concatenate([harmonics(200 + k), harmonics(300 + k)]))
        folder.mkdir(parents=True)
        (root / "sound.wav").rename(folder / "audio.flac")  # what it is says its content
    (folder / "source.json").write_text(json.dumps({"segments": [[0, 40], [40, 50], [50, 100]]}))
    return root


def utterances(sources: Path):
    return read_corpus([sources / "read", sources / "talkers"], [sources / "made"], ("8",))


@pytest.fixture(scope="module")
def taught(sources: Path, models: Path) -> torch.Tensor:
    corpus = Corpus(utterances(sources), CPU)
    corpus.teach([Teacher(str(models / "whisper"), 1, CPU), Teacher(str(models / "whisper"), 2, CPU)], quiet=True)
    return corpus.targets


@pytest.fixture
def corpus(sources: Path, taught: torch.Tensor) -> Corpus:
    heard = Corpus(utterances(sources), CPU)
    heard.targets = taught
    return heard


def test_recordings_of_all_kinds_are_found(sources: Path) -> None:
    found = utterances(sources)
    assert [(u.name, u.group, u.test) for u in found[:2]] == [("1-2/0", "real", False), ("1-3/0", "real", False)]
    assert [u.name for u in found if u.test] == ["8-0/0", "8-1/0"]
    talkers = [(u.name, len(u.samples) // 640) for u in found if u.group == "talkers"]
    assert talkers == [("talker0/0", 100), ("talker1/0", 40), ("talker1/50", 50)]  # too short a segment is left out
    assert sum(u.group == "synthetic" for u in found) == 8
    assert find_recordings([sources / "talkers" / "talker1"])[0][0] == "talker1"
    assert find_recordings([sources / "read" / "1-3.wav"])[0][::2] == ("1-3", "real")
    np.testing.assert_array_equal(found[0].samples, load_audio(sources / "read" / "1-2.wav").astype(np.float16))


def test_long_recordings_are_cut(tmp_path: Path) -> None:
    save_wav(tmp_path / "long.wav", np.zeros(640 * 1200))
    save_wav(tmp_path / "t.wav", np.zeros(640 * 30))
    assert [len(u.samples) // 640 for u in read_corpus([tmp_path], test=("t",))] == [600, 600, 30]


def test_made_voices_are_of_what_is_learned_from_alone(sources: Path) -> None:
    found = made_voices(utterances(sources), replace(TRAINING, real_voices=2, talker_voices=1), CPU, quiet=True)
    names = [u.name for u in found]
    assert len(names) == 6 * 2 + 3 and not any(u.test for u in found) and {u.group for u in found} == {"real", "talkers"}
    own = {u.name: u for u in utterances(sources)}
    assert all(len(u.samples) == len(own[u.name[:-2]].samples) and u.samples.dtype == np.float16 for u in found)


def test_plain_hearing_is_that_of_the_features(corpus: Corpus) -> None:
    for k in (0, 5):
        mel = corpus.whole(k, NO_AUGMENT, generator(0))[0]
        true = torch.from_numpy(features(corpus.utterances[k].samples.astype(np.float32))[:, : HOPS * MELS])
        torch.testing.assert_close(mel[LEFT_CONTEXT:-2], true.unflatten(1, (HOPS, MELS)), atol=2e-3, rtol=1e-3)
        assert float(mel[:LEFT_CONTEXT].max()) == float(mel[-1].max()) == pytest.approx(np.log(1e-5))


def test_targets_stay_with_their_sound(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    """With each frame's own level as its target, what is drawn says the level of what is heard."""
    level = torch.cat([corpus.whole(k, NO_AUGMENT, generator(0))[0, LEFT_CONTEXT:-2].flatten(1).mean(1, keepdim=True)
                       for k in range(len(corpus.frames))])
    corpus.targets = torch.cat([level.new_full((1, 1), -99), level]).half()
    monkeypatch.setattr(train_speech_encoder, "AugmentConfig", lambda: NO_AUGMENT)
    monkeypatch.setattr(train_speech_encoder, "mask_features", lambda mel, *_, **__: mel)
    rows, targets, known = corpus.draw(replace(TRAINING, batch=24, length=70), generator(0), np.random.default_rng(0))
    assert rows.shape == (24, LEFT_CONTEXT + 70 + 2, HOPS * MELS) and targets.shape == (24, 70, 1)
    own = rows[:, LEFT_CONTEXT:-2].mean(2)
    torch.testing.assert_close(targets[known][:, 0].float(), own[known], atol=0.02, rtol=0.01)
    assert not known.all() and (targets[~known] == -99).all()


def test_batches_have_their_shares(corpus: Corpus) -> None:
    training = replace(TRAINING, batch=100, real_share=0.5, talkers_share=0.2, synthetic_share=0.3)
    chosen = corpus.choose(training, np.random.default_rng(0))
    groups = [corpus.utterances[k].group for k in chosen]
    assert [groups.count(group) for group in ("real", "talkers", "synthetic")] == [50, 20, 30]
    assert not any(corpus.utterances[k].test for k in chosen)
    corpus.groups["talkers"] = np.zeros(0, int)
    assert len(corpus.choose(training, np.random.default_rng(0))) == 100
    with pytest.raises(TalkheadError, match="have no share"):
        corpus.choose(replace(training, real_share=0.0, synthetic_share=0.0), np.random.default_rng(0))


def test_another_tract_moves_the_spectrum() -> None:
    """A tone of 2 kHz under a tract 1.2 times as high sounds as one of 2.4 kHz; every recording has its own tract."""
    time = torch.arange(640 * 6 + 352) / 16000
    tone, higher = (0.1 * torch.sin(2 * np.pi * hertz * time)[None] for hertz in (2000.0, 2400.0))
    moved = augment_log_mel(tone, replace(NO_AUGMENT, voice_share=1.0, tract=(1.2, 1.2)), generator(0))
    assert (moved.argmax(-1) - augment_log_mel(higher, NO_AUGMENT, generator(0)).argmax(-1)).abs().max() <= 1
    places = augment_log_mel(tone.expand(6, -1), replace(NO_AUGMENT, voice_share=1.0), generator(0)).argmax(-1)[:, 2, 0]
    assert len(places.unique()) >= 3


def test_augmentation_is_finite_and_follows_the_generator() -> None:
    sound = torch.cat([0.1 * torch.randn(3, 640 * 10 + 352, generator=generator(1)), torch.zeros(1, 640 * 10 + 352)])
    a, b = (augment_log_mel(sound, AugmentConfig(), generator(7)) for _ in range(2))
    assert torch.equal(a, b) and a.isfinite().all() and a.shape == (4, 10, HOPS, MELS)
    assert not torch.equal(a, augment_log_mel(sound, AugmentConfig(), generator(8)))


def test_noise_has_the_level_that_was_asked_for() -> None:
    """Silence after a tone: at 20 dB the noise there is as loud as a hundredth of the whole recording's power."""
    sound = torch.zeros(1, 640 * 50 + 352)
    sound[0, : 640 * 25] = 0.1 * torch.sin(torch.arange(640 * 25) * 0.5)
    quiet = replace(NO_AUGMENT, noise_share=1.0)
    powers = [augment_log_mel(sound, replace(quiet, snr_db=(level, level)), generator(3)).exp()[0, 30:].sum(-1).mean()
              for level in (10, 20)]
    assert float(powers[0] / powers[1]) == pytest.approx(10, rel=0.1)


@torch.no_grad()
@pytest.mark.parametrize("size", [8, 40])
def test_folding_keeps_distances_of_what_is_told(corpus: Corpus, size: int, tmp_path: Path) -> None:
    """Up to one factor for all, by which total variance is 1; also in the file, nearly."""
    torch.manual_seed(1)
    student = Student(replace(SMALL, size=size), corpus.targets.shape[1]).eval()
    mels = [corpus.whole(k, NO_AUGMENT, generator(0)).flatten(2) for k in corpus.sample("real")]
    told = torch.cat([student(mel)[0] for mel in mels]).double()
    encoder = fold(student, corpus)
    found = torch.cat([encoder(mel)[0][0] for mel in mels]).double() / size**0.5
    assert float(found.var(0).sum()) == pytest.approx(1, rel=0.01) and found.mean(0).abs().max() < 1e-3
    factor = told.var(0, correction=0).sum().sqrt()
    torch.testing.assert_close(torch.cdist(found, found), torch.cdist(told, told) / factor, atol=1e-4, rtol=1e-4)
    kept = min(size, 8 if size == 8 else 32)
    assert (found.var(0)[: kept - 1] >= found.var(0)[1:kept]).all()
    save_speech_encoder(tmp_path / "e.safetensors", encoder, {})
    again = load_speech_encoder(tmp_path / "e.safetensors")
    torch.testing.assert_close(again(mels[0])[0], encoder(mels[0])[0], atol=0.03, rtol=0.03)


def test_training_lowers_the_distance(corpus: Corpus) -> None:
    _, before = train_encoder(corpus, SMALL, replace(TRAINING, steps=1), quiet=True)
    _, after = train_encoder(corpus, SMALL, replace(TRAINING, steps=60), quiet=True)
    assert after["steps"] == 60
    assert after["test_distance_clean"] < 0.7 * before["test_distance_clean"]
    assert after["test_distance_augmented"] < 0.9 * before["test_distance_augmented"]


def test_training_ends_by_the_clock(corpus: Corpus) -> None:
    _, numbers = train_encoder(corpus, SMALL, replace(TRAINING, seconds=0.5, steps=10**6), quiet=True)
    assert 0 < numbers["steps"] < 2000


def test_resumed_equals_uninterrupted(corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the bit, with dropout and augmentation."""
    config, training = replace(SMALL, dropout=0.2), replace(TRAINING, steps=8, save_seconds=0)
    whole, numbers = train_encoder(corpus, config, training, TrainState(tmp_path / "a", {"clip": 1}), quiet=True)
    draw = Corpus.draw

    def dies(self, *arguments):
        path = tmp_path / "b" / STATE
        if path.exists() and load_checkpoint(path)[1]["progress"]["step"] == 5:
            raise KeyboardInterrupt
        return draw(self, *arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Corpus, "draw", dies)
        train_encoder(corpus, config, training, TrainState(tmp_path / "b", {"clip": 1}), quiet=True)
    torch.manual_seed(99)  # another process starts with other global state
    again, resumed = train_encoder(corpus, config, training, TrainState(tmp_path / "b", {"clip": 1}), quiet=True)
    assert resumed == numbers and numbers["steps"] == 8
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def test_a_resumed_training_computes_no_targets_again(sources: Path, models: Path, tmp_path: Path,
                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = Teacher(str(models / "whisper"), 1, CPU)
    arguments = dict(teachers=[teacher], test=("8",), training=replace(TRAINING, steps=2), device=CPU, config=SMALL, quiet=True)

    def stops(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(train_speech_encoder, "train_encoder", stops)
        train([sources / "read"], [sources / "made"], tmp_path / "e.safetensors", state_dir=tmp_path / "state", **arguments)
    monkeypatch.setattr(Corpus, "teach", stops)
    numbers = train([sources / "read"], [sources / "made"], tmp_path / "e.safetensors", state_dir=tmp_path / "state", **arguments)
    assert numbers["steps"] == 2 and not (tmp_path / "state" / "rows").exists()
    card = load_checkpoint(tmp_path / "e.safetensors")[1]["card"]
    assert card["sources"] == ["read", "made"] and card["teachers"] == [teacher.info()] and card["test"] == ["8"]
    assert card["frames"] == {"real": 600, "talkers": 0, "synthetic": 400} and "test_distance_augmented" in card


@pytest.mark.slow
def test_the_command_keeps_a_finished_encoder(sources: Path, models: Path, tmp_path: Path) -> None:
    out = tmp_path / "e.safetensors"
    arguments = [str(sources / "read"), "-o", str(out), "--steps", "1", "--batch", "4", "--device", "cpu", "--test", "8",
                 "--teacher", f"{models / 'whisper'}:1"]
    assert CliRunner().invoke(train_speech_encoder.main, arguments, catch_exceptions=False).exit_code == 0
    assert not (tmp_path / "e.training" / STATE).exists() and list((tmp_path / "e.training" / "curves").iterdir())
    refused = CliRunner().invoke(train_speech_encoder.main, arguments)
    assert refused.exit_code and "exists already; add --overwrite to replace it" in str(refused.exception or refused.output)
    assert CliRunner().invoke(train_speech_encoder.main, [*arguments, "--overwrite"]).exit_code == 0


def test_what_cannot_be_learned_from_is_refused(sources: Path, tmp_path: Path) -> None:
    for test, count in (((), 0), (("nobody",), 0), (("8", "1"), 8)):
        with pytest.raises(TalkheadError, match=f"{count} of 8 recordings are for tests; some must be, and some not"):
            read_corpus([sources / "read"], test=test)
    with pytest.raises(TalkheadError, match="holds no recordings"):
        read_corpus([tmp_path])
