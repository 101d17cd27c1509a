import pytest
import torch
from torch import Tensor

from shared.errors import TalkheadError
from shared.landmarks import MOTION_DIM
from stage1_audio2lmk.av_sync import WINDOW, Sync, sync_loss, sync_offset

AUDIO = 12


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pairs(count: int, frames: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Sound and lips of one speaker: both show the same three smooth motions, the lips a bend of them, each its noise."""
    fixed = seeded(99)
    to_audio, to_lips = torch.randn(3, AUDIO, generator=fixed), torch.randn(3, MOTION_DIM, generator=fixed)
    white = torch.randn(count, 3, frames + 4, generator=rng)
    smooth = (white.unfold(2, 5, 1) * torch.tensor([1.0, 2, 3, 2, 1])).sum(-1).mT / 19**0.5
    audio = smooth @ to_audio + 0.3 * torch.randn(count, frames, AUDIO, generator=rng)
    lips = 0.002 * (torch.tanh(smooth) @ to_lips + 0.3 * torch.randn(count, frames, MOTION_DIM, generator=rng))
    return audio, lips


def made(audio_size: int = AUDIO, **sizes: int) -> Sync:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Sync(audio_size, **sizes)


@pytest.fixture(scope="module")
def learned() -> Sync:
    sync, rng = made(hidden=32, size=16), seeded(1)
    optimizer = torch.optim.AdamW(sync.parameters(), 3e-3)
    for _ in range(200):
        audio, lips = pairs(6, 50, rng)
        loss = sync_loss(sync, audio, lips, torch.ones(6, 50))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return sync.requires_grad_(False)


@pytest.mark.parametrize("late", range(-3, 4))
def test_finds_how_late_the_lips_are(learned: Sync, late: int) -> None:
    audio, lips = pairs(4, 100, seeded(2))
    shift, scores = sync_offset(learned, audio[:, 10:-10], lips.roll(late, 1)[:, 10:-10], reach=8)
    assert shift.tolist() == [late] * 4
    assert scores.shape == (4, 17)
    others = torch.cat([scores[:, : late + 8 - 2], scores[:, late + 8 + 3 :]], 1)
    assert (scores[:, late + 8] > others.amax(1) + 0.2).all()


def test_speaks_of_new_clips_better_than_chance(learned: Sync) -> None:
    audio, lips = pairs(6, 50, seeded(3))
    weight = torch.ones(6, 50)
    inside = sync_loss(learned, audio, lips, weight, across=False)
    chance = torch.tensor(50.0 - WINDOW + 1).log()
    assert inside < 0.5 * chance
    assert inside < sync_loss(learned, audio, lips, weight) < sync_loss(learned, audio, lips.roll(3, 1), weight)


@pytest.mark.parametrize("late", [-2.0, -1.0, 1.0, 2.0])
def test_gradient_moves_lips_to_their_time(learned: Sync, late: float) -> None:
    audio, lips = pairs(4, 60, seeded(4))
    frequency = torch.fft.rfftfreq(60)[:, None]
    delay = torch.tensor(late, requires_grad=True)
    optimizer = torch.optim.Adam([delay], 0.1)
    for _ in range(60):
        moved = torch.fft.irfft(torch.fft.rfft(lips, dim=1) * torch.exp(-2j * torch.pi * frequency * delay), 60, dim=1)
        loss = sync_loss(learned, audio, moved, torch.ones(4, 60))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert abs(delay.item()) < 0.2


def test_gradient_of_free_lips_points_to_the_true_ones(learned: Sync) -> None:
    audio, lips = pairs(4, 60, seeded(5))
    late = lips.roll(2, 1).requires_grad_()
    sync_loss(learned, audio, late, torch.ones(4, 60)).backward()
    assert late.grad is not None
    wanted = (lips - late).detach()[:, 8:-8]
    assert torch.cosine_similarity(-late.grad[:, 8:-8].flatten(), wanted.flatten(), dim=0) > 0.1


@pytest.mark.parametrize("across", [True, False])
def test_frames_without_weight_have_no_influence(across: bool) -> None:
    sync = made()
    audio, lips = pairs(3, 40, seeded(6))
    weight = torch.ones(3, 40)
    weight[0, 12], weight[2, 30:] = 0, 0
    expected = sync_loss(sync, audio, lips, weight, across=across)
    curve = sync_offset(sync, audio, lips, 5, weight)[1]
    audio, lips = audio.clone(), lips.clone()
    audio[0, 12], lips[0, 12], audio[2, 30:], lips[2, 30:] = torch.nan, 7.0, 1e6, torch.nan
    lips.requires_grad_()
    found = sync_loss(sync, audio, lips, weight, across=across)
    assert torch.equal(found, expected)
    assert torch.equal(sync_offset(sync, audio, lips, 5, weight)[1], curve)
    found.backward()
    assert lips.grad is not None and lips.grad.isfinite().all()
    assert not lips.grad[2, 30:].any() and lips.grad[2, 29].any()
    assert torch.equal(sync_loss(sync, audio[1:2], lips[1:2], weight[1:2], across=True),
                       sync_loss(sync, audio[1:2], lips[1:2], weight[1:2], across=False))
    assert sync_loss(sync, audio, lips, torch.zeros(3, 40), across=across) == 0


@torch.no_grad()
def test_loss_equals_a_slow_reference() -> None:
    sync = made()
    audio, lips = pairs(2, 14, seeded(7))
    weight = torch.rand(2, 14, generator=seeded(8)) + 0.1
    found = sync_loss(sync, audio, lips, weight, across=False)
    total, shares = 0.0, 0.0
    for b in range(2):
        windows = range(14 - WINDOW + 1)
        hear = [sync.embed_audio(audio[b : b + 1, t : t + WINDOW])[0, 0] for t in windows]
        see = [sync.embed_lips(lips[b : b + 1, t : t + WINDOW])[0, 0] for t in windows]
        for t in windows:
            share = float(weight[b, t : t + WINDOW].min())
            forth = torch.stack([10 * hear[t] @ v for v in see]).log_softmax(0)[t]
            back = torch.stack([10 * a @ see[t] for a in hear]).log_softmax(0)[t]
            total, shares = total - share * float(forth + back) / 2, shares + share
    assert found.item() == pytest.approx(total / shares, rel=1e-5)


def test_finite_differences() -> None:
    sync = made(hidden=8, size=4).double()
    audio, lips = (x.double() for x in pairs(2, 12, seeded(9)))
    weight = torch.ones(2, 12, dtype=torch.float64)
    weight[1, 11] = 0
    millimetres = (1000 * lips).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, y, s: torch.func.functional_call(
        Score(sync), {"sync.log_sharpness": s}, (a, y / 1000, weight)),
        (audio.requires_grad_(), millimetres, sync.log_sharpness.detach().clone().requires_grad_()), fast_mode=True)


class Score(torch.nn.Module):
    """`sync_loss` as a module, so that a parameter can be replaced."""

    def __init__(self, sync: Sync) -> None:
        super().__init__()
        self.sync = sync

    def forward(self, audio: Tensor, lips: Tensor, weight: Tensor) -> Tensor:
        return sync_loss(self.sync, audio, lips, weight)


def test_bad_shapes_are_named() -> None:
    sync = made()
    audio, lips, weight = torch.zeros(2, 20, AUDIO), torch.zeros(2, 20, MOTION_DIM), torch.ones(2, 20)
    for a, y, w in ((audio[..., :5], lips, weight), (audio, lips[:, :19], weight), (audio, lips, weight[0]),
                    (audio[:, :8], lips[:, :8], weight[:, :8])):
        with pytest.raises(TalkheadError) as error:
            sync_loss(sync, a, y, w)
        assert str(error.value) == (f"sync needs audio (B, L, 12), lips (B, L, 111) and weight (B, L) with L >= 9, found "
                                    f"{tuple(a.shape)}, {tuple(y.shape)} and {tuple(w.shape)}")
    with pytest.raises(TalkheadError, match="^a reach below 12 fits 20 frames, found 12$"):
        sync_offset(sync, audio, lips, 12)
