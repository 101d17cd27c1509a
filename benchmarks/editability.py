"""Faces beyond the training range against their truth: `python benchmarks/editability.py [SIZE] [HEAD]`.

The synthetic actor speaks; a head is trained on it with exact landmarks, poses and labels, and then driven by edited
landmarks whose truth the actor draws. Without HEAD, one is trained with the usual settings of a CPU. A third argument is a
PNG file for the sheet of edits.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from process_data.actor.actor import Performance, actor_landmarks, actor_motion, make_actor_clip, make_head
from shared.landmarks import lip_opening
from shared.media.video_io import write_png
from stage2_gaussian.checkpoint import load_head
from stage2_gaussian.config import Stage2Config
from stage2_gaussian.evaluation.evaluate import evaluate
from stage2_gaussian.evaluation.expression_sheet import EDITS, make_expression_sheet
from stage2_gaussian.train import train

SIZE, COUNT = 256, 8  # pixels, frames an edit
HELD_OUT = 0.1
CPU = torch.device("cpu")


def edited_performances(size: int, seed: int = 0, frames: int | None = None, count: int = COUNT) -> dict[str, Performance]:
    """For each of EDITS `count` frames at held-out poses of the actor's first `frames`.

    Edits of typical faces start from the held-out faces themselves, those of the widest mouth from the widest one of training,
    so that "1.5 x" is 1.5 times what training ever showed in every frame.
    """
    landmarks = actor_landmarks("train", seed)[1][:frames]
    poses, torso = actor_motion(len(landmarks), size, seed)
    cut = round(len(landmarks) * (1 - HELD_OUT))
    rows = np.linspace(cut, len(landmarks) - 1, count).round().astype(int)
    widest = np.repeat(lip_opening(landmarks[:cut]).argmax(), count)
    shapes, neutral = {"typical": landmarks[rows], "widest": landmarks[widest]}, make_head(seed).neutral
    return {name: (edit.change(shapes[edit.start], neutral).astype(np.float32), poses[rows], torso[rows])
            for name, edit in EDITS.items()}


def main(size: int, trained: Path | None, picture: Path | None) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        clip = make_actor_clip(root / "clip", size=size, held_out=HELD_OUT, extra=edited_performances(size))
        path = trained or root / "head.safetensors"
        if trained is None:
            train(clip, path, config=Stage2Config(), device=CPU, state_dir=root / "state")
        table = evaluate(clip, path, splits=["test", *EDITS], device=CPU, quiet=True)
        if picture:
            rows, info = clip.split("train"), clip.info
            write_png(picture, make_expression_sheet(load_head(path, CPU), clip.load_landmarks()[rows], clip.load_poses()[rows],
                                          clip.load_neutral()[0], info.intrinsics, info.width, info.height,
                                          clip.load_plates()[0]))
    print("| PSNR, dB | full frame | head | mouth box |\n|---|---|---|---|")
    for name, row in table.items():
        print(f"| {name} | {row['full psnr']:.2f} | {row['head psnr']:.2f} | {row['mouth psnr']:.2f} |")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else SIZE, *[Path(sys.argv[k]) if len(sys.argv) > k else None for k in (2, 3)])
