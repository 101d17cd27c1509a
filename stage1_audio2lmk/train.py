"""Training of stage 1 on one person's clip, or a few people's, with or without a base model."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from shared.clip import Clip
from shared.config import config_to_dict
from shared.errors import TalkheadError
from shared.files import sha256
from shared.progress import progress
from shared.resume import Saved, TrainState
from shared.training import TensorBoard, cpu_threads, ema_update, generator
from stage1_audio2lmk.audio.features import features
from stage1_audio2lmk.checkpoint import load_model, save_model
from stage1_audio2lmk.config import Stage1Config
from stage1_audio2lmk.dataset import (
    BARE_VOICE_WEIGHT,
    VOICE_WEIGHT,
    FeatureFn,
    Recording,
    Windows,
    augmented_voices,
    load_recording,
    make_feature_fn,
    synthetic_silence,
    weighed,
)
from stage1_audio2lmk.encoders.base import Encoder
from stage1_audio2lmk.encoders.transformers_encoder import (
    CachedEncoder,
    Projection,
    TransformersEncoder,
    cached_hidden_states,
    load_encoder,
    project,
)
from stage1_audio2lmk.kernel_ridge import KernelFit, choose_embedding_share, fit_kernel_ridge, least_error
from stage1_audio2lmk.losses import landmark_loss
from stage1_audio2lmk.model import LandmarkModel, motion_of, new_model
from stage1_audio2lmk.statistics import fitted_rows, set_statistics, statistics
from stage1_audio2lmk.transformer import LandmarkTransformer
from stage1_audio2lmk.validation import validation_error

SILENCE_FRAMES = 1920
WARM_UP = 50  # steps over which the learning rate rises
LAYER_CHOICE_POINTS = 500  # support points of the fits that choose a layer
CACHE = "encoder"  # folder, in a clip's training folder, of an external encoder's hidden states


def train(clips: list[Clip], out: Path, *, config: Stage1Config, device: torch.device, state_dir: Path,
          base: Path | None = None, encoder: Encoder | None = None, quiet: bool = False) -> dict[str, Any]:
    """Fit a model to the train splits of `clips` and write it to `out`; returns figures of the validation split.

    The kernel ridge regression is solved in closed form, on the clips' own voices and on augmented ones; with a `base` model,
    on what a share of the base leaves, chosen on inner folds, and the base goes into the file. With `steps`, a transformer then
    learns what is left over; its best step on the validation split is kept if it gains `min_gain` there.

    The speech encoder is the base's; without a base it is `encoder`, or that of the transformers library which
    `config.encoder` names, or none. With a base `config.encoder` says where the base's lies now. Hidden states of one of the
    transformers library are cached in the clips' training folders. Killed at any moment, the same call continues from
    `state_dir` and ends as if it had never stopped. Raises TalkheadError.
    """
    prior, encoder = _start(base, encoder, config, device)
    inputs = {"clip": [clip.fingerprint() for clip in clips], "settings": config_to_dict(config),
              "base model": sha256(base) if base is not None else None,
              "encoder": encoder.info() if encoder is not None else None}
    state = TrainState(state_dir, inputs)
    saved = state.load()
    if isinstance(encoder, TransformersEncoder) and encoder.projection is None:
        encoder.projection = fit_projection(encoder, clips, config).to(device)
    with cpu_threads(1 if device.type == "cpu" else torch.get_num_threads()):
        voice = bool(config.steps) and config.formants or prior is not None and prior.uses_formants
        data = _load(clips, config, encoder, device, voice)
        numbers = _train(data, out, config, device, state, saved, prior, encoder, quiet)
    return numbers | {"seconds": state.seconds}


def fit_projection(encoder: TransformersEncoder, clips: Sequence[Clip], config: Stage1Config) -> Projection:
    """The projection for the frames of the clips before their validation splits, of the hidden state that says most about lips.

    Each hidden state is tried in a kernel regression of LAYER_CHOICE_POINTS support points, and the error on its inner folds
    decides; then the mean of the best and either neighbour is tried as well.
    """
    states: list[np.ndarray] = []

    def rows_of(folder: Path) -> FeatureFn:
        def rows(samples: np.ndarray) -> np.ndarray:
            states.append(cached_hidden_states(encoder, samples, folder / CACHE))
            return features(samples, voice=False)
        return rows

    config = dataclasses.replace(config, support_points=min(config.support_points, LAYER_CHOICE_POINTS))
    recordings = [load_recording(clip, k + 1, config, rows_of(clip.training)) for k, clip in enumerate(clips)]
    silence = synthetic_silence(SILENCE_FRAMES, np.random.default_rng(config.seed), rows_of(clips[0].training))
    silence = weighed(silence, recordings)
    model = new_model(config, len(recordings), config.encoder_size, transformer=False)
    set_statistics(model, statistics(recordings, recordings, config))

    def tried(*layers: int) -> tuple[float, Projection]:
        some = [rows[:, list(layers)] for rows in states]
        projection = Projection(layers, encoder.width, config.encoder_size)
        projection.fit(torch.cat([projection.pool(torch.from_numpy(rows[frames])) for rows, r in zip(some, recordings)
                                  for frames in torch.cat(list(fitted_rows(r))).split(1000)]))
        heard = [dataclasses.replace(r, features=torch.cat([r.features, torch.from_numpy(project(projection, rows))[
            : len(r.features)]], 1)) for rows, r in zip(some, (*recordings, silence))]
        return least_error(model.kernel, heard[:-1], heard[-1], config), projection

    found = [tried(k) for k in encoder.every]
    best = min(encoder.every, key=lambda k: found[k][0])
    found += [tried(k, k + 1) for k in (best - 1, best) if 0 <= k < encoder.n_layers - 1]
    return min(found, key=lambda pair: pair[0])[1]


class _Data(NamedTuple):
    recordings: list[Recording]
    voices: list[Recording]  # the same in augmented voices
    silence: Recording


def _start(base: Path | None, encoder: Encoder | None, config: Stage1Config,
           device: torch.device) -> tuple[LandmarkModel | None, Encoder | None]:
    """The base model on the CPU, if any, and the encoder on `device`, if any."""
    if base is not None:
        loaded = load_model(base, device, encoder if encoder is not None else config.encoder)
        if loaded.model.prior is not None:
            raise TalkheadError(f"{base} is a person's model, which has a base itself; name a base model")
        return loaded.model.cpu(), loaded.encoder
    if encoder is None and config.encoder is not None:
        encoder = load_encoder(config.encoder, device, block=config.encoder_block, context=config.encoder_context,
                               ahead=config.encoder_ahead)
    return None, encoder


def _load(clips: list[Clip], config: Stage1Config, encoder: Encoder | None, device: torch.device, voice: bool) -> _Data:
    """Rows of the clips, of their augmented voices and of silence; sound is changed and spectra are made on `device`.

    `voice`: are formants needed?
    """
    external = isinstance(encoder, TransformersEncoder)
    encoders = [CachedEncoder(encoder, clip.training / CACHE) if isinstance(encoder, TransformersEncoder) else encoder
                for clip in clips]
    feature_fns = [make_feature_fn(one, device, voice) for one in encoders]
    recordings = [load_recording(clip, k + 1, config, fn) for k, (clip, fn) in enumerate(zip(clips, feature_fns))]
    voices: list[Recording] = []
    if config.voice_augmentation and not external:  # an external encoder would take too long
        weight = BARE_VOICE_WEIGHT if encoder is None else VOICE_WEIGHT
        voices = [voice for clip, recording, fn in zip(clips, recordings, feature_fns)
                  for voice in augmented_voices(clip, recording, weight, fn, device)]
    silence = synthetic_silence(SILENCE_FRAMES, np.random.default_rng(config.seed), feature_fns[0])
    return _Data(recordings, voices, weighed(silence, [*recordings, *voices]))


def _fit(model: LandmarkModel, data: _Data, config: Stage1Config, prior: LandmarkModel | None) -> KernelFit:
    """Fit the model's kernel regression and give it the share of the prior that was chosen."""
    fitted = [*data.recordings, *data.voices]
    priors = None
    if prior is not None:
        projector = model.kernel.projector()
        priors = [motion_of(prior, r.features, 0) @ projector for r in (*fitted, data.silence)]
    if config.choose_embedding and model.size and config.mel_terms:
        share = choose_embedding_share(model.kernel, fitted, data.silence, config, priors)
        model.kernel.similarity.config = dataclasses.replace(model.kernel.config, share=share)
    fit = fit_kernel_ridge(model.kernel, fitted, data.silence, config, priors)
    model.kernel.load(fit)
    if fit.share:
        model.prior, model.share = prior, fit.share
    return fit


def _train(data: _Data, out: Path, config: Stage1Config, device: torch.device, state: TrainState, saved: Saved | None,
           prior: LandmarkModel | None, encoder: Encoder | None, quiet: bool) -> dict[str, Any]:
    recordings = data.recordings
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = new_model(config, len(recordings), encoder.size if encoder is not None else 0, transformer=config.steps > 0)
    model.silence.copy_(data.silence.features[0])
    set_statistics(model, statistics(recordings, recordings, config))
    fit = _fit(model, data, config, prior)
    transformer, model.transformer = model.transformer, None
    known = [motion_of(model, r.features, r.speaker) for r in recordings]  # of all parts but the transformer
    alone = validation_error(known, recordings)
    history, found = {"step": 0, "best_step": 0}, alone
    if transformer is not None:
        history = _learn(transformer, data, fit.residuals, known, alone["lip mm"], config, device, state, saved, quiet)
    if transformer is not None and history["best_step"]:
        model.transformer = transformer.cpu()
        found = validation_error([motion_of(model, r.features, r.speaker) for r in recordings], recordings)
    model.kernel.load(fit, final=True)
    save_model(out, model, [recording.name for recording in recordings], encoder, config)
    state.remove()
    return {"steps": history["step"], "val_lips_mm": found["lip mm"], "kernel_only_val_lips_mm": alone["lip mm"],
            "val_opening_r": found["opening r"], "best_step": history["best_step"], "ridge_penalty": fit.penalty,
            "base_share": fit.share, "sharpening": fit.sharpening}


def _learn(transformer: LandmarkTransformer, data: _Data, residuals: Sequence[Tensor], known: Sequence[Tensor], alone: float,
           config: Stage1Config, device: torch.device, state: TrainState, saved: Saved | None, quiet: bool) -> dict[str, Any]:
    """Train the transformer on the out-of-fold residuals; returns the history. `alone` is the lip error without it.

    It ends with its best averaged weights, "best_step" 0 if none gained `min_gain`.
    """
    wanted = [dataclasses.replace(r, displacement=residual) for r, residual in zip(data.recordings, residuals)]
    windows = Windows(wanted, config, data.silence.features, transformer.scale.clone(), transformer.left, transformer.ahead)
    transformer.to(device)
    optimizer = torch.optim.AdamW(transformer.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    averaged = {name: value.detach().clone() for name, value in transformer.state_dict().items()}
    best = {name: value.clone() for name, value in averaged.items()}
    history: dict[str, Any] = {"step": 0, "best_step": 0, "best": (1 - config.min_gain) * alone}
    rng = generator(config.seed)
    if saved is not None:
        history = _restore(saved, transformer, optimizer, averaged, best, rng)
    board = TensorBoard(state.curves)
    with progress(config.steps, "stage 1", initial=history["step"], quiet=quiet) as bar:
        for step in range(history["step"], config.steps):
            for group in optimizer.param_groups:
                group["lr"] = config.lr * min(1, (step + 1) / WARM_UP) * (1 - step / config.steps)
            x, y, weight, speaker = (value.to(device) for value in windows.draw(rng))
            with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
                torch.manual_seed(config.seed * 1_000_003 + step)  # dropout: the same in a resumed run
                predicted, _ = transformer.train()(x, speaker)
            loss = landmark_loss(predicted, y, weight, config)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(transformer.parameters(), 1.0)
            optimizer.step()
            ema_update(averaged, transformer, step, config.ema)
            history["step"] = step + 1
            if (step + 1) % config.check_every == 0 or step + 1 == config.steps:
                found = _validate(transformer, averaged, data, known, device)
                if found["lip mm"] < history["best"]:
                    history |= {"best": found["lip mm"], "best_step": step + 1}
                    best = {name: value.clone() for name, value in averaged.items()}
                board.scalar("loss", loss.item(), step + 1)
                board.scalar("validation/lip mm", found["lip mm"], step + 1)
                board.scalar("validation/opening r", found["opening r"], step + 1)
                bar.set_postfix_str(f"validation: lips {found['lip mm']:.2f} mm, r {found['opening r']:.2f}")
            bar.update()
            if step + 1 - history["best_step"] >= config.patience:
                break
            if (step + 1) % config.save_every == 0:
                state.save({"model": transformer.state_dict(), "averaged": averaged, "best": best, "rng": rng.get_state()},
                           {"optimizer": optimizer}, **history)
    board.close()
    transformer.load_state_dict(best)
    return history


@torch.no_grad()
def _validate(transformer: LandmarkTransformer, weights: dict[str, Tensor], data: _Data, known: Sequence[Tensor],
              device: torch.device) -> dict[str, float]:
    """Validation error of the averaged `weights` on top of what is `known`, the motion (T, 111) of all other parts."""
    current = {name: value.clone() for name, value in transformer.state_dict().items()}
    transformer.load_state_dict(weights)
    transformer.eval()
    quiet, motion = data.silence.features[:1], []
    for r, moved in zip(data.recordings, known):
        padded = torch.cat([quiet.expand(transformer.left, -1), r.features, quiet.expand(transformer.ahead, -1)])
        added, _ = transformer(padded[None].to(device), torch.tensor([r.speaker], device=device))
        motion.append(moved + added[0].cpu())
    transformer.load_state_dict(current)
    return validation_error(motion, data.recordings)


def _restore(saved: Saved, transformer: LandmarkTransformer, optimizer: torch.optim.Optimizer, averaged: dict[str, Tensor],
             best: dict[str, Tensor], rng: torch.Generator) -> dict[str, Any]:
    """Go on from what an interrupted training saved; returns its history."""
    transformer.load_state_dict(saved.group("model"))
    for group, values in (("averaged", averaged), ("best", best)):
        for name, value in saved.group(group).items():
            values[name].copy_(value)
    saved.restore_optimizer("optimizer", optimizer)
    rng.set_state(saved.tensors["rng"])
    return saved.progress
