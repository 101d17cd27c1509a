"""Registration of every frame to the mean picture of the head: known offsets come back, hands and light do not matter."""

import numpy as np
import pytest

from process_data.actor.actor import actor_landmarks, actor_motion, default_intrinsics, render_actor
from process_data.actor.identity import make_identity
from process_data.actor.proportions import neutral_landmarks
from process_data.tracking import photometric
from shared.camera import project, rotation_from_rotvec

SIZE, FRAMES, EVERY = 256, 12, 20
CAMERA = default_intrinsics(SIZE)


@pytest.fixture(scope="module")
def film() -> tuple[list[np.ndarray], np.ndarray, np.ndarray, np.ndarray]:
    """Frames of an actor, coarse mattes (n,h,w), true poses (n,4,4) and the neutral (68,3)."""
    chosen = np.s_[: FRAMES * EVERY : EVERY]
    landmarks, (poses, torso) = actor_landmarks("train", 1)[1][chosen], actor_motion(FRAMES * EVERY, SIZE, 1)
    drawn = list(render_actor(landmarks, poses[chosen], torso[chosen], size=SIZE, seed=1))
    mattes = np.stack([(labels > 0) * np.uint8(255) for _, labels in drawn])
    return [picture for picture, _ in drawn], mattes, poses[chosen].astype(float), neutral_landmarks(make_identity(1))


def moved(poses: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Poses with errors such as tracking has: half a degree, a millimetre; none on average."""
    turns, shifts = rng.normal(0, 0.009, (len(poses), 3)), rng.normal(0, 0.001, (len(poses), 3))
    out = poses.copy()
    out[:, :3, :3] = rotation_from_rotvec(turns - turns.mean(0)) @ poses[:, :3, :3]
    out[:, :3, 3] += shifts - shifts.mean(0)
    return out


def apart(a: np.ndarray, b: np.ndarray, points: np.ndarray) -> float:
    """Root mean square distance in pixels of the points at two sets of poses, without what all frames have in common."""
    difference = project(points[None], a, CAMERA) - project(points[None], b, CAMERA)
    return float(np.sqrt(((difference - difference.mean(0)) ** 2).sum(-1).mean()))


def registered(frames, mattes, poses, neutral) -> tuple[photometric.HeadPicture, np.ndarray]:
    levels = [photometric.levels_of(frame) for frame in frames]
    head = photometric.head_picture(levels, mattes, poses, neutral, CAMERA)
    return head, np.stack([photometric.fit_pose(level, head, pose, CAMERA) for level, pose in zip(levels, poses)])


def test_errors_of_the_poses_shrink(film):
    frames, mattes, true, neutral = film
    given = moved(true, np.random.default_rng(0))
    head, found = registered(frames, mattes, given, neutral)
    assert 2000 < len(head.points) <= photometric.MOST_POINTS
    before, after = (apart(poses, true, head.points[::50]) for poses in (given, found))
    assert before > 0.8 and after < 0.6 * before


def test_a_frame_in_other_light_with_a_hand_before_it_is_found_as_well(film):
    frames, mattes, true, neutral = film
    levels = [photometric.levels_of(frame) for frame in frames]
    head = photometric.head_picture(levels, mattes, true, neutral, CAMERA)
    given = moved(true, np.random.default_rng(1))
    plain = photometric.fit_pose(levels[5], head, given[5], CAMERA)
    changed = np.clip(0.8 * frames[5] + 20, 0, 255).astype(np.uint8)
    changed[150:220, 140:200] = (190, 140, 120)
    found = photometric.fit_pose(photometric.levels_of(changed), head, given[5], CAMERA)
    points = head.points[::50]
    assert np.abs(project(points, found, CAMERA) - project(points, plain, CAMERA)).mean() < 0.3


def test_a_picture_of_something_else_leaves_the_pose_as_it_was(film):
    frames, mattes, true, neutral = film
    head = photometric.head_picture([photometric.levels_of(frame) for frame in frames], mattes, true, neutral, CAMERA)
    far = true[3].copy()
    far[0, 3] += 0.4  # the head is out of the picture
    assert np.array_equal(photometric.fit_pose(photometric.levels_of(frames[3]), head, far, CAMERA), far)


def test_lids_count_less_than_the_nose_and_the_mouth_not_at_all(film):
    frames, mattes, true, neutral = film
    head = photometric.head_picture([photometric.levels_of(frame) for frame in frames], mattes, true, neutral, CAMERA)

    def near(landmarks: list[int]) -> np.ndarray:
        return head.variance[np.linalg.norm(head.points[:, None] - neutral[landmarks], axis=2).min(1) < 0.006]

    assert np.sqrt(near([37, 38, 43, 44]).mean()) > 1.3 * np.sqrt(near([27, 28, 29]).mean())
    assert len(near([57, 58, 66])) == 0
