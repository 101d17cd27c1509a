"""Clips -> feature rows and displacement rows, cut into training windows with made silence and spectral masks.

What sound becomes rows by is `hear`: samples (640·T,) -> (T, F), the features and any columns after them.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from scipy.signal import lfilter
from torch import Tensor

from shared.clip import Clip
from shared.errors import TalkheadError
from shared.landmarks import SAMPLES_PER_FRAME
from stage1_audio2lmk.audio.augment import shift_voice
from stage1_audio2lmk.audio.dc_blocker import DCBlocker
from stage1_audio2lmk.audio.features import FEATURE_SIZE, FORMANT_SIZE, HOPS, MELS, features
from stage1_audio2lmk.config import Stage1Config
from stage1_audio2lmk.encoders.pretrained import Encoder, cached_rows
from stage1_audio2lmk.model import MOVING

EDGE = 4  # frames on each side of a made silence whose lips are left open to the network
QUIET_LEVELS = (0.0, 1e-4, 1e-3, 3e-3, 1e-2, 3e-2)  # amplitudes of the noise in made silence, −80 to −30 dB
SOFTENING = 0.9  # pole of the filter that makes every other noise a rumble, as rooms have
SILENCE_WEIGHT = 0.3  # of a row of made silence beside a row of speech
VOICES = ((1.25, 1.15), (0.8, 0.87), (1.15, 0.87), (0.87, 1.15))  # factors on pitch and formants of the voices besides one's own
VOICE_WEIGHT = 0.7  # of a row in one of them
BARE_VOICE_WEIGHT = 0.25  # the same without an encoder, where others cost more of the own voice
LEAST_FRAMES = 25

Hear = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Recording:
    """One clip's rows: features (T,F), displacement (T,37·3) metres, good (T,) bool, speaker ≥ 1, held-out start."""

    name: str
    features: Tensor
    displacement: Tensor
    good: Tensor
    speaker: int
    held_from: int
    weight: float = 1.0  # of a row in the kernel path's solution
    cuts: tuple[int, ...] = ()  # frames at which a new shot begins


def hearing(encoder: Encoder | None, folder: Path) -> Hear:
    """Features, and after them what an encoder makes of the sound, layer beside layer; if frozen, by way of files in `folder`."""
    def hear(samples: np.ndarray) -> np.ndarray:
        rows = features(samples)
        if encoder is None:
            return rows
        heard = encoder.encode(samples) if encoder.tuned else cached_rows(encoder, samples, folder)
        return np.concatenate([rows, heard.reshape(len(rows), -1)], 1, dtype=np.float32)

    return hear


def clip_samples(clip: Clip) -> np.ndarray:
    """A clip's sound, cut or filled with silence to exactly its frames: (640·T,)."""
    size = clip.info.frames * SAMPLES_PER_FRAME
    samples = clip.load_audio()[:size]
    return np.pad(samples, (0, size - len(samples)))


def load_recording(clip: Clip, speaker: int, config: Stage1Config, hear: Hear = features) -> Recording:
    """The train split of a clip; the last `held_out` share of its good frames is kept for choosing, not for fitting."""
    train = clip.split("train")
    if len(train) < LEAST_FRAMES:
        raise TalkheadError(f"{clip.root}: the train split holds {len(train)} good frames; at least {LEAST_FRAMES} are needed")
    count = clip.info.frames
    moved = (clip.load_landmarks() - clip.load_neutral())[:, MOVING].reshape(count, -1)
    good = np.zeros(count, bool)
    good[train] = True
    held = int(train[int(len(train) * (1 - config.held_out))])
    cuts = tuple(shot.start for shot in clip.info.shots)
    return Recording(clip.info.name, torch.from_numpy(hear(DCBlocker().pass_through(clip_samples(clip)))),
                     torch.from_numpy(moved), torch.from_numpy(good), speaker, held, cuts=cuts)


def in_other_voices(clip: Clip, recording: Recording, weight: float) -> list[Recording]:
    """The recording of a clip as other people would have said it, in each of VOICES: the same lips to other sound."""
    sound = torch.from_numpy(DCBlocker().pass_through(clip_samples(clip)))
    return [replace(recording, features=torch.from_numpy(features(shift_voice(sound, *voice).numpy())), weight=weight)
            for voice in VOICES]


def made_silence(count: int, rng: np.random.Generator, hear: Hear = features) -> Recording:
    """`count` rows of silence and of noise without speech at each of the quiet levels, in which the face is at rest."""
    pieces = []
    for level in QUIET_LEVELS:
        hiss = rng.normal(size=(2, SAMPLES_PER_FRAME * -(-count // (2 * len(QUIET_LEVELS)))))
        rumble = lfilter([(1 - SOFTENING**2) ** 0.5], [1, -SOFTENING], hiss[1])
        pieces += [level * hiss[0], level * rumble]
    samples = np.concatenate(pieces).astype(np.float32)
    return Recording("silence", torch.from_numpy(hear(samples))[:count],
                     torch.zeros(count, len(MOVING) * 3), torch.ones(count, dtype=torch.bool), 0, count, SILENCE_WEIGHT)


@dataclass
class Windows:
    """Draws batches of training windows from recordings; all randomness comes from the generator that is passed.

    Windows hear `before` frames of the past too. Nothing of the held-out tails is heard; there and before the start it is
    silent. `silence` (n, F) begins with a row of digital silence.
    """

    recordings: list[Recording]
    config: Stage1Config
    silence: Tensor
    scale: Tensor
    before: int

    def __post_init__(self) -> None:
        # windows start anywhere in a recording; those of all recordings are counted through
        self.stops = np.cumsum([max(1, r.held_from - self.config.length + 1) for r in self.recordings])

    def draw(self, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """features (B,before + L + look_ahead,F), displacement (B,L,111), weight (B,L), speaker (B,), on the CPU."""
        config = self.config
        rows = torch.randint(int(self.stops[-1]), (config.batch,), generator=rng).numpy()
        which = np.searchsorted(self.stops, rows, side="right")
        starts = rows - np.concatenate([[0], self.stops])[which]
        parts = [self._window(int(k), int(start), rng) for k, start in zip(which, starts)]
        x, y, w = (torch.stack([part[k] for part in parts]) for k in range(3))
        hidden = torch.rand(config.batch, generator=rng) < config.unknown_share
        speaker = torch.tensor([self.recordings[k].speaker for k in which])
        return x, y, w, torch.where(hidden, 0, speaker)

    def _window(self, which: int, start: int, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        config, recording = self.config, self.recordings[which]
        length, last = config.length, recording.held_from
        inside = slice(self.before, self.before + length)
        places = torch.arange(start - self.before, start + length + config.look_ahead)
        heard = (places >= 0) & (places < last)
        x = torch.where(heard[:, None], recording.features[places.clamp(0, last - 1)], self.silence[0])
        seen = places[inside].clamp(max=last - 1)
        y = recording.displacement[seen].clone()
        w = recording.good[seen].float() * (places[inside] < last)
        x = self._augment(x, rng)
        if float(torch.rand((), generator=rng)) < config.silence_share:
            a = int(torch.randint(0, max(1, length - 20), (), generator=rng))
            b = min(length, a + int(torch.randint(15, 60, (), generator=rng)))
            offset = int(torch.randint(0, len(self.silence) - (b - a), (), generator=rng))
            x[inside][a:b] = self.silence[offset : offset + b - a]
            y[a:b] = 0
            w[a:b] = 1
            for edge in (a, b):
                w[max(0, edge - EDGE) : min(length, edge + EDGE)] = 0
        return x, y, w

    def _augment(self, x: Tensor, rng: torch.Generator) -> Tensor:
        """Louder or quieter, a hidden band, a little noise on every feature; columns after the features stay."""
        config, (x, more) = self.config, x.split((FEATURE_SIZE, x.shape[1] - FEATURE_SIZE), 1)
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
        return torch.cat([x + 0.1 * self.scale * torch.randn(x.shape, generator=rng), more], 1)
