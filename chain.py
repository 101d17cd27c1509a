"""The stages put together: training an avatar's parts, speaking with it, measuring it. Only arrays pass between them."""

import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from shared.audio_io import iter_audio
from shared.avatar import Avatar
from shared.camera import project
from shared.clip import HEAD, MOUTH, Clip
from shared.errors import TalkheadError
from shared.landmarks import LIPS, SAMPLES_PER_FRAME, load_array, load_landmarks, save_landmarks
from shared.metrics import psnr, ssim
from shared.training import progress
from shared.video_io import VideoWriter

MOUTH_BOX_MARGIN = 0.25  # of the lips' width, on each side


def ping_pong(count: int, length: int) -> np.ndarray:
    """Indices (count,) that run 0…length−1, back to 0 and on: a loop in which no step is larger than one."""
    if length == 1:
        return np.zeros(count, np.int64)
    phase = np.arange(count) % (2 * length - 2)
    return np.where(phase < length, phase, 2 * length - 2 - phase)


class Motion:
    """Head poses and torso motion for frame t of any length: "loop" back and forth, "still", or a poses file."""

    def __init__(self, avatar: Avatar, mode: str) -> None:
        self.poses, self.torso = avatar.load_motion()
        self.mode = mode
        if mode == "still":
            middle = len(self.poses) // 2
            self.poses, self.torso = self.poses[middle : middle + 1], self.torso[middle : middle + 1]
        elif mode != "loop":
            self.poses = load_array(mode, (4, 4))
            self.torso = self.torso[ping_pong(len(self.poses), len(self.torso))]

    def at(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Poses (n,4,4) and torso motion (n,4) of frames start ≤ t < stop."""
        index = ping_pong(stop, len(self.poses))[start:stop]
        return self.poses[index], self.torso[index]


def rebatch(chunks: Iterable[np.ndarray], size: int) -> Iterator[np.ndarray]:
    """Join arrays along axis 0 and cut them again into pieces of `size` rows (the last one shorter)."""
    waiting: list[np.ndarray] = []
    count = 0
    for chunk in chunks:
        waiting.append(chunk)
        count += len(chunk)
        if count >= size:
            joined = np.concatenate(waiting)
            whole = len(joined) // size * size
            yield from np.split(joined[:whole], whole // size)
            waiting, count = [joined[whole:]], len(joined) - whole
    if count:
        yield np.concatenate(waiting)


class Renderer:
    """Landmarks, poses and torso motion -> finished frames, with the head and torso networks of one avatar."""

    def __init__(self, avatar: Avatar, device: torch.device) -> None:
        from stage2_gaussian.render import load_head
        from torso_styleunet.composite import load_torso

        avatar.require("stage2", "torso")
        self.info = avatar.info
        self.device = device
        self.head = load_head(avatar.stage2, device)
        self.torso = load_torso(avatar.torso, device)
        self.background = self.plate(avatar.load_background())

    def plate(self, rgb: np.ndarray) -> Tensor:
        """uint8 (H,W,3) -> float (H,W,3) in [0,1] on the device."""
        return torch.as_tensor(rgb, device=self.device).float() / 255

    @torch.no_grad()
    def head_rgba(self, landmarks: np.ndarray, poses: np.ndarray) -> Tensor:
        """landmarks (B,68,3), poses (B,4,4) -> premultiplied RGBA (B,H,W,4)."""
        return render_head(self.head, self.info, landmarks, poses, self.device)

    @torch.no_grad()
    def compose(self, head: Tensor, poses: np.ndarray, motion: np.ndarray, background: Tensor | None = None) -> Tensor:
        """Head RGBA (B,H,W,4), poses (B,4,4), motion (B,4) -> (B,H,W,3) in [0,1] over `background` (H,W,3)."""
        from torso_styleunet.composite import composite

        plate = self.background if background is None else background
        return composite(self.torso, head, torch.as_tensor(poses, device=self.device),
                         torch.as_tensor(motion, device=self.device), plate).clamp(0, 1)

    def frames(self, landmarks: np.ndarray, poses: np.ndarray, motion: np.ndarray) -> Tensor:
        """landmarks (B,68,3), poses (B,4,4), motion (B,4) -> finished frames (B,H,W,3) in [0,1]."""
        return self.compose(self.head_rgba(landmarks, poses), poses, motion)


def render_head(head: torch.nn.Module, info: Any, landmarks: np.ndarray, poses: np.ndarray,
                device: torch.device) -> Tensor:
    """One batch through stage 2 at the avatar's or clip's own size -> premultiplied RGBA (B,H,W,4)."""
    from stage2_gaussian import render

    return render.render_head(head, torch.as_tensor(landmarks, device=device), torch.as_tensor(poses, device=device),
                              info.intrinsics, info.width, info.height)


def head_frames(avatar: Avatar, clip: Clip, device: torch.device) -> Callable[[np.ndarray], Tensor]:
    """What torso training asks for: frame indices (B,) of the clip -> rendered head RGBA (B,H,W,4)."""
    from stage2_gaussian.render import load_head

    avatar.require("stage2")
    head = load_head(avatar.stage2, device)
    landmarks, poses = clip.load_landmarks(), clip.load_poses()

    @torch.no_grad()
    def render(indices: np.ndarray) -> Tensor:
        return render_head(head, clip.info, landmarks[indices], poses[indices], device)

    return render


def batch_size(device: torch.device) -> int:
    """Frames rendered at once."""
    return 16 if device.type == "cuda" else 4


def to_uint8(frames: Tensor) -> np.ndarray:
    """(B,H,W,C) in [0,1] -> uint8 array."""
    return (frames.clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()


def synthesize(avatar: Avatar, audio: Path, output: Path, *, device: torch.device, landmarks: Path | None = None,
               poses: str = "loop", seed: int = 0, save_landmarks_to: Path | None = None, quiet: bool = False) -> int:
    """Write `output`, the avatar speaking `audio`; returns the number of frames. Memory stays bounded.

    With `landmarks` (a landmark file) stage 1 is left out and the file's rows are shown, with the sound beneath.
    """
    avatar.require("stage2", "torso", *(() if landmarks else ("stage1",)))
    if landmarks is not None:
        rows = load_landmarks(landmarks)
        chunks: Iterable[np.ndarray] = [rows]
        total = len(rows)
        next(iter_audio(audio, seconds=0.1))
    else:
        from stage1_audio2lmk.predict import iter_predict, load_predictor

        total = sum(len(piece) for piece in iter_audio(audio))
        total = -(-total // SAMPLES_PER_FRAME)
        predictor = load_predictor(avatar.stage1, device)
        chunks = iter_predict(predictor, iter_audio(audio, seconds=2.0), avatar.load_neutral(), seed=seed)
    motion = Motion(avatar, poses)
    renderer = Renderer(avatar, device)
    kept: list[np.ndarray] = []
    count = 0
    info = avatar.info
    with (VideoWriter(output, info.width, info.height, audio=audio) as writer,
          progress(total, "rendering", quiet=quiet, unit="frame") as bar):
        for batch in rebatch(chunks, batch_size(device)):
            if save_landmarks_to is not None:
                kept.append(batch)
            pose, torso = motion.at(count, count + len(batch))
            for frame in to_uint8(renderer.frames(batch, pose, torso)):
                writer.write(frame)
            count += len(batch)
            bar.update(len(batch))
    if save_landmarks_to is not None:
        save_landmarks(save_landmarks_to, np.concatenate(kept))
    return count


def mouth_box_mask(landmarks: np.ndarray, poses: np.ndarray, intrinsics: tuple[float, ...], width: int,
                   height: int) -> np.ndarray:
    """(B,68,3), (B,4,4) -> bool (B,H,W): the lips' bounding box, a quarter of its width larger on each side."""
    pixels = project(landmarks[:, LIPS], poses, intrinsics)
    low, high = pixels.min(1), pixels.max(1)
    margin = MOUTH_BOX_MARGIN * (high[:, :1] - low[:, :1])
    low, high = low - margin, high + margin
    x, y = np.arange(width) + 0.5, np.arange(height) + 0.5
    inside_x = (x >= low[:, :1]) & (x <= high[:, :1])
    inside_y = (y >= low[:, 1:]) & (y <= high[:, 1:])
    return inside_y[:, :, None] & inside_x[:, None, :]


def evaluate_pictures(avatar: Avatar, clip: Clip, splits: Iterable[str], device: torch.device,
                      quiet: bool = False) -> dict[str, dict[str, float]]:
    """PSNR (dB) and SSIM per split and region, driven by the tracked landmarks, poses and torso motion.

    full: the finished frame against the video. head: the same where the labels say head or mouth. mouth: the same in
    the mouth box. head_on_truth: the rendered head over the true torso and background (the published protocol).
    """
    renderer = Renderer(avatar, device)
    info = clip.info
    landmarks, poses, motion = clip.load_landmarks(), clip.load_poses(), clip.load_torso()
    plates = [renderer.plate(plate) for plate in clip.load_plates()]
    shots = clip.shot_of_frames()
    table: dict[str, dict[str, float]] = {}
    for split in splits:
        indices = clip.split(split)
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
                    over_truth = head[..., :3] + (1 - head[..., 3:]) * true
                    over_truth = torch.where(is_head[..., None], frames, over_truth.clamp(0, 1))
                    box = mouth_box_mask(landmarks[batch], poses[batch], info.intrinsics, info.width, info.height)
                    for name, image, mask in (("full", frames, None), ("head", frames, is_head), ("mouth", frames, box),
                                              ("head_on_truth", over_truth, None)):
                        sums[f"{name} psnr"] = sums.get(f"{name} psnr", 0) + psnr(image, true, mask) * len(batch)
                        sums[f"{name} ssim"] = sums.get(f"{name} ssim", 0) + ssim(image, true, mask) * len(batch)
                    bar.update(len(batch))
        table[split] = {key: value / len(indices) for key, value in sums.items()}
    return table


def render_speed(avatar: Avatar, device: torch.device, seconds: float = 2.0) -> dict[str, float]:
    """Frames a second of head and of finished frames, at batch 1 and at the usual batch, after warming up."""
    renderer = Renderer(avatar, device)
    neutral = avatar.load_neutral()
    motion = Motion(avatar, "loop")
    result = {}
    for batch in (1, batch_size(device)):
        landmarks = np.repeat(neutral, batch, axis=0)
        poses, torso = motion.at(0, batch)
        for name, call in (("head", lambda: renderer.head_rgba(landmarks, poses)),
                           ("frame", lambda: renderer.frames(landmarks, poses, torso))):
            call()
            _wait(device)
            start, count = time.perf_counter(), 0
            while time.perf_counter() - start < seconds:
                call()
                count += batch
                _wait(device)
            result[f"{name} fps, batch {batch}"] = count / (time.perf_counter() - start)
    return result


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def check_same_size(avatar: Avatar, clip: Clip) -> None:
    """Raise TalkheadError if the avatar was made for pictures of another size than the clip's."""
    a, b = avatar.info, clip.info
    if (a.width, a.height) != (b.width, b.height):
        raise TalkheadError(f"{avatar.root} renders {a.width}x{a.height}, but {clip.root} is {b.width}x{b.height}")

