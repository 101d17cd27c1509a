"""The report of `talkhead train`: held-out frames as a video, figures, warnings and what to record, in plain words."""

import math
from pathlib import Path
from typing import Any, NamedTuple

from process_data.check import VideoCheck
from process_data.report.scores import read_scores
from shared.clip import Clip
from shared.files import read_json
from shared.landmarks import FPS
from shared.report_page import ReportPage
from talkhead.held_out import FIGURES, VIDEO

SHORT = 5  # seconds of held-out frames below which figures are rough
WIDTH = 860  # CSS pixels of the page


class Figure(NamedTuple):
    """How a figure is told: its key in FIGURES, name, unit, the limits from which it is good and fair (upwards), a sentence."""

    key: str
    name: str
    unit: str
    good: float
    fair: float
    sentence: str


# limits beside the held-out figures of docs/benchmarks.md: seen from what the project's clips of 50 s and more reach
TOLD = [
    Figure("opening r", "lips from sound", "", 0.7, 0.5, "How far the mouth opens and closes with the true one, in sound it "
           "never heard, as a correlation: 1 is the same, 0 is chance. Recordings of a minute reach .64 to .79."),
    Figure("velocity", "liveliness of the lips", "×", 0.8, 0.6, "Mean speed of the lips over the true one; 1 is as lively."),
    Figure("mouth psnr", "picture of the mouth", "dB", 30, 26, "Likeness of the mouth's pixels when its true motion is given; a "
           "71 s broadcast recording at 512² reaches 32 dB."),
    Figure("head psnr", "picture of the head", "dB", 29, 25, "The same for the whole head, hair included."),
    Figure("full psnr", "whole picture", "dB", 29, 25, "The same with torso and background; the broadcast recording reaches 28 "
           "to 30 dB."),
]


def told(figure: Figure, value: float) -> str:
    """The verdict on a value: good, fair or weak. Liveliness is as weak above 1 as below."""
    if figure.key == "velocity":
        value = min(value, 1 / max(value, 1e-6))
    return "good" if value >= figure.good else "fair" if value >= figure.fair else "weak"


def write_train_report(path: Path, clip: Clip, checked: VideoCheck, held_out: Path, output: Path, kept: bool = True) -> None:
    """Write one self-contained page about the avatar `output` of a finished `clip`.

    `checked`: what was found in its video; `held_out`: the folder that `measure_held_out` wrote; `kept`: the work stays, so
    that the page may link to the report of `process`. Raises TalkheadError where a file is missing.
    """
    info, measured = clip.info, read_json(held_out / FIGURES)
    seconds = measured["frames"] / FPS
    page = ReportPage(output.stem, WIDTH)
    page.text(f"Avatar file {output.name}, made from {checked.video}: {info.frames / FPS:.0f} s, "
              f"{info.width}×{info.height} pixels. It speaks with: talkhead synth {output.name} speech.wav -o talk.mp4")
    page.heading("Recorded and made")
    page.video((held_out / VIDEO).read_bytes(), f"{seconds:.1f} s that no training saw, with their true sound. The avatar hears "
               "only this sound; head and shoulders move as in the recording.", ("recorded", "avatar, from the sound alone"))
    page.heading("Figures")
    if seconds < SHORT:
        page.text(f"Only {seconds:.1f} s were held out: take the figures as a rough guide.")
    page.rows(("what", "value", "", "against what"), [_row(figure, measured["figures"]) for figure in TOLD])
    page.heading("Warnings")
    poor = [str(score) for score in read_scores(clip.quality) if score.verdict == "poor"]
    page.notes([*checked.to_change(), *info.warnings, *poor], "Nothing to complain about.")
    page.heading("To record in addition")
    page.notes(checked.to_record(), "Nothing: the recording covers what speech needs.")
    page.heading("What the recording is like")
    page.rows(("", "measure", "value", ""), [(row.group, row.name, row.text, row.verdict) for row in checked.measures])
    if kept:
        page.heading("More")
        page.link(f"{clip.root.parent.name}/{clip.root.name}/{clip.report.name}", "Report on the processed recording: landmarks, "
                  "cut-out, curves, skipped stretches")
    page.write(path)


def _row(figure: Figure, figures: dict[str, Any]) -> tuple[str, str, str, str]:
    value = float(figures[figure.key])
    if not math.isfinite(value):
        return figure.name, "not known", "", figure.sentence
    return figure.name, f"{value:.3g}\u00a0{figure.unit}".strip(), told(figure, value), figure.sentence
