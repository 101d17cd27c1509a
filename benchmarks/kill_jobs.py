"""Kill any process of the job service at random moments: python benchmarks/kill_jobs.py AVATAR --count 50 --seed 0

A server makes videos without a pause; a client keeps some in the queue, each created under an Idempotency-Key and repeated when
the answer is lost. Again and again one process, the interface or one that it started, is killed with SIGKILL, and the interface
started again if it was the one. Checked after each kill and at the end: what was finished is there, to the byte, and has not
been made again; whatever has a final name is whole; each key made one video; and nothing is left over.
"""

import hashlib
import io
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import wave
from collections import Counter
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

import click
import httpx2 as httpx
import numpy as np
import psutil

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from serve.job_worker import DONE  # noqa: E402
from serve.settings import ServeSettings  # noqa: E402
from shared.media.video_io import read_video  # noqa: E402

SERVER = [sys.executable, "-m", "tests.serve.small_app"]  # takes the settings as JSON, prints its port
WAITING = 3  # videos that are queued or in progress at all times
PATIENCE = 180.0  # seconds in which something has to come to an end


@dataclass(frozen=True)
class Finished:
    """What a finished video must stay: digest of its bytes, when it was completed, at which try."""

    digest: str
    completed: float
    tries: int


def speech(seconds: float) -> bytes:
    """A WAV that is quiet and loud in turns."""
    times = np.arange(round(16000 * seconds)) / 16000
    samples = 8000 * np.sin(2 * np.pi * 140 * times) * (np.sin(2 * np.pi * 3 * times) > 0)
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(16000)
        out.writeframes(samples.astype("<i2").tobytes())
    return file.getvalue()


class Service:
    """The server, its folder and what its client knows."""

    def __init__(self, avatar: Path, folder: Path, seconds: float) -> None:
        self.folder, self.sound, self.frames = folder, speech(seconds), round(25 * seconds)
        self.settings = ServeSettings({"me": str(avatar.absolute())}, str(folder), port=0, device="cpu")
        self.keys: dict[str, str | None] = {}  # Idempotency-Key -> id, None while no answer has come
        self.faults: list[str] = []
        self.ending = threading.Event()
        self.start()
        self.client = threading.Thread(target=self.keep_busy)
        self.client.start()

    def start(self) -> None:
        self.process = subprocess.Popen([*SERVER, self.settings.to_json()], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.address = f"http://127.0.0.1:{int(self.process.stdout.readline())}/v1"
        httpx.get(f"{self.address}/models", timeout=PATIENCE)  # once it has put right what the kill left

    def keep_busy(self) -> None:
        """In a thread: see that something always waits, until `ending`."""
        while not self.ending.wait(0.05):
            if sum(row[0] in ("queued", "in_progress") for row in self.rows().values()) < WAITING:
                self.create()

    def create(self) -> None:
        """Create a video, or repeat the request whose answer was lost."""
        key = next((key for key, id in self.keys.items() if id is None), f"key-{len(self.keys)}")
        self.keys.setdefault(key, None)
        try:
            made = httpx.post(f"{self.address}/videos", files={"input_reference": ("a.wav", self.sound)},
                              headers={"Idempotency-Key": key}, timeout=60)
        except httpx.TransportError:
            return
        if made.status_code == 200:
            self.keys[key] = made.json()["id"]
        elif made.status_code >= 500 or made.json()["error"]["code"] != "upload_unreadable":  # its reader was killed
            self.faults.append(f"creation: {made.status_code} {made.text}")

    def rows(self) -> dict[str, tuple[str, int, float | None, str | None]]:
        """Of each job in the journal: state, tries, when it ended, and why."""
        with closing(sqlite3.connect(f"file:{self.folder / 'journal.sqlite3'}?mode=ro", uri=True)) as db:
            return {id: rest for id, *rest in db.execute("SELECT id, state, tries, finished, error_code FROM jobs")}

    def finished(self) -> dict[str, Finished]:
        """All that is finished as the journal says it."""
        return {id: Finished(self.digest(id), ended or 0.0, tries)
                for id, (state, tries, ended, _) in self.rows().items() if state == "completed"}

    def digest(self, id: str) -> str:
        path = self.folder / "results" / f"{id}.mp4"
        return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "lost"

    def whole(self) -> None:
        """Whatever has a final name is a video with all its frames."""
        for path in (self.folder / "results").iterdir():
            try:
                count = sum(1 for _ in read_video(path))
            except Exception as error:
                count = 0
                self.faults.append(f"half made: {path.name}: {error}")
            if count and count != self.frames:
                self.faults.append(f"half made: {path.name} has {count} of {self.frames} frames")

    def compare(self, before: dict[str, Finished]) -> None:
        """What was finished is as it was."""
        now = self.finished()
        for id, was in before.items():
            if id not in now or now[id].digest == "lost":
                self.faults.append(f"lost: {id}")
            elif now[id] != was:
                self.faults.append(f"made again: {id}: {was} became {now[id]}")

    def nearly(self) -> dict[str, int]:
        """Tries of jobs whose result is whole but not yet noted."""
        done = {path.parent.name for path in (self.folder / "work").glob(f"*/{DONE}")}
        return {name.split("-")[0]: int(name.split("-")[1]) for name in done}


def victim(service: Service, rng: random.Random) -> tuple[str, psutil.Process]:
    """A process of the service: of one kind as often as of another."""
    interface = psutil.Process(service.process.pid)
    kinds: dict[str, list[psutil.Process]] = {"interface": [interface]}
    for child in interface.children():
        with suppress(psutil.Error):  # it has just ended
            if "resource_tracker" not in " ".join(child.cmdline()):
                torch = any("libtorch" in part.path for part in child.memory_maps())
                kinds.setdefault("job worker" if torch else "reader of uploads, or one that starts", []).append(child)
    name = rng.choice(sorted(kinds))
    return name, rng.choice(kinds[name])


def one_kill(service: Service, rng: random.Random, tally: Counter[str]) -> None:
    """Let the service work, kill one process at a random moment, and look at what is left."""
    before, limit = len(service.finished()), time.monotonic() + PATIENCE
    moment: float | None = None
    while moment is None or time.monotonic() < moment:
        if moment is None and len(service.finished()) > before:
            moment = time.monotonic() + rng.uniform(0, 2)
        if time.monotonic() > limit:
            raise RuntimeError("nothing was finished for minutes")
        time.sleep(0.02)
    name, process = victim(service, rng)
    at_work = any(row[0] == "in_progress" for row in service.rows().values())
    if name == "interface":
        process.send_signal(signal.SIGSTOP)  # so that what is compared is what it dies with
    finished, nearly = service.finished(), service.nearly()
    with suppress(psutil.NoSuchProcess):
        process.kill()
    tally[name] += 1
    tally["while a video was in progress"] += at_work
    tally["while a request to create one was open"] += None in service.keys.values()
    tally["while a result was whole but not noted"] += bool(nearly)
    if name == "interface":
        service.process.wait()
        service.process.stdout.close()  # type: ignore[union-attr]
        service.whole()
        service.start()
        for id, tries in nearly.items():
            state, tried = service.rows()[id][:2]
            if state != "completed" or tried != tries:
                service.faults.append(f"made again: {id} was whole at try {tries}, is {state} at {tried}")
    service.compare(finished)


def end(service: Service, tally: Counter[str]) -> None:
    """Let all videos come to an end and look at everything."""
    service.ending.set()
    service.client.join()
    limit = time.monotonic() + PATIENCE
    while None in service.keys.values() or any(row[0] in ("queued", "in_progress") for row in service.rows().values()):
        if None in service.keys.values():
            service.create()
        if time.monotonic() > limit:
            service.faults.append("some videos do not come to an end")
            break
        time.sleep(0.1)
    time.sleep(1)
    rows = service.rows()
    service.whole()
    if sorted(rows) != sorted(str(id) for id in service.keys.values()):
        service.faults.append(f"{len(service.keys)} keys made {len(rows)} videos")
    for id, (state, tries, _, code) in rows.items():
        tally[f"videos {state}"] += 1
        if state != "completed" and (state, tries, code) != ("failed", 3, "worker_died"):
            service.faults.append(f"{id} is {state} after {tries} tries: {code}")
        if (state == "completed") != (service.digest(id) != "lost"):
            service.faults.append(f"{id} is {state}, its file {service.digest(id)[:8]}")
    for name in ("work", "uploads"):
        service.faults += [f"left over: {path}" for path in (service.folder / name).iterdir()]
    service.process.terminate()
    service.process.wait(60)


@click.command()
@click.argument("avatar", type=click.Path(exists=True, path_type=Path))
@click.option("--count", default=50, show_default=True, type=click.IntRange(1), help="Kills.")
@click.option("--seed", default=0, show_default=True, help="Seed of the moments and of who is killed.")
@click.option("--seconds", default=1.6, show_default=True, type=click.FloatRange(0.2), help="Length of each video.")
def main(avatar: Path, count: int, seed: int, seconds: float) -> None:
    """Kill processes of the job service and check what is left."""
    folder = Path(tempfile.mkdtemp(prefix="kill-jobs-"))
    rng, tally = random.Random(seed), Counter[str]()
    service = Service(avatar, folder / "root", seconds)
    try:
        for k in range(count):
            one_kill(service, rng, tally)
            print(f"{k + 1} of {count} kills, {len(service.finished())} videos, {len(service.faults)} faults", file=sys.stderr)
        end(service, tally)
    finally:
        service.ending.set()
        service.process.kill()
        service.process.wait()
        shutil.rmtree(folder, ignore_errors=True)
    for name, times in sorted(tally.items()):
        click.echo(f"{name:45} {times:5}")
    for fault in dict.fromkeys(service.faults):
        click.echo(f"    {fault}")
    click.echo(f"{count} kills, {len(service.faults)} faults")
    sys.exit(bool(service.faults))


if __name__ == "__main__":
    main()
