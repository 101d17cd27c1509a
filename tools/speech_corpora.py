"""Speech whose phones and mouth shapes are known, for `python -m stage1_audio2lmk.encoders.train_speech_encoder`.

Needs packages that talkhead does not: `pip install pocketsphinx espeakng-loader`. Used once, to train the shipped encoder.
A corpus is a folder of recordings with phones.json and mouth.npz (see `read_corpus`).

    python -m tools.speech_corpora label LibriSpeech/*.flac -o corpora/librispeech --test 8
    python -m tools.speech_corpora synthesise --minutes 600 -o corpora/synthetic
    python -m tools.speech_corpora faces corpora/librispeech -o clips/read    # for `stage1 pretrain`
"""

import json
import multiprocessing
import os
import pickle
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
from scipy.signal import resample_poly

from process_data.actor.identity import make_identity
from process_data.actor.proportions import neutral_landmarks
from process_data.actor.speech import VISEMES, animate, mouth_track
from shared.clip import Clip, ClipInfo, Shot
from shared.errors import TalkheadError
from shared.landmarks import SAMPLE_RATE, SAMPLES_PER_FRAME, save_array, save_landmarks
from shared.media.audio_io import load_audio, save_wav
from shared.training import progress
from tools.espeak import PITCH, RANGE, RATE, SYNCHRONOUS, Espeak

Marks = list[tuple[float, str]]  # begin of each phone in seconds, and its name; the last one lasts to the end

PAUSES = ("SIL", "_")
# phones of the recogniser -> those of espeak-ng, whose mouth shapes are known
ARPABET = dict(AA="A", AE="a", AH="V", AO="O", AW="aU", AY="aI", B="b", CH="tS", D="d", DH="D", EH="E", ER="3", EY="eI", F="f",
               G="g", HH="h", IH="I", IY="i", JH="dZ", K="k", L="l", M="m", N="n", NG="N", OW="oU", OY="OI", P="p", R="r", S="s",
               SH="S", T="t", TH="T", UH="U", UW="u", V="v", W="w", Y="j", Z="z", ZH="Z")
LEAST_PHONES = 10

# invented words, read by the rules of each language
ONSETS = "p b m f v t d s z n l r k g h sh ch w y j pr br fl st tr sp kr gl bl pl".split()
NUCLEI = "a e i o u a e i o u ai au ei ou ie oo".split()
CODAS = [""] * 8 + "n m s t p k l r b f".split()
LANGUAGES = ("en-us en en-gb-scotland en-gb-x-rp en-029 en-us-nyc de fr it es es-419 pl nl sv pt pt-br fi tr cs ro hu da "
             "nb ca eo id sw vi cmn-latn-pinyin hr sk sq et lv lt cy ms").split()
ENGLISH = 6  # of LANGUAGES, drawn nearly half of the time
VARIANTS = ([f"m{k}" for k in range(1, 9)] + [f"f{k}" for k in range(1, 6)] +
            ("croak klatt klatt2 klatt3 klatt4 Andy Annie Alicia Andrea aunty belinda caleb david ed grandma grandpa gustave "
             "iven linda marcelo Mario max Michael michel miguel norbert paul pedro quincy rob sandro steph travis victor zac "
             "Diogo Denis Gene Henrique Hugo Jacky Lee anika antonio john shelby whisper").split())


def mouth_of(marks: Marks, frames: int) -> np.ndarray:
    """Phones -> shape of the mouth in every video frame (T, 5), by the synthetic actor's rules."""
    stops = [start for start, _ in marks[1:]] + [frames * SAMPLES_PER_FRAME / SAMPLE_RATE]
    phonemes = []
    for (start, name), stop in zip(marks, stops):
        name = ARPABET.get(name, name)
        if name not in PAUSES and stop > start:
            phonemes.append((name if VISEMES.get(name[:2]) or VISEMES.get(name[:1]) else "@", start, stop))
    return mouth_track(phonemes, frames).astype(np.float32)


def recognise(samples: np.ndarray, decoder) -> Marks:
    """Samples at 16 kHz -> the phones that pocketsphinx's own model recognises: words first, then their phones aligned."""
    decoder.activate_search()
    _decode(samples, decoder)
    if not decoder.hyp() or not decoder.hyp().hypstr:
        return []
    marks = align(samples, decoder, decoder.hyp().hypstr)
    return marks if len(marks) > LEAST_PHONES else []


def align(samples: np.ndarray, decoder, words: str) -> Marks:
    """Samples at 16 kHz in which these words are said -> their phones. RuntimeError where they do not fit the sound."""
    decoder.set_align_text(words)
    _decode(samples, decoder)
    decoder.set_alignment()
    _decode(samples, decoder)
    marks: Marks = [(0.0, "SIL")]
    stop = 0.0
    for word in decoder.get_alignment():
        for phone in word:
            marks.append((phone.start / 100, phone.name if phone.name in ARPABET else "SIL"))
            stop = (phone.start + phone.duration) / 100
    return [*marks, (stop, "SIL")]


def _decode(samples: np.ndarray, decoder) -> None:
    decoder.start_utt()
    decoder.process_raw((np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes(), full_utt=True)
    decoder.end_utt()


class Speaker:
    """espeak-ng of the package espeakng_loader, saying text as sound and phones."""

    def __init__(self) -> None:
        import espeakng_loader

        self.espeak = Espeak(espeakng_loader.get_library_path(), output=SYNCHRONOUS, data=espeakng_loader.get_data_path())

    def say(self, text: str, voice: str, speed: int, pitch: int, span: int) -> tuple[np.ndarray, Marks]:
        """Text -> samples (n,) at 16 kHz within ±1, and its phones. Raises TalkheadError for an unknown voice."""
        if not self.espeak.set_voice(voice):
            raise TalkheadError(f"espeak-ng has no voice {voice!r}")
        samples, found = self.espeak.say(text, {RATE: speed, PITCH: pitch, RANGE: span})
        sound = (samples if len(samples) else np.zeros(1)).astype(np.float32) / 32768
        marks: Marks = [(0.0, "_")]
        for mark in found:
            name, start = mark.name.decode("utf-8", "ignore"), mark.sample / self.espeak.rate
            if name.startswith("_") and name != "_|":
                marks.append((start, "_"))
            elif name and "(" not in name and name not in ("_|", "|", "||", "'", ",", "%", "="):
                marks.append((start, name))
        return resample_poly(sound, 320, 441), marks


def sentence(rng: random.Random) -> str:
    """Six to thirteen invented words with pauses."""
    words = ["".join(rng.choice(ONSETS) + rng.choice(NUCLEI) + rng.choice(CODAS) for _ in range(rng.choice((1, 1, 2, 2, 3))))
             for _ in range(rng.randint(6, 13))]
    return " ".join(word + (rng.choice(("", ",", ".")) if k % 4 == 3 else "") for k, word in enumerate(words))


def synthesise(speaker: Speaker, rng: random.Random) -> tuple[np.ndarray, Marks]:
    """One invented sentence in a voice, language, tempo and pitch drawn from `rng`: samples (640·T,) and phones."""
    while True:
        language = rng.choice(LANGUAGES[:ENGLISH] if rng.random() < 0.45 else LANGUAGES[ENGLISH:])
        sound, marks = speaker.say(sentence(rng), f"{language}+{rng.choice(VARIANTS)}", rng.randint(115, 230),
                                   rng.randint(15, 85), rng.randint(20, 90))
        if len(sound) >= SAMPLE_RATE and np.abs(sound).max() > 0:
            sound = sound * (rng.uniform(0.15, 0.9) / np.abs(sound).max())
            return sound[: len(sound) // SAMPLES_PER_FRAME * SAMPLES_PER_FRAME].astype(np.float32), marks


def write_corpus(folder: Path, kind: str, test: tuple[str, ...], found: Iterator[tuple[str, np.ndarray, Marks]]) -> None:
    """Write recordings as WAV and their phones and mouth shapes."""
    folder.mkdir(parents=True, exist_ok=True)
    phones, mouths = {}, {}
    for name, samples, marks in found:
        save_wav(folder / name, samples)
        phones[name] = marks
        mouths[name] = mouth_of(marks, len(samples) // SAMPLES_PER_FRAME)
    (folder / "phones.json").write_text(json.dumps({"kind": kind, "test": test, "phones": phones}))
    np.savez(folder / "mouth.npz", **mouths)


@click.group()
def main() -> None:
    """Make corpora for the speech encoder."""


@main.command()
@click.argument("recordings", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path))
@click.option("--test", multiple=True, help="Beginning of the names of recordings that are kept for tests.")
def label(recordings: tuple[Path, ...], output: Path, test: tuple[str, ...]) -> None:
    """Label recordings with the phones that pocketsphinx recognises; those in which it finds next to none are left out."""
    from pocketsphinx import Decoder

    def found() -> Iterator[tuple[str, np.ndarray, Marks]]:
        decoder = Decoder(samprate=SAMPLE_RATE, loglevel="FATAL")
        with progress(len(recordings), "labels") as bar:
            for file in recordings:
                samples = load_audio(file)
                try:
                    marks = recognise(samples, decoder)
                except RuntimeError:  # an alignment that fails leaves the decoder unusable
                    decoder, marks = Decoder(samprate=SAMPLE_RATE, loglevel="FATAL"), []
                if marks:
                    yield file.stem + ".wav", samples, marks
                bar.update()

    write_corpus(output, "arpabet", test, found())


def say_part(seed: int, seconds: float, out: Path) -> None:
    """Pickle recordings of `seconds` in all, drawn by `seed`."""
    speaker, rng, said, recordings = Speaker(), random.Random(seed), 0.0, []
    while said < seconds:
        recordings.append(synthesise(speaker, rng))
        said += len(recordings[-1][0]) / SAMPLE_RATE
    out.write_bytes(pickle.dumps(recordings))


def in_processes(parts: list[tuple[int, float, Path]], workers: int) -> Iterator[Path]:
    """`say_part` of each, in a process of its own, since espeak-ng 1.52 crashes on a sentence in some 25,000."""
    waiting, running = list(parts), []
    while waiting or running:
        while waiting and len(running) < workers:
            part = waiting.pop(0)
            running.append((part, multiprocessing.Process(target=say_part, args=part)))
            running[-1][1].start()
        part, process = running.pop(0)
        process.join()
        if process.exitcode:
            click.echo(f"part {part[0]} crashed ({process.exitcode}) and is left out", err=True)
        else:
            yield part[2]


@main.command("synthesise")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path))
@click.option("--minutes", default=600, show_default=True)
@click.option("--parts", default=48, show_default=True, help="Each with its number as seed.")
@click.option("--workers", default=os.cpu_count(), show_default="all cores")
def synthesise_corpus(output: Path, minutes: int, parts: int, workers: int) -> None:
    """Invent sentences and let espeak-ng say them; every fiftieth is for tests."""
    with tempfile.TemporaryDirectory() as scratch:
        def found() -> Iterator[tuple[str, np.ndarray, Marks]]:
            jobs = [(seed, minutes * 60 / parts, Path(scratch) / f"{seed}.pickle") for seed in range(parts)]
            with progress(parts, "speech") as bar:
                for file in in_processes(jobs, workers):
                    for k, (samples, marks) in enumerate(pickle.loads(file.read_bytes())):
                        yield f"{'test' if k % 50 == 0 else 'train'}{file.stem}_{k:05d}.wav", samples, marks
                    file.unlink()
                    bar.update()

        write_corpus(output, "espeak", ("test",), found())


@main.command()
@click.argument("corpus", type=click.Path(path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path))
@click.option("--together", default=30, show_default=True, help="Recordings in one clip, said by one face.")
def faces(corpus: Path, output: Path, together: int) -> None:
    """Let synthetic actors say the recordings of a corpus: clips with sound and landmarks, for pretraining."""
    table, mouths = json.loads((corpus / "phones.json").read_text()), np.load(corpus / "mouth.npz")
    names = [name for name in sorted(mouths.files) if not name.startswith(tuple(table["test"]))]
    with progress(-(-len(names) // together), "faces") as bar:
        for seed, start in enumerate(range(0, len(names), together)):
            tracks, sounds = [], []
            for name in names[start : start + together]:
                samples = load_audio(corpus / name)
                frames = min(len(samples) // SAMPLES_PER_FRAME, len(mouths[name]))
                tracks.append(mouths[name][:frames])
                sounds.append(samples[: frames * SAMPLES_PER_FRAME])
            neutral = neutral_landmarks(make_identity(seed))
            landmarks = animate(neutral, np.concatenate(tracks).astype(float), np.random.default_rng(seed))
            _write_clip(output / f"{corpus.name}{seed:03d}", np.concatenate(sounds), landmarks, neutral)
            bar.update()


def _write_clip(root: Path, sound: np.ndarray, landmarks: np.ndarray, neutral: np.ndarray) -> None:
    root.mkdir(parents=True, exist_ok=True)
    clip, count = Clip(root), len(landmarks)
    pose = np.diag([1, -1, -1, 1]).astype(np.float32)
    pose[2, 3] = 1.0
    save_wav(clip.audio, sound)
    save_landmarks(clip.landmarks, landmarks)
    save_landmarks(clip.neutral, neutral.reshape(1, 68, 3).astype(np.float32))
    save_array(clip.poses, np.repeat(pose[None], count, axis=0))
    clip.save_info(ClipInfo(root.name, "made", "0" * 64, 512, 512, count, (1126.4, 1126.4, 256.0, 256.0), (0, 0, 512),
                            [Shot(0, count, clip.background.name)], split={"train": [(0, count)]}))


if __name__ == "__main__":
    main()
