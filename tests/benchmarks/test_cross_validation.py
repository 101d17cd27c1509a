"""The folds protocol: who is in which fold, and what the bootstrap says of differences that are known."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from benchmarks.cross_validation import contiguous_folds, cross_validate, fold_clip, opening_r, openings, paired_block_bootstrap
from shared.clip import Clip, ExcludedSpan, Shot
from shared.errors import TalkheadError
from shared.landmarks import lip_opening


def curve(rng: np.random.Generator, count: int, memory: float = 0.8) -> np.ndarray:
    """(count,) first-order autoregressive noise of unit variance."""
    noise = rng.normal(size=count) * np.sqrt(1 - memory**2)
    out = np.empty(count)
    out[0] = rng.normal()
    for t in range(1, count):
        out[t] = memory * out[t - 1] + noise[t]
    return out


def predictors(rng: np.random.Generator, count: int, r_a: float, r_b: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two predictions that correlate with the truth as told, and the truth; their errors are half the same."""
    true, common = curve(rng, count), curve(rng, count)
    errors = [np.sqrt(0.5) * (common + curve(rng, count)) for _ in range(2)]
    a, b = (r * true + np.sqrt(1 - r**2) * error for r, error in zip((r_a, r_b), errors))
    return a, b, true


def test_tests_are_contiguous_and_hold_every_index_once() -> None:
    indices = np.r_[0:200, 230:503]
    folds = contiguous_folds(indices, k=5, gap=25)
    assert len(folds) == 5
    np.testing.assert_array_equal(np.concatenate([test for _, test in folds]), indices)
    assert {len(test) for _, test in folds} <= {94, 95}
    for train, test in folds:
        distance = np.abs(train[:, None] - test).min(1)
        assert distance.min() == 26
        expected = [t for t in indices if t not in test and np.abs(t - test).min() > 25]
        np.testing.assert_array_equal(train, expected)


def test_without_a_gap_train_and_test_are_everything() -> None:
    for train, test in contiguous_folds(np.arange(100), k=2, gap=0):
        np.testing.assert_array_equal(np.sort(np.concatenate([train, test])), np.arange(100))


@pytest.mark.parametrize("count, k", [(124, 5), (100, 1)])
def test_too_few_frames_or_folds_are_refused(count: int, k: int) -> None:
    with pytest.raises(TalkheadError, match=f"found {count} frames for {k}"):
        contiguous_folds(np.arange(count), k=k)


def test_a_known_difference_is_recovered() -> None:
    a, b, true = predictors(np.random.default_rng(0), 6000, 0.7, 0.55)
    difference, low, high = paired_block_bootstrap(a, b, true, 50, 500, np.random.default_rng(1), opening_r)
    assert difference == pytest.approx(opening_r(a, true) - opening_r(b, true), abs=1e-12)
    assert 0 < low < 0.15 < high and high - low < 0.12


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    """Of 50 clips of a minute, the 95 % interval of two equal predictors holds zero in nearly all."""
    rng = np.random.default_rng(0)
    found = [paired_block_bootstrap(*predictors(rng, 1500, 0.6, 0.6), 50, 100, rng) for _ in range(50)]
    assert 44 <= sum(low <= 0 <= high for _, low, high in found) <= 50


def test_single_frames_instead_of_blocks_would_be_too_sure() -> None:
    a, b, true = predictors(np.random.default_rng(0), 3000, 0.6, 0.6)
    widths = {}
    for block in (1, 50):
        _, low, high = paired_block_bootstrap(a, b, true, block, 400, np.random.default_rng(0))
        widths[block] = high - low
    assert widths[50] > 1.5 * widths[1]


def test_a_predictor_equals_itself_and_draws_follow_the_generator() -> None:
    a, b, true = predictors(np.random.default_rng(0), 500, 0.6, 0.5)
    assert paired_block_bootstrap(a, a, true, 50, 50, np.random.default_rng(0)) == (0, 0, 0)
    one, two, other = (paired_block_bootstrap(a, b, true, 50, 50, np.random.default_rng(seed)) for seed in (3, 3, 4))
    assert one == two and one != other
    low, high = paired_block_bootstrap(b, a, true, 50, 50, np.random.default_rng(3))[1:]
    assert (low, high) == pytest.approx((-one[2], -one[1]))


def test_seeds_count_as_the_mean_of_their_correlations() -> None:
    a, b, true = predictors(np.random.default_rng(0), 500, 0.7, 0.5)
    seeds = np.stack([a, b], axis=1)
    assert opening_r(seeds, true) == pytest.approx((opening_r(a, true) + opening_r(b, true)) / 2)
    difference, low, high = paired_block_bootstrap(seeds, b, true, 50, 100, np.random.default_rng(0))
    assert low < difference < high and difference == pytest.approx((opening_r(a, true) - opening_r(b, true)) / 2)


def test_any_statistic_serves() -> None:
    a, b, true = np.full(100, 3.0), np.full(100, 1.0), np.zeros(100)
    worse = paired_block_bootstrap(a, b, true, 10, 20, np.random.default_rng(0), lambda x, y: float(np.abs(x - y).mean()))
    assert worse == (2, 2, 2)


@pytest.mark.parametrize("block, draws, shorter", [(0, 10, 0), (101, 10, 0), (10, 0, 0), (10, 10, 1)])
def test_impossible_bootstraps_are_refused(block: int, draws: int, shorter: int) -> None:
    x = np.zeros(100)
    with pytest.raises(ValueError, match="100"):
        paired_block_bootstrap(x, x[shorter:], x, block, draws, np.random.default_rng(0))


def test_no_fit_sees_the_frames_that_it_is_judged_on(make_clip: Callable[..., Clip], tmp_path: Path) -> None:
    """Each fit hears only its own train; what it returns for its test comes out in order, without bad frames."""
    landmarks = np.random.default_rng(0).normal(size=(300, 68, 3)).astype(np.float32)
    clip = make_clip(tmp_path / "clip", np.zeros(300 * 640), landmarks, landmarks[0], {"train": [(0, 200)], "test": [(200, 300)]})
    clip.info.excluded.append(ExcludedSpan(40, 50, "hand"))
    written = {path: path.read_bytes() for path in clip.root.iterdir()}
    seen = []

    def fit_and_predict(view: Clip, seed: int) -> np.ndarray:
        train, test = view.split("train"), view.split("test")
        assert np.abs(train[:, None] - test).min() == 26 and view.info.shots == [Shot(0, 300, "background.png")]
        seen.append((seed, len(train), len(test)))
        rows = np.full((300, 68, 3), np.nan, np.float32)
        rows[test] = landmarks[test] + seed
        return rows

    found = cross_validate(clip, fit_and_predict, seeds=(0, 2), k=5)
    good = np.r_[0:40, 50:300]
    np.testing.assert_array_equal(found, np.stack([landmarks[good], landmarks[good] + 2]))
    assert len(seen) == 10 and {seed for seed, _, _ in seen} == {0, 2} and sum(n for _, _, n in seen) == 2 * len(good)
    assert {path: path.read_bytes() for path in clip.root.iterdir()} == written


def test_openings_are_about_their_folds_mean() -> None:
    """Without it the mean face, fold by fold, would correlate with the truth, which is slower than a fold."""
    landmarks = np.random.default_rng(0).normal(size=(2, 103, 68, 3)).astype(np.float32)
    found = openings(landmarks, k=5)
    assert found.shape == (103, 2)
    raw = lip_opening(landmarks[1].astype(float))
    np.testing.assert_allclose(found[:21, 1], raw[:21] - raw[:21].mean(), atol=1e-9)
    np.testing.assert_allclose(found[83:, 1], raw[83:] - raw[83:].mean(), atol=1e-9)
    true = np.sin(np.arange(103) / 30)
    steps = np.repeat(landmarks[0, :5], [21, 21, 21, 20, 20], axis=0)
    assert opening_r(openings(steps[None], k=5), true) == 0 and opening_r(lip_opening(steps), true) != 0


def test_a_view_of_a_fold_keeps_the_clip_as_it_is(make_clip: Callable[..., Clip], tmp_path: Path) -> None:
    landmarks = np.zeros((60, 68, 3), np.float32)
    clip = make_clip(tmp_path / "clip", np.zeros(60 * 640), landmarks, landmarks[0], {"train": [(0, 60)]})
    view = fold_clip(clip, np.r_[0:10, 40:60], np.r_[15:30])
    assert view.info.split == {"train": [(0, 10), (40, 60)], "test": [(15, 30)]}
    assert clip.info.split == {"train": [(0, 60)]} and Clip(clip.root).info.split == {"train": [(0, 60)]}
