"""Pretraining of a base model on many clips: the speech of unknown voices, and what fine-tuning adds to.

It has no support points: its transformer learns by gradient, on one device or on several that torchrun started; the speech
encoder is frozen. Every process makes its share of each batch, and losses are those of the whole batch, so the number of
processes changes nothing but rounding and what dropout hides.
"""

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
from shared.progress import progress
from shared.resume import TrainState
from shared.training import TensorBoard, ema_update
from stage1_audio2lmk import distributed
from stage1_audio2lmk.audio.features import FEATURE_SIZE, MELS, mean_log_mel
from stage1_audio2lmk.av_sync import Sync, sync_loss
from stage1_audio2lmk.checkpoint import save_model
from stage1_audio2lmk.config import Stage1Config
from stage1_audio2lmk.dataset import FeatureFn, make_feature_fn, synthetic_silence
from stage1_audio2lmk.encoders.speech_encoder import load_speech_encoder
from stage1_audio2lmk.losses import landmark_loss, lip_error
from stage1_audio2lmk.model import LandmarkModel, new_model
from stage1_audio2lmk.row_store import ClipRows, ClipWindows, fingerprint, open_rows, person, prepare, validation_windows
from stage1_audio2lmk.statistics import set_statistics, statistics
from stage1_audio2lmk.train import SILENCE_FRAMES, WARM_UP
from stage1_audio2lmk.validation import motion_correlation

VALIDATION_WINDOWS = 128


@dataclass(frozen=True)
class PretrainConfig(Stage1Config):
    """Settings of stage 1 with other defaults, and what only pretraining has.

    Settings of the kernel and its regression, of an early end and of encoders of the transformers library (`support_points`,
    `min_gain`, `patience`, `encoder` …) do nothing here. With dropout, runs on different numbers of processes hide different
    things and so differ a little.
    """

    dropout: float = with_default(Stage1Config, "dropout", 0.1)
    steps: int = setting(3000, "optimiser steps", 1, 10_000_000)
    batch: int = setting(16, "windows a step, of all processes together", 1, 65536)
    ema: float = with_default(Stage1Config, "ema", 0.995)
    check_every: int = with_default(Stage1Config, "check_every", 100)
    save_every: int = with_default(Stage1Config, "save_every", 500)
    unknown_share: float = with_default(Stage1Config, "unknown_share", 0.5)
    voices: int = setting(4, "of each clip: its own and augmented ones", 1, 100)
    sync_weight: float = setting(0.3, "weight of the sync loss, whether lips go with the sound; 0 for none", 0, 1000)
    sync_from: int = setting(500, "first step with the sync loss on predicted lips; before, the sync network is untrained",
                             0, 10_000_000)


class Learner(nn.Module):
    """Model and sync network in one module, so that DDP wraps both; takes this rank's part, returns losses of the whole batch."""

    def __init__(self, model: LandmarkModel, sync: Sync | None, config: Stage1Config) -> None:
        super().__init__()
        self.model, self.sync, self.config = model, sync, config

    def forward(self, x: Tensor, y: Tensor, weight: Tensor, speaker: Tensor, sync_weight: float) -> dict[str, Tensor]:
        """Windows as of `ClipWindows.draw` -> "total", to minimise, and its parts.

        Gradients of gathered rows reach this rank's share only, and DistributedDataParallel averages: hence the factor.
        """
        model = self.model.train()
        moved, _ = model.motion(x, speaker)
        audio = self.audio(x[:, model.left : model.left + y.shape[1]])
        moved, y, weight, audio = (distributed.gather(rows) for rows in (moved, y, weight, audio))
        found = {"landmarks": landmark_loss(moved, y, weight, self.config)}
        own, everyones = found["landmarks"], moved.new_zeros(())
        if self.sync is not None:
            found["sync of true lips"] = everyones = sync_loss(self.sync, audio, y, weight, across=False)
            if sync_weight:
                with _frozen(self.sync):
                    found["sync"] = sync_loss(self.sync, audio, moved, weight, across=False)
                own = own + sync_weight * found["sync"]
        parts = {name: loss.detach() for name, loss in found.items()}
        return {"total": distributed.world_size() * own + everyones, "loss": own.detach(), **parts}

    def audio(self, rows: Tensor) -> Tensor:
        """Rows (B, L, FEATURE_SIZE + size) -> what the sync network reads of them: embedding or log-mel, about unit variance."""
        if self.model.size:
            return self.model.size**0.5 * rows[..., FEATURE_SIZE:]
        assert self.model.transformer is not None
        return mean_log_mel((rows - self.model.transformer.mean) / self.model.transformer.scale)


@contextmanager
def _frozen(module: nn.Module) -> Iterator[None]:
    module.requires_grad_(False)
    try:
        yield
    finally:
        module.requires_grad_(True)


def pretrain(clips: list[Clip], out: Path, *, config: PretrainConfig, device: torch.device, state_dir: Path,
             speech: Path | None = None, quiet: bool = False) -> dict[str, Any]:
    """Train a base model on the train splits of `clips` and write it to `out`; returns figures of the validation split.

    `speech` is the file of the speech encoder, if any. The best step is kept by the lip error of hidden speakers on the
    validation split (see `row_store.open_rows`). Killed at any moment, the same call continues from `state_dir` and ends as if
    it had never stopped. In several processes all make the same call, inside `distributed.processes`, and see the same folders.
    """
    _check(config)
    encoder = load_speech_encoder(speech).to(device) if speech else None
    feature_fn = make_feature_fn(encoder, device)
    first = distributed.rank() == 0
    quiet = quiet or not first
    prints = [fingerprint(clip, config.seed) for clip in clips]
    inputs = {"clips": prints, "settings": config_to_dict(config), "speech encoder": sha256(speech) if speech else None}
    state = TrainState(state_dir, inputs)
    saved = state.load()

    rows = _rows(clips, [state_dir / "rows" / name for name in prints], config, feature_fn, device, quiet)
    silence = synthetic_silence(SILENCE_FRAMES, np.random.default_rng(config.seed), feature_fn).features
    learner = _learner(config, encoder.size if encoder is not None else 0, rows, silence)
    model = learner.model
    assert model.transformer is not None
    windows = ClipWindows(rows, config, silence, model.transformer.scale.clone(), model.left, model.ahead)
    validation = validation_windows(rows, config, silence, model.left, model.ahead, VALIDATION_WINDOWS)
    optimizer = torch.optim.AdamW(learner.to(device).parameters(), lr=config.lr, weight_decay=config.weight_decay)
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
    part = config.batch // distributed.world_size()
    indices = range(distributed.rank() * part, (distributed.rank() + 1) * part)

    board = TensorBoard(state.curves) if first else None
    with progress(config.steps, "stage 1: base", initial=history["step"], quiet=quiet) as bar:
        for step in range(history["step"], config.steps):
            for group in optimizer.param_groups:
                group["lr"] = config.lr * min(1, (step + 1) / WARM_UP) * (1 - step / config.steps)
            batch = [value.to(device) for value in windows.draw(step, indices)]
            with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
                torch.manual_seed((config.seed * 1_000_003 + step) * 1024 + distributed.rank())  # dropout
                losses = shared(*batch, config.sync_weight if step >= config.sync_from else 0.0)
            optimizer.zero_grad(set_to_none=True)
            losses["total"].backward()
            for module in (model, learner.sync):
                if module is not None:
                    nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            optimizer.step()
            ema_update(averaged, model, step, config.ema)
            history["step"] = step + 1
            history["losses"].append(float(losses["loss"]))
            if (step + 1) % config.check_every == 0 or step + 1 == config.steps:
                found = _validate(model, averaged, validation, device)
                if found["lip mm"] < history["best"]:
                    history |= {"best": found["lip mm"], "best_step": step + 1}
                    best = {name: value.clone() for name, value in averaged.items()}
                for name, value in {**losses, **{f"validation/{name}": value for name, value in found.items()}}.items():
                    if board is not None and name != "total":
                        board.scalar(name, float(value), step + 1)
                bar.set_postfix_str(f"validation: lips {found['lip mm']:.2f} mm, r {found['opening r']:.2f}")
            bar.update()
            if (step + 1) % config.save_every == 0 and first:
                state.save({"learner": learner.state_dict(), "averaged": averaged, "best": best}, {"optimizer": optimizer},
                           **history)
    found = _validate(model, best, validation, device)
    model.load_state_dict(best)
    distributed.barrier()
    if board is not None:
        board.close()
        save_model(out, model, list(dict.fromkeys(person(clip.info.name) for clip in clips)), encoder, config)
        state.remove()
        shutil.rmtree(state_dir / "rows")
    return {"steps": history["step"], "seconds": state.seconds,
            "val_split": "whole speakers" if any(not clip.val_start for clip in rows) else "the end of each clip",
            "val_lips_mm": found["lip mm"], "val_lips_at_rest_mm": found["lip mm at rest"], "val_opening_r": found["opening r"],
            "best_step": history["best_step"], "losses": history["losses"]}


def _rows(clips: list[Clip], folders: list[Path], config: PretrainConfig, feature_fn: FeatureFn, device: torch.device,
          quiet: bool) -> list[ClipRows]:
    """Prepared rows of all clips, of which each process prepares its share."""
    own = list(zip(clips, folders))[distributed.rank() :: distributed.world_size()]
    with progress(len(own), "stage 1: sound of clips", quiet=quiet, unit="clip") as bar:
        for clip, folder in own:
            prepare(clip, folder, config.voices, config, feature_fn, device)
            bar.update()
    distributed.barrier()
    return open_rows(clips, folders, config.voices, config)


def _learner(config: PretrainConfig, size: int, rows: list[ClipRows], silence: Tensor) -> Learner:
    """A new model with the data's statistics for an embedding of `size` columns, and the sync network."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = new_model(config, max(clip.speaker for clip in rows), size)
        sync = Sync(size or MELS) if config.sync_weight else None
    model.silence.copy_(silence[0])
    spoken = (clip.recording(voice) for clip in rows for voice in range(clip.voices))
    set_statistics(model, statistics(spoken, (clip.recording() for clip in rows), config))
    return Learner(model, sync, config)


def _check(config: PretrainConfig) -> None:
    """Raise TalkheadError for settings that do not go together."""
    if config.batch % distributed.world_size():
        raise TalkheadError(f"a batch of {config.batch} cannot be shared evenly by {distributed.world_size()} processes; change "
                            "it with --set batch=N")
    if config.encoder is not None:
        raise TalkheadError(f"encoders of the transformers library are for fine-tuning, found {config.encoder}; a base model "
                            "has none or one named by --speech")


@torch.no_grad()
def _validate(model: LandmarkModel, weights: dict[str, Tensor], validation: tuple[Tensor, Tensor, Tensor],
              device: torch.device) -> dict[str, float]:
    """Mean lip distance in mm, beside that of a face at rest, and correlation of the lip opening: speakers are hidden."""
    current = {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict(weights)
    model.eval()
    x, y, weight = validation
    speaker = torch.zeros(1, dtype=torch.long, device=device)
    moved = torch.cat([model.motion(part.to(device), speaker.expand(len(part)))[0].cpu() for part in x.split(16)])[weight > 0]
    model.load_state_dict(current)
    true = y[weight > 0]
    return {"lip mm": float(lip_error(moved, true)),
            "lip mm at rest": float(lip_error(model.kernel.rest.cpu().expand(len(true), -1), true)),
            "opening r": motion_correlation(moved, true)}
