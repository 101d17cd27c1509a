"""Where the time of `talkhead process` goes: `python benchmarks/process_speed.py VIDEO [--seconds 60] [--workers N]`.

Prints wall and processor seconds of each step, those of the worker processes included (Linux). The video is cut to its first
seconds without coding it anew; a shorter one is processed whole. `taskset -c 0,1` in front shows what two processors need.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from unittest.mock import patch

import av

from process_data import lip_lag, pipeline, quality, shots, video
from process_data.detection import detection_pass
from process_data.report import page
from process_data.segmentation import segmentation_pass
from process_data.tracking import bundle_adjustment, track
from shared import machine
from shared.clip import Clip
from shared.landmarks import FPS

# module, function and title of each step, in their order; calls of one inside another count for the outer one
STEPS = [
    (pipeline, "probe", "probe"), (pipeline, "sha256", "hash of the source"), (pipeline, "_write_video", "crop, video.mp4"),
    (detection_pass, "detect_video", "detector"), (shots, "find_cuts", "cuts"),
    (bundle_adjustment, "mean_shape", "first shape"), (bundle_adjustment, "initial_poses", "first poses"),
    (bundle_adjustment, "fit", "fits of shape and poses"), (track, "_reference", "references"),
    (track, "track_corners", "corners and lip edges"), (video, "no_picture", "frames without a picture"),
    (quality, "find_excluded", "excluded spans"), (video, "load_sound", "sound"), (lip_lag, "estimate_lag", "lag of the lips"),
    (segmentation_pass, "write_plates", "plates and colours"), (segmentation_pass, "segment_frames", "labels, mattes, torso"),
    (video, "notes", "notes on the file"), (pipeline, "save_with_content", "clip.json"), (page, "write_report", "report"),
    (pipeline, "finish_clip", "publishing"),
]


def processor_seconds() -> float:
    """Of this process and all that it started, ended ones included; without /proc, of this process and ended ones."""
    total, tick = sum(os.times()[:4]), os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 1
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == os.getpid():
            total += sum(map(int, fields[11:13])) / tick
    return total


class Timer:
    """Adds up wall and processor seconds by title."""

    def __init__(self) -> None:
        self.spent: dict[str, list[float]] = {title: [0.0, 0.0] for _, _, title in STEPS}
        self.inside = False

    def __call__(self, function: Callable, title: str) -> Callable:
        """The same function, timed."""
        def timed(*args, **options):
            if self.inside:
                return function(*args, **options)
            self.inside = True
            before = time.perf_counter(), processor_seconds()
            try:
                return function(*args, **options)
            finally:
                self.inside = False
                for k, now in enumerate((time.perf_counter(), processor_seconds())):
                    self.spent[title][k] += now - before[k]
        return timed


def cut(source: Path, target: Path, seconds: float) -> None:
    """Copy the first `seconds` of picture and sound."""
    with av.open(str(source)) as old, av.open(str(target), "w") as new:
        tracks = [*old.streams.video[:1], *old.streams.audio[:1]]
        copies = {track.index: new.add_stream_from_template(track) for track in tracks}
        for packet in old.demux(tracks):
            if packet.dts is not None and packet.pts * packet.time_base < seconds:
                packet.stream = copies[packet.stream.index]
                new.mux(packet)


def measure(source: Path, clip: Path, workers: int | None) -> tuple[Clip, Timer, float, float]:
    """Process a video -> its clip, the timer, and all wall and processor seconds."""
    timer = Timer()
    with ExitStack() as stack:
        for owner, name, title in STEPS:
            stack.enter_context(patch.object(owner, name, timer(getattr(owner, name), title)))
        before = time.perf_counter(), processor_seconds()
        made = pipeline.process(source, clip, workers=workers, quiet=True)
        return made, timer, time.perf_counter() - before[0], processor_seconds() - before[1]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("video", type=Path)
    options.add_argument("--seconds", type=float, default=60)
    options.add_argument("--workers", type=int)
    options.add_argument("--keep", type=Path, help="folder to keep the clip in")
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / f"cut{chosen.video.suffix}"
        cut(chosen.video, source, chosen.seconds)
        clip, timer, wall, cpu = measure(source, chosen.keep or Path(folder) / "clip", chosen.workers)
        length = clip.info.frames / FPS
        print(f"{chosen.video.name}: {length:.1f} s at {clip.info.width}², {machine.workers(chosen.workers)} workers\n\n"
              "| step | wall s | processor s | processor s a second of video |\n|---|---|---|---|")
        rest = [wall - sum(w for w, _ in timer.spent.values()), cpu - sum(c for _, c in timer.spent.values())]
        for title, (w, c) in [*timer.spent.items(), ("the rest", rest), ("all", (wall, cpu))]:
            print(f"| {title} | {w:.2f} | {c:.2f} | {c / length:.3f} |")


if __name__ == "__main__":
    main()
