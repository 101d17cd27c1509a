"""What a file or folder is, and whether it is valid, in a few lines."""

import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np

from process_data.report.scores import read_scores
from shared.arrays import missing, npy_header, read_start
from shared.avatar import PARTS, Avatar, AvatarInfo
from shared.avatar_file import is_avatar_file
from shared.checkpoint import check_finite, load_checkpoint
from shared.clip import Clip
from shared.config import read_yaml, shown
from shared.errors import TalkheadError
from shared.files import read_json
from shared.gaze import GAZE, load_gaze
from shared.landmarks import FPS, SAMPLE_RATE, TABLES, eye_opening, lip_opening, load_array, load_landmarks
from shared.lock import folder_lock, holder
from shared.media.audio_io import audio_notes, load_audio
from shared.media.container import is_picture, open_media
from shared.media.layer_video import LayerVideo
from shared.media.video_io import probe, read_png
from shared.phones import load_phones
from shared.poses import load_poses
from shared.publish import WORK
from shared.torso_motion import SIMILARITY, load_warp

UNTRAINED = "not trained yet"
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif")


def describe(path: Path) -> Iterator[str]:
    """Lines that say what `path` is. Raises TalkheadError, with the reason, if it is nothing that talkhead knows.

    The parts of a clip or avatar folder are all looked at; those that are not valid are told, and the error comes last.
    """
    if not path.exists():
        raise TalkheadError(missing(path))
    if path.is_dir():
        yield from _folder(path)
        return
    start, ending = read_start(path, 64), path.suffix.lower()
    if start.startswith(b"\x93NUMPY") or ending == ".npy":
        yield from _array(path)
    elif ending == ".avatar" or is_avatar_file(start):
        yield from _avatar(Avatar(path))
    elif zipfile.is_zipfile(path):
        yield from _zip(path)
    elif ending in TABLES:
        yield from _landmarks(path)
    elif ending == ".safetensors":
        yield from _checkpoint(path)
    elif start.startswith(b"ply") or ending == ".ply":
        yield from _splats(path)
    elif ending == ".json":
        yield from _json(path)
    elif ending in (".yaml", ".yml"):
        yield f"settings, for --config: {shown(list(read_yaml(path)))}"
    elif ending in PICTURES:
        height, width = read_png(path).shape[:2]
        yield f"picture: {width}x{height}"
    else:
        yield from _media(path)


def _folder(path: Path) -> Iterator[str]:
    clip, avatar = Clip(path), Avatar(path)
    if clip.exists():
        yield from _clip(clip)
    elif avatar.json.is_file():
        yield from _avatar(avatar)
    elif (path / WORK).is_dir():
        yield "an unfinished run of `talkhead process`; the same command continues it"
        yield from _busy(path)
    else:
        raise TalkheadError(f"{path} is neither a clip folder (clip.json) nor an avatar folder (avatar.json)")


def _clip(clip: Clip) -> Iterator[str]:
    info = clip.info
    yield f"clip {info.name!r}: {info.frames} frames ({info.frames / FPS:.1f} s) of {info.width}x{info.height}"
    yield f"  from {info.source_name}, {len(info.shots)} shot(s), cuts at {[s.start for s in info.shots[1:]]}"
    for name in info.split:
        yield f"  split {name}: {len(clip.split(name))} good frames"
    for span in info.excluded:
        yield f"  skipped {span.start}-{span.stop - 1}: {span.reason}"
    for warning in info.warnings:
        yield f"  warning: {warning}"
    for score in read_scores(clip.quality):
        yield f"  {score}"

    def plate(name: str) -> str:
        return _of_size(read_png(clip.root / name), info.width, info.height, clip.root / name)

    parts: dict[str, Callable[[], str]] = {
        "landmarks.npy": lambda: _shape(clip.load_landmarks()), "poses.npy": lambda: _shape(clip.load_poses()),
        "torso.npy": lambda: _shape(clip.load_torso_motion()[:, :SIMILARITY]), "neutral.npy": lambda: _shape(clip.load_neutral()),
        "audio.wav": lambda: f"{len(load_audio(clip.audio)) / SAMPLE_RATE:.1f} s",
    }
    if clip.torso_warp.is_file():
        parts[clip.torso_warp.name] = lambda: _shape(load_warp(clip.torso_warp))
    if clip.gaze.is_file():
        parts[clip.gaze.name] = lambda: _shape(clip.load_gaze())
    if clip.phones.is_file():
        parts[clip.phones.name] = lambda: f"{len(load_phones(clip.phones))} phones and pauses"
    if clip.fitted_poses.is_file():
        parts["poses_fitted.npy"] = lambda: _shape(load_poses(clip.fitted_poses))
    if clip.video.is_file():
        videos = [file for file in (clip.video, clip.labels, clip.alpha) if file.is_file()]
        parts |= {file.name: partial(_video, file, info.width, info.height, info.frames) for file in videos}
        parts |= {shot.background: partial(plate, shot.background) for shot in info.shots}
    for name in clip.changed():
        yield f"  {name} is no longer as `process` wrote it"
    for state in sorted(clip.training.glob("*/unfinished")):
        yield f"  {state.parent.name}: an unfinished training; its command finishes it"
    if (clip.root / WORK).is_dir():
        yield "  an unfinished run of `talkhead process … --overwrite`; its command finishes it"
    yield from _busy(clip.root, *sorted(clip.training.glob("*/")))
    yield from _checked(parts)


def _avatar(avatar: Avatar) -> Iterator[str]:
    made = avatar.info
    yield f"avatar {made.name!r}: {made.width}x{made.height}"
    if (pictures := avatar.root / "eval").is_dir():
        yield f"  warning: {pictures} holds pictures of the person; delete it before you pass the avatar on"
    parts: dict[str, Callable[[], str]] = {
        "motion track": lambda: f"{len(avatar.load_motion()[0])} frames of motion",
        "pose range": lambda: str(avatar.pose_range()),
        "neutral.npy": lambda: _shape(avatar.load_neutral()),
        "background.png": lambda: _of_size(avatar.load_background(), made.width, made.height, avatar.background),
    }
    if avatar.gaze.is_file():
        parts[avatar.gaze.name] = lambda: _shape(avatar.load_gaze())
    for part in PARTS:
        parts[part] = partial(_part, avatar, part)
    if avatar.has_layers():
        parts[avatar.layers.name] = partial(_layers, avatar)
    elif avatar.layers.is_file():
        yield (f"  {avatar.layers.name} is of another torso or motion track and not used; `talkhead torso layers {avatar.root}` "
               "draws it anew")
    if len({known["clip"] for known in made.parts.values()}) > 1:
        yield f"  its parts are of different clips: {', '.join(f'{part} of {_clip_of(made, part)}' for part in made.parts)}"
    for file in avatar.edited():
        yield f"  {file.name} was edited; `talkhead inspect {avatar.root} --accept` takes it over"
    yield from _busy(avatar.root)
    yield from _checked(parts)


def _checked(parts: dict[str, Callable[[], str]]) -> Iterator[str]:
    """A line for each part, valid or not; raises TalkheadError at the end if some are not."""
    wrong = []
    for name, look in parts.items():
        try:
            found = look()
            yield f"  {name}: {found}" + ("" if found == UNTRAINED else ", valid")
        except TalkheadError as error:
            wrong.append(name)
            yield f"  {name}: NOT VALID: {error}"
    if wrong:
        raise TalkheadError(f"{len(wrong)} part(s) are not valid: {', '.join(wrong)}")


def _shape(array: np.ndarray) -> str:
    return str(array.shape)


def _of_size(picture: np.ndarray, width: int, height: int, path: Path) -> str:
    found_height, found_width = picture.shape[:2]
    if (found_width, found_height) != (width, height):
        raise TalkheadError(f"{path}: expected a picture of {width}x{height}, found {found_width}x{found_height}")
    return f"{width}x{height}"


def _video(path: Path, width: int, height: int, frames: int) -> str:
    """Raises TalkheadError unless a video has that size and, as far as its header tells, that many frames."""
    info = probe(path)
    if (info.width, info.height) != (width, height):
        raise TalkheadError(f"{path}: expected a video of {width}x{height}, found {info.width}x{info.height}")
    if abs(info.duration * FPS - frames) > 1.5:
        raise TalkheadError(f"{path}: expected {frames} frames as in clip.json, found {info.duration * FPS:.0f}")
    return f"{info.duration:.1f} s of {width}x{height}"


def _clip_of(info: AvatarInfo, part: str) -> str:
    """Name of the clip that a part was trained on, and digits that tell it from others of that name."""
    return f"{info.parts[part]['name']!r} ({info.parts[part]['clip'][:8]})"


def _busy(*folders: Path) -> Iterator[str]:
    """Who works in the folders."""
    for folder in folders:
        if (who := holder(folder_lock(folder))) is not None:
            yield f"  in use: {folder} is being written by {who}"


def _layers(avatar: Avatar) -> str:
    """Open the stored torso as synthesis does."""
    avatar.verify("layers")
    with LayerVideo(avatar.layers, avatar.info.width, avatar.info.height, len(avatar.load_motion()[0])) as video:
        return f"{video.count} frames"


def _part(avatar: Avatar, part: str) -> str:
    """Load a trained part as synthesis does, and say which clip it is of."""
    path, known = avatar.part(part), part in avatar.info.parts
    if not path.is_file():
        return UNTRAINED
    avatar.verify(part)
    if part == "stage1":
        from stage1_audio2lmk.checkpoint import check_format, load_model
        from stage1_audio2lmk.encoders.transformers_encoder import TRANSFORMERS

        tensors, meta = load_checkpoint(path)
        info = meta.get("encoder")
        if isinstance(info, dict) and info.get("kind") == TRANSFORMERS:  # it lies elsewhere
            check_format(meta, path)
            check_finite(tensors, path)
        else:
            load_model(path, "cpu")
    elif part == "stage2":
        from stage2_gaussian.checkpoint import load_head

        load_head(path, "cpu")
    else:
        from torso_styleunet.checkpoint import load_torso

        load_torso(path)
    return f"{path.stat().st_size / 1e6:.2f} MB" + (f" of the clip {_clip_of(avatar.info, part)}" if known else "")


def _array(path: Path) -> Iterator[str]:
    shape = npy_header(path).shape
    if shape[1:] == (4, 4):
        yield f"poses {load_poses(path).shape}, {shape[0] / FPS:.2f} s at {FPS} fps: valid"
    elif shape[1:] == (4,):
        yield f"torso motion {load_array(path, (4,)).shape}, {shape[0] / FPS:.2f} s at {FPS} fps: valid"
    elif shape[1:] == (GAZE,):
        yield f"gaze {load_gaze(path).shape}, {shape[0] / FPS:.2f} s at {FPS} fps: valid"
    elif len(shape) == 4 and shape[3] == 2:
        yield f"torso warp {load_warp(path).shape}, {shape[0] / FPS:.2f} s at {FPS} fps: valid"
    else:
        yield from _landmarks(path)


def _landmarks(path: Path) -> Iterator[str]:
    rows = load_landmarks(path)
    lips, eyes = lip_opening(rows) * 1000, eye_opening(rows) * 1000
    yield f"landmarks {rows.shape} float32, {len(rows) / FPS:.2f} s at {FPS} fps: valid"
    yield f"  eye corners {1000 * np.linalg.norm(rows[:, 45] - rows[:, 36], axis=1).mean():.1f} mm apart"
    yield f"  lip opening {lips.min():.1f} to {lips.max():.1f} mm, mean {lips.mean():.1f}"
    yield f"  lid opening {eyes.min():.1f} to {eyes.max():.1f} mm, mean {eyes.mean():.1f}"


def _zip(path: Path) -> Iterator[str]:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except Exception as error:  # what zipfile raises on damaged archives is of many types
        raise TalkheadError(f"{path} is a damaged zip archive; copy or make it again") from error
    if any(Path(name).name in ("avatar.json", "clip.json") for name in names):
        raise TalkheadError(f"{path} is a zipped folder; unzip it and name the folder")
    arrays = [name.removesuffix(".npy") for name in names if name.endswith(".npy")]
    if arrays and len(arrays) == len(names):
        raise TalkheadError(f"{path} is an .npz archive of {', '.join(arrays[:5])[:100]}; save the array that is meant "
                            "as .npy")
    raise TalkheadError(f"{path} is a zip archive of {len(names)} file(s); unzip it and name what is in it")
    yield


def _checkpoint(path: Path) -> Iterator[str]:
    tensors, meta = load_checkpoint(path)
    check_finite(tensors, path)
    count = sum(tensor.numel() for tensor in tensors.values())
    yield f"checkpoint: {len(tensors)} tensors, {count / 1e6:.2f} M numbers, {path.stat().st_size / 1e6:.2f} MB"
    for key, value in meta.items():
        text = str(value)
        yield f"  {key}: {text if len(text) <= 100 else text[:97] + '...'}"


def _splats(path: Path) -> Iterator[str]:
    from stage2_gaussian.ply import read_ply

    gaussians, warnings = read_ply(path)
    yield f"splat file: {len(gaussians.means)} splats, for `talkhead stage2 import`"
    for warning in warnings:
        yield f"  warning: {warning}"


def _json(path: Path) -> Iterator[str]:
    values = read_json(path)
    kind = {"clip.json": "clip", "avatar.json": "avatar"}.get(path.name)
    if kind == "clip":
        Clip(path.parent).check()
    elif kind == "avatar":
        Avatar(path.parent).check()
    elif path.name == "phones.json":
        yield f"{len(load_phones(path))} phones and pauses, valid"
        return
    elif path.name == "quality.json":
        yield from map(str, read_scores(path))
        return
    keys = ", ".join(map(str, list(values)[:12]))
    yield f"JSON{f' of the {kind} {path.parent}' if kind else ''}: {len(values)} keys ({keys[:100]}): valid"
    if kind:
        yield f"  `talkhead inspect {path.parent}` looks at the whole {kind}"


def _media(path: Path) -> Iterator[str]:
    with open_media(path, "media file") as container:
        if is_picture(container):
            tracks = container.streams.video
            yield f"picture: {tracks[0].width}x{tracks[0].height}" if tracks else "picture"
            return
    try:
        info = probe(path)
    except TalkheadError:
        samples = load_audio(path)
        yield f"sound: {len(samples) / SAMPLE_RATE:.2f} s, peak {np.abs(samples).max():.2f}"
        yield from (f"  {note}" for note in audio_notes(path))
        return
    yield f"video: {info.width}x{info.height}, {info.fps:.3f} fps, {info.duration:.2f} s, codec {info.codec}"
    sound = "with sound" if info.has_audio else "no sound"
    scan = ", interlaced" if info.interlaced else ""
    yield f"  first picture at {info.start:.3f} s, {_shown(info.mirrored, info.rotation)}{scan}, {sound}"
    yield from (f"  {note}" for note in [*info.notes, *(audio_notes(path) if info.has_audio else [])])


def _shown(mirrored: bool, rotation: int) -> str:
    return f"mirrored, rotation {rotation}" if mirrored else f"rotation {rotation}"
