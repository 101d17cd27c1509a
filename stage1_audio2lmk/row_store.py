"""Many clips as rows on disk, read window by window: memory does not grow with the number of clips or their length.

Each clip has a folder named after its content, so that rows of an unchanged clip are found again. It holds, row by row,
`displacement.npy` (T, 111) in metres, `good.npy` (T,), and `voice0.npy` (T, FEATURE_SIZE + size) of the sound as it is, features
and the encoder's embedding; `voice1.npy` and so on are of augmented voices that say the same.
"""

import dataclasses
import functools
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
from shared.files import sha256
from shared.landmarks import SAMPLES_PER_FRAME, save_array
from shared.training import generator
from stage1_audio2lmk.audio.augment import VoiceRanges, augment_voice, mask_features
from stage1_audio2lmk.audio.dc_blocker import DCBlocker
from stage1_audio2lmk.audio.device_front_end import change_on
from stage1_audio2lmk.audio.features import FEATURE_SIZE, HOPS, MELS
from stage1_audio2lmk.config import Stage1Config
from stage1_audio2lmk.dataset import CPU, FeatureFn, Recording, Windows, clip_samples, load_recording, val_start

RANGES = VoiceRanges(shift_share=1.0, gain_db=(-25.0, 5.0))
LONGEST_HIDDEN = 3  # frames of sound that a training window may lack at a time
PIECE = 500  # frames, at least, that one augmented voice speaks before the next takes over


@dataclass(frozen=True)
class ClipRows:
    """Where a clip's rows lie: those before `val_start` are trained on, those from there to `stop` are the validation split."""

    name: str
    folder: Path
    speaker: int
    voices: int
    val_start: int
    stop: int
    cuts: tuple[int, ...] = ()  # frames at which a new shot begins

    def recording(self, voice: int = 0) -> Recording:
        """The rows in one of the voices as tensors that are files: only rows that are looked at come into memory."""
        names = (f"voice{voice}", "displacement", "good")
        features, displacement, good = (torch.from_numpy(np.load(self.folder / f"{name}.npy", mmap_mode="c")) for name in names)
        return Recording(self.name, features, displacement, good > 0, self.speaker, self.val_start, cuts=self.cuts)


def person(name: str) -> str:
    """Who speaks in the clip of that name: VOCASET's sentences say so, any other clip has a speaker of its own."""
    return re.sub(r"_sentence\d+$", "", name)


def fingerprint(clip: Clip, seed: int) -> str:
    """Hexadecimal digits that tell a clip's sound, landmarks, split, bad frames and shots from all others.

    Raises TalkheadError.
    """
    info = clip.info
    bad = [dataclasses.astuple(stretch) for stretch in info.excluded]
    cuts = [shot.start for shot in info.shots]
    digest = hashlib.sha256(json.dumps([seed, info.name, info.frames, info.split, bad, cuts]).encode())
    for path in (clip.audio, clip.landmarks, clip.neutral):
        if not path.is_file():
            raise TalkheadError(f"{path} does not exist")
        digest.update(sha256(path).encode())
    return digest.hexdigest()[:15]


def prepare(clip: Clip, folder: Path, voices: int, config: Stage1Config, feature_fn: FeatureFn,
            device: torch.device = CPU) -> None:
    """Write a clip's rows in `voices` voices, made on `device`, unless they are there; `folder` is named by its fingerprint."""
    missing = [k for k in range(voices) if not (folder / f"voice{k}.npy").is_file()]
    if not missing and (folder / "good.npy").is_file():
        return
    recording = load_recording(clip, 0, config, feature_fn)
    samples = clip_samples(clip)
    for voice in missing:
        rows = recording.features.numpy()
        if voice:
            change = functools.partial(_in_augmented_voices, seed=int(folder.name, 16) + voice)
            rows = feature_fn(DCBlocker().pass_through(change_on(device, samples, change)))
        save_array(folder / f"voice{voice}.npy", rows)
    save_array(folder / "displacement.npy", recording.displacement.numpy())
    save_array(folder / "good.npy", recording.good.float().numpy())


def _in_augmented_voices(samples: Tensor, seed: int) -> Tensor:
    """Samples (640·T,) -> the same speech (640·T,) in augmented voices, a piece at a time."""
    rng, count = generator(seed), len(samples) // SAMPLES_PER_FRAME
    cuts = np.linspace(0, count, max(1, count // PIECE) + 1).round().astype(int)
    pieces = samples[: count * SAMPLES_PER_FRAME].tensor_split((cuts[1:-1] * SAMPLES_PER_FRAME).tolist())
    return torch.cat([augment_voice(piece, RANGES, rng) for piece in pieces])


def open_rows(clips: list[Clip], folders: list[Path], voices: int, config: Stage1Config) -> list[ClipRows]:
    """Prepared clips, speakers numbered from 1 in the order in which they come.

    A base model is for voices that it was not trained on. So where `val_share` of the speakers is at least one, the validation
    split is of whole speakers, drawn from the seed; with fewer it is the last `val_share` share of each clip.
    """
    speakers = list(dict.fromkeys(person(clip.info.name) for clip in clips))
    order = torch.randperm(len(speakers), generator=generator(config.seed)).tolist()
    held_out = {speakers[k] for k in order[: int(config.val_share * len(speakers))]}
    found = []
    for clip, folder in zip(clips, folders):
        name, train = clip.info.name, clip.split("train")
        stop = int(train[-1]) + 1
        start = 0 if person(name) in held_out else stop if held_out else val_start(train, config)
        cuts = tuple(shot.start for shot in clip.info.shots)
        found.append(ClipRows(name, folder, speakers.index(person(name)) + 1, voices, start, stop, cuts))
    return found


class ClipWindows:
    """Training windows of prepared clips. Window `index` of a step's batch depends on seed, step and index alone.

    So any process can make any part of a batch, and a training continues without knowing what was drawn before. Other
    arguments as of `dataset.Windows`.
    """

    def __init__(self, clips: list[ClipRows], config: Stage1Config, silence: Tensor, scale: Tensor, left: int,
                 ahead: int) -> None:
        self.clips = [clip for clip in clips if clip.val_start]
        self.config, self.silence, self.scale, self.left, self.ahead = config, silence, scale, left, ahead
        # by the square root of their length: a long clip of one voice teaches less than several short ones
        self.weights = torch.tensor([max(1.0, clip.val_start - config.length + 1) ** 0.5 for clip in self.clips],
                                    dtype=torch.float64)

    def draw(self, step: int, indices: range) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What `dataset.Windows.draw` gives, of these windows of the batch, each with a few moments of sound hidden."""
        one, drawn = dataclasses.replace(self.config, batch=1), []
        for index in indices:
            rng = generator((self.config.seed * 1_000_003 + step) * self.config.batch + index)
            clip = self.clips[int(torch.multinomial(self.weights, 1, generator=rng))]
            recording = clip.recording(int(torch.randint(clip.voices, (), generator=rng)))
            x, *rest = Windows([recording], one, self.silence, self.scale, self.left, self.ahead).draw(rng)
            drawn.append((hide_moments(x, rng), *rest))
        x, y, weight, speaker = (torch.cat(kind) for kind in zip(*drawn))
        return x, y, weight, speaker


def hide_moments(rows: Tensor, rng: torch.Generator) -> Tensor:
    """Rows (B, T, FEATURE_SIZE + size) with the mean in place of a few hops of log-mel or, if there is one, of the embedding."""
    mel, formants, embedding = rows.split((HOPS * MELS, FEATURE_SIZE - HOPS * MELS, rows.shape[-1] - FEATURE_SIZE), -1)
    if embedding.shape[-1]:
        embedding = mask_features(embedding, rng, longest=LONGEST_HIDDEN, bands=0, fill=None)
    else:
        hops = mel.unflatten(-1, (HOPS, MELS)).flatten(1, 2)
        hops = mask_features(hops, rng, longest=HOPS * LONGEST_HIDDEN, bands=0, fill=None)
        mel = hops.unflatten(1, (-1, HOPS)).flatten(2)
    return torch.cat([mel, formants, embedding], -1)


def validation_windows(clips: list[ClipRows], config: Stage1Config, silence: Tensor, left: int, ahead: int,
                       most: int) -> tuple[Tensor, Tensor, Tensor]:
    """At most `most` windows, evenly over the validation splits: rows, displacement and weight as of `ClipWindows.draw`.

    Nothing is hidden or added, and windows include what lies before and after them.
    """
    places = [(k, start) for k, clip in enumerate(clips) for start in range(clip.val_start, clip.stop, config.length)]
    chosen = np.unique(np.linspace(0, len(places) - 1, min(most, len(places))).round().astype(int))
    found = []
    for k, start in (places[place] for place in chosen):
        r, stop = clips[k].recording(), clips[k].stop
        at = torch.arange(start - left, start + config.length + ahead)
        x = torch.where(((at >= 0) & (at < stop))[:, None], r.features[at.clamp(0, stop - 1)], silence[0])
        inside = at[left : left + config.length]
        seen = inside.clamp(max=stop - 1)
        found.append((x, r.displacement[seen], r.good[seen].float() * (inside < stop)))
    x, y, weight = (torch.stack(kind) for kind in zip(*found))
    return x, y, weight
