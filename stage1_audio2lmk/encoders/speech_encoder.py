"""The built-in speech encoder: log-mel -> what was said, learned from larger encoders.

A convolution over the frames around, a causal transformer, and a linear layer. What that gives are principal components of
what the teachers make of the frame, as the encoder predicts it (`train_speech_encoder`).
"""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.checkpoint import load_checkpoint, load_module, save_checkpoint
from shared.config import Settings, config_from_dict, config_to_dict, setting, shown
from shared.errors import TalkheadError
from stage1_audio2lmk.audio.features import HOPS, MELS, silence_row
from stage1_audio2lmk.config import check_heads
from stage1_audio2lmk.encoders.base import encode_in_pieces
from stage1_audio2lmk.transformer import KVCache, RowBlock, Transformer, norm_of, product_of, stem_of

SPEECH_ENCODER = "speech encoder"  # the kind, in files
LEFT_CONTEXT = 4  # frames before a row that its convolution sees


@dataclass(frozen=True)
class SpeechEncoderConfig(Settings):
    """Sizes; times in video frames of 40 ms."""

    dim: int = setting(384, "width of the transformer", 2, 2048)
    layers: int = setting(3, "of the transformer", 1, 48)
    heads: int = setting(6, "of attention; dim is an even multiple of them", 1, 256)
    window: int = setting(25, "frames that attention looks back, a layer", 1, 1000)
    look_ahead: int = setting(2, "frames of future sound", 0, 100)
    size: int = setting(128, "of the embedding", 1, 2048)
    dropout: float = setting(0.03, "share of the values that training hides", 0, 0.9)

    def check(self) -> None:
        check_heads(self.dim, self.heads)


class SpeechEncoder(nn.Module):
    """An `Encoder` (see `base`), and the network that is trained: log-mel in windows -> embedding of unit mean variance a column.

    `load_speech_encoder` gives it frozen and in evaluation mode.
    """

    mean: Tensor
    scale: Tensor
    centre: Tensor
    spread: Tensor

    def __init__(self, config: SpeechEncoderConfig) -> None:
        super().__init__()
        self.config, self.size, self.look_ahead = config, config.size, config.look_ahead
        self.register_buffer("mean", torch.zeros(MELS))
        self.register_buffer("scale", torch.ones(MELS))
        self.register_buffer("centre", torch.zeros(config.size))
        self.register_buffer("spread", torch.ones(config.size))
        self.stem = nn.Conv1d(HOPS * MELS, config.dim, LEFT_CONTEXT + 1 + config.look_ahead)
        self.blocks = Transformer(config.layers, config.dim, config.heads, config.window, config.dropout)
        self.norm = nn.LayerNorm(config.dim)
        self.narrow = nn.Linear(config.dim, config.size)

    def forward(self, rows: Tensor, cache: KVCache | None = None) -> tuple[Tensor, KVCache]:
        """Feature rows, log-mel first (B, LEFT_CONTEXT + T + look_ahead, ≥ 320) -> embedding (B, T, size), the next cache.

        Variances of its columns add up to `size`; rows of `encode` and `stream` are that divided by √size.
        """
        x = (rows[..., : HOPS * MELS].unflatten(-1, (HOPS, MELS)) - self.mean) / self.scale
        hidden = F.gelu(stem_of(self.stem, x.flatten(-2)))
        hidden, cache = self.blocks(hidden, cache)
        return (self.narrow(self.norm(hidden)) - self.centre) / self.spread, cache

    @functools.cached_property
    def single(self) -> "RowEncoder":
        """For streams of a frozen encoder, which share it; made of the weights when it is first asked for."""
        return RowEncoder(self)

    def _apply(self, fn: Any, recurse: bool = True) -> "SpeechEncoder":
        """Torch calls this for another device or type of number."""
        self.__dict__.pop("single", None)
        return super()._apply(fn, recurse)

    def info(self) -> dict[str, Any]:
        """Its sizes; the weights lie in the checkpoint."""
        return {"kind": SPEECH_ENCODER, "config": config_to_dict(self.config)}

    def encode(self, samples: np.ndarray, features: np.ndarray) -> np.ndarray:
        """See `base.Encoder`; reads the features."""
        return encode_in_pieces(self.stream(), samples, features)

    def stream(self) -> "SpeechEncoderStream":
        """See `base.Encoder`."""
        return SpeechEncoderStream(self)


class RowEncoder:
    """What a stream gives of one row at a time: `SpeechEncoder.forward` divided by √size, in fewer operations."""

    def __init__(self, encoder: SpeechEncoder) -> None:
        stem, self.device = encoder.stem, encoder.mean.device
        assert stem.bias is not None
        self.mean, self.scale, self.centre = (value.cpu().numpy() for value in (encoder.mean, encoder.scale, encoder.centre))
        self.spread = encoder.spread.cpu().numpy() * np.float32(encoder.size**0.5)
        self.stem = product_of(stem.weight.transpose(1, 2).flatten(1), stem.bias)  # columns in the order of the rows
        self.blocks = [RowBlock(block) for block in encoder.blocks]
        self.norm, self.narrow = norm_of(encoder.norm), product_of(encoder.narrow.weight, encoder.narrow.bias)

    def __call__(self, rows: np.ndarray, cache: KVCache) -> tuple[np.ndarray, KVCache]:
        """Feature rows (LEFT_CONTEXT + 1 + look_ahead, ≥ 320), the cache, which is used up -> (1, size), the next cache."""
        x = (rows[:, : HOPS * MELS].reshape(-1, MELS) - self.mean) / self.scale
        hidden, after = F.gelu(self.stem(torch.from_numpy(x.reshape(1, -1)).to(self.device))), KVCache()
        for block, past in zip(self.blocks, cache):
            hidden, past = block(hidden, past)
            after.append(past)
        return (self.narrow(self.norm(hidden)).cpu().numpy() - self.centre) / self.spread, after


class SpeechEncoderStream:
    """See `base.EncoderStream`. A row is certain when the feature row `look_ahead` frames later is there."""

    def __init__(self, encoder: SpeechEncoder) -> None:
        self.encoder, self.cache = encoder, KVCache()
        self.rows = np.repeat(silence_row(False)[None], LEFT_CONTEXT, axis=0)

    def push(self, samples: np.ndarray, features: np.ndarray) -> np.ndarray:
        """See `base.EncoderStream`."""
        encoder = self.encoder
        self.rows = np.concatenate([self.rows, features])
        count = len(self.rows) - LEFT_CONTEXT - encoder.look_ahead
        if count <= 0:
            return np.zeros((0, encoder.size), np.float32)
        rows, self.rows = self.rows, self.rows[count:].copy()
        with torch.inference_mode():
            if count == 1 and self.cache and not encoder.narrow.weight.requires_grad:
                single, self.cache = encoder.single(rows, self.cache)
                return single
            found, self.cache = encoder(torch.from_numpy(rows)[None].to(encoder.mean.device), self.cache)
        return found[0].cpu().numpy() / np.float32(encoder.size**0.5)

    def flush(self) -> np.ndarray:
        """See `base.EncoderStream`."""
        return self.push(np.zeros(0, np.float32), np.repeat(silence_row(False)[None], self.encoder.look_ahead, axis=0))


def save_speech_encoder(path: Path, encoder: SpeechEncoder, card: dict) -> None:
    """Write an encoder in half precision, with a `card` that says what it was trained on."""
    tensors = {name: value.half() if value.is_floating_point() else value for name, value in encoder.state_dict().items()}
    save_checkpoint(path, tensors, {"kind": SPEECH_ENCODER, "config": config_to_dict(encoder.config), "card": card})


def load_speech_encoder(path: Path) -> SpeechEncoder:
    """Read what `save_speech_encoder` wrote, frozen. Raises TalkheadError for anything else."""
    tensors, meta = load_checkpoint(path)
    if meta.get("kind") != SPEECH_ENCODER:
        raise TalkheadError(f"{path} is no speech encoder, but {shown(meta.get('kind', 'something else'))}")
    config = config_from_dict(SpeechEncoderConfig, meta.get("config"), str(path))
    plain = {name: value.float() for name, value in tensors.items()}
    return load_module(lambda: SpeechEncoder(config), plain, path).eval().requires_grad_(False)
