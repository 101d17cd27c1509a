"""What torso warp and torso plate leave of the torso, without any network: the plate of training frames against other frames.

    python benchmarks/torso_warp.py me --test new:1429-1779 --train 0-1286 --sheet plates.png
    python benchmarks/torso_warp.py me --write

The torso is tracked anew, from video, labels and poses of a clip folder. Then two plates are made of the training frames, by the
median of all of them pixel by pixel and by those that agree ("layers"), each aligned by similarities alone and with their warps;
each is moved onto the test frames and compared with them: root mean square in grey levels, and PSNR, inside the torso and in a
band along its outline over the background. --write puts torso.npy and torso_warp.npy into the clip, for one that was processed
before there were warps. Times are of the processor, one thread.
"""

import time
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import click
import cv2
import numpy as np
import torch

from process_data.tracking.torso_motion import choose_references, fill_and_smooth, pyramid
from process_data.tracking.torso_warp import WarpTracker
from shared.arrays import evenly
from shared.camera import project
from shared.clip import BACKGROUND, TORSO, Clip, good_frames
from shared.media.video_io import write_png
from shared.progress import progress
from shared.torso_motion import SIMILARITY, save_torso_motion
from torso_styleunet import plate as plates
from torso_styleunet.warp import frame_to_plate, margin_of, pixel_centres, sample

EDGE = 0.006  # of the picture's width: the inside of the torso begins here, the band along its outline ends
KINDS = ("similarity, median", "similarity, layers", "warp, median", "warp, layers")
Figures = dict[str, dict[str, list[float]]]  # kind -> region -> mean squared errors, grey levels²


def track(clip: Clip) -> tuple[np.ndarray, dict[str, float]]:
    """Torso motion (T, 4 + 2·n²) of a clip tracked anew, as `process` does; ms a frame of similarities alone, and with warps."""
    info, poses = clip.info, clip.load_poses()
    pixels = project(clip.load_landmarks(), poses, info.intrinsics)
    spans = [(shot.start, shot.stop) for shot in info.shots]
    numbers = choose_references(spans, poses, good_frames(info.excluded, info.frames))
    pictures = {t: (next(clip.frames(t, t + 1)), next(clip.label_frames(t, t + 1))) for t in numbers}
    tracker = WarpTracker([pictures[t] for t in numbers], pixels[numbers], spans)
    tracker.motion(numbers[0], *pictures[numbers[0]], pixels[numbers[0]])  # compiles it
    rows, spent = [], {"similarity": 0.0, "both": 0.0}
    with progress(info.frames, "torso", unit="frame") as bar:
        for t, (frame, labels) in enumerate(zip(clip.frames(), clip.label_frames())):
            times = [time.thread_time()]
            tracker.similarity(t, pyramid(frame), labels, pixels[t])
            times.append(time.thread_time())
            rows.append(tracker.motion(t, frame, labels, pixels[t]))
            times.append(time.thread_time())
            for name, seconds in zip(spent, np.diff(times)):
                spent[name] += seconds
            bar.update()
    motion = np.array(rows)
    lost = np.isnan(motion[:, [0, SIMILARITY]]).sum(0)
    print(f"{clip.info.name}: torso not found in {lost[0]}, its warp in {lost[1]} of {len(motion)} frames; shots that do not "
          f"match: {tracker.unmatched or 'none'}")
    return fill_and_smooth(motion, spans), {name: 1000 * seconds / len(motion) for name, seconds in spent.items()}


def make_plates(clip: Clip, motion: np.ndarray, train: np.ndarray, frames: int) -> dict[str, tuple[torch.Tensor, int]]:
    """Plates of KINDS from the frames `train` (n,), of which `frames` are used, each with its margin."""
    chosen = train[evenly(len(train), frames)]
    pictures, labels = clip.read_frames(chosen), clip.read_labels(chosen)
    made = {}
    for kind in KINDS:
        moved = torch.from_numpy(of_kind(motion, kind)[chosen])
        margin = margin_of(moved, clip.info.width, clip.info.height)
        with patch.object(plates, "agreeing", everything if "median" in kind else plates.agreeing):
            made[kind] = plates.build_plate(zip(pictures, labels), moved, margin), margin
    return made


def of_kind(motion: np.ndarray, kind: str) -> np.ndarray:
    """The columns of a torso motion that a kind of plate uses."""
    return motion if kind.startswith("warp") else motion[:, :SIMILARITY]


def everything(pictures: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """In the place of `agreeing`: all frames everywhere."""
    return torch.ones(len(pictures), *pictures.shape[2:], dtype=torch.bool)


def drawn(plate: torch.Tensor, margin: int, motion: np.ndarray, background: np.ndarray) -> np.ndarray:
    """A plate moved by motion (4 + 2·n²,), over a background (H,W,3) uint8 -> (H,W,3) float, grey levels."""
    height, width, _ = background.shape
    points = frame_to_plate(pixel_centres(height, width, "cpu")[None], torch.from_numpy(motion)[None], width, height)
    color, alpha = sample(plate, points, margin)[0].split([3, 1])
    color, alpha = (part.permute(1, 2, 0).numpy() for part in (color * 255, torch.sigmoid(alpha)))
    return background + alpha * (color - background)


def regions(labels: np.ndarray) -> dict[str, np.ndarray]:
    """Labels (H,W) -> masks: inside the torso, and along its outline against the background."""
    reach = max(2, round(EDGE * labels.shape[1]))

    def near(mask: np.ndarray) -> np.ndarray:
        return cv2.dilate(mask.astype(np.uint8), np.ones((2 * reach + 1, 2 * reach + 1), np.uint8)) > 0

    torso, room = labels == TORSO, labels == BACKGROUND
    return {"inside": torso & ~near(~torso), "outline": near(torso) & near(room) & ~near(~torso & ~room)}


def errors(clip: Clip, motion: np.ndarray, made: dict[str, tuple[torch.Tensor, int]], test: np.ndarray) -> Figures:
    """Squared errors of the plates in the frames `test` (n,)."""
    backgrounds, shots = clip.load_plates(), clip.shot_of_frames()
    found: Figures = {kind: {} for kind in made}
    for t, frame, labels in zip(test, clip.read_frames(test), clip.read_labels(test)):
        for kind, (plate, margin) in made.items():
            away = (drawn(plate, margin, of_kind(motion, kind)[t], backgrounds[shots[t]]) - frame) ** 2
            for name, mask in regions(labels).items():
                if mask.any():
                    found[kind].setdefault(name, []).append(float(away[mask].mean()))
    return found


def table(name: str, found: Figures) -> Iterator[str]:
    """Lines of figures: root mean square in grey levels, and the mean over frames of PSNR in dB."""
    for kind, by_region in found.items():
        cells = [f"{region} {np.sqrt(np.mean(values)):6.2f} levels {np.mean(10 * np.log10(255**2 / np.array(values))):6.2f} dB"
                 for region, values in by_region.items()]
        yield f"{name:12s} {kind:20s} " + "   ".join(cells)


def sheet(made: dict[str, tuple[torch.Tensor, int]]) -> np.ndarray:
    """The plates side by side over mid grey."""
    smallest = min(margin for _, margin in made.values())
    row = []
    for plate, margin in made.values():
        cut = margin - smallest
        inner = plate[:, cut : plate.shape[1] - cut, cut : plate.shape[2] - cut]
        alpha = torch.sigmoid(inner[3:])
        row.append(((inner[:3] * alpha + 0.5 * (1 - alpha)) * 255).round().byte().permute(1, 2, 0).numpy())
    return np.concatenate(row, 1)


def span(text: str) -> np.ndarray:
    """START-STOP -> frame numbers."""
    start, _, stop = text.partition("-")
    return np.arange(int(start), int(stop))


@click.command(help=__doc__)
@click.argument("clip", type=click.Path(path_type=Path))
@click.option("--train", help="Frames START-STOP that the plates are made of; by default the clip's split.")
@click.option("--test", multiple=True, help="NAME:START-STOP, frames to measure on; by default the clip's other splits.")
@click.option("--frames", default=96, show_default=True, help="Training frames that make a plate.")
@click.option("--measured", default=40, show_default=True, help="Frames of each test that are measured.")
@click.option("--sheet", "picture", type=click.Path(path_type=Path), help="PNG of the plates.")
@click.option("--write", is_flag=True, help="Put the torso's motion and warp into the clip.")
def main(clip: Path, train: str | None, test: tuple[str, ...], frames: int, measured: int, picture: Path | None,
         write: bool) -> None:
    opened = Clip(clip)
    motion, spent = track(opened)
    print("  ".join(f"{name} {value:.2f} ms a frame" for name, value in spent.items()))
    if write:
        save_torso_motion(opened.torso_motion, motion)
    good = np.flatnonzero(good_frames(opened.info.excluded, opened.info.frames))
    trained = np.intersect1d(span(train), good) if train else opened.split("train")
    made = make_plates(opened, motion, trained, frames)
    tests = {name: np.intersect1d(span(held), good) for name, _, held in (text.partition(":") for text in test)}
    for name, held in (tests or {name: opened.split(name) for name in opened.held_out()}).items():
        chosen = held[evenly(len(held), measured)]
        print("\n".join(table(name, errors(opened, motion, made, chosen))))
    if picture is not None:
        write_png(picture, sheet(made))


if __name__ == "__main__":
    main()
