"""The processes that hold avatars and draw conversations: started, watched, replaced.

Each has two threads here, one that reads its pipe and one that writes, so that a slow worker never stops the event loop. All
methods are called on the loop.
"""

import asyncio
import importlib
import logging
import multiprocessing
import os
import re
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Protocol

from serve.metrics import Metrics
from serve.pipe import PipeMessage, pack, unpack
from serve.protocol import SessionInit
from serve.settings import ServeSettings
from shared import machine
from shared.errors import TalkheadError

DEVICES = Path("/dev")
MAIN = "serve.live_worker:main"
SILENCE_SECONDS = 15.0  # after which a worker that says nothing is taken to hang
LOADING_SECONDS = 900.0  # for a worker to be up
WATCH_SECONDS = 1.0  # between looks
STOP_SECONDS = 5.0  # for a worker to end by itself
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0  # before a worker that ended is started again, doubled each time
STEADY_SECONDS = 60.0  # after which a worker counts as one that works
LARGEST_TOLD = 64 << 20  # bytes of one message of a worker
HOPELESS = 3  # failures of all workers before any was up, after which nobody need wait
REFUSED = 2  # exit code of a worker that can do nothing with what it was given
MOST_ON_GPU, MOST_ON_CPU = 8, 4  # workers of one GPU, and of all processors, unless the settings say otherwise
log = logging.getLogger("talkhead.serve")


class Listener(Protocol):
    """Who is told what a worker says of one conversation."""

    def text(self, message: dict[str, Any]) -> None: ...
    def data(self, message: bytes) -> None: ...
    def closed(self, code: str, message: str) -> None: ...
    def lost(self) -> None: ...


class NoWorker(Exception):
    """No live worker is up."""


class Conversation:
    """One conversation's way to its worker."""

    def __init__(self, worker: "_Worker", number: int) -> None:
        self._worker, self.number = worker, number

    async def send(self, do: str, payload: bytes = b"", **fields: Any) -> None:
        """Returns when the worker's pipe has taken the message, or the worker is gone: a conversation has one on its way."""
        await self._worker.send({"do": do, "conversation": self.number, **fields}, payload)

    def close(self) -> None:
        """Nobody listens any more."""
        if self._worker.listeners.pop(self.number, None) is not None:
            self._worker.post({"do": "close", "conversation": self.number})


class LiveWorkers:
    """As many as the settings say, or `worker_count`; `main` names the function that each runs, as "module:function"."""

    def __init__(self, settings: ServeSettings, metrics: Metrics, main: str = MAIN, *, silence: float = SILENCE_SECONDS,
                 pause: float = FIRST_PAUSE) -> None:
        self.count = settings.live_workers or worker_count(settings.device)
        # what a worker is told; secrets are none of its business
        self.settings = replace(settings, live_workers=self.count, token=None, tls_cert=None, tls_key=None)
        self.metrics, self.main, self.silence, self.pause = metrics, main, silence, pause
        self.failures = [0] * self.count  # in a row
        self._workers: dict[int, _Worker] = {}
        self._numbers = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopping = False

    async def start(self) -> None:
        """Start all; they are up later."""
        await asyncio.gather(*(self._launch(index) for index in range(self.count)))
        self._run(self._watch())

    async def stop(self) -> None:
        """End all; conversations that are still open are lost."""
        self._stopping = True
        for task in self._tasks:
            task.cancel()
        workers = list(self._workers.values())
        for worker in workers:
            worker.post({"do": "stop"})
        await asyncio.gather(*(asyncio.to_thread(worker.end, STOP_SECONDS) for worker in workers))

    @property
    def up(self) -> "list[_Worker]":
        """Those that take conversations."""
        return [worker for worker in self._workers.values() if worker.up]

    @property
    def avatars(self) -> list[dict[str, Any]]:
        """What a worker told of its avatars: name, width, height, …; empty while none is up."""
        return next((worker.avatars for worker in self.up), [])

    @property
    def limit(self) -> int:
        """Conversations that may be open at once."""
        if self.settings.conversations is not None:
            return self.settings.conversations
        return sum(worker.capacity for worker in self.up)

    def open(self, init: SessionInit, listener: Listener) -> Conversation:
        """A new conversation, with the worker that has fewest. Raises NoWorker."""
        worker = min(self.up, key=lambda one: len(one.listeners), default=None)
        if worker is None:
            raise NoWorker
        self._numbers += 1
        worker.listeners[self._numbers] = listener
        worker.post({"do": "open", "conversation": self._numbers, "init": asdict(init)})
        return Conversation(worker, self._numbers)

    @property
    def hopeless(self) -> bool:
        """Whether no worker is up or will be, as far as one can tell."""
        return not self.up and min(self.failures) >= HOPELESS

    async def _launch(self, index: int) -> None:
        loop = asyncio.get_running_loop()
        process, connection = await asyncio.to_thread(_spawn, self.main, self.settings.to_json(), index)
        self._workers[index] = _Worker(index, process, connection, loop, self._told, self._lost)
        if self._stopping:
            self._workers[index].process.kill()

    def _told(self, worker: "_Worker", message: PipeMessage) -> None:
        if self._workers.get(worker.index) is not worker:
            return
        worker.heard = worker.loop.time()
        try:
            self._take(worker, message)
        except (KeyError, TypeError, ValueError) as error:
            log.error("live worker %d says what cannot be understood (%r)", worker.index, error)
            worker.process.kill()
            self._lost(worker)

    def _take(self, worker: "_Worker", message: PipeMessage) -> None:
        fields = message.fields
        what = fields["tell"]
        if what == "metrics":
            self.metrics.take_live(fields)
        elif what == "up":
            worker.up, worker.avatars = True, list(fields["avatars"])
            worker.capacity = int(fields["conversations"])
        else:
            listener = worker.listeners.get(fields["conversation"])
            if listener is None:
                return  # it has gone
            if what == "text":
                listener.text(fields["message"])
            elif what == "data":
                listener.data(message.payload)
            elif what == "closed":
                del worker.listeners[fields["conversation"]]
                listener.closed(str(fields["code"]), str(fields["message"]))
            else:
                raise ValueError(what)

    def _lost(self, worker: "_Worker") -> None:
        """A worker has ended, or is to be given up."""
        if self._workers.get(worker.index) is not worker:
            return
        del self._workers[worker.index]
        listeners, worker.listeners = worker.listeners, {}
        worker.forget()
        for listener in listeners.values():
            listener.lost()
        if not self._stopping:
            steady = worker.up and worker.loop.time() - worker.started > STEADY_SECONDS
            self.failures[worker.index] = 1 if steady else self.failures[worker.index] + 1
            self.metrics.worker_restarts.add()
            self._run(self._replace(worker))

    async def _replace(self, worker: "_Worker") -> None:
        code = await asyncio.to_thread(worker.end, STOP_SECONDS)
        if code == REFUSED and not worker.up:
            self.failures[worker.index] += HOPELESS  # and will be so the next time
        delay = min(LONGEST_PAUSE, self.pause * 2 ** (self.failures[worker.index] - 1))
        log.error("live worker %d has ended (exit code %s); it is started again in %.0f s", worker.index, code, delay)
        while not self._stopping:
            await asyncio.sleep(delay)
            try:
                return await self._launch(worker.index)
            except OSError as error:  # no memory or no process to be had
                delay = LONGEST_PAUSE
                log.error("live worker %d cannot be started: %s", worker.index, error)

    async def _watch(self) -> None:
        """Give up workers that hang. After a time in which this process itself stood still, nobody is blamed for his silence."""
        loop = asyncio.get_running_loop()
        looked = loop.time()
        while True:
            await asyncio.sleep(min(WATCH_SECONDS, self.silence / 4))
            stood_still, looked = loop.time() - looked > self.silence / 3 + WATCH_SECONDS, loop.time()
            for worker in list(self._workers.values()):
                if stood_still:
                    worker.heard = looked
                elif looked - worker.heard > (self.silence if worker.up else LOADING_SECONDS):
                    log.error("live worker %d has said nothing for %.0f s", worker.index, looked - worker.heard)
                    worker.process.kill()
                    self._lost(worker)

    def _run(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


class _Worker:
    """One process. `told` and `lost` are called on the loop."""

    def __init__(self, index: int, process: Any, connection: Connection, loop: asyncio.AbstractEventLoop,
                 told: "Callable[[_Worker, PipeMessage], None]", lost: "Callable[[_Worker], None]") -> None:
        self.index, self.process, self.connection, self.loop = index, process, connection, loop
        self.started = self.heard = loop.time()
        self.up, self.capacity = False, 0
        self.avatars: list[dict[str, Any]] = []
        self.listeners: dict[int, Listener] = {}
        self._told, self._lost = told, lost
        self._outgoing: SimpleQueue[tuple[bytes, asyncio.Future[None] | None] | None] = SimpleQueue()
        self._written: set[asyncio.Future[None]] = set()  # to be set when their message is in the pipe
        self._gone = False
        for work in (self._read, self._write):
            threading.Thread(target=work, name=f"live worker {index}", daemon=True).start()

    def post(self, fields: dict[str, Any], payload: bytes = b"") -> None:
        """Send without waiting."""
        if not self._gone:
            self._outgoing.put((pack(PipeMessage(fields, payload)), None))

    async def send(self, fields: dict[str, Any], payload: bytes = b"") -> None:
        """Send, and wait until it is in the pipe or the worker is gone."""
        if self._gone:
            return
        written: asyncio.Future[None] = self.loop.create_future()
        self._written.add(written)
        self._outgoing.put((pack(PipeMessage(fields, payload)), written))
        try:
            await written
        finally:
            self._written.discard(written)

    def forget(self) -> None:
        """Nothing more is sent; nobody waits for it."""
        self._gone = True
        self._outgoing.put(None)
        for written in self._written:
            _done(written)

    def end(self, seconds: float) -> int | None:
        """Wait for the process to end, at most `seconds`, then kill it; returns its exit code. Called in a thread."""
        self.process.join(seconds)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        return self.process.exitcode

    def _read(self) -> None:
        with suppress(EOFError, OSError, ValueError, RuntimeError):  # it has ended, or talks nonsense; or the loop has ended
            while True:
                self.loop.call_soon_threadsafe(self._told, self, unpack(self.connection.recv_bytes(LARGEST_TOLD)))
        with suppress(RuntimeError):
            self.loop.call_soon_threadsafe(self._lost, self)

    def _write(self) -> None:
        with suppress(OSError, ValueError, RuntimeError):  # it has ended, which `_read` notices too
            while (item := self._outgoing.get()) is not None:
                self.connection.send_bytes(item[0])
                if item[1] is not None:
                    self.loop.call_soon_threadsafe(_done, item[1])


def gpu_count(device: str) -> int:
    """GPUs that workers may use, found without loading CUDA: those the container shows, less what CUDA_VISIBLE_DEVICES hides."""
    if device not in ("auto", "cuda"):
        return 0 if device == "cpu" else 1
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([name for name in visible.split(",") if name.strip() not in ("", "-1")])
    return len([path for path in DEVICES.glob("nvidia*") if re.fullmatch(r"nvidia\d+", path.name)])


def worker_count(device: str) -> int:
    """Several share a GPU, as what keeps one back is Python on one processor: sound features, marks, encoding."""
    gpus = gpu_count(device)
    if not gpus:
        return min(MOST_ON_CPU, machine.threads())
    return gpus * max(1, min(MOST_ON_GPU, machine.threads() // (2 * gpus)))


def _spawn(main: str, settings_json: str, index: int) -> tuple[Any, Connection]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_run_worker, args=(main, theirs, settings_json, index), name=f"live worker {index}",
                              daemon=True)
    process.start()
    theirs.close()  # so that the pipe ends when the process does
    return process, ours


def _run_worker(main: str, connection: Connection, settings_json: str, index: int) -> None:
    """In the new process: being asked to end is for the interface process, which ends this one; without it, this one ends too."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()
    module, _, function = main.partition(":")
    try:
        getattr(importlib.import_module(module), function)(connection, settings_json, index)
    except TalkheadError as error:
        print(f"live worker {index}: {error}", file=sys.stderr)
        sys.exit(REFUSED)


def _end_with(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)


def _done(written: "asyncio.Future[None]") -> None:
    if not written.done():
        written.set_result(None)
