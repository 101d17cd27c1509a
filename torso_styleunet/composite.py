"""Using a trained torso: load it, draw torso and neck, put the whole frame together."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shared.checkpoint import load_checkpoint, load_module, save_checkpoint
from shared.clip import LARGEST_SIDE
from shared.config import config_from_dict, config_to_dict, shown
from shared.errors import TalkheadError
from torso_styleunet.config import TorsoConfig
from torso_styleunet.model import Torso, over

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


def _draw(torso: Torso, head_rgba: Tensor, poses: Tensor, motion: Tensor) -> Tensor:
    """(B, 4, H, W) straight colour and alpha in [0, 1], after checking what the caller gave."""
    batch = len(head_rgba)
    expected = {"head_rgba": (batch, torso.height, torso.width, 4), "poses": (batch, 4, 4), "motion": (batch, 4)}
    for (name, shape), given in zip(expected.items(), (head_rgba, poses, motion)):
        if tuple(given.shape) != shape:
            raise TalkheadError(f"torso: {name} should be {shape}, found {tuple(given.shape)}")
    head = head_rgba.permute(0, 3, 1, 2)
    with torch.autocast(head.device.type, torch.bfloat16, enabled=head.device.type == "cuda"):
        straight, _ = torso(head, poses, motion)
    return torch.cat([straight[:, :3].clamp(0, 1), torch.sigmoid(straight[:, 3:])], 1)


@torch.no_grad()
def torso_rgba(torso: Torso, head_rgba: Tensor, poses: Tensor, motion: Tensor) -> Tensor:
    """Torso and neck alone: head_rgba (B, H, W, 4) premultiplied, poses (B, 4, 4), motion (B, 4), all on the torso's
    device -> (B, H, W, 4) premultiplied RGBA. Raises TalkheadError for wrong shapes."""
    straight = _draw(torso, head_rgba, poses, motion).permute(0, 2, 3, 1)
    return torch.cat([straight[..., :3] * straight[..., 3:], straight[..., 3:]], -1)


@torch.no_grad()
def composite(torso: Torso, head_rgba: Tensor, poses: Tensor, motion: Tensor, background: Tensor) -> Tensor:
    """The full frame, background ← torso ← head by alpha.

    head_rgba (B, H, W, 4) premultiplied, poses (B, 4, 4) head → camera, motion (B, 4) torso motion in pixels, radians
    and scale, background (H, W, 3) in [0, 1]; all on the torso's device -> (B, H, W, 3) in [0, 1]. Where the head is
    opaque its pixels come through untouched. Raises TalkheadError for wrong shapes.
    """
    if tuple(background.shape) != (torso.height, torso.width, 3):
        raise TalkheadError(f"torso: background should be {(torso.height, torso.width, 3)}, "
                            f"found {tuple(background.shape)}")
    straight = _draw(torso, head_rgba, poses, motion)
    frame = over(head_rgba.permute(0, 3, 1, 2), straight, background.permute(2, 0, 1)[None])
    return frame.clamp(0, 1).permute(0, 2, 3, 1)
