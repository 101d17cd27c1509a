"""When each phone of a clip is said, for the rows of `talkhead stage1 eval` that need it.

Writes CLIP/phones.json (docs/formats.md). Needs a package that talkhead does not: `pip install pocketsphinx`; English only.

    python -m tools.phone_times me                        # what pocketsphinx hears
    python -m tools.phone_times me --text said.txt        # the words are known: much surer
    python -m tools.phone_times talk.flac -o phones.json

TEXT holds what is said, or lines `start stop words` in seconds, as Audacity exports labels; the rest is then a pause.
Without it, the sound is cut in pauses, and a stretch in which next to nothing is heard becomes SPN: sound of unknown phones.
"""

import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import click
import numpy as np

from shared.errors import TalkheadError
from shared.landmarks import FPS, SAMPLE_RATE
from shared.media.audio_io import load_audio
from shared.phones import SILENCE, UNKNOWN, Marks, save_phones
from stage1_audio2lmk.audio.features import levels
from tools.recogniser import align, recognise

LONGEST = 20.0  # seconds of a stretch that is recognised at once
QUIET_DB, FLOOR_DB = 30, -60  # below the loud parts and of full scale: a pause
LEAST_PAUSE = 0.2  # seconds
PADDINGS = (0.3, 0.304, 0.5, 0.1, 0.0)  # seconds of silence around a stretch; the aligner fails at some of them
WIDE = {"beam": 1e-100, "pbeam": 1e-100, "wbeam": 1e-80}  # the words are given, so searching widely is cheap
SOUNDS = ("audio.wav", "audio.flac")

Span = tuple[float, float]


def stretches(samples: np.ndarray) -> list[Span]:
    """Seconds (start, stop) of speech between pauses, each at most LONGEST; they end in the middle of pauses."""
    level = levels(samples)
    loud = level > max(np.percentile(level, 95) - QUIET_DB, FLOOR_DB)
    if not loud.any():
        return []
    edges = np.flatnonzero(np.diff(np.pad(loud.astype(int), 1)))
    runs = [(int(a), int(b)) for a, b in zip(edges[::2], edges[1::2])]
    found: list[list[int]] = [list(runs[0])]
    for a, b in runs[1:]:
        pause = a - found[-1][1]
        if pause < LEAST_PAUSE * FPS or (b - found[-1][0] <= LONGEST * FPS and pause < FPS):
            found[-1][1] = b
        else:
            found.append([a, b])
    middle = [(x[1] + y[0]) // 2 for x, y in zip(found, found[1:])]
    starts, stops = [max(0, found[0][0] - FPS), *middle], [*middle, min(len(level), found[-1][1] + FPS)]
    parts = []
    for start, stop in zip(starts, stops):  # where nobody pauses, equal parts
        count = -(-(stop - start) // int(LONGEST * FPS))
        cuts = np.linspace(start, stop, count + 1).round().astype(int)
        parts += [(int(a) / FPS, int(b) / FPS) for a, b in zip(cuts, cuts[1:])]
    return parts


def read_text(file: Path, seconds: float) -> list[tuple[float, float, str]]:
    """(start, stop, words) of each line, or of the whole recording where no line begins with two numbers.

    Raises TalkheadError for times that do not fit the recording or one another.
    """
    lines = [line for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    timed = [re.fullmatch(r"\s*([\d.]+)\s+([\d.]+)\s+(\S.*)", line) for line in lines]
    if not lines or not all(timed):
        return [(0.0, seconds, words_of(" ".join(lines)))]
    spans = [(float(m[1]), float(m[2]), words_of(m[3])) for m in timed if m]
    ends = [0.0, *(stop for _, stop, _ in spans)]
    for (start, stop, words), before in zip(spans, ends):
        if not before <= start < stop <= seconds + 0.5 / FPS:
            raise TalkheadError(f"{file}: {words!r} should lie between {before:g} and {seconds:.2f} s, found {start:g} to "
                                f"{stop:g}")
    return spans


def words_of(text: str) -> str:
    """Text -> lower-case words without punctuation, parted by spaces."""
    return " ".join(re.findall(r"[a-z]+(?:'[a-z]+)*", text.lower().replace("’", "'")))


def phone_times(samples: np.ndarray, new_decoder: Callable, said: list[tuple[float, float, str]] | None = None) -> Marks:
    """Samples (n,) at 16 kHz, and what is said in which seconds if that is known -> marks from 0 to the last pause.

    A stretch whose words do not fit the sound becomes SPN. Raises TalkheadError for words that the decoder does not know.
    """
    marks: Marks = [(0.0, SILENCE)]
    for start, stop, words in said or [(*span, "") for span in stretches(samples)]:
        found: Marks = []
        for padding in PADDINGS:
            part = np.pad(samples[round(start * SAMPLE_RATE) : round(stop * SAMPLE_RATE)], round(padding * SAMPLE_RATE))
            decoder = new_decoder()  # one that has failed is unusable
            if unknown := [word for word in words.split() if decoder.lookup_word(word) is None]:
                raise TalkheadError(f"the recogniser does not know the word {unknown[0]!r}; write it as words that sound like it")
            with suppress(RuntimeError):
                heard = align(part, decoder, words) if words else recognise(part, decoder)
                found = [(at - padding, name) for at, name in heard]
                break
        found = found or [(0.0, UNKNOWN), (stop - start, SILENCE)]
        marks += [(round(start + min(max(at, 0.0), stop - start), 3), name) for at, name in found]
    kept = [mark for mark, after in zip(marks, [*marks[1:], (np.inf, "")]) if after[0] > mark[0]]
    return [mark for mark, before in zip(kept, [(0.0, ""), *kept]) if mark[1] != before[1] or mark[1] != SILENCE]


@click.command()
@click.argument("clip", type=click.Path(exists=True, path_type=Path))
@click.option("--text", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="What is said.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="[default: CLIP/phones.json]")
def main(clip: Path, text: Path | None, output: Path | None) -> None:
    """Write when each phone of CLIP, a clip folder or a recording, is said."""
    from pocketsphinx import Decoder

    sound = next((clip / name for name in SOUNDS if (clip / name).is_file()), None) if clip.is_dir() else clip
    if sound is None:
        raise click.UsageError(f"{clip}: there is no {SOUNDS[0]}")
    if output is None and not clip.is_dir():
        raise click.UsageError("say with -o where to write")
    samples = load_audio(sound)
    try:
        said = read_text(text, len(samples) / SAMPLE_RATE) if text else None
        marks = phone_times(samples, lambda: Decoder(samprate=SAMPLE_RATE, loglevel="FATAL", **(WIDE if said else {})), said)
    except TalkheadError as error:
        raise click.UsageError(str(error)) from error
    out = output or clip / "phones.json"
    save_phones(out, marks, "pocketsphinx, " + ("words given" if text else "words recognised"))
    unknown = sum(name == UNKNOWN for _, name in marks)
    if unknown:
        click.echo(f"{unknown} stretch(es) of sound in which no phones were found are marked SPN", err=True)
    click.echo(f"{out}: {sum(name not in (SILENCE, UNKNOWN) for _, name in marks)} phones in {len(samples) / SAMPLE_RATE:.1f} s")


if __name__ == "__main__":
    main()
