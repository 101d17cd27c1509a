"""Rotations and the pinhole camera, for NumPy arrays and torch tensors.

Poses are head → camera, 4×4; the camera looks along +z with x right and y down (OpenCV). Intrinsics are
(fx, fy, cx, cy) in pixels, the image spanning [0, W] × [0, H] (a pixel's centre lies at integer + 0.5).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor  # torch takes seconds to load, and worker processes need only the functions of arrays

# torch.eye without data would import torch's compiler, which takes seconds
NO_ROTATION = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))


def rotation_from_rotvec(rotvec: np.ndarray) -> np.ndarray:
    """Rotation vectors (..., 3) radians -> rotation matrices (..., 3, 3)."""
    from scipy.spatial.transform import Rotation  # takes half a second

    rotvec = np.asarray(rotvec)
    return Rotation.from_rotvec(rotvec.reshape(-1, 3)).as_matrix().reshape(*rotvec.shape[:-1], 3, 3)


def rotvec_from_rotation(rotation: np.ndarray) -> np.ndarray:
    """Rotation matrices (..., 3, 3) -> rotation vectors (..., 3) radians."""
    from scipy.spatial.transform import Rotation  # takes half a second

    rotation = np.asarray(rotation)
    return Rotation.from_matrix(rotation.reshape(-1, 3, 3)).as_rotvec().reshape(*rotation.shape[:-2], 3)


def euler_degrees(rotation: np.ndarray) -> np.ndarray:
    """Head → camera rotations (..., 3, 3) -> (..., 3) yaw, pitch, roll in degrees; a frontal face gives zeros."""
    from scipy.spatial.transform import Rotation  # takes half a second

    upright = np.asarray(rotation) @ np.diag([1.0, -1.0, -1.0])
    angles = Rotation.from_matrix(upright.reshape(-1, 3, 3)).as_euler("YXZ", degrees=True)
    return angles.reshape(*upright.shape[:-2], 3)


def rotation_from_euler(degrees: np.ndarray) -> np.ndarray:
    """Yaw, pitch, roll (..., 3) in degrees -> head → camera rotations (..., 3, 3), the inverse of `euler_degrees`."""
    from scipy.spatial.transform import Rotation  # takes half a second

    degrees = np.asarray(degrees)
    upright = Rotation.from_euler("YXZ", degrees.reshape(-1, 3), degrees=True).as_matrix()
    return (upright @ np.diag([1.0, -1.0, -1.0])).reshape(*degrees.shape[:-1], 3, 3)


def pose_matrix(rotation: np.ndarray, translation: np.ndarray) -> np.ndarray:
    """Rotation (..., 3, 3) and translation (..., 3) metres -> pose (..., 4, 4) float32."""
    pose = np.zeros((*np.asarray(translation).shape[:-1], 4, 4), np.float32)
    pose[..., :3, :3] = rotation
    pose[..., :3, 3] = translation
    pose[..., 3, 3] = 1
    return pose


def so3_exp(rotvec: Tensor) -> Tensor:
    """Rotation vectors (..., 3) -> rotation matrices (..., 3, 3), differentiable at zero (Rodrigues' formula)."""
    import torch

    angle2 = (rotvec * rotvec).sum(-1, keepdim=True)[..., None]
    angle = (angle2 + 1e-12).sqrt()
    x, y, z = rotvec.unbind(-1)
    zero = torch.zeros_like(x)
    skew = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).reshape(*rotvec.shape[:-1], 3, 3)
    identity = torch.eye(3, dtype=rotvec.dtype, device=rotvec.device)
    return identity + torch.sin(angle) / angle * skew + (1 - torch.cos(angle)) / (angle * angle) * skew @ skew


def quaternion_from_matrix(rotation: Tensor) -> Tensor:
    """Rotation matrices (..., 3, 3) -> unit quaternions (..., 4), wxyz, the largest component positive.

    Shepperd's method, all four branches computed and the best-conditioned one chosen, so it is batched and smooth.
    """
    import torch

    m = rotation
    trace = m[..., 0, 0] + m[..., 1, 1] + m[..., 2, 2]
    rows = [
        torch.stack([1 + trace, m[..., 2, 1] - m[..., 1, 2], m[..., 0, 2] - m[..., 2, 0],
                     m[..., 1, 0] - m[..., 0, 1]], -1),
        torch.stack([m[..., 2, 1] - m[..., 1, 2], 1 + 2 * m[..., 0, 0] - trace, m[..., 1, 0] + m[..., 0, 1],
                     m[..., 2, 0] + m[..., 0, 2]], -1),
        torch.stack([m[..., 0, 2] - m[..., 2, 0], m[..., 1, 0] + m[..., 0, 1], 1 + 2 * m[..., 1, 1] - trace,
                     m[..., 2, 1] + m[..., 1, 2]], -1),
        torch.stack([m[..., 1, 0] - m[..., 0, 1], m[..., 2, 0] + m[..., 0, 2], m[..., 2, 1] + m[..., 1, 2],
                     1 + 2 * m[..., 2, 2] - trace], -1),
    ]
    candidates = torch.stack(rows, -2)
    best = torch.diagonal(candidates, dim1=-2, dim2=-1).argmax(-1)
    chosen = torch.take_along_dim(candidates, best[..., None, None], -2).squeeze(-2)
    return chosen / chosen.norm(dim=-1, keepdim=True)


def matrix_from_quaternion(quaternion: Tensor) -> Tensor:
    """Quaternions (..., 4) wxyz, normalised here -> rotation matrices (..., 3, 3)."""
    import torch

    w, x, y, z = (quaternion / quaternion.norm(dim=-1, keepdim=True)).unbind(-1)
    rows = [
        1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
        2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
        2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
    ]
    return torch.stack(rows, -1).reshape(*quaternion.shape[:-1], 3, 3)


def quaternion_multiply(a: Tensor, b: Tensor) -> Tensor:
    """Hamilton product of quaternions (..., 4) wxyz: the rotation b followed by a."""
    import torch

    aw, ax, ay, az = a.unbind(-1)
    bw, bx, by, bz = b.unbind(-1)
    return torch.stack(
        [
            aw * bw - ax * bx - ay * by - az * bz,
            aw * bx + ax * bw + ay * bz - az * by,
            aw * by - ax * bz + ay * bw + az * bx,
            aw * bz + ax * by - ay * bx + az * bw,
        ],
        -1,
    )


def project(points, pose, intrinsics):
    """points (..., N, 3) metres, pose (..., 4, 4) head→camera, intrinsics (4,) -> (..., N, 2) pixels.

    Takes all NumPy arrays or all torch tensors; leading dimensions broadcast.
    """
    camera = points @ pose[..., :3, :3].swapaxes(-1, -2) + pose[..., None, :3, 3]
    fx, fy, cx, cy = intrinsics
    u = fx * camera[..., 0] / camera[..., 2] + cx
    v = fy * camera[..., 1] / camera[..., 2] + cy
    if isinstance(u, np.ndarray):
        return np.stack([u, v], -1)
    import torch

    return torch.stack([u, v], -1)


def umeyama(source: np.ndarray, target: np.ndarray, weights: np.ndarray | None = None,
            with_scale: bool = True) -> tuple[float, np.ndarray, np.ndarray]:
    """Best similarity with target ≈ scale·R·source + t for points (N, D); returns (scale, R (D,D), t (D,)).

    Weighted least squares after Umeyama, PAMI 1991.
    """
    w = np.ones(len(source)) if weights is None else np.asarray(weights, float)
    w = w / w.sum()
    mean_source, mean_target = w @ source, w @ target
    a, b = source - mean_source, target - mean_target
    u, singular, vt = np.linalg.svd((b * w[:, None]).T @ a)
    sign = np.ones(len(singular))
    sign[-1] = np.sign(np.linalg.det(u) * np.linalg.det(vt))
    rotation = (u * sign) @ vt
    scale = float((singular * sign).sum() / (w @ (a * a).sum(1))) if with_scale else 1.0
    return scale, rotation, mean_target - scale * rotation @ mean_source


def mean_rotation(rotations: Tensor) -> Tensor:
    """rotations (T, 3, 3) -> (3, 3), the rotation nearest to their mean: its polar factor, without a reflection."""
    import torch

    u, _, vt = torch.linalg.svd(rotations.mean(0))
    return u @ torch.diag(torch.tensor([1, 1, torch.det(u @ vt).sign()]).to(u)) @ vt


def turn_from(rest: Tensor, rotations: Tensor) -> Tensor:
    """rest (3, 3), rotations (B, 3, 3) -> (B, 3): sine of the angle between them times the axis, in the camera's frame."""
    import torch

    turn = rotations @ rest.mT
    skew = (turn - turn.mT) / 2
    return torch.stack([skew[:, 2, 1], skew[:, 0, 2], skew[:, 1, 0]], -1)
