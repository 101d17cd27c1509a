"""Training data of the torso: frames, labels, rendered heads, background plates, poses and torso motion."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from shared.clip import Clip
from shared.errors import TalkheadError
from shared.files import write_rows
from shared.progress import progress

HeadRenderer = Callable[[np.ndarray], Tensor]  # frame indices (B,) -> rendered heads (B, H, W, 4), premultiplied RGBA
RESIDENT_BYTES = 24 << 30  # training data up to this size is kept in GPU memory
BATCH = 16  # heads rendered at once


class Batch(NamedTuple):
    """frames and backgrounds (B, 3, H, W), heads (B, 4, H, W) premultiplied, all float in [0, 1]; labels (B, H, W)
    uint8; poses (B, 4, 4); motion (B, 4 + 2·n²), see warp.py."""

    frames: Tensor
    labels: Tensor
    heads: Tensor
    backgrounds: Tensor
    poses: Tensor
    motion: Tensor


def cache_heads(head_renderer: HeadRenderer, indices: np.ndarray, height: int, width: int, path: Path,
                quiet: bool = False, batch: int = BATCH) -> np.ndarray:
    """Render the heads of the frames `indices` (N,) into the file `path` -> memory-mapped (N, H, W, 4) uint8.

    A complete file of an earlier call is used as it is, so its name must identify the heads. Raises TalkheadError if
    `head_renderer` returns another shape.
    """
    def render(rows: np.ndarray) -> np.ndarray:
        heads = head_renderer(indices[rows])
        if tuple(heads.shape) != (len(rows), height, width, 4):
            raise TalkheadError(f"rendered heads should be {(len(rows), height, width, 4)}, "
                                f"found {tuple(heads.shape)}")
        return (heads.clamp(0, 1) * 255).round().byte().cpu().numpy()

    if path.is_file():
        cached = np.load(path, mmap_mode="r")
        if cached.shape == (len(indices), height, width, 4):
            return cached

    def all_heads() -> Iterator[np.ndarray]:
        with progress(len(indices), "rendering heads", quiet=quiet, unit="frame") as bar:
            for start in range(0, len(indices), batch):
                rows = np.arange(start, min(start + batch, len(indices)))
                yield render(rows)
                bar.update(len(rows))

    write_rows(path, "|u1", (len(indices), height, width, 4), all_heads())
    return np.load(path, mmap_mode="r")


class TorsoDataset:
    """Frames `indices` of one clip, addressed by row; poses (T, 4, 4) are those of all frames of the clip.

    On CUDA the pictures are resident if they fit into RESIDENT_BYTES; otherwise a batch is read from the clip's memory-mapped
    cache when needed.
    """

    def __init__(self, clip: Clip, indices: np.ndarray, heads: np.ndarray, poses: np.ndarray, device: torch.device) -> None:
        if len(indices) == 0:
            raise TalkheadError(f"{clip.root}: the train split holds no good frame")
        self.clip, self.indices, self.heads, self.device = clip, indices, heads, device
        self.poses = torch.from_numpy(poses[indices]).to(device)
        self.motion = torch.from_numpy(clip.load_torso_motion()[indices]).to(device)
        self.plates = torch.from_numpy(clip.load_plates()).permute(0, 3, 1, 2).to(device)
        shots = clip.shot_of_frames()[indices]
        self.shots = torch.from_numpy(shots).to(device)
        follows = (np.diff(indices) == 1) & (np.diff(shots) == 0)
        self.successor = np.arange(len(indices)) + np.append(follows, False)
        self.resident: tuple[Tensor, Tensor, Tensor] | None = None
        if device.type == "cuda" and 2 * heads.nbytes <= RESIDENT_BYTES:
            self.resident = self._read(np.arange(len(indices)))

    def __len__(self) -> int:
        return len(self.indices)

    def _read(self, rows: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
        arrays = (self.clip.read_frames(self.indices[rows]), self.clip.read_labels(self.indices[rows]), self.heads[rows])
        frames, labels, heads = (torch.from_numpy(array).to(self.device) for array in arrays)
        return frames, labels, heads

    def batch(self, rows: np.ndarray) -> Batch:
        """The data of `rows` on the device."""
        on_device = torch.from_numpy(rows).to(self.device)
        if self.resident is None:
            frames, labels, heads = self._read(rows)
        else:
            frames, labels, heads = (tensor[on_device] for tensor in self.resident)
        return Batch(frames.permute(0, 3, 1, 2).float() / 255, labels, heads.permute(0, 3, 1, 2).float() / 255,
                     self.plates[self.shots[on_device]].float() / 255, self.poses[on_device], self.motion[on_device])

    def pairs(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """Random rows (count,), then their successors (count,): frame t+1 of the same shot, or the frame itself where
        the split ends."""
        rows = rng.integers(len(self), size=count)
        return np.concatenate([rows, self.successor[rows]])
