"""A recording of any kind -> square 25 fps video.mp4 and 16 kHz mono audio.wav."""

import sys
from collections.abc import Iterator
from pathlib import Path

import av
import cv2
import numpy as np
from av.video.reformatter import Colorspace

from process_data.config import ProcessConfig
from process_data.detection import people
from process_data.detection.base import Detector
from shared.arrays import runs
from shared.errors import TalkheadError
from shared.files import atomic_path
from shared.landmarks import FPS, SAMPLE_RATE, SAMPLES_PER_FRAME
from shared.media.audio_io import audio_notes, iter_audio, load_audio
from shared.media.container import decode, media_url, open_media, time_zero
from shared.media.video_io import VideoInfo, VideoWriter, orientation, pixel_aspect, probe, read_video, video_stream
from shared.progress import progress

CROP_SAMPLES = 60  # frames in which the face is searched to choose the crop
SQUARE_SAMPLES = 12  # the same for a square picture, which is mostly kept whole
WHOLE_SQUARE = 0.8  # a square picture is kept whole unless the crop's side is less than this share of it
FACE_HEIGHT = 0.42  # of the crop's side, from its top: where the middle of the face lies, so that the shoulders fit below
UPRIGHT_SAMPLES = 3  # of the searched frames, those in which it is tested that the person is upright
TURNED_SAMPLES = 4  # frames in which the other three directions are tested
UPRIGHT = 0.12  # largest difference of landmarks in a frame and its mirror image, in eye-mouth distances, of an upright face
SURE = 0.05  # the same, so small that one frame is enough
SMALL = 480  # longer side of the pictures in which that is tested, pixels
SEEK_FROM = 3000  # frames of a video from which jumping to each sample is faster than reading everything
LEAST_READ = 0.98  # share of the duration the file states that must be readable without a warning
BLANK = 4.0  # grey levels; a frame with a smaller standard deviation shows nothing
LATE = 0.5  # seconds; if the picture starts later than the sound by more, the frames before it are excluded
TURN = {1: "lies on the side; turn the video by 90 degrees counter-clockwise", 2: "is upside down; turn the video by 180 degrees",
        3: "lies on the side; turn the video by 90 degrees clockwise"}


def sample_frames(video: Path, info: VideoInfo, count: int) -> Iterator[np.ndarray]:
    """About `count` frames spread over a video."""
    step = max(1, info.frames_estimate // count)
    if info.frames_estimate < SEEK_FROM or not info.seekable:
        yield from read_video(video, only=range(0, sys.maxsize, step))
        return
    for k in range(0, info.frames_estimate, step):
        yield from read_video(video, start=k, stop=k + 1)


def choose_crop(video: Path, info: VideoInfo, config: ProcessConfig,
                detector: Detector) -> tuple[tuple[int, int, int], list[np.ndarray]]:
    """The crop x, y, size, square, in source pixels, and the boxes (4,) of the chosen person's face in the searched frames.

    The crop lies around the median box, shoulders included, inside the picture. A square picture is kept whole unless the
    crop is smaller than four fifths of it and large enough for a clip. Raises TalkheadError if no face is found in a picture
    that is not square, and if the person is upside down or lies on the side.
    """
    square = info.width == info.height
    whole = info.width - info.width % 2
    seen: list[np.ndarray] = []
    doubts: list[float] = []
    samples = SQUARE_SAMPLES if square else CROP_SAMPLES
    apart = samples // UPRIGHT_SAMPLES
    for k, frame in enumerate(sample_frames(video, info, samples)):
        seen.append(detector.faces(frame))
        if k % apart == apart // 2 and len(doubts) < UPRIGHT_SAMPLES and min(doubts, default=1) > SURE:
            doubts.append(upright_error(frame, detector))
    if doubts and min(doubts) > SURE and np.median(doubts) > UPRIGHT:
        _refuse_turned(video, info, detector)
    detector.restart()
    boxes = people.boxes_of(seen, config.person)
    if not boxes:
        if square:
            return (0, 0, whole), boxes
        raise TalkheadError(f"{video}: no face found in any frame; the face should fill a tenth of the picture or more")
    left, top, right, bottom = np.median(np.array(boxes), axis=0)
    limit = min(info.width, info.height)
    size = int(min(limit, config.crop_faces * (bottom - top)))
    if square and not config.min_size <= size < WHOLE_SQUARE * limit:
        return (0, 0, whole), boxes
    size -= size % 2
    x = int(np.clip((left + right) / 2 - size / 2, 0, info.width - size))
    y = int(np.clip((top + bottom) / 2 - FACE_HEIGHT * size, 0, info.height - size))
    return (x, y, size), boxes


def upright_error(frame: np.ndarray, detector: Detector) -> float:
    """Difference of the landmarks in a frame (H,W,3) uint8 and in its mirror image, in eye-mouth distances; infinite without
    an upright face.

    Detectors find a face in an upside-down picture too, but in the mirror image they then find another one.
    """
    scale = min(1.0, SMALL / max(frame.shape[:2]))
    if scale < 1:
        frame = cv2.resize(frame, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    found = []
    for picture in (frame, frame[:, ::-1]):
        detector.restart()
        points = detector.points(np.ascontiguousarray(picture))
        if points is None:
            return np.inf
        face = points[detector.scheme.landmarks68, :2]
        found.append(np.stack([face[27:36].mean(0), face[36:48].mean(0), face[48:].mean(0)]))  # nose, eyes, mouth
    found[1][:, 0] = frame.shape[1] - 1 - found[1][:, 0]
    across, down = found[0][2] - found[0][1]
    if down <= abs(across):
        return np.inf
    return float(np.linalg.norm(found[0] - found[1], axis=1).max() / np.hypot(across, down))


def _refuse_turned(video: Path, info: VideoInfo, detector: Detector) -> None:
    """Raise TalkheadError if turning the frames by 90, 180 or 270 degrees makes the face upright."""
    errors = [[upright_error(np.rot90(frame, turns), detector) for turns in range(4)]
              for frame in sample_frames(video, info, TURNED_SAMPLES)]
    middle = np.median(np.array(errors), axis=0)
    best = int(middle.argmin())
    if best != 0 and middle[best] <= UPRIGHT and middle[0] > 2 * middle[best]:
        raise TalkheadError(f"{video}: the person {TURN[best]} and process it again")


def write_video(source: Path, target: Path, info: VideoInfo, crop: tuple[int, int, int], config: ProcessConfig,
                quiet: bool = False) -> tuple[int, int]:
    """Write the cropped 25 fps video; returns its side in pixels and its number of frames.

    A stream that needs no change is copied instead of encoded anew. Raises TalkheadError if the picture is too small.
    """
    x, y, size = crop
    out = min(size, config.max_size) // 2 * 2
    if out < config.min_size:
        raise TalkheadError(f"{source}: the picture round the face is {size} pixels wide; at least {config.min_size} are needed")
    whole = (x, y) == (0, 0) and info.width == info.height == out
    if whole and info.codec == "h264":
        count = _steady_frames(source)
        if count:
            _copy_stream(source, target)
            if sum(1 for _ in read_video(target, start=max(0, count - 2))) == min(2, count):
                return out, count
    with (VideoWriter(target, out, out, crf=14, matrix=Colorspace.ITU601) as writer,
          progress(info.frames_estimate, "reading video", quiet=quiet, unit="frame") as bar):
        for frame in read_video(source):
            frame = frame[y : y + size, x : x + size]
            if size != out:
                frame = cv2.resize(frame, (out, out), interpolation=cv2.INTER_AREA)
            writer.write(frame)
            bar.update()
    return out, writer.count


def _steady_frames(source: Path) -> int:
    """Number of frames if the stream can be copied, else 0: frame k at k/25 s, of one size, upright, progressive, intact, square
    pixels, yuv420p, standard colours."""
    info = probe(source)
    if info.rotation or info.mirrored or any("BT.709" in note for note in info.notes):
        return 0
    with open_media(source, "video") as container:
        stream = video_stream(container, source)
        if stream.codec_context.pix_fmt not in ("yuv420p", "yuvj420p") or pixel_aspect(stream) != 1:
            return 0
        if abs(time_zero(container, source)) > 1e-3:
            return 0
        shown = [(float(packet.pts * packet.time_base), packet.is_corrupt) for packet in container.demux(stream)
                 if packet.pts is not None]
    if any(corrupt for _, corrupt in shown):
        return 0
    times = np.sort([time for time, _ in shown])
    if len(times) == 0 or np.abs(times - np.arange(len(times)) / FPS).max() >= 1e-3:
        return 0
    with open_media(source, "video") as container:
        stream = video_stream(container, source)
        stream.thread_type = "AUTO"
        plain = all(not frame.interlaced_frame and orientation(frame) == (False, 0)
                    and (frame.width, frame.height) == (info.width, info.height) for frame in decode(container, stream))
    return len(times) if plain else 0


def _copy_stream(source: Path, target: Path) -> None:
    with atomic_path(target) as partial, open_media(source, "video") as old, \
            av.open(media_url(partial), "w", options={"movflags": "faststart"}) as new:
        track = video_stream(old, source)
        stream = new.add_stream_from_template(track)
        stream.time_base = track.time_base
        for packet in old.demux(track):
            if packet.dts is not None:
                packet.stream = stream
                new.mux(packet)


def load_sound(source: Path, frames: int) -> np.ndarray:
    """Sound of a recording, (640·frames,) float32 16 kHz mono: cut or padded to `frames` video frames."""
    samples = load_audio(source)
    length = frames * SAMPLES_PER_FRAME
    return np.pad(samples[:length], (0, max(0, length - len(samples))))


def notes(source: Path, info: VideoInfo, frames: int) -> list[str]:
    """Sentences on how the file was read: tracks chosen, colours converted, a missing end. `frames`: how many were read."""
    found = [*info.notes, *audio_notes(source)]
    read = frames / FPS
    if read < LEAST_READ * info.duration and not info.own_length:
        # the duration is that of the longest track
        read = max(read, sum(len(piece) for piece in iter_audio(source)) / SAMPLE_RATE)
    if read < LEAST_READ * info.duration:
        found.append(f"the file should last {info.duration:.1f} s, but only {frames / FPS:.1f} s of video can be read; if it "
                     "is cut off, get it whole")
    return found


def no_picture(video: Path, lost: np.ndarray, start: float) -> np.ndarray:
    """Flags (T,) bool of the frames that show nothing, such as a black end.

    They are frames of one colour among those without a face, lost (T,) bool, and all before `start`, the time in seconds of
    the source's first picture, if that comes more than LATE after the sound.
    """
    blank = np.zeros(len(lost), bool)
    for first, stop in runs(np.flatnonzero(lost)):
        for t, frame in enumerate(read_video(video, start=first, stop=stop), start=first):
            blank[t] = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY).std() < BLANK
    if start > LATE:
        blank[: int(start * FPS)] = True
    return blank
