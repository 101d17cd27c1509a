"""Causal transformer with a sliding window and a KV cache, and the landmark transformer, which corrects the kernel regression.

Rows can come in pieces: each call returns the KV cache for the next one, so a stream runs the same code as training.
"""

import functools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.landmarks import MOTION_DIM
from stage1_audio2lmk.audio.features import FEATURE_SIZE, FORMANT_SIZE, HOPS, MELS
from stage1_audio2lmk.config import TransformerConfig

STEM_CONTEXT = 4  # frames before a row that the stem convolution sees
KVCache = list[Tensor]  # for each block keys and values (2, B, heads, p, size), before rotation, of the p < window rows before


@functools.lru_cache(maxsize=64)
def _turns(count: int, half: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """cos and ±sin (count, 2·half) of each position's angles."""
    with torch.inference_mode(False):
        frequency = 10000 ** (-torch.arange(half, device=device, dtype=torch.float32) / half)
        angle = torch.arange(count, device=device, dtype=torch.float32)[:, None] * frequency
        return torch.cat([angle.cos()] * 2, 1), torch.cat([-angle.sin(), angle.sin()], 1)


def rotate(x: Tensor) -> Tensor:
    """Rotary positions (Su et al. 2021) for x (B, H, T, D)."""
    half = x.shape[-1] // 2
    cos, sin = (turn.to(x.dtype) for turn in _turns(x.shape[-2], half, x.device))
    return torch.addcmul(x * cos, x.roll(half, -1), sin)


class Block(nn.Module):
    """Pre-norm attention over the last `window` rows, then a feed-forward layer."""

    def __init__(self, dim: int, heads: int, window: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.window = heads, window
        self.norm_attention, self.norm_feed = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.feed = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Dropout(dropout), nn.Linear(2 * dim, dim))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, cache: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x (B, T, dim) -> (B, T, dim); row t reads rows t − window + 1 … t, those before x from `cache` (None at the start).

        Also returns the cache for the rows that come next (see `KVCache`).
        """
        q, k, v = self.qkv(self.norm_attention(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        cached = torch.stack([k, v]) if cache is None else torch.cat([cache, torch.stack([k, v])], 3)
        count, total = x.shape[1], cached.shape[3]
        before = total - count
        rotated = rotate(torch.cat([F.pad(q, (0, 0, before, 0)), cached[0]]))
        mask = None  # a single row sees all that is cached
        if count > 1:
            steps = torch.arange(total, device=x.device)
            distance = steps[before:, None] - steps
            mask = (distance >= 0) & (distance < self.window)
        batch = x.shape[0]
        mixed = F.scaled_dot_product_attention(rotated[:batch, :, before:], rotated[batch:], cached[1], attn_mask=mask)
        x = x + self.dropout(self.out(mixed.transpose(1, 2).flatten(2)))
        x = x + self.dropout(self.feed(self.norm_feed(x)))
        return x, cached[:, :, :, max(0, total - self.window + 1) :]


class Transformer(nn.ModuleList):
    """Blocks one after the other."""

    def __init__(self, layers: int, dim: int, heads: int, window: int, dropout: float) -> None:
        super().__init__(Block(dim, heads, window, dropout) for _ in range(layers))

    def forward(self, x: Tensor, cache: KVCache | None = None) -> tuple[Tensor, KVCache]:
        """x (B, T, dim), the cache of the call before (None or empty at the start) -> rows (B, T, dim), the next cache."""
        kept = []
        for k, block in enumerate(self):
            x, past = block(x, cache[k] if cache else None)
            kept.append(past)
        return x, kept


class LandmarkTransformer(nn.Module):
    """Rows [features | embedding] -> what is to be added to the displacement of the moving points (B, T, 111) metres.

    Its input is the embedding, which has its look-ahead in it, with the formants `ahead` rows later; or all features where there
    is no embedding. `left` and `ahead`: rows before and after the first and the last that it needs.
    Speaker 0 is "unknown". A new one adds nothing.
    """

    mean: Tensor
    scale: Tensor
    basis: Tensor

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config, self.left, self.ahead = config, STEM_CONTEXT, config.look_ahead
        self.register_buffer("mean", torch.zeros(FEATURE_SIZE))
        self.register_buffer("scale", torch.ones(FEATURE_SIZE))
        self.register_buffer("basis", torch.zeros(config.components, MOTION_DIM))
        inputs, future = (config.size + FORMANT_SIZE, 0) if config.size else (FEATURE_SIZE, config.look_ahead)
        self.stem = nn.Conv1d(inputs, config.dim, STEM_CONTEXT + 1 + future)
        self.speaker = nn.Embedding(config.speakers + 1, config.dim)
        self.blocks = Transformer(config.layers, config.dim, config.heads, config.window, config.dropout)
        self.norm = nn.LayerNorm(config.dim)
        self.head = nn.Linear(config.dim, config.components)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        nn.init.zeros_(self.speaker.weight)

    def inputs(self, rows: Tensor) -> Tensor:
        """Padded rows (B, left + T + ahead, FEATURE_SIZE + size) -> what the stem reads, each column of about unit variance.

        Without an embedding (B, left + T + ahead, FEATURE_SIZE), with one (B, left + T, size + FORMANT_SIZE).
        """
        x = (rows[..., :FEATURE_SIZE] - self.mean) / self.scale
        mel, formants = x.split((HOPS * MELS, FORMANT_SIZE), -1)
        if not self.config.formants:
            formants = torch.zeros_like(formants)
        if not self.config.size:
            return torch.cat([mel, formants], -1)
        embedding = self.config.size**0.5 * rows[:, : rows.shape[1] - self.ahead, FEATURE_SIZE:]
        return torch.cat([embedding, formants[:, self.ahead :]], -1)

    def forward(self, padded: Tensor, speaker: Tensor, cache: KVCache | None = None) -> tuple[Tensor, KVCache]:
        """padded (B, left + T + ahead, FEATURE_SIZE + size), speaker (B,) -> (B, T, 111) metres, the next cache."""
        hidden = F.gelu(self.stem(self.inputs(padded).transpose(1, 2))).transpose(1, 2) + self.speaker(speaker)[:, None]
        hidden, cache = self.blocks(hidden, cache)
        return self.head(self.norm(hidden)) @ self.basis, cache
