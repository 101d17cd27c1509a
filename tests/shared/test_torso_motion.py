"""Torso motion on disk: similarities, and beside them a warp or none; on its way from clip to avatar and avatar file."""

import numpy as np
import pytest

from shared.avatar import WARP, Avatar, create_from_clip, layers_source
from shared.errors import TalkheadError
from shared.torso_motion import grid_of, load_torso_motion, save_torso_motion, warp_file
from talkhead.inspect import describe
from tests.shared.still_clip import make_still_clip

FRAMES = 6
PLAIN = np.tile(np.float32([1, 2, 0.1, 1]), (FRAMES, 1))
WARPED = np.concatenate([PLAIN, np.random.default_rng(0).normal(size=(FRAMES, 18)).astype(np.float32)], 1)


@pytest.fixture
def clip(tmp_path):
    clip = make_still_clip(tmp_path / "clip", FRAMES, (0, FRAMES))
    save_torso_motion(clip.torso_motion, WARPED)
    return clip


def test_what_is_written_is_read_and_similarities_alone_are_as_before(tmp_path):
    path = tmp_path / "torso.npy"
    save_torso_motion(path, WARPED)
    assert np.load(path).shape == (FRAMES, 4) and np.load(warp_file(path)).shape == (FRAMES, 3, 3, 2)
    np.testing.assert_array_equal(load_torso_motion(path), WARPED)
    assert list(describe(warp_file(path))) == ["torso warp (6, 3, 3, 2), 0.24 s at 25 fps: valid"]
    save_torso_motion(path, PLAIN)
    assert not warp_file(path).exists()
    np.testing.assert_array_equal(load_torso_motion(path), PLAIN)


@pytest.mark.parametrize(("warp", "said"), [
    (np.zeros((FRAMES, 3, 4, 2)), r"expected shape \(T, n, n, 2\) with n from 3 to 32, found \(6, 3, 4, 2\)"),
    (np.zeros((FRAMES, 2, 2, 2)), r"expected shape .* n from 3 to 32, found \(6, 2, 2, 2\)"),
    (np.zeros(FRAMES), r"expected shape .* n from 3 to 32, found \(6,\)"),
    (np.zeros((FRAMES + 1, 3, 3, 2)), "expected 6 frames as in torso.npy, found 7"),
    (np.full((FRAMES, 3, 3, 2), np.nan), "expected finite values, found nan"),
])
def test_wrong_warps_are_refused(tmp_path, warp, said):
    save_torso_motion(tmp_path / "torso.npy", PLAIN)
    np.save(tmp_path / "torso_warp.npy", warp)
    with pytest.raises(TalkheadError, match=f"torso_warp.npy: {said}"):
        load_torso_motion(tmp_path / "torso.npy")


def test_columns():
    assert [grid_of(columns) for columns in (4, 22, 102)] == [0, 3, 7]
    for columns in (3, 5, 6, 12, 23, 4 + 2 * 33**2):
        with pytest.raises(TalkheadError, match=f"found {columns}"):
            grid_of(columns)


def test_a_clip_is_known_by_its_warp_too_but_poses_are_not_fitted_to_it(clip):
    np.testing.assert_array_equal(clip.load_torso_motion(), WARPED)
    clip.save_fitted_poses(clip.load_poses(), "head")
    before = clip.fingerprint()
    clip.torso_warp.unlink()
    np.testing.assert_array_equal(clip.load_torso_motion(), PLAIN)
    assert clip.fingerprint() != before and clip.load_fitted_poses("head") is not None


def test_the_warp_goes_into_the_avatar_and_out_of_it_again(clip, tmp_path):
    avatar = Avatar(tmp_path / "me.avatar")
    create_from_clip(avatar, clip)
    np.testing.assert_array_equal(avatar.load_motion()[1], WARPED)
    assert avatar.edited() == [] and layers_source(avatar.info).split()[-1] == avatar.info.files[WARP]
    clip.torso_warp.unlink()
    create_from_clip(avatar, clip)
    np.testing.assert_array_equal(avatar.load_motion()[1], PLAIN)
    assert not avatar.warp.exists() and WARP not in avatar.info.files
    assert len(layers_source(avatar.info).split()) == 2  # as in avatars from before


def test_a_warp_that_was_edited_away_or_added_counts_as_an_edit(clip, tmp_path):
    avatar = Avatar(tmp_path / "me.avatar")
    create_from_clip(avatar, clip)
    avatar.warp.unlink()
    assert avatar.edited() == [avatar.warp]
    create_from_clip(avatar, clip)
    assert not avatar.warp.exists() and avatar.edited() == [avatar.warp], "a further training leaves the edit alone"
    avatar.accept_edits()
    assert avatar.edited() == [] and WARP not in avatar.info.files
    save_torso_motion(avatar.motion, WARPED)
    assert avatar.edited() == [avatar.warp]
