"""Sharpness of the mouth's interior: how much of the detail of teeth and tongue in the video a render shows.

Detail is a band of spatial frequencies, a difference of two Gaussian low-passes of the grey picture, taken inside the inner lips
alone by normalised convolution (Knutsson and Westin, CVPR 1993), so that the lips' edges have no part in it. Two figures come
of it. *Contrast* is the root of render's energy over the video's: noise raises it. *Sharpness* is the projection of the render's
band onto the video's over the video's energy, the render shifted by up to REACH: detail in other places, noise and blur do not
raise it; 1 is all of the video's detail at its contrast.
"""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from shared.camera import project
from shared.landmarks import LIPS_INNER, lip_opening

OPEN = 4e-3  # metres that the inner lips are apart where teeth can be seen
FINE = 7e-4  # metres: standard deviation of the narrower low-pass; the band is centred on periods of some 4.6 mm, a tooth's width
LEAST_FINE = 0.8  # pixels, the least of it: finer ones are the sampling grid's
OCTAVE = 2.0  # the wider low-pass over the narrower
REACH = 1.5e-3  # metres that the render may be shifted by to lie over the video
STEP = 0.5  # pixels between two shifts that are tried
FEWEST = 20  # pixels of an interior that is measured
GREY = (0.299, 0.587, 0.114)  # ITU-R BT.601


class Detail(NamedTuple):
    """Energies of B mouths in the band, in squared grey levels of 255 summed over pixels; NaN where the mouth is shut."""

    video: Tensor  # (B,)
    render: Tensor  # (B,)
    shared: Tensor  # (B,) the scalar product of both, the render shifted to where it is largest


def measure_detail(shown: Tensor, frames: Tensor, landmarks: Tensor, poses: Tensor, intrinsics: tuple[float, ...]) -> Detail:
    """Rendered and true pictures (B, H, W, 3) in [0, 1], landmarks (B, 68, 3) metres and poses (B, 4, 4) of the true ones."""
    found = torch.full((len(frames), 3), float("nan"), dtype=torch.float64)
    open_rows = np.flatnonzero(lip_opening(landmarks.cpu().numpy()) >= OPEN)
    grey = torch.tensor(GREY, device=frames.device)
    for k in open_rows:
        points = project(landmarks[k, LIPS_INNER], poses[k], intrinsics)
        scale = float(intrinsics[0] / poses[k, 2, 3])  # pixels per metre
        window = _window(points, round(REACH * scale) + 2, frames.shape[1:3])
        true, drawn = ((x[k][window] @ grey) * 255 for x in (frames, shown))
        if not true.numel():
            continue
        corner = points.new_tensor([window[1].start, window[0].start])
        mask = polygon_mask(points - corner, *true.shape)
        fine = max(LEAST_FINE, FINE * scale)
        mask = -F.max_pool2d(-mask.float()[None], 3, 1, 1)[0]  # lips blur into the outermost pixel
        if mask.sum() >= FEWEST:
            shifts = shifted(drawn, REACH * scale)
            bands = band(torch.cat([true[None], drawn[None], shifts]), mask, fine)
            products = (bands * bands[0]).sum((1, 2)).double()
            found[k] = torch.stack([products[0], bands[1].square().sum().double(), products[1:].max()]).cpu()
    return Detail(*found.T)


def sharpness(detail: Detail) -> dict[str, float]:
    """{"contrast", "sharpness"} over all frames together, which weights each by its detail; empty if no mouth is open."""
    video, render, shared = (float(x.nansum()) for x in detail)
    return {"contrast": (render / video) ** 0.5, "sharpness": shared / video} if video > 0 else {}


def _window(points: Tensor, margin: int, size: tuple[int, ...]) -> tuple[slice, slice]:
    """Rows and columns of a picture of `size` around points (N, 2)."""
    low, high = points.amin(0).floor().long() - margin, points.amax(0).ceil().long() + margin + 1
    (x0, y0), (x1, y1) = low.clamp_min(0).tolist(), high.tolist()
    return slice(y0, min(y1, size[0])), slice(x0, min(x1, size[1]))


def polygon_mask(points: Tensor, height: int, width: int) -> Tensor:
    """Corners (N, 2) in pixels -> bool (H, W): pixel centres inside the polygon, by the even–odd rule."""
    x = torch.arange(width, device=points.device) + 0.5
    y = (torch.arange(height, device=points.device) + 0.5)[:, None, None]
    (ax, ay), (bx, by) = points.T, points.roll(-1, 0).T
    crosses = (ay <= y) != (by <= y)
    at = ax + (y - ay) * (bx - ax) / torch.where(by == ay, 1.0, by - ay)
    return (crosses & (at > x[:, None])).sum(-1) % 2 == 1


def band(pictures: Tensor, mask: Tensor, fine: float) -> Tensor:
    """Grey pictures (B, H, W), mask (H, W) 0 or 1 -> their band (B, H, W) inside the mask, which no pixel outside has a part in.

    `fine`: standard deviation of the narrower Gaussian in pixels.
    """
    planes, lows = torch.cat([pictures * mask, mask[None]]), []
    for deviation in (fine, OCTAVE * fine):
        rows, columns = (torch.exp(-0.5 * ((x[:, None] - x) / deviation) ** 2)
                         for x in (torch.arange(size, dtype=mask.dtype, device=mask.device) for size in mask.shape))
        blurred = rows @ planes @ columns
        lows.append(blurred[:-1] / blurred[-1].clamp_min(1e-6))
    return (lows[0] - lows[1]) * mask


def shifted(picture: Tensor, reach: float) -> Tensor:
    """A grey picture (H, W) shifted by all multiples of STEP up to `reach` pixels each way, bicubic -> (n², H, W)."""
    height, width = picture.shape
    most = int(reach / STEP)
    steps = torch.arange(-most, most + 1, device=picture.device, dtype=picture.dtype) * STEP
    x, y = torch.arange(width, device=picture.device), torch.arange(height, device=picture.device)
    u = ((x + steps[:, None] + 0.5) * 2 / width - 1)[None, :, None, :].expand(len(steps), -1, height, -1)
    v = ((y + steps[:, None] + 0.5) * 2 / height - 1)[:, None, :, None].expand(-1, len(steps), -1, width)
    grid = torch.stack([u, v], -1).flatten(0, 1)
    moved = F.grid_sample(picture.expand(len(grid), 1, -1, -1), grid, mode="bicubic", padding_mode="border", align_corners=False)
    return moved[:, 0]
