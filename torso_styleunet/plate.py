"""The mean torso plate: what the person's torso and neck look like when their motion is taken out.

Frames are brought onto the reference by the inverse of their torso motion; a pixel's colour is the median over the
frames that show torso or neck there, its alpha the share of torso and neck among the frames in which the head does
not hide it. What the head always hides is filled: the neck goes on upwards under the chin.
"""

from collections.abc import Iterable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from shared.clip import BACKGROUND, HEAD, NECK, TORSO
from shared.errors import TalkheadError
from torso_styleunet.warp import frame_to_plate, pixel_centres, plate_to_frame, sample

LOGIT_LIMIT = 6.0
NECK_EXTENSION = 0.15  # of the height: how far the neck goes on behind the head


def push_pull(values: Tensor, weights: Tensor) -> Tensor:
    """Fill where weights are zero, smoothly and at every distance; where they are one the values stay.

    values (C, H, W), weights (1, H, W) in [0, 1] -> (C, H, W). Weighted averages go down a pyramid and come back up
    into the holes (Gortler et al., The Lumigraph, SIGGRAPH 1996, §4.3). All-zero weights give zeros.
    """
    height, width = values.shape[-2:]
    if height == 1 and width == 1:
        return values * (weights > 0)
    pad = (0, width % 2, 0, height % 2)
    mass = F.avg_pool2d(F.pad(weights[None], pad), 2)
    coarse = F.avg_pool2d(F.pad((values * weights)[None], pad), 2) / mass.clamp(min=1e-8)
    filled = push_pull(coarse[0], (4 * mass[0]).clamp(max=1))
    filled = F.interpolate(filled[None], scale_factor=2, mode="bilinear", align_corners=False)[0, :, :height, :width]
    return values * weights + filled * (1 - weights)


def masked_median(values: Tensor, mask: Tensor) -> Tensor:
    """Median over the first axis of the values whose mask is true: (N, C, P) and (N, P) -> (C, P); 0 where none is."""
    count = mask.sum(0)
    ordered = values.masked_fill(~mask[:, None], float("inf")).sort(0).values
    low = ((count - 1).clamp(min=0) // 2).expand(1, values.shape[1], -1)
    high = (count // 2).clamp(max=len(values) - 1).expand(1, values.shape[1], -1)
    median = (ordered.gather(0, low) + ordered.gather(0, high))[0] / 2
    return torch.where(count > 0, median, torch.zeros_like(median))


def build_plate(frames: Iterable[tuple[np.ndarray, np.ndarray]], motions: Tensor, margin: int) -> Tensor:
    """(frame uint8 (H, W, 3), labels uint8 (H, W)) for every row of motions (N, 4)
    -> plate (4, H + 2·margin, W + 2·margin): straight RGB in [0, 1] and the logit of alpha, within ±6.

    Works on the device of `motions`. Raises TalkheadError where no frame shows a torso or a neck.
    """
    device = motions.device
    pictures, seen_labels = [], []
    for (frame, labels), motion in zip(frames, motions, strict=True):
        height, width = labels.shape
        points = pixel_centres(height + 2 * margin, width + 2 * margin, device) - margin
        points = plate_to_frame(points[None], motion[None], width, height)
        picture = torch.as_tensor(frame, device=device).permute(2, 0, 1).float()
        pictures.append(sample(picture, points)[0].round().byte())
        masks = labels == TORSO, labels == NECK, labels == BACKGROUND, labels >= HEAD
        onehot = torch.stack([torch.as_tensor(mask, device=device).float() for mask in masks])
        inside = ((points > 0) & (points < torch.tensor([width, height], device=device))).all(-1)
        seen_labels.append((sample(onehot, points) * inside[:, None])[0].half())
    return _reduce(torch.stack(pictures), torch.stack(seen_labels))


def _reduce(pictures: Tensor, labels: Tensor) -> Tensor:
    """pictures (N, 3, h, w) uint8 and shares of torso, neck, background, head (N, 4, h, w) -> plate (4, h, w)."""
    person = labels[:, 0].float() + labels[:, 1].float()
    if not (person > 0.5).any():
        raise TalkheadError("the labels show no torso and no neck in any training frame; check labels.mkv")
    inner = -F.max_pool2d(-person[:, None], 5, 1, 2)[:, 0] > 0.99  # away from contours, where the background mixes in
    colour = torch.zeros_like(pictures[0], dtype=torch.float32)
    for rows in torch.arange(colour.shape[1], device=colour.device).split(32):
        here = pictures[:, :, rows].flatten(2).float() / 255
        colour[:, rows] = masked_median(here, inner[:, rows].flatten(1)).unflatten(-1, (len(rows), -1))

    torso, neck, background, head = labels.float().sum(0)
    seen = torso + neck + background
    confidence = (seen / 2).clamp(max=1)  # two clear views settle it
    alpha = (torso + neck) / seen.clamp(min=1e-6)
    carried_alpha, carried_neck = _carry_upwards(torch.stack([alpha, (neck > torso).float()]),
                                                (confidence < 1) & (head > 1))
    alpha = torch.maximum(push_pull(alpha[None], confidence[None])[0], carried_alpha)

    known = inner.sum(0).clamp(max=2).float() / 2
    skin = push_pull(colour, (known * (neck > torso))[None])
    behind = carried_neck * (1 - known)  # hidden, and the neck below it goes on there
    colour = colour * (1 - behind) + skin * behind
    colour = push_pull(colour, torch.maximum(known, behind)[None])
    return torch.cat([colour, torch.logit(alpha, 1e-6).clamp(-LOGIT_LIMIT, LOGIT_LIMIT)[None]])


def _carry_upwards(values: Tensor, hidden: Tensor) -> Tensor:
    """values (C, H, W) of the nearest row below carried into hidden (H, W) pixels, column by column, fading out at
    a limit; zero where nothing is hidden or nothing lies below."""
    height = hidden.shape[0]
    reach = max(1, round(NECK_EXTENSION * height))
    rows = torch.arange(height, device=hidden.device)[:, None].expand_as(hidden)
    source = torch.where(hidden, height, rows).flip(0).cummin(0).values.flip(0)
    fade = ((reach - (source - rows)) / (reach / 4)).clamp(0, 1) * hidden * (source < height)
    return values.gather(1, source.clamp(max=height - 1).expand_as(values)) * fade


def warp_plate(plate: Tensor, motion: Tensor, width: int, height: int, margin: int) -> Tensor:
    """Plate (C, h, w) with its margin, motion (B, 4) -> (B, C, H, W): the plate as the frames see it."""
    points = pixel_centres(height, width, plate.device)
    return sample(plate, frame_to_plate(points.expand(len(motion), -1, -1, -1), motion, width, height), margin)
