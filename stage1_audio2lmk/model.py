"""Sound features -> displacement of lips and jaw: a wide shallow path plus a causal transformer that corrects it.

The wide path is kernel regression on a window of log-mel with a Gaussian and a linear kernel, the Gaussian one by random
Fourier features (Rahimi and Recht, NeurIPS 2007), so that its weights have a closed form.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.landmarks import JAW, LIPS, N_LANDMARKS
from stage1_audio2lmk.config import Stage1Config
from stage1_audio2lmk.features import FEATURE_SIZE, HOPS, MELS

MOVING = JAW + LIPS  # what sound tells; brows, eyes and nose stay with the neutral
STEM_PAST = 4  # frames of the past in the convolution that opens the transformer's path


def pooled(features: Tensor) -> Tensor:
    """(..., FEATURE_SIZE) -> (..., 80): the frame's mean log-mel, for the wide path; formants made it worse there."""
    return features[..., : HOPS * MELS].unflatten(-1, (HOPS, MELS)).mean(-2)


def rotate(x: Tensor) -> Tensor:
    """Rotary positions (Su et al. 2021) for x (B, H, T, D)."""
    half = x.shape[-1] // 2
    frequency = 10000 ** (-torch.arange(half, device=x.device, dtype=torch.float32) / half)
    angle = torch.arange(x.shape[-2], device=x.device, dtype=torch.float32)[:, None] * frequency
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)


class Block(nn.Module):
    """Pre-norm attention over the last `window` frames, then a feed-forward layer."""

    def __init__(self, dim: int, heads: int, window: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.window = heads, window
        self.norm_attention, self.norm_feed = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.feed = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Dropout(dropout), nn.Linear(2 * dim, dim))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, T, dim) -> (B, T, dim); row t reads rows t − window + 1 … t."""
        count = x.shape[1]
        q, k, v = self.qkv(self.norm_attention(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        steps = torch.arange(count, device=x.device)
        back = steps[:, None] - steps[None, :]
        mask = (back >= 0) & (back < self.window)
        mixed = F.scaled_dot_product_attention(rotate(q), rotate(k), v, attn_mask=mask)
        x = x + self.dropout(self.out(mixed.transpose(1, 2).flatten(2)))
        return x + self.dropout(self.feed(self.norm_feed(x)))


class LandmarkModel(nn.Module):
    """Features (B, T, FEATURE_SIZE) -> displacement (B, T, 68, 3) metres from the speaker's neutral.

    Row t sees sound of frames up to t + look_ahead and no later. Speaker 0 is "unknown".
    """

    mean: Tensor
    scale: Tensor
    basis: Tensor
    rest: Tensor
    directions: Tensor
    phases: Tensor

    def __init__(self, config: Stage1Config, speakers: int) -> None:
        super().__init__()
        self.config = config
        dim = config.dim
        self.register_buffer("mean", torch.zeros(FEATURE_SIZE))
        self.register_buffer("scale", torch.ones(FEATURE_SIZE))
        self.register_buffer("basis", torch.zeros(config.components, len(MOVING) * 3))
        self.register_buffer("rest", torch.zeros(len(MOVING) * 3))
        inputs = (config.wide_past + 1 + config.look_ahead) * MELS
        self.register_buffer("directions", torch.randn(inputs, config.wide_features))
        self.register_buffer("phases", torch.rand(config.wide_features) * 2 * math.pi)
        self.wide = nn.Linear(inputs + config.wide_features, config.components)
        self.stem = nn.Conv1d(FEATURE_SIZE, dim, STEM_PAST + 1 + config.look_ahead)
        self.speaker = nn.Embedding(speakers + 1, dim)
        self.blocks = nn.ModuleList(Block(dim, config.heads, config.window, config.dropout) for _ in range(config.layers))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, config.components)
        nn.init.zeros_(self.wide.weight)
        nn.init.zeros_(self.wide.bias)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        nn.init.zeros_(self.speaker.weight)

    @property
    def reach_back(self) -> int:
        """Frames of past sound that can change a row."""
        config = self.config
        return max(config.wide_past, STEM_PAST + config.layers * (config.window - 1))

    def normalise(self, features: Tensor) -> Tensor:
        """Raw features -> zero mean, unit scale over the training data; formants are dropped if the config says so."""
        x = (features - self.mean) / self.scale
        if not self.config.formants:
            x = torch.cat([x[..., : HOPS * MELS], torch.zeros_like(x[..., HOPS * MELS :])], -1)
        return x

    def kernel_features(self, features: Tensor) -> Tensor:
        """Raw features (B, T, FEATURE_SIZE) -> rows (B, T, taps·80 + wide_features) whose products are the kernel."""
        config = self.config
        padded = F.pad(pooled(self.normalise(features)), (0, 0, config.wide_past, config.look_ahead))
        x = padded.unfold(1, config.wide_past + 1 + config.look_ahead, 1).transpose(2, 3).flatten(2)
        size = x.shape[-1]
        angles = x @ self.directions * (2 * config.wide_sharpness / size) ** 0.5 + self.phases
        return torch.cat([x * (config.wide_linear / size) ** 0.5, angles.cos() * (2 / config.wide_features) ** 0.5], -1)

    def correction(self, features: Tensor, speaker: Tensor) -> Tensor:
        """What the transformer adds to the wide path: (B, T, FEATURE_SIZE), speaker (B,) -> components (B, T, K)."""
        stem = F.pad(self.normalise(features), (0, 0, STEM_PAST, self.config.look_ahead)).transpose(1, 2)
        hidden = F.gelu(self.stem(stem)).transpose(1, 2) + self.speaker(speaker)[:, None]
        for block in self.blocks:
            hidden = block(hidden)
        return self.head(self.norm(hidden))

    def expand(self, components: Tensor) -> Tensor:
        """(..., K) -> displacement (..., 68, 3) metres; points that sound does not tell about stay at 0."""
        moved = (self.rest + components @ self.basis).unflatten(-1, (len(MOVING), 3))
        out = moved.new_zeros(*moved.shape[:-2], N_LANDMARKS, 3)
        out[..., MOVING, :] = moved
        return out

    def forward(self, features: Tensor, speaker: Tensor) -> Tensor:
        return self.expand(self.wide(self.kernel_features(features)) + self.correction(features, speaker))
