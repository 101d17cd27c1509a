"""Video files and pictures: decoding by timestamps to exactly 25 fps, H.264 with sound and lossless grey writing."""

import math
import re
import struct
import warnings
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from threading import local
from types import TracebackType
from typing import Any

import av
import numpy as np
from av.sidedata.sidedata import Type as SideDataType
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter
from PIL import Image, ImageOps

from shared.errors import TalkheadError
from shared.files import atomic_path
from shared.landmarks import FPS
from shared.media import tone_map
from shared.media.container import (
    check_gap,
    decode,
    is_picture,
    media_url,
    open_media,
    seconds,
    time_zero,
    timestamps_anywhere,
    track_name,
    video_tracks,
)
from shared.media.deinterlace import deinterlaced
from shared.media.sound_track import SoundTrack, add_sound
from shared.media.spool import DecodedSound

JUMP_FROM = 60  # frames between two wanted ones from which jumping to each is faster than reading all frames between
SEEK_MARGIN = 0.1  # seconds
LARGEST_PICTURE = 8192**2  # pixels
FASTEST = 120  # frames a second of a file
NTSC = [Fraction(1000 * rate, 1001) for rate in (24, 30, 48, 60, 120)]
NTSC_NEAR = Fraction(1, 100)  # frames a second
# of metadata that MP4 has places for
MP4_NAMES = {"title", "artist", "album", "comment", "copyright", "date", "description", "genre", "encoder"}
BITEXACT = 0x400  # FFmpeg's AVFMT_FLAG_BITEXACT
LONGEST_FRAME = 60.0  # seconds; a frame that should be shown for longer has a damaged duration
BT709 = 1  # FFmpeg's number of its primaries, its transfer curve and its matrix
MATRICES = {Colorspace.ITU709: BT709, Colorspace.ITU601: 6}  # FFmpeg's numbers of matrices, by those of its scaler
DOLBY_VISION = ("dvh1", "dvhe", "dva1", "dvav", "dav1")  # track types whose colours may be Dolby's own
EXPOSURE_WIDTH = 128  # pixels of the pictures that HDR's brightness is measured in
EXPOSURE_LOOKS = 60  # such pictures, spread over the file


@dataclass(frozen=True)
class VideoInfo:
    """What a file says of itself; width and height are of the upright picture with square pixels, start is the time of the
    first frame after time zero; where it is not seekable, each frame is reached by decoding all before it. The picture is
    shown upright by mirroring it left to right, if `mirrored`, and then turning it by `rotation` degrees counter-clockwise.
    `own_length` tells whether duration (seconds from time zero) is the video track's own or that of the longest track;
    notes are sentences on what was chosen or converted."""

    width: int
    height: int
    fps: float
    duration: float
    rotation: int
    has_audio: bool
    frames_estimate: int
    codec: str
    start: float
    seekable: bool
    mirrored: bool = False
    interlaced: bool = False
    own_length: bool = True
    notes: tuple[str, ...] = ()


def _open_video(path: Path) -> av.container.InputContainer:
    container = open_media(path, "video")
    try:
        if is_picture(container):
            raise TalkheadError(f"{path} is a picture, not a video; name the recording that shows the person")
        if not video_tracks(container, path):
            raise TalkheadError(f"{path} has no video track; name the recording that shows the person")
        video_stream(container, path)
    except TalkheadError:
        container.close()
        raise
    return container


def video_stream(container: av.container.InputContainer, path: Path) -> av.VideoStream:
    """The video track that is shown: no cover or thumbnail, of several the default or the largest one. Raises TalkheadError
    if it cannot be decoded."""
    track = video_tracks(container, path)[0]
    if track.codec_context is None:
        raise TalkheadError(f"{path}: the video track ({track_name(track)}) cannot be decoded; convert the file")
    return track


def pixel_aspect(stream: av.VideoStream) -> float:
    """Width of a pixel in its heights: 1, but for anamorphic video such as HDV and DV."""
    aspect = float(stream.sample_aspect_ratio or 1)
    return aspect if 0.25 < aspect < 4 else 1.0  # beyond, the file is wrong


def orientation(frame: av.VideoFrame) -> tuple[bool, int]:
    """How a frame is shown upright: mirrored left to right or not, then turned by 0 … 3 quarters counter-clockwise.

    The display matrix of the file is taken whole; one with other angles or scales counts as the nearest of these eight.
    """
    sides: Any = frame.side_data
    found = sides.get(SideDataType.DISPLAYMATRIX)
    if found is None:
        return False, 0
    a, b, _, c, d = struct.unpack("=5i", bytes(found)[:20])
    matrix = np.array([[a, c], [b, d]], float)  # shown = matrix @ stored, x right and y down
    quarter, mirror = np.array([[0, 1], [-1, 0]]), np.diag([-1, 1])
    choices = [(mirrored, turns) for mirrored in (False, True) for turns in range(4)]
    fits = [(matrix * (np.linalg.matrix_power(quarter, turns) @ (mirror if mirrored else np.eye(2)))).sum()
            for mirrored, turns in choices]
    return choices[int(np.argmax(fits))]


def probe(path: Path | str) -> VideoInfo:
    """Read the header and the first frame. Raises TalkheadError if it is no video or no frame can be decoded."""
    path = Path(path)
    with _open_video(path) as container:
        stream = video_stream(container, path)
        try:
            first = next(decode(container, stream))
        except (StopIteration, av.error.FFmpegError, ValueError) as error:
            raise TalkheadError(f"{path}: no video frame can be decoded; get the file whole, or convert it") from error
        mirrored, turns = orientation(first)
        width, height = _square(first, pixel_aspect(stream))
        width, height = (height, width) if turns % 2 else (width, height)
        fps = float(stream.average_rate or stream.guessed_rate or FPS)
        zero = time_zero(container, path)
        start = max(0.0, float(first.time) - zero) if first.time is not None else 0.0
        own = seconds(stream.duration, stream)
        if own is not None:
            duration = start + own
        else:
            tag = _tag_seconds(stream.metadata.get("DURATION", ""))
            # a clock that starts late counts in both
            duration = max(0.0, (tag or float(container.duration or 0) / av.time_base) - max(zero, 0.0))
            own = tag
        return VideoInfo(width, height, fps, duration, 90 * turns, bool(container.streams.audio),
                         max(1, round(duration * FPS)), stream.codec_context.name, start, not timestamps_anywhere(container),
                         mirrored, first.interlaced_frame, own is not None, tuple(_notes(container, stream, first, path)))


def _tag_seconds(text: str) -> float | None:
    """Matroska's "00:00:05.120000000" -> seconds."""
    found = re.fullmatch(r"(\d+):(\d+):(\d+(?:\.\d+)?)", text.strip())
    return 3600 * int(found[1]) + 60 * int(found[2]) + float(found[3]) if found else None


def _notes(container: av.container.InputContainer, stream: av.VideoStream, first: av.VideoFrame, path: Path) -> Iterator[str]:
    tracks = [track for track in container.streams.video if track in video_tracks(container, path)]
    if len(tracks) > 1:
        yield f"the file has {len(tracks)} video tracks; number {tracks.index(stream) + 1} ({track_name(stream)}) is used"
    found = tone_map.kind(first)
    if found is not None:
        yield tone_map.note(found)
    elif stream.codec_context.codec_tag in DOLBY_VISION and first.color_trc in (0, tone_map.UNSPECIFIED):
        yield "the video is Dolby Vision without a standard base, its colours will be wrong; convert it to standard dynamic range"


def _square(frame: av.VideoFrame, aspect: float) -> tuple[int, int]:
    """Width and height of a frame with square pixels; nothing shrinks."""
    return round(frame.width * max(aspect, 1)), round(frame.height * max(1 / aspect, 1))


class _Upright:
    """Frames of one file -> uint8 (H, W, 3) RGB: upright, with square pixels, in standard colours."""

    def __init__(self, path: Path, aspect: float) -> None:
        self._path, self._aspect = path, aspect
        self._converter = VideoReformatter()  # of all frames, as starting one takes longer than converting a frame
        self._mapper: tone_map.ToneMapper | None = None

    def __call__(self, frame: av.VideoFrame) -> np.ndarray:
        width, height = _square(frame, self._aspect)
        found = tone_map.kind(frame)
        if found is None:
            rgb = self._converter.reformat(frame, format="rgb24", width=width, height=height).to_ndarray()
        else:
            if self._mapper is None or self._mapper.found != found:
                self._mapper = tone_map.ToneMapper(found, *_exposure(self._path, self._path.stat().st_mtime_ns, found))
            wide = self._converter.reformat(frame, format="rgb48le", width=width, height=height)
            rgb = self._mapper.convert(wide).to_ndarray(format="rgb24")
        mirrored, turns = orientation(frame)
        if mirrored:
            rgb = rgb[:, ::-1]
        return np.ascontiguousarray(np.rot90(rgb, turns))


@lru_cache(maxsize=8)
def _exposure(path: Path, changed: int, found: tone_map.Kind) -> tuple[float, float]:
    """White and peak of a file of high dynamic range, from key frames spread over it; `changed` is its time stamp."""
    with _open_video(path) as container:
        stream = video_stream(container, path)
        stream.codec_context.skip_frame = "NONKEY"
        apart = float(container.duration or 0) / av.time_base / EXPOSURE_LOOKS
        pictures: list[np.ndarray] = []
        last = -math.inf
        for frame in decode(container, stream):
            if frame.time is not None and frame.time - last < apart:
                continue
            last = frame.time or 0.0
            height = max(1, round(EXPOSURE_WIDTH * frame.height / frame.width))
            small = frame.reformat(width=EXPOSURE_WIDTH, height=height, format="rgb48le").to_ndarray()
            pictures.append(small / 65535)
        return tone_map.exposure(pictures, found) if pictures else (tone_map.DIFFUSE_WHITE,) * 2


def read_video(path: Path | str, fps: float = FPS, start: int = 0, stop: int | None = None,
               only: Container[int] | None = None) -> Iterator[np.ndarray]:
    """Yield uint8 (H, W, 3) RGB at exactly `fps`, frame k being the source frame nearest to k/fps seconds.

    Works from timestamps, time zero being the start of the file's first track: variable frame rates are resampled, a late
    first frame is repeated from time zero so that sound stays in step. Interlaced frames are made whole, high dynamic range
    and wide gamuts converted to BT.709, display matrices applied and pixels made square. In place of frames too damaged to
    decode the one before is shown; where nothing more can be read, the video ends. Only frames start ≤ k < stop are
    yielded, the decoder seeking to the key frame before them, and of these those in `only`; the others cost only their
    decoding. Raises TalkheadError.
    """
    path = Path(path)
    with _open_video(path) as container:
        stream = video_stream(container, path)
        stream.thread_type = "AUTO"
        zero, upright = time_zero(container, path), _Upright(path, pixel_aspect(stream))
        if start / fps > SEEK_MARGIN and not timestamps_anywhere(container):
            _seek(container, stream, zero + start / fps)
        held: av.VideoFrame | None = None
        held_time = 0.0
        held_rgb: np.ndarray | None = None
        half = 0.5 / fps
        end = 0.0
        k = start
        size: tuple[int, ...] | None = None

        def picture() -> np.ndarray:
            nonlocal held_rgb, size
            if held_rgb is None:
                assert held is not None
                held_rgb = upright(held)
                size = size or held_rgb.shape[:2]
                if held_rgb.shape[:2] != size:
                    (h, w), (height, width) = size, held_rgb.shape[:2]
                    raise TalkheadError(f"{path}: the picture size changes from {w}x{h} to {width}x{height}; cut the video "
                                        "there, or convert it to one size")
            return held_rgb

        try:
            for frame in deinterlaced(decode(container, stream), stream.time_base or Fraction(1, av.time_base)):
                time = end if frame.time is None else float(frame.time) - zero
                check_gap(path, time - (start / fps if held is None else held_time))
                # the frame nearest to k/fps: show the held one for every tick that is closer to it than to this one
                while held is not None and k / fps < (held_time + time) / 2 - 1e-6:
                    if k == stop:
                        return
                    if only is None or k in only:
                        yield picture()
                    k += 1
                held, held_time, held_rgb = frame, time, None
                duration = float(frame.duration * frame.time_base) if frame.duration and frame.time_base else 1 / fps
                end = time + (duration if duration < LONGEST_FRAME else 1 / fps)
        except (av.error.FFmpegError, ValueError) as error:
            raise TalkheadError(f"{path}: the video track ({track_name(stream)}) cannot be decoded; convert the file") from error
        if held is None:
            raise TalkheadError(f"{path}: no video frame can be decoded")
        while (k == 0 or k / fps < end - half) and k != stop:
            if only is None or k in only:
                yield picture()
            k += 1


def read_frames_at(path: Path | str, wanted: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the frames of the ascending numbers `wanted` (n,), as `read_video`; where they lie far apart, by jumping to each."""
    if len(wanted) > 1 and np.diff(wanted).max() > JUMP_FROM:
        for t in wanted:
            yield from read_video(path, start=int(t), stop=int(t) + 1)
    elif len(wanted):
        yield from read_video(path, start=int(wanted[0]), stop=int(wanted[-1]) + 1, only=set(wanted.tolist()))


def _seek(container, stream, time: float) -> None:
    """Go to the last key frame at or before `time` seconds of the file's own clock; where a format cannot seek, stay."""
    # a frame's own time may lie half a frame after the tick that shows it
    target = int((time - SEEK_MARGIN) / stream.time_base)
    try:
        container.seek(max(target, stream.start_time or 0), stream=stream)
    except av.error.FFmpegError:
        pass


def frame_rate(value: str | float | Fraction) -> Fraction:
    """Frames a second as a fraction: 25, "30000/1001", or a decimal number, of which 23.98, 29.97, 59.94 and 119.88 are NTSC's.

    Raises TalkheadError for what is no number from 1 to 120.
    """
    try:
        rate = Fraction(str(value).strip())
    except (ValueError, ZeroDivisionError):
        rate = Fraction(0)
    if not 1 <= rate <= FASTEST:
        raise TalkheadError(f"--fps {value}: expected 1 to {FASTEST} frames a second, such as 24, 29.97 or 30000/1001")
    ntsc = Fraction(1000 * round(rate * 1001 / 1000), 1001)
    return ntsc if ntsc in NTSC and rate.denominator > 1 and abs(rate - ntsc) < NTSC_NEAR else rate


def nearest_frame(k: int, fps: Fraction) -> int:
    """Of frames at 25 fps, the number of the one nearest in time to frame k of a video of `fps`; the earlier of two."""
    return math.ceil(Fraction(FPS * k) / fps - Fraction(1, 2))


class VideoWriter:
    """H.264 (yuv420p, faststart) with optional sound, under its final name only when it is complete.

    Use as a context manager; `write` takes uint8 (H, W, 3) RGB frames, 25 a second. Their colours are those of BT.709, and the
    file says so; `matrix` is that of the conversion to YUV, which the file says, too. Finished videos have BT.709's, which
    players expect; what is learned from has BT.601's, whose luma keeps more of a mouth's red through the subsampling of colours.
    A file of another `fps` shows at k/fps seconds the frame that is nearest in time, and ends less than 1/fps after the last.
    `audio` is (n,) float32 at 16 kHz, a file or a DecodedSound; it goes in as it is where that can be (see
    `sound_track.add_sound`), else as AAC (.mkv: FLAC), and is cut to the length of the video. Odd sizes are refused, since
    yuv420p cannot hold them. `metadata` is written into the container. `finish` is called with the complete file before it is
    moved to its final name, and may change it.
    """

    endings: tuple[str, ...] = (".mp4", ".mov", ".mkv")
    channels = 3

    def __init__(self, path: Path | str, width: int, height: int, fps: Fraction | int = FPS,
                 audio: np.ndarray | Path | DecodedSound | None = None, crf: int = 18, preset: str = "veryfast",
                 matrix: Colorspace = Colorspace.ITU709, metadata: Mapping[str, str] | None = None,
                 finish: Callable[[Path], None] | None = None) -> None:
        self.path = Path(path)
        self.ending = self.path.suffix.lower()
        if self.ending not in self.endings:
            *others, last = self.endings
            raise TalkheadError(f"{self.path}: the video's name should end in {', '.join(others)} or {last}")
        if width % 2 or height % 2:
            raise TalkheadError(f"{self.path}: width and height should be even, found {width}x{height}")
        self.width, self.height, self.fps, self.audio, self.crf, self.preset = width, height, Fraction(fps), audio, crf, preset
        self.matrix, self.metadata, self.finish = matrix, dict(metadata or {}), finish
        self._converters = local()  # one for each thread
        self.count = 0  # of frames given to write
        self.shown = 0  # of frames in the file

    def __enter__(self) -> "VideoWriter":
        self._atomic = atomic_path(self.path)
        self._partial = self._atomic.__enter__()
        try:
            self._container = av.open(media_url(self._partial), "w", options=self._options())
            self._container.metadata.update(self.metadata)
            self._stream = self._add_picture()
            coder = self._stream.codec_context
            coder.color_primaries = coder.color_trc = BT709
            coder.colorspace = MATRICES[self.matrix]
            coder.color_range = ColorRange.MPEG
            self._sound: SoundTrack | None = None
            if self.audio is not None:
                self._sound = add_sound(self._container, self.ending, self.audio, self._sound_codec())
        except BaseException as error:
            self._atomic.__exit__(type(error), error, error.__traceback__)
            raise
        return self

    def _options(self) -> dict[str, str]:
        """What the container is opened with."""
        if self.ending not in {".mp4", ".mov"}:
            return {}
        # MP4 has places for some names; the others need Apple's list of keys, where players do not look for those
        own_keys = "+use_metadata_tags" if self.metadata.keys() - MP4_NAMES else ""
        return {"movflags": f"+faststart{own_keys}"}

    def _add_picture(self) -> av.VideoStream:
        """Open the encoder of the picture."""
        stream = self._container.add_stream("libx264", rate=self.fps)
        stream.width, stream.height, stream.pix_fmt = self.width, self.height, "yuv420p"
        stream.options = {"crf": str(self.crf), "preset": self.preset}
        return stream

    def _sound_codec(self) -> str:
        """The encoder of sound that cannot be copied."""
        return "flac" if self.ending == ".mkv" else "aac"  # older readers of .mkv do not take off AAC's delay

    def write(self, pixels: np.ndarray) -> None:
        """Append one uint8 (H, W, channels) frame."""
        self.append(self.converted(pixels))

    def converted(self, pixels: np.ndarray) -> av.VideoFrame:
        """A uint8 (H, W, channels) frame as `append` takes it; several threads may call this at once."""
        if pixels.shape != (self.height, self.width, self.channels) or pixels.dtype != np.uint8:
            raise TalkheadError(f"{self.path}: expected a uint8 frame {(self.height, self.width, self.channels)}, "
                                f"found {pixels.dtype} {pixels.shape}")
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24" if self.channels == 3 else "rgba")
        if not hasattr(self._converters, "own"):
            self._converters.own = VideoReformatter()
        frame = self._converters.own.reformat(frame, format=self._stream.pix_fmt, dst_colorspace=self.matrix,
                                              dst_color_range=ColorRange.MPEG)
        frame.color_primaries = frame.color_trc = BT709
        frame.time_base = 1 / self.fps
        return frame

    def append(self, frame: av.VideoFrame) -> None:
        """Append one frame that `converted` made."""
        self._frame = frame
        while nearest_frame(self.shown, self.fps) <= self.count:
            self._show()
        self.count += 1
        self._write_sound(last=False)

    def _show(self) -> None:
        self._frame.pts = self.shown
        self._container.mux(self._stream.encode(self._frame))
        self.shown += 1

    def _write_sound(self, last: bool) -> None:
        if self._sound is not None:
            self._sound.write(self.shown / self.fps, last)

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None,
                 trace: TracebackType | None) -> None:
        try:
            if kind is None:
                if self.count == 0:
                    raise TalkheadError(f"{self.path}: a video needs at least one frame")
                while self.shown * FPS < self.count * self.fps:
                    self._show()
                self._container.mux(self._stream.encode(None))
                self._write_sound(last=True)
            self._container.close()
            if kind is None and self.finish is not None:
                self.finish(self._partial)
        except BaseException as error:
            self._atomic.__exit__(type(error), error, error.__traceback__)
            raise
        self._atomic.__exit__(kind, value, trace)


class TransparentVideoWriter(VideoWriter):
    """Video with straight alpha: ProRes 4444 in .mov, VP9 in .webm; otherwise as VideoWriter.

    `write` takes uint8 (H, W, 4) RGBA frames. ProRes keeps colours and alpha nearly to the bit and opens in editors; VP9 is a
    twentieth of the size and plays in browsers. Sound that cannot be copied becomes 16-bit PCM beside ProRes, Opus beside VP9.
    """

    endings = (".mov", ".webm")
    channels = 4

    def _add_picture(self) -> av.VideoStream:
        prores = self.ending == ".mov"
        stream = self._container.add_stream("prores_ks" if prores else "libvpx-vp9", rate=self.fps)
        stream.width, stream.height = self.width, self.height
        stream.pix_fmt = "yuva444p10le" if prores else "yuva420p"
        # without bits a second, crf alone decides; alternate reference frames cannot carry alpha
        stream.options = ({"profile": "4444", "vendor": "apl0"} if prores else
                          {"crf": str(self.crf), "b": "0", "auto-alt-ref": "0", "row-mt": "1", "cpu-used": "4",
                           "deadline": "good"})
        return stream

    def _sound_codec(self) -> str:
        return "pcm_s16le" if self.ending == ".mov" else "libopus"


class GrayVideoWriter:
    """Lossless one-byte-a-pixel video (FFV1 in Matroska), for labels and mattes; atomic like VideoWriter."""

    def __init__(self, path: Path | str, width: int, height: int) -> None:
        self.path, self.width, self.height, self.count = Path(path), width, height, 0

    def __enter__(self) -> "GrayVideoWriter":
        self._atomic = atomic_path(self.path)
        partial = self._atomic.__enter__()
        try:
            self._container = av.open(media_url(partial), "w", format="matroska")
        except BaseException as error:
            self._atomic.__exit__(type(error), error, error.__traceback__)
            raise
        self._stream = self._container.add_stream("ffv1", rate=Fraction(FPS))
        self._stream.width, self._stream.height, self._stream.pix_fmt = self.width, self.height, "gray"
        self._stream.options = {"level": "3", "g": "1"}
        self._container.flags |= BITEXACT  # no random number of the file: the same frames make the same bytes
        return self

    def write(self, gray: np.ndarray) -> None:
        """Append one uint8 (H, W) frame."""
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(gray), format="gray")
        frame.pts = self.count
        frame.time_base = Fraction(1, FPS)
        self.count += 1
        for packet in self._stream.encode(frame):
            self._container.mux(packet)

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None,
                 trace: TracebackType | None) -> None:
        try:
            if kind is None:
                for packet in self._stream.encode(None):
                    self._container.mux(packet)
            self._container.close()
        except BaseException as error:
            self._atomic.__exit__(type(error), error, error.__traceback__)
            raise
        self._atomic.__exit__(kind, value, trace)


def read_gray_video(path: Path | str, start: int = 0, stop: int | None = None) -> Iterator[np.ndarray]:
    """Yield the uint8 (H, W) frames start ≤ k < stop that GrayVideoWriter wrote, bit for bit."""
    path = Path(path)
    with _open_video(path) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        if start:
            _seek(container, stream, start / FPS)
        for frame in container.decode(stream):
            k = round(float(frame.time) * FPS)
            if stop is not None and k >= stop:
                return
            if k >= start:
                yield frame.to_ndarray(format="gray")


def join_gray_videos(parts: Sequence[Path], target: Path | str) -> None:
    """Write the frames of `parts`, all of one size, one after the other into `target`, without coding them again."""
    with atomic_path(target) as partial, av.open(media_url(partial), "w", format="matroska") as whole:
        stream = None
        count = 0
        for part in parts:
            with _open_video(part) as piece:
                source = piece.streams.video[0]
                if stream is None:
                    stream = whole.add_stream_from_template(source)
                    stream.time_base = Fraction(1, FPS)
                    whole.flags |= BITEXACT
                for packet in piece.demux(source):
                    if packet.dts is None:
                        continue
                    packet.stream = stream
                    packet.time_base = Fraction(1, FPS)
                    packet.pts = packet.dts = count
                    packet.duration = 1
                    whole.mux(packet)
                    count += 1


def read_transparent_video(path: Path | str) -> Iterator[np.ndarray]:
    """Yield the uint8 (H, W, 4) RGBA frames, straight alpha, that TransparentVideoWriter wrote. Raises TalkheadError."""
    path = Path(path)
    with _open_video(path) as container:
        stream = container.streams.video[0]
        # FFmpeg's own VP9 decoder leaves alpha out
        decoder = av.CodecContext.create("libvpx-vp9", "r") if stream.codec_context.name == "vp9" else stream.codec_context
        try:
            for packet in container.demux(stream):
                for frame in decoder.decode(packet):
                    yield frame.to_ndarray(format="rgba")
        except av.error.FFmpegError as error:
            raise TalkheadError(f"{path}: the video track ({track_name(stream)}) cannot be decoded; convert the file") from error


def write_png(path: Path | str, image: np.ndarray) -> None:
    """Write uint8 (H, W, 3) RGB, (H, W, 4) RGBA or (H, W) grey as PNG, atomically."""
    with atomic_path(path) as partial:
        Image.fromarray(image).save(partial, format="PNG")


def _read_picture(path: Path | str, mode: str) -> np.ndarray:
    """Read a picture, upright, as uint8 (H, W, channels of `mode`); its size is looked at before anything is allocated."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                if image.width * image.height > LARGEST_PICTURE:
                    raise TalkheadError(f"{path} tells of a picture of {image.width}x{image.height}, which is too large")
                return np.array(ImageOps.exif_transpose(image).convert(mode))
    except TalkheadError:
        raise
    except FileNotFoundError:
        raise TalkheadError(f"{path} does not exist") from None
    except Exception as error:  # what Pillow raises on damaged files is of many types
        raise TalkheadError(f"{path} is not a readable picture; copy or make it again") from error


def read_png(path: Path | str) -> np.ndarray:
    """Read a picture as uint8 (H, W, 3) RGB. Raises TalkheadError if it is missing or no picture."""
    return _read_picture(path, "RGB")


def read_rgba(path: Path | str, size: tuple[int, int]) -> np.ndarray:
    """Read a picture with straight alpha as uint8 (H, W, 4). Raises TalkheadError unless it is (H, W) = `size`."""
    rgba = _read_picture(path, "RGBA")
    if rgba.shape[:2] != size:
        raise TalkheadError(f"{path}: expected a picture of {size[1]}x{size[0]}, found {rgba.shape[1]}x{rgba.shape[0]}")
    return rgba
