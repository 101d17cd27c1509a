"""Training of stage 1, one function for pretraining (many clips) and fine-tuning (one clip, `init`)."""

import dataclasses
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from shared.checkpoint import load_checkpoint, pack_optimizer, save_checkpoint, unpack_optimizer
from shared.clip import Clip
from shared.config import config_from_dict, config_to_dict
from shared.errors import TalkheadError
from shared.training import Scalars, cpu_threads, generator, progress
from stage1_audio2lmk.closed_form import set_statistics, solve_kernel_path
from stage1_audio2lmk.config import Stage1Config
from stage1_audio2lmk.dataset import Windows, load_recording, made_silence
from stage1_audio2lmk.losses import landmark_loss
from stage1_audio2lmk.model import MOVING, LandmarkModel
from stage1_audio2lmk.validation import held_out_error

SILENT_ROWS = 600
INHERITED = ("dim", "layers", "heads", "window", "look_ahead", "wide_past", "components", "formants", "speech")
OWN = ("speaker", "wide", "kernel", "basis", "rest")  # what a fine-tuned model does not take from its base


def train(clips: list[Clip], out: Path, *, config: Stage1Config, device: torch.device, state_dir: Path,
          init: Path | None = None, quiet: bool = False) -> dict[str, Any]:
    """Fit the model to the train splits of `clips` and write it to `out`; returns numbers about the held-out tail.

    The wide path is solved in closed form, its penalty chosen by cross-validation. The transformer then learns what is
    left; its best step on the held-out tail is kept if it is worthwhile there. With `init`, a base model, principal
    components and feature scales are the base's and the wide path is pulled to the base's instead of to zero. Killed at
    any moment, the same call continues from `state_dir` and ends as if it had never stopped.
    """
    with cpu_threads(1 if device.type == "cpu" else torch.get_num_threads()):
        return _train(clips, out, config, device, state_dir, init, quiet)


def _train(clips: list[Clip], out: Path, config: Stage1Config, device: torch.device, state_dir: Path, init: Path | None,
           quiet: bool) -> dict[str, Any]:
    started = time.perf_counter()
    recordings = [load_recording(clip, k + 1, config) for k, clip in enumerate(clips)]
    base = load_model(init, "cpu")[0] if init else None
    if base is not None:
        config = dataclasses.replace(config, **{name: getattr(base.config, name) for name in INHERITED})
    silence = made_silence(SILENT_ROWS, np.random.default_rng(config.seed))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = LandmarkModel(config, len(recordings))
    if base is not None:
        taken = {name: value for name, value in base.state_dict().items() if not name.startswith(OWN)}
        model.load_state_dict(taken, strict=False)
    set_statistics(model, recordings, base)
    wide = solve_kernel_path(model, recordings, silence)
    windows = Windows(wide.misses(), config, silence.features, model.scale, model.before)
    model.to(device)
    for parameter in [*model.wide.parameters(), *(model.encoder.parameters() if model.encoder else ())]:
        parameter.requires_grad_(False)
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=config.lr, weight_decay=config.weight_decay)
    averaged = {name: value.detach().clone() for name, value in model.state_dict().items()}
    best = {name: value.clone() for name, value in averaged.items()}
    wide_only = held_out_error(model, recordings, device)["lip mm"]
    history: dict[str, Any] = {"step": 0, "best_step": 0, "best": (1 - config.worthwhile) * wide_only}
    rng = generator(config.seed)
    state = state_dir / "state.safetensors"
    if state.is_file():
        history = _restore(state, config, model, optimizer, averaged, best, rng)
    scalars = Scalars(state_dir / "curves")
    with progress(config.steps, "stage 1", initial=history["step"], quiet=quiet) as bar:
        for step in range(history["step"], config.steps):
            for group in optimizer.param_groups:
                group["lr"] = config.lr * min(1, (step + 1) / 50) * (1 - step / config.steps)
            x, y, weight, speaker = (value.to(device) for value in windows.draw(rng))
            with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
                torch.manual_seed(config.seed * 1_000_003 + step)  # dropout: the same in a resumed run
                model.train()
                if model.encoder:
                    model.encoder.eval()
                missed = model.expand(model.correction(x, model.embed(x)[0], speaker)[0])[:, :, MOVING]
            loss = landmark_loss(missed - model.rest.unflatten(-1, (-1, 3)), y.unflatten(-1, (-1, 3)), weight, config)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trainable, 1.0)
            optimizer.step()
            decay = min(config.ema, (1 + step) / (10 + step))
            for name, value in model.state_dict().items():
                averaged[name].lerp_(value, 1 - decay) if value.is_floating_point() else averaged[name].copy_(value)
            history["step"] = step + 1
            if (step + 1) % config.check_every == 0 or step + 1 == config.steps:
                current = {name: value.clone() for name, value in model.state_dict().items()}
                model.load_state_dict(averaged)
                held = held_out_error(model, recordings, device)
                model.load_state_dict(current)
                if held["lip mm"] < history["best"]:
                    history |= {"best": held["lip mm"], "best_step": step + 1}
                    best = {name: value.clone() for name, value in averaged.items()}
                scalars.add("loss", loss.item(), step + 1)
                scalars.add("held out/lip mm", held["lip mm"], step + 1)
                scalars.add("held out/opening r", held["opening r"], step + 1)
                bar.set_postfix_str(f"held-out lips {held['lip mm']:.2f} mm, r {held['opening r']:.2f}")
            bar.update()
            if step + 1 - history["best_step"] >= config.patience:
                break
            if (step + 1) % config.save_every == 0:
                _save_state(state, config, model, optimizer, averaged, best, rng, history)
    scalars.close()
    model.load_state_dict(best)
    held = held_out_error(model, recordings, device)
    model.cpu()
    wide.solve(tail=True)
    save_model(out, model, [recording.name for recording in recordings])
    state.unlink(missing_ok=True)
    return {"held-out lip mm": held["lip mm"], "wide path alone mm": wide_only, "held-out opening r": held["opening r"],
            "best step": history["best_step"], "ridge penalty": wide.penalty, "sharpening": wide.sharpening,
            "seconds": time.perf_counter() - started}


def save_model(path: Path, model: LandmarkModel, speakers: list[str]) -> None:
    """Write weights, config and the speakers' names."""
    save_checkpoint(path, model.state_dict(), {"kind": "stage1", "encoder": "log-mel + formants",
                                               "config": config_to_dict(model.config), "speakers": speakers})


def load_model(path: Path, device: torch.device | str) -> tuple[LandmarkModel, list[str]]:
    """Read what save_model wrote -> (model in eval mode, speakers' names). Raises TalkheadError."""
    tensors, meta = load_checkpoint(path)
    if meta.get("kind") != "stage1":
        raise TalkheadError(f"{path} is no stage-1 model, but {meta.get('kind', 'something else')}")
    model = LandmarkModel(config_from_dict(Stage1Config, meta["config"], str(path)), len(meta["speakers"]),
                          len(tensors["kernel.centres"]))
    model.load_state_dict(tensors)
    return model.to(device).eval(), meta["speakers"]


def _save_state(path: Path, config: Stage1Config, model: LandmarkModel, optimizer: torch.optim.Optimizer,
                averaged: dict[str, Tensor], best: dict[str, Tensor], rng: torch.Generator, history: dict) -> None:
    packed, meta = pack_optimizer(optimizer, "adam")
    tensors = {f"{group}/{name}": value for group, values in
               (("model", model.state_dict()), ("averaged", averaged), ("best", best)) for name, value in values.items()}
    save_checkpoint(path, tensors | packed | {"rng": rng.get_state()},
                    {"config": config_to_dict(config), "adam": meta, "history": history})


def _restore(path: Path, config: Stage1Config, model: LandmarkModel, optimizer: torch.optim.Optimizer,
             averaged: dict[str, Tensor], best: dict[str, Tensor], rng: torch.Generator) -> dict[str, Any]:
    tensors, meta = load_checkpoint(path)
    if config_from_dict(Stage1Config, meta["config"]) != config:
        raise TalkheadError(f"{path.parent} holds a training that was started with other settings; add --overwrite to "
                            "start anew, or use the old settings to continue")
    group = lambda name: {key[len(name) + 1 :]: value for key, value in tensors.items() if key.startswith(name + "/")}
    model.load_state_dict(group("model"))
    for name, value in group("averaged").items():
        averaged[name].copy_(value)
    for name, value in group("best").items():
        best[name].copy_(value)
    unpack_optimizer(optimizer, tensors, meta["adam"], "adam")
    rng.set_state(tensors["rng"])
    return meta["history"]
