"""What every training loop needs: a device, a seeded generator, TensorBoard curves, averaged weights."""

import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from shared.errors import MachineError, TalkheadError
from shared.files import make_folder


def pick_device(name: str | torch.device = "auto") -> torch.device:
    """The device called auto, cpu, cuda or cuda:N; auto is CUDA where there is one. Raises TalkheadError for any other."""
    if isinstance(name, torch.device):
        return name
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not re.fullmatch(r"cpu|cuda(:[0-9]{1,4})?", name):
        raise TalkheadError(f"--device {name!r} is not supported; use auto, cpu, cuda or cuda:N")
    device = torch.device(name)
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise TalkheadError(f"--device {name!r}: this machine has no usable CUDA GPU; use --device cpu")
        if (device.index or 0) >= torch.cuda.device_count():
            raise TalkheadError(f"--device {name!r}: this machine has {torch.cuda.device_count()} CUDA GPU(s), numbered from 0")
    return device


def generator(seed: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A torch generator on `device` started from `seed`."""
    return torch.Generator(device=device).manual_seed(seed)


class TensorBoard:
    """TensorBoard curves and pictures under `folder`. Raises MachineError where they cannot be written.

    torch's SummaryWriter writes from a thread of its own, which prints a traceback when the disk is full.
    """

    def __init__(self, folder: Path | str) -> None:
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._path = Path(folder) / f"events.out.tfevents.{time.time_ns()}.{os.getpid()}"
        make_folder(self._path.parent)
        with self._told():
            self._writer = RecordWriter(open(self._path, "wb"))
        self._write(file_version="brain.Event:2")

    def scalar(self, tag: str, value: float, step: int) -> None:
        """One point of the curve `tag`."""
        from torch.utils.tensorboard.summary import scalar

        self._write(summary=scalar(tag, float(value)), step=step)

    def image(self, tag: str, rgb: np.ndarray, step: int) -> None:
        """One uint8 (H, W, 3) picture."""
        from torch.utils.tensorboard.summary import image

        self._write(summary=image(tag, rgb, dataformats="HWC"), step=step)

    def close(self) -> None:
        with self._told():
            self._writer.close()

    def _write(self, **event: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event

        with self._told():
            self._writer.write(Event(wall_time=time.time(), **event).SerializeToString())
            self._writer.flush()

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise MachineError(f"cannot write {self._path}: {error.strerror}") from error


@torch.no_grad()
def ema_update(averaged: dict[str, Tensor], model: nn.Module, step: int, decay: float) -> None:
    """Move the exponential moving average of a model's state towards its state after `step` (from 0), in place.

    The decay is min(decay, (1 + step) / (10 + step)), so that the average follows quickly at first. Integer buffers are
    copied.
    """
    decay = min(decay, (1 + step) / (10 + step))
    for name, value in model.state_dict().items():
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
