"""The torso plate: the person's torso and neck with their motion removed.

Frames are aligned by the inverse of their torso motion. Where they still disagree, as where a collar moves on a jacket, a pixel
takes part in one of the arrangements only, the one that a third of the frames agree on best. Its colour is the median over
those that show torso or neck there, its alpha the share of torso and neck among those in which the head does not hide it. What
the head always hides is filled in: the neck is continued upwards behind the chin.
"""

from collections.abc import Iterable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from shared.clip import BACKGROUND, HEAD, NECK, TORSO
from shared.errors import TalkheadError
from torso_styleunet.warp import pixel_centres, plate_to_frame, sample

LOGIT_LIMIT = 6.0  # of alpha, 0.25 % from opaque: training can still change it
NECK_EXTENSION = 0.15  # of the picture's height, by which the neck is continued behind the head
ROWS = 32  # of the plate whose median is taken at once, to bound memory
CLEAR_VIEWS = 2  # frames without the head in front that settle a pixel
COMPARED = 256  # pixels: about the width at which frames are compared
WINDOW = 0.07  # of the picture's width, in which frames agree or not
CANDIDATES = 16  # frames of which the one that others agree with best is looked for
AGREEING = 1 / 3  # share of the frames that agree with the candidate best
LEAST_AGREEING = 5  # number of them, if there are as many frames
SPREAD = 2.0  # frames take part up to this multiple of how far the last of them is from the candidate
CONTOUR = 40.0  # grey levels by which torso and background count as different, whatever their colours
EVERYWHERE = 0.5  # weight of how well a candidate agrees all over: neighbouring windows prefer the same one
APART = 255.0  # grey levels; no two frames differ by more


def push_pull(values: Tensor, weights: Tensor) -> Tensor:
    """Fill in values where weights are zero, smoothly and over any distance; values of weight one are unchanged.

    values (C, H, W), weights (1, H, W) in [0, 1] -> (C, H, W). Weighted averages are passed down a pyramid and back
    up into the holes (Gortler et al., The Lumigraph, SIGGRAPH 1996, §4.3). All-zero weights give zeros.
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
    """Median over the first axis of values (N, C, P) whose mask (N, P) is true -> (C, P); 0 where the mask is all false."""
    count = mask.sum(0)
    ordered = values.masked_fill(~mask[:, None], float("inf")).sort(0).values
    low = ((count - 1).clamp(min=0) // 2).expand(1, values.shape[1], -1)
    high = (count // 2).clamp(max=len(values) - 1).expand(1, values.shape[1], -1)
    median = (ordered.gather(0, low) + ordered.gather(0, high))[0] / 2
    return torch.where(count > 0, median, torch.zeros_like(median))


def agreeing(pictures: Tensor, labels: Tensor) -> Tensor:
    """Which aligned frames show the same arrangement around a pixel -> (N, h, w) bool.

    pictures (N, 3, h, w) uint8 and shares of torso, neck, background, head (N, 4, h, w). The mode of the frames, window by
    window: of CANDIDATES frames the one from which the AGREEING-th nearest is least far, and those up to SPREAD times as far.
    That is coherent where a median pixel by pixel may take a collar from some frames and the jacket beside it from others.
    """
    count, _, height, width = pictures.shape
    factor = max(1, round(width / COMPARED))
    small = torch.cat([F.avg_pool2d(picture[None].float(), factor, ceil_mode=True) for picture in pictures])
    shares = torch.cat([F.avg_pool2d(share[None].float(), factor, ceil_mode=True) for share in labels])
    person, seen = shares[:, :2].sum(1), shares[:, :3].sum(1)
    quarter = max(1, round(WINDOW * small.shape[-1] / 4))

    def windows(values: Tensor) -> Tensor:
        coarse = F.avg_pool2d(values[:, None], 4 * quarter, 2 * quarter, quarter, ceil_mode=True)
        return F.avg_pool2d(coarse, 3, 1, 1)[:, 0]

    apart, radii = [], []
    for k in torch.linspace(0, count - 1, min(count, CANDIDATES)).round().long().tolist():
        unlike = (small - small[k]).abs().mean(1) * person * person[k] + CONTOUR * (person - person[k]).abs() * seen * seen[k]
        mass = windows(seen * seen[k])
        apart.append(torch.where(mass > 0.02, windows(unlike) / mass.clamp(min=1e-6), APART))
        comparable = (apart[-1] < APART).sum(0)
        rank = (comparable * AGREEING).ceil().clamp(min=min(LEAST_AGREEING, count)).long() - 1
        radii.append(apart[-1].sort(0).values.gather(0, rank[None])[0])
    radius = torch.stack(radii)
    best = (radius + EVERYWHERE * radius.mean((1, 2), keepdim=True)).argmin(0)[None]
    chosen = torch.stack(apart).gather(0, best[None].expand(1, count, -1, -1))[0]
    slack = SPREAD * radius.gather(0, best) - chosen
    return F.interpolate(slack[:, None], size=(height, width), mode="bilinear", align_corners=False)[:, 0] >= 0


def _if_enough(agree: Tensor, seen: Tensor) -> Tensor:
    """Frames that agree (N, h, w) where CLEAR_VIEWS of them have `seen` (N, h, w) the pixel, elsewhere all."""
    return agree | ((agree & seen).sum(0) < CLEAR_VIEWS)


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
    agree = agreeing(pictures, labels)
    inner &= _if_enough(agree, inner)
    labels = labels * _if_enough(agree, labels[:, :3].sum(1) > 0.5)[:, None]
    color = torch.zeros_like(pictures[0], dtype=torch.float32)
    for rows in torch.arange(color.shape[1], device=color.device).split(ROWS):
        here = pictures[:, :, rows].flatten(2).float() / 255
        color[:, rows] = masked_median(here, inner[:, rows].flatten(1)).unflatten(-1, (len(rows), -1))

    torso, neck, background, head = labels.float().sum(0)
    seen = torso + neck + background
    confidence = (seen / CLEAR_VIEWS).clamp(max=1)
    alpha = (torso + neck) / seen.clamp(min=1e-6)
    carried_alpha, carried_neck = _carry_upwards(torch.stack([alpha, (neck > torso).float()]),
                                                (confidence < 1) & (head > 1))
    alpha = torch.maximum(push_pull(alpha[None], confidence[None])[0], carried_alpha)

    known = inner.sum(0).clamp(max=CLEAR_VIEWS).float() / CLEAR_VIEWS
    skin = push_pull(color, (known * (neck > torso))[None])
    hidden_neck = carried_neck * (1 - known)
    color = color * (1 - hidden_neck) + skin * hidden_neck
    color = push_pull(color, torch.maximum(known, hidden_neck)[None])
    return torch.cat([color, torch.logit(alpha, 1e-6).clamp(-LOGIT_LIMIT, LOGIT_LIMIT)[None]])


def _carry_upwards(values: Tensor, hidden: Tensor) -> Tensor:
    """For hidden (H, W) pixels the values (C, H, W) of the nearest pixel below that is not hidden, fading to zero at a distance
    of NECK_EXTENSION; zero elsewhere."""
    height = hidden.shape[0]
    reach = max(1, round(NECK_EXTENSION * height))
    rows = torch.arange(height, device=hidden.device)[:, None].expand_as(hidden)
    source = torch.where(hidden, height, rows).flip(0).cummin(0).values.flip(0)
    fade = ((reach - (source - rows)) / (reach / 4)).clamp(0, 1) * hidden * (source < height)
    return values.gather(1, source.clamp(max=height - 1).expand_as(values)) * fade
