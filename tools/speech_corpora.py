"""Synthetic speech in many languages and voices, for `python -m stage1_audio2lmk.encoders.train_speech_encoder`.

Needs a package that talkhead does not: `pip install espeakng-loader`. Used once, to train the shipped encoder.

    python -m tools.speech_corpora --minutes 640 -o corpora/synthetic
"""

import multiprocessing
import os
import random
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
from scipy.signal import resample_poly

from shared.errors import TalkheadError
from shared.landmarks import SAMPLE_RATE, SAMPLES_PER_FRAME
from shared.media.audio_io import save_wav
from shared.progress import progress
from tools.espeak import PITCH, RANGE, RATE, SYNCHRONOUS, Espeak

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


class Speaker:
    """espeak-ng of the package espeakng_loader, saying text."""

    def __init__(self) -> None:
        import espeakng_loader

        self.espeak = Espeak(espeakng_loader.get_library_path(), output=SYNCHRONOUS, data=espeakng_loader.get_data_path())

    def say(self, text: str, voice: str, speed: int, pitch: int, span: int) -> np.ndarray:
        """Text -> samples (n,) at 16 kHz within ±1. Raises TalkheadError for an unknown voice."""
        if not self.espeak.set_voice(voice):
            raise TalkheadError(f"espeak-ng has no voice {voice!r}")
        samples, _ = self.espeak.say(text, {RATE: speed, PITCH: pitch, RANGE: span})
        sound = (samples if len(samples) else np.zeros(1)).astype(np.float32) / 32768
        return resample_poly(sound, 320, 441)


def sentence(rng: random.Random) -> str:
    """Six to thirteen invented words with pauses."""
    words = ["".join(rng.choice(ONSETS) + rng.choice(NUCLEI) + rng.choice(CODAS) for _ in range(rng.choice((1, 1, 2, 2, 3))))
             for _ in range(rng.randint(6, 13))]
    return " ".join(word + (rng.choice(("", ",", ".")) if k % 4 == 3 else "") for k, word in enumerate(words))


def synthesise(speaker: Speaker, rng: random.Random) -> np.ndarray:
    """One invented sentence in a voice, language, tempo and pitch drawn from `rng`: samples (640·T,)."""
    while True:
        language = rng.choice(LANGUAGES[:ENGLISH] if rng.random() < 0.45 else LANGUAGES[ENGLISH:])
        sound = speaker.say(sentence(rng), f"{language}+{rng.choice(VARIANTS)}", rng.randint(115, 230), rng.randint(15, 85),
                            rng.randint(20, 90))
        if len(sound) >= SAMPLE_RATE and np.abs(sound).max() > 0:
            sound = sound * (rng.uniform(0.15, 0.9) / np.abs(sound).max())
            return sound[: len(sound) // SAMPLES_PER_FRAME * SAMPLES_PER_FRAME].astype(np.float32)


def say_part(seed: int, seconds: float, folder: Path) -> None:
    """Write recordings of `seconds` in all, drawn by `seed`, into a folder."""
    speaker, rng, said, count = Speaker(), random.Random(seed), 0.0, 0
    while said < seconds:
        samples = synthesise(speaker, rng)
        save_wav(folder / f"said{seed:02d}_{count:05d}.wav", samples)
        said, count = said + len(samples) / SAMPLE_RATE, count + 1


def in_processes(parts: list[tuple[int, float, Path]], workers: int) -> Iterator[int]:
    """`say_part` of each, in a process of its own, since espeak-ng 1.52 crashes on a sentence in some 25,000; yields seeds.

    What a part had written before it crashed stays.
    """
    waiting, running = list(parts), []
    while waiting or running:
        while waiting and len(running) < workers:
            part = waiting.pop(0)
            running.append((part, multiprocessing.Process(target=say_part, args=part)))
            running[-1][1].start()
        part, process = running.pop(0)
        process.join()
        if process.exitcode:
            click.echo(f"part {part[0]} crashed ({process.exitcode}) and is not complete", err=True)
        yield part[0]


@click.command()
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path))
@click.option("--minutes", default=640, show_default=True)
@click.option("--parts", default=48, show_default=True, help="Each with its number as seed.")
@click.option("--workers", default=os.cpu_count(), show_default="all cores")
def main(output: Path, minutes: int, parts: int, workers: int) -> None:
    """Invent sentences and let espeak-ng say them, as a folder of recordings."""
    output.mkdir(parents=True, exist_ok=True)
    with progress(parts, "speech") as bar:
        for _ in in_processes([(seed, minutes * 60 / parts, output) for seed in range(parts)], workers):
            bar.update()


if __name__ == "__main__":
    main()
