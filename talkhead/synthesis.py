"""Sound to landmarks and landmarks to frames with the networks of one avatar."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from shared.avatar import Avatar
from shared.errors import TalkheadError
from shared.files import refuse_existing, refuse_inputs
from shared.image import premultiply
from shared.landmarks import FPS
from shared.lock import lock_output
from shared.media.audio_io import iter_audio
from shared.media.sound_check import SoundCheck
from shared.media.spool import DecodedSound, readable_again
from shared.media.video_io import VideoWriter, read_rgba
from shared.poses import load_poses
from shared.progress import progress
from shared.publish import finish_move
from shared.torso_motion import load_torso_motion
from shared.training import pick_device
from stage1_audio2lmk.stream import LandmarkStream, iter_predict, load_predictor
from stage2_gaussian.checkpoint import load_head
from stage2_gaussian.render import render_head
from talkhead.motion import APART_SECONDS
from torso_styleunet.checkpoint import load_torso
from torso_styleunet.composite import composite, composite_pictures, draw_torso, person_pictures
from torso_styleunet.layers import TorsoLayers, to_bytes
from torso_styleunet.model import Torso

VISIBLE = 0.5  # alpha that a head reaches somewhere, wherever it is seen


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

    `parts` says which are loaded: "stage2" draws the head, "torso" puts it on shoulders and background; the torso's network is
    read when it is first used, since along the avatar's own motion track its pictures are stored; with `preload` these are all
    brought to a GPU, little by little. Raises TalkheadError for an avatar without them.
    """

    def __init__(self, avatar: Avatar, device: torch.device | str = "auto", *,
                 parts: tuple[str, ...] = ("stage2", "torso"), preload: bool = False) -> None:
        avatar.require(*parts)
        self.avatar, self.device, self.info, self.preload = avatar, pick_device(device), avatar.info, preload
        if "stage2" in parts:
            self.head = load_head(avatar.stage2, self.device)
        if "torso" in parts:
            self.picture = torch.as_tensor(avatar.load_background(), device=self.device)
            self.background = self.picture.float() / 255

    @cached_property
    def torso(self) -> Torso:
        """The torso's network."""
        return load_torso(self.avatar.torso, self.device)

    @cached_property
    def layers(self) -> TorsoLayers | None:
        """The stored torso of the motion track; None if there is none for the torso and the track as they are."""
        if not self.avatar.has_layers():
            return None
        self.avatar.verify("layers")
        return TorsoLayers(self.avatar.layers, self.info.width, self.info.height, len(self.avatar.load_motion()[0]), self.device,
                           self.preload)

    def plate(self, rgb: np.ndarray) -> Tensor:
        """uint8 (H,W,3) -> float (H,W,3) in [0,1] on the device."""
        return torch.as_tensor(rgb, device=self.device).float() / 255

    @torch.no_grad()
    def head_rgba(self, landmarks: np.ndarray, poses: np.ndarray, torso_motion: np.ndarray,
                  gaze: np.ndarray | None = None) -> Tensor:
        """landmarks (B,68,3) metres, poses (B,4,4) head→camera, torso motion (B,4), gaze (B,2) eye widths, without which the eyes
        look as they usually do -> premultiplied RGBA (B,H,W,4) in [0,1]."""
        shapes, placed, torso = (torch.as_tensor(array, device=self.device) for array in (landmarks, poses, torso_motion))
        looks = None if gaze is None else torch.as_tensor(gaze, device=self.device)
        return render_head(self.head, shapes, placed, self.info.intrinsics, self.info.width, self.info.height, torso, looks)

    @torch.no_grad()
    def compose(self, head: Tensor, poses: np.ndarray, torso_motion: np.ndarray, background: Tensor | None = None) -> Tensor:
        """Head RGBA (B,H,W,4), poses (B,4,4), torso motion (B, 4 + 2·n²) -> (B,H,W,3) in [0,1] over `background` (H,W,3), with
        the torso's network."""
        return composite(self.torso, head, torch.as_tensor(poses, device=self.device),
                         torch.as_tensor(torso_motion, device=self.device),
                         self.background if background is None else background).clamp(0, 1)

    def torso_rgba(self, head: Tensor, poses: np.ndarray, torso_motion: np.ndarray, track: np.ndarray | None = None) -> Tensor:
        """Torso and neck behind head RGBA (B,H,W,4) at poses (B,4,4) and torso motion (B, 4 + 2·n²) -> uint8 (B,H,W,4), straight.

        As stored, if these are the frames track (B,) of the avatar's own motion track, else drawn by the network.
        """
        if track is not None and self.layers is not None:
            return self.layers.at(track)
        return to_bytes(draw_torso(self.torso, head, torch.as_tensor(poses, device=self.device),
                                   torch.as_tensor(torso_motion, device=self.device)))

    def pictures(self, head: Tensor, poses: np.ndarray, torso_motion: np.ndarray, track: np.ndarray | None = None,
                 background: Tensor | None = None) -> Tensor:
        """Finished frames uint8 (B,H,W,3) over `background` uint8 (H,W,3) or (B,H,W,3); other arguments as `torso_rgba`."""
        torso = self.torso_rgba(head, poses, torso_motion, track)
        return composite_pictures(head, torso, self.picture if background is None else background)

    def person(self, head: Tensor, poses: np.ndarray, torso_motion: np.ndarray, track: np.ndarray | None = None) -> Tensor:
        """Head over torso alone, premultiplied RGBA uint8 (B,H,W,4); arguments as `torso_rgba`."""
        return person_pictures(head, self.torso_rgba(head, poses, torso_motion, track))

    def frames(self, landmarks: np.ndarray, poses: np.ndarray, torso_motion: np.ndarray,
               track: np.ndarray | None = None, gaze: np.ndarray | None = None) -> Tensor:
        """landmarks (B,68,3), and what `MotionTrack.at` and `gaze_at` return -> finished frames (B,H,W,3) in [0,1]."""
        return self.pictures(self.head_rgba(landmarks, poses, torso_motion, gaze), poses, torso_motion, track).float() / 255


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


def sound_warnings(check: SoundCheck, frames: int, what: str) -> list[str]:
    """Sentences about the sound under a video of `frames` frames of `what`, which decides how long the video is."""
    video, sound = frames / FPS, check.seconds
    found = check.warnings()
    if abs(video - sound) > APART_SECONDS:
        end = "the sound is cut off there" if sound > video else "the rest of the video is silent"
        found.append(f"the {what} last {video:.1f} s, the sound {sound:.1f} s; the video is as long as the {what}, and {end}")
    return found


@contextmanager
def sound_under(audio: Path | None, folder: Path, frames: int, what: str) -> Iterator[tuple[DecodedSound | None, list[str]]]:
    """The sound `audio` of a video in `folder`, decoded once, and its `sound_warnings`. Raises TalkheadError like
    `DecodedSound`."""
    if audio is None:
        yield None, []
        return
    with DecodedSound(audio, folder) as sound:
        check = SoundCheck()
        for _ in check.listen(sound.pieces(2.0)):
            pass
        yield sound, sound_warnings(check, frames, what)


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
    pose, torso = load_poses(folder / "poses.npy"), load_torso_motion(folder / "torso.npy")
    if not pictures or not len(pictures) == len(pose) == len(torso):
        raise TalkheadError(f"{folder}: found {len(pictures)} pictures, {len(pose)} poses, {len(torso)} torso motions; "
                            "there should be as many of each")
    info, hidden = avatar.info, 0
    renderer = Renderer(avatar, device, parts=("torso",))
    with (sound_under(audio, output.parent, len(pictures), "pictures") as (sound, warnings),
          VideoWriter(output, info.width, info.height, audio=sound) as writer,
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
