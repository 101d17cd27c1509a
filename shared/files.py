"""Writing files so that nothing half-written ever stands under a final name."""

import errno
import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from shared.errors import TalkheadError

# what the disk or its rights refuse; any other error is somebody else's
CANNOT_WRITE = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EISDIR)

LARGEST_JSON = 64 << 20  # bytes


def make_folder(path: Path) -> None:
    """Make a folder and those it lies in, unless it is there. Raises TalkheadError."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TalkheadError(f"cannot create the folder {path}: {error.strerror}") from error


@contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """Yield a temporary name beside `path` (same suffix); move it there on success, remove it on any error."""
    path = Path(path)
    make_folder(path.parent)
    partial = path.with_name(f".{path.stem}.partial-{os.getpid()}{path.suffix}")
    try:
        yield partial
        os.replace(partial, path)
    except OSError as error:
        if error.errno not in CANNOT_WRITE:
            raise
        raise TalkheadError(f"cannot write {path}: {error.strerror}") from error
    finally:
        if partial.is_dir():
            shutil.rmtree(partial)
        else:
            partial.unlink(missing_ok=True)


def write_json(path: Path | str, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    with atomic_path(path) as partial:
        partial.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


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
    if len(data) > LARGEST_JSON:
        raise TalkheadError(f"{path} has over {LARGEST_JSON >> 20} MB; that is no file of talkhead")
    try:
        value = json.loads(data.decode("utf-8-sig"), object_pairs_hook=_object, parse_constant=_number, parse_float=_number)
    except UnicodeDecodeError as error:
        raise TalkheadError(f"{path} is not a readable JSON file: it is no UTF-8; save it as UTF-8") from error
    except RecursionError as error:
        raise TalkheadError(f"{path} is not a readable JSON file: too many brackets within brackets") from error
    except ValueError as error:
        raise TalkheadError(f"{path} is not a readable JSON file: {str(error).split(';')[0]}") from error
    if not isinstance(value, dict):
        raise TalkheadError(f"{path} should hold a JSON object, found {type(value).__name__}")
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
