"""A clip folder of a few frames in which nothing moves."""

from pathlib import Path

import numpy as np

from shared.camera import pose_matrix
from shared.clip import Clip, ClipInfo, Shot
from shared.face_check import TEMPLATE
from shared.landmarks import save_array, save_landmarks
from shared.media.video_io import write_png
from shared.torso_motion import AT_REST, save_torso_motion


def make_still_clip(root: Path, frames: int, train: tuple[int, int]) -> Clip:
    """A new clip in `root` whose video is no video; `train` is its only split, start ≤ t < stop."""
    clip = Clip(root)
    clip.root.mkdir()
    clip.video.write_bytes(b"video")
    save_landmarks(clip.landmarks, np.tile(TEMPLATE, (frames, 1, 1)))
    save_landmarks(clip.neutral, TEMPLATE[None])
    save_array(clip.poses, np.tile(pose_matrix(np.diag([1.0, -1, -1]), np.array([0, 0, 1.0])), (frames, 1, 1)))
    save_torso_motion(clip.torso_motion, np.tile(np.float32(AT_REST), (frames, 1)))
    write_png(clip.background, np.zeros((16, 16, 3), np.uint8))
    clip.save_info(ClipInfo("me", "me.mov", "00", 16, 16, frames, (20.0, 20.0, 8.0, 8.0), (0, 0, 16),
                            [Shot(0, frames, "background.png")], split={"train": [train]}))
    return clip
