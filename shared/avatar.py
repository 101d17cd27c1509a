"""The avatar folder: all that synthesis reads. No training frames, no machine path; it can be zipped and moved."""

import dataclasses
import functools
import shutil
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from shared.array_file import is_address, missing
from shared.clip import Clip, check_picture
from shared.config import config_from_dict, shown
from shared.errors import TalkheadError
from shared.files import atomic_path, read_json, write_json
from shared.landmarks import load_array, load_landmarks, save_array
from shared.poses import load_poses
from shared.video_io import read_png

AVATAR_FORMAT = 1
PARTS = ("stage1", "stage2", "torso")


@dataclass(frozen=True)
class AvatarInfo:
    """avatar.json: the person's name, picture size and intrinsics (fx, fy, cx, cy in pixels)."""

    name: str
    width: int
    height: int
    intrinsics: tuple[float, float, float, float]
    fps: int
    format: int = AVATAR_FORMAT


class Avatar:
    """An avatar folder. Making the object touches no file."""

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)
        self.json = self.root / "avatar.json"
        self.stage1 = self.root / "stage1.safetensors"
        self.stage2 = self.root / "stage2.safetensors"
        self.torso = self.root / "torso.safetensors"
        self.neutral = self.root / "neutral.npy"
        self.poses = self.root / "motion_poses.npy"
        self.motion = self.root / "motion_torso.npy"
        self.background = self.root / "background.png"

    @functools.cached_property
    def info(self) -> AvatarInfo:
        if self.root.is_file():
            kind = "zip archive; unzip it and name the folder" if zipfile.is_zipfile(self.root) else "file; name an avatar folder"
            raise TalkheadError(f"{self.root} is a {kind}")
        if is_address(self.root):
            raise TalkheadError(missing(self.root))
        if not self.root.is_dir():
            raise TalkheadError(f"{self.root}: there is no avatar here; train one with `talkhead stage1 finetune`, "
                                "`talkhead stage2 train` and `talkhead torso train`")
        if not self.json.is_file():
            raise TalkheadError(f"{self.root} is not an avatar folder (no avatar.json in it)")
        values: dict[str, Any] = read_json(self.json)
        if values.get("format") != AVATAR_FORMAT:
            raise TalkheadError(f"{self.json}: expected avatar format {AVATAR_FORMAT}, found {shown(values.get('format'))}")
        info = config_from_dict(AvatarInfo, values, str(self.json))
        check_picture(str(self.json), info.width, info.height, info.intrinsics, info.fps)
        return info

    def require(self, *parts: str) -> None:
        """Raise TalkheadError, naming the command that makes it, unless this is an avatar with all the `parts`."""
        _ = self.info
        commands = {"stage1": "stage1 finetune", "stage2": "stage2 train", "torso": "torso train"}
        for part in parts:
            if not getattr(self, part).is_file():
                raise TalkheadError(f"{self.root}: the avatar has no {part} yet; run `talkhead {commands[part]} CLIP`")

    def load_neutral(self) -> np.ndarray:
        """(1,68,3) float32 metres."""
        return load_landmarks(self.neutral)[:1]

    def load_motion(self) -> tuple[np.ndarray, np.ndarray]:
        """The motion track that synthesis loops: poses (M,4,4) and torso motion (M,4)."""
        poses, torso = load_poses(self.poses), load_array(self.motion, (4,))
        if len(poses) != len(torso):
            raise TalkheadError(f"{self.root}: {len(poses)} poses but {len(torso)} torso motions in the motion track")
        return poses, torso

    def load_background(self) -> np.ndarray:
        """(H,W,3) uint8 RGB."""
        return read_png(self.background)


def require_video(clip: Clip) -> None:
    """Raise TalkheadError for a clip of landmarks and sound only, as `talkhead process-voca` makes."""
    _ = clip.info
    if not clip.video.is_file():
        raise TalkheadError(f"{clip.root} has no video; it serves `stage1 pretrain` only")


def create_from_clip(avatar: Avatar, clip: Clip, split: str = "train") -> None:
    """Write manifest, neutral, motion track and background from `clip`; trained parts already there stay.

    The motion track is the longest unbroken stretch of the split within one shot. Raises TalkheadError for a clip without
    video, before anything is written.
    """
    require_video(clip)
    info = clip.info
    indices = clip.split(split)
    if len(indices) == 0:
        raise TalkheadError(f"{clip.root}: the split {split!r} holds no good frame")
    shot = clip.shot_of_frames()[indices]
    breaks = np.flatnonzero((np.diff(indices) != 1) | (np.diff(shot) != 0)) + 1
    stretch = max(np.split(np.arange(len(indices)), breaks), key=len)
    track = indices[stretch]
    save_array(avatar.poses, clip.load_best_poses()[track])
    save_array(avatar.motion, clip.load_torso()[track])
    save_array(avatar.neutral, clip.load_neutral())
    with atomic_path(avatar.background) as partial:
        shutil.copyfile(clip.plate_path(int(shot[stretch[0]])), partial)
    made = AvatarInfo(info.name, info.width, info.height, info.intrinsics, info.fps)
    write_json(avatar.json, dataclasses.asdict(made))
    avatar.__dict__.pop("info", None)
