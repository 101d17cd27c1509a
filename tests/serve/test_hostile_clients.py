"""Every row of docs/live.md's table of odd clients is tried, with the real service in processes of its own; a conversation beside
them goes on."""

import asyncio
import json
import re
import signal
import socket
import struct
import time
import urllib.request
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.serve.drawn_avatar import Service
from tests.serve.live_client import END, IDLE, KEY, LiveClient, converse

PAGE = Path(__file__).parents[2] / "docs" / "live.md"
SECOND = np.full(16000, 3000, "<i2").tobytes()
Answer = tuple[str, str]  # close code, error code; "" where the conversation goes on
Test = Callable[[Service], Awaitable[Answer]]
GOES_ON = ("", "")
CASES: dict[str, tuple[Test, bool]] = {}  # row's first cell -> test, whether it is slow


def case(name: str, slow: bool = False) -> Callable[[Test], Test]:
    """A row that needs more than messages."""
    def add(test: Test) -> Test:
        CASES[name] = test, slow
        return test

    return add


def says(name: str, *messages: str | bytes, init: dict[str, Any] | None = None) -> None:
    """A row in which a client sends messages after session.init and then waits for the end."""
    async def test(service: Service) -> Answer:
        async with converse(service.live, init=init) as client:
            with suppress(ConnectionClosed):
                for message in messages:
                    await client.socket.send(message)
            return await ended(client)

    CASES[name] = test, False


def begins(name: str, message: str | bytes) -> None:
    """A row in which this is the first message."""
    async def test(service: Service) -> Answer:
        async with connect(f"{service.live}/v1/live", compression=None) as raw:
            await raw.send(message)
            return await heard(raw)

    CASES[name] = test, False


async def ended(client: LiveClient, seconds: float = 20.0) -> Answer:
    """How the service ends the conversation."""
    await client.until(lambda one: one.closed, seconds)
    assert client.closed is not None
    code = client.error["code"] if client.error else ""
    assert client.error is None or (client.closed[1] == code and len(client.error["message"]) > 15)
    return str(client.closed[0]), code


async def heard(raw: Any) -> Answer:
    code = ""
    with suppress(ConnectionClosed):
        async with asyncio.timeout(20):
            async for message in raw:
                told = json.loads(message) if isinstance(message, str) else {}
                code = told["code"] if told.get("type") == "error" else code
    await raw.wait_closed()
    return str(raw.close_code), code


async def goes_on(client: LiveClient) -> Answer:
    """The conversation still speaks what it is told, to the end."""
    epoch = client.next
    await client.sound(SECOND[:16000], step=0)
    await client.end()
    await client.until(lambda one: [shown for shown in one.shown if shown.epoch == epoch and shown.flags & END], 10)
    assert client.error is None
    return GOES_ON


async def refused(url: str, **options: Any) -> Answer:
    """The answer to a handshake: status and code."""
    with pytest.raises(InvalidStatus) as caught:
        async with connect(url, **options):
            pass
    response = caught.value.response
    return f"HTTP {response.status_code}", json.loads(response.body)["error"]["code"]


def ticket(service: Service) -> dict[str, Any]:
    with urllib.request.urlopen(urllib.request.Request(f"{service.url}/v1/live", method="POST")) as answer:
        return json.load(answer)


def open_conversations(service: Service) -> int:
    text = urllib.request.urlopen(f"{service.url}/metrics").read().decode()
    return int(float(re.search(r"^talkhead_live_sessions (\S+)$", text, re.M)[1]))  # type: ignore[index]


begins("text that is not JSON", "hello")
begins("JSON that is not an object", "[1, 2]")
begins("JSON nested 100,000 deep", "[" * 100_000)
begins("NaN in JSON", '{"type": "session.init", "seed": NaN}')
begins("another message before `session.init`", '{"type": "ack", "frame": 0}')
begins("sound before `session.init`", SECOND)
begins("an avatar that is not there", '{"type": "session.init", "avatar": "../../etc/passwd"}')
begins("an unknown field in `session.init`", '{"type": "session.init", "mode": "fast"}')
begins("a `sample_rate` of 44101", '{"type": "session.init", "sample_rate": 44101}')
begins("an unknown codec", '{"type": "session.init", "codec": "av1"}')
says("`session.init` twice", '{"type": "session.init"}')
says("an unknown type", '{"type": "sing"}')
says("a type that is no text", '{"type": 7}')
says("half a sample", SECOND[:333])
says("NaN and infinity as sound", np.array([0, np.nan, np.inf], "<f4").tobytes(), init={"format": "f32"})
says("a message of 2 MB", bytes(2_000_000))
says("a text message of 2 MB", " " * 2_000_000)
says("`ack` of a picture that was not sent", '{"type": "ack", "frame": 4000000}')
says("`ack` of −1", '{"type": "ack", "frame": -1}')
says("`ack` of “1”", '{"type": "ack", "frame": "1"}')
says("`interrupt` with the epoch of sound that has come", SECOND, '{"type": "interrupt", "epoch": 0}')
says("`interrupt` with an older epoch", '{"type": "interrupt", "epoch": 40000}')
says("`interrupt` with epoch 65536", '{"type": "interrupt", "epoch": 65536}')
says("40 s of sound at once", *[SECOND * 8] * 5)
says("`stats` with a number of 30 digits", '{"type": "stats", "epoch": 0, "played": 1' + "0" * 30 + "}")


@case("29 s of sound at once")
async def much(service: Service) -> Answer:
    async with converse(service.live, init={"want": ["landmarks"]}) as client:
        await client.sound(SECOND * 29, step=0)
        await client.until(lambda one: len([row for row in one.shown if not row.flags & IDLE]) > 25)
        await client.interrupt()
        return await goes_on(client)


@case("loudest noise, and full-scale floats of ±10³⁸")
async def loud(service: Service) -> Answer:
    async with converse(service.live, init={"format": "f32"}) as client:
        await client.sound(np.tile(np.array([1e38, -1e38], "<f4"), 2000).tobytes(), step=0)
        await client.end()
        return await goes_on(client)


@case("empty messages of sound, and `segment.end` without any, 100 times")
async def empty(service: Service) -> Answer:
    async with converse(service.live) as client:
        for _ in range(100):
            await client.socket.send(b"")
            await client.say("segment.end")
        return await goes_on(client)


@case("sound one sample at a time")
async def crumbs(service: Service) -> Answer:
    async with converse(service.live, init={"sample_rate": 8000}) as client:
        for _ in range(1500):
            await client.socket.send(SECOND[:2])
        await client.end()
        await client.until(lambda one: [shown for shown in one.shown if shown.flags & END])
        return await goes_on(client)


@case("`interrupt` 1000 times in a row")
async def impatient(service: Service) -> Answer:
    async with converse(service.live) as client:
        for _ in range(1000):
            await client.interrupt()
        return await goes_on(client)


@case("epochs that pass 65535 and begin again")
async def wraps(service: Service) -> Answer:
    async with converse(service.live) as client:
        for epoch in (30_000, 60_000, 65_535):
            client.next = epoch
            await client.say("interrupt", epoch=epoch)
        await goes_on(client)
        assert client.next == 0
        return await goes_on(client)


@case("`stats` of another time: a sample that is hours ahead, one of yesterday's epoch")
async def clock_jumps(service: Service) -> Answer:
    async with converse(service.live) as client:
        sending = asyncio.create_task(client.sound(SECOND * 2))
        for played in (0, 1 << 60, 0, 16000 * 36000):
            await asyncio.sleep(0.2)
            await client.say("stats", epoch=0, played=played, av_offset_ms=-60000)
            await client.say("stats", epoch=777, played=played)
        await sending
        await client.end()
        await client.until(lambda one: [shown for shown in one.shown if shown.flags & END], 10)
        samples = [shown.sample for shown in client.shown if not shown.flags & IDLE]
        assert len(samples) > 30 and samples == sorted(set(samples))
        return await goes_on(client)


@case("reads and never acknowledges")
async def no_acks(service: Service) -> Answer:
    async with converse(service.live) as client:
        await client.until(lambda one: one.shown)
        client.acknowledge = False
        await asyncio.sleep(1.0)
        waiting = client.shown[-1].frame
        await asyncio.sleep(0.3)
        assert client.shown[-1].frame == waiting <= client.ready["window"] + 2
        client.acknowledge = True
        await client.say("ack", frame=waiting)
        await client.until(lambda one: one.shown[-1].frame > waiting)
        assert next(shown for shown in client.shown if shown.frame == waiting + 1).flags & KEY
        return await goes_on(client)


@case("acknowledges slowly, one picture in 160 ms", slow=True)
async def slow_acks(service: Service) -> Answer:
    async with converse(service.live) as client:
        client.acknowledge = False
        speaking = asyncio.create_task(client.sound(SECOND * 4))
        for frame in range(24):
            await client.until(lambda one, frame=frame: one.shown and one.shown[-1].frame >= frame)
            await asyncio.sleep(0.16)
            await client.say("ack", frame=frame)
        samples = [shown.sample for shown in client.shown if not shown.flags & IDLE]
        assert samples == sorted(samples) and max(np.diff(samples)) > 640  # pictures were left out, and the newest came
        await speaking
        client.acknowledge = True
        await client.say("ack", frame=client.shown[-1].frame)
        await client.interrupt()
        return await goes_on(client)


async def unread(service: Service, init: bytes, message: Callable[[int], bytes]) -> float:
    """A conversation whose client reads nothing, and sends `message(k)` every 40 ms -> seconds until the service has ended it."""
    before = open_conversations(service)
    host, port = service.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as raw:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        raw.settimeout(1)
        raw.sendall(b"GET /v1/live HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
                    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n")
        assert raw.recv(12) == b"HTTP/1.1 101"
        raw.sendall(frame(init))
        begin = time.monotonic()
        for k in range(2000):
            await asyncio.sleep(0.04)
            if k % 10 == 9 and open_conversations(service) == before:
                return time.monotonic() - begin
            with suppress(OSError):
                raw.sendall(message(k))
        raise AssertionError("the service let it go on")


@case("never reads, not even pings", slow=True)
async def never_reads(service: Service) -> Answer:
    assert 20 < await unread(service, b'{"type": "session.init", "codec": "jpeg"}', lambda k: b"") < 50
    return "1006", ""


@case("makes the service talk, and never reads", slow=True)
async def flooded(service: Service) -> Answer:
    def more(k: int) -> bytes:
        return frame(b'{"type": "interrupt", "epoch": %d}' % (k + 1)) + frame(SECOND + SECOND[:8000], binary=True)

    assert await unread(service, b'{"type": "session.init", "want": ["landmarks"]}', more) < 20  # no ping is waited for
    return "1006", ""


def frame(payload: bytes, binary: bool = False) -> bytes:
    """A WebSocket message of a client, with a mask of zeros."""
    length = bytes([0x80 | len(payload)]) if len(payload) < 126 else b"\xfe" + struct.pack(">H", len(payload))
    return bytes([0x82 if binary else 0x81]) + length + bytes(4) + payload


async def bad_frame(service: Service, data: bytes) -> Answer:
    async with connect(f"{service.live}/v1/live", compression=None) as raw:
        raw.transport.write(data)
        return await heard(raw)


@case("bytes that are no WebSocket frames")
async def garbage(service: Service) -> Answer:
    return await bad_frame(service, bytes([0xFF]) * 400)


@case("a text message that is not UTF-8")
async def not_utf8(service: Service) -> Answer:
    return await bad_frame(service, frame(b"\xff\xfe{}"))


@case("vanishes in the middle of a word")
async def vanishes(service: Service) -> Answer:
    before = open_conversations(service)
    async with converse(service.live) as client:
        await client.sound(SECOND, step=0)
        await client.until(lambda one: len(one.shown) > 5)
        assert open_conversations(service) == before + 1
        client.socket.transport.abort()
    async with asyncio.timeout(5):
        while open_conversations(service) > before:
            await asyncio.sleep(0.05)
    return "1006", ""


@case("says nothing for 10 s", slow=True)
async def silent(service: Service) -> Answer:
    async with connect(f"{service.live}/v1/live", compression=None) as raw:
        return await heard(raw)


@case("a wrong ticket")
async def wrong_ticket(service: Service) -> Answer:
    url = service.live + ticket(service)["url"]
    return await refused(url, subprotocols=["talkhead.live.1", "ticket." + "x" * 43])


@case("a ticket that was used")
async def used_ticket(service: Service) -> Answer:
    given = ticket(service)
    url, offered = service.live + given["url"], ["talkhead.live.1", "ticket." + given["ticket"]]
    async with connect(url, subprotocols=offered, compression=None) as raw:
        assert raw.subprotocol == "talkhead.live.1"
    return await refused(url, subprotocols=offered)


@case("the ticket of another conversation")
async def others_ticket(service: Service) -> Answer:
    mine, other = ticket(service), ticket(service)
    return await refused(service.live + mine["url"], subprotocols=["talkhead.live.1", "ticket." + other["ticket"]])


@case("a browser without a ticket")
async def no_ticket(service: Service) -> Answer:
    return await refused(f"{service.live}/v1/live", origin=service.url)


@case("a page from elsewhere")
async def foreign(service: Service) -> Answer:
    given = ticket(service)
    return await refused(service.live + given["url"], origin="https://example.org",
                         subprotocols=["talkhead.live.1", "ticket." + given["ticket"]])


@case("another subprotocol")
async def other_protocol(service: Service) -> Answer:
    return await refused(f"{service.live}/v1/live", subprotocols=["talkhead.live.9"])


@case("a worker that stands still for 2 s", slow=True)
async def worker_stops(service: Service) -> Answer:
    worker = service.worker()
    async with converse(service.live, init={"want": ["landmarks"]}) as client:
        sending = asyncio.create_task(client.sound(SECOND * 4))
        await asyncio.sleep(0.5)
        worker.send_signal(signal.SIGSTOP)
        await asyncio.sleep(2)
        worker.send_signal(signal.SIGCONT)
        await sending
        await client.end()
        await client.until(lambda one: [row for row in one.shown if row.flags & END])
        rows = [row.sample for row in client.shown if not row.flags & IDLE]
        assert rows == list(range(0, 64000, 640))  # no speech is lost
        return await goes_on(client)


@case("a worker that is killed")
async def worker_killed(service: Service) -> Answer:
    worker = service.worker()
    async with converse(service.live) as client:
        worker.kill()
        answer = await ended(client)
    async with asyncio.timeout(60):
        while True:
            async with converse(service.live) as client:
                if client.ready:
                    await goes_on(client)
                    return answer
            assert client.error is not None and client.error["code"] == "loading"
            await asyncio.sleep(0.5)


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    service = Service()
    yield service
    service.stop()


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * slow) for name, (_, slow) in CASES.items()])
def test_an_odd_client_gets_what_the_page_says_and_the_others_notice_nothing(service, name):
    async def both() -> Answer:
        if name == "a worker that is killed":
            return await CASES[name][0](service)
        async with converse(service.live) as other:
            answer = await CASES[name][0](service)
            await goes_on(other)
            return answer

    rows = {cells[0]: (cells[2], cells[3].strip("`")) for cells in table()}
    assert asyncio.run(both()) == rows[name]
    assert service.process.poll() is None


def test_the_page_has_a_row_for_each_case_and_no_others():
    assert [cells[0] for cells in table()] == list(CASES)
    assert len(CASES) >= 20


def table() -> list[list[str]]:
    """The cells of docs/live.md's table: client, what happens, close code, error code."""
    part = PAGE.read_text(encoding="utf-8").split("## What odd clients get")[1].split("\n## ")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in part.splitlines() if line.startswith("|")]
    return [["" if cell == "–" else cell for cell in row] for row in rows[2:]]
