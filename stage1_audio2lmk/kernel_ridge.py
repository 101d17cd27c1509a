"""Kernel ridge regression of displacement on sound: weights of the kernel regressor, and everything that is chosen with them.

On a subset of regressors (Rasmussen and Williams 2006, 8.3.1): the least |XW − Y|² + penalty·WᵀKW, X the similarity of rows to
the support points, K that of the support points to each other. With every row a support point it is kernel ridge regression.
Where there is a base model, the prior, Y is what a share of its output leaves of the displacement.

Inner folds choose penalty and share together: of one speaker contiguous parts of the frames before the validation split, of
several whole speakers, since a base model is for voices that it was not fitted to. Squared error flattens motion: lips that
should touch stay apart, and all moves too slowly. So the targets' closings are deepened by CLOSING, and an unsharp mask is
added, just as strong as makes the folds' lips move at TARGET_VELOCITY_RATIO of their true speed.
"""

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from shared.landmarks import JAW
from stage1_audio2lmk.config import Stage1Config
from stage1_audio2lmk.dataset import Recording
from stage1_audio2lmk.kernel import KernelRegressor, Sound, Table
from stage1_audio2lmk.lips import lip_gap, widened
from stage1_audio2lmk.losses import coordinate_weights

PENALTIES = (0.7, 1.4, 2.8, 5.6, 11.2)
SHARES = (0.0, 0.2, 0.35, 0.5, 0.6, 0.75, 0.85, 1.0)  # of the prior that may be kept
SHARPENINGS = tuple(0.25 * k for k in range(13))  # strengths of the unsharp mask
TARGET_VELOCITY_RATIO = 0.83  # of lip velocities on held-out folds, predicted over true
CLOSING = 0.5  # by which targets are further closed, as a share of how far they are below the recording's median gap
MOST_LOSS = 0.01  # of the lip opening's correlation on held-out folds, that sharpening may cost
FOLDS = 4
GAP = 25  # frames beside a fold that are too much like it to help predict it
FAMILIARITY_PENALTY = 1.0  # of the regression of 1
CHUNK = 256  # rows whose similarities are held at once
SILENCE_POINTS = 288  # support points of silence
EMBEDDING_SHARES = (0.0, 0.3, 1.0, 2.0)  # weights of the embedding's term in the kernel that may be chosen
LEAST_GAIN = 0.02  # in squared error, by which another weight must be better than the usual one
CHOICE_POINTS = 600  # support points with which it is chosen

Solution = tuple[Tensor, Tensor]  # weights (K, m), bias (K,) of a KernelRegressor


@dataclass(frozen=True)
class KernelFit:
    """What `fit_kernel_ridge` found; `KernelRegressor.load` takes it."""

    support: Sound  # windows (m, taps, 80), embedding (m, size)
    solution: Solution  # of all rows before the validation split
    final: Solution  # of the validation split too
    familiar: Tensor  # (m,) weights of the familiarity
    penalty: float
    share: float  # of the prior
    sharpening: float
    residuals: list[Tensor]  # (T, 111) metres of each recording, see `out_of_fold_residuals`
    errors: dict[float, dict[float, float]]  # squared error on held-out folds by share and penalty, weighted metres²


class NormalEquations(NamedTuple):
    """Sums over rows of similarities X (m and a column of ones), of components of targets T, prior P and unsharp mask E (K)."""

    xx: Tensor  # (m + 1, m + 1)
    xt: Tensor  # (m + 1, K)
    xp: Tensor
    xe: Tensor
    tt: Tensor  # (K,)
    tp: Tensor
    pp: Tensor
    outside: Tensor  # (3,) weighted squares tt, tp and pp of what lies outside the components, metres²

    def error(self, share: float, weights: Tensor, metric: Tensor) -> float:
        """Squared error, weighted metres², of X @ weights (m + 1, K) plus a share of P; metric (K,) is a component's."""
        xy, yy = self.xt - share * self.xp, self.tt - 2 * share * self.tp + share**2 * self.pp
        inside = (weights * (self.xx @ weights - 2 * xy)).sum(0) + yy
        return float(inside @ metric + self.outside @ self.outside.new_tensor([1, -2 * share, share**2]))


def total(parts: Iterable[NormalEquations]) -> NormalEquations:
    """Sum of normal equations."""
    return NormalEquations(*(torch.stack(kind).sum(0) for kind in zip(*parts)))


class Components:
    """Displacement about `rest` as weights of the regressor's principal components, by weighted least squares in float64."""

    def __init__(self, basis: Tensor, rest: Tensor, weights: Tensor) -> None:
        self.basis, self.rest, self.weights = basis.cpu().double(), rest.cpu().double(), weights.double()
        self.metric = self.basis.square() @ self.weights  # (K,) weighted squared metres of a unit of each component

    def of(self, displacement: Tensor) -> Tensor:
        """Displacement rows (n, 111) metres, not about `rest` -> (n, K)."""
        root = self.weights.sqrt()
        return torch.linalg.lstsq((self.basis * root).T, (displacement.double() * root).T, driver="gelsd").solution.T


class Rows(NamedTuple):
    """A recording as it is fitted to: what is compared, and frames by inner fold and of the validation split."""

    recording: Recording
    sound: Sound  # (T, ...)
    target: Tensor  # (T, 111) metres, `deepened`
    prior: Tensor  # (T, 111) metres
    mask: Tensor  # (T, 111) metres, `unsharp_mask`
    folds: tuple[Tensor, ...]
    validation: Tensor


@torch.no_grad()
def fit_kernel_ridge(kernel: KernelRegressor, recordings: Sequence[Recording], silence: Recording, config: Stage1Config,
                     priors: Sequence[Tensor] | None = None, shares: Sequence[float] = SHARES) -> KernelFit:
    """Fit the weights of `kernel`, whose scales, rest and basis are set and which stays as it is, to the recordings.

    `priors` are the base model's displacement (T, 111) metres of each recording and, last, of silence, as the model adds it.
    `silence` begins with a row of digital silence, which is what lies around a recording; all of it is in every fit. Recordings
    of another weight than 1 give no support points. Runs on the CPU.
    """
    data = _all_rows(kernel, recordings, silence, priors)
    spoken, quiet = data[:-1], data[-1]
    problem = Problem(kernel, select_support(spoken, quiet, config.support_points), config)
    fit, folds, without = _folds(problem, spoken, quiet)
    errors = held_out_errors(problem, without, folds, shares if priors is not None else (0.0,))
    _, share, penalty = min((error, share, penalty) for share, row in errors.items() for penalty, error in row.items())
    solved = [problem.solve(equations, share, penalty) for equations in without]
    sharpening = choose_sharpening(problem, spoken, solved, share)
    final = total([fit, *(problem.normal_equations(rows, rows.validation) for rows in spoken)])
    solution, everything = (_sharpened(problem.solve(equations, share, penalty), sharpening) for equations in (fit, final))
    return KernelFit(problem.support, solution, everything, problem.familiar(final), penalty, share, sharpening,
                     out_of_fold_residuals(problem, spoken, solved, share), errors)


@torch.no_grad()
def choose_embedding_share(kernel: KernelRegressor, recordings: Sequence[Recording], silence: Recording, config: Stage1Config,
                           priors: Sequence[Tensor] | None = None) -> float:
    """The weight of the embedding's term with the least error on inner folds, each with its own best penalty and prior's share.

    It is the kernel's unless another gains LEAST_GAIN. Arguments as of `fit_kernel_ridge`. Recordings of weight 1 decide, with
    CHOICE_POINTS support points.
    """
    own = [k for k, r in enumerate(recordings) if r.weight == 1]
    some = None if priors is None else [*(priors[k] for k in own), priors[-1]]
    data = _all_rows(kernel, [recordings[k] for k in own], silence, some)
    small = replace(config, support_points=min(CHOICE_POINTS, config.support_points))
    found = {}
    for share in sorted({*EMBEDDING_SHARES, kernel.config.share}):
        trial = copy.deepcopy(kernel)
        trial.similarity.config = replace(kernel.config, share=share)
        found[share] = _least_error(trial, data, small, SHARES if priors is not None else (0.0,))
    best = min(found, key=found.__getitem__)
    return best if found[best] < (1 - LEAST_GAIN) * found[kernel.config.share] else kernel.config.share


@torch.no_grad()
def least_error(kernel: KernelRegressor, recordings: Sequence[Recording], silence: Recording, config: Stage1Config) -> float:
    """Squared error on inner folds, weighted metres², with the best penalty: of `fit_kernel_ridge`, what a choice needs."""
    return _least_error(kernel, _all_rows(kernel, recordings, silence, None), config, (0.0,))


def _least_error(kernel: KernelRegressor, data: list[Rows], config: Stage1Config, shares: Sequence[float]) -> float:
    problem = Problem(kernel, select_support(data[:-1], data[-1], config.support_points), config)
    _, folds, without = _folds(problem, data[:-1], data[-1])
    return min(error for row in held_out_errors(problem, without, folds, shares).values() for error in row.values())


class Problem:
    """What all fits have in common: support points, their penalty matrix, components of the displacement."""

    def __init__(self, kernel: KernelRegressor, support: Sound, config: Stage1Config) -> None:
        self.similarity, self.support = kernel.similarity, support
        self.components = Components(kernel.basis, kernel.rest, coordinate_weights(config))
        self.table: Table = self.similarity.table(support)
        count = len(support.windows)
        gram = self.similarity(Sound(*(part.float() for part in support)), self.table).double()
        self.roughness = torch.zeros(count + 1, count + 1, dtype=torch.float64)
        self.roughness[:-1, :-1] = gram + 1e-4 * torch.eye(count)

    def similarities(self, rows: Rows, frames: Tensor) -> Tensor:
        """Similarity of frames (n,) to the support points, and a column of ones: (n, m + 1) float64."""
        x = torch.cat([self.similarity(Sound(*(part[some] for part in rows.sound)), self.table) for some in frames.split(CHUNK)])
        return torch.cat([x, torch.ones(len(x), 1)], 1).double()

    def normal_equations(self, rows: Rows, frames: Tensor) -> NormalEquations:
        """Sums over frames (n,) of a recording, times its weight."""
        size, count = len(self.roughness), len(self.components.basis)
        if not len(frames):
            shapes = (size, size), *[(size, count)] * 3, *[(count,)] * 3, (3,)
            return NormalEquations(*(torch.zeros(shape, dtype=torch.float64) for shape in shapes))
        c, target, prior = self.components, rows.target[frames].double(), rows.prior[frames].double()
        target = target - c.rest
        t, p, e = (c.of(kind) for kind in (target, prior, rows.mask[frames]))
        x = self.similarities(rows, frames)
        beyond_t, beyond_p = target - t @ c.basis, prior - p @ c.basis
        outside = torch.stack([(a * b @ c.weights).sum() for a, b in (
            (beyond_t, beyond_t), (beyond_t, beyond_p), (beyond_p, beyond_p))])
        sums = x.T @ x, x.T @ t, x.T @ p, x.T @ e, t.square().sum(0), (t * p).sum(0), p.square().sum(0), outside
        return NormalEquations(*(rows.recording.weight * kind for kind in sums))

    def solve_all(self, equations: NormalEquations, penalty: float) -> tuple[Tensor, Tensor, Tensor]:
        """Weights (m + 1, K) for the targets, for the prior and for the unsharp mask; the constant is hardly penalised."""
        pull = penalty * self.roughness
        pull[-1, -1] = 1e-6
        every = torch.cat([equations.xt, equations.xp, equations.xe], 1)
        t, p, e = torch.cholesky_solve(every, torch.linalg.cholesky(equations.xx + pull)).chunk(3, 1)
        return t, p, e

    def solve(self, equations: NormalEquations, share: float, penalty: float) -> tuple[Tensor, Tensor]:
        """Weights (m + 1, K) for what a share of the prior leaves, and for the unsharp mask."""
        t, p, e = self.solve_all(equations, penalty)
        return t - share * p, e

    def familiar(self, equations: NormalEquations) -> Tensor:
        """Weights (m,) of similarities whose sum is nearest to 1, without a constant: other sound sums to less."""
        kernel = equations.xx[:-1, :-1] + FAMILIARITY_PENALTY * self.roughness[:-1, :-1]
        return torch.cholesky_solve(equations.xx[:-1, -1:], torch.linalg.cholesky(kernel))[:, 0].float()


def select_support(spoken: Sequence[Rows], quiet: Rows, count: int) -> Sound:
    """`count` good rows of the recordings of weight 1, evenly, or all, SILENCE_POINTS of them of silence; in half precision."""
    kinds = []
    for k in range(len(Sound._fields)):
        every = torch.cat([rows.sound[k][torch.cat([*rows.folds, rows.validation])] for rows in spoken
                           if rows.recording.weight == 1])
        some = _evenly(every, min(count - SILENCE_POINTS, len(every)))
        kinds.append(torch.cat([some, _evenly(quiet.sound[k], SILENCE_POINTS)]).half())
    return Sound(*kinds)


def held_out_errors(problem: Problem, without: Sequence[NormalEquations], folds: Sequence[NormalEquations],
                    shares: Sequence[float]) -> dict[float, dict[float, float]]:
    """Squared error by share and penalty, each fold predicted from the equations of all `without` it."""
    errors = {share: dict.fromkeys(PENALTIES, 0.0) for share in shares}
    for penalty in PENALTIES:
        for equations, fold in zip(without, folds):
            t, p, _ = problem.solve_all(equations, penalty)
            for share in shares:
                errors[share][penalty] += fold.error(share, t - share * p, problem.components.metric)
    return errors


def deepened(recording: Recording, amount: float = CLOSING) -> Tensor:
    """Displacement (T, 111) metres in which lips close further, by `amount` of how far their gap is below its median.

    The median is that of the good frames before the validation split. What opens further than the median stays.
    """
    fitted = recording.good[: recording.val_start]
    if not fitted.any():
        return recording.displacement
    points = recording.displacement.unflatten(-1, (-1, 3))
    gap = lip_gap(points)
    return widened(points, -amount * (gap[: recording.val_start][fitted].median() - gap).clamp_min(0)).flatten(1)


def unsharp_mask(recording: Recording) -> Tensor:
    """How far each displacement (T, 111) is from its neighbours' mean, y/2 − (y₋₁ + y₊₁)/4; 0 where one is missing."""
    rows, follows = recording.displacement, consecutive(recording)
    out = torch.zeros_like(rows)
    out[1:-1] = (rows[1:-1] / 2 - (rows[:-2] + rows[2:]) / 4) * (follows[:-1] & follows[1:])[:, None]
    return out


def consecutive(recording: Recording) -> Tensor:
    """(T − 1,) bool: are frames t and t + 1 both good, in one shot and on one side of the start of the validation split?"""
    out = recording.good[:-1] & recording.good[1:]
    for cut in (*recording.cuts, recording.val_start):
        if 0 < cut <= len(out):
            out[cut - 1] = False
    return out


def choose_sharpening(problem: Problem, spoken: Sequence[Rows], solved: Sequence[tuple[Tensor, Tensor]], share: float) -> float:
    """The least of SHARPENINGS with which held-out lips move at TARGET_VELOCITY_RATIO of their speed.

    Only those count that cost the opening's correlation MOST_LOSS at most; if none of them is fast enough, it is the largest.
    """
    basis, distances, true = problem.components.basis, torch.zeros(len(SHARPENINGS)), 0.0
    correlations: list[Tensor] = []  # (n,) of each fold of each recording
    for k, (weights, mask) in enumerate(solved):
        for rows in spoken:
            frames, r = rows.folds[k], rows.recording
            if r.weight < 1 or len(frames) < 2:
                continue
            steps = (frames.diff() == 1) & consecutive(r)[frames[:-1]]
            x = problem.similarities(rows, frames)
            plain, extra = share * rows.prior[frames] + x @ weights @ basis, x @ mask @ basis
            tried = [plain + amount * extra for amount in SHARPENINGS]
            true += _distance(r.displacement[frames], steps)
            distances += torch.tensor([_distance(one, steps) for one in tried])
            gaps = [lip_gap(one.double().unflatten(-1, (-1, 3))) for one in (r.displacement[frames], *tried)]
            correlations.append(torch.stack([torch.corrcoef(torch.stack([gaps[0], gap]))[0, 1] for gap in gaps[1:]]))
    if not correlations:
        return 0.0
    mean = torch.stack(correlations).nan_to_num().mean(0)
    allowed = [k for k in range(len(SHARPENINGS)) if mean[k] >= mean[0] - MOST_LOSS]
    enough = [k for k in allowed if distances[k] >= TARGET_VELOCITY_RATIO * true]
    return SHARPENINGS[enough[0] if enough else allowed[-1]]


def out_of_fold_residuals(problem: Problem, spoken: Sequence[Rows], solved: Sequence[tuple[Tensor, Tensor]],
                          share: float) -> list[Tensor]:
    """`deepened` displacement (T, 111) less the prior's share and what the regression predicts of each fold from the others.

    On its own training frames the regression errs too little, and a network trained on that error learns noise; hence, as in
    stacking (Wolpert 1992), each fold gets the error of a solution fitted to the others. Frames in no fold keep theirs.
    """
    found = [rows.target.clone() for rows in spoken]
    for k, (weights, _) in enumerate(solved):
        for residual, rows in zip(found, spoken):
            frames = rows.folds[k]
            known = problem.components.rest + problem.similarities(rows, frames) @ weights @ problem.components.basis
            residual[frames] -= (known + share * rows.prior[frames]).float()
    return found


def _all_rows(kernel: KernelRegressor, recordings: Sequence[Recording], silence: Recording,
              priors: Sequence[Tensor] | None) -> list[Rows]:
    """Rows of the recordings and, last, of silence."""
    every = [*recordings, silence]
    given = list(priors) if priors is not None else [torch.zeros_like(r.displacement) for r in every]
    groups = [*_speaker_folds(recordings), None]
    return [_rows(kernel, r, prior, silence.features[0], group) for r, prior, group in zip(every, given, groups, strict=True)]


def _speaker_folds(recordings: Sequence[Recording]) -> list[int | None]:
    """The fold of each recording where there are as many speakers as folds: whole speakers, the longest first, by length."""
    length: dict[int, int] = {}
    for r in recordings:
        length[r.speaker] = length.get(r.speaker, 0) + int(r.good.sum())
    if len(length) < FOLDS:
        return [None] * len(recordings)
    filled, fold = [0] * FOLDS, {}
    for speaker in sorted(length, key=lambda one: -length[one]):
        fold[speaker] = filled.index(min(filled))
        filled[fold[speaker]] += length[speaker]
    return [fold[r.speaker] for r in recordings]


def _folds(problem: Problem, spoken: Sequence[Rows], quiet: Rows) -> tuple[NormalEquations, list[NormalEquations],
                                                                         list[NormalEquations]]:
    """Normal equations of all folds and silence, of each fold, and of all but each fold and what is near it."""
    silent = problem.normal_equations(quiet, torch.arange(len(quiet.recording.features)))
    folds = [total(problem.normal_equations(rows, rows.folds[k]) for rows in spoken) for k in range(FOLDS)]
    near = [total(problem.normal_equations(rows, _beside(rows.folds, k)) for rows in spoken) for k in range(FOLDS)]
    fit = total([*folds, silent])
    return fit, folds, [NormalEquations(*(a - b - c for a, b, c in zip(fit, fold, gap))) for fold, gap in zip(folds, near)]


def _rows(kernel: KernelRegressor, recording: Recording, prior: Tensor, silence: Tensor, group: int | None) -> Rows:
    """`group`: the fold of all its frames, None for contiguous parts in every fold."""
    quiet = silence.expand(max(kernel.left, kernel.ahead), -1)
    padded = torch.cat([quiet[: kernel.left], recording.features, quiet[: kernel.ahead]])
    sound = Sound(*(part[0] for part in kernel.similarity.sound(padded[None])))
    frames = torch.nonzero(recording.good[: recording.val_start])[:, 0]
    folds = tuple(frames.tensor_split(FOLDS)) if group is None else tuple(
        frames if k == group else frames[:0] for k in range(FOLDS))
    validation = recording.val_start + torch.nonzero(recording.good[recording.val_start :])[:, 0]
    return Rows(recording, sound, deepened(recording), prior, unsharp_mask(recording), folds, validation)


def _sharpened(solved: tuple[Tensor, Tensor], sharpening: float) -> Solution:
    weights = (solved[0] + sharpening * solved[1]).float()
    return weights[:-1].T.contiguous(), weights[-1]


def _beside(folds: tuple[Tensor, ...], k: int) -> Tensor:
    """Frames (n,) of the other folds within GAP frames of fold k, fewer where the folds themselves are short."""
    if not len(folds[k]):
        return folds[k]
    others = torch.cat([fold for j, fold in enumerate(folds) if j != k])
    if not len(others):
        return others
    gap = min(GAP, len(folds[k]) // 2)
    return others[(others >= folds[k][0] - gap) & (others <= folds[k][-1] + gap)]


def _evenly(rows: Tensor, count: int) -> Tensor:
    """`count` of the rows, evenly."""
    return rows[torch.linspace(0, len(rows) - 1, count).round().long()]


def _distance(displacement: Tensor, steps: Tensor) -> float:
    """Rows (n, 111) -> metres that the lip points go, over the steps (n − 1,) bool between neighbouring frames."""
    lips = displacement.unflatten(-1, (-1, 3))[:, len(JAW) :]
    return float(torch.linalg.vector_norm(lips.diff(dim=0)[steps], dim=-1).sum())
