"""An avatar speaks: sound, landmarks, head, torso and scene put together into videos, in bounded memory."""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, nullcontext
from fractions import Fraction
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from av import VideoFrame
from torch import Tensor
from tqdm import tqdm

from shared import machine
from shared.avatar import Avatar
from shared.errors import TalkheadError
from shared.files import same_file
from shared.landmarks import FPS, check_landmarks, check_output_name, load_landmarks, save_landmarks
from shared.media.container import open_media
from shared.media.sound_check import SoundCheck
from shared.media.spool import DecodedSound, readable_again
from shared.media.video_io import TransparentVideoWriter, VideoWriter, frame_rate
from shared.progress import progress
from shared.side_by_side import ahead, behind
from shared.training import cpu_threads, pick_device
from stage1_audio2lmk.stream import Predictor, iter_predict, load_predictor
from talkhead.motion import Motion, MotionTrack, poses_file
from talkhead.provenance import Label, Marks
from talkhead.scene import OWN, Scene, background_file
from talkhead.synthesis import Rendered, Renderer, batch_size, rebatch, sound_warnings, unseen, unseen_warnings, written

MOST_CONVERTERS = 6  # threads that mark and convert frames beside a GPU


class Speaker:
    """An avatar that speaks any number of sounds; its networks are loaded once, at the first.

    `poses` is "loop", "still", a poses file or another person's clip, of which `head_motion` (0 … 1) is shown, held to the head
    poses that the avatar's clip shows unless `pose_limit` is False. `background` is "plate" (the avatar's own), "none" (a
    transparent video), a colour, a picture or a video; `size` is a height or "WIDTHxHEIGHT"; `fps` is the file's. `encoder` says
    where the speech encoder that stage 1 names lies now. With `mark` the videos say that they are made, and by `label` ("start"
    or "throughout") visibly too, see `provenance.Marks`.
    """

    def __init__(self, avatar: Avatar, *, device: torch.device | str = "auto", poses: str | Path = "loop",
                 head_motion: float = 1.0, background: str | Path = OWN, size: str | None = None,
                 fps: str | float | Fraction = FPS, seed: int = 0, liveliness: float = 1.0, encoder: str | None = None,
                 mark: bool = True, label: Label = "none", pose_limit: bool = True) -> None:
        self.avatar, self.device, self.poses, self.head_motion = avatar, pick_device(device), poses, head_motion
        self.pose_limit = pose_limit
        self.background, self.size, self.fps = background, size, frame_rate(fps)
        self.seed, self.liveliness, self.encoder = seed, liveliness, encoder
        self.mark, self.label = mark, label

    @cached_property
    def renderer(self) -> Renderer:
        return Renderer(self.avatar, self.device)

    @cached_property
    def predictor(self) -> Predictor:
        return load_predictor(self.avatar.stage1, self.device, self.encoder)

    @cached_property
    def motion(self) -> MotionTrack:
        return MotionTrack(self.avatar, self.poses, self.head_motion, self.pose_limit, self.seed)

    def speak(self, audio: Path | str, output: Path | str, *, landmarks: Path | str | None = None, start: float = 0.0,
              end: float | None = None, save_landmarks_to: Path | str | None = None, overwrite: bool = False,
              quiet: bool = False, bar: tqdm | None = None) -> Rendered:
        """Write the video `output` of the avatar speaking `audio` (a file, a pipe, or "-") from `start` to `end` seconds.

        With `landmarks` (a landmark file) stage 1 is left out and the file's rows are shown, from `start` to `end`, with the
        sound beneath. `bar` is a progress bar of several videos. Returns the number of frames, 25 a second, and warnings.
        Raises TalkheadError.
        """
        audio, output = Path(audio), Path(output)
        rows_file, kept = (None if name is None else Path(name) for name in (landmarks, save_landmarks_to))
        if end is not None and end <= start:
            raise TalkheadError(f"--end {end:g} s is not after --start {start:g} s")
        read = (audio, rows_file, poses_file(self.poses), background_file(self.background), *self.avatar.files())
        if kept is not None:
            check_output_name(kept)
            if kept.absolute() == output.absolute() or same_file(kept, output):
                raise TalkheadError(f"--save-landmarks and -o are the same file, {output}; name two")
        with (written(output, read, overwrite), nullcontext() if kept is None else written(kept, read, overwrite),
              readable_again(audio) as source):
            self.avatar.require("stage2", "torso", *(() if rows_file else ("stage1",)))
            motion = self.motion
            scene = Scene(self.avatar.load_background(), self.background, self.size)
            marks = Marks(self.avatar.info, mark=self.mark, label=self.label)
            writer = open_writer(output, scene, self.fps, marks)
            rows = None if rows_file is None else _between(load_landmarks(rows_file), rows_file, start, end)
            with DecodedSound(source, output.parent, start, end) as sound:
                writer.audio = sound
                return self._speak(sound, rows, motion, scene, marks, writer, kept, quiet, bar)

    def _speak(self, sound: DecodedSound, rows: np.ndarray | None, motion: MotionTrack, scene: Scene, marks: Marks,
               writer: VideoWriter, kept: Path | None, quiet: bool, bar: tqdm | None) -> Rendered:
        check = SoundCheck()
        heard = check.listen(sound.pieces(2.0))
        if rows is None:
            chunks: Iterable[np.ndarray] = iter_predict(self.predictor, heard, self.avatar.load_neutral(), seed=self.seed,
                                                        liveliness=self.liveliness)
        else:
            chunks = [rows]
            for _ in heard:
                pass
        total = round(sound.seconds * FPS) if rows is None else len(rows)
        saved: list[np.ndarray] = []
        count, hidden = 0, torch.zeros((), dtype=torch.long, device=self.device)
        # a GPU draws faster than one processor marks and converts
        threads = min(MOST_CONVERTERS, machine.threads() - 1) if self.device.type == "cuda" else 0

        def converted(frame: np.ndarray, number: int) -> VideoFrame:
            return writer.converted(marks.apply(frame[None], number)[0])

        def write(frames: np.ndarray) -> None:
            for frame in (pool.map if pool else map)(converted, frames, range(writer.count, writer.count + len(frames))):
                writer.append(frame)

        # sound to landmarks, landmarks to frames, and frames to the file run side by side; a GPU does its work by itself
        rows_made = ahead(chunks) if self.device.type == "cpu" else (row for row in chunks)
        small = self.device.type == "cpu" and motion.track is not None and self.renderer.layers is not None
        with (cpu_threads(1 if small else torch.get_num_threads()), writer,
              nullcontext(bar) if bar is not None else progress(total, "rendering", quiet=quiet, unit="frame") as shown,
              closing(rows_made), ThreadPoolExecutor(threads) if threads > 1 else nullcontext() as pool,
              behind(write) as hand_over):
            for batch in rebatch(rows_made, batch_size(self.device)):
                check_landmarks(batch, "what stage 1 predicts")
                if kept is not None:
                    saved.append(batch)
                now = motion.at(count, count + len(batch))
                head = self.renderer.head_rgba(batch, now.poses, now.torso, motion.gaze_at(count, count + len(batch)))
                hidden += unseen(head)
                hand_over(finished(self.renderer, scene, head, now, count))
                count += len(batch)
                shown.update(len(batch))
        if kept is not None:
            save_landmarks(kept, np.concatenate(saved))
        warnings = check.warnings() if rows is None else sound_warnings(check, count, "landmarks")
        if motion.track is not None and self.renderer.layers is None:
            warnings.append(f"{self.avatar.root} holds no torso drawn beforehand for its motion track, so that its network drew "
                            f"every frame, many times as slowly; `talkhead torso layers {self.avatar.root}` draws it")
        return Rendered(count, warnings + motion.warnings(count) + unseen_warnings(int(hidden), count) + scene.warnings())


def finished(renderer: Renderer, scene: Scene, head: Tensor, now: Motion, first: int) -> np.ndarray:
    """The frames from `first` on as they go into the file, uint8 (n, height, width, 3), with alpha (…, 4) if transparent."""
    if scene.plain:
        behind = torch.from_numpy(scene.backdrop.at(first, len(head))).to(head.device)
        return renderer.pictures(head, *now, background=behind).cpu().numpy()
    return scene.compose(renderer.person(head, *now).cpu().numpy(), first)


def open_writer(output: Path, scene: Scene, fps: Fraction, marks: Marks) -> VideoWriter:
    """The writer of a scene's video. Raises TalkheadError for a name whose format cannot hold it."""
    ending = output.suffix.lower()
    if scene.transparent and ending in VideoWriter.endings and ending not in TransparentVideoWriter.endings:
        raise TalkheadError(f"{output}: a {ending} file holds no transparency; name a .mov (ProRes 4444) or a .webm (VP9)")
    kind = TransparentVideoWriter if scene.transparent else VideoWriter
    return kind(output, scene.width, scene.height, fps, metadata=marks.metadata(), finish=marks.finish)


def _between(rows: np.ndarray, name: Path, start: float, end: float | None) -> np.ndarray:
    """The rows (T,68,3) from `start` to `end` seconds."""
    found = rows[round(start * FPS) : None if end is None else round(end * FPS)]
    if not len(found):
        raise TalkheadError(f"{name} lasts {len(rows) / FPS:.1f} s, so nothing of it is left after --start {start:g}")
    return found


def synthesize(avatar: Avatar, audio: Path | str, output: Path | str, *, device: torch.device | str = "auto",
               landmarks: Path | str | None = None, poses: str | Path = "loop", head_motion: float = 1.0,
               background: str | Path = OWN, size: str | None = None, fps: str | float | Fraction = FPS, start: float = 0.0,
               end: float | None = None, seed: int = 0, liveliness: float = 1.0, encoder: str | None = None,
               mark: bool = True, label: Label = "none", pose_limit: bool = True, save_landmarks_to: Path | str | None = None,
               overwrite: bool = False, quiet: bool = False) -> Rendered:
    """Write the video `output` of the avatar speaking `audio`; see Speaker and its `speak`. Raises TalkheadError."""
    speaker = Speaker(avatar, device=device, poses=poses, head_motion=head_motion, background=background, size=size, fps=fps,
                      seed=seed, liveliness=liveliness, encoder=encoder, mark=mark, label=label, pose_limit=pose_limit)
    return speaker.speak(audio, output, landmarks=landmarks, start=start, end=end, save_landmarks_to=save_landmarks_to,
                         overwrite=overwrite, quiet=quiet)


def speak_all(speaker: Speaker, audios: Sequence[Path], outputs: Sequence[Path], *, start: float = 0.0, end: float | None = None,
              overwrite: bool = False, quiet: bool = False) -> Iterator[Rendered | TalkheadError]:
    """Speak each of `audios` into its output, with one progress bar; yields of each what `speak` returned or why it failed."""
    expected = [_expected_frames(audio, start, end) for audio in audios]
    with progress(sum(expected), "rendering", quiet=quiet, unit="frame") as bar:
        for audio, output, frames in zip(audios, outputs, expected):
            before = bar.n
            made: Rendered | TalkheadError
            try:
                made = speaker.speak(audio, output, start=start, end=end, overwrite=overwrite, bar=bar)
            except TalkheadError as error:
                made = error
            bar.total += bar.n - before - frames  # what a file says of its length is not always true
            bar.refresh()
            yield made


def _expected_frames(audio: Path, start: float, end: float | None) -> int:
    """Frames of a video, by what the sound's file says of its length; 0 where it cannot be read or says nothing."""
    try:
        with open_media(audio, "media file") as container:
            seconds = float(container.duration or 0) / 1e6
    except TalkheadError:
        return 0
    return max(0, round((min(seconds, seconds if end is None else end) - start) * FPS))


def name_outputs(audios: Sequence[Path], output: Path) -> list[Path]:
    """The video of each sound: `output` itself for one; for several a pattern with {name}, or a folder, in which each is
    NAME.mp4. Raises TalkheadError where two sounds would become one video."""
    pattern = str(output)
    if "{name}" not in pattern:
        if len(audios) == 1:
            return [output]
        if output.suffix.lower() in (*VideoWriter.endings, *TransparentVideoWriter.endings):
            raise TalkheadError(f"-o {output} names one video for {len(audios)} sounds; name a folder, or a pattern such as "
                                f"{output.with_name('{name}' + output.suffix)}")
        pattern = str(output / "{name}.mp4")
    names = [Path(pattern.replace("{name}", audio.stem)) for audio in audios]
    for k, name in enumerate(names):
        if name in names[:k]:
            raise TalkheadError(f"{audios[names.index(name)]} and {audios[k]} would both become {name}; rename one, or give them "
                                "in two calls")
    return names
