"""Video → clip folder, step by step. A step whose result lies in the work folder is not repeated."""

import dataclasses
import hashlib
import json
import re
import shutil
from contextlib import ExitStack, closing
from pathlib import Path

import numpy as np

from process_data import lip_lag, quality, shots, video
from process_data.config import ProcessConfig
from process_data.detection import detection_pass
from process_data.detection.detection_pass import Detections, DetectorChoice
from process_data.detection.detector import open_detector
from process_data.opencv import require_contrib
from process_data.report import page
from process_data.segmentation import segmentation_pass
from process_data.segmentation.segmentation_pass import Face
from process_data.segmentation.segmenter import face_is_inside
from process_data.tracking import track
from process_data.tracking.eyes import track_gaze
from process_data.workers import LONGEST, PARTS, SHORTEST, Workers
from shared.camera import project
from shared.clip import Clip, ClipInfo, ExcludedSpan, Shot, good_frames
from shared.config import config_to_dict
from shared.errors import MachineError, TalkheadError
from shared.files import make_folder, read_json, same_file, sha256, write_json
from shared.gaze import save_gaze
from shared.landmarks import FPS, save_array, save_landmarks
from shared.lock import PARTIAL, lock_folder
from shared.media.audio_io import iter_audio, save_wav
from shared.media.video_io import probe
from shared.publish import WORK, publish, remove_work, work_folder
from shared.torso_motion import save_torso_motion
from shared.version import installed_versions

Split = dict[str, list[tuple[int, int]]]
OWN = re.compile(r"clip\.json|video\.mp4|audio\.wav|(landmarks|poses|poses_fitted|neutral|torso|torso_warp|gaze)\.npy|"
                 r"poses_fitted\.json|(labels|alpha)\.mkv|background(_\d+)?(_seen)?\.png|report\.html|quality\.json|training|"
                 r"\.cache|\.partial|\.lock")
DERIVED = ("poses_fitted.npy", "poses_fitted.json", "training", ".cache")  # written into a clip after `process`
CLUTTER = (".lock", ".DS_Store", "Thumbs.db", "desktop.ini")  # files that do not count when a folder should be empty
BUILT = "clip"  # folder in the work folder in which the new clip is built


def process(source: Path | str, clip_dir: Path | str, *, config: ProcessConfig = ProcessConfig(),
            detector: DetectorChoice = DetectorChoice(), resume: bool = True, splits: Split | None = None,
            workers: int | None = None, overwrite: bool = False, quiet: bool = False) -> Clip:
    """Make a clip folder of a video of one person and return it. An interrupted run continues where it stopped.

    A clip that exists stays as it is until the new one is complete. If the content differs, all that was derived from the
    old one (fitted poses, training states, caches) is removed with it. `splits`: ranges start ≤ t < stop by name, at least
    "train". `workers`: number of processes, by default as many as the machine allows. Raises TalkheadError: no video, no
    audio track, no face, too few usable frames, a finished clip without `overwrite`, a folder with other files, a source
    that would be overwritten, another run at the same clip.
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
            raise  # a full disk or too little memory: the work is kept for the next run
        except TalkheadError:  # the video cannot be used: nothing is left behind
            if not continues:
                remove_work(clip.root, name)
            raise
        finish_clip(clip, f"{name}/{BUILT}")
    return Clip(clip_dir)


def run_name(digest: str, config: ProcessConfig, detector: DetectorChoice) -> str:
    """Name of the work folder: the same for the same source (SHA-256 `digest`), settings, detector and division into
    chunks only."""
    key = {"sha256": digest, "config": config_to_dict(config), "detector": str(detector),
           "chunks": [PARTS, SHORTEST, LONGEST]}
    return hashlib.sha256(json.dumps(key).encode()).hexdigest()[:12]


def check_target(clip: Clip, *sources: Path) -> None:
    """Raise TalkheadError if writing the clip would overwrite one of `sources`, or if its folder holds other files.

    Allowed are a missing or empty folder, a clip, and what an interrupted run left.
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
    """Lock a clip folder and its training states; use as a context manager. Raises TalkheadError if another run has one."""
    with ExitStack() as stack:
        stack.enter_context(lock_folder(clip.root))
        for state in sorted(clip.training.glob("*/")):
            stack.enter_context(lock_folder(state))
        return stack.pop_all()


def finish_clip(clip: Clip, name: str) -> None:
    """Move the complete clip in work_folder(clip.root, name) to its place; remove files that belong to an older content."""
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
    detected = detection_pass.detect_video(clip.video, count, work, detector, pool, quiet, person=config.person, near=near)
    lost = np.isnan(detected.points[:, 0, 0])
    if lost.mean() > config.max_lost_share:
        found = "no face is found in any" if lost.all() else f"the face is lost in {lost.sum()}"
        raise TalkheadError(f"{source}: {found} of {count} frames; film one person, facing the camera, all the time")
    spans = shots.shots_between(shots.find_cuts(detected.change), count)
    names = [f"background_{k:02d}.png" if k else "background.png" for k in range(len(spans))]
    clip_shots = [Shot(start, stop, name) for (start, stop), name in zip(spans, names)]
    focal = config.focal_sizes * size
    intrinsics = (focal, focal, size / 2, size / 2)

    irises = _irises(detected)
    bridge(detected.points, lost, spans)
    tracked = track.track(clip.video, detected.points, detected.scheme, spans, ~lost, intrinsics, config, work, pool, quiet)
    pixels = project(tracked.landmarks, tracked.poses, intrinsics)
    inside = face_is_inside(pixels, size, size)
    blank = video.no_picture(clip.video, lost, info.start)
    excluded = quality.find_excluded(lost, inside, tracked.poses, pixels, detected.faces, detected.hands, config,
                                     others=detected.others, blank=blank)
    usable = good_frames(excluded, count)
    good = int(usable.sum())
    if good < config.min_good_seconds * FPS:
        raise TalkheadError(f"{source}: only {good / FPS:.1f} s of {count / FPS:.1f} s can be used, at least "
                            f"{config.min_good_seconds:g} s are needed ({_why(excluded, count)})")
    save_landmarks(clip.landmarks, tracked.landmarks)
    save_array(clip.poses, tracked.poses)
    save_landmarks(clip.neutral, tracked.neutral)
    if irises is not None and (gaze := track_gaze(irises, pixels, tracked.landmarks, usable, spans)) is not None:
        save_gaze(clip.gaze, gaze)
    samples = video.load_sound(source, count)
    lag = lip_lag.estimate_lag(samples, tracked.landmarks)
    if config.fix_sync and lag is not None:
        samples = lip_lag.shift_audio(samples, lag)
    save_wav(clip.audio, samples)

    face = Face(pixels, intrinsics[0] / tracked.poses[:, 2, 3])
    colors = segmentation_pass.write_plates(clip, clip_shots, face, ~lost, config.plate_samples, work, pool, quiet)
    torso_motion, unmatched = segmentation_pass.segment_frames(clip, clip_shots, face, tracked.poses, ~lost, colors, work, pool,
                                                               quiet)
    save_torso_motion(clip.torso_motion, torso_motion)

    unmatched = [shot for shot in unmatched if usable[slice(*spans[shot])].any()]
    cuts = quality.cuts_of_takes(spans, blank)
    warnings = [*quality.recording_warnings(cuts, excluded, lag, config.fix_sync, samples, pixels, detected.faces, size),
                *quality.still_warnings(tracked.landmarks[usable], detected.change), *video.notes(source, info, count)]
    if unmatched:
        warnings.append(f"the clothes of shot(s) {', '.join(map(str, unmatched))} do not match those of the longest one; "
                        "wear the same, and keep the framing")
    made = ClipInfo(
        name=target.root.resolve().name, source_name=source.name, source_sha256=digest, width=size, height=size,
        frames=count, intrinsics=intrinsics, crop=crop, shots=clip_shots, excluded=excluded,
        split=splits or quality.default_split(usable, config.test_share),
        versions=installed_versions("talkhead", "mediapipe", "av"), warnings=warnings,
        lag_ms=0.0 if config.fix_sync and lag is not None else lag)
    save_with_content(clip, made)
    page.write_report(clip, tracked.residuals)


def save_with_content(clip: Clip, info: ClipInfo) -> None:
    """Write clip.json with the hashes of the clip's other files."""
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
    """Write video.mp4 unless an interrupted run has done so.

    Returns its size in pixels, its number of frames, the crop (x, y, size) in source pixels and the usual place (x, y) in
    the video of the chosen person's face, None where the crop is the whole picture.
    """
    done = work / "video.json"
    if not done.is_file():
        with closing(open_detector(detector.name, landmarker=detector.landmarker, models=detector.models)) as opened:
            crop, boxes = video.choose_crop(source, info, config, opened)
        whole = info.width == info.height and crop[2] >= info.width - 1
        size, count = video.write_video(source, clip.video, info, crop, config, quiet)
        write_json(done, {"size": size, "frames": count, "crop": crop, "near": None if whole else _face_place(boxes, crop, size)})
    values = read_json(done)
    x, y, side = values["crop"]
    return values["size"], values["frames"], (x, y, side), values["near"]


def _face_place(boxes: list[np.ndarray], crop: tuple[int, int, int], size: int) -> tuple[float, float] | None:
    """Middle (x, y) of the median of face boxes (4,) in source pixels, in a video of `size` pixels cropped to x, y, side."""
    if not boxes:
        return None
    left, top, right, bottom = np.median(np.array(boxes), axis=0)
    x, y, side = crop
    return float((left + right) / 2 - x) * size / side, float((top + bottom) / 2 - y) * size / side


def bridge(points: np.ndarray, lost: np.ndarray, spans: list[tuple[int, int]]) -> None:
    """Fill the `lost` (T,) frames of points (T,P,3) in place: linearly between found frames of the same shot, constant
    beyond them. A shot without a found frame takes the nearest found one of the clip."""
    found = np.flatnonzero(~lost)
    for start, stop in spans:
        here = found[(found >= start) & (found < stop)]
        for t in start + np.flatnonzero(lost[start:stop]):
            if len(here) == 0:
                points[t] = points[found[np.abs(found - t).argmin()]]
                continue
            after = int(np.searchsorted(here, t))
            a, b = here[max(0, after - 1)], here[min(len(here) - 1, after)]
            share = 0.0 if a == b else (t - a) / (b - a)
            points[t] = (1 - share) * points[a] + share * points[b]


def _why(excluded: list[ExcludedSpan], count: int) -> str:
    """Why so few frames are left: seconds by reason, the largest first; without excluded spans, that the video is short."""
    frames: dict[str, int] = {}
    for span in excluded:
        frames[span.reason] = frames.get(span.reason, 0) + span.stop - span.start
    if not frames:
        return f"the video is only {count} frames long"
    return ", ".join(f"{reason}: {number / FPS:.1f} s" for reason, number in sorted(frames.items(), key=lambda item: -item[1]))


def _irises(detected: Detections) -> np.ndarray | None:
    """Centres (T,2,2) pixels of the right and the left iris; None if the detector gives none."""
    if detected.scheme.irises is None:
        return None
    return np.stack([detected.points[:, eye[0], :2] for eye in detected.scheme.irises], axis=1)
