"""How alike two moments sound: shape of the spectrum times loudness, over three time scales.

Exact kernel regression (Saunders et al. 1998, Schölkopf and Smola 2002) on a minute of one voice: every frame heard in
training is a centre, and a new moment moves the lips as the moments that sound like it did.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from stage1_audio2lmk.audio.features import MELS

LINEAR = 0.3  # share of the linear kernel
SHARE = 0.4  # of each time scale
# frames back of the window of shapes, its sharpness; frames back of the window of loudness, its sharpness
SCALES = ((4, 1.0, 4, 0.3), (1, 0.7, 4, 0.3), (0, 0.7, 1, 0.3))
EMBEDDING = 1.0  # sharpness of what an encoder adds


class Table(NamedTuple):
    """Centres laid out for comparison."""

    mel: Tensor  # (taps·80, m)
    shape: Tensor  # (taps, 80, m)
    loud: Tensor  # (taps, m)
    lengths: Tensor  # (scales, m)
    embedded: Tensor  # (size, m)
    embedded_length: Tensor  # (m,)


class SoundKernel(nn.Module):
    """Windows of pooled log-mel (..., past + 1 + ahead, 80) -> likeness (..., m) to each of the m centres.

    With `size` > 0 an embedding (..., size) of the moment by an encoder is compared too, with weight `share`.
    """

    centres: Tensor
    embedded: Tensor
    mean: Tensor
    scale: Tensor
    shape_weights: Tensor
    loud_weights: Tensor

    def __init__(self, count: int, past: int, ahead: int, size: int = 0, share: float = 0.0) -> None:
        super().__init__()
        self.past, self.taps, self.share = past, past + 1 + ahead, share if size else 0.0
        self.register_buffer("centres", torch.zeros(count, self.taps, MELS, dtype=torch.float16))
        self.register_buffer("embedded", torch.zeros(count, size, dtype=torch.float16))
        self.register_buffer("mean", torch.zeros(2 * MELS + 1))
        self.register_buffer("scale", torch.ones(2 * MELS + 1))
        shape_weights, loud_weights = ([self._over_taps(*side) for side in sides]
                                       for sides in ([scale[:2] for scale in SCALES], [scale[2:] for scale in SCALES]))
        self.register_buffer("shape_weights", torch.stack(shape_weights) / MELS, persistent=False)
        self.register_buffer("loud_weights", torch.stack(loud_weights), persistent=False)

    def _over_taps(self, back: int, sharpness: float) -> Tensor:
        """Weight (taps,) of each tap's squared difference in a mean over the window that begins `back` frames ago."""
        begin = self.past - min(back, self.past)
        weights = torch.zeros(self.taps)
        weights[begin:] = sharpness / (self.taps - begin)
        return weights

    def set_statistics(self, pooled: Tensor) -> None:
        """Mean and scale of log-mel, shape and loudness over the rows (n, 80) of the training data."""
        parts = torch.cat([pooled, pooled - pooled.mean(-1, keepdim=True), pooled.mean(-1, keepdim=True)], -1)
        self.mean.copy_(parts.mean(0))
        self.scale.copy_(parts.std(0).clamp_min(0.05))

    def set_centres(self, windows: Tensor, embedding: Tensor | None = None) -> None:
        """Make windows (m, taps, 80) and, where there is an encoder, embeddings (m, size) the centres."""
        self.centres = windows.to(self.centres)
        self.embedded = self.embedded.new_zeros(len(windows), 0) if embedding is None else embedding.to(self.embedded)

    def table(self) -> Table:
        """The centres as `forward` compares with them, for many calls of it."""
        mel, shape, loud = self._parts(self.centres.float())
        embedded = self._embedded(self.embedded.float())
        return Table(mel.flatten(1).T, shape.permute(1, 2, 0).contiguous(), loud.T,
                     self._lengths(shape, loud).T, embedded.T.contiguous(), embedded.square().sum(-1))

    def forward(self, windows: Tensor, embedding: Tensor | None = None, table: Table | None = None) -> Tensor:
        table = self.table() if table is None else table
        parts = self._parts(windows)
        return parts[0].flatten(-2) @ table.mel + self._near(parts, embedding, table)

    def weighted(self, windows: Tensor, embedding: Tensor | None, weights: Tensor, table: Table, linear: Tensor) -> Tensor:
        """`forward` (…, m) times `weights` (K, m), by way of `linear` (d, K), which is table.mel @ weights.T."""
        parts = self._parts(windows)
        return parts[0].flatten(-2) @ linear + self._near(parts, embedding, table) @ weights.T

    def _parts(self, windows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Windows -> log-mel for the linear kernel, shape (…, taps, 80) and loudness (…, taps), normalised."""
        loud = windows.mean(-1, keepdim=True)
        every = (torch.cat([windows, windows - loud, loud], -1) - self.mean) / self.scale
        mel, shape, loud = every.split((MELS, MELS, 1), -1)
        return mel * (LINEAR / self.taps / MELS) ** 0.5, shape, loud[..., 0]

    def _embedded(self, embedding: Tensor) -> Tensor:
        return embedding * (EMBEDDING / max(1, embedding.shape[-1])) ** 0.5

    def _lengths(self, shape: Tensor, loud: Tensor) -> Tensor:
        """Squared lengths (…, scales)."""
        return shape.square().sum(-1) @ self.shape_weights.T + loud.square() @ self.loud_weights.T

    def _near(self, parts: tuple[Tensor, Tensor, Tensor], embedding: Tensor | None, table: Table) -> Tensor:
        """The Gaussian part (…, m): exp(−|a − b|²) of each scale and of the embedding, by their shares.

        A scale looks at a stretch of the window's taps, so inner products of single taps serve all of them.
        """
        _, shape, loud = parts
        batch, taps = shape.shape[:-2], shape.shape[-2]
        shape, loud = shape.reshape(-1, taps, MELS), loud.reshape(-1, taps)
        inner = self.shape_weights @ (shape.transpose(0, 1) @ table.shape).flatten(1)
        loud_too = loud * self.loud_weights[:, None], table.loud.expand(len(SCALES), -1, -1)
        inner = torch.baddbmm(inner.unflatten(1, (len(shape), table.lengths.shape[1])), *loud_too)
        distance = self._lengths(shape, loud).T[..., None] + table.lengths[:, None] - 2 * inner
        near = SHARE * torch.exp(-distance.clamp_min_(0)).sum(0)
        if self.share:
            assert embedding is not None
            point = self._embedded(embedding).reshape(len(shape), -1)
            distance = point.square().sum(-1, keepdim=True) + table.embedded_length - 2 * point @ table.embedded
            near = near + self.share * torch.exp(-distance.clamp_min_(0))
        return near.unflatten(0, batch)
