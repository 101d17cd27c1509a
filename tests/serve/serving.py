"""A running service with fake live workers, and clients that may say anything."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPSConnection
from pathlib import Path
from typing import Any, NamedTuple

from websockets.sync.client import ClientConnection, connect

from serve.app import create_app
from serve.protocol import SUBPROTOCOL
from serve.server import Server, listen
from serve.settings import ServeSettings

FAKE = "tests.serve.fake_worker:main"
TOKEN = "a-token-of-the-tests"


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        """Of an error, whose shape is checked."""
        error = self.json["error"]
        assert set(error) == {"message", "type", "param", "code"} and error["message"]
        return error["code"]


class Service(NamedTuple):
    """`app` runs in a thread of its own, on `port`."""

    app: Any
    server: Server
    port: int
    thread: threading.Thread

    def ask(self, method: str, path: str, body: Any = None, *, tls: Any = None, **headers: str) -> Answer:
        """One request; `_` in the names of headers are `-`."""
        one = HTTPSConnection("127.0.0.1", self.port, timeout=20, context=tls) if tls else HTTPConnection(
            "127.0.0.1", self.port, timeout=20)
        try:
            one.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
            answer = one.getresponse()
            return Answer(answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read())
        finally:
            one.close()

    def raw(self, data: bytes, seconds: float = 10.0) -> bytes:
        """All that comes back for these bytes until the service closes the connection, or for so long."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=seconds) as one:
            one.sendall(data)
            return read_all(one)

    def socket(self, path: str = "/v1/live", ticket: str | None = None, **more: Any) -> ClientConnection:
        """An open WebSocket."""
        protocols = [SUBPROTOCOL] + ([f"ticket.{ticket}"] if ticket else [])
        more = {"subprotocols": protocols, "compression": None, "proxy": None, "close_timeout": 1, **more}
        return connect(f"ws://127.0.0.1:{self.port}{path}", **more).__enter__()

    def talk(self, path: str = "/v1/live", **init: Any) -> tuple[ClientConnection, dict[str, Any]]:
        """A WebSocket with a conversation in it, and its session.ready."""
        one = self.socket(path)
        one.send(json.dumps({"type": "session.init", **init}))
        return one, json.loads(one.recv(timeout=10))

    def wait_ready(self) -> None:
        wait_for(lambda: self.ask("GET", "/readyz").status == 200, 30.0)

    def wait_up(self) -> None:
        wait_for(lambda: self.app.state.workers.up, 30.0)


def read_all(one: socket.socket) -> bytes:
    found = b""
    try:
        while piece := one.recv(1 << 16):
            found += piece
    except (TimeoutError, ConnectionError):
        pass
    return found


def wait_for(done: Any, seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def of_type(one: ClientConnection, kind: str, seconds: float = 10.0) -> dict[str, Any]:
    """The next text message of this type; others are read over."""
    end = time.monotonic() + seconds
    while True:
        message = one.recv(timeout=max(0.01, end - time.monotonic()))
        if isinstance(message, str) and json.loads(message)["type"] == kind:
            return json.loads(message)


@contextmanager
def serving(folder: Path, main: str = FAKE, **changes: Any) -> Iterator[Service]:
    """A service whose avatars are `me` and `you`; it is up when its port answers, and ready a little later."""
    settings = ServeSettings(**{"avatars": {"me": "/nowhere/me.avatar", "you": "/nowhere/you.avatar"}, "folder": str(folder),
                                "port": 0, "device": "cpu", "conversations": 4, "live_workers": 1, **changes})
    app = create_app(settings, main, with_jobs=False)
    server = Server(app)
    with listen("127.0.0.1", 0) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        wait_for(lambda: server.started)
        try:
            yield Service(app, server, listener.getsockname()[1], thread)
        finally:
            server.should_exit = True
            thread.join(20)
            assert not thread.is_alive()


def handshake(port: int, path: str = "/v1/live", **headers: str) -> bytes:
    """The head of a request that asks for a WebSocket; "" leaves a header out."""
    known = {"Host": f"127.0.0.1:{port}", "Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13",
             "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Protocol": SUBPROTOCOL}
    known |= {name.replace("_", "-"): value for name, value in headers.items()}
    lines = [f"GET {path} HTTP/1.1", *(f"{name}: {value}" for name, value in known.items() if value), "", ""]
    return "\r\n".join(lines).encode()


def frame(data: bytes, opcode: int, final: bool = True, masked: bool = True) -> bytes:
    """One WebSocket frame of a client; masked with zeros, so that the data stand there as they are."""
    length = len(data)
    head = bytes([opcode | (0x80 if final else 0)])
    mask = 0x80 if masked else 0
    if length < 126:
        head += bytes([mask | length])
    else:
        head += bytes([mask | 127]) + length.to_bytes(8, "big")
    return head + (bytes(4) if masked else b"") + data


def status(answer: bytes) -> str:
    """The status of a raw answer, and the code of its error if it has one."""
    head, _, body = answer.partition(b"\r\n\r\n")
    words = head.split(b" ", 2)
    assert words[0] == b"HTTP/1.1", answer[:200]
    try:
        return f"{int(words[1])} {json.loads(body)['error']['code']}"
    except (ValueError, KeyError):
        return str(int(words[1]))


HOSTILE: dict[str, Any] = {}  # what a client does -> a test of it, which returns the answer as docs/serve.md has it


def hostile(what: str) -> Any:
    """Register a function as the test of a row of docs/serve.md."""
    def register(function: Any) -> Any:
        assert what not in HOSTILE
        HOSTILE[what] = function
        return function
    return register


def documented() -> dict[str, str]:
    """The rows of the table of docs/serve.md: what a client does -> answer."""
    page = (Path(__file__).resolve().parents[2] / "docs" / "serve.md").read_text(encoding="utf-8")
    table = page[page.index("| a client sends or does |"):].split("\n\n")[0].splitlines()[2:]
    return {cells[1].strip(): cells[2].strip() for cells in (line.split("|") for line in table)}
