"""Bundle adjustment of the head: one rigid shape for the person and one pose for each frame, at a fixed focal length.

Two steps, both robust Gauss–Newton (Triggs et al., "Bundle adjustment — a modern synthesis", 2000). First the shape is
fitted jointly with the poses of a sample of frames, the poses eliminated by the Schur complement. Then the poses of all
frames are fitted to that shape in one banded system, coupled by their second differences within each shot. Memory and time
are linear in the number of frames.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy.linalg import solveh_banded

from shared.arrays import evenly
from shared.camera import pose_matrix, project, rotation_from_rotvec, rotvec_from_rotation, umeyama
from shared.compiled import cached_njit
from shared.landmarks import EYE_CORNER_DISTANCE

FRONTAL = np.diag([1.0, -1.0, -1.0])  # rotation of a head that faces the camera: its y up, its z towards the camera
BLOCK = 400  # frames whose Jacobians are in memory at once
SHAPE_PRIOR = 0.002  # weight of the first shape, of the mean weight of the observations
SAMPLE_FRAMES = 240  # frames that the shape is fitted to
CAUCHY = 2.0  # residual, in expected errors, that counts half
MOST_TOGETHER = 12  # references whose points are fitted in one dense system
CONVERGED = 2e-6  # metres and radians: smaller steps end the iterations
TRANSLATION_UNIT = 0.1  # metres that the smoothness term weighs like a radian
SMOOTHNESS_SCALE = 0.1  # unit of the setting pose_smoothness
DAMPING = 1e-6  # added to the diagonal of pose systems, against frames without points


@dataclass(frozen=True)
class Tracks:
    """Observations of P points of the rigid head.

    The first `common` points may be seen in every frame; the others form sets of equal size, one for each reference frame.
    pixels (T,M,2): the common points, then those of the frame's K sets, NaN where a point is not seen; reference (T,K): the
    numbers of these sets, -1 for none; sigma (P,): expected error of each point in pixels, residuals far beyond it hardly
    count (Cauchy weights); start (P,3): first guess of each point, metres in head space.
    """

    pixels: np.ndarray
    reference: np.ndarray
    sigma: np.ndarray
    start: np.ndarray
    common: int

    def index(self, part: slice | np.ndarray) -> np.ndarray:
        """Numbers (n,M) of the points in the columns of `pixels`, for some frames."""
        sets = np.maximum(self.reference[part], 0)
        size = (self.pixels.shape[1] - self.common) // sets.shape[1]
        shared = np.broadcast_to(np.arange(self.common), (len(sets), self.common))
        own = self.common + sets[..., None] * size + np.arange(size)
        return np.concatenate([shared, own.reshape(len(sets), -1)], axis=1)


@dataclass(frozen=True)
class PoseFit:
    """points (P,3) metres in head space, poses (T,4,4), rms pixel errors of the common points and of the references' points."""

    points: np.ndarray
    poses: np.ndarray
    rms: tuple[float, float]


def mean_shape(points: np.ndarray, rigid: np.ndarray, weight: np.ndarray, landmarks68: np.ndarray) -> np.ndarray:
    """Generalised Procrustes mean of points (n,P,3) pixels in weak perspective -> (P,3) metres, eye corners 0.09 m apart.

    Aligned by the points `rigid` (R,) with `weight` (R,); `landmarks68` (68,): the points that stand for the 68 landmarks.
    Axes: +x to the subject's left, +y up, +z out of the face, origin midway between the outer eye corners.
    """
    right, left, chin, nasion = (landmarks68[k] for k in (36, 45, 8, 27))
    shapes = points.astype(float) * [1, -1, -1]
    mean = shapes[np.argmin(np.abs(shapes[:, right, 2] - shapes[:, left, 2]))]
    mean = mean - mean[rigid].mean(0)
    mean = mean / np.linalg.norm(mean[right] - mean[left])
    for _ in range(4):
        aligned = np.empty_like(shapes)
        for t, shape in enumerate(shapes):
            scale, rotation, shift = umeyama(shape[rigid], mean[rigid], weight)
            aligned[t] = scale * shape @ rotation.T + shift
        mean = np.median(aligned, axis=0)
    x = mean[left] - mean[right]
    y = mean[nasion] - mean[chin]
    x = x / np.linalg.norm(x)
    y = y - x * (x @ y)
    y = y / np.linalg.norm(y)
    axes = np.stack([x, y, np.cross(x, y)])
    mean = (mean - (mean[right] + mean[left]) / 2) @ axes.T
    return mean * (EYE_CORNER_DISTANCE / np.linalg.norm(mean[right] - mean[left]))


def initial_poses(points: np.ndarray, shape: np.ndarray, weight: np.ndarray, intrinsics: tuple[float, ...]) -> np.ndarray:
    """Weak-perspective poses (T,4,4) of points (T,N,3) pixels whose rigid shape is (N,3) metres in head space."""
    fx, fy, cx, cy = intrinsics
    rotations, translations = np.empty((len(points), 3, 3)), np.empty((len(points), 3))
    for t, seen in enumerate(points):
        scale, rotation, shift = umeyama(shape, seen * [1, -1, -1], weight)
        depth = fx / scale
        rotations[t] = FRONTAL @ rotation
        translations[t] = (shift[0] - cx) / fx * depth, (-shift[1] - cy) / fy * depth, depth
    return pose_matrix(rotations, translations).astype(float)


def fit(tracks: Tracks, poses: np.ndarray, shots: list[tuple[int, int]], intrinsics: tuple[float, ...], *, iterations: int,
        smoothness: float, needed: tuple[int, ...] = ()) -> PoseFit:
    """Fit shape and poses to the tracks, from first poses (T,4,4).

    `smoothness` weighs the poses' second differences within `shots` (start ≤ t < stop). The shape is fitted to frames spread
    over the clip and to the `needed` ones.
    """
    points = tracks.start.copy()
    groups = [np.arange(-1, -1)] if tracks.reference.max(initial=-1) < 0 else _groups(tracks.reference)
    commons = []
    for group in groups:
        mine = np.flatnonzero(np.isin(tracks.reference[:, 0], group) | (tracks.reference[:, 0] < 0))
        sample = np.union1d(mine[evenly(len(mine), SAMPLE_FRAMES)],
                            np.intersect1d(mine, np.array(needed, int)))
        used, fitted = fit_shape(tracks, sample, poses[sample], intrinsics, iterations)
        points[used] = fitted
        commons.append(fitted[: tracks.common])
    points[: tracks.common] = np.mean(commons, axis=0)
    poses = fit_poses(tracks, points, poses, shots, intrinsics, iterations, smoothness)
    square, seen = np.zeros(2), np.zeros(2)
    for part, pixels in projected(tracks, points, poses, intrinsics):
        error = ((pixels - tracks.pixels[part]) ** 2).sum(-1)
        for k, columns in enumerate((slice(0, tracks.common), slice(tracks.common, None))):
            square[k] += np.nansum(error[:, columns])
            seen[k] += np.isfinite(error[:, columns]).sum()
    rms = np.sqrt(square / np.maximum(seen, 1))
    return PoseFit(points, pose_matrix(poses[:, :3, :3], poses[:, :3, 3]), (float(rms[0]), float(rms[1])))


def projected(tracks: Tracks, points: np.ndarray, poses: np.ndarray,
              intrinsics: tuple[float, ...]) -> Iterator[tuple[slice, np.ndarray]]:
    """Blocks of frames, and where fitted points (P,3) and poses (T,4,4) put what `tracks.pixels` observed in them, (n,M,2)."""
    for part in _blocks(len(poses)):
        yield part, project(points[tracks.index(part)], poses[part], intrinsics)


def _groups(reference: np.ndarray) -> list[np.ndarray]:
    """References split into groups that are fitted together, each small enough for one dense system."""
    count = int(reference.max()) + 1
    return np.array_split(np.arange(count), -(-count // MOST_TOGETHER))


def _blocks(count: int) -> list[slice]:
    return [slice(a, min(a + BLOCK, count)) for a in range(0, count, BLOCK)]


def fit_shape(tracks: Tracks, frames: np.ndarray, poses: np.ndarray, intrinsics: tuple[float, ...],
              iterations: int) -> tuple[np.ndarray, np.ndarray]:
    """Fit points jointly with the poses (n,4,4) of `frames` (n,).

    Returns the numbers (N,) of the points that these frames may show, and their places (N,3) metres in head space.
    """
    used, columns = np.unique(tracks.index(frames), return_inverse=True)
    columns = columns.reshape(len(frames), -1)
    points, start = tracks.start[used], tracks.start[used]
    number = len(used)
    places = tracks.start.astype(float)
    for _ in range(iterations):
        places[used] = points
        hess_pose, grad_pose, rows, residual = _normal_equations(tracks, frames, places, poses, intrinsics, jacobians=True)
        hess_point, grad_point, mixed = _by_point(rows, residual, columns, number)
        # the prior fixes the free similarity, and the depth where the head turns too little to show it
        seen = np.trace(hess_point, axis1=1, axis2=2) > 0
        prior = SHAPE_PRIOR * np.trace(hess_point[seen], axis1=1, axis2=2).mean() / 3
        hess_point = hess_point + prior * np.eye(3)
        grad_point = grad_point + prior * (points - start)
        cross = mixed.reshape(len(frames), 6, number * 3)
        solved = np.linalg.inv(hess_pose + DAMPING * np.eye(6)) @ np.concatenate([grad_pose[..., None], cross], axis=2)
        schur = -(cross.reshape(-1, number * 3).T @ solved[..., 1:].reshape(-1, number * 3))
        for n in range(number):
            schur[3 * n : 3 * n + 3, 3 * n : 3 * n + 3] += hess_point[n]
        right = grad_point.reshape(-1) - np.einsum("tia,ti->a", cross, solved[..., 0])
        step = np.linalg.solve(schur, -right)
        points = points + step.reshape(number, 3)
        poses = _moved(poses, -(solved[..., 0] + solved[..., 1:] @ step))
        if np.abs(step).max() < CONVERGED:
            break
    return used, points


def fit_poses(tracks: Tracks, points: np.ndarray, poses: np.ndarray, shots: list[tuple[int, int]],
              intrinsics: tuple[float, ...], iterations: int, smoothness: float) -> np.ndarray:
    """Poses (T,4,4) of all frames for fixed points (P,3): Gauss–Newton on a banded system, smooth within each shot."""
    hess, grad = np.empty((len(poses), 6, 6)), np.empty((len(poses), 6))
    for _ in range(iterations):
        for part in _blocks(len(poses)):
            hess[part], grad[part] = _normal_equations(tracks, part, points, poses[part], intrinsics)[:2]
        weight = smoothness * intrinsics[0] / poses[:, 2, 3].mean()
        step = _banded_step(hess, grad, poses, shots, weight)
        poses = _moved(poses, step)
        if np.abs(step).max() < CONVERGED:
            break
    return poses


def _banded_step(hess: np.ndarray, grad: np.ndarray, poses: np.ndarray, shots: list[tuple[int, int]],
                 weight: float) -> np.ndarray:
    """Solve (blockdiag(hess) + λ DᵀD) step = -(grad + λ DᵀD state) with D the second differences within the shots."""
    count = len(poses)
    scale = SMOOTHNESS_SCALE * weight * np.array([1, 1, 1, *[1 / TRANSLATION_UNIT] * 3])
    rotations = poses[:, :3, :3]
    # rotation vectors are local, so second differences of the whole pose are taken about one middle rotation
    state = np.concatenate([rotvec_from_rotation(rotations @ rotations[count // 2].T), poses[:, :3, 3]], -1)
    diagonals = np.zeros((3, count))  # of DᵀD: main, first and second upper
    pull = np.zeros_like(state)
    for start, stop in shots:
        if stop - start < 3:
            continue
        bend = np.diff(state[start:stop], 2, axis=0)
        for offset, factor in ((0, 1.0), (1, -2.0), (2, 1.0)):
            pull[start + offset : stop - 2 + offset] += factor * bend
            for other, second in ((0, 1.0), (1, -2.0), (2, 1.0)):
                if other >= offset:
                    diagonals[other - offset, start + offset : stop - 2 + offset] += factor * second
    band = np.zeros((13, 6 * count))  # upper form: band[12 + i - j, j] = matrix[i, j]
    for i in range(6):
        for j in range(i, 6):
            band[12 + i - j, j::6] = hess[:, i, j]
        band[12, i::6] += diagonals[0] * scale[i] ** 2 + DAMPING
        for k in (1, 2):
            band[12 - 6 * k, 6 * k + i :: 6] += diagonals[k, : count - k] * scale[i] ** 2
    return solveh_banded(band, -(grad + pull * scale**2).reshape(-1)).reshape(count, 6)


def _normal_equations(tracks: Tracks, frames: slice | np.ndarray, points: np.ndarray, poses: np.ndarray,
                      intrinsics: tuple[float, ...], jacobians: bool = False) -> tuple[np.ndarray, ...]:
    """Gauss–Newton terms of some frames, n of them with M points each, for points (P,3) and the frames' poses (n,4,4).

    Returns the Hessian (n,6,6) and gradient (n,6) of camera-space pose steps (rotation vector, translation); and, if
    `jacobians`, the weighted Jacobians by pose and by point side by side, (n,M,2,9), and the weighted residuals (n,M,2),
    both empty otherwise.
    """
    return _sums(points, tracks.index(frames), np.ascontiguousarray(tracks.pixels[frames], float), tracks.sigma,
                 np.ascontiguousarray(poses, float), *map(float, intrinsics), jacobians)


@cached_njit(error_model="numpy")
def _sums(points, index, observed, sigma, poses, fx, fy, cx, cy, jacobians):
    count, columns = index.shape
    hess, grad = np.zeros((count, 6, 6)), np.zeros((count, 6))
    kept = count if jacobians else 0
    rows, residuals = np.zeros((kept, columns, 2, 9)), np.zeros((kept, columns, 2))
    row = np.empty((2, 9))
    turned, residual = np.empty(3), np.empty(2)
    for t in range(count):
        pose = poses[t]
        for m in range(columns):
            if not np.isfinite(observed[t, m, 0]):
                continue
            point = points[index[t, m]]
            for i in range(3):
                turned[i] = pose[i, 0] * point[0] + pose[i, 1] * point[1] + pose[i, 2] * point[2]
            x, y, z = turned[0] + pose[0, 3], turned[1] + pose[1, 3], turned[2] + pose[2, 3]
            residual[0] = fx * x / z + cx - observed[t, m, 0]
            residual[1] = fy * y / z + cy - observed[t, m, 1]
            expected = sigma[index[t, m]]
            size = np.hypot(residual[0], residual[1]) / expected
            root = 1 / (np.sqrt(1 + (size / CAUCHY) ** 2) * expected)
            for k in range(2):
                # the projection's derivative by the camera-space point: (along, 0, away) or (0, along, away)
                along, away = (fx / z, -fx * x / z**2) if k == 0 else (fy / z, -fy * y / z**2)
                a, b, c = turned[0], turned[1], turned[2]
                if k == 0:
                    row[k, 0], row[k, 1], row[k, 2] = away * b, along * c - away * a, -along * b
                    row[k, 3], row[k, 4] = along, 0.0
                else:
                    row[k, 0], row[k, 1], row[k, 2] = away * b - along * c, -away * a, along * a
                    row[k, 3], row[k, 4] = 0.0, along
                row[k, 5] = away
                for i in range(3):
                    row[k, 6 + i] = along * pose[k, i] + away * pose[2, i]
                residual[k] *= root
                for i in range(9):
                    row[k, i] *= root
                for i in range(6):
                    grad[t, i] += row[k, i] * residual[k]
                    for j in range(6):
                        hess[t, i, j] += row[k, i] * row[k, j]
            if jacobians:
                for k in range(2):  # the assignment of a whole row takes numba six seconds to compile
                    residuals[t, m, k] = residual[k]
                    for i in range(9):
                        rows[t, m, k, i] = row[k, i]
    return hess, grad, rows, residuals


@cached_njit()
def _by_point(rows, residuals, columns, number):
    """Sums over the frames for each point: Hessian (number,3,3) and gradient (number,3); and the mixed second derivatives by
    pose and point of each frame, (n,6,number,3)."""
    hess, grad = np.zeros((number, 3, 3)), np.zeros((number, 3))
    mixed = np.zeros((len(rows), 6, number, 3))
    for t in range(len(rows)):
        for m in range(columns.shape[1]):
            point = columns[t, m]
            for k in range(2):
                row = rows[t, m, k]
                for i in range(3):
                    grad[point, i] += row[6 + i] * residuals[t, m, k]
                    for j in range(3):
                        hess[point, i, j] += row[6 + i] * row[6 + j]
                    for j in range(6):
                        mixed[t, j, point, i] += row[j] * row[6 + i]
    return hess, grad, mixed


def _moved(poses: np.ndarray, step: np.ndarray) -> np.ndarray:
    """Poses (T,4,4) after camera-space steps (T,6): a rotation vector and a translation."""
    out = poses.copy()
    out[:, :3, :3] = rotation_from_rotvec(step[:, :3]) @ poses[:, :3, :3]
    out[:, :3, 3] += step[:, 3:]
    return out


def unproject(pixels: np.ndarray, depth: np.ndarray, poses: np.ndarray, intrinsics: tuple[float, ...]) -> np.ndarray:
    """Pixels (T,N,2) -> points (T,N,3) float32 metres in head space, on each pixel's ray where head-space z is `depth` (N,)."""
    fx, fy, cx, cy = intrinsics
    points = np.empty((*pixels.shape[:2], 3), np.float32)
    for part in _blocks(len(pixels)):
        x, y = pixels[part, :, 0].astype(float), pixels[part, :, 1].astype(float)
        rays = np.stack([(x - cx) / fx, (y - cy) / fy, np.ones_like(x)], -1)
        rotation, shift = poses[part, :3, :3].astype(float), poses[part, :3, 3].astype(float)
        direction = rays @ rotation
        origin = -np.einsum("tji,tj->ti", rotation, shift)
        along = (depth - origin[:, None, 2]) / direction[..., 2]
        points[part] = origin[:, None] + along[..., None] * direction
    return points
