"""A recording of any kind -> square 25 fps video.mp4 and 16 kHz mono audio.wav."""

from collections.abc import Iterator
from pathlib import Path

import av
import cv2
import numpy as np

from process_data import people
from process_data.config import ProcessConfig
from process_data.detector import Detector
from shared.audio_io import load_audio
from shared.errors import TalkheadError
from shared.files import atomic_path
from shared.landmarks import FPS, SAMPLES_PER_FRAME
from shared.training import progress
from shared.video_io import VideoInfo, VideoWriter, pixel_aspect, probe, read_video

LOOKS = 60  # frames in which the face is looked for while the crop is chosen
SEEK_FROM = 3000  # frames from which jumping to each look is faster than reading everything


def sample_frames(video: Path, info: VideoInfo, count: int) -> Iterator[np.ndarray]:
    """About `count` frames spread over a video."""
    step = max(1, info.frames_estimate // count)
    if info.frames_estimate < SEEK_FROM or not info.seekable:
        yield from (frame for k, frame in enumerate(read_video(video)) if k % step == 0)
        return
    for k in range(0, info.frames_estimate, step):
        yield from read_video(video, start=k, stop=k + 1)


def choose_crop(video: Path, info: VideoInfo, config: ProcessConfig, detector: Detector,
                boxes: list[np.ndarray] | None = None) -> tuple[int, int, int]:
    """Square x, y, size in source pixels around the median face of the chosen person, shoulders included, inside the picture.

    The face's boxes (4,) in the frames looked at are appended to `boxes`. Raises TalkheadError if no face is found.
    """
    boxes = [] if boxes is None else boxes
    if info.width == info.height:
        return 0, 0, info.width - info.width % 2
    boxes += people.boxes_of([detector.faces(frame) for frame in sample_frames(video, info, LOOKS)], config.person)
    if not boxes:
        raise TalkheadError(f"{video}: no face found in any frame; the face should fill a tenth of the picture or more")
    left, top, right, bottom = np.median(np.array(boxes), axis=0)
    limit = min(info.width, info.height)
    size = int(min(limit, config.crop_faces * (bottom - top)))
    size -= size % 2
    x = int(np.clip((left + right) / 2 - size / 2, 0, info.width - size))
    y = int(np.clip((top + bottom) / 2 - 0.42 * size, 0, info.height - size))
    return x, y, size


def write_video(source: Path, target: Path, info: VideoInfo, crop: tuple[int, int, int], config: ProcessConfig,
                quiet: bool = False) -> tuple[int, int]:
    """Write the cropped 25 fps video; returns its size in pixels and its number of frames.

    The stream is copied where nothing would change. Raises TalkheadError if the picture is too small.
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
    with (VideoWriter(target, out, out, crf=14) as writer,
          progress(info.frames_estimate, "reading video", quiet=quiet, unit="frame") as bar):
        for frame in read_video(source):
            frame = frame[y : y + size, x : x + size]
            if size != out:
                frame = cv2.resize(frame, (out, out), interpolation=cv2.INTER_AREA)
            writer.write(frame)
            bar.update()
    return out, writer.count


def _steady_frames(source: Path) -> int:
    """Number of frames if every frame k is shown at exactly k/25 s, upright, whole, of square pixels, in yuv420p; else 0."""
    with av.open(str(source)) as container:
        stream = container.streams.video[0]
        if stream.codec_context.pix_fmt not in ("yuv420p", "yuvj420p") or pixel_aspect(stream) != 1:
            return 0
        shown = [(float(packet.pts * packet.time_base), packet.is_corrupt) for packet in container.demux(stream)
                 if packet.pts is not None]
    if any(corrupt for _, corrupt in shown):
        return 0
    times = np.sort([time for time, _ in shown])
    steady = len(times) > 0 and np.abs(times - np.arange(len(times)) / FPS).max() < 1e-3
    return len(times) if steady and probe(source).rotation == 0 else 0


def _copy_stream(source: Path, target: Path) -> None:
    with atomic_path(target) as partial, av.open(str(source)) as old, \
            av.open(str(partial), "w", options={"movflags": "faststart"}) as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        stream.time_base = old.streams.video[0].time_base
        for packet in old.demux(old.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                new.mux(packet)


def load_sound(source: Path, frames: int) -> np.ndarray:
    """Sound of a recording, (640·frames,) float32 16 kHz mono: cut or padded to `frames` video frames."""
    samples = load_audio(source)
    length = frames * SAMPLES_PER_FRAME
    return np.pad(samples[:length], (0, max(0, length - len(samples))))
