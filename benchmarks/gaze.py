"""How well the gaze is measured and what of it the eyes show: `python benchmarks/gaze.py me --write`, or without a clip.

With a clip: irises are found anew in its video, as `process` does; printed are the spread of the gaze in the good frames, its
noise (from second differences, which a steady gaze does not have), and how far both eyes agree. --write puts gaze.npy into the
clip, for one that was processed before there was a gaze; `stage2 train --overwrite` then learns it. Without a clip: a synthetic
person that glances around is filmed, and the gaze found is compared with the true one.
"""

import sys
import tempfile
from contextlib import closing
from pathlib import Path

import click
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from process_data.actor.actor import make_actor_clip  # noqa: E402
from process_data.actor.look import Look  # noqa: E402
from process_data.detection.detection_pass import WARM_UP  # noqa: E402
from process_data.detection.detector import open_detector  # noqa: E402
from process_data.retrack import nearest_face  # noqa: E402
from process_data.tracking.eyes import iris_offset, track_gaze  # noqa: E402
from shared.camera import project  # noqa: E402
from shared.clip import Clip, good_frames  # noqa: E402
from shared.gaze import save_gaze  # noqa: E402
from shared.landmarks import EYE_LEFT, EYE_RIGHT  # noqa: E402
from shared.progress import progress  # noqa: E402


def find_irises(clip: Clip) -> np.ndarray:
    """Centres (T,2,2) pixels of the right and the left iris of the clip's person, NaN where the face is lost."""
    pixels = project(clip.load_landmarks(), clip.load_poses(), clip.info.intrinsics)
    starts = {shot.start for shot in clip.info.shots}
    irises = np.full((clip.info.frames, 2, 2), np.nan)
    with closing(open_detector()) as detector, progress(clip.info.frames, "irises", unit="frame") as bar:
        assert detector.scheme.irises is not None
        centres = [points[0] for points in detector.scheme.irises]
        for t, frame in enumerate(clip.frames()):
            if t in starts:
                detector.restart()
            for _ in range(WARM_UP if t in starts else 0):
                detector.everyone(frame)
            face = nearest_face(detector.everyone(frame), detector.scheme.landmarks68, pixels[t])
            if face is not None:
                irises[t] = face[centres, :2]
            bar.update()
    return irises


def measure(clip: Clip) -> np.ndarray | None:
    """The gaze (T,2) of a clip, found anew; prints what is said above."""
    landmarks, info = clip.load_landmarks(), clip.info
    pixels, irises = project(landmarks, clip.load_poses(), info.intrinsics), find_irises(clip)
    good = good_frames(info.excluded, info.frames)
    gaze = track_gaze(irises, pixels, landmarks, good, [(shot.start, shot.stop) for shot in info.shots])
    if gaze is None:
        print("no frame shows an iris")
        return None
    width = np.mean([np.linalg.norm(pixels[:, eye[3]] - pixels[:, eye[0]], axis=1).mean() for eye in (EYE_RIGHT, EYE_LEFT)])
    alone = [np.where(np.arange(2)[:, None] == eye, irises, np.nan) for eye in (0, 1)]
    for k, name in enumerate(("across", "down")):
        noise = 1.4826 * np.median(np.abs(np.diff(gaze[:, k], 2))) / np.sqrt(6)
        eyes = np.stack([iris_offset(one, pixels)[good, k] for one in alone])
        together = np.corrcoef(eyes[:, np.isfinite(eyes).all(0)])[0, 1]
        print(f"{name}: spread {gaze[good, k].std():.4f} eye widths ({width * gaze[good, k].std():.2f} px), noise {noise:.4f} "
              f"({width * noise:.2f} px), both eyes correlate by {together:.2f}")
    return gaze


def compare(found: np.ndarray, true: np.ndarray) -> None:
    """Print how the gaze found (T,2) follows the true one: correlation, slope, and what is left, eye widths."""
    for k, name in enumerate(("across", "down")):
        slope, rest = np.polyfit(true[:, k], found[:, k], 1)
        left = (found[:, k] - slope * true[:, k] - rest).std()
        related = np.corrcoef(true[:, k], found[:, k])[0, 1]
        print(f"{name}: true spread {true[:, k].std():.4f}, r {related:.3f}, slope {slope:.2f}, left {left:.4f} eye widths")


@click.command(help=__doc__)
@click.argument("clip", type=click.Path(path_type=Path), required=False)
@click.option("--write", is_flag=True, help="Put gaze.npy into the clip.")
@click.option("--size", default=512, show_default=True, help="Pixels of the synthetic person's film.")
@click.option("--seconds", default=20.0, show_default=True, help="Its length.")
@click.option("--glances", default=15.0, show_default=True, help="Degrees to either side that the synthetic person glances.")
@click.option("--seed", default=0, show_default=True, help="Of the synthetic person.")
def main(clip: Path | None, write: bool, size: int, seconds: float, glances: float, seed: int) -> None:
    if clip is not None:
        opened = Clip(clip)
        gaze = measure(opened)
        if write and gaze is not None:
            save_gaze(opened.gaze, gaze)
        return
    with tempfile.TemporaryDirectory() as folder:
        made = make_actor_clip(Path(folder) / "clip", size=size, seconds=seconds, seed=seed, look=Look(glances=glances))
        gaze = measure(made)
        if gaze is not None:
            compare(gaze, made.load_gaze())


if __name__ == "__main__":
    main()
