"""Sound in pieces of any size -> landmarks, row by row, with a state that does not grow.

A row of frame t is certain when the sound of frame t + look_ahead is complete: the latency is the look-ahead plus the one
frame in which sound is collected. Attention keeps the keys and values of its window, so that a frame costs one row.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from shared.errors import TalkheadError
from shared.landmarks import N_LANDMARKS, SAMPLES_PER_FRAME
from stage1_audio2lmk.features import FeatureStream, frames_of, levels
from stage1_audio2lmk.liveliness import Liveliness
from stage1_audio2lmk.model import LandmarkModel, Memory
from stage1_audio2lmk.sound_gate import SoundGate
from stage1_audio2lmk.train import load_model

BLOCK = 250  # video frames that go through the network at once


@dataclass(frozen=True)
class Predictor:
    """A trained model, its speakers' names (index k + 1) and where it runs."""

    model: LandmarkModel
    speakers: list[str]
    device: torch.device


def load_predictor(path: Path, device: torch.device) -> Predictor:
    """Read a stage-1 checkpoint. Raises TalkheadError."""
    model, speakers = load_model(path, device)
    return Predictor(model, speakers, device)


def speaker_index(predictor: Predictor, speaker: str | None) -> int:
    """Index of a named speaker; a model of one speaker is that speaker, an unnamed one of several is unknown (0)."""
    if speaker is not None and speaker in predictor.speakers:
        return predictor.speakers.index(speaker) + 1
    return 1 if len(predictor.speakers) == 1 and speaker is None else 0


class ModelStream:
    """The network for rows that come in pieces: what `LandmarkModel.forward` of all of them at once gives, to rounding."""

    def __init__(self, model: LandmarkModel, speaker: Tensor) -> None:
        self.model, self.speaker = model, speaker
        self.before, self.ahead = model.before, model.config.look_ahead
        self.quiet = model.silence[None].cpu().numpy()
        self.rows = np.repeat(self.quiet, self.before, axis=0)
        self.corrects, self.memory = model.corrects, Memory()
        with torch.inference_mode():
            self.table = model.kernel.table()

    def push(self, rows: np.ndarray) -> np.ndarray:
        """Feature rows (n, FEATURE_SIZE), n ≥ 0 -> displacement (m,68,3) metres of the rows that are now certain."""
        self.rows = np.concatenate([self.rows, rows])
        count = len(self.rows) - self.before - self.ahead
        if count <= 0:
            return np.zeros((0, N_LANDMARKS, 3), np.float32)
        with torch.inference_mode():
            padded = torch.from_numpy(self.rows)[None].to(self.model.mean.device)
            moved, memory = self.model.rows(padded, self.speaker, self.memory, self.table, self.corrects)
            self.memory = memory.detached()
        self.rows = self.rows[count:].copy()
        return moved[0].cpu().numpy()

    def flush(self) -> np.ndarray:
        """The rows that waited for the future, which turns out to be silent."""
        return self.push(np.repeat(self.quiet, self.ahead, axis=0))


class LandmarkStream:
    """Push samples at 16 kHz, get landmark rows (k,68,3) metres of the face `neutral` ((68,3) or (1,68,3)).

    `blinks` False leaves the network's motion alone, without blinks, brows and lids; `liveliness` scales brows and lids.
    """

    def __init__(self, predictor: Predictor, neutral: np.ndarray, *, seed: int = 0, speaker: str | None = None,
                 blinks: bool = True, liveliness: float = 1.0) -> None:
        self.model, self.rest = predictor.model, np.asarray(neutral, np.float32).reshape(1, N_LANDMARKS, 3)
        self.speaker = torch.tensor([speaker_index(predictor, speaker)], device=predictor.device)
        self.seed, self.blinks, self.liveliness = seed, blinks, liveliness
        self.reset()

    def reset(self) -> None:
        """Forget all sound and begin anew: the same sound gives the same rows again."""
        self.gate, self.network = SoundGate(), ModelStream(self.model, self.speaker)
        self.extras = Liveliness(self.seed, self.liveliness) if self.blinks else None
        self.samples = np.zeros(0, np.float32)  # less than a frame
        self.features = FeatureStream()
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
        return np.concatenate([rest, self._finish(self.network.flush())])

    def _push(self, samples: np.ndarray) -> np.ndarray:
        rows = [np.zeros((0, N_LANDMARKS, 3), np.float32)]
        sound = np.concatenate([self.samples, samples])
        whole = len(sound) - len(sound) % SAMPLES_PER_FRAME
        for start in range(0, whole, BLOCK * SAMPLES_PER_FRAME):
            fresh = sound[start : min(start + BLOCK * SAMPLES_PER_FRAME, whole)]
            self.levels = np.concatenate([self.levels, levels(fresh)])
            moved = self.network.push(self.features.push(fresh))
            self.heard = True
            rows.append(self._finish(moved))
        self.samples = sound[whole:].copy()
        return np.concatenate(rows)

    def _finish(self, moved: np.ndarray) -> np.ndarray:
        levels, self.levels = self.levels[: len(moved)], self.levels[len(moved) :].copy()
        landmarks = self.rest + moved
        return self.extras.apply(landmarks, levels) if self.extras is not None else landmarks
