"""Video → clip folder, stage by stage. A stage whose result lies in the work folder is not done again."""

import json
import shutil
from contextlib import closing
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

from process_data import labelling, observe, quality, report, shots, sync, tracking, video
from process_data.chunks import Workers
from process_data.config import ProcessConfig
from process_data.detector import open_detector
from process_data.labelling import Face
from process_data.observe import DetectorChoice, Observed
from process_data.segment import face_is_inside
from shared.audio_io import iter_audio, save_wav
from shared.camera import project
from shared.clip import Clip, ClipInfo, Shot, good_frames
from shared.config import config_to_dict
from shared.errors import TalkheadError
from shared.files import make_folder, read_json, sha256, write_json
from shared.landmarks import FPS, save_array, save_landmarks
from shared.video_io import probe

Split = dict[str, list[tuple[int, int]]]
WORK = ".partial"


def process(source: Path, clip_dir: Path, *, config: ProcessConfig, detector: DetectorChoice = DetectorChoice(),
            resume: bool = True, splits: Split | None = None, workers: int | None = None, overwrite: bool = False,
            quiet: bool = False) -> Clip:
    """Make a clip folder of any video of one person; returns it. An interrupted run continues where it was.

    Raises TalkheadError: no video, no audio track, no face, too little that can be used, a finished clip already there.
    """
    clip = Clip(clip_dir)
    if clip.exists() and not overwrite:
        raise TalkheadError(f"{clip_dir} is a finished clip already; add --overwrite to make it again")
    if splits is not None and "train" not in splits:
        raise TalkheadError("--split names no frames for train; add --split train=START:STOP")
    info = probe(source)
    next(iter_audio(source, seconds=0.1))
    made_here = not clip_dir.exists()
    try:
        with Workers(workers) as pool:
            return _process(source, clip, info, config, detector, resume, splits, pool, quiet)
    except TalkheadError:
        # a video that cannot be used leaves nothing behind; a killed run leaves its work to go on with
        if made_here:
            shutil.rmtree(clip_dir, ignore_errors=True)
        raise


def _process(source: Path, clip: Clip, info, config: ProcessConfig, detector: DetectorChoice, resume: bool,
             splits: Split | None, pool: Workers, quiet: bool) -> Clip:
    work = clip.root / WORK
    key = {"sha256": sha256(source), "config": json.loads(json.dumps(config_to_dict(config))), "detector": str(detector)}
    if not resume or not (work / "key.json").is_file() or read_json(work / "key.json") != key:
        shutil.rmtree(work, ignore_errors=True)
    make_folder(clip.root)
    work.mkdir(exist_ok=True)
    clip.json.unlink(missing_ok=True)
    write_json(work / "key.json", key)

    size, count, crop = _write_video(source, clip, info, config, detector, work, quiet)
    check_splits(splits, count)
    seen = observe.observe(clip.video, count, work, detector, pool, quiet)
    lost = np.isnan(seen.points[:, 0, 0])
    if lost.mean() > config.max_lost_share:
        found = "no face is found in any" if lost.all() else f"the face is lost in {lost.sum()}"
        raise TalkheadError(f"{source}: {found} of {count} frames; film one person, facing the camera, all the time")
    cuts = shots.find_cuts(seen.change)
    spans = shots.shots_between(cuts, count)
    names = [f"background_{k:02d}.png" if k else "background.png" for k in range(len(spans))]
    parts = [Shot(a, b, name) for (a, b), name in zip(spans, names)]
    focal = config.focal_sizes * size
    intrinsics = (focal, focal, size / 2, size / 2)

    irises = _irises(seen)
    bridge(seen.points, lost, spans)
    tracked = tracking.track(clip.video, seen.points, seen.scheme, spans, ~lost, intrinsics, config, work,
                             pool, quiet)
    pixels = project(tracked.landmarks, tracked.poses, intrinsics)
    inside = face_is_inside(pixels, size, size)
    blank = video.no_picture(clip.video, lost, info.start)
    bad = quality.find_bad(lost, inside, tracked.poses, pixels, seen.faces, seen.hands, config, blank)
    usable = good_frames(bad, count)
    good = int(usable.sum())
    if good < config.min_good_seconds * FPS:
        raise TalkheadError(f"{source}: only {good / FPS:.1f} s of {count / FPS:.1f} s can be used, at least "
                            f"{config.min_good_seconds:g} s are needed ({_why(bad, count)})")
    save_landmarks(clip.landmarks, tracked.landmarks)
    save_array(clip.poses, tracked.poses)
    save_landmarks(clip.neutral, tracked.neutral)
    samples = video.load_sound(source, count)
    lag = sync.estimate_lag(samples, tracked.landmarks)
    if config.fix_sync and lag is not None:
        samples = sync.shift_audio(samples, lag)
    save_wav(clip.audio, samples)

    face = Face(pixels, intrinsics[0] / tracked.poses[:, 2, 3])
    colours = labelling.write_plates(clip, parts, face, ~lost, config.plate_samples, work, pool, quiet)
    torso, untied = labelling.label_frames(clip, parts, face, tracked.poses, ~lost, colours, work, pool, quiet)
    save_array(clip.torso, torso)

    warnings = [*quality.warnings(cuts, bad, lag, config.fix_sync, samples, pixels, seen.faces, size),
                *quality.still(tracked.landmarks[usable], seen.change), *video.notes(source, info, count)]
    if untied:
        warnings.append(f"the clothes of shot(s) {', '.join(map(str, untied))} do not match those of the longest one; "
                        "wear the same, and keep the framing")
    clip.save_info(ClipInfo(
        name=clip.root.resolve().name, source_name=source.name, source_sha256=key["sha256"], width=size, height=size,
        frames=count, intrinsics=intrinsics, crop=crop, shots=parts, bad=bad,
        split=splits or quality.default_split(usable, config.test_share), versions=_versions(), warnings=warnings,
        lag_ms=0.0 if config.fix_sync and lag is not None else lag))
    report.write_report(clip, irises)
    shutil.rmtree(work)
    return clip


def check_splits(splits: Split | None, count: int) -> None:
    """Raise TalkheadError for a split that goes beyond the `count` frames of the clip."""
    for name, ranges in (splits or {}).items():
        for start, stop in ranges:
            if stop > count:
                raise TalkheadError(f"--split {name}={start}:{stop}: the clip has {count} frames")


def _write_video(source: Path, clip: Clip, info, config: ProcessConfig, detector: DetectorChoice, work: Path,
                 quiet: bool) -> tuple[int, int, tuple[int, int, int]]:
    """video.mp4 unless it is there; returns its size, its frames and the crop."""
    done = work / "video.json"
    if not done.is_file():
        with closing(open_detector(detector.name, landmarker=detector.landmarker, models=detector.models)) as looker:
            crop = video.choose_crop(source, info, config, looker)
        size, count = video.write_video(source, clip.video, info, crop, config, quiet)
        write_json(done, {"size": size, "frames": count, "crop": crop})
    values = read_json(done)
    x, y, side = values["crop"]
    return values["size"], values["frames"], (x, y, side)


def bridge(points: np.ndarray, lost: np.ndarray, spans: list[tuple[int, int]]) -> None:
    """Fill lost frames of points (T,P,3) in place, linearly between found ones of the same shot; a shot without any takes
    the nearest found."""
    found = np.flatnonzero(~lost)
    for start, stop in spans:
        here = found[(found >= start) & (found < stop)]
        for t in start + np.flatnonzero(lost[start:stop]):
            if len(here) == 0:
                points[t] = points[found[np.abs(found - t).argmin()]]
                continue
            after = int(np.searchsorted(here, t))
            a, b = here[max(0, after - 1)], here[min(len(here) - 1, after)]
            part = 0.0 if a == b else (t - a) / (b - a)
            points[t] = (1 - part) * points[a] + part * points[b]


def _why(bad: list, count: int) -> str:
    """The reasons of the bad stretches, the largest first; a clip that is just short has none."""
    frames: dict[str, int] = {}
    for stretch in bad:
        frames[stretch.reason] = frames.get(stretch.reason, 0) + stretch.stop - stretch.start
    if not frames:
        return f"the video is only {count} frames long"
    return ", ".join(f"{reason}: {number / FPS:.1f} s" for reason, number in sorted(frames.items(), key=lambda item: -item[1]))


def _irises(seen: Observed) -> np.ndarray | None:
    """Middles (T,2,2) pixels of the right and the left iris."""
    if seen.scheme.irises is None:
        return None
    return np.stack([seen.points[:, eye[0], :2] for eye in seen.scheme.irises], axis=1)


def _versions() -> dict[str, str]:
    versions = {}
    for name in ("talkhead", "mediapipe", "av"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions
