"""Pretraining of a base model on many clips: the speech of unknown voices, and a good start for fine-tuning.

A base has no kernel path. Its transformer, and its encoder if wanted, learn by gradient, on one device or on several that
torchrun started. Every process makes its share of each batch, and losses are those of the whole batch, so the number of
processes changes nothing but rounding and what dropout hides.
"""

import dataclasses
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from shared.clip import Clip
from shared.config import config_to_dict, setting, with_default
from shared.errors import TalkheadError
from shared.files import sha256
from shared.landmarks import lip_opening
from shared.metrics import correlation
from shared.resume import TrainState
from shared.training import TensorBoard, ema_update, progress
from stage1_audio2lmk import distributed
from stage1_audio2lmk.audio.features import MELS
from stage1_audio2lmk.av_sync import Sync, sync_loss
from stage1_audio2lmk.checkpoint import save_model
from stage1_audio2lmk.config import Stage1Config
from stage1_audio2lmk.dataset import made_silence
from stage1_audio2lmk.encoders.speech_encoder import SpeechEncoder, load_speech_encoder
from stage1_audio2lmk.losses import landmark_loss, lip_error
from stage1_audio2lmk.model import MOVING, LandmarkModel, pooled
from stage1_audio2lmk.row_store import (
    ClipRows,
    ClipWindows,
    fingerprint,
    judging_windows,
    open_rows,
    person,
    prepare,
    set_statistics,
)
from stage1_audio2lmk.train import SILENT_ROWS

JUDGING_WINDOWS = 128
ENCODER_RATE = 0.1  # of the learning rate, for a pretrained encoder


@dataclass(frozen=True)
class PretrainConfig(Stage1Config):
    """Settings of stage 1 with other defaults, and what only pretraining has.

    Settings of the kernel path and of an early end (`centres`, `worthwhile`, `patience`) do nothing here. With dropout, runs
    on different numbers of processes hide different things and so differ a little.
    """

    dropout: float = with_default(Stage1Config, "dropout", 0.1)
    steps: int = setting(3000, "optimiser steps", 1, 10_000_000)
    batch: int = setting(16, "windows a step, of all processes together", 1, 65536)
    ema: float = with_default(Stage1Config, "ema", 0.995)
    check_every: int = with_default(Stage1Config, "check_every", 100)
    save_every: int = with_default(Stage1Config, "save_every", 500)
    unknown_share: float = with_default(Stage1Config, "unknown_share", 0.5)
    voices: int = setting(4, "in which each clip is heard: its own and made ones", 1, 100)
    tune_encoder: bool = setting(False, "does the encoder learn too, with a tenth of the learning rate?")
    sync_weight: float = setting(0.3, "of the loss that asks if lips go with the sound; 0 for none", 0, 1000)
    sync_from: int = setting(500, "step from which predicted lips are asked; before, what asks has little idea itself",
                             0, 10_000_000)


class Learner(nn.Module):
    """A model and what judges its timing, as one module: a process's share of a batch -> the losses of the whole batch."""

    def __init__(self, model: LandmarkModel, sync: Sync | None) -> None:
        super().__init__()
        self.model, self.sync = model, sync

    def forward(self, x: Tensor, y: Tensor, weight: Tensor, speaker: Tensor, sync_weight: float) -> dict[str, Tensor]:
        """Windows as of `ClipWindows.draw` -> "total", to minimise, and its parts.

        Gradients of gathered rows reach one's own share only, and DistributedDataParallel averages: hence the factor.
        """
        model = self.model.train()
        if model.encoder is not None:
            model.encoder.eval()  # also when it is tuned: its dropout rests
        embedding, _ = model.embed(x)
        moved = model.expand(model.correction(x, embedding, speaker)[0])[:, :, MOVING]
        heard = model.normalise(x)[:, model.before : model.before + y.shape[1]]
        audio = (pooled(heard) if embedding is None else embedding).detach()
        moved, y, weight, audio = (distributed.gather(rows) for rows in (moved, y, weight, audio))
        found = {"landmarks": landmark_loss(moved, y.unflatten(-1, (-1, 3)), weight, model.config)}
        own, everyones = found["landmarks"], moved.new_zeros(())
        if self.sync is not None:
            found["sync of true lips"] = everyones = sync_loss(self.sync, audio, y, weight, across=False)
            if sync_weight:
                with _frozen(self.sync):
                    found["sync"] = sync_loss(self.sync, audio, moved.flatten(2), weight, across=False)
                own = own + sync_weight * found["sync"]
        parts = {name: loss.detach() for name, loss in found.items()}
        return {"total": distributed.count() * own + everyones, "loss": own.detach(), **parts}


@contextmanager
def _frozen(module: nn.Module) -> Iterator[None]:
    module.requires_grad_(False)
    try:
        yield
    finally:
        module.requires_grad_(True)


def pretrain(clips: list[Clip], out: Path, *, config: PretrainConfig, device: torch.device, state_dir: Path,
             speech: Path | None = None, quiet: bool = False) -> dict[str, Any]:
    """Train a base model on the train splits of `clips` and write it to `out`; returns numbers about what was held out.

    `speech` is the file of a speech encoder that the model shall hear with. The best step is kept by the lip error of
    hidden speakers on held-out rows (see `clip_stream.open_rows`). Killed at any moment, the same call continues from
    `state_dir` and ends as if it had never stopped. In several processes all make the same call, inside
    `distributed.processes`, and see the same folders.
    """
    encoder = load_speech_encoder(speech) if speech else None
    config = _checked(config, encoder)
    first = distributed.rank() == 0
    quiet = quiet or not first
    prints = [fingerprint(clip, config.seed) for clip in clips]
    inputs = {"clips": prints, "settings": config_to_dict(config), "speech encoder": sha256(speech) if speech else None}
    state = TrainState(state_dir, inputs)
    saved = state.load()

    rows = _rows(clips, [state_dir / "rows" / name for name in prints], config, quiet)
    learner = _learner(config, encoder, rows)
    model = learner.model
    silence = made_silence(SILENT_ROWS, np.random.default_rng(config.seed)).features
    windows = ClipWindows(rows, config, silence, model.scale.clone(), model.before)
    judging = judging_windows(rows, config, silence, model.before, JUDGING_WINDOWS)
    optimizer = _optimizer(learner.to(device), config)
    averaged = {name: value.detach().clone() for name, value in model.state_dict().items()}
    best = {name: value.clone() for name, value in averaged.items()}
    history: dict[str, Any] = {"step": 0, "best_step": 0, "best": float("inf"), "losses": []}
    if saved is not None:
        learner.load_state_dict(saved.group("learner"))
        for kind, values in (("averaged", averaged), ("best", best)):
            values |= {name: value.to(device) for name, value in saved.group(kind).items()}
        saved.restore_optimizer("optimizer", optimizer)
        history = saved.progress
    shared = distributed.share_gradients(learner, device)
    part = config.batch // distributed.count()
    indices = range(distributed.rank() * part, (distributed.rank() + 1) * part)

    board = TensorBoard(state.curves) if first else None
    with progress(config.steps, "stage 1: base", initial=history["step"], quiet=quiet) as bar:
        for step in range(history["step"], config.steps):
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * min(1, (step + 1) / 50) * (1 - step / config.steps)
            batch = [value.to(device) for value in windows.draw(step, indices)]
            with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
                torch.manual_seed((config.seed * 1_000_003 + step) * 1024 + distributed.rank())  # dropout
                losses = shared(*batch, config.sync_weight if step >= config.sync_from else 0.0)
            optimizer.zero_grad(set_to_none=True)
            losses["total"].backward()
            for group in optimizer.param_groups:
                nn.utils.clip_grad_norm_(group["params"], 1.0)
            optimizer.step()
            ema_update(averaged, model, step, config.ema)
            history["step"] = step + 1
            history["losses"].append(float(losses["loss"]))
            if (step + 1) % config.check_every == 0 or step + 1 == config.steps:
                held = _judge(model, averaged, judging, device)
                if held["lip mm"] < history["best"]:
                    history |= {"best": held["lip mm"], "best_step": step + 1}
                    best = {name: value.clone() for name, value in averaged.items()}
                for name, value in {**losses, **{f"held out/{name}": value for name, value in held.items()}}.items():
                    if board is not None and name != "total":
                        board.scalar(name, float(value), step + 1)
                bar.set_postfix_str(f"held-out lips {held['lip mm']:.2f} mm, r {held['opening r']:.2f}")
            bar.update()
            if (step + 1) % config.save_every == 0 and first:
                state.save({"learner": learner.state_dict(), "averaged": averaged, "best": best}, {"optimizer": optimizer},
                           **history)
    held = _judge(model, best, judging, device)
    model.load_state_dict(best)
    distributed.wait()
    if board is not None:
        board.close()
        save_model(out, model, list(dict.fromkeys(person(clip.info.name) for clip in clips)))
        state.remove()
        shutil.rmtree(state_dir / "rows")
    return {"steps": history["step"], "seconds": state.seconds,
            "val_split": "whole speakers" if any(not clip.fit for clip in rows) else "the end of each clip",
            "val_lips_mm": held["lip mm"], "val_lips_at_rest_mm": held["lip mm at rest"], "val_opening_r": held["opening r"],
            "best_step": history["best_step"], "losses": history["losses"]}


def _rows(clips: list[Clip], folders: list[Path], config: PretrainConfig, quiet: bool) -> list[ClipRows]:
    """Prepared rows of all clips, of which each process prepares its share."""
    own = list(zip(clips, folders))[distributed.rank() :: distributed.count()]
    with progress(len(own), "stage 1: sound of clips", quiet=quiet, unit="clip") as bar:
        for clip, folder in own:
            prepare(clip, folder, config.voices, config)
            bar.update()
    distributed.wait()
    return open_rows(clips, folders, config.voices, config)


def _learner(config: PretrainConfig, encoder: SpeechEncoder | None, rows: list[ClipRows]) -> Learner:
    """A new model with the encoder and the data's statistics, and what judges its timing."""
    plain = Stage1Config(**{field.name: getattr(config, field.name) for field in dataclasses.fields(Stage1Config)})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = LandmarkModel(plain, max(clip.speaker for clip in rows))
        sync = Sync(encoder.config.size if encoder else MELS) if config.sync_weight else None
    model.kernel_head.requires_grad_(False)  # a base has no kernel path
    if model.encoder is not None and encoder is not None:
        model.encoder.load_state_dict(encoder.state_dict())
        model.encoder.requires_grad_(config.tune_encoder)
    set_statistics(model, rows)
    return Learner(model, sync)


def _optimizer(learner: Learner, config: PretrainConfig) -> torch.optim.Optimizer:
    """AdamW over encoder, rest of the model and sync, each a group with its own peak of the rate."""
    encoder = [p for name, p in learner.model.named_parameters() if name.startswith("encoder.") and p.requires_grad]
    decoder = [p for name, p in learner.model.named_parameters() if not name.startswith("encoder.") and p.requires_grad]
    sync = list(learner.sync.parameters()) if learner.sync is not None else []
    groups = [{"params": group, "peak": rate * config.lr}
              for group, rate in ((encoder, ENCODER_RATE), (decoder, 1.0), (sync, 1.0)) if group]
    return torch.optim.AdamW(groups, lr=config.lr, weight_decay=config.weight_decay)


def _checked(config: PretrainConfig, encoder: SpeechEncoder | None) -> PretrainConfig:
    """Settings with the encoder's, if they go together. Raises TalkheadError."""
    if config.batch % distributed.count():
        raise TalkheadError(f"a batch of {config.batch} cannot be shared evenly by {distributed.count()} processes; change it "
                            "with --set batch=N")
    if config.encoder is not None or config.encoder_tune:
        raise TalkheadError(f"encoders of the transformers library are for fine-tuning, found {config.encoder}; a base model "
                            "hears log-mel or with an encoder named by --speech")
    if encoder is None:
        if config.speech or config.tune_encoder:
            raise TalkheadError("settings for a speech encoder, but no encoder; name its file with --speech")
        return config
    if encoder.config.look_ahead != config.look_ahead:
        raise TalkheadError(f"the speech encoder looks {encoder.config.look_ahead} frames ahead, the model {config.look_ahead}; "
                            f"use --set look_ahead={encoder.config.look_ahead}")
    return dataclasses.replace(config, speech=encoder.config)


@torch.no_grad()
def _judge(model: LandmarkModel, weights: dict[str, Tensor], judging: tuple[Tensor, Tensor, Tensor],
           device: torch.device) -> dict[str, float]:
    """Mean lip distance in mm, beside that of a face at rest, and correlation of the lip opening: speakers are hidden."""
    current = {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict(weights)
    model.eval()
    x, y, weight = judging
    speaker = torch.zeros(1, dtype=torch.long, device=device)
    moved = torch.cat([model.rows(part.to(device), speaker.expand(len(part)))[0].cpu() for part in x.split(16)])[weight > 0]
    model.load_state_dict(current)
    true = torch.zeros_like(moved)
    true[:, MOVING] = y[weight > 0].unflatten(-1, (-1, 3))
    rest = model.rest.cpu().unflatten(-1, (-1, 3)).expand(len(true), -1, -1)
    return {"lip mm": float(lip_error(moved[:, MOVING], true[:, MOVING])),
            "lip mm at rest": float(lip_error(rest, true[:, MOVING])),
            "opening r": correlation(lip_opening(moved.numpy()), lip_opening(true.numpy()))}
