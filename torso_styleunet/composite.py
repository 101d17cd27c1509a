"""From a trained torso to whole frames: draws torso and neck, and puts background, torso and head together."""

import torch
from torch import Tensor

from shared.errors import TalkheadError
from torso_styleunet.model import Torso, over


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
