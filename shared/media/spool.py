"""Sound on its way: pipes that can be read only once, and decoded sound, kept on the disk instead of in memory."""

import os
import shutil
import stat
import struct
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from threading import Lock
from typing import IO, overload

import av
import numpy as np

from shared.errors import TalkheadError
from shared.files import make_folder
from shared.landmarks import SAMPLE_RATE
from shared.media.audio_io import TimedFrame, in_pieces, opened_sound, to_mono
from shared.media.downmix import Loudness

KEPT = struct.Struct("<IIdd?")  # before each frame: number of its form, bytes of samples; silence, early and anew of TimedFrame


@overload
def readable_again(path: Path) -> AbstractContextManager[Path]: ...
@overload
def readable_again(path: Path | None) -> AbstractContextManager[Path | None]: ...
@contextmanager  # type: ignore[misc]  # a path gives a path, None gives None
def readable_again(path: Path | None) -> Iterator[Path | None]:
    """A file with what `path` holds: itself, but a temporary one for a pipe and for `-`, standard input.

    Raises TalkheadError for a device or a terminal, and where the disk is full.
    """
    if path is None:
        yield None
        return
    standard = str(path) == "-"
    source: Path | int = 0 if standard else path
    try:
        kind = os.stat(source).st_mode
    except OSError:  # whoever reads it says what is wrong
        kind = stat.S_IFREG
    if stat.S_ISCHR(kind) or stat.S_ISBLK(kind):
        raise TalkheadError(f"{path} is a terminal or a device, from which no sound can be read; name a file, or pipe one in")
    if not (standard or stat.S_ISFIFO(kind) or stat.S_ISSOCK(kind)):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="talkhead-") as folder:
        copy = Path(folder) / "sound"
        try:
            with open(source, "rb", closefd=not standard) as pipe, open(copy, "wb") as file:
                shutil.copyfileobj(pipe, file, 1 << 20)
        except OSError as error:
            raise TalkheadError(f"what comes out of {path} cannot be kept in {folder}: {error.strerror}; set TMPDIR to a folder "
                                "with room for it") from error
        try:
            yield copy
        except TalkheadError as error:
            raise TalkheadError(str(error).replace(str(copy), str(path))) from error


class DecodedSound:
    """A file's sound, decoded once and kept as it is in an unnamed file on the disk that holds `folder`, until `with` ends.

    Only what lies between `start` and `end` seconds (None: to its end) is kept; `start` is its time zero. `seconds` is its
    length. Raises TalkheadError like `iter_audio`, where nothing lies there, or where it cannot be written.
    """

    def __init__(self, path: Path, folder: Path, start: float = 0.0, end: float | None = None) -> None:
        self.path, self.folder, self.start, self.end = path, folder, start, end
        self.seconds = 0.0
        self._cut = False  # there is sound after `end`
        self._reading = Lock()  # `frames` may run in several threads
        self._forms: list[tuple[av.AudioFormat, av.AudioLayout, int]] = []  # with rate
        self._weights: dict[str, np.ndarray | None] = {}

    def __enter__(self) -> "DecodedSound":
        make_folder(self.folder)
        with self._writing():
            self._file: IO[bytes] = tempfile.TemporaryFile(dir=self.folder)
        try:
            self._decode()
        except BaseException:
            self._file.close()
            raise
        return self

    def _decode(self) -> None:
        loudness: dict[str, Loudness] = {}
        with opened_sound(self.path, self.start) as frames:
            for timed in frames:
                frame = timed.frame
                if frame.layout.nb_channels > 1:
                    loudness.setdefault(frame.layout.name, Loudness(frame.layout)).add(frame)
                self._keep(timed)
                self.seconds += timed.silence - timed.early + frame.samples / frame.sample_rate
                if self.end is not None and self.seconds >= self.end - self.start:
                    self.seconds, self._cut = self.end - self.start, True
                    break
        with self._writing():
            self._file.flush()
        self._weights = {name: heard.weights() for name, heard in loudness.items()}
        if not self.seconds > 0:
            raise TalkheadError(f"{self.path} has no sound after {self.start:g} s" if self.start else
                                f"{self.path} holds 0 samples of audio")

    def _keep(self, timed: TimedFrame) -> None:
        frame = timed.frame
        if timed.anew or not self._forms:
            self._forms.append((frame.format, frame.layout, frame.sample_rate))
        data = frame.to_ndarray().tobytes()
        with self._writing():
            self._file.write(KEPT.pack(len(self._forms) - 1, len(data), timed.silence, timed.early, timed.anew) + data)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise TalkheadError(f"cannot write in {self.folder}: {error.strerror}") from error

    def frames(self) -> Iterator[TimedFrame]:
        """The frames as they were decoded."""
        at = 0
        while True:
            with self._reading:
                self._file.seek(at)
                head = self._file.read(KEPT.size)
                if not head:
                    return
                number, length, silence, early, anew = KEPT.unpack(head)
                held = self._file.read(length)
            form, layout, rate = self._forms[number]
            data = np.frombuffer(held, av.audio.frame.format_dtypes[form.name])
            rows = layout.nb_channels if form.is_planar else 1
            frame = av.AudioFrame.from_ndarray(data.reshape(rows, -1), form.name, layout)
            frame.sample_rate = rate
            at += KEPT.size + length
            yield TimedFrame(frame, silence, early, anew)

    def pieces(self, seconds: float) -> Iterator[np.ndarray]:
        """The sound at 16 kHz mono in pieces (n,) float32 of `seconds`, the last one shorter; the same as of `iter_audio`."""
        left = round(self.seconds * SAMPLE_RATE) if self._cut else None
        for piece in in_pieces(to_mono(self.frames(), self._weights.get), seconds):
            piece = piece[:left]
            left = None if left is None else left - len(piece)
            if len(piece):
                yield piece

    def __exit__(self, *_: object) -> None:
        self._file.close()
