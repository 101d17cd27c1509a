"""One training state for all trainings: what a training that was stopped goes on from, and who may write a trained file."""

import json
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from shared.checkpoint import load_checkpoint, pack_optimizer, save_checkpoint, saved_under, unpack_optimizer
from shared.errors import TalkheadError
from shared.files import refuse_existing
from shared.lock import lock_folder, lock_output

STATE = "state.safetensors"
CURVES = "curves"  # folder of the TensorBoard curves
MARKER = "unfinished"  # holds the path of the file that the training will write
RESUMABLE = (MARKER, STATE, "heads*.npy", "rows")  # what else lies in the folder, curves and evaluations, stays
EVENTS = "events.out.tfevents.*"
CURVE_FOLDERS = (CURVES, "logs", ".")  # the last two: of trainings by earlier versions
SET_ASIDE = ".before"  # holds what the training that is being replaced could have been resumed from
LAYOUT = 2  # of the state file; raised whenever a state of before cannot be continued exactly


class Saved(NamedTuple):
    """A loaded state."""

    tensors: dict[str, Tensor]
    optimizers: dict[str, Any]
    progress: dict[str, Any]  # what was given to `TrainState.save` as `progress`

    def group(self, name: str) -> dict[str, Tensor]:
        """The tensors that were saved as the group `name`; none if there was none."""
        return saved_under(self.tensors, name)

    def restore_optimizer(self, name: str, optimizer: torch.optim.Optimizer) -> None:
        """Give `optimizer` the state that was saved under `name`."""
        unpack_optimizer(optimizer, self.tensors, self.optimizers[name], name)


class TrainState:
    """The state of one training, in `folder`.

    `inputs` names all that the training learns from ("clip", "settings", …), each with a fingerprint or another value that
    JSON can hold. A state is continued only by a training with equal inputs.
    """

    def __init__(self, folder: Path, inputs: Mapping[str, Any]) -> None:
        self.folder, self.path, self.curves = folder, folder / STATE, folder / CURVES
        self.inputs: dict[str, Any] = json.loads(json.dumps({**inputs, "version of talkhead": LAYOUT}))
        self._started = time.perf_counter()
        self._seconds_before = 0.0

    @property
    def seconds(self) -> float:
        """Seconds that this training has taken, interrupted runs included up to their last save."""
        return self._seconds_before + time.perf_counter() - self._started

    def fingerprint(self, *names: str) -> str:
        """SHA-256 of the inputs `names`, all by default, as hexadecimal text."""
        chosen = {name: self.inputs[name] for name in names or self.inputs}
        return sha256(json.dumps(chosen).encode()).hexdigest()

    def load(self, device: torch.device | str = "cpu") -> Saved | None:
        """What an interrupted training with the same inputs left, tensors on `device`; None if there is none.

        Raises TalkheadError if the state is of a training with other inputs, or of another version.
        """
        if not self.path.is_file():
            return None
        tensors, meta = load_checkpoint(self.path, device)
        saved = meta.get("inputs", {})
        changed = [name for name, value in self.inputs.items() if saved.get(name) != value]
        if changed:
            what = " and ".join(f"{'other' if name.endswith('s') else 'another'} {name}" for name in changed)
            raise TalkheadError(f"{self.folder} holds an unfinished training with {what}; repeat that one to finish it, or add "
                                "--overwrite to start anew")
        self._seconds_before = float(meta["seconds"])
        return Saved(tensors, meta["optimizers"], meta["progress"])

    def save(self, groups: Mapping[str, Mapping[str, Tensor] | Tensor], optimizers: Mapping[str, torch.optim.Optimizer],
             **progress: Any) -> None:
        """Write everything needed to go on, atomically: tensors by group, optimisers, and JSON-able `progress`."""
        tensors: dict[str, Tensor] = {}
        for group, values in groups.items():
            if isinstance(values, Tensor):
                tensors[group] = values
            else:
                tensors |= {f"{group}/{name}": value for name, value in values.items()}
        packed: dict[str, Any] = {}
        for name, optimizer in optimizers.items():
            moments, packed[name] = pack_optimizer(optimizer, name)
            tensors |= moments
        save_checkpoint(self.path, tensors, {"inputs": self.inputs, "seconds": self.seconds, "optimizers": packed,
                                             "progress": progress})

    def remove(self) -> None:
        """Remove the state: the trained file is written."""
        self.path.unlink(missing_ok=True)


@contextmanager
def training_of(out: Path, folder: Path, overwrite: bool) -> Iterator[None]:
    """Train the file `out` inside: never over a finished one unasked, nor twice at once; its state lies in `folder`.

    With `overwrite` training starts anew, and the old `out` stays until the new one is done; so do curves and evaluations.
    A training of `out` that was broken off is finished without asking again. Raises TalkheadError.
    """
    marker, aside = folder / MARKER, folder / SET_ASIDE
    with lock_output(out), lock_folder(folder):
        begun = marker.is_file() and marker.read_text(encoding="utf-8") == str(out.resolve())
        refuse_existing(out, overwrite or begun)
        shutil.rmtree(aside, ignore_errors=True)
        moved = _set_aside(folder) if overwrite else []
        marker.write_text(str(out.resolve()), encoding="utf-8")
        try:
            yield
        except TalkheadError:
            if (overwrite or not begun) and not (folder / STATE).exists():  # refused before it began
                marker.unlink(missing_ok=True)
                for old, new in moved:
                    new.rename(old)
                    with suppress(OSError):
                        new.parent.rmdir()
            raise
        shutil.rmtree(aside, ignore_errors=True)
        for name in (MARKER, STATE):
            (folder / name).unlink(missing_ok=True)


def _set_aside(folder: Path) -> list[tuple[Path, Path]]:
    """Move what a training could be resumed from to SET_ASIDE, and its curves to `earlier-N`; returns (from, to) of each."""
    moved = [(path, folder / SET_ASIDE / path.name) for pattern in RESUMABLE for path in folder.glob(pattern)]
    earlier = folder / f"earlier-{1 + len(list(folder.glob('earlier-*')))}"
    moved += [(path, earlier / path.name) for name in CURVE_FOLDERS for path in (folder / name).glob(EVENTS)]
    for old, new in moved:
        new.parent.mkdir(exist_ok=True)
        old.rename(new)
    return moved
