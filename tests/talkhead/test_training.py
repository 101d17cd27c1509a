"""The order in which an avatar is trained and assembled; what --overwrite takes and what it leaves."""

import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from cli import cli
from shared import lock
from shared.avatar import Avatar
from shared.camera import pose_matrix
from shared.checkpoint import save_checkpoint
from shared.clip import Clip, ClipInfo, Shot
from shared.errors import TalkheadError
from shared.face_check import TEMPLATE
from shared.files import sha256
from shared.landmarks import save_array, save_landmarks
from shared.lock import lock_folder, lock_output
from shared.media.video_io import VideoWriter, write_png
from talkhead import demo, training
from talkhead.training import finetune, train_head, train_torso, training_of

CPU = torch.device("cpu")
LENGTH = 6


def pose(distance):
    """(1, 4, 4) head → camera: upright, facing the camera."""
    return pose_matrix(np.diag([1.0, -1, -1]), np.array([0, 0, distance]))[None].astype(np.float32)


def make_clip(root, grey=100):
    clip = Clip(root)
    with VideoWriter(clip.video, 16, 16) as writer:
        for _ in range(LENGTH):
            writer.write(np.full((16, 16, 3), grey, np.uint8))
    clip.audio.write_bytes(b"sound")
    save_landmarks(clip.landmarks, np.repeat(TEMPLATE[None], LENGTH, 0))
    save_landmarks(clip.neutral, TEMPLATE[None])
    save_array(clip.poses, np.repeat(pose(0.8), LENGTH, 0))
    save_array(clip.torso_motion, np.zeros((LENGTH, 4)))
    write_png(clip.background, np.full((16, 16, 3), grey, np.uint8))
    clip.save_info(ClipInfo(root.name, "me.mov", "00", 16, 16, LENGTH, (20.0, 20.0, 8.0, 8.0), (0, 0, 16),
                            [Shot(0, LENGTH, "background.png")], split={"train": [(0, 5)], "test": [(5, 6)]}))
    return clip


FITTED = np.repeat(pose(0.9), LENGTH, 0)


@pytest.fixture
def stubs(monkeypatch):
    """Trainings that write a file at once; what each was given."""
    given = {}

    def stage1(clips, out, **more):
        given["stage1"] = more
        save_checkpoint(out, {}, {"part": "stage1", "of": clips[0].identity()})
        return {}

    def stage2(clip, out, **more):
        given["stage2"] = more
        save_checkpoint(out, {}, {"part": "stage2", "of": clip.identity()})
        clip.save_fitted_poses(FITTED, sha256(out))
        return {}

    def torso(clip, head_renderer, out, **more):
        given["torso"] = more
        save_checkpoint(out, {}, {"part": "torso", "of": clip.identity()})
        return {}

    monkeypatch.setattr(training.stage1, "train", stage1)
    monkeypatch.setattr(training.stage2, "train", stage2)
    monkeypatch.setattr(training.torso, "train", torso)
    monkeypatch.setattr(training, "Renderer", lambda avatar, device, parts: SimpleNamespace(device=device))
    monkeypatch.setattr(training, "draw_layers", lambda avatar, **_: avatar.layers.write_bytes(avatar.torso.read_bytes()))
    return given


def train_all(clip, avatar, **more):
    finetune(clip, avatar, config=None, device=CPU, base=None, **more)
    train_head(clip, avatar, config=None, device=CPU, **more)
    train_torso(clip, avatar, config=None, device=CPU, **more)


def test_the_motion_track_and_the_torso_have_the_poses_fitted_with_the_head(tmp_path, stubs):
    clip, avatar = make_clip(tmp_path / "me"), Avatar(tmp_path / "me.avatar")
    train_all(clip, avatar)
    avatar.require("stage1", "stage2", "torso")
    assert np.array_equal(avatar.load_motion()[0], FITTED[:5])
    assert np.array_equal(stubs["torso"]["poses"], FITTED) and stubs["torso"]["head"] == sha256(avatar.stage2)
    assert sorted(path.name for path in avatar.root.iterdir()) == [
        "avatar.json", "background.png", "motion_poses.npy", "motion_torso.npy", "neutral.npy", "stage1.safetensors",
        "stage2.safetensors", "torso.safetensors", "torso_layers.mp4"]


def test_the_demo_builds_the_avatar_that_the_commands_build(tmp_path, stubs, monkeypatch):
    """The motion track holds the fitted poses in both, and all files are the same."""
    by_hand, clip = Avatar(tmp_path / "by hand"), make_clip(tmp_path / "hand" / "clip")
    train_all(clip, by_hand)

    class Stop(Exception):
        pass

    def end(*_, **__):
        raise Stop

    monkeypatch.setattr("process_data.actor.actor.make_actor", lambda *_, **__: None)
    monkeypatch.setattr("process_data.pipeline.process", lambda source, folder, **_: make_clip(folder))
    monkeypatch.setattr(demo, "synthesize", end)
    with pytest.raises(Stop):
        demo.run_demo(tmp_path / "demo", size=16, seed=0, device=CPU)
    made = Avatar(tmp_path / "demo" / "actor.avatar")
    assert np.array_equal(made.load_motion()[0], FITTED[:5])
    for path in set(by_hand.files()) - {by_hand.warp, by_hand.gaze}:  # optional
        assert path.read_bytes() == (made.root / path.name).read_bytes(), path.name


def test_overwrite_takes_what_can_be_resumed_and_leaves_evaluations_and_curves(tmp_path):
    out, state = tmp_path / "stage2.safetensors", tmp_path / "training" / "stage2"
    out.write_bytes(b"old")
    (state / "eval").mkdir(parents=True)
    for name in ("eval/eval.html", "eval/eval.json", "state.safetensors", "heads-0123.npy", "events.out.tfevents.1"):
        (state / name).write_text("before")
    with training_of(out, state, overwrite=True):
        assert out.read_bytes() == b"old"
        assert not (state / "state.safetensors").exists() and not (state / "heads-0123.npy").exists()
        (state / "state.safetensors").write_text("new")
        (state / "events.out.tfevents.2").write_text("new")
    left = {str(path.relative_to(state)) for path in state.rglob("*") if path.is_file()}
    assert left == {"eval/eval.html", "eval/eval.json", "earlier-1/events.out.tfevents.1", "events.out.tfevents.2"}


def test_a_broken_off_replacement_of_that_file_alone_is_finished(tmp_path):
    out, state = tmp_path / "a.safetensors", tmp_path / "state"
    out.write_bytes(b"old")
    with pytest.raises(TalkheadError, match="a.safetensors exists already; add --overwrite to replace it"):
        with training_of(out, state, overwrite=False):
            pass
    assert not state.exists()
    with pytest.raises(KeyboardInterrupt), training_of(out, state, overwrite=True):
        (state / "state.safetensors").write_text("half")
        raise KeyboardInterrupt
    assert out.read_bytes() == b"old"
    other = tmp_path / "b.safetensors"
    other.write_bytes(b"another avatar's")
    with pytest.raises(TalkheadError, match="b.safetensors exists already"), training_of(other, state, overwrite=False):
        pass
    with training_of(out, state, overwrite=False):
        assert (state / "state.safetensors").read_text() == "half"
    assert list(state.iterdir()) == []


def test_a_refused_training_leaves_no_trace(tmp_path, stubs, monkeypatch):
    clip, avatar = make_clip(tmp_path / "me"), Avatar(tmp_path / "me.avatar")

    def refuse(*_, **__):
        raise TalkheadError("the train split is too short")

    monkeypatch.setattr(training.stage2, "train", refuse)
    state = clip.training / "stage2"
    (state / "eval").mkdir(parents=True)
    for name in ("state.safetensors", "unfinished", "events.out.tfevents.1"):  # of a training that was broken off
        (state / name).write_text("before")
    before = sorted(tmp_path.rglob("*"))
    for overwrite in (False, True):
        with pytest.raises(TalkheadError, match="too short"):
            train_head(clip, avatar, config=None, device=CPU, overwrite=overwrite)
        assert sorted(tmp_path.rglob("*")) == before


def test_one_training_at_a_time(tmp_path):
    out, state = tmp_path / "a.safetensors", tmp_path / "state"
    for held in (lock_folder(state), lock_output(out)):
        with held:
            kept = set(lock._held)
            lock._held.clear()  # as if another process held it
            with pytest.raises(TalkheadError, match=f"is being written by another talkhead, process {os.getpid()} since"):
                with training_of(out, state, overwrite=True):
                    pass
            lock._held.update(kept)


def run(*arguments):
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def test_parts_of_another_clip_by_command(tmp_path, stubs):
    mine, yours = make_clip(tmp_path / "me"), make_clip(tmp_path / "you", grey=150)
    avatar = tmp_path / "me.avatar"
    for command in (["stage1", "finetune", mine.root, "--base", "none"], ["stage2", "train", mine.root],
                    ["torso", "train", mine.root]):
        assert run(*command).exit_code == 0
    before = {path: path.read_bytes() for path in avatar.iterdir()}
    done = run("stage2", "train", yours.root, "--avatar", avatar)
    assert done.exit_code == 2 and "its stage1 was trained on another clip than" in done.output
    done = run("torso", "train", yours.root, "--avatar", avatar, "--overwrite")
    assert done.exit_code == 2 and "its stage2 was trained on another clip than" in done.output
    assert {path: path.read_bytes() for path in avatar.iterdir()} == before
    done = run("stage2", "train", yours.root, "--avatar", avatar, "--overwrite")
    assert done.exit_code == 0
    assert "warning: the avatar's torso is still of another clip, 'me'; run `talkhead torso train" in done.output
    shown = run("inspect", avatar).output
    assert "its parts are of different clips: stage1 of 'me' (" in shown and "stage2 of 'you' (" in shown
    (tmp_path / "s.wav").write_bytes(b"")
    done = run("synth", avatar, tmp_path / "s.wav", "-o", tmp_path / "t.mp4")
    assert done.exit_code == 2 and "its stage2 was trained on the clip 'you', its torso on another clip, 'me'" in done.output


@pytest.mark.parametrize("command", [
    ["synth", "A", "w.wav", "-o", "w.wav"],
    ["synth", "A", "w.wav", "-o", "t.mp4", "--landmarks", "l.npy", "--save-landmarks", "l.npy"],
    ["synth", "A", "w.wav", "-o", "A/neutral.npy"], ["synth", "A", "w.wav", "-o", "x.npy", "--save-landmarks", "x.npy"],
    ["stage1", "predict", "w.wav", "--avatar", "A", "-o", "link.npy", "--neutral", "l.npy"],
    ["stage1", "predict", "w.wav", "--avatar", "A", "-o", "A/neutral.npy"],
    ["stage1", "predict", "w.wav", "--avatar", "A", "-o", "l.npy", "--neutral", "l.npy"],
    ["stage2", "render", "l.npy", "--avatar", "A", "-o", "."], ["stage2", "render", "l.npy", "--avatar", "A", "-o", "A"],
    ["stage2", "render", "l.npy", "--avatar", "A", "-o", "me"],
    ["stage2", "render", "l.npy", "--avatar", "A", "-o", "l.npy", "--poses", "p.npy"],
    ["stage2", "export", "A", "-o", "l.ply", "--landmarks", "l.npy"],
    ["stage2", "import", "l.ply", "--avatar", "A", "-o", "."],
    ["torso", "composite", "frames", "--avatar", "A", "-o", "w.wav", "--audio", "w.wav"],
    ["edit", "l.npy", "-o", "n.npy", "--neutral", "n.npy", "--mouth-gain", "1"],
    ["demo", "me"], ["demo", "w.wav"],
], ids=" ".join)
def test_no_output_is_written_over_an_input_or_another_folder(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_clip(Path("me"))
    Path("A").mkdir()
    for name in ("A/neutral.npy", "l.npy", "n.npy", "p.npy"):
        save_landmarks(name, TEMPLATE[None])
    Path("w.wav").write_bytes(b"sound")
    Path("link.npy").symlink_to("l.npy")
    Path("l.ply").symlink_to("l.npy")
    Path("frames").mkdir()
    before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    done = run(*command, "--overwrite")
    assert done.exit_code == 2 and done.output.count("Error: ") == 1, done.output
    assert any(text in done.output for text in ("which is read", "are the same file", "so it will not be replaced")), done.output
    assert {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()} == before


def test_a_folder_with_other_files_is_no_folder_of_frames_and_no_earlier_demo(tmp_path):
    from talkhead.free_view import check_head_output

    frames = tmp_path / "frames"
    frames.mkdir()
    for name in ("000000.png", "poses.npy", "torso.npy"):
        (frames / name).touch()
    assert check_head_output(frames, None) is False
    (frames / "notes.txt").touch()
    with pytest.raises(TalkheadError, match="is no folder of rendered frames, so it will not be replaced"):
        check_head_output(frames, None)
    (tmp_path / "demo").mkdir()
    assert not demo.check_demo_folder(tmp_path / "demo") and not demo.check_demo_folder(tmp_path / "new")
    (tmp_path / "demo" / "actor.mp4").touch()
    assert demo.check_demo_folder(tmp_path / "demo")
    (tmp_path / "demo" / "mine.txt").touch()
    with pytest.raises(TalkheadError, match=r"holds other files too \(mine.txt\); move them"):
        demo.check_demo_folder(tmp_path / "demo")
