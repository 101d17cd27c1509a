"""Means, scales and principal components of a training's rows, added up piece by piece."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from shared.landmarks import MOTION_DIM
from stage1_audio2lmk.audio.features import FEATURE_SIZE, MELS, mean_log_mel
from stage1_audio2lmk.config import Stage1Config
from stage1_audio2lmk.dataset import Recording
from stage1_audio2lmk.lips import lip_gap
from stage1_audio2lmk.losses import coordinate_weights
from stage1_audio2lmk.model import LandmarkModel

CHUNK = 4096  # rows that are read at once
LEAST_SCALE = 0.05  # of a column that hardly varies
CLOSED_SHARE = 0.02  # of the frames whose lips are at least as closed as closed lips
LEAST_SPREAD = 1e-6  # of a principal component, relative to the first; below, it is left out


class Sums:
    """Mean, variance and, if `full`, covariance of rows (n, d) that come in pieces."""

    def __init__(self, size: int, full: bool = False) -> None:
        self.count, self.full = 0, full
        self.first = torch.zeros(size, dtype=torch.float64)
        self.second = torch.zeros(size, size if full else 1, dtype=torch.float64)

    def add(self, rows: Tensor) -> None:
        """Take in rows (n, d)."""
        rows = rows.double()
        self.count += len(rows)
        self.first += rows.sum(0)
        self.second += rows.T @ rows if self.full else rows.square().sum(0)[:, None]

    @property
    def mean(self) -> Tensor:
        """(d,)."""
        return self.first / self.count

    @property
    def scale(self) -> Tensor:
        """Standard deviation (d,), unbiased, at least LEAST_SCALE."""
        variance = (self.second[:, 0] - self.count * self.mean**2) / max(1, self.count - 1)
        return variance.clamp_min(0).sqrt().clamp_min(LEAST_SCALE)

    @property
    def covariance(self) -> Tensor:
        """Biased, (d, d)."""
        return self.second / self.count - self.mean[:, None] * self.mean


class Statistics(NamedTuple):
    """Of the rows that are fitted to."""

    feature_mean: Tensor  # (FEATURE_SIZE,)
    feature_scale: Tensor
    mel_mean: Tensor  # (161,) of log-mel, shape and loudness, see `kernel.SoundKernel`
    mel_scale: Tensor
    rest: Tensor  # (111,) mean displacement, metres
    closed: Tensor  # () gap of closed lips, metres beyond the neutral's
    basis: Tensor  # (K, 111) principal components of weighted displacement, each times its standard deviation


def statistics(recordings: Iterable[Recording], motion: Iterable[Recording], config: Stage1Config) -> Statistics:
    """Statistics of the good rows before the validation split: features of `recordings`, displacement of `motion`.

    The two differ where the same lips are there in several voices. Components are of the displacement whose coordinates are
    weighted as in the loss; those of next to no motion are 0.
    """
    features, mel, moved = Sums(FEATURE_SIZE), Sums(2 * MELS + 1), Sums(MOTION_DIM, full=True)
    for r in recordings:
        for rows in fitted_rows(r):
            x = r.features[rows, :FEATURE_SIZE]
            pooled = mean_log_mel(x)
            loudness = pooled.mean(-1, keepdim=True)
            features.add(x)
            mel.add(torch.cat([pooled, pooled - loudness, loudness], -1))
    gaps = []
    for r in motion:
        for rows in fitted_rows(r):
            moved.add(r.displacement[rows])
            gaps.append(lip_gap(r.displacement[rows].unflatten(-1, (-1, 3))))
    gap = torch.cat(gaps)
    closed = gap.kthvalue(1 + int(CLOSED_SHARE * len(gap))).values.clamp_max(0)
    weights = coordinate_weights(config).double().sqrt()
    values, vectors = torch.linalg.eigh(moved.covariance * weights[:, None] * weights)
    spread = values.flip(0)[: config.components].clamp_min(0).sqrt()
    spread = torch.where(spread > LEAST_SPREAD * spread[0], spread, 0)
    basis = vectors.flip(1)[:, : config.components].T * spread[:, None] / weights
    found = features.mean, features.scale, mel.mean, mel.scale, moved.mean, closed, basis
    return Statistics(*(value.float() for value in found))


def fitted_rows(recording: Recording) -> Iterator[Tensor]:
    """Indices (n,) of the good rows before the validation split, at most CHUNK at a time."""
    yield from torch.nonzero(recording.good[: recording.val_start])[:, 0].split(CHUNK)


def set_statistics(model: LandmarkModel, found: Statistics) -> None:
    """Give a model's own kernel and transformer the scales, rest and basis."""
    model.closed.copy_(found.closed)
    model.kernel.similarity.mean.copy_(found.mel_mean)
    model.kernel.similarity.scale.copy_(found.mel_scale)
    model.kernel.rest.copy_(found.rest)
    model.kernel.basis.copy_(found.basis)
    if model.transformer is not None:
        model.transformer.mean.copy_(found.feature_mean)
        model.transformer.scale.copy_(found.feature_scale)
        model.transformer.basis.copy_(found.basis)
