"""Sound features -> displacement of lips and jaw: a kernel path that is solved, plus a causal transformer that corrects it.

Both hear log-mel; where there is an encoder, the kernel compares its embedding too, and the transformer hears the embedding
instead, which says less about the voice. Formants go to the transformer.
"""
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.landmarks import JAW, LIPS, N_LANDMARKS, SAMPLES_PER_FRAME
from stage1_audio2lmk.attention import Stack
from stage1_audio2lmk.config import Stage1Config
from stage1_audio2lmk.features import FEATURE_SIZE, FORMANT_SIZE, HOPS, MELS, features
from stage1_audio2lmk.kernel import SoundKernel, Table
from stage1_audio2lmk.speech_encoder import PAST, SpeechEncoder

MOVING = JAW + LIPS  # what sound tells; brows, eyes and nose stay with the neutral
STEM_PAST = 4  # frames of the past in the convolution that opens the transformer's path
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


class LandmarkModel(nn.Module):
    """Features (B, T, FEATURE_SIZE) -> displacement (B, T, 68, 3) metres from the speaker's neutral.

    Row t sees sound of frames up to t + look_ahead and no later. Before and after a recording there is silence. Speaker 0
    is "unknown".
    """

    mean: Tensor
    scale: Tensor
    basis: Tensor
    rest: Tensor
    silence: Tensor

    def __init__(self, config: Stage1Config, speakers: int, centres: int = 0) -> None:
        super().__init__()
        self.config = config
        dim = config.dim
        self.register_buffer("mean", torch.zeros(FEATURE_SIZE))
        self.register_buffer("scale", torch.ones(FEATURE_SIZE))
        self.register_buffer("basis", torch.zeros(config.components, len(MOVING) * 3))
        self.register_buffer("rest", torch.zeros(len(MOVING) * 3))
        self.register_buffer("silence", torch.from_numpy(features(np.zeros(SAMPLES_PER_FRAME, np.float32))[0]), persistent=False)
        self.encoder = SpeechEncoder(config.speech) if config.speech else None
        size = config.speech.size if config.speech else 0
        self.kernel = SoundKernel(centres, config.wide_past, config.look_ahead, size, ENCODER_SHARE)
        self.wide = nn.Linear(1, config.components)
        # an embedding has heard the look-ahead already
        inputs, ahead = (size + FORMANT_SIZE, 0) if size else (FEATURE_SIZE, config.look_ahead)
        self.stem = nn.Conv1d(inputs, dim, STEM_PAST + 1 + ahead)
        self.speaker = nn.Embedding(speakers + 1, dim)
        self.blocks = Stack(config.layers, dim, config.heads, config.window, config.dropout)
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, config.components)
        self._clear_wide(centres)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        nn.init.zeros_(self.speaker.weight)

    @property
    def reach_back(self) -> int:
        """Frames of past sound that can change a row."""
        config = self.config
        decoder = STEM_PAST + config.layers * (config.window - 1)
        speech = config.speech
        return max(config.wide_past, decoder + (PAST + speech.layers * (speech.window - 1) if speech else 0))

    @property
    def before(self) -> int:
        """Rows before the first one that `rows` needs."""
        return max(STEM_PAST, PAST, self.config.wide_past)

    @property
    def corrects(self) -> bool:
        """Has the transformer anything to say? One that training did not keep has a head of zeros."""
        return bool(self.head.weight.any() or self.head.bias.any())

    def pad(self, rows: Tensor) -> Tensor:
        """(B, T, FEATURE_SIZE) -> (B, before + T + look_ahead, FEATURE_SIZE), silence on both sides."""
        quiet = self.silence.expand(len(rows), 1, -1)
        return torch.cat([quiet.expand(-1, self.before, -1), rows, quiet.expand(-1, self.config.look_ahead, -1)], 1)

    def normalise(self, rows: Tensor) -> Tensor:
        """Raw features -> zero mean, unit scale over the training data; formants are dropped if the config says so."""
        x = (rows - self.mean) / self.scale
        if not self.config.formants:
            x = torch.cat([x[..., : HOPS * MELS], torch.zeros_like(x[..., HOPS * MELS :])], -1)
        return x

    def windows(self, padded: Tensor) -> Tensor:
        """Padded features (B, before + T + look_ahead, F) -> windows of log-mel that the kernel compares (B, T, taps, 80)."""
        return pooled(padded[:, self.before - self.config.wide_past :]).unfold(1, self.kernel.taps, 1).transpose(2, 3)

    def embed(self, padded: Tensor, memory: Memory | None = None) -> tuple[Tensor | None, Memory]:
        """Padded features -> embedding (B, T, size), or None without an encoder, and the memory with the encoder's part."""
        memory = memory or Memory()
        if self.encoder is None:
            return None, memory
        embedding, pasts = self.encoder(padded[:, self.before - PAST :], memory.encoder)
        return embedding, Memory(pasts, memory.decoder, memory.heard)

    def set_centres(self, windows: Tensor, embedding: Tensor | None = None) -> None:
        """Make windows (m, taps, 80) and embeddings (m, size) the centres of the kernel path, whose weights become 0."""
        self.kernel.set_centres(windows, embedding)
        self._clear_wide(len(windows))

    def _clear_wide(self, centres: int) -> None:
        self.wide.in_features = centres
        self.wide.weight = nn.Parameter(self.mean.new_zeros(self.config.components, centres))
        nn.init.zeros_(self.wide.bias)

    def correction(self, padded: Tensor, embedding: Tensor | None, speaker: Tensor,
                   memory: Memory | None = None) -> tuple[Tensor, Memory]:
        """What the transformer adds to the kernel path: padded features, embedding, speaker (B,) -> components (B, T, K)."""
        memory = memory or Memory()
        x = self.normalise(padded)
        if embedding is None:
            heard = x[:, self.before - STEM_PAST :]
        else:
            voice = x[:, self.before + self.config.look_ahead :, HOPS * MELS :]
            fresh = torch.cat([embedding, voice], -1)
            past = fresh.new_zeros(len(fresh), STEM_PAST, fresh.shape[-1]) if memory.heard is None else memory.heard
            heard = torch.cat([past, fresh], 1)
        hidden = F.gelu(self.stem(heard.transpose(1, 2))).transpose(1, 2) + self.speaker(speaker)[:, None]
        hidden, kept = self.blocks(hidden, memory.decoder)
        return self.head(self.norm(hidden)), Memory(memory.encoder, kept, None if embedding is None else heard[:, -STEM_PAST:])

    def rows(self, padded: Tensor, speaker: Tensor, memory: Memory | None = None, table: Table | None = None,
             correct: bool = True) -> tuple[Tensor, Memory]:
        """`forward` for padded features, which are a piece of something longer if `memory` comes from the piece before."""
        embedding, memory = self.embed(padded, memory)
        components = self.wide(self.kernel(self.windows(padded), embedding, table))
        if correct:
            added, memory = self.correction(padded, embedding, speaker, memory)
            components = components + added
        return self.expand(components), memory

    def expand(self, components: Tensor) -> Tensor:
        """(..., K) -> displacement (..., 68, 3) metres; points that sound does not tell about stay at 0."""
        moved = (self.rest + components @ self.basis).unflatten(-1, (len(MOVING), 3))
        out = moved.new_zeros(*moved.shape[:-2], N_LANDMARKS, 3)
        out[..., MOVING, :] = moved
        return out

    def forward(self, rows: Tensor, speaker: Tensor) -> Tensor:
        return self.rows(self.pad(rows), speaker)[0]
