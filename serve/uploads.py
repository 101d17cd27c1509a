"""Untrusted uploads, sound and landmark arrays: each is opened in a process of its own with limits of time, length and memory.

What comes out is plain: 16-bit mono WAV, or a checked landmark `.npy`. Nothing else of an upload is ever read again.
"""

import asyncio
import math
import multiprocessing
import os
import signal
import sys
import threading
import time
import wave
from collections.abc import Iterator
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from serve.errors import ApiError
from serve.pipe import PipeMessage, pack, unpack
from shared.errors import MachineError, TalkheadError
from shared.files import atomic_path, remove
from shared.landmarks import FPS, SAMPLE_RATE, load_landmarks, save_landmarks

SECONDS = 120.0  # that reading one upload may take
START_SECONDS = 120.0  # that a reader may take to start
MEMORY = 2 << 30  # bytes that a reader may take beyond what it has when it starts
HIGHEST_RATE = 48_000  # Hz of the sound that is kept
READERS = 2  # at work at once
MOST_WAITING = 16  # uploads that may wait for a reader
# Of FFmpeg's formats those that hold sound by themselves: no playlists, no manifests, no lists of files, no addresses
FORMATS = ("aac", "ac3", "aiff", "amr", "asf", "au", "avi", "caf", "eac3", "flac", "flv", "matroska", "webm", "mov", "mp4", "m4a",
           "mp3", "mpeg", "mpegts", "ogg", "oga", "opus", "w64", "wav", "wv")
ARRAYS = (b"\x93NUMPY", b"PK\x03\x04", b"PK\x05\x06", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")  # NumPy, zip, pickle

Kind = Literal["sound", "landmarks", "any"]


class Read(NamedTuple):
    """What an upload was: its `kind`, `length` samples at `rate` or rows at 25 a second."""

    kind: str
    length: int
    rate: int

    @property
    def seconds(self) -> float:
        return self.length / self.rate


class Uploads:
    """Reads uploads, two at a time, each in a process that ends with it; one is started beforehand."""

    def __init__(self, most_seconds: float, seconds: float = SECONDS, memory: int = MEMORY) -> None:
        self.most_seconds, self.seconds, self.memory = most_seconds, seconds, memory
        self._free = asyncio.Semaphore(READERS)
        self._waiting = 0
        self._spare: _Reader | None = None

    def start(self) -> None:
        """Start a reader beforehand."""
        self._spare = _Reader()

    def stop(self) -> None:
        if self._spare is not None:
            self._spare.kill()
            self._spare = None

    async def read(self, path: Path, output: Path, kind: Kind, field: str, rate: int | None = None) -> Read:
        """Read `path` and write `output`, a WAV of `rate` (None: its own within 16 to 48 kHz) or a landmark file.

        Raises ApiError that calls the upload `field`; `output` then is not there.
        """
        if self._waiting >= MOST_WAITING:
            raise ApiError(429, "uploads_busy", f"{self._waiting} uploads are waiting to be read; try again", field,
                           {"Retry-After": "5"})
        self._waiting += 1
        try:
            async with self._free:
                reader, self._spare = self._spare, None
                task = {"path": str(path), "output": str(output), "kind": kind, "rate": rate, "most": self.most_seconds,
                        "memory": self.memory}
                answer = await asyncio.to_thread(_read_once, reader, task, self.seconds)
                if self._spare is None:
                    await self._start_spare()
        except OSError as error:
            raise ApiError(503, "reader_missing", f"the server cannot start a process to read the upload: {error.strerror}; try "
                           "again", field, {"Retry-After": "5"}) from error
        except BaseException:
            _forget(output)
            raise
        finally:
            self._waiting -= 1
        if "refused" in answer:
            _forget(output)
            raise ApiError(answer["status"], answer["code"], answer["refused"].replace(str(path), field), field)
        return Read(answer["kind"], answer["length"], answer["rate"])


    async def _start_spare(self) -> None:
        with suppress(OSError):  # the next upload starts one itself
            spare = await asyncio.to_thread(_Reader)
            if self._spare is None:
                self._spare = spare
            else:
                spare.kill()


class _Reader:
    """A process that reads one upload."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, other = context.Pipe()
        self._process = context.Process(target=main, args=(other,), daemon=True, name="talkhead-upload")
        try:
            self._process.start()
        finally:
            other.close()

    def read(self, task: dict[str, Any], seconds: float) -> dict[str, Any]:
        """What the process answers, or why it does not; it has `seconds` from when it has started."""
        try:
            if not self._pipe.poll(START_SECONDS):
                return _refusal(503, "reader_slow", "the server is too busy to read the upload; try again")
            self._pipe.recv_bytes()
            self._pipe.send_bytes(pack(PipeMessage({**task, "seconds": seconds})))
            if not self._pipe.poll(seconds):
                return _too_slow(task["path"], seconds)
            return unpack(self._pipe.recv_bytes()).fields
        except (EOFError, OSError):
            self._process.join(5)
            if self._process.exitcode == -getattr(signal, "SIGXCPU", 0):
                return _too_slow(task["path"], seconds)
            return _refusal(400, "upload_unreadable", f"{task['path']} made its reader end; it is damaged, so convert it")

    def lives(self) -> bool:
        return self._process.is_alive()

    def kill(self) -> None:
        self._process.kill()
        self._process.join(5)
        self._pipe.close()


def _read_once(reader: _Reader | None, task: dict[str, Any], seconds: float) -> dict[str, Any]:
    """What a reader answers, by default a new one; it ends with it."""
    if reader is None or not reader.lives():
        reader = _Reader()
    try:
        return reader.read(task, seconds)
    finally:
        reader.kill()


def _forget(output: Path) -> None:
    """Remove what a reader wrote, also when it was killed at it."""
    for path in (output, *output.parent.glob(f".{output.stem}.partial-*")):
        remove(path)


def _refusal(status: int, code: str, message: str) -> dict[str, Any]:
    return {"refused": message, "status": status, "code": code}


def _too_slow(path: str, seconds: float) -> dict[str, Any]:
    return _refusal(400, "upload_too_slow", f"reading {path} took over {seconds:g} s, so it was stopped; convert it to WAV")


# -- in the process that reads


def main(connection: Connection) -> None:
    """Read one upload, as told by `connection`, and say what it was."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # FFmpeg's own complaints
    import scipy.spatial  # noqa: F401  # all that a check loads, before addresses are counted

    import shared.media.audio_io  # noqa: F401

    connection.send_bytes(pack(PipeMessage({"tell": "up"})))
    try:
        task = unpack(connection.recv_bytes()).fields
    except EOFError:
        return
    threading.Thread(target=_end_with, args=(connection,), daemon=True).start()
    limit(task["memory"], task["seconds"])
    connection.send_bytes(pack(PipeMessage(_answer(task))))


def _end_with(connection: Connection) -> None:
    """End when the other end does, which says nothing more."""
    connection.poll(None)
    os._exit(1)


def limit(memory: int, seconds: float) -> None:
    """Take no more than `memory` bytes beyond what is mapped, `seconds` of one processor, and two processors."""
    if sys.platform != "linux":
        return  # elsewhere the limits of time and length hold, and that of memory the system's own
    import resource

    # decoders start a thread a processor, and a thread takes addresses
    os.sched_setaffinity(0, set(sorted(os.sched_getaffinity(0))[:2]))
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + memory, mapped + memory))
    used = math.ceil(time.process_time() + 2 * seconds)
    resource.setrlimit(resource.RLIMIT_CPU, (used, used + 1))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))


def _answer(task: dict[str, Any]) -> dict[str, Any]:
    path, output, kind, most = Path(task["path"]), Path(task["output"]), task["kind"], task["most"]
    try:
        with open(path, "rb") as file:
            start = file.read(6)
        if kind == "any":
            kind = "landmarks" if start.startswith(ARRAYS) else "sound"
        if kind == "sound" and start.startswith(ARRAYS):
            raise TalkheadError(f"{path} is a NumPy, zip or pickle file, no sound; landmarks go into the field landmarks")
        read = read_landmarks(path, output, most) if kind == "landmarks" else read_sound(path, output, most, task["rate"])
        return read._asdict()
    except MachineError as error:
        text = str(error).replace(str(output.parent), "the server's folder").replace(output.name, "upload")
        return _refusal(507, "server_disk", text)
    except TalkheadError as error:
        return _refusal(400, "upload_refused", str(error))
    except MemoryError:
        return _refusal(400, "upload_too_large", f"{path} takes over {task['memory'] >> 20} MB of memory to read; convert it")
    except Exception as error:  # a fault of ours or of a library, found by this file
        return _refusal(400, "upload_unreadable", f"{path} cannot be read ({type(error).__name__}); convert it")


def read_landmarks(path: Path, output: Path, most: float) -> Read:
    """A landmark `.npy` of at most `most` seconds -> the same, checked, float32. Raises TalkheadError."""
    from shared.arrays import npy_header

    shape = npy_header(path).shape
    if shape and shape[0] > most * FPS:
        raise TalkheadError(f"{path} has {shape[0]} rows; at most {round(most * FPS)}, {most:g} s, are taken")
    rows = load_landmarks(path)
    save_landmarks(output, rows)
    return Read("landmarks", len(rows), FPS)


def read_sound(path: Path, output: Path, most: float, rate: int | None) -> Read:
    """Any sound of at most `most` seconds -> 16-bit mono WAV of `rate`. Raises TalkheadError."""
    from shared.media.audio_io import iter_audio

    native, stated = _look(path)
    rate = rate or min(max(native, SAMPLE_RATE), HIGHEST_RATE)
    if stated > most:
        raise TalkheadError(f"{path} lasts {stated:.0f} s; at most {most:g} s are taken")
    with atomic_path(output) as partial:
        count = _write_wav(partial, iter_audio(path, 2.0, rate), rate, most, path)
    return Read("sound", count, rate)


def _write_wav(partial: Path, pieces: Iterator[np.ndarray], rate: int, most: float, path: Path) -> int:
    count = 0
    with open(partial, "wb") as file, wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(rate)
        for piece in pieces:
            count += len(piece)
            if count > most * rate:
                raise TalkheadError(f"{path} lasts over {most:g} s, which is the most that is taken")
            out.writeframes(np.round(np.clip(piece, -1, 1) * 32767).astype("<i2").tobytes())
    return count


def _look(path: Path) -> tuple[int, float]:
    """Rate (Hz) and stated length (s, 0 if it says none) of a file in one of the FORMATS. Raises TalkheadError for any other."""
    from shared.media.audio_io import audio_stream, decoding
    from shared.media.container import open_media

    with open_media(path, "sound file", FORMATS) as container:
        track = audio_stream(container, path)
        with decoding(path, track):
            return track.codec_context.sample_rate or SAMPLE_RATE, float(container.duration or 0) / 1e6


def write_silence(output: Path, seconds: float) -> None:
    """A WAV of silence, the sound of a video of landmarks alone."""
    with atomic_path(output) as partial, open(partial, "wb") as file, wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(SAMPLE_RATE)
        for start in range(0, round(seconds * SAMPLE_RATE), SAMPLE_RATE):
            out.writeframes(bytes(2 * min(SAMPLE_RATE, round(seconds * SAMPLE_RATE) - start)))
