"""Video → clip folder, stage by stage. A stage whose result lies in the work folder is not done again."""

import json
import shutil
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import cv2
import numpy as np

from process_data import background, detect, pose, report, segment, shots, torso_motion, video
from process_data.config import ProcessConfig
from shared.audio_io import iter_audio
from shared.camera import euler_degrees, project
from shared.clip import BACKGROUND, Bad, Clip, ClipInfo, Shot
from shared.config import config_to_dict
from shared.errors import TalkheadError
from shared.files import read_json, sha256, write_json
from shared.landmarks import FPS, SAMPLES_PER_FRAME, lip_opening, save_array, save_landmarks
from shared.metrics import lag_ms
from shared.training import progress
from shared.video_io import GrayVideoWriter, probe, read_gray_video, read_video, write_png

Split = dict[str, list[tuple[int, int]]]
WORK = ".partial"
SHORT_SECONDS = 30
LAG_WARNING_MS = 60
LAG_REACH_FRAMES = 8
TURN_WARNING_DEGREES = 35


def process(source: Path, clip_dir: Path, *, config: ProcessConfig, resume: bool = True, splits: Split | None = None,
            workers: int | None = None, overwrite: bool = False, quiet: bool = False) -> Clip:
    """Make a clip folder of any video of one person; returns it. An interrupted run continues where it was.

    Raises TalkheadError: no video, no audio track, no face, a finished clip already there.
    """
    clip = Clip(clip_dir)
    if clip.exists() and not overwrite:
        raise TalkheadError(f"{clip_dir} is a finished clip already; add --overwrite to make it again")
    info = probe(source)
    next(iter_audio(source, seconds=0.1))
    made_here = not clip_dir.exists()
    try:
        return _process(source, clip, info, config, resume, splits, workers, quiet)
    except TalkheadError:
        # a video that cannot be used leaves nothing behind; a killed run leaves its work to go on with
        if made_here:
            shutil.rmtree(clip_dir, ignore_errors=True)
        raise


def _process(source: Path, clip: Clip, info, config: ProcessConfig, resume: bool, splits: Split | None,
             workers: int | None, quiet: bool) -> Clip:
    work = clip.root / WORK
    key = {"sha256": sha256(source), "config": json.loads(json.dumps(config_to_dict(config)))}
    if not resume or not (work / "key.json").is_file() or read_json(work / "key.json") != key:
        shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True, exist_ok=True)
    clip.json.unlink(missing_ok=True)
    write_json(work / "key.json", key)

    crop = video.choose_crop(source, info, config)
    if not (work / "video.json").is_file():
        size = video.write_video(source, clip.video, info, crop, config, quiet)
        count = sum(1 for _ in read_video(clip.video))
        write_json(work / "video.json", {"size": size, "frames": count})
    size, count = (read_json(work / "video.json")[name] for name in ("size", "frames"))
    samples = video.write_audio(source, clip.audio, count)

    detect.track(clip.video, count, work, workers, quiet)
    mesh = np.load(work / "mesh.npy").astype(float)
    cuts = shots.find_cuts(np.load(work / "small.npy", mmap_mode="r"))
    spans = shots.shots_between(cuts, count)
    lost = np.isnan(mesh[:, 0, 0])
    if lost.mean() > config.max_lost_share:
        raise TalkheadError(f"{source}: the face is lost in {lost.sum()} of {count} frames; film one person, facing "
                            "the camera, all the time")
    focal = config.focal_sizes * size
    intrinsics = (focal, focal, size / 2, size / 2)
    mesh = _bridge(mesh, lost, spans)
    fitted = pose.fit(mesh, spans, intrinsics, config, unit=size / 512)
    landmarks = pose.landmarks_in_head_space(mesh, fitted, intrinsics, spans, config)
    landmarks, poses = pose.to_convention(landmarks, fitted.poses)
    save_landmarks(clip.landmarks, landmarks)
    save_array(clip.poses, poses)
    save_landmarks(clip.neutral, pose.neutral_face(landmarks[~lost]))

    _write_labels(clip, work, landmarks, poses, intrinsics, size, count, quiet)
    names = [f"background_{k:02d}.png" if k else "background.png" for k in range(len(spans))]
    _write_plates(clip, work, spans, names, config, quiet)
    _write_torso(clip, work, spans, lost, count, quiet)

    inside = segment.face_is_inside(project(landmarks, poses, intrinsics), size, size)
    bad = _stretches(lost, "the face is lost") + _stretches(~inside & ~lost, "the face leaves the picture")
    lag = estimate_lag(samples, landmarks)
    held = int(round(count * (1 - config.test_share)))
    clip.save_info(ClipInfo(
        name=clip.root.resolve().name, source_name=source.name, source_sha256=key["sha256"], width=size, height=size,
        frames=count, intrinsics=intrinsics, crop=crop, shots=[Shot(a, b, n) for (a, b), n in zip(spans, names)], bad=bad,
        split=splits or {"train": [(0, held)], "test": [(held, count)]}, versions=_versions(),
        warnings=_warnings(count, cuts, lost, inside, lag, samples, poses), lag_ms=lag))
    report.write_report(clip)
    shutil.rmtree(work)
    return clip


def estimate_lag(samples: np.ndarray, landmarks: np.ndarray) -> float | None:
    """Milliseconds by which the lips (T,68,3) open after the sound (640·T,) gets louder; None where that cannot be told.

    A best shift at the end of the searched range means that the two hardly go together.
    """
    energy = np.log(1e-4 + (samples.reshape(len(landmarks), SAMPLES_PER_FRAME) ** 2).mean(1))
    lag = lag_ms(energy, lip_opening(landmarks), max_frames=LAG_REACH_FRAMES)
    return lag if abs(lag) < (LAG_REACH_FRAMES - 0.5) * 1000 / FPS else None


def _bridge(mesh: np.ndarray, lost: np.ndarray, spans: list[tuple[int, int]]) -> np.ndarray:
    """Fill lost frames (NaN) between found ones of the same shot, linearly; a shot without any takes the nearest found."""
    out = mesh.copy()
    found = np.flatnonzero(~lost)
    for start, stop in spans:
        here = found[(found >= start) & (found < stop)]
        for t in range(start, stop):
            if not lost[t]:
                continue
            if len(here) == 0:
                out[t] = mesh[found[np.abs(found - t).argmin()]]
                continue
            after = int(np.searchsorted(here, t))
            a, b = here[max(0, after - 1)], here[min(len(here) - 1, after)]
            part = 0.0 if a == b else (t - a) / (b - a)
            out[t] = (1 - part) * mesh[a] + part * mesh[b]
    return out


def _write_labels(clip: Clip, work: Path, landmarks: np.ndarray, poses: np.ndarray, intrinsics: tuple[float, ...],
                  size: int, count: int, quiet: bool) -> None:
    done = work / "labels.done"
    if done.is_file():
        return
    segmenter = segment.Segmenter(landmarks, poses, intrinsics)
    with (GrayVideoWriter(clip.labels, size, size) as writer,
          progress(count, "labels", quiet=quiet, unit="frame") as bar):
        for t, (frame, matte) in enumerate(zip(read_video(clip.video), detect.mattes(work))):
            writer.write(segmenter.labels(t, frame, matte))
            bar.update()
    done.touch()


def _write_plates(clip: Clip, work: Path, spans: list[tuple[int, int]], names: list[str], config: ProcessConfig,
                  quiet: bool) -> None:
    wanted = {int(t): k for k, (a, b) in enumerate(spans)
              for t in np.linspace(a, b - 1, min(b - a, config.plate_samples)).astype(int)}
    frames: list[np.ndarray] = []
    people: list[np.ndarray] = []
    current = 0

    def finish() -> None:
        if frames:
            plate = background.background_plate(np.stack(frames), np.stack(people))
            write_png(clip.root / names[current], plate)
            frames.clear()
            people.clear()

    with progress(len(wanted), "background", quiet=quiet, unit="frame") as bar:
        for t, (frame, labels, matte) in enumerate(
                zip(read_video(clip.video), read_gray_video(clip.labels), detect.mattes(work))):
            if t not in wanted:
                continue
            if wanted[t] != current:
                finish()
                current = wanted[t]
            covered = (labels != BACKGROUND) | (cv2.resize(matte, labels.shape[::-1]) > 13)
            reach = max(3, frame.shape[0] // 56)
            frames.append(frame)
            people.append(cv2.dilate(covered.astype(np.uint8), np.ones((reach, reach), np.uint8)) > 0)
            bar.update()
    finish()


def _write_torso(clip: Clip, work: Path, spans: list[tuple[int, int]], lost: np.ndarray, count: int,
                 quiet: bool) -> None:
    start, stop = max(spans, key=lambda span: span[1] - span[0])
    good = [t for t in range(start, stop) if not lost[t]] or [start]
    middle = good[len(good) // 2]
    pair = None
    for t, (frame, labels) in enumerate(zip(read_video(clip.video), read_gray_video(clip.labels))):
        if t == middle:
            pair = (frame, labels)
            break
    assert pair is not None
    with progress(count, "torso", quiet=quiet, unit="frame") as bar:
        def pairs():
            for both in zip(read_video(clip.video), read_gray_video(clip.labels)):
                yield both
                bar.update()

        save_array(clip.torso, torso_motion.track_torso(pairs(), pair, spans))


def _stretches(flags: np.ndarray, reason: str) -> list[Bad]:
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flags, [False]]).astype(int)))
    return [Bad(int(a), int(b), reason) for a, b in zip(edges[::2], edges[1::2])]


def _warnings(count: int, cuts: list[int], lost: np.ndarray, inside: np.ndarray, lag: float | None, samples: np.ndarray,
              poses: np.ndarray) -> list[str]:
    found = []
    if count < SHORT_SECONDS * FPS:
        found.append(f"only {count / FPS:.1f} s long; record 1 to 5 minutes for an avatar that speaks well")
    if cuts:
        found.append(f"{len(cuts)} cut(s), at frames {', '.join(map(str, cuts))}; one uncut take is better")
    if lost.any():
        found.append(f"no face in {int(lost.sum())} frame(s); they are skipped")
    if (~inside).any():
        found.append(f"the face leaves the picture in {int((~inside).sum())} frame(s); they are skipped")
    if lag is not None and abs(lag) > LAG_WARNING_MS:
        found.append(f"the lips move about {abs(lag):.0f} ms {'after' if lag > 0 else 'before'} the sound")
    if np.abs(samples).max() < 0.01:
        found.append("the sound is almost silent; nothing can be learned from it")
    if (np.abs(samples) > 0.999).mean() > 0.001:
        found.append("the sound is clipped; record it less loud")
    turned = np.abs(euler_degrees(poses[:, :3, :3])[:, 0]).max()
    if turned > TURN_WARNING_DEGREES:
        found.append(f"the head turns by up to {turned:.0f} degrees; landmarks are uncertain there")
    return found


def _versions() -> dict[str, str]:
    versions = {}
    for name in ("talkhead", "mediapipe", "av"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions
