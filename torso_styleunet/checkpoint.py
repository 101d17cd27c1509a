"""The file of a torso: written by `save_torso`, read by `load_torso`."""

from pathlib import Path
from typing import Any

import torch

from shared.checkpoint import load_checkpoint, load_module, save_checkpoint
from shared.clip import LARGEST_SIDE
from shared.config import config_from_dict, config_to_dict, shown
from shared.errors import TalkheadError
from torso_styleunet.config import TorsoConfig
from torso_styleunet.model import Torso

KIND = "torso"


def save_torso(path: Path | str, torso: Torso, meta: dict | None = None) -> None:
    """Write plate, noise, statistics, weights and the resolved configuration into one file, atomically."""
    header = {"kind": KIND, "config": config_to_dict(torso.config), "width": torso.width, "height": torso.height,
              "margin": torso.margin, **(meta or {})}
    save_checkpoint(path, torso.state_dict(), header)


def load_torso(path: Path | str, device: torch.device | str = "cpu") -> Torso:
    """Read what save_torso wrote, ready to draw. Raises TalkheadError for any other file."""
    tensors, meta = load_checkpoint(path, device)
    if meta.get("kind") != KIND:
        raise TalkheadError(f"{path} should be a torso checkpoint, found {shown(meta.get('kind'))}")
    config = config_from_dict(TorsoConfig, meta.get("config"), str(path))
    sizes: list[Any] = [meta.get(name) for name in ("width", "height", "margin")]
    if not config.channels or any(type(size) is not int or not 0 <= size <= LARGEST_SIDE for size in sizes):
        raise TalkheadError(f"{path} is damaged: its width, height and margin should be pixels, found {shown(sizes)}")
    torso = load_module(lambda: Torso(config, *sizes), tensors, path)
    return torso.to(device).eval().requires_grad_(False)
