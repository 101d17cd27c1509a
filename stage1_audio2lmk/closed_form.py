"""What of the model has a closed form: feature scales, principal components and the weights of the kernel path."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from shared.landmarks import JAW
from stage1_audio2lmk.audio.features import FEATURE_SIZE
from stage1_audio2lmk.dataset import Recording
from stage1_audio2lmk.losses import point_weights
from stage1_audio2lmk.model import LandmarkModel, pooled

PENALTIES = (0.35, 0.7, 1.4, 2.8, 5.6)
FOLDS = 4
GAP = 25  # frames beside a fold that are too much like it to help predict it
CHUNK = 256  # rows whose likenesses are held at once
SILENCE_CENTRES = 96
SHARPENINGS = tuple(0.25 * k for k in range(13))
SHARES = (0.0, 0.2, 0.35, 0.5, 0.75, 1.0)  # of a base's transformer that may be kept
LIVELY = 0.83  # ratio of lip velocities, predicted over true, on held-out folds


def set_statistics(model: LandmarkModel, recordings: list[Recording], base: LandmarkModel | None = None) -> None:
    """Feature mean and scale, and principal components of the displacement, from the fitting part of the data.

    With a base the transformer's scales are the base's, and its head is turned to the new components. The kernel's map of
    an encoder's layers is solved too.
    """
    x = torch.cat([r.features[: r.held_from][r.good[: r.held_from]] for r in recordings])
    y = torch.cat([r.displacement[: r.held_from][r.good[: r.held_from]] for r in recordings])
    if model.heard:
        model.whiten(x, both=base is None)
        x = x[:, :FEATURE_SIZE]
    if base is None:
        model.mean.copy_(x.mean(0))
        model.scale.copy_(x.std(0).clamp_min(0.05))
    model.kernel.set_statistics(pooled(x))
    weights = point_weights(model.config).sqrt().repeat_interleave(3)
    rest = y.mean(0)
    _, singular, vt = torch.linalg.svd((y - rest) * weights, full_matrices=False)
    keep = min(model.config.components, len(singular))
    spread = singular[:keep] / len(y) ** 0.5
    model.rest.copy_(rest)
    model.basis[:keep].copy_(vt[:keep] * spread[:, None] / weights)
    if base is not None and base.corrects:
        turn = targets(model, model.rest + base.basis).float()  # (K base, K)
        with torch.no_grad():
            model.head.weight.copy_(turn.T @ base.head.weight)
            model.head.bias.copy_(base.head.bias @ turn + targets(model, base.rest[None])[0].float())


def targets(model: LandmarkModel, displacement: Tensor) -> Tensor:
    """Displacement rows (n, 111) metres -> weights of the principal components (n, K), weighted least squares."""
    weights = point_weights(model.config).sqrt().repeat_interleave(3).double()
    basis = (model.basis.cpu().double() * weights).T
    return torch.linalg.lstsq(basis, ((displacement - model.rest.cpu()).double() * weights).T, driver="gelsd").solution.T


def joined(recording: Recording) -> Tensor:
    """(T − 1,) bool: do frames t and t + 1 follow each other, both good, in one shot, not across the start of the tail?"""
    out = recording.good[:-1] & recording.good[1:]
    for cut in (*recording.cuts, recording.held_from):
        if 0 < cut <= len(out):
            out[cut - 1] = False
    return out


def edges(recording: Recording) -> Tensor:
    """How much each displacement (T, 111) stands out from its neighbours', y/2 − (y₋₁ + y₊₁)/4; 0 where one is missing."""
    rows, follows = recording.displacement, joined(recording)
    out = torch.zeros_like(rows)
    out[1:-1] = (rows[1:-1] / 2 - (rows[:-2] + rows[2:]) / 4) * (follows[:-1] & follows[1:])[:, None]
    return out


class Moments(NamedTuple):
    """Sums over rows of X (m + 1 columns, the last ones), targets T, what the transformer says of them S and T's edges E (K)."""

    xx: Tensor  # (m + 1, m + 1)
    xt: Tensor  # (m + 1, K)
    xs: Tensor
    xe: Tensor
    tt: Tensor  # (K,)
    ts: Tensor
    ss: Tensor

    def error(self, share: float, weights: Tensor) -> Tensor:
        """Squared error (K,) of X @ weights (m + 1, K) as a guess at what a share of S leaves of the targets."""
        xy, yy = self.xt - share * self.xs, self.tt - 2 * share * self.ts + share**2 * self.ss
        return (weights * (self.xx @ weights - 2 * xy)).sum(0) + yy


def total(parts: Iterable[Moments]) -> Moments:
    """Sum of moments."""
    return Moments(*(torch.stack(kind).sum(0) for kind in zip(*parts)))


class KernelPath:
    """Solves the kernel path of `model` on any of its data: FOLDS contiguous parts of the fitting stretch, the tail, silence.

    Kernel ridge regression on a subset of regressors (Rasmussen and Williams 2006, 8.3.1): the least |XW − Y|² +
    penalty·WᵀKW, X the likeness of rows to centres, K that of centres to each other. With every row a centre it is kernel
    ridge regression. Squared error flattens motion, so the targets are sharpened, Y + sharpening·edges(Y), just as much as
    makes held-out lips LIVELY. What the model's transformer says already, or a share of it, is taken from the targets.

    Making one leaves the model with the solution on all folds and silence, beside that of the `shares` of its transformer
    with which held-out folds are best; the first of them unless another is `config.worthwhile`.
    """

    def __init__(self, model: LandmarkModel, recordings: list[Recording], silence: Recording,
                 shares: Sequence[float] = (1.0,)) -> None:
        self.model, self.recordings = model, recordings
        self.heard = {id(r): self._listen(r) for r in [*recordings, silence]}
        self.parts = [torch.nonzero(r.good[: r.held_from])[:, 0].tensor_split(FOLDS) for r in recordings]
        tails = [r.held_from + torch.nonzero(r.good[r.held_from :])[:, 0] for r in recordings]
        self._set_centres(tails, silence)
        with torch.no_grad():
            self.table = model.kernel.table()
            likeness = model.kernel(model.kernel.centres.float(), model.kernel.embedded.float(), self.table).double()
        self.roughness = torch.zeros(len(likeness) + 1, len(likeness) + 1, dtype=torch.float64)
        self.roughness[:-1, :-1] = likeness + 1e-4 * torch.eye(len(likeness))
        self.said = [self._said(r) for r in [*recordings, silence]]
        self.silence = self._moments(silence, self.said[-1], torch.arange(len(silence.features)))
        self.tail = total(map(self._moments, recordings, self.said, tails))
        self.folds, beside = [], []
        for k in range(FOLDS):
            every = list(zip(recordings, self.said, self.parts))
            self.folds.append(total(self._moments(r, said, parts[k]) for r, said, parts in every))
            beside.append(total(self._moments(r, said, _beside(parts, k)) for r, said, parts in every))
        self.fit = total([*self.folds, self.silence])
        self.fits = [Moments(*(all_ - fold - near for all_, fold, near in zip(self.fit, *pair)))
                     for pair in zip(self.folds, beside)]
        tried = self._held_out_errors(shares)
        least = {share: min(errors.values()) for share, errors in tried.items()}
        best = min(shares, key=least.__getitem__)
        self.share = best if least[best] <= (1 - model.config.worthwhile) * least[shares[0]] else shares[0]
        self.errors = tried[self.share]
        self.penalty = min(self.errors, key=self.errors.__getitem__)
        self.sharpening = self._choose_sharpening()
        self.solve()

    def _set_centres(self, tails: list[Tensor], silence: Recording) -> None:
        """All good rows or as many as the config allows, evenly, and a few of silence."""
        spoken = [[part[torch.cat([*parts, tail])] for part in self.heard[id(r)]]
                  for r, parts, tail in zip(self.recordings, self.parts, tails) if r.weight == 1]
        kinds = []
        for speech, quiet in zip(zip(*spoken), self.heard[id(silence)]):
            every = torch.cat(speech)
            most = min(self.model.config.centres - SILENCE_CENTRES, len(every))
            kinds.append(torch.cat([_evenly(every, most), _evenly(quiet, SILENCE_CENTRES)]))
        self.model.set_centres(*kinds)

    @torch.no_grad()
    def _listen(self, recording: Recording) -> list[Tensor]:
        """What the kernel compares of a recording: windows (T, taps, 80) and, where there is an encoder, embedding (T, size)."""
        padded = self.model.pad(recording.features[None])
        embedding, _ = self.model.eval().embed(padded)
        return [kind[0] for kind in (self.model.windows(padded), embedding) if kind is not None]

    @torch.no_grad()
    def _said(self, recording: Recording) -> Tensor:
        """What the transformer makes of a recording: displacement (T, 111) metres about `rest`."""
        model = self.model.eval()
        if not model.corrects:
            return torch.zeros_like(recording.displacement)
        padded = model.pad(recording.features[None])
        components, _ = model.correction(padded, model.embed(padded)[0], torch.tensor([recording.speaker]))
        return components[0] @ model.basis

    @torch.no_grad()
    def likeness(self, recording: Recording, rows: Tensor) -> Tensor:
        """Likeness of the rows (n,) of a recording to the centres, and a column of ones: (n, m + 1) float64."""
        heard = self.heard[id(recording)]
        x = torch.cat([self.model.kernel(*(kind[part] for kind in heard), table=self.table) for part in rows.split(CHUNK)])
        return torch.cat([x, torch.ones(len(x), 1)], 1).double()

    def _moments(self, recording: Recording, said: Tensor, rows: Tensor) -> Moments:
        """Sums over the frames `rows` (n,) of a recording, by its weight."""
        size, components = len(self.roughness), self.model.config.components
        if not len(rows):
            return Moments(*(torch.zeros(shape, dtype=torch.float64) for shape in (
                (size, size), *[(size, components)] * 3, *[(components,)] * 3)))
        t = targets(self.model, recording.displacement[rows])
        s, e = (targets(self.model, self.model.rest + kind[rows]) for kind in (said, edges(recording)))
        x = self.likeness(recording, rows)
        sums = x.T @ x, x.T @ t, x.T @ s, x.T @ e, t.square().sum(0), (t * s).sum(0), s.square().sum(0)
        return Moments(*(recording.weight * kind for kind in sums))

    def _solution(self, moments: Moments, penalty: float) -> tuple[Tensor, Tensor, Tensor]:
        """Weights (m + 1, K) for the targets, for what the transformer says of them and for their edges."""
        pull = penalty * self.roughness
        pull[-1, -1] = 1e-6
        every = torch.cat([moments.xt, moments.xs, moments.xe], 1)
        t, s, e = torch.cholesky_solve(every, torch.linalg.cholesky(moments.xx + pull)).chunk(3, 1)
        return t, s, e

    def _weights(self, moments: Moments) -> tuple[Tensor, Tensor]:
        """Weights (m + 1, K) for what is left of the targets and for their edges, as chosen."""
        t, s, e = self._solution(moments, self.penalty)
        return t - self.share * s, e

    def _held_out_errors(self, shares: Sequence[float]) -> dict[float, dict[float, float]]:
        """Squared error, in weighted metres, by share and penalty, each fold predicted from the others."""
        weights = point_weights(self.model.config).repeat_interleave(3)
        metric = ((self.model.basis**2) @ weights).double()
        errors = {share: dict.fromkeys(PENALTIES, 0.0) for share in shares}
        for penalty in PENALTIES:
            for fit, fold in zip(self.fits, self.folds):
                t, s, _ = self._solution(fit, penalty)
                for share in shares:
                    errors[share][penalty] += float(fold.error(share, t - share * s) @ metric)
        return errors

    def _choose_sharpening(self) -> float:
        """The least of SHARPENINGS whose held-out lips are LIVELY, or the largest."""
        basis = self.model.basis.double()
        speeds, true = torch.zeros(len(SHARPENINGS)), 0.0
        for k, fit in enumerate(self.fits):
            w, sharper = self._weights(fit)
            for r, said, parts in zip(self.recordings, self.said, self.parts):
                if r.weight < 1 or len(parts[k]) < 2:
                    continue
                together = (parts[k].diff() == 1) & joined(r)[parts[k][:-1]]
                x = self.likeness(r, parts[k])
                plain, edge = self.share * said[parts[k]] + x @ w @ basis, x @ sharper @ basis
                true += _path(r.displacement[parts[k]], together)
                speeds += torch.tensor([_path(plain + amount * edge, together) for amount in SHARPENINGS])
        lively = [amount for amount, speed in zip(SHARPENINGS, speeds) if speed >= LIVELY * true]
        return lively[0] if lively else SHARPENINGS[-1]

    @torch.no_grad()
    def _set(self, weights: Tensor) -> None:
        self.model.kernel_head.weight.copy_(weights[:-1].T)
        self.model.kernel_head.bias.copy_(weights[-1])

    def solve(self, tail: bool = False) -> None:
        """Give the model the solution on all folds and silence, with or without the tail."""
        w, sharper = self._weights(total([self.fit, self.tail]) if tail else self.fit)
        self._set(w + self.sharpening * sharper)

    @torch.no_grad()
    def misses(self) -> list[Recording]:
        """Recordings whose displacement is what the kernel path misses on sound that it was not fitted to.

        On its own training frames it errs too little, and a network trained on that error learns noise. So each of the
        folds gets the error of a solution fitted to the others, as in stacking (Wolpert 1992).
        """
        rest = [r.displacement.clone() for r in self.recordings]
        for k, fit in enumerate(self.fits):
            w, _ = self._weights(fit)
            for miss, r, parts in zip(rest, self.recordings, self.parts):
                guess = (self.likeness(r, parts[k]) @ w).float()
                miss[parts[k]] -= self.model.rest + guess @ self.model.basis
        return [dataclasses.replace(r, displacement=miss) for r, miss in zip(self.recordings, rest)]


def solve_kernel_path(model: LandmarkModel, recordings: list[Recording], silence: Recording) -> KernelPath:
    """The kernel path of a model, whose head is brought down to the share of its transformer that is kept, often nothing."""
    if not model.corrects:
        return KernelPath(model, recordings, silence)
    path = KernelPath(model, recordings, silence, SHARES)
    with torch.no_grad():
        for value in model.head.parameters():
            value.mul_(path.share)
    return path


def _beside(parts: tuple[Tensor, ...], k: int) -> Tensor:
    """Rows (n,) of the other parts that are within GAP frames of part k, fewer where the parts themselves are short."""
    if not len(parts[k]):
        return parts[k]
    others = torch.cat([part for j, part in enumerate(parts) if j != k])
    gap = min(GAP, len(parts[k]) // 2)
    return others[(others >= parts[k][0] - gap) & (others <= parts[k][-1] + gap)]


def _evenly(rows: Tensor, count: int) -> Tensor:
    """`count` of the rows, evenly."""
    return rows[torch.linspace(0, len(rows) - 1, count).round().long()]


def _path(displacement: Tensor, together: Tensor) -> float:
    """Rows (n, 111) -> way of the lip points in metres, over steps (n − 1,) between neighbouring frames."""
    lips = displacement.unflatten(-1, (-1, 3))[:, len(JAW) :]
    return float(torch.linalg.vector_norm(lips.diff(dim=0)[together], dim=-1).sum())
