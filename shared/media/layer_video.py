"""Pictures with alpha as one small H.264 video: colour in the upper half, alpha in the lower; read in any order.

Colours are full-range BT.709 Y'CbCr 4:4:4, alpha is the luma of the lower half. Halving the chroma alone would cost more
than all else (docs/benchmarks.md).
"""

from collections import OrderedDict
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from types import TracebackType

import av
import numpy as np
from av.video.reformatter import ColorRange

from shared.compiled import cached_njit
from shared.errors import TalkheadError
from shared.files import atomic_path
from shared.landmarks import FPS
from shared.media.container import media_url, open_media

GROUP = 12  # frames from one that is coded by itself to the next: what has to be decoded to show one
CRF = 21  # constant rate factor of x264
GREY = np.float32(128)  # chroma without colour
BT709 = 1
BITEXACT = 0x400  # FFmpeg's AVFMT_FLAG_BITEXACT
RED, BLUE = np.float32(0.2126), np.float32(0.0722)  # shares of luma, ITU-R BT.709
GREEN = np.float32(1) - RED - BLUE
TO_BLUE, TO_RED = np.float32(2) * (1 - BLUE), np.float32(2) * (1 - RED)  # chroma -> difference of the colour from luma


def write_layers(path: Path | str, pictures: Iterable[np.ndarray], width: int, height: int) -> int:
    """Write uint8 (H, W, 4) pictures of straight colour and alpha, atomically -> how many."""
    half = height + height % 2
    count = 0
    with atomic_path(path) as partial, av.open(media_url(partial), "w", format="mp4") as container:
        container.flags |= BITEXACT
        stream = container.add_stream("libx264", rate=Fraction(FPS))
        stream.width, stream.height, stream.pix_fmt = width + width % 2, 2 * half, "yuv444p"
        stream.options = {"crf": str(CRF), "preset": "medium", "tune": "ssim", "threads": "auto", "x264-params":
                          f"keyint={GROUP}:min-keyint={GROUP}:scenecut=0:bframes=0:fullrange=on:colormatrix=bt709"}
        planes = np.full((3, 2 * half, stream.width), GREY, np.uint8)  # Y, Cb, Cr
        for picture in pictures:
            _split(np.ascontiguousarray(picture), planes)
            frame = av.VideoFrame.from_ndarray(planes, format="yuv444p")
            frame.pts, frame.time_base = count, Fraction(1, FPS)
            frame.color_range, frame.colorspace = ColorRange.JPEG, BT709
            frame.color_primaries = frame.color_trc = BT709
            container.mux(stream.encode(frame))
            count += 1
        container.mux(stream.encode(None))
    return count


@cached_njit(fastmath=True)
def _split(rgba, planes):
    """uint8 (H, W, 4) -> planes (3, 2 · half, width) uint8 of colour above alpha; odd edges are repeated."""
    height, width = rgba.shape[:2]
    half = planes.shape[1] // 2
    for y in range(half):
        for x in range(planes.shape[2]):
            red, green, blue, alpha = rgba[min(y, height - 1), min(x, width - 1)]
            luma = RED * red + GREEN * green + BLUE * blue
            planes[0, y, x] = _byte(luma)
            planes[1, y, x] = _byte((blue - luma) / TO_BLUE + GREY)
            planes[2, y, x] = _byte((red - luma) / TO_RED + GREY)
            planes[0, half + y, x] = alpha


@cached_njit(fastmath=True)
def _join(planes, rgba):
    """The reverse of `_split`."""
    half = planes.shape[1] // 2
    for y in range(rgba.shape[0]):
        for x in range(rgba.shape[1]):
            luma = np.float32(planes[0, y, x])
            blue, red = np.float32(planes[1, y, x]) - GREY, np.float32(planes[2, y, x]) - GREY
            rgba[y, x, 0] = _byte(luma + TO_RED * red)
            rgba[y, x, 1] = _byte(luma - (RED * TO_RED * red + BLUE * TO_BLUE * blue) / GREEN)
            rgba[y, x, 2] = _byte(luma + TO_BLUE * blue)
            rgba[y, x, 3] = planes[0, half + y, x]


@cached_njit(inline="always", fastmath=True)
def _byte(value):
    return np.uint8(min(max(value, np.float32(0)), np.float32(255)) + np.float32(0.5))


class LayerVideo:
    """The pictures that `write_layers` wrote, by number; at most about `kept` of them are held decoded."""

    def __init__(self, path: Path | str, width: int, height: int, count: int, kept: int = 4 * GROUP) -> None:
        self.path, self.width, self.height, self.count = Path(path), width, height, count
        self.groups = max(2, kept // GROUP)
        self._decoded: OrderedDict[int, np.ndarray] = OrderedDict()

    def __enter__(self) -> "LayerVideo":
        self._container = open_media(self.path, "video")
        self._stream = self._container.streams.video[0]
        self._stream.codec_context.thread_count = 1
        expected = self.width + self.width % 2, 2 * (self.height + self.height % 2), self.count
        found = self._stream.width, self._stream.height, self._stream.frames
        if found != expected:
            self._container.close()
            raise TalkheadError(f"{self.path}: expected pictures and number {expected}, found {found}")
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Release file, decoder and pictures."""
        self._container.close()
        self._decoded.clear()

    def __getitem__(self, index: int) -> np.ndarray:
        """Picture `index` as uint8 (H, W, 4), straight colour and alpha. Raises TalkheadError if it cannot be decoded."""
        return self.group(index // GROUP)[index % GROUP]

    def group(self, group: int) -> np.ndarray:
        """The pictures (≤ GROUP, H, W, 4) that are decoded together."""
        if group in self._decoded:
            self._decoded.move_to_end(group)
            return self._decoded[group]
        start = group * GROUP
        pictures = np.empty((min(GROUP, self.count - start), self.height, self.width, 4), np.uint8)
        try:
            self._container.seek(round(start / FPS / float(self._stream.time_base or 1)), stream=self._stream)
            for picture, frame in zip(pictures, self._container.decode(self._stream)):
                if round(float(frame.time) * FPS) != start:
                    raise TalkheadError(f"{self.path} is damaged: picture {start} is missing")
                _join(frame.to_ndarray(), picture)
                start += 1
        except av.error.FFmpegError as error:
            raise TalkheadError(f"{self.path} is damaged: picture {start} cannot be decoded") from error
        if start != group * GROUP + len(pictures):
            raise TalkheadError(f"{self.path} is damaged: picture {start} is missing")
        self._decoded[group] = pictures
        if len(self._decoded) > self.groups:
            self._decoded.popitem(last=False)
        return pictures
