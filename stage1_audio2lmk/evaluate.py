"""Stage 1 beside its baselines on frames of a clip that no training saw."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch

from shared.clip import Clip
from shared.landmarks import LIPS, SAMPLES_PER_FRAME, lip_opening
from shared.metrics import correlation, lag_ms, landmark_distance, velocity_ratio
from stage1_audio2lmk.baselines import mean_face, ridge
from stage1_audio2lmk.predict import Predictor, load_predictor, predict

SILENCE_SECONDS = 4
SETTLE_FRAMES = 25


def compare(predicted: np.ndarray, true: np.ndarray, poses: np.ndarray, intrinsics: tuple[float, ...]) -> dict[str, float]:
    """Landmarks (T,68,3) against the tracked ones, both projected with the tracked poses (T,4,4).

    "lips px": mean distance of the 20 lip points in pixels of a 512-wide picture. "opening r": correlation of the signed
    inner-lip opening. "velocity": mean lip speed over the true one. "lag ms": how late the opening comes.
    """
    opening, truth = lip_opening(predicted), lip_opening(true)
    return {"lips px": landmark_distance(predicted, true, LIPS, poses, intrinsics, size=512),
            "opening r": correlation(opening, truth), "velocity": velocity_ratio(predicted, true, LIPS),
            "lag ms": lag_ms(truth, opening)}


def silence_opening(predictor: Predictor, neutral: np.ndarray) -> float:
    """Mean lip opening in digital silence above the neutral's, in millimetres, after a second to settle."""
    rows = predict(predictor, np.zeros(SILENCE_SECONDS * 16000, np.float32), neutral, blinks=False)
    return float(1000 * (lip_opening(rows[SETTLE_FRAMES:]) - lip_opening(neutral.reshape(1, 68, 3))).mean())


def evaluate(clip: Clip, checkpoint: Path, *, splits: Iterable[str], device: torch.device) -> dict[str, dict[str, float]]:
    """{"split: stage 1": {…}, "split: ridge ±4": {…}, "split: mean face": {…}}; the baselines are fitted on "train"."""
    info = clip.info
    predictor = load_predictor(checkpoint, device)
    landmarks, poses, neutral = clip.load_landmarks(), clip.load_poses(), clip.load_neutral()
    samples = clip.load_audio()[: info.frames * SAMPLES_PER_FRAME]
    samples = np.pad(samples, (0, info.frames * SAMPLES_PER_FRAME - len(samples)))
    train = clip.split("train")
    rows = {"stage 1": predict(predictor, samples, neutral, blinks=False), "ridge ±4": ridge(samples, landmarks, train),
            "mean face": mean_face(landmarks, train, info.frames)}
    quiet = silence_opening(predictor, neutral)
    table = {}
    for split in splits:
        held = clip.split(split)
        for name, predicted in rows.items():
            table[f"{split}: {name}"] = compare(predicted[held], landmarks[held], poses[held], info.intrinsics)
        table[f"{split}: stage 1"]["silence mm"] = quiet
    return table
