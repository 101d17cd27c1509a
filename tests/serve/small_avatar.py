"""A whole avatar of 64 pixels a side whose networks were never trained: quick to make, and everything runs with it."""

from pathlib import Path

import numpy as np
import torch

from shared.avatar import Avatar
from shared.camera import pose_matrix
from shared.face_check import TEMPLATE
from shared.files import write_json
from shared.landmarks import save_array, save_landmarks
from shared.media.video_io import write_png
from stage1_audio2lmk.checkpoint import save_model
from stage1_audio2lmk.config import Stage1Config
from stage1_audio2lmk.kernel import KernelRegressor
from stage1_audio2lmk.model import LandmarkModel, new_model
from stage2_gaussian.checkpoint import save_head
from stage2_gaussian.head import Head
from torso_styleunet.checkpoint import save_torso
from torso_styleunet.config import TorsoConfig
from torso_styleunet.model import Torso

SIZE = 64


def make_avatar(folder: Path) -> Path:
    """Write folder/me.avatar; returns its path."""
    avatar = Avatar(folder / "me.avatar")
    write_json(avatar.json, {"name": "me", "width": SIZE, "height": SIZE, "intrinsics": [160, 160, SIZE / 2, SIZE / 2],
                             "fps": 25, "format": 1})
    save_landmarks(avatar.neutral, TEMPLATE[None])
    save_array(avatar.poses, np.tile(pose_matrix(np.diag([1.0, -1, -1]), np.array([0, 0, 0.8])), (5, 1, 1)))
    save_array(avatar.motion, np.tile([0.0, 0, 0, 1], (5, 1)))
    write_png(avatar.background, np.full((SIZE, SIZE, 3), 90, np.uint8))
    torch.manual_seed(0)
    config = Stage1Config(dim=8, layers=1, heads=2, components=4, window=5)
    model = LandmarkModel(KernelRegressor(config.kernel(0), 5), new_model(config, 1).transformer, new_model(config, 2), 0.5)
    save_model(avatar.stage1, model, ["me"])
    head = Head(torch.from_numpy(TEMPLATE).float(), torch.randn(60, 3) * 0.05, torch.full((60,), 0.005), torch.rand(60, 3),
                moving=10, rank=5, hidden=4, pose_rank=2)
    save_head(avatar.stage2, head, {})
    save_torso(avatar.torso, Torso(TorsoConfig(steps=1, batch=2, channels=2, max_channels=4, levels=1, style_dim=4),
                                   SIZE, SIZE, 5))
    return avatar.root
