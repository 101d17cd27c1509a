"""Load on a live service: python benchmarks/live.py AVATAR --conversations 2 --minutes 30

Starts `talkhead serve`, opens conversations, and lets each say a few short utterances and then one that lasts for minutes, sent
as it is spoken. Each client keeps the clock of the sound that it would play, as the page does, and sees which picture comes when.
"""

import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import numpy as np
import psutil

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from shared.media.audio_io import load_audio  # noqa: E402
from tests.serve.live_client import END, IDLE, ROW, LiveClient, Shown, converse  # noqa: E402

RATE, FPS = 16_000, 25
PIECE = RATE // FPS
UTTERANCES, UTTERANCE_SECONDS, REST_SECONDS = 5, 2.0, 1.0
BUFFER_SECONDS = 0.06  # from the first picture to its sound
EDGE_SECONDS = 10.0  # at the start and at the end of the long utterance, over which offsets are taken
SETTLE_SECONDS = 60.0  # before memory is looked at: pictures of the motion track are kept as it is gone through; at most a third


@dataclass
class Talk:
    """What one client saw of its long utterance: when each piece of sound went out, and what came."""

    sent: list[float]
    pictures: list[Shown]
    rows: list[Shown]
    heard_from: float  # time at which sample 0 was heard

    def behind(self) -> np.ndarray:
        """Of each picture, or row if there are none: seconds from when its sample is heard to its coming; below 0 it waits."""
        return np.array([shown.at - self.heard_from - shown.sample / RATE for shown in self.pictures or self.rows])


@dataclass(frozen=True)
class Result:
    """Times in milliseconds, over all conversations; memory in MB, of all the service's processes (proportional set size)."""

    conversations: int
    seconds: float
    mode: str
    first_row_beyond_look_ahead: float
    first_row_worst: float
    first_picture: float
    first_picture_worst: float
    gap_p50: float
    gap_p95: float
    gap_worst: float
    expected: int
    dropped: int
    late: int
    offset_start: float
    offset_end: float
    memory_start: float
    memory_end: float

    @property
    def rows(self) -> list[tuple[str, str]]:
        """The table."""
        return [
            (f"{self.conversations} conversations, {self.mode}", f"{self.seconds:.0f} s"),
            ("first row after its sound, beyond look-ahead: median, worst",
             f"{self.first_row_beyond_look_ahead:.0f}, {self.first_row_worst:.0f} ms"),
            ("first picture after the first sound: median, worst",
             f"{self.first_picture:.0f}, {self.first_picture_worst:.0f} ms"),
            ("gaps between pictures: median, 95 %, worst", f"{self.gap_p50:.0f}, {self.gap_p95:.0f}, {self.gap_worst:.0f} ms"),
            ("pictures dropped", f"{self.dropped} of {self.expected} ({self.dropped / max(self.expected, 1):.2%})"),
            ("pictures that came after their sound was over", f"{self.late}"),
            ("picture against sound, at the start, at the end", f"{self.offset_start:+.0f}, {self.offset_end:+.0f} ms; moved by "
             f"{abs(self.offset_end - self.offset_start) * FPS / 1000:.2f} frames"),
            ("memory of the service, start, end", f"{self.memory_start:.0f}, {self.memory_end:.0f} MB "
             f"({self.memory_end / self.memory_start - 1:+.1%})"),
        ]


@contextmanager
def service(avatar: Path, conversations: int, device: str) -> Iterator[tuple[str, psutil.Process]]:
    """`talkhead serve AVATAR` -> its address once it is ready, its process."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", "from talkhead_main import main; main()", "serve", avatar.absolute(), "--port", "0",
                   "--folder", folder, "--conversations", conversations, "--device", device]
        process = subprocess.Popen([str(part) for part in command], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        try:
            assert process.stdout is not None
            line = next((line for line in process.stdout if line.strip().startswith("Ready: ")), None)
            if line is None:
                raise click.ClickException(f"talkhead serve ended with exit code {process.wait()}")
            yield line.split()[1], psutil.Process(process.pid)
        finally:
            process.terminate()
            process.wait(30)


def memory(process: psutil.Process) -> float:
    """MB of the process and all below it, memory that they share counted once."""
    return sum(one.memory_full_info().pss for one in [process, *process.children(recursive=True)]) / 1e6


def speech(path: Path, seconds: float) -> bytes:
    """16-bit PCM of the sound, over and over."""
    sound = load_audio(path)
    return (np.resize(sound, round(seconds * RATE)) * 32767).astype("<i2").tobytes()


async def speak(client: LiveClient, pcm: bytes) -> Talk:
    """Say one utterance as it is spoken; returns when its last picture or row has come."""
    epoch, begin, sent = client.next, len(client.shown), []
    talk = Talk(sent, [], [], 0.0)
    telling = asyncio.create_task(tell(client, epoch, talk))
    start = time.monotonic()
    for k in range(len(pcm) // (2 * PIECE)):
        await asyncio.sleep(max(0.0, start + (k + 1) / FPS - time.monotonic()))  # a piece is there when it has been said
        await client.socket.send(pcm[2 * PIECE * k : 2 * PIECE * (k + 1)])
        sent.append(time.monotonic())
    await client.end()
    kinds = {ROW} if client.ready["want"] == ["landmarks"] else {2, 3}
    await client.until(lambda one: one.closed or [shown for shown in one.shown[-3:] if shown.epoch == epoch and shown.flags & END
                                                  and shown.kind in kinds], 60)
    telling.cancel()
    if client.closed:
        raise click.ClickException(f"a conversation was ended: {client.error or client.closed}")
    ours = [shown for shown in client.shown[begin:] if shown.epoch == epoch and not shown.flags & IDLE]
    talk.rows, talk.pictures = ([shown for shown in ours if (shown.kind == ROW) == rows] for rows in (True, False))
    talk.heard_from = (talk.pictures or talk.rows)[0].at + BUFFER_SECONDS
    return talk


async def tell(client: LiveClient, epoch: int, talk: Talk) -> None:
    """Once a second, which sample would be heard."""
    first: Shown | None = None
    while True:
        await asyncio.sleep(1)
        first = first or next((shown for shown in client.shown if shown.epoch == epoch and not shown.flags & IDLE), None)
        if first is not None:
            played = (time.monotonic() - first.at - BUFFER_SECONDS) * RATE
            await client.say("stats", epoch=epoch, played=max(0, min(round(played), len(talk.sent) * PIECE)))


async def converse_for(url: str, init: dict, pcm: bytes, delay: float, short: list[Talk], long: list[Talk],
                       begun: asyncio.Event) -> None:
    """One client."""
    await asyncio.sleep(delay)
    async with converse(url, init=init) as client:
        if client.closed:
            raise click.ClickException(f"a conversation was refused: {client.error or client.closed}")
        client.keep = False
        for _ in range(UTTERANCES):
            short.append(await speak(client, pcm[: round(UTTERANCE_SECONDS * RATE) * 2]))
            await asyncio.sleep(REST_SECONDS)
        begun.set()
        long.append(await speak(client, pcm))


async def measure(url: str, process: psutil.Process, conversations: int, pcm: bytes, mode: str, codec: str = "vp8") -> Result:
    """`conversations` side by side with the service at `url` (http://…)."""
    init = {"want": ["landmarks"] if mode == "landmarks" else ["video", "landmarks"], "codec": codec, "sample_rate": RATE}
    short: list[Talk] = []
    long: list[Talk] = []
    begun = asyncio.Event()
    memories: list[float] = []

    async def watch() -> None:
        await begun.wait()
        await asyncio.sleep(min(SETTLE_SECONDS, len(pcm) / 2 / RATE / 3))
        while True:
            memories.append(memory(process))
            await asyncio.sleep(max(1.0, len(pcm) / 2 / RATE / 100))

    watching = asyncio.create_task(watch())
    live = url.replace("http", "ws", 1)
    async with asyncio.TaskGroup() as group:
        for k in range(conversations):
            group.create_task(converse_for(live, {**init, "seed": k}, pcm, k * 0.37, short, long, begun))
    watching.cancel()
    return summary(short, long, mode, memories, await look_ahead(live, init))


async def look_ahead(url: str, init: dict) -> int:
    """Frames of sound that are heard before a mouth moves."""
    async with converse(url, init=init) as client:
        return client.ready["look_ahead_ms"] * FPS // 1000


def summary(short: list[Talk], long: list[Talk], mode: str, memories: list[float], ahead: int) -> Result:
    """What clients saw -> the table's figures."""
    first_rows = [talk.rows[0].at - talk.sent[ahead] for talk in short + long]
    first_pictures = [talk.pictures[0].at - talk.sent[0] for talk in short + long if talk.pictures]
    shown = [talk.pictures or talk.rows for talk in long]
    gaps = np.concatenate([np.diff([one.at for one in some]) for some in shown])
    expected = sum(len(talk.sent) for talk in long)
    edge = EDGE_SECONDS * RATE
    start = np.concatenate([talk.behind()[[one.sample < edge for one in some]] for talk, some in zip(long, shown)])
    end = np.concatenate([talk.behind()[[one.sample >= len(talk.sent) * PIECE - edge for one in some]]
                          for talk, some in zip(long, shown)])
    late = sum(int((talk.behind() > 1 / FPS).sum()) for talk in long)
    none = float("nan")
    return Result(
        len(long), len(long[0].sent) / FPS, mode, 1000 * float(np.median(first_rows)), 1000 * max(first_rows),
        1000 * float(np.median(first_pictures)) if first_pictures else none, 1000 * max(first_pictures, default=none),
        *(1000 * np.quantile(gaps, (0.5, 0.95, 1.0))).tolist(), expected, expected - sum(map(len, shown)), late,
        1000 * float(np.median(start)), 1000 * float(np.median(end)), memories[0] if memories else none,
        float(np.mean(memories[-3:])) if memories else none)


@click.command()
@click.argument("avatar", type=click.Path(exists=True, path_type=Path))
@click.option("--conversations", default=2, show_default=True, type=click.IntRange(1, 256))
@click.option("--minutes", default=1.0, show_default=True, type=click.FloatRange(0.1))
@click.option("--mode", type=click.Choice(["video", "landmarks"]), default="video", show_default=True)
@click.option("--codec", type=click.Choice(["vp8", "h264", "jpeg"]), default="vp8", show_default=True)
@click.option("--device", default="auto", show_default=True)
@click.option("--sound", type=click.Path(exists=True, path_type=Path), default=ROOT / "serve" / "page" / "example.mp3",
              help="What is said, over and over.  [default: the page's example]")
@click.option("--json", "to", type=click.Path(path_type=Path), help="Write the figures here too.")
def main(avatar: Path, conversations: int, minutes: float, mode: str, codec: str, device: str, sound: Path,
         to: Path | None) -> None:
    """Measure AVATAR's live service under load."""
    with service(avatar, conversations, device) as (url, process):
        result = asyncio.run(measure(url, process, conversations, speech(sound, 60 * minutes), mode, codec))
    width = max(len(name) for name, _ in result.rows)
    for name, value in result.rows:
        print(f"{name:{width}}  {value}")
    if to is not None:
        to.write_text(json.dumps(asdict(result), indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
