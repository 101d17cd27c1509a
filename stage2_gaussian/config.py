"""Configuration of the Gaussian head."""

import dataclasses
from dataclasses import dataclass

import torch

from shared.config import Settings, seed_setting, setting
from shared.errors import TalkheadError
from stage2_gaussian.blendshapes import GROUPS


@dataclass(frozen=True)
class Stage2Config(Settings):
    """A zero in splats, moving, rank, steps or batch means: what suits the device and picture size (see `resolve`)."""

    splats: int = setting(0, "Gaussians at the start; 0: by the picture's size", 0, 2_000_000)
    moving: int = setting(0, "splats with blendshapes, the eyes' and those that move most with the landmarks; 0: a share of all",
                          0, 2_000_000)
    rank: int = setting(0, "coefficients of the low-rank blendshapes; 0: 32 on CUDA, else 16", 0, 256)
    hidden: int = setting(128, "width of the networks from landmarks to coefficients", 1, 4096)
    pose_rank: int = setting(6, "coefficients of the pose-dependent shading", 1, 64)
    steps: int = setting(0, "optimiser steps; 0: 4000 on CUDA, else 1500", 0, 10_000_000)
    batch: int = setting(0, "frames a step; 0: 8 on CUDA, else 1", 0, 256)
    rate_position: float = setting(2e-4, "learning rate of the means, metres", 0, 1)
    rate_scale: float = setting(5e-3, "learning rate of scales", 0, 1)
    rate_rotation: float = setting(2e-3, "learning rate of rotations", 0, 1)
    rate_opacity: float = setting(2e-2, "learning rate of opacities", 0, 1)
    rate_color: float = setting(5e-3, "learning rate of colours", 0, 1)
    rate_basis: float = setting(1e-2, "learning rate of the blendshapes' basis", 0, 1)
    rate_network: float = setting(1e-3, "learning rate of the networks", 0, 1)
    rate_window: float = setting(2e-3, "learning rate of the landmarks' skinning windows", 0, 1)
    rate_pose: float = setting(1e-4, "learning rate of poses, radians, and metres / 10", 0, 1)
    falling_hair: bool = setting(True, "hair that falls below the jaw follows the shoulders, the further down the more")
    rate_follow: float = setting(2e-2, "learning rate of how much falling hair moves with the shoulders, logits", 0, 1)
    gaze: bool = setting(True, "the eyes look where the clip's gaze says; without a gaze.npy in the clip this does nothing")
    rate_shading: float = setting(5e-3, "learning rate of the shading's basis", 0, 1)
    exposure_weight: float = setting(0.1, "keeps the exposure of frames near that of all", 0, 1000)
    rate_exposure: float = setting(1e-3, "learning rate of the frames' exposure", 0, 1)
    fits: int = setting(-1, "refinements of all poses during training, besides one after it; 0: none at all; -1: 3 on CUDA, "
                        "else 1", -1, 50)
    l2_weight: float = setting(20.0, "of the squared error of pixels", 0, 1000)
    final_rate: float = setting(0.05, "all rates fall exponentially to this part of their start", 1e-6, 1)
    ssim_weight: float = setting(0.2, "of the structural similarity", 0, 1000)
    gradient_weight: float = setting(0.5, "of the error of differences of neighbouring pixels", 0, 1000)
    alpha_weight: float = setting(0.2, "of the error of opacity", 0, 1000)
    pose_weight: float = setting(0.02, "keeps the refinement of training poses near zero", 0, 1000)
    mouth_emphasis: float = setting(4.0, "extra weight of pixels in the mouth box", 0, 1000)
    eye_emphasis: float = setting(2.0, "extra weight of pixels in the boxes of the eyes", 0, 1000)
    landmark_noise: float = setting(3e-4, "metres, added to landmarks while training", 0, 0.05)
    recolored: float = setting(0.5, "share of the training frames that get a random background, where hair ends in the air", 0, 1)
    held_out: float = setting(0.04, "share of the training frames that are for validation, by which training stops", 0, 0.49)
    save_seconds: float = setting(30.0, "between two saves of the resumable state", 0, 86400)
    seed: int = seed_setting()

    def check(self) -> None:
        if 0 < self.rank < len(GROUPS):
            raise TalkheadError(f"rank should be 0 or at least {len(GROUPS)}, found {self.rank}")


def resolve(config: Stage2Config, device: torch.device, width: int, height: int) -> Stage2Config:
    """Fill the zeros: fine and long on CUDA, on a CPU what trains a 256 × 256 clip in about two minutes."""
    cuda = device.type == "cuda"
    pixels = width * height / 512**2
    splats = config.splats or int(max(4000, min(60000, 35000 * pixels)))
    return dataclasses.replace(
        config,
        splats=splats,
        moving=min(splats, config.moving or (splats // 4 if cuda else splats * 4 // 10)),
        rank=config.rank or (32 if cuda else 16),
        steps=config.steps or (4000 if cuda else 1500),
        fits=config.fits if config.fits >= 0 else (3 if cuda else 1),
        batch=config.batch or (8 if cuda else 1),
    )
