"""What a file or folder is, and whether it is valid, in a few lines."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from shared.audio_io import load_audio
from shared.avatar import PARTS, Avatar
from shared.checkpoint import load_checkpoint
from shared.clip import Clip
from shared.errors import TalkheadError
from shared.landmarks import FPS, SAMPLE_RATE, check_array, eye_opening, lip_opening, load_landmarks
from shared.video_io import probe

ARRAYS = {(68, 3): "landmarks", (4, 4): "poses", (4,): "torso motion"}


def describe(path: Path) -> Iterator[str]:
    """Lines that say what `path` is. Raises TalkheadError, with the reason, if it is nothing that talkhead knows."""
    if not path.exists():
        raise TalkheadError(f"{path} does not exist")
    if path.is_dir():
        yield from _folder(path)
    elif path.suffix == ".npy":
        yield from _array(path)
    elif path.suffix == ".safetensors":
        yield from _checkpoint(path)
    else:
        yield from _media(path)


def _folder(path: Path) -> Iterator[str]:
    clip, avatar = Clip(path), Avatar(path)
    if clip.exists():
        info = clip.info
        yield f"clip {info.name!r}: {info.frames} frames ({info.frames / FPS:.1f} s) of {info.width}x{info.height}"
        yield f"  from {info.source_name}, {len(info.shots)} shot(s), cuts at {[s.start for s in info.shots[1:]]}"
        for name in info.split:
            yield f"  split {name}: {len(clip.split(name))} good frames"
        for bad in info.bad:
            yield f"  skipped {bad.start}-{bad.stop - 1}: {bad.reason}"
        for warning in info.warnings:
            yield f"  warning: {warning}"
        for name, array in (("landmarks", clip.load_landmarks()), ("poses", clip.load_poses()),
                            ("torso", clip.load_torso()), ("neutral", clip.load_neutral())):
            yield f"  {name}.npy {array.shape} valid"
        if clip.fitted_poses.is_file():
            yield f"  poses_fitted.npy {clip.load_best_poses().shape} valid"
    elif avatar.json.is_file():
        made = avatar.info
        yield f"avatar {made.name!r}: {made.width}x{made.height}, {len(avatar.load_motion()[0])} frames of motion"
        for part in PARTS:
            file = getattr(avatar, part)
            yield f"  {part}: {file.stat().st_size / 1e6:.2f} MB" if file.is_file() else f"  {part}: not trained yet"
        if (path / "eval").is_dir():
            yield f"  warning: {path / 'eval'} holds pictures of the person; delete it before you pass the avatar on"
    else:
        raise TalkheadError(f"{path} is neither a clip folder (clip.json) nor an avatar folder (avatar.json)")


def _array(path: Path) -> Iterator[str]:
    try:
        raw = np.load(path, allow_pickle=False)
        kind = ARRAYS.get(raw.shape[1:])
    except (OSError, ValueError, EOFError, AttributeError):
        kind = "landmarks"
    if kind == "landmarks" or kind is None:
        rows = load_landmarks(path)
        lips, eyes = lip_opening(rows) * 1000, eye_opening(rows) * 1000
        yield f"landmarks {rows.shape} float32, {len(rows) / FPS:.2f} s at {FPS} fps: valid"
        yield f"  eye corners {1000 * np.linalg.norm(rows[:, 45] - rows[:, 36], axis=1).mean():.1f} mm apart"
        yield f"  lip opening {lips.min():.1f} to {lips.max():.1f} mm, mean {lips.mean():.1f}"
        yield f"  lid opening {eyes.min():.1f} to {eyes.max():.1f} mm, mean {eyes.mean():.1f}"
    else:
        check_array(raw, raw.shape[1:], str(path))
        yield f"{kind} {raw.shape}, {len(raw) / FPS:.2f} s at {FPS} fps: valid"


def _checkpoint(path: Path) -> Iterator[str]:
    tensors, meta = load_checkpoint(path)
    count = sum(tensor.numel() for tensor in tensors.values())
    yield f"checkpoint: {len(tensors)} tensors, {count / 1e6:.2f} M numbers, {path.stat().st_size / 1e6:.2f} MB"
    for key, value in meta.items():
        text = str(value)
        yield f"  {key}: {text if len(text) <= 100 else text[:97] + '...'}"


def _media(path: Path) -> Iterator[str]:
    try:
        info = probe(path)
    except TalkheadError:
        samples = load_audio(path)
        yield f"sound: {len(samples) / SAMPLE_RATE:.2f} s, peak {np.abs(samples).max():.2f}"
        return
    yield f"video: {info.width}x{info.height}, {info.fps:.3f} fps, {info.duration:.2f} s, codec {info.codec}"
    sound = "with sound" if info.has_audio else "no sound"
    yield f"  first picture at {info.start:.3f} s, rotation {info.rotation}, {sound}"
