"""The head alone, over nothing, from any side: RGBA pictures or a transparent video of a landmark file."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from shared.arrays import runs
from shared.avatar import Avatar
from shared.errors import TalkheadError
from shared.image import straight
from shared.landmarks import FPS, load_landmarks, save_array
from shared.media.spool import readable_again
from shared.media.video_io import TransparentVideoWriter, VideoWriter, write_png
from shared.pose_range import MARGIN, PoseRange
from shared.progress import progress
from shared.publish import WORK, whole_folder
from shared.torso_motion import save_torso_motion
from shared.training import pick_device
from stage2_gaussian import camera_path
from stage2_gaussian.checkpoint import load_head
from stage2_gaussian.render import render_sequence
from talkhead.motion import MotionTrack, middle, poses_file
from talkhead.synthesis import (
    Rendered,
    batch_size,
    sound_under,
    to_uint8,
    unseen,
    unseen_warnings,
    written,
)

RENDERED = re.compile(r"\d{6,}\.png|poses\.npy|torso(_warp)?\.npy")  # what a folder of rendered frames holds
LITTLE = 3.0  # degrees of a swing that one hardly sees
MOST_NAMED = 4  # stretches of frames beyond the clip's views that a warning names
CLUTTER = (WORK, ".lock", ".DS_Store")  # and what may lie there besides


@dataclass(frozen=True)
class Orbit:
    """A camera that swings around the head by `degrees` to either side (None: as far as the avatar's clip shows the head), there
    and back in `period` seconds (None: once in the whole sequence)."""

    degrees: float | None = None
    period: float | None = None

    def __post_init__(self) -> None:
        if not (np.isfinite(self.degrees or 0) and (self.period is None or 0 < self.period < np.inf)):
            raise TalkheadError(f"an orbit is of some degrees in some seconds, found {self.degrees} degrees in {self.period} s")


def covered_swing(covered: PoseRange, poses: np.ndarray) -> float:
    """Degrees by which the camera may swing to either side of the middle one of poses (T,4,4) and see what the clip shows."""
    yaw = covered.away(poses[[middle(poses)]])[0, 0]
    return max(0.0, float(min(covered.high[0] - yaw, yaw - covered.low[0])))


def beyond_warnings(covered: PoseRange, poses: np.ndarray) -> list[str]:
    """A sentence if the camera sees the head of poses (T,4,4) from further round than the clip shows, with the frames."""
    yaw = covered.away(poses)[:, 0]
    further = np.abs(yaw - np.clip(yaw, covered.low[0], covered.high[0]))
    frames = runs(np.flatnonzero(further > MARGIN))
    if not frames:
        return []
    named = [f"{start} to {stop - 1}" if stop - start > 1 else f"{start}" for start, stop in frames[:MOST_NAMED]]
    where = ", ".join(named) + (f" and {len(frames) - MOST_NAMED} more stretches" if len(frames) > MOST_NAMED else "")
    return [f"the camera goes up to {further.max():.0f}° beyond what the clip shows of the head, in frames {where}; "
            "--orbit covered with --poses still stays within"]


class HeadView:
    """What stage 2 shows of a landmark file: T rows of landmarks with their poses, torso motion and gaze.

    `warnings` are sentences on what was given, and `hidden` is how many of the frames that were rendered last show no head.
    """

    def __init__(self, avatar: Avatar, landmarks: Path | str, poses: str | Path = "loop", orbit: Orbit | None = None,
                 pose_limit: bool = True) -> None:
        avatar.require("stage2")
        self.avatar = avatar
        self.hidden = 0
        self.landmarks = load_landmarks(landmarks)
        motion = MotionTrack(avatar, poses, limit=pose_limit)
        self.poses, self.torso, _ = motion.at(0, len(self.landmarks))
        self.gaze = motion.gaze_at(0, len(self.landmarks))
        self.warnings = motion.warnings(len(self.landmarks))
        self.orbits = orbit is not None
        if orbit is not None:
            period = len(self.landmarks) if orbit.period is None else orbit.period * FPS
            centre, covered = camera_path.head_centre(avatar.load_neutral()[0]), avatar.pose_range()
            degrees = covered_swing(covered, self.poses) if orbit.degrees is None else orbit.degrees
            if orbit.degrees is None and degrees < LITTLE:
                self.warnings.append(f"the clip shows the head only up to {degrees:.1f}° to either side, so the camera hardly "
                                     "swings; name degrees with --orbit to go further")
            self.poses = camera_path.orbit(self.poses, degrees, period, centre)
            self.warnings += beyond_warnings(covered, self.poses)

    def __len__(self) -> int:
        return len(self.landmarks)

    @torch.no_grad()
    def batches(self, device: torch.device, quiet: bool) -> Iterator[Tensor]:
        """Premultiplied RGBA (≤ B, H, W, 4) of all rows, in order, with a progress bar."""
        head, info = load_head(self.avatar.stage2, device), self.avatar.info
        self.hidden = 0
        with progress(len(self), "rendering", quiet=quiet, unit="frame") as bar:
            torso = None if self.orbits else torch.from_numpy(self.torso)  # seen from elsewhere, it is no motion of the picture
            for rgba in render_sequence(head, torch.from_numpy(self.landmarks), torch.from_numpy(self.poses), info.intrinsics,
                                        info.width, info.height, batch_size(device), torso, torch.from_numpy(self.gaze)):
                self.hidden += int(unseen(rgba))
                yield rgba
                bar.update(len(rgba))


def check_head_output(output: Path, audio: Path | None) -> bool:
    """Is `output` a transparent video, and not a folder? Raises TalkheadError for what cannot or should not be written."""
    ending = output.suffix.lower()
    if ending in TransparentVideoWriter.endings:
        return True
    if ending in VideoWriter.endings or ending in (".avi", ".gif", ".mpg"):
        raise TalkheadError(f"{output}: a {ending} file holds no transparency; name a .mov, a .webm or a folder")
    if audio is not None:
        raise TalkheadError(f"{output} is to be a folder of pictures, which holds no sound; leave --audio out, or name a "
                            ".mov or a .webm")
    if output.exists() and not (output.is_dir() and all(RENDERED.fullmatch(path.name) or path.name in CLUTTER
                                                        for path in output.iterdir())):
        raise TalkheadError(f"{output} is no folder of rendered frames, so it will not be replaced; name another folder")
    return False


def render_free_view(avatar: Avatar, landmarks: Path | str, output: Path | str, *, poses: str | Path = "loop",
                     orbit: Orbit | None = None, audio: Path | str | None = None, pose_limit: bool = True,
                     device: torch.device | str = "auto", overwrite: bool = False, quiet: bool = False) -> Rendered:
    """Render the head of a landmark file over nothing, straight alpha; returns the number of frames and warnings.

    A .mov or .webm `output` becomes a transparent video with the sound `audio`; any other name a folder of 000000.png, …
    with the poses.npy and torso.npy (and torso_warp.npy) that `composite_folder` needs. Raises TalkheadError.
    """
    output, sound = Path(output), None if audio is None else Path(audio)
    with (written(output, (Path(landmarks), sound, poses_file(poses), *avatar.files()), overwrite),
          readable_again(sound) as track):
        to_video = check_head_output(output, track)
        view, picked = HeadView(avatar, landmarks, poses, orbit, pose_limit), pick_device(device)
        if to_video:
            return _render_to_video(view, output, track, picked, quiet)
        return _render_to_folder(view, output, picked, quiet)


def _render_to_folder(view: HeadView, folder: Path, device: torch.device, quiet: bool) -> Rendered:
    with whole_folder(folder, "torso.npy", lambda name: RENDERED.fullmatch(name) is not None) as partial:
        save_array(partial / "poses.npy", view.poses)
        save_torso_motion(partial / "torso.npy", view.torso)
        pictures = (picture for rgba in view.batches(device, quiet) for picture in to_uint8(straight(rgba)))
        for k, picture in enumerate(pictures):
            write_png(partial / f"{k:06d}.png", picture)
    return Rendered(len(view), view.warnings + unseen_warnings(view.hidden, len(view)))


def _render_to_video(view: HeadView, output: Path, audio: Path | None, device: torch.device, quiet: bool) -> Rendered:
    info = view.avatar.info
    with (sound_under(audio, output.parent, len(view), "landmarks") as (sound, warnings),
          TransparentVideoWriter(output, info.width, info.height, audio=sound) as writer):
        for rgba in view.batches(device, quiet):
            for picture in to_uint8(straight(rgba)):
                writer.write(picture)
    return Rendered(len(view), view.warnings + warnings + unseen_warnings(view.hidden, len(view)))
