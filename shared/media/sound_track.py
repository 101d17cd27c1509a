"""The sound of a written video: the packets of the given file where the container takes them, else encoded again."""

import io
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol

import av
import numpy as np

from shared.errors import TalkheadError
from shared.landmarks import SAMPLE_RATE
from shared.media.audio_io import LEAST_GAP, TimedFrame, audio_stream, iter_audio, opened_sound
from shared.media.container import decode, open_media, time_zero
from shared.media.spool import DecodedSound

# codecs that are copied into a container: what FFmpeg's muxer and the players of that container take
COPIED = {
    ".mp4": {"aac", "mp3", "ac3", "eac3", "alac", "flac", "opus"},
    ".mov": {"aac", "mp3", "ac3", "eac3", "alac", "pcm_u8", "pcm_s16le", "pcm_s16be", "pcm_s24le", "pcm_s24be", "pcm_s32le",
             "pcm_s32be", "pcm_f32le", "pcm_f32be", "pcm_f64le", "pcm_f64be", "pcm_alaw", "pcm_mulaw"},
    ".mkv": {"aac", "mp2", "mp3", "ac3", "eac3", "dts", "truehd", "alac", "flac", "opus", "vorbis", "pcm_u8", "pcm_s16le",
             "pcm_s24le", "pcm_s32le", "pcm_f32le", "pcm_f64le"},
    ".webm": {"opus", "vorbis"},
}
FORMATS = {".mp4": "mp4", ".mov": "mov", ".mkv": "matroska", ".webm": "webm"}
RATES = {"aac": (7350, 8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000), "libopus": (48000,)}
LAYOUTS = {"mono", "stereo", "3.0", "5.0", "5.1"}  # that every encoder here knows; others become stereo
BIT_RATE = 96_000  # of a channel, less where the sample rate is below 16 kHz
BLOCK = 1024  # samples that are encoded at once
STEP = 0.001  # seconds by which a copy may be out of step
TRIED = 3.0  # seconds of a copy that are compared with the original
SAME = 0.98  # correlation above which they are the same


class SoundTrack(Protocol):
    """Sound that goes into a container piece by piece."""

    def write(self, until: Fraction, last: bool) -> None:
        """Mux what lies before `until` seconds; with `last`, the video ends there."""


def add_sound(container: av.container.OutputContainer, ending: str, audio: np.ndarray | Path | DecodedSound,
              codec: str) -> SoundTrack:
    """Add a sound stream to a container of that `ending` that is being set up. Raises TalkheadError like `iter_audio`.

    `audio` is (n,) float32 at 16 kHz, a file, or a file's sound that is decoded already. Packets of the file are copied if the
    container takes its codec, the sound begins at time zero without gaps and a copy is heard as the original is; otherwise,
    and where it shall start within the file, it is encoded with `codec` at its own rate and channel layout.
    """
    if isinstance(audio, np.ndarray):
        pieces = (audio[None, start : start + SAMPLE_RATE] for start in range(0, len(audio), SAMPLE_RATE))
        return _Encoded(container, codec, SAMPLE_RATE, "mono", pieces)
    path, start = (audio.path, audio.start) if isinstance(audio, DecodedSound) else (audio, 0.0)
    if start == 0 and _may_be_copied(path, ending):
        return _Copied(container, path)
    return _Encoded(container, codec, *_as_recorded(audio, codec))


def _open(path: Path) -> tuple[av.container.InputContainer, Any]:
    """An opened file and its sound stream."""
    source = open_media(path, "media file")
    try:
        return source, audio_stream(source, path)
    except TalkheadError:
        source.close()
        raise


def _packets(source: av.container.InputContainer, stream: Any) -> Iterator[Any]:
    """The packets of a stream; a part of the file that cannot be read is left out."""
    packets = source.demux(stream)
    while True:
        try:
            packet = next(packets, None)
        except av.error.FFmpegError:
            continue
        if packet is None:
            return
        if packet.size:
            yield packet


def _may_be_copied(path: Path, ending: str) -> bool:
    source, stream = _open(path)
    with source:
        codec = stream.codec_context.codec.canonical_name
        if codec not in COPIED[ending]:
            return False
        zero, clock = time_zero(source, path), None
        forms = set()
        for packet in _packets(source, stream):
            if packet.pts is None or packet.duration is None or packet.is_corrupt:
                return False
            forms.add(_form(codec, bytes(memoryview(packet)[:4])))
            if len(forms) > 1:
                return False
            start = float(packet.pts * packet.time_base) - zero
            if start > STEP if clock is None else abs(start - clock) > LEAST_GAP:
                return False
            clock = start + float(packet.duration * packet.time_base)
    try:
        return clock is not None and _sounds_alike(path, ending)
    except (av.error.FFmpegError, ValueError):  # the muxer refuses it
        return False


def _form(codec: str, head: bytes) -> tuple:
    """Rate and channels that the first bytes of a packet give, where it has a header of its own (ADTS, MPEG audio)."""
    if codec not in ("aac", "mp3", "mp2") or len(head) < 4 or head[0] != 0xFF or head[1] < 0xE0:
        return ()
    if codec == "aac":
        return head[2] & 0xFD, head[3] & 0xC0
    return head[1] & 0xFE, head[2] & 0x0C, head[3] >> 6 == 3


def _sounds_alike(path: Path, ending: str) -> bool:
    """Is the first sound of a copy, made in memory, heard at the same time as that of the original?"""
    memory = io.BytesIO()
    with av.open(memory, "w", format=FORMATS[ending]) as copy:
        _Copied(copy, path).write(Fraction(2 * TRIED), last=True)
    memory.seek(0)
    source, stream = _open(path)
    with source:
        true = _beginning(source, stream, time_zero(source, path))
    with av.open(memory, "r") as copied:
        heard = _beginning(copied, copied.streams.audio[0], 0.0)
    if min(np.ptp(true), np.ptp(heard)) < 1e-4:
        return np.ptp(true) < 1e-4 and abs(len(true) - len(heard)) <= STEP * SAMPLE_RATE
    reach = int(STEP * SAMPLE_RATE)
    length = min(len(true), len(heard)) - 2 * reach
    if length <= 0:
        return False
    middle = true[reach : reach + length].astype(float)
    shifted = np.stack([heard[k : k + length].astype(float) for k in range(2 * reach + 1)])
    scale = np.linalg.norm(middle) * np.linalg.norm(shifted, axis=1)
    return bool((shifted @ middle > SAME * scale).any())


def _beginning(source: av.container.InputContainer, stream: Any, zero: float) -> np.ndarray:
    """The first TRIED seconds after `zero`, first channel at about 16 kHz (n,), silence before the first sample."""
    resampler = av.AudioResampler(format="fltp", layout="mono", rate=SAMPLE_RATE)
    parts: list[np.ndarray] = []
    count = 0
    for frame in decode(source, stream):
        if not parts:
            late = max(0.0, float(frame.time or 0.0) - zero)
            parts.append(np.zeros(round(late * SAMPLE_RATE), np.float32))
        frame.pts = None
        parts += [piece.to_ndarray()[0] for piece in resampler.resample(frame)]
        count = sum(map(len, parts))
        if count >= TRIED * SAMPLE_RATE:
            break
    return np.nan_to_num(np.concatenate(parts or [np.zeros(0, np.float32)]))[: int(TRIED * SAMPLE_RATE)]


class _Copied:
    """The packets of a file as they are, counted from its time zero."""

    def __init__(self, container: av.container.OutputContainer, path: Path) -> None:
        self.container = container
        self.source, stream = _open(path)
        self.stream: Any = container.add_stream_from_template(stream)
        self.zero = Fraction(time_zero(self.source, path)).limit_denominator(1_000_000)
        self.packets = _packets(self.source, stream)
        self.waiting: Any = None

    def write(self, until: Fraction, last: bool) -> None:
        while (packet := self.waiting or next(self.packets, None)) is not None:
            self.waiting = packet
            start = packet.pts * packet.time_base - self.zero
            stop = start + packet.duration * packet.time_base
            if stop > until and not (last and start < until):
                break
            if stop > until:  # the file then lasts no longer than its picture
                packet.duration = max(1, round((until - start) / packet.time_base))
            self._mux(packet)
            self.waiting = None
        if last:
            self.source.close()

    def _mux(self, packet: Any) -> None:
        shift = round(self.zero / packet.time_base)
        packet.pts -= shift
        packet.dts = packet.pts
        packet.stream = self.stream
        try:
            self.container.mux(packet)
        except (av.error.InvalidDataError, ValueError):  # damaged: its place stays empty
            pass


class _Encoded:
    """Sound that is encoded from pieces (channels, n) float32 at `rate`."""

    def __init__(self, container: av.container.OutputContainer, codec: str, rate: int, layout: str,
                 pieces: Iterator[np.ndarray]) -> None:
        self.container, self.rate, self.layout, self.pieces = container, rate, layout, pieces
        stream: Any = container.add_stream(codec, rate=rate, layout=layout)
        channels = stream.layout.nb_channels
        if codec in RATES:
            stream.bit_rate = channels * min(BIT_RATE, 6 * rate)
        self.stream = stream
        self.left = np.zeros((channels, 0), np.float32)
        self.count = 0

    def write(self, until: Fraction, last: bool) -> None:
        """Encode whole blocks up to `until`, and with `last` the shorter rest."""
        stop = int(until * self.rate)
        while self.count < stop:
            while self.left.shape[1] < BLOCK and (piece := next(self.pieces, None)) is not None:
                self.left = np.concatenate([self.left, piece], axis=1)
            length = min(BLOCK, self.left.shape[1], stop - self.count)
            if length == 0 or length < BLOCK and not last:
                break
            block, self.left = self.left[:, :length], self.left[:, length:]
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(block, np.float32), format="fltp", layout=self.layout)
            frame.sample_rate, frame.time_base, frame.pts = self.rate, Fraction(1, self.rate), self.count
            self.count += length
            self.container.mux(self.stream.encode(frame))
        if last:
            self.container.mux(self.stream.encode(None))


def _as_recorded(audio: Path | DecodedSound, codec: str) -> tuple[int, str, Iterator[np.ndarray]]:
    """Rate and layout nearest to the file's that the encoder knows, and the sound so; mono where FFmpeg cannot mix it."""
    try:
        with _frames(audio) as frames:
            frame = next(frames).frame
        name = frame.layout.name.removesuffix("(side)")
        layout = name if name in LAYOUTS else "mono" if frame.layout.nb_channels == 1 else "stereo"
        rate = min(RATES.get(codec, (frame.sample_rate,)), key=lambda known: abs(known - frame.sample_rate))
        _resampler(frame, rate, layout).resample(frame)
        return rate, layout, _as(audio, rate, layout)
    except (StopIteration, ValueError, av.error.FFmpegError):
        pieces = audio.pieces(1.0) if isinstance(audio, DecodedSound) else iter_audio(audio, seconds=1.0)
        return SAMPLE_RATE, "mono", (piece[None] for piece in pieces)


def _frames(audio: Path | DecodedSound) -> AbstractContextManager[Iterator[TimedFrame]]:
    return nullcontext(audio.frames()) if isinstance(audio, DecodedSound) else opened_sound(audio)


def _resampler(frame: av.AudioFrame, rate: int, layout: str) -> av.AudioResampler:
    # FFmpeg mixes channels to floats without turning them down
    kept = frame.layout.nb_channels == av.AudioLayout(layout).nb_channels
    return av.AudioResampler(format="fltp" if kept else "s32p", layout=layout, rate=rate)


def _as(audio: Path | DecodedSound, rate: int, layout: str) -> Iterator[np.ndarray]:
    """Pieces (channels, n) float32 in [−1, 1] from the sound's time zero on; where there is none, silence."""
    channels = av.AudioLayout(layout).nb_channels
    with _frames(audio) as frames:
        resampler: av.AudioResampler | None = None
        ahead = 0  # samples before time zero, still to be left out
        for frame, silence, early, anew in frames:
            if resampler is None:
                resampler, ahead = _resampler(frame, rate, layout), round(early * rate)
            elif anew:
                yield from _pieces(resampler, None)
                resampler = _resampler(frame, rate, layout)
            if silence:
                yield np.zeros((channels, round(silence * rate)), np.float32)
            frame.pts = None
            for piece in _pieces(resampler, frame):
                yield piece[:, ahead:]
                ahead = max(0, ahead - piece.shape[1])
        if resampler is not None:
            yield from _pieces(resampler, None)


def _pieces(resampler: av.AudioResampler, frame: av.AudioFrame | None) -> Iterator[np.ndarray]:
    for piece in resampler.resample(frame):
        data = piece.to_ndarray()
        scaled = data.astype(np.float32) / np.float32(1 << 31) if data.dtype == np.int32 else data
        yield np.clip(np.nan_to_num(scaled, posinf=1.0, neginf=-1.0), -1, 1)
