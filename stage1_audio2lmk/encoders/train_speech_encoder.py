"""Training of the default encoder on speech whose phones are known.

Run it with `python -m stage1_audio2lmk.encoders.train_speech_encoder --help`.

Every recording is heard in several voices, rooms and loudnesses. From a narrow embedding of each video frame the phones and
the mouth's shape in that frame, the one before and the two after must be told, phones by one head for each set of them
(recogniser's or synthesiser's), and the k-means unit of sound that a mask may hide (as in HuBERT, Hsu et al. 2021).
"""

import json
import math
import time
from collections import Counter
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.config import Settings, config_to_dict, seed_setting, setting
from shared.errors import TalkheadError
from shared.files import refuse_inputs
from shared.landmarks import SAMPLE_RATE, SAMPLES_PER_FRAME
from shared.media.audio_io import load_audio
from shared.options import FiniteFloat
from shared.resume import Saved, TrainState, training_of
from shared.training import TensorBoard, generator, pick_device, progress
from stage1_audio2lmk.audio.augment import mask_features
from stage1_audio2lmk.audio.features import FFT, HOP, HOPS, MELS, WINDOW, mel_of, power_spectrum
from stage1_audio2lmk.encoders.speech_encoder import LEFT_CONTEXT, SpeechEncoder, SpeechEncoderConfig, save_speech_encoder

UNKNOWN = -1
NEIGHBOURS = (-1, 0, 1, 2)  # frames whose phones are told
NEIGHBOUR_WEIGHT = 0.4  # of their loss beside the frame's own
SHAPE = 5  # numbers that describe a mouth: jaw, gap, width, protrusion, lower lip under the teeth
RAREST = 300  # hops of a phone that gets a class of its own
AHEAD = 2  # frames of look-ahead
AFTER = (FFT - WINDOW) // 2  # samples after a frame under the padding of the transform's window, never heard
BEFORE = FFT - HOP - AFTER  # samples before it


@dataclass(frozen=True)
class SpeechTraining(Settings):
    """How the encoder is trained."""

    steps: int = setting(6000, "optimiser steps", 1, 10_000_000)
    seconds: float = setting(1e9, "after which training ends, its learning rate gone down by then", 0.01, 1e9)
    batch: int = setting(96, "windows a step", 1, 4096)
    length: int = setting(100, "frames of a window", 5, 1000)
    lr: float = setting(1e-3, "learning rate", 0, 1)
    weight_decay: float = setting(0.02, "of AdamW", 0, 10)
    units: int = setting(256, "clusters of the self-supervised task, 0 for none", 0, 4096)
    unit_weight: float = setting(0.2, "of that task beside the others", 0, 1000)
    unit_steps: int = setting(0, "steps of that task alone, before phones are taught", 0, 10_000_000)
    save_seconds: float = setting(30.0, "between two saves of the resumable state", 0, 86400)
    seed: int = seed_setting()


@dataclass
class Utterance:
    """One recording: samples (640·T,), phones (4·T,) as class numbers or UNKNOWN, mouth shapes (T, SHAPE), the set of phones."""

    name: str
    samples: np.ndarray
    phones: np.ndarray
    mouth: np.ndarray
    kind: str
    test: bool


def read_corpus(folder: Path) -> tuple[list[Utterance], dict[str, list[str]]]:
    """Recordings of a folder whose phones.json is {"kind", "test": [prefixes], "phones": {file: [[start s, name], …]}}.

    mouth.npz holds the shape of the mouth in every video frame (T, SHAPE) by file. Returns recordings and {kind: names of
    its classes}.
    """
    table = json.loads((folder / "phones.json").read_text())
    seconds: Counter[str] = Counter()
    for marks in table["phones"].values():
        for (start, name), (stop, _) in zip(marks, marks[1:]):
            seconds[name] += stop - start
    names = sorted(name for name, length in seconds.items() if length * SAMPLE_RATE / HOP >= RAREST)
    number = {name: k for k, name in enumerate(names)}
    found, mouths = [], np.load(folder / "mouth.npz")
    for file, marks in sorted(table["phones"].items()):
        samples = load_audio(folder / file)
        samples = samples[: len(samples) // SAMPLES_PER_FRAME * SAMPLES_PER_FRAME]
        centres = (np.arange(len(samples) // HOP) * HOP + HOP - WINDOW / 2) / SAMPLE_RATE  # of the hops' windows
        at = np.searchsorted([start for start, _ in marks], centres, side="right") - 1
        at = np.maximum(at, 0)  # the first hop's middle lies before the sound
        phones = np.array([number.get(name, UNKNOWN) for _, name in marks] + [UNKNOWN])[at]
        mouth = mouths[file][: len(samples) // SAMPLES_PER_FRAME].astype(np.float32)
        mouth = np.pad(mouth, ((0, len(samples) // SAMPLES_PER_FRAME - len(mouth)), (0, 0)), mode="edge")
        found.append(Utterance(file, samples, phones, mouth, table["kind"], file.startswith(tuple(table["test"]))))
    return found, {table["kind"]: names}


@dataclass(frozen=True)
class Surroundings:
    """How a batch is heard: probabilities and ranges, drawn evenly for each recording."""

    voice_share: float = 0.8
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


PLAIN = Surroundings(voice_share=0, reverb_share=0, noise_share=0, band_share=0, gain_db=(0.0, 0.0))


def overhear(sound: Tensor, around: Surroundings, generator: torch.Generator) -> Tensor:
    """Recordings (B, BEFORE + 640·T + AFTER) -> log-mel (B, T, 4, 80) in other voices, rooms, noises and loudnesses, all at once.

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

    whole = 2 ** math.ceil(math.log2(size + around.rt60[1] * SAMPLE_RATE))  # few sizes, since each costs a plan on a GPU
    if around.reverb_share:
        time = torch.arange(int(around.rt60[1] * SAMPLE_RATE), device=device) / SAMPLE_RATE
        tail = noise(len(time)) * torch.exp(-6.9 * time / between(around.rt60))
        direct = torch.where(uniform() < around.reverb_share, between(around.direct), 1.0)
        response = tail * ((1 - direct) / tail.square().sum(1, keepdim=True)).sqrt()
        response[:, :1] += direct.sqrt()
        sound = torch.fft.irfft(torch.fft.rfft(sound, whole) * torch.fft.rfft(response, whole), whole)[:, :size]
    if around.noise_share:
        spectrum = torch.fft.rfft(noise(whole))
        slope = torch.arange(1, spectrum.shape[1] + 1, device=device) ** (-torch.floor(3 * uniform()) / 2)  # white, pink, brown
        hiss = torch.fft.irfft(spectrum * slope, whole)[:, :size]
        loud = sound.square().mean(1, keepdim=True) / hiss.square().mean(1, keepdim=True)
        heard = uniform() < around.noise_share
        sound = sound + hiss * (loud * 10 ** (-between(around.snr_db) / 10)).sqrt() * heard
    sound = sound * 10 ** (between(around.gain_db) / 20)
    power = power_spectrum(sound)
    low, high = (math.log(end) for end in around.tract)
    stretch = torch.where(uniform() < around.voice_share, torch.exp(between((low, high))), 1.0)
    bins = torch.arange(power.shape[-1], device=device)
    place = bins / stretch
    lower = place.floor().long().clamp(max=len(bins) - 1)
    share = (place - lower).clamp(0, 1)[:, None]

    def taken(at: Tensor) -> Tensor:
        return power.gather(2, at[:, None].expand_as(power))

    power = (1 - share) * taken(lower) + share * taken((lower + 1).clamp(max=len(bins) - 1))
    hertz = bins * SAMPLE_RATE / FFT
    passes = (hertz > between(around.low_hz)) & (hertz < between(around.high_hz)) | (uniform() >= around.band_share)
    power = power * (passes & (place < len(bins)))[:, None]
    return mel_of(power).unflatten(1, (-1, HOPS))


def _on(device: torch.device, rng: torch.Generator) -> torch.Generator:
    """A generator on `device` that goes on from what `rng` says."""
    return generator(int(torch.randint(2**62, (), generator=rng)), device)


class Corpus:
    """All recordings on one device, and batches of windows of them."""

    def __init__(self, utterances: list[Utterance], training: SpeechTraining, device: torch.device) -> None:
        self.training, self.utterances, self.device = training, utterances, device
        self.sound, self.sound_at = _laid_out([u.samples.astype(np.float16) for u in utterances], np.zeros(1, np.float16), device)
        self.phones, self.at = _laid_out([u.phones.reshape(-1, HOPS) for u in utterances], np.full((1, HOPS), UNKNOWN), device)
        every = np.concatenate([u.mouth for u in utterances])
        mean, spread = every.mean(0), every.std(0)
        self.mouth, _ = _laid_out([(u.mouth - mean) / spread for u in utterances],
                                  np.full((1, SHAPE), np.nan, np.float32), device)
        self.units: Tensor | None = None
        self.frames = np.array([len(u.phones) // HOPS for u in utterances])

    def rows(self, table: Tensor, at: np.ndarray, start: np.ndarray, count: int, of: np.ndarray) -> Tensor:
        """`count` rows from `start` (B,) on of pieces of `of` (B,) rows that begin `at` (B,); row 0 where there is none."""
        index = torch.from_numpy(start).to(table.device)[:, None] + torch.arange(count, device=table.device)
        begin, size = (torch.from_numpy(x).to(table.device)[:, None] for x in (at, of))
        return table[(begin + index) * ((index >= 0) & (index < size))]

    def hear(self, chosen: np.ndarray, start: np.ndarray, count: int, around: Surroundings, rng: torch.Generator) -> Tensor:
        """log-mel (B, LEFT_CONTEXT + count + ahead, 4, 80) of utterances around `count` frames from `start` (B,) on."""
        first = (start - LEFT_CONTEXT) * SAMPLES_PER_FRAME - BEFORE
        size = BEFORE + (LEFT_CONTEXT + count + AHEAD) * SAMPLES_PER_FRAME + AFTER
        sound = self.rows(self.sound, self.sound_at[chosen], first, size, self.frames[chosen] * SAMPLES_PER_FRAME)
        return overhear(sound.float(), around, rng)

    def draw(self, chosen: np.ndarray, rng: torch.Generator, draws: np.random.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """log-mel (B, LEFT_CONTEXT + L + ahead, 4, 80) of utterances, and what is to be told of them.

        That is "phones" (B, L + 3, 4) and "mouth" (B, L + 3, SHAPE) from one frame before on, and "units" (B, L).
        """
        length, at, of = self.training.length, self.at[chosen], self.frames[chosen]
        start = draws.integers(np.maximum(1, of - length + 1))
        mel = self.hear(chosen, start, length, Surroundings(), rng)
        told = {"phones": self.rows(self.phones, at, start - 1, length + 3, of),
                "mouth": self.rows(self.mouth, at, start - 1, length + 3, of)}
        return mel, told | ({} if self.units is None else {"units": self.rows(self.units, at, start, length, of)})

    def whole(self, k: int, around: Surroundings, rng: torch.Generator) -> Tensor:
        """Utterance k -> log-mel (1, LEFT_CONTEXT + T + ahead, 4, 80)."""
        return self.hear(np.array([k]), np.zeros(1, int), int(self.frames[k]), around, rng)


def _laid_out(pieces: list[np.ndarray], nothing: np.ndarray, device: torch.device) -> tuple[Tensor, np.ndarray]:
    """Pieces (T, …) one after the other behind one row of `nothing`, and where each begins."""
    starts = 1 + np.cumsum([0] + [len(piece) for piece in pieces])[:-1]
    return torch.from_numpy(np.concatenate([nothing, *pieces])).to(device), starts


def cluster(corpus: Corpus, count: int, rounds: int = 20) -> None:
    """Give every frame the nearest of `count` centres of its sound (k-means on 3 frames of whitened log-mel)."""
    device, every = corpus.device, torch.zeros(int(corpus.frames.sum()), 3 * MELS, device=corpus.device)
    for some in np.array_split(np.argsort(corpus.frames), max(1, len(corpus.frames) // 64)):  # of about one length
        longest = int(corpus.frames[some].max())
        mel = corpus.hear(some, np.zeros(len(some), int), longest, PLAIN, generator(0)).mean(2)
        near = torch.cat([mel[:, LEFT_CONTEXT + shift : LEFT_CONTEXT + shift + longest] for shift in (-1, 0, 1)], 2)
        step, of, at = (torch.from_numpy(x).to(device) for x in (np.arange(longest), corpus.frames[some], corpus.at[some]))
        real = step < of[:, None]
        every[(at[:, None] - 1 + step)[real]] = near[real]
    every = every - every.mean(0)
    _, singular, vt = torch.linalg.svd(every[:: max(1, len(every) // 50000)], full_matrices=False)
    every = every @ vt[:40].T / singular[:40].sqrt()
    centres = every[torch.linspace(0, len(every) - 1, count).long().to(device)]
    for _ in range(rounds):
        nearest = torch.cat([torch.cdist(part, centres).argmin(1) for part in every.split(65536)])
        sums = torch.zeros_like(centres).index_add_(0, nearest, every)
        centres = sums / torch.bincount(nearest, minlength=count).clamp_min(1)[:, None]
    corpus.units = torch.cat([nearest.new_full((1,), UNKNOWN), nearest])


class Heads(nn.ModuleDict):
    """One linear layer for each kind of labels."""

    def __init__(self, kinds: dict[str, list[str]], size: int, units: int) -> None:
        sizes = {kind: len(NEIGHBOURS) * HOPS * len(names) for kind, names in kinds.items()}
        sizes |= {"mouth": len(NEIGHBOURS) * SHAPE} | ({"units": units} if units else {})
        super().__init__({kind: nn.Linear(size, out) for kind, out in sizes.items()})

    def phones(self, kind: str, embedding: Tensor, phones: Tensor) -> tuple[Tensor, Tensor]:
        """embedding (B, L, size), phones (B, L + 3, 4) from one frame before on -> loss, share of own hops told right."""
        logits = self[kind](embedding).unflatten(-1, (len(NEIGHBOURS), HOPS, -1)).float()
        true = _neighbours(phones, embedding.shape[1])
        each = F.cross_entropy(logits.permute(0, 4, 1, 2, 3), true, ignore_index=UNKNOWN, label_smoothing=0.05, reduction="none")
        weight = torch.tensor([1.0 if shift == 0 else NEIGHBOUR_WEIGHT for shift in NEIGHBOURS], device=each.device)[:, None]
        known = (true != UNKNOWN) * weight
        own = NEIGHBOURS.index(0)
        right = ((logits[:, :, own].argmax(-1) == true[:, :, own]) & (true[:, :, own] != UNKNOWN)).sum()
        return (each * known).sum() / known.sum().clamp_min(1), right / (true[:, :, own] != UNKNOWN).sum().clamp_min(1)

    def mouths(self, embedding: Tensor, mouth: Tensor) -> Tensor:
        """embedding (B, L, size), mouth (B, L + 3, SHAPE) from one frame before on -> loss."""
        true = _neighbours(mouth, embedding.shape[1]).flatten(2)
        error = F.smooth_l1_loss(self["mouth"](embedding).float(), true.nan_to_num(), reduction="none")
        return (error * true.isfinite()).sum() / true.isfinite().sum().clamp_min(1)


def _neighbours(rows: Tensor, length: int) -> Tensor:
    """Rows (B, L + 3, …) from one frame before on -> those of each frame's NEIGHBOURS (B, L, 4, …)."""
    return torch.stack([rows[:, 1 + shift : 1 + shift + length] for shift in NEIGHBOURS], 2)


def read_corpora(folders: list[Path]) -> tuple[list[Utterance], dict[str, list[str]]]:
    """`read_corpus` of several folders. Raises TalkheadError if none or all of their recordings are for tests."""
    utterances: list[Utterance] = []
    kinds: dict[str, list[str]] = {}
    for folder in folders:
        more, names = read_corpus(folder)
        utterances += more
        kinds |= names
    if not any(u.test for u in utterances) or all(u.test for u in utterances):
        raise TalkheadError(f"{', '.join(map(str, folders))}: {len(utterances)} recordings; some must be for tests, some not")
    return utterances, kinds


def train_encoder(corpus: Corpus, kinds: dict[str, list[str]], config: SpeechEncoderConfig, training: SpeechTraining,
                  device: torch.device, state: TrainState | None = None,
                  quiet: bool = False) -> tuple[SpeechEncoder, Heads, dict[str, Any]]:
    """Train an encoder; returns it, its heads and held-out accuracies.

    Killed at any moment, the same call continues from `state`, if there is one, and ends as if it had never stopped.
    """
    saved = state.load() if state is not None else None
    utterances = corpus.utterances
    if training.units and corpus.units is None:
        cluster(corpus, training.units)
    torch.manual_seed(training.seed)
    encoder = SpeechEncoder(config)
    heads = Heads(kinds, config.size, training.units)
    learn = [k for k, u in enumerate(utterances) if not u.test]
    some = torch.cat([corpus.whole(k, PLAIN, generator(0)).flatten(0, 2) for k in learn[:: max(1, len(learn) // 200)]])
    encoder.mean.copy_(some.mean(0))
    encoder.scale.copy_(some.std(0))
    encoder.to(device)
    heads.to(device)
    weights = [*encoder.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=training.lr, weight_decay=training.weight_decay)
    rng, draws = generator(training.seed + 1), np.random.default_rng(training.seed)
    rows = {kind: np.array([k for k in learn if utterances[k].kind == kind]) for kind in kinds}
    share = max(2, training.batch // len(kinds))
    last: dict[str, Tensor] = {}
    done, seconds_before = 0, 0.0
    if saved is not None:
        encoder.load_state_dict(saved.group("encoder"))
        heads.load_state_dict(saved.group("heads"))
        saved.restore_optimizer("optimizer", optimizer)
        _restore_random(saved, rng, draws, device)
        done, seconds_before = saved.progress["step"], saved.progress["loop_seconds"]
    board = TensorBoard(state.curves) if state is not None else None
    warm, started = min(300, training.steps // 10 + 1), time.perf_counter()
    last_save = started
    with progress(training.steps, "speech encoder", initial=done, quiet=quiet) as bar:
        for step in range(done, training.steps):
            gone = max(step / training.steps, (seconds_before + time.perf_counter() - started) / training.seconds)
            if gone >= 1:
                break
            rate = min(1, (step + 1) / warm) * 0.5 * (1 + np.cos(np.pi * gone))
            for group in optimizer.param_groups:
                group["lr"] = training.lr * rate
            encoder.train()
            mel, told = corpus.draw(np.concatenate([draws.choice(rows[kind], share) for kind in kinds]), rng, draws)
            masked = mask_features(mel.flatten(1, 2), rng, time_masks=3, longest=12, bands=2, widest=14, fill=None)
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                embedding, _ = encoder(masked.unflatten(1, (-1, HOPS)).flatten(2))
                loss = torch.zeros((), device=device)
                if "units" in told:
                    guess = heads["units"](embedding).float().flatten(0, 1)
                    loss = loss + F.cross_entropy(guess, told["units"].flatten(), ignore_index=UNKNOWN) * (
                        1.0 if step < training.unit_steps else training.unit_weight)
                if step >= training.unit_steps:
                    loss = loss + heads.mouths(embedding, told["mouth"])
                    for kind, part, phones in zip(kinds, embedding.split(share), told["phones"].split(share)):
                        error, right = heads.phones(kind, part, phones)
                        loss = loss + error
                        last[kind] = right
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            if step % 50 == 0:
                bar.set_postfix_str(", ".join(f"{kind} {value:.2f}" for kind, value in last.items()))
                if board is not None:
                    for name, value in {"loss": loss.detach(), **{f"accuracy/{kind}": x for kind, x in last.items()}}.items():
                        board.scalar(name, float(value), step + 1)
            bar.update()
            done += 1
            if state is not None and time.perf_counter() - last_save >= training.save_seconds:
                last_save = time.perf_counter()
                state.save({"encoder": encoder.state_dict(), "heads": heads.state_dict(), **_random_states(rng, device)},
                           {"optimizer": optimizer}, step=done, draws=draws.bit_generator.state,
                           loop_seconds=seconds_before + last_save - started)
    if board is not None:
        board.close()
    return encoder, heads, {"steps": done} | _finish(encoder.eval(), heads.eval(), corpus, kinds)


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
def _finish(encoder: SpeechEncoder, heads: Heads, corpus: Corpus, kinds: dict[str, list[str]]) -> dict[str, Any]:
    """Accuracy on test recordings, clean and in another voice; then scale the embedding to unit variance."""
    numbers: dict[str, Any] = {}
    rows = []
    for kind in kinds:
        tests = [k for k, u in enumerate(corpus.utterances) if u.test and u.kind == kind]
        for around, label in ((PLAIN, "clean"), (Surroundings(), "augmented")):
            rng, right, total = generator(0), 0.0, 0
            for k in tests:
                of = int(corpus.frames[k])
                embedding, _ = encoder(corpus.whole(k, around, rng).flatten(2))
                phones = corpus.rows(corpus.phones, corpus.at[[k]], -np.ones(1, int), of + 3, corpus.frames[[k]])
                right += float(heads.phones(kind, embedding, phones)[1]) * of
                total += of
                rows.append(embedding[0])
            numbers[f"val_{kind}_accuracy_{label}"] = round(right / max(total, 1), 4)
    every = torch.cat(rows)
    encoder.centre.copy_(every.mean(0))
    encoder.spread.copy_(every.std(0))
    return numbers


def train(folders: list[Path], out: Path, *, training: SpeechTraining, device: torch.device, state_dir: Path,
          quiet: bool = False) -> dict[str, Any]:
    """Train the default encoder on folders of recordings and write it to `out`; returns steps, seconds and accuracies.

    Killed at any moment, the same call continues from `state_dir`. Raises TalkheadError.
    """
    utterances, kinds = read_corpora(folders)
    config = SpeechEncoderConfig()
    state = TrainState(state_dir, {"recordings": fingerprint(utterances), "settings": config_to_dict(training),
                                   "sizes": config_to_dict(config)})
    encoder, _, numbers = train_encoder(Corpus(utterances, training, device), kinds, config, training, device, state, quiet)
    save_speech_encoder(out, encoder.cpu(), {"trained on": [folder.name for folder in folders], **vars(training), **numbers})
    state.remove()
    return numbers | {"seconds": state.seconds}


def fingerprint(utterances: list[Utterance]) -> str:
    """SHA-256 of all recordings and what is known about them."""
    digest = sha256()
    for u in utterances:
        digest.update(json.dumps([u.name, u.kind, u.test, len(u.samples)]).encode())
        for values in (u.samples, u.phones, u.mouth):
            digest.update(np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()


@click.command()
@click.argument("folders", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path))
@click.option("--steps", default=SpeechTraining.steps, show_default=True, type=click.IntRange(1, 10_000_000))
@click.option("--minutes", default=SpeechTraining.seconds / 60, type=FiniteFloat(0.01, SpeechTraining.seconds / 60),
              help="Ends then, however few the steps.")
@click.option("--device", default="auto", show_default=True)
@click.option("--overwrite", is_flag=True, help="Replace an existing output, and start anew.")
def main(folders: tuple[Path, ...], output: Path, steps: int, minutes: float, device: str, overwrite: bool) -> None:
    """Train the default speech encoder on folders of recordings with a phones.json each."""
    training, state = SpeechTraining(steps=steps, seconds=60 * minutes), output.with_name(output.stem + ".training")
    refuse_inputs(output, *folders)
    with training_of(output, state, overwrite):
        print(train(list(folders), output, training=training, device=pick_device(device), state_dir=state))


if __name__ == "__main__":
    main()
