import numpy as np
import pytest
import torch

from shared.watermark import mark
from shared.watermark.mark import Watermark, dither
from shared.watermark.payload import CELLS, Payload, cells
from tests.shared.watermark.scene import scene

PAYLOAD = Payload(0x1234567)


def marked_slowly(frame: np.ndarray, payload: Payload, t: float) -> np.ndarray:
    """The definition in docs/formats.md, pixel by pixel: frame (H, W, 3) at t seconds."""
    height, width, _ = frame.shape
    luma = frame.astype(int) @ [1, 2, 1]
    change = np.zeros((height, width))
    change[:, :-1] += np.abs(np.diff(luma, axis=1))
    change[:-1] += np.abs(np.diff(luma, axis=0))
    blocks = np.array([[change[8 * i : 8 * i + 8, 8 * j : 8 * j + 8].sum() / 256 for j in range(-(-width // 8))]
                       for i in range(-(-height // 8))])
    strength = np.minimum(0.6 + 0.14 * blocks, 3.0)
    angle = 2 * np.pi * t / 0.8
    wave = cells(payload).real * np.cos(angle) + cells(payload).imag * np.sin(angle)

    def at(grid: np.ndarray, y: float, x: float) -> float:
        y, x = (min(max(v, 0), n - 1) for v, n in zip((y, x), grid.shape))
        i, j = min(int(y), grid.shape[0] - 2), min(int(x), grid.shape[1] - 2)
        return ((1 - y + i) * ((1 - x + j) * grid[i, j] + (x - j) * grid[i, j + 1])
                + (y - i) * ((1 - x + j) * grid[i + 1, j] + (x - j) * grid[i + 1, j + 1]))

    out, bayer = np.empty_like(frame), dither()
    for y in range(height):
        for x in range(width):
            change_here = (1.5 * at(wave, (y + 0.5) / height * CELLS - 0.5, (x + 0.5) / width * CELLS - 0.5)
                           * at(strength, (y + 0.5) / 8 - 0.5, (x + 0.5) / 8 - 0.5))
            out[y, x] = np.clip(frame[y, x].astype(int) + int(np.floor(change_here + bayer[y % 8, x % 8])), 0, 255)
    return out


@pytest.mark.parametrize(("width", "height"), [(64, 48), (50, 70)])
def test_the_fast_ways_do_what_the_definition_says(width, height):
    frames = scene(2, width, height)
    frames[:, :8] = 255
    frames[:, -8:] = 0
    fast = Watermark(PAYLOAD, width, height).mark(frames, 7)
    slow = np.stack([marked_slowly(frame, PAYLOAD, (7 + k) / 25) for k, frame in enumerate(frames)])
    assert np.abs(fast.astype(int) - slow).max() <= 1 and (fast != slow).mean() < 1e-3
    tensor = Watermark(PAYLOAD, width, height).mark_tensor(torch.from_numpy(frames).float() / 255, 7)
    difference = np.abs((tensor * 255).round().numpy().astype(int) - fast)
    assert difference.max() <= 1 and (difference > 0).mean() < 1e-3


def test_a_frame_gets_the_same_mark_alone_and_in_any_batch():
    frames, watermark = scene(6, 64, 64), Watermark(PAYLOAD, 64, 64)
    whole = watermark.mark(frames, 100)
    assert (np.concatenate([watermark.mark(frames[:1], 100), watermark.mark(frames[1:], 101)]) == whole).all()
    assert (watermark.mark(frames[2:3], 102 + 20 * 10**6) == whole[2:3]).all()  # ten days later
    assert (whole != frames).any()


def test_the_mark_is_faint_where_nothing_hides_it_and_no_average_brightness():
    plain = np.full((20, 256, 256, 3), 120, np.uint8)
    change = Watermark(PAYLOAD, 256, 256).mark(plain, 0).astype(float) - plain
    assert np.abs(change).max() <= 2 and 0.5 < np.sqrt((change**2).mean()) < 0.75
    blocks = change.mean((0, 3)).reshape(32, 8, 32, 8).mean((1, 3))
    assert abs(change.mean()) < 0.02 and np.abs(blocks).max() < 0.1  # dithered, it is right on average
    busy = np.random.default_rng(0).integers(0, 256, (2, 256, 256, 3), dtype=np.uint8)
    strong = Watermark(PAYLOAD, 256, 256).mark(busy, 0).astype(float) - busy
    assert 2.5 < np.sqrt((strong**2).mean()) < mark.STRONGEST + 0.2
