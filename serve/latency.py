"""How fast an avatar answers on this machine: the real live workers, driven in real time, without network and browser.

What is measured ends with the message that would go to the client: sound features, landmarks, drawing, marks and encoding are
in it; the client's own buffer is not.
"""

import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection, wait

import numpy as np

from serve import live_worker
from serve.pipe import PipeMessage, pack, unpack
from serve.protocol import Flag, Kind, unpack_header
from serve.settings import ServeSettings
from shared.errors import TalkheadError
from shared.landmarks import FPS, SAMPLE_RATE, SAMPLES_PER_FRAME

START_SECONDS = 300.0  # for loading; the first time a GPU's code is compiled
LATE_MS = 400.0  # a conversation is not kept up with if a picture comes later than this after its look-ahead
FALLS_BEHIND_MS = 40.0  # nor if pictures come later and later by this much in one run
DROPPED = 0.002  # share of pictures that may be missing; a machine that does other work misses one now and then
WARM_SECONDS = 3.0  # of speech before anything is measured
SETTLE_SECONDS = 1.0  # at the start of each run, not counted


@dataclass
class Heard:
    """What one conversation got: (seconds since it began, sample that it shows) of each picture or row of speech."""

    began: float = 0.0
    pictures: list[tuple[float, int]] = field(default_factory=list)
    rows: list[tuple[float, int]] = field(default_factory=list)


@dataclass(frozen=True)
class Run:
    """Of conversations side by side, each speaking for `seconds`. Latencies are milliseconds after the last sound that a picture
    or row depends on had come; `offset_ms` is how much later the last second's pictures came than the first's."""

    conversations: int
    seconds: float
    first_ms: float
    median_ms: float
    worst_ms: float
    missing: float
    offset_ms: float

    @property
    def kept_up(self) -> bool:
        return self.missing <= DROPPED and self.worst_ms <= LATE_MS and self.offset_ms <= FALLS_BEHIND_MS


class Bench:
    """Live workers of the avatars named, without the interface process. Use as a context manager's value, see `workers`."""

    def __init__(self, pipes: list[Connection], look_ahead_ms: float, avatars: Sequence[str]) -> None:
        self.pipes, self.look_ahead_ms, self.avatars, self._next = pipes, look_ahead_ms, avatars, 0
        self._owner: dict[int, Connection] = {}  # the pipe of each conversation

    def speak(self, sound: np.ndarray, conversations: int, seconds: float, want: str = "video", codec: str = "vp8",
              progress: Callable[[float], None] = lambda seconds: None) -> Run:
        """`conversations`, of each avatar in turn, speak `sound` (n,) 16 kHz in real time, over and over, 40 ms at a time,
        started at different times within a tick. Raises TalkheadError if a worker ends."""
        known: dict[int, Heard] = {}
        for k in range(conversations):
            self._next += 1
            self._owner[self._next] = self.pipes[k % len(self.pipes)]
            known[self._next] = Heard()
            init = {"avatar": self.avatars[k % len(self.avatars)], "want": [want], "codec": codec, "sample_rate": SAMPLE_RATE,
                    "format": "s16", "seed": k}
            self._send(self._next, "open", init=init)
        ready: set[int] = set()
        self._until(known, time.monotonic() + START_SECONDS, lambda number, message: ready.add(number),
                    lambda: len(ready) == len(known))
        pieces = [piece.tobytes() for piece in
                  np.split((sound[: len(sound) // SAMPLES_PER_FRAME * SAMPLES_PER_FRAME] * 32767).astype("<i2"),
                           len(sound) // SAMPLES_PER_FRAME)]
        start = time.monotonic() + 0.1
        due = sorted((start + (k / len(known) + frame) / FPS, number, frame) for k, number in enumerate(known)
                     for frame in range(round(seconds * FPS)))
        for when, number, frame in due:
            self._until(known, when)
            if frame == 0:
                known[number].began = when
            self._send(number, "sound", pieces[frame % len(pieces)])
            progress(when - start)
        self._until(known, due[-1][0] + 1.0)
        for number in known:
            self._send(number, "close")
        return self._summary(list(known.values()), seconds, want)

    def _send(self, number: int, what: str, payload: bytes = b"", **fields: object) -> None:
        self._owner[number].send_bytes(pack(PipeMessage({"do": what, "conversation": number, **fields}, payload)))

    def _until(self, known: dict[int, Heard], when: float,
               told: Callable[[int, dict], None] = lambda number, message: None,
               enough: Callable[[], bool] = lambda: False) -> None:
        """Take messages until the time `when`."""
        while not enough() and (left := when - time.monotonic()) > 0:
            for pipe in wait(self.pipes, left):
                try:
                    message = unpack(pipe.recv_bytes())  # type: ignore[union-attr]
                except EOFError as error:
                    raise TalkheadError("a live worker ended while it was measured") from error
                self._take(known, message, told)

    def _take(self, known: dict[int, Heard], message: PipeMessage,
              told: Callable[[int, dict], None]) -> None:
        now, what, number = time.monotonic(), message.fields["tell"], message.fields.get("conversation", -1)
        if what == "closed":
            raise TalkheadError(f"a conversation ended: {message.fields['message']}")
        if number not in known:
            return
        if what == "text":
            told(number, message.fields["message"])
        elif what == "data":
            header, _ = unpack_header(message.payload)
            heard = known[number]
            if header.kind != Kind.ROW:
                self._send(number, "ack", frame=header.frame)
            if not header.flags & Flag.IDLE:
                (heard.rows if header.kind == Kind.ROW else heard.pictures).append((now - heard.began, header.sample))

    def _summary(self, conversations: list[Heard], seconds: float, want: str) -> Run:
        first, late, missing, offsets = [], [], 0, []
        expected = round((seconds - SETTLE_SECONDS) * FPS) - round(self.look_ahead_ms / 1000 * FPS)
        for heard in conversations:
            got = np.array(heard.rows if want == "landmarks" else heard.pictures).reshape(-1, 2)
            # the sound of a row's frame and of its look-ahead was complete when its last piece of 40 ms had been sent
            behind = 1000 * (got[:, 0] - got[:, 1] / SAMPLE_RATE) - self.look_ahead_ms
            counted = got[:, 0] >= SETTLE_SECONDS + self.look_ahead_ms / 1000
            counted &= got[:, 1] >= SETTLE_SECONDS * SAMPLE_RATE
            missing += max(0, expected - int(counted.sum()))
            if len(got):
                first.append(behind[0])
            if counted.any():
                late.append(behind[counted])
                samples = got[counted, 1]
                early = behind[counted][samples < samples.min() + SAMPLE_RATE]
                final = behind[counted][samples > samples.max() - SAMPLE_RATE]
                offsets.append(float(np.median(final) - np.median(early)))
        if not late:
            return Run(len(conversations), seconds, np.inf, np.inf, np.inf, 1.0, np.inf)
        every = np.concatenate(late)
        return Run(len(conversations), seconds, float(np.max(first)), float(np.median(every)), float(np.quantile(every, 0.999)),
                   missing / (expected * len(conversations)), max(offsets, key=abs))


@contextmanager
def workers(settings: ServeSettings, count: int) -> Iterator[Bench]:
    """Start `count` live workers -> a Bench once they are ready. Raises TalkheadError if they do not start."""
    context = multiprocessing.get_context("spawn")
    pipes, processes = [], []
    try:
        for index in range(count):
            ours, theirs = context.Pipe()
            process = context.Process(target=live_worker.main, args=(theirs, settings.to_json(), index), daemon=True)
            process.start()
            theirs.close()
            pipes.append(ours)
            processes.append(process)
        look_ahead = 0.0
        for pipe in pipes:
            if not pipe.poll(START_SECONDS):
                raise TalkheadError(f"a live worker did not start within {START_SECONDS:.0f} s")
            try:
                look_ahead = unpack(pipe.recv_bytes()).fields["avatars"][0]["look_ahead_ms"]
            except EOFError as error:
                raise TalkheadError("a live worker ended while it started; what it printed says why") from error
        yield Bench(pipes, look_ahead, list(settings.avatars))
    finally:
        for pipe in pipes:
            pipe.close()
        for process in processes:
            process.join(5)
            if process.is_alive():
                process.kill()


def most_conversations(run: Callable[[int], Run], limit: int = 256) -> Run:
    """The run of most conversations that is kept up with, found by doubling and halving; that of one if not even it is."""
    found: dict[int, Run] = {}

    def fits(count: int) -> bool:
        found[count] = run(count)
        return found[count].kept_up

    low, high = 0, 1
    while high <= limit and fits(high):
        low, high = high, 2 * high
    while high <= limit and high - low > max(1, low // 8):
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return found[max(low, 1)]


def _count(bench: Bench, sound: np.ndarray, seconds: float, want: str, codec: str, conversations: int) -> Run:
    return bench.speak(sound, conversations, seconds, want, codec)


def report(settings: ServeSettings, sound: np.ndarray, codec: str, seconds: float, minute: float,
           conversations: int | None = None) -> Iterator[tuple[str, Run]]:
    """What `talkhead latency` prints: (what it is, the run that shows it), each as soon as it is measured.

    Runs of `seconds` find out how many conversations are kept up with; one of `minute` seconds shows the offset. With
    `conversations` there is one run only, of so many and of `minute` seconds.
    """
    count = settings.live_workers or 1
    with workers(settings, count) as bench:
        # the first pictures of a process, and of an avatar in it, are slower
        bench.speak(sound, max(count * len(settings.avatars), conversations or 1), WARM_SECONDS, codec=codec)
        if conversations:
            yield f"{codec} pictures", bench.speak(sound, conversations, minute, codec=codec)
            return
        yield "landmarks alone", bench.speak(sound, 1, seconds, "landmarks")
        yield f"{codec} pictures", bench.speak(sound, 1, seconds, codec=codec)
        for want, what in (("landmarks", "landmarks alone"), ("video", f"{codec} pictures")):
            yield f"most conversations, {what}", most_conversations(partial(_count, bench, sound, seconds, want, codec))
        yield f"after {minute:g} s", bench.speak(sound, 1, minute, codec=codec)
