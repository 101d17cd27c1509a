import dataclasses
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import cli
from shared.checkpoint import load_checkpoint
from shared.clip import Clip, ExcludedSpan
from shared.errors import TalkheadError
from shared.landmarks import lip_opening, save_landmarks
from shared.media.audio_io import save_wav
from shared.metrics import correlation
from stage1_audio2lmk import distributed
from stage1_audio2lmk import pretrain as training
from stage1_audio2lmk.audio.features import FEATURE_SIZE, MELS, features, mean_log_mel
from stage1_audio2lmk.av_sync import Sync
from stage1_audio2lmk.dataset import load_recording, synthetic_silence
from stage1_audio2lmk.encoders.speech_encoder import SpeechEncoder, SpeechEncoderConfig, save_speech_encoder
from stage1_audio2lmk.losses import coordinate_weights
from stage1_audio2lmk.model import new_model
from stage1_audio2lmk.pretrain import Learner, PretrainConfig, pretrain
from stage1_audio2lmk.row_store import (
    ClipRows,
    ClipWindows,
    fingerprint,
    hide_moments,
    open_rows,
    person,
    prepare,
    validation_windows,
)
from stage1_audio2lmk.statistics import statistics
from stage1_audio2lmk.stream import iter_predict, load_predictor, predict

CPU = torch.device("cpu")
SMALL = PretrainConfig(dim=32, layers=1, heads=2, window=10, dropout=0.0, steps=12, batch=4, length=50, voices=2, check_every=4,
                       save_every=5, sync_from=6)
SPEECH = SpeechEncoderConfig(dim=16, layers=1, heads=2, window=5, size=8)


class Killed(Exception):
    """Stands for a process that dies."""


@pytest.fixture(scope="module")
def people(actor_clip: Clip, make_clip: Callable[..., Clip], tmp_path_factory: pytest.TempPathFactory) -> list[Clip]:
    """Two clips of eight seconds: the actor, and somebody who says something else and moves less."""
    folder = tmp_path_factory.mktemp("people")
    sound, landmarks, neutral = actor_clip.load_audio(), actor_clip.load_landmarks(), actor_clip.load_neutral()
    found = []
    for name, start, share in (("a", 0, 1.0), ("b", 220, 0.8)):
        part = slice(start, start + 200)
        moved = neutral + share * (landmarks[part] - neutral)
        found.append(make_clip(folder / name, sound[640 * start : 640 * part.stop], moved, neutral, {"train": [(0, 190)]}))
    return found


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a speech encoder that has learned nothing."""
    path = tmp_path_factory.mktemp("speech") / "speech.safetensors"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        save_speech_encoder(path, SpeechEncoder(SPEECH), {})
    return path


def roots(clips: list[Clip]) -> list[str]:
    return [str(clip.root) for clip in clips]


def rows_of(clips: list[Clip], root: Path, config: PretrainConfig) -> list[ClipRows]:
    folders = [root / fingerprint(clip, config.seed) for clip in clips]
    for clip, folder in zip(clips, folders):
        prepare(clip, folder, config.voices, config, features)
    return open_rows(clips, folders, config.voices, config)


def run(clips: list[Clip], folder: Path, config: PretrainConfig, **more: object) -> tuple[dict, dict[str, torch.Tensor]]:
    numbers = pretrain(clips, folder / "m.safetensors", config=config, device=CPU, state_dir=folder / "state", quiet=True, **more)
    return numbers, load_checkpoint(folder / "m.safetensors")[0]


def test_rows_on_disk_are_those_of_the_clip(people: list[Clip], tmp_path: Path) -> None:
    clip = people[0]
    rows = rows_of([clip], tmp_path, SMALL)[0]
    expected = load_recording(clip, 1, SMALL)
    plain, other = rows.recording(0), rows.recording(1)
    for name in ("features", "displacement", "good", "speaker", "val_start", "name"):
        value, wanted = getattr(plain, name), getattr(expected, name)
        assert torch.equal(value, wanted) if isinstance(wanted, torch.Tensor) else value == wanted
    assert torch.isfinite(other.features).all() and other.features.shape == plain.features.shape
    assert (other.features - plain.features).abs().mean() > 0.05
    written = {path: path.stat().st_mtime_ns for path in rows.folder.iterdir()}
    assert len(written) == 4
    content = (rows.folder / "voice1.npy").read_bytes()
    (rows.folder / "voice1.npy").unlink()  # as if the process had died before
    prepare(clip, rows.folder, 2, SMALL, features)
    assert (rows.folder / "voice1.npy").read_bytes() == content
    assert (rows.folder / "voice0.npy").stat().st_mtime_ns == written[rows.folder / "voice0.npy"]


def test_a_changed_clip_gets_other_rows(people: list[Clip], tmp_path: Path) -> None:
    copy = Clip(shutil.copytree(people[0].root, tmp_path / "copy"))
    prints = [fingerprint(people[0], 0), fingerprint(people[0], 1)]
    assert fingerprint(copy, 0) == prints[0]
    save_landmarks(copy.landmarks, copy.load_landmarks() + 1e-4)
    prints.append(fingerprint(copy, 0))
    save_wav(copy.audio, 0.5 * copy.load_audio())
    prints.append(fingerprint(copy, 0))
    copy.save_info(dataclasses.replace(copy.info, excluded=[ExcludedSpan(10, 20, "blurred")]))
    prints.append(fingerprint(copy, 0))
    assert len(set(prints)) == 5
    copy.audio.unlink()
    with pytest.raises(TalkheadError, match="audio.wav does not exist"):
        fingerprint(copy, 0)


def test_statistics_from_disk_are_those_of_all_rows(people: list[Clip], tmp_path: Path) -> None:
    clips = [clip.recording() for clip in rows_of(people, tmp_path, dataclasses.replace(SMALL, voices=1))]
    found = statistics(clips, clips, SMALL)
    recordings = [load_recording(clip, k + 1, SMALL) for k, clip in enumerate(people)]
    x, y = (torch.cat([getattr(r, name)[: r.val_start][r.good[: r.val_start]] for r in recordings]).double()
            for name in ("features", "displacement"))
    mel = mean_log_mel(x)
    parts = torch.cat([mel, mel - mel.mean(1, keepdim=True), mel.mean(1, keepdim=True)], 1)
    weights = coordinate_weights(SMALL).sqrt()
    _, singular, vt = torch.linalg.svd((y - y.mean(0)) * weights, full_matrices=False)
    basis = (vt * singular[:, None] / len(y) ** 0.5 / weights)[: SMALL.components]
    expected = x.mean(0), x.std(0).clamp_min(0.05), parts.mean(0), parts.std(0).clamp_min(0.05), y.mean(0)
    for ours, theirs in zip(found, expected):
        torch.testing.assert_close(ours, theirs.float(), atol=1e-5, rtol=1e-4)
    basis = basis.float()
    sign = (found.basis * basis).sum(1, keepdim=True).sign()
    torch.testing.assert_close((found.basis * sign)[:8], basis[:8], atol=1e-7, rtol=1e-3)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_clips(tmp_path: Path) -> None:
    """200 clips hold 2 GB of rows; reading them takes neither memory nor open files that stay."""
    def anonymous() -> float:
        return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon")) / 1024

    clips = []
    for k in range(200):
        folder = tmp_path / str(k)
        folder.mkdir()
        for name, shape in (("voice0", (8000, FEATURE_SIZE)), ("displacement", (8000, 111)), ("good", (8000,))):
            rows = np.lib.format.open_memmap(folder / f"{name}.npy", "w+", np.float32, shape)  # holes that take no space
            if name == "good":
                rows[:] = 1
            del rows
        clips.append(ClipRows(str(k), folder, k + 1, 1, 7400, 8000))
    assert sum(path.stat().st_size for path in tmp_path.glob("*/*.npy")) > 2e9
    silence = synthetic_silence(100, np.random.default_rng(0)).features
    windows = ClipWindows(clips, SMALL, silence, torch.ones(FEATURE_SIZE), 4, 2)
    statistics((clip.recording() for clip in clips[:2]), (clip.recording() for clip in clips[:2]), SMALL)
    windows.draw(0, range(4))
    before, files = anonymous(), len(os.listdir("/proc/self/fd"))
    for step in range(20):
        windows.draw(step, range(4))
    statistics((clip.recording() for clip in clips[:8]), (clip.recording() for clip in clips[:8]), SMALL)
    assert validation_windows(clips, SMALL, silence, 4, 2, 128)[0].shape == (128, 4 + 52, FEATURE_SIZE)
    assert anonymous() - before < 40 and len(os.listdir("/proc/self/fd")) == files


def test_a_batch_is_the_same_however_it_is_shared(people: list[Clip], tmp_path: Path) -> None:
    rows = rows_of(people, tmp_path, SMALL)
    silence = synthetic_silence(100, np.random.default_rng(0)).features
    windows = ClipWindows(rows, SMALL, silence, torch.ones(FEATURE_SIZE), 4, 2)
    whole, first, second = windows.draw(7, range(4)), windows.draw(7, range(2)), windows.draw(7, range(2, 4))
    for all_, a, b in zip(whole, first, second):
        assert torch.equal(all_, torch.cat([a, b]))
    assert whole[0].shape == (4, 4 + 50 + 2, FEATURE_SIZE) and whole[1].shape == (4, 50, 111) and whole[2].shape == (4, 50)
    assert not torch.equal(whole[0], windows.draw(8, range(4))[0])
    many = [windows.draw(step, range(4))[3] for step in range(10)]
    assert set(torch.cat(many).tolist()) == {0, 1, 2}


def test_windows_on_disk_know_the_cuts(people: list[Clip], tmp_path: Path) -> None:
    clip = Clip(shutil.copytree(people[0].root, tmp_path / "cut"))
    shots = [dataclasses.replace(clip.info.shots[0], start=start, stop=stop) for start, stop in ((0, 60), (60, 100), (100, 200))]
    before = fingerprint(clip, 0)
    clip.save_info(dataclasses.replace(clip.info, shots=shots))
    assert fingerprint(clip, 0) != before
    rows = rows_of([clip], tmp_path, SMALL)
    assert rows[0].recording().cuts == (0, 60, 100)
    silence = synthetic_silence(100, np.random.default_rng(0)).features
    windows = ClipWindows(rows, dataclasses.replace(SMALL, silence_share=0.0), silence, torch.ones(FEATURE_SIZE), 4, 2)
    moved = rows[0].recording().displacement
    found = set()
    for step in range(10):
        for y, weight in zip(*windows.draw(step, range(4))[1:3]):
            start = int((moved[: len(moved) - 49].eq(y[0])).all(1).nonzero()[0])
            found |= set((start + (weight == 0).nonzero()[:, 0]).tolist())
    assert found == {60, 100}


def test_what_is_held_out(people: list[Clip], make_clip: Callable[..., Clip], tmp_path: Path) -> None:
    """The end of each clip, or of ten speakers one as a whole; the sentences of one VOCASET actor are one speaker."""
    assert person("FaceTalk_1_TA_sentence07") == "FaceTalk_1_TA" and person("hdtf_2") == "hdtf_2"
    few = open_rows(people, [tmp_path] * 2, 2, SMALL)
    assert [(clip.speaker, clip.val_start, clip.stop) for clip in few] == [(1, 167, 190), (2, 167, 190)]
    source = people[0]
    names = [f"p{k}_sentence0{n}" for k in range(10) for n in (1, 2)]
    sound, landmarks, neutral = source.load_audio(), source.load_landmarks(), source.load_neutral()
    clips = [make_clip(tmp_path / name, sound, landmarks, neutral, {"train": [(0, 190)]}) for name in names]
    rows = open_rows(clips, [tmp_path] * 20, 2, SMALL)
    assert [clip.speaker for clip in rows] == [1 + k // 2 for k in range(20)]
    judges = [clip.speaker for clip in rows if clip.val_start == 0]
    assert len(judges) == 2 and judges[0] == judges[1] and {clip.val_start for clip in rows} == {0, 190}
    windows = ClipWindows(rows, SMALL, torch.zeros(100, FEATURE_SIZE), torch.ones(FEATURE_SIZE), 4, 2)
    assert len(windows.clips) == 18


def test_validation_windows_are_the_clip(people: list[Clip], tmp_path: Path) -> None:
    rows = rows_of(people, tmp_path, SMALL)
    silence = torch.full((1, FEATURE_SIZE), -9.0)
    x, y, weight = validation_windows(rows, dataclasses.replace(SMALL, length=20), silence, 4, 2, 100)
    r = rows[0].recording()
    assert x.shape == (4, 26, FEATURE_SIZE) and weight.sum(1).tolist() == [20, 3, 20, 3]
    assert torch.equal(x[0, :26], torch.cat([r.features[163:189]])) and torch.equal(y[0], r.displacement[167:187])
    assert torch.equal(x[1, :7], r.features[183:190]) and (x[1, 7:] == -9).all()


@pytest.mark.slow
def test_base_speaks_for_an_unknown_voice(people: list[Clip], tmp_path: Path) -> None:
    config = dataclasses.replace(SMALL, dim=48, steps=90, batch=6, check_every=30, sync_from=30, window=25, voices=1)
    numbers, _ = run(people, tmp_path, config)
    assert numbers["val_split"] == "the end of each clip" and numbers["best_step"] > 0
    assert numbers["val_lips_mm"] < 0.9 * numbers["val_lips_at_rest_mm"]
    assert len(numbers["losses"]) == 90 and np.mean(numbers["losses"][-10:]) < 0.8 * np.mean(numbers["losses"][:10])
    assert sorted(path.name for path in (tmp_path / "state").iterdir()) == ["curves"]
    predictor = load_predictor(tmp_path / "m.safetensors", CPU)
    assert predictor.speakers == ["a", "b"] and len(predictor.model.kernel.support_mel) == 0
    assert predictor.model.transformer is not None and predictor.model.transformer.config.dim == 48
    clip = people[1]
    audio, neutral = clip.load_audio(), clip.load_neutral()
    whole = predict(predictor, audio, neutral, speaker="unknown", blinks=False)
    pieces = np.concatenate(list(iter_predict(predictor, np.array_split(audio, 7), neutral, speaker="unknown", blinks=False)))
    np.testing.assert_allclose(pieces, whole, atol=1e-5)
    np.testing.assert_array_equal(predict(predictor, audio, neutral, blinks=False), whole)
    assert correlation(lip_opening(whole[20:]), lip_opening(clip.load_landmarks()[20:])) > 0.5


def test_the_encoder_is_frozen_and_goes_into_the_file(people: list[Clip], speech: Path, tmp_path: Path) -> None:
    _, after = run(people, tmp_path, dataclasses.replace(SMALL, steps=4), speech=speech)
    for name, value in load_checkpoint(speech)[0].items():
        assert torch.equal(after[f"encoder.{name}"], value) and value.dtype == torch.float16
    predictor = load_predictor(tmp_path / "m.safetensors", CPU)
    assert isinstance(predictor.encoder, SpeechEncoder) and predictor.encoder.config == SPEECH and predictor.model.size == 8
    assert np.isfinite(predict(predictor, people[0].load_audio(), people[0].load_neutral())).all()


def test_hidden_moments_become_the_mean() -> None:
    for size in (0, 8):
        rows = torch.randn(3, 60, FEATURE_SIZE + size, generator=torch.Generator().manual_seed(0))
        found = hide_moments(rows, torch.Generator().manual_seed(1))
        columns = slice(FEATURE_SIZE, None) if size else slice(0, 320)
        changed = (found != rows).any(-1).sum(1)
        assert found.shape == rows.shape and changed.max() <= 8 and changed.sum() > 0
        found[..., columns] = rows[..., columns]
        assert torch.equal(found, rows)


def test_predicted_lips_teach_the_model_and_not_the_sync_network() -> None:
    torch.manual_seed(0)
    model = new_model(SMALL, 1)
    transformer = model.transformer
    assert transformer is not None
    torch.nn.init.normal_(transformer.basis, std=0.002)
    torch.nn.init.normal_(transformer.head.weight, std=0.1)
    learner = Learner(model, Sync(MELS), SMALL)
    x, y = torch.randn(2, 4 + 30 + 2, FEATURE_SIZE), 0.002 * torch.randn(2, 30, 111)
    grads = {}
    for share in (0.0, 1.0):
        learner.zero_grad()
        losses = learner(x, y, torch.ones(2, 30), torch.zeros(2, dtype=torch.long), share)
        losses["total"].backward()
        grads[share] = [module.weight.grad.clone() for module in (learner.sync.audio[0], learner.sync.lips[0], transformer.head)]
        assert ("sync" in losses) == bool(share)
        assert losses["total"].item() == pytest.approx(losses["loss"].item() + losses["sync of true lips"].item(), rel=1e-6)
    assert torch.equal(grads[0.0][0], grads[1.0][0]) and torch.equal(grads[0.0][1], grads[1.0][1])
    assert not torch.equal(grads[0.0][2], grads[1.0][2])


def test_resumed_equals_uninterrupted(people: list[Clip], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = dataclasses.replace(SMALL, dropout=0.2)
    numbers, once = run(people, tmp_path / "a", config)
    calls, real = 0, training.landmark_loss

    def dies_at_step_9(*arguments: object) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 9:
            raise Killed
        return real(*arguments)

    monkeypatch.setattr(training, "landmark_loss", dies_at_step_9)
    with pytest.raises(Killed):
        run(people, tmp_path / "b", config)
    assert not (tmp_path / "b" / "m.safetensors").exists() and (tmp_path / "b" / "state" / "state.safetensors").exists()
    torch.manual_seed(99)  # another process starts with other global state
    for clips, changed in ((people[:1], config), (people, dataclasses.replace(config, lr=1e-4))):
        with pytest.raises(TalkheadError, match="an unfinished training with other"):
            run(clips, tmp_path / "b", changed)
    monkeypatch.setattr("stage1_audio2lmk.row_store.load_recording", lambda *_: pytest.fail("rows were there already"))
    again, twice = run(people, tmp_path / "b", config)
    assert calls == 9 + 12 - 5
    assert again["losses"] == pytest.approx(numbers["losses"], rel=1e-6) and again["best_step"] == numbers["best_step"]
    for name in once:
        torch.testing.assert_close(twice[name], once[name], atol=1e-6, rtol=1e-5)


OTHER = """
import json, sys, torch
from pathlib import Path
from shared.clip import Clip
from stage1_audio2lmk import distributed
from stage1_audio2lmk.pretrain import PretrainConfig, pretrain
torch.set_num_threads(1)
folder, settings, clips = Path(sys.argv[1]), json.loads(sys.argv[2]), [Clip(path) for path in sys.argv[3:]]
with distributed.processes(torch.device("cpu")) as device:
    numbers = pretrain(clips, folder / "m.safetensors", config=PretrainConfig(**settings), device=device,
                       state_dir=folder / "state")
print(json.dumps(numbers["losses"]))
"""


@pytest.mark.slow
def test_two_processes_learn_what_one_does(people: list[Clip], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    numbers, alone = run(people, tmp_path / "one", SMALL)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setattr(distributed, "TIMEOUT", timedelta(seconds=100))
    for name, value in (("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", port), ("WORLD_SIZE", 2), ("RANK", 1), ("LOCAL_RANK", 1)):
        monkeypatch.setenv(name, str(value))
    command = [sys.executable, "-c", OTHER, str(tmp_path / "two"), json.dumps(dataclasses.asdict(SMALL)), *roots(people)]
    other = subprocess.Popen(command, cwd=Path(cli.__file__).parent, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("LOCAL_RANK", "0")
    with distributed.processes(CPU):
        assert distributed.rank() == 0 and distributed.world_size() == 2
        ours, together = run(people, tmp_path / "two", SMALL)
    told, bars = other.communicate(timeout=100)
    assert other.returncode == 0 and "stage 1" not in bars, bars
    assert ours["losses"] == pytest.approx(numbers["losses"], rel=1e-5) and json.loads(told) == ours["losses"]
    assert together.keys() == alone.keys()
    for name, value in alone.items():
        torch.testing.assert_close(together[name], value, atol=1e-5, rtol=1e-5)


def test_one_process_is_alone() -> None:
    rows = torch.ones(2, 3, requires_grad=True)
    assert distributed.gather(rows) is rows and distributed.rank() == 0 and distributed.world_size() == 1
    distributed.barrier()
    with distributed.processes(CPU) as device:
        assert device == CPU and not torch.distributed.is_initialized()


@pytest.mark.parametrize(("settings", "with_speech", "message"), [
    ({"voices": 0}, False, "voices should be at least 1, found 0"),
    ({"encoder": "wavlm"}, False, "are for fine-tuning, found wavlm; a base model has none or one named by --speech"),
    ({"mel_terms": False}, False, "without a speech encoder mel_terms should be true"),
])
def test_settings_that_do_not_go_together(people: list[Clip], speech: Path, tmp_path: Path, settings: dict, with_speech: bool,
                                          message: str) -> None:
    with pytest.raises(TalkheadError, match=message):
        run(people, tmp_path, dataclasses.replace(SMALL, **settings), speech=speech if with_speech else None)


def test_a_batch_must_be_shared_evenly(people: list[Clip], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "world_size", lambda: 3)
    with pytest.raises(TalkheadError, match="a batch of 4 cannot be shared evenly by 3 processes"):
        run(people, tmp_path, SMALL)


def test_the_command(people: list[Clip], speech: Path, tmp_path: Path) -> None:
    out = tmp_path / "base.safetensors"
    arguments = ["stage1", "pretrain", *roots(people), "-o", str(out), "--speech", str(speech), "--device", "cpu"]
    for setting in ("steps=2", "batch=2", "dim=16", "voices=1"):
        arguments += ["--set", setting]
    result = CliRunner().invoke(cli.cli, arguments)
    assert result.exit_code == 0, result.output
    assert "val_lips_mm" in result.output and load_predictor(out, CPU).speakers == ["a", "b"]
    again = CliRunner().invoke(cli.cli, arguments)
    assert again.exit_code == 2 and "exists already" in again.output
    before = out.read_bytes()
    absent = CliRunner().invoke(cli.cli, [*arguments, "--overwrite", "--speech", str(tmp_path / "absent")])
    assert absent.exit_code == 2 and "does not exist" in absent.output and out.read_bytes() == before
    assert "exists already" in CliRunner().invoke(cli.cli, arguments).output
    assert CliRunner().invoke(cli.cli, [*arguments, "--overwrite"]).exit_code == 0
    assert "torchrun" in CliRunner().invoke(cli.cli, ["stage1", "pretrain", "--help"]).output
