"""What every training loop needs: a device, a seeded generator, a progress bar, TensorBoard scalars."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from shared.errors import TalkheadError


def pick_device(name: str = "auto") -> torch.device:
    """"auto" takes CUDA where there is one; any torch device name is taken as it is. Raises TalkheadError."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise TalkheadError(f"--device {name!r} is no device; use auto, cpu or cuda") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise TalkheadError(f"--device {name!r}: this machine has no usable CUDA GPU; use --device cpu")
    return device


def generator(seed: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A torch generator on `device` started from `seed`."""
    return torch.Generator(device=device).manual_seed(seed)


def progress(total: int, desc: str, initial: int = 0, quiet: bool = False, unit: str = "it") -> tqdm:
    """A progress bar on stderr with the time left; silent when `quiet`."""
    return tqdm(total=total, desc=desc, initial=initial, disable=quiet, unit=unit, dynamic_ncols=True, mininterval=0.5)


class Scalars:
    """TensorBoard curves and pictures under `folder`."""

    def __init__(self, folder: Path | str) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder))

    def add(self, tag: str, value: float, step: int) -> None:
        """One point of the curve `tag`."""
        self._writer.add_scalar(tag, float(value), step)

    def image(self, tag: str, rgb: np.ndarray, step: int) -> None:
        """One uint8 (H, W, 3) picture."""
        self._writer.add_image(tag, rgb, step, dataformats="HWC")

    def close(self) -> None:
        self._writer.close()


def follow(averaged: dict[str, Tensor], weights: dict[str, Tensor], step: int, slowness: float) -> None:
    """Move averaged weights towards those after `step` (from 0), by 1 − `slowness` of the way and faster in the first steps.

    What is no float is copied.
    """
    decay = min(slowness, (1 + step) / (10 + step))
    for name, value in weights.items():
        averaged[name].lerp_(value, 1 - decay) if value.is_floating_point() else averaged[name].copy_(value)


@contextmanager
def cpu_threads(count: int) -> Iterator[None]:
    """Run torch's CPU work on `count` threads: small networks are slower on more, above all on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
