"""A live worker that draws nothing: keeps to the pipe's messages and answers every 40 ms of sound with one row and one picture.

The seed of a conversation asks for what goes wrong with it, see `Seed`.
"""

import os
import sys
import time
from enum import IntEnum
from multiprocessing.connection import Connection

import numpy as np

from serve.pipe import PipeMessage, pack, unpack
from serve.protocol import ROW, WINDOW, Flag, Header, Kind, SessionInit, pack_header
from serve.settings import ServeSettings
from shared.errors import TalkheadError

PICTURE = bytes(int(os.environ.get("FAKE_PICTURE_BYTES", "1024")))


class Seed(IntEnum):
    """What a conversation with this seed gets."""

    FLOOD = 1001  # megabytes, without pause
    CLOSE = 1002  # ended by the worker at its first sound
    DIE = 1003  # the process ends at its first sound
    HANG = 1004  # the process says nothing any more from its first sound on
    NONSENSE = 1005  # the process writes what is no message


class Talk:
    """One conversation."""

    def __init__(self, init: SessionInit) -> None:
        self.init, self.epoch, self.samples, self.frame = init, 0, 0, 0


def main(connection: Connection, settings_json: str, index: int) -> None:
    settings = ServeSettings.from_json(settings_json)
    assert settings.token is None and "torch" not in sys.modules
    talks: dict[int, Talk] = {}

    def tell(fields, payload=b""):
        connection.send_bytes(pack(PipeMessage(fields, payload)))

    tell({"tell": "up", "avatars": [{"name": name, "width": 64, "height": 64, "look_ahead_ms": 80} for name in settings.avatars],
          "conversations": 2})
    told = time.monotonic()
    rows = pictures = 0
    while True:
        if connection.poll(0.1):
            message = unpack(connection.recv_bytes())
            do, number = message.fields["do"], message.fields.get("conversation")
            if do == "stop":
                return
            if do == "open":
                talk = talks[number] = Talk(SessionInit(**message.fields["init"]))
                tell({"tell": "text", "conversation": number, "message": {
                    "type": "session.ready", "avatar": talk.init.avatar or next(iter(settings.avatars)),
                    "fps": 25, "width": 64, "height": 64, "codec": talk.init.codec, "codec_string": talk.init.codec,
                    "sample_rate": talk.init.sample_rate, "look_ahead_ms": 80, "window": WINDOW, "epoch": 0, "worker": index}})
                if talk.init.seed == Seed.FLOOD:
                    for _ in range(64):
                        tell({"tell": "data", "conversation": number}, bytes(250_000))
            elif do == "close":
                talks.pop(number, None)
            elif (talk := talks.get(number)) is None:
                pass
            elif do == "sound":
                if talk.init.seed == Seed.CLOSE:
                    del talks[number]
                    tell({"tell": "closed", "conversation": number, "code": "input_too_fast", "message": "too much sound waits"})
                    continue
                if talk.init.seed == Seed.DIE:
                    sys.exit(3)
                if talk.init.seed == Seed.HANG:
                    time.sleep(60)
                if talk.init.seed == Seed.NONSENSE:
                    connection.send_bytes(b"\xff nonsense")
                    continue
                before = talk.samples // talk.init.samples_per_frame
                talk.samples += len(message.payload) // talk.init.bytes_per_sample
                for k in range(before, talk.samples // talk.init.samples_per_frame):
                    for kind, payload in ((Kind.ROW, ROW.pack(k, *np.zeros(204))), (Kind.VIDEO, PICTURE)):
                        header = Header(kind, Flag.KEY, talk.epoch, talk.frame, k * talk.init.samples_per_frame)
                        tell({"tell": "data", "conversation": number}, pack_header(header) + payload)
                    talk.frame, rows, pictures = talk.frame + 1, rows + 1, pictures + 1
            elif do == "end":
                if talk.samples:
                    tell({"tell": "text", "conversation": number, "message": {
                        "type": "segment.finished", "epoch": talk.epoch, "position": talk.samples, "interrupted": False}})
                    talk.epoch, talk.samples = talk.epoch + 1, 0
            elif do == "interrupt":
                tell({"tell": "text", "conversation": number, "message": {
                    "type": "segment.finished", "epoch": talk.epoch, "position": talk.samples, "interrupted": True}})
                talk.epoch, talk.samples = message.fields["epoch"], 0
            elif do == "ack":
                tell({"tell": "text", "conversation": number, "message": {"type": "acked", "frame": message.fields["frame"]}})
            elif do == "played":
                tell({"tell": "text", "conversation": number, "message": {"type": "told", **message.fields}})
        if time.monotonic() > told + 0.2:
            told = time.monotonic()
            tell({"tell": "metrics", "rows": rows, "pictures": {"vp8": pictures}, "dropped": {"late": 0, "window": 0},
                  "render_seconds": {"head": [0.25, pictures]}, "batch": [pictures, pictures], "first_picture_seconds": [],
                  "row_latency_seconds": [0.03] * rows, "conversations": len(talks)})
            rows = pictures = 0


def never_up(connection: Connection, settings_json: str, index: int) -> None:
    """Loads for ever."""
    while unpack(connection.recv_bytes()).fields["do"] != "stop":
        pass


def refuses(connection: Connection, settings_json: str, index: int) -> None:
    """Finds something wrong with its avatar."""
    raise TalkheadError("me.avatar is damaged")


def cannot_load(connection: Connection, settings_json: str, index: int) -> None:
    """Ends at once."""
    sys.exit(1)
