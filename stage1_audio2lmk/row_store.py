"""Many clips as rows on disk, read window by window: memory does not grow with the number of clips or their length.

Each clip has a folder named after its content, so that rows of an unchanged clip are found again. It holds, row by row,
`displacement.npy` (T, 111) in metres, `good.npy` (T,), and `voice0.npy` (T, FEATURE_SIZE) of the sound as it is; `voice1.npy`
and so on are of other voices that say the same.
"""

import dataclasses
import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from shared.clip import Clip
from shared.errors import TalkheadError
from shared.files import sha256, write_rows
from shared.landmarks import SAMPLES_PER_FRAME, save_array
from shared.training import generator
from stage1_audio2lmk.audio.augment import VoiceRanges, augment_voice, mask_features
from stage1_audio2lmk.audio.dc_blocker import DCBlocker
from stage1_audio2lmk.audio.features import FEATURE_SIZE, HOPS, MELS, FeatureStream
from stage1_audio2lmk.config import Stage1Config
from stage1_audio2lmk.dataset import Recording, Windows, clip_samples, load_recording
from stage1_audio2lmk.losses import point_weights
from stage1_audio2lmk.model import MOVING, LandmarkModel

RANGES = VoiceRanges(shift_share=1.0, gain_db=(-25.0, 5.0))
PIECE = 500  # frames, at least, that one made voice speaks before the next takes over
CHUNK = 4096  # rows that are read at once


@dataclass(frozen=True)
class ClipRows:
    """Where a clip's rows lie, and which of them teach (before `fit`) or judge (from `fit` to `stop`)."""

    name: str
    folder: Path
    speaker: int
    voices: int
    fit: int
    stop: int

    def recording(self, voice: int = 0) -> Recording:
        """The rows in one of the voices as tensors that are files: only rows that are looked at come into memory."""
        names = (f"voice{voice}", "displacement", "good")
        features, displacement, good = (torch.from_numpy(np.load(self.folder / f"{name}.npy", mmap_mode="c")) for name in names)
        return Recording(self.name, features, displacement, good > 0, self.speaker, self.fit)


def person(name: str) -> str:
    """Who speaks in the clip of that name: VOCASET's sentences say so, any other clip has a speaker of its own."""
    return re.sub(r"_sentence\d+$", "", name)


def fingerprint(clip: Clip, seed: int) -> str:
    """Hexadecimal digits that tell a clip's sound, landmarks, split and bad frames from all others. Raises TalkheadError."""
    info = clip.info
    bad = [dataclasses.astuple(stretch) for stretch in info.excluded]
    digest = hashlib.sha256(json.dumps([seed, info.name, info.frames, info.split, bad]).encode())
    for path in (clip.audio, clip.landmarks, clip.neutral):
        if not path.is_file():
            raise TalkheadError(f"{path} does not exist")
        digest.update(sha256(path).encode())
    return digest.hexdigest()[:15]


def prepare(clip: Clip, folder: Path, voices: int, config: Stage1Config) -> None:
    """Write a clip's rows in `voices` voices, unless they are there; `folder` is named by its fingerprint."""
    missing = [k for k in range(voices) if not (folder / f"voice{k}.npy").is_file()]
    if not missing and (folder / "good.npy").is_file():
        return
    recording = load_recording(clip, 0, config)
    samples = clip_samples(clip)
    for voice in missing:
        if voice == 0:
            save_array(folder / "voice0.npy", recording.features.numpy())
        else:
            _speak(samples, folder / f"voice{voice}.npy", generator(int(folder.name, 16) + voice))
    save_array(folder / "displacement.npy", recording.displacement.numpy())
    save_array(folder / "good.npy", recording.good.float().numpy())


def _speak(samples: np.ndarray, path: Path, rng: torch.Generator) -> None:
    """Samples (640·T,) -> feature rows in made voices, a piece at a time."""
    count = len(samples) // SAMPLES_PER_FRAME
    stream, gate = FeatureStream(), DCBlocker()
    cuts = np.linspace(0, count, max(1, count // PIECE) + 1).round().astype(int)
    sounds = (torch.from_numpy(samples[start * SAMPLES_PER_FRAME : stop * SAMPLES_PER_FRAME])
              for start, stop in zip(cuts, cuts[1:]))
    write_rows(path, "<f4", (count, FEATURE_SIZE),
               (stream.push(gate.pass_through(augment_voice(sound, RANGES, rng).numpy())) for sound in sounds))


def open_rows(clips: list[Clip], folders: list[Path], voices: int, config: Stage1Config) -> list[ClipRows]:
    """Prepared clips, speakers numbered from 1 in the order in which they come.

    A base model is for voices that it has never heard. So where `held_out` of the speakers is at least one, whole
    speakers, drawn from the seed, judge; with fewer the last `held_out` share of each clip does.
    """
    speakers = list(dict.fromkeys(person(clip.info.name) for clip in clips))
    order = torch.randperm(len(speakers), generator=generator(config.seed)).tolist()
    judges = {speakers[k] for k in order[: int(config.held_out * len(speakers))]}
    found = []
    for clip, folder in zip(clips, folders):
        name, train = clip.info.name, clip.split("train")
        stop = int(train[-1]) + 1
        fit = stop if judges else int(train[int(len(train) * (1 - config.held_out))])
        found.append(ClipRows(name, folder, speakers.index(person(name)) + 1, voices, 0 if person(name) in judges else fit, stop))
    return found


def set_statistics(model: LandmarkModel, clips: list[ClipRows]) -> None:
    """Feature mean and scale over all voices, rest and principal components of the displacement, as in `closed_form`.

    Of the rows that teach, from sums that are added up row by row.
    """
    heard, seen = Sums(FEATURE_SIZE, full=False), Sums(len(MOVING) * 3, full=True)
    for clip in clips:
        for voice in range(clip.voices):
            r = clip.recording(voice)
            for rows in torch.nonzero(r.good[: clip.fit])[:, 0].split(CHUNK):
                heard.add(r.features[rows])
                if voice == 0:
                    seen.add(r.displacement[rows])
    model.mean.copy_(heard.mean)
    model.scale.copy_(heard.variance.sqrt().clamp_min(0.05))
    weights = point_weights(model.config).sqrt().repeat_interleave(3).double()
    values, vectors = torch.linalg.eigh(seen.covariance * weights[:, None] * weights)
    keep = min(model.config.components, len(values))
    spread = values[-keep:].flip(0).clamp_min(0).sqrt()
    model.rest.copy_(seen.mean)
    model.basis[:keep].copy_(vectors[:, -keep:].flip(1).T * spread[:, None] / weights)


class Sums:
    """Mean, variance and, if `full`, covariance of rows (n, d) that come in pieces."""

    def __init__(self, size: int, full: bool) -> None:
        self.count, self.full = 0, full
        self.first = torch.zeros(size, dtype=torch.float64)
        self.second = torch.zeros(size, size if full else 1, dtype=torch.float64)

    def add(self, rows: Tensor) -> None:
        rows = rows.double()
        self.count += len(rows)
        self.first += rows.sum(0)
        self.second += rows.T @ rows if self.full else rows.square().sum(0)[:, None]

    @property
    def mean(self) -> Tensor:
        return self.first / self.count

    @property
    def variance(self) -> Tensor:
        """Unbiased, (d,)."""
        return (self.second[:, 0] - self.count * self.mean**2).clamp_min(0) / (self.count - 1)

    @property
    def covariance(self) -> Tensor:
        """Biased, (d, d)."""
        return self.second / self.count - self.mean[:, None] * self.mean


class ClipWindows:
    """Training windows of prepared clips. Window `index` of a step's batch depends on seed, step and index alone.

    So any process can make any part of a batch, and a training continues without knowing what was drawn before.
    """

    def __init__(self, clips: list[ClipRows], config: Stage1Config, silence: Tensor, scale: Tensor, before: int) -> None:
        self.clips = [clip for clip in clips if clip.fit]
        self.config, self.silence, self.scale, self.before = config, silence, scale, before
        # by the square root of their length: a long clip of one voice teaches less than several short ones
        self.places = torch.tensor([max(1.0, clip.fit - config.length + 1) ** 0.5 for clip in self.clips], dtype=torch.float64)

    def draw(self, step: int, indices: range) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What `dataset.Windows.draw` gives, of these windows of the batch, each with a few moments of sound hidden."""
        one, drawn = dataclasses.replace(self.config, batch=1), []
        for index in indices:
            rng = generator((self.config.seed * 1_000_003 + step) * self.config.batch + index)
            clip = self.clips[int(torch.multinomial(self.places, 1, generator=rng))]
            recording = clip.recording(int(torch.randint(clip.voices, (), generator=rng)))
            x, *rest = Windows([recording], one, self.silence, self.scale, self.before).draw(rng)
            mel, voice = x.split((HOPS * MELS, FEATURE_SIZE - HOPS * MELS), -1)
            hops = mask_features(mel.unflatten(-1, (HOPS, MELS)).flatten(1, 2), rng, longest=12, bands=0, fill=None)
            drawn.append((torch.cat([hops.unflatten(1, (-1, HOPS)).flatten(2), voice], -1), *rest))
        x, y, weight, speaker = (torch.cat(kind) for kind in zip(*drawn))
        return x, y, weight, speaker


def judging_windows(clips: list[ClipRows], config: Stage1Config, silence: Tensor, before: int,
                    most: int) -> tuple[Tensor, Tensor, Tensor]:
    """At most `most` windows, evenly over the rows that judge: features, displacement and weight as of `ClipWindows.draw`.

    Nothing is hidden or added, and windows hear what lies before and after them.
    """
    places = [(k, start) for k, clip in enumerate(clips) for start in range(clip.fit, clip.stop, config.length)]
    chosen = np.unique(np.linspace(0, len(places) - 1, min(most, len(places))).round().astype(int))
    found = []
    for k, start in (places[place] for place in chosen):
        r, stop = clips[k].recording(), clips[k].stop
        at = torch.arange(start - before, start + config.length + config.look_ahead)
        x = torch.where(((at >= 0) & (at < stop))[:, None], r.features[at.clamp(0, stop - 1)], silence[0])
        inside = at[before : before + config.length]
        seen = inside.clamp(max=stop - 1)
        found.append((x, r.displacement[seen], r.good[seen].float() * (inside < stop)))
    x, y, weight = (torch.stack(kind) for kind in zip(*found))
    return x, y, weight
