"""Training of stage 1 on one person's clip, or a few people's, from a base model or from nothing."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from shared.clip import Clip
from shared.config import config_to_dict
from shared.errors import TalkheadError
from shared.files import sha256
from shared.resume import Saved, TrainState
from shared.training import TensorBoard, cpu_threads, ema_update, generator, progress
from stage1_audio2lmk.checkpoint import load_model, save_model
from stage1_audio2lmk.closed_form import set_statistics, solve_kernel_path
from stage1_audio2lmk.config import Stage1Config
from stage1_audio2lmk.dataset import (
    BARE_VOICE_WEIGHT,
    VOICE_WEIGHT,
    Recording,
    Windows,
    hearing,
    in_other_voices,
    load_recording,
    made_silence,
)
from stage1_audio2lmk.encoders import finetuning
from stage1_audio2lmk.encoders.pretrained import Encoder, load_encoder
from stage1_audio2lmk.losses import landmark_loss
from stage1_audio2lmk.model import MOVING, LandmarkModel
from stage1_audio2lmk.validation import held_out_error

SILENT_ROWS = 600
ENCODER_RATE = 0.05  # of the learning rate, for layers of an encoder
INHERITED = ("dim", "layers", "heads", "window", "look_ahead", "kernel_past", "components", "formants", "speech", "encoder",
             "encoder_block", "encoder_context", "encoder_ahead", "encoder_size", "encoder_tune")
OWN = ("speaker", "kernel", "basis", "rest")  # what a fine-tuned model does not take from its base


def train(clips: list[Clip], out: Path, *, config: Stage1Config, device: torch.device, state_dir: Path,
          init: Path | None = None, quiet: bool = False) -> dict[str, Any]:
    """Fit the model to the train splits of `clips` and write it to `out`; returns numbers about the held-out tail.

    The kernel path is solved in closed form, its penalty chosen by cross-validation, on the clips' own voices and on others
    made of them. The transformer then learns what is left; its best step on the held-out tail is kept if it is worthwhile
    there. With `init`, a base model, the sizes, the
    feature scales and the transformer are the base's. `config.encoder` names an encoder of the transformers library to hear
    with, or where the base's lies now; rows of a frozen one are kept on disk, each clip's in its training folder. Killed at
    any moment, the same call continues from `state_dir` and ends as if it had never stopped.
    """
    base, encoder = None, None
    if init is not None:
        base, _, encoder = load_model(init, "cpu", config.encoder)
        config = dataclasses.replace(config, **{name: getattr(base.config, name) for name in INHERITED})
    elif config.encoder is not None:
        encoder = load_encoder(config.encoder, device, block=config.encoder_block, context=config.encoder_context,
                               ahead=config.encoder_ahead)
    _check_encoder(config, encoder)
    inputs = {"clip": [clip.fingerprint() for clip in clips], "settings": config_to_dict(config),
              "base model": sha256(init) if init is not None else None,
              "encoder": encoder.card() if encoder is not None else None}
    state = TrainState(state_dir, inputs)
    saved = state.load()
    if encoder is not None:
        encoder.to(device)
    hears = [hearing(encoder, clip.training / "encoder") for clip in clips]
    recordings = [load_recording(clip, k + 1, config, hear) for k, (clip, hear) in enumerate(zip(clips, hears))]
    silence = made_silence(SILENT_ROWS, np.random.default_rng(config.seed), hears[0])
    with cpu_threads(1 if device.type == "cpu" and not config.encoder_tune else torch.get_num_threads()):
        voices: list[Recording] = []
        if config.other_voices and encoder is None:
            weight = VOICE_WEIGHT if config.speech else BARE_VOICE_WEIGHT
            voices = [voice for pair in zip(clips, recordings) for voice in in_other_voices(*pair, weight)]
        numbers = _train(clips, recordings, voices, silence, out, config, device, state, saved, base, encoder, quiet)
    return numbers | {"seconds": state.seconds}


def _check_encoder(config: Stage1Config, encoder: Encoder | None) -> None:
    """Raises TalkheadError for settings that do not go together."""
    if encoder is None:
        if config.encoder_tune:
            raise TalkheadError(f"encoder_tune is {config.encoder_tune}, but there is no encoder; name one with --encoder")
        return
    if config.speech is not None:
        raise TalkheadError(f"a model hears with one encoder, either `speech` or {config.encoder}, not with both")
    if not 0 <= config.encoder_tune < encoder.layers:
        raise TalkheadError(f"{encoder.name} has {encoder.layers - 1} layers to tune, found {config.encoder_tune}")


def _train(clips: list[Clip], recordings: list[Recording], voices: list[Recording], silence: Recording, out: Path,
           config: Stage1Config, device: torch.device, state: TrainState, saved: Saved | None, base: LandmarkModel | None,
           encoder: Encoder | None, quiet: bool) -> dict[str, Any]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = LandmarkModel(config, len(recordings), heard=(encoder.layers, encoder.size) if encoder else None)
    if base is not None:
        taken = {name: value for name, value in base.state_dict().items() if not name.startswith(OWN)}
        model.load_state_dict(taken, strict=False)
        model.card = base.card
    set_statistics(model, recordings, base)
    path = solve_kernel_path(model, [*recordings, *voices], silence)
    drawn, quiet_rows, before, tuned = path.misses()[: len(recordings)], silence.features, model.before, nn.ModuleList()
    sounds: list[Recording] = []  # only for an encoder that is tuned
    if encoder is not None and config.encoder_tune:
        encoder.tune(config.encoder_tune)
        tuned, before = encoder.tuned_layers, finetuning.rows_before(model, encoder)
        sounds = [load_recording(clip, k + 1, config, finetuning.features_and_sound) for k, clip in enumerate(clips)]
        drawn = [dataclasses.replace(miss, features=sound.features) for miss, sound in zip(drawn, sounds)]
        quiet_rows = made_silence(SILENT_ROWS, np.random.default_rng(config.seed), finetuning.features_and_sound).features

    def judged() -> dict[str, float]:
        heard = [finetuning.heard_by(encoder, *pair) for pair in zip(recordings, sounds)] if encoder and sounds else recordings
        return held_out_error(model, heard, device)

    windows = Windows(drawn, config, quiet_rows, model.scale, before)
    model.to(device)
    for parameter in [*model.kernel_head.parameters(), *(model.encoder.parameters() if model.encoder else ())]:
        parameter.requires_grad_(False)
    learner = nn.ModuleDict({"model": model, "tuned": tuned})
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [{"params": trainable, "peak": config.lr}, {"params": list(tuned.parameters()), "peak": ENCODER_RATE * config.lr}]
    optimizer = torch.optim.AdamW(groups, lr=config.lr, weight_decay=config.weight_decay)
    averaged = {name: value.detach().clone() for name, value in learner.state_dict().items()}
    best = {name: value.clone() for name, value in averaged.items()}
    kernel_only = judged()["lip mm"]
    history: dict[str, Any] = {"step": 0, "best_step": 0, "best": (1 - config.worthwhile) * kernel_only}
    rng = generator(config.seed)
    if saved is not None:
        history = _restore(saved, learner, optimizer, averaged, best, rng)
    board = TensorBoard(state.curves)
    with progress(config.steps, "stage 1", initial=history["step"], quiet=quiet) as bar:
        for step in range(history["step"], config.steps):
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * min(1, (step + 1) / 50) * (1 - step / config.steps)
            x, y, weight, speaker = (value.to(device) for value in windows.draw(rng))
            with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
                torch.manual_seed(config.seed * 1_000_003 + step)  # dropout: the same in a resumed run
                model.train()
                if model.encoder:
                    model.encoder.eval()
                if encoder is not None and sounds:
                    x = finetuning.heard_in(x, model, encoder)
                missed = model.expand(model.correction(x, model.embed(x)[0], speaker)[0])[:, :, MOVING]
            loss = landmark_loss(missed - model.rest.unflatten(-1, (-1, 3)), y.unflatten(-1, (-1, 3)), weight, config)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            for group in optimizer.param_groups:
                nn.utils.clip_grad_norm_(group["params"], 1.0)
            optimizer.step()
            ema_update(averaged, learner, step, config.ema)
            history["step"] = step + 1
            if (step + 1) % config.check_every == 0 or step + 1 == config.steps:
                current = {name: value.clone() for name, value in learner.state_dict().items()}
                learner.load_state_dict(averaged)
                held = judged()
                learner.load_state_dict(current)
                if held["lip mm"] < history["best"]:
                    history |= {"best": held["lip mm"], "best_step": step + 1}
                    best = {name: value.clone() for name, value in averaged.items()}
                board.scalar("loss", loss.item(), step + 1)
                board.scalar("held out/lip mm", held["lip mm"], step + 1)
                board.scalar("held out/opening r", held["opening r"], step + 1)
                bar.set_postfix_str(f"held-out lips {held['lip mm']:.2f} mm, r {held['opening r']:.2f}")
            bar.update()
            if step + 1 - history["best_step"] >= config.patience:
                break
            if (step + 1) % config.save_every == 0:
                state.save({"model": learner.state_dict(), "averaged": averaged, "best": best, "rng": rng.get_state()},
                           {"optimizer": optimizer}, **history)
    board.close()
    learner.load_state_dict(best)
    held = judged()
    model.cpu()
    path.solve(tail=True)
    save_model(out, model, [recording.name for recording in recordings], encoder)
    state.remove()
    return {"steps": history["step"], "val_lips_mm": held["lip mm"], "kernel_only_val_lips_mm": kernel_only,
            "val_opening_r": held["opening r"], "best_step": history["best_step"], "ridge_penalty": path.penalty,
            "sharpening": path.sharpening}


def _restore(saved: Saved, model: nn.Module, optimizer: torch.optim.Optimizer, averaged: dict[str, Tensor],
             best: dict[str, Tensor], rng: torch.Generator) -> dict[str, Any]:
    """Go on from what an interrupted training saved; returns its history."""
    model.load_state_dict(saved.group("model"))
    for group, values in (("averaged", averaged), ("best", best)):
        for name, value in saved.group(group).items():
            values[name].copy_(value)
    saved.restore_optimizer("optimizer", optimizer)
    rng.set_state(saved.tensors["rng"])
    return saved.progress
