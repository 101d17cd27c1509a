"""How well a trained head shows frames it has not seen, driven by their tracked landmarks and poses."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from shared.clip import Clip
from shared.landmarks import LIPS
from shared.metrics import psnr, ssim
from shared.training import progress
from stage2_gaussian.dataset import Batch, HeadFrames, box_mask
from stage2_gaussian.head import Head
from stage2_gaussian.losses import over
from stage2_gaussian.render import load_head, render_head
from stage2_gaussian.train import refined

ALIGN_STEPS = 30
ALIGN_RATE = 2e-3  # radians, and tenths of metres


def evaluate(clip: Clip, head_path: Path | str, *, splits: Iterable[str], device: torch.device, align: bool = False,
             quiet: bool = False, batch: int = 8) -> dict[str, dict[str, float]]:
    """PSNR (dB) and SSIM by split: {split: {"full psnr": …, "head psnr": …, "mouth psnr": …, "… ssim": …}}.

    The protocol: the rendered head is composited over the true frame where the labels show torso, neck or background,
    and over the plate where they show the head or lie in the band along its outline (see `dataset.matte`). "full" is the
    whole frame, "head" the pixels labelled head or mouth interior, "mouth" the lips' bounding box enlarged by a quarter of
    its width. With `align`, columns "aligned …" follow: the same after each frame's pose was fitted to the picture, which
    tells errors of tracking from errors of the head.
    """
    head = load_head(head_path, device)
    table = {}
    for split in splits:
        data = HeadFrames(clip, clip.split(split), device)
        sums: dict[str, float] = {}
        with progress(len(data), f"measuring {split}", quiet=quiet, unit="frame") as bar:
            for start in range(0, len(data), batch):
                frames = data.batch(np.arange(start, min(start + batch, len(data))))
                for prefix in ("", "aligned ") if align else ("",):
                    poses = fit_poses(head, frames, data) if prefix else frames.poses
                    for name, value in measure(head, frames, poses, data).items():
                        sums[prefix + name] = sums.get(prefix + name, 0.0) + value * len(poses)
                bar.update(len(frames.poses))
        table[split] = {name: value / len(data) for name, value in sums.items()}
    return table


@torch.no_grad()
def measure(head: Head, frames: Batch, poses: Tensor, data: HeadFrames) -> dict[str, float]:
    """Mean PSNR and SSIM of one batch, rendered at `poses` (B, 4, 4), rounded to 8 bits."""
    rgba = render_head(head, frames.landmarks, poses, data.intrinsics, data.width, data.height)
    shown = (over(rgba, frames.behind).clamp(0, 1) * 255).round() / 255
    mouth = box_mask(frames.landmarks, frames.poses, data.intrinsics, data.width, data.height, LIPS)
    values = {}
    info = data.clip.info
    share = data.width * data.height / (info.width * info.height)
    # outside the window the composite is the true frame: no error there
    values["full psnr"] = psnr(shown, frames.frames) - 10 * float(np.log10(share))
    values["full ssim"] = 1 - share * (1 - ssim(shown, frames.frames))
    for name, mask in (("head", frames.head), ("mouth", mouth)):
        values[f"{name} psnr"] = psnr(shown, frames.frames, mask)
        values[f"{name} ssim"] = ssim(shown, frames.frames, mask)
    return values


def fit_poses(head: Head, frames: Batch, data: HeadFrames) -> Tensor:
    """Poses (B, 4, 4) moved by gradient descent until the render fits the pictures best, least squares on colour."""
    refinement = torch.zeros(len(frames.poses), 6, device=frames.poses.device, requires_grad=True)
    optimizer = torch.optim.Adam([refinement], lr=ALIGN_RATE)
    for step in range(ALIGN_STEPS):
        optimizer.param_groups[0]["lr"] = ALIGN_RATE * (1 - step / ALIGN_STEPS)
        rgba = render_head(head, frames.landmarks, refined(frames.poses, refinement), data.intrinsics, data.width,
                           data.height)
        error = (over(rgba, frames.behind) - frames.frames).square().mean((1, 2, 3)).sum()
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
    return refined(frames.poses, refinement.detach())
