"""A recording of any kind -> square 25 fps video.mp4 and 16 kHz mono audio.wav."""

from pathlib import Path

import av
import cv2
import numpy as np

from process_data.config import ProcessConfig
from process_data.detect import detect_faces
from shared.audio_io import load_audio, save_wav
from shared.errors import TalkheadError
from shared.files import atomic_path
from shared.landmarks import FPS, SAMPLES_PER_FRAME
from shared.training import progress
from shared.video_io import VideoInfo, VideoWriter, probe, read_video

LOOK_EVERY = 12  # frames between two looks for the face while the crop is chosen


def choose_crop(video: Path, info: VideoInfo, config: ProcessConfig) -> tuple[int, int, int]:
    """Square x, y, size in source pixels around the median face, shoulders included, inside the picture.

    Raises TalkheadError if no face is found.
    """
    if info.width == info.height:
        return 0, 0, info.width - info.width % 2
    frames = (frame for k, frame in enumerate(read_video(video)) if k % LOOK_EVERY == 0)
    boxes = [box for box in detect_faces(frames) if box is not None]
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
                quiet: bool = False) -> int:
    """Write the cropped 25 fps video and return its size in pixels; the stream is copied where nothing would change."""
    x, y, size = crop
    out = min(size, config.max_size) // 2 * 2
    whole = (x, y) == (0, 0) and info.width == info.height == out
    if whole and info.codec == "h264" and _is_steady(source):
        _copy_stream(source, target)
        return out
    with (VideoWriter(target, out, out, crf=14) as writer,
          progress(info.frames_estimate, "reading video", quiet=quiet, unit="frame") as bar):
        for frame in read_video(source):
            frame = frame[y : y + size, x : x + size]
            if size != out:
                frame = cv2.resize(frame, (out, out), interpolation=cv2.INTER_AREA)
            writer.write(frame)
            bar.update()
    return out


def _is_steady(source: Path) -> bool:
    """True if every frame k is shown at exactly k/25 s, upright, in yuv420p."""
    with av.open(str(source)) as container:
        stream = container.streams.video[0]
        if stream.codec_context.pix_fmt not in ("yuv420p", "yuvj420p"):
            return False
        times = sorted(float(packet.pts * packet.time_base) for packet in container.demux(stream)
                       if packet.pts is not None)
    steady = np.abs(np.array(times) - np.arange(len(times)) / FPS).max() < 1e-3
    return bool(steady) and probe(source).rotation == 0


def _copy_stream(source: Path, target: Path) -> None:
    with atomic_path(target) as partial, av.open(str(source)) as old, \
            av.open(str(partial), "w", options={"movflags": "faststart"}) as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        stream.time_base = old.streams.video[0].time_base
        for packet in old.demux(old.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                new.mux(packet)


def write_audio(source: Path, target: Path, frames: int) -> np.ndarray:
    """Write 16 kHz mono WAV cut or padded to `frames` video frames, and return its samples."""
    samples = load_audio(source)
    length = frames * SAMPLES_PER_FRAME
    samples = np.pad(samples[:length], (0, max(0, length - len(samples))))
    save_wav(target, samples)
    return samples
