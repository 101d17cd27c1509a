"""Stage 1 by the folds protocol: `python benchmarks/stage1_folds.py CLIP ... [--trained] [--base FILE]`.

Five contiguous folds of all good frames of each clip; three seeds of the closed-form path (with --base from a base model
too, with --trained of the whole training, which is slower), ridge on ± 4 frames and the mean face once. Every frame is
predicted by a fit that saw neither it nor the second around its fold. Figures are means over folds and seeds; the difference
of the lip opening's r from ridge's is that of all frames, each fold about its mean, with its 95 % interval (paired, blocks of
two seconds).
"""

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from benchmarks.cross_validation import BLOCK, DRAWS, FOLDS, cross_validate, good_indices, openings, paired_block_bootstrap
from shared.clip import Clip
from stage1_audio2lmk.baselines import mean_face, ridge
from stage1_audio2lmk.config import Stage1Config
from stage1_audio2lmk.dataset import clip_samples
from stage1_audio2lmk.evaluate import compare
from stage1_audio2lmk.stream import load_predictor, predict
from stage1_audio2lmk.train import train

SEEDS = range(3)
CPU = torch.device("cpu")


def by_ridge(clip: Clip, seed: int) -> np.ndarray:
    return ridge(clip_samples(clip), clip.load_landmarks(), clip.split("train"))


def by_mean(clip: Clip, seed: int) -> np.ndarray:
    return mean_face(clip.load_landmarks(), clip.split("train"), clip.info.frames)


def by_training(steps: int | None, base: Path | None = None) -> Callable[[Clip, int], np.ndarray]:
    """Stage 1 with the usual settings and this many steps of the transformer, None for the usual number."""
    def fit_and_predict(clip: Clip, seed: int) -> np.ndarray:
        config = Stage1Config(seed=seed) if steps is None else Stage1Config(seed=seed, steps=steps)
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "model.safetensors"
            train([clip], out, config=config, device=CPU, base=base, state_dir=Path(folder) / "state", quiet=True)
            return predict(load_predictor(out, CPU), clip_samples(clip), clip.load_neutral(), blinks=False)
    return fit_and_predict


def main(folders: list[str], trained: bool, base: Path | None) -> None:
    methods = {"mean face": (by_mean, [0]), "ridge ±4": (by_ridge, [0]), "closed form": (by_training(0), SEEDS)}
    if base:
        methods["closed form, base"] = (by_training(0, base), SEEDS)
    if trained:
        methods["stage 1"] = (by_training(None, base), SEEDS)
    for folder in folders:
        clip = Clip(folder)
        held = good_indices(clip)
        landmarks, poses = clip.load_landmarks()[held], clip.load_poses()[held]
        parts = np.array_split(np.arange(len(held)), FOLDS)
        true = openings(landmarks[None])[:, 0]
        found = {name: cross_validate(clip, fit, seeds) for name, (fit, seeds) in methods.items()}
        print(f"{clip.info.name}: {len(held)} frames\n| | opening r | − ridge's | lips px | velocity | lag ms |\n"
              "|---|---|---|---|---|---|")
        for name, runs in found.items():
            rows = [compare(run[part], landmarks[part], poses[part], clip.info.intrinsics) for run in runs for part in parts]
            r, px, speed, lag = (np.mean([row[key] for row in rows]) for key in ("opening r", "lips px", "velocity", "lag ms"))
            difference, low, high = paired_block_bootstrap(openings(runs), openings(found["ridge ±4"]), true, BLOCK, DRAWS,
                                                           np.random.default_rng(0))
            print(f"| {name} | {r:.3f} | {difference:+.3f} [{low:+.3f}, {high:+.3f}] | {px:.2f} | {speed:.2f} | {lag:+.0f} |",
                  flush=True)


if __name__ == "__main__":
    arguments = sys.argv[1:]
    base = Path(arguments.pop(arguments.index("--base") + 1)) if "--base" in arguments else None
    main([argument for argument in arguments if not argument.startswith("--")], "--trained" in arguments, base)
