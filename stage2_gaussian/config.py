"""Configuration of the Gaussian head."""

import dataclasses
from dataclasses import dataclass

import torch

from shared.errors import TalkheadError
from stage2_gaussian.deform import GROUPS


@dataclass(frozen=True)
class Stage2Config:
    """A zero in splats, moving, rank, steps or batch means: what suits the device and picture size (see `resolve`)."""

    splats: int = 0
    moving: int = 0  # splats with a basis of their own, those that feel the landmarks' motion most
    rank: int = 0  # coefficients of the low-rank blend
    hidden: int = 128  # width of the network that makes the coefficients
    pose_rank: int = 6  # coefficients of the light that changes as the head moves
    steps: int = 0
    batch: int = 0  # frames a step
    rate_position: float = 2e-4  # learning rates at the start; metres for positions
    rate_scale: float = 5e-3
    rate_rotation: float = 2e-3
    rate_opacity: float = 2e-2
    rate_color: float = 5e-3
    rate_basis: float = 1e-2
    rate_network: float = 1e-3
    rate_window: float = 2e-3
    rate_pose: float = 1e-4  # radians, and metres / 10
    rate_shading: float = 5e-3
    exposure_weight: float = 0.1
    rate_exposure: float = 1e-3
    fits: int = -1  # times that all poses are fitted to the pictures while training, and once after; -1: 3 on CUDA, else 1
    l2_weight: float = 20.0
    final_rate: float = 0.05  # all rates fall exponentially to this part of their start
    ssim_weight: float = 0.2
    gradient_weight: float = 0.5
    alpha_weight: float = 0.2
    pose_weight: float = 0.02  # keeps the refinement of training poses near zero
    mouth_emphasis: float = 4.0  # extra weight of pixels in the mouth box
    eye_emphasis: float = 2.0
    landmark_noise: float = 3e-4  # metres, added to landmarks while training
    held_out: float = 0.04  # part of the training frames that only tell when to stop
    save_seconds: float = 30.0  # between two saves of the resumable state
    seed: int = 0


def resolve(config: Stage2Config, device: torch.device, width: int, height: int) -> Stage2Config:
    """Fill the zeros: fine and long on CUDA, on a CPU what trains a 256 × 256 clip in about two minutes.

    Raises TalkheadError for values that cannot work.
    """
    cuda = device.type == "cuda"
    pixels = width * height / 512**2
    splats = config.splats or int(max(4000, min(60000, 35000 * pixels)))
    config = dataclasses.replace(
        config,
        splats=splats,
        moving=min(splats, config.moving or (splats // 4 if cuda else splats * 4 // 10)),
        rank=config.rank or (32 if cuda else 16),
        steps=config.steps or (4000 if cuda else 1500),
        fits=config.fits if config.fits >= 0 else (3 if cuda else 1),
        batch=config.batch or (8 if cuda else 1),
    )
    least = {"splats": 1, "moving": 1, "rank": len(GROUPS), "hidden": 1, "pose_rank": 1, "steps": 1, "batch": 1}
    for name, limit in least.items():
        if getattr(config, name) < limit:
            raise TalkheadError(f"stage 2 {name} should be at least {limit}, found {getattr(config, name)}")
    if not 0 <= config.held_out < 0.5:
        raise TalkheadError(f"stage 2 held_out should be a part between 0 and 0.5, found {config.held_out}")
    return config
