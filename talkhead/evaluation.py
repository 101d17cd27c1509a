"""An avatar measured against the clip it was made from: pictures, landmarks, speed; JSON and HTML."""

import itertools
import time
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import numpy as np
import torch

from shared.avatar import Avatar, refined_poses
from shared.clip import HEAD, MOUTH, Clip
from shared.errors import TalkheadError
from shared.files import make_folder, write_json
from shared.image import over
from shared.landmarks import LIPS
from shared.metrics import psnr, ssim
from shared.report_page import ReportPage
from shared.training import progress
from stage1_audio2lmk.evaluate import evaluate as evaluate_stage1
from stage2_gaussian.dataset import box_mask
from talkhead.motion import MotionTrack
from talkhead.synthesis import Renderer, batch_size, to_uint8

SHEET_FRAMES = 6
PICTURES = "finished frames, driven by tracked landmarks and torso motion at the {} poses (dB, SSIM)"
PROTOCOL = (
    "Full: the finished frame of head, torso and plate against the video. Head: the same where the labels show head or mouth "
    "interior; mouth: in the mouth box. Finished head on truth: the finished frame where the labels show head or mouth interior; "
    "elsewhere the rendered head over the true frame. `talkhead stage2 eval` measures the head over plate and neck colour "
    "instead, without the torso network, so its figures are others. Fitted poses are those that `stage2 train` fitted to the "
    "pictures, held-out ones too.")


def evaluate_pictures(avatar: Avatar, clip: Clip, splits: Iterable[str], device: torch.device, *, fitted: bool = False,
                      quiet: bool = False) -> dict[str, dict[str, float]]:
    """PSNR (dB) and SSIM per split and region, driven by the tracked landmarks, poses and torso motion.

    full: the finished frame against the video. head: the same where the labels say head or mouth. mouth: the same in
    the mouth box. finished head on truth: the finished frame where the labels say head or mouth, elsewhere the rendered
    head over the true frame. With `fitted`, the poses are those that `stage2 train` fitted to the pictures, held-out ones
    too. Raises TalkheadError for a split without good frames.
    """
    renderer = Renderer(avatar, device)
    info = clip.info
    landmarks, motion = clip.load_landmarks(), clip.load_torso_motion()
    poses = refined_poses(avatar, clip) if fitted else clip.load_poses()
    plates = [renderer.plate(plate) for plate in clip.load_plates()]
    shots = clip.shot_of_frames()
    table: dict[str, dict[str, float]] = {}
    for split in splits:
        indices = _good_frames(clip, split)
        sums: dict[str, float] = {}
        groups = [list(g) for _, g in itertools.groupby(indices, key=lambda t: shots[t])]
        with progress(len(indices), f"measuring {split}", quiet=quiet, unit="frame") as bar:
            for group in groups:
                for start in range(0, len(group), batch_size(device)):
                    batch = np.array(group[start : start + batch_size(device)])
                    true = torch.as_tensor(clip.read_frames(batch), device=device).float() / 255
                    labels = clip.read_labels(batch)
                    head = renderer.head_rgba(landmarks[batch], poses[batch])
                    frames = renderer.compose(head, poses[batch], motion[batch], plates[shots[batch[0]]])
                    frames = (frames * 255).round() / 255
                    is_head = torch.as_tensor((labels == HEAD) | (labels == MOUTH), device=device)
                    over_truth = torch.where(is_head[..., None], frames, over(head, true).clamp(0, 1))
                    box = box_mask(torch.from_numpy(landmarks[batch]), torch.from_numpy(poses[batch]), info.intrinsics,
                                   info.width, info.height, LIPS)
                    for name, image, mask in (("full", frames, None), ("head", frames, is_head), ("mouth", frames, box),
                                              ("finished head on truth", over_truth, None)):
                        sums[f"{name} psnr"] = sums.get(f"{name} psnr", 0) + psnr(image, true, mask) * len(batch)
                        sums[f"{name} ssim"] = sums.get(f"{name} ssim", 0) + ssim(image, true, mask) * len(batch)
                    bar.update(len(batch))
        table[split] = {key: value / len(indices) for key, value in sums.items()}
    return table


def _good_frames(clip: Clip, split: str) -> np.ndarray:
    """Frames of a split. Raises TalkheadError if there is none."""
    indices = clip.split(split)
    if len(indices) == 0:
        raise TalkheadError(f"{clip.root}: the split {split!r} holds no good frame")
    return indices


def render_speed(avatar: Avatar, device: torch.device, seconds: float = 2.0) -> dict[str, float]:
    """Frames a second of head and of finished frames, at batch 1 and at the usual batch, after warming up."""
    renderer = Renderer(avatar, device)
    neutral = avatar.load_neutral()
    motion = MotionTrack(avatar, "loop")
    result = {}
    for batch in dict.fromkeys((1, batch_size(device))):
        landmarks = np.repeat(neutral, batch, axis=0)
        now = motion.at(0, batch)
        calls = {"head": partial(renderer.head_rgba, landmarks, now.poses),
                 "frame": partial(renderer.frames, landmarks, *now)}
        for name, call in calls.items():
            call()
            _wait(device)
            start, count = time.perf_counter(), 0
            while time.perf_counter() - start < seconds:
                call()
                count += batch
                _wait(device)
            result[f"{name}, batch {batch}"] = count / (time.perf_counter() - start)
    return result


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def check_same_size(avatar: Avatar, clip: Clip) -> None:
    """Raise TalkheadError if the avatar was made for pictures of another size than the clip's."""
    a, b = avatar.info, clip.info
    if (a.width, a.height) != (b.width, b.height):
        raise TalkheadError(f"{avatar.root} renders {a.width}x{a.height}, but {clip.root} is {b.width}x{b.height}")


def side_by_side(avatar: Avatar, clip: Clip, indices: np.ndarray, device: torch.device) -> np.ndarray:
    """Contact sheet: true frames, finished frames at tracked and, if there are any, at fitted poses -> uint8 (k·H, n·W, 3)."""
    renderer = Renderer(avatar, device)
    landmarks, motion = clip.load_landmarks(), clip.load_torso_motion()
    plates, shots = clip.load_plates(), clip.shot_of_frames()
    rows = [clip.read_frames(indices)]
    fitted = clip.load_fitted_poses(avatar.trained_head())
    for poses in [clip.load_poses(), *([] if fitted is None else [fitted])]:
        rendered = []
        for t in indices:
            head = renderer.head_rgba(landmarks[t : t + 1], poses[t : t + 1])
            plate = renderer.plate(plates[shots[t]])
            rendered.append(to_uint8(renderer.compose(head, poses[t : t + 1], motion[t : t + 1], plate))[0])
        rows.append(np.stack(rendered))
    return np.concatenate([np.concatenate(list(row), 1) for row in rows], 0)


def evaluate_avatar(avatar: Avatar, clip: Clip, splits: list[str], device: torch.device,
                    folder: Path) -> dict[str, dict[str, dict[str, float]]]:
    """Every table that the avatar's parts allow -> {title: {row: {column: number}}}; writes eval.json and eval.html.

    Raises TalkheadError for a split without good frames, and for a `folder` in the avatar, which holds no pictures.
    """
    avatar.require()
    if folder.resolve().is_relative_to(avatar.root.resolve()):
        raise TalkheadError(f"{folder} lies in the avatar, which is to hold no pictures of the person; name a folder elsewhere")
    check_same_size(avatar, clip)
    tables: dict[str, dict[str, dict[str, float]]] = {}
    sheet = None
    if avatar.stage2.is_file() and avatar.torso.is_file():
        tables[PICTURES.format("tracked")] = evaluate_pictures(avatar, clip, splits, device)
        if clip.load_fitted_poses(avatar.trained_head()) is not None:
            tables[PICTURES.format("fitted")] = evaluate_pictures(avatar, clip, splits, device, fitted=True)
        tables["frames a second"] = {"this machine": render_speed(avatar, device)}
        held = np.concatenate([_good_frames(clip, name) for name in splits])
        sheet = side_by_side(avatar, clip, held[np.linspace(0, len(held) - 1, SHEET_FRAMES).astype(int)], device)
    if avatar.stage1.is_file():
        tables["stage 1 against its baselines"] = evaluate_stage1(clip, avatar.stage1, splits=splits, device=device)
    make_folder(folder)
    write_json(folder / "eval.json", {"avatar": avatar.info.name, "clip": clip.info.name, "tables": tables})
    write_page(folder / "eval.html", f"{avatar.info.name}: held-out frames of {clip.info.name}", tables, sheet)
    return tables


def write_page(path: Path, title: str, tables: dict[str, dict[str, dict[str, float]]],
               sheet: np.ndarray | None) -> None:
    """One self-contained HTML file with the tables and the contact sheet."""
    page = ReportPage(title)
    for name, table in tables.items():
        page.table(name, table)
    if sheet is not None:
        page.text(PROTOCOL)
        page.heading("true frames; below them finished frames at the tracked poses, then, if there are any, at the fitted ones")
        page.picture(sheet)
    page.write(path)
