"""`talkhead process`: a video of one person to a clip folder."""

import dataclasses
import itertools
import re
from pathlib import Path

import click

from shared.errors import TalkheadError
from talkhead.commands.options import PATH, config_options, overwrite_option
from talkhead.commands.output import print_clip
from talkhead.commands.runner import CONTINUES, when_stopped


def parse_ranges(values: tuple[str, ...]) -> dict[str, list[tuple[int, int]]] | None:
    """("train=0:1286", "test=1286:1429") -> {"train": [(0, 1286)], …}; None if empty. Raises TalkheadError."""
    split: dict[str, list[tuple[int, int]]] = {}
    for value in values:
        name, _, span = value.partition("=")
        start, _, stop = span.partition(":")
        plain = all(re.fullmatch("[0-9]{1,9}", number) for number in (start, stop))
        if not (name and plain and int(start) < int(stop)):
            raise TalkheadError(f"--split takes NAME=START:STOP in frames, found {value!r}")
        split.setdefault(name, []).append((int(start), int(stop)))
    spans = [(name, *span) for name, found in split.items() for span in found]
    for (name, a, b), (other, c, d) in itertools.combinations(spans, 2):
        if name != other and a < d and c < b:
            raise TalkheadError(f"--split {name}={a}:{b} and --split {other}={c}:{d} overlap; a frame has one split")
    return split or None


@click.command()
@click.argument("video", type=PATH)
@click.argument("clip", type=PATH)
@click.option("--split", "splits", multiple=True, metavar="NAME=START:STOP",
              help="Frames of a split; may be repeated.  [default: train the first 90 %, test the rest]")
@click.option("--detector", type=click.Choice(["mediapipe", "fan"]), default="mediapipe", show_default=True,
              help="What finds the face; fan needs `pip install 'talkhead[fan]'` and its weights.")
@click.option("--landmarker", type=PATH, help="Another face_landmarker.task than the one that ships.")
@click.option("--models", type=PATH, help="Folder with model files that replace those that ship, or with fan's.")
@click.option("--person", default="", metavar="left|right|N", help="Whom to keep to where several people are in the picture; "
              "1 is the first from the left.  [default: the one whose face is largest over the whole video]")
@click.option("--fix-sync", is_flag=True, help="Shift the sound so that it goes with the lips.")
@click.option("--workers", type=click.IntRange(1, 1024),
              help="Processes that work.  [default: as many as processors and memory allow]")
@click.option("--resume/--restart", default=True, help="Continue an interrupted run.  [default: --resume]")
@overwrite_option
@config_options
def process(video: Path, clip: Path, splits: tuple[str, ...], detector: str, landmarker: Path | None, models: Path | None,
            person: str, fix_sync: bool, workers: int | None, resume: bool, overwrite: bool, config_file: Path | None,
            overrides: tuple[str, ...]) -> None:
    """VIDEO -> CLIP folder: tracked landmarks, poses, labels, background, sound, report.

    \b
    talkhead process me.mp4 me
    talkhead process news.mp4 anchor --split train=0:1286 --split test=1286:1429
    talkhead process phone.mov me --fix-sync
    """
    when_stopped(CONTINUES if resume else "Stopped. The same command with --resume continues where it was.")
    from process_data.config import ProcessConfig
    from process_data.detection.detection_pass import DetectorChoice
    from process_data.pipeline import process as run
    from shared.config import load_config

    if fix_sync:
        overrides = (*overrides, "fix_sync=true")
    config = load_config(ProcessConfig, config_file, overrides)
    if person:
        config = dataclasses.replace(config, person=person)
    made = run(video, clip, config=config, detector=DetectorChoice(detector, landmarker, models), resume=resume,
               splits=parse_ranges(splits), workers=workers, overwrite=overwrite)
    print_clip(made)
