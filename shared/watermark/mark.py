"""Marking frames: a faint pattern of large cells that swells and fades once in 20 frames, stronger where there is texture."""

import numpy as np
import torch
from torch import Tensor

from shared.compiled import cached_njit
from shared.landmarks import FPS
from shared.watermark.payload import CELLS, Payload, cells

PERIOD = 20 / 25  # seconds
BLOCK = 8  # pixels along a side of the blocks whose texture is measured
PLAIN, SLOPE, STRONGEST = 0.6, 0.14, 3.0  # grey levels RMS of the mark: without texture, a grey level of texture, at most
SCALE = 1.5  # makes bilinear interpolation between cells ±1 of RMS 1: (∫ (1 - x)² + x²)⁻¹ over 0 … 1


def interpolation(size: int, count: int, cell: float) -> np.ndarray:
    """(size, count) weights of linear interpolation at the centres of `size` pixels between `count` cells of `cell` pixels;
    beyond the outermost centres their values go on."""
    at = np.clip((np.arange(size) + 0.5) / cell - 0.5, 0, count - 1)
    return np.maximum(0, 1 - np.abs(at[:, None] - np.arange(count))).astype(np.float32)


def dither() -> np.ndarray:
    """(8, 8) in 0 … 1: Bayer's ordered dither, by which amplitudes below one grey level come out right on average."""
    ranks = np.zeros((1, 1))
    for _ in range(3):
        ranks = np.block([[4 * ranks, 4 * ranks + 2], [4 * ranks + 3, 4 * ranks + 1]])
    return ((ranks + 0.5) / 64).astype(np.float32)


class Watermark:
    """Marks frames of one size with one payload. What a frame gets depends on it and its number alone."""

    def __init__(self, payload: Payload, width: int, height: int, fps: float = FPS) -> None:
        self.payload, self.width, self.height, self.fps = payload, width, height, fps
        rows, columns = interpolation(height, CELLS, height / CELLS), interpolation(width, CELLS, width / CELLS)
        pattern = SCALE * rows @ cells(payload).astype(np.complex64) @ columns.T
        self.cosine, self.sine = np.ascontiguousarray(pattern.real), np.ascontiguousarray(pattern.imag)
        tiles = -(-height // BLOCK), -(-width // BLOCK)
        self.dither = np.tile(dither(), tiles)[:height, :width]
        self.rows, self.columns = interpolation(height, tiles[0], BLOCK), interpolation(width, tiles[1], BLOCK)
        self._tensors: dict[torch.device, tuple[Tensor, ...]] = {}

    def _phases(self, first: int, count: int) -> np.ndarray:
        """(count, 2) float32: cosine and sine of frames first ≤ t < first + count."""
        angle = 2 * np.pi * ((np.arange(first, first + count) / self.fps / PERIOD) % 1)
        return np.stack([np.cos(angle), np.sin(angle)], -1).astype(np.float32)

    def mark(self, frames: np.ndarray, first: int) -> np.ndarray:
        """uint8 (B,H,W,3) RGB, the first of them frame number `first` of the video -> the same with the mark."""
        marked = np.empty_like(frames)
        _mark(np.ascontiguousarray(frames), self._phases(first, len(frames)), self.cosine, self.sine, self.dither[:BLOCK],
              PLAIN, SLOPE / (4 * BLOCK * BLOCK), STRONGEST, marked)
        return marked

    def mark_tensor(self, frames: Tensor, first: int) -> Tensor:
        """float (B,H,W,3) in [0,1] on any device -> the same, rounded to the 256 grey levels, with the mark of `mark`."""
        device = frames.device
        if device not in self._tensors:
            fixed = (self.cosine, self.sine, self.dither, self.rows, self.columns)
            self._tensors[device] = tuple(torch.as_tensor(array, device=device) for array in fixed)
        cosine, sine, dithered, rows, columns = self._tensors[device]
        levels = (frames.clamp(0, 1) * 255).round()
        luma = levels @ levels.new_tensor([1.0, 2.0, 1.0])
        change = torch.zeros_like(luma)
        change[:, :, :-1] += luma.diff(dim=2).abs()
        change[:, :-1] += luma.diff(dim=1).abs()
        padded = torch.nn.functional.pad(change, (0, -self.width % BLOCK, 0, -self.height % BLOCK))
        sums = padded.unflatten(1, (-1, BLOCK)).unflatten(3, (-1, BLOCK)).sum((2, 4))
        strength = (PLAIN + SLOPE / (4 * BLOCK * BLOCK) * sums).clamp(max=STRONGEST)
        phase = torch.as_tensor(self._phases(first, len(frames)), device=device)[:, :, None, None]
        wave = (rows @ strength @ columns.T) * (phase[:, 0] * cosine + phase[:, 1] * sine)
        return (levels + (wave + dithered).floor()[..., None]).clamp(0, 255) / 255


@cached_njit(fastmath=True)
def _mark(frames, phases, cosine, sine, dithered, plain, slope, strongest, marked):
    """frames, marked (B,H,W,3) uint8; phases (B,2); cosine, sine (H,W); dithered (8,W); slope: of the sum over a block of the
    changes of R + 2G + B from pixel to pixel."""
    count, height, width, _ = frames.shape
    down, across = -(-height // 8), -(-width // 8)
    strength = np.empty((down, across), np.float32)
    sums = np.empty(across, np.int32)
    luma = np.empty((2, width), np.int32)
    change = np.empty(across * 8, np.int32)
    level = np.empty(across, np.float32)
    row_strength = np.empty(across * 8, np.float32)
    delta = np.empty(width, np.int32)
    for t in range(count):
        frame, out = frames[t], marked[t]
        for block in range(down):
            sums[:] = 0
            for y in range(8 * block, min(8 * block + 8, height)):
                now, below = luma[y % 2], luma[(y + 1) % 2]
                if y == 0:
                    for x in range(width):
                        now[x] = np.int32(frame[y, x, 0]) + 2 * np.int32(frame[y, x, 1]) + np.int32(frame[y, x, 2])
                under = min(y + 1, height - 1)
                for x in range(width):
                    below[x] = np.int32(frame[under, x, 0]) + 2 * np.int32(frame[under, x, 1]) + np.int32(frame[under, x, 2])
                change[width:] = 0
                for x in range(width - 1):
                    change[x] = abs(below[x] - now[x]) + abs(now[x + 1] - now[x])
                change[width - 1] = abs(below[width - 1] - now[width - 1])
                for b in range(across):
                    total = np.int32(0)
                    for k in range(8):
                        total += change[8 * b + k]
                    sums[b] += total
            for b in range(across):
                strength[block, b] = min(plain + slope * sums[b], strongest)
        c, s = phases[t, 0], phases[t, 1]
        for y in range(height):
            at = min(max((y + np.float32(0.5)) / np.float32(8) - np.float32(0.5), np.float32(0)), np.float32(down - 1))
            upper = min(int(at), down - 1)
            lower = min(upper + 1, down - 1)
            part = at - np.float32(upper)
            for b in range(across):
                level[b] = (1 - part) * strength[upper, b] + part * strength[lower, b]
            for b in range(across):  # the half blocks on both sides of the centre of block b
                left, right = level[max(b - 1, 0)], level[min(b + 1, across - 1)]
                for k in range(4):
                    row_strength[8 * b + k] = level[b] + (left - level[b]) * (np.float32(3.5) - k) / np.float32(8)
                    row_strength[8 * b + 4 + k] = level[b] + (right - level[b]) * (np.float32(0.5) + k) / np.float32(8)
            for x in range(width):
                delta[x] = np.int32(np.floor(row_strength[x] * (c * cosine[y, x] + s * sine[y, x]) + dithered[y % 8, x]))
            for x in range(width):
                for k in range(3):
                    out[y, x, k] = min(max(np.int32(frame[y, x, k]) + delta[x], 0), 255)
