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
from shared.landmarks import LIPS, lip_opening
from shared.metrics import psnr, ssim
from shared.progress import progress
from shared.report_page import ReportPage
from stage1_audio2lmk.evaluate import add_plots
from stage1_audio2lmk.evaluate import evaluate as evaluate_stage1
from stage2_gaussian.dataset import HeadDataset, box_mask
from stage2_gaussian.evaluation.evaluate import HEAD_OVER_TRUTH, MEASURED, SHARPNESS, head_over_truth, measure
from stage2_gaussian.evaluation.sharpness import Detail, measure_detail, sharpness
from talkhead import retracking
from talkhead.motion import MotionTrack
from talkhead.synthesis import Renderer, batch_size, to_uint8

SHEET_FRAMES = 6
PAGE_WIDTH = 1500
PICTURES = "finished frames, driven by tracked landmarks and torso motion at the {} poses (dB, SSIM)"
PROTOCOL = (
    "Full: the finished frame of head, torso and plate against the video. Head: the same where the labels show head or mouth "
    f"interior; mouth: in the mouth box. {HEAD_OVER_TRUTH} `talkhead stage2 eval` measures the same. Fitted poses are those that "
    f"`stage2 train` fitted to the pictures, held-out ones too. {SHARPNESS}")


def evaluate_pictures(renderer: Renderer, clip: Clip, splits: Iterable[str], *, fitted: bool = False,
                      quiet: bool = False) -> dict[str, dict[str, float]]:
    """PSNR (dB) and SSIM per split and region, and detail of the mouth's interior, driven by tracked landmarks, motion and gaze.

    full: the finished frame against the video. head: the same where the labels say head or mouth. mouth: the same in
    the mouth box. mouth contrast, mouth sharpness: see `stage2_gaussian.evaluation.sharpness`. head over truth: what
    `stage2 eval` measures (see `head_over_truth`). With `fitted`, the poses are those that `stage2 train` fitted to the
    pictures, held-out ones too. Raises TalkheadError for a split without good frames.
    """
    avatar, device = renderer.avatar, renderer.device
    info = clip.info
    landmarks, motion, gaze = clip.load_landmarks(), clip.load_torso_motion(), clip.load_gaze()
    poses = refined_poses(avatar, clip) if fitted else clip.load_poses()
    plates = [renderer.plate(plate) for plate in clip.load_plates()]
    shots, step = clip.shot_of_frames(), batch_size(device)
    table: dict[str, dict[str, float]] = {}
    for split in splits:
        indices = _good_frames(clip, split)
        data = HeadDataset(clip, indices, device)
        sums: dict[str, float] = {}
        details: list[Detail] = []
        groups = [list(g) for _, g in itertools.groupby(range(len(indices)), key=lambda row: shots[indices[row]])]
        with progress(len(indices), f"measuring {split}", quiet=quiet, unit="frame") as bar:
            for rows in (np.array(group[k : k + step]) for group in groups for k in range(0, len(group), step)):
                batch = indices[rows]
                true = torch.as_tensor(clip.read_frames(batch), device=device).float() / 255
                labels = clip.read_labels(batch)
                head = renderer.head_rgba(landmarks[batch], poses[batch], motion[batch], gaze[batch])
                frames = renderer.compose(head, poses[batch], motion[batch], plates[shots[batch[0]]])
                frames = (frames * 255).round() / 255
                is_head = torch.as_tensor((labels == HEAD) | (labels == MOUTH), device=device)
                points, placed = torch.from_numpy(landmarks[batch]), torch.from_numpy(poses[batch])
                box = box_mask(points, placed, info.intrinsics, info.width, info.height, LIPS)
                details.append(measure_detail(frames, true, points.to(device), placed.to(device), info.intrinsics))
                truth = data.batch(rows)
                alone = measure(head_over_truth(head[:, data.rows, data.columns], truth), truth, {}, data, rows, None)
                found = {f"{MEASURED} {figure}": float(alone[f"full {figure}"].mean()) for figure in ("psnr", "ssim")}
                for name, mask in (("full", None), ("head", is_head), ("mouth", box)):
                    found[f"{name} psnr"], found[f"{name} ssim"] = psnr(frames, true, mask), ssim(frames, true, mask)
                for name, value in found.items():
                    sums[name] = sums.get(name, 0) + value * len(rows)
                bar.update(len(rows))
        columns = [f"{name} {figure}" for name in ("full", "head", "mouth", MEASURED) for figure in ("psnr", "ssim")]
        table[split] = {column: sums[column] / len(indices) for column in columns}
        table[split] |= {f"mouth {name}": x for name, x in sharpness(Detail(*map(torch.cat, zip(*details)))).items()}
    return table


def _good_frames(clip: Clip, split: str) -> np.ndarray:
    """Frames of a split. Raises TalkheadError if there is none."""
    indices = clip.split(split)
    if len(indices) == 0:
        raise TalkheadError(f"{clip.root}: the split {split!r} holds no good frame")
    return indices


def render_speed(renderer: Renderer, seconds: float = 2.0) -> dict[str, float]:
    """Frames a second of head and of finished frames, at batch 1 and at the usual batch, after warming up."""
    avatar, device = renderer.avatar, renderer.device
    neutral = avatar.load_neutral()
    motion = MotionTrack(avatar, "loop")
    result = {}
    for batch in dict.fromkeys((1, batch_size(device))):
        landmarks = np.repeat(neutral, batch, axis=0)
        now, gaze = motion.at(0, batch), motion.gaze_at(0, batch)
        calls = {"head": partial(renderer.head_rgba, landmarks, now.poses, now.torso, gaze),
                 "frame": partial(renderer.frames, landmarks, *now, gaze)}
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


def side_by_side(renderer: Renderer, clip: Clip, indices: np.ndarray) -> np.ndarray:
    """Contact sheet: true frames, finished frames at tracked and, if there are any, at fitted poses -> uint8 (k·H, n·W, 3)."""
    avatar = renderer.avatar
    landmarks, motion, gaze = clip.load_landmarks(), clip.load_torso_motion(), clip.load_gaze()
    plates, shots = clip.load_plates(), clip.shot_of_frames()
    rows = [clip.read_frames(indices)]
    fitted = clip.load_fitted_poses(avatar.trained_head())
    for poses in [clip.load_poses(), *([] if fitted is None else [fitted])]:
        rendered = []
        for t in indices:
            head = renderer.head_rgba(*(array[t : t + 1] for array in (landmarks, poses, motion, gaze)))
            plate = renderer.plate(plates[shots[t]])
            rendered.append(to_uint8(renderer.compose(head, poses[t : t + 1], motion[t : t + 1], plate))[0])
        rows.append(np.stack(rendered))
    return np.concatenate([np.concatenate(list(row), 1) for row in rows], 0)


def evaluate_avatar(avatar: Avatar, clip: Clip, splits: list[str], device: torch.device, folder: Path, *,
                    retrack: bool = True) -> dict[str, dict[str, dict[str, float]]]:
    """Every table that the avatar's parts allow -> {title: {row: {column: number}}}; writes eval.json and eval.html.

    Without `retrack`, no finished video is tracked again, which takes most of the time. Raises TalkheadError for a split
    without good frames, and for a `folder` in the avatar, which holds no pictures.
    """
    avatar.require()
    if folder.resolve().is_relative_to(avatar.root.resolve()):
        raise TalkheadError(f"{folder} lies in the avatar, which is to hold no pictures of the person; name a folder elsewhere")
    check_same_size(avatar, clip)
    tables: dict[str, dict[str, dict[str, float]]] = {}
    notes: dict[str, str] = {}
    sheet, again = None, {}
    if avatar.stage2.is_file() and avatar.torso.is_file():
        held = np.concatenate([_good_frames(clip, name) for name in splits])
        if retrack:
            again = retracking.retrack_avatar(avatar, clip, splits, device)
            tables |= {retracking.TITLE.format(split): made.table for split, made in again.items()}
            notes[list(tables)[-1]] = retracking.note(avatar, clip)
        renderer = Renderer(avatar, device)
        tables[PICTURES.format("tracked")] = evaluate_pictures(renderer, clip, splits)
        if clip.load_fitted_poses(avatar.trained_head()) is not None:
            tables[PICTURES.format("fitted")] = evaluate_pictures(renderer, clip, splits, fitted=True)
        notes[list(tables)[-1]] = PROTOCOL
        tables["frames a second"] = {"this machine": render_speed(renderer)}
        sheet = side_by_side(renderer, clip, held[np.linspace(0, len(held) - 1, SHEET_FRAMES).astype(int)])
    if avatar.stage1.is_file():
        tables["stage 1 against its baselines"] = evaluate_stage1(clip, avatar.stage1, splits=splits, device=device)
    make_folder(folder)
    write_json(folder / "eval.json", {"avatar": avatar.info.name, "clip": clip.info.name, "tables": tables,
                                      "tracked again": {split: retracking.as_record(made) for split, made in again.items()}})
    page = ReportPage(f"{avatar.info.name}: held-out frames of {clip.info.name}", PAGE_WIDTH)
    for name, table in tables.items():
        page.table(name, table)
        if name in notes:
            page.text(notes[name])
    _add_retracked(page, again, clip)
    if sheet is not None:
        page.heading("true frames; below them finished frames at the tracked poses, then, if there are any, at the fitted ones")
        page.picture(sheet)
    page.write(folder / "eval.html")
    return tables


def _add_retracked(page: ReportPage, again: dict[str, retracking.Retracked], clip: Clip) -> None:
    rest = float(lip_opening(clip.load_neutral())[0])
    for split, made in again.items():
        page.heading(f"finished videos of {split}")
        for name, strip in retracking.contact_sheet(made):
            page.figure(strip, name)
        curves = retracking.opening_curves(made, clip)
        if len(curves.frames):
            page.heading(f"lip opening seen in the finished videos of {split}, beside the clip's own")
            add_plots(page, curves, rest)
