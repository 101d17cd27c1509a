"""The process that does jobs: videos, and for clients that wait, landmarks and edits. It keeps the last avatars loaded."""

import copy
import os
import queue
import signal
import sys
import threading
import traceback
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from serve.pipe import PipeMessage, pack, unpack
from serve.settings import ServeSettings
from shared.errors import MachineError, TalkheadError, TalkheadWarning
from shared.files import write_json
from shared.landmarks import FPS, SAMPLES_PER_FRAME, load_landmarks, save_landmarks

if TYPE_CHECKING:
    from tqdm import tqdm

    from talkhead.speaking import Speaker

AVATARS = 3  # that stay loaded
NICENESS = 10  # conversations come first
DONE = "done.json"  # in a job's folder: its result is whole, and what there is to say of it
EDITS = ("mouth_gain", "smile", "smooth", "retime", "blink")

Tell = Callable[..., None]


class Cancelled(Exception):
    """Nobody wants the result any more."""


def main(connection: Connection, settings_json: str, index: int) -> None:
    """Do what `connection` says, one job after the other, until it closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the interface process, which ends this one
    if hasattr(os, "nice"):
        os.nice(NICENESS)
    settings = ServeSettings.from_json(settings_json)
    inbox: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    cancelled: set[str] = set()
    threading.Thread(target=_listen, args=(connection, inbox, cancelled), daemon=True).start()
    studio = Studio(settings, index)
    _send(connection, {"tell": "up"})
    while True:
        task = inbox.get()

        def tell(what: str, job: str = task["job"], **fields: Any) -> None:
            if job in cancelled:
                raise Cancelled
            _send(connection, {"tell": what, "job": job, **fields})

        last = _outcome(studio, task, tell)
        cancelled.discard(task["job"])
        _send(connection, {**last, "job": task["job"]})


def _send(connection: Connection, fields: dict[str, Any]) -> None:
    try:
        connection.send_bytes(pack(PipeMessage(fields)))
    except OSError:
        os._exit(0)  # nobody is there to hear it


def _listen(connection: Connection, inbox: "queue.SimpleQueue[dict[str, Any]]", cancelled: set[str]) -> None:
    while True:
        try:
            message = unpack(connection.recv_bytes()).fields
        except (EOFError, OSError):
            message = {"do": "stop"}
        if message["do"] == "stop":
            os._exit(0)  # what is half made lies in the job's own folder, which whoever starts next removes
        elif message["do"] == "cancel":
            cancelled.add(message["job"])
        else:
            cancelled.discard(message["job"])
            inbox.put(message)


def _outcome(studio: "Studio", task: dict[str, Any], tell: Tell) -> dict[str, Any]:
    """Do one task; what there is to say at its end."""
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("ignore")
            warnings.simplefilter("always", TalkheadWarning)
            made = {"video": studio.video, "landmarks": studio.landmarks, "edit": studio.edit}[task["do"]](task, tell)
        made["warnings"] = [_plain(text, task) for text in [*made.get("warnings", []), *(str(one.message) for one in caught)]]
        if task["do"] == "video":
            write_json(Path(task["folder"]) / DONE, made)
        return {"tell": "done", **made}
    except Cancelled:
        return {"tell": "cancelled"}
    except MachineError as error:
        return _failure("server_machine", error, task)
    except TalkheadError as error:
        return _failure("refused", error, task)
    except MemoryError:
        return _failure("out_of_memory", "the server has too little memory for this; ask for a smaller size", task)
    except Exception as error:
        if type(error).__name__ == "OutOfMemoryError":  # torch's
            return _failure("out_of_memory", "the server has too little memory for this; ask for a smaller size", task)
        traceback.print_exc(file=sys.stderr)
        return _failure("server_fault", "a fault of the server; its log says more", task)


def _failure(code: str, message: object, task: dict[str, Any]) -> dict[str, Any]:
    return {"tell": "failed", "code": code, "message": _plain(str(message), task)}


def _plain(text: str, task: dict[str, Any]) -> str:
    """A sentence without the server's paths."""
    for path, name in ((task.get("sound"), "the sound"), (task.get("landmarks"), "the landmarks"),
                       (task.get("output"), "the result"), (task.get("folder"), "the server's folder"),
                       (task.get("avatar_path"), task.get("avatar"))):
        if path:
            text = text.replace(str(path), str(name))
    return text


class Studio:
    """The avatars, each loaded at its first job and again when its files have changed; the last ones stay."""

    def __init__(self, settings: ServeSettings, index: int) -> None:
        import torch

        from shared.training import pick_device

        self.settings, self.device = settings, pick_device(settings.device)
        if self.device.type == "cuda" and self.device.index is None:
            self.device = torch.device("cuda", index % torch.cuda.device_count())
        self._speakers: OrderedDict[tuple[str, int], Speaker] = OrderedDict()

    def speaker(self, task: dict[str, Any]) -> "Speaker":
        """The avatar of a task. What it has loaded, the speakers of its other tasks have, too."""
        from shared.avatar import Avatar
        from talkhead.speaking import Speaker

        path = Path(task["avatar_path"])
        manifest = path if path.is_file() else path / "avatar.json"
        key = str(path), manifest.stat().st_mtime_ns if manifest.is_file() else 0
        if key not in self._speakers:
            self._speakers[key] = Speaker(Avatar(path), device=self.device, mark=self.settings.mark)
            while len(self._speakers) > AVATARS:
                self._speakers.popitem(last=False)
        self._speakers.move_to_end(key)
        return self._speakers[key]

    def video(self, task: dict[str, Any], tell: Tell) -> dict[str, Any]:
        """Write task["output"]; tells "progress" from 0 to 100."""
        from shared.media.video_io import frame_rate

        loaded, options, output = self.speaker(task), task["options"], Path(task["output"])
        output.parent.mkdir(parents=True, exist_ok=True)
        tell("progress", percent=0)
        loaded.avatar.require("stage2", "torso", *(() if task["landmarks"] else ("stage1",)))
        _ = loaded.renderer, None if task["landmarks"] else loaded.predictor  # before the copy, which shares them
        speaker = copy.copy(loaded)
        speaker.background, speaker.size = options["background"], task["size"]
        speaker.fps, speaker.label = frame_rate(options["fps"]), options["label"]
        speaker.seed, speaker.liveliness, speaker.head_motion = options["seed"], options["liveliness"], options["head_motion"]
        speaker.poses = options["poses"]
        landmarks = task["landmarks"]
        if _edits(options):
            landmarks = output.with_name("edited.npy")
            self._edit(speaker, task, landmarks, tell)
        bar = _Bar(round(task["seconds"] * FPS), tell)
        made = speaker.speak(task["sound"], output, landmarks=landmarks, end=task["end"], bar=cast("tqdm", bar))
        with open(output, "rb") as file:
            os.fsync(file.fileno())
        return {"frames": made.frames, "seconds": made.frames / FPS, "warnings": made.warnings}

    def _edit(self, speaker: "Speaker", task: dict[str, Any], path: Path, tell: Tell) -> None:
        """Write the landmarks of a task after its edits."""
        from talkhead.editing import edit

        if task["landmarks"]:
            rows = load_landmarks(task["landmarks"])
        else:
            pieces = []
            for piece in self._predicted(speaker, task):
                pieces.append(piece)
                tell("progress", percent=0)
            rows = np.concatenate(pieces)
        neutral = speaker.avatar.load_neutral()
        save_landmarks(path, edit(rows, neutral=neutral, seed=task["options"]["seed"], **_edits(task["options"])))

    def _predicted(self, speaker: "Speaker", task: dict[str, Any]) -> Iterator[np.ndarray]:
        from shared.media.audio_io import iter_audio
        from stage1_audio2lmk.stream import iter_predict

        options = task["options"]
        yield from iter_predict(speaker.predictor, iter_audio(task["sound"], 1.0), speaker.avatar.load_neutral(),
                                seed=options["seed"], liveliness=options["liveliness"])

    def landmarks(self, task: dict[str, Any], tell: Tell) -> dict[str, Any]:
        """Write the rows, float32, behind each other into task["output"]; tells after each piece how many "rows" there are."""
        loaded = self.speaker(task)
        loaded.avatar.require("stage1")
        count = 0
        with open(task["output"], "wb") as file:
            for rows in self._predicted(loaded, task):
                file.write(np.ascontiguousarray(rows, "<f4").tobytes())
                file.flush()
                count += len(rows)
                tell("rows", count=count)
        return {"count": count}

    def edit(self, task: dict[str, Any], tell: Tell) -> dict[str, Any]:
        """Write the edited landmarks to task["output"]."""
        from talkhead.editing import edit

        neutral = None
        if task["avatar_path"]:
            from shared.avatar import Avatar

            neutral = Avatar(task["avatar_path"]).load_neutral()
        rows = edit(load_landmarks(task["landmarks"]), neutral=neutral, seed=task["options"]["seed"], **_edits(task["options"]))
        save_landmarks(task["output"], rows)
        return {"count": len(rows)}


def _edits(options: dict[str, Any]) -> dict[str, Any]:
    return {name: options[name] for name in EDITS if options.get(name) is not None}


class _Bar:
    """Counts frames as a progress bar does, and tells each new percent; where nobody wants the video any more, it ends it."""

    def __init__(self, total: int, tell: Tell) -> None:
        self.total, self.n, self._tell = max(1, total), 0, tell

    def update(self, n: int = 1) -> None:
        before, self.n = self.n, self.n + n
        percent = min(99, 100 * self.n // self.total)
        if percent > 100 * before // self.total or before == 0:
            self._tell("progress", percent=percent)


def rows_of(samples: int) -> int:
    """Landmark rows of so many samples at 16 kHz."""
    return max(1, -(-samples // SAMPLES_PER_FRAME))
