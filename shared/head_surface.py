"""The front of an average head through a person's landmarks."""

from collections.abc import Callable

import numpy as np

# An average adult skull, as an arc above the ears; metres, as far as it is seen against the background
SKULL_WIDTH = 1.05  # half-axis over half the distance between the ears: hair lies outside the jaw
SKULL_HEIGHT = 0.15  # of the crown above the ears
SKULL_DEPTH = 0.01  # of the arc behind the ears
FOREHEAD_HEIGHT, FOREHEAD_DEPTH = 0.04, 0.01  # of a point above and behind the brows
DEEPEST = 0.03  # behind the ears, a limit for the surface
ARC_POINTS, ARC_END = 15, 0.1  # of the arc; radians at either end that are left out, where it meets the jaw


def head_surface(neutral: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """The front of the head as depth over the face plane: neutral (68, 3) -> function (N, 2) x, y -> (N,) z, metres.

    A thin-plate spline through the landmarks of `neutral` and an arc of an average skull above the ears, clamped to the depth
    of the outline beyond it.
    """
    from scipy.interpolate import RBFInterpolator  # slow to load, and not needed in the workers

    ears = neutral[[0, 16]]
    middle, ear_y, ear_z = ears.mean(0)
    half_width = np.ptp(ears[:, 0]) / 2
    angles = np.linspace(ARC_END, np.pi - ARC_END, ARC_POINTS)
    arc = np.stack([middle + half_width * SKULL_WIDTH * np.cos(angles), ear_y + SKULL_HEIGHT * np.sin(angles),
                    np.full(ARC_POINTS, ear_z - SKULL_DEPTH)], 1)
    forehead = [middle, neutral[17:27, 1].max() + FOREHEAD_HEIGHT, neutral[17:27, 2].max() - FOREHEAD_DEPTH]
    known = np.concatenate([neutral, arc, [forehead]])
    spline = RBFInterpolator(known[:, :2], known[:, 2], kernel="thin_plate_spline", smoothing=1e-6)

    def depth(xy: np.ndarray) -> np.ndarray:
        return np.clip(spline(xy), ear_z - DEEPEST, neutral[:, 2].max())

    return depth
