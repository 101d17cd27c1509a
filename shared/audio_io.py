"""Audio files through PyAV: anything that FFmpeg reads, to 16 kHz mono float32."""

import wave
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np

from shared.errors import TalkheadError
from shared.files import atomic_path
from shared.landmarks import SAMPLE_RATE


def _decode(path: Path) -> Iterator[np.ndarray]:
    """Yield mono float32 pieces at 16 kHz; sound that starts after time zero is preceded by silence."""
    if not path.exists():
        raise TalkheadError(f"{path} does not exist")
    try:
        container = av.open(str(path))
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise TalkheadError(f"{path} is not a media file that FFmpeg can read") from error
    with container:
        if not container.streams.audio:
            raise TalkheadError(f"{path} has no audio track; a talking head needs sound")
        resampler = av.AudioResampler(format="fltp", layout="mono", rate=SAMPLE_RATE)
        decoded = False
        try:
            for frame in container.decode(container.streams.audio[0]):
                if not decoded and frame.time is not None and frame.time > 0:
                    yield np.zeros(int(round(frame.time * SAMPLE_RATE)), np.float32)
                decoded = True
                frame.pts = None
                for piece in resampler.resample(frame):
                    yield piece.to_ndarray()[0]
            if decoded:
                for piece in resampler.resample(None):
                    yield piece.to_ndarray()[0]
        except av.error.FFmpegError as error:
            if not decoded:
                raise TalkheadError(f"{path}: the audio track cannot be decoded ({error})") from error


def iter_audio(path: Path | str, seconds: float = 10.0) -> Iterator[np.ndarray]:
    """Yield 16 kHz mono float32 chunks of `seconds` (the last one shorter) in bounded memory.

    Sound that starts later than the file's time zero is preceded by silence. Non-finite samples become 0 and values are
    clipped to [−1, 1]. Raises TalkheadError: missing file, no media file, no audio track, 0 samples.
    """
    path = Path(path)
    size = max(1, int(seconds * SAMPLE_RATE))
    waiting: list[np.ndarray] = []
    count = total = 0
    for piece in _decode(path):
        piece = np.clip(np.nan_to_num(piece, posinf=1.0, neginf=-1.0), -1, 1).astype(np.float32)
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
