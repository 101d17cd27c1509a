"""Training of stage 1, one function for pretraining (many clips) and fine-tuning (one clip, `init`)."""

import copy
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
from shared.landmarks import lip_opening
from shared.metrics import correlation
from shared.training import Scalars, cpu_threads, generator, progress
from stage1_audio2lmk.config import Stage1Config
from stage1_audio2lmk.dataset import Recording, Windows, load_recording, silence_features
from stage1_audio2lmk.losses import landmark_loss, lip_error, point_weights
from stage1_audio2lmk.model import MOVING, LandmarkModel

PENALTIES = tuple(10.0**k for k in np.arange(1.0, 5.6, 0.5))
SILENT_ROWS = 300
FOLDS = 5


def train(clips: list[Clip], out: Path, *, config: Stage1Config, device: torch.device, state_dir: Path,
          init: Path | None = None, quiet: bool = False) -> dict[str, Any]:
    """Fit the model to the train splits of `clips` and write it to `out`; returns numbers about the held-out tail.

    The linear path is solved in closed form (ridge, its penalty chosen on the held-out tail); the transformer then
    learns what is left, and its best step on the tail is kept. With `init`, a base model, principal components and
    feature scales are the base's and the ridge solution is pulled to the base's instead of to zero. Killed at any
    moment, the same call continues from `state_dir` and ends as if it had never stopped.
    """
    with cpu_threads(1 if device.type == "cpu" else torch.get_num_threads()):
        return _train(clips, out, config, device, state_dir, init, quiet)


def _train(clips: list[Clip], out: Path, config: Stage1Config, device: torch.device, state_dir: Path, init: Path | None,
           quiet: bool) -> dict[str, Any]:
    started = time.perf_counter()
    recordings = [load_recording(clip, k + 1, config) for k, clip in enumerate(clips)]
    base = load_model(init, "cpu") if init else None
    if base is not None:
        config = Stage1Config(**{**config_to_dict(config), **{name: getattr(base[0].config, name) for name in (
            "dim", "layers", "heads", "window", "look_ahead", "linear_past", "components", "formants")}})
    silence = silence_features(SILENT_ROWS, np.random.default_rng(config.seed))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = LandmarkModel(config, len(recordings))
    if base is None:
        set_statistics(model, recordings)
    else:
        own = {name: value for name, value in base[0].state_dict().items() if not name.startswith("speaker")}
        model.load_state_dict(own, strict=False)
    before = copy.deepcopy(model.linear)
    penalty = choose_penalty(model, recordings, silence, before)
    shown = cross_fitted(model, recordings, silence, before, penalty)
    model.to(device)
    for parameter in model.linear.parameters():
        parameter.requires_grad_(False)
    windows = Windows(shown, config, silence, model.scale.cpu())
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=config.lr, weight_decay=config.weight_decay)
    averaged = {name: value.detach().clone() for name, value in model.state_dict().items()}
    best = {name: value.clone() for name, value in averaged.items()}
    history: dict[str, Any] = {"step": 0, "best_step": 0, "best": held_out_error(model, recordings, device)["lip mm"]}
    linear_only = history["best"]
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
                predicted = model(x, speaker)[:, :, MOVING]
            loss = landmark_loss(predicted, y.unflatten(-1, (-1, 3)), weight, config)
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
    solve_linear(model, recordings, silence, before, penalty, everything=True)
    save_model(out, model, [recording.name for recording in recordings])
    state.unlink(missing_ok=True)
    return {"held-out lip mm": held["lip mm"], "linear path alone mm": linear_only, "held-out opening r": held["opening r"],
            "best step": history["best_step"], "ridge penalty": penalty, "seconds": time.perf_counter() - started}


def set_statistics(model: LandmarkModel, recordings: list[Recording]) -> None:
    """Feature mean and scale, and principal components of the displacement, from the fitting part of the data."""
    x = torch.cat([r.features[: r.held_from][r.good[: r.held_from]] for r in recordings])
    y = torch.cat([r.displacement[: r.held_from][r.good[: r.held_from]] for r in recordings])
    model.mean.copy_(x.mean(0))
    model.scale.copy_(x.std(0).clamp_min(0.05))
    weights = point_weights(model.config).sqrt().repeat_interleave(3)
    rest = y.mean(0)
    _, singular, vt = torch.linalg.svd((y - rest) * weights, full_matrices=False)
    keep = min(model.config.components, len(singular))
    spread = singular[:keep] / len(y) ** 0.5
    model.rest.copy_(rest)
    model.basis[:keep].copy_(vt[:keep] * spread[:, None] / weights)


def targets(model: LandmarkModel, displacement: Tensor) -> Tensor:
    """Displacement rows (n, 111) metres -> weights of the principal components (n, K), weighted least squares."""
    weights = point_weights(model.config).sqrt().repeat_interleave(3).double()
    basis = (model.basis.cpu().double() * weights).T
    return torch.linalg.lstsq(basis, ((displacement - model.rest.cpu()).double() * weights).T, driver="gelsd").solution.T


def _normal_equations(model: LandmarkModel, recordings: list[Recording], silence: Tensor,
                      everything: bool) -> tuple[Tensor, Tensor]:
    """XᵀX and XᵀY in double precision, with a column of ones for the bias; made silence asks for the neutral."""
    xs, ys = [], []
    for r in recordings:
        stop = len(r.features) if everything else r.held_from
        rows = model.windows(model.normalise(r.features[None, :stop]))[0]
        xs.append(rows[r.good[:stop]])
        ys.append(targets(model, r.displacement[:stop][r.good[:stop]]))
    xs.append(model.windows(model.normalise(silence[None]))[0])
    ys.append(targets(model, torch.zeros(len(silence), recordings[0].displacement.shape[1])))
    x = torch.cat(xs).double()
    x = torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], 1)
    return x.T @ x, x.T @ torch.cat(ys)


@torch.no_grad()
def solve_linear(model: LandmarkModel, recordings: list[Recording], silence: Tensor, before: torch.nn.Linear,
                 penalty: float, everything: bool = False, equations: tuple[Tensor, Tensor] | None = None) -> None:
    """Ridge solution of the linear path, pulled to the weights `before` by `penalty`."""
    xx, xy = equations or _normal_equations(model, recordings, silence, everything)
    prior = torch.cat([before.weight.T, before.bias[None]]).double()
    pull = torch.full((len(xx),), penalty, dtype=torch.float64)
    pull[-1] = 1e-6
    solution = torch.linalg.solve(xx + torch.diag(pull), xy + pull[:, None] * prior)
    model.linear.weight.copy_(solution[:-1].T)
    model.linear.bias.copy_(solution[-1])


def choose_penalty(model: LandmarkModel, recordings: list[Recording], silence: Tensor, before: torch.nn.Linear) -> float:
    """Leave the model with the best ridge solution on the held-out tail, and return its penalty."""
    equations = _normal_equations(model, recordings, silence, everything=False)
    errors = {}
    for penalty in PENALTIES:
        solve_linear(model, recordings, silence, before, penalty, equations=equations)
        errors[penalty] = held_out_error(model, recordings, torch.device("cpu"))["lip mm"]
    penalty = min(errors, key=lambda p: errors[p])
    solve_linear(model, recordings, silence, before, penalty, equations=equations)
    return penalty


@torch.no_grad()
def cross_fitted(model: LandmarkModel, recordings: list[Recording], silence: Tensor, before: torch.nn.Linear,
                 penalty: float) -> list[Recording]:
    """Recordings whose displacement lets the transformer learn what the linear path misses on sound it was not fitted to.

    On its own training frames the linear path errs too little, and a network trained on that error learns noise. So
    each of FOLDS contiguous parts gets the error of a solution fitted to the others, as in stacking (Wolpert 1992).
    The model keeps its own solution.
    """
    own = copy.deepcopy(model.linear.state_dict())
    rows = [model.linear(model.windows(model.normalise(r.features[None]))[0]) for r in recordings]
    moved = [r.displacement.clone() for r in recordings]
    for fold in range(FOLDS):
        parts = [(r.held_from * fold // FOLDS, r.held_from * (fold + 1) // FOLDS) for r in recordings]
        rest = []
        for r, (start, stop) in zip(recordings, parts):
            good = r.good.clone()
            good[start:stop] = False
            rest.append(dataclasses.replace(r, good=good))
        solve_linear(model, rest, silence, before, penalty)
        for k, (r, (start, stop)) in enumerate(zip(recordings, parts)):
            other = model.linear(model.windows(model.normalise(r.features[None]))[0])
            moved[k][start:stop] += ((rows[k] - other)[start:stop] @ model.basis)
    model.linear.load_state_dict(own)
    return [dataclasses.replace(r, displacement=y) for r, y in zip(recordings, moved)]


@torch.no_grad()
def held_out_error(model: LandmarkModel, recordings: list[Recording], device: torch.device) -> dict[str, float]:
    """Mean lip distance in mm and correlation of the lip opening on the held-out tails, averaged over recordings."""
    model.eval()
    distances, correlations = [], []
    for r in recordings:
        tail = torch.arange(len(r.features)) >= r.held_from
        tail &= r.good
        speaker = torch.tensor([r.speaker], device=device)
        last = int(torch.nonzero(r.good)[-1]) + 1
        predicted = model(r.features[None, :last].to(device), speaker)[0].cpu()[tail[:last]]
        true = r.displacement[tail].unflatten(-1, (-1, 3))
        distances.append(float(lip_error(predicted[:, MOVING], true)))
        full = torch.zeros(len(true), 68, 3)
        full[:, MOVING] = true
        correlations.append(correlation(lip_opening(predicted.numpy()), lip_opening(full.numpy())))
    return {"lip mm": float(np.mean(distances)), "opening r": float(np.mean(correlations))}


def save_model(path: Path, model: LandmarkModel, speakers: list[str]) -> None:
    """Write weights, config and the speakers' names."""
    save_checkpoint(path, model.state_dict(), {"kind": "stage1", "encoder": "log-mel + formants",
                                               "config": config_to_dict(model.config), "speakers": speakers})


def load_model(path: Path, device: torch.device | str) -> tuple[LandmarkModel, list[str]]:
    """Read what save_model wrote -> (model in eval mode, speakers' names). Raises TalkheadError."""
    tensors, meta = load_checkpoint(path)
    if meta.get("kind") != "stage1":
        raise TalkheadError(f"{path} is no stage-1 model, but {meta.get('kind', 'something else')}")
    model = LandmarkModel(config_from_dict(Stage1Config, meta["config"], str(path)), len(meta["speakers"]))
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
