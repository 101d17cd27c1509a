"""Clips -> feature rows and displacement rows, cut into training windows with made silence and spectral masks."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from shared.clip import Clip
from shared.errors import TalkheadError
from shared.landmarks import SAMPLES_PER_FRAME
from stage1_audio2lmk.config import Stage1Config
from stage1_audio2lmk.features import FORMANT_SIZE, HOPS, MELS, features
from stage1_audio2lmk.model import MOVING

EDGE = 4  # frames on each side of a made silence whose lips are left open to the network
QUIET_LEVELS = (0.0, 1e-4, 1e-3)  # amplitudes of the noise in made silence
LEAST_FRAMES = 25


@dataclass(frozen=True)
class Recording:
    """One clip's rows: features (T,F), displacement (T,37·3) metres, good (T,) bool, speaker ≥ 1, held-out start."""

    name: str
    features: Tensor
    displacement: Tensor
    good: Tensor
    speaker: int
    held_from: int


def load_recording(clip: Clip, speaker: int, config: Stage1Config) -> Recording:
    """The train split of a clip; the last `held_out` share of its good frames is kept for choosing, not for fitting."""
    train = clip.split("train")
    if len(train) < LEAST_FRAMES:
        raise TalkheadError(f"{clip.root}: the train split holds {len(train)} good frames; at least {LEAST_FRAMES} are needed")
    count = clip.info.frames
    samples = clip.load_audio()
    samples = np.pad(samples, (0, max(0, count * SAMPLES_PER_FRAME - len(samples))))[: count * SAMPLES_PER_FRAME]
    moved = (clip.load_landmarks() - clip.load_neutral())[:, MOVING].reshape(count, -1)
    good = np.zeros(count, bool)
    good[train] = True
    held = int(train[int(len(train) * (1 - config.held_out))])
    return Recording(clip.info.name, torch.from_numpy(features(samples)), torch.from_numpy(moved),
                     torch.from_numpy(good), speaker, held)


def silence_features(count: int, rng: np.random.Generator) -> Tensor:
    """(count, F) features of near silence at each of the quiet levels in turn."""
    samples = np.concatenate([rng.normal(size=640 * (-(-count // len(QUIET_LEVELS)))) * level for level in QUIET_LEVELS])
    return torch.from_numpy(features(samples.astype(np.float32)))[:count]


@dataclass
class Windows:
    """Draws batches of training windows from recordings; all randomness comes from the generator that is passed."""

    recordings: list[Recording]
    config: Stage1Config
    silence: Tensor
    scale: Tensor

    def __post_init__(self) -> None:
        length = self.config.length
        self.places = [(k, t) for k, r in enumerate(self.recordings)
                       for t in range(0, max(1, r.held_from - length + 1))]

    def draw(self, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """features (B,L,F), displacement (B,L,111), weight (B,L), speaker (B,), on the CPU."""
        config = self.config
        rows = torch.randint(len(self.places), (config.batch,), generator=rng)
        parts = [self._window(*self.places[int(row)], rng) for row in rows]
        x, y, w = (torch.stack([part[k] for part in parts]) for k in range(3))
        hidden = torch.rand(config.batch, generator=rng) < config.unknown_share
        speaker = torch.tensor([self.recordings[self.places[int(row)][0]].speaker for row in rows])
        return x, y, w, torch.where(hidden, 0, speaker)

    def _window(self, which: int, start: int, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        config, recording = self.config, self.recordings[which]
        length = config.length
        stop = min(start + length, recording.held_from)
        x, y = recording.features[start:stop].clone(), recording.displacement[start:stop].clone()
        w = recording.good[start:stop].float()
        if stop - start < length:
            short = length - (stop - start)
            x, y, w = (torch.cat([a, a[-1:].expand(short, *a.shape[1:])]) for a in (x, y, w))
            w[-short:] = 0
        x = self._augment(x, rng)
        if float(torch.rand((), generator=rng)) < config.silence_share:
            a = int(torch.randint(0, length - 20, (), generator=rng))
            b = min(length, a + int(torch.randint(15, 60, (), generator=rng)))
            offset = int(torch.randint(0, len(self.silence) - (b - a), (), generator=rng))
            x[a:b] = self.silence[offset : offset + b - a]
            y[a:b] = 0
            w[a:b] = 1
            for edge in (a, b):
                w[max(0, edge - EDGE) : min(length, edge + EDGE)] = 0
        return x, y, w

    def _augment(self, x: Tensor, rng: torch.Generator) -> Tensor:
        """Louder or quieter, a hidden band, a little noise on every feature."""
        config = self.config
        mels = x[:, : HOPS * MELS].unflatten(1, (HOPS, MELS))
        gain = float(torch.randn((), generator=rng)) * 0.5  # natural logarithm of power
        mels += gain
        floor = -10.0 + float(torch.rand((), generator=rng)) * (config.noise_db / 10 * 2.3 + 10.0)
        if float(torch.rand((), generator=rng)) < 0.5:
            mels.copy_(torch.logaddexp(mels, torch.full_like(mels, floor)))
        width = int(torch.randint(0, config.mask_bands + 1, (), generator=rng))
        low = int(torch.randint(0, MELS - width, (), generator=rng))
        mels[:, :, low : low + width] = mels.mean()
        energy = x[:, -FORMANT_SIZE:].unflatten(1, (-1, FORMANT_SIZE // 2))[:, :, -1]
        energy += gain * 10 / np.log(10) / 30
        return x + 0.1 * self.scale * torch.randn(x.shape, generator=rng)
