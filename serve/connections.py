"""uvicorn's connections, bounded against clients that stay and say nothing, or listen to nothing."""

import asyncio
import json
import socket
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from serve.errors import error_body

MOST_CONNECTIONS = 500  # of HTTP at once; more are closed unheard. WebSockets are bounded by the conversations
HEAD_SECONDS = 15.0  # for the head of a request to arrive in full
FLUSH_SECONDS = 3.0  # for a client to take what was sent before its connection closed
SEND_BUFFER = 1 << 18  # bytes that the system keeps for a client that reads slowly


class HttpProtocol(H11Protocol):
    """HTTP/1.1; a head of a request has 64 KB (h11's bound) and `HEAD_SECONDS`."""

    _waiting: asyncio.TimerHandle | None = None  # for a head

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if sum(isinstance(other, HttpProtocol) for other in self.connections) > MOST_CONNECTIONS:
            transport.abort()
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._stop_waiting()

    def send_400_response(self, msg: str) -> None:
        body = json.dumps(error_body(400, "bad_request", "this is no valid HTTP/1.1 request")).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()),
                   (b"connection", b"close")]
        for event in (h11.Response(status_code=400, headers=headers, reason=b"Bad Request"), h11.Data(data=body),
                      h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _watch(self) -> None:
        """Wait for a head while one is due: at the start, and once some of the next has come."""
        if self.conn.their_state is not h11.IDLE:
            self._stop_waiting()
        elif self._waiting is None:
            self._waiting = self.loop.call_later(HEAD_SECONDS, self.transport.abort)

    def _stop_waiting(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None


class LiveProtocol(WebSocketsSansIOProtocol):
    """A WebSocket whose client may vanish or stop reading: its connection then ends within seconds, not with TCP's patience."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        own = transport.get_extra_info("socket")
        if own is not None and own.family in (socket.AF_INET, socket.AF_INET6):
            own.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)

    async def send(self, message: Any) -> None:
        await super().send(message)
        if self.initial_response is not None and self.close_sent:
            self.handshake_complete = True  # it was refused, which uvicorn would take for a mistake of the application

    async def run_asgi(self) -> None:
        await super().run_asgi()
        self.loop.call_later(FLUSH_SECONDS, self.transport.abort)

    def keepalive_timeout(self) -> None:
        super().keepalive_timeout()
        self.loop.call_later(FLUSH_SECONDS, self.transport.abort)
