"""The command as a user meets it: help, one-sentence errors with exit code 2, nothing left under a final name."""

import subprocess
import sys

import numpy as np
import pytest
from click.testing import CliRunner

from cli import cli
from shared.errors import TalkheadError
from shared.face_check import TEMPLATE
from shared.landmarks import load_landmarks, save_landmarks
from shared.media.audio_io import save_wav
from shared.media.video_io import VideoWriter
from talkhead.commands.output import format_table
from talkhead.commands.process import parse_ranges


def run(*arguments):
    result = CliRunner().invoke(cli, [str(a) for a in arguments])
    return result


def refused(result, sentence):
    """Exit code 2 and, progress bars aside, exactly one line `Error: …` that holds `sentence`; no traceback."""
    assert result.exit_code == 2, result.output
    lines = [line for line in result.output.splitlines() if line.strip() and "it/s" not in line and "frame/s" not in line]
    assert len(lines) == 1 and lines[0].startswith("Error: "), result.output
    assert sentence in lines[0]


@pytest.fixture
def face():
    rows = TEMPLATE + np.random.default_rng(0).normal(size=(30, 68, 3)) * 0.002
    return rows.astype(np.float32)


@pytest.fixture
def sound(tmp_path):
    save_wav(tmp_path / "speech.wav", np.random.default_rng(0).uniform(-0.1, 0.1, 16000))
    return tmp_path / "speech.wav"


def commands(group, prefix=()):
    for name, command in group.commands.items():
        yield (*prefix, name)
        if hasattr(command, "commands"):
            yield from commands(command, (*prefix, name))


@pytest.mark.parametrize("command", list(commands(cli)), ids=" ".join)
def test_every_command_has_help(command):
    result = run(*command, "--help")
    assert result.exit_code == 0 and "Usage: " in result.output


def test_the_help_starts_without_heavy_imports():
    code = "import sys, cli; cli.cli.make_context('x', ['edit', '-h'], resilient_parsing=True); " \
           "print([m for m in ('torch', 'mediapipe', 'numba', 'scipy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_text_file_named_mp4(tmp_path):
    (tmp_path / "text.mp4").write_text("hello")
    refused(run("process", tmp_path / "text.mp4", tmp_path / "clip"), "text.mp4 is not a video that FFmpeg can read")
    assert [p.name for p in tmp_path.iterdir()] == ["text.mp4"]


def test_a_video_without_sound(tmp_path):
    with VideoWriter(tmp_path / "mute.mp4", 128, 128) as writer:
        for _ in range(10):
            writer.write(np.zeros((128, 128, 3), np.uint8))
    refused(run("process", tmp_path / "mute.mp4", tmp_path / "clip"), "mute.mp4 has no audio track")
    assert not (tmp_path / "clip" / "clip.json").exists()


@pytest.mark.slow
def test_a_video_without_a_face(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (100, 128, 128, 3)).astype(np.uint8)
    with VideoWriter(tmp_path / "noise.mp4", 128, 128, audio=np.zeros(64000, np.float32)) as writer:
        for frame in noise:
            writer.write(frame)
    refused(run("process", tmp_path / "noise.mp4", tmp_path / "clip"), "no face")
    assert not (tmp_path / "clip" / "clip.json").exists()


def test_wrong_landmark_files(tmp_path, face):
    np.save(tmp_path / "flat.npy", face[:3, :, 0])
    refused(run("edit", tmp_path / "flat.npy", "-o", tmp_path / "out.npy"), "found (3, 68)")
    face[3, 2, 1] = np.nan
    np.save(tmp_path / "nan.npy", face)
    refused(run("edit", tmp_path / "nan.npy", "-o", tmp_path / "out.npy"), "found nan at (3, 2, 1)")
    np.save(tmp_path / "pickled.npy", np.array([face, None], dtype=object), allow_pickle=True)
    refused(run("edit", tmp_path / "pickled.npy", "-o", tmp_path / "out.npy"), "pickled or object array")
    refused(run("inspect", tmp_path / "pickled.npy"), "pickled or object array")
    assert not (tmp_path / "out.npy").exists()


def test_a_missing_avatar(tmp_path, sound):
    refused(run("synth", tmp_path / "nobody", sound, "-o", tmp_path / "talk.mp4"), "there is no avatar here")
    assert not (tmp_path / "talk.mp4").exists()


def test_an_unknown_setting(tmp_path):
    refused(run("stage1", "finetune", tmp_path, "--set", "stesp=3"), "stesp")
    refused(run("stage2", "train", tmp_path, "--set", "stesp=3"), "did you mean")
    refused(run("torso", "train", tmp_path, "--set", "stesp=3"), "did you mean")
    refused(run("process", tmp_path / "x.mp4", tmp_path / "clip", "--set", "nothing=3"), "unknown key 'nothing'")


def test_a_folder_that_is_no_clip(tmp_path):
    refused(run("stage2", "train", tmp_path), "is not a clip folder")
    refused(run("inspect", tmp_path), "neither a clip folder")
    refused(run("inspect", tmp_path / "none"), "does not exist")


def test_edit_applies_and_never_overwrites_unasked(tmp_path, face):
    save_landmarks(tmp_path / "in.npy", face)
    out = tmp_path / "out.npy"
    arguments = ["edit", tmp_path / "in.npy", "-o", out, "--mouth-gain", 1.2, "--smile", 0.3, "--blink", 2.0,
                 "--smooth", 3, "--retime", 1.1]
    assert run(*arguments).exit_code == 0
    first = load_landmarks(out)
    assert first.shape == (27, 68, 3)
    refused(run(*arguments), "exists already; add --overwrite")
    assert run(*arguments, "--overwrite").exit_code == 0
    np.testing.assert_array_equal(load_landmarks(out), first)
    assert "0 is not in the range 0.1<=x<=10" in run(*arguments[:4], "--retime", 0, "--overwrite").output
    np.testing.assert_array_equal(load_landmarks(out), first)


def test_inspect_describes_landmarks_and_sound(tmp_path, face, sound):
    save_landmarks(tmp_path / "in.npy", face)
    assert "landmarks (30, 68, 3) float32, 1.20 s at 25 fps: valid" in run("inspect", tmp_path / "in.npy").output
    assert "sound: 1.00 s" in run("inspect", sound).output


def test_doctor_names_what_is_there():
    output = run("doctor").output
    for word in ("Python", "torch", "mediapipe", "PyAV", "H.264"):
        assert word in output


def test_doctor_fails_only_where_something_needed_lacks(monkeypatch):
    from talkhead.doctor import Finding

    there, optional = Finding("a library", True), Finding("a GPU", False, needed=False, fix="buy one")
    monkeypatch.setattr("talkhead.doctor.diagnose", lambda: iter([there, optional]))
    done = run("doctor")
    assert done.exit_code == 0 and done.output == "ok    a library\nnone  a GPU\n      buy one\n"
    monkeypatch.setattr("talkhead.doctor.diagnose", lambda: iter([Finding("a codec", False, fix="get it"), there]))
    done = run("doctor")
    assert done.exit_code == 1 and done.output == "LACK  a codec\n      get it\nok    a library\n"


@pytest.fixture
def avatar(tmp_path, face):
    """An avatar with nothing but a head of 90 splats, 32 pixels a side."""
    import torch

    from shared.avatar import Avatar
    from shared.camera import pose_matrix
    from shared.files import write_json
    from shared.landmarks import save_array
    from stage2_gaussian.checkpoint import save_head
    from stage2_gaussian.head import Head

    made = Avatar(tmp_path / "me.avatar")
    write_json(made.json, {"name": "me", "width": 32, "height": 32, "intrinsics": [80, 80, 16, 16], "fps": 25, "format": 1})
    save_array(made.poses, pose_matrix(np.diag([1.0, -1, -1]), np.array([0, 0, 0.8]))[None])
    save_array(made.motion, np.zeros((1, 4)))
    save_landmarks(made.neutral, face[:1])
    g = torch.Generator().manual_seed(0)
    save_head(made.stage2, Head(torch.from_numpy(face[0]), 0.03 * torch.randn(90, 3, generator=g), torch.full((90,), 0.006),
                                torch.rand(90, 3, generator=g), moving=30, rank=6, hidden=8, pose_rank=2), {})
    return made.root


def test_stage2_render_writes_pictures_or_a_transparent_video(tmp_path, face, sound, avatar):
    save_landmarks(tmp_path / "in.npy", face[:25])
    render = ["stage2", "render", tmp_path / "in.npy", "--avatar", avatar, "--device", "cpu", "-o"]
    done = run(*render, tmp_path / "frames", "--orbit", 20, "--period", 0.5)
    assert done.exit_code == 0 and "frames: 25 RGBA frames" in done.output
    assert sorted(path.name for path in (tmp_path / "frames").iterdir()) == [
        *(f"{k:06d}.png" for k in range(25)), "poses.npy", "torso.npy"]
    done = run(*render, tmp_path / "covered", "--orbit", "covered", "--poses", "still", "--no-pose-limit")
    assert done.exit_code == 0 and "only up to 0.0° to either side, so the camera hardly swings; name degrees" in done.output
    assert "'covred' is neither a number of degrees nor covered" in run(*render, tmp_path / "x", "--orbit", "covred").output
    done = run(*render, tmp_path / "head.webm", "--audio", sound)
    assert done.exit_code == 0 and "head.webm: 25 RGBA frames" in done.output
    assert "32x32, 25.000 fps" in (shown := run("inspect", tmp_path / "head.webm").output) and "codec vp9" in shown
    refused(run(*render, tmp_path / "head.webm"), "exists already; add --overwrite")
    refused(run(*render, tmp_path / "head.mp4"), "a .mp4 file holds no transparency; name a .mov, a .webm or a folder")
    refused(run(*render, tmp_path / "head.mov", "--period", 2), "--period 2 is the time of a swing; add --orbit DEGREES")
    refused(run(*render, tmp_path / "new", "--audio", sound), "folder of pictures, which holds no sound")
    refused(run(*render, tmp_path / "head.mov", "--audio", tmp_path / "none.wav"), "none.wav does not exist")
    refused(run(*render, tmp_path, "--overwrite"), "in.npy, which is read, lies in")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").touch()
    refused(run(*render, tmp_path / "mine", "--overwrite"), "is no folder of rendered frames, so it will not be replaced")
    assert run(*render, tmp_path / "head.mov", "--orbit", 200).exit_code == 2
    assert not (tmp_path / "head.mov").exists() and (tmp_path / "in.npy").exists()


def test_stage2_export_and_import_round_trip(tmp_path, face, avatar):
    save_landmarks(tmp_path / "in.npy", face)
    export, ply = ["stage2", "export", avatar, "-o"], tmp_path / "head.ply"
    assert "head.ply: 90 splats" in run(*export, ply).output
    done = run("stage2", "import", ply, "--avatar", avatar, "-o", tmp_path / "new.avatar")
    assert done.exit_code == 0, done.output
    assert "90 splats as they were, 0 edited, 0 moved or added, 0 gone" in done.output
    assert "new.avatar: the avatar with the edited head" in done.output
    assert "avatar 'me'" in run("inspect", tmp_path / "new.avatar").output
    before = (avatar / "stage2.safetensors").read_bytes()
    refused(run("stage2", "import", ply, "--avatar", avatar), "stage2.safetensors exists already; add --overwrite")
    refused(run("stage2", "import", ply, "--avatar", avatar, "-o", tmp_path / "new.avatar"), "exists already")
    assert (avatar / "stage2.safetensors").read_bytes() == before
    done = run("stage2", "import", ply, "--avatar", avatar, "--overwrite")
    assert "the head from before is kept in" in done.output and "stage2.before-import-1.safetensors" in done.output
    assert (avatar / "stage2.before-import-1.safetensors").read_bytes() == before
    assert run(*export, tmp_path / "posed.ply", "--landmarks", tmp_path / "in.npy", "--frame", 29).exit_code == 0
    refused(run("stage2", "import", tmp_path / "posed.ply", "--avatar", avatar, "--overwrite"), "with an expression")
    refused(run(*export, ply), "exists already; add --overwrite")
    refused(run(*export, tmp_path / "head.obj"), "head.obj: the splat file's name should end in .ply")
    refused(run(*export, tmp_path / "a.ply", "--frame", 3), "--frame 3 is a row of a landmark file; add --landmarks FILE")
    refused(run(*export, tmp_path / "a.ply", "--landmarks", tmp_path / "in.npy", "--frame", 30), "has 30 rows, 0 to 29")
    refused(run("stage2", "import", tmp_path / "in.npy", "--avatar", avatar, "--overwrite"), "in.npy is not a PLY file")
    refused(run("stage2", "import", ply, "--avatar", tmp_path / "none", "--overwrite"), "there is no avatar here")


def test_debug_shows_the_traceback(tmp_path):
    result = run("--debug", "inspect", tmp_path / "none")
    assert isinstance(result.exception, TalkheadError)


def test_ranges_and_tables():
    assert parse_ranges(("train=0:5", "a=5:7", "train=8:9")) == {"train": [(0, 5), (8, 9)], "a": [(5, 7)]}
    assert parse_ranges(()) is None
    with pytest.raises(TalkheadError, match="found 'train=5:5'"):
        parse_ranges(("train=5:5",))
    assert format_table({"a": {"x": 1.0}, "bb": {"y": 2.5}}).splitlines() == ["    x    y", "a   1    -", "bb  -  2.5"]
