"""The WebSocket of the live protocol: who may open one, what a client may say, what is kept for one that reads slowly."""

import asyncio
import json
import logging
from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np
from fastapi import APIRouter, Request, WebSocket
from starlette.websockets import WebSocketDisconnect

from serve.errors import ApiError
from serve.live_workers import Conversation, LiveWorkers, NoWorker
from serve.metrics import Metrics
from serve.protocol import EPOCHS, SUBPROTOCOL, ProtocolError, SessionInit, is_newer, number, parse_control, parse_init, whole
from serve.security import FAILED, error_response, has_token
from serve.settings import ServeSettings
from serve.tickets import PREFIX, Tickets, new_id

OUTGOING_BYTES = 2_000_000  # that may wait for a client to read them
INIT_SECONDS = 10.0  # for session.init to come
CLOSE_SECONDS = 2.0  # for a client to take what is left, the reason of the end included
RETRY_SECONDS = 10  # what Retry-After says
LARGEST_SAMPLE = 1 << 62
POLICY, GOING_AWAY, INTERNAL, RESTART, LATER = 1008, 1001, 1011, 1012, 1013  # WebSocket close codes
log = logging.getLogger("talkhead.serve")
router = APIRouter()


class Live:
    """All conversations of the service, and the tickets for those to come."""

    def __init__(self, settings: ServeSettings, workers: LiveWorkers, metrics: Metrics) -> None:
        self.settings, self.workers, self.metrics = settings, workers, metrics
        self.tickets = Tickets()
        self.sockets: set[_Socket] = set()
        self.draining = False

    def unready(self) -> ApiError | None:
        """Why no conversation can be opened now; None if one can."""
        later = {"retry-after": str(RETRY_SECONDS)}
        if self.draining:
            return ApiError(503, "closing", "the service is shutting down", headers=later)
        if not self.workers.up:
            return ApiError(503, "loading", "the avatars are being loaded; try again soon", headers=later)
        if len(self.sockets) + len(self.tickets) >= self.workers.limit:
            return ApiError(429, "too_many_conversations", f"all {self.workers.limit} conversations are taken; try again later",
                            headers=later)
        return None

    def refused(self, code: str) -> None:
        """Count a conversation that was refused."""
        self.metrics.live_rejected.add(label=code)

    async def drain(self, seconds: float) -> None:
        """Take no more conversations, tell those that are open to end within `seconds`, then end them."""
        self.draining = True
        for one in self.sockets:
            one.text({"type": "session.closing", "seconds": seconds})
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        while self.sockets and loop.time() < end:
            await asyncio.sleep(0.05)
        for one in self.sockets:
            one.end("closing", "the service is shutting down", GOING_AWAY)
        end = loop.time() + CLOSE_SECONDS + 1
        while self.sockets and loop.time() < end:
            await asyncio.sleep(0.05)


@router.post("/v1/live", summary="A ticket for one conversation", tags=["live"], response_model=None)
async def ticket(request: Request) -> dict[str, Any]:
    """Open the WebSocket `url` with the subprotocols [`protocol`, "ticket." + `ticket`] within `expires_in` seconds."""
    live: Live = request.app.state.live
    if (error := live.unready()) is not None:
        live.refused(error.code)
        raise error
    conversation, secret = live.tickets.issue()
    return {"id": conversation, "url": f"/v1/live/{conversation}", "ticket": secret, "expires_in": int(live.tickets.seconds),
            "protocol": SUBPROTOCOL}


@router.websocket("/v1/live")
async def converse(websocket: WebSocket) -> None:
    """A conversation, with the token or a ticket."""
    await _converse(websocket, None)


@router.websocket("/v1/live/{conversation}")
async def converse_as(websocket: WebSocket, conversation: str) -> None:
    """A conversation whose id and ticket POST /v1/live gave."""
    await _converse(websocket, conversation)


async def _converse(websocket: WebSocket, conversation: str | None) -> None:
    live: Live = websocket.app.state.live
    try:
        conversation, reserved = _admit(websocket, live, conversation)
    except ApiError as refusal:
        live.refused(refusal.code)
        await websocket.send_denial_response(error_response(refusal))
        return
    error = live.unready()
    if reserved and error is not None and error.status == 429:
        error = None  # the ticket has kept a place
    one = _Socket(websocket, live, conversation)
    if error is None:
        live.sockets.add(one)  # before anything is waited for, so that no other takes the place
        live.metrics.live_sessions.set(len(live.sockets))
    try:
        await websocket.accept(SUBPROTOCOL if SUBPROTOCOL in websocket.scope["subprotocols"] else None)
        if error is not None:  # a browser sees the reason only in an open socket
            live.refused(error.code)
            one.end(error.code, str(error), GOING_AWAY if error.code == "closing" else LATER)
        await one.run()
    except WebSocketDisconnect:
        pass
    finally:
        live.sockets.discard(one)
        live.metrics.live_sessions.set(len(live.sockets))


def _admit(websocket: WebSocket, live: Live, conversation: str | None) -> tuple[str, bool]:
    """The conversation's id, and whether a ticket keeps a place for it. Raises ApiError, which refuses the handshake."""
    offered: list[str] = websocket.scope["subprotocols"]
    if offered and SUBPROTOCOL not in offered:
        raise ApiError(400, "bad_subprotocol", f"the subprotocol should be {SUBPROTOCOL}")
    tickets = [name.removeprefix(PREFIX) for name in offered if name.startswith(PREFIX)]
    if len(tickets) == 1:
        found = live.tickets.take(tickets[0], conversation)
        if found is None:
            raise ApiError(401, "bad_ticket", "the ticket is wrong, used or expired; POST /v1/live gives another")
        return found, True
    if tickets or conversation is not None or "origin" in websocket.headers:
        raise ApiError(401, "no_ticket", f'one subprotocol should be "{PREFIX}" and a ticket; POST /v1/live gives one')
    if not has_token(websocket.headers, live.settings.token):
        raise ApiError(401, "wrong_token" if "authorization" in websocket.headers else "no_token",
                       "this service needs its token in the header `Authorization: Bearer TOKEN`, or a ticket")
    return new_id(), False


@dataclass(frozen=True)
class _Close:
    code: int
    reason: str


class _Socket:
    """One client: `run` sends what the worker says of its conversation and forwards what the client says."""

    def __init__(self, websocket: WebSocket, live: Live, conversation: str) -> None:
        self.websocket, self.live, self.id = websocket, live, conversation
        self.epoch, self.heard = 0, False  # of the sound that comes next; whether some of it has come
        self.ending = False
        self._queue: deque[str | bytes | _Close] = deque()
        self._bytes = 0  # in the queue
        self._filled = asyncio.Event()
        self._sender: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Until either side ends."""
        self._sender = asyncio.create_task(self._send())
        receiver = asyncio.create_task(self._receive())
        if self.ending:
            self._soon_cancel()
        try:
            await asyncio.wait([self._sender])
        finally:
            for task in (self._sender, receiver):
                task.cancel()
            await asyncio.wait([self._sender, receiver])
        for task in (self._sender, receiver):
            error = None if task.cancelled() else task.exception()
            if error is not None and not isinstance(error, WebSocketDisconnect):
                log.error("conversation %s: %r", self.id, error, exc_info=error)

    def text(self, message: dict[str, Any]) -> None:
        """As `live_workers.Listener`."""
        if message.get("type") == "session.ready":
            message = {**message, "id": self.id}
        self._put(json.dumps(message, separators=(",", ":")))

    def data(self, message: bytes) -> None:
        """As `live_workers.Listener`."""
        self._put(message)

    def closed(self, code: str, message: str) -> None:
        """As `live_workers.Listener`."""
        self.end(code, message, INTERNAL if code == "failed" else POLICY)

    def lost(self) -> None:
        """As `live_workers.Listener`."""
        self.end("worker_lost", "the process that drew this conversation has ended; connect again", RESTART)

    def end(self, code: str, message: str, close: int) -> None:
        """Send an error after what is queued, then close."""
        if self.ending:
            return
        self._queue.append(json.dumps({"type": "error", "code": code, "message": message}))
        self._queue.append(_Close(close, code))
        self.ending = True
        self._filled.set()
        self._soon_cancel()

    def _soon_cancel(self) -> None:
        if self._sender is not None:
            asyncio.get_running_loop().call_later(CLOSE_SECONDS, self._sender.cancel)

    def _put(self, message: str | bytes) -> None:
        if self.ending:
            return
        self._bytes += len(message)
        self._queue.append(message)
        self._filled.set()
        if self._bytes > OUTGOING_BYTES:
            self._queue.clear()
            self.end("client_too_slow", f"{OUTGOING_BYTES} bytes wait for this client to read them", POLICY)

    async def _send(self) -> None:
        while True:
            while not self._queue:
                self._filled.clear()
                await self._filled.wait()
            item = self._queue.popleft()
            if isinstance(item, _Close):
                await self.websocket.close(item.code, item.reason)
                return
            await (self.websocket.send_text(item) if isinstance(item, str) else self.websocket.send_bytes(item))
            self._bytes -= len(item)

    async def _receive(self) -> None:
        """What the client says, until it goes or says what cannot be taken."""
        conversation: Conversation | None = None
        try:
            if self.ending:
                return
            init = await self._init()
            conversation = self.live.workers.open(init, self)
            while True:
                message = await self._next()
                if isinstance(message, str):
                    await self._control(parse_control(message), conversation)
                elif message:
                    await self._sound(message, init, conversation)
        except ProtocolError as error:
            self.end(error.code, str(error), POLICY)
        except NoWorker:
            self.end("loading", "the avatars are being loaded; try again soon", LATER)
        except WebSocketDisconnect:
            assert self._sender is not None
            self._sender.cancel()
        except Exception:
            self.end("failed", FAILED, INTERNAL)
            raise
        finally:
            if conversation is not None:
                conversation.close()

    async def _init(self) -> SessionInit:
        try:
            first = await asyncio.wait_for(self._next(), INIT_SECONDS)
        except TimeoutError:
            raise ProtocolError("no_session", f"session.init should come within {INIT_SECONDS:.0f} s") from None
        if not isinstance(first, str):
            raise ProtocolError("no_session", 'the first message should be "session.init", found sound')
        init = parse_init(parse_control(first))
        if init.avatar is not None and init.avatar not in self.live.settings.avatars:
            raise ProtocolError("no_avatar", f"no avatar {init.avatar[:80]!r} is served here; GET /v1/avatars lists all")
        return init

    async def _next(self) -> str | bytes:
        message = await self.websocket.receive()
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message.get("code", 1006))
        return message["text"] if message.get("text") is not None else message["bytes"]

    async def _control(self, message: dict[str, Any], conversation: Conversation) -> None:
        kind = message["type"]
        if kind == "ack":
            await conversation.send("ack", frame=whole(message, "frame", 0, (1 << 32) - 1))
        elif kind == "stats":
            epoch, played = whole(message, "epoch", 0, EPOCHS - 1), whole(message, "played", 0, LARGEST_SAMPLE)
            if message.get("av_offset_ms") is not None:
                self.live.metrics.av_offset.observe(abs(number(message, "av_offset_ms", -60_000, 60_000)) / 1000)
            await conversation.send("played", epoch=epoch, sample=played)
        elif kind == "segment.end":
            if self.heard:
                self.epoch, self.heard = (self.epoch + 1) % EPOCHS, False
            await conversation.send("end")
        elif kind == "interrupt":
            epoch = whole(message, "epoch", 0, EPOCHS - 1)
            if not is_newer(epoch, self.epoch) and (self.heard or epoch != self.epoch):
                raise ProtocolError("bad_epoch", f"interrupt should name an epoch after {self.epoch}, found {epoch}")
            self.epoch, self.heard = epoch, False
            await conversation.send("interrupt", epoch=epoch)
        else:
            raise ProtocolError("bad_message", "type should be ack, stats, segment.end or interrupt after session.init, found "
                                f"{kind[:40]!r}")

    async def _sound(self, pcm: bytes, init: SessionInit, conversation: Conversation) -> None:
        if len(pcm) % init.bytes_per_sample:
            raise ProtocolError("bad_sound", f"sound of {init.format} should have a multiple of {init.bytes_per_sample} bytes, "
                                f"found {len(pcm)}")
        if init.format == "f32" and not np.isfinite(np.frombuffer(pcm, "<f4")).all():
            raise ProtocolError("bad_sound", "sound should be finite numbers, found nan or inf")
        self.heard = True
        await conversation.send("sound", pcm)
