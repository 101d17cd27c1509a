"""Camera paths for free views, expressed as head poses relative to the moved camera."""

import numpy as np

from shared.camera import pose_matrix, rotation_from_rotvec


def head_centre(neutral: np.ndarray) -> np.ndarray:
    """neutral (68, 3) -> (3,) midpoint between the ears in head space, metres: the centre of orbits."""
    return neutral[[0, 16]].mean(0)


def swing(frames: int, degrees: float, period: float) -> np.ndarray:
    """(frames,) angles in degrees: a sine of amplitude `degrees` and of `period` frames that starts at 0."""
    return degrees * np.sin(2 * np.pi * np.arange(frames) / period)


def orbit(poses: np.ndarray, degrees: float, period: float, centre: np.ndarray) -> np.ndarray:
    """Swing the camera around the head by `degrees` to either side, with a period of `period` frames.

    poses (T, 4, 4) head → camera and centre (3,) in head space -> (T, 4, 4) float32. The camera rotates about the picture's
    vertical (its own y axis) through the centre, towards the subject's left first, at constant distance, so that the centre
    does not move in the picture. The first pose is unchanged.
    """
    angles = np.radians(swing(len(poses), degrees, period))
    turn = rotation_from_rotvec(angles[:, None] * [0.0, 1.0, 0.0])
    rotation, centres = poses[:, :3, :3].astype(float), poses[:, :3, :3] @ centre + poses[:, :3, 3]
    return pose_matrix(turn @ rotation, centres - (turn @ rotation) @ centre)
