"""An avatar speaks: landmarks, head, torso and sound put together in bounded memory."""

import dataclasses
import difflib
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from shared.audio_io import iter_audio
from shared.avatar import Avatar
from shared.clip import Clip
from shared.errors import TalkheadError
from shared.files import refuse_inputs
from shared.landmarks import (
    FPS,
    SAMPLES_PER_FRAME,
    check_landmarks,
    load_array,
    load_landmarks,
    save_array,
    save_landmarks,
)
from shared.poses import load_poses
from shared.publish import WORK, finish_move, whole_folder
from shared.sound_check import SoundCheck
from shared.spool import SpooledSound
from shared.training import progress
from shared.video_io import TransparentVideoWriter, VideoWriter, read_rgba, write_png

VISIBLE = 0.5  # alpha that a head reaches somewhere, wherever it is seen
APART_SECONDS = 0.1  # by which sound, poses and landmarks may differ in length without a word
RENDERED = re.compile(r"\d{6,}\.png|poses\.npy|torso\.npy")  # what a folder of rendered frames holds
CLUTTER = (WORK, ".lock", ".DS_Store")  # and what may lie there besides



def ping_pong(count: int, length: int, start: int = 0) -> np.ndarray:
    """Indices (count,) from `start` on of a loop 0…length−1, back to 0 and on, in which no step is larger than one."""
    if length == 1:
        return np.zeros(count, np.int64)
    phase = np.arange(start, start + count) % (2 * length - 2)
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
        index = ping_pong(stop - start, len(self.poses), start)
        return self.poses[index], self.torso[index]

    def warnings(self, frames: int) -> list[str]:
        """A sentence if a poses file is shorter than a video of `frames` frames; a single pose stands still, as it should."""
        own = len(self.poses)
        if self.mode in ("loop", "still") or own == 1 or (frames - own) / FPS <= APART_SECONDS:
            return []
        return [f"the poses last {own / FPS:.1f} s, the video {frames / FPS:.1f} s; they go back and forth until it ends"]


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


def head_frames(avatar: Avatar, clip: Clip, poses: np.ndarray, device: torch.device) -> Callable[[np.ndarray], Tensor]:
    """What torso training asks for: frame indices (B,) of the clip -> head RGBA (B,H,W,4), rendered at their rows of poses
    (T,4,4)."""
    from stage2_gaussian.render import load_head

    avatar.require("stage2")
    head = load_head(avatar.stage2, device)
    landmarks = clip.load_landmarks()

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


class Rendered(NamedTuple):
    """How many frames were written, and sentences about what may be wrong with them."""

    frames: int
    warnings: list[str]


def check_sound(audio: Path) -> SoundCheck:
    """A file's sound, decoded once to know its length and what is wrong with it. Raises TalkheadError like `iter_audio`."""
    check = SoundCheck()
    for piece in iter_audio(audio):
        check.push(piece)
    return check


def sound_warnings(check: SoundCheck, frames: int, what: str) -> list[str]:
    """Sentences about the sound under a video of `frames` frames of `what`, which decides how long the video is."""
    video, sound = frames / FPS, check.seconds
    found = check.warnings()
    if abs(video - sound) > APART_SECONDS:
        end = "the sound is cut off there" if sound > video else "the rest of the video is silent"
        found.append(f"the {what} last {video:.1f} s, the sound {sound:.1f} s; the video is as long as the {what}, and {end}")
    return found


def unseen(rgba: Tensor) -> Tensor:
    """Pictures (B, H, W, 4) of a head -> number of those that show none, on the device."""
    return (~(rgba[..., 3].amax((1, 2)) >= VISIBLE)).sum()


def unseen_warnings(count: int, frames: int) -> list[str]:
    """A sentence if `count` of the frames show no head."""
    if not count:
        return []
    return [f"no head can be seen in {count} of {frames} frames; look at the poses and the landmarks"]


def synthesize(avatar: Avatar, audio: Path, output: Path, *, device: torch.device, landmarks: Path | None = None,
               poses: str = "loop", seed: int = 0, liveliness: float = 1.0, encoder: str | None = None,
               save_landmarks_to: Path | None = None, quiet: bool = False) -> Rendered:
    """Write `output`, the avatar speaking `audio`; returns the number of frames and warnings. Memory stays bounded.

    With `landmarks` (a landmark file) stage 1 is left out and the file's rows are shown, all of them, with the sound beneath.
    `encoder` says where the encoder that stage 1 names lies now.
    """
    avatar.require("stage2", "torso", *(() if landmarks else ("stage1",)))
    refuse_inputs(output, audio)
    writer = VideoWriter(output, avatar.info.width, avatar.info.height, audio=audio)
    motion = Motion(avatar, poses)
    if landmarks is not None:
        rows = load_landmarks(landmarks)
        warnings = sound_warnings(check_sound(audio), len(rows), "landmarks")
        count, hidden = _speak(Renderer(avatar, device), motion, [rows], len(rows), writer, save_landmarks_to, quiet)
    else:
        from stage1_audio2lmk.predict import iter_predict, load_predictor

        predictor = load_predictor(avatar.stage1, device, encoder)
        with SpooledSound(audio, output.parent) as sound:
            warnings = sound.check.warnings()
            total = -(-sound.check.samples // SAMPLES_PER_FRAME)
            chunks = iter_predict(predictor, sound.pieces(2.0), avatar.load_neutral(), seed=seed, liveliness=liveliness)
            count, hidden = _speak(Renderer(avatar, device), motion, chunks, total, writer, save_landmarks_to, quiet)
    return Rendered(count, warnings + motion.warnings(count) + unseen_warnings(hidden, count))


def _speak(renderer: Renderer, motion: Motion, chunks: Iterable[np.ndarray], total: int, writer: VideoWriter,
           save_landmarks_to: Path | None, quiet: bool) -> tuple[int, int]:
    """Write the video of landmarks that come in chunks; returns the number of frames and of those without a head."""
    kept: list[np.ndarray] = []
    count, hidden = 0, torch.zeros((), dtype=torch.long, device=renderer.device)
    with writer, progress(total, "rendering", quiet=quiet, unit="frame") as bar:
        for batch in rebatch(chunks, batch_size(renderer.device)):
            check_landmarks(batch, "what stage 1 predicts")
            if save_landmarks_to is not None:
                kept.append(batch)
            pose, torso = motion.at(count, count + len(batch))
            head = renderer.head_rgba(batch, pose)
            hidden += unseen(head)
            for frame in to_uint8(renderer.compose(head, pose, torso)):
                writer.write(frame)
            count += len(batch)
            bar.update(len(batch))
    if save_landmarks_to is not None:
        save_landmarks(save_landmarks_to, np.concatenate(kept))
    return count, int(hidden)


@dataclasses.dataclass(frozen=True)
class Orbit:
    """A camera that swings around the head by `degrees` to either side, there and back in `period` seconds (None: once in
    the whole sequence)."""

    degrees: float
    period: float | None = None

    def __post_init__(self) -> None:
        if not (np.isfinite(self.degrees) and (self.period is None or 0 < self.period < np.inf)):
            raise TalkheadError(f"an orbit is of some degrees in some seconds, found {self.degrees:g} degrees in {self.period} s")


class HeadView:
    """What stage 2 shows of a landmark file: T rows of landmarks with their poses and torso motion.

    `warnings` are sentences on what was given, and `hidden` is how many of the frames that were rendered last show no head.
    """

    def __init__(self, avatar: Avatar, landmarks: Path, poses: str, orbit: Orbit | None = None) -> None:
        avatar.require("stage2")
        self.avatar = avatar
        self.hidden = 0
        self.landmarks = load_landmarks(landmarks)
        motion = Motion(avatar, poses)
        self.poses, self.torso = motion.at(0, len(self.landmarks))
        self.warnings = motion.warnings(len(self.landmarks))
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
        self.hidden = 0
        with progress(len(self), "rendering", quiet=quiet, unit="frame") as bar:
            for rgba in render_sequence(head, torch.from_numpy(self.landmarks), torch.from_numpy(self.poses), info.intrinsics,
                                        info.width, info.height, batch_size(device)):
                self.hidden += int(unseen(rgba))
                yield rgba
                bar.update(len(rgba))


def straight(rgba: Tensor) -> Tensor:
    """Premultiplied (B, H, W, 4) -> straight alpha."""
    return torch.cat([rgba[..., :3] / rgba[..., 3:].clamp_min(1e-4), rgba[..., 3:]], -1)


def check_head_output(output: Path, audio: Path | None) -> bool:
    """Is `output` a transparent video, and not a folder? Raises TalkheadError for what cannot or should not be written."""
    refuse_inputs(output, audio)
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
    if output.exists() and not (output.is_dir() and all(RENDERED.fullmatch(path.name) or path.name in CLUTTER
                                                        for path in output.iterdir())):
        raise TalkheadError(f"{output} is no folder of rendered frames, so it will not be replaced; name another folder")
    return False


def render_to_folder(view: HeadView, folder: Path, *, device: torch.device, quiet: bool = False) -> Rendered:
    """`folder` gets 000000.png, … (RGBA, straight alpha), poses.npy and torso.npy; returns the number of frames and warnings."""
    with whole_folder(folder, "torso.npy", lambda name: RENDERED.fullmatch(name) is not None) as partial:
        save_array(partial / "poses.npy", view.poses)
        save_array(partial / "torso.npy", view.torso)
        pictures = (picture for rgba in view.batches(device, quiet) for picture in to_uint8(straight(rgba)))
        for k, picture in enumerate(pictures):
            write_png(partial / f"{k:06d}.png", picture)
    return Rendered(len(view), view.warnings + unseen_warnings(view.hidden, len(view)))


def render_to_video(view: HeadView, output: Path, *, audio: Path | None, device: torch.device, quiet: bool = False) -> Rendered:
    """`output` (.mov or .webm) gets the head over nothing, straight alpha; returns the number of frames and warnings."""
    info = view.avatar.info
    warnings = sound_warnings(check_sound(audio), len(view), "landmarks") if audio is not None else []
    with TransparentVideoWriter(output, info.width, info.height, audio=audio) as writer:
        for rgba in view.batches(device, quiet):
            for picture in to_uint8(straight(rgba)):
                writer.write(picture)
    return Rendered(len(view), view.warnings + warnings + unseen_warnings(view.hidden, len(view)))


def composite_folder(avatar: Avatar, folder: Path, output: Path, *, audio: Path | None, device: torch.device,
                     quiet: bool = False) -> Rendered:
    """The torso and background behind the pictures that `render_to_folder` wrote -> video; returns its frames and warnings."""
    avatar.require("torso")
    refuse_inputs(output, audio)
    if not folder.is_dir():
        raise TalkheadError(f"{folder} is no folder of rendered frames; make one with `talkhead stage2 render`")
    finish_move(folder)
    pictures = sorted(folder.glob("*.png"))
    pose, torso = load_poses(folder / "poses.npy"), load_array(folder / "torso.npy", (4,))
    if not pictures or not len(pictures) == len(pose) == len(torso):
        raise TalkheadError(f"{folder}: found {len(pictures)} pictures, {len(pose)} poses, {len(torso)} torso motions; "
                            "there should be as many of each")
    warnings = sound_warnings(check_sound(audio), len(pictures), "pictures") if audio is not None else []
    info, hidden = avatar.info, 0
    compositor = Compositor(avatar, device)
    with (VideoWriter(output, info.width, info.height, audio=audio) as writer,
          progress(len(pictures), "compositing", quiet=quiet, unit="frame") as bar):
        for start in range(0, len(pictures), batch_size(device)):
            batch = slice(start, start + batch_size(device))
            images = np.stack([read_rgba(path, (info.height, info.width)) for path in pictures[batch]])
            straight = torch.as_tensor(images, device=device).float() / 255
            head = torch.cat([straight[..., :3] * straight[..., 3:], straight[..., 3:]], -1)
            hidden += int(unseen(head))
            for frame in to_uint8(compositor.compose(head, pose[batch], torso[batch])):
                writer.write(frame)
            bar.update(len(images))
    return Rendered(len(pictures), warnings + unseen_warnings(hidden, len(pictures)))
