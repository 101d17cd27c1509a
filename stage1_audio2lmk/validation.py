"""How good a model is on the tails that were kept back from fitting."""

import numpy as np
import torch

from shared.landmarks import lip_opening
from shared.metrics import correlation
from stage1_audio2lmk.dataset import Recording
from stage1_audio2lmk.losses import lip_error
from stage1_audio2lmk.model import MOVING, LandmarkModel


@torch.no_grad()
def held_out_error(model: LandmarkModel, recordings: list[Recording], device: torch.device) -> dict[str, float]:
    """Mean lip distance in mm and correlation of the lip opening on the held-out tails, averaged over recordings."""
    model.eval()
    distances, correlations = [], []
    for r in recordings:
        tail = torch.arange(len(r.features)) >= r.held_from
        tail &= r.good
        speaker = torch.tensor([r.speaker], device=device)
        last = int(torch.nonzero(r.good)[-1]) + 1
        predicted = model(r.features[None, :last].to(device), speaker)[0].cpu()[tail[:last]]
        true = r.displacement[tail].unflatten(-1, (-1, 3))
        distances.append(float(lip_error(predicted[:, MOVING], true)))
        full = torch.zeros(len(true), 68, 3)
        full[:, MOVING] = true
        correlations.append(correlation(lip_opening(predicted.numpy()), lip_opening(full.numpy())))
    return {"lip mm": float(np.mean(distances)), "opening r": float(np.mean(correlations))}
