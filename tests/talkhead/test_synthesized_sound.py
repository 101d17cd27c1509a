"""What is told and refused when an avatar speaks: lengths, heads out of sight, pipes as outputs, where pictures may go."""

import dataclasses
import json
import os
from pathlib import Path
from types import SimpleNamespace

import click
import numpy as np
import pytest
import torch
from click.testing import CliRunner

from cli import cli
from shared.avatar import Avatar
from shared.camera import euler_degrees, pose_matrix, rotation_from_rotvec
from shared.errors import TalkheadError
from shared.face_check import TEMPLATE
from shared.landmarks import load_landmarks, save_array, save_landmarks
from shared.media.audio_io import load_audio, save_wav
from shared.media.video_io import read_transparent_video, read_video, write_png
from shared.options import Seconds
from shared.pose_range import PoseRange
from shared.watermark.payload import avatar_id
from stage1_audio2lmk.stream import iter_predict
from talkhead import speaking as module
from talkhead import synthesis
from talkhead.evaluation import _good_frames, evaluate_avatar
from talkhead.free_view import HeadView, Orbit
from talkhead.inspect import describe
from talkhead.motion import MotionTrack, ping_pong
from talkhead.provenance import shown_id
from talkhead.speaking import Speaker, synthesize
from talkhead.verification import verify

CPU = torch.device("cpu")
UPRIGHT = pose_matrix(np.diag([1.0, -1, -1]), np.array([0, 0, 0.8]))
SPEECH = (0.2 * np.random.default_rng(0).standard_normal(16000)).clip(-0.9, 0.9).astype(np.float32)


class Disc:
    """Stands for a trained avatar: a grey disc wherever the pose puts it, on black."""

    layers = ()  # a torso drawn beforehand, which the disc does not need

    def __init__(self, avatar, device):
        self.device = device

    def head_rgba(self, landmarks, poses, motion, gaze=None):
        visible = torch.as_tensor(np.abs(poses[:, 0, 3]) < 1).float()
        return visible[:, None, None, None].expand(-1, 64, 64, 4) * 0.6

    def pictures(self, head, poses, motion, track, background):
        return (255 * head[..., :3]).byte()

    def person(self, head, poses, motion, track):
        return (255 * head).byte()


class Steady:
    """Stands for stage 1: a face at rest for as long as the sound lasts."""

    def __init__(self, neutral):
        self.neutral = neutral

    def __call__(self, predictor, audio, neutral, **_):
        self.heard = np.concatenate(list(audio))
        yield np.repeat(neutral, -(-len(self.heard) // 640), axis=0)


@pytest.fixture
def avatar(tmp_path, monkeypatch):
    made = Avatar(tmp_path / "me.avatar")
    made.root.mkdir()
    made.json.write_text(json.dumps({"name": "me", "width": 64, "height": 64, "intrinsics": [160, 160, 32, 32], "fps": 25,
                                     "format": 1}))
    save_array(made.poses, np.tile(UPRIGHT, (5, 1, 1)))
    save_array(made.motion, np.zeros((5, 4)))
    save_landmarks(made.neutral, TEMPLATE[None])
    write_png(made.background, np.full((64, 64, 3), 200, np.uint8))
    for part in (made.stage1, made.stage2, made.torso):
        part.write_bytes(b"stands for a checkpoint")
    save_wav(tmp_path / "speech.wav", SPEECH)
    monkeypatch.setattr(module, "Renderer", Disc)
    steady = Steady(made.neutral)
    for place in (module, synthesis):
        monkeypatch.setattr(place, "load_predictor", lambda *_: None)
        monkeypatch.setattr(place, "iter_predict", steady)
    return made


def rows(folder, count):
    save_landmarks(folder / f"{count}.npy", np.repeat(TEMPLATE[None], count, axis=0))
    return folder / f"{count}.npy"


def test_the_sound_is_decoded_once_and_copied_or_encoded(avatar, tmp_path, monkeypatch):
    made = synthesize(avatar, tmp_path / "speech.wav", tmp_path / "t.mp4", device=CPU, quiet=True)
    assert made == (25, [])
    assert np.array_equal(module.iter_predict.heard, load_audio(tmp_path / "speech.wav"))
    assert len(list(read_video(tmp_path / "t.mp4"))) == 25
    assert sorted(path.name for path in tmp_path.iterdir()) == ["me.avatar", "speech.wav", "t.mp4"]


def test_an_avatar_without_a_stored_torso_is_told_what_makes_it_fast(avatar, tmp_path, monkeypatch):
    monkeypatch.setattr(Disc, "layers", None)
    told = (f"{avatar.root} holds no torso drawn beforehand for its motion track, so that its network drew every frame, many "
            f"times as slowly; `talkhead torso layers {avatar.root}` draws it")
    save_array(tmp_path / "own.npy", np.tile(UPRIGHT, (25, 1, 1)))  # for poses of one's own nothing could be stored
    for poses, warnings in (("loop", [told]), ("still", [told]), (str(tmp_path / "own.npy"), [])):
        assert synthesize(avatar, tmp_path / "speech.wav", tmp_path / "t.mp4", device=CPU, poses=poses, overwrite=True,
                          quiet=True).warnings == warnings


def test_frames_are_marked_unless_asked_not_to(avatar, tmp_path):
    """The invisible mark is in the frames, its message and the metadata name the avatar; without it nothing of that is there."""
    save_wav(tmp_path / "speech.wav", np.tile(SPEECH, 4))
    frames = {}
    for name, given in (("marked", {}), ("unmarked", {"mark": False})):
        video = tmp_path / f"{name}.mp4"
        Speaker(avatar, device=CPU, size="192", **given).speak(tmp_path / "speech.wav", video, quiet=True)
        frames[name] = np.stack(list(read_video(video)))
        found = verify(video)
        assert (found.invisible.avatar if found.invisible else None) == (None if given else shown_id(avatar_id(avatar.info)))
        assert (b"AI-generated video" in video.read_bytes()) == (not given)
    assert not np.array_equal(frames["marked"], frames["unmarked"])


def test_a_difference_in_length_is_told(avatar, tmp_path):
    told = "the landmarks last {} s, the sound 1.0 s; the video is as long as the landmarks, and "
    for count, end in ((3, told.format(0.1) + "the sound is cut off there"),
                       (50, told.format("2.0") + "the rest of the video is silent"), (26, None)):
        made = synthesize(avatar, tmp_path / "speech.wav", tmp_path / "t.mp4", device=CPU, landmarks=rows(tmp_path, count),
                          overwrite=True, quiet=True)
        assert made == (count, [end] if end else [])
        assert len(load_audio(tmp_path / "t.mp4")) <= min(16000, 640 * count) + 1024


def test_bad_sound_is_told_by_the_commands(avatar, tmp_path):
    save_wav(tmp_path / "silent.wav", 0 * SPEECH)
    for arguments in (["synth", avatar.root, tmp_path / "silent.wav", "-o", tmp_path / "t.mp4"],
                      ["stage1", "predict", tmp_path / "silent.wav", "--avatar", avatar.root, "-o", tmp_path / "p.npy"]):
        done = CliRunner().invoke(cli, [str(argument) for argument in [*arguments, "--device", "cpu"]])
        assert done.exit_code == 0, done.output
        assert "  warning: the sound is almost silent; the lips hardly move with it\n" in done.output
    assert len(load_landmarks(tmp_path / "p.npy")) == 25


def test_a_head_out_of_sight_is_told(avatar, tmp_path):
    poses = np.tile(UPRIGHT, (25, 1, 1))
    poses[10:, 0, 3] = 5
    save_array(tmp_path / "away.npy", poses)
    made = synthesize(avatar, tmp_path / "speech.wav", tmp_path / "t.mp4", device=CPU, poses=str(tmp_path / "away.npy"),
                      quiet=True)
    assert made == (25, ["no head can be seen in 15 of 25 frames; look at the poses and the landmarks"])


def test_poses_that_are_shorter_than_the_video_are_told(avatar, tmp_path):
    for count, told in ((10, ["the poses last 0.4 s, the video 1.0 s; they go back and forth until it ends"]), (1, []), (23, []),
                        (40, [])):
        save_array(tmp_path / "own.npy", np.tile(UPRIGHT, (count, 1, 1)))
        made = synthesize(avatar, tmp_path / "speech.wav", tmp_path / "t.mp4", device=CPU, poses=str(tmp_path / "own.npy"),
                          overwrite=True, quiet=True)
        assert made == (25, told)
        assert HeadView(avatar, rows(tmp_path, 25), str(tmp_path / "own.npy")).warnings == told
    for mode in ("loop", "still"):
        assert MotionTrack(avatar, mode).warnings(1000) == []


def test_what_is_no_number_is_not_rendered(avatar, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "iter_predict", lambda *_, **__: iter([np.full((25, 68, 3), np.nan, np.float32)]))
    with pytest.raises(TalkheadError, match="what stage 1 predicts: expected finite values, found nan"):
        synthesize(avatar, tmp_path / "speech.wav", tmp_path / "t.mp4", device=CPU, quiet=True)
    assert not (tmp_path / "t.mp4").exists()
    for degrees, period in ((np.nan, None), (20, np.nan), (np.inf, 1), (20, 0)):
        with pytest.raises(TalkheadError, match="an orbit is of some degrees in some seconds"):
            Orbit(degrees, period)


@pytest.mark.parametrize("liveliness", [np.nan, np.inf, -1])
def test_a_liveliness_that_is_no_number_is_refused(liveliness):
    with pytest.raises(TalkheadError, match="liveliness should be a number from 0 on, found"):
        next(iter_predict(None, [SPEECH], np.zeros((1, 68, 3)), liveliness=liveliness))


def test_a_video_is_never_put_into_a_pipe_a_device_or_over_its_own_sound(avatar, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows(tmp_path, 26)
    for name in ("pipe.mp4", "pipe.npy"):
        os.mkfifo(name)
    predict = ["stage1", "predict", "speech.wav", "--avatar", "me.avatar", "--overwrite"]
    assert "Error: pipe.npy is a pipe, a device or" in CliRunner().invoke(cli, [*predict, "-o", "pipe.npy"]).output
    for output in ("pipe.mp4", "/dev/null", "/dev/stdout", "-"):
        for command in (["synth", "me.avatar", "speech.wav"], ["stage2", "render", "26.npy", "--avatar", "me.avatar"],
                        ["torso", "composite", "frames", "--avatar", "me.avatar"]):
            done = CliRunner().invoke(cli, [*command, "-o", output, "--overwrite"])
            assert done.exit_code == 2 and done.output == (f"Error: {output} is a pipe, a device or standard output, where no "
                                                           "finished file can be put; name a file\n")
    os.rename("speech.wav", "speech.mp4")
    done = CliRunner().invoke(cli, ["synth", "me.avatar", "speech.mp4", "-o", "speech.mp4", "--overwrite", "--device", "cpu"])
    assert done.exit_code == 2 and "speech.mp4 is the same file as speech.mp4, which is read; name another output" in done.output
    assert len(load_audio("speech.mp4")) == 16000


def test_an_avatar_holds_no_pictures_of_evaluations(avatar, tmp_path):
    with pytest.raises(TalkheadError, match="eval lies in the avatar, which is to hold no pictures of the person"):
        evaluate_avatar(avatar, None, ["test"], CPU, avatar.root / "eval")

    def described():
        try:
            yield from describe(avatar.root)
        except TalkheadError:  # its parts are no checkpoints
            pass

    assert not any("pictures" in line for line in described())
    (avatar.root / "eval").mkdir()
    told = "eval holds pictures of the person; delete it before you pass the avatar on"
    assert any(line.endswith(told) for line in described())


def test_a_split_without_a_face_is_a_sentence():
    clip = SimpleNamespace(root="me", split=lambda name: np.zeros(0, int))
    with pytest.raises(TalkheadError, match="^me: the split 'test' holds no good frame$"):
        _good_frames(clip, "test")


def test_a_loop_is_the_same_from_any_place(avatar):
    assert np.array_equal(ping_pong(9, 5, 7), ping_pong(16, 5)[7:])
    motion = MotionTrack(avatar, "loop")
    motion.torso = np.arange(5)
    far = 8 * 10**9  # computed from there, not from frame 0 on
    assert motion.at(far, far + 6)[1].tolist() == [0, 1, 2, 3, 4, 3]


def run(*arguments):
    return CliRunner().invoke(cli, [str(argument) for argument in [*arguments, "--device", "cpu"]])


def test_several_sounds_become_several_videos_and_one_that_fails_stops_none(avatar, tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(module, "Renderer", lambda *given: made.append(given) or Disc(*given))
    save_wav(tmp_path / "b.wav", SPEECH[:9600])
    (tmp_path / "bad.wav").write_bytes(b"no sound")
    audio = [tmp_path / name for name in ("speech.wav", "bad.wav", "b.wav")]
    done = run("synth", avatar.root, *audio, "-o", tmp_path / "talks")
    assert done.exit_code == 2 and len(made) == 1  # the networks are loaded once
    for text in (f"{tmp_path}/talks/speech.mp4: 25 frames, 1.0 s\n", f"{tmp_path}/talks/b.mp4: 15 frames, 0.6 s\n",
                 f"Error: {tmp_path}/bad.wav is not a media file that FFmpeg can read",
                 "Error: 1 of 3 videos were not made; the reasons stand above\n"):
        assert text in done.output
    assert sorted(path.name for path in (tmp_path / "talks").iterdir()) == ["b.mp4", "speech.mp4"]
    done = run("synth", avatar.root, *audio[::2], "-o", tmp_path / "talks/{name}.mp4")
    assert done.exit_code == 2 and done.output.count("exists already; add --overwrite to replace it") == 2
    done = run("synth", avatar.root, *audio[::2], "-o", tmp_path / "new", "--landmarks", "rows.npy")
    assert done.exit_code == 2 and "Error: --landmarks rows.npy is of one sound, found 2; leave it out" in done.output


def test_videos_are_named_after_their_sounds(tmp_path):
    audios = [Path("a/x.wav"), Path("y.m4a")]
    assert module.name_outputs(audios, Path("out")) == [Path("out/x.mp4"), Path("out/y.mp4")]
    assert module.name_outputs(audios, Path("out/talk-{name}.webm")) == [Path("out/talk-x.webm"), Path("out/talk-y.webm")]
    assert module.name_outputs(audios[:1], Path("one.mov")) == [Path("one.mov")]
    for given, output, told in (
            (audios, "talk.mov", "-o talk.mov names one video for 2 sounds; name a folder, or a pattern such as {name}.mov"),
            ([*audios, Path("b/x.mp3")], "out", "a/x.wav and b/x.mp3 would both become out/x.mp4; rename one, or give them "
                                                "in two calls")):
        with pytest.raises(TalkheadError) as error:
            module.name_outputs(given, Path(output))
        assert str(error.value) == told


def test_a_part_of_the_sound_is_spoken(avatar, tmp_path):
    made = synthesize(avatar, tmp_path / "speech.wav", tmp_path / "t.mkv", device=CPU, start=0.2, end=0.8, quiet=True)
    assert made.frames == 15
    np.testing.assert_allclose(module.iter_predict.heard, load_audio(tmp_path / "speech.wav")[3200:12800], atol=1e-6)
    assert abs(len(load_audio(tmp_path / "t.mkv")) - 9600) <= 1
    made = synthesize(avatar, tmp_path / "speech.wav", tmp_path / "t.mkv", device=CPU, start=0.2, landmarks=rows(tmp_path, 22),
                      save_landmarks_to=tmp_path / "shown.npy", overwrite=True, quiet=True)
    assert made == (17, ["the landmarks last 0.7 s, the sound 0.8 s; the video is as long as the landmarks, and the sound is cut "
                         "off there"]) and len(load_landmarks(tmp_path / "shown.npy")) == 17
    for start, end, told in ((0.5, 0.5, "--end 0.5 s is not after --start 0.5 s"),
                             (2, None, "speech.wav has no sound after 2 s")):
        with pytest.raises(TalkheadError, match=told):
            synthesize(avatar, tmp_path / "speech.wav", tmp_path / "u.mp4", device=CPU, start=start, end=end, quiet=True)
    with pytest.raises(TalkheadError, match=r"22.npy lasts 0.9 s, so nothing of it is left after --start 0.95"):
        synthesize(avatar, tmp_path / "speech.wav", tmp_path / "u.mp4", device=CPU, start=0.95, landmarks=tmp_path / "22.npy",
                   quiet=True)


@pytest.mark.parametrize("text, seconds", [("75.5", 75.5), ("1:15.5", 75.5), ("1:02:03", 3723), ("0", 0), ("90", 90)])
def test_times_are_seconds_or_minutes(text, seconds):
    assert Seconds().convert(text, None, None) == seconds


@pytest.mark.parametrize("text", ["-1", "1:75", "1:60:00", "one", "1:2:3:4", "nan", "", ":5"])
def test_other_times_are_refused(text):
    with pytest.raises(click.UsageError, match=f"'{text}' is no time; write seconds, or minutes:seconds such as 1:15.5"):
        Seconds().convert(text, None, None)


def test_scene_and_rate_reach_the_file(avatar, tmp_path):
    done = run("synth", avatar.root, tmp_path / "speech.wav", "-o", tmp_path / "t.mp4", "--background", "#ff0000", "--size",
               "64x128", "--fps", "50")
    assert done.exit_code == 0, done.output
    frames = list(read_video(tmp_path / "t.mp4", fps=50))
    assert len(frames) == 50 and frames[0].shape == (128, 64, 3)
    assert np.abs(frames[9][:56].astype(int) - (255, 0, 0)).max() < 12
    assert np.abs(frames[9][72:].astype(int) - (255, 153, 153)).max() < 12  # the grey of .6 with alpha .6 over red
    done = run("synth", avatar.root, tmp_path / "speech.wav", "-o", tmp_path / "t.webm", "--background", "none")
    assert done.exit_code == 0, done.output
    shown = list(read_transparent_video(tmp_path / "t.webm"))
    assert len(shown) == 25 and abs(int(shown[5][32, 32, 3]) - 153) <= 2
    done = run("synth", avatar.root, tmp_path / "speech.wav", "-o", tmp_path / "u.mp4", "--background", "none")
    assert done.exit_code == 2
    assert "u.mp4: a .mp4 file holds no transparency; name a .mov (ProRes 4444) or a .webm (VP9)\n" in done.output


def test_less_head_motion_is_still_or_drawn_anew(avatar):
    poses = np.tile(UPRIGHT, (5, 1, 1))
    poses[:, 0, 3] = [0, 0.01, 0.02, 0.03, 0.04]
    save_array(avatar.poses, poses)
    still = MotionTrack(avatar, "loop", 0).at(0, 3)
    assert still.track.tolist() == [2, 2, 2] and (still.poses == MotionTrack(avatar, "still").at(0, 3).poses).all()
    half = MotionTrack(avatar, "loop", 0.5).at(0, 5)
    assert half.track is None
    np.testing.assert_allclose(half.poses[:, 0, 3], [0.01, 0.015, 0.02, 0.025, 0.03], atol=1e-6)
    for gain in (-0.1, 1.1, np.nan):
        with pytest.raises(TalkheadError, match=f"--head-motion should be a number from 0 to 1, found {gain:g}"):
            MotionTrack(avatar, "loop", gain)


def test_poses_are_held_to_what_the_clip_shows(avatar, tmp_path):
    """Of a file and in a free view; not the avatar's own motion, and not with limit=False."""
    turned = np.tile(UPRIGHT, (25, 1, 1))
    turned[5:10, :3, :3] = rotation_from_rotvec(np.radians([[0, -30.0, 0]]))[0] @ turned[5, :3, :3]
    save_array(tmp_path / "own.npy", turned)
    told = ["the poses turn the head up to 30° to the left, the clip shows 0°: 5 of 25 frames were turned back to at most 2°; "
            "--no-pose-limit keeps them"]
    held, free = MotionTrack(avatar, tmp_path / "own.npy"), MotionTrack(avatar, tmp_path / "own.npy", limit=False)
    assert held.warnings(25) == told and np.array_equal(free.poses, turned)
    yaw = euler_degrees(held.poses[:, :3, :3])[:, 0]
    np.testing.assert_allclose(yaw, np.where((np.arange(25) >= 5) & (np.arange(25) < 10), -2, 0), atol=1e-3)
    view = HeadView(avatar, rows(tmp_path, 25), tmp_path / "own.npy")
    assert view.warnings == told and np.array_equal(view.poses, held.poses)
    half = MotionTrack(avatar, tmp_path / "own.npy", 0.5)
    assert "up to 15° to the left" in half.warnings(25)[0]
    shown = PoseRange((0.0, 0.0, 0.0), (-40.0, 0.0, 0.0), (0.0, 0.0, 0.0), 0.7, 0.9)
    avatar.save_info(dataclasses.replace(avatar.info, pose_range=shown))
    assert np.array_equal(MotionTrack(avatar, tmp_path / "own.npy").poses, turned)
    assert synthesize(avatar, tmp_path / "speech.wav", tmp_path / "t.mp4", device=CPU, poses=tmp_path / "own.npy",
                      pose_limit=False, quiet=True).warnings == [
        "the poses turn the head up to 30 degrees further than the avatar's own motion does; it shows there what no picture "
        "checked"]


def test_poses_far_from_the_own_motion_are_told(avatar, tmp_path):
    turned = np.tile(UPRIGHT, (25, 1, 1))
    turned[5, :3, :3] = rotation_from_rotvec(np.radians([[0, 30.0, 0]]))[0] @ turned[5, :3, :3]
    save_array(tmp_path / "own.npy", turned)
    assert MotionTrack(avatar, str(tmp_path / "own.npy"), limit=False).warnings(25) == [
        "the poses turn the head up to 30 degrees further than the avatar's own motion does; it shows there what no picture "
        "checked"]
