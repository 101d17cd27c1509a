"""A service whose avatars need no training: a drawn face whose mouth opens with the loudness of each 40 ms. All else is the real
thing. `python -m tests.serve.drawn_avatar FOLDER` serves two of them; `Service` does that for a test."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from argparse import ArgumentParser
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil

from serve.settings import ServeSettings

SIZE, LOOK_AHEAD, SAMPLES = 256, 2, 640  # pixels, frames, samples at 16 kHz of a frame
MAIN = "tests.serve.drawn_avatar:worker_main"


class LoudnessStream:
    """`LandmarkStream` of the drawn face: the lower lip goes down by the root mean square of each frame's sound."""

    def __init__(self, neutral: np.ndarray) -> None:
        self.neutral, self.waiting = neutral, np.zeros(0, np.float32)

    def push(self, samples: np.ndarray) -> np.ndarray:
        """Samples at 16 kHz -> rows (t,68,3) that are certain."""
        self.waiting = np.concatenate([self.waiting, samples])
        return self._take(len(self.waiting) // SAMPLES - LOOK_AHEAD)

    def flush(self) -> np.ndarray:
        """The rows that are left."""
        self.waiting = np.pad(self.waiting, (0, -len(self.waiting) % SAMPLES))
        return self._take(len(self.waiting) // SAMPLES)

    def _take(self, count: int) -> np.ndarray:
        frames = self.waiting[: max(count, 0) * SAMPLES].reshape(-1, SAMPLES)
        self.waiting = self.waiting[frames.size :]
        rows = np.repeat(self.neutral[None], len(frames), axis=0)
        rows[:, 65:68, 1] -= 0.1 * np.sqrt((frames**2).mean(axis=1))[:, None]
        return rows


class DrawnAvatar:
    """As `engine.LoadedAvatar`."""

    def __init__(self, name: str) -> None:
        import torch

        from process_data.actor.identity import make_identity
        from process_data.actor.proportions import neutral_landmarks

        self.name, self.device, self.width, self.height = name, torch.device("cpu"), SIZE, SIZE
        self.neutral = neutral_landmarks(make_identity(0)).astype(np.float32)
        self.closed = float(self.neutral[66, 1])
        self.predictor = SimpleNamespace(look_ahead=LOOK_AHEAD)
        self.motion = SimpleNamespace(poses=np.repeat(np.eye(4)[None], 100, axis=0))
        self.calm = 0, 99
        self.marks = SimpleNamespace(apply=lambda pictures, first: pictures)

    def cost(self) -> float:
        """Seconds of a picture."""
        return 0.002

    def new_stream(self) -> LoudnessStream:
        return LoudnessStream(self.neutral)

    def draw(self, landmarks: np.ndarray, frames: np.ndarray) -> np.ndarray:
        """(B,68,3) and places (B,) of the motion track -> uint8 (B,256,256,3)."""
        return np.stack([draw_face(self.closed - float(row[66, 1]), frame) for row, frame in zip(landmarks, frames)])


def draw_face(opening: float, frame: int) -> np.ndarray:
    """uint8 (256,256,3) RGB: a face that sways, its mouth open by `opening` metres."""
    import cv2

    picture = np.full((SIZE, SIZE, 3), (196, 210, 222), np.uint8)
    x = round(128 + 6 * np.sin(frame / 16))
    for centre, axes, colour in (((x, 270), (100, 70), (70, 84, 130)), ((x, 124), (66, 86), (232, 190, 164)),
                                 ((x - 24, 104), (8, 6), (40, 30, 30)), ((x + 24, 104), (8, 6), (40, 30, 30)),
                                 ((x, 166), (24, 2 + round(min(1.0, max(0.0, 50 * opening)) * 22)), (110, 24, 34))):
        cv2.ellipse(picture, centre, axes, 0, 0, 360, colour, -1, cv2.LINE_AA)
    return picture


def worker_main(connection: Connection, settings_json: str, index: int) -> None:
    """What a live worker process runs."""
    from serve.live_worker import LiveWorker

    class DrawnWorker(LiveWorker):
        def _load(self, name: str) -> Any:
            return DrawnAvatar(name)

        def _describe(self) -> list[dict[str, Any]]:
            return [{"name": name, "width": SIZE, "height": SIZE, "look_ahead_ms": 80} for name in self.settings.avatars]

    settings = ServeSettings.from_json(settings_json)
    Path(settings.folder, "live_worker").write_text(str(os.getpid()))
    try:
        DrawnWorker(connection, settings, index, 1).run()
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass


class Service:
    """The service in a process of its own; `url` is http://127.0.0.1:PORT."""

    def __init__(self, *arguments: str) -> None:
        self.folder = tempfile.TemporaryDirectory()
        command = [sys.executable, "-m", "tests.serve.drawn_avatar", self.folder.name, "--port", "0", *arguments]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
                                        cwd=Path(__file__).parents[2])
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().strip()  # nothing if it ends before it is up
        assert self.url, f"the service ended with exit code {self.process.wait()}"

    @property
    def live(self) -> str:
        """The address for WebSockets."""
        return self.url.replace("http", "ws", 1)

    def worker(self) -> psutil.Process:
        """The live worker."""
        return psutil.Process(int(Path(self.folder.name, "live_worker").read_text()))

    def stop(self) -> None:
        self.process.send_signal(signal.SIGINT)
        self.process.wait(30)
        self.folder.cleanup()


def main() -> None:
    """Serve until Ctrl-C; prints the address once conversations can be opened."""
    from serve.app import create_app
    from serve.server import Server, listen

    parser = ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--token")
    parser.add_argument("--origin", action="append", default=[])
    parser.add_argument("--conversations", type=int, default=16)
    options = parser.parse_args()
    avatars = {}
    for name in ("drawn", "other"):
        path = options.folder / f"{name}.avatar"
        path.mkdir(exist_ok=True)
        (path / "avatar.json").write_text(json.dumps({"name": name, "width": SIZE, "height": SIZE}))
        avatars[name] = str(path)
    with listen("127.0.0.1", options.port) as listener:
        settings = ServeSettings(avatars, str(options.folder), port=options.port, token=options.token, live_workers=1,
                                 origins=tuple(options.origin), conversations=options.conversations)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        Server(create_app(settings, MAIN), ready=lambda: print(url, flush=True)).run(sockets=[listener])


if __name__ == "__main__":
    main()
