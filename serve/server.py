"""uvicorn as the service runs it: its own sockets and signals, bounds on what clients may send, an end that is told."""

import asyncio
import errno
import os
import signal
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import uvicorn
from fastapi import FastAPI

from serve.connections import HttpProtocol, LiveProtocol
from serve.protocol import LARGEST_MESSAGE
from serve.settings import ServeSettings
from shared.errors import TalkheadError

PING_SECONDS = 20.0  # between pings, and for the answer to come


class Server(uvicorn.Server):
    """Runs `app` until it is asked to end: conversations then have `drain_seconds`, after Ctrl-C none. Asked twice it ends at
    once. `ready` is called when the first live worker is up.
    """

    def __init__(self, app: FastAPI, access_log: bool = False, ready: Callable[[], None] = lambda: None) -> None:
        settings: ServeSettings = app.state.settings
        super().__init__(uvicorn.Config(
            app, http=HttpProtocol, ws=LiveProtocol, ws_max_size=LARGEST_MESSAGE, ws_per_message_deflate=False,
            ws_ping_interval=PING_SECONDS, ws_ping_timeout=PING_SECONDS, lifespan="on", log_config=None, access_log=access_log,
            proxy_headers=False, server_header=False, timeout_keep_alive=15, timeout_graceful_shutdown=5,
            ssl_certfile=settings.tls_cert, ssl_keyfile=settings.tls_key))
        self.app, self.settings, self.ready = app, settings, ready
        self.asked: int | None = None  # the signal that asked to end
        self.hopeless = False  # no live worker could ever be started
        self._told_ready = False
        self._draining: asyncio.Task[None] | None = None

    def handle_exit(self, sig: int, frame: FrameType | None = None) -> None:
        """Signal handler."""
        if self.asked is None:
            self.asked = sig
        else:
            self.force_exit, self.should_exit = self.should_exit, True

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():  # where signals are not for us
            yield
            return
        names = [name for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK") if hasattr(signal, name)]
        numbers = [number for name in names if signal.getsignal(number := getattr(signal, name)) is not signal.SIG_IGN]
        before = {number: signal.signal(number, self.handle_exit) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    async def on_tick(self, counter: int) -> bool:
        workers = self.app.state.workers
        if workers.up and not self._told_ready:
            self._told_ready = True
            self.ready()
        if not self._told_ready and workers.hopeless:
            self.hopeless = self.should_exit = True
        if self.asked is not None and self._draining is None:
            self._draining = asyncio.create_task(self.app.state.live.drain(
                0.0 if self.asked == signal.SIGINT else self.settings.drain_seconds))
        if self._draining is not None and self._draining.done():
            self.should_exit = True
        return await super().on_tick(counter)


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens; port 0 takes a free one. Raises TalkheadError."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM,
                                                                flags=socket.AI_PASSIVE)[0]
    except (OSError, UnicodeError) as error:
        raise TalkheadError(f"--host {host} is no address of this machine: {error}") from error
    listener = socket.socket(family, kind, protocol)
    try:
        if os.name == "posix":  # so that it can be started again at once; elsewhere it would share the port with others
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(512)
    except OSError as error:
        listener.close()
        if isinstance(error, PermissionError):
            raise TalkheadError(f"port {port} may only be used by the system's administrator; take one from 1024 on with "
                                "--port") from error
        if error.errno == errno.EADDRINUSE:
            raise TalkheadError(f"port {port} of {host} is in use; name another with --port, or end what uses it") from error
        raise TalkheadError(f"--host {host} cannot be listened on: {error.strerror}; name an address of this machine") from error
    listener.setblocking(False)
    return listener


def check_tls(settings: ServeSettings) -> None:
    """Raise TalkheadError unless certificate and key can be used."""
    if settings.tls_cert is None or settings.tls_key is None:
        return
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(settings.tls_cert, settings.tls_key, password="")
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        why = "there is no such file" if isinstance(error, FileNotFoundError) else getattr(error, "reason", None) or str(error)
        raise TalkheadError(f"--tls-cert {settings.tls_cert} and --tls-key {settings.tls_key} should be a certificate and its "
                            f"key in PEM files, the key without a password: {why}") from error


def address(settings: ServeSettings, listener: socket.socket) -> str:
    """The URL to open: of this machine's name where the service listens on all addresses."""
    host = settings.host.strip("[]")
    if host in ("0.0.0.0", "::"):
        host = socket.gethostname()
    return f"{'https' if settings.tls_cert else 'http'}://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"
