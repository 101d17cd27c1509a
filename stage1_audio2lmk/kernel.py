"""Kernel regression on sound: how alike two moments are, and displacement as a weighted sum of that over support points.

The similarity is a linear kernel of log-mel, Gaussians of the spectrum's shape and loudness over three time scales, and one of
the speech encoder's embedding (Schölkopf and Smola 2002). The weights come from `kernel_ridge`.
"""

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from shared.landmarks import MOTION_DIM
from stage1_audio2lmk.audio.features import FEATURE_SIZE, MELS, mean_log_mel
from stage1_audio2lmk.config import KernelConfig

if TYPE_CHECKING:
    from stage1_audio2lmk.kernel_ridge import KernelFit

LINEAR = 0.3  # weight of the linear kernel
GAUSSIAN = 0.4  # weight of each time scale
# frames back of the window of shapes, its sharpness; frames back of the window of loudness, its sharpness
SCALES = ((4, 1.0, 4, 0.3), (1, 0.7, 4, 0.3), (0, 0.7, 1, 0.3))


class Sound(NamedTuple):
    """What is compared of each moment."""

    windows: Tensor  # (..., taps, 80) log-mel; taps is 0 where log-mel takes no part
    embedding: Tensor  # (..., size)


class Table(NamedTuple):
    """Support points laid out for comparison."""

    mel: Tensor  # (taps·80, m)
    shape: Tensor  # (taps, 80, m)
    loudness: Tensor  # (taps, m)
    squares: Tensor  # (scales, m) weighted squared lengths
    embedding: Tensor  # (size, m)
    embedding_squares: Tensor  # (m,)


class SoundKernel(nn.Module):
    """Similarity of moments of sound (...) to each of m support points: (..., m).

    `left` and `ahead`: feature rows before and after the first and the last that `sound` needs.
    """

    mean: Tensor
    scale: Tensor
    shape_weights: Tensor
    loudness_weights: Tensor

    def __init__(self, config: KernelConfig) -> None:
        super().__init__()
        self.config = config
        self.left, self.ahead = (config.past, config.look_ahead) if config.mel_terms else (0, 0)
        self.taps = self.left + 1 + self.ahead if config.mel_terms else 0
        self.register_buffer("mean", torch.zeros(2 * MELS + 1))
        self.register_buffer("scale", torch.ones(2 * MELS + 1))
        if config.mel_terms:
            shape = [self._over_taps(scale[0], scale[1] / MELS) for scale in SCALES]
            loudness = [self._over_taps(*scale[2:]) for scale in SCALES]
            self.register_buffer("shape_weights", torch.tensor(shape), persistent=False)
            self.register_buffer("loudness_weights", torch.tensor(loudness), persistent=False)

    def _over_taps(self, back: int, sharpness: float) -> list[float]:
        """Weight of each tap's squared difference in a mean over the window that begins `back` frames ago."""
        begin = self.left - min(back, self.left)
        return [0.0] * begin + [sharpness / (self.taps - begin)] * (self.taps - begin)

    def sound(self, padded: Tensor) -> Sound:
        """Rows [features | embedding] (B, left + T + ahead, FEATURE_SIZE + size) -> what is compared of T moments (B, T, ...)."""
        rows = padded[:, self.left : padded.shape[1] - self.ahead]
        if self.config.mel_terms:
            windows = mean_log_mel(padded).unfold(1, self.taps, 1).transpose(2, 3)
        else:
            windows = padded.new_zeros(*rows.shape[:2], 0, MELS)
        return Sound(windows, rows[..., FEATURE_SIZE:])

    def table(self, support: Sound) -> Table:
        """Support points (m, ...) laid out for `forward`, for many calls of it."""
        mel, shape, loudness = self._parts(support.windows.float())
        embedding = self._scaled(support.embedding.float())
        squares = self._squares(shape, loudness).T if self.config.mel_terms else mel.new_zeros(0, len(mel))
        return Table(mel.flatten(1).T, shape.permute(1, 2, 0).contiguous(), loudness.T.contiguous(), squares,
                     embedding.T.contiguous(), embedding.square().sum(-1))

    def forward(self, sound: Sound, table: Table) -> Tensor:
        """Sound (..., ) -> similarities (..., m)."""
        parts = self._parts(sound.windows)
        return parts[0].flatten(-2) @ table.mel + self._gaussians(parts, sound.embedding, table)

    def weighted(self, sound: Sound, weights: Tensor, table: Table, linear: Tensor) -> Tensor:
        """`forward` (..., m) @ weights.T (m, K), by way of `linear` (taps·80, K), which is table.mel @ weights.T."""
        if not self.taps:
            none = sound.windows
            return self._gaussians((none, none, none), sound.embedding, table) @ weights.T
        parts = self._parts(sound.windows)
        return parts[0].flatten(-2) @ linear + self._gaussians(parts, sound.embedding, table) @ weights.T

    def _parts(self, windows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Windows -> log-mel for the linear kernel, shape (..., taps, 80) and loudness (..., taps), normalised."""
        loudness = windows.mean(-1, keepdim=True)
        rows = (torch.cat([windows, windows - loudness, loudness], -1) - self.mean) / self.scale
        mel, shape, loudness = rows.split((MELS, MELS, 1), -1)
        return mel * (LINEAR / max(1, self.taps) / MELS) ** 0.5, shape, loudness[..., 0]

    def _scaled(self, embedding: Tensor) -> Tensor:
        return embedding * self.config.sharpness**0.5

    def _squares(self, shape: Tensor, loudness: Tensor) -> Tensor:
        """Weighted squared lengths (..., scales)."""
        return shape.square().sum(-1) @ self.shape_weights.T + loudness.square() @ self.loudness_weights.T

    def _gaussians(self, parts: tuple[Tensor, Tensor, Tensor], embedding: Tensor, table: Table) -> Tensor:
        """The Gaussian part (..., m): exp(−|a − b|²) of each time scale and of the embedding, by their weights."""
        batch, flat = embedding.shape[:-1], embedding.flatten(0, -2)
        near = table.embedding_squares.new_zeros(flat.shape[0], len(table.embedding_squares))
        if self.config.mel_terms:
            near = near + GAUSSIAN * self._time_scales(*parts[1:], table)
        if self.config.size and self.config.share:
            point = self._scaled(flat)
            distance = torch.addmm(table.embedding_squares, point, table.embedding, alpha=-2)
            distance += point.square().sum(-1, keepdim=True)
            near = near + self.config.share * torch.exp(-distance.clamp_min_(0))
        return near.view(*batch, len(table.embedding_squares))

    def _time_scales(self, shape: Tensor, loudness: Tensor, table: Table) -> Tensor:
        """Sum of the scales' Gaussians (n, m). A scale looks at some of the window's taps, so all share products of taps."""
        shape, loudness = shape.reshape(-1, self.taps, MELS), loudness.reshape(-1, self.taps)
        inner = self.shape_weights @ (shape.transpose(0, 1) @ table.shape).flatten(1)
        weighted = (loudness * self.loudness_weights[:, None]).flatten(0, 1)
        inner = torch.addmm(inner.view(weighted.shape[0], table.squares.shape[1]), weighted, table.loudness)
        squares = self._squares(shape, loudness).T[..., None] + table.squares[:, None]
        distance = torch.sub(squares, inner.view_as(squares), alpha=2)
        return torch.exp(-distance.clamp_min_(0)).sum(0)


class PreparedKernel(NamedTuple):
    """What depends on support points and weights alone, for many calls."""

    weights: Tensor  # (K + 1, m), those of the familiarity last
    table: Table
    linear: Tensor  # (taps·80, K + 1), the linear kernel summed over the support points


class KernelRegressor(nn.Module):
    """Sound -> displacement of the moving points (..., 111) metres: rest + (similarities @ weightsᵀ + bias) @ basis.

    m support points, K components. With no support points it is at rest. All tensors are buffers: none is learned by gradient.
    Familiarity, similarities @ familiar, is about 1 for sound like that of the fit and falls towards 0 for other voices.
    """

    support_mel: Tensor
    support_embedding: Tensor
    weights: Tensor
    familiar: Tensor
    bias: Tensor
    basis: Tensor
    rest: Tensor

    def __init__(self, config: KernelConfig, points: int = 0) -> None:
        super().__init__()
        self.similarity = SoundKernel(config)
        self.register_buffer("support_mel", torch.zeros(points, self.similarity.taps, MELS, dtype=torch.float16))
        self.register_buffer("support_embedding", torch.zeros(points, config.size, dtype=torch.float16))
        self.register_buffer("weights", torch.zeros(config.components, points))
        self.register_buffer("familiar", torch.zeros(points))
        self.register_buffer("bias", torch.zeros(config.components))
        self.register_buffer("basis", torch.zeros(config.components, MOTION_DIM))
        self.register_buffer("rest", torch.zeros(MOTION_DIM))

    @property
    def config(self) -> KernelConfig:
        return self.similarity.config

    @property
    def left(self) -> int:
        return self.similarity.left

    @property
    def ahead(self) -> int:
        return self.similarity.ahead

    def load(self, fit: "KernelFit", final: bool = False) -> None:
        """Take over a fit: support points and weights; `final`: the weights that the validation split went into, too."""
        self.support_mel = fit.support.windows.to(self.support_mel)
        self.support_embedding = fit.support.embedding.to(self.support_embedding)
        self.weights, self.bias = (value.to(self.bias) for value in (fit.final if final else fit.solution))
        self.familiar = fit.familiar.to(self.bias)

    def projector(self) -> Tensor:
        """(111, 111) P: displacement @ P is the nearest one that the principal components can make."""
        basis = self.basis.double()
        return (torch.linalg.pinv(basis) @ basis).to(self.basis)

    def prepare(self) -> PreparedKernel:
        """What `forward` needs of the support points in every call."""
        table = self.similarity.table(Sound(self.support_mel, self.support_embedding))
        weights = torch.cat([self.weights, self.familiar[None]])
        return PreparedKernel(weights, table, table.mel @ weights.T)

    def forward(self, padded: Tensor, prepared: PreparedKernel | None = None) -> tuple[Tensor, Tensor]:
        """Rows [features | embedding] (B, left + T + ahead, FEATURE_SIZE + size) -> displacement (B, T, 111) metres and
        familiarity (B, T, 1).
        """
        return self.displacement(self.similarity.weighted(self.similarity.sound(padded), *(prepared or self.prepare())))

    def displacement(self, summed: Tensor) -> tuple[Tensor, Tensor]:
        """Weighted sums of similarities (..., K + 1) -> displacement (..., 111) metres and familiarity (..., 1)."""
        components, familiarity = summed.split((len(self.weights), 1), -1)
        return self.rest + (components + self.bias) @ self.basis, familiarity
