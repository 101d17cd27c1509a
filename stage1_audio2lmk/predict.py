"""Sound of any length -> landmarks of any face, in bounded memory and the same in chunks as at once."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from shared.landmark_edit import apply_blink, natural_blinks
from shared.landmarks import SAMPLES_PER_FRAME
from stage1_audio2lmk.features import FEATURE_SIZE, HISTORY, features, frames_of
from stage1_audio2lmk.model import LandmarkModel
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


class DisplacementStream:
    """Push samples, get displacement rows (n,68,3) metres; a row comes out `look_ahead` frames after its sound."""

    def __init__(self, predictor: Predictor, speaker: str | None = None) -> None:
        self.model, self.device = predictor.model, predictor.device
        self.index = torch.tensor([speaker_index(predictor, speaker)], device=predictor.device)
        self.samples = np.zeros(0, np.float32)
        self.history = np.zeros(HISTORY, np.float32)
        self.rows = np.zeros((0, FEATURE_SIZE), np.float32)
        self.done = 0  # rows of `self.rows` that were given out and stay as context

    def push(self, samples: np.ndarray) -> np.ndarray:
        """Any number of samples (n,) -> the rows that are now certain."""
        self.samples = np.concatenate([self.samples, samples.astype(np.float32)])
        moved = [np.zeros((0, 68, 3), np.float32)]
        while len(self.samples) >= SAMPLES_PER_FRAME:
            size = min(len(self.samples) // SAMPLES_PER_FRAME, BLOCK) * SAMPLES_PER_FRAME
            fresh, self.samples = self.samples[:size], self.samples[size:]
            self.rows = np.concatenate([self.rows, features(fresh, self.history)])
            self.history = np.concatenate([self.history, fresh])[-HISTORY:]
            moved.append(self._rows(len(self.rows) - self.model.config.look_ahead))
        return np.concatenate(moved)

    def flush(self) -> np.ndarray:
        """The rows that were still waiting for future sound; a part of a frame at the end is filled with silence."""
        moved = [np.zeros((0, 68, 3), np.float32)]
        if len(self.samples) or not len(self.rows):
            moved.append(self.push(frames_of(self.samples)[len(self.samples) :]))
        return np.concatenate([*moved, self._rows(len(self.rows))])

    @torch.no_grad()
    def _rows(self, until: int) -> np.ndarray:
        if until <= self.done:
            return np.zeros((0, 68, 3), np.float32)
        moved = self.model(torch.from_numpy(self.rows)[None].to(self.device), self.index)[0, self.done : until]
        drop = max(0, until - self.model.reach_back)
        self.rows, self.done = self.rows[drop:], until - drop
        return moved.cpu().numpy()


def iter_predict(predictor: Predictor, audio: Iterable[np.ndarray], neutral: np.ndarray, *, seed: int = 0,
                 speaker: str | None = None, blinks: bool = True) -> Iterator[np.ndarray]:
    """Chunks of sound (n,) at 16 kHz -> chunks of landmarks (t,68,3) metres; equal to `predict` of the whole.

    Memory is bounded by the chunk and the model's reach. At least one frame comes out, ceil(n/640) in all.
    """
    stream = DisplacementStream(predictor, speaker)
    rest = np.asarray(neutral, np.float32).reshape(1, 68, 3)
    count = 0
    closure = natural_blinks(256, np.random.default_rng(seed))

    def finish(moved: np.ndarray) -> np.ndarray:
        nonlocal count, closure
        landmarks = rest + moved
        if blinks:
            while len(closure) < count + len(moved) + 1:
                closure = natural_blinks(2 * len(closure), np.random.default_rng(seed))
            landmarks = apply_blink(landmarks, closure[count : count + len(moved)].astype(np.float32))
        count += len(moved)
        return landmarks.astype(np.float32)

    for chunk in audio:
        moved = stream.push(chunk)
        if len(moved):
            yield finish(moved)
    moved = stream.flush()
    if len(moved):
        yield finish(moved)


def predict(predictor: Predictor, audio: np.ndarray, neutral: np.ndarray, *, seed: int = 0, speaker: str | None = None,
            blinks: bool = True) -> np.ndarray:
    """audio (n,) at 16 kHz, neutral (1,68,3) or (68,3) -> landmarks (ceil(n/640),68,3) float32 metres."""
    return np.concatenate(list(iter_predict(predictor, [audio], neutral, seed=seed, speaker=speaker, blinks=blinks)))
