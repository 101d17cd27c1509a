"""Synthetic actors that say recordings of people: clips with sound and landmarks, for `stage1 pretrain`.

Needs a package that talkhead does not: `pip install pocketsphinx`; English only. Used once, for the base model that ships.

    python -m tools.made_faces LibriSpeech --test 8 -o clips/read
"""

from pathlib import Path

import click
import numpy as np

from process_data.actor.identity import make_identity
from process_data.actor.proportions import neutral_landmarks
from process_data.actor.speech import VISEMES, animate, mouth_track
from shared.clip import Clip, ClipInfo, Shot
from shared.landmarks import SAMPLE_RATE, SAMPLES_PER_FRAME, save_array, save_landmarks
from shared.media.audio_io import load_audio, save_wav
from shared.phones import SILENCE, UNKNOWN, Marks
from shared.progress import progress
from tools.recogniser import recognise

# phones of the recogniser -> those of espeak-ng, whose mouth shapes are known
ARPABET = dict(AA="A", AE="a", AH="V", AO="O", AW="aU", AY="aI", B="b", CH="tS", D="d", DH="D", EH="E", ER="3", EY="eI", F="f",
               G="g", HH="h", IH="I", IY="i", JH="dZ", K="k", L="l", M="m", N="n", NG="N", OW="oU", OY="OI", P="p", R="r", S="s",
               SH="S", T="t", TH="T", UH="U", UW="u", V="v", W="w", Y="j", Z="z", ZH="Z")


def mouth_of(marks: Marks, frames: int) -> np.ndarray:
    """Phones -> shape of the mouth in every video frame (T, 5), by the synthetic actor's rules."""
    stops = [start for start, _ in marks[1:]] + [frames * SAMPLES_PER_FRAME / SAMPLE_RATE]
    phonemes = []
    for (start, name), stop in zip(marks, stops):
        name = ARPABET.get(name, name)
        if name not in (SILENCE, UNKNOWN) and stop > start:
            phonemes.append((name if VISEMES.get(name[:2]) or VISEMES.get(name[:1]) else "@", start, stop))
    return mouth_track(phonemes, frames).astype(np.float32)


def said_in(samples: np.ndarray) -> Marks:
    """Samples at 16 kHz -> phones that pocketsphinx recognises; none where it finds next to none."""
    from pocketsphinx import Decoder

    try:
        return recognise(samples, Decoder(samprate=SAMPLE_RATE, loglevel="FATAL"))  # one that has failed is unusable
    except RuntimeError:
        return []


def make_clip(root: Path, seed: int, said: list[tuple[np.ndarray, Marks]]) -> None:
    """Write the clip of the actor `seed` saying recordings (n,) with these phones one after the other."""
    tracks, sounds = [], []
    for samples, marks in said:
        frames = len(samples) // SAMPLES_PER_FRAME
        tracks.append(mouth_of(marks, frames))
        sounds.append(samples[: frames * SAMPLES_PER_FRAME])
    neutral = neutral_landmarks(make_identity(seed))
    landmarks = animate(neutral, np.concatenate(tracks).astype(float), np.random.default_rng(seed))
    _write_clip(root, np.concatenate(sounds), landmarks, neutral)


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path))
@click.option("--test", multiple=True, help="Beginning of the names of recordings that are left out. Repeatable.")
@click.option("--together", default=30, show_default=True, help="Recordings in one clip, said by one face.")
def main(folder: Path, output: Path, test: tuple[str, ...], together: int) -> None:
    """Let synthetic actors say the recordings of FOLDER; those in which hardly a phone is recognised are left out."""
    files = [file for file in sorted(folder.iterdir()) if file.suffix in (".flac", ".wav") and not file.name.startswith(test)]
    waiting: list[tuple[np.ndarray, Marks]] = []
    made = 0
    with progress(len(files), "faces") as bar:
        for k, file in enumerate(files):
            samples = load_audio(file)
            if marks := said_in(samples):
                waiting.append((samples, marks))
            if waiting and (len(waiting) == together or k == len(files) - 1):
                make_clip(output / f"{folder.name}{made:03d}", made, waiting)
                waiting, made = [], made + 1
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
