"""Sound features -> displacement of lips and jaw: a kernel path that is solved, plus a causal transformer that corrects it.

Both hear log-mel; where there is an encoder, the kernel compares its embedding too, and the transformer hears the embedding
instead, which says less about the voice. Formants go to the transformer.

The encoder is part of the model (`speech_encoder`) or not (`encoders`). What one hears that is not comes with the features,
in columns after theirs, layer beside layer. Two maps make embeddings of it: the kernel's is solved before the kernel path and
stays, over layers that are never tuned; the transformer's starts from the same and learns.
"""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.landmarks import JAW, LIPS, N_LANDMARKS, SAMPLES_PER_FRAME
from stage1_audio2lmk.audio.features import FEATURE_SIZE, FORMANT_SIZE, HOPS, MELS, features
from stage1_audio2lmk.config import Stage1Config
from stage1_audio2lmk.encoders.pretrained import LayerMix
from stage1_audio2lmk.encoders.speech_encoder import LEFT_CONTEXT, SpeechEncoder
from stage1_audio2lmk.kernel import SoundKernel, Table
from stage1_audio2lmk.transformer import Transformer

MOVING = JAW + LIPS  # what sound tells; brows, eyes and nose stay with the neutral
STEM_CONTEXT = 4  # frames of the past in the convolution that opens the transformer's path
ENCODER_SHARE = 1.0  # of the embedding in the kernel


def pooled(rows: Tensor) -> Tensor:
    """(..., FEATURE_SIZE) -> (..., 80): the frame's mean log-mel, for the kernel path; formants made it worse there."""
    return rows[..., : HOPS * MELS].unflatten(-1, (HOPS, MELS)).mean(-2)


@dataclass
class Memory:
    """What rows need of those before them: keys and values of each block, and the last rows that the convolution hears."""

    encoder: list[Tensor] = field(default_factory=list)
    decoder: list[Tensor] = field(default_factory=list)
    heard: Tensor | None = None

    def detached(self) -> "Memory":
        """The same without being views of longer tensors."""
        return Memory([past.clone() for past in self.encoder], [past.clone() for past in self.decoder],
                      None if self.heard is None else self.heard.clone())


class Prepared(NamedTuple):
    """What depends on the kernel path's centres and weights alone, for many calls."""

    table: Table
    linear: Tensor  # (taps·80, K), what the kernel's linear part says


class LandmarkModel(nn.Module):
    """Features (B, T, FEATURE_SIZE) -> displacement (B, T, 68, 3) metres from the speaker's neutral.

    Row t sees rows up to t + look_ahead and no later. Before and after a recording there is silence. Speaker 0 is "unknown".
    `heard`: number and width of the layers of an encoder outside, whose rows then follow the features' columns
    (B, T, FEATURE_SIZE + layers·width). `card` says what the model hears with.
    """

    mean: Tensor
    scale: Tensor
    basis: Tensor
    rest: Tensor
    silence: Tensor

    def __init__(self, config: Stage1Config, speakers: int, centres: int = 0, heard: tuple[int, int] | None = None) -> None:
        super().__init__()
        self.config, self.heard = config, heard
        self.card: str | dict[str, Any] = "log-mel + formants" if config.speech is None else "log-mel, speech encoder + formants"
        dim = config.dim
        self.register_buffer("mean", torch.zeros(FEATURE_SIZE))
        self.register_buffer("scale", torch.ones(FEATURE_SIZE))
        self.register_buffer("basis", torch.zeros(config.components, len(MOVING) * 3))
        self.register_buffer("rest", torch.zeros(len(MOVING) * 3))
        with torch.device("cpu"):  # computed for good, also in a module that is made without memory
            silence = torch.from_numpy(features(np.zeros(SAMPLES_PER_FRAME, np.float32))[0])
        self.register_buffer("silence", silence, persistent=False)
        self.encoder = SpeechEncoder(config.speech) if config.speech else None
        size = config.speech.size if config.speech else config.encoder_size if heard else 0
        self.kernel_mix = LayerMix(heard[0] - config.encoder_tune, heard[1], size).requires_grad_(False) if heard else None
        self.mix = LayerMix(*heard, size) if heard else None
        self.kernel = SoundKernel(centres, config.kernel_past, config.look_ahead, size, ENCODER_SHARE)
        self.kernel_head = nn.Linear(1, config.components)
        # an embedding has heard the look-ahead already
        inputs, ahead = (size + FORMANT_SIZE, 0) if size else (FEATURE_SIZE, config.look_ahead)
        self.stem = nn.Conv1d(inputs, dim, STEM_CONTEXT + 1 + ahead)
        self.speaker = nn.Embedding(speakers + 1, dim)
        self.blocks = Transformer(config.layers, dim, config.heads, config.window, config.dropout)
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, config.components)
        self._clear_kernel_head(centres)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        nn.init.zeros_(self.speaker.weight)

    @property
    def reach_back(self) -> int:
        """Frames of past sound that can change a row."""
        config = self.config
        decoder = STEM_CONTEXT + config.layers * (config.window - 1)
        speech = config.speech
        encoder = LEFT_CONTEXT + speech.layers * (speech.window - 1) if speech else 0
        if self.heard:
            encoder = config.encoder_context + config.encoder_block  # and less than a frame that convolutions hear
        return max(config.kernel_past, decoder + encoder)

    @property
    def before(self) -> int:
        """Rows before the first one that `rows` needs."""
        return max(STEM_CONTEXT, LEFT_CONTEXT, self.config.kernel_past)

    @property
    def corrects(self) -> bool:
        """Has the transformer anything to say? One that training did not keep has a head of zeros."""
        return bool(self.head.weight.any() or self.head.bias.any())

    @property
    def hears_formants(self) -> bool:
        """Only the transformer does."""
        return self.config.formants and self.corrects

    def pad(self, rows: Tensor) -> Tensor:
        """(B, T, F) -> (B, before + T + look_ahead, F), silence on both sides; no row hears an encoder's columns there."""
        quiet = F.pad(self.silence, (0, rows.shape[-1] - FEATURE_SIZE)).expand(len(rows), 1, -1)
        return torch.cat([quiet.expand(-1, self.before, -1), rows, quiet.expand(-1, self.config.look_ahead, -1)], 1)

    def normalise(self, rows: Tensor) -> Tensor:
        """Raw features -> zero mean, unit scale over the training data; formants are dropped if the config says so."""
        x = (rows[..., :FEATURE_SIZE] - self.mean) / self.scale
        if not self.config.formants:
            x = torch.cat([x[..., : HOPS * MELS], torch.zeros_like(x[..., HOPS * MELS :])], -1)
        return x

    def windows(self, padded: Tensor) -> Tensor:
        """Padded features (B, before + T + look_ahead, F) -> windows of log-mel that the kernel compares (B, T, taps, 80)."""
        return pooled(padded[:, self.before - self.config.kernel_past :]).unfold(1, self.kernel.taps, 1).transpose(2, 3)

    def embed(self, padded: Tensor, memory: Memory | None = None) -> tuple[Tensor | None, Memory]:
        """Padded features -> embedding (B, T, size), or None without an encoder, and the memory with the encoder's part."""
        memory = memory or Memory()
        if self.kernel_mix is not None:
            return self.kernel_mix(self.outside(padded)[..., : len(self.kernel_mix.weights), :]), memory
        if self.encoder is None:
            return None, memory
        embedding, pasts = self.encoder(padded[:, self.before - LEFT_CONTEXT :], memory.encoder)
        return embedding, Memory(pasts, memory.decoder, memory.heard)

    def outside(self, padded: Tensor) -> Tensor:
        """Padded features -> what the encoder outside made of the rows themselves (B, T, layers, width)."""
        assert self.heard is not None
        return padded[:, self.before : padded.shape[1] - self.config.look_ahead, FEATURE_SIZE:].unflatten(-1, self.heard)

    def whiten(self, rows: Tensor, both: bool) -> None:
        """Solve the kernel's map of an encoder's layers on rows (n, F) of the training data; `both`: the transformer's too."""
        assert self.heard is not None and self.kernel_mix is not None and self.mix is not None
        self.kernel_mix.whiten(rows[:, FEATURE_SIZE:].unflatten(-1, self.heard)[:, : len(self.kernel_mix.weights)])
        if both:
            self.mix.linear.load_state_dict(self.kernel_mix.linear.state_dict())

    def set_centres(self, windows: Tensor, embedding: Tensor | None = None) -> None:
        """Make windows (m, taps, 80) and embeddings (m, size) the centres of the kernel path, whose weights become 0."""
        self.kernel.set_centres(windows, embedding)
        self._clear_kernel_head(len(windows))

    def _clear_kernel_head(self, centres: int) -> None:
        self.kernel_head.in_features = centres
        self.kernel_head.weight = nn.Parameter(self.mean.new_zeros(self.config.components, centres))
        nn.init.zeros_(self.kernel_head.bias)

    def correction(self, padded: Tensor, embedding: Tensor | None, speaker: Tensor,
                   memory: Memory | None = None) -> tuple[Tensor, Memory]:
        """What the transformer adds to the kernel path: padded features, embedding, speaker (B,) -> components (B, T, K).

        Of an encoder outside it hears its own embedding, not the kernel's.
        """
        memory = memory or Memory()
        x = self.normalise(padded)
        if self.mix is not None:
            embedding = self.mix(self.outside(padded))
        if embedding is None:
            heard = x[:, self.before - STEM_CONTEXT :]
        else:
            voice = x[:, self.before + self.config.look_ahead :, HOPS * MELS :]
            fresh = torch.cat([embedding, voice], -1)
            past = fresh.new_zeros(len(fresh), STEM_CONTEXT, fresh.shape[-1]) if memory.heard is None else memory.heard
            heard = torch.cat([past, fresh], 1)
        hidden = F.gelu(self.stem(heard.transpose(1, 2))).transpose(1, 2) + self.speaker(speaker)[:, None]
        hidden, kept = self.blocks(hidden, memory.decoder)
        return self.head(self.norm(hidden)), Memory(memory.encoder, kept, None if embedding is None else heard[:, -STEM_CONTEXT:])

    def rows(self, padded: Tensor, speaker: Tensor, memory: Memory | None = None, prepared: Prepared | None = None,
             correct: bool = True) -> tuple[Tensor, Memory]:
        """`forward` for padded features, which are a piece of something longer if `memory` comes from the piece before."""
        embedding, memory = self.embed(padded, memory)
        prepared = self.prepare() if prepared is None else prepared
        near = self.kernel.weighted(self.windows(padded), embedding, self.kernel_head.weight, *prepared)
        components = near + self.kernel_head.bias
        if correct:
            added, memory = self.correction(padded, embedding, speaker, memory)
            components = components + added
        return self.expand(components), memory

    def prepare(self) -> Prepared:
        """What `rows` needs of the centres in every call."""
        table = self.kernel.table()
        return Prepared(table, table.mel @ self.kernel_head.weight.T)

    def expand(self, components: Tensor) -> Tensor:
        """(..., K) -> displacement (..., 68, 3) metres; points that sound does not tell about stay at 0."""
        moved = (self.rest + components @ self.basis).unflatten(-1, (len(MOVING), 3))
        out = moved.new_zeros(*moved.shape[:-2], N_LANDMARKS, 3)
        out[..., MOVING, :] = moved
        return out

    def forward(self, rows: Tensor, speaker: Tensor) -> Tensor:
        return self.rows(self.pad(rows), speaker)[0]
