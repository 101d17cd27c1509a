"""The torso of every frame of the avatar's own motion track, drawn once and kept as a small video.

What the head says hardly changes the torso behind it (docs/benchmarks.md): along the motion track it depends on pose and torso
motion, which repeat. So it is drawn with the neutral face after training, and synthesis only looks it up.
"""

import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from shared.media.layer_video import GROUP, LayerVideo, write_layers
from shared.progress import progress
from shared.side_by_side import ahead
from torso_styleunet.composite import draw_torso
from torso_styleunet.model import Torso

KEPT_ON_GPU = 1 << 30  # bytes of pictures
KEPT_ON_CPU = 128 << 20


def store_layers(torso: Torso, heads: Callable[[np.ndarray], Tensor], poses: np.ndarray, motion: np.ndarray, path: Path,
                 quiet: bool = False) -> int:
    """Draw the torso at poses (M, 4, 4) and motion (M, 4 + 2·n²) and write the pictures to `path` -> M.

    `heads` gives the head with the neutral face: rows (B,) of the track -> (B, H, W, 4) premultiplied RGBA.
    """
    device = torso.noise.device
    size = 16 if device.type == "cuda" else 4  # frames drawn at once

    def pictures() -> Iterator[np.ndarray]:
        with progress(len(poses), "torso of the motion track", quiet=quiet, unit="frame") as bar:
            for start in range(0, len(poses), size):
                rows = np.arange(start, min(start + size, len(poses)))
                pose, turn = (torch.from_numpy(array[rows]).to(device) for array in (poses, motion))
                yield from to_bytes(draw_torso(torso, heads(rows), pose, turn)).cpu().numpy()
                bar.update(len(rows))

    with closing(ahead(pictures(), 2 * size)) as drawn:  # while some are drawn, others are encoded
        return write_layers(path, drawn, torso.width, torso.height)


def to_bytes(torso_rgba: Tensor) -> Tensor:
    """Torso (B, 4, H, W) in [0, 1] -> (B, H, W, 4) uint8."""
    return (torso_rgba.permute(0, 2, 3, 1) * 255).round().byte().contiguous()


class TorsoLayers:
    """The stored pictures of a motion track of `count` frames, decoded on demand; memory is bounded.

    The file is open until `close()`, or until nothing refers to the object.
    """

    def __init__(self, path: Path, width: int, height: int, count: int, device: torch.device) -> None:
        self.device = device
        budget = KEPT_ON_CPU if device.type == "cpu" else KEPT_ON_GPU
        self.groups = max(2, budget // (GROUP * width * height * 4))
        self.video = LayerVideo(path, width, height, count, kept=self.groups * GROUP if device.type == "cpu" else 0)
        self.close = weakref.finalize(self, self.video.__enter__().close)
        self._resident: OrderedDict[int, Tensor] = OrderedDict()

    def at(self, track: np.ndarray) -> Tensor:
        """Frames track (B,) of the motion track -> (B, H, W, 4) uint8 straight colour and alpha, on the device."""
        return torch.stack([self._group(int(frame) // GROUP)[int(frame) % GROUP] for frame in track])

    def _group(self, group: int) -> Tensor:
        if self.device.type == "cpu":
            return torch.from_numpy(self.video.group(group))
        if group not in self._resident:
            self._resident[group] = torch.from_numpy(self.video.group(group)).to(self.device)
            if len(self._resident) > self.groups:
                self._resident.popitem(last=False)
        self._resident.move_to_end(group)
        return self._resident[group]
