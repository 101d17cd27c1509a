"""Audio files through PyAV: anything that FFmpeg reads, to 16 kHz mono float32."""

import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.stream import Stream

from shared.errors import TalkheadError
from shared.files import atomic_path
from shared.landmarks import SAMPLE_RATE

TIMESTAMPS_ANYWHERE = 0x0200  # FFmpeg's AVFMT_TS_DISCONT
LEAST_GAP = 0.1  # seconds; timestamps that jump less only jitter
LARGEST_GAP = 3600.0  # seconds; timestamps that jump further are damaged


def open_media(path: Path, kind: str) -> av.container.InputContainer:
    """Open a file with FFmpeg. Raises TalkheadError, calling it a `kind`, if that cannot be done."""
    if not path.exists():
        raise TalkheadError(f"{path} does not exist")
    if path.is_dir():
        raise TalkheadError(f"{path} is a folder; name a {kind} in it")
    if path.is_file() and path.stat().st_size == 0:
        raise TalkheadError(f"{path} is empty (0 bytes); copy or record it again")
    try:
        return _open(path)
    except PermissionError as error:
        raise TalkheadError(f"{path} may not be read: {error.strerror}") from error
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise TalkheadError(f"{path} is not a {kind} that FFmpeg can read; if recording or copying it was interrupted, "
                            "get it whole, else convert it") from error


def _open(path: Path) -> av.container.InputContainer:
    try:
        return av.open(str(path), metadata_errors="replace")
    except TypeError:  # PyAV from 19 on reads metadata of any encoding by itself
        return av.open(str(path))


def timestamps_anywhere(container: av.container.InputContainer) -> bool:
    """Is this a transport stream (.ts, .mts) or the like, whose clock starts anywhere and which has no index of key frames?"""
    return bool(container.format.flags & TIMESTAMPS_ANYWHERE)


def time_zero(container: av.container.InputContainer) -> float:
    """Seconds at which a file's own clock starts: zero, but anywhere in a transport stream."""
    if timestamps_anywhere(container) and container.start_time is not None:
        return container.start_time / av.time_base
    return 0.0


def check_gap(path: Path, seconds: float) -> None:
    """Raise TalkheadError for a gap between two time stamps that no recording has."""
    if seconds > LARGEST_GAP:
        raise TalkheadError(f"{path}: the time stamps jump by {seconds:.0f} s; they are damaged, so convert the file")


def decode(container: av.container.InputContainer, stream: Stream) -> Iterator[Any]:
    """Yield the frames of a stream without those that are too damaged to decode.

    Raises the decoder's FFmpegError only if there is no other frame.
    """
    packets = container.demux(stream)
    found = False
    failed: av.error.FFmpegError | None = None
    while True:
        try:
            packet = next(packets, None)
        except av.error.FFmpegError as error:
            failed, packet = error, None
        if packet is None:
            break
        try:
            for frame in packet.decode():
                found = True
                yield frame
        except av.error.FFmpegError as error:
            failed = error
    if failed is not None and not found:
        raise failed


def _decode(path: Path) -> Iterator[np.ndarray]:
    """Yield mono float32 pieces at 16 kHz; where no sound is, before the first or in a gap, silence is put."""
    with open_media(path, "media file") as container:
        if not container.streams.audio:
            raise TalkheadError(f"{path} has no audio track; a talking head needs sound")
        zero = time_zero(container)
        resampler, form = _mono(), None
        clock: float | None = None  # seconds of sound up to now
        try:
            for frame in decode(container, container.streams.audio[0]):
                gap = 0.0 if frame.time is None else frame.time - zero - (clock or 0.0)
                check_gap(path, gap)
                silence = gap > (0.0 if clock is None else LEAST_GAP)
                if silence or form not in (None, _form(frame)):
                    yield from _resample(resampler, None)
                    resampler = _mono()
                if silence:
                    yield np.zeros(int(round(gap * SAMPLE_RATE)), np.float32)
                form = _form(frame)
                clock = (clock or 0.0) + (gap if silence else 0.0) + frame.samples / frame.sample_rate
                yield from _resample(resampler, _finite(frame))
        except av.error.FFmpegError as error:
            raise TalkheadError(f"{path}: the audio track cannot be decoded ({error}); convert the file") from error
        if clock is not None:
            yield from _resample(resampler, None)


def _mono() -> av.AudioResampler:
    # whole numbers, since FFmpeg mixes several channels to floats without turning them down: speech on both would clip
    return av.AudioResampler(format="s32p", layout="mono", rate=SAMPLE_RATE)


def _form(frame: av.AudioFrame) -> tuple[str, str, int]:
    return frame.format.name, frame.layout.name, frame.sample_rate


def _finite(frame: av.AudioFrame) -> av.AudioFrame:
    """The frame without a time stamp and without samples that are no finite numbers."""
    if frame.format.name[:3] in ("flt", "dbl"):
        data: Any = frame.to_ndarray()
        if not np.isfinite(data).all():
            rate = frame.sample_rate
            data = np.nan_to_num(data, posinf=1.0, neginf=-1.0)
            frame = av.AudioFrame.from_ndarray(data, frame.format.name, frame.layout.name)
            frame.sample_rate = rate
    frame.pts = None
    return frame


def _resample(resampler: av.AudioResampler, frame: av.AudioFrame | None) -> Iterator[np.ndarray]:
    for piece in resampler.resample(frame):
        yield piece.to_ndarray()[0].astype(np.float32) / np.float32(1 << 31)


def iter_audio(path: Path | str, seconds: float = 10.0) -> Iterator[np.ndarray]:
    """Yield 16 kHz mono float32 chunks of `seconds` (the last one shorter) in bounded memory.

    Several channels are averaged; sound that starts later than the file's time zero is preceded by silence, as gaps in it
    are filled with it. Samples that are not a number become 0, larger ones than ±1 are clipped. Raises TalkheadError:
    missing file, no media file, no audio track, 0 samples, damaged time stamps.
    """
    path = Path(path)
    size = max(1, int(seconds * SAMPLE_RATE))
    waiting: list[np.ndarray] = []
    count = total = 0
    for piece in _decode(path):
        waiting.append(piece)
        count += len(piece)
        total += len(piece)
        if count >= size:
            joined = np.concatenate(waiting)
            while len(joined) >= size:
                yield joined[:size]
                joined = joined[size:]
            waiting, count = [joined], len(joined)
    if total == 0:
        raise TalkheadError(f"{path} holds 0 samples of audio")
    if count:
        yield np.concatenate(waiting)


def load_audio(path: Path | str) -> np.ndarray:
    """Whole file -> (n,) float32 in [−1, 1], 16 kHz mono. Raises TalkheadError like iter_audio."""
    return np.concatenate(list(iter_audio(path)))


def save_wav(path: Path | str, samples: np.ndarray, rate: int = SAMPLE_RATE) -> None:
    """Write (n,) float samples in [−1, 1] as 16-bit mono WAV, atomically."""
    pcm = np.round(np.clip(samples, -1, 1) * 32767).astype("<i2")
    with atomic_path(path) as partial, wave.open(str(partial), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(pcm.tobytes())
