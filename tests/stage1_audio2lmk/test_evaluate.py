"""What `stage1 eval` measures of a stage 1 that is known, what it writes, and what it refuses."""

import dataclasses
import json
import os
import shutil
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from cli import cli
from shared.avatar import Avatar
from shared.clip import Clip
from shared.errors import TalkheadError
from shared.files import write_json
from shared.landmarks import LIPS, lip_opening
from shared.media.audio_io import save_wav
from shared.phones import save_phones, shifted
from stage1_audio2lmk import evaluate as evaluation
from stage1_audio2lmk.baselines import ridge
from stage1_audio2lmk.checkpoint import save_model
from stage1_audio2lmk.closure import SOUNDS
from stage1_audio2lmk.evaluate import Curves, _tables, clip_samples, compare, evaluate, levels, opening_stats, pauses, plot
from stage1_audio2lmk.stream import Predictor

CPU = torch.device("cpu")


@pytest.fixture
def avatar(actor_clip: Clip, predictor: Predictor, tmp_path: Path) -> Avatar:
    """An avatar whose stage 1 is the untrained network."""
    made = Avatar(tmp_path / "actor.avatar")
    write_json(made.json, {"name": "actor", "width": 512, "height": 512, "intrinsics": actor_clip.info.intrinsics, "fps": 25,
                           "format": 1})
    save_model(made.stage1, predictor.model, predictor.speakers)
    return made


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["stage1", "eval", *map(str, arguments)])


def test_compare_of_a_late_and_lazy_prediction(actor_clip: Clip) -> None:
    true, poses = actor_clip.load_landmarks()[:200], actor_clip.load_poses()[:200]
    still = true.mean(0, keepdims=True)
    late = still + 0.5 * (np.roll(true, 2, axis=0) - still)
    row = compare(late, true, poses, actor_clip.info.intrinsics)
    assert row["lag ms"] == pytest.approx(80, abs=4) and row["velocity"] == pytest.approx(0.5, abs=0.02)
    same = compare(true, true, poses, actor_clip.info.intrinsics)
    assert same == pytest.approx({"lips px": 0, "opening r": 1, "velocity": 1, "lag ms": 0}, abs=1e-6)
    beside = true + np.array([0.001, 0, 0], np.float32)  # a millimetre seen from about a metre
    expected = np.mean(1126.4 * 0.001 / (1 - true[:, LIPS, 2]))
    assert compare(beside, true, poses, actor_clip.info.intrinsics)["lips px"] == pytest.approx(expected, rel=1e-4)


def test_a_perfect_stage_1_is_called_perfect(actor_clip: Clip, avatar: Avatar, monkeypatch: pytest.MonkeyPatch) -> None:
    """In silence, it stands two millimetres further open than the neutral, in noise six."""
    truth, neutral = actor_clip.load_landmarks(), actor_clip.load_neutral()

    def knows(predictor: Predictor, samples: np.ndarray, neutral: np.ndarray, blinks: bool) -> np.ndarray:
        if len(samples) == len(truth) * 640:
            return truth
        assert any(np.array_equal(samples, make()) for make in SOUNDS.values())
        rows = np.repeat(neutral, len(samples) // 640, axis=0)
        rows[:, 60:68, 1] += np.array([0, 1, 1, 1, 0, -1, -1, -1]) * (0.003 if samples.any() else 0.001)
        return rows

    monkeypatch.setattr(evaluation, "predict", knows)
    table = evaluate(actor_clip, avatar.stage1, splits=["test"], device=CPU)
    assert list(table) == ["test: stage 1", "test: ridge ±4", "test: mean face"]
    assert table["test: stage 1"] == pytest.approx(
        {"lips px": 0, "opening r": 1, "velocity": 1, "lag ms": 0, "silence mm": 2, "noise mm": 6}, abs=1e-3)
    mean, train = truth[actor_clip.split("train")].mean(0, keepdims=True), actor_clip.split("train")
    assert table["test: mean face"]["silence mm"] == pytest.approx(1000 * float((lip_opening(mean) - lip_opening(neutral))[0]))
    samples, held = clip_samples(actor_clip), actor_clip.split("test")
    linear = compare(ridge(samples, truth, train)[held], truth[held], actor_clip.load_poses()[held], actor_clip.info.intrinsics)
    assert {key: table["test: ridge ±4"][key] for key in linear} == pytest.approx(linear)
    for name, sound in evaluation.QUIET.items():
        more = np.concatenate([samples, SOUNDS[sound]()])
        rows = ridge(more, np.pad(truth, ((0, 100), (0, 0), (0, 0))), train)[-75:-4]
        expected = 1000 * (lip_opening(rows) - lip_opening(neutral)).mean()
        assert table["test: ridge ±4"][name] == pytest.approx(expected, abs=1e-2)


def test_levels_and_pauses() -> None:
    time = np.arange(100 * 640)
    sound = 0.5 * np.sin(2 * np.pi * 200 / 16000 * time)
    sound[30 * 640 : 60 * 640] *= 0.01
    level = levels(sound[:-100])
    np.testing.assert_allclose(level[:30], 10 * np.log10(0.125), atol=0.01)
    np.testing.assert_allclose(level[30:60], 10 * np.log10(0.125) - 40, atol=0.01)
    assert len(level) == 100 and levels(np.zeros(640)).tolist() == [-100]
    assert np.flatnonzero(pauses(level)).tolist() == list(range(35, 55))
    assert not pauses(level + 25 * (level < -30)).any()  # 15 dB below speech is a noisy room or a soft sound
    assert not pauses(np.r_[level[:30], level[30:44], level[:30]]).any()  # four frames would be left
    assert pauses(np.full(20, -100.0)).all()


def test_statistics_of_a_known_opening() -> None:
    level = np.where(np.arange(100) < 60, -20.0, -80.0)
    opening = np.where(np.arange(100) % 2, 0.006, 0.0015)
    opening[60:] = 0.0025
    row = opening_stats(opening, level, rest=0.001, spread=0.002)
    assert row == pytest.approx({"seconds": 4, "amplitude": opening.std() / 0.002, "closed": 0.3, "pauses mm": 1.5})
    assert "pauses mm" not in opening_stats(opening, np.full(100, -20.0), 0.001, 0.002)


def test_a_plot_shows_the_curves_where_they_are() -> None:
    flat = {"tracked": np.full(500, 0.002), "stage 1": np.full(500, 0.008)}
    curves = Curves(flat, np.full(500, -100.0), np.r_[0:250, 300:500])
    image = plot(curves, rest=0.0, start=0, stop=500, low=0.0, high=10.0).astype(int)
    rows = {}
    for name in flat:
        drawn = (np.abs(image - evaluation.COLOURS[name]).sum(-1) < 30) & (np.arange(image.shape[0]) > 15)[:, None]
        y, x = np.nonzero(drawn)
        rows[name] = y.mean()
        left, right = (evaluation.MARGIN + t / 500 * (image.shape[1] - evaluation.MARGIN - 10) for t in (252, 298))
        assert len(x) > 800 and not ((x > left) & (x < right)).any()
    height = image.shape[0] - evaluation.MARGIN
    assert rows["tracked"] - rows["stage 1"] == pytest.approx(0.6 * height, abs=2)


def test_plots_go_by_twenty_seconds_and_end_after_two_minutes() -> None:
    """A second in the first plot, nothing in the second, one frame in the third, and so on; flat curves do no harm."""
    frames = np.r_[0:25, 1000, 1500:4000]
    page = evaluation.ReportPage("plots")
    evaluation.add_plots(page, Curves({"stage 1": np.zeros(4000)}, np.full(4000, -100.0), frames), 0.0)
    html = "".join(page._parts)
    assert html.count("<img") == 5 and "20.0 to 40.0 s" not in html and "40.0 to 60.0 s: stage 1" in html
    assert "The first 120 s are shown." in html


def test_the_command_writes_tables_curves_and_plots(actor_clip: Clip, avatar: Avatar, tmp_path: Path) -> None:
    sound = np.random.default_rng(0).normal(size=30 * 16000) * 0.05
    sound[5 * 16000 : 8 * 16000] = 0
    save_wav(tmp_path / "german.wav", sound)
    (tmp_path / "b").mkdir()
    save_wav(tmp_path / "b" / "german.wav", sound[:16000])
    out = tmp_path / "out"
    done = run(actor_clip.root, "--avatar", avatar.root, "--audio", tmp_path / "german.wav", "--audio",
               tmp_path / "b" / "german.wav", "--audio", tmp_path / "german.wav", "--base", avatar.stage1, "-o", out)
    assert done.exit_code == 0, done.output
    assert str(out / "eval.html") in done.output and "opening r" in done.output
    assert evaluation.NO_PHONES in done.output and evaluation.NO_PHONES in (out / "eval.html").read_text()
    record = json.loads((out / "eval.json").read_text())
    held, other = record["tables"]["stage 1 against its baselines"], record["tables"]["other recordings"]
    assert list(held) == [f"test: {name}" for name in ("stage 1", "base, zero-shot", "ridge ±4", "mean face")]
    assert held["test: stage 1"] == held["test: base, zero-shot"]
    quiet = record["tables"]["lips where nobody speaks"]
    assert list(quiet) == list(SOUNDS) and "lips by phones" not in record["tables"]
    assert quiet["digital silence"]["stage 1 mean mm"] == pytest.approx(held["test: stage 1"]["silence mm"])
    assert quiet["music"]["ridge ±4 95 % mm"] > quiet["music"]["ridge ±4 mean mm"]
    long, short = str(tmp_path / "german.wav"), str(tmp_path / "b" / "german.wav")
    assert list(other) == ["train split, tracked", f"{long}: stage 1", f"{long}: base, zero-shot", f"{short}: stage 1",
                           f"{short}: base, zero-shot"]
    assert other["train split, tracked"]["amplitude"] == pytest.approx(1)
    assert other[f"{long}: stage 1"]["seconds"] == 30 and "pauses mm" in other[f"{long}: stage 1"]
    curve, rows = record["curves"]["test"], actor_clip.split("test")
    assert curve["frames"] == rows.tolist()
    np.testing.assert_allclose(curve["opening mm"]["tracked"], 1000 * lip_opening(actor_clip.load_landmarks())[rows], atol=1e-3)
    page = (out / "eval.html").read_text()
    assert page.count("<img") == -(-len(rows) // evaluation.STRIP_FRAMES) + 3 and "http" not in page
    assert sorted(path.name for path in out.iterdir()) == ["eval.html", "eval.json"]


def test_phones_of_the_clip_bring_a_table(actor_clip: Clip, avatar: Avatar, tmp_path: Path) -> None:
    """A /b/ where the actor's lips are closed and a vowel where they are widest: the actor does both, the mean face neither."""
    root = tmp_path / "clip"
    shutil.copytree(actor_clip.root, root)
    clip, opening = Clip(root), lip_opening(actor_clip.load_landmarks())
    inside = clip.split("test")[10:-10]
    closed = int(inside[np.argmin(opening[inside])])
    wide = int(inside[np.argmax(opening[inside])])
    marks = sorted([(closed / 25 - 0.04, "B"), (closed / 25 + 0.08, "T"), (wide / 25 - 0.04, "AA"), (wide / 25 + 0.08, "T")])
    save_phones(clip.phones, [(0.0, "T"), *marks], "a test")
    out = tmp_path / "out"
    done = run(root, "--avatar", avatar.root, "-o", out)
    assert done.exit_code == 0 and evaluation.NO_PHONES not in done.output, done.output
    table = json.loads((out / "eval.json").read_text())["tables"]["lips by phones"]
    assert list(table) == [f"test: {name}" for name in ("tracked", "stage 1", "ridge ±4", "mean face")]
    assert table["test: tracked"] == pytest.approx(table["test: tracked"] | {"p b m": 1, "contact": 1, "peaks": 1})
    assert table["test: mean face"]["contact"] == 0
    clip.save_info(dataclasses.replace(clip.info, lag_ms=-80.0))
    save_phones(clip.phones, shifted([(0.0, "T"), *marks], 0.08), "a test")
    rows = _tables(Clip(root), {}, ["test"])[0]["lips by phones"]
    assert list(rows)[:2] == ["test: tracked", "test: tracked, lag taken out"]
    assert rows["test: tracked, lag taken out"] == pytest.approx(table["test: tracked"])
    clip.phones.write_text("{}")
    done = run(root, "--avatar", avatar.root, "-o", tmp_path / "again")
    assert done.exit_code == 2 and 'expected "phones"' in done.output and not (tmp_path / "again").exists()


def test_other_sound_may_come_from_a_pipe(actor_clip: Clip, avatar: Avatar, tmp_path: Path) -> None:
    save_wav(tmp_path / "a.wav", np.random.default_rng(0).normal(size=32000) * 0.05)
    os.mkfifo(tmp_path / "pipe")
    Thread(target=(tmp_path / "pipe").write_bytes, args=((tmp_path / "a.wav").read_bytes(),), daemon=True).start()
    done = run(actor_clip.root, "--avatar", avatar.root, "--audio", tmp_path / "pipe", "-o", tmp_path / "out")
    assert done.exit_code == 0, done.output
    other = json.loads((tmp_path / "out" / "eval.json").read_text())["tables"]["other recordings"]
    assert other["pipe: stage 1"]["seconds"] == 2


def test_the_usual_folder_lies_in_the_clip(actor_clip: Clip, avatar: Avatar, tmp_path: Path) -> None:
    clip = tmp_path / "actor"
    shutil.copytree(actor_clip.root, clip)
    assert run(clip).exit_code == 0  # the avatar beside it, actor.avatar, is found too
    assert (clip / "training" / "stage1" / "eval" / "eval.html").is_file()


def test_what_cannot_be_measured_is_refused_in_one_sentence(actor_clip: Clip, avatar: Avatar, tmp_path: Path) -> None:
    out = tmp_path / "out"
    cases = {
        "no split 'tset'": ("--split", "tset"),
        "none.wav does not exist": ("--audio", tmp_path / "none.wav"),
        "avatar.json is not a media file": ("--audio", avatar.json),
        "/dev/null is a terminal or a device, from which no sound can be read": ("--audio", "/dev/null"),
        "base.safetensors": ("--base", tmp_path / "base.safetensors"),
    }
    for sentence, options in cases.items():
        done = run(actor_clip.root, "--avatar", avatar.root, "-o", out, *options)
        assert done.exit_code == 2 and sentence in done.output and len(done.output.splitlines()) == 1, done.output
    done = run(actor_clip.root, "--avatar", tmp_path / "nobody")
    assert done.exit_code == 2 and "there is no avatar here" in done.output
    done = run(tmp_path, "--avatar", avatar.root)
    assert done.exit_code == 2 and "is not a clip folder" in done.output
    avatar.stage1.unlink()
    done = run(actor_clip.root, "--avatar", avatar.root)
    assert done.exit_code == 2 and "run `talkhead stage1 finetune CLIP`" in done.output
    assert not out.exists()


def test_a_split_of_next_to_no_frames_is_refused(actor_clip: Clip, avatar: Avatar) -> None:
    clip = Clip(actor_clip.root)
    clip.info.split["blink"] = [(3, 12)]
    with pytest.raises(TalkheadError, match="'blink' holds 9 good frames; at least 10"):
        evaluate(clip, avatar.stage1, splits=["blink"], device=CPU)
