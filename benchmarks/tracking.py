"""Accuracy and jitter of the tracking: `python benchmarks/tracking.py [VIDEO ...]`.

Accuracy: three synthetic people at 512² with sensor noise and compression, against the truth. Jitter: "before" with poses
fitted frame by frame to the detector's points alone, "after" with those of `talkhead process`; of an actor who speaks with
his head held perfectly still, and of the stillest second of each given video (25 fps, square), where the head moves a little.
"""

import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from process_data import pipeline, shots
from process_data.actor.actor import make_actor, render_actor
from process_data.config import ProcessConfig
from process_data.detection import detection_pass
from process_data.detection.detection_pass import DetectorChoice
from process_data.tracking import bundle_adjustment, track
from process_data.workers import Workers
from shared.camera import project, rotvec_from_rotation
from shared.clip import Clip
from shared.landmarks import INNER51, LIPS, eye_opening, lip_opening
from shared.media.audio_io import load_audio
from shared.media.video_io import VideoWriter, read_video
from shared.metrics import correlation, landmark_motion_error, rotation_error_degrees

SIZE, SECONDS, NOISE, CRF = 512, 12, 5.0, 28
SECOND = 25  # frames
STEADY = [27, 28, 29, 30, 31, 35, 36, 39, 42, 45]  # landmarks of nose and eye corners, which speech hardly moves


def film(path: Path, frames: Iterable[np.ndarray], seed: int, sound: np.ndarray) -> None:
    """Write frames with sensor noise (grey levels) and coarse compression."""
    rng = np.random.default_rng(seed)
    with VideoWriter(path, SIZE, SIZE, audio=sound, crf=CRF) as video:
        for frame in frames:
            video.write(np.clip(frame + rng.normal(0, NOISE, frame.shape), 0, 255).astype(np.uint8))


def accuracy(clip: Clip, truth) -> dict[str, float]:
    """Errors of a clip against the `ActorTruth`; torso motion and distance relative to the first frame."""
    count = clip.info.frames
    landmarks, poses, torso = clip.load_landmarks(), clip.load_poses(), clip.load_torso_motion()[:, :4]
    true, true_poses = truth.landmarks[:count], truth.poses[:count]
    depth = poses[:, 2, 3] / poses[0, 2, 3] - true_poses[:, 2, 3] / true_poses[0, 2, 3]
    away = np.abs((torso - torso[0]) - (truth.torso_motion - truth.torso_motion[0])[:count])
    lips, true_lips = lip_opening(landmarks), lip_opening(true)
    lids, true_lids = eye_opening(landmarks).mean(1), eye_opening(true).mean(1)

    def closure(curve: np.ndarray) -> float:
        return float(1 - np.quantile(curve, 0.01) / np.quantile(curve, 0.75))

    return {
        "inner landmarks, mm": 1000 * landmark_motion_error(landmarks, true, INNER51),
        "lips, mm": 1000 * landmark_motion_error(landmarks, true, LIPS),
        "rotation, degrees": rotation_error_degrees(poses, true_poses),
        "distance, %": 100 * float(np.abs(depth).mean()),
        "torso, px": float(np.hypot(away[:, 0], away[:, 1]).mean()),
        "lip opening r": correlation(lips, true_lips),
        "peak lip opening / truth": float(np.quantile(lips, 0.99) / np.quantile(true_lips, 0.99)),
        "lid closure / truth": closure(lids) / closure(true_lids),
    }


def jitter(poses: np.ndarray, neutral: np.ndarray, intrinsics: tuple[float, ...], frames: slice) -> tuple[float, float]:
    """Standard deviation of the frame-to-frame motion, of the rotation in degrees and of STEADY points in pixels.

    poses (T,4,4), neutral (68,3) metres, intrinsics fx, fy, cx, cy in pixels.
    """
    poses = poses[frames].astype(float)
    turn = rotvec_from_rotation(poses[1:, :3, :3] @ poses[:-1, :3, :3].swapaxes(1, 2))
    pixels = project(neutral[STEADY].astype(float), poses, intrinsics)
    return float(np.degrees(np.sqrt(turn.var(0).sum()))), float(np.sqrt(np.diff(pixels, axis=0).var(0).sum(-1).mean()))


def stillest(pixels: np.ndarray, spans: list[tuple[int, int]], length: int) -> slice:
    """The `length` frames within one shot in which landmarks (T,68,2) move least."""
    places = pixels[:, STEADY].mean(1)
    starts = [t for a, b in spans for t in range(a, b - length)]
    best = min(starts, key=lambda t: places[t : t + length].std(0).sum())
    return slice(best, best + length)


def steadiness(video: Path, work: Path, length: int) -> dict[str, float]:
    """Jitter on the stillest `length` frames, and peak lip opening, of a video: detector alone ("before") and tracking."""
    config = ProcessConfig()
    size, count = next(read_video(video)).shape[0], sum(1 for _ in read_video(video))
    intrinsics = (config.focal_sizes * size, config.focal_sizes * size, size / 2, size / 2)
    work.mkdir()
    with Workers() as pool:
        detected = detection_pass.detect_video(video, count, work, DetectorChoice(), pool, quiet=True)
        lost = np.isnan(detected.points[:, 0, 0])
        spans = shots.shots_between(shots.find_cuts(detected.change), count)
        pipeline.bridge(detected.points, lost, spans)
        fit = track.fit_video(video, detected.points, detected.scheme, spans, ~lost, intrinsics, config, work, pool, quiet=True)
    space = track.head_space(fit.landmarks, ~lost)
    landmarks, poses = space.landmarks(fit.landmarks), space.poses(fit.poses)
    single = space.poses(bundle_adjustment.fit_poses(fit.detector, fit.first.points, fit.first.poses.astype(float), spans,
                                                     intrinsics, iterations=3, smoothness=0.0))
    pixels = detected.points[:, detected.scheme.landmarks68, :2]
    neutral = track.neutral_face(landmarks[~lost])[0]
    still = stillest(pixels, spans, length)
    before, after = (jitter(each, neutral, intrinsics, still) for each in (single, poses))
    raw = lip_opening(bundle_adjustment.unproject(pixels.astype(float), landmarks[0, :, 2], single, intrinsics))
    lips = lip_opening(landmarks)
    return {
        "from frame": still.start,
        "turn before, degrees": before[0], "turn after": after[0], "turn, before / after": before[0] / after[0],
        "points before, px": before[1], "points after": after[1], "points, before / after": before[1] / after[1],
        "peak lip opening / detector's": float(np.quantile(lips, 0.99) / np.quantile(raw, 0.99)),
    }


def table(rows: dict[str, dict[str, float]]) -> None:
    """Print a Markdown table whose columns are the rows given."""
    print("| | " + " | ".join(rows) + " |\n|" + "---|" * (len(rows) + 1))
    for figure in next(iter(rows.values())):
        print(f"| {figure} | " + " | ".join(f"{row[figure]:.3g}" for row in rows.values()) + " |")
    print()


def main(videos: list[Path]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        exact, steady = {}, {}
        for seed in (0, 1, 2):
            truth = make_actor(root / f"{seed}", size=SIZE, seconds=SECONDS, seed=seed, quiet=True)
            film(root / f"{seed}.mp4", read_video(truth.video), seed, load_audio(truth.video))
            clip = pipeline.process(root / f"{seed}.mp4", root / f"clip{seed}", config=ProcessConfig(), quiet=True)
            exact[f"seed {seed}"] = accuracy(clip, truth)
        table(exact)
        held = [np.repeat(array[40:41], len(array), axis=0) for array in (truth.poses, truth.torso_motion)]
        frames = (frame for frame, _ in render_actor(truth.landmarks, *held, size=SIZE, seed=seed))
        film(root / "still.mp4", frames, seed, load_audio(truth.video))
        steady["still actor"] = steadiness(root / "still.mp4", root / "still", len(truth.poses) - 1)
        for video in videos:
            steady[video.stem] = steadiness(video, root / video.stem, SECOND)
        table(steady)


if __name__ == "__main__":
    main([Path(name) for name in sys.argv[1:]])
