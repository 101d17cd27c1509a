"""The live protocol `talkhead.live.1`: what a client and the server send each other over one WebSocket. docs/live.md says it in
prose; this file is what both the interface process and the live workers go by. No torch here."""

import json
import math
import struct
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import Any, NamedTuple

from shared.landmarks import FPS

SUBPROTOCOL = "talkhead.live.1"
WINDOW = 12  # pictures that may be on their way without an acknowledgement
LARGEST_MESSAGE = 1 << 20  # bytes that a client may send at once
QUEUE_SECONDS = 30.0  # of speech that may wait to be spoken
LOWEST_RATE, HIGHEST_RATE = 8000, 192_000  # Hz
EPOCHS = 1 << 16  # epochs are counted modulo this
HEADER = struct.Struct("<BBHIQ")  # kind, flags, epoch, frame, sample
ROW = struct.Struct("<I204f")  # frame of the motion track, 68 × 3 coordinates in metres
CODECS = ("vp8", "h264", "jpeg")
FORMATS = {"s16": 2, "f32": 4}  # bytes a sample, little-endian, mono
WANTS = ("video", "landmarks")


class Kind(IntEnum):
    """What a binary message of the server holds."""

    ROW = 1
    VIDEO = 2  # an access unit of VP8 or H.264 (Annex B)
    JPEG = 3


class Flag(IntFlag):
    """Of a binary message of the server."""

    KEY = 1  # can be decoded without those before
    END = 2  # the last of its epoch's speech
    IDLE = 4  # shows no speech; its sample is where speech goes on


class ProtocolError(Exception):
    """A client's message that cannot be taken; `code` is for programs, the text for people."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Header(NamedTuple):
    """What stands before each picture and row: `sample` of the epoch's speech, at the client's rate, is what it shows."""

    kind: Kind
    flags: Flag
    epoch: int
    frame: int
    sample: int


def pack_header(header: Header) -> bytes:
    """16 bytes, little-endian."""
    return HEADER.pack(*header)


def unpack_header(data: bytes) -> tuple[Header, bytes]:
    """A binary message of the server -> header, payload."""
    kind, flags, epoch, frame, sample = HEADER.unpack_from(data)
    return Header(Kind(kind), Flag(flags), epoch, frame, sample), data[HEADER.size :]


def is_newer(epoch: int, than: int) -> bool:
    """Whether `epoch` comes after `than`, both modulo EPOCHS."""
    return 0 < (epoch - than) % EPOCHS < EPOCHS // 2


@dataclass(frozen=True)
class SessionInit:
    """What a conversation is to be; `avatar` None is the server's first. `seed` is of blinks and brows."""

    avatar: str | None = None
    want: tuple[str, ...] = ("video",)
    codec: str = "vp8"
    sample_rate: int = 16_000
    format: str = "s16"
    seed: int = 0

    @property
    def samples_per_frame(self) -> int:
        return self.sample_rate // FPS

    @property
    def bytes_per_sample(self) -> int:
        return FORMATS[self.format]


def parse_control(text: str) -> dict[str, Any]:
    """A text message of the client -> its fields, `type` among them. Raises ProtocolError."""
    try:
        message = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise ProtocolError("bad_json", "a text message should be one JSON object") from error
    if not isinstance(message, dict) or not isinstance(message.get("type"), str):
        raise ProtocolError("bad_message", 'a text message should be a JSON object with a "type"')
    return message


def parse_init(message: dict[str, Any]) -> SessionInit:
    """The fields of `session.init`. Raises ProtocolError that shows the value."""
    if message["type"] != "session.init":
        raise ProtocolError("no_session", f'the first message should be "session.init", found {message["type"][:40]!r}')
    known = {"type", *SessionInit.__dataclass_fields__}
    if unknown := sorted(message.keys() - known):
        raise ProtocolError("bad_init", f"session.init has no field {unknown[0][:40]!r}")
    avatar = message.get("avatar")
    if avatar is not None and not isinstance(avatar, str):
        raise ProtocolError("bad_init", f"avatar should be a name, found {_shown(avatar)}")
    want = message.get("want", ["video"])
    if not isinstance(want, list) or not want or any(name not in WANTS for name in want):
        raise ProtocolError("bad_init", f"want should be a list of {' and '.join(WANTS)}, found {_shown(want)}")
    return SessionInit(avatar, tuple(name for name in WANTS if name in want),
                       _choice(message, "codec", CODECS, "vp8"),
                       _rate(message.get("sample_rate", 16_000)),
                       _choice(message, "format", tuple(FORMATS), "s16"),
                       whole(message, "seed", 0, (1 << 32) - 1, default=0, code="bad_init"))


def whole(message: dict[str, Any], name: str, low: int, high: int, default: int | None = None, code: str = "bad_message") -> int:
    """The whole number `name` of a message. Raises ProtocolError for anything else or out of range."""
    value = message.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ProtocolError(code, f"{name} should be a whole number from {low} to {high}, found {_shown(value)}")
    return value


def number(message: dict[str, Any], name: str, low: float, high: float) -> float:
    """The number `name` of a message. Raises ProtocolError for anything else or out of range."""
    value = message.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or not low <= value <= high:
        raise ProtocolError("bad_message", f"{name} should be a number from {low:g} to {high:g}, found {_shown(value)}")
    return float(value)


def _choice(message: dict[str, Any], name: str, choices: tuple[str, ...], default: str) -> str:
    value = message.get(name, default)
    if value not in choices:
        raise ProtocolError("bad_init", f"{name} should be {' or '.join(choices)}, found {_shown(value)}")
    return value


def _rate(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not LOWEST_RATE <= value <= HIGHEST_RATE or value % FPS:
        raise ProtocolError("bad_init", f"sample_rate should be a multiple of {FPS} from {LOWEST_RATE} to {HIGHEST_RATE}, found "
                            f"{_shown(value)}")
    return value


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"


def _no_constant(name: str) -> None:
    raise ValueError(name)
