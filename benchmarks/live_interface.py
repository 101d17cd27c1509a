"""What the interface process costs: python benchmarks/live_interface.py --conversations 32 --picture-kb 20

Fake live workers answer each 40 ms of sound with one row and one picture at once, so that what is measured is the way in between:
WebSocket, checks, pipe, worker, pipe, WebSocket. Prints the time from sound to picture as clients see it, and the processor time
that the interface process takes for one conversation.
"""

import asyncio
import json
import subprocess
import sys
import tempfile
import time
from contextlib import suppress

import click
import numpy as np
import psutil
from websockets.asyncio.client import connect

from serve.protocol import LARGEST_MESSAGE, SUBPROTOCOL, Kind, unpack_header
from serve.settings import ServeSettings

RATE = 16_000


def serve_forever(port: int, workers: int, conversations: int, picture_bytes: int) -> None:
    """In a process of its own."""
    import os

    from serve.app import create_app
    from serve.server import Server, listen

    os.environ["FAKE_PICTURE_BYTES"] = str(picture_bytes)
    with tempfile.TemporaryDirectory() as folder, listen("127.0.0.1", port) as listener:
        settings = ServeSettings({"me": "me"}, folder, device="cpu", live_workers=workers, conversations=conversations)
        Server(create_app(settings, "tests.serve.fake_worker:main", with_jobs=False)).run(sockets=[listener])


async def converse(url: str, seconds: float, start: float, latencies: list[float]) -> None:
    """Speak in real time for `seconds` from the time `start`; adds the seconds from each piece of sound to its picture."""
    piece = bytes(2 * RATE // 25)
    sent: list[float] = []
    async with connect(url, subprotocols=[SUBPROTOCOL], compression=None, max_size=None, proxy=None) as socket:
        await socket.send(json.dumps({"type": "session.init"}))
        await socket.recv()

        async def speak() -> None:
            for k in range(round(seconds * 25)):
                await asyncio.sleep(max(0.0, start + k / 25 - time.monotonic()))
                sent.append(time.monotonic())
                await socket.send(piece)

        speaking = asyncio.create_task(speak())
        for k in range(round(seconds * 25)):
            kind = None
            while kind != Kind.VIDEO:
                header, _ = unpack_header(await socket.recv())
                kind = header.kind
            latencies.append(time.monotonic() - sent[k])
        await speaking


async def measure(url: str, process: psutil.Process, conversations: int, seconds: float) -> None:
    latencies: list[float] = []
    start = time.monotonic() + 2
    talks = [asyncio.create_task(converse(url, seconds, start + k / 25 / conversations, latencies)) for k in range(conversations)]
    await asyncio.sleep(start - time.monotonic())
    before = process.cpu_times()
    await asyncio.gather(*talks)
    after = process.cpu_times()
    used = (after.user + after.system - before.user - before.system) / (time.monotonic() - start)
    median, late = 1000 * np.quantile(latencies, (0.5, 0.99))
    click.echo(f"{conversations} conversations for {seconds:g} s: sound to picture {median:.1f} ms median, {late:.1f} ms 99 %; "
               f"interface process {100 * used:.0f} % of a processor, {100 * used / conversations:.2f} % a conversation")


@click.command()
@click.option("--conversations", default=32, show_default=True)
@click.option("--workers", default=2, show_default=True)
@click.option("--picture-kb", default=20.0, show_default=True)
@click.option("--seconds", default=10.0, show_default=True)
@click.option("--port", default=8771, show_default=True)
def main(conversations: int, workers: int, picture_kb: float, seconds: float, port: int) -> None:
    """The module's docstring."""
    arguments = [port, workers, conversations, int(picture_kb * 1000)]
    server = subprocess.Popen([sys.executable, __file__, "--serve", *map(str, arguments)])
    try:
        url = f"ws://127.0.0.1:{port}/v1/live"
        while not asyncio.run(ready(url)):
            time.sleep(0.2)
        asyncio.run(measure(url, psutil.Process(server.pid), conversations, seconds))
    finally:
        server.terminate()
        server.wait()


async def ready(url: str) -> bool:
    """Whether a conversation begins."""
    with suppress(Exception):
        async with connect(url, subprotocols=[SUBPROTOCOL], max_size=LARGEST_MESSAGE, proxy=None) as socket:
            await socket.send(json.dumps({"type": "session.init"}))
            return json.loads(await socket.recv())["type"] == "session.ready"
    return False


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve_forever(*map(int, sys.argv[2:]))
    else:
        main()
