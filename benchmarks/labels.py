"""Labels, mattes and background plates of `talkhead process` against the truth of synthetic people.

\b
    python benchmarks/labels.py films --look long --look braids --seeds 2,3 --tag after
    PYTHONPATH=../older python benchmarks/labels.py films --tag before      # the films that are there, by another version

Films each person once (FOLDER/LOOK-SEED), processes the film and measures it: FOLDER/LOOK-SEED/TAG.json. Prints a table of all
tags there are. Figures are means over the frames:

\b
- overlap: intersection over union of head (with mouth), neck, torso and background;
- wrong at outline: share of pixels within 8 px of the true head's outline that are given to another of head, body and
  background; below jaw: those of them below the line of the jaw;
- head or body: share of the true person below the line of the jaw that is given to the wrong one of head and body;
- alpha: mean absolute error, of 1, within 8 px of the true head's outline away from neck and torso;
- flicker: share of pixels whose label changes between frames in which the true one stays, in thousandths;
- plate: RMS error in grey levels over pixels that the true person ever covers, those of them marked seen, and the others; seen
  precision: share of the pixels marked seen that are truly free of the person in one frame of fifty.
"""

import json
from pathlib import Path
from typing import Any

import click
import cv2
import numpy as np

from process_data.config import ProcessConfig
from process_data.pipeline import process
from process_data.segmentation.colors import above_jaw
from shared.camera import project
from shared.clip import BACKGROUND, HEAD, MOUTH, NECK, TORSO, Clip
from shared.files import read_json, write_json
from shared.landmarks import load_landmarks
from shared.media.video_io import read_gray_video, read_png
from shared.poses import load_poses

BAND = 8  # pixels to either side of the head's outline
LOOKS: dict[str, dict[str, Any]] = {
    "plain": {}, "long": {"hair": "long"}, "curly": {"hair": "curly", "turn": 20, "nod": 12},
    "braids": {"hair": "braids", "bare_shoulders": True, "dark_skin": True, "bun": True, "turn": 20, "nod": 12},
    "beard": {"beard": True, "glasses": True, "turn": 20, "nod": 12}, "dark": {"hair": "long", "dark_room": True}}
FREE = 1 / 50  # of the frames: a pixel must be free of the person in so many to have been seen


def grouped(labels: np.ndarray) -> np.ndarray:
    """Labels (H,W) -> 0 background, 1 body, 2 head."""
    return np.array([0, 1, 1, 2, 2], np.uint8)[labels]


def near(mask: np.ndarray, reach: int) -> np.ndarray:
    """(H,W) bool: at most `reach` pixels, in a square, from a pixel of `mask` (H,W) bool."""
    return cv2.dilate(mask.astype(np.uint8), np.ones((2 * reach + 1, 2 * reach + 1), np.uint8)) > 0


def measure(clip: Clip, truth: Path) -> dict[str, float]:
    """Figures of a clip against the folder `truth` of the film that it was made of."""
    facts = read_json(truth / "truth.json")
    pixels = project(load_landmarks(truth / "landmarks.npy").astype(float), load_poses(truth / "poses.npy").astype(float),
                     tuple(facts["intrinsics"]))
    has_alpha = (truth / "alpha.mkv").is_file()
    both = np.zeros((4, 2))  # intersection and union by class
    rows: dict[str, list[float]] = {name: [] for name in ("wrong at outline %", "wrong below jaw %", "head or body %", "alpha",
                                                         "flicker")}
    before = free = None
    count = clip.info.frames
    alphas = read_gray_video(truth / "alpha.mkv", 0, count) if has_alpha else iter([None] * count)
    for found, alpha, true, true_alpha, points in zip(clip.label_frames(), clip.alpha_frames(),
                                                      read_gray_video(truth / "labels.mkv", 0, count), alphas, pixels):
        height, width = true.shape
        for row, kinds in zip(both, ((HEAD, MOUTH), (NECK,), (TORSO,), (BACKGROUND,))):
            a, b = np.isin(found, kinds), np.isin(true, kinds)
            row += (a & b).sum(), (a | b).sum()
        ours, theirs = grouped(found), grouped(true)
        head, body = theirs == 2, theirs == 1
        band = near(head, BAND) & near(~head, BAND)
        below = ~above_jaw(points, height, width)
        rows["wrong at outline %"].append(100 * (ours != theirs)[band].mean())
        rows["wrong below jaw %"].append(100 * (ours != theirs)[band & below].mean())
        person = below & (theirs > 0)
        rows["head or body %"].append(100 * ((ours != theirs) & (ours > 0))[person].mean())
        if true_alpha is not None:
            edge = band & ~near(body, BAND)
            rows["alpha"].append(np.abs(alpha.astype(float) - true_alpha)[edge].mean() / 255)
        if before is not None:
            rows["flicker"].append(1000 * ((found != before[0]) & (true == before[1])).mean())
        before = found, true
        bare = (true == BACKGROUND) if true_alpha is None else (true_alpha == 0)
        free = bare.astype(int) if free is None else free + bare
    covered, shown = free < count, free >= FREE * count
    seen = read_png(clip.seen_path(0))[..., 0] == 255
    error = (read_png(clip.background).astype(float) - read_png(truth / "background.png")) ** 2

    def rms(mask: np.ndarray) -> float:
        return float(np.sqrt(error[mask].mean())) if mask.any() else float("nan")

    overlap = {f"overlap {name}": float(a / b) for name, (a, b) in zip(("head", "neck", "torso", "background"), both)}
    return {**overlap, **{name: float(np.nanmean(values)) if values else float("nan") for name, values in rows.items()},
            "plate, ever covered": rms(covered), "plate, covered and seen": rms(covered & seen),
            "plate, never covered": rms(~covered), "seen, share": float(seen.mean()),
            "seen, precision": float(shown[seen].mean()), "seen, recall": float(seen[shown].mean())}


@click.command(help=__doc__)
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--look", "looks", multiple=True, type=click.Choice(list(LOOKS)),
              help="Looks to film; may be repeated. Without it: the films in FOLDER.")
@click.option("--seeds", default="2,3", show_default=True, help="Whom to film.")
@click.option("--size", default=512, show_default=True, help="Pixels.")
@click.option("--seconds", default=10.0, show_default=True)
@click.option("--tag", default="now", show_default=True, help="Name of the figures of this version.")
def main(folder: Path, looks: tuple[str, ...], seeds: str, size: int, seconds: float, tag: str) -> None:
    for look in looks:
        from process_data.actor.actor import make_actor
        from process_data.actor.look import Look  # not in the versions before the looks, whose films are measured too

        for seed in map(int, seeds.split(",")):
            if not (folder / f"{look}-{seed}" / "truth" / "truth.json").is_file():
                make_actor(folder / f"{look}-{seed}", size=size, seconds=seconds, seed=seed, look=Look(**LOOKS[look]))
    table: dict[str, dict[str, float]] = {}
    for film in sorted(path.parent for path in folder.glob("*/truth")):
        clip = Clip(film / f"clip-{tag}")
        if not clip.exists():
            process(film / "actor.mp4", clip.root, config=ProcessConfig())
        write_json(film / f"{tag}.json", measure(clip, film / "truth"))
        table |= {f"{film.name} {path.stem}": json.loads(path.read_text()) for path in sorted(film.glob("*.json"))}
    print("| | " + " | ".join(table) + " |\n|" + "---|" * (len(table) + 1))
    for figure in next(iter(table.values()), {}):
        print(f"| {figure} | " + " | ".join(f"{row[figure]:.3g}" for row in table.values()) + " |")


if __name__ == "__main__":
    main()
