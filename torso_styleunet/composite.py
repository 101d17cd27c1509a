"""From a trained torso to whole frames: draws torso and neck, and puts background, torso and head together."""

import torch
from torch import Tensor

from shared.errors import TalkheadError
from torso_styleunet.model import Torso, composite_layers


@torch.no_grad()
def draw_torso(torso: Torso, head_rgba: Tensor, poses: Tensor, motion: Tensor) -> Tensor:
    """Torso and neck alone -> (B, 4, H, W) straight colour and alpha in [0, 1]; arguments and errors as of `composite`."""
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
def composite(torso: Torso, head_rgba: Tensor, poses: Tensor, motion: Tensor, background: Tensor) -> Tensor:
    """The full frame: head over torso over background.

    head_rgba (B, H, W, 4) premultiplied, poses (B, 4, 4) head → camera, motion (B, 4) torso motion in pixels, radians
    and scale, background (H, W, 3) in [0, 1]; all on the torso's device -> (B, H, W, 3) in [0, 1]. Where the head is
    opaque its pixels are unchanged. Raises TalkheadError for wrong shapes.
    """
    if tuple(background.shape) != (torso.height, torso.width, 3):
        raise TalkheadError(f"torso: background should be {(torso.height, torso.width, 3)}, "
                            f"found {tuple(background.shape)}")
    torso_rgba = draw_torso(torso, head_rgba, poses, motion)
    frame = composite_layers(head_rgba.permute(0, 3, 1, 2), torso_rgba, background.permute(2, 0, 1)[None])
    return frame.clamp(0, 1).permute(0, 2, 3, 1)
