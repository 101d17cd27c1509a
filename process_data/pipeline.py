"""Video → clip folder, stage by stage. A stage whose result lies in the work folder is not done again."""

import dataclasses
import hashlib
import json
import re
import shutil
from contextlib import ExitStack, closing
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

from process_data import lip_lag, quality, shots, video
from process_data.config import ProcessConfig
from process_data.detection import detection_pass
from process_data.detection.detection_pass import DetectorChoice, Observed
from process_data.detection.detector import open_detector
from process_data.opencv import require_contrib
from process_data.report import page
from process_data.segmentation import segmentation_pass
from process_data.segmentation.segmentation_pass import Face
from process_data.segmentation.segmenter import face_is_inside
from process_data.tracking import track
from process_data.workers import Workers
from shared.camera import project
from shared.clip import Clip, ClipInfo, Shot, good_frames
from shared.config import config_to_dict
from shared.errors import MachineError, TalkheadError
from shared.files import make_folder, read_json, same_file, sha256, write_json
from shared.landmarks import FPS, save_array, save_landmarks
from shared.lock import PARTIAL, lock_folder
from shared.media.audio_io import iter_audio, save_wav
from shared.media.video_io import probe
from shared.publish import WORK, publish, remove_work, work_folder

Split = dict[str, list[tuple[int, int]]]
OWN = re.compile(r"clip\.json|video\.mp4|audio\.wav|(landmarks|poses|poses_fitted|neutral|torso)\.npy|poses_fitted\.json|"
                 r"(labels|alpha)\.mkv|background(_\d+)?(_seen)?\.png|report\.html|training|\.cache|\.partial|\.lock")
DERIVED = ("poses_fitted.npy", "poses_fitted.json", "training", ".cache")  # of a clip, by what came after `process`
CLUTTER = (".lock", ".DS_Store", "Thumbs.db", "desktop.ini")


def process(source: Path | str, clip_dir: Path | str, *, config: ProcessConfig = ProcessConfig(),
            detector: DetectorChoice = DetectorChoice(), resume: bool = True, splits: Split | None = None,
            workers: int | None = None, overwrite: bool = False, quiet: bool = False) -> Clip:
    """Make a clip folder of any video of one person; returns it. An interrupted run continues where it was.

    A clip that is there stays as it is until the new one is complete; then what was derived from another content (fitted
    poses, training states, caches) goes with it. Raises TalkheadError: no video, no audio track, no face, too little that
    can be used, a finished clip already there, a folder of other things, a source that would be written over, another run.
    """
    source, clip = Path(source), Clip(clip_dir)
    if clip.exists() and not overwrite:
        raise TalkheadError(f"{clip_dir} is a finished clip already; add --overwrite to make it again")
    check_target(clip, source)
    require_contrib()
    if splits is not None and "train" not in splits:
        raise TalkheadError("--split names no frames for train; add --split train=START:STOP")
    info = probe(source)
    next(iter_audio(source, seconds=0.1))
    digest = sha256(source)
    name = run_name(digest, config, detector)
    with clip_lock(clip):
        work = work_folder(clip.root, name)
        if not resume:
            remove_work(clip.root, name)
        continues = work.is_dir()
        make_folder(work)
        try:
            with Workers(workers) as pool:
                _process(source, clip, work, digest, info, config, detector, splits, pool, quiet)
        except MachineError:
            raise  # a full disk or too little memory: the work is kept to go on with
        except TalkheadError:
            # a video that cannot be used leaves nothing behind; a killed run leaves its work to go on with
            if not continues:
                remove_work(clip.root, name)
            raise
        finish_clip(clip, f"{name}/{BUILT}")
    return Clip(clip_dir)


BUILT = "clip"  # in the work folder: the new clip


def run_name(digest: str, config: ProcessConfig, detector: DetectorChoice) -> str:
    """The name of the work folder of runs on the source of that SHA-256: what others left unfinished is not continued."""
    key = {"sha256": digest, "config": config_to_dict(config), "detector": str(detector)}
    return hashlib.sha256(json.dumps(key).encode()).hexdigest()[:12]


def check_target(clip: Clip, *sources: Path) -> None:
    """Raise TalkheadError where files of a clip may not be written: over `sources`, or into a folder of other things.

    A folder is taken if it is empty, a clip, or what an interrupted run left.
    """
    root = clip.root
    if not root.is_dir():
        return
    try:
        entries = sorted(path for path in root.iterdir() if path.name not in CLUTTER and not PARTIAL.fullmatch(path.name))
    except OSError as error:
        raise TalkheadError(f"cannot read the folder {root}: {error.strerror}") from error
    own = [path for path in entries if OWN.fullmatch(path.name)]
    for path in [file for entry in own for file in ([entry] if entry.is_file() else entry.rglob("*"))]:
        for source in sources:
            if same_file(source, path):
                raise TalkheadError(f"{source} is the same file as {path}, which would be written over; name another folder for "
                                    "the clip")
    if clip.exists():
        return
    if (root / "avatar.json").is_file():
        raise TalkheadError(f"{root} is an avatar folder; name another folder for the clip")
    other = [path.name for path in entries if path not in own] if (root / WORK).is_dir() else [path.name for path in entries]
    if other:
        raise TalkheadError(f"{root} is no clip and holds other files ({', '.join(other[:3])}{', …' if len(other) > 3 else ''}); "
                            "name a new or an empty folder")


def clip_lock(clip: Clip) -> ExitStack:
    """Hold a clip folder and the states of its trainings; use as a context manager. Raises TalkheadError."""
    with ExitStack() as stack:
        stack.enter_context(lock_folder(clip.root))
        for state in sorted(clip.training.glob("*/")):
            stack.enter_context(lock_folder(state))
        return stack.pop_all()


def finish_clip(clip: Clip, name: str) -> None:
    """Move the complete clip in work_folder(clip.root, name) to its place; what another content left there goes."""
    try:
        old = clip.content() if clip.exists() else {}
    except TalkheadError:  # its clip.json is damaged
        old = {}
    built = Clip(work_folder(clip.root, name))
    stale = [path.name for path in clip.root.iterdir() if OWN.fullmatch(path.name)
             and path.name not in (*DERIVED, *CLUTTER, WORK)]
    if old != built.info.content:
        stale += DERIVED
    publish(clip.root, name, last=clip.json.name, stale=stale)
    shutil.rmtree(clip.root / WORK, ignore_errors=True)


def _process(source: Path, target: Clip, work: Path, digest: str, info, config: ProcessConfig, detector: DetectorChoice,
             splits: Split | None, pool: Workers, quiet: bool) -> None:
    clip = Clip(work / BUILT)
    make_folder(clip.root)
    size, count, crop, near = _write_video(source, clip, info, config, detector, work, quiet)
    check_splits(splits, count)
    seen = detection_pass.observe(clip.video, count, work, detector, pool, quiet, person=config.person, near=near)
    lost = np.isnan(seen.points[:, 0, 0])
    if lost.mean() > config.max_lost_share:
        found = "no face is found in any" if lost.all() else f"the face is lost in {lost.sum()}"
        raise TalkheadError(f"{source}: {found} of {count} frames; film one person, facing the camera, all the time")
    spans = shots.shots_between(shots.find_cuts(seen.change), count)
    names = [f"background_{k:02d}.png" if k else "background.png" for k in range(len(spans))]
    parts = [Shot(a, b, name) for (a, b), name in zip(spans, names)]
    focal = config.focal_sizes * size
    intrinsics = (focal, focal, size / 2, size / 2)

    irises = _irises(seen)
    bridge(seen.points, lost, spans)
    tracked = track.track(clip.video, seen.points, seen.scheme, spans, ~lost, intrinsics, config, work,
                             pool, quiet)
    pixels = project(tracked.landmarks, tracked.poses, intrinsics)
    inside = face_is_inside(pixels, size, size)
    blank = video.no_picture(clip.video, lost, info.start)
    bad = quality.find_bad(lost, inside, tracked.poses, pixels, seen.faces, seen.hands, config, others=seen.others,
                           blank=blank)
    usable = good_frames(bad, count)
    good = int(usable.sum())
    if good < config.min_good_seconds * FPS:
        raise TalkheadError(f"{source}: only {good / FPS:.1f} s of {count / FPS:.1f} s can be used, at least "
                            f"{config.min_good_seconds:g} s are needed ({_why(bad, count)})")
    save_landmarks(clip.landmarks, tracked.landmarks)
    save_array(clip.poses, tracked.poses)
    save_landmarks(clip.neutral, tracked.neutral)
    samples = video.load_sound(source, count)
    lag = lip_lag.estimate_lag(samples, tracked.landmarks)
    if config.fix_sync and lag is not None:
        samples = lip_lag.shift_audio(samples, lag)
    save_wav(clip.audio, samples)

    face = Face(pixels, intrinsics[0] / tracked.poses[:, 2, 3])
    colours = segmentation_pass.write_plates(clip, parts, face, ~lost, config.plate_samples, work, pool, quiet)
    torso, untied = segmentation_pass.label_frames(clip, parts, face, tracked.poses, ~lost, colours, work, pool, quiet)
    save_array(clip.torso, torso)

    untied = [k for k in untied if usable[slice(*spans[k])].any()]
    cuts = quality.cuts_of_takes(spans, blank)
    warnings = [*quality.warnings(cuts, bad, lag, config.fix_sync, samples, pixels, seen.faces, size),
                *quality.still(tracked.landmarks[usable], seen.change), *video.notes(source, info, count)]
    if untied:
        warnings.append(f"the clothes of shot(s) {', '.join(map(str, untied))} do not match those of the longest one; "
                        "wear the same, and keep the framing")
    made = ClipInfo(
        name=target.root.resolve().name, source_name=source.name, source_sha256=digest, width=size, height=size,
        frames=count, intrinsics=intrinsics, crop=crop, shots=parts, bad=bad,
        split=splits or quality.default_split(usable, config.test_share), versions=_versions(), warnings=warnings,
        lag_ms=0.0 if config.fix_sync and lag is not None else lag)
    save_with_content(clip, made)
    page.write_report(clip, irises)


def save_with_content(clip: Clip, info: ClipInfo) -> None:
    """Write clip.json with the hashes of the files that lie beside it."""
    clip.save_info(info)
    clip.save_info(dataclasses.replace(info, content=clip.content()))


def check_splits(splits: Split | None, count: int) -> None:
    """Raise TalkheadError for a split that goes beyond the `count` frames of the clip."""
    for name, ranges in (splits or {}).items():
        for start, stop in ranges:
            if stop > count:
                raise TalkheadError(f"--split {name}={start}:{stop}: the clip has {count} frames")


def _write_video(source: Path, clip: Clip, info, config: ProcessConfig, detector: DetectorChoice, work: Path,
                 quiet: bool) -> tuple[int, int, tuple[int, int, int], tuple[float, float] | None]:
    """video.mp4 unless it is there; returns its size, its frames, the crop and, where that is a part of the picture, where in
    the video the face of the chosen person mostly is."""
    done = work / "video.json"
    if not done.is_file():
        with closing(open_detector(detector.name, landmarker=detector.landmarker, models=detector.models)) as looker:
            crop, boxes = video.choose_crop(source, info, config, looker)
        whole = info.width == info.height and crop[2] >= info.width - 1
        size, count = video.write_video(source, clip.video, info, crop, config, quiet)
        write_json(done, {"size": size, "frames": count, "crop": crop, "near": None if whole else _place(boxes, crop, size)})
    values = read_json(done)
    x, y, side = values["crop"]
    return values["size"], values["frames"], (x, y, side), values["near"]


def _place(boxes: list[np.ndarray], crop: tuple[int, int, int], size: int) -> tuple[float, float] | None:
    """Where in the video of `size` pixels, cropped to x, y, side, the face of these boxes (4,) of the source mostly is."""
    if not boxes:
        return None
    left, top, right, bottom = np.median(np.array(boxes), axis=0)
    x, y, side = crop
    return float((left + right) / 2 - x) * size / side, float((top + bottom) / 2 - y) * size / side


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
