"""Messages between the interface process and a worker: one line of JSON, then raw bytes; nothing is pickled."""

import json
from typing import Any, NamedTuple


class PipeMessage(NamedTuple):
    """`fields` name what is to be done or told; `payload` is sound, a picture, or nothing."""

    fields: dict[str, Any]
    payload: bytes = b""


def pack(message: PipeMessage) -> bytes:
    """For `Connection.send_bytes`."""
    return json.dumps(message.fields, separators=(",", ":")).encode() + b"\n" + message.payload


def unpack(data: bytes) -> PipeMessage:
    """What `Connection.recv_bytes` gives."""
    head, _, payload = data.partition(b"\n")
    return PipeMessage(json.loads(head), payload)
