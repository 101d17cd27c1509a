"""Clips and avatars know what is in them: caches, fitted poses and parts are bound to bytes, not to names or times."""

import dataclasses
import os
import re
import shutil

import numpy as np
import pytest

from shared.avatar import Avatar, add_layers, add_part, create_from_clip, refined_poses, refuse_other_clip
from shared.camera import pose_matrix
from shared.clip import Clip, ClipInfo, ExcludedSpan, Shot
from shared.errors import TalkheadError, TalkheadWarning
from shared.face_check import TEMPLATE
from shared.files import read_json, sha256, write_json
from shared.landmarks import save_array, save_landmarks
from shared.media.video_io import VideoWriter, write_png
from talkhead.synthesis import Renderer

LENGTH = 6


def pose(distance):
    """(1, 4, 4) head → camera: upright, facing the camera."""
    return pose_matrix(np.diag([1.0, -1, -1]), np.array([0, 0, distance]))[None].astype(np.float32)


def make_clip(root, grey=100, name="me"):
    clip = Clip(root)
    with VideoWriter(clip.video, 16, 16) as writer:
        for k in range(LENGTH):
            writer.write(np.full((16, 16, 3), grey + k, np.uint8))
    clip.audio.write_bytes(b"sound")
    clip.labels.write_bytes(b"labels")
    save_landmarks(clip.landmarks, np.repeat(TEMPLATE[None], LENGTH, 0))
    save_landmarks(clip.neutral, TEMPLATE[None])
    save_array(clip.poses, np.repeat(pose(0.8), LENGTH, 0))
    save_array(clip.torso_motion, np.zeros((LENGTH, 4)))
    write_png(clip.background, np.full((16, 16, 3), grey, np.uint8))
    info = ClipInfo(name, "me.mov", "00", 16, 16, LENGTH, (20.0, 20.0, 8.0, 8.0), (0, 0, 16), [Shot(0, LENGTH, "background.png")],
                    split={"train": [(0, 5)], "test": [(5, 6)]})
    clip.save_info(info)
    clip.save_info(dataclasses.replace(info, content=clip.content()))
    return clip


@pytest.fixture
def clip(tmp_path):
    return make_clip(tmp_path / "clip")


@pytest.fixture
def other(tmp_path):
    return make_clip(tmp_path / "other", grey=150, name="you")


def train(avatar, clip, part, content=b"weights"):
    """What a training leaves, without training."""
    avatar.work(part).parent.mkdir(parents=True, exist_ok=True)
    avatar.work(part).write_bytes(content)
    create_from_clip(avatar, clip, part=part)


def test_decoded_frames_belong_to_the_bytes_of_the_video_not_to_its_time_stamp(clip, other):
    first = clip.read_frames(np.array([0]))[0, 0, 0, 0]
    stamp = os.stat(clip.video)
    shutil.copyfile(other.video, clip.video)
    os.utime(clip.video, (stamp.st_atime, stamp.st_mtime - 1000))  # older than the cache
    assert abs(int(Clip(clip.root).read_frames(np.array([0]))[0, 0, 0, 0]) - 150) < 5 and abs(int(first) - 100) < 5
    assert len(list(clip.cache.iterdir())) == 1  # what was decoded of the old video is gone


def test_the_fingerprint_is_of_all_that_training_reads(clip):
    before = clip.fingerprint()
    assert Clip(clip.root).fingerprint() == before and clip.changed() == []
    rows = np.load(clip.landmarks)
    rows[3, 2, 1] += 1e-5
    stamp = os.stat(clip.landmarks)
    save_landmarks(clip.landmarks, rows)
    os.utime(clip.landmarks, (stamp.st_atime, stamp.st_mtime))
    edited = clip.fingerprint()
    assert edited != before and clip.changed() == ["landmarks.npy"]
    for change in ({"split": {"train": [(0, 4)]}}, {"excluded": [ExcludedSpan(1, 2, "away")]},
                   {"intrinsics": (21.0, 20.0, 8.0, 8.0)}):
        clip.save_info(dataclasses.replace(clip.info, **change))
        assert clip.fingerprint() != edited
        edited = clip.fingerprint()
    for name in ("audio.wav", "labels.mkv", "background.png"):
        (clip.root / name).write_bytes(b"other")
        assert clip.fingerprint() != edited
        edited = clip.fingerprint()


def test_a_clip_from_before_has_no_record_of_its_content(clip):
    values = read_json(clip.json)
    del values["content"]
    write_json(clip.json, values)
    again = Clip(clip.root)
    assert again.info.content == {} and again.changed() == [] and again.fingerprint() == clip.fingerprint()


def test_fitted_poses_are_of_one_head_and_one_content(clip, tmp_path):
    avatar = Avatar(tmp_path / "me.avatar")
    fitted = np.repeat(pose(0.9), LENGTH, 0)
    train(avatar, clip, "stage2")
    assert np.array_equal(refined_poses(avatar, clip), clip.load_poses())
    clip.save_fitted_poses(fitted, sha256(avatar.stage2))
    assert np.array_equal(refined_poses(avatar, clip), fitted)
    create_from_clip(avatar, clip)
    assert np.array_equal(avatar.load_motion()[0], fitted[:5])
    train(avatar, clip, "torso")
    clip.audio.write_bytes(b"other sound")  # to which no pose was fitted
    assert np.array_equal(refined_poses(avatar, clip), fitted)
    with pytest.warns(TalkheadWarning, match="poses_fitted.npy is not used, since it was fitted with another head"):
        train(avatar, clip, "stage2", b"another head")
    with pytest.warns(TalkheadWarning, match="the tracked poses are"):
        assert np.array_equal(refined_poses(avatar, clip), clip.load_poses())
    clip.save_fitted_poses(fitted, sha256(avatar.stage2))
    save_array(clip.poses, np.repeat(pose(1.0), LENGTH, 0))
    with pytest.warns(TalkheadWarning, match="or the clip has changed since"):
        assert np.array_equal(refined_poses(avatar, clip), clip.load_poses())


def test_fitted_poses_of_another_length_are_no_dead_end(clip, tmp_path):
    avatar = Avatar(tmp_path / "me.avatar")
    save_array(clip.fitted_poses, np.repeat(pose(0.8), 580, 0))  # as an older talkhead left them
    values = read_json(clip.json)
    del values["content"]
    write_json(clip.json, values)
    with pytest.warns(TalkheadWarning, match="is not used"):
        train(avatar, Clip(clip.root), "stage2")
    assert len(avatar.load_motion()[0]) == 5


def test_a_damaged_or_swapped_part_is_refused(clip, tmp_path):
    avatar = Avatar(tmp_path / "me.avatar")
    for part in ("stage1", "stage2", "torso"):
        train(avatar, clip, part, part.encode() * 100)
    Avatar(avatar.root).require("stage1", "stage2", "torso")
    whole = avatar.stage2.read_bytes()
    for damaged in (whole + bytes(8), whole[:-1], b"x" + whole[1:], avatar.stage1.read_bytes()):
        avatar.stage2.write_bytes(damaged)
        with pytest.raises(TalkheadError, match="stage2.safetensors is not the file that training wrote: its bytes were damaged "
                                                "or replaced; copy the avatar again, or run `talkhead stage2 train CLIP"):
            Avatar(avatar.root).require("stage2")
        Avatar(avatar.root).require("stage1", "torso")  # what is not used is not read
    avatar.stage2.write_bytes(whole)
    Avatar(avatar.root).require("stage2")


def test_a_damaged_or_swapped_stored_torso_is_refused_where_it_is_used(clip, tmp_path):
    avatar = Avatar(tmp_path / "me.avatar")
    for part in ("stage1", "stage2", "torso"):
        train(avatar, clip, part, part.encode() * 100)
    work = avatar.work("layers").with_name(avatar.layers.name)
    work.parent.mkdir(parents=True)
    work.write_bytes(b"layers" * 100)
    add_layers(avatar)
    Avatar(avatar.root).verify("layers")
    avatar.layers.write_bytes(b"x" + avatar.layers.read_bytes()[1:])
    told = re.escape(f"{avatar.layers} is not the file that training wrote: its bytes were damaged or replaced; copy the avatar "
                     f"again, or run `talkhead torso layers {avatar.root}`")
    with pytest.raises(TalkheadError, match=f"^{told}$"):
        Avatar(avatar.root).verify("layers")
    renderer = Renderer.__new__(Renderer)
    renderer.avatar = Avatar(avatar.root)
    with pytest.raises(TalkheadError, match=f"^{told}$"):
        _ = renderer.layers
    train(avatar, clip, "torso", b"another")
    renderer.avatar = Avatar(avatar.root)
    assert renderer.layers is None  # of another torso it would not be used anyway


def test_parts_of_different_clips_are_refused(clip, other, tmp_path):
    avatar = Avatar(tmp_path / "me.avatar")
    train(avatar, clip, "stage1")
    refuse_other_clip(avatar, clip, "stage2", overwrite=False)
    with pytest.raises(TalkheadError, match=r"me.avatar: its stage1 was trained on another clip than .*other, on 'me'; name "
                                            r"another avatar with --avatar, or add --overwrite"):
        refuse_other_clip(avatar, other, "stage2", overwrite=False)
    refuse_other_clip(avatar, other, "stage2", overwrite=True)
    refuse_other_clip(avatar, other, "stage1", overwrite=False)  # it would be of one clip again
    train(avatar, other, "stage2")
    avatar.require("stage1")
    with pytest.raises(TalkheadError, match=r"me.avatar: its stage1 was trained on the clip 'me', its stage2 on another clip, "
                                            r"'you'; train both on one: `talkhead stage2 train CLIP --avatar .* --overwrite`"):
        avatar.require("stage1", "stage2")
    with pytest.raises(TalkheadError, match="run `talkhead stage2 train .*clip --avatar .* --overwrite` first"):
        refuse_other_clip(avatar, clip, "torso", overwrite=True)
    train(avatar, clip, "stage2")
    avatar.require("stage1", "stage2")


def test_edited_landmarks_and_another_split_leave_the_parts_together(clip, tmp_path):
    avatar = Avatar(tmp_path / "me.avatar")
    train(avatar, clip, "stage1")
    save_landmarks(clip.landmarks, np.repeat(TEMPLATE[None] + 0.001, LENGTH, 0))
    clip.save_info(dataclasses.replace(clip.info, split={"train": [(0, 4)]}))
    refuse_other_clip(avatar, clip, "stage2", overwrite=False)
    train(avatar, clip, "stage2")
    avatar.require("stage1", "stage2")


def test_an_edited_background_is_shown_with_a_warning_until_it_is_accepted(clip, tmp_path):
    avatar = Avatar(tmp_path / "me.avatar")
    train(avatar, clip, "stage1")
    write_png(avatar.background, np.zeros((16, 16, 3), np.uint8))
    with pytest.warns(TalkheadWarning, match="background.png is not as training wrote it; if the edit is yours, `talkhead "
                                             "inspect .*me.avatar --accept` takes it over"):
        Avatar(avatar.root).require("stage1")
    add = avatar.work("torso")
    add.parent.mkdir(parents=True)
    add.write_bytes(b"torso")
    add_part(avatar, clip, "torso")
    train(avatar, clip, "stage2")
    assert avatar.load_background().max() == 0  # a training of the same clip leaves the edit alone
    assert Avatar(avatar.root).accept_edits() == [avatar.background]
    assert Avatar(avatar.root).edited() == []
    Avatar(avatar.root).require("stage1", "stage2", "torso")


def test_avatars_from_before_still_open(clip, tmp_path):
    avatar = Avatar(tmp_path / "me.avatar")
    train(avatar, clip, "stage1")
    values = read_json(avatar.json)
    del values["parts"], values["files"]
    write_json(avatar.json, values)
    avatar.stage1.write_bytes(b"anything")
    old = Avatar(avatar.root)
    old.require("stage1")
    assert old.edited() == []
    refuse_other_clip(old, clip, "stage2", overwrite=False)
    train(old, clip, "stage2")
    assert set(old.info.parts) == {"stage2"}


def test_the_same_labels_make_the_same_file(tmp_path):
    from shared.media.video_io import GrayVideoWriter, join_gray_videos

    for name in ("a", "b"):
        with GrayVideoWriter(tmp_path / f"{name}.mkv", 16, 16) as writer:
            for k in range(3):
                writer.write(np.full((16, 16), k, np.uint8))
        join_gray_videos([tmp_path / f"{name}.mkv"] * 2, tmp_path / f"{name}{name}.mkv")
    assert sha256(tmp_path / "a.mkv") == sha256(tmp_path / "b.mkv")
    assert sha256(tmp_path / "aa.mkv") == sha256(tmp_path / "bb.mkv")
