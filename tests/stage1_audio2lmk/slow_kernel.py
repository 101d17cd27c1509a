"""Likeness of sounds and kernel ridge regression as the formulas say it, in double precision, without any of the model's code."""

import numpy as np

from stage1_audio2lmk.audio.features import HOPS, MELS


def windows(features: np.ndarray, silence: np.ndarray, past: int, ahead: int) -> np.ndarray:
    """Feature rows (T, F) with rows `silence` (F,) around them -> windows (T, past + 1 + ahead, 80) of mean log-mel."""
    rows = np.concatenate([np.repeat(silence[None], past, 0), features, np.repeat(silence[None], ahead, 0)])
    mel = rows[:, : HOPS * MELS].reshape(len(rows), HOPS, MELS).astype(np.float64).mean(1)
    return np.stack([mel[t : t + past + 1 + ahead] for t in range(len(features))])


def likeness(a: np.ndarray, b: np.ndarray, rows: np.ndarray, past: int) -> np.ndarray:
    """Windows (n, taps, 80), (m, taps, 80), training rows (t, 80) -> (n, m).

    k = .3·⟨mel, mel'⟩/d + .4·exp(−ms(shape₄) − .3·ms(loud₄)) + .4·exp(−.7·ms(shape₁) − .3·ms(loud₄)) +
    .4·exp(−.7·ms(shape₀) − .3·ms(loud₁)), the index the frames of the past, ms the mean square of the difference.
    """

    def parts(x: np.ndarray) -> list[np.ndarray]:
        loud = x.mean(-1, keepdims=True)
        return [x, x - loud, loud]

    known = [(part.mean(0), np.maximum(part.std(0, ddof=1), 0.05)) for part in parts(rows.astype(np.float64))]
    scaled = [[(part - mean) / std for part, (mean, std) in zip(parts(x.astype(np.float64)), known)] for x in (a, b)]
    mel, shape, loud = zip(*scaled)

    def ms(pair: tuple[np.ndarray, ...], back: int) -> np.ndarray:
        x, y = (part[:, past - min(back, past) :] for part in pair)
        return np.stack([((row - y) ** 2).mean((1, 2)) for row in x])

    linear = np.einsum("nij,mij->nm", *mel) / mel[0][0].size
    return (0.3 * linear + 0.4 * np.exp(-ms(shape, 4) - 0.3 * ms(loud, 4)) + 0.4 * np.exp(-0.7 * ms(shape, 1) - 0.3 * ms(loud, 4))
            + 0.4 * np.exp(-0.7 * ms(shape, 0) - 0.3 * ms(loud, 1)))


def ridge(kernel: np.ndarray, targets: np.ndarray, weight: np.ndarray, penalty: float) -> tuple[np.ndarray, np.ndarray]:
    """Kernel (n, n), targets (n, K), weight (n,) of each row -> α (n, K), constant c (K,).

    (kernel + penalty/weight)·α + c = y, Σα = 0.
    """
    count = len(kernel)
    system = np.zeros((count + 1, count + 1))
    system[:count, :count] = kernel + np.diag(penalty / weight)
    system[:count, count] = system[count, :count] = 1
    found = np.linalg.solve(system, np.concatenate([targets, np.zeros((1, targets.shape[1]))]))
    return found[:-1], found[-1]
