"""Configuration of the torso stage."""

import dataclasses
from dataclasses import dataclass

import torch

from shared.config import Settings, seed_setting, setting
from shared.errors import TalkheadError


@dataclass(frozen=True)
class TorsoConfig(Settings):
    """A zero in steps, batch or channels means: what suits the device (see `resolve`)."""

    steps: int = setting(0, "optimiser steps; 0: 2000 on CUDA, else 110", 0, 10_000_000)
    batch: int = setting(0, "frames a step, even: half of them with their successor; 0: 8 on CUDA, else 4", 0, 256)
    channels: int = setting(0, "of the finest trunk level; doubled at every level below, up to max_channels; 0: 24 on CUDA, "
                            "else 16", 0, 512)
    max_channels: int = setting(96, "of any trunk level", 1, 1024)
    levels: int = setting(4, "halvings below the trunk resolution", 1, 6)
    stride: int = setting(2, "the trunk runs at 1/stride of the picture's resolution", 1, 8)
    style_dim: int = setting(64, "size of the style code", 1, 1024)
    learning_rate: float = setting(2e-3, "of the network", 0, 1)
    plate_rate: float = setting(1.0, "learning rate of the plate itself, relative", 0, 100)
    plate_frames: int = setting(96, "training frames that the plate is the median of", 1, 2000)
    flow_limit: float = setting(0.03, "largest offset into the plate, in picture widths", 0, 1)
    region_weight: float = setting(2.0, "extra weight of the neck seam and the shoulder contour", 0, 1000)
    laplacian_weight: float = setting(1.0, "of the loss on differences of neighbouring pixels", 0, 1000)
    temporal_weight: float = setting(0.5, "of the loss on differences of neighbouring frames", 0, 1000)
    alpha_weight: float = setting(0.05, "of the loss on the torso's opacity", 0, 1000)
    flow_weight: float = setting(0.02, "of the loss that keeps offsets small", 0, 1000)
    adversarial_weight: float = setting(0.0, "of the discriminator's loss; 0: no discriminator", 0, 1000)
    r1_weight: float = setting(1.0, "of the discriminator's gradient penalty", 0, 1000)
    r1_every: int = setting(16, "steps between two gradient penalties", 1, 1_000_000)
    save_seconds: float = setting(30.0, "between two saves of the resumable state", 0, 86400)
    seed: int = seed_setting()

    def check(self) -> None:
        if self.batch % 2:
            raise TalkheadError(f"batch should be even, found {self.batch}")


def resolve(config: TorsoConfig, device: torch.device) -> TorsoConfig:
    """Fill the zeros: a larger network and a long run on CUDA, one that trains in under a minute on a CPU."""
    cuda = device.type == "cuda"
    return dataclasses.replace(
        config,
        steps=config.steps or (2000 if cuda else 110),
        batch=config.batch or (8 if cuda else 4),
        channels=config.channels or (24 if cuda else 16),
    )
