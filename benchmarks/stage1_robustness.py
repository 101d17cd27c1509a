"""What stage 1 keeps when the voice changes: `python benchmarks/stage1_robustness.py CLIP ... [--base FILE]`.

Five contiguous folds as in stage1_folds.py, one seed, the closed-form path. The lips of a fold are predicted from its own
sound, and from the same sound with voice, level or noise changed; figures are the lip opening's r, mean over folds. Silence
and noise: opening above the neutral's in millimetres.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from benchmarks.cross_validation import contiguous_folds, fold_clip, good_indices
from shared.clip import Clip
from shared.landmarks import SAMPLES_PER_FRAME, lip_opening
from shared.metrics import correlation
from stage1_audio2lmk.audio.augment import add_noise, gain, shift_voice
from stage1_audio2lmk.config import Stage1Config
from stage1_audio2lmk.dataset import clip_samples
from stage1_audio2lmk.evaluate import compare, quiet_gaps, quiet_openings
from stage1_audio2lmk.stream import load_predictor, predict
from stage1_audio2lmk.train import train

CPU = torch.device("cpu")
BEFORE = 60  # frames of sound that a fold's prediction starts earlier
CHANGES = {
    "as it is": lambda sound: sound,
    "pitch and formants +20 %": lambda sound: shift_voice(sound, 1.2, 1.2),
    "pitch and formants −17 %": lambda sound: shift_voice(sound, 1 / 1.2, 1 / 1.2),
    "pitch +20 %": lambda sound: shift_voice(sound, 1.2, 1.0),
    "formants +20 %": lambda sound: shift_voice(sound, 1.0, 1.2),
    "formants −17 %": lambda sound: shift_voice(sound, 1.0, 1 / 1.2),
    "10 dB louder, clipped": lambda sound: gain(sound, 10.0),
    "10 dB softer": lambda sound: gain(sound, -10.0),
    "white noise, SNR 20 dB": lambda sound: add_noise(sound, 20.0, "white", torch.Generator().manual_seed(0)),
    "pink noise, SNR 10 dB": lambda sound: add_noise(sound, 10.0, "pink", torch.Generator().manual_seed(0)),
}


def main(folders: list[str], base: Path | None) -> None:
    for folder in folders:
        clip = Clip(folder)
        landmarks, poses, neutral = clip.load_landmarks(), clip.load_poses(), clip.load_neutral()
        sound = torch.from_numpy(clip_samples(clip))
        sounds = {name: change(sound).clamp(-1, 1).numpy() for name, change in CHANGES.items()}
        rows: dict[str, list[float]] = {name: [] for name in sounds}
        whole, quiet = [], []
        for fit, test in contiguous_folds(good_indices(clip)):
            with tempfile.TemporaryDirectory() as scratch:
                out = Path(scratch) / "model.safetensors"
                train([fold_clip(clip, fit, test)], out, config=Stage1Config(steps=0), device=CPU, base=base,
                      state_dir=Path(scratch) / "state", quiet=True)
                predictor = load_predictor(out, CPU)
            first = max(0, test[0] - BEFORE)
            for name, changed in sounds.items():
                sound_there = changed[first * SAMPLES_PER_FRAME : (test[-1] + 3) * SAMPLES_PER_FRAME]
                found = predict(predictor, sound_there, neutral, blinks=False)[test - first]
                rows[name].append(correlation(lip_opening(found), lip_opening(landmarks[test])))
                if name == "as it is":
                    whole.append(compare(found, landmarks[test], poses[test], clip.info.intrinsics))
            quiet.append(quiet_openings(quiet_gaps(predictor, neutral)))
        print(f"{clip.info.name}: " + ", ".join(f"{key} {np.mean([row[key] for row in whole]):.3f}" for key in whole[0])
              + "; " + ", ".join(f"{key} {np.mean([row[key] for row in quiet]):+.2f}" for key in quiet[0]))
        print("| | opening r | kept |\n|---|---|---|")
        plain = np.mean(rows["as it is"])
        for name, values in rows.items():
            print(f"| {name} | {np.mean(values):.3f} | {100 * np.mean(values) / plain:.0f} % |", flush=True)


if __name__ == "__main__":
    arguments = sys.argv[1:]
    start = arguments.index("--base") if "--base" in arguments else len(arguments)
    main(arguments[:start], Path(arguments[start + 1]) if start < len(arguments) else None)
