"""The default encoder: log-mel -> what was said, learned from phones of many voices.

A convolution over the frames around, causal attention, and a narrow layer from which the phones of the moment and of its
neighbourhood must be told ("bottleneck features", Grézl et al., ICASSP 2007).
"""

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.checkpoint import load_checkpoint, load_module, save_checkpoint
from shared.config import Settings, config_from_dict, config_to_dict, setting, shown
from shared.errors import TalkheadError
from stage1_audio2lmk.attention import Stack
from stage1_audio2lmk.audio.features import HOPS, MELS

PAST = 4  # frames of the past in the convolution


def check_heads(dim: int, heads: int) -> None:
    """Raise TalkheadError unless attention of width `dim` can be shared by its `heads`: rotary positions turn pairs."""
    if dim % (2 * heads):
        raise TalkheadError(f"dim should be a multiple of twice the heads, {2 * heads}, found {dim}")


@dataclass(frozen=True)
class SpeechEncoderConfig(Settings):
    """Sizes; times in video frames of 40 ms."""

    dim: int = setting(192, "width of the transformer", 2, 2048)
    layers: int = setting(3, "of the transformer", 1, 48)
    heads: int = setting(4, "of attention; dim is an even multiple of them", 1, 256)
    window: int = setting(25, "frames that attention looks back, a layer", 1, 1000)
    look_ahead: int = setting(2, "frames of future sound", 0, 100)
    size: int = setting(64, "of the embedding", 1, 2048)
    dropout: float = setting(0.15, "share of the values that training hides", 0, 0.9)

    def check(self) -> None:
        check_heads(self.dim, self.heads)


class SpeechEncoder(nn.Module):
    """Feature rows with log-mel first (B, PAST + T + look_ahead, ≥ 320) -> embedding (B, T, size) of unit variance."""

    mean: Tensor
    scale: Tensor
    centre: Tensor
    spread: Tensor

    def __init__(self, config: SpeechEncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("mean", torch.zeros(MELS))
        self.register_buffer("scale", torch.ones(MELS))
        self.register_buffer("centre", torch.zeros(config.size))
        self.register_buffer("spread", torch.ones(config.size))
        self.stem = nn.Conv1d(HOPS * MELS, config.dim, PAST + 1 + config.look_ahead)
        self.blocks = Stack(config.layers, config.dim, config.heads, config.window, config.dropout)
        self.norm = nn.LayerNorm(config.dim)
        self.narrow = nn.Linear(config.dim, config.size)

    def forward(self, rows: Tensor, pasts: list[Tensor] | None = None) -> tuple[Tensor, list[Tensor]]:
        """Also returns the memory for the rows that come next (see `attention.Stack`)."""
        x = (rows[..., : HOPS * MELS].unflatten(-1, (HOPS, MELS)) - self.mean) / self.scale
        hidden = F.gelu(self.stem(x.flatten(-2).transpose(1, 2))).transpose(1, 2)
        hidden, pasts = self.blocks(hidden, pasts)
        return (self.narrow(self.norm(hidden)) - self.centre) / self.spread, pasts


def save_speech_encoder(path: Path, encoder: SpeechEncoder, card: dict) -> None:
    """Write an encoder in half precision, with a `card` that says what it was trained on."""
    tensors = {name: value.half() if value.is_floating_point() else value for name, value in encoder.state_dict().items()}
    save_checkpoint(path, tensors, {"kind": "speech encoder", "config": config_to_dict(encoder.config), "card": card})


def load_speech_encoder(path: Path) -> SpeechEncoder:
    """Read what `save_speech_encoder` wrote, ready to be used. Raises TalkheadError for anything else."""
    tensors, meta = load_checkpoint(path)
    if meta.get("kind") != "speech encoder":
        raise TalkheadError(f"{path} is no speech encoder, but {shown(meta.get('kind', 'something else'))}")
    config = config_from_dict(SpeechEncoderConfig, meta.get("config"), str(path))
    return load_module(lambda: SpeechEncoder(config), {name: value.float() for name, value in tensors.items()}, path).eval()
