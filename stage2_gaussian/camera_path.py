"""Where the camera of a free view goes: head poses in, head poses as seen from the moved camera out."""

import numpy as np

from shared.camera import pose_matrix, rotation_from_rotvec


def head_centre(neutral: np.ndarray) -> np.ndarray:
    """neutral (68, 3) -> (3,) midway between the ears, in head space and its units: what a camera goes around."""
    return neutral[[0, 16]].mean(0)


def swing(frames: int, degrees: float, period: float) -> np.ndarray:
    """(frames,) angles in degrees of a sinus of amplitude `degrees` that starts at 0 and takes `period` frames."""
    return degrees * np.sin(2 * np.pi * np.arange(frames) / period)


def orbit(poses: np.ndarray, degrees: float, period: float, centre: np.ndarray) -> np.ndarray:
    """Swing the camera around the head, left and right by `degrees`, `period` frames there and back.

    poses (T, 4, 4) head → camera and centre (3,) in head space -> (T, 4, 4) float32. The camera goes around the vertical
    of the picture (its own y axis) through the head's centre, towards the subject's left first, and keeps its distance;
    the centre stays where it was in every picture. The first pose is unchanged.
    """
    angles = np.radians(swing(len(poses), degrees, period))
    turn = rotation_from_rotvec(angles[:, None] * [0.0, 1.0, 0.0])
    rotation, middle = poses[:, :3, :3].astype(float), poses[:, :3, :3] @ centre + poses[:, :3, 3]
    return pose_matrix(turn @ rotation, middle - (turn @ rotation) @ centre)
