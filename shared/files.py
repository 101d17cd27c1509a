"""Writing files so that nothing half-written ever stands under a final name."""

import errno
import hashlib
import io
import json
import math
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from shared.errors import MachineError, TalkheadError

NAME_BYTES = 143  # of a temporary name: eCryptfs takes no longer ones, other file systems 255
OS_ERROR = re.compile(r"\[Errno (\d+)\]|\(os error (\d+)\)")  # in the texts of shutil.copytree and of safetensors
_unfinished: set[Path] = set()

LARGEST_JSON = 64 << 20  # bytes


def make_folder(path: Path) -> None:
    """Make a folder and those it lies in, unless it is there. Raises MachineError."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MachineError(f"cannot create the folder {path}: {error.strerror}") from error


def refuse_special(path: Path) -> None:
    """Raise TalkheadError for an output that cannot be made whole first and then moved to its name: `-`, a pipe, a device."""
    place = os.path.realpath(path.parent)
    special = path.exists() and not (path.is_file() or path.is_dir())
    if str(path) == "-" or special or place == "/dev" or place.startswith("/proc/"):
        raise TalkheadError(f"{path} is a pipe, a device or standard output, where no finished file can be put; name a file")


@contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """Yield a temporary name beside `path` (same suffix); move it there on success, remove it on any error.

    Raises MachineError where the system refuses to write. The temporary name stands in no sentence, since what has it is
    gone when the user reads it.
    """
    path = Path(path)
    refuse_special(path)
    final = path if path.name not in ("", "..") else path.resolve()  # `.` and the like have no name beside which to write
    if not final.name:
        raise TalkheadError(f"cannot write {path}: {os.strerror(errno.EISDIR)}")
    make_folder(final.parent)
    partial = final.with_name(_partial_name(final))
    _unfinished.add(partial)
    try:
        yield partial
        os.replace(partial, final)
    except TalkheadError as error:
        if str(partial) not in str(error):
            raise
        raise type(error)(str(error).replace(str(partial), str(path))) from error
    except Exception as error:
        refused = _refusal(error, partial)
        if refused is None:
            raise
        raise MachineError(f"cannot write {path}: {os.strerror(refused)}") from error
    finally:
        _unfinished.discard(partial)
        remove(partial)


def _partial_name(path: Path) -> str:
    """A hidden name with the ending of `path`, short enough wherever `path` itself is."""
    ending = path.suffix if len(path.suffix) <= 16 else ""  # longer, it names no format
    stem, tail = path.stem, f".partial-{os.getpid()}{ending}"
    while len(os.fsencode(f".{stem}{tail}")) > NAME_BYTES:
        stem = stem[:-1]
    return f".{stem}{tail}"


def _refusal(error: Exception, partial: Path) -> int | None:
    """The number of the system's error if it is about writing `partial`, not about another file that was read meanwhile."""
    if isinstance(error, OSError) and error.errno is not None:
        named = [Path(os.fsdecode(name).removeprefix("file:"))  # as FFmpeg is given them, see `media_url`
                 for name in (error.filename, error.filename2) if name is not None]
        return error.errno if not named or any(partial in (name, *name.parents) for name in named) else None
    found = OS_ERROR.search(str(error))
    return int(found[1] or found[2]) if found else None


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there and the system lets it."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)


def remove_unfinished() -> None:
    """Remove whatever `atomic_path` is writing in this process, which is about to end in the midst of it."""
    for partial in tuple(_unfinished):
        remove(partial)


def write_text(path: Path | str, text: str) -> None:
    """Write `text` in UTF-8, atomically; of a file name in another encoding, the bytes are written as escapes."""
    with atomic_path(path) as partial:
        partial.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_arrays(path: Path | str, **arrays: np.ndarray) -> None:
    """Write named arrays as `.npz`, atomically."""
    archive = io.BytesIO()  # written straight to a full disk, it complains once more when it is thrown away
    np.savez(archive, allow_pickle=False, **arrays)
    with atomic_path(path) as partial:
        partial.write_bytes(archive.getbuffer())


def write_rows(path: Path | str, dtype: str, shape: tuple[int, ...], pieces: Iterable[np.ndarray]) -> None:
    """Write `pieces`, which together have this `shape` and are cast to `dtype`, as one `.npy`, atomically.

    Neither `numpy.save`, which does not say why a disk refuses, nor a mapped file, with which a full disk kills the process.
    """
    with atomic_path(path) as partial, open(partial, "wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": dtype, "fortran_order": False, "shape": shape})
        count = 0
        for piece in pieces:
            file.write(np.ascontiguousarray(piece, dtype).data)
            count += piece.size
        if count != math.prod(shape):
            raise ValueError(f"{path}: {count} numbers do not make an array of shape {shape}")


def write_json(path: Path | str, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def read_json(path: Path | str) -> dict[str, Any]:
    """Read a JSON object. Raises TalkheadError for a missing file or one that is not a JSON object of finite numbers."""
    path = Path(path)
    try:
        with open(path, "rb") as file:
            data = file.read(LARGEST_JSON + 1)
    except FileNotFoundError:
        raise TalkheadError(f"{path} does not exist") from None
    except OSError as error:
        raise TalkheadError(f"{path} cannot be read: {error.strerror}") from error
    return parse_json(data, path)


def parse_json(data: bytes, where: Path | str) -> dict[str, Any]:
    """The JSON object in a file's bytes. Raises TalkheadError, beginning with `where`, as `read_json` does."""
    if len(data) > LARGEST_JSON:
        raise TalkheadError(f"{where} has over {LARGEST_JSON >> 20} MB; that is no file of talkhead")
    try:
        value = json.loads(data.decode("utf-8-sig"), object_pairs_hook=_object, parse_constant=_number, parse_float=_number)
    except UnicodeDecodeError as error:
        raise TalkheadError(f"{where} is not a readable JSON file: it is no UTF-8; save it as UTF-8") from error
    except RecursionError as error:
        raise TalkheadError(f"{where} is not a readable JSON file: too many brackets within brackets") from error
    except ValueError as error:
        raise TalkheadError(f"{where} is not a readable JSON file: {str(error).split(';')[0]}") from error
    if not isinstance(value, dict):
        raise TalkheadError(f"{where} should hold a JSON object, found {type(value).__name__}")
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice[:60]!r} stands twice")
    return found


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:60]} is no finite number")
    return value


def sha256(path: Path | str) -> str:
    """SHA-256 of a file as hexadecimal text, read in 1 MiB pieces."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def refuse_unreachable(path: Path) -> None:
    """Raise OSError where the system cannot say whether `path` exists: a name that is too long, a folder that may not be read.

    `Path.is_file` and the like answer False to that from Python 3.14 on.
    """
    with suppress(FileNotFoundError, NotADirectoryError, ValueError):
        path.stat()


def same_file(one: Path | str, other: Path | str) -> bool:
    """Whether two paths lead to one file or folder, by way of links too; False if either is missing."""
    try:
        return os.path.samefile(one, other)
    except OSError:
        return False


def refuse_existing(path: Path, overwrite: bool) -> None:
    """Raise TalkheadError if `path` exists and may not be replaced, or is a pipe or a device."""
    refuse_special(path)
    if path.exists() and not overwrite:
        raise TalkheadError(f"{path} exists already; add --overwrite to replace it")


def refuse_inputs(output: Path, *inputs: Path | None) -> None:
    """Raise TalkheadError if `output` is one of the `inputs`, by way of links too, or a folder that holds one."""
    for source in inputs:
        if source is None:
            continue
        if same_file(output, source):
            raise TalkheadError(f"{output} is the same file as {source}, which is read; name another output")
        if output.is_dir() and any(same_file(output, folder) for folder in source.absolute().parents):
            raise TalkheadError(f"{source}, which is read, lies in {output}, which would be replaced; name another output")
