"""The fit against textbook kernel ridge regression: one dense system over all rows, nothing summed, nothing removed."""

import copy
import dataclasses

import numpy as np
import pytest
import torch

from shared.errors import TalkheadError
from shared.landmarks import JAW, MOTION_DIM, MOVING
from stage1_audio2lmk import kernel_ridge
from stage1_audio2lmk.audio.features import FEATURE_SIZE, mean_log_mel
from stage1_audio2lmk.config import Stage1Config
from stage1_audio2lmk.dataset import Recording, synthetic_silence
from stage1_audio2lmk.kernel import Sound
from stage1_audio2lmk.kernel_ridge import (
    CLOSING,
    FAMILIARITY_PENALTY,
    FOLDS,
    GAP,
    MOST_LOSS,
    PENALTIES,
    SHARES,
    SHARPENINGS,
    SILENCE_POINTS,
    TARGET_VELOCITY_RATIO,
    Components,
    KernelFit,
    choose_embedding_share,
    consecutive,
    deepened,
    fit_kernel_ridge,
    unsharp_mask,
)
from stage1_audio2lmk.losses import coordinate_weights
from stage1_audio2lmk.model import LandmarkModel, motion_of, new_model
from stage1_audio2lmk.statistics import set_statistics, statistics
from tests.stage1_audio2lmk.slow_kernel import likeness, ridge, windows

CONFIG = Stage1Config(dim=16, layers=1, heads=2, window=5, components=5, support_points=SILENCE_POINTS + 450)
SIZE = MOTION_DIM


def smooth(rng: np.random.Generator, count: int, width: int, memory: float) -> np.ndarray:
    """(count, width) first-order autoregressive noise of about unit variance."""
    out = rng.normal(size=(count, width))
    for t in range(1, count):
        out[t] = memory * out[t - 1] + (1 - memory**2) ** 0.5 * out[t]
    return out


def recording(seed: int, count: int = 280, noise: float = 0.3, bad: tuple[int, ...] = (), speaker: int = 1,
              cuts: tuple[int, ...] = (0,)) -> Recording:
    """Sound of six tones of random strength, lips that follow them with `noise`; the last tenth is held out.

    Log-mel is in steps of 1/128, which half precision holds exactly.
    """
    rng, fixed = np.random.default_rng(seed), np.random.default_rng(99)
    tones = smooth(rng, count, 6, 0.7)
    mel = -4 + tones @ fixed.normal(size=(6, 80)) * 0.6 + smooth(rng, count, 80, 0.7) * 0.5
    features = np.zeros((count, FEATURE_SIZE))
    features[:, :320] = np.tile(np.round(mel.clip(-11, 5) * 128) / 128, 4)
    bent = np.tanh(tones @ fixed.normal(size=(6, 5))) + noise * rng.normal(size=(count, 5))
    moved = 0.003 * bent @ fixed.normal(size=(5, SIZE))
    good = np.ones(count, bool)
    good[list(bad)] = False
    return Recording(f"r{seed}", *(torch.from_numpy(x.astype(np.float32)) for x in (features, moved)), torch.from_numpy(good),
                     speaker, int(0.9 * count), cuts=cuts)


def prepared(recordings: list[Recording], config: Stage1Config = CONFIG) -> LandmarkModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = new_model(config, len(recordings)).eval()
    model.transformer = None
    set_statistics(model, statistics(recordings, recordings, config))
    return model


def fitted(model: LandmarkModel, recordings: list[Recording], quiet: Recording, config: Stage1Config = CONFIG,
           priors: list[torch.Tensor] | None = None, final: bool = False) -> tuple[LandmarkModel, KernelFit]:
    """A copy of the model with a fit to the recordings, and the fit."""
    model = copy.deepcopy(model)
    fit = fit_kernel_ridge(model.kernel, recordings, quiet, config, priors)
    model.kernel.load(fit, final)
    return model, fit


def components(model: LandmarkModel, displacement: torch.Tensor) -> torch.Tensor:
    """Displacement (n, 111) about the model's rest -> its components (n, K)."""
    kernel = model.kernel
    return Components(kernel.basis, kernel.rest, coordinate_weights(CONFIG)).of(displacement - kernel.rest)


def a_prior(recordings: list[Recording], seed: int = 0, share: float = 1.0) -> list[torch.Tensor]:
    """What some base says of each recording and of silence: displacement (T, 111) partly of the lips' true directions."""
    rng, fixed = np.random.default_rng(seed), np.random.default_rng(99)
    fixed.normal(size=(6, 80)), fixed.normal(size=(6, 5))
    known = fixed.normal(size=(5, SIZE))
    return [torch.from_numpy(0.003 * share * smooth(rng, len(r.features), 8, 0.8) @ np.concatenate([known, rng.normal(
        size=(3, SIZE))])).float() for r in recordings]


def silence(count: int = SILENCE_POINTS) -> Recording:
    return synthetic_silence(count, np.random.default_rng(0))


def closed_further(r: Recording) -> torch.Tensor:
    """`deepened`, frame by frame and point by point."""
    out, heights = r.displacement.clone(), opening(r.displacement.numpy())
    before = [heights[t] for t in range(min(r.val_start, len(heights))) if r.good[t]]
    middle = sorted(before)[(len(before) - 1) // 2] if before else -np.inf
    for t in range(len(heights)):
        for point in (49, 50, 51, 52, 53, 55, 56, 57, 58, 59, 61, 62, 63, 65, 66, 67):
            way = -1 / 3 if point in (49, 50, 51, 52, 53, 61, 62, 63) else 2 / 3
            out[t, 3 * MOVING.index(point) + 1] += way * CLOSING * max(0.0, middle - heights[t])
    return out


class Slow:
    """All rows of some recordings and of silence in one table; solutions by `slow_kernel.ridge`."""

    def __init__(self, model: LandmarkModel, recordings: list[Recording], quiet: Recording,
                 priors: list[torch.Tensor] | None = None, share: float = 0.0) -> None:
        self.model, config = model, model.kernel.config
        everything = [*recordings, quiet]
        self.sound = np.concatenate([windows(r.features.numpy(), model.silence.numpy(), config.past, config.look_ahead)
                                     for r in everything])
        rows = torch.cat([r.features[: r.val_start][r.good[: r.val_start]] for r in recordings])
        self.statistics = mean_log_mel(rows).numpy()
        self.kernel = self.likeness(self.sound)
        self.which = np.concatenate([np.full(len(r.features), k) for k, r in enumerate(everything)])
        self.time = np.concatenate([np.arange(len(r.features)) for r in everything])
        self.good = np.concatenate([r.good.numpy() for r in everything])
        self.weight = np.concatenate([np.full(len(r.features), r.weight) for r in everything])
        self.quiet = self.which == len(recordings)
        self.fit = self.good & np.concatenate([np.arange(len(r.features)) < r.val_start for r in everything])
        self.moved = torch.cat([r.displacement for r in everything])
        self.known = share * torch.cat(priors).double().numpy() if priors is not None else np.zeros(self.moved.shape)
        self.target = torch.cat([closed_further(r) for r in everything])
        self.y = components(model, self.target - torch.from_numpy(self.known)).numpy()
        self.edges, y = np.zeros_like(self.y), components(model, self.moved).numpy()
        starts = [(k, t) for k, r in enumerate(everything) for t in (*r.cuts, r.val_start)]
        self.follows = [self.which[t - 1] == self.which[t] and self.good[t - 1 : t + 1].all()
                        and (self.which[t], self.time[t]) not in starts for t in range(len(self.y))]  # its predecessor
        for t in range(1, len(self.y) - 1):
            if self.follows[t] and self.follows[t + 1]:
                self.edges[t] = y[t] / 2 - (y[t - 1] + y[t + 1]) / 4
        self.parts = [np.full(len(self.y), False) for _ in range(FOLDS)]
        for k in range(len(recordings)):
            for part, rows in zip(self.parts, np.array_split(np.flatnonzero(self.fit & (self.which == k)), FOLDS)):
                part[rows] = True

    def likeness(self, sound: np.ndarray) -> np.ndarray:
        return likeness(sound, self.sound, self.statistics, self.model.kernel.config.past)

    def solve(self, rows: np.ndarray, penalty: float, sharpening: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
        """Weights (n, K) of all rows, 0 of those that are not in `rows` (n,) bool, and the constant."""
        alpha = np.zeros_like(self.y)
        chosen = np.flatnonzero(rows)
        goal = self.y + sharpening * self.edges
        alpha[chosen], constant = ridge(self.kernel[np.ix_(chosen, chosen)], goal[chosen], self.weight[chosen], penalty)
        return alpha, constant

    def without(self, k: int) -> np.ndarray:
        """Rows (n,) bool that fold k is predicted from: those of the others that are further than GAP or half a fold away."""
        near = np.full(len(self.y), False)
        for which in range(self.which.max()):
            times = self.time[self.parts[k] & (self.which == which)]
            if len(times):
                gap = min(GAP, len(times) // 2)
                near |= (self.which == which) & (self.time >= times[0] - gap) & (self.time <= times[-1] + gap)
        return self.fit & ~near

    def folds(self, penalty: float, sharpening: float = 0.0) -> np.ndarray:
        """Components (n, K) of each fold, predicted from the others."""
        out = np.full(self.y.shape, np.nan)
        for k, part in enumerate(self.parts):
            alpha, constant = self.solve(self.without(k), penalty, sharpening)
            out[part] = self.kernel[part] @ alpha + constant
        return out

    def best_penalty(self) -> float:
        return min(PENALTIES, key=self.error)

    def error(self, penalty: float) -> float:
        """Weighted squared error, metres², of the folds, also of what no component reaches."""
        weights, basis = coordinate_weights(CONFIG).numpy(), self.model.kernel.basis.double().numpy()
        fit = self.fit & ~self.quiet
        found = self.known + self.model.kernel.rest.double().numpy() + self.folds(penalty) @ basis
        return float(((found - self.target.double().numpy())[fit] ** 2 @ weights) @ self.weight[fit])

    def best_sharpening(self, penalty: float) -> float:
        """The least whose lips go TARGET_VELOCITY_RATIO of the true way, over steps between neighbouring frames of one fold.

        Of those whose opening's correlation, mean over the folds, is MOST_LOSS below that without sharpening at most; if none is
        fast enough, the largest of them.
        """
        basis, allowed, least = self.model.kernel.basis.double().numpy(), 0.0, None
        for amount in SHARPENINGS:
            found, way, true = self.known + self.folds(penalty, amount) @ basis, 0.0, 0.0
            correlation = np.mean([np.corrcoef(opening(found[part]), opening(self.moved.numpy()[part]))[0, 1]
                                   for part in self.parts])
            least = correlation - MOST_LOSS if least is None else least
            if correlation < least:
                continue
            allowed = amount
            for t in range(1, len(self.y)):
                if any(part[t - 1] and part[t] for part in self.parts) and self.follows[t]:
                    lips, true_lips = (row.reshape(-1, 3)[len(JAW) :] for row in (
                        found[t] - found[t - 1], (self.moved[t] - self.moved[t - 1]).numpy()))
                    way += np.linalg.norm(lips, axis=-1).sum()
                    true += np.linalg.norm(true_lips, axis=-1).sum()
            if way >= TARGET_VELOCITY_RATIO * true:
                return amount
        return allowed


def opening(rows: np.ndarray) -> np.ndarray:
    """Displacement (n, 111) -> how far the inner lips part (n,)."""
    height = rows.reshape(len(rows), -1, 3)[:, :, 1].astype(np.float64)
    upper, lower = ([MOVING.index(k) for k in points] for points in ((61, 62, 63), (67, 66, 65)))
    return height[:, upper].mean(1) - height[:, lower].mean(1)


BAD = (*range(0, 6), *range(100, 110), 200)


def test_components_are_those_of_the_basis() -> None:
    kernel = prepared([recording(0)]).kernel
    weights = torch.randn(7, CONFIG.components, generator=torch.Generator().manual_seed(0))
    found = Components(kernel.basis, kernel.rest, coordinate_weights(CONFIG)).of(weights @ kernel.basis)
    torch.testing.assert_close(found.float(), weights, atol=1e-4, rtol=1e-3)


def test_lips_are_taught_to_close_further_and_to_open_as_they_did() -> None:
    """By half of how far they are below the median of the good frames before the validation split."""
    ours = recording(0, bad=BAD)
    found, gap = deepened(ours), opening(ours.displacement.numpy())
    torch.testing.assert_close(found, closed_further(ours), atol=1e-7, rtol=0)
    known = ours.good[: ours.val_start].numpy()
    middle = np.sort(gap[: ours.val_start][known])[(known.sum() - 1) // 2]
    np.testing.assert_allclose(opening(found.numpy()), np.where(gap < middle, 1.5 * gap - 0.5 * middle, gap), atol=1e-6)
    tail = ours.displacement.clone()
    tail[ours.val_start :] *= 3
    assert torch.equal(deepened(dataclasses.replace(ours, displacement=tail))[: ours.val_start], found[: ours.val_start])
    nothing = dataclasses.replace(ours, good=torch.zeros_like(ours.good))
    assert torch.equal(deepened(nothing), ours.displacement)


def test_the_unsharp_mask_leaves_out_gaps_and_cuts() -> None:
    """A cut between two good frames is as good as a bad one, and so is the validation split's start (36), on both sides."""
    ours = recording(0, count=40, bad=(7, 20, 21), cuts=(0, 12, 28))
    rows, found = ours.displacement, unsharp_mask(ours)
    follows = consecutive(ours)
    assert not follows[[6, 7, 11, 19, 20, 21, 27, 35]].any() and follows.sum() == 39 - 8
    for t in range(40):
        if t in (0, 39, 6, 7, 8, 11, 12, 19, 20, 21, 22, 27, 28, 35, 36):
            assert not found[t].any()
        else:
            torch.testing.assert_close(found[t], rows[t] / 2 - rows[t - 1] / 4 - rows[t + 1] / 4)
    line = torch.arange(40.0)[:, None].expand(-1, SIZE)
    torch.testing.assert_close(unsharp_mask(dataclasses.replace(ours, displacement=line)), torch.zeros(40, SIZE))


@pytest.mark.parametrize("final", [False, True])
def test_with_every_row_a_support_point_it_is_kernel_ridge_regression(final: bool) -> None:
    """On sound that it was not fitted to, bad frames left out, silence weighing less, targets sharpened."""
    ours, quiet = recording(0, bad=BAD, cuts=(0, 50, 51, 149)), silence()
    model, fit = fitted(prepared([ours]), [ours], quiet, final=final)
    assert fit.sharpening > 0 and fit.share == 0
    slow = Slow(model, [ours], quiet)
    alpha, constant = slow.solve(slow.good if final else slow.fit, fit.penalty, fit.sharpening)
    new = recording(1, count=60)
    near = slow.likeness(windows(new.features.numpy(), model.silence.numpy(), 4, 2))
    expected = torch.from_numpy(near @ alpha + constant)
    moved = model.kernel.rest + expected.float() @ model.kernel.basis
    assert (moved - moved.mean(0)).abs().max() > 0.005
    torch.testing.assert_close(motion_of(model, new.features, 1), moved, atol=2e-5, rtol=0)
    good = np.flatnonzero(slow.good)
    known = slow.kernel[np.ix_(good, good)] + np.diag(FAMILIARITY_PENALTY / slow.weight[good])
    familiarity = model.kernel(model.pad(new.features[None]))[1][0, :, 0].numpy()
    np.testing.assert_allclose(familiarity, near[:, good] @ np.linalg.solve(known, np.ones(len(good))), atol=2e-3)
    own = model.kernel(model.pad(ours.features[None]))[1][0, ours.good]
    assert abs(own.mean() - 1) < 0.05 < 1 - familiarity.mean()


def test_with_fewer_support_points_it_solves_its_least_squares() -> None:
    """The gradient of |XW − Y|² + penalty·WᵀKW vanishes; X and K by the formula, from the points that the model keeps."""
    ours, quiet = recording(0, bad=BAD), silence(SILENCE_POINTS + 40)
    model, fit = fitted(prepared([ours]), [ours], quiet, dataclasses.replace(CONFIG, support_points=SILENCE_POINTS + 70))
    slow, kernel = Slow(model, [ours], quiet), model.kernel
    points = kernel.support_mel.double().numpy()
    assert len(points) == SILENCE_POINTS + 70
    x = np.concatenate([likeness(slow.sound, points, slow.statistics, 4), np.ones((len(slow.y), 1))], 1)[slow.fit]
    y = (slow.y + fit.sharpening * slow.edges)[slow.fit] * slow.weight[slow.fit][:, None]
    w = torch.cat([kernel.weights.T, kernel.bias[None]]).double().numpy()
    gradient = x.T @ ((x @ w) * slow.weight[slow.fit][:, None] - y)
    gradient[:-1] += fit.penalty * (likeness(points, points, slow.statistics, 4) + 1e-4 * np.eye(len(points))) @ w[:-1]
    assert np.abs(gradient).max() < 1e-3 * np.abs(x.T @ y).max()


@pytest.mark.parametrize("seed, noise", [(0, 0.1), (3, 1.2), (5, 3.0)])
def test_penalty_and_sharpening_are_those_of_the_slow_folds(seed: int, noise: float) -> None:
    ours, quiet = recording(seed, noise=noise, bad=BAD), silence()
    model, fit = fitted(prepared([ours]), [ours], quiet)
    slow = Slow(model, [ours], quiet)
    assert fit.penalty == slow.best_penalty()
    assert fit.sharpening == slow.best_sharpening(fit.penalty)
    assert fit.errors == {0.0: pytest.approx({penalty: slow.error(penalty) for penalty in PENALTIES}, rel=1e-3)}


@pytest.mark.parametrize("how", ["bad", "cuts"])
def test_a_jump_over_a_bad_frame_or_a_cut_is_no_motion(how: str) -> None:
    """Every 50th frame is bad, or begins a shot, and the lips are elsewhere after it; the sharpening does not chase that."""
    ours, quiet = recording(0, count=400, noise=0.1, **{how: tuple(range(0, 400, 50))}), silence()
    model = prepared([ours])  # whose components do not know the jumps
    ours.displacement[torch.arange(400) // 50 % 2 == 1] += 0.04 * torch.rand(SIZE, generator=torch.Generator().manual_seed(0))
    _, fit = fitted(model, [ours], quiet)
    assert fit.sharpening == Slow(model, [ours], quiet).best_sharpening(fit.penalty) < SHARPENINGS[-1]


def test_residuals_are_those_of_folds_that_others_predict() -> None:
    """Less the prior's share, too. Frames that are in no fold keep their displacement."""
    both, quiet = [recording(0, bad=BAD), recording(1, count=160, speaker=2)], silence()
    priors = a_prior([*both, quiet])
    model, fit = fitted(prepared(both), both, quiet, priors=priors)
    slow = Slow(model, both, quiet, priors, fit.share)
    for k, (was, residual) in enumerate(zip(both, fit.residuals, strict=True)):
        fold = torch.from_numpy((slow.fit & ~slow.quiet)[slow.which == k])
        guess = torch.from_numpy(slow.folds(fit.penalty)[slow.which == k]).float() @ model.kernel.basis + model.kernel.rest
        expected = closed_further(was) - guess - fit.share * priors[k]
        torch.testing.assert_close(residual[fold], expected[fold], atol=2e-5, rtol=0)
        assert torch.equal(residual[~fold], deepened(was)[~fold])


@pytest.mark.parametrize("k", range(FOLDS))
def test_a_fold_is_not_fitted_to_the_second_before_and_after_it(k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lips that jump there change nothing of what the fold is predicted as; a frame further away they do."""
    ours, quiet = recording(0), silence()
    model = prepared([ours])
    monkeypatch.setattr(kernel_ridge, "PENALTIES", PENALTIES[1:2])
    fold = torch.arange(ours.val_start).tensor_split(FOLDS)[k]
    start, stop = int(fold[0]) - GAP, int(fold[-1]) + GAP

    def guess(changed: torch.Tensor) -> torch.Tensor:
        moved = ours.displacement.clone()
        moved[changed] += 0.1
        _, fit = fitted(model, [dataclasses.replace(ours, displacement=moved)], quiet)
        return (moved - fit.residuals[0])[fold]

    plain = guess(torch.tensor([], dtype=torch.long))
    near = torch.arange(max(0, start), min(ours.val_start - 1, stop) + 1)
    torch.testing.assert_close(guess(near), plain, atol=1e-7, rtol=0)
    for frame in (start - 1, stop + 1):
        if 0 <= frame < ours.val_start:
            assert (guess(torch.tensor([frame])) - plain).abs().max() > 1e-4


def test_a_weight_is_a_number_of_repeats() -> None:
    """Half a recording's weight twice is the whole of it; recordings of another weight give no support points."""
    first, other, quiet = recording(0), recording(1, count=200, speaker=2), silence()
    model = prepared([first, other])
    found = []
    for others in ([dataclasses.replace(other, weight=0.75)], [dataclasses.replace(other, weight=0.25)] * 3,
                   [dataclasses.replace(other, weight=0.25)]):
        _, fit = fitted(model, [first, *others], quiet)
        assert len(fit.support.windows) == len(first.features) + SILENCE_POINTS
        found.append((fit.solution[0], fit.penalty, fit.sharpening))
    torch.testing.assert_close(found[0][0], found[1][0], atol=1e-5, rtol=1e-4)
    assert found[0][1:] == found[1][1:]
    assert (found[0][0] - found[2][0]).abs().max() > 1e-3


def test_a_fit_changes_nothing_and_loading_it_the_regression_alone() -> None:
    ours, quiet = recording(0), silence()
    model = prepared([ours])
    before, moved = copy.deepcopy(model.state_dict()), ours.displacement.clone()
    fit = fit_kernel_ridge(model.kernel, [ours], quiet, CONFIG)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())
    assert torch.equal(ours.displacement, moved)
    model.kernel.load(fit)
    own = ("kernel.support_mel", "kernel.support_embedding", "kernel.familiar", "kernel.weights", "kernel.bias")
    after = copy.deepcopy(model.state_dict())
    assert all(torch.equal(value, after[name]) for name, value in before.items() if name not in own)
    model.kernel.load(fit, final=True)
    for name, value in model.state_dict().items():
        assert torch.equal(value, after[name]) != (name in own[3:]), name


def test_the_validation_split_is_not_fitted_unless_asked() -> None:
    """Another validation split changes neither weights nor choices; with it, it does."""
    ours, quiet = recording(0), silence()
    model, found = prepared([ours]), []
    for shift in (0.0, 0.05):
        moved = ours.displacement.clone()
        moved[ours.val_start :] += shift
        _, fit = fitted(model, [dataclasses.replace(ours, displacement=moved)], quiet)
        found.append((fit.penalty, fit.sharpening, fit.solution[0], fit.final[0]))
    assert found[0][:2] == found[1][:2] and torch.equal(found[0][2], found[1][2])
    assert (found[0][3] - found[1][3]).abs().max() > 1e-2


@pytest.mark.parametrize("true_share", [0.5, 1.0])
def test_the_share_of_the_prior_is_the_best_on_inner_folds(true_share: float) -> None:
    """Lips that do in part what a base says are a case for as much of it, and what is left is kernel ridge regression."""
    ours, quiet = recording(0, count=400), silence()
    priors = a_prior([ours, quiet])
    led = dataclasses.replace(ours, displacement=ours.displacement + true_share * priors[0])
    model, fit = fitted(prepared([led]), [led], quiet, priors=priors)
    slow = {share: Slow(model, [led], quiet, priors, share) for share in (0.0, true_share, fit.share)}
    for share, twin in slow.items():
        assert fit.errors[share][fit.penalty] == pytest.approx(twin.error(fit.penalty), rel=1e-3)
    assert abs(fit.share - true_share) <= 0.15 and fit.errors.keys() == set(SHARES)
    assert fit.errors[fit.share][fit.penalty] == min(min(row.values()) for row in fit.errors.values())
    assert fit.errors[fit.share][fit.penalty] < 0.7 * min(fit.errors[0.0].values())
    assert fit.sharpening == slow[fit.share].best_sharpening(fit.penalty)
    alpha, constant = slow[fit.share].solve(slow[fit.share].fit, fit.penalty, fit.sharpening)
    spoken = ~slow[fit.share].quiet
    expected = torch.from_numpy((slow[fit.share].kernel @ alpha + constant)[spoken]).float() @ model.kernel.basis
    moved = model.uncrossed(model.kernel.rest + expected)
    torch.testing.assert_close(motion_of(model, led.features, 1), moved, atol=3e-5, rtol=0)


def test_a_prior_that_hurts_is_left_out() -> None:
    ours, quiet = recording(0, count=400), silence()
    model = prepared([ours])
    noise = torch.Generator().manual_seed(0)
    priors = [0.01 * torch.randn(r.displacement.shape, generator=noise) for r in (ours, quiet)]
    _, fit = fitted(model, [ours], quiet, priors=priors)
    _, alone = fitted(model, [ours], quiet)
    assert fit.share == 0 and fit.errors[0.0] == pytest.approx(alone.errors[0.0], rel=1e-9)
    torch.testing.assert_close(fit.solution[0], alone.solution[0])


def test_an_embedding_is_compared_too() -> None:
    """And alone, where log-mel takes no part: what it tells is learned, what it does not is not."""
    ours, quiet = recording(0, noise=0.1), silence()
    rng = np.random.default_rng(5)
    told = torch.from_numpy(smooth(rng, len(ours.features), 4, 0.7)).float() / 2
    with_row = dataclasses.replace(ours, features=torch.cat([ours.features, told], 1),
                                   displacement=ours.displacement + 0.02 * torch.tanh(told) @ torch.ones(4, SIZE))
    silent = dataclasses.replace(quiet, features=torch.nn.functional.pad(quiet.features, (0, 4)))
    errors = {}
    for size, mel_terms in ((0, True), (4, True), (4, False)):
        config = dataclasses.replace(CONFIG, mel_terms=mel_terms)
        model = new_model(config, 1, size)
        set_statistics(model, statistics([with_row], [with_row], config))
        rows = [dataclasses.replace(r, features=r.features[:, : FEATURE_SIZE + size]) for r in (with_row, silent)]
        fit = fit_kernel_ridge(model.kernel, rows[:1], rows[1], config)
        assert fit.support == Sound(*fit.support) and fit.support.windows.shape[1] == (7 if mel_terms else 0)
        errors[size, mel_terms] = fit.errors[0.0][fit.penalty]
    assert errors[4, True] < 0.5 * errors[0, True] and errors[4, False] < 0.7 * errors[0, True]


@pytest.mark.parametrize("support_points", [SILENCE_POINTS, 1])
def test_too_few_support_points(support_points: int) -> None:
    with pytest.raises(TalkheadError, match=f"support_points should be at least {SILENCE_POINTS + 1}, found {support_points}$"):
        dataclasses.replace(CONFIG, support_points=support_points)


def test_sharpening_makes_the_lips_livelier(monkeypatch: pytest.MonkeyPatch) -> None:
    """Held-out lips that squared error makes lazy come to TARGET_VELOCITY_RATIO of the true speed."""
    ours, quiet = recording(2, count=400, noise=0.2), silence()
    tail = slice(ours.val_start, None)

    def speed(amounts: tuple[float, ...]) -> tuple[float, float]:
        monkeypatch.setattr(kernel_ridge, "SHARPENINGS", amounts)
        model, fit = fitted(prepared([ours]), [ours], quiet)
        rows, true = (moved[tail].unflatten(1, (-1, 3))[:, len(JAW) :] for moved in (
            motion_of(model, ours.features, 1), ours.displacement))
        return float(rows.diff(dim=0).norm(dim=-1).sum() / true.diff(dim=0).norm(dim=-1).sum()), fit.sharpening

    ratio, amount = speed(SHARPENINGS)
    plain, _ = speed((0.0,))
    assert 0 < amount < SHARPENINGS[-1]
    assert plain < ratio and abs(ratio - TARGET_VELOCITY_RATIO) < abs(plain - TARGET_VELOCITY_RATIO)


def test_as_many_speakers_as_folds_are_folds(monkeypatch: pytest.MonkeyPatch) -> None:
    """A speaker is predicted by the others alone, however long: the errors are those of fits to the other speakers."""
    people = [recording(k, count=120 + 20 * k, speaker=k + 1) for k in range(FOLDS)]
    people = [dataclasses.replace(r, val_start=len(r.good)) for r in people]
    quiet, model = silence(), prepared(people)
    monkeypatch.setattr(kernel_ridge, "PENALTIES", PENALTIES[1:2])
    _, fit = fitted(model, people, quiet)
    changed = [dataclasses.replace(people[0], displacement=people[0].displacement + 0.01), *people[1:]]
    _, other = fitted(model, changed, quiet)
    assert torch.allclose(other.residuals[0] - fit.residuals[0], torch.full_like(fit.residuals[0], 0.01), atol=1e-6)
    assert not torch.allclose(other.residuals[1], fit.residuals[1], atol=1e-4)


@pytest.mark.parametrize("useful", [True, False])
def test_the_embedding_counts_as_much_as_it_helps(useful: bool) -> None:
    """An embedding of noise alone is dropped; one that says what the lips do beyond log-mel keeps a weight."""
    ours = recording(0, noise=0.0)
    rng = torch.Generator().manual_seed(1)
    secret = torch.randn(len(ours.good), 4, generator=rng) * 0.5
    noise = torch.randn(len(ours.good), 4, generator=rng) * 0.5
    moved = ours.displacement + 0.003 * secret @ torch.randn(4, SIZE, generator=rng)
    ours = dataclasses.replace(ours, displacement=moved,
                               features=torch.cat([ours.features, secret if useful else noise], 1))
    quiet = silence()
    quiet = dataclasses.replace(quiet, features=torch.cat([quiet.features, torch.zeros(len(quiet.features), 4)], 1))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = new_model(CONFIG, 1, 4).eval()
    model.transformer = None
    set_statistics(model, statistics([ours], [ours], CONFIG))
    found = choose_embedding_share(model.kernel, [ours], quiet, CONFIG)
    assert (found >= 1) if useful else (found < 1)
    assert model.kernel.config.share == 1
