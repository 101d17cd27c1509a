"""Head poses and torso motion for synthesis: how much of the recorded motion is shown, and motion of other people's clips."""

import difflib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from shared.avatar import Avatar, motion_track
from shared.camera import pose_matrix
from shared.clip import Clip
from shared.errors import TalkheadError
from shared.fixations import Fixations
from shared.landmarks import FPS
from shared.poses import load_poses
from shared.torso_motion import SIMILARITY

APART_SECONDS = 0.1  # by which sound, poses and landmarks may differ in length without a word
BEYOND = 15.0  # degrees from all views of the avatar's own track at which a head shows what no picture checked


def ping_pong(count: int, length: int, start: int = 0) -> np.ndarray:
    """Indices (count,) from `start` on of a loop 0…length−1, back to 0 and on, in which no step is larger than one."""
    if length == 1:
        return np.zeros(count, np.int64)
    phase = np.arange(start, start + count) % (2 * length - 2)
    return np.where(phase < length, phase, 2 * length - 2 - phase)


def poses_file(poses: str | Path) -> Path | None:
    """The file or clip that --poses names, unless it is loop or still."""
    return None if str(poses) in ("loop", "still") else Path(poses)


class Motion(NamedTuple):
    """Of n frames: poses (n,4,4), torso motion (n, 4 + 2·k²), see shared.torso_motion, and their places (n,) in the avatar's
    own track; None for other poses."""

    poses: np.ndarray
    torso: np.ndarray
    track: np.ndarray | None


class MotionTrack:
    """Head poses, torso motion and gaze of any number of frames: the avatar's own "loop" back and forth, "still" at its middle
    frame, a poses file in the avatar's own camera, or another person's clip (see `borrowed`).

    `gain` times their deviations from the middle frame are shown, 0 … 1; the stored torso goes with 0 and 1 of the own track,
    in between the network draws it. The eyes look where they did in the track's frames; where the head stands still, or moves as
    it never did, they look around by `seed`, see `Fixations`. Poses from elsewhere are held to what the avatar's clip shows,
    `Avatar.pose_range`, unless `limit` is False. Raises TalkheadError.
    """

    def __init__(self, avatar: Avatar, mode: str | Path = "loop", gain: float = 1.0, limit: bool = True,
                 seed: int = 0) -> None:
        if not 0 <= gain <= 1:
            raise TalkheadError(f"--head-motion should be a number from 0 to 1, found {gain:g}")
        self.own, torso = avatar.load_motion()
        self.poses, self.torso = self.own, torso
        self.looks = avatar.load_gaze()
        self.track: np.ndarray | None = np.arange(len(self.own))
        path = poses_file(mode)
        self.from_file = path is not None
        if path is not None:
            self.poses, self.torso = _from_file(path, avatar)
            self.track = None
        self.fixations: Fixations | None = None
        if self.from_file or str(mode) == "still" or gain == 0:
            self.fixations = Fixations(self.looks, seed)
        if str(mode) == "still" or gain == 0:
            one = middle(self.poses)
            at = slice(one, one + 1)
            self.poses, self.torso, self.track = self.poses[at], self.torso[at], None if self.track is None else self.track[at]
        elif gain < 1:
            (self.poses, self.torso), self.track = scaled(self.poses, self.torso, gain), None
        self.limited = limit and self.from_file
        self._changed: list[str] = []
        if self.limited:
            self.poses, self._changed = avatar.pose_range().limited(self.poses)

    def at(self, start: int, stop: int) -> Motion:
        """The motion of frames start ≤ t < stop."""
        index = ping_pong(stop - start, len(self.poses), start)
        return Motion(self.poses[index], self.torso[index], None if self.track is None else self.track[index])

    def gaze_at(self, start: int, stop: int) -> np.ndarray:
        """The gaze (n,2) of frames start ≤ t < stop, eye widths; NaN of an avatar that has none."""
        if self.fixations is not None:
            return self.fixations.at(start, stop)
        return self.looks[ping_pong(stop - start, len(self.looks), start)]

    def warnings(self, frames: int) -> list[str]:
        """Sentences on a poses file that is shorter than a video of `frames` frames (a single pose stands still, as it should),
        was held to the pose range, or turns the head further than the avatar was filmed."""
        if not self.from_file:
            return []
        found, own = [], len(self.poses)
        if own > 1 and (frames - own) / FPS > APART_SECONDS:
            found.append(f"the poses last {own / FPS:.1f} s, the video {frames / FPS:.1f} s; they go back and forth until it "
                         "ends")
        found += self._changed
        if not self.limited and (further := beyond(self.poses, self.own)) > BEYOND:
            found.append(f"the poses turn the head up to {further:.0f} degrees further than the avatar's own motion does; it "
                         "shows there what no picture checked")
        return found


def _from_file(path: Path, avatar: Avatar) -> tuple[np.ndarray, np.ndarray]:
    """Poses and torso motion that a file or a clip gives to `avatar`."""
    folder = clip_folder(path)
    if folder is not None:
        clip = Clip(folder)
        if path.is_dir() or clip.identity() not in {part["clip"] for part in avatar.info.parts.values()}:
            return borrowed(clip, avatar)
    elif path.is_dir() or not path.exists() and path.suffix.lower() != ".npy":
        near = difflib.get_close_matches(str(path).lower(), ("loop", "still"), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise TalkheadError(f"--poses takes loop, still, a clip or a poses .npy file, found {str(path)!r}{hint}")
    poses, torso = load_poses(path), avatar.load_motion()[1]
    return poses, torso[ping_pong(len(poses), len(torso))]


def middle(poses: np.ndarray) -> int:
    """The frame of poses (T,4,4) nearest to their mean, in radians of rotation plus radians of shift as the camera sees it."""
    from scipy.spatial.transform import Rotation  # takes half a second

    turns, places = Rotation.from_matrix(poses[:, :3, :3]), poses[:, :3, 3]
    shifts = np.linalg.norm(places - places.mean(0), axis=1) / places[:, 2].mean()
    return int(((turns.mean().inv() * turns).magnitude() + shifts).argmin())


def scaled(poses: np.ndarray, torso: np.ndarray, gain: float) -> tuple[np.ndarray, np.ndarray]:
    """Poses (T,4,4) and torso motion (T,4) with their deviations from the track's middle frame times `gain`; 0 is still."""
    at = middle(poses)
    return moved(poses, poses[at], poses[at], gain), torso[at] + np.float32(gain) * (torso - torso[at])


def moved(poses: np.ndarray, rest: np.ndarray, new_rest: np.ndarray, gain: float = 1.0) -> np.ndarray:
    """Poses (T,4,4) as they deviate from `rest` (4,4), the deviations put on `new_rest` (4,4).

    Rotations are those about the head's own origin as the camera sees them, t = new_rest's + gain · (t − rest's) in metres,
    R = exp(gain · log(R · rest'sᵀ)) · new_rest's.
    """
    from scipy.spatial.transform import Rotation  # takes half a second

    turns = Rotation.from_matrix(poses[:, :3, :3]) * Rotation.from_matrix(rest[:3, :3]).inv()
    rotations = Rotation.from_rotvec(gain * turns.as_rotvec()).as_matrix() @ new_rest[:3, :3]
    return pose_matrix(rotations, new_rest[:3, 3] + gain * (poses[:, :3, 3] - rest[:3, 3]))


def rest_pose(poses: np.ndarray) -> np.ndarray:
    """Mean rotation and mean place (4,4) of poses (T,4,4)."""
    from scipy.spatial.transform import Rotation  # takes half a second

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
    did; the torso's shifts, which are pixels, are scaled by pixels a metre of the two pictures. That person's clothes say
    nothing about these, so the avatar's own mean warp stays. Raises TalkheadError.
    """
    own_poses, own_torso = avatar.load_motion()
    frames, _ = motion_track(clip)
    poses, torso = clip.load_poses()[frames], clip.load_torso_motion()[frames, :SIMILARITY].astype(np.float64)
    rest, own_rest = rest_pose(poses), rest_pose(own_poses)
    scale = (avatar.info.intrinsics[0] / own_rest[2, 3]) / (clip.info.intrinsics[0] / rest[2, 3])
    deviation = torso - torso.mean(0)
    deviation[:, :2] *= scale
    made = np.tile(own_torso.mean(0).astype(np.float64), (len(torso), 1))
    made[:, :SIMILARITY] += deviation
    return moved(poses, rest, own_rest), made.astype(np.float32)


def beyond(poses: np.ndarray, own: np.ndarray) -> float:
    """Degrees by which the rotation of the farthest of `poses` (T,4,4) misses the nearest of the avatar's `own` (M,4,4)."""
    from scipy.spatial.transform import Rotation  # takes half a second

    turns, own_turns = (Rotation.from_matrix(some[:, :3, :3]).as_quat() for some in (poses, own))
    nearest = np.concatenate([np.abs(part @ own_turns.T).max(1) for part in np.array_split(turns, len(turns) // 1000 + 1)])
    return float(np.degrees(2 * np.arccos(np.clip(nearest.min(), 0, 1))))
