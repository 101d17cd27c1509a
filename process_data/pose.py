"""Self-calibrating head pose: one shape for the person, one pose a frame, a fixed focal length; then 3-D landmarks.

Bundle adjustment by robust Gauss–Newton on the sparse normal equations. Unknowns are the rigid points of the person
and a rotation vector and translation a frame; second differences of the poses are penalised within each shot.
"""

from dataclasses import dataclass

import numpy as np
from scipy import sparse
from scipy.signal import savgol_filter
from scipy.sparse.linalg import spsolve

from process_data.config import ProcessConfig
from process_data.landmarks68 import MESH68, RIGID, RIGID_WEIGHT
from shared.camera import pose_matrix, rotation_from_rotvec, rotvec_from_rotation, umeyama
from shared.landmarks import EYE_CORNER_DISTANCE, JAW, LIPS, eye_opening, lip_opening

FRONTAL = np.diag([1.0, -1.0, -1.0])
HUBER_PIXELS = 1.0  # at 512²; residuals beyond it count linearly
# how strongly translation is held against rotation by the smoothness term, metres to radians
TRANSLATION_UNIT = 0.1


@dataclass(frozen=True)
class PoseFit:
    """shape (478,3) metres in head space, poses (T,4,4), rms pixel error of the rigid points."""

    shape: np.ndarray
    poses: np.ndarray
    rms: float


def mean_shape(mesh: np.ndarray) -> np.ndarray:
    """Generalised Procrustes mean of weak-perspective meshes (n,478,3) pixels -> (478,3), eye corners 0.09 m apart.

    +x to the subject's left, +y up, +z out of the face, origin midway between the outer eye corners 33 and 263.
    """
    shapes = mesh * [1, -1, -1]
    mean = shapes[np.argmin(np.abs(shapes[:, 33, 2] - shapes[:, 263, 2]))]
    mean = mean - mean[RIGID].mean(0)
    mean = mean / np.linalg.norm(mean[33] - mean[263])
    for _ in range(4):
        aligned = np.empty_like(shapes)
        for t, points in enumerate(shapes):
            scale, rotation, shift = umeyama(points[RIGID], mean[RIGID], RIGID_WEIGHT)
            aligned[t] = scale * points @ rotation.T + shift
        mean = np.median(aligned, axis=0)
    # upright: x axis through the eye corners, symmetric in depth
    x = mean[263] - mean[33]
    y = mean[10] - mean[152]
    x = x / np.linalg.norm(x)
    y = y - x * (x @ y)
    y = y / np.linalg.norm(y)
    axes = np.stack([x, y, np.cross(x, y)])
    mean = (mean - (mean[33] + mean[263]) / 2) @ axes.T
    return mean * (EYE_CORNER_DISTANCE / np.linalg.norm(mean[33] - mean[263]))


def initial_poses(mesh: np.ndarray, shape: np.ndarray, intrinsics: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Weak-perspective poses: rotations (T,3,3) and translations (T,3) metres."""
    fx, fy, cx, cy = intrinsics
    rotations, translations = np.empty((len(mesh), 3, 3)), np.empty((len(mesh), 3))
    for t, points in enumerate(mesh):
        scale, rotation, shift = umeyama(shape[RIGID], points[RIGID] * [1, -1, -1], RIGID_WEIGHT)
        depth = fx / scale
        rotations[t] = FRONTAL @ rotation
        translations[t] = (shift[0] - cx) / fx * depth, (-shift[1] - cy) / fy * depth, depth
    return rotations, translations


def fit(mesh: np.ndarray, shots: list[tuple[int, int]], intrinsics: tuple[float, ...], config: ProcessConfig,
        unit: float) -> PoseFit:
    """Fit shape and poses to the mesh (T,478,3) in pixels, every frame finite; `unit` is one 512²-pixel in pixels."""
    observed = mesh[:, RIGID, :2]
    sample = mesh[np.linspace(0, len(mesh) - 1, min(len(mesh), 200)).astype(int)]
    shape = mean_shape(sample)
    rotations, translations = initial_poses(mesh, shape, intrinsics)
    points = shape[RIGID].copy()
    start = points.copy()
    smooth = _second_differences(len(mesh), shots) * (config.pose_smoothness * unit)
    for _ in range(config.pose_iterations):
        points, rotations, translations, rms = _step(observed, points, start, rotations, translations, intrinsics, smooth,
                                                     unit)
    shape = shape.copy()
    # carry the correction of the rigid points over to the whole mesh, smoothly
    distance = np.linalg.norm(shape[:, None] - start[None], axis=2)
    weight = np.exp(-0.5 * (distance / 0.02) ** 2) + 1e-9
    shape += weight @ (points - start) / (weight.sum(1, keepdims=True) + 1e-3)
    return PoseFit(shape, pose_matrix(rotations, translations), rms)


def _second_differences(count: int, shots: list[tuple[int, int]]) -> sparse.csr_matrix:
    rows = [t for start, stop in shots for t in range(start + 1, stop - 1)]
    index = np.arange(len(rows))
    center = np.array(rows, int)
    data = np.concatenate([np.ones(len(rows)), -2 * np.ones(len(rows)), np.ones(len(rows))])
    columns = np.concatenate([center - 1, center, center + 1])
    return sparse.csr_matrix((data, (np.tile(index, 3), columns)), shape=(len(rows), count))


def _step(observed, points, start, rotations, translations, intrinsics, smooth, unit):
    """One Gauss–Newton step; poses are updated by camera-space rotation vectors and translations."""
    fx, fy, cx, cy = intrinsics
    count, number = observed.shape[:2]
    turned = np.einsum("tij,nj->tni", rotations, points)
    camera = turned + translations[:, None]
    x, y, z = camera[..., 0], camera[..., 1], camera[..., 2]
    residual = np.stack([fx * x / z + cx, fy * y / z + cy], -1) - observed
    size = np.linalg.norm(residual, axis=-1)
    weight = RIGID_WEIGHT * np.minimum(1, HUBER_PIXELS * unit / np.maximum(size, 1e-9))
    rms = float(np.sqrt((RIGID_WEIGHT * size**2).sum() / (RIGID_WEIGHT.sum() * count)))
    project = np.zeros((count, number, 2, 3))
    project[..., 0, 0], project[..., 0, 2] = fx / z, -fx * x / z**2
    project[..., 1, 1], project[..., 1, 2] = fy / z, -fy * y / z**2
    zero = np.zeros_like(x)
    a, b, c = turned[..., 0], turned[..., 1], turned[..., 2]
    skew = np.stack([np.stack([zero, c, -b], -1), np.stack([-c, zero, a], -1), np.stack([b, -a, zero], -1)], -2)
    by_pose = np.concatenate([project @ skew, project], axis=-1)  # (T,N,2,6)
    by_point = project @ rotations[:, None]  # (T,N,2,3)

    root = np.sqrt(weight)[..., None, None]
    by_pose, by_point, r = by_pose * root, by_point * root, residual[..., None] * root
    hess_pose = np.einsum("tnki,tnkj->tij", by_pose, by_pose)
    grad_pose = np.einsum("tnki,tnkl->ti", by_pose, r)
    hess_point = np.einsum("tnki,tnkj->nij", by_point, by_point)
    grad_point = np.einsum("tnki,tnkl->ni", by_point, r)
    cross = np.einsum("tnki,tnkj->tinj", by_pose, by_point).reshape(count * 6, number * 3)

    # prior on the shape fixes the gauge; smoothness couples neighbouring poses (rotation vectors are local, so the
    # second difference of the whole pose is linearised about the present one)
    prior = 0.002 * weight.sum() / number * (fx / z.mean()) ** 2
    hess_point = hess_point + prior * np.eye(3)
    grad_point = grad_point + prior * (points - start)
    scales = np.array([1, 1, 1, 1 / TRANSLATION_UNIT, 1 / TRANSLATION_UNIT, 1 / TRANSLATION_UNIT]) * (fx / z.mean()) * 0.1
    mean_rotation = rotations[len(rotations) // 2]
    state = np.concatenate([rotvec_from_rotation(rotations @ mean_rotation.T), translations], -1)
    banded = (smooth.T @ smooth).tocsr()
    hess = sparse.block_diag(list(hess_pose), format="csr") + sparse.kron(banded, sparse.diags(scales**2), format="csr")
    grad = grad_pose + (banded @ state) * scales**2
    hess = (hess + 1e-6 * sparse.eye(count * 6)).tocsc()
    solved = spsolve(hess, np.column_stack([grad.reshape(-1), cross]))
    schur = -cross.T @ solved[:, 1:]
    for n in range(number):
        schur[3 * n : 3 * n + 3, 3 * n : 3 * n + 3] += hess_point[n]
    step_point = np.linalg.solve(schur, -(grad_point.reshape(-1) - cross.T @ solved[:, 0]))
    step_pose = -(solved[:, 0] + solved[:, 1:] @ step_point)
    step_pose = step_pose.reshape(count, 6)
    return (points + step_point.reshape(number, 3), rotation_from_rotvec(step_pose[:, :3]) @ rotations,
            translations + step_pose[:, 3:], rms)


def landmarks_in_head_space(mesh: np.ndarray, fitted: PoseFit, intrinsics: tuple[float, ...], shots: list[tuple[int, int]],
                            config: ProcessConfig) -> np.ndarray:
    """(T,478,3) pixels -> landmarks (T,68,3) metres: each point on the ray of its pixel, at the depth of the person's shape."""
    fx, fy, cx, cy = intrinsics
    pixels = mesh[:, MESH68, :2]
    rays = np.stack([(pixels[..., 0] - cx) / fx, (pixels[..., 1] - cy) / fy, np.ones(pixels.shape[:2])], -1)
    rotation, shift = fitted.poses[:, :3, :3].astype(float), fitted.poses[:, :3, 3].astype(float)
    direction = np.einsum("tji,tnj->tni", rotation, rays)  # in head space
    origin = -np.einsum("tji,tj->ti", rotation, shift)
    depth = fitted.shape[MESH68, 2]
    along = (depth - origin[:, None, 2]) / direction[..., 2]
    points = origin[:, None] + along[..., None] * direction
    rest = [k for k in range(68) if k not in set(LIPS) | set(range(36, 48)) | set(JAW)]
    for start, stop in shots:
        for group, window in ((rest, config.rest_window), (JAW, 5)):
            if stop - start > window:
                points[start:stop, group] = savgol_filter(points[start:stop, group], window, 2, axis=0)
    return points.astype(np.float32)


def neutral_face(landmarks: np.ndarray) -> np.ndarray:
    """(T,68,3) -> (1,68,3): median of the frames with closed lips and open eyes."""
    lips, eyes = lip_opening(landmarks), eye_opening(landmarks).mean(1)
    closed = lips <= np.quantile(lips, 0.25)
    awake = eyes >= np.quantile(eyes, 0.35)
    chosen = landmarks[closed & awake] if (closed & awake).any() else landmarks[closed]
    return np.median(chosen, axis=0, keepdims=True).astype(np.float32)


def to_convention(landmarks: np.ndarray, poses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Move, turn and scale head space so that the neutral's corners 36 and 45 lie at (∓0.045, 0, 0); pictures stay the same."""
    neutral = neutral_face(landmarks)[0].astype(float)
    right, left = neutral[36], neutral[45]
    scale = EYE_CORNER_DISTANCE / np.linalg.norm(left - right)
    x = (left - right) / np.linalg.norm(left - right)
    z = np.array([0, 0, 1.0]) - x * x[2]
    z = z / np.linalg.norm(z)
    turn = np.stack([x, np.cross(z, x), z])  # new axes in old ones
    middle = (left + right) / 2
    moved = scale * (landmarks - middle) @ turn.T
    # camera = R·old + t with old = turnᵀ·new/scale + middle; the whole scene scales, so pixels do not change
    rotation, shift = poses[:, :3, :3].astype(float), poses[:, :3, 3].astype(float)
    return moved.astype(np.float32), pose_matrix(rotation @ turn.T, scale * (shift + rotation @ middle))
