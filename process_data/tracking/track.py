"""From what the detector saw to landmarks and poses: a first fit, corners of the skin, the final fit, head space."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.ndimage import gaussian_filter1d
from scipy.signal import savgol_filter

from process_data.config import ProcessConfig
from process_data.detection.base import Scheme
from process_data.tracking import bundle_adjustment, corner_tracks, lip_edges
from process_data.workers import Workers, chunks, tick
from shared.camera import pose_matrix, project
from shared.files import write_arrays
from shared.landmarks import EYE_CORNER_DISTANCE, JAW, LIPS, eye_opening, lip_opening
from shared.media.video_io import read_video

DETECTOR_PIXELS = 1.5  # error to expect of a detector's point, at 512²
FLOW_PIXELS = 0.3  # and of a tracked corner
DEPTH_REACH = 0.02  # metres over which a correction of the rigid points carries over to their neighbours
TREMBLE = 2.0  # standard deviation, frames, of the smoothing that parts the detector's slow errors from its fast ones
MOVING = set(LIPS) | set(range(36, 48)) | set(JAW)


@dataclass(frozen=True)
class Tracked:
    """landmarks (T,68,3), poses (T,4,4), neutral (1,68,3); rms pixel errors of the detector's points and of the corners;
    plain_poses (T,4,4), if asked for: what the detector alone gives frame by frame, to compare with."""

    landmarks: np.ndarray
    poses: np.ndarray
    neutral: np.ndarray
    rms: tuple[float, float]
    plain_poses: np.ndarray | None


def track(video: Path, points: np.ndarray, scheme: Scheme, spans: list[tuple[int, int]], good: np.ndarray,
          intrinsics: tuple[float, ...], config: ProcessConfig, work: Path, workers: Workers, quiet: bool = False,
          compare: bool = False) -> Tracked:
    """Points (T,P,3) in pixels, every frame filled in; good (T,) bool where a face was found; `compare` asks for plain poses."""
    unit = 2 * intrinsics[2] / 512
    rigid, seen68 = scheme.rigid, scheme.landmarks68
    sample = points[np.linspace(0, len(points) - 1, min(len(points), 200)).astype(int)]
    shape = bundle_adjustment.mean_shape(sample, rigid, scheme.rigid_weight, seen68)
    sigma = DETECTOR_PIXELS * unit / np.sqrt(scheme.rigid_weight)
    pixels = points[:, rigid, :2]
    alone = bundle_adjustment.Tracks(pixels, np.full((len(points), 1), -1), sigma, shape[rigid], len(rigid))
    first = bundle_adjustment.initial_poses(points[:, rigid], shape[rigid], scheme.rigid_weight, intrinsics)
    rough = bundle_adjustment.fit(alone, first, spans, intrinsics, iterations=config.pose_iterations,
                                  smoothness=config.pose_smoothness)

    depth = _corrected(shape, shape[rigid], rough.points)[seen68, 2]
    pixels68 = points[:, seen68, :2]
    landmarks = bundle_adjustment.unproject(pixels68, depth, rough.poses, intrinsics)
    numbers, nearest = corner_tracks.choose_references(landmarks, rough.poses, spans, good)
    references = [_reference(video, t, landmarks[t], rough, intrinsics) for t in numbers]
    corners, evidence = follow(video, references, nearest, rough.poses, numbers, pixels68, intrinsics, work, workers, quiet)
    starts = [np.concatenate([r.points, np.zeros((corner_tracks.CORNERS - len(r.points), 3))]) for r in references]
    both = bundle_adjustment.Tracks(np.concatenate([pixels, corners], axis=1), nearest,
                       np.concatenate([sigma, np.full(corner_tracks.CORNERS * len(references), FLOW_PIXELS * unit)]),
                       np.concatenate([rough.points, *starts]), len(rigid))
    fitted = bundle_adjustment.fit(both, rough.poses.astype(float), spans, intrinsics, iterations=config.pose_iterations,
                      smoothness=config.pose_smoothness, needed=tuple(numbers))
    pixels68 = lip_edges.snap(pixels68, evidence, good, unit)
    landmarks = _steady(bundle_adjustment.unproject(pixels68, depth, rough.poses, intrinsics),
                        bundle_adjustment.unproject(pixels68, depth, fitted.poses, intrinsics), spans)
    landmarks = _smooth_rest(landmarks, spans, config.rest_window)
    plain = rough.poses
    if compare:
        plain = bundle_adjustment.fit_poses(alone, rough.points, rough.poses.astype(float), spans, intrinsics, 3, 0.0)
    landmarks, poses, plain = to_convention(landmarks, fitted.poses, plain, good)
    return Tracked(landmarks, poses, neutral_face(landmarks[good]), fitted.rms, plain if compare else None)


def _corrected(shape: np.ndarray, before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """The whole shape (P,3) moved as its rigid points moved from `before` to `after` (R,3), smoothly."""
    distance = np.linalg.norm(shape[:, None] - before[None], axis=2)
    weight = np.exp(-0.5 * (distance / DEPTH_REACH) ** 2) + 1e-9
    return shape + weight @ (after - before) / (weight.sum(1, keepdims=True) + 1e-3)


def _reference(video: Path, t: int, landmarks: np.ndarray, rough: bundle_adjustment.PoseFit,
               intrinsics: tuple[float, ...]) -> corner_tracks.Reference:
    frame = next(read_video(video, start=t, stop=t + 1))
    at = rough.poses[t].astype(float)
    return corner_tracks.make_reference(frame, project(landmarks, at, intrinsics), project(rough.points, at, intrinsics),
                               rough.points[:, 2], at, intrinsics)


def follow(video: Path, references: list[corner_tracks.Reference], nearest: np.ndarray, poses: np.ndarray, numbers: list[int],
           pixels: np.ndarray, intrinsics: tuple[float, ...], work: Path, workers: Workers,
           quiet: bool) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (T,2·CORNERS,2) float32 of the corners of each frame's two references, NaN where they are not found, and what
    the picture tells of the lips' edges (T,6,2), given the detector's landmarks (T,68,2)."""
    parts = chunks(len(poses))
    jobs = [(video, a, b, references, nearest[a:b], poses[a:b], poses[numbers], pixels[a:b], intrinsics, work)
            for a, b in parts if not _flow_file(work, a).is_file()]
    if jobs:
        left = sum(job[2] - job[1] for job in jobs)
        workers.run(follow_chunk, jobs, len(poses), len(poses) - left, "refining", quiet=quiet)
    stored = [np.load(_flow_file(work, a)) for a, _ in parts]
    return np.concatenate([part["corners"] for part in stored]), np.concatenate([part["lips"] for part in stored])


def follow_chunk(video: Path, start: int, stop: int, references: list[corner_tracks.Reference], nearest: np.ndarray,
                 poses: np.ndarray, reference_poses: np.ndarray, pixels: np.ndarray, intrinsics: tuple[float, ...],
                 work: Path) -> None:
    """Write corners and lips of frames start ≤ t < stop to work/flow_NNNNNNN.npz; nearest, poses and pixels are theirs."""
    corners = np.full((stop - start, nearest.shape[1], corner_tracks.CORNERS, 2), np.nan, np.float32)
    lips = np.zeros((stop - start, len(lip_edges.POINTS), 2), np.float32)
    for k, frame in enumerate(read_video(video, start=start, stop=stop)):
        for row, number in zip(corners[k], nearest[k]):
            found = corner_tracks.match(frame, references, int(number), poses[k], reference_poses, intrinsics)
            row[: len(found)] = found
        lips[k] = lip_edges.lip_evidence(frame, pixels[k])
        tick()
    write_arrays(_flow_file(work, start), corners=corners.reshape(len(corners), -1, 2), lips=lips)


def _flow_file(work: Path, start: int) -> Path:
    return work / f"flow_{start:07d}.npz"


def _steady(own: np.ndarray, exact: np.ndarray, spans: list[tuple[int, int]]) -> np.ndarray:
    """Landmarks (T,68,3) that follow `exact`, those seen from the final poses, slowly and `own` fast.

    The detector's points tremble together; from the poses that fit them alone, which tremble with them, they keep still.
    """
    out = own.copy()
    for start, stop in spans:
        out[start:stop] += gaussian_filter1d(exact[start:stop] - own[start:stop], TREMBLE, axis=0, mode="nearest")
    return out


def _smooth_rest(landmarks: np.ndarray, spans: list[tuple[int, int]], window: int) -> np.ndarray:
    """Savitzky–Golay over the points that speech and blinking do not move, and lightly over the jaw; within shots."""
    out = landmarks.copy()
    rest = [k for k in range(68) if k not in MOVING]
    for start, stop in spans:
        for group, length in ((rest, window), (JAW, 5)):
            if stop - start > length:
                out[start:stop, group] = savgol_filter(out[start:stop, group], length, 2, axis=0)
    return out


def neutral_face(landmarks: np.ndarray) -> np.ndarray:
    """(T,68,3) -> (1,68,3): median of the frames with closed lips and open eyes."""
    lips, eyes = lip_opening(landmarks), eye_opening(landmarks).mean(1)
    closed = lips <= np.quantile(lips, 0.25)
    awake = eyes >= np.quantile(eyes, 0.35)
    chosen = landmarks[closed & awake] if (closed & awake).any() else landmarks[closed]
    return np.median(chosen, axis=0, keepdims=True).astype(np.float32)


def to_convention(landmarks: np.ndarray, poses: np.ndarray, plain: np.ndarray,
                  good: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Move, turn and scale head space so that the neutral's corners 36 and 45 lie at (∓0.045, 0, 0); pictures stay the same.

    landmarks (T,68,3); poses and plain (T,4,4) of the same head space; good (T,) bool: frames that make the neutral.
    """
    neutral = neutral_face(landmarks[good])[0].astype(float)
    right, left = neutral[36], neutral[45]
    scale = EYE_CORNER_DISTANCE / np.linalg.norm(left - right)
    x = (left - right) / np.linalg.norm(left - right)
    z = np.array([0, 0, 1.0]) - x * x[2]
    z = z / np.linalg.norm(z)
    turn = np.stack([x, np.cross(z, x), z])  # new axes in old ones
    middle = (left + right) / 2
    moved = scale * (landmarks - middle) @ turn.T

    def turned(old: np.ndarray) -> np.ndarray:
        # camera = R·old + t with old = turnᵀ·new/scale + middle; the whole scene scales, so pixels do not change
        rotation, shift = old[:, :3, :3].astype(float), old[:, :3, 3].astype(float)
        return pose_matrix(rotation @ turn.T, scale * (shift + rotation @ middle))

    return moved.astype(np.float32), turned(poses), turned(plain)
