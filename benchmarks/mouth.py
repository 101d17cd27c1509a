"""Sharpness of teeth by settings of stage 2, on the mouth alone: `python benchmarks/mouth.py CLIP --variant rigid_teeth=true`.

Trains the window that the mouth ever enters, at the clip's own resolution, with as many splats there as a whole head has and at
the fitted poses if the clip has some: some 4 minutes for a clip of 512² on one CPU core. Prints PSNR of the mouth box, contrast
and sharpness of the mouth's interior on held-out and on training frames with the mouth open.
"""

import sys
from pathlib import Path

import click
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from shared.camera import project  # noqa: E402
from shared.clip import TORSO, Clip  # noqa: E402
from shared.landmarks import LIPS, lip_opening  # noqa: E402

INNER, OUTER, MOVING = 2100, 5000, 5500  # splats behind the lips, others in the window, those with blendshapes, at 512²
MARGIN = 12  # pixels around all lips
TRAINING_FRAMES = 60  # measured


class MouthClip(Clip):
    """A clip at its fitted poses, in whose labels nothing but the mouth's window is head."""

    poses_given: np.ndarray | None = None
    window = (0, 0, 0, 0)

    def load_poses(self) -> np.ndarray:
        return super().load_poses() if self.poses_given is None else self.poses_given.copy()

    def read_labels(self, indices: np.ndarray) -> np.ndarray:
        labels, (x0, y0, x1, y1) = np.array(super().read_labels(indices)), self.window
        outside = np.ones(labels.shape[1:], bool)
        outside[y0:y1, x0:x1] = False
        labels[:, outside] = TORSO
        return labels


def open_clip(root: Path, poses: Path | None) -> MouthClip:
    clip = MouthClip(root)
    if poses is not None:
        clip.poses_given = np.load(poses).astype(np.float32)
    pixels = project(clip.load_landmarks()[:, LIPS], clip.load_poses(), clip.info.intrinsics)
    low, high = pixels.min((0, 1)) - MARGIN, pixels.max((0, 1)) + MARGIN
    clip.window = (*np.maximum(low, 0).astype(int).tolist(),
                   *np.minimum(high, [clip.info.width, clip.info.height]).astype(int).tolist())
    return clip


@click.command(help=__doc__)
@click.argument("clip", type=click.Path(path_type=Path, exists=True))
@click.option("--poses", type=click.Path(path_type=Path, exists=True), help="poses_fitted.npy of a training of the clip.")
@click.option("--variant", "variants", multiple=True, default=("rigid_teeth=false", "rigid_teeth=true"), show_default=True,
              help="A setting of stage 2 and its value, or several with commas. Repeatable.")
@click.option("--steps", default=500, show_default=True, help="Of four frames.")
@click.option("--device", default="cpu", show_default=True)
@click.option("--sheet", type=click.Path(path_type=Path), help="PNG: held-out mouths with the most detail, then each variant.")
def main(clip, poses, variants, steps, device, sheet) -> None:
    import cv2
    import torch

    from shared.config import load_config
    from stage2_gaussian.config import Stage2Config, resolve
    from stage2_gaussian.dataset import HeadDataset
    from stage2_gaussian.evaluation.evaluate import composite, measure, regions
    from stage2_gaussian.evaluation.sharpness import OPEN, Detail, measure_detail, sharpness
    from stage2_gaussian.train import Trainer, new_head

    class MouthDataset(HeadDataset):
        """The frames' mouth window."""

        def _find_window(self) -> tuple[int, int, int, int]:
            return source.window

    source, place = open_clip(clip, poses), torch.device(device)
    dense = (source.info.width / 512) ** 2
    inner, outer, moving = (int(count * dense) for count in (INNER, OUTER, MOVING))
    fixed = [f"splats={inner + outer}", f"moving={moving}", f"mouth_share={(inner + 0.5) / (inner + outer)}", f"steps={steps}",
             "rank=32", "batch=4", "fits=0", "recolored=0", "falling_hair=false"]
    wide = lip_opening(source.load_landmarks()) >= OPEN
    train = source.split("train")
    some = train[wide[train]]
    splits = {name: source.split(name)[wide[source.split(name)]] for name in source.info.split if name != "train"}
    splits["train"] = some[:: max(1, len(some) // TRAINING_FRAMES)]
    rows, pictures = {}, {}
    for variant in variants:
        config = resolve(load_config(Stage2Config, None, [*fixed, *variant.split(",")]), place, source.info.width,
                         source.info.height)
        trainer = Trainer(new_head(source, train, config).to(place), MouthDataset(source, train, place), config)
        for _ in range(steps):
            trainer.advance()
        head = trainer.head.eval()
        for split, indices in splits.items():
            data, found, psnr = MouthDataset(source, indices, place), [], []
            for row in range(len(data)):
                frames = data.batch(np.array([row]))
                shown = composite(head, frames, frames.poses, data)[0]
                found.append(measure_detail(shown, frames.frames, frames.landmarks, frames.poses, data.intrinsics))
                psnr.append(float(measure(shown, frames, {"mouth": regions(frames, data)["mouth"]}, data, np.array([row]),
                                          None)["mouth psnr"]))
                pictures.setdefault((split, row), [frames.frames[0]]).append(shown[0])
            detail = Detail(*map(torch.cat, zip(*found)))
            rows[variant, split] = {"mouth box, dB": float(np.mean(psnr)), **sharpness(detail)}
            most = np.argsort(-np.nan_to_num(detail.video.numpy()))[:6]
            if split == next(iter(splits)):
                best = [(split, int(row)) for row in most]
    names = list(next(iter(rows.values())))
    print("| variant | frames | " + " | ".join(names) + " |\n|" + "---|" * (2 + len(names)))
    for (variant, split), figures in rows.items():
        print(f"| {variant} | {split} ({len(splits[split])}) | " + " | ".join(f"{figures[name]:.3f}" for name in names) + " |")
    if sheet:
        shown = torch.cat([torch.cat(pictures[key], 1) for key in best]).mul(255).byte().cpu().numpy()
        cv2.imwrite(str(sheet), cv2.resize(shown[..., ::-1], None, fx=3, fy=3, interpolation=cv2.INTER_CUBIC))


if __name__ == "__main__":
    main()
