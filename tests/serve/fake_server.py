"""A server that speaks talkhead.live.1 with a drawn face whose mouth opens with the loudness of each 40 ms of sound: for tests of
the page and of clients that need no avatar. Run as `python -m tests.serve.fake_server [PORT]` to try the page by hand."""

import asyncio
import json
import socket
import sys
import threading
import time
from collections import deque
from pathlib import Path

import cv2
import numpy as np
import uvicorn
from fastapi import FastAPI, Request, WebSocket
from fastapi.responses import FileResponse, JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.websockets import WebSocketDisconnect

import serve
from serve.encode import Encoder
from serve.protocol import WINDOW, Flag, Header, Kind, SessionInit, pack_header, parse_control, parse_init

PAGE = Path(serve.__file__).parent / "page"
SIZE = 256
LOOK_AHEAD = 2  # frames
POLICY = "default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"


class FakeServer:
    """`token` is asked for where given; `full` refuses conversations; `break_off()` closes all as a dead worker does."""

    def __init__(self, token: str | None = None) -> None:
        self.token, self.full, self.acks, self.interrupts = token, False, deque[int](), deque[int]()
        self.inits, self.stats = deque[SessionInit](), deque[dict]()
        self.sockets: set[WebSocket] = set()
        self.app = self._app()

    def start(self, host: str = "127.0.0.1", port: int = 0) -> str:
        """Serve in a thread -> the address."""
        listener = socket.create_server((host, port))
        config = uvicorn.Config(self.app, log_level="warning", ws_per_message_deflate=False)
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run, args=([listener],), daemon=True)
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)
        return f"http://{host}:{listener.getsockname()[1]}"

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join(10)

    def break_off(self) -> None:
        """What clients see when a live worker dies."""
        asyncio.run_coroutine_threadsafe(self._break_off(), self.loop).result(5)

    async def _break_off(self) -> None:
        message = {"type": "error", "code": "worker_lost", "message": "the process that draws this avatar broke off; connect again"}
        for client in list(self.sockets):
            await client.send_text(json.dumps(message))
            await client.close(1012)

    def _app(self) -> FastAPI:
        app = FastAPI()
        app.mount("/page", StaticFiles(directory=PAGE))

        @app.middleware("http")
        async def secure(request: Request, follow) -> Response:
            if self.token and request.url.path.startswith("/v1") and request.headers.get("authorization") != f"Bearer {self.token}":
                return JSONResponse({"error": {"message": "give the token", "code": "bad_token"}}, 401)
            answer = await follow(request)
            answer.headers["content-security-policy"] = POLICY
            return answer

        @app.get("/")
        def index() -> FileResponse:
            return FileResponse(PAGE / "index.html")

        @app.get("/v1/avatars")
        def avatars() -> dict:
            return {"data": [{"id": "drawn", "name": "drawn", "width": SIZE, "height": SIZE}, {"id": "other", "name": "other"}]}

        @app.post("/v1/live")
        def live() -> Response:
            if self.full:
                return JSONResponse({"error": {"message": "all 2 conversations are taken", "code": "full"}}, 429, {"Retry-After": "1"})
            return JSONResponse({"id": "a", "url": "/v1/live/a", "ticket": "secret", "expires_in": 30, "protocol": "talkhead.live.1"})

        @app.websocket("/v1/live/a")
        async def talk(client: WebSocket) -> None:
            assert client.scope["subprotocols"] == ["talkhead.live.1", "ticket.secret"]
            self.loop = asyncio.get_running_loop()
            await client.accept("talkhead.live.1")
            self.sockets.add(client)
            try:
                await _FakeConversation(self, client).run()
            except (WebSocketDisconnect, RuntimeError):
                pass
            finally:
                self.sockets.discard(client)

        return app


class _FakeConversation:
    def __init__(self, server: FakeServer, client: WebSocket) -> None:
        self.server, self.client = server, client
        self.epoch, self.acknowledged, self.sent = 0, -1, 0
        self.segments: deque[tuple[int, bytearray, list[bool]]] = deque()  # epoch, PCM, [ended]
        self.shown = 0  # frames of the first segment

    async def run(self) -> None:
        self.init = parse_init(parse_control(await self.client.receive_text()))
        self.server.inits.append(self.init)
        self.encoder = Encoder(self.init.codec, SIZE, SIZE)
        await self.client.send_text(json.dumps({
            "type": "session.ready", "id": 1, "avatar": "drawn", "fps": 25, "width": SIZE, "height": SIZE, "codec": self.init.codec,
            "codec_string": self.encoder.codec_string, "sample_rate": self.init.sample_rate, "look_ahead_ms": 80,
            "window": WINDOW, "epoch": 0}))
        ticking = asyncio.create_task(self._tick())
        try:
            while True:
                message = await self.client.receive()
                if message["type"] == "websocket.disconnect":
                    return
                self._take(message)
        finally:
            ticking.cancel()

    def _take(self, message: dict) -> None:
        if data := message.get("bytes"):
            if not self.segments or self.segments[-1][0] != self.epoch:
                self.segments.append((self.epoch, bytearray(), []))
            self.segments[-1][1].extend(data)
            return
        control = parse_control(message["text"])
        if control["type"] == "ack":
            self.acknowledged = control["frame"]
            self.server.acks.append(control["frame"])
        elif control["type"] == "stats":
            self.server.stats.append(control)
        elif control["type"] == "segment.end":
            self.segments[-1][2].append(True)
            self.epoch += 1
        elif control["type"] == "interrupt":
            self.server.interrupts.append(control["epoch"])
            self.epoch, self.shown = control["epoch"], 0
            self.segments.clear()

    async def _tick(self) -> None:
        due = time.monotonic()
        while True:
            await self._show()
            due = max(due + 0.04, time.monotonic() - 0.04)
            await asyncio.sleep(max(0.0, due - time.monotonic()))

    async def _show(self) -> None:
        level, flags, epoch, sample = 0.0, Flag.IDLE, self.epoch, 0
        if self.segments:
            epoch, pcm, ended = self.segments[0]
            step, per_frame = self.init.samples_per_frame * 2, self.init.samples_per_frame
            have = -(-len(pcm) // step) if ended else len(pcm) // step - LOOK_AHEAD
            sample = self.shown * per_frame
            if self.shown < have:
                sound = np.frombuffer(bytes(pcm[self.shown * step : (self.shown + 1) * step]), np.int16) / 32768
                level, flags = float(np.sqrt((sound**2).mean())), Flag(0)
                self.shown += 1
                if ended and self.shown == have:
                    flags = Flag.END
                    self.segments.popleft()
                    self.shown = 0
        if self.sent - self.acknowledged > WINDOW:
            return
        unit = self.encoder.encode(draw_face(level, self.sent))
        kind = Kind.JPEG if self.init.codec == "jpeg" else Kind.VIDEO
        header = Header(kind, flags | (Flag.KEY if unit.key else Flag(0)), epoch, self.sent, sample)
        self.sent += 1
        await self.client.send_bytes(pack_header(header) + unit.data)


def draw_face(level: float, frame: int) -> np.ndarray:
    """uint8 (256,256,3) RGB: a face that sways, its mouth open by the root mean square `level` of the sound."""
    picture = np.full((SIZE, SIZE, 3), (196, 210, 222), np.uint8)
    x = round(128 + 4 * np.sin(frame / 20))
    cv2.ellipse(picture, (x, 270), (100, 70), 0, 0, 360, (70, 84, 130), -1, cv2.LINE_AA)
    cv2.ellipse(picture, (x, 124), (66, 86), 0, 0, 360, (232, 190, 164), -1, cv2.LINE_AA)
    for side in (-24, 24):
        cv2.ellipse(picture, (x + side, 104), (8, 1 if frame % 90 < 4 else 6), 0, 0, 360, (40, 30, 30), -1, cv2.LINE_AA)
    cv2.ellipse(picture, (x, 166), (24, 2 + round(min(1.0, 5 * level) * 22)), 0, 0, 360, (110, 24, 34), -1, cv2.LINE_AA)
    return picture


if __name__ == "__main__":
    server = FakeServer()
    print(server.start(port=int(sys.argv[1]) if sys.argv[1:] else 8000))
    server.thread.join()
