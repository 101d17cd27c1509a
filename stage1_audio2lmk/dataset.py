"""Clips -> rows of sound and displacement, cut into training windows with synthetic silence and masked spectra.

A row of sound is [features | embedding] (FEATURE_SIZE + size,): log-mel and formants, and what the speech encoder makes of them.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.signal import lfilter
from torch import Tensor

from shared.clip import Clip
from shared.errors import TalkheadError
from shared.landmarks import MOTION_DIM, MOVING, SAMPLES_PER_FRAME
from stage1_audio2lmk.audio.augment import coloured, shift_voices
from stage1_audio2lmk.audio.dc_blocker import DCBlocker
from stage1_audio2lmk.audio.device_front_end import change_on
from stage1_audio2lmk.audio.features import ENERGY_SCALE, FEATURE_SIZE, FORMANT_SIZE, HOPS, MELS, features
from stage1_audio2lmk.config import Stage1Config
from stage1_audio2lmk.encoders.base import Encoder

SILENCE_EDGE = 4  # frames on each side of an inserted silence that have no weight: lips are on their way there
SILENCE_LENGTHS = (15, 60)  # frames of an inserted silence, at least and below
SHORT = 20  # frames before the end of a window by which an inserted silence has begun
SILENCE_LEVELS = (0.0, 1e-4, 1e-3, 3e-3, 1e-2, 3e-2)  # amplitudes of the noise in synthetic silence, −80 to −30 dB
SOFTENING = 0.9  # pole of the filter that makes every other noise a rumble, as rooms have
SILENCE_SHARE = 1 / 3  # of the weight of all rows of speech, that all rows of synthetic silence have
VOICES = ((1.25, 1.15), (0.8, 0.87), (1.15, 0.87), (0.87, 1.15))  # factors on pitch and formants of augmented voices
VOICE_WEIGHT = 0.7  # of a row in one of them
BARE_VOICE_WEIGHT = 0.25  # the same without an encoder, where they cost more accuracy on the person's own voice
LEAST_FRAMES = 25
LEVEL_SPREAD = 0.5  # standard deviation of the drawn gain, natural logarithm of power (2 dB)
NOISE_FLOOR = -10.0  # natural logarithm of the least mel power that added noise has
INPUT_NOISE = 0.1  # standard deviation of the noise on every column, relative to the column's own

CPU = torch.device("cpu")
FeatureFn = Callable[[np.ndarray], np.ndarray]  # samples (640·T,) -> rows (T, FEATURE_SIZE + size)


@dataclass(frozen=True)
class Recording:
    """One clip's rows: features (T, FEATURE_SIZE + size), displacement (T, 111) metres, good (T,) bool, speaker ≥ 1.

    Frames from `val_start` on are the validation split.
    """

    name: str
    features: Tensor
    displacement: Tensor
    good: Tensor
    speaker: int
    val_start: int
    weight: float = 1.0  # of a row in the kernel regression
    cuts: tuple[int, ...] = ()  # frames at which a new shot begins


def make_feature_fn(encoder: Encoder | None, device: torch.device = CPU, voice: bool = True) -> FeatureFn:
    """The function that computes rows: features, then the encoder's embedding if there is an encoder. Spectra are made on
    `device`, formants on the CPU, or left at 0 without `voice`: they take most of the time.
    """
    def rows(samples: np.ndarray) -> np.ndarray:
        x = features(samples, device, voice)
        return x if encoder is None else np.concatenate([x, encoder.encode(samples, x)], 1, dtype=np.float32)

    return rows


def clip_samples(clip: Clip) -> np.ndarray:
    """A clip's sound, cut or filled with silence to exactly its frames: (640·T,)."""
    size = clip.info.frames * SAMPLES_PER_FRAME
    samples = clip.load_audio()[:size]
    return np.pad(samples, (0, size - len(samples)))


def load_recording(clip: Clip, speaker: int, config: Stage1Config, feature_fn: FeatureFn = features) -> Recording:
    """The train split of a clip; the last `val_share` share of its good frames is the validation split.

    Raises TalkheadError for a train split of next to no frames.
    """
    train = clip.split("train")
    if len(train) < LEAST_FRAMES:
        raise TalkheadError(f"{clip.root}: the train split holds {len(train)} good frames; at least {LEAST_FRAMES} are needed")
    count = clip.info.frames
    moved = (clip.load_landmarks() - clip.load_neutral())[:, MOVING].reshape(count, -1)
    good = np.zeros(count, bool)
    good[train] = True
    cuts = tuple(shot.start for shot in clip.info.shots)
    return Recording(clip.info.name, torch.from_numpy(feature_fn(DCBlocker().pass_through(clip_samples(clip)))),
                     torch.from_numpy(moved), torch.from_numpy(good), speaker, val_start(train, config), cuts=cuts)


def val_start(train: np.ndarray, config: Stage1Config) -> int:
    """Good frames (n,) of a train split -> the first of the validation split."""
    return int(train[int(len(train) * (1 - config.val_share))])


def augmented_voices(clip: Clip, recording: Recording, weight: float, feature_fn: FeatureFn = features,
                     device: torch.device = CPU) -> list[Recording]:
    """The recording of a clip in each of VOICES, made on `device`: the same lips to sound of shifted pitch and formants."""
    sounds = change_on(device, DCBlocker().pass_through(clip_samples(clip)), lambda sound: shift_voices(sound, VOICES))
    return [replace(recording, features=torch.from_numpy(feature_fn(sound)), weight=weight) for sound in sounds]


def synthetic_silence(count: int, rng: np.random.Generator, feature_fn: FeatureFn = features) -> Recording:
    """`count` rows of silence and of noise without speech at each of SILENCE_LEVELS, in which the face is at rest.

    White noise, noise through a one-pole filter, and pink and brown noise from 20 Hz, as microphones and rooms have.
    """
    pieces = []
    size = SAMPLES_PER_FRAME * -(-count // (4 * len(SILENCE_LEVELS)))
    for level in SILENCE_LEVELS:
        noise = rng.normal(size=(4, size))
        noise[1] = lfilter([(1 - SOFTENING**2) ** 0.5], [1, -SOFTENING], noise[1])
        for k, kind in ((2, "pink"), (3, "brown")):
            noise[k] = coloured(torch.from_numpy(noise[k]), kind).numpy()
            noise[k] /= noise[k].std()
        pieces += [level * kind for kind in noise]
    samples = np.concatenate(pieces).astype(np.float32)
    return Recording("silence", torch.from_numpy(feature_fn(samples))[:count],
                     torch.zeros(count, MOTION_DIM), torch.ones(count, dtype=torch.bool), 0, count)


def weighed(silence: Recording, speech: Iterable[Recording]) -> Recording:
    """Silence of as much weight as belongs to this speech, however little there is of it."""
    total = sum(r.weight * float(r.good[: r.val_start].sum()) for r in speech)
    return replace(silence, weight=SILENCE_SHARE * total / len(silence.features))


@dataclass
class Windows:
    """Draws batches of training windows from recordings; all randomness comes from the generator that is passed.

    A window has `left` rows before it and `ahead` rows after it. From the validation split nothing is drawn; there and before
    the start it is silent. Inside it the first frame of a shot has no weight, so that no velocity is learned across a cut.
    `silence` (n, F) begins with a row of digital silence. `scale` (FEATURE_SIZE,) is the features'.
    """

    recordings: list[Recording]
    config: Stage1Config
    silence: Tensor
    scale: Tensor
    left: int
    ahead: int

    def __post_init__(self) -> None:
        # windows start anywhere in a recording; those of all recordings are counted through
        self.stops = np.cumsum([max(1, r.val_start - self.config.length + 1) for r in self.recordings])

    def draw(self, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """rows (B, left + L + ahead, F), displacement (B, L, 111), weight (B, L), speaker (B,), on the CPU."""
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
        length, last = config.length, recording.val_start
        inside = slice(self.left, self.left + length)
        places = torch.arange(start - self.left, start + length + self.ahead)
        valid = (places >= 0) & (places < last)
        x = torch.where(valid[:, None], recording.features[places.clamp(0, last - 1)], self.silence[0])
        seen = places[inside].clamp(max=last - 1)
        y = recording.displacement[seen].clone()
        w = recording.good[seen].float() * (places[inside] < last)
        w[1:][torch.isin(seen[1:], torch.tensor(recording.cuts, dtype=torch.long))] = 0
        x = self._augment(x, rng)
        if float(torch.rand((), generator=rng)) < config.silence_share:
            a = int(torch.randint(0, max(1, length - SHORT), (), generator=rng))
            b = min(length, a + int(torch.randint(*SILENCE_LENGTHS, (), generator=rng)))
            offset = int(torch.randint(0, len(self.silence) - (b - a), (), generator=rng))
            x[inside][a:b] = self.silence[offset : offset + b - a]
            y[a:b] = 0
            w[a:b] = 1
            for edge in (a, b):
                w[max(0, edge - SILENCE_EDGE) : min(length, edge + SILENCE_EDGE)] = 0
        return x, y, w

    def _augment(self, x: Tensor, rng: torch.Generator) -> Tensor:
        """Louder or quieter, a hidden band, a little noise on every column; an embedding gets the noise alone."""
        config, (x, embedding) = self.config, x.split((FEATURE_SIZE, x.shape[1] - FEATURE_SIZE), 1)
        mels = x[:, : HOPS * MELS].unflatten(1, (HOPS, MELS))
        gain = float(torch.randn((), generator=rng)) * LEVEL_SPREAD
        mels += gain
        loudest = config.noise_db / 10 * np.log(10)
        floor = NOISE_FLOOR + float(torch.rand((), generator=rng)) * (loudest - NOISE_FLOOR)
        if float(torch.rand((), generator=rng)) < 0.5:
            mels.copy_(torch.logaddexp(mels, torch.full_like(mels, floor)))
        width = int(torch.randint(0, config.mask_bands + 1, (), generator=rng))
        low = int(torch.randint(0, MELS - width, (), generator=rng))
        mels[:, :, low : low + width] = mels.mean()
        energy = x[:, -FORMANT_SIZE:].unflatten(1, (-1, FORMANT_SIZE // 2))[:, :, -1]
        energy += gain * 10 / np.log(10) / ENERGY_SCALE
        x = x + INPUT_NOISE * self.scale * torch.randn(x.shape, generator=rng)
        if not embedding.shape[1]:
            return x
        noise = torch.randn(embedding.shape, generator=rng)
        return torch.cat([x, embedding + INPUT_NOISE * embedding.shape[1] ** -0.5 * noise], 1)
