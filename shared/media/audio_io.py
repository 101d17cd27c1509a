"""Audio files through PyAV: anything that FFmpeg reads, to 16 kHz mono float32."""

import wave
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np

from shared.errors import TalkheadError
from shared.files import atomic_path
from shared.landmarks import SAMPLE_RATE
from shared.media.container import audio_tracks, check_gap, decode, decodes, open_media, time_zero, track_name
from shared.media.downmix import Loudness, mix

LEAST_GAP = 0.1  # seconds; timestamps that jump less only jitter


def audio_stream(container: av.container.InputContainer, path: Path) -> av.AudioStream:
    """The audio track that is heard: of several the best one that can be decoded. Raises TalkheadError if there is none."""
    tracks = audio_tracks(container, path)
    if not tracks:
        raise TalkheadError(f"{path} has no audio track; a talking head needs sound")
    if tracks[0].codec_context is None:
        raise TalkheadError(f"{path}: the audio track ({track_name(tracks[0])}) cannot be decoded; convert the file")
    return tracks[0]


def audio_notes(path: Path | str) -> list[str]:
    """Sentences on the choice of the audio track, none where there is only one. Raises TalkheadError like audio_stream."""
    path = Path(path)
    with open_media(path, "media file") as container:
        chosen = audio_stream(container, path)
        tracks = list(container.streams.audio)
        if len(tracks) == 1:
            return []
        notes = [f"the file has {len(tracks)} audio tracks; number {tracks.index(chosen) + 1} ({track_name(chosen)}) is used"]
        unheard = [str(k) for k, track in enumerate(tracks, 1) if track is not chosen and not decodes(path, track)]
        if unheard:
            notes.append(f"audio track(s) {', '.join(unheard)} cannot be decoded and are left out")
        return notes


class TimedFrame(NamedTuple):
    """A frame and the seconds of silence before it, or of its beginning that lie before time zero, `early`.

    `anew`: silence comes before it or its form is another than that of the frame before, so that a resampler ends there.
    """

    frame: av.AudioFrame
    silence: float
    early: float
    anew: bool


def timed_frames(path: Path, container: av.container.InputContainer, stream: av.AudioStream,
                 start: float = 0.0) -> Iterator[TimedFrame]:
    """The frames of a sound track in time, from `start` seconds on, which then are time zero. Raises TalkheadError for damaged
    time stamps, else what the decoder raises."""
    zero, form = time_zero(container, path) + start, None
    clock: float | None = None  # seconds of sound up to now
    quiet = 0.0  # of these without sound
    for frame in decode(container, stream):
        gap = 0.0 if frame.time is None else frame.time - zero - (clock or 0.0)
        check_gap(path, quiet + gap)
        silence = gap if gap > (0.0 if clock is None else LEAST_GAP) else 0.0
        early = max(-gap, 0.0) if clock is None else 0.0
        left = frame.samples - round(early * frame.sample_rate)
        if left <= 0:
            continue
        quiet += silence
        clock = (clock or 0.0) + silence + left / frame.sample_rate
        found = frame.format.name, frame.layout.name, frame.sample_rate
        yield TimedFrame(frame, silence, early, silence > 0 or form not in (None, found))
        form = found


@contextmanager
def decoding(path: Path, stream: av.AudioStream) -> Iterator[None]:
    """Says in a sentence, a TalkheadError, that a sound track cannot be decoded or resampled."""
    try:
        yield
    except (av.error.FFmpegError, ValueError) as error:
        raise TalkheadError(f"{path}: the audio track ({track_name(stream)}) cannot be decoded; convert the file") from error


@contextmanager
def opened_sound(path: Path, start: float = 0.0) -> Iterator[Iterator[TimedFrame]]:
    """The `timed_frames` of a file while it is open. Raises TalkheadError: no media file, no sound, or it cannot be decoded."""
    with open_media(path, "media file") as container:
        stream = audio_stream(container, path)
        with decoding(path, stream):
            yield timed_frames(path, container, stream, start)


def to_mono(frames: Iterable[TimedFrame], weights: Callable[[str], np.ndarray | None],
            rate: int = SAMPLE_RATE) -> Iterator[np.ndarray]:
    """Yield mono float32 pieces at `rate`; where no sound is, before the first or in a gap, silence is put.

    `weights` of a layout's name is the share (C,) of each channel in the mix, None for the mean.
    """
    resampler = _mono(rate)
    for frame, silence, early, anew in frames:
        if anew:
            yield from _resample(resampler, None)
            resampler = _mono(rate)
        if silence:
            yield np.zeros(int(round(silence * rate)), np.float32)
        heard = _finite(_behind(frame, round(early * frame.sample_rate)))
        share = weights(frame.layout.name) if frame.layout.nb_channels > 1 else None
        yield from _resample(resampler, heard if share is None else mix(heard, share))
    yield from _resample(resampler, None)


def _decode(path: Path, rate: int) -> Iterator[np.ndarray]:
    with opened_sound(path) as frames:
        yield from to_mono(frames, lambda layout: _weights(path, path.stat().st_mtime_ns).get(layout), rate)


def _behind(frame: av.AudioFrame, samples: int) -> av.AudioFrame:
    """The frame without its first samples, which lie before time zero."""
    if samples == 0:
        return frame
    data: Any = frame.to_ndarray()
    rest = data[:, samples * (1 if frame.format.is_planar else frame.layout.nb_channels) :]
    cut = av.AudioFrame.from_ndarray(np.ascontiguousarray(rest), frame.format.name, frame.layout)
    cut.sample_rate = frame.sample_rate
    return cut


@lru_cache(maxsize=8)
def _weights(path: Path, changed: int) -> dict[str, np.ndarray]:
    """How to mix the channels of each layout that a file has; `changed` is its time stamp."""
    heard: dict[str, Loudness] = {}
    with open_media(path, "media file") as container:
        try:
            for frame in decode(container, audio_stream(container, path)):
                heard.setdefault(frame.layout.name, Loudness(frame.layout)).add(frame)
        except (av.error.FFmpegError, ValueError):
            pass  # what was read up to here decides
    chosen = {name: loudness.weights() for name, loudness in heard.items()}
    return {name: weights for name, weights in chosen.items() if weights is not None}


def _mono(rate: int) -> av.AudioResampler:
    # whole numbers, since FFmpeg mixes several channels to floats without turning them down: speech on both would clip
    return av.AudioResampler(format="s32p", layout="mono", rate=rate)


def _finite(frame: av.AudioFrame) -> av.AudioFrame:
    """The frame without a time stamp and without samples that are no finite numbers."""
    if frame.format.name[:3] in ("flt", "dbl"):
        data: Any = frame.to_ndarray()
        if not np.isfinite(data).all():
            rate = frame.sample_rate
            data = np.nan_to_num(data, posinf=1.0, neginf=-1.0)
            frame = av.AudioFrame.from_ndarray(data, frame.format.name, frame.layout)
            frame.sample_rate = rate
    frame.pts = None
    return frame


def _resample(resampler: av.AudioResampler, frame: av.AudioFrame | None) -> Iterator[np.ndarray]:
    for piece in resampler.resample(frame):
        yield piece.to_ndarray()[0].astype(np.float32) / np.float32(1 << 31)


def iter_audio(path: Path | str, seconds: float = 10.0, rate: int = SAMPLE_RATE) -> Iterator[np.ndarray]:
    """Yield mono float32 chunks of `seconds` (the last one shorter) at `rate` Hz in bounded memory.

    Two channels are averaged unless they cancel or one is silent, more are mixed as loud as the loudest of them (see
    downmix.py); of several tracks the best is read. Time zero is that of the whole file: sound that starts later is
    preceded by silence, as gaps in it are filled with it. Samples that are not a number become 0, larger ones than ±1 are
    clipped. Raises TalkheadError: missing file, no media file, no audio track, 0 samples, damaged time stamps.
    """
    path, heard = Path(path), False
    for piece in in_pieces(_decode(path, rate), seconds, rate):
        heard = True
        yield piece
    if not heard:
        raise TalkheadError(f"{path} holds 0 samples of audio")


def in_pieces(sound: Iterable[np.ndarray], seconds: float, rate: int = SAMPLE_RATE) -> Iterator[np.ndarray]:
    """Cut sound at `rate` that comes in arrays (n,) of any length into pieces of `seconds`, the last one shorter."""
    size = max(1, int(seconds * rate))
    waiting: list[np.ndarray] = []
    count = 0
    for piece in sound:
        waiting.append(piece)
        count += len(piece)
        if count >= size:
            joined = np.concatenate(waiting)
            while len(joined) >= size:
                yield joined[:size]
                joined = joined[size:]
            waiting, count = [joined], len(joined)
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
