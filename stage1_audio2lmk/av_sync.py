"""Do the lips go with the sound? A joint space of short windows of both, learned by contrast: a loss and a metric.

The idea is SyncNet's (Chung and Zisserman, ACCV workshops 2016), the loss InfoNCE (van den Oord et al. 2018) in both
directions: a window of sound must find the lips of its own time among those of all other times, and the other way round.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.errors import TalkheadError
from shared.landmarks import MOTION_DIM

REACH = 4  # frames on each side of a window's middle
WINDOW = 2 * REACH + 1
HOTTEST = math.log(100)  # logarithm of the inverse temperature, above which training is unstable (Radford et al. 2021)


class Sync(nn.Module):
    """Audio rows (B, L, A) at 25 a second and lip and jaw displacements (B, L, 111) in metres -> unit vectors.

    Row t of an embedding is about frames t … t + 8, so there are L − 8: windows never reach over an end, which could
    otherwise be recognised from both sides. `mean` and `scale` of the audio are the caller's to set.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, audio_size: int, hidden: int = 64, size: int = 32) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(audio_size))
        self.register_buffer("scale", torch.ones(audio_size))
        self.audio, self.lips = _encoder(audio_size, hidden, size), _encoder(MOTION_DIM, hidden, size)
        self.log_sharpness = nn.Parameter(torch.tensor(math.log(10.0)))

    def embed_audio(self, audio: Tensor) -> Tensor:
        """(B, L, A) -> (B, L − 8, size)."""
        return F.normalize(self.audio(((audio - self.mean) / self.scale).mT).mT, dim=-1)

    def embed_lips(self, lips: Tensor) -> Tensor:
        """(B, L, 111) metres -> (B, L − 8, size)."""
        return F.normalize(self.lips(500 * lips.mT).mT, dim=-1)  # lips move by about 2 mm


def sync_loss(sync: Sync, audio: Tensor, lips: Tensor, weight: Tensor, *, across: bool = True) -> Tensor:
    """Audio (B, L, A), lips (B, L, 111), weight (B, L) ≥ 0 -> scalar: mean InfoNCE of windows, 0 if none is whole.

    A window weighs as much as its lightest frame, and one of weight 0 is no example for others either. Negatives are the
    other times of the clip, with `across` those of all clips too. Freeze `sync` to score predicted lips with it.
    """
    _check(sync, audio, lips, weight)
    known = (weight > 0)[..., None]
    sound, moved = sync.embed_audio(torch.where(known, audio, 0)), sync.embed_lips(torch.where(known, lips, 0))
    share = weight.unfold(1, WINDOW, 1).amin(-1)
    if across:
        sound, moved, share = (x.flatten(0, 1)[None] for x in (sound, moved, share))
    scores = sync.log_sharpness.clamp(max=HOTTEST).exp() * sound @ moved.mT
    void = share <= 0
    own = torch.eye(scores.shape[-1], dtype=torch.bool, device=scores.device)
    hidden = (void[:, :, None] | void[:, None, :]) & ~own  # each keeps its own score, so that no row is empty
    scores = scores.masked_fill(hidden, -torch.inf)
    right = scores.diagonal(dim1=1, dim2=2)
    missed = (scores.logsumexp(2) + scores.logsumexp(1)) / 2 - right
    return (missed * share).sum() / share.sum().clamp_min(1e-6)


@torch.no_grad()
def sync_offset(sync: Sync, audio: Tensor, lips: Tensor, reach: int = 15, weight: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Audio (B, L, A) and lips (B, L, 111) -> by how many frames the lips come late (B,), and scores (B, 2·reach + 1).

    The score of shift s, from −reach to reach, is the mean cosine of sound at t and lips at t + s over the windows that
    both have and whose frames have weight; the best is the highest. A clear winner also says how sure it is.
    """
    weight = torch.ones_like(audio[..., 0]) if weight is None else weight
    _check(sync, audio, lips, weight)
    if not 0 <= reach < audio.shape[1] - WINDOW + 1:
        raise TalkheadError(f"a reach below {audio.shape[1] - WINDOW + 1} fits {audio.shape[1]} frames, found {reach}")
    known = (weight > 0)[..., None]
    sound, moved = sync.embed_audio(torch.where(known, audio, 0)), sync.embed_lips(torch.where(known, lips, 0))
    whole = (weight.unfold(1, WINDOW, 1).amin(-1) > 0).to(sound)
    count = sound.shape[1]
    curve = []
    for s in range(-reach, reach + 1):
        now, then = slice(max(0, -s), count - max(0, s)), slice(max(0, s), count - max(0, -s))
        both = whole[:, now] * whole[:, then]
        curve.append(((sound[:, now] * moved[:, then]).sum(-1) * both).sum(1) / both.sum(1).clamp_min(1))
    scores = torch.stack(curve, 1)
    return scores.argmax(1) - reach, scores


def _encoder(inputs: int, hidden: int, size: int) -> nn.Sequential:
    """(B, inputs, L) -> (B, size, L − 2·REACH)."""
    half = REACH + 1
    return nn.Sequential(nn.Conv1d(inputs, hidden, half), nn.GELU(), nn.Conv1d(hidden, hidden, half), nn.GELU(),
                         nn.Conv1d(hidden, size, 1))


def _check(sync: Sync, audio: Tensor, lips: Tensor, weight: Tensor) -> None:
    size = sync.mean.numel()
    rows = tuple(audio.shape[:2])
    shapes = tuple(audio.shape), tuple(lips.shape), tuple(weight.shape)
    if audio.ndim != 3 or shapes != ((*rows, size), (*rows, MOTION_DIM), rows) or rows[1] < WINDOW:
        raise TalkheadError(f"sync needs audio (B, L, {size}), lips (B, L, {MOTION_DIM}) and weight (B, L) with L >= {WINDOW}, "
                            f"found {shapes[0]}, {shapes[1]} and {shapes[2]}")
