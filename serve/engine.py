"""The live engine: avatars, their conversations, and the pictures that are due, drawn together.

Everything happens in two calls: `listen` turns sound into rows of landmarks as it comes; `tick`, every 40 ms, draws and encodes
what each conversation shows. What clients get goes through `Send`; time is passed in.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from serve.conversation import Conversation, Row
from serve.encode import Encoder, Unit
from serve.idle import MotionCursor, calm_stretch
from serve.protocol import ROW, WINDOW, Flag, Header, Kind, ProtocolError, SessionInit, pack_header
from shared.avatar import Avatar
from shared.errors import TalkheadError
from shared.landmarks import FPS, SAMPLES_PER_FRAME
from stage1_audio2lmk.stream import LandmarkStream, load_predictor
from talkhead.motion import MotionTrack
from talkhead.provenance import Marks
from talkhead.synthesis import Renderer

BATCHES = (1, 2, 4, 8, 16, 32)  # pictures drawn at once on a GPU, which keeps a graph of each


class LoadedAvatar:
    """An avatar ready to speak: networks in memory, code compiled, its motion track and marks. Raises TalkheadError.

    Stage 1 runs on the CPU even beside a GPU: one frame is too little work for one.
    """

    def __init__(self, name: str, path: Path | str, device: torch.device, mark: bool = True) -> None:
        avatar = Avatar(path)
        avatar.require("stage1", "stage2", "torso")
        self.name, self.device = name, device
        self.predictor = load_predictor(avatar.stage1, torch.device("cpu"))
        self.renderer, self.motion = Renderer(avatar, device, preload=True), MotionTrack(avatar)
        self.neutral = avatar.load_neutral().reshape(-1, 3)
        self.calm = calm_stretch(self.motion.poses)
        self.marks = Marks(avatar.info, mark=mark)
        self.width, self.height = avatar.info.width, avatar.info.height
        self._warm_up()

    def _warm_up(self) -> None:
        """Compile and cache what the first conversation would wait for."""
        sizes = BATCHES if self.device.type == "cuda" else (1,)
        for size in sizes:
            self.draw(np.repeat(self.neutral[None], size, axis=0), np.zeros(size, np.int64))
        self._speak(self.predictor.look_ahead + 2)

    def cost(self, pictures: int = 10) -> float:
        """Seconds of processor time that one conversation takes for one picture, from sound to VP8, measured now."""
        began = time.process_time()
        self._speak(pictures)
        return (time.process_time() - began) / pictures

    def _speak(self, pictures: int) -> None:
        stream, encoder = self.new_stream(), Encoder("vp8", self.width, self.height)
        for k in range(pictures):
            stream.push(np.zeros(SAMPLES_PER_FRAME, np.float32))
            picture = self.draw(self.neutral[None], np.zeros(1, np.int64))
            encoder.encode(self.marks.apply(picture, k)[0])

    def new_stream(self) -> LandmarkStream:
        return LandmarkStream(self.predictor, self.neutral, blinks=False)

    def draw(self, landmarks: np.ndarray, frames: np.ndarray) -> np.ndarray:
        """Landmarks (B,68,3) at `frames` (B,) of the motion track -> finished pictures uint8 (B,H,W,3), without marks."""
        count = len(landmarks)
        if self.device.type == "cuda" and count not in BATCHES:
            whole = next((size for size in BATCHES if size > count), count)
            landmarks = np.concatenate([landmarks, np.repeat(landmarks[-1:], whole - count, axis=0)])
            frames = np.concatenate([frames, np.repeat(frames[-1:], whole - count)])
        poses, torso = self.motion.poses[frames], self.motion.torso[frames]
        head = self.renderer.head_rgba(landmarks.astype(np.float32), poses, torso, self.motion.looks[frames])
        return self.renderer.pictures(head, poses, torso, frames)[:count].cpu().numpy()


class Send(Protocol):
    """How messages leave the engine."""

    def text(self, conversation: int, message: dict[str, Any]) -> None: ...

    def data(self, conversation: int, message: bytes) -> None: ...

    def closed(self, conversation: int, code: str, message: str) -> None: ...


@dataclass
class Client:
    """One conversation with what its client has been sent."""

    number: int
    avatar: LoadedAvatar
    speech: Conversation
    encoder: Encoder | None
    rows: int = 0  # row messages sent
    pictures: int = 0  # pictures sent
    acknowledged: int = 0
    needs_key: bool = True
    late: int = 0  # pictures dropped as `Conversation.late` counts them, already in the metrics
    first_sound: dict[int, float | None] = field(default_factory=dict)  # by epoch: when it came, until a picture shows it


@dataclass
class Metrics:
    """Counts since they were told last."""

    rows: int = 0
    pictures: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    dropped: dict[str, int] = field(default_factory=lambda: {"late": 0, "window": 0})
    render_seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(lambda: [0.0, 0]))
    batch: list[float] = field(default_factory=lambda: [0.0, 0])
    first_picture_seconds: list[float] = field(default_factory=list)
    row_latency_seconds: list[float] = field(default_factory=list)

    def timed(self, stage: str, seconds: float) -> None:
        total = self.render_seconds[stage]
        total[0] += seconds
        total[1] += 1


class Engine:
    """Conversations of any number of loaded avatars. `threads` encode; 0 encodes where it is called."""

    def __init__(self, send: Send, threads: int = 0) -> None:
        self.send, self.clients, self.metrics = send, dict[int, Client](), Metrics()
        self._pool = ThreadPoolExecutor(threads) if threads else None

    def open(self, number: int, init: SessionInit, avatar: LoadedAvatar) -> None:
        """Begin a conversation; tells the client `session.ready`."""
        encoder = Encoder(init.codec, avatar.width, avatar.height) if "video" in init.want else None
        cursor = MotionCursor(len(avatar.motion.poses), avatar.calm)
        speech = Conversation(init, avatar.new_stream, avatar.neutral, cursor, avatar.predictor.look_ahead,
                              partial(self.send.text, number))
        self.clients[number] = Client(number, avatar, speech, encoder)
        self.send.text(number, {
            "type": "session.ready", "id": number, "avatar": avatar.name, "fps": FPS, "want": list(init.want),
            "width": encoder.width if encoder else avatar.width, "height": encoder.height if encoder else avatar.height,
            "codec": init.codec if encoder else None, "codec_string": encoder.codec_string if encoder else None,
            "sample_rate": init.sample_rate, "format": init.format,
            "look_ahead_ms": avatar.predictor.look_ahead * 1000 // FPS, "window": WINDOW, "epoch": 0})

    def close(self, number: int) -> None:
        """End a conversation; nothing if it has ended."""
        self.clients.pop(number, None)

    def sound(self, number: int, data: bytes, now: float) -> None:
        """PCM of a client."""
        client = self.clients[number]
        if client.speech.epoch not in client.first_sound:
            client.first_sound = {**{epoch: when for epoch, when in client.first_sound.items() if when}, client.speech.epoch: now}
        client.speech.sound(data, now)

    def end(self, number: int) -> None:
        """A client's segment is complete."""
        self.clients[number].speech.end()

    def interrupt(self, number: int, epoch: int) -> None:
        """A client begins a new epoch and wants nothing more of those before."""
        client = self.clients[number]
        client.speech.interrupt(epoch)
        client.first_sound.clear()

    def acknowledge(self, number: int, frame: int) -> None:
        """A client has all pictures up to number `frame`. Raises ProtocolError for one that was not sent."""
        client = self.clients[number]
        if frame >= client.pictures:
            raise ProtocolError("bad_ack", f"ack should name a picture that was sent, of {client.pictures} so far; found {frame}")
        client.acknowledged = max(client.acknowledged, frame + 1)

    def played(self, number: int, epoch: int, sample: int, now: float) -> None:
        """A client hears this sample now."""
        self.clients[number].speech.heard(epoch, sample, now)

    @property
    def busy(self) -> bool:
        """Whether `listen` has work to do."""
        return any(client.speech.busy for client in self.clients.values())

    def listen(self, now: float) -> None:
        """Turn sound that has come into rows, a little of each conversation; send them where they are wanted."""
        for client in list(self.clients.values()):
            if not client.speech.busy:
                continue
            with self.guarded(client.number):
                began = time.perf_counter()
                rows = client.speech.hear(now)
                if rows:
                    self.metrics.timed("landmarks", time.perf_counter() - began)
                    if "landmarks" in client.speech.init.want:
                        self._send_rows(client, rows)
                        self.metrics.row_latency_seconds.append(now - rows[0].heard + time.perf_counter() - began)

    def tick(self, now: float) -> None:
        """Draw, encode and send what every conversation shows now."""
        due: dict[LoadedAvatar, list[tuple[Client, Row]]] = defaultdict(list)
        for client in list(self.clients.values()):
            with self.guarded(client.number):
                shown = client.speech.take(now)
                idle = [row for row in shown if row.flags & Flag.IDLE]
                if idle and "landmarks" in client.speech.init.want:
                    self._send_rows(client, idle)
                self.metrics.dropped["late"] += client.speech.late - client.late
                client.needs_key |= client.speech.late > client.late
                client.late = client.speech.late
                if client.encoder is None:
                    continue
                free = WINDOW - (client.pictures + sum(other is client for other, _ in due[client.avatar]) - client.acknowledged)
                if free < len(shown):
                    self.metrics.dropped["window"] += len(shown) - max(free, 0)
                    client.needs_key = True
                    shown = shown[len(shown) - max(free, 0) :]
                due[client.avatar] += [(client, row) for row in shown]
        for avatar, pictures in due.items():
            if pictures:
                self._draw(avatar, pictures, now)

    def _draw(self, avatar: LoadedAvatar, due: list[tuple[Client, Row]], now: float) -> None:
        began = time.perf_counter()
        pictures = avatar.draw(np.stack([row.landmarks for _, row in due]), np.array([row.place.frame for _, row in due]))
        self.metrics.timed("draw", time.perf_counter() - began)
        self.metrics.batch[0] += len(due)
        self.metrics.batch[1] += 1
        by_client: dict[int, list[tuple[Row, np.ndarray]]] = defaultdict(list)
        for (client, row), picture in zip(due, pictures):
            by_client[client.number].append((row, picture))
        work = [(self.clients[number], shown) for number, shown in by_client.items()]
        encoded: Iterable[list[Unit]] = (self._pool.map if self._pool else map)(self._encode, work)  # type: ignore[operator]
        for (client, shown), units in zip(work, encoded):
            for (row, _), unit in zip(shown, units):
                self._send_picture(client, row, unit, now + time.perf_counter() - began)

    def _encode(self, work: tuple[Client, list[tuple[Row, np.ndarray]]]) -> list[Unit]:
        client, shown = work
        assert client.encoder is not None
        units = []
        for k, (_, picture) in enumerate(shown):
            began = time.perf_counter()
            marked = client.avatar.marks.apply(picture[None], client.pictures + k)[0]
            middle = time.perf_counter()
            units.append(client.encoder.encode(marked, client.needs_key))
            client.needs_key = False
            self.metrics.timed("mark", middle - began)
            self.metrics.timed("encode", time.perf_counter() - middle)
        return units

    def _send_picture(self, client: Client, row: Row, unit: Unit, now: float) -> None:
        codec = client.speech.init.codec
        kind, flags = Kind.JPEG if codec == "jpeg" else Kind.VIDEO, row.flags | (Flag.KEY if unit.key else Flag(0))
        self.send.data(client.number, pack_header(Header(kind, flags, row.epoch, client.pictures, row.sample)) + unit.data)
        client.pictures += 1
        self.metrics.pictures[codec] += 1
        if not row.flags & Flag.IDLE and (began := client.first_sound.get(row.epoch)) is not None:
            client.first_sound[row.epoch] = None
            self.metrics.first_picture_seconds.append(now - began)

    def _send_rows(self, client: Client, rows: list[Row]) -> None:
        for row in rows:
            header = Header(Kind.ROW, row.flags, row.epoch, client.rows, row.sample)
            self.send.data(client.number, pack_header(header) + ROW.pack(row.place.frame, *row.landmarks.ravel().tolist()))
            client.rows += 1
        self.metrics.rows += len(rows)

    @contextmanager
    def guarded(self, number: int) -> Iterator[None]:
        """What goes wrong with one conversation's data ends that conversation alone, and its client is told."""
        try:
            yield
        except ProtocolError as error:
            self.fail(number, error.code, str(error))
        except TalkheadError as error:
            self.fail(number, "failed", str(error))

    def fail(self, number: int, code: str, message: str) -> None:
        """End a conversation with an error that its client is told."""
        self.close(number)
        self.send.closed(number, code, message)


def guarded(engine: Engine, number: int, do: Callable[[], None]) -> None:
    """Do something for a conversation that a client's message asks for; a mistake of the client ends its conversation, and what
    comes for one that has ended is nothing."""
    if number in engine.clients:
        with engine.guarded(number):
            do()
