"""The kernel path against textbook kernel ridge regression: one dense system over all rows, nothing summed, nothing removed."""

import copy
import dataclasses

import numpy as np
import pytest
import torch

from shared.errors import TalkheadError
from shared.landmarks import JAW
from stage1_audio2lmk import closed_form
from stage1_audio2lmk.audio.features import FEATURE_SIZE
from stage1_audio2lmk.closed_form import (
    FOLDS,
    GAP,
    LIVELY,
    PENALTIES,
    SHARPENINGS,
    SILENCE_CENTRES,
    KernelPath,
    edges,
    joined,
    solve_kernel_path,
)
from stage1_audio2lmk.config import Stage1Config
from stage1_audio2lmk.dataset import Recording, made_silence
from stage1_audio2lmk.losses import point_weights
from stage1_audio2lmk.model import MOVING, LandmarkModel, pooled
from tests.stage1_audio2lmk.slow_kernel import likeness, ridge, windows

CONFIG = Stage1Config(dim=16, layers=1, heads=2, window=5, components=5, centres=SILENCE_CENTRES + 450)
SIZE = 3 * len(MOVING)


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
        model = LandmarkModel(config, len(recordings)).eval()
    closed_form.set_statistics(model, recordings)
    return model


def silence(count: int = SILENCE_CENTRES) -> Recording:
    return made_silence(count, np.random.default_rng(0))


@torch.no_grad()
def said(model: LandmarkModel, recording: Recording) -> np.ndarray:
    """Components (T, K) of what a model says whose kernel path is silent."""
    model = copy.deepcopy(model)
    for value in model.kernel_head.parameters():
        value.zero_()
    moved = model(recording.features[None], torch.tensor([recording.speaker]))[0, :, MOVING].flatten(1)
    return closed_form.targets(model, moved).numpy()


class Slow:
    """All rows of some recordings and of silence in one table; solutions by `slow_kernel.ridge`."""

    def __init__(self, model: LandmarkModel, recordings: list[Recording], quiet: Recording) -> None:
        self.model, config = model, model.config
        everything = [*recordings, quiet]
        self.heard = np.concatenate([windows(r.features.numpy(), model.silence.numpy(), config.kernel_past, config.look_ahead)
                                     for r in everything])
        rows = torch.cat([r.features[: r.held_from][r.good[: r.held_from]] for r in recordings])
        self.statistics = pooled(rows).numpy()
        self.kernel = self.likeness(self.heard)
        self.which = np.concatenate([np.full(len(r.features), k) for k, r in enumerate(everything)])
        self.time = np.concatenate([np.arange(len(r.features)) for r in everything])
        self.good = np.concatenate([r.good.numpy() for r in everything])
        self.weight = np.concatenate([np.full(len(r.features), r.weight) for r in everything])
        self.quiet = self.which == len(recordings)
        self.fit = self.good & np.concatenate([np.arange(len(r.features)) < r.held_from for r in everything])
        self.moved = torch.cat([r.displacement for r in everything])
        self.said = np.concatenate([said(model, r) for r in everything])
        self.y = closed_form.targets(model, self.moved).numpy() - self.said
        self.edges, y = np.zeros_like(self.y), self.y + self.said
        starts = [(k, t) for k, r in enumerate(everything) for t in (*r.cuts, r.held_from)]
        self.follows = [self.which[t - 1] == self.which[t] and self.good[t - 1 : t + 1].all()
                        and (self.which[t], self.time[t]) not in starts for t in range(len(self.y))]  # its predecessor
        for t in range(1, len(self.y) - 1):
            if self.follows[t] and self.follows[t + 1]:
                self.edges[t] = y[t] / 2 - (y[t - 1] + y[t + 1]) / 4
        self.parts = [np.full(len(self.y), False) for _ in range(FOLDS)]
        for k in range(len(recordings)):
            for part, rows in zip(self.parts, np.array_split(np.flatnonzero(self.fit & (self.which == k)), FOLDS)):
                part[rows] = True

    def likeness(self, heard: np.ndarray) -> np.ndarray:
        return likeness(heard, self.heard, self.statistics, self.model.config.kernel_past)

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
        errors = []
        weights, basis = point_weights(self.model.config).numpy().repeat(3), self.model.basis.double().numpy()
        fit = self.fit & ~self.quiet
        for penalty in PENALTIES:
            off = ((self.folds(penalty) - self.y)[fit] @ basis) ** 2 @ weights
            errors.append(off @ self.weight[fit])
        return PENALTIES[int(np.argmin(errors))]

    def best_sharpening(self, penalty: float) -> float:
        """The least whose lips go LIVELY of the true way, over steps between neighbouring frames of one fold."""
        basis = self.model.basis.double().numpy()
        for amount in SHARPENINGS:
            found, way, true = (self.said + self.folds(penalty, amount)) @ basis, 0.0, 0.0
            for t in range(1, len(self.y)):
                if any(part[t - 1] and part[t] for part in self.parts) and self.follows[t]:
                    lips, true_lips = (row.reshape(-1, 3)[len(JAW) :] for row in (
                        found[t] - found[t - 1], (self.moved[t] - self.moved[t - 1]).numpy()))
                    way += np.linalg.norm(lips, axis=-1).sum()
                    true += np.linalg.norm(true_lips, axis=-1).sum()
            if way >= LIVELY * true:
                return amount
        return SHARPENINGS[-1]


BAD = (*range(0, 6), *range(100, 110), 200)


def test_targets_invert_expand() -> None:
    model = prepared([recording(0)])
    weights = torch.randn(7, CONFIG.components, generator=torch.Generator().manual_seed(0))
    moved = model.expand(weights)[:, MOVING].reshape(7, -1)
    torch.testing.assert_close(closed_form.targets(model, moved).float(), weights, atol=1e-4, rtol=1e-3)


def test_edges_are_what_stands_out_but_not_beside_gaps_and_cuts() -> None:
    """A cut between two good frames is as good as a bad one, and so is the start of the tail (at 36), on both sides."""
    ours = recording(0, count=40, bad=(7, 20, 21), cuts=(0, 12, 28))
    rows, found = ours.displacement, edges(ours)
    follows = joined(ours)
    assert not follows[[6, 7, 11, 19, 20, 21, 27, 35]].any() and follows.sum() == 39 - 8
    for t in range(40):
        if t in (0, 39, 6, 7, 8, 11, 12, 19, 20, 21, 22, 27, 28, 35, 36):
            assert not found[t].any()
        else:
            torch.testing.assert_close(found[t], rows[t] / 2 - rows[t - 1] / 4 - rows[t + 1] / 4)
    line = torch.arange(40.0)[:, None].expand(-1, SIZE)
    torch.testing.assert_close(edges(dataclasses.replace(ours, displacement=line)), torch.zeros(40, SIZE))


@pytest.mark.parametrize("tail", [False, True])
def test_with_every_row_a_centre_it_is_kernel_ridge_regression(tail: bool) -> None:
    """On sound that it never heard, bad frames left out, silence counting a tenth, targets sharpened."""
    ours, quiet = recording(0, bad=BAD, cuts=(0, 50, 51, 149)), silence()
    model = prepared([ours])
    path = KernelPath(model, [ours], quiet)
    assert path.sharpening > 0
    path.solve(tail=tail)
    slow = Slow(model, [ours], quiet)
    alpha, constant = slow.solve(slow.good if tail else slow.fit, path.penalty, path.sharpening)
    new = recording(1, count=60)
    expected = slow.likeness(windows(new.features.numpy(), model.silence.numpy(), 4, 2)) @ alpha + constant
    moved = model.expand(torch.from_numpy(expected).float())
    with torch.no_grad():
        found = model(new.features[None], torch.tensor([1]))[0]
    assert (moved - moved.mean(0)).abs().max() > 0.005
    torch.testing.assert_close(found, moved, atol=2e-5, rtol=0)


def test_with_fewer_centres_it_solves_its_least_squares() -> None:
    """The gradient of |XW − Y|² + penalty·WᵀKW vanishes; X and K by the formula, from the centres that the model keeps."""
    ours, quiet = recording(0, bad=BAD), silence(SILENCE_CENTRES + 40)
    model = prepared([ours], dataclasses.replace(CONFIG, centres=SILENCE_CENTRES + 70))
    path = KernelPath(model, [ours], quiet)
    slow = Slow(model, [ours], quiet)
    centres = model.kernel.centres.double().numpy()
    assert len(centres) == SILENCE_CENTRES + 70
    x = np.concatenate([likeness(slow.heard, centres, slow.statistics, 4), np.ones((len(slow.y), 1))], 1)[slow.fit]
    y = (slow.y + path.sharpening * slow.edges)[slow.fit] * slow.weight[slow.fit][:, None]
    w = torch.cat([model.kernel_head.weight.T, model.kernel_head.bias[None]]).detach().double().numpy()
    gradient = x.T @ ((x @ w) * slow.weight[slow.fit][:, None] - y)
    gradient[:-1] += path.penalty * (likeness(centres, centres, slow.statistics, 4) + 1e-4 * np.eye(len(centres))) @ w[:-1]
    assert np.abs(gradient).max() < 1e-3 * np.abs(x.T @ y).max()


@pytest.mark.parametrize("seed, noise", [(0, 0.1), (3, 1.2), (5, 3.0)])
def test_penalty_and_sharpening_are_those_of_the_slow_folds(seed: int, noise: float) -> None:
    ours, quiet = recording(seed, noise=noise, bad=BAD), silence()
    model = prepared([ours])
    path, slow = KernelPath(model, [ours], quiet), Slow(model, [ours], quiet)
    assert path.penalty == slow.best_penalty()
    assert path.sharpening == slow.best_sharpening(path.penalty)


@pytest.mark.parametrize("how", ["bad", "cuts"])
def test_a_jump_over_a_bad_frame_or_a_cut_is_no_motion(how: str) -> None:
    """Every 50th frame is bad, or begins a shot, and the lips are elsewhere after it; the sharpening does not chase that."""
    ours, quiet = recording(0, count=400, noise=0.1, **{how: tuple(range(0, 400, 50))}), silence()
    model = prepared([ours])  # whose components do not know the jumps
    ours.displacement[torch.arange(400) // 50 % 2 == 1] += 0.04 * torch.rand(SIZE, generator=torch.Generator().manual_seed(0))
    path = KernelPath(model, [ours], quiet)
    assert path.sharpening == Slow(model, [ours], quiet).best_sharpening(path.penalty) < SHARPENINGS[-1]


def test_misses_are_those_of_folds_that_others_predict() -> None:
    """Frames that are in no fold keep their displacement, as does everything else about a recording."""
    both, quiet = [recording(0, bad=BAD), recording(1, count=160, speaker=2)], silence()
    model = prepared(both)
    path, slow = KernelPath(model, both, quiet), Slow(model, both, quiet)
    for k, (was, miss) in enumerate(zip(both, path.misses())):
        fold = torch.from_numpy((slow.fit & ~slow.quiet)[slow.which == k])
        guess = torch.from_numpy(slow.folds(path.penalty)[slow.which == k]).float() @ model.basis + model.rest
        torch.testing.assert_close(miss.displacement[fold], (was.displacement - guess)[fold], atol=2e-5, rtol=0)
        assert torch.equal(miss.displacement[~fold], was.displacement[~fold])
        assert (miss.name, miss.speaker, miss.held_from, miss.weight) == (was.name, was.speaker, was.held_from, was.weight)
        assert miss.features is was.features and miss.good is was.good


@pytest.mark.parametrize("k", range(FOLDS))
def test_a_fold_does_not_hear_of_the_second_before_and_after_it(k: int) -> None:
    """Lips that jump there change nothing of what the fold is predicted as; a frame further away they do."""
    ours, quiet = recording(0), silence()
    model = prepared([ours])
    path = KernelPath(copy.deepcopy(model), [ours], quiet)
    fold = torch.arange(ours.held_from).tensor_split(FOLDS)[k]
    start, stop = int(fold[0]) - GAP, int(fold[-1]) + GAP

    def guess(changed: torch.Tensor) -> torch.Tensor:
        moved = ours.displacement.clone()
        moved[changed] += 0.1
        other = dataclasses.replace(ours, displacement=moved)
        again = KernelPath(copy.deepcopy(model), [other], quiet)
        again.penalty = path.penalty
        return (moved - again.misses()[0].displacement)[fold]

    plain = guess(torch.tensor([], dtype=torch.long))
    near = torch.arange(max(0, start), min(ours.held_from - 1, stop) + 1)
    torch.testing.assert_close(guess(near), plain, atol=1e-7, rtol=0)
    for frame in (start - 1, stop + 1):
        if 0 <= frame < ours.held_from:
            assert (guess(torch.tensor([frame])) - plain).abs().max() > 1e-4


def test_a_weight_is_a_number_of_repeats() -> None:
    """Half a recording's weight twice is the whole of it; recordings of another weight are no centres."""
    first, other, quiet = recording(0), recording(1, count=200, speaker=2), silence()
    model = prepared([first, other])
    found = []
    for others in ([dataclasses.replace(other, weight=0.75)], [dataclasses.replace(other, weight=0.25)] * 3,
                   [dataclasses.replace(other, weight=0.25)]):
        ours = copy.deepcopy(model)
        path = KernelPath(ours, [first, *others], quiet)
        assert len(ours.kernel.centres) == len(first.features) + SILENCE_CENTRES
        found.append((ours.kernel_head.weight.detach().clone(), path.penalty, path.sharpening))
    torch.testing.assert_close(found[0][0], found[1][0], atol=1e-5, rtol=1e-4)
    assert found[0][1:] == found[1][1:]
    assert (found[0][0] - found[2][0]).abs().max() > 1e-3


def test_nothing_but_the_kernel_path_changes() -> None:
    ours, quiet = recording(0), silence()
    model = prepared([ours])
    before = copy.deepcopy(model.state_dict())
    path = KernelPath(model, [ours], quiet)
    solved = copy.deepcopy(model.state_dict())
    own = ("kernel_head.", "kernel.centres", "kernel.embedded")
    assert all(torch.equal(value, solved[name]) for name, value in before.items() if not name.startswith(own))
    path.misses()
    assert all(torch.equal(value, solved[name]) for name, value in model.state_dict().items())
    path.solve(tail=True)
    for name, value in model.state_dict().items():
        assert torch.equal(value, solved[name]) != name.startswith("kernel_head."), name
    path.solve()
    assert all(torch.equal(value, solved[name]) for name, value in model.state_dict().items())


def test_the_tail_is_not_fitted_unless_asked() -> None:
    """Another tail changes neither weights nor choices; with it, it does."""
    ours, quiet = recording(0), silence()
    model, found = prepared([ours]), []
    for shift in (0.0, 0.05):
        moved = ours.displacement.clone()
        moved[ours.held_from :] += shift
        path = KernelPath(copy.deepcopy(model), [dataclasses.replace(ours, displacement=moved)], quiet)
        found.append([path.penalty, path.sharpening, path.model.kernel_head.weight.detach().clone()])
        path.solve(tail=True)
        found[-1].append(path.model.kernel_head.weight.detach().clone())
    assert found[0][:2] == found[1][:2] and torch.equal(found[0][2], found[1][2])
    assert (found[0][3] - found[1][3]).abs().max() > 1e-2


def test_what_the_transformer_says_is_taken_from_the_targets() -> None:
    """With its correction added, it is kernel ridge regression of what the correction leaves."""
    ours, quiet = recording(0), silence()
    model = prepared([ours])
    torch.nn.init.normal_(model.head.weight, std=0.2, generator=torch.Generator().manual_seed(0))
    path, slow = KernelPath(model, [ours], quiet), Slow(model, [ours], quiet)
    alpha, constant = slow.solve(slow.fit, path.penalty, path.sharpening)
    expected = (slow.kernel @ alpha + constant + slow.said)[~slow.quiet]
    assert slow.said.std() > 0.1 and path.penalty == slow.best_penalty()
    assert 0 < path.sharpening == slow.best_sharpening(path.penalty)
    moved = model.expand(torch.from_numpy(expected).float())
    with torch.no_grad():
        torch.testing.assert_close(model(ours.features[None], torch.tensor([1]))[0], moved, atol=2e-5, rtol=0)


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_a_base_whose_transformer_hurts_is_silenced_and_one_that_helps_is_kept(share: float) -> None:
    """Held-out folds decide; lips that do in part what a transformer says are a case for keeping it, or as much of it."""
    ours, quiet = recording(0, count=400), silence()
    hurts = prepared([ours])
    torch.nn.init.normal_(hurts.head.weight, std=2.0, generator=torch.Generator().manual_seed(0))
    alone = KernelPath(prepared([ours]), [ours], quiet)
    path = solve_kernel_path(hurts, [ours], quiet)
    assert not hurts.corrects and path.errors == alone.errors
    torch.testing.assert_close(hurts.kernel_head.weight, alone.model.kernel_head.weight)

    helps = prepared([ours])
    torch.nn.init.normal_(helps.head.weight, std=0.5, generator=torch.Generator().manual_seed(1))
    kept = helps.head.weight.detach().clone()
    with torch.no_grad():
        correct = torch.from_numpy(said(helps, ours)).float() @ helps.basis
    led = dataclasses.replace(ours, displacement=ours.displacement + share * correct)
    path = solve_kernel_path(helps, [led], quiet)
    assert path.share == share and torch.equal(helps.head.weight, share * kept)
    again = KernelPath(copy.deepcopy(helps), [led], quiet)
    if share == 1:
        assert path.errors == again.errors and torch.equal(helps.kernel_head.weight, again.model.kernel_head.weight)
    else:
        assert path.errors == pytest.approx(again.errors, rel=1e-6)
        torch.testing.assert_close(helps.kernel_head.weight, again.model.kernel_head.weight, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("centres", [SILENCE_CENTRES, 1])
def test_too_few_centres(centres: int) -> None:
    with pytest.raises(TalkheadError, match=f"centres should be at least {SILENCE_CENTRES + 1}, found {centres}$"):
        dataclasses.replace(CONFIG, centres=centres)


def test_the_head_of_a_base_is_turned_to_other_components() -> None:
    """What the base's transformer says, as near as the new components come to it."""
    base, model = prepared([recording(0)]), LandmarkModel(CONFIG, 1).eval()
    torch.nn.init.normal_(base.head.weight, std=0.2, generator=torch.Generator().manual_seed(0))
    base.rest += 0.001
    model.load_state_dict({name: value for name, value in base.state_dict().items()
                           if not name.startswith(("basis", "rest", "kernel", "mean", "scale"))}, strict=False)
    other = recording(1)
    other.displacement[:] = other.displacement.flip(1) + 0.1 * recording(0).displacement
    model.mean.copy_(base.mean)
    model.scale.copy_(base.scale)
    closed_form.set_statistics(model, [other], base)
    with torch.no_grad():
        theirs = base(other.features[None], torch.tensor([0]))[0, :, MOVING].flatten(1)
    assert np.std(said(model, dataclasses.replace(other, speaker=0))) > 0.01
    np.testing.assert_allclose(said(model, dataclasses.replace(other, speaker=0)), closed_form.targets(model, theirs).numpy(),
                               atol=1e-4)


def test_sharpening_makes_the_lips_livelier() -> None:
    """Held-out lips that squared error makes lazy come to LIVELY of the true speed."""
    ours, quiet = recording(2, count=400, noise=0.2), silence()
    path = KernelPath(prepared([ours]), [ours], quiet)
    tail = slice(ours.held_from, None)

    def speed(amount: float) -> float:
        path.sharpening = amount
        path.solve()
        with torch.no_grad():
            rows = path.model(ours.features[None], torch.tensor([1]))[0, tail][:, 48:]
        true = ours.displacement[tail].unflatten(1, (-1, 3))[:, len(JAW) :]
        return float(rows.diff(dim=0).norm(dim=-1).sum() / true.diff(dim=0).norm(dim=-1).sum())

    amount = path.sharpening
    assert 0 < amount < SHARPENINGS[-1]
    assert speed(0.0) < speed(amount) and abs(speed(amount) - LIVELY) < abs(speed(0.0) - LIVELY)
