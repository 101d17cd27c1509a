import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from shared.checkpoint import load_checkpoint
from shared.errors import TalkheadError
from shared.media.audio_io import save_wav
from shared.resume import STATE, TrainState
from shared.training import generator
from stage1_audio2lmk.audio.features import HOPS, MELS, features
from stage1_audio2lmk.encoders import train_speech_encoder
from stage1_audio2lmk.encoders.speech_encoder import LEFT_CONTEXT, SpeechEncoderConfig, load_speech_encoder, save_speech_encoder
from stage1_audio2lmk.encoders.train_speech_encoder import (
    PLAIN,
    UNKNOWN,
    Corpus,
    SpeechTraining,
    Surroundings,
    overhear,
    read_corpora,
    train_encoder,
)

CPU = torch.device("cpu")
SMALL = SpeechEncoderConfig(dim=32, layers=1, heads=2, window=5, size=8, dropout=0.0)
TRAINING = SpeechTraining(steps=150, batch=8, length=25, units=0)
TONES = {"low": 300.0, "high": 2500.0, "_": 0.0}


def utterance(seed: int) -> tuple[np.ndarray, list[tuple[float, str]]]:
    """Three seconds of harmonics, high or low, and pauses, each 0.16 to 0.4 s long: samples and marks."""
    rng, marks, at, pieces = np.random.default_rng(seed), [], 0.0, []
    while at < 3:
        name, seconds = rng.choice(list(TONES)), rng.integers(4, 11) * 0.04
        time = np.arange(round(seconds * 16000)) / 16000
        tone = sum(np.sin(2 * np.pi * k * TONES[name] * time) for k in (1, 1.5, 2))
        pieces.append(0.2 * tone + 1e-3 * rng.normal(size=len(time)))
        marks.append((at, str(name)))
        at += seconds
    return np.concatenate(pieces).astype(np.float32), marks


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(train_speech_encoder, "RAREST", 20)
    phones, mouths = {}, {}
    for k in range(12):
        name = f"{'test' if k < 2 else 'train'}{k}.wav"
        samples, marks = utterance(k)
        save_wav(tmp_path / name, samples)
        phones[name] = marks
        gap = np.repeat([TONES[mark] for _, mark in marks], [round((b - a) * 25) for a, b in zip(
            [a for a, _ in marks], [a for a, _ in marks[1:]] + [len(samples) / 16000])])
        mouths[name] = np.repeat(gap[:, None], 5, 1) + np.arange(5)
    (tmp_path / "phones.json").write_text(json.dumps({"kind": "tones", "test": ["test"], "phones": phones}))
    np.savez(tmp_path / "mouth.npz", **mouths)
    return tmp_path


def corpus(folder: Path) -> tuple[Corpus, dict[str, list[str]]]:
    utterances, kinds = read_corpora([folder])
    return Corpus(utterances, TRAINING, CPU), kinds


def test_plain_hearing_is_that_of_the_features(folder: Path) -> None:
    heard, _ = corpus(folder)
    for k in (0, 5):
        mel = heard.whole(k, PLAIN, generator(0))[0]
        samples = heard.utterances[k].samples.astype(np.float16).astype(np.float32)
        true = torch.from_numpy(features(samples)[:, : HOPS * MELS]).unflatten(1, (HOPS, MELS))
        torch.testing.assert_close(mel[LEFT_CONTEXT:-2], true, atol=2e-3, rtol=1e-3)
        assert float(mel[:LEFT_CONTEXT].max()) == float(mel[-1].max()) == pytest.approx(np.log(1e-5))


def test_labels_stay_with_their_sound(folder: Path) -> None:
    heard, kinds = corpus(folder)
    assert kinds == {"tones": ["_", "high", "low"]}
    mel, told = heard.draw(np.arange(8), generator(0), np.random.default_rng(0))
    assert mel.shape == (8, LEFT_CONTEXT + 25 + 2, HOPS, MELS)
    assert told["phones"].shape == (8, 28, HOPS) and told["mouth"].shape == (8, 28, 5)
    plain = torch.cat([heard.whole(k, PLAIN, generator(0))[0, LEFT_CONTEXT:-2] for k in range(12)])
    phones = torch.from_numpy(np.concatenate([u.phones for u in heard.utterances])).unflatten(0, (-1, HOPS))
    loudest = plain.argmax(-1)
    inside = torch.zeros(len(phones), dtype=torch.bool)
    inside[1:-1] = ((phones[1:-1] == phones[:-2]) & (phones[1:-1] == phones[2:])).all(1)  # away from changes
    high, low = (loudest[inside][phones[inside] == kinds["tones"].index(name)] for name in ("high", "low"))
    assert high.min() > low.max() + 10
    mouth = torch.from_numpy(np.concatenate([u.mouth for u in heard.utterances]))
    assert set(mouth[inside][(phones[inside] == 1).all(1)][:, 0].tolist()) == {2500.0}


def test_outside_a_recording_nothing_is_known(folder: Path) -> None:
    heard, _ = corpus(folder)
    rows = heard.rows(heard.phones, heard.at[[3]], np.array([-2]), 4, heard.frames[[3]])
    assert (rows[0, :2] == UNKNOWN).all() and (rows[0, 2:] != UNKNOWN).all()
    last = int(heard.frames[3])
    rows = heard.rows(heard.mouth, heard.at[[3]], np.array([last - 1]), 3, heard.frames[[3]])
    assert rows[0, 0].isfinite().all() and rows[0, 1:].isnan().all()


def test_another_tract_moves_the_spectrum() -> None:
    """A tone of 2 kHz under a tract 1.2 times as high sounds as one of 2.4 kHz; every recording has its own tract."""
    time = torch.arange(640 * 6 + 352) / 16000
    tone, higher = (0.1 * torch.sin(2 * np.pi * hertz * time)[None] for hertz in (2000.0, 2400.0))
    moved = overhear(tone, replace(PLAIN, voice_share=1.0, tract=(1.2, 1.2)), generator(0))
    assert (moved.argmax(-1) - overhear(higher, PLAIN, generator(0)).argmax(-1)).abs().max() <= 1
    places = overhear(tone.expand(6, -1), replace(PLAIN, voice_share=1.0), generator(0)).argmax(-1)[:, 2, 0]
    assert len(places.unique()) >= 3


def test_surroundings_are_finite_and_follow_the_generator() -> None:
    sound = torch.cat([0.1 * torch.randn(3, 640 * 10 + 352, generator=generator(1)), torch.zeros(1, 640 * 10 + 352)])
    a, b = (overhear(sound, Surroundings(), generator(7)) for _ in range(2))
    assert torch.equal(a, b) and a.isfinite().all() and a.shape == (4, 10, HOPS, MELS)
    assert not torch.equal(a, overhear(sound, Surroundings(), generator(8)))


def test_noise_has_the_level_that_was_asked_for() -> None:
    """Silence after a tone: at 20 dB the noise there is as loud as a hundredth of the whole recording's power."""
    sound = torch.zeros(1, 640 * 50 + 352)
    sound[0, : 640 * 25] = 0.1 * torch.sin(torch.arange(640 * 25) * 0.5)
    quiet = replace(PLAIN, noise_share=1.0)
    powers = [overhear(sound, replace(quiet, snr_db=(level, level)), generator(3)).exp()[0, 30:].sum(-1).mean()
              for level in (10, 20)]
    assert float(powers[0] / powers[1]) == pytest.approx(10, rel=0.1)


def test_units_tell_sounds_apart(folder: Path) -> None:
    """Inside a low tone, a high one or a pause, the unit of a frame nearly always says which of them it is."""
    heard, kinds = corpus(folder)
    train_speech_encoder.cluster(heard, 8)
    assert heard.units is not None and heard.units[0] == UNKNOWN and len(heard.units) == 1 + heard.frames.sum()
    own = heard.phones[1:-1, 0]
    inside = torch.cat([heard.phones[:-2], heard.phones[1:-1], heard.phones[2:]], 1).eq(own[:, None]).all(1)
    inside &= own != UNKNOWN
    table = torch.bincount(heard.units[1:-1][inside] * 3 + own[inside], minlength=24).view(8, 3)
    assert inside.sum() > 200 and table.max(1).values.sum() / table.sum() > 0.95 and len(set(table.argmax(1).tolist())) == 3


def test_training_ends_by_the_clock(folder: Path) -> None:
    heard, kinds = corpus(folder)
    _, _, numbers = train_encoder(heard, kinds, SMALL, replace(TRAINING, seconds=0.5, steps=10**6), CPU, quiet=True)
    assert 0 < numbers["steps"] < 2000


@pytest.mark.slow
def test_learns_to_tell_phones_and_is_saved(folder: Path, tmp_path: Path) -> None:
    heard, kinds = corpus(folder)
    encoder, heads, numbers = train_encoder(heard, kinds, SMALL, replace(TRAINING, units=8), CPU, quiet=True)
    assert numbers["steps"] == 150 and numbers["val_tones_accuracy_clean"] > 0.8 and numbers["val_tones_accuracy_augmented"] > 0.5
    assert set(heads) == {"tones", "mouth", "units"}
    save_speech_encoder(tmp_path / "e.safetensors", encoder, {"note": 1})
    again = load_speech_encoder(tmp_path / "e.safetensors")
    x = heard.whole(0, PLAIN, generator(0)).flatten(2)
    with torch.no_grad():
        ours, theirs = encoder(x)[0], again(x)[0]
    torch.testing.assert_close(ours, theirs, atol=0.02, rtol=0.02)  # half precision
    assert 0.5 < float(ours.std()) < 2


def test_resumed_equals_uninterrupted(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the bit, with dropout, units and augmentation."""
    config, training = replace(SMALL, dropout=0.2), replace(TRAINING, steps=8, units=8, save_seconds=0)
    heard, kinds = corpus(folder)
    whole, _, numbers = train_encoder(heard, kinds, config, training, CPU, TrainState(tmp_path / "a", {"clip": 1}), quiet=True)
    draw = Corpus.draw

    def dies(self, *arguments):
        path = tmp_path / "b" / STATE
        if path.exists() and load_checkpoint(path)[1]["progress"]["step"] == 5:
            raise KeyboardInterrupt
        return draw(self, *arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Corpus, "draw", dies)
        train_encoder(corpus(folder)[0], kinds, config, training, CPU, TrainState(tmp_path / "b", {"clip": 1}), quiet=True)
    torch.manual_seed(99)  # another process starts with other global state
    again, _, resumed = train_encoder(corpus(folder)[0], kinds, config, training, CPU, TrainState(tmp_path / "b", {"clip": 1}),
                                      quiet=True)
    assert resumed == numbers and numbers["steps"] == 8
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


@pytest.mark.slow
def test_the_command_keeps_a_finished_encoder(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "e.safetensors"
    arguments = [str(folder), "-o", str(out), "--steps", "1", "--device", "cpu"]
    assert CliRunner().invoke(train_speech_encoder.main, arguments).exit_code == 0
    assert not (tmp_path / "e.training" / STATE).exists() and list((tmp_path / "e.training" / "curves").iterdir())
    refused = CliRunner().invoke(train_speech_encoder.main, arguments)
    assert refused.exit_code and "exists already; add --overwrite to replace it" in str(refused.exception or refused.output)
    assert CliRunner().invoke(train_speech_encoder.main, [*arguments, "--overwrite"]).exit_code == 0


def test_without_test_recordings_it_says_so(folder: Path) -> None:
    table = json.loads((folder / "phones.json").read_text())
    (folder / "phones.json").write_text(json.dumps(table | {"test": ["nobody"]}))
    with pytest.raises(TalkheadError, match="12 recordings; some must be for tests, some not"):
        read_corpora([folder])
