"""The stored torso against the network that drew it, and pictures composited in one pass against the slow way."""

import os
import threading
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from shared.errors import TalkheadError
from shared.media.layer_video import GROUP, write_layers
from shared.metrics import psnr
from torso_styleunet.composite import composite_pictures, draw_torso
from torso_styleunet.config import TorsoConfig
from torso_styleunet.layers import TorsoLayers, store_layers, to_bytes
from torso_styleunet.model import Torso, composite_layers

CPU = torch.device("cpu")
OPEN_FILES = Path("/proc/self/fd")


def test_pictures_equal_the_layers_composited_in_floats():
    maker = torch.Generator().manual_seed(3)
    head = torch.rand(2, 9, 13, 4, generator=maker)
    head[..., :3] *= head[..., 3:]
    torso, plate = (torch.randint(256, (*size, 9, 13, c), generator=maker, dtype=torch.uint8) for size, c in (((2,), 4), ((), 3)))
    slow = composite_layers(head.permute(0, 3, 1, 2), torso.permute(0, 3, 1, 2) / 255, plate.permute(2, 0, 1)[None] / 255)
    fast = composite_pictures(head, torso, plate)
    assert fast.dtype == torch.uint8 and (fast.permute(0, 3, 1, 2) - slow * 255).abs().max() <= 0.501
    backgrounds = torch.stack([plate, 255 - plate])
    assert torch.equal(composite_pictures(head, torso, backgrounds)[1], composite_pictures(head, torso, 255 - plate)[1])


def test_stored_torso_equals_the_network(tmp_path):
    torch.manual_seed(0)
    torso = Torso(TorsoConfig(channels=4, levels=2), 48, 32, 4).eval()
    with torch.no_grad():
        smooth = torch.nn.functional.interpolate(torch.rand(1, 4, 5, 6), size=torso.plate.shape[1:], mode="bicubic")[0]
        torso.plate.copy_(smooth * torch.tensor([1, 1, 1, 8.0])[:, None, None])
    count = 30
    poses = np.tile(np.eye(4, dtype=np.float32), (count, 1, 1))
    poses[:, 2, 3] = 0.6
    still = np.zeros(count)
    motion = np.stack([np.linspace(-3, 3, count), still, np.linspace(0, 0.1, count), still + 1], 1).astype(np.float32)
    asked = []

    def heads(rows):
        asked.extend(rows)
        return torch.zeros(len(rows), 32, 48, 4)

    assert store_layers(torso, heads, poses, motion, tmp_path / "torso.mp4", quiet=True) == count == len(asked)
    rows = np.array([29, 0, 13, 13])
    layers = TorsoLayers(tmp_path / "torso.mp4", 48, 32, count, CPU)
    stored = layers.at(rows)
    drawn = to_bytes(draw_torso(torso, heads(rows), torch.from_numpy(poses[rows]), torch.from_numpy(motion[rows])))
    assert stored.shape == (4, 32, 48, 4) and psnr(stored / 255, drawn / 255) > 35
    layers.close()
    assert not layers.close.alive and torch.equal(stored, TorsoLayers(tmp_path / "torso.mp4", 48, 32, count, CPU).at(rows))


@pytest.mark.skipif(not OPEN_FILES.is_dir(), reason="open files are seen in /proc")
def test_the_stored_torso_is_closed_when_nobody_needs_it_any_more(tmp_path):
    def is_open():
        return any(os.path.realpath(file) == str(path) for file in OPEN_FILES.iterdir())

    path = tmp_path.resolve() / "torso.mp4"
    write_layers(path, np.zeros((3, 16, 16, 4), np.uint8), 16, 16)
    layers = TorsoLayers(path, 16, 16, 3, CPU)
    layers.at(np.array([2]))
    assert is_open()
    del layers
    assert not is_open()
    layers = TorsoLayers(path, 16, 16, 3, CPU)
    assert is_open()
    layers.close()
    layers.close()
    assert not is_open()
    with pytest.raises(TalkheadError, match="expected pictures and number"):
        TorsoLayers(path, 16, 16, 4, CPU)
    assert not is_open()


def test_pictures_decoded_ahead_in_threads_are_those_decoded_when_asked_for(tmp_path):
    count, size = 5 * GROUP + 3, 16
    rng = np.random.default_rng(0)
    write_layers(tmp_path / "torso.mp4", rng.integers(0, 256, (count, size, size, 4), np.uint8), size, size)
    opened = partial(TorsoLayers, tmp_path / "torso.mp4", size, size, count, torch.device("cpu"))
    slow, fast, whole = opened(threads=0), opened(threads=2), opened(threads=2, preload=True)
    for track in ([0, 1, 2], [40, 41], [62, 5, 30], [3], np.arange(count)):
        expected = slow.at(np.array(track))
        for layers in (fast, whole):
            assert torch.equal(layers.at(np.array(track)), expected)
    for layers in (slow, fast, whole):
        layers.close()
    end = time.monotonic() + 10
    while time.monotonic() < end and any(thread.name.startswith("torso layers") for thread in threading.enumerate()):
        time.sleep(0.01)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("torso layers")]
