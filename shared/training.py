"""What every training loop needs: a device, a seeded generator, a progress bar, TensorBoard scalars."""

import json
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from shared.checkpoint import load_checkpoint
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


def load_state(path: Path, inputs: dict[str, Any],
               device: torch.device | str = "cpu") -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """The state that an interrupted training with the same `inputs` left in `path` -> (tensors, meta), None without one.

    inputs names all that a training learns from ("clip", "settings", …) with values that JSON can hold; training saves them
    as meta["inputs"]. Raises TalkheadError if the state is of a training with others.
    """
    if not path.is_file():
        return None
    tensors, meta = load_checkpoint(path, device)
    saved, wanted = meta.get("inputs", {}), json.loads(json.dumps(inputs))
    changed = [name for name in wanted if saved.get(name) != wanted[name]]
    if changed:
        what = " and ".join(f"{'other' if name.endswith('s') else 'another'} {name}" for name in changed)
        raise TalkheadError(f"{path.parent} holds an unfinished training with {what}; repeat that one to finish it, or add "
                            "--overwrite to start anew")
    return tensors, meta


def generator(seed: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A torch generator on `device` started from `seed`."""
    return torch.Generator(device=device).manual_seed(seed)


def progress(total: int, desc: str, initial: int = 0, quiet: bool = False, unit: str = "it") -> tqdm:
    """A progress bar on stderr with the time left; silent when `quiet`."""
    return tqdm(total=total, desc=desc, initial=initial, disable=quiet, unit=unit, dynamic_ncols=True, mininterval=0.5)


class Scalars:
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

    def add(self, tag: str, value: float, step: int) -> None:
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
