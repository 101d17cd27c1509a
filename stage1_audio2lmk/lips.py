"""How far the lips of a displacement part, and moving them apart or together.

Displacement of the moving points (..., 37, 3) metres from the neutral, y up; gaps are changes of the neutral's.
"""

import torch
from torch import Tensor

from shared.landmarks import MOVING

INNER_UPPER, INNER_LOWER = ([MOVING.index(point) for point in points] for points in ((61, 62, 63), (67, 66, 65)))
UPPER = [MOVING.index(point) for point in (*range(49, 54), 61, 62, 63)]  # without the corners
LOWER = [MOVING.index(point) for point in (*range(55, 60), 65, 66, 67)]
WAY = torch.zeros(len(MOVING), 3)  # of each point for lips that part by 1, the upper one by a third of it
WAY[UPPER, 1], WAY[LOWER, 1] = 1 / 3, -2 / 3


def lip_gap(moved: Tensor) -> Tensor:
    """(..., 37, 3) -> change of the inner lips' opening (...), in the same unit."""
    height = moved[..., 1]
    return (height[..., INNER_UPPER] - height[..., INNER_LOWER]).mean(-1)


def widened(moved: Tensor, amount: Tensor) -> Tensor:
    """(..., 37, 3) with lips that are `amount` (...) further apart."""
    return moved + amount[..., None, None] * WAY.to(moved)


def uncrossed(moved: Tensor, closed: Tensor) -> Tensor:
    """(..., 37, 3) in which no gap is below that of `closed` lips: they touch and go no further."""
    return widened(moved, (closed - lip_gap(moved)).clamp_min(0))
