"""Checkpoints: one .safetensors file with JSON in its header, written atomically, loaded without pickle."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from shared.errors import TalkheadError
from shared.files import atomic_path


def save_checkpoint(path: Path | str, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
    """Write named tensors and a JSON-able `meta` (config, step, …) into one file."""
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    with atomic_path(path) as partial:
        save_file(plain, str(partial), metadata={"talkhead": json.dumps(meta)})


def load_checkpoint(path: Path | str, device: torch.device | str = "cpu") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what save_checkpoint wrote -> (tensors on `device`, meta). Raises TalkheadError for anything else."""
    path = Path(path)
    if not path.is_file():
        raise TalkheadError(f"{path} does not exist")
    try:
        with safe_open(str(path), framework="pt", device=str(device)) as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        return tensors, json.loads(header["talkhead"])
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise TalkheadError(f"{path} is not a talkhead checkpoint, or it is damaged: {error}") from error


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
