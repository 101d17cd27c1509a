import dataclasses

import numpy as np
import pytest

from shared.avatar import Avatar, create_from_clip
from shared.camera import pose_matrix
from shared.clip import Clip, ClipInfo, ExcludedSpan, Shot
from shared.errors import TalkheadError
from shared.face_check import TEMPLATE
from shared.landmarks import save_array, save_landmarks
from shared.media.video_io import GrayVideoWriter, VideoWriter, write_png
from shared.pose_range import PoseRange


@pytest.fixture
def clip(tmp_path):
    clip = Clip(tmp_path / "clip")
    with VideoWriter(clip.video, 16, 16) as writer:
        for k in range(10):
            writer.write(np.full((16, 16, 3), 20 * k, np.uint8))
    with GrayVideoWriter(clip.labels, 16, 16) as writer:
        for k in range(10):
            writer.write(np.full((16, 16), k % 5, np.uint8))
    save_landmarks(clip.landmarks, np.tile(TEMPLATE, (10, 1, 1)))
    save_landmarks(clip.neutral, TEMPLATE[None])
    save_array(clip.poses, pose_matrix(np.tile(np.diag([1.0, -1, -1]), (10, 1, 1)), np.arange(1, 11)[:, None] * [0, 0, 1.0]))
    save_array(clip.torso_motion, np.zeros((10, 4)))
    for k, name in enumerate(("background.png", "background_01.png")):
        write_png(clip.root / name, np.full((16, 16, 3), k, np.uint8))
    clip.save_info(ClipInfo("me", "me.mov", "00", 16, 16, 10, (20.0, 20.0, 8.0, 8.0), (0, 0, 16),
                            [Shot(0, 3, "background.png"), Shot(3, 10, "background_01.png")],
                            excluded=[ExcludedSpan(8, 9, "no face")], split={"train": [(0, 9)], "test": [(9, 10)]}))
    return clip


def test_clip_round_trip_and_splits(clip):
    again = Clip(clip.root)
    assert again.info == clip.info and again.info.shots[1].start == 3
    np.testing.assert_array_equal(again.split("train"), [0, 1, 2, 3, 4, 5, 6, 7])
    np.testing.assert_array_equal(again.shot_of_frames(), [0, 0, 0, 1, 1, 1, 1, 1, 1, 1])
    assert again.load_plates()[:, 0, 0, 0].tolist() == [0, 1]
    with pytest.raises(TalkheadError, match="no split 'val'; this clip has train, test"):
        again.split("val")


def test_random_access_equals_streaming(clip):
    streamed = np.stack(list(clip.frames()))
    np.testing.assert_array_equal(clip.read_frames(np.array([7, 2])), streamed[[7, 2]])
    np.testing.assert_array_equal(clip.read_labels(np.array([4, 1]))[:, 0, 0], [4, 1])
    np.testing.assert_array_equal(np.stack(list(clip.frames(3, 5))), streamed[3:5])


def test_alpha_is_optional_and_read_like_labels(clip):
    assert not clip.alpha.is_file()
    with GrayVideoWriter(clip.alpha, 16, 16) as writer:
        for k in range(10):
            writer.write(np.full((16, 16), 25 * k, np.uint8))
    np.testing.assert_array_equal(clip.read_alpha(np.array([7, 2]))[:, 0, 0], [175, 50])
    np.testing.assert_array_equal([image[0, 0] for image in clip.alpha_frames(8)], [200, 225])
    assert clip.seen_path(1) == clip.root / "background_01_seen.png"


def test_wrong_clips_are_refused(clip, tmp_path):
    with pytest.raises(TalkheadError, match="is not a clip folder"):
        Clip(tmp_path / "none").check()
    save_landmarks(clip.landmarks, np.tile(TEMPLATE, (9, 1, 1)))
    with pytest.raises(TalkheadError, match="expected 10 frames as in clip.json, found 9"):
        clip.load_landmarks()
    clip.save_info(dataclasses.replace(clip.info, format=99))
    with pytest.raises(TalkheadError, match="expected clip format 1, found 99"):
        clip.check()


def test_avatar_takes_the_longest_stretch_of_one_shot(clip, tmp_path):
    avatar = Avatar(tmp_path / "avatar")
    create_from_clip(avatar, clip)
    poses, torso = avatar.load_motion()
    np.testing.assert_array_equal(poses[:, 2, 3], [4, 5, 6, 7, 8])
    assert avatar.load_background()[0, 0, 0] == 1
    assert avatar.info.intrinsics == (20.0, 20.0, 8.0, 8.0)
    # every good frame of the split, 0 to 7, is in the range; an avatar that does not know it has that of its motion track
    assert avatar.pose_range() == avatar.info.pose_range == PoseRange.of(clip.load_poses()[:8])
    avatar.save_info(dataclasses.replace(avatar.info, pose_range=None))
    assert avatar.pose_range() == PoseRange.of(poses)
    with pytest.raises(TalkheadError, match="the avatar has no stage2 yet; run `talkhead stage2 train CLIP`"):
        avatar.require("stage2")
    with pytest.raises(TalkheadError, match="there is no avatar here"):
        Avatar(tmp_path / "none").require("stage1")
