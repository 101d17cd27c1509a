"""Sound in pieces of any size -> landmarks, row by row, with a state that does not grow.

A row of frame t is certain when the sound of frame t + look_ahead is complete: the latency is the look-ahead plus the one
frame in which sound is collected. With an encoder of the transformers library the look-ahead is the encoder's where that is
longer, and rows come by its blocks (see `encoders`). Attention keeps the keys and values of its window, so that a frame
costs one row.
"""

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from shared.errors import TalkheadError
from shared.landmarks import N_LANDMARKS, SAMPLES_PER_FRAME
from stage1_audio2lmk.audio.dc_blocker import DCBlocker
from stage1_audio2lmk.audio.features import FeatureStream, frames_of, levels
from stage1_audio2lmk.checkpoint import load_model
from stage1_audio2lmk.encoders.pretrained import Encoder, EncoderStream
from stage1_audio2lmk.model import LandmarkModel, Memory, Prepared
from stage1_audio2lmk.upper_face import Liveliness

BLOCK = 250  # video frames that go through the network at once


@dataclass(frozen=True)
class Predictor:
    """A trained model, its speakers' names (index k + 1), where it runs and the encoder, if any, that is not part of it."""

    model: LandmarkModel
    speakers: list[str]
    device: torch.device
    encoder: Encoder | None = None

    @functools.cached_property
    def prepared(self) -> Prepared:
        """Shared by all streams."""
        with torch.inference_mode():
            return self.model.prepare()

    @property
    def look_ahead(self) -> int:
        """Frames of future sound that a row hears at most."""
        return max(self.model.config.look_ahead, self.encoder.look_ahead if self.encoder else 0)


def load_predictor(path: Path, device: torch.device, encoder: str | None = None) -> Predictor:
    """Read a stage-1 checkpoint; `encoder` says where the encoder that it names lies now. Raises TalkheadError."""
    model, speakers, outside = load_model(path, device, encoder)
    return Predictor(model, speakers, device, outside)


def speaker_index(predictor: Predictor, speaker: str | None) -> int:
    """Index of a named speaker; a model of one speaker is that speaker, an unnamed one of several is unknown (0)."""
    if speaker is not None and speaker in predictor.speakers:
        return predictor.speakers.index(speaker) + 1
    return 1 if len(predictor.speakers) == 1 and speaker is None else 0


class ModelStream:
    """The network for rows that come in pieces: what `LandmarkModel.forward` of all of them at once gives, to rounding."""

    def __init__(self, model: LandmarkModel, speaker: Tensor, prepared: Prepared) -> None:
        self.model, self.speaker, self.prepared = model, speaker, prepared
        self.before, self.ahead = model.before, model.config.look_ahead
        self.quiet = model.silence[None].cpu().numpy()
        self.rows = np.repeat(self.quiet, self.before, axis=0)
        self.heard = np.zeros((0, *model.heard), np.float32) if model.heard else None  # of the encoder outside
        self.corrects, self.memory = model.corrects, Memory()

    def push(self, rows: np.ndarray, heard: np.ndarray | None = None) -> np.ndarray:
        """Feature rows (n, FEATURE_SIZE), n ≥ 0 -> displacement (m,68,3) metres of the rows that are now certain.

        `heard` (k, layers, width), k ≥ 0, are the next rows of the encoder if one is outside the model.
        """
        self.rows = np.concatenate([self.rows, rows])
        count = len(self.rows) - self.before - self.ahead
        if self.heard is not None:
            self.heard = self.heard if heard is None else np.concatenate([self.heard, heard])
            count = min(count, len(self.heard))
        if count <= 0:
            return np.zeros((0, N_LANDMARKS, 3), np.float32)
        padded = self.rows[: self.before + count + self.ahead]
        if self.heard is not None:
            columns = self.heard[:count].reshape(count, -1)
            padded = np.concatenate([padded, np.pad(columns, ((self.before, self.ahead), (0, 0)))], 1)
            self.heard = self.heard[count:].copy()
        with torch.inference_mode():
            sound = torch.from_numpy(padded)[None].to(self.model.mean.device)
            moved, memory = self.model.rows(sound, self.speaker, self.memory, self.prepared, self.corrects)
            self.memory = memory.detached()
        self.rows = self.rows[count:].copy()
        return moved[0].cpu().numpy()

    def flush(self, heard: np.ndarray | None = None) -> np.ndarray:
        """The rows that waited for the future, which turns out to be silent; `heard` are the encoder's last."""
        return self.push(np.repeat(self.quiet, self.ahead, axis=0), heard)


class LandmarkStream:
    """Push samples at 16 kHz, get landmark rows (k,68,3) metres of the face `neutral` ((68,3) or (1,68,3)).

    `blinks` False leaves the network's motion alone, without blinks, brows and lids; `liveliness` scales brows and lids.
    """

    def __init__(self, predictor: Predictor, neutral: np.ndarray, *, seed: int = 0, speaker: str | None = None,
                 blinks: bool = True, liveliness: float = 1.0) -> None:
        self.predictor, self.rest = predictor, np.asarray(neutral, np.float32).reshape(1, N_LANDMARKS, 3)
        self.speaker = torch.tensor([speaker_index(predictor, speaker)], device=predictor.device)
        self.seed, self.blinks, self.liveliness = seed, blinks, liveliness
        self.reset()

    def reset(self) -> None:
        """Forget all sound and begin anew: the same sound gives the same rows again."""
        self.gate, self.network = DCBlocker(), ModelStream(self.predictor.model, self.speaker, self.predictor.prepared)
        self.encoder = EncoderStream(self.predictor.encoder) if self.predictor.encoder else None
        self.extras = Liveliness(self.seed, self.liveliness) if self.blinks else None
        self.samples = np.zeros(0, np.float32)  # less than a frame
        self.features = FeatureStream(self.predictor.model.hears_formants)
        self.levels = np.zeros(0)  # dB of the frames whose rows are still to come
        self.heard = self.ended = False

    def push(self, samples: np.ndarray) -> np.ndarray:
        """Any number of samples (n,) as floats within ±1 -> the rows that are now certain (k,68,3) float32.

        Raises TalkheadError for samples of another kind or after `flush`.
        """
        if self.ended:
            raise TalkheadError("this stream has been flushed; call reset() before the next sound")
        return self._push(self.gate.pass_through(samples))

    def flush(self) -> np.ndarray:
        """The rows still to come; a part of a frame is filled with silence, and no sound at all is one frame of it."""
        if self.ended:
            return np.zeros((0, N_LANDMARKS, 3), np.float32)
        rest = np.zeros((0, N_LANDMARKS, 3), np.float32)
        if len(self.samples) or not self.heard:
            rest = self._push(frames_of(self.samples)[len(self.samples) :])
        self.ended = True
        return np.concatenate([rest, self._finish(self.network.flush(self.encoder.flush() if self.encoder else None))])

    def _push(self, samples: np.ndarray) -> np.ndarray:
        rows = [np.zeros((0, N_LANDMARKS, 3), np.float32)]
        sound = np.concatenate([self.samples, samples])
        whole = len(sound) - len(sound) % SAMPLES_PER_FRAME
        for start in range(0, whole, BLOCK * SAMPLES_PER_FRAME):
            fresh = sound[start : min(start + BLOCK * SAMPLES_PER_FRAME, whole)]
            self.levels = np.concatenate([self.levels, levels(fresh)])
            moved = self.network.push(self.features.push(fresh), self.encoder.push(fresh) if self.encoder else None)
            self.heard = True
            rows.append(self._finish(moved))
        self.samples = sound[whole:].copy()
        return np.concatenate(rows)

    def _finish(self, moved: np.ndarray) -> np.ndarray:
        levels, self.levels = self.levels[: len(moved)], self.levels[len(moved) :].copy()
        landmarks = self.rest + moved
        return self.extras.apply(landmarks, levels) if self.extras is not None else landmarks
