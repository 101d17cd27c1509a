"""From a trained head to pictures."""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from shared.checkpoint import load_checkpoint, save_checkpoint
from shared.errors import TalkheadError
from stage2_gaussian.head import Head
from stage2_gaussian.rasterize import rasterize

FORMAT = "gaussian-head-1"


def save_head(path: Path, head: Head, meta: dict) -> None:
    """Write a head atomically; the blend's basis in half precision. `meta` (JSON-able) is kept beside it."""
    tensors = {name: tensor.half() if name == "blend.basis" else tensor for name, tensor in head.state_dict().items()}
    save_checkpoint(path, tensors, {**meta, "format": FORMAT})


def load_head(path: Path | str, device: torch.device | str) -> Head:
    """Read a head written by `save_head` onto `device`. Raises TalkheadError for any other file."""
    tensors, meta = load_checkpoint(path)
    if meta.get("format") != FORMAT:
        raise TalkheadError(f"{path}: expected a {FORMAT} checkpoint, found {meta.get('format')!r}; train stage 2 again")
    count = len(tensors["positions"])
    rank, moving, _ = tensors["blend.basis"].shape
    head = Head(tensors["code.centres"], torch.zeros(count, 3), torch.ones(count), torch.zeros(count, 3),
                moving=moving, rank=rank, hidden=tensors["blend.network.0.weight"].shape[0])
    head.load_state_dict(tensors)
    return head.to(device).eval().requires_grad_(False)


def render_head(head: Head, landmarks: Tensor, poses: Tensor, intrinsics: tuple[float, ...], width: int,
                height: int) -> Tensor:
    """landmarks (B, 68, 3) metres, poses (B, 4, 4), intrinsics (fx, fy, cx, cy) pixels -> (B, H, W, 4) float.

    RGBA premultiplied by alpha, on the head's device, differentiable when gradients are on.
    """
    device = head.positions.device
    splats = head(landmarks.to(device), poses.to(device))
    rgb, alpha = rasterize(splats.means, splats.quats, splats.scales, splats.opacities, splats.colors, intrinsics, width,
                           height)
    return torch.cat([rgb, alpha], -1)


@torch.no_grad()
def render_sequence(head: Head, landmarks: Tensor, poses: Tensor, intrinsics: tuple[float, ...],
                    width: int, height: int, batch: int = 16) -> Iterator[Tensor]:
    """As `render_head` for T frames, yielded as batches (≤ batch, H, W, 4)."""
    for start in range(0, len(landmarks), batch):
        rows = slice(start, start + batch)
        yield render_head(head, landmarks[rows], poses[rows], intrinsics, width, height)
