"""Media files as FFmpeg opens them: names, tracks, the clock's zero, frames without the damaged ones."""

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import av
from av.stream import Disposition, Stream

from shared.errors import TalkheadError

TIMESTAMPS_ANYWHERE = 0x0200  # FFmpeg's AVFMT_TS_DISCONT
LARGEST_GAP = 3600.0  # seconds; timestamps that jump further are damaged
ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+:/", re.I)  # pathlib makes one slash of two
PICTURE_FORMATS = ("image2", "apng", "gif", "ico")  # and all that end in _pipe
PICTURE_BRANDS = ("avif", "heic", "heim", "heis", "heix", "mif1", "mif2")  # of stills in the MP4 family
PICTURE_CODECS = ("bmp", "gif", "jpegls", "ljpeg", "mjpeg", "png", "tiff", "webp")
NOT_THE_VIDEO = Disposition.attached_pic | Disposition.timed_thumbnails | Disposition.still_image
NOT_FOR_ALL = (Disposition.comment | Disposition.hearing_impaired | Disposition.visual_impaired | Disposition.descriptions
               | Disposition.dependent | Disposition.karaoke | Disposition.clean_effects)
LONE_SECONDS = 10.0  # a picture that nothing follows for so long is a cover or a thumbnail
TRIAL_PACKETS = 50  # in which a track that can be decoded shows a frame


def media_url(path: Path | str) -> str:
    """The name of a file for FFmpeg, which would read `12:30.wav`, `concat:a` or `-` as something else."""
    return f"file:{path}"


def open_media(path: Path, kind: str, formats: Sequence[str] = ()) -> av.container.InputContainer:
    """Open a file with FFmpeg, only as one of its `formats` if any are named, and then without following what it refers to.

    Raises TalkheadError, calling it a `kind`, if that cannot be done.
    """
    try:
        path.stat()
        exists = True
    except (FileNotFoundError, NotADirectoryError, ValueError):
        exists = False
    except OSError as error:  # a name that is too long, say
        raise TalkheadError(f"{path} may not be read: {error.strerror}") from error
    if not exists:
        if ADDRESS.match(str(path)):
            raise TalkheadError(f"{path} is an address; download the {kind} and name the file")
        if str(path) == "-":
            raise TalkheadError(f"a {kind} cannot be read from a pipe; save it as a file and name that")
        raise TalkheadError(f"{path} does not exist")
    if path.is_dir():
        raise TalkheadError(f"{path} is a folder; name a {kind} in it")
    if not path.is_file():
        raise TalkheadError(f"{path} is a pipe or a device; save the {kind} as a file and name that")
    if path.stat().st_size == 0:
        raise TalkheadError(f"{path} is empty (0 bytes); copy or record it again")
    try:
        return _open(path, {"format_whitelist": ",".join(formats), "protocol_whitelist": "file"} if formats else {})
    except PermissionError as error:
        raise TalkheadError(f"{path} may not be read: {error.strerror}") from error
    except (av.error.FFmpegError, OSError, ValueError, AssertionError) as error:
        raise TalkheadError(f"{path} is not a {kind} that FFmpeg can read; if recording or copying it was interrupted, "
                            "get it whole, else convert it") from error


def _open(path: Path, options: dict[str, str]) -> av.container.InputContainer:
    try:
        return av.open(media_url(path), container_options=options, metadata_errors="replace")
    except TypeError:  # PyAV from 19 on reads metadata of any encoding by itself
        return av.open(media_url(path), container_options=options)


def is_picture(container: av.container.InputContainer) -> bool:
    """Is this a picture file (PNG, JPEG, HEIC and the like) and not a recording?"""
    name = container.format.name
    brand = container.metadata.get("major_brand", "").strip()
    return name.endswith("_pipe") or name in PICTURE_FORMATS or brand in PICTURE_BRANDS


def timestamps_anywhere(container: av.container.InputContainer) -> bool:
    """Is this a transport stream (.ts, .mts) or the like, which has no index of key frames?"""
    return bool(container.format.flags & TIMESTAMPS_ANYWHERE)


def seconds(value: int | None, stream: Stream) -> float | None:
    """A time in a stream's own units -> seconds; None stays None."""
    return None if value is None or stream.time_base is None else float(value * stream.time_base)


def time_zero(container: av.container.InputContainer, path: Path) -> float:
    """Seconds on a file's own clock at which its first sound or picture starts, which is time zero for all its tracks."""
    tracks = [*container.streams.audio, *video_tracks(container, path)]
    starts = [start for track in tracks if (start := seconds(track.start_time, track)) is not None]
    return min(starts, default=0.0)


def check_gap(path: Path, gap: float) -> None:
    """Raise TalkheadError for a gap (seconds) between two time stamps that no recording has."""
    if gap > LARGEST_GAP:
        raise TalkheadError(f"{path}: the time stamps jump by {gap:.0f} s; they are damaged, so convert the file")


def decode(container: av.container.InputContainer, stream: Stream) -> Iterator[Any]:
    """Yield the frames of a stream without those that are too damaged to decode.

    Raises the decoder's FFmpegError, or a ValueError, only if there is no other frame.
    """
    packets = container.demux(stream)
    found = False
    failed: av.error.FFmpegError | ValueError | None = None
    while True:
        try:
            packet = next(packets, None)
        except av.error.FFmpegError as error:
            failed, packet = error, None
        except IndexError:  # PyAV's answer to a track that only appears further on
            failed, packet = ValueError("a packet of an unknown track"), None
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


def video_tracks(container: av.container.InputContainer, path: Path) -> list[av.VideoStream]:
    """The video tracks, the one to use first: neither covers nor thumbnails, those with a decoder first, then the default
    one, then the largest picture."""
    tracks = [track for track in container.streams.video if not _is_cover(track, path)]

    def rank(track: av.VideoStream) -> tuple:
        coder = track.codec_context
        size = coder.width * coder.height if coder is not None else 0
        return (coder is not None and size > 0, not track.disposition & NOT_FOR_ALL,
                bool(track.disposition & Disposition.default), size)

    return sorted(tracks, key=rank, reverse=True)


def audio_tracks(container: av.container.InputContainer, path: Path) -> list[av.AudioStream]:
    """The audio tracks, the one to use first: those that can be decoded first, then those meant for everyone, then the
    default one, then most channels."""
    tracks = list(container.streams.audio)

    def rank(track: av.AudioStream) -> tuple:
        coder = track.codec_context
        return (decodes(path, track), not track.disposition & NOT_FOR_ALL, bool(track.disposition & Disposition.default),
                coder.layout.nb_channels if coder is not None else 0)

    return sorted(tracks, key=rank, reverse=True) if len(tracks) > 1 else tracks


def track_name(track: Stream) -> str:
    """What tells a track from the others of its file, such as "eng, aac, 2 channels"."""
    coder: Any = track.codec_context
    language = track.metadata.get("language", "und")
    parts = [] if language == "und" else [language]
    if coder is None:
        return ", ".join([*parts, "of an unknown kind"])
    parts.append(coder.name)
    if track.type == "audio":
        parts.append("1 channel" if coder.layout.nb_channels == 1 else f"{coder.layout.nb_channels} channels")
    elif track.type == "video":
        parts.append(f"{coder.width}x{coder.height}")
    return ", ".join(parts)


def _is_cover(track: av.VideoStream, path: Path) -> bool:
    if track.disposition & NOT_THE_VIDEO:
        return True
    if track.codec_context is None or track.codec_context.name not in PICTURE_CODECS:
        return False
    return track.frames == 1 if track.frames else _lone_picture(path, path.stat().st_mtime_ns, track.index)


@lru_cache(maxsize=64)
def _lone_picture(path: Path, changed: int, index: int) -> bool:
    """Has a track just one packet in the first seconds of its file? `changed` is the file's time stamp."""
    with open_media(path, "video") as container:
        own, first = 0, None
        try:
            for packet in container.demux():
                own += packet.stream_index == index and packet.size > 0
                if own > 1:
                    return False
                time = seconds(packet.dts, packet.stream)
                first = time if first is None else first
                if time is not None and first is not None and time - first > LONE_SECONDS:
                    break
        except (av.error.FFmpegError, IndexError):  # damaged, or a track that only appears further on
            pass  # what was read up to here tells
        return True


def decodes(path: Path, track: Stream) -> bool:
    """Does the beginning of a track give a frame?"""
    return track.codec_context is not None and _shows_a_frame(path, path.stat().st_mtime_ns, track.index)


@lru_cache(maxsize=64)
def _shows_a_frame(path: Path, changed: int, index: int) -> bool:
    with open_media(path, "media file") as container:
        tried = 0
        track = next((stream for stream in container.streams if stream.index == index), None)
        if track is None:  # some formats find tracks only while they are read
            return False
        try:
            for packet in container.demux(track):
                tried += 1
                try:
                    if packet.decode():
                        return True
                except av.error.FFmpegError:
                    pass
                if tried > TRIAL_PACKETS:
                    break
        except (av.error.FFmpegError, IndexError):
            pass
        return False
