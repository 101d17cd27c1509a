"""Which head poses a clip shows, and poses held to them."""

import dataclasses

import numpy as np
import pytest

from shared.avatar import AvatarInfo
from shared.camera import euler_degrees, pose_matrix, rotation_from_euler
from shared.config import config_from_dict
from shared.errors import TalkheadError
from shared.pose_range import CLOSEST, DEPTH_MARGIN, DEPTH_ROOM, MARGIN, PoseRange, softly


def heads(angles, depth=0.8):
    """Poses (T,4,4) of yaw, pitch and roll (T,3) in degrees, a little beside the camera's axis."""
    places = np.array([0.05, 0.02, 1.0]) * np.broadcast_to(depth, len(angles))[:, None]
    return pose_matrix(rotation_from_euler(np.asarray(angles, float)), places)


RANGE = PoseRange((4.0, -6.0, 1.0), (-18.0, -5.0, -3.0), (12.0, 8.0, 4.0), 0.7, 0.9)


def test_angles_and_rotations_are_inverse():
    angles = np.random.default_rng(0).uniform((-170, -80, -170), (170, 80, 170), (200, 3))
    np.testing.assert_allclose(euler_degrees(rotation_from_euler(angles)), angles, atol=1e-9)


def test_the_range_of_a_clip_is_that_of_all_but_its_rarest_frames():
    rng = np.random.default_rng(1)
    angles = rng.uniform((-10, -4, -2), (20, 6, 3), (2000, 3)) + [2, 5, 0]
    angles[7], angles[900] = (75, 5, 0), (2, 60, 0)  # mistracked
    found = PoseRange.of(heads(angles, rng.uniform(0.7, 0.9, 2000)))
    np.testing.assert_allclose(found.rest, angles.mean(0), atol=1e-3)
    np.testing.assert_allclose(np.add(found.rest, found.low), [-8, 1, -2], atol=0.4)
    np.testing.assert_allclose(np.add(found.rest, found.high), [22, 11, 3], atol=0.4)
    assert (found.nearest, found.farthest) == (pytest.approx(0.7, abs=0.003), pytest.approx(0.9, abs=0.003))
    one = PoseRange.of(heads([[3, 2, 1]]))
    np.testing.assert_allclose([one.low, one.high], 0, atol=1e-9)


def test_poses_within_the_range_stay_to_the_bit():
    rng = np.random.default_rng(2)
    inside = heads(rng.uniform(RANGE.low, RANGE.high, (300, 3)) + RANGE.rest, rng.uniform(0.5, 1.3, 300))
    out, warnings = RANGE.limited(inside)
    assert np.array_equal(out, inside) and out is not inside and warnings == []


def test_poses_beyond_saturate_smoothly_and_never_pass_the_margin():
    """Swept through one angle at a time: monotone, without a jump or a kink, at most MARGIN beyond; the others do not change."""
    sweep = np.linspace(-75, 75, 3001)
    for axis in range(3):
        angles = np.zeros((len(sweep), 3)) + [3.0, 2.0, -1.0]
        angles[:, axis] = sweep
        out, _ = RANGE.limited(heads(angles + RANGE.rest))
        kept = RANGE.away(out)
        step = np.diff(kept[:, axis])
        assert step.min() > -1e-4 and step.max() < 0.0501
        assert np.abs(np.diff(step)).max() < 0.002
        assert kept[:, axis].min() >= RANGE.low[axis] - MARGIN - 1e-4 and kept[:, axis].max() <= RANGE.high[axis] + MARGIN + 1e-4
        assert kept[0, axis] < RANGE.low[axis] - 0.99 * MARGIN and kept[-1, axis] > RANGE.high[axis] + 0.99 * MARGIN
        others = [k for k in range(3) if k != axis]
        np.testing.assert_allclose(kept[:, others], angles[:, others], atol=1e-3)


def test_only_extreme_distances_are_changed_and_the_head_stays_in_its_place_of_the_picture():
    depth = np.array([0.05, 0.3, 0.47, 0.8, 1.34, 2.0, 30.0])
    poses = heads(np.zeros((7, 3)) + RANGE.rest, depth)
    out, warnings = RANGE.limited(poses)
    np.testing.assert_array_equal(out[2:5], poses[2:5])
    assert 0.7 / DEPTH_ROOM / DEPTH_MARGIN - 1e-6 < out[0, 2, 3] < out[1, 2, 3] < 0.7 / DEPTH_ROOM
    assert 0.9 * DEPTH_ROOM < out[5, 2, 3] <= out[6, 2, 3] < 0.9 * DEPTH_ROOM * DEPTH_MARGIN + 1e-6
    np.testing.assert_allclose(out[:, :2, 3] / out[:, 2:3, 3], poses[:, :2, 3] / poses[:, 2:3, 3], rtol=1e-5)
    np.testing.assert_array_equal(out[:, :3, :3], poses[:, :3, :3])
    assert warnings == ["the poses bring the head as far as 30.00 m, the clip shows 0.90 m: 4 of 7 frames were moved to at most "
                        "1.49 m; --no-pose-limit keeps them"]
    assert RANGE.limited(poses[:3])[1] == ["the poses bring the head as near as 0.05 m, the clip shows 0.70 m: 2 of 3 frames "
                                           "were moved to at least 0.42 m; --no-pose-limit keeps them"]
    behind = poses[:1].copy()
    behind[0, 2, 3] = -1
    assert np.isfinite(RANGE.limited(behind)[0]).all() and CLOSEST > 0


@pytest.mark.parametrize("angles, told", [
    ((-41, 0, 0), "turn the head up to 41° to the left, the clip shows 18°: 2 of 4 frames were turned back to at most 20°"),
    ((30, 0, 0), "turn the head up to 30° to the right, the clip shows 12°: 2 of 4 frames were turned back to at most 14°"),
    ((0, -25, 0), "raise the head up to 25°, the clip shows 5°: 2 of 4 frames were turned back to at most 7°"),
    ((0, 25, 0), "lower the head up to 25°, the clip shows 8°: 2 of 4 frames were turned back to at most 10°"),
    ((0, 0, -20), "tilt the head up to 20° to the right, the clip shows 3°: 2 of 4 frames were turned back to at most 5°"),
    ((15, 0, 40), "tilt the head up to 40° to the left, the clip shows 4°: 2 of 4 frames were turned back to at most 6°"),
    ((12.5, 0, 0), None)])
def test_one_sentence_tells_the_worst_of_what_was_changed(angles, told):
    poses = heads(np.array([(0, 0, 0), angles, (1, 1, 1), angles], float) + RANGE.rest)
    assert RANGE.limited(poses)[1] == ([f"the poses {told}; --no-pose-limit keeps them"] if told else [])


def test_left_is_the_persons_own():
    """A head turned to its left looks to the right of the picture; one that nods down looks down, y growing."""
    turned = heads([[-20, 0, 0], [0, 20, 0]])[:, :3, :3] @ [0, 0, 1.0]  # the nose's direction
    assert turned[0, 0] > 0.3 and turned[1, 1] > 0.3
    tilted = heads([[0, 0, 20]])[0, :3, :3] @ [1.0, 0, 0]  # the person's left ear goes down
    assert tilted[1] > 0.3


def test_the_range_is_kept_in_a_manifest_and_nonsense_is_refused():
    info = AvatarInfo("me", 64, 64, (160.0, 160.0, 32.0, 32.0), 25, pose_range=RANGE)
    assert config_from_dict(AvatarInfo, dataclasses.asdict(info), "avatar.json") == info
    assert str(RANGE) == "turns 18° left and 12° right, 5° up and 8° down, tilts 4° left and 3° right, 0.70 to 0.90 m away"
    for wrong in ({"low": (1.0, -5.0, -3.0)}, {"nearest": 0.0}, {"farthest": 0.1}):
        values = dataclasses.asdict(info) | {"pose_range": dataclasses.asdict(RANGE) | wrong}
        with pytest.raises(TalkheadError, match="avatar.json: pose_range: a pose range goes from low ≤ 0 to high ≥ 0 and from"):
            config_from_dict(AvatarInfo, values, "avatar.json")


def test_soft_limits_of_one_value():
    values = np.linspace(-9, 9, 1801)
    soft = softly(values, np.float64(-2), np.float64(3), 0.5)
    inside = (values >= -2) & (values <= 3)
    np.testing.assert_array_equal(soft[inside], values[inside])
    assert (np.diff(soft) >= 0).all() and soft.min() >= -2.5 and soft.max() <= 3.5
