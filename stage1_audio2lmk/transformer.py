"""Causal transformer with a sliding window and a KV cache, and the landmark transformer, which corrects the kernel regression.

Rows can come in pieces: each call returns the KV cache for the next one. In a stream keys and values are written into the cache
in place, which is what makes a single row cheap; where gradients are wanted nothing is overwritten.
"""

import functools
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.landmarks import MOTION_DIM
from stage1_audio2lmk.audio.features import FEATURE_SIZE, FORMANT_SIZE, HOPS, MELS
from stage1_audio2lmk.config import TransformerConfig

STEM_CONTEXT = 4  # frames before a row that the stem convolution sees
ROOM = 4  # windows that a `Past` has room for before its rows move to the front


@functools.lru_cache(maxsize=16)
def _turns(count: int, half: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos and ±sin (count, 2·half) of each position's angles, exact for any position."""
    with torch.inference_mode(False):
        frequency = 10000 ** (-torch.arange(half, device=device, dtype=torch.float64) / half)
        angle = torch.arange(count, device=device, dtype=torch.float64)[:, None] * frequency
        cos, sin = torch.cat([angle.cos()] * 2, 1), torch.cat([-angle.sin(), angle.sin()], 1)
        return cos.to(dtype), sin.to(dtype)


def rotate(x: Tensor, position: int = 0) -> Tensor:
    """Rotary positions (Su et al. 2021) `position`, position + 1, … for x (..., T, D)."""
    half, stop = x.shape[-1] // 2, position + x.shape[-2]
    cos, sin = _turns(max(256, 1 << (stop - 1).bit_length()), half, x.device, x.dtype)
    return torch.addcmul(x * cos[position:stop], x.roll(half, -1), sin[position:stop])


def turn_back(x: Tensor, by: int) -> Tensor:
    """x (..., T, D), rotated -> the same with all positions less by `by`."""
    half = x.shape[-1] // 2
    cos, sin = _turns(max(256, 1 << by.bit_length()), half, x.device, x.dtype)
    return torch.addcmul(x * cos[by], x.roll(half, -1), sin[by], value=-1)


@dataclass
class Past:
    """What a block's attention looks back on: keys, rotated by their positions, and values (B, heads, room, size).

    Attention depends on differences of positions alone, so a key is rotated once, by its place in `keys`, and again only when
    rows move to the front; however long a stream is, no position is larger than `room`. Each call with a `Past` uses it up: rows
    are written into it where there is room.
    """

    keys: Tensor
    values: Tensor
    first: int  # position of the first place
    used: int  # places taken

    def moved(self, window: int, room: int) -> "Past":
        """The last window − 1 rows at the front, positions from 0 on, in new tensors with `room` places."""
        kept = min(self.used, window - 1)
        start = self.used - kept
        keys = turn_back(self.keys[:, :, start : self.used], self.first + start)
        values = self.values[:, :, start : self.used]
        if room > kept:
            keys, values = (F.pad(part, (0, 0, 0, room - kept)) for part in (keys, values))
        return Past(keys, values, 0, kept)


KVCache = list[Past]  # one for each block; empty at the start


class Block(nn.Module):
    """Pre-norm attention over the last `window` rows, then a feed-forward layer."""

    def __init__(self, dim: int, heads: int, window: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.window = heads, window
        self.norm_attention, self.norm_feed = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.feed = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Dropout(dropout), nn.Linear(2 * dim, dim))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, past: Past | None = None) -> tuple[Tensor, Past]:
        """x (B, T, dim) -> (B, T, dim); row t reads rows t − window + 1 … t, those before x from `past` (None at the start).

        Also returns what the next rows look back on.
        """
        batch, count, dim = x.shape
        qkv = self.qkv(self.norm_attention(x)).view(batch, count, 3, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4)
        mixed, past = self._attend(qkv, past)
        x = x + self.dropout(self.out(mixed.transpose(1, 2).reshape(batch, count, dim)))
        return x + self.dropout(self.feed(self.norm_feed(x))), past

    def _attend(self, qkv: Tensor, past: Past | None) -> tuple[Tensor, Past]:
        """Queries, keys and values (3, B, heads, T, size) -> what attention mixes (B, heads, T, size), the next `Past`."""
        count, room = qkv.shape[3], ROOM * self.window
        in_place = not torch.is_grad_enabled()
        if past is None:
            past = Past(qkv[1, :, :, :0], qkv[2, :, :, :0], 0, 0)
        if not (in_place and past.used + count <= past.keys.shape[2]):
            past = past.moved(self.window, room if in_place and self.window - 1 + count <= room else 0)
        begin, end = past.used, past.used + count
        (q, k), v = rotate(qkv[:2], begin), qkv[2]
        if end <= past.keys.shape[2]:
            past.keys[:, :, begin:end], past.values[:, :, begin:end] = k, v
            low = max(0, begin - self.window + 1)
            keys, values = past.keys[:, :, low:end], past.values[:, :, low:end]
            past.used = end
        else:  # a long piece, or one whose gradients are wanted
            keys, values, low = torch.cat([past.keys, k], 2), torch.cat([past.values, v], 2), 0
            start = max(0, end - self.window + 1)
            past = Past(keys[:, :, start:], values[:, :, start:], start, end - start)
            if in_place:
                past.keys, past.values = past.keys.clone(), past.values.clone()  # views would keep longer tensors
        mask = None  # a single row sees all that is kept
        if count > 1:
            steps = torch.arange(low, end, device=qkv.device)
            distance = steps[begin - low :, None] - steps
            mask = (distance >= 0) & (distance < self.window)
        return F.scaled_dot_product_attention(q, keys, values, attn_mask=mask), past


class Transformer(nn.ModuleList):
    """Blocks one after the other."""

    def __init__(self, layers: int, dim: int, heads: int, window: int, dropout: float) -> None:
        super().__init__(Block(dim, heads, window, dropout) for _ in range(layers))

    def forward(self, x: Tensor, cache: KVCache | None = None) -> tuple[Tensor, KVCache]:
        """x (B, T, dim), the cache of the call before (None or empty at the start) -> rows (B, T, dim), the next cache.

        Without gradients the cache given is used up: rows are written into it.
        """
        kept = []
        for k, block in enumerate(self):
            x, past = block(x, cache[k] if cache else None)
            kept.append(past)
        return x, kept


def product_of(weight: Tensor, bias: Tensor) -> Callable[[Tensor], Tensor]:
    """A function that gives x (n, inputs) @ weight.T (inputs, outputs) + bias without gradients, ready for many single rows.

    Reading the weights is what such a product costs. Where all are halves, as files keep them, they stay halves in memory and
    are widened on their way: the same to rounding, at half the traffic.
    """
    weight, bias = weight.detach().contiguous(), bias.detach()
    plain = weight.device.type == "cpu" and weight.dtype == torch.float32
    if plain and _has_half_products() and torch.equal(weight.half().float(), weight):
        packed = torch.fbgemm_pack_gemm_matrix_fp16(weight)
        return functools.partial(torch.fbgemm_linear_fp16_weight_fp32_activation, packed_weight=packed, bias=bias)
    return functools.partial(F.linear, weight=weight, bias=bias)


@functools.cache
def _has_half_products() -> bool:
    """Can torch multiply by weights in half precision here? It calls the functions deprecated and may drop them one day.

    Its other way to the same product, torch.ops.quantized, costs a single row as much as it saves.
    """
    if "fbgemm" not in torch.backends.quantized.supported_engines:
        return False
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")  # torch says it once, here
        try:
            packed = torch.fbgemm_pack_gemm_matrix_fp16(torch.ones(1, 1))
            return bool(torch.fbgemm_linear_fp16_weight_fp32_activation(torch.ones(1, 1), packed, torch.ones(1)) == 2)
        except (AttributeError, RuntimeError):
            return False


def norm_of(norm: nn.LayerNorm) -> Callable[[Tensor], Tensor]:
    """A function that gives `norm` of x (..., dim), without what a module's call costs."""
    return functools.partial(torch.layer_norm, normalized_shape=norm.normalized_shape, weight=norm.weight.detach(),
                             bias=norm.bias.detach(), eps=norm.eps)


class RowBlock:
    """`Block.forward` of one row of one sequence without gradients or dropout, in fewer operations; weights as they are now."""

    def __init__(self, block: nn.Module) -> None:
        assert isinstance(block, Block)
        up, down = block.feed[0], block.feed[3]
        assert isinstance(up, nn.Linear) and isinstance(down, nn.Linear)
        self.heads, self.window, self.room = block.heads, block.window, ROOM * block.window
        self.norm_attention, self.norm_feed = norm_of(block.norm_attention), norm_of(block.norm_feed)
        self.qkv, self.out, self.up, self.down = (
            product_of(layer.weight, layer.bias) for layer in (block.qkv, block.out, up, down))
        weight = block.qkv.weight
        self.size = weight.shape[1] // self.heads
        cos, sin = _turns(self.room, self.size // 2, weight.device, weight.dtype)
        self.cos, self.sin = cos.unbind(), sin.unbind()

    def __call__(self, x: Tensor, past: Past) -> tuple[Tensor, Past]:
        """x (1, dim) -> (1, dim) and what the next row looks back on; the row is written into `past`, which is used up."""
        if past.used >= past.keys.shape[2]:
            past = past.moved(self.window, self.room)
        at, heads, size = past.used, self.heads, self.size
        qkv = self.qkv(self.norm_attention(x)).view(3 * heads, size)
        straight = qkv[: 2 * heads]
        turned = torch.addcmul(straight * self.cos[at], straight.roll(size // 2, -1), self.sin[at])
        past.keys[0, :, at], past.values[0, :, at] = turned[heads:], qkv[2 * heads :]
        past.used = at + 1
        low = max(0, past.used - self.window)
        mixed = F.scaled_dot_product_attention(turned[:heads].view(1, heads, 1, size), past.keys[:, :, low : past.used],
                                               past.values[:, :, low : past.used])
        x = x + self.out(mixed.view(1, heads * size))
        return x + self.down(F.gelu(self.up(self.norm_feed(x)))), past


def stem_of(convolution: nn.Conv1d, rows: Tensor) -> Tensor:
    """A convolution over time, rows (B, taps − 1 + T, inputs) -> (B, T, outputs); one row as a plain product."""
    columns = rows.transpose(1, 2)
    if columns.shape[2] > convolution.kernel_size[0]:
        return convolution(columns).transpose(1, 2)
    return F.linear(columns.flatten(1), convolution.weight.flatten(1), convolution.bias)[:, None]


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
        hidden = F.gelu(stem_of(self.stem, self.inputs(padded))) + self.speaker(speaker)[:, None]
        hidden, cache = self.blocks(hidden, cache)
        return self.head(self.norm(hidden)) @ self.basis, cache
