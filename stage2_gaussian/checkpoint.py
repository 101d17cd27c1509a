"""The file of a Gaussian head, byte by byte in docs/gaussian_head_format.md: `save_head` writes it, `load_head` reads it."""

from pathlib import Path
from typing import Any

import torch

from shared.checkpoint import load_checkpoint, load_module, save_checkpoint
from shared.config import shown
from shared.errors import TalkheadError
from shared.landmarks import N_LANDMARKS
from stage2_gaussian.blendshapes import GROUPS
from stage2_gaussian.head import Head

FORMAT = "gaussian-head-4"
UNLIMITED = "gaussian-head-3"  # an older format, in which colours may be brighter than white
UNSEEN = 1e-3  # of the unit of a blendshape: 2 µm, .0001 of colour
# tensors in their own precision; the others in half
KEPT = ("positions", "code.centres", "code.log_scales", "code.rotations", "falling.rest", "falling.camera", "blend.gaze.usual",
          "blend.gaze.low", "blend.gaze.high")


def save_head(path: Path, head: Head, meta: dict[str, Any]) -> None:
    """Write a head atomically: means in single precision, the rest in half, with `meta` (JSON-able) in the header.

    Of the blendshapes what cannot be seen is written as 0, since a packed avatar is then smaller.
    """
    basis = head.blend.local_basis()
    tensors = {**head.state_dict(), "blend.basis": basis * (basis.abs() >= UNSEEN)}
    tensors.pop("blend.falloff", None)  # multiplied into the basis
    packed = {name: tensor if name in KEPT else tensor.half() for name, tensor in tensors.items()}
    save_checkpoint(path, packed, {**meta, "format": FORMAT})


def load_head(path: Path | str, device: torch.device | str) -> Head:
    """Read a head written by `save_head` onto `device`. Raises TalkheadError for any other file."""
    tensors, meta = load_checkpoint(path)
    if meta.get("format") not in (FORMAT, UNLIMITED):
        raise TalkheadError(f"{path}: expected a {FORMAT} checkpoint, found {shown(meta.get('format'))}; train stage 2 again")
    dimensions = {"positions": 2, "blend.basis": 3, "code.centres": 2, "blend.networks.0.0.weight": 2, "shading.basis": 3}
    for name, count in dimensions.items():
        if name not in tensors or tensors[name].ndim != count:
            raise TalkheadError(f"{path} is damaged or of another version: it should hold the tensor {name!r} of {count} "
                                "dimensions")
    if "blend.gaze.basis" in tensors and tensors["blend.gaze.basis"].ndim != 3:
        raise TalkheadError(f"{path} is damaged or of another version: it should hold the tensor 'blend.gaze.basis' of 3 "
                            "dimensions")
    eyes = tensors["blend.gaze.basis"].shape[1] if "blend.gaze.basis" in tensors else 0
    count, (rank, moving, _) = len(tensors["positions"]), tensors["blend.basis"].shape
    centres = tensors["code.centres"].float()
    if rank < len(GROUPS) or not 1 <= moving <= count or eyes > moving or centres.shape != (N_LANDMARKS, 3):
        raise TalkheadError(f"{path} is damaged: {count} splats, {moving} that move by {rank} coefficients"
                            f"{f', {eyes} with the gaze' if eyes else ''} and {len(centres)} landmarks do not go together")
    head = load_module(lambda: Head(centres, torch.zeros(count, 3), torch.ones(count), torch.zeros(count, 3), moving=moving,
                                    rank=rank, hidden=len(tensors["blend.networks.0.0.weight"]),
                                    pose_rank=len(tensors["shading.basis"]), falling="falling.follow" in tensors,
                                    eyes=eyes), tensors, path)
    if meta["format"] == UNLIMITED:
        head.brightest = float("inf")
    return head.to(device).eval().requires_grad_(False)
