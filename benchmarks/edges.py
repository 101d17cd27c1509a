"""Hair edges of trained heads against a drawn person's exact truth: `python benchmarks/edges.py --hair curly --device cuda`.

Films a synthetic person with long hair (exact landmarks, poses, labels and alpha), trains a head for each --variant on it, and
compares held-out frames: the head over the true frame as everywhere, and the head alone over its true plate, white, black and
green with what a camera would have taken there. Errors are of the pixels within 8 pixels (at 512²) of where the truth is
partly transparent, where hair ends before the background ("air") and where it ends before clothes ("clothes").
"""

import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import cv2
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from process_data.actor.actor import ActorFrame, before, make_actor_clip, render_actor_layers  # noqa: E402
from process_data.actor.look import HAIR, Look  # noqa: E402
from shared.clip import BACKGROUND, HEAD, Clip  # noqa: E402

BACKDROPS = {"plate": None, "white": (255, 255, 255), "black": (0, 0, 0), "green": (0, 177, 64)}
BAND = 8 / 512  # of the picture's width
SOFT = (5, 250)  # alpha of 255 between which a pixel is partly transparent


def edge_bands(frame: ActorFrame) -> dict[str, np.ndarray]:
    """bool (S,S) by name: pixels near the head's soft outline, before the background and before neck and clothes."""
    reach = max(1, round(BAND * len(frame.labels)))
    kernel = np.ones((2 * reach + 1, 2 * reach + 1), np.uint8)

    def near(mask: np.ndarray) -> np.ndarray:
        return cv2.dilate(mask.astype(np.uint8), kernel) > 0

    band = near((frame.head_alpha > SOFT[0]) & (frame.head_alpha < SOFT[1]))
    body = near((frame.labels != BACKGROUND) & (frame.labels < HEAD))
    return {"air": band & ~body, "clothes": band & body}


def errors(rgba: np.ndarray, frame: ActorFrame) -> dict[str, tuple[float, int]]:
    """Rendered head (S,S,4) in [0,1], premultiplied, against the truth -> {"air, plate": (sum of squared errors, values)}."""
    found = {}
    for name, mask in edge_bands(frame).items():
        for backdrop, color in BACKDROPS.items():
            behind = frame.background if color is None else np.broadcast_to(np.array(color, np.uint8), frame.picture.shape)
            true = before(frame.head, frame.head_alpha, behind).astype(float) / 255
            shown = rgba[..., :3] + (1 - rgba[..., 3:]) * (behind / 255)
            found[f"{name}, {backdrop}"] = float(np.square((np.clip(shown, 0, 1) - true)[mask]).sum()), 3 * int(mask.sum())
    return found


def held_out_truth(clip: Clip, seed: int, look: Look, every: int) -> Iterator[tuple[int, ActorFrame]]:
    """Frame numbers of each `every`-th test frame, with the truth."""
    frames = clip.split("test")[::every]
    arrays = (array[frames] for array in (clip.load_landmarks(), clip.load_poses(), clip.load_torso_motion()))
    yield from zip(frames, render_actor_layers(*arrays, size=clip.info.width, seed=seed, look=look, numbers=frames))


def drawn(head: Any, clip: Clip, t: int) -> np.ndarray:
    """Frame t of a clip as a trained head shows it: (S,S,4) in [0,1], premultiplied."""
    import torch

    from stage2_gaussian.render import render_head

    info, arrays = clip.info, (clip.load_landmarks(), clip.load_poses(), clip.load_torso_motion())
    landmarks, poses, torso = (torch.from_numpy(array[t : t + 1]) for array in arrays)
    with torch.no_grad():
        return render_head(head, landmarks, poses, info.intrinsics, info.width, info.height, torso)[0].cpu().numpy()


def measure(clip: Clip, path: Path, seed: int, look: Look, every: int, device: str) -> dict[str, float]:
    """PSNR in dB of a head's file on the test frames: head over the true frame, and `errors` by name."""
    import torch

    from stage2_gaussian.checkpoint import load_head
    from stage2_gaussian.evaluation.evaluate import evaluate

    table = evaluate(clip, path, splits=["test"], device=torch.device(device), quiet=True)["test"]
    head, sums, counts = load_head(path, device), {}, {}
    for t, frame in held_out_truth(clip, seed, look, every):
        for name, (square, count) in errors(drawn(head, clip, t), frame).items():
            sums[name], counts[name] = sums.get(name, 0.0) + square, counts.get(name, 0) + count
    return {name: table[f"{name} psnr"] for name in ("full", "head", "mouth")} | {
        name: -10 * np.log10(sums[name] / max(counts[name], 1)) for name in sums}


def contact_sheet(clip: Clip, paths: dict[str, Path], seed: int, look: Look, count: int, device: str) -> np.ndarray:
    """Rows of test frames: the truth and each head over green, uint8."""
    from stage2_gaussian.checkpoint import load_head

    every = max(1, len(clip.split("test")) // count)
    green = np.broadcast_to(np.array(BACKDROPS["green"], np.uint8), (clip.info.height, clip.info.width, 3))
    heads = {name: load_head(path, device) for name, path in paths.items()}
    rows = []
    for t, frame in held_out_truth(clip, seed, look, every):
        row = [before(frame.head, frame.head_alpha, green)]
        for head in heads.values():
            rgba = drawn(head, clip, t)
            row.append(np.round(255 * np.clip(rgba[..., :3] + (1 - rgba[..., 3:]) * (green / 255), 0, 1)).astype(np.uint8))
        rows.append(np.concatenate(row, 1))
    return np.concatenate(rows, 0)


@click.command(help=__doc__)
@click.option("--hair", type=click.Choice(HAIR), default="curly", show_default=True)
@click.option("--size", default=256, show_default=True, help="Pixels of a side.")
@click.option("--seconds", default=16.0, show_default=True, help="Of film; the last tenth is held out.")
@click.option("--seed", default=2, show_default=True, help="Which person.")
@click.option("--turn", default=20.0, show_default=True, help="Degrees that the head turns to either side.")
@click.option("--steps", default=0, help="Optimiser steps; 0: as the device wants.")
@click.option("--variant", "variants", multiple=True, default=("recolored=0", "recolored=0.5"), show_default=True,
              help="A setting of stage 2 and its value, or several with commas. Repeatable.")
@click.option("--every", default=3, show_default=True, help="Every how manieth test frame is compared.")
@click.option("--device", default="cpu", show_default=True)
@click.option("--sheet", type=click.Path(path_type=Path), help="PNG with held-out frames over green.")
@click.option("--keep", type=click.Path(path_type=Path), help="Folder for clip and heads; what is there is used again.")
def main(hair, size, seconds, seed, turn, steps, variants, every, device, sheet, keep) -> None:
    import torch

    from shared.config import load_config
    from stage2_gaussian.config import Stage2Config
    from stage2_gaussian.train import train

    look = Look(hair=hair, turn=turn)
    root = Path(keep or tempfile.mkdtemp())
    clip = Clip(root / "clip")
    if not clip.exists():
        clip = make_actor_clip(clip.root, size=size, seconds=seconds, seed=seed, look=look)
    rows, paths = {}, {}
    for variant in variants:
        paths[variant] = root / f"{variant.replace(',', '_')}.safetensors"
        if not paths[variant].is_file():
            config = load_config(Stage2Config, None, ["fits=0", f"steps={steps}", *variant.split(",")])
            train(clip, paths[variant], config=config, device=torch.device(device), state_dir=root / "state", quiet=True)
        rows[variant] = measure(clip, paths[variant], seed, look, every, device)
    names = list(rows[variants[0]])
    print("| dB | " + " | ".join(variants) + " |\n|" + "---|" * (1 + len(variants)))
    for name in names:
        print(f"| {name} | " + " | ".join(f"{rows[variant][name]:.2f}" for variant in variants) + " |")
    if sheet:
        cv2.imwrite(str(sheet), contact_sheet(clip, paths, seed, look, 4, device)[..., ::-1])
    if keep is None:
        shutil.rmtree(root)


if __name__ == "__main__":
    main()
