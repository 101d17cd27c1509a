"""The finished video tracked again: what a viewer sees of the lips, the jaw line and flicker on held-out frames.

Landmarks of several sources are rendered at the clip's true poses and torso motion and written as `synth` writes videos; the
tracker that made the clip then reads lips from these videos, and pictures are compared with the true ones.
"""

import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from process_data.detection.base import Detector
from process_data.detection.detector import open_detector
from process_data.retrack import KnownHead, known_head, retrack
from shared.avatar import Avatar, refined_poses
from shared.camera import project
from shared.clip import HEAD, MOUTH, NECK, Clip
from shared.landmarks import LIPS, lip_opening
from shared.media.video_io import VideoWriter, read_video
from shared.metrics import correlation, lag_ms, landmark_distance, psnr, velocity_ratio
from shared.progress import progress
from stage1_audio2lmk.audio.features import levels
from stage1_audio2lmk.baselines import mean_face, ridge
from stage1_audio2lmk.dataset import clip_samples
from stage1_audio2lmk.evaluate import Curves
from stage1_audio2lmk.stream import load_predictor, predict
from stage2_gaussian.dataset import BAND
from stage2_gaussian.evaluation.evaluate import hull_mask
from stage2_gaussian.evaluation.flicker import deviation, landmark_motion, still_regions, stillest_stretch
from talkhead.synthesis import Renderer, batch_size, to_uint8

Row = dict[str, float]
TRUE, TRACKED, SOUND, RIDGE, MEAN = ("true video", "from tracked landmarks", "from sound", "from ridge ±4", "from the mean face")
RELATED = 0.3  # least correlation of two openings for a lag to be one
TITLE = "finished video, tracked again: {}"
NOTE = (
    "Finished videos of held-out frames, written as `synth` writes them and read by the tracker that made the clip, at the "
    "clip's poses; rendered at {poses} poses. Lips px: mean distance of the 20 lip points from the clip's own landmarks, in "
    "pixels of the clip and of a 512-wide picture. Opening r, velocity and lag: of these lips against the clip's; “driving” r "
    "and px: of the landmarks that were rendered, before the head and the tracker. Flicker: change from frame to frame inside "
    "the head over that of the true video, on its stillest frames. Jaw–neck dB: PSNR within {band} pixels of the border between "
    "head and neck; face dB: in the face hull outside that band. The true video, encoded again, tells the error of the tracker "
    "itself. The sound is the clip's, heard from its beginning; blinks and brows, which `synth` adds from a seed, are left out. "
    "Ridge sees ± 4 frames of log-mel; it and the mean face are of the train split.")


class Masks:
    """Regions of a clip's frames in which pictures are compared."""

    def __init__(self, clip: Clip, frames: np.ndarray) -> None:
        self.clip, self.reach = clip, max(1, round(BAND * clip.info.width))
        self.landmarks, self.poses = clip.load_landmarks(), clip.load_poses()
        motion = landmark_motion(self.landmarks, self.poses, clip.info.intrinsics)
        self.still = frames[stillest_stretch(motion, frames, clip.shot_of_frames())]
        inside = still_regions(torch.from_numpy(clip.read_labels(self.still)), self.reach)["head"] if len(self.still) else None
        self.still_head = inside
        if inside is None or not inside.any():
            self.still = frames[:0]

    def of_frame(self, t: int) -> dict[str, np.ndarray]:
        """Bool (H,W) by name: "jaw–neck", within `reach` of where head meets neck; "face", the face hull outside that."""
        labels = torch.from_numpy(self.clip.read_labels(np.array([t])))
        head, neck = (labels == HEAD) | (labels == MOUTH), labels == NECK
        band = self._grown(head) & self._grown(neck)
        info = self.clip.info
        points = torch.from_numpy(project(self.landmarks[t], self.poses[t], info.intrinsics))[None]
        return {"jaw–neck": band[0].numpy(), "face": (hull_mask(points, info.width, info.height) & ~band)[0].numpy()}

    def _grown(self, mask: torch.Tensor) -> torch.Tensor:
        return F.max_pool2d(mask.float()[:, None], 2 * self.reach + 1, 1, self.reach)[:, 0] > 0


@dataclass
class Pictures:
    """What is measured on the pictures of one video while they pass by."""

    clip: Clip
    frames: np.ndarray  # (n,) numbers in the clip
    masks: Masks
    shown: set[int] = field(default_factory=set)  # numbers of frames to keep for a contact sheet
    kept: dict[int, np.ndarray] = field(default_factory=dict)
    still: list[np.ndarray] = field(default_factory=list)
    dbs: dict[str, list[float]] = field(default_factory=dict)

    def watch(self, pictures: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Pass pictures (H,W,3) uint8 of `frames` on, and measure each."""
        for t, picture in zip(self.frames, pictures, strict=True):
            true = self.clip.read_frames(np.array([t]))[0]
            for name, mask in self.masks.of_frame(t).items():
                if mask.any():
                    self.dbs.setdefault(name, []).append(psnr(picture, true, mask))
            if t in self.masks.still:
                self.still.append(picture)
            if t in self.shown:
                self.kept[int(t)] = picture
            yield picture

    def row(self) -> Row:
        """Flicker against the true video's, and PSNR by region; regions that no frame has are left out."""
        row = {}
        if self.still:
            true = torch.from_numpy(self.clip.read_frames(self.masks.still))
            plain, found = (deviation(x)[self.masks.still_head].mean() for x in (true, torch.from_numpy(np.stack(self.still))))
            row["flicker"] = float(found / plain.clamp_min(1e-6))
        return row | {f"{name} dB": float(np.mean(values)) for name, values in self.dbs.items()}


def driving_landmarks(avatar: Avatar, clip: Clip, device: torch.device) -> dict[str, np.ndarray]:
    """Landmarks (T,68,3) of every frame of the clip by row: tracked, and, if the avatar has stage 1, heard and the baselines'."""
    landmarks = clip.load_landmarks()
    rows = {TRACKED: landmarks}
    if avatar.stage1.is_file():
        samples, train = clip_samples(clip), clip.split("train")
        predictor = load_predictor(avatar.stage1, device)
        rows |= {SOUND: predict(predictor, samples, avatar.load_neutral(), blinks=False)[: len(landmarks)],
                 RIDGE: ridge(samples, landmarks, train), MEAN: mean_face(landmarks, train, len(landmarks))}
    return rows


def finished_frames(renderer: Renderer, clip: Clip, frames: np.ndarray, landmarks: np.ndarray,
                    poses: np.ndarray) -> Iterator[np.ndarray]:
    """Finished pictures (H,W,3) uint8, without a watermark, of frames (n,) of the clip: landmarks (T,68,3) and poses (T,4,4) of
    the whole clip, its torso motion and gaze, over the plate of each frame's shot."""
    motion, gaze, shots = clip.load_torso_motion(), clip.load_gaze(), clip.shot_of_frames()
    plates = [renderer.plate(plate) for plate in clip.load_plates()]
    size = batch_size(renderer.device)
    for shot in dict.fromkeys(shots[frames].tolist()):
        own = frames[shots[frames] == shot]
        for start in range(0, len(own), size):
            batch = own[start : start + size]
            head = renderer.head_rgba(landmarks[batch], poses[batch], motion[batch], gaze[batch])
            yield from to_uint8(renderer.compose(head, poses[batch], motion[batch], plates[shot]))


def compare_lips(seen: np.ndarray, found: np.ndarray, head: KnownHead) -> Row:
    """Landmarks (T,68,3) seen in a video, found (T,) bool, against those of the clip; only "face lost" where none was found."""
    row = {"face lost": float(1 - found.mean())} if not found.all() else {}
    if found.sum() < 2:
        return row
    seen, true, poses = seen[found], head.landmarks[found], head.poses[found]
    opening, truth = lip_opening(seen), lip_opening(true)
    r = correlation(opening, truth)
    return {"lips px": landmark_distance(seen, true, LIPS, poses, head.intrinsics),
            "px at 512": landmark_distance(seen, true, LIPS, poses, head.intrinsics, size=512), "opening r": r,
            **({"lag ms": lag_ms(truth, opening)} if r >= RELATED else {}), "velocity": velocity_ratio(seen, true, LIPS)} | row


def driving_row(landmarks: np.ndarray, head: KnownHead) -> Row:
    """Landmarks (T,68,3) that were rendered against those of the clip."""
    return {"driving r": correlation(lip_opening(landmarks), lip_opening(head.landmarks)),
            "driving px at 512": landmark_distance(landmarks, head.landmarks, LIPS, head.poses, head.intrinsics, size=512)}


@dataclass
class Retracked:
    """One split's videos: table {row: {column: number}}, frames (n,), openings (n,) in metres by row (NaN where no face is
    found), pictures by row and frame number."""

    table: dict[str, Row]
    frames: np.ndarray
    openings: dict[str, np.ndarray]
    pictures: dict[str, dict[int, np.ndarray]]


def retrack_split(renderer: Renderer, clip: Clip, split: str, driving: dict[str, np.ndarray], poses: np.ndarray,
                  detector: Detector, *, sheet: int = 6, quiet: bool = False) -> Retracked:
    """Render, write, read and track again each of `driving` (T,68,3) at `poses` (T,4,4), and the true video, on one split.

    `sheet`: number of frames, evenly spread, whose pictures are kept.
    """
    frames = clip.split(split)
    head, masks = known_head(clip, frames), Masks(clip, frames)
    shown = set(frames[np.linspace(0, len(frames) - 1, sheet).astype(int)].tolist())
    made = Retracked({}, frames, {"tracked": lip_opening(head.landmarks)}, {})
    rows: dict[str, np.ndarray | None] = {TRUE: None, **driving}
    with (tempfile.TemporaryDirectory(prefix="talkhead-eval-") as folder,
          progress(2 * len(rows) * len(frames), f"tracking again {split}", quiet=quiet, unit="frame") as bar):

        def counted(pictures: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
            for picture in pictures:
                yield picture
                bar.update()

        for name, landmarks in rows.items():
            source = (clip.read_frames(frames[k : k + 1])[0] for k in range(len(frames))) if landmarks is None else \
                finished_frames(renderer, clip, frames, landmarks, poses)
            video = Path(folder) / "finished.mp4"
            with VideoWriter(video, clip.info.width, clip.info.height) as writer:
                for picture in counted(source):
                    writer.write(picture)
            watched = Pictures(clip, frames, masks, shown)
            seen, found = retrack(counted(watched.watch(read_video(video))), head, detector)
            made.table[name] = compare_lips(seen, found, head) | watched.row()
            if landmarks is not None:
                made.table[name] |= driving_row(landmarks[frames], head)
            made.openings[name] = np.where(found, lip_opening(seen), np.nan)
            made.pictures[name] = watched.kept
    return made


def note(avatar: Avatar, clip: Clip) -> str:
    """What the table's columns mean."""
    fitted = clip.load_fitted_poses(avatar.trained_head()) is not None
    return NOTE.format(poses="the fitted" if fitted else "the tracked", band=max(1, round(BAND * clip.info.width)))


def contact_sheet(made: Retracked) -> list[tuple[str, np.ndarray]]:
    """(row's name, pictures side by side (H,n·W,3) uint8), the same frames of every row below each other."""
    return [(name, np.concatenate([pictures[t] for t in sorted(pictures)], 1)) for name, pictures in made.pictures.items()]


def opening_curves(made: Retracked, clip: Clip) -> Curves:
    """Lip openings of the clip and, as seen in the finished videos, of stage 1 and ridge, where all show a face."""
    names = {"tracked": "tracked", "stage 1": SOUND, "ridge ±4": RIDGE}
    openings = {}
    for name, row in names.items():
        if row in made.openings:
            openings[name] = np.full(clip.info.frames, np.nan)
            openings[name][made.frames] = made.openings[row]
    found = np.all([np.isfinite(opening) for opening in openings.values()], axis=0)
    return Curves(openings, levels(clip_samples(clip)), np.flatnonzero(found))


def as_record(made: Retracked) -> dict:
    """Frames and openings in millimetres, null where no face is found, JSON-able."""
    return {"frames": made.frames.tolist(), "opening mm": {
        name: [round(1000 * float(x), 3) if np.isfinite(x) else None for x in opening]
        for name, opening in made.openings.items()}}


def retrack_avatar(avatar: Avatar, clip: Clip, splits: Iterable[str], device: torch.device, *,
                   quiet: bool = False) -> dict[str, Retracked]:
    """`Retracked` by split, at the fitted poses where `stage2 train` fitted some, else at the tracked ones."""
    renderer, driving = Renderer(avatar, device), driving_landmarks(avatar, clip, device)
    poses, detector = refined_poses(avatar, clip), open_detector()
    try:
        return {split: retrack_split(renderer, clip, split, driving, poses, detector, quiet=quiet) for split in splits}
    finally:
        detector.close()
