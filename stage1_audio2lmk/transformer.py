"""Causal transformer with a sliding window and a KV cache, which the speech encoder and stage 1's own transformer are made of.

Rows can come in pieces: each call returns the KV cache for the next one, so a stream runs the same code as training.
"""

import functools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

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
