"""The process that holds avatars and draws conversations: messages of `pipe` in and out, a tick every 40 ms.

Importing it loads nothing heavy; `main` does, after it has told the libraries how many threads they may use.
"""

import os
import signal
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from serve.pipe import PipeMessage, pack, unpack
from serve.protocol import SessionInit
from serve.settings import ServeSettings
from shared import machine
from shared.landmarks import FPS

if TYPE_CHECKING:
    from serve.engine import LoadedAvatar

TELL_SECONDS = 1.0  # between metrics, by which the interface process knows that this one lives
IDLE_SECONDS = 0.5  # for which it sleeps without conversations
BUSY = 0.8  # of the processor time of a tick, up to which conversations are taken


class PipeSend:
    """`engine.Send` through the pipe."""

    def __init__(self, connection: Connection) -> None:
        self.connection, self.lock = connection, threading.Lock()

    def put(self, fields: dict[str, Any], payload: bytes = b"") -> None:
        with self.lock:
            self.connection.send_bytes(pack(PipeMessage(fields, payload)))

    def text(self, conversation: int, message: dict[str, Any]) -> None:
        self.put({"tell": "text", "conversation": conversation, "message": message})

    def data(self, conversation: int, message: bytes) -> None:
        self.put({"tell": "data", "conversation": conversation}, message)

    def closed(self, conversation: int, code: str, message: str) -> None:
        self.put({"tell": "closed", "conversation": conversation, "code": code, "message": message})


def main(connection: Connection, settings_json: str, index: int) -> None:
    """Serve conversations until the pipe closes or `stop` comes; `index` counts the live workers from 0."""
    settings = ServeSettings.from_json(settings_json)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the interface process is asked to end, and ends this one
    machine.limit_threads()
    share = machine.threads() / (settings.live_workers or 1)
    threads = min(machine.threads(), max(2, int(share)))  # one conversation alone may use two processors
    os.environ.setdefault("NUMBA_NUM_THREADS", str(threads))
    try:
        LiveWorker(connection, settings, index, share).run()
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass  # the interface process is gone


class LiveWorker:
    """Loads avatars when they are first asked for, the first of the settings at once. `share` of the machine's processors is
    its own."""

    def __init__(self, connection: Connection, settings: ServeSettings, index: int, share: float) -> None:
        import torch

        from serve.engine import Engine, LoadedAvatar
        from shared.training import pick_device

        torch.set_num_threads(1)  # numba draws; torch's small steps are slower on several
        self.connection, self.settings, self.send, self.share = connection, settings, PipeSend(connection), share
        device = pick_device(settings.device)
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", index % torch.cuda.device_count())
        self.device = device
        self.engine = Engine(self.send, int(share) if share >= 2 else 0)
        self.avatars: dict[str, LoadedAvatar] = {}
        self.loading: dict[str, list[tuple[int, SessionInit]]] = {}
        self.loaded: list[tuple[str, LoadedAvatar | Exception]] = []  # by the threads that load, until the loop sees it

    def run(self) -> None:
        """The loop."""
        first = next(iter(self.settings.avatars))
        self.avatars[first] = self._load(first)
        capacity = max(1, int(BUSY * self.share / FPS / self.avatars[first].cost()))
        self.send.put({"tell": "up", "avatars": self._describe(), "conversations": capacity})
        told = tick = time.monotonic()
        while True:
            now = time.monotonic()
            wait = 0.0 if self.engine.busy else tick - now if self.engine.clients or self.loading else IDLE_SECONDS
            if self.connection.poll(max(0.0, wait)):
                while self.connection.poll(0):
                    if not self._take(unpack(self.connection.recv_bytes())):
                        return
            self._open_loaded()
            now = time.monotonic()
            self.engine.listen(now)
            if now >= tick:
                if self.engine.clients:
                    self.engine.tick(now)
                tick = max(tick + 1 / FPS, time.monotonic() - 1 / FPS)  # one tick may be late without the next being
            if now >= told + TELL_SECONDS:
                told = now
                self._tell_metrics()

    def _take(self, message: PipeMessage) -> bool:
        """Do what the interface process asks; False to stop."""
        from serve.engine import guarded

        fields, now, engine = message.fields, time.monotonic(), self.engine
        what, number = fields["do"], fields.get("conversation", -1)
        if what == "stop":
            return False
        if what == "open":
            self._open(number, SessionInit(**{**fields["init"], "want": tuple(fields["init"]["want"])}))
        elif what == "sound":
            guarded(engine, number, lambda: engine.sound(number, message.payload, now))
        elif what == "end":
            guarded(engine, number, lambda: engine.end(number))
        elif what == "interrupt":
            guarded(engine, number, lambda: engine.interrupt(number, fields["epoch"]))
        elif what == "ack":
            guarded(engine, number, lambda: engine.acknowledge(number, fields["frame"]))
        elif what == "played":
            guarded(engine, number, lambda: engine.played(number, fields["epoch"], fields["sample"], now))
        elif what == "close":
            engine.close(number)
            for waiting in self.loading.values():
                waiting[:] = [known for known in waiting if known[0] != number]
        else:
            raise ValueError(f"unknown message {fields!r}")
        return True

    def _open(self, number: int, init: SessionInit) -> None:
        name = init.avatar or next(iter(self.settings.avatars))
        if name in self.avatars:
            self.engine.open(number, init, self.avatars[name])
        elif name not in self.settings.avatars:
            self.send.closed(number, "no_avatar", f"no avatar {name[:80]!r} is served here")
        elif name in self.loading:
            self.loading[name].append((number, init))
        else:
            self.loading[name] = [(number, init)]
            threading.Thread(target=self._load_aside, args=(name,), daemon=True).start()

    def _load(self, name: str) -> "LoadedAvatar":
        from serve.engine import LoadedAvatar

        return LoadedAvatar(name, Path(self.settings.avatars[name]), self.device, self.settings.mark)

    def _load_aside(self, name: str) -> None:
        """While others speak, in a thread."""
        try:
            self.loaded.append((name, self._load(name)))
        except Exception as error:  # told to those who wait for it
            self.loaded.append((name, error))

    def _open_loaded(self) -> None:
        while self.loaded:
            name, found = self.loaded.pop()
            waiting = self.loading.pop(name)
            if isinstance(found, Exception):
                for number, _ in waiting:
                    self.send.closed(number, "failed", f"avatar {name} cannot be loaded: {found}")
                continue
            self.avatars[name] = found
            for number, init in waiting:
                self.engine.open(number, init, found)

    def _describe(self) -> list[dict[str, Any]]:
        from shared.avatar import Avatar

        infos = {name: Avatar(path).info for name, path in self.settings.avatars.items()}
        return [{"name": name, "width": info.width, "height": info.height,
                 "look_ahead_ms": self.avatars[name].predictor.look_ahead * 1000 // FPS if name in self.avatars else None}
                for name, info in infos.items()]

    def _tell_metrics(self) -> None:
        from serve.engine import Metrics

        told, self.engine.metrics = self.engine.metrics, Metrics()
        fields = {**vars(told), "pictures": dict(told.pictures), "render_seconds": dict(told.render_seconds)}
        self.send.put({"tell": "metrics", "conversations": len(self.engine.clients), **fields})
