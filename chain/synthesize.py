"""An avatar speaks: landmarks, head, torso and sound put together in bounded memory."""

import dataclasses
import difflib
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from shared.audio_io import iter_audio
from shared.avatar import Avatar
from shared.clip import Clip
from shared.errors import TalkheadError
from shared.files import atomic_path
from shared.landmarks import FPS, SAMPLES_PER_FRAME, load_array, load_landmarks, save_array, save_landmarks
from shared.poses import load_poses
from shared.training import progress
from shared.video_io import TransparentVideoWriter, VideoWriter, read_rgba, write_png


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
            if not Path(mode).exists() and Path(mode).suffix.lower() != ".npy":
                near = difflib.get_close_matches(mode.lower(), ("loop", "still"), n=1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise TalkheadError(f"--poses takes loop, still or a poses .npy file, found {mode!r}{hint}")
            self.poses = load_poses(mode)
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


class Compositor:
    """Head pictures, poses and torso motion -> finished frames, with the torso network of one avatar."""

    def __init__(self, avatar: Avatar, device: torch.device) -> None:
        from torso_styleunet.composite import load_torso

        avatar.require("torso")
        self.device = device
        self.torso = load_torso(avatar.torso, device)
        self.background = self.plate(avatar.load_background())

    def plate(self, rgb: np.ndarray) -> Tensor:
        """uint8 (H,W,3) -> float (H,W,3) in [0,1] on the device."""
        return torch.as_tensor(rgb, device=self.device).float() / 255

    @torch.no_grad()
    def compose(self, head: Tensor, poses: np.ndarray, motion: np.ndarray, background: Tensor | None = None) -> Tensor:
        """Head RGBA (B,H,W,4), poses (B,4,4), motion (B,4) -> (B,H,W,3) in [0,1] over `background` (H,W,3)."""
        from torso_styleunet.composite import composite

        plate = self.background if background is None else background
        return composite(self.torso, head, torch.as_tensor(poses, device=self.device),
                         torch.as_tensor(motion, device=self.device), plate).clamp(0, 1)


class Renderer(Compositor):
    """Landmarks, poses and torso motion -> finished frames, with the head and torso networks of one avatar."""

    def __init__(self, avatar: Avatar, device: torch.device) -> None:
        from stage2_gaussian.render import load_head

        avatar.require("stage2", "torso")
        super().__init__(avatar, device)
        self.info = avatar.info
        self.head = load_head(avatar.stage2, device)

    @torch.no_grad()
    def head_rgba(self, landmarks: np.ndarray, poses: np.ndarray) -> Tensor:
        """landmarks (B,68,3), poses (B,4,4) -> premultiplied RGBA (B,H,W,4)."""
        return render_head(self.head, self.info, landmarks, poses, self.device)

    def frames(self, landmarks: np.ndarray, poses: np.ndarray, motion: np.ndarray) -> Tensor:
        """landmarks (B,68,3), poses (B,4,4), motion (B,4) -> finished frames (B,H,W,3) in [0,1]."""
        return self.compose(self.head_rgba(landmarks, poses), poses, motion)


def render_head(head: Any, info: Any, landmarks: np.ndarray, poses: np.ndarray,
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
    landmarks, poses = clip.load_landmarks(), clip.load_best_poses()

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
               poses: str = "loop", seed: int = 0, liveliness: float = 1.0, encoder: str | None = None,
               save_landmarks_to: Path | None = None, quiet: bool = False) -> int:
    """Write `output`, the avatar speaking `audio`; returns the number of frames. Memory stays bounded.

    With `landmarks` (a landmark file) stage 1 is left out and the file's rows are shown, with the sound beneath. `encoder`
    says where the encoder that stage 1 names lies now.
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
        predictor = load_predictor(avatar.stage1, device, encoder)
        chunks = iter_predict(predictor, iter_audio(audio, seconds=2.0), avatar.load_neutral(), seed=seed,
                              liveliness=liveliness)
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


@dataclasses.dataclass(frozen=True)
class Orbit:
    """A camera that swings around the head by `degrees` to either side, there and back in `period` seconds (None: once in
    the whole sequence)."""

    degrees: float
    period: float | None = None


class HeadView:
    """What stage 2 shows of a landmark file: T rows of landmarks with their poses and torso motion."""

    def __init__(self, avatar: Avatar, landmarks: Path, poses: str, orbit: Orbit | None = None) -> None:
        avatar.require("stage2")
        self.avatar = avatar
        self.landmarks = load_landmarks(landmarks)
        self.poses, self.torso = Motion(avatar, poses).at(0, len(self.landmarks))
        if orbit is not None:
            from stage2_gaussian import camera_path

            period = len(self.landmarks) if orbit.period is None else orbit.period * FPS
            centre = camera_path.head_centre(avatar.load_neutral()[0])
            self.poses = camera_path.orbit(self.poses, orbit.degrees, period, centre)

    def __len__(self) -> int:
        return len(self.landmarks)

    @torch.no_grad()
    def batches(self, device: torch.device, quiet: bool) -> Iterator[Tensor]:
        """Premultiplied RGBA (≤ B, H, W, 4) of all rows, in order, with a progress bar."""
        from stage2_gaussian.render import load_head, render_sequence

        head, info = load_head(self.avatar.stage2, device), self.avatar.info
        with progress(len(self), "rendering", quiet=quiet, unit="frame") as bar:
            for rgba in render_sequence(head, torch.from_numpy(self.landmarks), torch.from_numpy(self.poses), info.intrinsics,
                                        info.width, info.height, batch_size(device)):
                yield rgba
                bar.update(len(rgba))


def straight(rgba: Tensor) -> Tensor:
    """Premultiplied (B, H, W, 4) -> straight alpha."""
    return torch.cat([rgba[..., :3] / rgba[..., 3:].clamp_min(1e-4), rgba[..., 3:]], -1)


def check_head_output(output: Path, audio: Path | None) -> bool:
    """Is `output` a transparent video, and not a folder? Raises TalkheadError for what cannot or should not be written."""
    ending = output.suffix.lower()
    if ending in TransparentVideoWriter.endings:
        if audio is not None:
            next(iter_audio(audio, seconds=0.1))
        return True
    if ending in VideoWriter.endings or ending in (".avi", ".gif", ".mpg"):
        raise TalkheadError(f"{output}: a {ending} file holds no transparency; name a .mov, a .webm or a folder")
    if audio is not None:
        raise TalkheadError(f"{output} is to be a folder of pictures, which holds no sound; leave --audio out, or name a "
                            ".mov or a .webm")
    if output.exists() and not (output / "poses.npy").is_file() and not (output.is_dir() and not any(output.iterdir())):
        raise TalkheadError(f"{output} is no folder of rendered frames, so it will not be replaced; name another folder")
    return False


def render_to_folder(view: HeadView, folder: Path, *, device: torch.device, quiet: bool = False) -> int:
    """`folder` gets 000000.png, … (RGBA, straight alpha), poses.npy and torso.npy; returns the number of frames."""
    with atomic_path(folder) as partial:
        partial.mkdir()
        save_array(partial / "poses.npy", view.poses)
        save_array(partial / "torso.npy", view.torso)
        pictures = (picture for rgba in view.batches(device, quiet) for picture in to_uint8(straight(rgba)))
        for k, picture in enumerate(pictures):
            write_png(partial / f"{k:06d}.png", picture)
        if folder.is_dir():
            shutil.rmtree(folder)
    return len(view)


def render_to_video(view: HeadView, output: Path, *, audio: Path | None, device: torch.device, quiet: bool = False) -> int:
    """`output` (.mov or .webm) gets the head over nothing, straight alpha; returns the number of frames."""
    info = view.avatar.info
    with TransparentVideoWriter(output, info.width, info.height, audio=audio) as writer:
        for rgba in view.batches(device, quiet):
            for picture in to_uint8(straight(rgba)):
                writer.write(picture)
    return len(view)


def composite_folder(avatar: Avatar, folder: Path, output: Path, *, audio: Path | None, device: torch.device,
                     quiet: bool = False) -> int:
    """The torso and background behind the pictures that `render_to_folder` wrote -> video; returns the frame count."""
    avatar.require("torso")
    if not folder.is_dir():
        raise TalkheadError(f"{folder} is no folder of rendered frames; make one with `talkhead stage2 render`")
    pictures = sorted(folder.glob("*.png"))
    pose, torso = load_poses(folder / "poses.npy"), load_array(folder / "torso.npy", (4,))
    if not pictures or not len(pictures) == len(pose) == len(torso):
        raise TalkheadError(f"{folder}: found {len(pictures)} pictures, {len(pose)} poses, {len(torso)} torso motions; "
                            "there should be as many of each")
    info = avatar.info
    compositor = Compositor(avatar, device)
    with (VideoWriter(output, info.width, info.height, audio=audio) as writer,
          progress(len(pictures), "compositing", quiet=quiet, unit="frame") as bar):
        for start in range(0, len(pictures), batch_size(device)):
            batch = slice(start, start + batch_size(device))
            images = np.stack([read_rgba(path, (info.height, info.width)) for path in pictures[batch]])
            straight = torch.as_tensor(images, device=device).float() / 255
            head = torch.cat([straight[..., :3] * straight[..., 3:], straight[..., 3:]], -1)
            for frame in to_uint8(compositor.compose(head, pose[batch], torso[batch])):
                writer.write(frame)
            bar.update(len(images))
    return len(pictures)
