"""One writer at a time: a lock file that says who holds it, and that no dead process keeps."""

import errno
import json
import os
import re
import shlex
import shutil
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

from shared.errors import TalkheadError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LONGEST_NAME = 200  # bytes of a file name that a lock file's name still holds as it is
POLL_SECONDS = 0.05
PARTIAL = re.compile(r"\.(.*)\.partial-(\d+)(\.[^.]*)?")  # the names that `files.atomic_path` gives
NO_FLOCK = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)
_held: set[Path] = set()


def folder_lock(folder: Path) -> Path:
    """The lock file of a folder that is worked in."""
    return folder / ".lock"


def output_lock(output: Path) -> Path:
    """The lock file of a file or folder that is made beside its final name and then moved there."""
    name = output.name
    if len(os.fsencode(name)) > LONGEST_NAME:
        name = sha256(os.fsencode(name)).hexdigest()
    return output.with_name(f".{name}.lock")


@contextmanager
def lock_folder(folder: Path, wait: float = 0.0) -> Iterator[None]:
    """Keep other talkhead processes from working in `folder`, which is made if it is missing.

    Raises TalkheadError, naming the process that holds the lock, after `wait` seconds. The same process may nest locks.
    """
    with _locked(folder_lock(folder), folder, wait):
        remove_abandoned(folder)
        yield


@contextmanager
def lock_output(output: Path) -> Iterator[None]:
    """Keep other talkhead processes from making the same `output`. Raises TalkheadError naming the one that makes it."""
    with _locked(output_lock(output.absolute()), output, 0.0):
        remove_abandoned(output.absolute().parent, output.stem)
        yield


def remove_abandoned(folder: Path, stem: str | None = None, age: float = 0.0) -> None:
    """Remove temporary files (see `files.atomic_path`) that killed processes left in `folder`, of outputs named `stem` or of
    any, if they were last written `age` seconds ago or more."""
    for path in folder.glob(".*.partial-*"):
        found = PARTIAL.fullmatch(path.name)
        if found is None or (stem is not None and found[1] != stem) or _lives(int(found[2])):
            continue
        try:
            if time.time() - path.stat().st_mtime >= age:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        except OSError:
            continue


def holder(file: Path) -> str | None:
    """Who holds a lock file, in words; None if nobody does."""
    if not file.is_file() or file.resolve() in _held:
        return None
    try:
        descriptor = os.open(file, os.O_RDWR)
    except OSError:
        return None
    try:
        return None if _lock(descriptor, file) else _who(file)
    finally:
        os.close(descriptor)


@contextmanager
def _locked(file: Path, subject: Path, wait: float) -> Iterator[None]:
    key = file.resolve()
    if key in _held:
        yield
        return
    made: list[Path] = []
    try:
        made = _make_folders(file.parent)
        descriptor = _take(file, subject, wait)
    except TalkheadError:
        _remove_empty(made)
        raise
    except OSError as error:
        _remove_empty(made)
        if not file.parent.is_dir():
            raise TalkheadError(f"cannot create the folder {file.parent}: {error.strerror}") from error
        raise TalkheadError(f"cannot write {subject}: {error.strerror}") from error
    _held.add(key)
    try:
        yield
    finally:
        _held.discard(key)
        file.unlink(missing_ok=True)  # before it is let go: nobody can hold a file that has no name any more
        os.close(descriptor)
        _remove_empty(made)


def _make_folders(folder: Path) -> list[Path]:
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    return missing


def _remove_empty(folders: list[Path]) -> None:
    """Folders that were made for the lock alone go again."""
    for folder in folders:
        try:
            folder.rmdir()
        except OSError:
            return


def _take(file: Path, subject: Path, wait: float) -> int:
    """Open and lock `file` -> its descriptor."""
    patience = time.monotonic() + wait
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if _lock(descriptor, file):
                if not _still_named(descriptor, file):
                    os.close(descriptor)
                    continue
                os.truncate(descriptor, 0)
                os.write(descriptor, json.dumps(_self()).encode())
                return descriptor
            who = _who(file)
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
        if time.monotonic() > patience:
            raise TalkheadError(f"{subject} is being written by another talkhead, {who}; wait until it ends, or stop it")
        time.sleep(POLL_SECONDS)


def _lock(descriptor: int, file: Path) -> bool:
    """Take the lock if nobody has it. Where the file system knows no locks, the process named in the file must be dead."""
    if fcntl is not None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno not in NO_FLOCK:
                raise
    return not _alive(_read(file))


def _still_named(descriptor: int, file: Path) -> bool:
    """False where the one who held the lock has removed the file since it was opened."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(file))
    except FileNotFoundError:
        return False


def _self() -> dict[str, Any]:
    command = shlex.join(["talkhead", *sys.argv[1:]])
    return {"pid": os.getpid(), "host": socket.gethostname(), "command": command, "since": time.strftime("%Y-%m-%d %H:%M:%S")}


def _read(file: Path) -> dict[str, Any]:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def _alive(values: dict[str, Any]) -> bool:
    """Whether the process that wrote a lock file lives; of other hosts that is not known, so yes."""
    pid, host = values.get("pid"), values.get("host")
    if not isinstance(pid, int) or pid == os.getpid():
        return False
    return host != socket.gethostname() or _lives(pid)


def _lives(pid: int) -> bool:
    """Whether this host has a process of that number."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True


def _who(file: Path) -> str:
    values = _read(file)
    if "pid" not in values:
        return f"which holds {file}"
    place = "" if values.get("host") == socket.gethostname() else f" on {values.get('host')}"
    return f"process {values['pid']}{place} since {values.get('since')} (`{values.get('command')}`)"
