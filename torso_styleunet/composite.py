"""From head and torso to whole frames: draws torso and neck, and puts background, torso and head together."""

import numpy as np
import torch
from numba import prange
from torch import Tensor

from shared.compiled import cached_njit
from shared.errors import TalkheadError
from shared.image import premultiply
from shared.torso_motion import grid_of
from torso_styleunet.model import Torso, composite_layers


@torch.no_grad()
def draw_torso(torso: Torso, head_rgba: Tensor, poses: Tensor, motion: Tensor) -> Tensor:
    """Torso and neck alone -> (B, 4, H, W) straight colour and alpha in [0, 1]; arguments and errors as of `composite`."""
    batch = len(head_rgba)
    grid_of(motion.shape[-1])
    expected = {"head_rgba": (batch, torso.height, torso.width, 4), "poses": (batch, 4, 4), "motion": (batch, *motion.shape[1:])}
    for (name, shape), given in zip(expected.items(), (head_rgba, poses, motion)):
        if tuple(given.shape) != shape:
            raise TalkheadError(f"torso: {name} should be {shape}, found {tuple(given.shape)}")
    head = head_rgba.permute(0, 3, 1, 2)
    with torch.autocast(head.device.type, torch.bfloat16, enabled=head.device.type == "cuda"):
        straight, _ = torso(head, poses, motion)
    return torch.cat([straight[:, :3].clamp(0, 1), torch.sigmoid(straight[:, 3:])], 1)


@torch.no_grad()
def composite(torso: Torso, head_rgba: Tensor, poses: Tensor, motion: Tensor, background: Tensor) -> Tensor:
    """The full frame: head over torso over background.

    head_rgba (B, H, W, 4) premultiplied, poses (B, 4, 4) head → camera, motion (B, 4 + 2·n²) torso motion: similarity
    and warp, see warp.py, background (H, W, 3) in [0, 1]; all on the torso's device -> (B, H, W, 3) in [0, 1]. Where the head is
    opaque its pixels are unchanged. Raises TalkheadError for wrong shapes.
    """
    if tuple(background.shape) != (torso.height, torso.width, 3):
        raise TalkheadError(f"torso: background should be {(torso.height, torso.width, 3)}, "
                            f"found {tuple(background.shape)}")
    torso_rgba = draw_torso(torso, head_rgba, poses, motion)
    frame = composite_layers(head_rgba.permute(0, 3, 1, 2), torso_rgba, background.permute(2, 0, 1)[None])
    return frame.clamp(0, 1).permute(0, 2, 3, 1)


@torch.no_grad()
def composite_pictures(head_rgba: Tensor, torso_rgba: Tensor, background: Tensor) -> Tensor:
    """Head over torso over background, as pictures.

    head_rgba (B, H, W, 4) float in [0, 1], premultiplied; torso_rgba (B, H, W, 4) uint8, straight; background (H, W, 3) or
    (B, H, W, 3) uint8; all on one device -> (B, H, W, 3) uint8.
    """
    background = background.expand(len(head_rgba), *background.shape[-3:])
    if head_rgba.device.type == "cpu":
        out = np.empty(background.shape, np.uint8)
        _composite(head_rgba.contiguous().numpy(), torso_rgba.contiguous().numpy(), background.numpy(), out)
        return torch.from_numpy(out)
    rgb, alpha = torso_rgba.float().split([3, 1], -1)
    behind = torch.lerp(background.float(), rgb, alpha / 255)
    return (255 * head_rgba[..., :3] + (1 - head_rgba[..., 3:]) * behind).clamp(0, 255).round().byte()


@torch.no_grad()
def person_pictures(head_rgba: Tensor, torso_rgba: Tensor) -> Tensor:
    """Head over torso over nothing, premultiplied uint8 (B, H, W, 4); arguments as of `composite_pictures`."""
    torso = premultiply(torso_rgba.float() / 255)
    return ((head_rgba + (1 - head_rgba[..., 3:]) * torso).clamp(0, 1) * 255).round().byte()


@cached_njit(parallel=True, fastmath=True)
def _composite(head, torso, background, out):
    """`composite_pictures` in one pass over memory."""
    images, height, width = out.shape[:3]
    full, half = np.float32(255), np.float32(0.5)
    for row in prange(images * height):
        b, y = row // height, row % height
        for x in range(width):
            share = np.float32(torso[b, y, x, 3]) * np.float32(1 / 255)
            clear = np.float32(1) - head[b, y, x, 3]
            for c in range(3):
                plate = np.float32(background[b, y, x, c])
                behind = plate + share * (np.float32(torso[b, y, x, c]) - plate)
                value = full * head[b, y, x, c] + clear * behind
                out[b, y, x, c] = np.uint8(min(max(value, np.float32(0)), full) + half)
