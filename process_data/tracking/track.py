"""The detector's points -> landmarks and poses: a first fit, corner tracks of the skin, a final fit, the move to head space."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from process_data.config import ProcessConfig
from process_data.detection.base import Scheme
from process_data.tracking import bundle_adjustment, corner_tracks, lip_edges, photometric
from process_data.tracking.residuals import Residuals, residuals
from process_data.workers import Workers, chunk_spans, report_done
from shared.arrays import evenly, savgol
from shared.camera import pose_matrix, project
from shared.files import write_arrays
from shared.landmarks import EYE_CORNER_DISTANCE, JAW, LIPS, eye_opening, lip_opening
from shared.media.video_io import read_video

DETECTOR_PIXELS = 1.5  # expected error of a detector's point, pixels of a 512² picture
CORNER_PIXELS = 0.3  # expected error of a tracked corner, likewise
SHAPE_SAMPLES = 200  # frames that the first shape is the mean of
DEPTH_REACH = 0.02  # metres over which a correction of the rigid points carries over to their neighbours
SLOW_FRAMES = 2.0  # standard deviation of the smoothing that separates the detector's slow errors from its fast ones
JAW_WINDOW = 5  # Savitzky–Golay window of the jaw, frames
MOVING = set(LIPS) | set(range(36, 48)) | set(JAW)  # landmarks that speech and blinking move


@dataclass(frozen=True)
class Tracked:
    """landmarks (T,68,3) metres in head space, poses (T,4,4), neutral (1,68,3); rms pixel errors of the detector's points and
    of the corners, and the residuals of each frame."""

    landmarks: np.ndarray
    poses: np.ndarray
    neutral: np.ndarray
    rms: tuple[float, float]
    residuals: Residuals


@dataclass(frozen=True)
class Fit:
    """The fit before it is moved to head space: landmarks (T,68,3), poses (T,4,4), rms errors and residuals as in `Tracked`;
    `detector`, the detector's rigid points, and `first`, the fit to these alone."""

    landmarks: np.ndarray
    poses: np.ndarray
    rms: tuple[float, float]
    residuals: Residuals
    detector: bundle_adjustment.Tracks
    first: bundle_adjustment.PoseFit


def track(video: Path, points: np.ndarray, scheme: Scheme, spans: list[tuple[int, int]], good: np.ndarray,
          intrinsics: tuple[float, ...], config: ProcessConfig, work: Path, workers: Workers, quiet: bool = False) -> Tracked:
    """Landmarks, poses and neutral of a whole video.

    points (T,P,3): the detector's points in pixels, every frame filled in, numbered as in `scheme`; spans: the shots,
    start ≤ t < stop; good (T,) bool: a face was found; intrinsics fx, fy, cx, cy in pixels. Corner tracks are kept in
    `work`, so that an interrupted run continues.
    """
    fit = fit_video(video, points, scheme, spans, good, intrinsics, config, work, workers, quiet)
    space = head_space(fit.landmarks, good)
    landmarks = space.landmarks(fit.landmarks)
    return Tracked(landmarks, space.poses(fit.poses), neutral_face(landmarks[good]), fit.rms, fit.residuals)


def fit_video(video: Path, points: np.ndarray, scheme: Scheme, spans: list[tuple[int, int]], good: np.ndarray,
              intrinsics: tuple[float, ...], config: ProcessConfig, work: Path, workers: Workers, quiet: bool = False) -> Fit:
    """As `track`, but before the move to head space: poses from the detector's points, corner tracks, poses from both, and
    from the pictures."""
    unit = 2 * intrinsics[2] / 512  # pixels of this picture to one of a 512² picture
    rigid, seen68 = scheme.rigid, scheme.landmarks68
    shape, detector = detector_tracks(points, scheme, unit)
    pixels, sigma = detector.pixels, detector.sigma
    start = bundle_adjustment.initial_poses(points[:, rigid], shape[rigid], scheme.rigid_weight, intrinsics)
    first = bundle_adjustment.fit(detector, start, spans, intrinsics, iterations=config.pose_iterations,
                                  smoothness=config.pose_smoothness)

    depth = _corrected(shape, shape[rigid], first.points)[seen68, 2]
    pixels68 = points[:, seen68, :2]
    landmarks = bundle_adjustment.unproject(pixels68, depth, first.poses, intrinsics)
    numbers, nearest = corner_tracks.choose_references(landmarks, first.poses, spans, good)
    references = [_reference(video, t, landmarks[t], first, intrinsics) for t in numbers]
    corners, edges = track_corners(video, references, nearest, first.poses, numbers, pixels68, intrinsics, work, workers, quiet)
    places = [np.concatenate([r.points, np.zeros((corner_tracks.CORNERS - len(r.points), 3))]) for r in references]
    both = bundle_adjustment.Tracks(
        np.concatenate([pixels, corners], axis=1), nearest,
        np.concatenate([sigma, np.full(corner_tracks.CORNERS * len(references), CORNER_PIXELS * unit)]),
        np.concatenate([first.points, *places]), len(rigid))
    final = bundle_adjustment.fit(both, first.poses.astype(float), spans, intrinsics, iterations=config.pose_iterations,
                                  smoothness=config.pose_smoothness, needed=tuple(numbers))
    poses = final.poses
    if config.register_poses:
        neutral = neutral_face(bundle_adjustment.unproject(pixels68, depth, poses, intrinsics)[good])[0]
        poses = photometric.refine(video, neutral, poses, good, intrinsics, work, workers, quiet)
    pixels68 = lip_edges.correct_lips(pixels68, edges, good, unit)
    landmarks = merged_landmarks(pixels68, depth, poses, first.poses, spans, intrinsics, config)
    count = np.array([len(reference.points) for reference in references])
    return Fit(landmarks, poses, final.rms, residuals(both, final, count, good, intrinsics), detector, first)


def detector_tracks(points: np.ndarray, scheme: Scheme, unit: float) -> tuple[np.ndarray, bundle_adjustment.Tracks]:
    """The detector's points (T,P,3) pixels -> their mean shape (P,3) metres, and its rigid points as observations.

    unit: pixels of the picture to one of a 512² picture.
    """
    rigid = scheme.rigid
    shape = bundle_adjustment.mean_shape(points[evenly(len(points), SHAPE_SAMPLES)], rigid, scheme.rigid_weight,
                                         scheme.landmarks68)
    sigma = DETECTOR_PIXELS * unit / np.sqrt(scheme.rigid_weight)
    return shape, bundle_adjustment.Tracks(points[:, rigid, :2], np.full((len(points), 1), -1), sigma, shape[rigid], len(rigid))


def merged_landmarks(pixels: np.ndarray, depth: np.ndarray, final: np.ndarray, first: np.ndarray,
                     spans: list[tuple[int, int]], intrinsics: tuple[float, ...], config: ProcessConfig) -> np.ndarray:
    """Landmarks (T,68,3) of pixels (T,68,2) at `depth` (68,), of final and first poses (T,4,4): see `_slow_and_fast`."""
    landmarks = _slow_and_fast(bundle_adjustment.unproject(pixels, depth, final, intrinsics),
                               bundle_adjustment.unproject(pixels, depth, first, intrinsics), spans)
    return _smooth_rest(landmarks, spans, config.rest_window)


def _corrected(shape: np.ndarray, before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """The whole shape (P,3) moved as its rigid points moved, from `before` to `after` (R,3), weighted by nearness."""
    distance = np.linalg.norm(shape[:, None] - before[None], axis=2)
    weight = np.exp(-0.5 * (distance / DEPTH_REACH) ** 2) + 1e-9
    return shape + weight @ (after - before) / (weight.sum(1, keepdims=True) + 1e-3)


def _reference(video: Path, t: int, landmarks: np.ndarray, fit: bundle_adjustment.PoseFit,
               intrinsics: tuple[float, ...]) -> corner_tracks.Reference:
    frame = next(read_video(video, start=t, stop=t + 1))
    pose = fit.poses[t].astype(float)
    return corner_tracks.make_reference(frame, project(landmarks, pose, intrinsics), project(fit.points, pose, intrinsics),
                                        fit.points[:, 2], pose, intrinsics)


def track_corners(video: Path, references: list[corner_tracks.Reference], nearest: np.ndarray, poses: np.ndarray,
                  numbers: list[int], pixels: np.ndarray, intrinsics: tuple[float, ...], work: Path, workers: Workers,
                  quiet: bool) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (T,2·CORNERS,2) float32 of the corners of each frame's two references, NaN where they are not found; and the lip
    edges (T,6,2) of `lip_edges.lip_evidence`.

    nearest (T,2) which references, −1 for none; poses (T,4,4) of all frames, numbers: the references' frames; pixels
    (T,68,2): the detector's landmarks.
    """
    parts = chunk_spans(len(poses))
    jobs = [(video, a, b, references, nearest[a:b], poses[a:b], poses[numbers], pixels[a:b], intrinsics, work)
            for a, b in parts if not _corner_file(work, a).is_file()]
    if jobs:
        left = sum(job[2] - job[1] for job in jobs)
        workers.run(track_corners_chunk, jobs, len(poses), len(poses) - left, "refining", quiet=quiet)
    stored = [np.load(_corner_file(work, a)) for a, _ in parts]
    return np.concatenate([part["corners"] for part in stored]), np.concatenate([part["lips"] for part in stored])


def track_corners_chunk(video: Path, start: int, stop: int, references: list[corner_tracks.Reference], nearest: np.ndarray,
                        poses: np.ndarray, reference_poses: np.ndarray, pixels: np.ndarray, intrinsics: tuple[float, ...],
                        work: Path) -> None:
    """Write corners and lip edges of frames start ≤ t < stop to work/flow_NNNNNNN.npz; nearest, poses and pixels hold only
    these frames."""
    corners = np.full((stop - start, nearest.shape[1], corner_tracks.CORNERS, 2), np.nan, np.float32)
    lips = np.zeros((stop - start, len(lip_edges.POINTS), 2), np.float32)
    for k, frame in enumerate(read_video(video, start=start, stop=stop)):
        for row, number in zip(corners[k], nearest[k]):
            found = corner_tracks.match(frame, references, int(number), poses[k], reference_poses, intrinsics)
            row[: len(found)] = found
        lips[k] = lip_edges.lip_evidence(frame, pixels[k])
        report_done()
    write_arrays(_corner_file(work, start), corners=corners.reshape(len(corners), -1, 2), lips=lips)


def _corner_file(work: Path, start: int) -> Path:
    return work / f"flow_{start:07d}.npz"


def _slow_and_fast(slow: np.ndarray, fast: np.ndarray, spans: list[tuple[int, int]]) -> np.ndarray:
    """Landmarks (T,68,3) with the slow motion of `slow` and the fast motion of `fast`, within each shot.

    `slow` is unprojected with the final poses, `fast` with the first ones, which are fitted to the detector's points alone:
    the common jitter of those points is in these poses too, so it cancels.
    """
    from scipy.ndimage import gaussian_filter1d  # slow to load, and not needed in the workers

    out = fast.copy()
    for start, stop in spans:
        out[start:stop] += gaussian_filter1d(slow[start:stop] - fast[start:stop], SLOW_FRAMES, axis=0, mode="nearest")
    return out


def _smooth_rest(landmarks: np.ndarray, spans: list[tuple[int, int]], window: int) -> np.ndarray:
    """Savitzky–Golay over the points that speech and blinking do not move, and lightly over the jaw; within shots."""
    out = landmarks.copy()
    rest = [k for k in range(68) if k not in MOVING]
    for start, stop in spans:
        for group, length in ((rest, window), (JAW, JAW_WINDOW)):
            if stop - start > length:
                out[start:stop, group] = savgol(out[start:stop, group], length)
    return out


def neutral_face(landmarks: np.ndarray) -> np.ndarray:
    """(T,68,3) -> (1,68,3): median of the frames with closed lips and open eyes."""
    lips, eyes = lip_opening(landmarks), eye_opening(landmarks).mean(1)
    closed = lips <= np.quantile(lips, 0.25)
    awake = eyes >= np.quantile(eyes, 0.35)
    chosen = landmarks[closed & awake] if (closed & awake).any() else landmarks[closed]
    return np.median(chosen, axis=0, keepdims=True).astype(np.float32)


@dataclass(frozen=True)
class HeadSpace:
    """Similarity from the space of a fit to head space: new = scale·turn·(old − middle); turn (3,3), middle (3,) metres."""

    scale: float
    turn: np.ndarray
    middle: np.ndarray

    def landmarks(self, old: np.ndarray) -> np.ndarray:
        """Points (..., 3) -> (..., 3) float32 metres in head space."""
        return (self.scale * (old - self.middle) @ self.turn.T).astype(np.float32)

    def poses(self, old: np.ndarray) -> np.ndarray:
        """Poses (T,4,4) from the old space to the camera -> those from head space; the pixels stay the same.

        camera = R·old + t with old = turnᵀ·new/scale + middle; camera space is scaled too, which moves no pixel.
        """
        rotation, shift = old[:, :3, :3].astype(float), old[:, :3, 3].astype(float)
        return pose_matrix(rotation @ self.turn.T, self.scale * (shift + rotation @ self.middle))


def head_space(landmarks: np.ndarray, good: np.ndarray) -> HeadSpace:
    """The move that puts the outer eye corners, 36 and 45, of the neutral at (∓0.045, 0, 0) metres.

    landmarks (T,68,3) in the space of a fit; good (T,) bool: frames that the neutral is made of.
    """
    neutral = neutral_face(landmarks[good])[0].astype(float)
    right, left = neutral[36], neutral[45]
    x = (left - right) / np.linalg.norm(left - right)
    z = np.array([0, 0, 1.0]) - x * x[2]
    z = z / np.linalg.norm(z)
    turn = np.stack([x, np.cross(z, x), z])  # new axes in old ones
    return HeadSpace(float(EYE_CORNER_DISTANCE / np.linalg.norm(left - right)), turn, (left + right) / 2)
