"""Configuration of the torso stage."""

import dataclasses
from dataclasses import dataclass

import torch

from shared.errors import TalkheadError


@dataclass(frozen=True)
class TorsoConfig:
    """A zero in steps, batch or channels means: what suits the device (see `resolve`)."""

    steps: int = 0  # optimiser steps
    batch: int = 0  # frames a step, even: half of them with their successor
    channels: int = 0  # of the finest trunk level; doubled at every level below, up to max_channels
    max_channels: int = 256
    levels: int = 4  # halvings below the trunk resolution
    stride: int = 2  # the trunk runs at 1/stride of the picture's resolution
    style_dim: int = 64
    learning_rate: float = 2e-3
    plate_rate: float = 1.0  # learning rate of the plate itself, relative
    plate_frames: int = 96  # training frames that the plate is the median of
    flow_limit: float = 0.03  # largest offset into the plate, in picture widths
    region_weight: float = 2.0  # extra weight of the neck seam and the shoulder contour
    laplacian_weight: float = 1.0
    temporal_weight: float = 0.5
    alpha_weight: float = 0.05
    flow_weight: float = 0.02
    adversarial_weight: float = 0.0  # 0: no discriminator
    r1_weight: float = 1.0
    r1_every: int = 16
    save_seconds: float = 30.0  # between two saves of the resumable state
    seed: int = 0


def resolve(config: TorsoConfig, device: torch.device) -> TorsoConfig:
    """Fill the zeros: a large network and a long run on CUDA, one that trains in under a minute on a CPU.

    Raises TalkheadError for values that cannot work.
    """
    cuda = device.type == "cuda"
    config = dataclasses.replace(
        config,
        steps=config.steps or (2000 if cuda else 110),
        batch=config.batch or (8 if cuda else 4),
        channels=config.channels or (48 if cuda else 16),
    )
    if config.batch < 2 or config.batch % 2:
        raise TalkheadError(f"torso batch should be even and at least 2, found {config.batch}")
    for name in ("steps", "channels", "max_channels", "levels", "stride", "style_dim", "plate_frames", "r1_every"):
        if getattr(config, name) < 1:
            raise TalkheadError(f"torso {name} should be at least 1, found {getattr(config, name)}")
    return config
