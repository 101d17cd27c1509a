"""Torso motion in memory: (T, 4 + 2·n²), a similarity a frame, then the n × n control points of its warp, if there is one.

On disk these are two files: the similarities (T, 4), and beside them, optional, the control points (T, n, n, 2). What uses
them is defined in docs/formats.md.
"""

import math
from pathlib import Path

import numpy as np

from shared.arrays import npy_header
from shared.errors import TalkheadError
from shared.files import remove
from shared.landmarks import load_array, save_array

SIMILARITY = 4  # dx, dy in pixels, angle in radians, scale
AT_REST = (0.0, 0.0, 0.0, 1.0)  # the similarity of no motion
SMALLEST_GRID, LARGEST_GRID = 3, 32  # control points of a warp across the picture and down


def warp_file(path: Path) -> Path:
    """The file of the warp beside the file of the similarities."""
    return path.with_name(f"{path.stem}_warp.npy")


def grid_of(columns: int) -> int:
    """n of a torso motion of 4 + 2·n² columns; 0 without a warp. Raises TalkheadError for another number of columns."""
    n = math.isqrt(max(columns - SIMILARITY, 0) // 2)
    if columns != SIMILARITY + 2 * n * n or n and not SMALLEST_GRID <= n <= LARGEST_GRID:
        raise TalkheadError(f"a torso motion has 4 numbers a frame, or 4 + 2·n² with n from {SMALLEST_GRID} to {LARGEST_GRID}, "
                            f"found {columns}")
    return n


def join_warp(similarities: np.ndarray, warp: np.ndarray) -> np.ndarray:
    """similarities (T, 4), control points (T, n, n, 2) -> (T, 4 + 2·n²)."""
    return np.concatenate([similarities, warp.reshape(len(warp), -1)], 1)


def load_warp(path: Path) -> np.ndarray:
    """(T, n, n, 2) float32 control points, pixels. Raises TalkheadError for anything else."""
    shape = npy_header(path).shape
    n = shape[1] if len(shape) > 1 else 0
    if shape[1:] != (n, n, 2) or not SMALLEST_GRID <= n <= LARGEST_GRID:
        raise TalkheadError(f"{path}: expected shape (T, n, n, 2) with n from {SMALLEST_GRID} to {LARGEST_GRID}, found {shape}")
    return load_array(path, (n, n, 2))


def load_torso_motion(path: Path) -> np.ndarray:
    """The torso motion (T, 4 + 2·n²) float32 of a file of similarities and the file of the warp, if it is there.

    Raises TalkheadError where one is wrong or they differ in length.
    """
    similarities, beside = load_array(path, (SIMILARITY,)), warp_file(path)
    if not beside.is_file():
        return similarities
    warp = load_warp(beside)
    if len(warp) != len(similarities):
        raise TalkheadError(f"{beside}: expected {len(similarities)} frames as in {path.name}, found {len(warp)}")
    return join_warp(similarities, warp)


def save_torso_motion(path: Path, motion: np.ndarray) -> None:
    """Write a torso motion (T, 4 + 2·n²) to `path` and, if it has a warp, to the file beside; else that goes."""
    n = grid_of(motion.shape[1])
    save_array(path, motion[:, :SIMILARITY])
    if n:
        save_array(warp_file(path), motion[:, SIMILARITY:].reshape(len(motion), n, n, 2))
    else:
        remove(warp_file(path))
