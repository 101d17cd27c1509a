"""A clip's tracker on other pictures of the same person at poses that are known, such as a rendered video.

Detector, first pose fit, lip edges and smoothing are those of `tracking.track`. Left out is what a clip already tells: the
corner tracks, whose only purpose are the final poses, and the move to head space. So the landmarks compare with the clip's.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from scipy.spatial.transform import Rotation

from process_data.config import ProcessConfig
from process_data.detection.base import Detector
from process_data.detection.detection_pass import WARM_UP
from process_data.pipeline import bridge
from process_data.tracking import bundle_adjustment, lip_edges
from process_data.tracking.track import detector_tracks, merged_landmarks
from shared.camera import project, umeyama
from shared.clip import Clip, good_frames
from shared.landmarks import NOSE

STILL = [*NOSE, 36, 39, 42, 45]  # landmarks that fix the detector's shape in head space: nose and eye corners
SAME_DIRECTION = 0.9  # least cosine between the z axis and the direction in which no landmark moves


@dataclass(frozen=True)
class KnownHead:
    """What a clip tells of some of its frames.

    landmarks (T,68,3) metres and poses (T,4,4) as tracked; neutral (68,3); turn (3,3), from head space to the axes in which
    the tracker keeps each landmark's depth, z, constant; depth (68,) metres along that z; spans, runs start ≤ t < stop of
    the T frames that follow each other in the clip.
    """

    landmarks: np.ndarray
    poses: np.ndarray
    neutral: np.ndarray
    turn: np.ndarray
    depth: np.ndarray
    spans: list[tuple[int, int]]
    intrinsics: tuple[float, ...]


def known_head(clip: Clip, frames: np.ndarray) -> KnownHead:
    """Of the frames (T,) of a clip, ascending."""
    landmarks, shots = clip.load_landmarks(), clip.shot_of_frames()[frames]
    good = landmarks[good_frames(clip.info.excluded, clip.info.frames)]
    turn = depth_axes(good)
    breaks = [0, *(np.flatnonzero((np.diff(frames) != 1) | (np.diff(shots) != 0)) + 1).tolist(), len(frames)]
    return KnownHead(landmarks[frames], clip.load_poses()[frames], clip.load_neutral()[0], turn,
                     np.median(good.astype(float) @ turn.T, axis=0)[:, 2], list(zip(breaks, breaks[1:])), clip.info.intrinsics)


def depth_axes(landmarks: np.ndarray) -> np.ndarray:
    """Landmarks (T,68,3) -> rotation (3,3) of head space, the smallest after which none of them moves along z.

    The tracker unprojects each landmark to a constant depth and turns the head afterwards; this undoes the turn. The identity
    where landmarks move in all three directions, as imported ones do.
    """
    moved = (landmarks - landmarks.mean(0)).reshape(-1, 3).astype(float)
    direction = np.linalg.eigh(moved.T @ moved)[1][:, 0]
    direction = direction * np.sign(direction[2] or 1.0)
    if direction[2] < SAME_DIRECTION:
        return np.eye(3)
    return Rotation.align_vectors([[0, 0, 1]], [direction])[0].as_matrix()


def retrack(pictures: Iterable[np.ndarray], head: KnownHead, detector: Detector,
            config: ProcessConfig = ProcessConfig()) -> tuple[np.ndarray, np.ndarray]:
    """Pictures (H,W,3) uint8 of the frames of `head` -> landmarks (T,68,3) float32 metres in head space; found (T,) bool.

    Frames without a face are filled in from their neighbours; where there is none at all, every landmark is NaN.
    """
    scheme, intrinsics = detector.scheme, head.intrinsics
    unit = 2 * intrinsics[2] / 512
    expected = project(head.landmarks, head.poses, intrinsics)
    starts = {start for start, _ in head.spans}
    points = np.full((len(expected), scheme.count, 3), np.nan, np.float32)
    edges = np.zeros((len(expected), len(lip_edges.POINTS), 2), np.float32)
    for t, frame in enumerate(pictures):
        if t in starts:  # as for the first frame of a clip
            detector.restart()
            for _ in range(WARM_UP):
                detector.everyone(frame)
        face = nearest_face(detector.everyone(frame), scheme.landmarks68, expected[t])
        if face is not None:
            points[t] = face
            edges[t] = lip_edges.lip_evidence(frame, face[scheme.landmarks68, :2])
    found = np.isfinite(points[:, 0, 0])
    if not found.any():
        return np.full_like(head.landmarks, np.nan), found
    bridge(points, ~found, head.spans)

    axes = np.eye(4)
    axes[:3, :3] = head.turn.T
    known = head.poses.astype(float) @ axes
    shape, detected = detector_tracks(points, scheme, unit)
    scale, rotation, shift = umeyama(shape[scheme.landmarks68][STILL], (head.neutral.astype(float) @ head.turn.T)[STILL])
    rigid = scale * shape[scheme.rigid] @ rotation.T + shift
    start = bundle_adjustment.initial_poses(points[:, scheme.rigid], rigid, scheme.rigid_weight, intrinsics)
    first = bundle_adjustment.fit(bundle_adjustment.Tracks(detected.pixels, detected.reference, detected.sigma, rigid,
                                                           detected.common),
                                  start, head.spans, intrinsics, iterations=config.pose_iterations,
                                  smoothness=config.pose_smoothness)
    pixels = lip_edges.correct_lips(points[:, scheme.landmarks68, :2], edges, found, unit)
    landmarks = merged_landmarks(pixels, head.depth, known, first.poses, head.spans, intrinsics, config)
    return (landmarks @ head.turn).astype(np.float32), found


def nearest_face(faces: np.ndarray, landmarks68: np.ndarray, expected: np.ndarray) -> np.ndarray | None:
    """Of faces (n,P,3) pixels the one whose landmarks lie nearest to `expected` (68,2), if it overlaps with that; else None."""
    if len(faces) == 0:
        return None
    distance = np.linalg.norm(faces[:, landmarks68, :2].mean(1) - expected.mean(0), axis=1)
    nearest = int(distance.argmin())
    return faces[nearest] if distance[nearest] < np.ptp(expected, axis=0).max() / 2 else None
