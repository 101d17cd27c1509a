"""The command as a user meets it: help, one-sentence errors with exit code 2, nothing left under a final name."""

import subprocess
import sys

import numpy as np
import pytest
from click.testing import CliRunner

from cli import cli, format_table, parse_ranges
from shared.audio_io import save_wav
from shared.errors import TalkheadError
from shared.landmarks import load_landmarks, save_landmarks
from shared.video_io import VideoWriter


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
    rows = np.random.default_rng(0).normal(size=(30, 68, 3)).astype(np.float32) * 0.02
    rows[:, [37, 38, 43, 44], 1] = 0.005
    rows[:, [41, 40, 47, 46], 1] = -0.005
    return rows


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
    refused(run(*arguments[:4], "--retime", 0, "--overwrite"), "found 0")
    np.testing.assert_array_equal(load_landmarks(out), first)


def test_inspect_describes_landmarks_and_sound(tmp_path, face, sound):
    save_landmarks(tmp_path / "in.npy", face)
    assert "landmarks (30, 68, 3) float32, 1.20 s at 25 fps: valid" in run("inspect", tmp_path / "in.npy").output
    assert "sound: 1.00 s" in run("inspect", sound).output


def test_doctor_names_what_is_there():
    result = run("doctor")
    assert result.exit_code == 0, result.output
    for word in ("Python", "torch", "mediapipe", "PyAV", "H.264"):
        assert word in result.output


def test_debug_shows_the_traceback(tmp_path):
    result = run("--debug", "inspect", tmp_path / "none")
    assert isinstance(result.exception, TalkheadError)


def test_ranges_and_tables():
    assert parse_ranges(("train=0:5", "a=5:7", "train=8:9")) == {"train": [(0, 5), (8, 9)], "a": [(5, 7)]}
    assert parse_ranges(()) is None
    with pytest.raises(TalkheadError, match="found 'train=5:5'"):
        parse_ranges(("train=5:5",))
    assert format_table({"a": {"x": 1.0}, "bb": {"y": 2.5}}).splitlines() == ["    x    y", "a   1    -", "bb  -  2.5"]
