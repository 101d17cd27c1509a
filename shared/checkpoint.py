"""Checkpoints: one .safetensors file with JSON in its header, written atomically, loaded without pickle."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from shared.arrays import read_start
from shared.errors import TalkheadError
from shared.files import atomic_path

M = TypeVar("M", bound=nn.Module)


def save_checkpoint(path: Path | str, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
    """Write named tensors and a JSON-able `meta` (config, step, …) into one file."""
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    data = save(plain, metadata={"talkhead": json.dumps(meta)})  # save_file makes a temporary file that a kill leaves behind
    with atomic_path(path) as partial:
        partial.write_bytes(data)


def load_checkpoint(path: Path | str, device: torch.device | str = "cpu") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what save_checkpoint wrote -> (tensors on `device`, meta). Raises TalkheadError for anything else."""
    path = Path(path)
    read_start(path)
    try:
        with path.open("rb") as opened, safe_open(_utf8(path, opened), framework="pt", device=str(device)) as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        meta = json.loads(header["talkhead"])
    except KeyError as error:
        raise TalkheadError(f"{path} is not a talkhead checkpoint: its header does not tell what it is") from error
    except RecursionError as error:
        raise TalkheadError(f"{path} is not a talkhead checkpoint, or it is damaged: too many brackets in its header") from error
    except (SafetensorError, OSError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        why = " ".join(str(error).split())[:200]
        raise TalkheadError(f"{path} is not a talkhead checkpoint, or it is damaged: {why}") from error
    if not isinstance(meta, dict):
        raise TalkheadError(f"{path} is not a talkhead checkpoint: its header holds {type(meta).__name__}")
    return tensors, meta


def load_module(make: Callable[[], M], tensors: dict[str, Tensor], where: Path | str) -> M:
    """The module that `make` makes, with `tensors` as its state.

    Names, shapes and types are compared and all numbers looked at before anything is allocated. Raises TalkheadError,
    beginning with `where`.
    """
    check_finite(tensors, where)
    try:
        with torch.device("meta"):
            expected = make().state_dict()
    except (RuntimeError, ValueError, TypeError, IndexError, OverflowError) as error:
        raise TalkheadError(f"{where} is damaged: no model of its settings can be made") from error
    for what, names in (("lacks", expected.keys() - tensors.keys()), ("has an unknown", tensors.keys() - expected.keys())):
        if names:
            raise TalkheadError(f"{where} is damaged or of another version: it {what} tensor {min(names)!r}")
    for name, tensor in tensors.items():
        wanted = expected[name]
        if tensor.shape != wanted.shape:
            raise TalkheadError(f"{where} is damaged or of another version: tensor {name!r} should be {tuple(wanted.shape)}, "
                                f"found {tuple(tensor.shape)}")
        if tensor.is_floating_point() != wanted.is_floating_point() or tensor.is_complex():
            raise TalkheadError(f"{where} is damaged: tensor {name!r} should hold {wanted.dtype}, found {tensor.dtype}")
    module = make()
    module.load_state_dict(tensors)
    return module


def check_finite(tensors: dict[str, Tensor], where: Path | str) -> None:
    """Raise TalkheadError unless all numbers are finite."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and tensor.numel() and not torch.isfinite(torch.stack(tensor.aminmax()).float()).all():
            raise TalkheadError(f"{where} is damaged: tensor {name!r} holds numbers that are not finite; train or copy it again")


def _utf8(path: Path, opened: BinaryIO) -> str:
    """A name for safe_open, which takes only those in UTF-8."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return f"/dev/fd/{opened.fileno()}"
    return str(path)


def saved_under(tensors: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    """Of tensors that were saved as `name/…` and otherwise, those of that name, without it."""
    return {key[len(name) + 1 :]: value for key, value in tensors.items() if key.startswith(name + "/")}


def pack_optimizer(optimizer: torch.optim.Optimizer, prefix: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Optimiser state -> (tensors named `prefix/…`, JSON-able rest); `unpack_optimizer` is the inverse."""
    state = optimizer.state_dict()
    tensors: dict[str, Tensor] = {}
    scalars: dict[str, dict[str, Any]] = {}
    for index, values in state["state"].items():
        for key, value in values.items():
            if isinstance(value, Tensor):
                tensors[f"{prefix}/{index}/{key}"] = value
            else:
                scalars.setdefault(str(index), {})[key] = value
    return tensors, {"groups": state["param_groups"], "scalars": scalars}


def unpack_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], meta: dict[str, Any],
                     prefix: str) -> None:
    """Restore the state that `pack_optimizer` took with the same `prefix`."""
    state: dict[int, dict[str, Any]] = {int(index): dict(values) for index, values in meta["scalars"].items()}
    for name, value in saved_under(tensors, prefix).items():
        index, key = name.split("/", 1)
        state.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": meta["groups"]})
