"""Evaluation of a head on held-out frames, driven by their tracked landmarks and poses."""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from scipy.spatial import ConvexHull
from torch import Tensor

from shared.camera import euler_degrees, project
from shared.clip import Clip
from shared.errors import TalkheadError
from shared.files import write_json
from shared.image import over
from shared.landmarks import EYE_LEFT, EYE_RIGHT, LIPS, eye_opening, lip_opening
from shared.metrics import decibel, ssim_of_pixels
from shared.progress import progress
from shared.report_page import ReportPage
from stage2_gaussian.checkpoint import load_head
from stage2_gaussian.dataset import EYE_MARGIN, LIPS_MARGIN, Batch, HeadDataset, box_mask
from stage2_gaussian.evaluation.expression_sheet import make_expression_sheet
from stage2_gaussian.evaluation.flicker import landmark_motion, measure_flicker, stillest_stretch
from stage2_gaussian.evaluation.lpips import Lpips, load_lpips
from stage2_gaussian.evaluation.sharpness import OPEN, REACH, Detail, measure_detail, sharpness
from stage2_gaussian.head import Head
from stage2_gaussian.pose_refinement import refine_poses
from stage2_gaussian.render import render_head

Table = dict[str, dict[str, float]]
REGIONS = {"full": "full frame", "head": "head", "face": "face hull", "mouth": "mouth box", "eyes": "eye boxes"}
FIGURES = {"psnr": "PSNR", "ssim": "SSIM", "lpips": "LPIPS"}
WORST = 5  # per cent of the frames
EVENLY = 3  # evenly spaced frames of the contact sheet, besides the representative ones
ERROR_GAIN = 3  # by which errors are amplified in pictures
CUDA_BATCH, CPU_BATCH = 16, 4  # frames rendered at once
GAP = 4  # pixels between the pictures of a strip
STRIP_WIDTH = 2400  # pixels at most
PAGE_WIDTH = 1800
MEASURED = "head over truth"
HEAD_OVER_TRUTH = (  # see `head_over_truth`
    "Head over truth: the rendered head over the true frame where the labels show no head; where they do, over what a head "
    "hides, which is the plate and along the jaw the colour of neck and clothes nearby. The torso network has no part in it.")
PROTOCOL = (
    f"PSNR in dB and SSIM, means over the frames; “worst 5 %” is the PSNR that 5 % of the frames stay under. {HEAD_OVER_TRUTH} "
    "Head: pixels labelled head or mouth interior. Face hull: the convex hull of the projected landmarks. Columns “aligned …”, "
    "where there are any: the same after each frame's pose was fitted to its picture, which tells "
    "errors of tracking from errors of the head.")
EDITED = ("The landmarks of training frames, edited as each cell says; mouths wider than any in training, and combinations "
          "that it may not hold. Look for holes, glare and torn edges.")
FLICKER = (
    "Flicker: change from frame to frame (second difference in time over √6, which keeps the deviation of noise), mean over "
    "the pixels in grey levels of 255, on the 15 to 50 frames in a row that move least; p95 is the restless end of the pixels. "
    "A split without 15 frames in a row has none. A ratio of 1 is as restless as the video.")
SHARPNESS = (
    "Mouth interior: detail of a tooth's width inside the inner lips, in frames with lips at least "
    f"{OPEN * 1000:.0f} mm apart, all frames together. Contrast: its root mean square in the render over that in the video. "
    "Sharpness: the part of the video's detail that the render shows in the same place, up to a shift of "
    f"{REACH * 1000:.1f} mm; noise does not raise it. 1 is as sharp as the video.")
ERROR = f"Error: render minus video, {ERROR_GAIN} times, about grey. Pictures show the window that the head ever enters."


class Measured(NamedTuple):
    """Metrics of every frame of one split."""

    data: HeadDataset  # n frames
    poses: dict[str, Tensor]  # (n, 4, 4) by prefix of the metrics' names: "" tracked, "aligned " refined
    values: dict[str, np.ndarray]  # "[aligned ]REGION psnr|ssim|lpips" -> (n,), NaN where the region is empty
    details: dict[str, Detail]  # of the mouth's interior, by prefix

    def means(self, rows: np.ndarray | slice = slice(None)) -> dict[str, float]:
        """Mean of every metric over the frames `rows` that have it."""
        return {name: float(np.nanmean(x[rows])) for name, x in self.values.items() if np.isfinite(x[rows]).any()}

    def worst(self) -> dict[str, float]:
        """The PSNR that WORST % of the frames stay under, by name."""
        return {name: float(np.nanpercentile(x, WORST)) for name, x in self.values.items()
                if name.endswith("psnr") and np.isfinite(x).any()}


def evaluate(clip: Clip, head_path: Path | str, *, splits: Iterable[str], device: torch.device, align: bool = False,
             quiet: bool = False, batch: int = 8) -> dict[str, dict[str, float]]:
    """PSNR (dB) and SSIM by split: {split: {"full psnr": …, "head psnr": …, "mouth psnr": …, "… ssim": …}}.

    Of the `head_over_truth`. "full" is the whole frame, "head" the pixels labelled head or mouth interior, "face" the convex
    hull of the projected landmarks, "mouth" the lips' bounding box enlarged by a quarter of its width, "eyes" both eyes'
    boxes. With `align`, columns "aligned …" follow: the same at refined poses, which separates errors of tracking from errors
    of the head.
    """
    head = load_head(head_path, device)
    return {split: measure_split(head, clip, split, device, align=align, quiet=quiet, batch=batch).means() for split in splits}


def evaluate_head(clip: Clip, head_path: Path | str, folder: Path, *, splits: Iterable[str], device: torch.device,
                  align: bool = True, every: int = 1, lpips: Path | None = None, poses: np.ndarray | None = None,
                  quiet: bool = False) -> dict[str, Table]:
    """Evaluate a head file on `splits` -> tables {title: {row: {column: number}}}.

    Writes eval.json with every frame's metrics, and eval.html with contact sheets, to `folder`. Uses each `every`-th frame;
    flicker always uses consecutive frames. With `align` also at refined poses. `lpips` is a folder with weights (see
    `lpips.load_lpips`). `poses` (T, 4, 4) of the clip are those of the expression sheet, by default the tracked ones. Raises
    TalkheadError for a split without good frames.
    """
    head = load_head(head_path, device)
    perceptual = load_lpips(lpips, device) if lpips else None
    batch = CUDA_BATCH if device.type == "cuda" else CPU_BATCH
    tables: dict[str, Table] = {}
    record: dict[str, dict] = {}
    page = ReportPage(f"Gaussian head of {Path(head_path).resolve().parent.name} on {clip.info.name}", PAGE_WIDTH)
    page.text(PROTOCOL)
    sheets = []
    for split in splits:
        measured = measure_split(head, clip, split, device, align=align, every=every, lpips=perceptual, quiet=quiet, batch=batch)
        tables.update(split_tables(measured, split, clip))
        tables.update(sharpness_table(measured, split))
        tables.update(flicker_table(head, clip, split, device, align=align, batch=batch, quiet=quiet))
        record[split] = as_record(measured)
        sheets.append((split, contact_sheet(head, measured)))
    for title, table in tables.items():
        page.table(title, table)
    page.text(SHARPNESS)
    page.text(FLICKER)
    page.text(ERROR)
    heads = ["video", "render", f"error × {ERROR_GAIN}", *[f"error × {ERROR_GAIN}, aligned"] * align, "alpha"]
    for split, strips in sheets:
        page.heading(f"frames of {split}")
        for caption, strip in strips:
            page.figure(strip, caption, heads)
    if "train" in clip.info.split:
        seen = clip.split("train")
        page.heading("faces that nobody filmed")
        page.text(EDITED)
        shown = clip.load_poses() if poses is None else poses
        page.picture(make_expression_sheet(head, clip.load_landmarks()[seen], shown[seen], clip.load_neutral()[0],
                                clip.info.intrinsics, clip.info.width, clip.info.height, clip.load_plates()[0]))
    write_json(folder / "eval.json", {"clip": clip.info.name, "every": every, "tables": tables, "splits": record})
    page.write(folder / "eval.html")
    return tables


def measure_split(head: Head, clip: Clip, split: str, device: torch.device, *, align: bool = False, every: int = 1,
                  lpips: Lpips | None = None, quiet: bool = False, batch: int = 8) -> Measured:
    """The metrics of each `every`-th good frame of a split, with `align` also at refined poses. Raises TalkheadError if there
    is none."""
    indices = clip.split(split)[::every]
    if len(indices) == 0:
        raise TalkheadError(f"{clip.root}: the split {split!r} holds no good frame")
    data = HeadDataset(clip, indices, device)
    poses = {"": data.poses}
    if align:
        poses["aligned "] = refine_poses(head, data, quiet=quiet)
    found: list[dict[str, Tensor]] = []
    details: dict[str, list[Detail]] = {prefix: [] for prefix in poses}
    with progress(len(data), f"measuring {split}", quiet=quiet, unit="frame") as bar:
        for start in range(0, len(data), batch):
            rows = np.arange(start, min(start + batch, len(data)))
            frames = data.batch(rows)
            masks = regions(frames, data)
            values: dict[str, Tensor] = {}
            for prefix, placed in poses.items():
                shown, _ = composite(head, frames, placed[rows], data)
                for name, value in measure(shown, frames, masks, data, rows, lpips).items():
                    values[prefix + name] = value
                details[prefix].append(measure_detail(shown, frames.frames, frames.landmarks, frames.poses, data.intrinsics))
            found.append(values)
            bar.update(len(rows))
    return Measured(data, poses, {name: torch.cat([x[name] for x in found]).cpu().numpy() for name in found[0]},
                    {prefix: Detail(*map(torch.cat, zip(*parts))) for prefix, parts in details.items()})


def head_over_truth(rgba: Tensor, frames: Batch) -> Tensor:
    """Rendered heads (B, H, W, 4) in the frames' window -> pictures (B, H, W, 3), rounded to 8 bits, to compare with the frames.

    The head lies over the true frame where the labels show torso, neck or background; where they show the head, over the
    plate, or the colour of the neck near the jaw, so that a transparent head shows (see `dataset.make_backdrop`). Every
    figure called "head over truth" is of these pictures.
    """
    return (over(rgba, frames.backdrop).clamp(0, 1) * 255).round() / 255


@torch.no_grad()
def composite(head: Head, frames: Batch, poses: Tensor, data: HeadDataset) -> tuple[Tensor, Tensor]:
    """The `head_over_truth` at `poses` (B, 4, 4), and the head's alpha (B, H, W)."""
    rgba = render_head(head, frames.landmarks, poses, data.intrinsics, data.width, data.height, frames.torso, frames.gaze)
    return head_over_truth(rgba, frames), rgba[..., 3]


def regions(frames: Batch, data: HeadDataset) -> dict[str, Tensor]:
    """Masks, bool (B, H, W) by the names of REGIONS except "full", at the tracked poses."""
    def box(part: list[int], margin: float) -> Tensor:
        return box_mask(frames.landmarks, frames.poses, data.intrinsics, data.width, data.height, part, margin)

    points = project(frames.landmarks, frames.poses, data.intrinsics)
    return {"head": frames.head > 0.5, "face": hull_mask(points, data.width, data.height), "mouth": box(LIPS, LIPS_MARGIN),
            "eyes": box(EYE_RIGHT, EYE_MARGIN) | box(EYE_LEFT, EYE_MARGIN)}


def hull_mask(points: Tensor, width: int, height: int) -> Tensor:
    """points (B, N, 2) in pixels -> bool (B, H, W): pixel centres inside the convex hull of each picture's points."""
    x = torch.arange(width, device=points.device) + 0.5
    y = torch.arange(height, device=points.device)[:, None] + 0.5
    masks = []
    for row in points.cpu().numpy():
        sides = torch.from_numpy(ConvexHull(row).equations).to(points).T[..., None, None]
        masks.append((sides[0] * x + sides[1] * y + sides[2] <= 0).all(0))
    return torch.stack(masks)


@torch.no_grad()
def measure(shown: Tensor, frames: Batch, masks: dict[str, Tensor], data: HeadDataset, rows: np.ndarray,
            lpips: Lpips | None) -> dict[str, Tensor]:
    """PSNR, SSIM and, if given, LPIPS of every frame `rows` and region, (B,) each; `shown` (B, H, W, 3) is the head's window."""
    info = data.clip.info
    share = data.width * data.height / (info.width * info.height)
    error = (shown - frames.frames).square().mean(-1)
    similarity = ssim_of_pixels(shown, frames.frames)
    # outside the window the composite is the true frame: no error there (SSIM's filter reaches 5 pixels out, which is left out)
    values = {"full psnr": decibel(share * error.mean((1, 2))), "full ssim": 1 - share * (1 - similarity.mean((1, 2)))}
    for name, mask in masks.items():
        values[f"{name} psnr"] = decibel(_mean_in(error, mask))
        values[f"{name} ssim"] = _mean_in(similarity, mask)
    if lpips is not None:
        true = torch.from_numpy(data.clip.read_frames(data.indices[rows])).to(shown.device).float() / 255
        whole = true.clone()
        whole[:, data.rows, data.columns] = shown
        values["full lpips"], places = lpips(whole, true)
        for name, mask in masks.items():
            values[f"{name} lpips"] = _mean_in(places[:, data.rows, data.columns], mask)
    return values


def _mean_in(values: Tensor, mask: Tensor) -> Tensor:
    """Means (B,) of values (B, H, W) over a mask, NaN where it is empty."""
    return (values * mask).sum((1, 2)) / mask.sum((1, 2))


def split_tables(measured: Measured, split: str, clip: Clip) -> dict[str, Table]:
    """A table with a row per region and, if the split spans several shots, one with a row per shot."""
    tables = {f"{split}: {len(measured.data)} frames, {MEASURED}": _region_rows(measured)}
    shots = clip.shot_of_frames()[measured.data.indices]
    if len(set(shots.tolist())) > 1:
        tables[f"{split}, PSNR by shot"] = {
            f"frames {measured.data.indices[rows[0]]}–{measured.data.indices[rows[-1]]} ({len(rows)})":
                {prefix + label: means[f"{prefix}{name} psnr"] for prefix in measured.poses
                 for name, label in REGIONS.items() if f"{prefix}{name} psnr" in means}
            for rows in (np.flatnonzero(shots == shot) for shot in np.unique(shots))
            for means in [measured.means(rows)]}
    return tables


def _region_rows(measured: Measured) -> Table:
    means, worst = measured.means(), measured.worst()
    table: Table = {}
    for name, label in REGIONS.items():
        row = table.setdefault(label, {})
        for prefix in measured.poses:
            for figure, title in FIGURES.items():
                if f"{prefix}{name} {figure}" in means:
                    row[prefix + title] = means[f"{prefix}{name} {figure}"]
                if figure == "psnr" and f"{prefix}{name} psnr" in worst:
                    row[f"{prefix}worst {WORST} %"] = worst[f"{prefix}{name} psnr"]
    return table


def sharpness_table(measured: Measured, split: str) -> dict[str, Table]:
    """Contrast and sharpness of the mouth's interior; empty if no mouth is open."""
    figures = {f"{prefix}{name}": value for prefix, detail in measured.details.items()
               for name, value in sharpness(detail).items()}
    count = int(measured.details[""].video.isfinite().sum())
    return {f"{split}, detail of the mouth's interior": {f"{count} frames with the mouth open": figures}} if figures else {}


def flicker_table(head: Head, clip: Clip, split: str, device: torch.device, *, align: bool, batch: int,
                  quiet: bool) -> dict[str, Table]:
    """Flicker of the video and of the render on the split's stillest stretch; empty if no stretch is long enough."""
    indices = clip.split(split)
    motion = landmark_motion(clip.load_landmarks(), clip.load_poses(), clip.info.intrinsics)
    indices = indices[stillest_stretch(motion, indices, clip.shot_of_frames())]
    if len(indices) == 0:
        return {}
    data = HeadDataset(clip, indices, device)
    poses = {"": data.poses} | ({"aligned ": refine_poses(head, data, quiet=quiet)} if align else {})
    table: Table = {}
    for prefix, placed in poses.items():
        for region, (true, shown) in measure_flicker(head, data, placed, batch).items():
            row = table.setdefault(region, {"video": true.mean, "p95 video": true.high})
            row |= {f"{prefix}render": shown.mean, f"{prefix}ratio": shown.mean / max(true.mean, 1e-6),
                    f"{prefix}p95 ratio": shown.high / max(true.high, 1e-6)}
    return {f"{split}, flicker on frames {indices[0]}–{indices[-1]}": table} if table else {}


def as_record(measured: Measured) -> dict:
    """Every frame's metrics, JSON-able."""
    details = {f"{prefix}mouth detail {name}": energies.numpy() for prefix, detail in measured.details.items()
               for name, energies in detail._asdict().items()}
    return {"frames": measured.data.indices.tolist(),
            **{name: [round(float(v), 4) if np.isfinite(v) else None for v in x]
               for name, x in (measured.values | details).items()}}


def representative_frames(measured: Measured) -> dict[int, str]:
    """Frames for the contact sheet, {row: reason}: extremes of expression, worst and median head PSNR, and evenly spaced ones."""
    landmarks = measured.data.landmarks.cpu().numpy()
    yaw = euler_degrees(measured.data.poses[:, :3, :3].cpu().numpy())[:, 0]
    order = np.argsort(measured.values["head psnr"], kind="stable")
    found: dict[int, list[str]] = {}
    for row, reason in (
        (lip_opening(landmarks).argmax(), "widest mouth"),
        (eye_opening(landmarks).mean(1).argmin(), "eyes most closed"),
        (np.abs(yaw - np.median(yaw)).argmax(), "head turned most"),
        (order[0], "worst head PSNR"),
        (order[len(order) // 2], "median head PSNR"),
    ):
        found.setdefault(int(row), []).append(reason)
    for row in np.linspace(0, len(order) - 1, EVENLY + 2).round().astype(int)[1:-1]:
        found.setdefault(int(row), [])
    return {row: ", ".join(reasons) for row, reasons in found.items()}


def contact_sheet(head: Head, measured: Measured) -> list[tuple[str, np.ndarray]]:
    """(caption, strip) of each representative frame: frame, render, error about grey, error at the refined pose, alpha; uint8."""
    data, strips = measured.data, []
    for row, reason in representative_frames(measured).items():
        frames = data.batch(np.array([row]))
        cells, errors = [frames.frames[0]], []
        for prefix, poses in measured.poses.items():
            shown, alpha = composite(head, frames, poses[row : row + 1], data)
            errors.append((0.5 + ERROR_GAIN * (shown[0] - frames.frames[0])).clamp(0, 1))
            if not prefix:
                cells.append(shown[0])
                last = alpha[0, ..., None].expand(-1, -1, 3).clamp(0, 1)
        strips.append((_caption(measured, row, reason), _strip([*cells, *errors, last])))
    return strips


def _strip(cells: list[Tensor]) -> np.ndarray:
    """Pictures (H, W, 3) in [0, 1] side by side, uint8."""
    gap = torch.ones(cells[0].shape[0], GAP, 3, device=cells[0].device)
    joined = torch.cat([x for cell in cells for x in (gap, cell)][1:], 1)
    image = Image.fromarray((joined * 255).round().byte().cpu().numpy())
    image.thumbnail((STRIP_WIDTH, image.height))
    return np.asarray(image)


def _caption(measured: Measured, row: int, reason: str) -> str:
    parts = []
    for name in ("head", "mouth", "eyes"):
        raw, *aligned = [measured.values[f"{prefix}{name} psnr"][row] for prefix in measured.poses]
        parts.append(f"{name} {raw:.1f} dB" + "".join(f" ({x:.1f} aligned)" for x in aligned))
    return f"Frame {measured.data.indices[row]}{reason and ': ' + reason}. PSNR of {', '.join(parts)}"
