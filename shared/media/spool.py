"""Sound on its way: pipes that can be read only once, and decoded sound, kept on the disk instead of in memory."""

import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import IO, overload

import numpy as np

from shared.errors import TalkheadError
from shared.files import make_folder
from shared.landmarks import SAMPLE_RATE
from shared.media.audio_io import iter_audio
from shared.media.sound_check import SoundCheck


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


class SpooledSound:
    """A file's sound at 16 kHz mono, decoded once into an unnamed file on the disk that holds `folder`; it ends with `with`.

    `check` knows its length and what is wrong with it. Raises TalkheadError like `iter_audio`, or where it cannot be written.
    """

    def __init__(self, path: Path, folder: Path) -> None:
        self.path, self.folder, self.check = path, folder, SoundCheck()

    def __enter__(self) -> "SpooledSound":
        make_folder(self.folder)
        try:
            self.file: IO[bytes] = tempfile.TemporaryFile(dir=self.folder)
        except OSError as error:
            raise TalkheadError(f"cannot write in {self.folder}: {error.strerror}") from error
        try:
            for piece in self.check.listen(iter_audio(self.path)):
                self._write(piece)
        except BaseException:
            self.file.close()
            raise
        return self

    def _write(self, piece: np.ndarray) -> None:
        try:
            self.file.write(piece.astype(np.float32).tobytes())
            self.file.flush()
        except OSError as error:
            raise TalkheadError(f"cannot write in {self.folder}: {error.strerror}") from error

    def pieces(self, seconds: float) -> Iterator[np.ndarray]:
        """The sound from its beginning in pieces (n,) float32 of `seconds`, the last one shorter."""
        size = int(seconds * SAMPLE_RATE) * np.dtype(np.float32).itemsize
        self.file.seek(0)
        while piece := self.file.read(size):
            yield np.frombuffer(piece, np.float32)

    def __exit__(self, *_: object) -> None:
        self.file.close()
