"""Writing files so that nothing half-written ever stands under a final name."""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from shared.errors import TalkheadError

# what the disk or its rights refuse; any other error is somebody else's
CANNOT_WRITE = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EISDIR)


def make_folder(path: Path) -> None:
    """Make a folder and those it lies in, unless it is there. Raises TalkheadError."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TalkheadError(f"cannot create the folder {path}: {error.strerror}") from error


def refuse_special(path: Path) -> None:
    """Raise TalkheadError for an output that cannot be made whole first and then moved to its name: `-`, a pipe, a device."""
    place = os.path.realpath(path.parent)
    special = path.exists() and not (path.is_file() or path.is_dir())
    if str(path) == "-" or special or place == "/dev" or place.startswith("/proc/"):
        raise TalkheadError(f"{path} is a pipe, a device or standard output, where no finished file can be put; name a file")


@contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """Yield a temporary name beside `path` (same suffix); move it there on success, remove it on any error."""
    path = Path(path)
    refuse_special(path)
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
    """Read a JSON object. Raises TalkheadError for a missing file or one that is not a JSON object."""
    path = Path(path)
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise TalkheadError(f"{path} does not exist") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise TalkheadError(f"{path} is not a readable JSON file: {error}") from error
    if not isinstance(value, dict):
        raise TalkheadError(f"{path} should hold a JSON object, found {type(value).__name__}")
    return value


def sha256(path: Path | str) -> str:
    """SHA-256 of a file as hexadecimal text, read in 1 MiB pieces."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()
