"""Causal attention with a sliding window, and the stack of it that both encoder and decoder are.

Rows can come in pieces: what a piece needs of those before it is its memory, so a stream runs the same code as training.
"""

import functools

import torch
import torch.nn.functional as F
from torch import Tensor, nn


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

    def forward(self, x: Tensor, past: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x (B, T, dim) -> (B, T, dim); row t reads rows t − window + 1 … t, those before x from `past`.

        `past` (2, B, heads, p, size) holds keys and values, without rotation, of the p rows before x, none at the start. Also
        returns the `past` of the rows that come next, at most window − 1 of them.
        """
        q, k, v = self.qkv(self.norm_attention(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        memory = torch.stack([k, v]) if past is None else torch.cat([past, torch.stack([k, v])], 3)
        count, total = x.shape[1], memory.shape[3]
        before = total - count
        turned = rotate(torch.cat([F.pad(q, (0, 0, before, 0)), memory[0]]))
        mask = None  # one row sees all that is kept
        if count > 1:
            steps = torch.arange(total, device=x.device)
            back = steps[before:, None] - steps
            mask = (back >= 0) & (back < self.window)
        batch = x.shape[0]
        mixed = F.scaled_dot_product_attention(turned[:batch, :, before:], turned[batch:], memory[1], attn_mask=mask)
        x = x + self.dropout(self.out(mixed.transpose(1, 2).flatten(2)))
        x = x + self.dropout(self.feed(self.norm_feed(x)))
        return x, memory[:, :, :, max(0, total - self.window + 1) :]


class Stack(nn.ModuleList):
    """Blocks one after the other, with a memory each."""

    def __init__(self, layers: int, dim: int, heads: int, window: int, dropout: float) -> None:
        super().__init__(Block(dim, heads, window, dropout) for _ in range(layers))

    def forward(self, x: Tensor, pasts: list[Tensor] | None = None) -> tuple[Tensor, list[Tensor]]:
        """x (B, T, dim) and what the call before returned -> (rows (B, T, dim), memory for the next call)."""
        kept = []
        for k, block in enumerate(self):
            x, past = block(x, pasts[k] if pasts else None)
            kept.append(past)
        return x, kept
