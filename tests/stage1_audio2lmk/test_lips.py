import torch

from shared.landmarks import LIPS, MOVING
from stage1_audio2lmk.lips import LOWER, UPPER, lip_gap, uncrossed, widened


def points(seed: int = 0) -> torch.Tensor:
    return 0.01 * torch.randn(2, 30, len(MOVING), 3, generator=torch.Generator().manual_seed(seed))


def test_lips_part_by_what_is_asked_and_nothing_else_moves() -> None:
    before, amount = points(), torch.linspace(-0.01, 0.01, 60).view(2, 30)
    after = widened(before, amount)
    torch.testing.assert_close(lip_gap(after), lip_gap(before) + amount)
    moved = (after - before).abs().amax((0, 1))
    assert not moved[:, [0, 2]].any() and set(moved[:, 1].nonzero()[:, 0].tolist()) == {*UPPER, *LOWER}
    assert {MOVING[k] for k in (*UPPER, *LOWER)} == set(LIPS) - {48, 54, 60, 64}


def test_lips_touch_and_go_no_further() -> None:
    before, closed = points(1), torch.tensor(-0.002)
    after, gap = uncrossed(before, closed), lip_gap(before)
    assert (gap < closed).any() and (gap > closed).any()
    torch.testing.assert_close(lip_gap(after), gap.clamp_min(-0.002))
    assert torch.equal(after[gap > closed], before[gap > closed])
