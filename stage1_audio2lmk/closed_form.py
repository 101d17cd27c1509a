"""What of the model has a closed form: feature scales, principal components and the weights of the wide path."""

import copy
import dataclasses

import torch
from torch import Tensor

from stage1_audio2lmk.dataset import Recording
from stage1_audio2lmk.losses import point_weights
from stage1_audio2lmk.model import MOVING, LandmarkModel

PENALTIES = (0.3, 1.0, 3.0, 10.0)
FOLDS = 4
CHUNK = 2048  # rows that are expanded at once
SILENCE_WEIGHT = 0.1  # of a row of made silence beside a row of speech

Moments = tuple[Tensor, Tensor]


def set_statistics(model: LandmarkModel, recordings: list[Recording]) -> None:
    """Feature mean and scale, and principal components of the displacement, from the fitting part of the data."""
    x = torch.cat([r.features[: r.held_from][r.good[: r.held_from]] for r in recordings])
    y = torch.cat([r.displacement[: r.held_from][r.good[: r.held_from]] for r in recordings])
    model.mean.copy_(x.mean(0))
    model.scale.copy_(x.std(0).clamp_min(0.05))
    weights = point_weights(model.config).sqrt().repeat_interleave(3)
    rest = y.mean(0)
    _, singular, vt = torch.linalg.svd((y - rest) * weights, full_matrices=False)
    keep = min(model.config.components, len(singular))
    spread = singular[:keep] / len(y) ** 0.5
    model.rest.copy_(rest)
    model.basis[:keep].copy_(vt[:keep] * spread[:, None] / weights)


def targets(model: LandmarkModel, displacement: Tensor) -> Tensor:
    """Displacement rows (n, 111) metres -> weights of the principal components (n, K), weighted least squares."""
    weights = point_weights(model.config).sqrt().repeat_interleave(3).double()
    basis = (model.basis.cpu().double() * weights).T
    return torch.linalg.lstsq(basis, ((displacement - model.rest.cpu()).double() * weights).T, driver="gelsd").solution.T


@torch.no_grad()
def moments(model: LandmarkModel, features: Tensor, displacement: Tensor, rows: Tensor) -> Moments:
    """XᵀX and XᵀY in double precision over the frames `rows` (n,), ascending, with a column of ones for the bias."""
    size = model.wide.in_features + 1
    xx = torch.zeros(size, size, dtype=torch.float64)
    xy = torch.zeros(size, model.config.components, dtype=torch.float64)
    past, ahead = model.config.wide_past, model.config.look_ahead
    for chunk in rows.split(CHUNK) if len(rows) else ():
        start, stop = max(0, int(chunk[0]) - past), int(chunk[-1]) + 1 + ahead
        x = model.kernel_features(features[None, start:stop])[0][chunk - start].double()
        x = torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], 1)
        xx += x.T @ x
        xy += x.T @ targets(model, displacement[chunk])
    return xx, xy


def total(parts: list[Moments]) -> Moments:
    """Sum of moments."""
    return torch.stack([xx for xx, _ in parts]).sum(0), torch.stack([xy for _, xy in parts]).sum(0)


class WidePath:
    """Solves the wide path of `model` on any of its data: FOLDS contiguous parts of the fitting stretch, the tail, silence.

    Solutions are pulled to the weights that the model came with: zero, or a base model's. Making one leaves the model with
    the solution on all folds and silence at the best penalty.
    """

    def __init__(self, model: LandmarkModel, recordings: list[Recording], silence: Tensor) -> None:
        self.model, self.recordings = model, recordings
        self.prior = torch.cat([model.wide.weight.detach().T, model.wide.bias.detach()[None]]).double()
        self.parts = [torch.nonzero(r.good[: r.held_from])[:, 0].tensor_split(FOLDS) for r in recordings]
        self.folds = [total([moments(model, r.features, r.displacement, parts[k])
                             for r, parts in zip(recordings, self.parts)]) for k in range(FOLDS)]
        self.tail = total([moments(model, r.features, r.displacement, r.held_from + torch.nonzero(r.good[r.held_from :])[:, 0])
                           for r in recordings])
        still = torch.zeros(len(silence), recordings[0].displacement.shape[1])
        xx, xy = moments(model, silence, still, torch.arange(len(silence)))
        self.silence = SILENCE_WEIGHT * xx, SILENCE_WEIGHT * xy
        self.penalty = self.choose_penalty()
        self.solve()

    def solution(self, penalty: float, without: int | None = None, tail: bool = False) -> Tensor:
        """Weights (rows + 1, K) fitted to silence and all folds but `without`, with or without the tail."""
        parts = [part for k, part in enumerate(self.folds) if k != without] + [self.silence] + [self.tail] * tail
        xx, xy = total(parts)
        pull = torch.full((len(xx),), penalty, dtype=torch.float64)
        pull[-1] = 1e-6
        return torch.cholesky_solve(xy + pull[:, None] * self.prior, torch.linalg.cholesky(xx + torch.diag(pull)))

    def choose_penalty(self) -> float:
        """The penalty of least squared error, in weighted metres, each fold predicted from the others."""
        weights = point_weights(self.model.config).repeat_interleave(3)
        metric = ((self.model.basis**2) @ weights).double()
        errors = {}
        for penalty in PENALTIES:
            errors[penalty] = 0.0
            for fold, (xx, xy) in enumerate(self.folds):
                w = self.solution(penalty, without=fold)
                errors[penalty] += float(((w * (xx @ w - 2 * xy)).sum(0) * metric).sum())
        return min(errors, key=lambda penalty: errors[penalty])

    @torch.no_grad()
    def solve(self, without: int | None = None, tail: bool = False) -> None:
        """Give the model the weights of `solution` at the chosen penalty."""
        solution = self.solution(self.penalty, without, tail)
        self.model.wide.weight.copy_(solution[:-1].T)
        self.model.wide.bias.copy_(solution[-1])

    @torch.no_grad()
    def misses(self) -> list[Recording]:
        """Recordings whose displacement is what the wide path misses on sound that it was not fitted to.

        On its own training frames it errs too little, and a network trained on that error learns noise. So each of the
        folds gets the error of a solution fitted to the others, as in stacking (Wolpert 1992).
        """
        own = copy.deepcopy(self.model.wide.state_dict())
        rest = [r.displacement.clone() for r in self.recordings]
        for fold in range(FOLDS):
            self.solve(without=fold)
            for miss, r, parts in zip(rest, self.recordings, self.parts):
                guess = self.model.expand(self.model.wide(self.model.kernel_features(r.features[None]))[0, parts[fold]])
                miss[parts[fold]] -= guess[:, MOVING].flatten(1)
        self.model.wide.load_state_dict(own)
        return [dataclasses.replace(r, displacement=miss) for r, miss in zip(self.recordings, rest)]
