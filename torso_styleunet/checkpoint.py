"""The file of a torso: written by `save_torso`, read by `load_torso`."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shared.checkpoint import load_checkpoint, load_module, save_checkpoint
from shared.clip import LARGEST_SIDE
from shared.config import config_from_dict, config_to_dict, shown
from shared.errors import TalkheadError
from torso_styleunet.config import TorsoConfig
from torso_styleunet.model import Torso

KIND = "torso"
SINGLE = ("intrinsics", "mean_rotation", "code_mean", "code_scale")  # tensors kept in single precision
NOISE_STEP = 1 / 32  # of white noise stored as int8


def save_torso(path: Path | str, torso: Torso, meta: dict | None = None) -> None:
    """Write plate, noise, statistics, weights and the resolved configuration into one file, atomically.

    The plate's colours are stored in 8 bits, the noise in steps of NOISE_STEP, all else but SINGLE in half precision.
    """
    header = {"kind": KIND, "config": config_to_dict(torso.config), "width": torso.width, "height": torso.height,
              "margin": torso.margin, **(meta or {})}
    state = torso.state_dict()
    plate, noise = state.pop("plate"), state.pop("noise")
    packed = {name: tensor if name in SINGLE else tensor.half() for name, tensor in state.items()}
    packed["plate.color"] = (plate[:3].clamp(0, 1) * 255).round().byte()
    packed["plate.alpha"] = plate[3:].half()
    packed["noise"] = (noise / NOISE_STEP).round().clamp(-127, 127).to(torch.int8)
    save_checkpoint(path, packed, header)


def load_torso(path: Path | str, device: torch.device | str = "cpu") -> Torso:
    """Read what save_torso wrote, ready to draw. Raises TalkheadError for any other file."""
    tensors, meta = load_checkpoint(path, device)
    if meta.get("kind") != KIND:
        raise TalkheadError(f"{path} should be a torso checkpoint, found {shown(meta.get('kind'))}")
    config = config_from_dict(TorsoConfig, meta.get("config"), str(path))
    sizes: list[Any] = [meta.get(name) for name in ("width", "height", "margin")]
    if not config.channels or any(type(size) is not int or not 0 <= size <= LARGEST_SIDE for size in sizes):
        raise TalkheadError(f"{path} is damaged: its width, height and margin should be pixels, found {shown(sizes)}")
    torso = load_module(lambda: Torso(config, *sizes), _unpacked(tensors, path), path)
    return torso.to(device).eval().requires_grad_(False)


def _unpacked(tensors: dict[str, Tensor], path: Path | str) -> dict[str, Tensor]:
    """The tensors of a file as a `Torso` holds them; those of earlier versions were written that way."""
    if not {"plate.color", "plate.alpha", "noise"} <= tensors.keys():
        return tensors
    for name, kind in (("plate.color", torch.uint8), ("noise", torch.int8)):
        if tensors[name].dtype != kind:
            raise TalkheadError(f"{path} is damaged: tensor {name!r} should hold {kind}, found {tensors[name].dtype}")
    whole = {name: tensor.float() if tensor.dtype in (torch.float16, torch.uint8, torch.int8) else tensor
             for name, tensor in tensors.items()}
    color, alpha = whole.pop("plate.color") / 255, whole.pop("plate.alpha")
    if color.shape[1:] != alpha.shape[1:] or color.ndim != 3:
        raise TalkheadError(f"{path} is damaged: plate.color {tuple(color.shape)} and plate.alpha {tuple(alpha.shape)} differ")
    return {**whole, "plate": torch.cat([color, alpha]), "noise": whole["noise"] * NOISE_STEP}
