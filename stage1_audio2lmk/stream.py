"""Sound in pieces of any size -> landmarks, row by row, with a state that does not grow; and the same for whole recordings.

A row of frame t is certain when the sound of frame t + look-ahead is complete: the latency is the look-ahead plus the one
frame in which sound is collected. With an encoder of the transformers library the look-ahead is the encoder's where that is
longer, and rows come by its blocks (see `encoders`). A KV cache holds what attention looks back on, so that a frame costs one
row.
"""

import functools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from shared.errors import TalkheadError
from shared.landmarks import MOVING, N_LANDMARKS, SAMPLES_PER_FRAME
from stage1_audio2lmk.audio.dc_blocker import DCBlocker
from stage1_audio2lmk.audio.features import FEATURE_SIZE, FeatureStream, frames_of, levels
from stage1_audio2lmk.checkpoint import load_model
from stage1_audio2lmk.encoders.base import Encoder, EncoderStream
from stage1_audio2lmk.model import LandmarkModel, ModelState, Prepared
from stage1_audio2lmk.upper_face import Liveliness

BLOCK = 250  # video frames that go through the network at once


@dataclass(frozen=True)
class Predictor:
    """A trained model, its speakers' names (index k + 1), where it runs and its encoder if it has one."""

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
        """Frames of future sound that a row depends on at most."""
        return max(self.model.ahead, self.encoder.look_ahead if self.encoder is not None else 0)


def load_predictor(path: Path, device: torch.device, encoder: Encoder | str | None = None) -> Predictor:
    """Read a stage-1 checkpoint; `encoder` as in `checkpoint.load_model`. Raises TalkheadError."""
    loaded = load_model(path, device, encoder)
    return Predictor(loaded.model, loaded.speakers, device, loaded.encoder)


def speaker_index(predictor: Predictor, speaker: str | None) -> int:
    """Index of a named speaker; a model of one speaker is that speaker, an unnamed one of several is unknown (0)."""
    if speaker is not None and speaker in predictor.speakers:
        return predictor.speakers.index(speaker) + 1
    return 1 if len(predictor.speakers) == 1 and speaker is None else 0


class ModelStream:
    """A model for rows that come in pieces: what `LandmarkModel.forward` of all of them at once gives, to rounding."""

    def __init__(self, model: LandmarkModel, speaker: int, prepared: Prepared) -> None:
        self.model, self.prepared, self.state = model, prepared, ModelState()
        self.speaker = torch.tensor([speaker], device=model.silence.device)
        quiet = np.repeat(model.silence[None].cpu().numpy(), model.left, axis=0)
        self.features, self.embedding = quiet[:, :FEATURE_SIZE], quiet[:, FEATURE_SIZE:]  # from `left` rows before the next on
        self.left, self.ahead = model.left, model.ahead

    def push(self, features: np.ndarray, embedding: np.ndarray) -> np.ndarray:
        """Rows (n, FEATURE_SIZE) and (k, size), n, k ≥ 0 -> displacement (m,68,3) metres of the rows that are now certain.

        The embedding may come later than the features.
        """
        self.features = np.concatenate([self.features, features])
        self.embedding = np.concatenate([self.embedding, embedding])
        left, ahead = self.left, self.ahead
        count = min(len(self.features) - ahead, len(self.embedding)) - left
        if count <= 0:
            return np.zeros((0, N_LANDMARKS, 3), np.float32)
        rows = np.zeros((1, left + count + ahead, FEATURE_SIZE + self.model.size), np.float32)
        rows[0, :, :FEATURE_SIZE] = self.features[: left + count + ahead]
        rows[0, : left + count, FEATURE_SIZE:] = self.embedding[: left + count]
        with torch.inference_mode():
            padded = torch.from_numpy(rows).to(self.speaker.device)
            moved, self.state = self.model.motion(padded, self.speaker, self.state, self.prepared)
        self.features, self.embedding = self.features[count:].copy(), self.embedding[count:].copy()
        out = np.zeros((count, N_LANDMARKS, 3), np.float32)
        out[:, MOVING] = moved[0].cpu().numpy().reshape(count, -1, 3)
        return out

    def flush(self, embedding: np.ndarray) -> np.ndarray:
        """The rows that waited for the future, which turns out to be silent; `embedding` (k, size) are the last rows."""
        silence = self.model.silence[None, :FEATURE_SIZE].cpu().numpy()
        return self.push(np.repeat(silence, self.ahead, axis=0), embedding)


@dataclass
class StreamState:
    """What a `LandmarkStream` carries from one piece of sound to the next."""

    features: FeatureStream
    encoder: EncoderStream | None
    model: ModelStream
    upper_face: Liveliness | None
    gate: DCBlocker = field(default_factory=DCBlocker)
    samples: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))  # less than a frame
    levels: np.ndarray = field(default_factory=lambda: np.zeros(0))  # dB of the frames whose rows are still to come
    has_input: bool = False  # has a whole frame come?
    ended: bool = False


class LandmarkStream:
    """Push samples at 16 kHz, get landmark rows (k,68,3) metres of the face `neutral` ((68,3) or (1,68,3)).

    `blinks` False leaves the network's motion alone, without blinks, brows and lids; `liveliness` scales brows and lids.
    """

    def __init__(self, predictor: Predictor, neutral: np.ndarray, *, seed: int = 0, speaker: str | None = None,
                 blinks: bool = True, liveliness: float = 1.0) -> None:
        self.predictor, self.rest = predictor, np.asarray(neutral, np.float32).reshape(1, N_LANDMARKS, 3)
        self.speaker, self.seed, self.blinks, self.liveliness = speaker_index(predictor, speaker), seed, blinks, liveliness
        self.reset()

    def reset(self) -> None:
        """Forget all sound and begin anew: the same sound gives the same rows again."""
        known = self.predictor
        self.state = StreamState(FeatureStream(known.model.uses_formants),
                                 known.encoder.stream() if known.encoder is not None else None,
                                 ModelStream(known.model, self.speaker, known.prepared),
                                 Liveliness(self.seed, self.liveliness) if self.blinks else None)

    def push(self, samples: np.ndarray) -> np.ndarray:
        """Any number of samples (n,) as floats within ±1 -> the rows that are now certain (k,68,3) float32.

        Raises TalkheadError for samples of another kind or after `flush`.
        """
        if self.state.ended:
            raise TalkheadError("this stream has been flushed; call reset() before the next sound")
        return self._push(self.state.gate.pass_through(samples))

    def flush(self) -> np.ndarray:
        """The rows still to come; a part of a frame is filled with silence, and no sound at all is one frame of it."""
        state = self.state
        if state.ended:
            return np.zeros((0, N_LANDMARKS, 3), np.float32)
        rest = np.zeros((0, N_LANDMARKS, 3), np.float32)
        if len(state.samples) or not state.has_input:
            rest = self._push(frames_of(state.samples)[len(state.samples) :])
        state.ended = True
        last = state.encoder.flush() if state.encoder is not None else np.zeros((0, 0), np.float32)
        return np.concatenate([rest, self._finish(state.model.flush(last))])

    def _push(self, samples: np.ndarray) -> np.ndarray:
        state, rows = self.state, [np.zeros((0, N_LANDMARKS, 3), np.float32)]
        sound = np.concatenate([state.samples, samples])
        whole = len(sound) - len(sound) % SAMPLES_PER_FRAME
        for start in range(0, whole, BLOCK * SAMPLES_PER_FRAME):
            fresh = sound[start : min(start + BLOCK * SAMPLES_PER_FRAME, whole)]
            state.levels, state.has_input = np.concatenate([state.levels, levels(fresh)]), True
            features = state.features.push(fresh)
            encoder = state.encoder
            embedding = encoder.push(fresh, features) if encoder is not None else np.zeros((len(features), 0), np.float32)
            rows.append(self._finish(state.model.push(features, embedding)))
        state.samples = sound[whole:].copy()
        return np.concatenate(rows)

    def _finish(self, moved: np.ndarray) -> np.ndarray:
        state = self.state
        levels, state.levels = state.levels[: len(moved)], state.levels[len(moved) :].copy()
        landmarks = self.rest + moved
        return state.upper_face.apply(landmarks, levels) if state.upper_face is not None else landmarks


def iter_predict(predictor: Predictor, audio: Iterable[np.ndarray], neutral: np.ndarray, *, seed: int = 0,
                 speaker: str | None = None, blinks: bool = True, liveliness: float = 1.0) -> Iterator[np.ndarray]:
    """Chunks of sound (n,) at 16 kHz -> chunks of landmarks (t,68,3) metres; equal to `predict` of the whole.

    Memory is bounded by the chunk and the model's reach. At least one frame comes out, ceil(n/640) in all. `blinks` False
    leaves the network's motion alone; `liveliness` scales what brows and lids do besides blinks, 0 is nothing. Raises
    TalkheadError for a liveliness that is no number of 0 or more.
    """
    if not 0 <= liveliness < np.inf:
        raise TalkheadError(f"liveliness should be a number from 0 on, found {liveliness}")
    stream = LandmarkStream(predictor, neutral, seed=seed, speaker=speaker, blinks=blinks, liveliness=liveliness)
    for chunk in audio:
        rows = stream.push(chunk)
        if len(rows):
            yield rows
    rows = stream.flush()
    if len(rows):
        yield rows


def predict(predictor: Predictor, audio: np.ndarray, neutral: np.ndarray, *, seed: int = 0, speaker: str | None = None,
            blinks: bool = True, liveliness: float = 1.0) -> np.ndarray:
    """audio (n,) at 16 kHz, neutral (1,68,3) or (68,3) -> landmarks (ceil(n/640),68,3) float32 metres."""
    return np.concatenate(list(iter_predict(predictor, [audio], neutral, seed=seed, speaker=speaker, blinks=blinks,
                                            liveliness=liveliness)))
