"""The protocol for small differences: contiguous folds of a clip, and a paired block bootstrap over their frames."""

from collections.abc import Callable, Iterable

import numpy as np

from shared.arrays import runs
from shared.clip import Clip
from shared.errors import TalkheadError
from shared.landmarks import lip_opening
from shared.metrics import correlation

FOLDS = 5
GAP = 25  # frames: lips a second apart have little in common
LEAST_FRAMES = 25  # of a fold
BLOCK = 50  # frames, twice the gap
DRAWS = 2000
INTERVAL = (2.5, 97.5)  # percentiles

Statistic = Callable[[np.ndarray, np.ndarray], float]


def contiguous_folds(indices: np.ndarray, k: int = FOLDS, gap: int = GAP) -> list[tuple[np.ndarray, np.ndarray]]:
    """Frame indices (n,) -> k pairs (train, test) of indices; the tests are stretches that together hold every index once.

    Frames up to `gap` before or after a test stretch are left out of its train, since they sound and look like its edge.
    Raises TalkheadError if a fold would hold less than a second.
    """
    indices = np.sort(np.asarray(indices))
    if k < 2 or len(indices) < k * LEAST_FRAMES:
        raise TalkheadError(f"at least 2 folds of {LEAST_FRAMES} good frames are needed, found {len(indices)} frames for {k}")
    tests = np.array_split(indices, k)
    return [(indices[(indices < test[0] - gap) | (indices > test[-1] + gap)], test) for test in tests]


def opening_r(predicted: np.ndarray, true: np.ndarray) -> float:
    """Correlation of lip openings: predicted (n,), or (n,S) of S seeds, whose mean it is, with true (n,)."""
    columns = predicted.reshape(len(predicted), -1).T
    return float(np.mean([correlation(column, true) for column in columns]))


def paired_block_bootstrap(a: np.ndarray, b: np.ndarray, true: np.ndarray, block: int, draws: int, rng: np.random.Generator,
                           statistic: Statistic = opening_r) -> tuple[float, float, float]:
    """(difference, low, high): statistic(a, true) − statistic(b, true) with its 95 % interval.

    Predictions a and b (n, …) and `true` (n, …) are in order of time. Each draw takes the same blocks of `block` frames
    from all three, so what makes a stretch hard for both cancels; blocks keep neighbouring frames, which are alike,
    together. The blocks wrap around the end, so that every frame is as likely as any other (Politis & Romano 1992).
    """
    count = len(true)
    if not len(a) == len(b) == count or not 1 <= block <= count or draws < 1:
        raise ValueError(f"{len(a)}, {len(b)} and {count} frames, blocks of {block}, {draws} draws")
    differences = np.empty(draws)
    for k in range(draws):
        starts = rng.integers(count, size=-(-count // block))
        rows = ((starts[:, None] + np.arange(block)).ravel() % count)[:count]
        differences[k] = statistic(a[rows], true[rows]) - statistic(b[rows], true[rows])
    low, high = np.percentile(differences, INTERVAL)
    return statistic(a, true) - statistic(b, true), float(low), float(high)


def fold_clip(clip: Clip, train: np.ndarray, test: np.ndarray) -> Clip:
    """The same clip folder, whose "train" and "test" are the frames given; nothing is written."""
    return clip.with_split({"train": runs(train), "test": runs(test)})


def good_indices(clip: Clip) -> np.ndarray:
    """Good frames (n,) of all splits of a clip, in order."""
    return np.unique(np.concatenate([clip.split(name) for name in clip.info.split]))


def cross_validate(clip: Clip, fit_and_predict: Callable[[Clip, int], np.ndarray], seeds: Iterable[int] = range(3),
                   k: int = FOLDS, gap: int = GAP) -> np.ndarray:
    """Landmarks (S,n,68,3) of the clip's good frames, each predicted by a fit that did not see it, one row a seed.

    `fit_and_predict` gets the clip, whose "train" is that of a fold, and the seed, and returns all frames (T,68,3).
    """
    indices = good_indices(clip)
    folds = contiguous_folds(indices, k, gap)
    rows = []
    for seed in seeds:
        parts = [fit_and_predict(fold_clip(clip, train, test), seed)[test] for train, test in folds]
        rows.append(np.concatenate(parts))
    return np.stack(rows)


def openings(landmarks: np.ndarray, k: int = FOLDS) -> np.ndarray:
    """Landmarks (S,n,68,3) of k folds in a row -> lip openings (n,S) in metres about each fold's mean, for `opening_r`.

    Unless the mean is taken out, a fit that knows nothing correlates with the truth below zero: where a fold is above the
    average, the rest, which it was fitted to, is below.
    """
    curves = np.stack([lip_opening(rows.astype(np.float64)) for rows in landmarks], axis=1)
    centred = np.concatenate([part - part.mean(0) for part in np.array_split(curves, k)])
    return np.round(centred, 9)  # to a nanometre, so that what stands still is zero
