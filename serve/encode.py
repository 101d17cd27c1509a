"""Pictures of one conversation -> VP8 or H.264 access units, or JPEG files, each out as soon as it is in."""

from fractions import Fraction
from typing import NamedTuple

import av
import numpy as np
from av.video.frame import PictureType, VideoFrame

from shared.landmarks import FPS

BITS_PER_PIXEL = 0.2  # of VP8 and H.264: .33 Mb/s at 256², 1.3 Mb/s at 512²
LEAST_BITS = 300_000  # a second, for small pictures
KEY_EVERY = 250  # pictures; a client that joins or skips asks for one anyway
JPEG_QUALITY = 85


class Unit(NamedTuple):
    """`key`: can be decoded by itself."""

    data: bytes
    key: bool


class Encoder:
    """Encodes uint8 (height, width, 3) RGB with `codec` "vp8", "h264" or "jpeg"; odd sizes get one more row or column."""

    def __init__(self, codec: str, width: int, height: int) -> None:
        self.codec, self.width, self.height = codec, width + width % 2, height + height % 2
        self._count = 0
        self._context = None if codec == "jpeg" else self._open()

    def _open(self) -> av.VideoCodecContext:
        context = av.VideoCodecContext.create("libvpx" if self.codec == "vp8" else "libx264", "w")
        context.width, context.height, context.pix_fmt = self.width, self.height, "yuv420p"
        context.time_base, context.framerate = Fraction(1, FPS), Fraction(FPS)
        context.bit_rate = max(LEAST_BITS, round(BITS_PER_PIXEL * FPS * self.width * self.height))
        context.gop_size, context.thread_count = KEY_EVERY, 1
        if self.codec == "vp8":
            context.options = {"deadline": "realtime", "cpu-used": "8", "lag-in-frames": "0", "error-resilient": "1"}
        else:
            context.options = {"preset": "ultrafast", "tune": "zerolatency", "profile": "baseline",
                               "x264-params": "repeat-headers=1:annexb=1"}
        return context

    @property
    def codec_string(self) -> str:
        """As WebCodecs names it; H.264 baseline of the level that the size needs."""
        if self.codec != "h264":
            return self.codec
        blocks = -(-self.width // 16) * -(-self.height // 16)
        return "avc1.42E0" + ("1F" if blocks <= 3600 else "28" if blocks <= 8192 else "33")

    def encode(self, picture: np.ndarray, key: bool = False) -> Unit:
        """The next picture; `key` if it must be decodable by itself."""
        if self._context is None:
            return Unit(jpeg(picture), True)
        height, width = picture.shape[:2]
        if (height, width) != (self.height, self.width):
            picture = np.pad(picture, ((0, self.height - height), (0, self.width - width), (0, 0)), "edge")
        frame = VideoFrame.from_ndarray(picture, "rgb24").reformat(format="yuv420p")
        frame.pts, frame.time_base = self._count, Fraction(1, FPS)
        frame.pict_type = PictureType.I if key or not self._count else PictureType.NONE
        self._count += 1
        packets = self._context.encode(frame)
        return Unit(b"".join(bytes(packet) for packet in packets), any(packet.is_keyframe for packet in packets))


def jpeg(picture: np.ndarray) -> bytes:
    """uint8 (H,W,3) RGB -> a JPEG file."""
    import cv2  # only here; a conversation in VP8 does without

    done, data = cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    if not done:
        raise RuntimeError("OpenCV encoded no JPEG")
    return data.tobytes()
