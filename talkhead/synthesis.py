"""An avatar speaks: landmarks, head, torso and sound put together in bounded memory."""

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from shared.avatar import Avatar
from shared.errors import TalkheadError
from shared.files import refuse_existing, refuse_inputs, same_file
from shared.image import premultiply
from shared.landmarks import (
    FPS,
    check_landmarks,
    check_output_name,
    load_array,
    load_landmarks,
    save_landmarks,
)
from shared.lock import lock_output
from shared.media.audio_io import iter_audio
from shared.media.sound_check import SoundCheck
from shared.media.spool import DecodedSound, readable_again
from shared.media.video_io import VideoWriter, read_rgba
from shared.poses import load_poses
from shared.publish import finish_move
from shared.training import pick_device, progress
from stage1_audio2lmk.stream import LandmarkStream, iter_predict, load_predictor
from stage2_gaussian.checkpoint import load_head
from stage2_gaussian.render import render_head
from torso_styleunet.checkpoint import load_torso
from torso_styleunet.composite import composite

VISIBLE = 0.5  # alpha that a head reaches somewhere, wherever it is seen
APART_SECONDS = 0.1  # by which sound, poses and landmarks may differ in length without a word


def ping_pong(count: int, length: int, start: int = 0) -> np.ndarray:
    """Indices (count,) from `start` on of a loop 0…length−1, back to 0 and on, in which no step is larger than one."""
    if length == 1:
        return np.zeros(count, np.int64)
    phase = np.arange(start, start + count) % (2 * length - 2)
    return np.where(phase < length, phase, 2 * length - 2 - phase)


def poses_file(poses: str | Path) -> Path | None:
    """The file that --poses names, unless it is loop or still."""
    return None if str(poses) in ("loop", "still") else Path(poses)


class MotionTrack:
    """Head poses and torso motion of any number of frames: the avatar's own "loop" back and forth, "still", or a poses file."""

    def __init__(self, avatar: Avatar, mode: str | Path = "loop") -> None:
        mode = str(mode)
        self.poses, self.torso = avatar.load_motion()
        self.from_file = poses_file(mode) is not None
        if mode == "still":
            middle = len(self.poses) // 2
            self.poses, self.torso = self.poses[middle : middle + 1], self.torso[middle : middle + 1]
        elif self.from_file:
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
        if not self.from_file or own == 1 or (frames - own) / FPS <= APART_SECONDS:
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


class Renderer:
    """Landmarks, poses and torso motion -> frames, with the networks of one avatar.

    `parts` says which are loaded: "stage2" draws the head, "torso" puts it on shoulders and background. Raises TalkheadError
    for an avatar without them.
    """

    def __init__(self, avatar: Avatar, device: torch.device | str = "auto", *,
                 parts: tuple[str, ...] = ("stage2", "torso")) -> None:
        avatar.require(*parts)
        self.device, self.info = pick_device(device), avatar.info
        if "stage2" in parts:
            self.head = load_head(avatar.stage2, self.device)
        if "torso" in parts:
            self.torso = load_torso(avatar.torso, self.device)
            self.background = self.plate(avatar.load_background())

    def plate(self, rgb: np.ndarray) -> Tensor:
        """uint8 (H,W,3) -> float (H,W,3) in [0,1] on the device."""
        return torch.as_tensor(rgb, device=self.device).float() / 255

    @torch.no_grad()
    def head_rgba(self, landmarks: np.ndarray, poses: np.ndarray) -> Tensor:
        """landmarks (B,68,3) metres, poses (B,4,4) head→camera -> premultiplied RGBA (B,H,W,4) in [0,1]."""
        return render_head(self.head, torch.as_tensor(landmarks, device=self.device), torch.as_tensor(poses, device=self.device),
                           self.info.intrinsics, self.info.width, self.info.height)

    @torch.no_grad()
    def compose(self, head: Tensor, poses: np.ndarray, torso_motion: np.ndarray, background: Tensor | None = None) -> Tensor:
        """Head RGBA (B,H,W,4), poses (B,4,4), torso motion (B,4) -> (B,H,W,3) in [0,1] over `background` (H,W,3)."""
        return composite(self.torso, head, torch.as_tensor(poses, device=self.device),
                         torch.as_tensor(torso_motion, device=self.device),
                         self.background if background is None else background).clamp(0, 1)

    def frames(self, landmarks: np.ndarray, poses: np.ndarray, torso_motion: np.ndarray) -> Tensor:
        """landmarks (B,68,3), poses (B,4,4), torso motion (B,4) -> finished frames (B,H,W,3) in [0,1]."""
        return self.compose(self.head_rgba(landmarks, poses), poses, torso_motion)


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


@contextmanager
def written(output: Path, inputs: Iterable[Path | None], overwrite: bool) -> Iterator[None]:
    """While `output` is written: nobody else writes it, and it is none of `inputs`. Raises TalkheadError, also if it exists
    and `overwrite` is False."""
    refuse_inputs(output, *inputs)
    refuse_existing(output, overwrite)
    with lock_output(output):
        yield


class Predicted(NamedTuple):
    """Landmarks (T,68,3) float32 metres, and sentences about what may be wrong with the sound."""

    landmarks: np.ndarray
    warnings: list[str]


def open_stream(avatar: Avatar, *, device: torch.device | str = "auto", neutral: np.ndarray | None = None, seed: int = 0,
                liveliness: float = 1.0, encoder: str | None = None) -> LandmarkStream:
    """The avatar's stage 1 for live sound: push 16 kHz samples, get landmark rows of `neutral` (68,3), by default its own face.

    `seed` is of blinks and brows, `liveliness` scales the brows' motion, `encoder` says where a speech encoder of the
    transformers library lies now. Raises TalkheadError.
    """
    avatar.require("stage1")
    predictor = load_predictor(avatar.stage1, pick_device(device), encoder)
    return LandmarkStream(predictor, avatar.load_neutral() if neutral is None else neutral, seed=seed, liveliness=liveliness)


def predict(avatar: Avatar, audio: Path | str, *, device: torch.device | str = "auto", neutral: np.ndarray | None = None,
            seed: int = 0, liveliness: float = 1.0, encoder: str | None = None) -> Predicted:
    """The landmarks with which the avatar speaks `audio` (a file, a pipe, or "-" for standard input); rest as `open_stream`."""
    avatar.require("stage1")
    rest = avatar.load_neutral() if neutral is None else neutral
    predictor = load_predictor(avatar.stage1, pick_device(device), encoder)
    check = SoundCheck()
    with readable_again(Path(audio)) as sound:
        chunks = iter_predict(predictor, check.listen(iter_audio(sound)), rest, seed=seed, liveliness=liveliness)
        rows = np.concatenate(list(chunks))
    return Predicted(rows, check.warnings())


def synthesize(avatar: Avatar, audio: Path | str, output: Path | str, *, device: torch.device | str = "auto",
               landmarks: Path | str | None = None, poses: str | Path = "loop", seed: int = 0, liveliness: float = 1.0,
               encoder: str | None = None, save_landmarks_to: Path | str | None = None, overwrite: bool = False,
               quiet: bool = False) -> Rendered:
    """Write the video `output` of the avatar speaking `audio` (a file, a pipe, or "-"), in bounded memory.

    With `landmarks` (a landmark file) stage 1 is left out and the file's rows are shown, all of them, with the sound beneath.
    `poses` is "loop", "still" or a poses file. `encoder` says where the speech encoder that stage 1 names lies now. Returns
    the number of frames and warnings. Raises TalkheadError.
    """
    audio, output = Path(audio), Path(output)
    rows_file, kept = (None if name is None else Path(name) for name in (landmarks, save_landmarks_to))
    read = (audio, rows_file, poses_file(poses), *avatar.files())
    if kept is not None:
        check_output_name(kept)
        if kept.absolute() == output.absolute() or same_file(kept, output):
            raise TalkheadError(f"--save-landmarks and -o are the same file, {output}; name two")
    with (written(output, read, overwrite), nullcontext() if kept is None else written(kept, read, overwrite),
          readable_again(audio) as sound):
        return _synthesize(avatar, sound, output, pick_device(device), rows_file, poses, seed, liveliness, encoder, kept, quiet)


def _synthesize(avatar: Avatar, audio: Path, output: Path, device: torch.device, landmarks: Path | None, poses: str | Path,
                seed: int, liveliness: float, encoder: str | None, kept: Path | None, quiet: bool) -> Rendered:
    avatar.require("stage2", "torso", *(() if landmarks else ("stage1",)))
    writer = VideoWriter(output, avatar.info.width, avatar.info.height, audio=audio)
    motion = MotionTrack(avatar, poses)
    if landmarks is not None:
        rows = load_landmarks(landmarks)
        warnings = sound_warnings(check_sound(audio), len(rows), "landmarks")
        count, hidden = _speak(Renderer(avatar, device), motion, [rows], len(rows), writer, kept, quiet)
    else:
        predictor = load_predictor(avatar.stage1, device, encoder)
        check = SoundCheck()
        with DecodedSound(audio, output.parent) as sound:
            writer.audio = sound
            total = round(sound.seconds * FPS)
            chunks = iter_predict(predictor, check.listen(sound.pieces(2.0)), avatar.load_neutral(), seed=seed,
                                  liveliness=liveliness)
            count, hidden = _speak(Renderer(avatar, device), motion, chunks, total, writer, kept, quiet)
        warnings = check.warnings()
    return Rendered(count, warnings + motion.warnings(count) + unseen_warnings(hidden, count))


def _speak(renderer: Renderer, motion: MotionTrack, chunks: Iterable[np.ndarray], total: int, writer: VideoWriter,
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


def composite_folder(avatar: Avatar, folder: Path | str, output: Path | str, *, audio: Path | str | None = None,
                     device: torch.device | str = "auto", overwrite: bool = False, quiet: bool = False) -> Rendered:
    """The torso and background behind the pictures that `render_free_view` wrote -> video; returns its frames and warnings."""
    folder, output, sound = Path(folder), Path(output), None if audio is None else Path(audio)
    with written(output, (sound, folder, *avatar.files()), overwrite), readable_again(sound) as track:
        return _composite_folder(avatar, folder, output, track, pick_device(device), quiet)


def _composite_folder(avatar: Avatar, folder: Path, output: Path, audio: Path | None, device: torch.device,
                      quiet: bool) -> Rendered:
    avatar.require("torso")
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
    renderer = Renderer(avatar, device, parts=("torso",))
    with (VideoWriter(output, info.width, info.height, audio=audio) as writer,
          progress(len(pictures), "compositing", quiet=quiet, unit="frame") as bar):
        for start in range(0, len(pictures), batch_size(device)):
            batch = slice(start, start + batch_size(device))
            images = np.stack([read_rgba(path, (info.height, info.width)) for path in pictures[batch]])
            head = premultiply(torch.as_tensor(images, device=device).float() / 255)
            hidden += int(unseen(head))
            for frame in to_uint8(renderer.compose(head, pose[batch], torso[batch])):
                writer.write(frame)
            bar.update(len(images))
    return Rendered(len(pictures), warnings + unseen_warnings(hidden, len(pictures)))
