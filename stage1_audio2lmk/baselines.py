"""What stage 1 is measured against: the mean face, and ridge regression on ± 4 frames of log-mel."""

import numpy as np
import torch

from stage1_audio2lmk.audio.features import HOPS, MELS, FeatureStream

REACH = 4  # frames on each side, 160 ms into the future
PENALTIES = tuple(10.0**k for k in np.arange(1.0, 5.1, 0.5))
HELD_OUT = 0.12  # of the training frames' end, for choosing the penalty


def mean_face(landmarks: np.ndarray, train: np.ndarray, count: int) -> np.ndarray:
    """landmarks (T,68,3), training frames (n,) -> their mean, repeated (count,68,3)."""
    return np.repeat(landmarks[train].mean(0, keepdims=True), count, axis=0)


def mel_windows(samples: np.ndarray) -> np.ndarray:
    """samples (640·T,) -> (T, 9·80): mean log-mel of each video frame and its neighbours, edges repeated."""
    rows = FeatureStream(voice=False).push(samples)[:, : HOPS * MELS].reshape(-1, HOPS, MELS).mean(1)
    padded = np.pad(rows, ((REACH, REACH), (0, 0)), mode="edge")
    return np.concatenate([padded[k : k + len(rows)] for k in range(2 * REACH + 1)], axis=1)


def ridge(samples: np.ndarray, landmarks: np.ndarray, train: np.ndarray) -> np.ndarray:
    """Fit on frames `train` of samples (640·T,) and landmarks (T,68,3); predict every frame -> (T,68,3).

    The penalty is the best one for the last twelfth of the training frames; the fit is then repeated on all of them.
    """
    x = mel_windows(samples).astype(np.float64)
    x = (x - x[train].mean(0)) / (x[train].std(0) + 1e-6)
    y = landmarks.reshape(len(landmarks), -1).astype(np.float64)
    cut = int(len(train) * (1 - HELD_OUT))
    fit, held = train[:cut], train[cut:]
    errors = [np.square(_solve(x, y, fit, penalty, x[held]) - y[held]).mean() for penalty in PENALTIES]
    return _solve(x, y, train, PENALTIES[int(np.argmin(errors))], x).reshape(landmarks.shape).astype(np.float32)


def _solve(x: np.ndarray, y: np.ndarray, train: np.ndarray, penalty: float, wanted: np.ndarray) -> np.ndarray:
    mean = y[train].mean(0)
    a, b = torch.from_numpy(x[train]), torch.from_numpy(y[train] - mean)
    weights = torch.linalg.solve(a.T @ a + penalty * torch.eye(a.shape[1], dtype=a.dtype), a.T @ b)
    return wanted @ weights.numpy() + mean
