"""The tracker on other pictures of a clip's person: it gives back what a detector without error sees."""

from types import SimpleNamespace

import numpy as np
import pytest

from process_data.detection.base import Scheme
from process_data.retrack import KnownHead, depth_axes, known_head, retrack
from shared.camera import pose_matrix, project, rotation_from_rotvec
from shared.face_check import TEMPLATE
from shared.landmarks import LIPS_INNER, NOSE, lip_opening
from shared.metrics import correlation

INTRINSICS = (1126.4, 1126.4, 256.0, 256.0)
FRAMES = 40
RIGID = np.array([*NOSE, 36, 39, 42, 45, 0, 16, 17, 26])
TURN = rotation_from_rotvec(np.array([0, 0.03, 0]))


class ExactDetector:
    """Sees the landmarks (T,68,3) at poses (T,4,4) in frames whose first pixel is their number, and a face far away."""

    scheme = Scheme(68, np.arange(68), RIGID, np.ones(len(RIGID)), None)

    def __init__(self, landmarks, poses, blind=()):
        pixels = project(landmarks, poses, INTRINSICS)
        depth = (landmarks @ poses[:, :3, :3].swapaxes(1, 2))[..., 2:] * INTRINSICS[0] / poses[:, None, 2:3, 3]
        self.faces, self.blind, self.restarts = np.concatenate([pixels, depth], 2).astype(np.float32), blind, 0

    def restart(self):
        self.restarts += 1

    def everyone(self, frame):
        t = int(frame[0, 0, 0])
        return self.faces[:0] if t in self.blind else np.stack([self.faces[t] + [200, 0, 0], self.faces[t]])


@pytest.fixture
def head():
    """A head that nods while its lips open, each landmark at a constant depth along an axis turned by 0.03 rad."""
    time = np.arange(FRAMES)
    moving = np.repeat(TEMPLATE[None].astype(float), FRAMES, 0)
    moving[:, LIPS_INNER[5:], 1] -= 0.004 * (1 + np.sin(time / 3))[:, None]
    moving[:, LIPS_INNER[1:4], 0] += 0.001 * np.cos(time / 5)[:, None]
    rotation = rotation_from_rotvec(np.stack([0.05 * np.sin(time / 9), 0.1 * np.cos(time / 11), 0 * time], 1))
    poses = pose_matrix(rotation @ np.diag([1.0, -1, -1]), np.tile([0.01, 0, 1.0], (FRAMES, 1)))
    return KnownHead((moving @ TURN).astype(np.float32), poses, TEMPLATE @ TURN, TURN, TEMPLATE[:, 2],
                     [(0, 25), (25, FRAMES)], INTRINSICS)


@pytest.fixture
def pictures():
    return [np.full((512, 512, 3), t, np.uint8) for t in range(FRAMES)]


def test_it_gives_back_what_an_exact_detector_sees(head, pictures):
    detector = ExactDetector(head.landmarks, head.poses)
    seen, found = retrack(pictures, head, detector)
    assert found.all() and detector.restarts == len(head.spans) and seen.dtype == np.float32
    apart = project(seen, head.poses, INTRINSICS) - project(head.landmarks, head.poses, INTRINSICS)
    assert np.abs(apart[:, 36:]).max() < 0.5
    assert correlation(lip_opening(seen), lip_opening(head.landmarks)) > 0.999


def test_lips_that_stand_still_in_the_video_do_not_take_the_motion_of_the_clips_own(head, pictures):
    still = np.repeat(head.landmarks[:1], FRAMES, 0)
    seen, _ = retrack(pictures, head, ExactDetector(still, head.poses))
    assert np.ptp(lip_opening(seen)) < 0.05 * np.ptp(lip_opening(head.landmarks))


def test_frames_without_a_face_are_told(head, pictures):
    seen, found = retrack(pictures, head, ExactDetector(head.landmarks, head.poses, blind={3, 4}))
    assert np.flatnonzero(~found).tolist() == [3, 4] and np.isfinite(seen).all()
    seen, found = retrack(pictures, head, ExactDetector(head.landmarks, head.poses, blind=set(range(FRAMES))))
    assert not found.any() and np.isnan(seen).all()


def test_the_axes_of_constant_depth_are_found(head):
    found = depth_axes(head.landmarks)
    assert np.abs(found @ TURN.T - np.eye(3)).max() < 1e-3
    deep = head.landmarks + np.random.default_rng(0).normal(0, [1e-4, 1e-2, 1e-2], head.landmarks.shape)
    assert (depth_axes(deep) == np.eye(3)).all()  # landmarks that are tracked in depth too


def test_runs_end_at_gaps_and_cuts(head):
    shots = np.repeat([0, 1], FRAMES // 2)
    clip = SimpleNamespace(load_landmarks=lambda: head.landmarks, load_poses=lambda: head.poses, shot_of_frames=lambda: shots,
                           load_neutral=lambda: head.neutral[None],
                           info=SimpleNamespace(excluded=[], frames=FRAMES, intrinsics=INTRINSICS))
    known = known_head(clip, np.array([10, 11, 12, 15, 16, 19, 20, 21]))
    assert known.spans == [(0, 3), (3, 5), (5, 6), (6, 8)]
    assert np.abs(known.depth - TEMPLATE[:, 2]).max() < 1e-3
