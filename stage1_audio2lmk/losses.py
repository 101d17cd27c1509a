"""What a predicted displacement is judged by, in squared millimetres."""

import torch
from torch import Tensor

from shared.landmarks import JAW, LIPS
from stage1_audio2lmk.config import Stage1Config
from stage1_audio2lmk.model import MOVING

_UPPER = [MOVING.index(k) for k in (61, 62, 63)]
_LOWER = [MOVING.index(k) for k in (67, 66, 65)]


def point_weights(config: Stage1Config) -> Tensor:
    """(37,) weights of jaw and lip points, mean 1."""
    weights = torch.cat([torch.ones(len(JAW)), torch.full((len(LIPS),), config.lip_weight)])
    return weights / weights.mean()


def landmark_loss(predicted: Tensor, true: Tensor, weight: Tensor, config: Stage1Config) -> Tensor:
    """predicted, true (B,T,37,3) metres, weight (B,T) -> scalar: position, velocity and lip closure terms."""
    points = point_weights(config).to(predicted.device)[:, None]
    error = 1000 * (predicted - true)
    total = weight.sum().clamp_min(1)
    position = ((error**2 * points).mean((2, 3)) * weight).sum() / total
    pair = weight[:, 1:] * weight[:, :-1]
    change = ((error[:, 1:] - error[:, :-1]) ** 2 * points).mean((2, 3))
    velocity = (change * pair).sum() / pair.sum().clamp_min(1)
    opening = (error[:, :, _UPPER, 1] - error[:, :, _LOWER, 1]).mean(-1)
    closure = (opening**2 * weight).sum() / total
    return position + config.velocity_weight * velocity + config.closure_weight * 0.1 * closure


def lip_error(predicted: Tensor, true: Tensor) -> Tensor:
    """(T,37,3) metres -> mean distance of the lip points in millimetres."""
    lips = slice(len(JAW), len(MOVING))
    return 1000 * torch.linalg.vector_norm(predicted[:, lips] - true[:, lips], dim=-1).mean()
