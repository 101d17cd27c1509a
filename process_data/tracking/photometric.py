"""Photometric refinement of head poses: every frame is registered to the mean picture of the head.

Corners and mesh points are a few hundred places of the face; hair and outline, which show the head's turn best, are not among
them. Here a dense grid of points on an average head's surface through the person's landmarks takes its grey levels from
sample frames of the whole clip, all shots together, and each frame's pose is fitted to these (Lucas and Kanade, IJCAI 1981,
with a known surface; Gauss–Newton, coarse to fine, Cauchy weights). A point counts by how constant it stays: lips and lids,
what lies before or behind the head and what the surface misses vary, and hardly count.
"""

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from scipy.sparse import coo_matrix
from scipy.spatial import cKDTree

from process_data.detection.detection_pass import read_mattes
from process_data.tracking.bilinear import bilinear
from process_data.tracking.torso_motion import pyramid
from process_data.workers import Workers, chunk_spans, report_done
from shared.arrays import evenly
from shared.camera import project, rotation_from_rotvec
from shared.compiled import cached_njit
from shared.files import write_arrays
from shared.head_surface import head_surface
from shared.landmarks import JAW
from shared.media.video_io import read_frames_at, read_video

PIXELS_APART = 1.6  # of the grid's points, at the head's mean distance
MOST_POINTS = 14000
EXTENT = ((-0.11, 0.11), (-0.13, 0.17))  # metres in head space, x and y, that the grid covers
SAMPLES = 96  # frames whose mean is the head's picture
ROUNDS = 3  # of taking the mean and fitting the samples to it
PERSON = 200  # of 255: coarse matte of a point that is surely the person, on average over the samples
FACING = 0.25  # least cosine between surface and view at which a point is seen
LEVELS = ((2, 4), (1, 5))  # reduction of the picture, as of `pyramid`, and Gauss–Newton steps, coarse to fine
NOISE = 5.0  # grey levels: least standard deviation of a point
CAUCHY = 2.0  # residual, in standard deviations, that counts half
CORRELATED = 30.0  # points with correlated errors, which count as one measurement
SMOOTH = 0.005  # metres over which the surface is mended as one
DEPTH_PRIOR = 0.012  # metres by which it may differ from the average head
PRIOR = np.array([0.03] * 3 + [0.006, 0.006, 0.03])  # radians, metres: standard deviation of the poses given
LEAST_SEEN = 0.3  # share of the points that a frame must show
FURTHEST = 8.0  # pixels of a 512² picture: a pose that moves the face further has gone astray


NOTHING = np.zeros((0, 2))


@dataclass(frozen=True)
class HeadPicture:
    """points (K,3) metres in head space with unit normals (K,3); their mean grey level (K,) and its variance (K,)."""

    points: np.ndarray
    normals: np.ndarray
    gray: np.ndarray
    variance: np.ndarray


def levels_of(frame: np.ndarray) -> list[np.ndarray]:
    """Frame (H,W,3) uint8 -> blurred grey pictures float32, one for each of LEVELS."""
    return pyramid(frame)[len(LEVELS) - 1 :: -1]


def surface_points(neutral: np.ndarray, poses: np.ndarray, intrinsics: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray]:
    """A grid on the head through the neutral (68,3), about PIXELS_APART at the poses (T,4,4) -> points and normals (K,3)."""
    spacing = PIXELS_APART * float(np.median(poses[:, 2, 3])) / intrinsics[0]
    (left, right), (low, high) = EXTENT
    spacing = max(spacing, np.sqrt((right - left) * (high - low) / MOST_POINTS))
    x, y = (axis.ravel() for axis in np.meshgrid(np.arange(left, right, spacing), np.arange(low, high, spacing)))
    head = _above_jaw(neutral, x, y)
    x, y = x[head], y[head]
    depth = head_surface(neutral.astype(float))
    z, step = depth(np.stack([x, y], 1)), 0.5 * spacing
    dx = (depth(np.stack([x + step, y], 1)) - depth(np.stack([x - step, y], 1))) / spacing
    dy = (depth(np.stack([x, y + step], 1)) - depth(np.stack([x, y - step], 1))) / spacing
    normals = np.stack([-dx, -dy, np.ones_like(dx)], 1)
    return np.stack([x, y, z], 1), normals / np.linalg.norm(normals, axis=1, keepdims=True)


def _above_jaw(neutral: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Which points x, y (n,) of the face plane lie above the eyes' lower lids, or in the face and above the upper lip."""
    curve = neutral[JAW]
    inside = (x > np.interp(y, curve[:9, 1][::-1], curve[:9, 0][::-1])) & (x < np.interp(y, curve[8:, 1], curve[8:, 0]))
    return (y > neutral[[40, 41, 46, 47], 1].mean()) | inside & (y > neutral[33, 1])


@cached_njit(fastmath=True)
def _place(point, normal, pose, fx, fy, cx, cy, width, height):
    """Turned point (3), its place in camera space (3) and in the picture, u and v counted from the first pixel's centre; u is
    −1 where the surface is not seen."""
    p = pose[0, 0] * point[0] + pose[0, 1] * point[1] + pose[0, 2] * point[2]
    q = pose[1, 0] * point[0] + pose[1, 1] * point[1] + pose[1, 2] * point[2]
    r = pose[2, 0] * point[0] + pose[2, 1] * point[1] + pose[2, 2] * point[2]
    x, y, z = p + pose[0, 3], q + pose[1, 3], r + pose[2, 3]
    nx = pose[0, 0] * normal[0] + pose[0, 1] * normal[1] + pose[0, 2] * normal[2]
    ny = pose[1, 0] * normal[0] + pose[1, 1] * normal[1] + pose[1, 2] * normal[2]
    nz = pose[2, 0] * normal[0] + pose[2, 1] * normal[1] + pose[2, 2] * normal[2]
    u, v = fx * x / z + cx - 0.5, fy * y / z + cy - 0.5
    facing = -(nx * x + ny * y + nz * z) >= FACING * np.sqrt(x * x + y * y + z * z)
    if not (facing and u >= 0.0 and v >= 0.0 and u < width - 1 and v < height - 1):
        u = -1.0
    return p, q, r, x, y, z, u, v


@cached_njit(fastmath=True)
def _sample(picture, points, normals, pose, fx, fy, cx, cy, values):
    """Grey levels (K,) of points in a picture at a pose (4,4), NaN where they are not seen; fx … cy in its pixels."""
    height, width = picture.shape
    for k in range(len(points)):
        u, v = _place(points[k], normals[k], pose, fx, fy, cx, cy, width, height)[6:]
        values[k] = np.nan if u < 0.0 else bilinear(picture, u, v)


@cached_njit(fastmath=True)
def _normal_equations(picture, across, down, points, normals, gray, variance, pose, fx, fy, cx, cy, gain, offset, normal, right,
                      depths):
    """Sum up one Gauss–Newton step: turn and shift of the head in the camera's frame, gain and offset of the picture.

    Returns the number of points that are seen; fills normal (8,8) and right (8,). Adds to depths (K,2), unless it is empty, each
    point's curvature and slope by its own depth in head space.
    """
    height, width = picture.shape
    normal[:] = 0.0
    right[:] = 0.0
    seen = 0
    row = np.empty(8)
    for k in range(len(points)):
        p, q, r, x, y, z, u, v = _place(points[k], normals[k], pose, fx, fy, cx, cy, width, height)
        if u < 0.0:
            continue
        gx, gy = bilinear(across, u, v), bilinear(down, u, v)
        residual = bilinear(picture, u, v) - gain * gray[k] - offset
        seen += 1
        weight = 1 / (variance[k] + residual * residual / (CAUCHY * CAUCHY))
        ex, ey = gx * fx / z, gy * fy / z
        ez = -(ex * x + ey * y) / z
        row[0], row[1], row[2] = q * ez - r * ey, r * ex - p * ez, p * ey - q * ex
        row[3], row[4], row[5] = ex, ey, ez
        row[6], row[7] = -gray[k], -1.0
        for m in range(8):
            scaled = weight * row[m]
            right[m] += scaled * residual
            for n in range(m, 8):
                normal[m, n] += scaled * row[n]
        if len(depths):
            own = ex * pose[0, 2] + ey * pose[1, 2] + ez * pose[2, 2]
            depths[k, 0] += weight * own * own
            depths[k, 1] += weight * own * residual
    for m in range(8):
        for n in range(m):
            normal[m, n] = normal[n, m]
    return seen


def fit_pose(levels: list[np.ndarray], head: HeadPicture, start: np.ndarray, intrinsics: tuple[float, ...],
             depths: np.ndarray = NOTHING) -> np.ndarray:
    """Pose (4,4) of one frame, given its `levels_of` and a first pose (4,4), which is also returned where the fit fails.

    The terms of `_normal_equations` for the points' depths are added to `depths` (K,2) at the last step.
    """
    pose, gain, offset = start.astype(float).copy(), 1.0, 0.0
    normal, right = np.empty((8, 8)), np.empty(8)
    moved = np.zeros(6)
    for picture, (scale, steps) in zip(levels, LEVELS):
        across, down = (cv2.Sobel(picture, cv2.CV_32F, *order, ksize=3, scale=1 / 8) for order in ((1, 0), (0, 1)))
        camera = tuple(value / scale for value in intrinsics)
        for left in reversed(range(steps)):
            last = scale == LEVELS[-1][0] and left == 0
            seen = _normal_equations(picture, across, down, head.points, head.normals, head.gray, head.variance, pose, *camera,
                                     gain, offset, normal, right, depths if last else NOTHING)
            if seen < LEAST_SEEN * len(head.points):
                return start
            hess, slope = normal / (CORRELATED / scale**2), right / (CORRELATED / scale**2)
            hess[range(6), range(6)] += PRIOR**-2
            hess[range(8), range(8)] *= 1 + 1e-9
            slope[:6] += moved / PRIOR**2
            step = -np.linalg.solve(hess, slope)
            pose[:3, :3] = rotation_from_rotvec(step[:3]) @ pose[:3, :3]
            pose[:3, 3] += step[3:6]
            moved += step[:6]
            gain, offset = gain + step[6], offset + step[7]
    shift = project(head.points, pose, intrinsics) - project(head.points, start.astype(float), intrinsics)
    if not np.isfinite(pose).all() or np.median(np.linalg.norm(shift, axis=1)) > FURTHEST * 2 * intrinsics[2] / 512:
        return start
    return pose


def head_picture(frames: list[list[np.ndarray]], mattes: np.ndarray, poses: np.ndarray, neutral: np.ndarray,
                 intrinsics: tuple[float, ...]) -> HeadPicture:
    """The mean picture of the head from sample frames' `levels_of`, coarse mattes (n,h,w) uint8 and poses (n,4,4)."""
    points, normals = surface_points(neutral, poses, intrinsics)
    share = mattes.shape[2] / (2 * intrinsics[2])
    camera = tuple(value * share for value in intrinsics)
    covered = np.stack([_values(matte, points, normals, pose, camera) for matte, pose in zip(mattes, poses)])
    seen = np.isfinite(covered)
    inside = (np.where(seen, covered, 0).sum(0) / np.maximum(seen.sum(0), 1) > PERSON) & (seen.mean(0) > 0.5)
    points, normals = points[inside], normals[inside]
    base = points[:, 2].copy()
    placed = poses.astype(float)
    for _ in range(ROUNDS):
        values = np.stack([_values(levels[-1], points, normals, pose, intrinsics) for levels, pose in zip(frames, placed)])
        values = _evened(values)
        gray = np.nanmedian(values, axis=0)
        spread = 1.4826 * np.nanmedian(np.abs(values - gray), axis=0)
        known = np.isfinite(gray)
        points, normals, base = points[known], normals[known], base[known]
        head = HeadPicture(points, normals, gray[known], NOISE**2 + spread[known] ** 2)
        depths = np.zeros((len(points), 2))
        placed = np.stack([fit_pose(levels, head, pose, intrinsics, depths) for levels, pose in zip(frames, poses)])
        _mend_surface(head, base, depths)
    return head


def _mend_surface(head: HeadPicture, base: np.ndarray, depths: np.ndarray) -> None:
    """Move points in depth by one Gauss–Newton step on the sums `depths` (K,2) of all samples, in place, smoothly and not far
    from the average head's depth, base (K,)."""
    near = cKDTree(head.points[:, :2]).sparse_distance_matrix(cKDTree(head.points[:, :2]), 2.5 * SMOOTH, output_type="coo_matrix")
    kernel = coo_matrix((np.exp(-0.5 * (near.data / SMOOTH) ** 2), (near.row, near.col)), near.shape).tocsr()
    share = np.asarray(kernel.sum(1)).ravel()[:, None]
    curvature, slope = ((kernel @ depths) / share).T
    off = head.points[:, 2] - base
    step = -(slope + off / DEPTH_PRIOR**2) / (curvature + DEPTH_PRIOR**-2)
    head.points[:, 2] += np.clip(step, -DEPTH_PRIOR, DEPTH_PRIOR)


def _values(picture: np.ndarray, points: np.ndarray, normals: np.ndarray, pose: np.ndarray,
            intrinsics: tuple[float, ...]) -> np.ndarray:
    values = np.empty(len(points))
    _sample(picture.astype(np.float32), points, normals, pose.astype(float), *intrinsics, values)
    return values


def _evened(values: np.ndarray) -> np.ndarray:
    """Grey levels (n,K) of n frames, each with the gain and offset that bring its median and spread to those of all."""
    middle = np.nanmedian(values, axis=1, keepdims=True)
    spread = np.nanmedian(np.abs(values - middle), axis=1, keepdims=True)
    return (values - middle) * (np.median(spread) / np.maximum(spread, 1e-6)) + np.median(middle)


def refine(video: Path, neutral: np.ndarray, poses: np.ndarray, good: np.ndarray, intrinsics: tuple[float, ...], work: Path,
           workers: Workers, quiet: bool = False) -> np.ndarray:
    """Poses (T,4,4) of a whole video fitted to its pictures, from first ones (T,4,4) and the neutral (68,3) in their space.

    good (T,) bool: frames with a face; the others keep their pose. Chunks are kept in `work`, so that an interrupted run
    continues.
    """
    frames = np.flatnonzero(good)
    wanted = frames[evenly(len(frames), SAMPLES)]
    parts = chunk_spans(len(poses))
    jobs = [a for a, _ in parts if not _pose_file(work, a).is_file()]
    if jobs:
        samples = [levels_of(frame) for frame in read_frames_at(video, wanted)]
        mattes = np.stack([next(read_mattes(work, int(t), int(t) + 1)) for t in wanted])
        head = head_picture(samples, mattes, poses[wanted], neutral, intrinsics)
        spans = [(video, a, b, head, poses[a:b], good[a:b], intrinsics, work) for a, b in parts if a in set(jobs)]
        left = sum(span[2] - span[1] for span in spans)
        workers.run(refine_chunk, spans, len(poses), len(poses) - left, "registering", quiet=quiet)
    return np.concatenate([np.load(_pose_file(work, a))["poses"] for a, _ in parts])


def refine_chunk(video: Path, start: int, stop: int, head: HeadPicture, poses: np.ndarray, good: np.ndarray,
                 intrinsics: tuple[float, ...], work: Path) -> None:
    """Write the refined poses of frames start ≤ t < stop to work/poses_NNNNNNN.npz; poses and good hold only these frames."""
    found = poses.astype(float).copy()
    for k, frame in enumerate(read_video(video, start=start, stop=stop)):
        if good[k]:
            found[k] = fit_pose(levels_of(frame), head, poses[k], intrinsics)
        report_done()
    write_arrays(_pose_file(work, start), poses=found)


def _pose_file(work: Path, start: int) -> Path:
    return work / f"poses_{start:07d}.npz"
