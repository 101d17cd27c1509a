"""Sound in pieces of any size -> landmarks, row by row, with a state that does not grow.

A row of frame t is certain when the sound of frame t + look_ahead is complete: the latency is the look-ahead plus the one
frame in which sound is collected. Attention keeps the keys and values of its window, so that a frame costs one row.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from scipy.signal import lfilter
from torch import Tensor

from shared.errors import TalkheadError
from shared.landmarks import N_LANDMARKS, SAMPLE_RATE, SAMPLES_PER_FRAME
from stage1_audio2lmk.features import HISTORY, features, frames_of, levels
from stage1_audio2lmk.liveliness import Liveliness
from stage1_audio2lmk.model import STEM_PAST, Block, LandmarkModel, rotate
from stage1_audio2lmk.train import load_model

BLOCK = 250  # video frames that go through the network at once
DC_HZ = 10.0  # corner of the high-pass filter that takes a constant offset away


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


class SoundGate:
    """Samples as they come -> finite, within ±1 and free of a constant offset, by a filter of one zero and one pole."""

    def __init__(self) -> None:
        pole = 1 - 2 * np.pi * DC_HZ / SAMPLE_RATE
        scale = (1 + pole) / 2
        self.numerator, self.denominator = np.array([scale, -scale]), np.array([1, -pole])
        self.state: np.ndarray | None = None

    def pass_through(self, samples: np.ndarray) -> np.ndarray:
        """(n,) floats, NaN as silence -> (n,) float32. Raises TalkheadError for another shape or whole numbers."""
        samples = np.asarray(samples)
        if samples.ndim != 1 or samples.dtype.kind != "f":
            raise TalkheadError(f"expected mono samples (n,) as floats within ±1, found {samples.dtype} {samples.shape}")
        if not len(samples):
            return np.zeros(0, np.float32)
        limited = np.clip(np.nan_to_num(samples.astype(np.float32), posinf=1.0, neginf=-1.0), -1, 1).astype(np.float64)
        if self.state is None:  # as if the first sample had been there for ever: an offset makes no click
            self.state = -self.numerator[:1] * limited[0]
        clean, self.state = lfilter(self.numerator, self.denominator, limited, zi=self.state)
        return clean.astype(np.float32)


def continue_block(block: Block, x: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
    """`Block.forward` for rows x (1, n, dim) that follow others.

    `past` (2, 1, heads, p, size) are keys and values of the p rows before, without rotation. Returns the rows and the
    `past` of the rows that come next, at most window − 1 of them.
    """
    q, k, v = block.qkv(block.norm_attention(x)).unflatten(-1, (3, block.heads, -1)).permute(2, 0, 3, 1, 4)
    memory = torch.cat([past, torch.stack([k, v])], 3)
    before, count = past.shape[3], x.shape[1]
    turned_q, turned_k = rotate(torch.cat([F.pad(q, (0, 0, before, 0)), memory[0]])).unsqueeze(1)
    mask = None  # one row sees all that is kept
    if count > 1:
        steps = torch.arange(before + count, device=x.device)
        back = steps[before:, None] - steps
        mask = (back >= 0) & (back < block.window)
    mixed = F.scaled_dot_product_attention(turned_q[:, :, before:], turned_k, memory[1], attn_mask=mask)
    x = x + block.out(mixed.transpose(1, 2).flatten(2))
    return x + block.feed(block.norm_feed(x)), memory[:, :, :, max(0, before + count - block.window + 1) :].clone()


class ModelStream:
    """The network for rows that come in pieces: what `LandmarkModel.forward` of all of them at once gives, to rounding."""

    def __init__(self, model: LandmarkModel, speaker: Tensor) -> None:
        self.model, self.speaker, config = model, speaker, model.config
        self.before, self.ahead = max(STEM_PAST, config.wide_past), config.look_ahead
        # features equal to the mean are zero to the network, as is its padding at both ends
        self.padding = model.mean[None].cpu().numpy()
        self.rows = np.repeat(self.padding, self.before, axis=0)
        # an unused transformer has a head of zeros
        self.corrects = bool(model.head.weight.any() or model.head.bias.any())
        self.blocks = [block for block in model.blocks if isinstance(block, Block)] if self.corrects else []
        empty = model.mean.new_zeros(2, 1, config.heads, 0, config.dim // config.heads)
        self.pasts = [empty] * len(self.blocks)

    def push(self, rows: np.ndarray) -> np.ndarray:
        """Feature rows (n, FEATURE_SIZE), n ≥ 0 -> displacement (m,68,3) metres of the rows that are now certain."""
        self.rows = np.concatenate([self.rows, rows])
        count = len(self.rows) - self.before - self.ahead
        if count <= 0:
            return np.zeros((0, N_LANDMARKS, 3), np.float32)
        moved = self._rows(torch.from_numpy(self.rows)[None].to(self.model.mean.device))
        self.rows = self.rows[count:].copy()
        return moved.cpu().numpy()

    def flush(self) -> np.ndarray:
        """The rows that waited for the future, which turns out to be the network's padding."""
        return self.push(np.repeat(self.padding, self.ahead, axis=0))

    @torch.inference_mode()
    def _rows(self, x: Tensor) -> Tensor:
        model = self.model
        inside = slice(self.before, x.shape[1] - self.ahead)
        components = model.wide(model.kernel_features(x)[:, inside])
        if self.corrects:
            stem = model.stem(model.normalise(x)[:, self.before - STEM_PAST :].transpose(1, 2))
            hidden = F.gelu(stem).transpose(1, 2) + model.speaker(self.speaker)[:, None]
            for k, block in enumerate(self.blocks):
                hidden, self.pasts[k] = continue_block(block, hidden, self.pasts[k])
            components = components + model.head(model.norm(hidden))
        return model.expand(components)[0]


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
        self.history = np.zeros(HISTORY, np.float32)
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
            moved = self.network.push(features(fresh, self.history))
            self.history = np.concatenate([self.history, fresh])[-HISTORY:].copy()
            self.heard = True
            rows.append(self._finish(moved))
        self.samples = sound[whole:].copy()
        return np.concatenate(rows)

    def _finish(self, moved: np.ndarray) -> np.ndarray:
        levels, self.levels = self.levels[: len(moved)], self.levels[len(moved) :].copy()
        landmarks = self.rest + moved
        return self.extras.apply(landmarks, levels) if self.extras is not None else landmarks
