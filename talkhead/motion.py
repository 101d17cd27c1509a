"""Head poses and torso motion for synthesis: how much of the recorded motion is shown, and motion of other people's clips."""

from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation

from shared.avatar import Avatar, motion_track
from shared.camera import pose_matrix
from shared.clip import Clip

BEYOND = 15.0  # degrees from all views of the avatar's own track at which a head shows what no picture checked


def middle(poses: np.ndarray) -> int:
    """The frame of poses (T,4,4) whose rotation is nearest to the mean rotation."""
    turns = Rotation.from_matrix(poses[:, :3, :3])
    return int((turns.mean().inv() * turns).magnitude().argmin())


def scaled(poses: np.ndarray, torso: np.ndarray, gain: float) -> tuple[np.ndarray, np.ndarray]:
    """Poses (T,4,4) and torso motion (T,4) with their deviations from the track's middle frame times `gain`; 0 is still."""
    at = middle(poses)
    return moved(poses, poses[at], poses[at], gain), torso[at] + np.float32(gain) * (torso - torso[at])


def moved(poses: np.ndarray, rest: np.ndarray, new_rest: np.ndarray, gain: float = 1.0) -> np.ndarray:
    """Poses (T,4,4) as they deviate from `rest` (4,4), the deviations put on `new_rest` (4,4).

    Rotations are those about the head's own origin as the camera sees them, t = new_rest's + gain · (t − rest's) in metres,
    R = exp(gain · log(R · rest'sᵀ)) · new_rest's.
    """
    turns = Rotation.from_matrix(poses[:, :3, :3]) * Rotation.from_matrix(rest[:3, :3]).inv()
    rotations = Rotation.from_rotvec(gain * turns.as_rotvec()).as_matrix() @ new_rest[:3, :3]
    return pose_matrix(rotations, new_rest[:3, 3] + gain * (poses[:, :3, 3] - rest[:3, 3]))


def rest_pose(poses: np.ndarray) -> np.ndarray:
    """Mean rotation and mean place (4,4) of poses (T,4,4)."""
    rotation = Rotation.from_matrix(poses[:, :3, :3]).mean().as_matrix()
    return pose_matrix(rotation, poses[:, :3, 3].mean(0, dtype=np.float64))


def clip_folder(poses: str | Path) -> Path | None:
    """The clip that --poses names, by its folder or by its poses file; None for any other file."""
    path = Path(poses)
    folder = path if path.is_dir() else path.parent
    return folder if (folder / "clip.json").is_file() and (path.is_dir() or path.suffix.lower() == ".npy") else None


def borrowed(clip: Clip, avatar: Avatar) -> tuple[np.ndarray, np.ndarray]:
    """The motion of another person's clip for `avatar`: poses (T,4,4) and torso motion (T,4) of its longest unbroken stretch.

    They are relative to that clip's camera and to how that person sits, so only their deviations from their own mean are
    taken, and put on the mean of the avatar's track. A head turns by as many degrees and moves by as many metres as the other
    did; the torso's shifts, which are pixels, are scaled by pixels a metre of the two pictures. Raises TalkheadError.
    """
    own_poses, own_torso = avatar.load_motion()
    frames, _ = motion_track(clip)
    poses, torso = clip.load_poses()[frames], clip.load_torso_motion()[frames].astype(np.float64)
    rest, own_rest = rest_pose(poses), rest_pose(own_poses)
    scale = (avatar.info.intrinsics[0] / own_rest[2, 3]) / (clip.info.intrinsics[0] / rest[2, 3])
    deviation = torso - torso.mean(0)
    deviation[:, :2] *= scale
    return moved(poses, rest, own_rest), (own_torso.mean(0) + deviation).astype(np.float32)


def beyond(poses: np.ndarray, own: np.ndarray) -> float:
    """Degrees by which the rotation of the farthest of `poses` (T,4,4) misses the nearest of the avatar's `own` (M,4,4)."""
    turns, own_turns = (Rotation.from_matrix(some[:, :3, :3]).as_quat() for some in (poses, own))
    nearest = np.concatenate([np.abs(part @ own_turns.T).max(1) for part in np.array_split(turns, len(turns) // 1000 + 1)])
    return float(np.degrees(2 * np.arccos(np.clip(nearest.min(), 0, 1))))
