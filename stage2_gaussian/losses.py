"""What training minimises."""

from torch import Tensor

from shared.metrics import ssim_map
from stage2_gaussian.dataset import Batch


def over(rgba: Tensor, behind: Tensor) -> Tensor:
    """Premultiplied RGBA (B, H, W, 4) over pictures (B, H, W, 3)."""
    return rgba[..., :3] + (1 - rgba[..., 3:]) * behind


def weighted_mean(values: Tensor, weights: Tensor) -> Tensor:
    """Mean of (B, H, W, ...) under weights (B, H, W)."""
    return (values.flatten(3).mean(-1) * weights).sum() / weights.sum()


def gradient_l1(difference: Tensor, weights: Tensor) -> Tensor:
    """L1 of the horizontal and vertical steps of `difference` (B, H, W, 3), at full and at half resolution: edges."""
    total = difference.new_zeros(())
    for stride in (1, 2):
        d, w = difference, weights
        across, down = d[:, :, stride:] - d[:, :, :-stride], d[:, stride:] - d[:, :-stride]
        total = total + weighted_mean(across.abs(), w[:, :, stride:]) + weighted_mean(down.abs(), w[:, stride:])
    return total


def picture_losses(rgba: Tensor, batch: Batch, *, ssim_weight: float, gradient_weight: float,
                   alpha_weight: float) -> dict[str, Tensor]:
    """Rendered RGBA (B, H, W, 4) against a batch -> named terms; their sum is the loss.

    Colour is compared after compositing; alpha itself is held to the labels, and to the matte along the hair.
    """
    shown = over(rgba, batch.behind)
    difference = shown - batch.frames
    similarity = ssim_map(shown.movedim(-1, 1), batch.frames.movedim(-1, 1)).movedim(1, -1)
    wrong_alpha = (rgba[..., 3] - batch.alpha).abs() * batch.sure
    return {
        "l1": (1 - ssim_weight) * weighted_mean(difference.abs(), batch.weights),
        "ssim": ssim_weight * weighted_mean(1 - similarity, batch.weights),
        "gradient": gradient_weight * gradient_l1(difference, batch.weights),
        "alpha": alpha_weight * wrong_alpha.mean(),
    }


def pose_prior(refinement: Tensor) -> Tensor:
    """Mean square of pose refinements (B, 6), radians and tenths of metres, in units of one degree and 2 mm."""
    return (refinement / 0.02).square().mean()
