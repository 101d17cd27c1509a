"""Recordings that are landmarks and sound only -> clips for stage 1: `python -m tools.talker_clips FOLDER ... -o OUT`.

A FOLDER holds audio.flac, landmarks.npy, poses.npy, neutral.npy and source.json with `speaker`, `segments` (start and stop of
stretches that belong together), `bad` stretches, `lag_ms` and the camera. Segments become shots, so that motion across a join
counts as none where a fit is sharpened; training windows of `pretrain` may still run across.
Where the lips are more than MOST_LAG after or before the sound, the sound is shifted.
"""

import json
from pathlib import Path

import click
import numpy as np

from shared.clip import Clip, ClipInfo, ExcludedSpan, Shot
from shared.landmarks import SAMPLE_RATE, SAMPLES_PER_FRAME, load_landmarks, save_array, save_landmarks
from shared.media.audio_io import load_audio, save_wav

MOST_LAG = 80  # milliseconds


def shift_sound(samples: np.ndarray, lag_ms: float) -> np.ndarray:
    """Samples (n,) later by `lag_ms`, or earlier where it is negative; of the same length, silence where nothing is known."""
    by = round(lag_ms * SAMPLE_RATE / 1000)
    return np.pad(samples, (max(0, by), max(0, -by)))[max(0, -by) :][: len(samples)]


def write_clip(folder: Path, out: Path, number: int) -> Clip:
    """A folder as above -> a clip in `out`, whose name is SPEAKER_sentenceN, by which `pretrain` tells speakers apart."""
    source = json.loads((folder / "source.json").read_text())
    clip, landmarks = Clip(out / folder.name), load_landmarks(folder / "landmarks.npy")
    count, lag = len(landmarks), source.get("lag_ms")
    samples = load_audio(folder / "audio.flac")[: count * SAMPLES_PER_FRAME]
    samples = np.pad(samples, (0, count * SAMPLES_PER_FRAME - len(samples)))
    if lag is not None and abs(lag) > MOST_LAG:
        samples = shift_sound(samples, lag)
    clip.root.mkdir(parents=True, exist_ok=True)
    save_wav(clip.audio, samples)
    save_landmarks(clip.landmarks, landmarks)
    save_landmarks(clip.neutral, load_landmarks(folder / "neutral.npy").reshape(1, 68, 3))
    save_array(clip.poses, np.load(folder / "poses.npy").astype(np.float32))
    size = int(source["tracked_at_px"])
    shots = [Shot(start, stop, clip.background.name) for start, stop in source.get("segments") or [[0, count]]]
    bad = [ExcludedSpan(*stretch[:2], "face") for stretch in source.get("bad", [])]
    clip.save_info(ClipInfo(f"{source.get('speaker', folder.name)}_sentence{number}", "talker", "0" * 64, size, size, count,
                            tuple(source["intrinsics"]), (0, 0, size), shots, split={"train": [(0, count)]}, excluded=bad))
    return clip


@click.command()
@click.argument("folders", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path))
def main(folders: tuple[Path, ...], output: Path) -> None:
    """Make clips of talkers."""
    for number, folder in enumerate(folders):
        clip = write_clip(folder, output, number)
        click.echo(f"{clip.root}: {clip.info.frames} frames")


if __name__ == "__main__":
    main()
