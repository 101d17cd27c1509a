"""Numbers and verdicts on the footage of processed clips, one row each: `python benchmarks/footage.py CLIP… [--time]`.

Poses are as in each clip's quality.json, since their residuals are not kept; the rest is measured anew. With --time also the
seconds that looking and judging take, on one thread, and the length of the clip.
"""

import argparse
import time
from pathlib import Path

import cv2

from process_data.report.footage import sample_frames, samples
from process_data.report.scores import read_scores
from process_data.report.topics import LIMITS, judge
from shared.clip import Clip
from shared.landmarks import FPS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("clips", nargs="+", type=Path)
    parser.add_argument("--time", action="store_true")
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    print("| clip | " + " | ".join(LIMITS) + " | edges | background | poses | torso |")
    print("|---" * (len(LIMITS) + 5) + "|")
    for folder in arguments.clips:
        clip, start = Clip(folder), time.perf_counter()
        looked = list(samples(clip, sample_frames(clip)))
        decoded = time.perf_counter()
        scores = [topic.score for topic in judge(clip, looked, None, read_scores(clip.quality))]
        end = time.perf_counter()
        numbers = {name: value for score in scores for name, value in score.numbers.items()}
        cells = [f"{numbers[name]:.3f}" if name in numbers else "–" for name in LIMITS]
        print(f"| {folder.name} | " + " | ".join([*cells, *(score.verdict for score in scores)]) + " |", flush=True)
        if arguments.time:
            print(f"  {decoded - start:.2f} s for reading {len(looked)} frames, {end - decoded:.2f} s for judging them, of "
                  f"{clip.info.frames / FPS:.1f} s of video")


if __name__ == "__main__":
    main()
