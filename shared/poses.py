"""Pose files: `.npy` (T,4,4), head → camera in OpenCV's axes, metres; other conventions are recognised and refused."""

from pathlib import Path

import numpy as np

from shared.errors import TalkheadError
from shared.landmarks import load_array

NEAREST, FARTHEST = 0.05, 50.0  # metres between head and camera
ORTHONORMAL = 0.02  # by which an entry of R·Rᵀ may miss that of the identity


def load_poses(path: Path | str) -> np.ndarray:
    """Load a pose file: (T,4,4) float32. Raises TalkheadError for anything else, with the likely reason."""
    poses = load_array(path, (4, 4))
    check_poses(poses, str(path))
    return poses


def check_poses(poses: np.ndarray, name: str) -> None:
    """Raise TalkheadError unless each of `poses` (T,4,4) is a rotation and shift that puts the head before the camera."""
    wrong = np.flatnonzero(np.abs(poses[:, 3] - [0, 0, 0, 1]).max(1) > 1e-3)
    if len(wrong):
        swapped = np.abs(poses[:, :, 3] - [0, 0, 0, 1]).max() < 1e-3
        hint = "rows and columns seem to be swapped, so use poses.swapaxes(1, 2)"
        hint = hint if swapped else f"found {_row(poses[wrong[0], 3])}"
        raise TalkheadError(f"{name}: the last row of pose {wrong[0]} should be 0 0 0 1; {hint}")
    rotation, shift = poses[:, :3, :3].astype(np.float64), poses[:, :3, 3]
    with np.errstate(over="ignore", invalid="ignore"):
        product = rotation @ rotation.swapaxes(1, 2)
        wrong = np.flatnonzero(~(np.abs(product - np.eye(3)).max((1, 2)) <= ORTHONORMAL))
    if len(wrong):
        scale = float(np.sqrt(product[wrong[0], 0, 0]))
        scaled = np.abs(product[wrong[0]] - scale**2 * np.eye(3)).max() < ORTHONORMAL * scale**2
        hint = f"its rotation is scaled by {scale:.3g}" if scaled and scale > 0 else "its upper left 3x3 is no rotation"
        raise TalkheadError(f"{name}: pose {wrong[0]} should be a rotation and a shift, but {hint}")
    if len(wrong := np.flatnonzero(np.linalg.det(rotation) < 0)):
        raise TalkheadError(f"{name}: pose {wrong[0]} mirrors the head; expected a rotation, whose determinant is 1")
    if np.median(shift[:, 2]) < 0:
        raise TalkheadError(f"{name}: the head lies behind the camera (z {np.median(shift[:, 2]):.3g} m); expected OpenCV's "
                            "axes, x right, y down, z forward: from OpenGL's, multiply rows 1 and 2 by -1")
    if np.median(rotation[:, 1, 1]) > 0:
        raise TalkheadError(f"{name}: the head stands upside down; expected head → camera in OpenCV's axes, "
                            "x right, y down, z forward")
    if len(wrong := np.flatnonzero((shift[:, 2] < NEAREST) | (shift[:, 2] > FARTHEST))):
        middle = float(np.median(shift[:, 2]))
        unit = "that looks like millimetres: divide the shift by 1000" if middle > 150 else "is it in metres?"
        if middle <= 150 and middle > FARTHEST:
            unit = "that looks like centimetres: divide the shift by 100"
        raise TalkheadError(f"{name}: pose {wrong[0]} puts the head {shift[wrong[0], 2]:.3g} m before the camera, expected "
                            f"{NEAREST} to {FARTHEST:g}; {unit}")
    if len(wrong := np.flatnonzero(np.abs(shift[:, :2]).max(1) > FARTHEST)):
        raise TalkheadError(f"{name}: pose {wrong[0]} shifts the head by {_row(shift[wrong[0]])} m; is it in metres?")


def _row(numbers: np.ndarray) -> str:
    return " ".join(f"{value:.3g}" for value in numbers)
