"""Training of the default encoder: distillation of Whisper encoders, which hear more than it is wide and costs.

Run it with `python -m stage1_audio2lmk.encoders.train_speech_encoder --help`.

Real recordings are heard in made voices besides their own, all of them in several rooms, noises, bands and loudnesses, with
hidden times and bands; from the embedding a linear readout tells what the teachers (`teacher`) make of the clean sound. At the
end readout and principal components of what it tells are folded into the encoder's last layer.
"""

import json
import math
import os
import shutil
import time
import wave
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch import Tensor, nn

from shared.checkpoint import load_checkpoint, save_checkpoint
from shared.config import Settings, config_to_dict, seed_setting, setting
from shared.errors import TalkheadError
from shared.files import read_json, refuse_inputs
from shared.landmarks import FPS, SAMPLE_RATE, SAMPLES_PER_FRAME
from shared.media.audio_io import load_audio
from shared.options import FiniteFloat
from shared.progress import progress
from shared.resume import Saved, TrainState, training_of
from shared.training import TensorBoard, cpu_threads, ema_update, generator, pick_device
from stage1_audio2lmk.audio.augment import mask_features, shift_voice
from stage1_audio2lmk.audio.features import FFT, HOP, HOPS, WINDOW, mel_of, power_spectrum
from stage1_audio2lmk.encoders.speech_encoder import LEFT_CONTEXT, SpeechEncoder, SpeechEncoderConfig, save_speech_encoder
from stage1_audio2lmk.encoders.teacher import AHEAD, Teacher, by_length, parse_teacher, targets_of

REAL, TALKERS, SYNTHETIC = GROUPS = ("real", "talkers", "synthetic")
ENDINGS = (".flac", ".wav", ".mp3", ".m4a", ".ogg", ".opus")
LONGEST = 30 * FPS  # frames of a piece of a recording
SHORTEST = FPS
VOICES = ((1.2, 1.12), (0.83, 0.9), (1.12, 0.88), (0.9, 1.15))  # factors on pitch and formants of made voices
VOICE_FRAMES = 60 * FPS  # whose made voices are computed at once
SAMPLE = 150  # recordings of a group from which principal components and means are taken
TARGETS = "rows"  # folder beside the state
AFTER = (FFT - WINDOW) // 2  # samples after a frame under the padding of the transform's window, never heard
BEFORE = FFT - HOP - AFTER  # samples before it
TEACHERS = ("openai/whisper-tiny:2", "openai/whisper-base:3")
THREADS = 6  # of the CPU: several trainings on one machine with one thread a core each slow each other down tenfold
DECAY = 0.999  # of the averaged weights


@dataclass(frozen=True)
class SpeechTraining(Settings):
    """How the encoder is trained."""

    steps: int = setting(6000, "optimiser steps", 1, 10_000_000)
    seconds: float = setting(1e9, "after which training ends, its learning rate gone down by then", 0.01, 1e9)
    batch: int = setting(256, "windows a step", 1, 4096)
    length: int = setting(100, "frames of a window", 5, 1000)
    lr: float = setting(1.5e-3, "learning rate", 0, 1)
    weight_decay: float = setting(0.02, "of AdamW", 0, 10)
    real_voices: int = setting(len(VOICES), "made voices in which each recording is heard too", 0, len(VOICES))
    talker_voices: int = setting(2, "the same for recordings of talkers", 0, len(VOICES))
    real_share: float = setting(0.42, "of the windows that come from recordings, relative to the other two", 0, 1)
    talkers_share: float = setting(0.25, "the same for talkers", 0, 1)
    synthetic_share: float = setting(0.33, "the same for synthetic speech", 0, 1)
    save_seconds: float = setting(30.0, "between two saves of the resumable state", 0, 86400)
    seed: int = seed_setting()


@dataclass
class Utterance:
    """A recording or a piece of one: samples (640·T,) half precision, its group, whether it is kept for tests."""

    name: str
    samples: np.ndarray
    group: str
    test: bool


def find_recordings(sources: Iterable[Path], synthetic: Iterable[Path] = ()) -> list[tuple[str, Path, str]]:
    """(name, file, group) of the recordings in folders, or files. Raises TalkheadError for a source without any.

    A folder with audio.flac, or of folders with audio.flac, is talkers, named as their folders.
    """
    found = []
    for source, made in [*((source, False) for source in sources), *((source, True) for source in synthetic)]:
        talkers = [file for file in (source / "audio.flac", *sorted(source.glob("*/audio.flac"))) if file.is_file()]
        files = [source] if source.is_file() else sorted(file for file in source.rglob("*") if file.suffix.lower() in ENDINGS)
        if talkers and not made:
            found += [(file.resolve().parent.name, file, TALKERS) for file in talkers]
        elif files:
            found += [(file.stem, file, SYNTHETIC if made else REAL) for file in files]
        else:
            raise TalkheadError(f"{source} holds no recordings; name folders of {', '.join(ENDINGS)} files, or files")
    return found


def read_corpus(sources: Iterable[Path], synthetic: Iterable[Path] = (), test: tuple[str, ...] = ()) -> list[Utterance]:
    """All recordings, in pieces of at most 30 s; of a talker those that source.json lists as "segments" (frames).

    Names that begin with one of `test` are kept for tests. Raises TalkheadError if all recordings are, or none.
    """
    found = find_recordings(sources, synthetic)
    with ThreadPoolExecutor(os.cpu_count()) as pool, progress(len(found), "recordings") as bar:
        utterances: list[Utterance] = []
        for (name, file, group), samples in zip(found, pool.map(lambda item: _read(item[1]), found)):
            for start, stop in _pieces(file, len(samples) // SAMPLES_PER_FRAME, group == TALKERS):
                piece = samples[start * SAMPLES_PER_FRAME : stop * SAMPLES_PER_FRAME].astype(np.float16)
                utterances.append(Utterance(f"{name}/{start}", piece, group, name.startswith(test)))
            bar.update()
    tests = sum(u.test for u in utterances)
    if not 0 < tests < len(utterances):
        raise TalkheadError(f"{tests} of {len(utterances)} recordings are for tests; some must be, and some not: say with --test "
                            "how the names of those begin")
    return utterances


def _read(file: Path) -> np.ndarray:
    """`load_audio`, quick where there is nothing to decode."""
    try:
        with wave.open(str(file)) as sound:
            if sound.getparams()[:3] == (1, 2, SAMPLE_RATE):
                return np.frombuffer(sound.readframes(sound.getnframes()), "<i2").astype(np.float32) / 32768
    except (wave.Error, EOFError, OSError):
        pass
    return load_audio(file)


def _pieces(file: Path, frames: int, talker: bool) -> list[tuple[int, int]]:
    """Frames [start, stop) of the pieces into which a recording is cut."""
    source = file.with_name("source.json")
    spans = read_json(source).get("segments") if talker and source.is_file() else None
    pieces = []
    for start, stop in spans or [(0, frames)]:
        stop = min(stop, frames)
        cuts = np.linspace(start, stop, 1 + max(1, -(-(stop - start) // LONGEST))).round().astype(int).tolist()
        pieces += [(a, b) for a, b in zip(cuts, cuts[1:]) if b - a >= SHORTEST]
    return pieces


def made_voices(utterances: list[Utterance], training: SpeechTraining, device: torch.device,
                quiet: bool = False) -> list[Utterance]:
    """Those recordings that are not for tests, in made voices; the timing stays."""
    count = {REAL: training.real_voices, TALKERS: training.talker_voices, SYNTHETIC: 0}
    made: list[Utterance] = []
    with progress(sum(count[u.group] for u in utterances if not u.test), "voices", quiet=quiet) as bar:
        for number, voice in enumerate(VOICES, 1):
            wanted = [u for u in utterances if not u.test and count[u.group] >= number]
            for some in by_length([len(u.samples) for u in wanted], VOICE_FRAMES * SAMPLES_PER_FRAME):
                sounds = [torch.from_numpy(wanted[k].samples).float().to(device) for k in some]
                voiced = shift_voice(nn.utils.rnn.pad_sequence(sounds, batch_first=True), *voice).clamp(-1, 1).half().cpu()
                made += [replace(wanted[k], name=f"{wanted[k].name} {number}", samples=sound[: len(wanted[k].samples)].numpy())
                         for k, sound in zip(some, voiced)]
                bar.update(len(some))
    return made


@dataclass(frozen=True)
class AugmentConfig:
    """How a batch of sound is changed: probabilities and ranges, drawn evenly for each recording."""

    voice_share: float = 0.5
    tract: tuple[float, float] = (0.82, 1.22)  # factor on all frequencies, evenly on a logarithmic scale
    reverb_share: float = 0.3
    rt60: tuple[float, float] = (0.1, 0.7)  # seconds
    direct: tuple[float, float] = (0.3, 0.95)  # share of the energy that comes straight
    noise_share: float = 0.6
    snr_db: tuple[float, float] = (5.0, 40.0)
    band_share: float = 0.2
    low_hz: tuple[float, float] = (50.0, 300.0)
    high_hz: tuple[float, float] = (3400.0, 7500.0)
    gain_db: tuple[float, float] = (-20.0, 8.0)


NO_AUGMENT = AugmentConfig(voice_share=0, reverb_share=0, noise_share=0, band_share=0, gain_db=(0.0, 0.0))


def augment_log_mel(sound: Tensor, config: AugmentConfig, generator: torch.Generator) -> Tensor:
    """Recordings (B, BEFORE + 640·T + AFTER) -> log-mel (B, T, 4, 80) in other tracts, rooms, noises and loudnesses, all at once.

    A voice is changed by stretching the frequencies of its spectrum (Jaitly and Hinton, ICML workshop 2013); `augment`
    does that better, one recording after the other.
    """
    device, batch, size = sound.device, len(sound), sound.shape[1]

    def uniform() -> Tensor:
        return torch.rand(batch, 1, generator=generator).to(device)

    def between(ends: tuple[float, float]) -> Tensor:
        return ends[0] + (ends[1] - ends[0]) * uniform()

    def noise(width: int) -> Tensor:
        return torch.randn(batch, width, device=device, generator=_on(device, generator))

    whole = 2 ** math.ceil(math.log2(size + config.rt60[1] * SAMPLE_RATE))  # few sizes, since each costs a plan on a GPU
    if config.reverb_share:
        time = torch.arange(int(config.rt60[1] * SAMPLE_RATE), device=device) / SAMPLE_RATE
        tail = noise(len(time)) * torch.exp(-6.9 * time / between(config.rt60))
        direct = torch.where(uniform() < config.reverb_share, between(config.direct), 1.0)
        response = tail * ((1 - direct) / tail.square().sum(1, keepdim=True)).sqrt()
        response[:, :1] += direct.sqrt()
        sound = torch.fft.irfft(torch.fft.rfft(sound, whole) * torch.fft.rfft(response, whole), whole)[:, :size]
    if config.noise_share:
        spectrum = torch.fft.rfft(noise(whole))
        slope = torch.arange(1, spectrum.shape[1] + 1, device=device) ** (-torch.floor(3 * uniform()) / 2)  # white, pink, brown
        hiss = torch.fft.irfft(spectrum * slope, whole)[:, :size]
        loud = sound.square().mean(1, keepdim=True) / hiss.square().mean(1, keepdim=True)
        heard = uniform() < config.noise_share
        sound = sound + hiss * (loud * 10 ** (-between(config.snr_db) / 10)).sqrt() * heard
    sound = sound * 10 ** (between(config.gain_db) / 20)
    power = power_spectrum(sound)
    low, high = (math.log(end) for end in config.tract)
    stretch = torch.where(uniform() < config.voice_share, torch.exp(between((low, high))), 1.0)
    bins = torch.arange(power.shape[-1], device=device)
    place = bins / stretch
    lower = place.floor().long().clamp(max=len(bins) - 1)
    share = (place - lower).clamp(0, 1)[:, None]

    def taken(at: Tensor) -> Tensor:
        return power.gather(2, at[:, None].expand_as(power))

    power = (1 - share) * taken(lower) + share * taken((lower + 1).clamp(max=len(bins) - 1))
    hertz = bins * SAMPLE_RATE / FFT
    passes = (hertz > between(config.low_hz)) & (hertz < between(config.high_hz)) | (uniform() >= config.band_share)
    power = power * (passes & (place < len(bins)))[:, None]
    return mel_of(power).unflatten(1, (-1, HOPS))


def _on(device: torch.device, rng: torch.Generator) -> torch.Generator:
    """A generator on `device` that goes on from what `rng` says."""
    return generator(int(torch.randint(2**62, (), generator=rng)), device)


class Corpus:
    """All recordings on one device with their targets, and batches of windows of them."""

    targets: Tensor  # (1 + all frames, targets) half; row 0 is of what lies outside a recording

    def __init__(self, utterances: list[Utterance], device: torch.device) -> None:
        self.utterances, self.device = utterances, device
        self.frames = np.array([len(u.samples) // SAMPLES_PER_FRAME for u in utterances])
        self.at = 1 + np.cumsum(self.frames) - self.frames
        self.sound_at = 1 + (self.at - 1) * SAMPLES_PER_FRAME
        self.sound = torch.from_numpy(np.concatenate([np.zeros(1, np.float16), *(u.samples for u in utterances)])).to(device)
        self.learn = [k for k, u in enumerate(utterances) if not u.test]
        self.groups = {group: np.array([k for k in self.learn if utterances[k].group == group], int) for group in GROUPS}

    def teach(self, teachers: list[Teacher], quiet: bool = False) -> None:
        """Compute the targets."""
        sounds = [self.sound[a : a + SAMPLES_PER_FRAME * n] for a, n in zip(self.sound_at.tolist(), self.frames.tolist())]
        targets = targets_of(teachers, sounds, self.sample(), quiet)
        self.targets = torch.cat([targets.new_zeros(1, targets.shape[1]), targets])

    def sample(self, *groups: str) -> list[int]:
        """Some recordings of each group, all by default; none for tests."""
        chosen = [self.groups[group] for group in groups or GROUPS]
        return [int(k) for rows in chosen for k in rows[:: max(1, len(rows) // SAMPLE)]]

    def rows(self, table: Tensor, at: np.ndarray, start: np.ndarray, count: int, of: np.ndarray) -> Tensor:
        """`count` rows from `start` (B,) on of pieces of `of` (B,) rows that begin `at` (B,); row 0 where there is none."""
        index = torch.from_numpy(start).to(table.device)[:, None] + torch.arange(count, device=table.device)
        begin, size = (torch.from_numpy(x).to(table.device)[:, None] for x in (at, of))
        return table[(begin + index) * ((index >= 0) & (index < size))]

    def hear(self, chosen: np.ndarray, start: np.ndarray, count: int, config: AugmentConfig, rng: torch.Generator) -> Tensor:
        """log-mel (B, LEFT_CONTEXT + count + ahead, 4, 80) of recordings around `count` frames from `start` (B,) on."""
        first = (start - LEFT_CONTEXT) * SAMPLES_PER_FRAME - BEFORE
        size = BEFORE + (LEFT_CONTEXT + count + AHEAD) * SAMPLES_PER_FRAME + AFTER
        sound = self.rows(self.sound, self.sound_at[chosen], first, size, self.frames[chosen] * SAMPLES_PER_FRAME)
        return augment_log_mel(sound.float(), config, rng)

    def choose(self, training: SpeechTraining, draws: np.random.Generator) -> np.ndarray:
        """Recordings (B,) of a batch: so many of each group as its share, every frame of a group equally likely."""
        shares = np.array([vars(training)[f"{group}_share"] if len(self.groups[group]) else 0.0 for group in GROUPS])
        if not shares.sum():
            raise TalkheadError("the groups of recordings that there are have no share of the windows")
        counts = np.diff(np.round(np.cumsum([0, *shares]) / shares.sum() * training.batch).astype(int))
        chosen = []
        for rows, count in zip(self.groups.values(), counts):
            ends = np.cumsum(self.frames[rows])
            chosen.append(rows[np.searchsorted(ends, draws.integers(ends[-1], size=count), side="right")] if count else rows[:0])
        return np.concatenate(chosen)

    def draw(self, training: SpeechTraining, rng: torch.Generator, draws: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """log-mel (B, LEFT_CONTEXT + L + ahead, 320) of a batch, targets (B, L, targets), which frames there are (B, L)."""
        chosen, length = self.choose(training, draws), training.length
        of = self.frames[chosen]
        start = draws.integers(np.maximum(1, of - length + 1))
        mel = self.hear(chosen, start, length, AugmentConfig(), rng)
        masked = mask_features(mel.flatten(1, 2), rng, time_masks=2, longest=8, bands=2, widest=10, fill=None)
        known = torch.arange(length) < torch.from_numpy(of - start)[:, None]
        return (masked.unflatten(1, (-1, HOPS)).flatten(2), self.rows(self.targets, self.at[chosen], start, length, of),
                known.to(self.device))

    def whole(self, k: int, config: AugmentConfig, rng: torch.Generator) -> Tensor:
        """Recording k -> log-mel (1, LEFT_CONTEXT + T + ahead, 4, 80)."""
        return self.hear(np.array([k]), np.zeros(1, int), int(self.frames[k]), config, rng)

    def targets_at(self, k: int) -> Tensor:
        """Recording k -> targets (T, targets)."""
        return self.targets[self.at[k] : self.at[k] + self.frames[k]].float()


class Student(nn.Module):
    """An encoder and the linear layer that tells the targets from its embedding."""

    def __init__(self, config: SpeechEncoderConfig, targets: int) -> None:
        super().__init__()
        self.encoder, self.readout = SpeechEncoder(config), nn.Linear(config.size, targets)

    def forward(self, rows: Tensor) -> Tensor:
        """log-mel (B, LEFT_CONTEXT + T + ahead, 320) -> targets (B, T, targets)."""
        return self.readout(self.encoder(rows)[0])


def distance(told: Tensor, targets: Tensor, known: Tensor) -> Tensor:
    """Mean over the frames that are `known` (B, L) of the squared distance between rows (B, L, targets)."""
    return ((told.float() - targets).square().sum(-1) * known).sum() / known.sum()


def train_encoder(corpus: Corpus, config: SpeechEncoderConfig, training: SpeechTraining, state: TrainState | None = None,
                  quiet: bool = False) -> tuple[Student, dict[str, Any]]:
    """Train an encoder and its readout on `corpus.device`; returns both and their distances on test recordings.

    Killed at any moment, the same call continues from `state`, if there is one, and ends as if it had never stopped.
    """
    saved, device = state.load() if state is not None else None, corpus.device
    torch.manual_seed(training.seed)
    student = Student(config, corpus.targets.shape[1])
    some = torch.cat([corpus.whole(k, NO_AUGMENT, generator(0)).flatten(0, 2) for k in corpus.sample()])
    student.encoder.mean.copy_(some.mean(0))
    student.encoder.scale.copy_(some.std(0))
    student.to(device)
    optimizer = torch.optim.AdamW(student.parameters(), lr=training.lr, weight_decay=training.weight_decay,
                                  fused=device.type == "cuda")
    rng, draws = generator(training.seed + 1), np.random.default_rng(training.seed)
    averaged = {name: value.clone() for name, value in student.state_dict().items()}
    done, seconds_before = 0, 0.0
    if saved is not None:
        student.load_state_dict(saved.group("student"))
        averaged = {name: value.to(device) for name, value in saved.group("averaged").items()}
        saved.restore_optimizer("optimizer", optimizer)
        _restore_random(saved, rng, draws, device)
        done, seconds_before = saved.progress["step"], saved.progress["loop_seconds"]
    board = TensorBoard(state.curves) if state is not None else None
    warm, started = min(300, training.steps // 10 + 1), time.perf_counter()
    last_save = started
    student.train()
    with progress(training.steps, "speech encoder", initial=done, quiet=quiet) as bar:
        for step in range(done, training.steps):
            gone = max(step / training.steps, (seconds_before + time.perf_counter() - started) / training.seconds)
            if gone >= 1:
                break
            for group in optimizer.param_groups:
                group["lr"] = training.lr * min(1, (step + 1) / warm) * 0.5 * (1 + math.cos(math.pi * gone))
            rows, targets, known = corpus.draw(training, rng, draws)
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                loss = distance(student(rows), targets, known)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(student.parameters(), 1.0)
            optimizer.step()
            ema_update(averaged, student, step, DECAY)
            if step % 50 == 0:
                bar.set_postfix_str(f"distance {loss.item():.3f}")
                if board is not None:
                    board.scalar("distance", loss.item(), step + 1)
            bar.update()
            done += 1
            if state is not None and time.perf_counter() - last_save >= training.save_seconds:
                last_save = time.perf_counter()
                state.save({"student": student.state_dict(), "averaged": averaged, **_random_states(rng, device)},
                           {"optimizer": optimizer}, step=done, draws=draws.bit_generator.state,
                           loop_seconds=seconds_before + last_save - started)
    if board is not None:
        board.close()
    student.load_state_dict(averaged)
    return student.eval(), {"steps": done} | held_out_distance(student, corpus)


def _random_states(rng: torch.Generator, device: torch.device) -> dict[str, Tensor]:
    """States of `rng` and of torch's own generators, from which dropout is drawn."""
    states = {"rng": rng.get_state(), "torch_rng": torch.get_rng_state()}
    return states | ({"cuda_rng": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {})


def _restore_random(saved: Saved, rng: torch.Generator, draws: np.random.Generator, device: torch.device) -> None:
    rng.set_state(saved.tensors["rng"])
    torch.set_rng_state(saved.tensors["torch_rng"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(saved.tensors["cuda_rng"], device)
    draws.bit_generator.state = saved.progress["draws"]


@torch.no_grad()
def held_out_distance(student: Student, corpus: Corpus) -> dict[str, float]:
    """Distance on test recordings, clean and augmented; the number of teachers would be that of their mean."""
    numbers = {}
    for config, label in ((NO_AUGMENT, "clean"), (AugmentConfig(), "augmented")):
        rng, total, frames = generator(0), 0.0, 0
        for k in sorted(set(range(len(corpus.utterances))) - set(corpus.learn)):
            told = student(corpus.whole(k, config, rng).flatten(2))[0]
            total += float((told - corpus.targets_at(k)).square().sum())
            frames += len(told)
        numbers[f"test_distance_{label}"] = round(total / frames, 4)
    return numbers


@torch.no_grad()
def fold(student: Student, corpus: Corpus) -> SpeechEncoder:
    """The encoder whose embedding is the principal components of the targets that the student tells, the largest first.

    Squared distances of rows are those of the told targets, scaled to unit total variance over the real recordings, exactly
    where the embedding is as wide as before; so that a kernel sees in it what the teachers would show.
    """
    encoder, readout = student.encoder, student.readout
    told = [student(corpus.whole(k, NO_AUGMENT, generator(0)).flatten(2))[0].double()
            for k in corpus.sample(REAL) or corpus.sample()]
    every = torch.cat(told)
    mean = every.mean(0)
    variance, vectors = torch.linalg.eigh((every - mean).T @ (every - mean) / len(every))
    size = encoder.config.size
    axes = vectors.flip(1)[:, :size].T  # rows
    weight = axes @ readout.weight.double() @ (encoder.narrow.weight.double() / encoder.spread.double()[:, None])
    shift = (encoder.narrow.bias.double() - encoder.centre.double()) / encoder.spread.double()
    bias = axes @ (readout.weight.double() @ shift + readout.bias.double())
    encoder.narrow.weight.zero_()
    encoder.narrow.bias.zero_()
    encoder.centre.zero_()
    encoder.narrow.weight[: len(axes)] = weight.float()
    encoder.narrow.bias[: len(axes)] = (bias - axes @ mean).float()
    encoder.spread.fill_(float(variance.flip(0)[:size].sum() / size) ** 0.5)
    return encoder


def train(sources: list[Path], synthetic: list[Path], out: Path, *, teachers: list[Teacher], test: tuple[str, ...],
          training: SpeechTraining, device: torch.device, state_dir: Path, config: SpeechEncoderConfig | None = None,
          quiet: bool = False) -> dict[str, Any]:
    """Train the default encoder on recordings and write it to `out`; returns steps, seconds and distances.

    Killed at any moment, the same call continues from `state_dir`. Raises TalkheadError.
    """
    config, utterances = config or SpeechEncoderConfig(), read_corpus(sources, synthetic, test)
    state = TrainState(state_dir, {"recordings": fingerprint(utterances), "teachers": [teacher.info() for teacher in teachers],
                                   "settings": config_to_dict(training), "sizes": config_to_dict(config)})
    corpus = Corpus(utterances + made_voices(utterances, training, device, quiet), device)
    name = state.fingerprint("recordings", "teachers")[:16]
    file = state_dir / TARGETS / f"{name}-{training.real_voices}{training.talker_voices}.safetensors"
    if file.is_file():
        corpus.targets = load_checkpoint(file, device)[0]["targets"]
    else:
        corpus.teach(teachers, quiet)
        save_checkpoint(file, {"targets": corpus.targets}, {})
    student, numbers = train_encoder(corpus, config, training, state, quiet)
    card = {"sources": [source.resolve().name for source in [*sources, *synthetic]], "frames": summary(corpus),
            "teachers": [teacher.info() for teacher in teachers], "test": list(test), **vars(training), **numbers}
    save_speech_encoder(out, fold(student, corpus).cpu(), card)
    state.remove()
    shutil.rmtree(file.parent, ignore_errors=True)
    return numbers | {"seconds": round(state.seconds, 1)}


def summary(corpus: Corpus) -> dict[str, int]:
    """Frames of each group that are learned from, made voices included."""
    return {group: int(corpus.frames[rows].sum()) for group, rows in corpus.groups.items()}


def fingerprint(utterances: list[Utterance]) -> str:
    """SHA-256 of all recordings and what they are for."""
    digest = sha256()
    for u in utterances:
        digest.update(json.dumps([u.name, u.group, u.test, len(u.samples)]).encode())
        digest.update(np.ascontiguousarray(u.samples).data)
    return digest.hexdigest()


@click.command()
@click.argument("sources", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--synthetic", multiple=True, type=click.Path(exists=True, path_type=Path),
              help="Folder of synthetic speech, which is heard in no other voices. Repeatable.")
@click.option("--test", multiple=True, help="Beginning of the names of recordings that are kept for tests. Repeatable.")
@click.option("--teacher", "teachers", multiple=True, default=TEACHERS, show_default=True, metavar="FOLDER:LAYER",
              help="Whisper of the transformers library, and the layer whose states are learned.")
@click.option("--shares", nargs=3, type=FiniteFloat(0, 1), show_default=True, help="Of recordings, talkers, synthetic speech.",
              default=(SpeechTraining.real_share, SpeechTraining.talkers_share, SpeechTraining.synthetic_share))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path))
@click.option("--steps", default=SpeechTraining.steps, show_default=True, type=click.IntRange(1, 10_000_000))
@click.option("--minutes", default=SpeechTraining.seconds / 60, type=FiniteFloat(0.01, SpeechTraining.seconds / 60),
              help="Of training proper; it ends then, however few the steps.")
@click.option("--batch", default=SpeechTraining.batch, show_default=True, type=click.IntRange(1, 4096))
@click.option("--device", default="auto", show_default=True)
@click.option("--overwrite", is_flag=True, help="Replace an existing output, and start anew.")
def main(sources: tuple[Path, ...], synthetic: tuple[Path, ...], test: tuple[str, ...], teachers: tuple[str, ...],
         shares: tuple[float, float, float], output: Path, steps: int, minutes: float, batch: int, device: str,
         overwrite: bool) -> None:
    """Train the default speech encoder on recordings.

    SOURCES are files, folders of recordings, and folders of talkers (each a folder with audio.flac).

    \b
    python -m stage1_audio2lmk.encoders.train_speech_encoder LibriSpeech talkers \\
        --synthetic corpora/synthetic --test 8 --teacher whisper-tiny:2 --teacher whisper-base:3 \\
        --steps 100000 --minutes 10 -o encoder.safetensors
    """
    training = SpeechTraining(steps=steps, seconds=60 * minutes, batch=batch, real_share=shares[0], talkers_share=shares[1],
                              synthetic_share=shares[2])
    state, where = output.with_name(output.stem + ".training"), pick_device(device)
    refuse_inputs(output, *sources, *synthetic)
    with training_of(output, state, overwrite), cpu_threads(min(THREADS, torch.get_num_threads())):
        taught = [Teacher(*parse_teacher(text), where) for text in teachers]
        print(train(list(sources), list(synthetic), output, teachers=taught, test=test, training=training, device=where,
                    state_dir=state))


if __name__ == "__main__":
    main()
