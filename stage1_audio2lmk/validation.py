"""Errors of a model on its validation split."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from shared.landmarks import lip_opening
from shared.metrics import correlation
from stage1_audio2lmk.dataset import Recording
from stage1_audio2lmk.losses import lip_error
from stage1_audio2lmk.model import expand


def validation_error(motion: Sequence[Tensor], recordings: Sequence[Recording]) -> dict[str, float]:
    """Predicted displacement (T, 111) metres of each recording -> errors on the validation splits, averaged over recordings.

    "lip mm": mean distance of the lip points. "opening r": correlation of the lip opening.
    """
    distances, correlations = [], []
    for moved, r in zip(motion, recordings, strict=True):
        frames = r.val_start + torch.nonzero(r.good[r.val_start :])[:, 0]
        found, true = moved[frames], r.displacement[frames]
        distances.append(float(lip_error(found, true)))
        correlations.append(motion_correlation(found, true))
    return {"lip mm": float(np.mean(distances)), "opening r": float(np.mean(correlations))}


def motion_correlation(predicted: Tensor, true: Tensor) -> float:
    """Displacements (T, 111) metres -> correlation of the lip opening."""
    return correlation(lip_opening(expand(predicted).numpy()), lip_opening(expand(true).numpy()))
