"""Gaze on disk, on its way from clip to avatar and avatar file, and seeded gaze."""

import numpy as np
import pytest

from shared.avatar import GAZE, Avatar, create_from_clip, layers_source
from shared.avatar_file import MEMBERS
from shared.errors import TalkheadError
from shared.fixations import BLOCK, LONGEST, SHORTEST, Fixations
from shared.gaze import load_gaze, save_gaze
from shared.landmarks import FPS
from talkhead.inspect import describe
from tests.shared.still_clip import make_still_clip

FRAMES = 6
LOOKS = np.random.default_rng(0).normal(0, 0.1, (FRAMES, 2)).astype(np.float32)


@pytest.fixture
def clip(tmp_path):
    clip = make_still_clip(tmp_path / "clip", FRAMES, (1, FRAMES))
    save_gaze(clip.gaze, LOOKS)
    return clip


@pytest.mark.parametrize(("gaze", "said"), [
    (np.zeros((FRAMES, 3)), r"expected shape (T, 2) float32 with T >= 1, found (6, 3)"),
    (np.full((FRAMES, 2), np.nan), "expected finite values, found nan at (0, 0)"),
    (np.array([[0.1, 0], [0.1, -12.5]]),
     "a gaze is in eye widths from the middle of the eye, -1 to 1, found -12.5 in row 1"),
])
def test_wrong_gazes_are_refused(tmp_path, gaze, said):
    np.save(tmp_path / "gaze.npy", gaze)
    with pytest.raises(TalkheadError) as refused:
        load_gaze(tmp_path / "gaze.npy")
    assert str(refused.value) == f"{tmp_path / 'gaze.npy'}: {said}"


def test_a_clip_is_known_by_its_gaze_and_may_lack_it(clip):
    np.testing.assert_array_equal(clip.load_gaze(), LOOKS)
    assert list(describe(clip.gaze)) == ["gaze (6, 2), 0.24 s at 25 fps: valid"]
    clip.save_fitted_poses(clip.load_poses(), "head")
    before = clip.fingerprint()
    save_gaze(clip.gaze, LOOKS[:4])
    with pytest.raises(TalkheadError) as refused:
        clip.load_gaze()
    assert str(refused.value) == f"{clip.gaze}: expected 6 frames, as many as there are poses, found 4"
    save_gaze(clip.gaze, np.full((FRAMES, 2), np.nan))
    assert not clip.gaze.exists() and np.isnan(clip.load_gaze()).all() and clip.load_gaze().shape == (FRAMES, 2)
    assert clip.fingerprint() != before and clip.load_fitted_poses("head") is None, "poses were fitted with this gaze"


def test_the_gaze_goes_into_the_avatar_and_out_of_it_again(clip, tmp_path):
    avatar = Avatar(tmp_path / "me.avatar")
    create_from_clip(avatar, clip)
    np.testing.assert_array_equal(avatar.load_gaze(), LOOKS[1:])
    assert avatar.edited() == [] and GAZE in avatar.info.files and avatar.gaze.name in MEMBERS
    drawn = layers_source(avatar.info)
    clip.gaze.unlink()
    create_from_clip(avatar, clip)
    assert not avatar.gaze.exists() and GAZE not in avatar.info.files and np.isnan(avatar.load_gaze()).all()
    assert layers_source(avatar.info) == drawn, "a stored torso does not depend on it"


def test_an_edited_gaze_stays_until_it_is_taken_over(clip, tmp_path):
    avatar = Avatar(tmp_path / "me.avatar")
    create_from_clip(avatar, clip)
    save_gaze(avatar.gaze, LOOKS[:3])
    assert avatar.edited() == [avatar.gaze]
    with pytest.raises(TalkheadError, match="motion_gaze.npy: expected 5 frames, as many as there are poses, found 3"):
        avatar.accept_edits()
    save_gaze(avatar.gaze, LOOKS[:5])
    create_from_clip(avatar, clip)
    np.testing.assert_array_equal(avatar.load_gaze(), LOOKS[:5])
    avatar.accept_edits()
    assert avatar.edited() == []
    avatar.gaze.unlink()
    assert avatar.edited() == [avatar.gaze]


def test_seeded_gaze_is_the_same_however_it_is_asked_for():
    places = np.random.default_rng(1).normal(0, 0.1, (50, 2))
    whole = Fixations(places, 4).at(0, 2 * BLOCK + 50)
    assert whole.dtype == np.float32 and whole.shape == (2 * BLOCK + 50, 2)
    again, at = Fixations(places, 4), 2 * BLOCK + 50
    for start in reversed(range(0, at, 7)):
        stop = min(start + 7, at)
        np.testing.assert_array_equal(again.at(start, stop), whole[start:stop])
    assert not np.array_equal(Fixations(places, 5).at(0, 100), whole[:100])
    far = again.at(10**8, 10**8 + 25)
    assert len(far) == 25 and np.isfinite(far).all()


def test_seeded_gaze_fixates_jumps_and_stays_within_its_places():
    places = np.random.default_rng(2).uniform(-0.2, 0.2, (40, 2)).astype(np.float32)
    centre = np.median(places, axis=0)
    looks = Fixations(places).at(0, 20_000)
    steps = np.linalg.norm(np.diff(looks, axis=0), axis=1)
    saccades = np.flatnonzero((steps[1:] > 0) & (steps[:-1] == 0))
    lasted = np.diff(saccades) / FPS
    assert lasted.min() >= SHORTEST and np.quantile(lasted, 0.95) <= 2 * LONGEST  # two at the centre look like one
    assert 1.0 < lasted.mean() < 2.5 and (steps == 0).mean() > 0.85
    moving = np.diff(np.flatnonzero(np.diff(np.append(0, np.append(steps > 0, 0))))).reshape(-1)[::2]
    assert set(moving.tolist()) == {1, 2, 3}
    assert 0.4 < (np.linalg.norm(looks - centre, axis=1) < 1e-6).mean() < 0.6
    assert (looks >= places.min(0)).all() and (looks <= places.max(0)).all()


def test_no_gaze_stays_no_gaze():
    assert np.isnan(Fixations(np.full((9, 2), np.nan)).at(990, 1010)).all()
