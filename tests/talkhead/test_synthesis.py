import dataclasses
import wave

import numpy as np
import pytest
import torch

from shared.avatar import Avatar
from shared.camera import euler_degrees, pose_matrix
from shared.errors import TalkheadError
from shared.face_check import TEMPLATE
from shared.files import write_json
from shared.fixations import Fixations
from shared.gaze import save_gaze
from shared.image import straight
from shared.landmarks import load_array, save_array, save_landmarks
from shared.media import audio_io
from shared.media.audio_io import load_audio, save_wav
from shared.media.video_io import read_rgba, read_transparent_video, read_video
from shared.pose_range import PoseRange
from stage2_gaussian.checkpoint import save_head
from stage2_gaussian.head import Head
from talkhead.free_view import HeadView, Orbit, check_head_output, render_free_view
from talkhead.motion import MotionTrack, ping_pong
from talkhead.speaking import synthesize
from talkhead.synthesis import composite_folder, rebatch
from tests.serve.small_avatar import make_avatar

CPU = torch.device("cpu")
UPRIGHT = np.diag([1.0, -1, -1])


def test_ping_pong_never_jumps_and_visits_everything():
    index = ping_pong(50, 7)
    assert index[:14].tolist() == [0, 1, 2, 3, 4, 5, 6, 5, 4, 3, 2, 1, 0, 1]
    assert np.abs(np.diff(index)).max() == 1 and set(index) == set(range(7))
    assert ping_pong(3, 1).tolist() == [0, 0, 0]
    assert ping_pong(4, 2).tolist() == [0, 1, 0, 1]


def test_rebatch_keeps_order_whatever_the_chunks():
    rows = np.arange(50)[:, None]
    for cuts in ([7, 8, 30], [1], [49], []):
        pieces = list(rebatch(np.split(rows, cuts), 8))
        assert [len(piece) for piece in pieces] == [8, 8, 8, 8, 8, 8, 2]
        np.testing.assert_array_equal(np.concatenate(pieces), rows)


@pytest.fixture
def avatar(tmp_path):
    avatar = Avatar(tmp_path)
    write_json(avatar.json, {"name": "me", "width": 64, "height": 64, "intrinsics": [160, 160, 32, 32], "fps": 25, "format": 1})
    save_array(avatar.poses, pose_matrix(np.tile(UPRIGHT, (5, 1, 1)), np.arange(1, 6)[:, None] * [0, 0, 1.0]))
    save_array(avatar.motion, np.arange(20).reshape(5, 4))
    return avatar


def test_motion_loops_stands_still_or_follows_a_file(avatar, tmp_path):
    poses, torso, track = MotionTrack(avatar, "loop").at(3, 7)
    assert poses[:, 2, 3].tolist() == [4, 5, 4, 3] and torso[:, 0].tolist() == [12, 16, 12, 8] and track.tolist() == [3, 4, 3, 2]
    still = MotionTrack(avatar, "still").at(0, 9)
    assert set(still.poses[:, 2, 3]) == {3} and set(still.track) == {2}
    save_array(tmp_path / "own.npy", np.tile(pose_matrix(UPRIGHT, np.array([0, 0, 7.0])), (12, 1, 1)))
    poses, torso, track = MotionTrack(avatar, str(tmp_path / "own.npy")).at(0, 12)
    assert track is None and (poses[:, 2, 3] == 7).all() and torso[:, 0].tolist() == [0, 4, 8, 12, 16, 12, 8, 4, 0, 4, 8, 12]


def test_the_gaze_is_that_of_the_tracks_frames_or_seeded(avatar, tmp_path):
    assert all(np.isnan(MotionTrack(avatar, mode).gaze_at(0, 3)).all() for mode in ("loop", "still"))
    looks = np.array([[0.0, 0], [0.1, 0], [0.2, 0], [0.3, 0.1], [0.4, 0]], np.float32)
    save_gaze(avatar.gaze, looks)
    for gain in (1.0, 0.5):
        np.testing.assert_array_equal(MotionTrack(avatar, "loop", gain).gaze_at(3, 7), looks[[3, 4, 3, 2]])
    save_array(tmp_path / "own.npy", np.tile(pose_matrix(UPRIGHT, np.array([0, 0, 7.0])), (12, 1, 1)))
    for mode, gain in (("still", 1.0), ("loop", 0.0), (tmp_path / "own.npy", 1.0)):
        made = MotionTrack(avatar, mode, gain, seed=3)
        np.testing.assert_array_equal(made.gaze_at(5, 500), Fixations(looks, 3).at(5, 500))
        assert not np.array_equal(made.gaze_at(0, 500), MotionTrack(avatar, mode, gain, seed=4).gaze_at(0, 500))


@pytest.fixture(scope="module")
def spoken(tmp_path_factory):
    """An avatar with a head of 300 splats, 64 pixels a side, and a landmark file of 30 rows."""
    root = tmp_path_factory.mktemp("spoken")
    rng = np.random.default_rng(0)
    neutral = TEMPLATE[None].astype(np.float32)
    neutral[0, [0, 16]] = [[-0.07, 0, -0.08], [0.07, 0, -0.08]]
    made = Avatar(root / "me.avatar")
    write_json(made.json, {"name": "me", "width": 64, "height": 64, "intrinsics": [160, 160, 32, 32], "fps": 25, "format": 1})
    save_array(made.poses, np.tile(pose_matrix(np.diag([1.0, -1, -1]), np.array([0, 0, 0.8])), (5, 1, 1)))
    save_array(made.motion, np.arange(20).reshape(5, 4))
    save_landmarks(made.neutral, neutral)
    places = torch.from_numpy(rng.normal(size=(300, 3)) * [0.04, 0.05, 0.01]).float()
    save_head(made.stage2, Head(torch.from_numpy(neutral[0]), places, torch.full((300,), 0.006),
                                torch.from_numpy(rng.random((300, 3))).float(), moving=50, rank=6, hidden=8, pose_rank=2), {})
    rows = neutral + 0.002 * np.sin(np.arange(30))[:, None, None].astype(np.float32)
    save_landmarks(root / "rows.npy", rows)
    return made, root / "rows.npy"


def test_an_orbit_turns_the_poses_about_the_ears(spoken):
    avatar, rows = spoken
    plain, swung = HeadView(avatar, rows, "loop"), HeadView(avatar, rows, "loop", Orbit(30))
    assert len(swung) == 30 and np.array_equal(swung.torso, plain.torso)
    yaw = euler_degrees(swung.poses[:, :3, :3])[:, 0]
    np.testing.assert_allclose(np.abs(yaw), np.abs(30 * np.sin(2 * np.pi * np.arange(30) / 30)), atol=1e-3)
    ears = np.array([0, 0, -0.08])
    np.testing.assert_allclose(swung.poses[:, :3, :3] @ ears + swung.poses[:, :3, 3], np.tile([0, 0, 0.88], (30, 1)), atol=1e-6)
    fast = euler_degrees(HeadView(avatar, rows, "loop", Orbit(30, 0.4)).poses[:, :3, :3])[:, 0]
    np.testing.assert_allclose(fast[10:20], fast[:10], atol=1e-3)  # 0.4 s are 10 frames


def test_an_orbit_tells_where_it_goes_beyond_the_clip(spoken):
    avatar, rows = spoken
    view = HeadView(avatar, rows, "still", Orbit(9, 1.2))  # beyond 2° but around the middle of the swing and its ends
    assert view.warnings == ["the camera goes up to 9° beyond what the clip shows of the head, in frames 2 to 13, 17 to 28; "
                             "--orbit covered with --poses still stays within"]
    assert HeadView(avatar, rows, "still", Orbit(1.9)).warnings == []
    shown = PoseRange((1.0, 0.0, 0.0), (-14.0, 0.0, 0.0), (20.0, 0.0, 0.0), 0.7, 0.9)
    info = avatar.info
    try:
        avatar.save_info(dataclasses.replace(info, pose_range=shown))
        covered = HeadView(avatar, rows, "still", Orbit(period=1.2))
        yaw = euler_degrees(covered.poses[:, :3, :3])[:, 0]
        np.testing.assert_allclose(np.abs(yaw), np.abs(13 * np.sin(2 * np.pi * np.arange(30) / 30)), atol=1e-3)
        assert covered.warnings == []  # the clip shows -13° to 21°, the head stands at 0°
    finally:
        avatar.save_info(info)


def test_pictures_and_videos_show_the_same_straight_alpha(spoken, tmp_path):
    avatar, rows = spoken
    save_wav(tmp_path / "a.wav", np.random.default_rng(0).uniform(-0.3, 0.3, 40000))
    view = HeadView(avatar, rows, "still", Orbit(20))
    shown_so = {"poses": "still", "orbit": Orbit(20), "device": CPU, "quiet": True}
    assert render_free_view(avatar, rows, tmp_path / "frames", **shown_so) == (30, view.warnings)
    pictures = [read_rgba(path, (64, 64)) for path in sorted((tmp_path / "frames").glob("*.png"))]
    assert len(pictures) == 30 and np.array_equal(load_array(tmp_path / "frames" / "poses.npy", (4, 4)), view.poses)
    expected = torch.cat(list(view.batches(CPU, quiet=True)))
    for k in (0, 8, 29):
        alpha = pictures[k][..., 3:] / 255
        assert 0.2 < alpha.mean() < 0.8
        np.testing.assert_allclose(pictures[k][..., :3] / 255 * alpha, expected[k, ..., :3].clamp(0, 1), atol=0.03)
        np.testing.assert_allclose(alpha, expected[k, ..., 3:], atol=0.003)
    assert np.abs(pictures[0].astype(int) - pictures[8]).mean() > 3
    for name, error in (("head.mov", 1.5), ("head.webm", 6)):
        render_free_view(avatar, rows, tmp_path / name, audio=tmp_path / "a.wav", **shown_so)
        shown = list(read_transparent_video(tmp_path / name))
        assert len(shown) == 30 and abs(len(load_audio(tmp_path / name)) - 19200) <= 1024
        for got, picture in zip(shown, pictures):
            weighted = (got[..., :3].astype(float) * got[..., 3:] - picture[..., :3].astype(float) * picture[..., 3:]) / 255
            assert np.abs(weighted).mean() < error and np.abs(got[..., 3].astype(int) - picture[..., 3]).mean() < error


def test_sound_under_rendered_pictures_is_decoded_once(tmp_path, monkeypatch):
    avatar, sound = Avatar(make_avatar(tmp_path)), tmp_path / "a.wav"
    save_landmarks(tmp_path / "rows.npy", np.repeat(TEMPLATE[None], 6, axis=0))
    noise = np.random.default_rng(0).integers(-9000, 9000, (30000, 2), dtype=np.int16)
    with wave.open(str(sound), "wb") as file:
        file.setparams((2, 2, 16000, 0, "NONE", ""))
        file.writeframes(noise.tobytes())
    decode, heard = audio_io.decode, []

    def counting(container, stream):
        for frame in decode(container, stream):
            heard.append(frame.samples)
            yield frame

    monkeypatch.setattr(audio_io, "decode", counting)
    render_free_view(avatar, tmp_path / "rows.npy", tmp_path / "frames", device=CPU, quiet=True)
    told = "the {0} last 0.2 s, the sound 1.9 s; the video is as long as the {0}, and the sound is cut off there"
    for call, source, name, what in ((render_free_view, "rows.npy", "head.mov", "landmarks"),
                                     (composite_folder, "frames", "talk.mp4", "pictures")):
        made = call(avatar, tmp_path / source, tmp_path / name, audio=sound, device=CPU, quiet=True)
        assert made.frames == 6 and told.format(what) in made.warnings
        assert sum(heard) == 30000 and abs(len(load_audio(tmp_path / name)) - 3840) <= 1024
        heard.clear()
        with pytest.raises(TalkheadError, match="gone.wav does not exist"):
            call(avatar, tmp_path / source, tmp_path / f"other_{name}", audio=tmp_path / "gone.wav", device=CPU, quiet=True)
        assert not (tmp_path / f"other_{name}").exists()


def test_straight_alpha_undoes_the_premultiplication():
    rgba = torch.tensor([0.1, 0.2, 0.25, 0.5, 0, 0, 0, 0]).view(1, 1, 2, 4)
    assert torch.allclose(straight(rgba), torch.tensor([0.2, 0.4, 0.5, 0.5, 0, 0, 0, 0]).view(1, 1, 2, 4))


def test_a_broken_rendering_leaves_nothing(spoken, tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError("broken")

    monkeypatch.setattr("stage2_gaussian.render.render_head", fail)
    for name in ("frames", "head.mov"):
        with pytest.raises(RuntimeError):
            render_free_view(*spoken, tmp_path / name, poses="still", device=CPU, quiet=True)
    assert list(tmp_path.iterdir()) == []


def test_what_a_head_may_be_written_to(tmp_path):
    assert check_head_output(tmp_path / "head.MOV", None) and check_head_output(tmp_path / "head.webm", None)
    assert not check_head_output(tmp_path / "frames", None)
    (tmp_path / "frames").mkdir()
    assert not check_head_output(tmp_path / "frames", None)
    with pytest.raises(TalkheadError, match="head.mp4: a .mp4 file holds no transparency; name a .mov, a .webm or a folder"):
        check_head_output(tmp_path / "head.mp4", None)
    with pytest.raises(TalkheadError, match="folder of pictures, which holds no sound; leave --audio out"):
        check_head_output(tmp_path / "frames", tmp_path / "a.wav")
    (tmp_path / "frames" / "diary.txt").write_text("keep me")
    for place in (tmp_path / "frames", tmp_path / "frames" / "diary.txt"):
        with pytest.raises(TalkheadError, match="is no folder of rendered frames, so it will not be replaced"):
            check_head_output(place, None)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_synthesis_on_a_gpu_shows_what_it_shows_on_a_cpu(chain, tmp_path):
    frames = {}
    for device in ("cpu", "cuda"):
        made = synthesize(Avatar(chain / "me.avatar"), chain / "unheard.wav", tmp_path / f"{device}.mp4", device=device,
                          mark=False, quiet=True)
        assert made.frames == 50
        frames[device] = np.stack(list(read_video(tmp_path / f"{device}.mp4"))).astype(np.float32)
    error = np.square(frames["cpu"] - frames["cuda"]).mean((1, 2, 3))
    assert (10 * np.log10(255**2 / np.maximum(error, 1e-3))).min() > 38
