"""The whole chain on the synthetic actor, measured against the actor's exact truth."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from shared.avatar import Avatar
from shared.clip import Clip
from shared.errors import TalkheadError
from shared.landmarks import INNER51, LIPS, SAMPLES_PER_FRAME, lip_opening, load_landmarks
from shared.media.audio_io import save_wav
from shared.media.video_io import read_video
from shared.metrics import correlation, lag_ms, landmark_motion_error, rotation_error_degrees, velocity_ratio
from talkhead.evaluation import evaluate_pictures
from talkhead.speaking import synthesize
from talkhead.synthesis import Renderer
from talkhead.training import finetune, train_head, train_torso

Table = dict[str, dict[str, float]]


MADE = {"actor.mp4", "truth", "clip", "actor.avatar", "unheard.wav", "talk.mp4", "predicted.npy"}


def check_demo_folder(out: Path) -> bool:
    """Whether `out` is an earlier demo. Raises TalkheadError if it is anything else than that, empty or missing."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    if not (out / "actor.mp4").is_file():
        raise TalkheadError(f"{out} is no earlier demo, so it will not be replaced; name another folder")
    other = sorted({path.name for path in out.iterdir()} - MADE - {".DS_Store"})
    if other:
        raise TalkheadError(f"{out} is an earlier demo, but holds other files too ({', '.join(other[:3])}); move them, or name "
                            "another folder")
    return True


def run_demo(out: Path, *, size: int, seed: int, device: torch.device) -> tuple[dict[str, Table], Path]:
    """Actor video → clip → three trainings → talking video of an unheard sentence; returns tables and the video's path."""
    from process_data.actor.actor import actor_landmarks, make_actor
    from process_data.config import ProcessConfig
    from process_data.pipeline import process

    seconds: dict[str, float] = {}

    def timed(name: str, call: Any) -> Any:
        start = time.perf_counter()
        result = call()
        seconds[name] = time.perf_counter() - start
        return result

    truth = timed("actor", lambda: make_actor(out, size=size, seed=seed))
    clip = timed("process", lambda: process(out / "actor.mp4", out / "clip", config=ProcessConfig()))
    avatar = Avatar(out / "actor.avatar")
    timed("stage 1", lambda: finetune(clip, avatar, device=device))
    timed("stage 2", lambda: train_head(clip, avatar, device=device))
    timed("torso", lambda: train_torso(clip, avatar, device=device))
    sound, spoken = actor_landmarks("test", seed=seed)
    save_wav(out / "unheard.wav", sound)
    video = out / "talk.mp4"
    timed("synth", lambda: synthesize(avatar, out / "unheard.wav", video, device=device,
                                      save_landmarks_to=out / "predicted.npy"))
    tables = {
        "tracker against the actor's truth": tracker_table(clip, truth.landmarks, truth.poses),
        "lips on an unheard sentence, against what the actor does": lips_table(clip, sound, spoken, out),
        "pictures of held-out frames (dB, SSIM)": evaluate_pictures(Renderer(avatar, device), clip, ["test"], quiet=True),
        "seconds": {"this machine": seconds | {"all": sum(seconds.values())}},
    }
    return tables, video


def tracker_table(clip: Clip, landmarks: np.ndarray, poses: np.ndarray) -> Table:
    """How well `process` recovered what the actor really did: landmarks (T,68,3), poses (T,4,4)."""
    count = min(len(landmarks), clip.info.frames)
    tracked, found = clip.load_landmarks()[:count], clip.load_poses()[:count]
    true = landmarks[:count]
    return {"actor": {
        "inner landmarks mm": 1000 * landmark_motion_error(tracked, true, INNER51),
        "lips mm": 1000 * landmark_motion_error(tracked, true, LIPS),
        "rotation degrees": rotation_error_degrees(found, poses[:count]),
        "lip opening r": correlation(lip_opening(tracked), lip_opening(true)),
    }}


def lips_row(rows: np.ndarray, spoken: np.ndarray) -> dict[str, float]:
    """Landmarks (T,68,3) against what the actor really did while saying the same sentence."""
    count = min(len(rows), len(spoken))
    rows, spoken = rows[:count], spoken[:count]
    opening, true = lip_opening(rows), lip_opening(spoken)
    return {
        "lip opening r": correlation(opening, true),
        "lips mm": 1000 * landmark_motion_error(rows, spoken, LIPS),
        "velocity ratio": velocity_ratio(rows, spoken, LIPS),
        "lag ms": lag_ms(true, opening),
    }


def lips_table(clip: Clip, sound: np.ndarray, spoken: np.ndarray, out: Path) -> Table:
    """Stage 1, its baselines, and the lips that a face tracker sees in the finished video."""
    from process_data.detection.detector import open_detector
    from stage1_audio2lmk.baselines import mean_face, ridge

    known = clip.load_audio()[: clip.info.frames * SAMPLES_PER_FRAME]
    count = -(-len(sound) // SAMPLES_PER_FRAME)
    padded = np.pad(sound, (0, count * SAMPLES_PER_FRAME - len(sound)))
    learned = clip.load_landmarks()
    train = clip.split("train")
    heard = np.concatenate([known, padded])
    both = np.concatenate([learned, np.zeros((count, *learned.shape[1:]), learned.dtype)])
    rows = {"stage 1": load_landmarks(out / "predicted.npy"), "ridge ±4": ridge(heard, both, train)[len(learned) :],
            "mean face": mean_face(learned, train, count)}
    table = {name: lips_row(landmarks, spoken) for name, landmarks in rows.items()}
    detector = open_detector()
    points = [detector.points(frame) for frame in read_video(out / "talk.mp4")]
    found = np.array([mesh is not None for mesh in points])
    seen = np.zeros(len(points))
    seen[found] = [lip_opening(mesh[None, detector.scheme.landmarks68] * [1, -1, 1])[0] for mesh in points if mesh is not None]
    detector.close()
    opening = lip_opening(spoken)[: len(seen)]
    table["seen in the video"] = {"lip opening r": correlation(seen[found], opening[found]),
                                  "lag ms": lag_ms(opening[found], seen[found])}
    return table
