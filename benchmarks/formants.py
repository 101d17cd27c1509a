"""How exact and how fast the formants are: `OMP_NUM_THREADS=1 python benchmarks/formants.py`.

Synthetic vowels of a man's, a woman's and a child's tract, held and gliding, whose formants are known: the median error of
F1, F2 and F3 in per cent, and how many analyses miss by more than 20 %; then speed against real time, in CPU time.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "stage1_audio2lmk"))

from stage1_audio2lmk.audio.features import FeatureStream  # noqa: E402
from stage1_audio2lmk.audio.formants import PITCH_WINDOW, WINDOW, FormantStream  # noqa: E402
from tests.stage1_audio2lmk.synthetic_vowels import RATE, TRACTS, VOWELS, glide, steady, voice  # noqa: E402

STEP = 320
PITCHES = (90, 110, 140, 175, 210, 250, 290)
NOISES = (None, 30, 20, 10)
GLIDES = ("a i", "i a", "a u", "u i", "i u", "schwa y", "o i a u", "ae i o e a y", "a o u y i e ae")


def windows(sound: np.ndarray) -> np.ndarray:
    padded = np.concatenate([np.zeros(PITCH_WINDOW - STEP), sound])
    return np.lib.stride_tricks.sliding_window_view(padded, PITCH_WINDOW)[::STEP]


def errors(analyse: Callable[[np.ndarray], np.ndarray], track: np.ndarray, sound: np.ndarray) -> np.ndarray:
    """Relative errors (n, 3) after the first three analyses; an analysis tells of the middle of its 512 samples."""
    found = analyse(windows(sound))[3:, :3]
    truth = track[(np.arange(len(found)) + 4) * STEP - WINDOW // 2]
    return np.abs(found / truth - 1)


def table(title: str, rows: list[tuple], column: int) -> None:
    """Errors by the value of one column of rows (noise, tract, vowel, F0, errors)."""
    print(f"{title:24s} median % F1   F2   F3   off by > 20 %: F1   F2   F3")
    for value in dict.fromkeys(row[column] for row in rows):
        pooled = np.concatenate([row[-1] for row in rows if row[column] == value])
        print(f"  {value!s:22s}", *(f"{100 * x:9.1f}" for x in (*np.median(pooled, 0), *(pooled > 0.2).mean(0))))


def accuracy(analyse: Callable[[np.ndarray], np.ndarray]) -> None:
    held, gliding = [], []
    for noise in NOISES:
        for tract, scale in TRACTS.items():
            for f0 in PITCHES:
                for seed, name in enumerate(VOWELS):
                    track = steady(name, scale, 0.5)
                    for bend in (1.0, 1.12):
                        pitch = f0 * np.geomspace(1 / bend, bend, len(track))
                        error = errors(analyse, track, voice(track, pitch, scale, noise, 1000 + seed))
                        held.append((noise, tract, name, f0, error))
            for seed, names in enumerate(GLIDES):
                track = glide(names.split(), scale)
                for f0 in PITCHES[::2]:
                    pitch = f0 * np.geomspace(0.88, 1.12, len(track))
                    error = errors(analyse, track, voice(track, pitch, scale, noise, 2000 + seed))
                    gliding.append((noise, tract, names, f0, error))
    table("vowels, by SNR dB", held, 0)
    clear = [row for row in held if row[0] is None or row[0] >= 20]
    table("at 20 dB and more, tract", clear, 1)
    table("at 20 dB and more, vowel", clear, 2)
    table("at 20 dB and more, F0", clear, 3)
    table("glides, by SNR dB", gliding, 0)


def speed(analyse: Callable[[np.ndarray], np.ndarray]) -> None:
    track = np.concatenate([glide(names.split(), 1.0) for names in GLIDES])
    sound = np.tile(voice(track, np.geomspace(90, 200, len(track)), 1.0, 20), 4)
    times = []
    for _ in range(6):
        start = time.process_time()
        analyse(windows(sound))
        times.append(time.process_time() - start)
    print(f"{len(sound) / RATE / min(times):.0f} × real time on one thread")


def one_frame() -> None:
    stream, sound, times = FeatureStream(), voice(steady("a", 1.0, 8.0), 120.0).astype(np.float32), []
    for start in range(0, len(sound), 640):
        before = time.perf_counter()
        stream.push(sound[start : start + 640])
        times.append(time.perf_counter() - before)
    print(f"all features of one video frame: {1000 * np.median(times):.2f} ms")


if __name__ == "__main__":
    accuracy(lambda x: FormantStream().push(x))
    speed(lambda x: FormantStream().push(x))
    one_frame()
