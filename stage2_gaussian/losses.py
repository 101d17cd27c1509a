"""Loss terms of the head's training."""

import torch
from torch import Tensor, nn

from shared.metrics import ssim_map
from stage2_gaussian.config import Stage2Config
from stage2_gaussian.dataset import inside

SSIM_STRIDE = 2  # pixels; SSIM's window is 11 pixels wide, so every second one suffices
REFINEMENT = 0.02  # about one degree, or 2 mm: the usual size of a pose refinement
NAMES = ("l1", "ssim", "gradient", "l2", "alpha")


def weighted_mean(values: Tensor, weights: Tensor) -> Tensor:
    """Mean of values (B, H, W, ...), weighted by weights (B, H, W)."""
    return (values.flatten(3).mean(-1) * weights).sum() / weights.sum()


def gradient_l1(difference: Tensor, weights: Tensor) -> Tensor:
    """Weighted L1 of the image gradients of `difference` (B, H, W, 3), over distances of one and of two pixels."""
    total = difference.new_zeros(())
    for stride in (1, 2):
        d, w = difference, weights
        across, down = d[:, :, stride:] - d[:, :, :-stride], d[:, stride:] - d[:, :-stride]
        total = total + weighted_mean(across.abs(), w[:, :, stride:]) + weighted_mean(down.abs(), w[:, stride:])
    return total


class PictureLoss(nn.Module):
    """Weighted loss terms of rendered pictures; a module without parameters, so that it can be captured in a CUDA graph."""

    def __init__(self, config: Stage2Config) -> None:
        super().__init__()
        self.config = config

    def forward(self, rgb: Tensor, alpha: Tensor, frames: Tensor, backdrop: Tensor, true_alpha: Tensor,
                alpha_valid: Tensor, boxes: Tensor) -> Tensor:
        """Premultiplied rgb (B, H, W, 3) and alpha (B, H, W, 1) against the fields of `FrameTensors` -> terms of NAMES (5,).

        Colour is compared after compositing over the backdrop; alpha is compared with the matte where that is valid. Pixels
        in the boxes (B, 3, 4) of mouth and eyes have larger weights.
        """
        config, (height, width) = self.config, alpha.shape[1:3]
        weights = torch.ones_like(alpha[..., 0])
        for k, emphasis in enumerate((config.mouth_emphasis, config.eye_emphasis, config.eye_emphasis)):
            weights = weights + emphasis * inside(boxes[:, k], width, height)
        truth = frames.float() / 255
        shown = rgb + (1 - alpha) * (backdrop.float() / 255)
        difference = shown - truth
        similarity = ssim_map(shown.movedim(-1, 1), truth.movedim(-1, 1), SSIM_STRIDE).movedim(1, -1)
        wrong_alpha = (alpha[..., 0] - true_alpha.float() / 255).abs() * alpha_valid
        return torch.stack([
            (1 - config.ssim_weight) * weighted_mean(difference.abs(), weights),
            config.ssim_weight * weighted_mean(1 - similarity, weights[:, ::SSIM_STRIDE, ::SSIM_STRIDE]),
            config.gradient_weight * gradient_l1(difference, weights),
            config.l2_weight * weighted_mean(difference.square(), weights),
            config.alpha_weight * wrong_alpha.mean(),
        ])


def pose_prior(refinement: Tensor) -> Tensor:
    """Mean square of pose refinements (B, 6), radians and tenths of metres, in units of REFINEMENT."""
    return (refinement / REFINEMENT).square().mean()
