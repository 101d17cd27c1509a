"""Losses on a predicted displacement, in squared millimetres."""

import torch
from torch import Tensor

from shared.landmarks import JAW, LIPS, MOVING
from stage1_audio2lmk.config import Stage1Config
from stage1_audio2lmk.lips import lip_gap

CLOSURE_SCALE = 0.1  # brings the loss on one opening near that on 37 points, so that closure_weight 1 is a middle way


def point_weights(config: Stage1Config) -> Tensor:
    """(37,) weights of jaw and lip points, mean 1."""
    weights = torch.cat([torch.ones(len(JAW)), torch.full((len(LIPS),), config.lip_weight)])
    return weights / weights.mean()


def coordinate_weights(config: Stage1Config) -> Tensor:
    """(111,) `point_weights` of each coordinate of a flattened displacement."""
    return point_weights(config).repeat_interleave(3)


def landmark_loss(predicted: Tensor, true: Tensor, weight: Tensor, config: Stage1Config) -> Tensor:
    """predicted, true (B, T, 111) metres, weight (B, T) -> scalar: position, velocity and lip closure terms."""
    points = point_weights(config).to(predicted.device)[:, None]
    error = 1000 * (predicted - true).unflatten(-1, (len(MOVING), 3))
    total = weight.sum().clamp_min(1)
    position = ((error**2 * points).mean((2, 3)) * weight).sum() / total
    pair = weight[:, 1:] * weight[:, :-1]
    change = ((error[:, 1:] - error[:, :-1]) ** 2 * points).mean((2, 3))
    velocity = (change * pair).sum() / pair.sum().clamp_min(1)
    closure = (lip_gap(error) ** 2 * weight).sum() / total
    return position + config.velocity_weight * velocity + config.closure_weight * CLOSURE_SCALE * closure


def lip_error(predicted: Tensor, true: Tensor) -> Tensor:
    """(T, 111) metres -> mean distance of the lip points in millimetres."""
    error = (predicted - true).unflatten(-1, (len(MOVING), 3))[:, len(JAW) :]
    return 1000 * torch.linalg.vector_norm(error, dim=-1).mean()
