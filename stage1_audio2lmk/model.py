"""The model of stage 1: kernel regression, a transformer that corrects it, and a share of a base model, added up.

Of the base's motion only that in the person's own principal components is taken: the rest is how other faces move. To sound
unlike the person's the kernel regression says next to nothing; there more of the base is taken, up to all of it.
"""

from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from shared.landmarks import MOVING, N_LANDMARKS
from stage1_audio2lmk.audio.features import FEATURE_SIZE, silence_row
from stage1_audio2lmk.config import Stage1Config
from stage1_audio2lmk.kernel import KernelRegressor, PreparedKernel
from stage1_audio2lmk.lips import uncrossed
from stage1_audio2lmk.transformer import KVCache, LandmarkTransformer

FAMILIAR = (0.77, 0.92)  # familiarity at which all of the prior is taken, and at which only its share is


@dataclass
class ModelState:
    """KV caches of a model's transformer and of its prior's, for the rows that come next, which use them up."""

    cache: KVCache = field(default_factory=list)
    prior: "ModelState | None" = None


class Prepared(NamedTuple):
    """What depends on weights alone, for many calls."""

    kernel: PreparedKernel
    prior: "tuple[Prepared, Tensor] | None"  # the prior's, and `KernelRegressor.projector` of the model's own kernel
    margins: tuple[int, int]  # `left` and `ahead` of the model


class _Part(Protocol):
    @property
    def left(self) -> int: ...

    @property
    def ahead(self) -> int: ...


class LandmarkModel(nn.Module):
    """Rows [features | embedding] -> displacement from the speaker's neutral = kernel + transformer + share · prior.

    `prior` is a base model, which knows the person as speaker 0, "unknown", and whose displacement is projected onto the
    kernel's principal components; a base has none. `share` is that for sound like the person's, see `share_for`. A transformer
    that training did not keep is None. Lips come no closer than `closed` (), metres beyond the neutral's gap. Row t depends on
    rows up to t + `ahead` and no later. Before and after a recording there is `silence` (FEATURE_SIZE + size,), the row of
    digital silence.
    """

    silence: Tensor
    closed: Tensor

    def __init__(self, kernel: KernelRegressor, transformer: LandmarkTransformer | None = None,
                 prior: "LandmarkModel | None" = None, share: float = 0.0) -> None:
        super().__init__()
        self.kernel, self.transformer, self.prior, self.share = kernel, transformer, prior, share if prior is not None else 0.0
        self.register_buffer("closed", torch.tensor(-1.0))  # no limit until `set_statistics` tells it
        self.register_buffer("silence", torch.zeros(FEATURE_SIZE + kernel.config.size))

    @property
    def size(self) -> int:
        """Width of the embedding, 0 for none."""
        return self.kernel.config.size

    @property
    def _parts(self) -> list[_Part]:
        return [part for part in (self.kernel, self.transformer, self.prior) if part is not None]

    @property
    def left(self) -> int:
        """Rows before the first that `rows` needs."""
        return max(part.left for part in self._parts)

    @property
    def ahead(self) -> int:
        """Rows after the last that `rows` needs."""
        return max(part.ahead for part in self._parts)

    @property
    def uses_formants(self) -> bool:
        """Only transformers do."""
        own = self.transformer is not None and self.transformer.config.formants
        return own or self.prior is not None and self.prior.uses_formants

    def pad(self, rows: Tensor) -> Tensor:
        """(B, T, FEATURE_SIZE + size) -> (B, left + T + ahead, FEATURE_SIZE + size) with silence on both sides."""
        quiet = self.silence.expand(len(rows), 1, -1)
        return torch.cat([quiet.expand(-1, self.left, -1), rows, quiet.expand(-1, self.ahead, -1)], 1)

    def cut(self, padded: Tensor, part: _Part, margins: tuple[int, int] | None = None) -> Tensor:
        """Padded rows -> those of them that a part needs; `margins` as in `Prepared`, where they are known."""
        left, ahead = margins or (self.left, self.ahead)
        return padded[:, left - part.left : padded.shape[1] - (ahead - part.ahead)]

    def prepare(self) -> Prepared:
        """What `rows` needs of the weights in every call."""
        prior = None if self.prior is None else (self.prior.prepare(), self.kernel.projector())
        return Prepared(self.kernel.prepare(), prior, (self.left, self.ahead))

    def motion(self, padded: Tensor, speaker: Tensor, state: ModelState | None = None,
               prepared: Prepared | None = None) -> tuple[Tensor, ModelState]:
        """Padded rows, speaker (B,) -> displacement of the moving points (B, T, 111) metres, the state for the next piece."""
        state, prepared = state or ModelState(), prepared or self.prepare()
        margins = prepared.margins
        (out, familiarity), after = self.kernel(self.cut(padded, self.kernel, margins), prepared.kernel), ModelState()
        if self.transformer is not None:
            added, after.cache = self.transformer(self.cut(padded, self.transformer, margins), speaker, state.cache)
            out = out + added
        if self.prior is not None and prepared.prior is not None:
            of_prior, projector = prepared.prior
            known, after.prior = self.prior.motion(self.cut(padded, self.prior, margins), torch.zeros_like(speaker), state.prior,
                                                   of_prior)
            out = out + self.share_for(familiarity) * (known @ projector)
        return self.uncrossed(out), after

    def uncrossed(self, motion: Tensor) -> Tensor:
        """Displacement (..., 111) metres whose lips are never closer than closed lips."""
        return uncrossed(motion.unflatten(-1, (len(MOVING), 3)), self.closed).flatten(-2)

    def share_for(self, familiarity: Tensor) -> Tensor:
        """Share of the prior's displacement that is taken, for a familiarity of any shape: `share` to 1."""
        strange, known = FAMILIAR
        return self.share + (1 - self.share) * ((known - familiarity) / (known - strange)).clamp(0, 1)

    def rows(self, padded: Tensor, speaker: Tensor, state: ModelState | None = None,
             prepared: Prepared | None = None) -> tuple[Tensor, ModelState]:
        """`motion`, as displacement of all points (B, T, 68, 3) metres."""
        moved, state = self.motion(padded, speaker, state, prepared)
        return expand(moved), state

    def forward(self, rows: Tensor, speaker: Tensor) -> Tensor:
        """A whole recording (B, T, FEATURE_SIZE + size), speaker (B,) -> displacement (B, T, 68, 3) metres."""
        return self.rows(self.pad(rows), speaker)[0]


def expand(motion: Tensor) -> Tensor:
    """Displacement of the moving points (..., 111) -> of all points (..., 68, 3); those that sound tells nothing about stay."""
    out = motion.new_zeros(*motion.shape[:-1], N_LANDMARKS, 3)
    out[..., MOVING, :] = motion.unflatten(-1, (len(MOVING), 3))
    return out


def new_model(config: Stage1Config, speakers: int, size: int = 0, transformer: bool = True) -> LandmarkModel:
    """A model without support points, for an embedding of `size` columns, 0 for none; a `transformer` in it adds nothing."""
    added = LandmarkTransformer(config.transformer(size, speakers)) if transformer else None
    model = LandmarkModel(KernelRegressor(config.kernel(size)), added)
    model.silence[:FEATURE_SIZE] = torch.from_numpy(silence_row(model.uses_formants).copy())
    return model


@torch.no_grad()
def motion_of(model: LandmarkModel, rows: Tensor, speaker: int) -> Tensor:
    """Rows (T, FEATURE_SIZE + size) of a whole recording -> displacement of the moving points (T, 111) metres, on the CPU."""
    device = model.silence.device
    padded = model.eval().pad(rows[None].to(device))
    return model.motion(padded, torch.tensor([speaker], device=device))[0][0].cpu()
