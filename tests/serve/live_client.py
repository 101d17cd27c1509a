"""A client of the live protocol, written from docs/live.md alone; for tests and benchmarks."""

import asyncio
import json
import struct
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

ROW, VIDEO, JPEG, KEY, END, IDLE = 1, 2, 3, 1, 2, 4  # kinds, flags


@dataclass(frozen=True)
class Shown:
    """A picture or row: its header, its payload, when it came."""

    kind: int
    flags: int
    epoch: int
    frame: int
    sample: int
    data: bytes
    at: float


@dataclass
class LiveClient:
    """One conversation. `next` is the epoch of the sound that is sent next; `closed` (close code, reason) once it has ended."""

    socket: ClientConnection
    ready: dict[str, Any] = field(default_factory=dict)
    next: int = 0
    shown: list[Shown] = field(default_factory=list)
    told: list[dict[str, Any]] = field(default_factory=list)
    error: dict[str, Any] | None = None
    closed: tuple[int, str] | None = None
    acknowledge: bool = True
    keep: bool = True  # payloads
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    async def say(self, kind: str, **fields: Any) -> None:
        with suppress(ConnectionClosed):  # why, `listen` reads
            await self.socket.send(json.dumps({"type": kind, **fields}))

    async def sound(self, pcm: bytes, step: float = 0.04) -> None:
        """Send it in pieces of 40 ms, one in `step` seconds."""
        size, begin = self.ready["sample_rate"] // 25 * {"s16": 2, "f32": 4}[self.ready["format"]], time.monotonic()
        for k, start in enumerate(range(0, len(pcm), size)):
            await asyncio.sleep(max(0.0, begin + k * step - time.monotonic()))
            await self.socket.send(pcm[start : start + size])

    async def end(self) -> None:
        await self.say("segment.end")
        self.next = (self.next + 1) % 65536

    async def interrupt(self) -> None:
        self.next = (self.next + 1) % 65536
        await self.say("interrupt", epoch=self.next)

    async def until(self, condition: Any, seconds: float = 30.0) -> Any:
        """The first true value of `condition(self)`; TimeoutError if nothing comes for `seconds`."""
        while not (found := condition(self)):
            self.changed.clear()
            await asyncio.wait_for(self.changed.wait(), seconds)
        return found

    async def listen(self) -> None:
        """Take what comes until the socket is closed."""
        with suppress(ConnectionClosed):
            async for message in self.socket:
                if isinstance(message, str):
                    self.told.append(told := json.loads(message))
                    self.ready = told if told["type"] == "session.ready" else self.ready
                    self.error = told if told["type"] == "error" else self.error
                else:
                    header, payload = struct.unpack_from("<BBHIQ", message), message[16:] if self.keep else b""
                    self.shown.append(shown := Shown(*header, payload, time.monotonic()))
                    if shown.kind != ROW and self.acknowledge:
                        await self.say("ack", frame=shown.frame)
                self.changed.set()
        self.closed = self.socket.close_code or 1006, self.socket.close_reason or ""
        self.changed.set()


@asynccontextmanager
async def converse(url: str, token: str | None = None, init: dict[str, Any] | None = None) -> AsyncIterator[LiveClient]:
    """A conversation with the server at `url` (ws://…), ready; `init` are fields of session.init."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    async with connect(f"{url}/v1/live", subprotocols=["talkhead.live.1"], additional_headers=headers, compression=None) as raw:
        client = LiveClient(raw)
        listening = asyncio.create_task(client.listen())
        await client.say("session.init", **(init or {}))
        await client.until(lambda one: one.ready or one.closed)
        yield client
    await listening
