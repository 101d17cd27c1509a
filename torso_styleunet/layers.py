"""The torso of every frame of the avatar's own motion track, drawn once and kept as a small video.

What the head says hardly changes the torso behind it (docs/benchmarks.md): along the motion track it depends on pose and torso
motion, which repeat. So it is drawn with the neutral face after training, and synthesis only looks it up.
"""

import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path
from threading import local

import numpy as np
import torch
from torch import Tensor

from shared import machine
from shared.media.layer_video import GROUP, LayerVideo, write_layers
from shared.progress import progress
from shared.side_by_side import ahead
from torso_styleunet.composite import draw_torso
from torso_styleunet.model import Torso

KEPT_ON_CPU = 128 << 20  # bytes of pictures
FEWEST_GROUPS = 4  # kept on a GPU whatever else is there
AHEAD = 3  # groups to either side of what is asked for that are decoded before they are needed
MOST_THREADS = 4


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


def _close(video: LayerVideo, threads: ThreadPoolExecutor | None) -> None:
    if threads is not None:
        threads.shutdown(wait=False, cancel_futures=True)
    video.close()


class TorsoLayers:
    """The stored pictures of a motion track of `count` frames, decoded on demand; memory is bounded.

    With `threads`, of which there are some on a GPU, they are decoded before they are needed, with `preload` all of them in the
    end. On a GPU they stay as long as a quarter of its memory is free. The file is open until `close()`, or until nothing refers
    to the object.
    """

    def __init__(self, path: Path, width: int, height: int, count: int, device: torch.device, preload: bool = False,
                 threads: int | None = None) -> None:
        if threads is None:
            threads = 0 if device.type == "cpu" else max(1, min(MOST_THREADS, machine.threads() - 1))
        self.device, self._budget = device, max(2 * GROUP, KEPT_ON_CPU // (width * height * 4))
        self._open = partial(LayerVideo, path, width, height, count)
        self._groups = -(-count // GROUP)
        self._resident: OrderedDict[int, Tensor] = OrderedDict()
        self._coming: dict[int, Future[np.ndarray]] = {}
        self._rest = iter(range(self._groups if preload else 0))
        self._decoders = local()  # one for each thread
        self._threads = ThreadPoolExecutor(threads, "torso layers") if threads else None
        self.video = self._open(kept=0 if threads else self._budget).__enter__()
        self.close = weakref.finalize(self, _close, self.video, self._threads)

    def at(self, track: np.ndarray) -> Tensor:
        """Frames track (B,) of the motion track -> (B, H, W, 4) uint8 straight colour and alpha, on the device."""
        groups = [int(frame) // GROUP for frame in track]
        if self._threads is not None:
            self._look_ahead(self._threads, dict.fromkeys(groups))
        return torch.stack([self._group(group)[int(frame) % GROUP] for group, frame in zip(groups, track)])

    def _look_ahead(self, threads: ThreadPoolExecutor, groups: Iterable[int]) -> None:
        for group in groups:
            for near in range(max(0, group - AHEAD), min(group + AHEAD + 1, self._groups)):
                self._fetch(threads, near)
        while len(self._coming) < 2 * MOST_THREADS and (rest := next(self._rest, None)) is not None:
            self._fetch(threads, rest)

    def _fetch(self, threads: ThreadPoolExecutor, group: int) -> None:
        if group not in self._resident and group not in self._coming:
            self._coming[group] = threads.submit(self._decode, group)

    def _decode(self, group: int) -> np.ndarray:
        if not hasattr(self._decoders, "video"):
            self._decoders.video = self._open(kept=0).__enter__()
        return self._decoders.video.group(group)

    def _group(self, group: int) -> Tensor:
        if self._threads is None:
            return torch.from_numpy(self.video.group(group))
        for known in [known for known, coming in self._coming.items() if known == group or coming.done()]:
            coming = self._coming.pop(known)
            # what no thread has begun is decoded here, as it is needed now
            self._keep(known, self.video.group(known) if coming.cancel() else coming.result())
        if group not in self._resident:
            self._keep(group, self.video.group(group))
        self._resident.move_to_end(group)
        return self._resident[group]

    def _keep(self, group: int, pictures: np.ndarray) -> None:
        self._resident[group] = torch.from_numpy(pictures).to(self.device)
        while len(self._resident) > FEWEST_GROUPS and self._memory_is_short():
            self._resident.popitem(last=False)

    def _memory_is_short(self) -> bool:
        """Whether less than a quarter of the GPU's memory is free, what torch holds without using it included."""
        if self.device.type == "cpu":
            return len(self._resident) * GROUP > self._budget
        free, total = torch.cuda.mem_get_info(self.device)
        unused = torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
        return free + unused < total / 4
