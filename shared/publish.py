"""New files for a folder, all at once: a journal lets the next who opens the folder finish a move that was cut short."""

import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from shared.errors import TalkheadError
from shared.files import atomic_path, make_folder, read_json, write_json
from shared.lock import lock_folder

WORK = ".partial"  # in a folder: what is not finished
JOURNAL = "move.json"
NEW = "new"  # the work folder of `whole_folder`
PATIENCE = 60.0  # seconds in which another process finishes its move


def work_folder(folder: Path, name: str) -> Path:
    """Where files for `folder` are made before `publish` moves them there."""
    return folder / WORK / name


def publish(folder: Path, name: str, last: str, stale: Iterable[str] = ()) -> None:
    """Move the files of work_folder(folder, name) into `folder`, `last` at the end, and remove what is named in `stale`.

    Killed at any moment, `folder` holds what it held before, or `finish_move` completes the move. The caller holds the
    folder's lock. Raises TalkheadError if the disk refuses.
    """
    work = work_folder(folder, name)
    files = sorted((path.name for path in work.iterdir() if path.is_file()), key=lambda file: (file == last, file))
    for file in files:
        _sync(work / file)
    _sync(work)
    journal = folder / WORK / JOURNAL
    write_json(journal, {"from": name, "files": files, "stale": sorted(set(stale) - set(files))})
    _sync(journal)
    _sync(journal.parent)
    _move(folder)


@contextmanager
def whole_folder(folder: Path, last: str, stale: Callable[[str], bool]) -> Iterator[Path]:
    """Yield a folder to write files into; on success `folder` has them all at once, and none of before for which `stale` of
    the name is true. On an error nothing has changed."""
    if not folder.is_dir():
        with atomic_path(folder) as partial:
            partial.mkdir()
            yield partial
        return
    with lock_folder(folder):
        remove_work(folder, NEW)
        work = work_folder(folder, NEW)
        make_folder(work)
        try:
            yield work
            publish(folder, NEW, last, [path.name for path in folder.iterdir() if stale(path.name)])
        except BaseException:
            if not (folder / WORK / JOURNAL).is_file():
                remove_work(folder, NEW)
            raise


def finish_move(folder: Path) -> None:
    """Complete a move into `folder` that was cut short, if there is one."""
    journal = folder / WORK / JOURNAL
    if not journal.is_file():
        return
    with lock_folder(folder, wait=PATIENCE):
        if journal.is_file():
            _move(folder)


def remove_work(folder: Path, name: str) -> None:
    """Remove what lies in work_folder(folder, name)."""
    shutil.rmtree(work_folder(folder, name), ignore_errors=True)
    try:
        (folder / WORK).rmdir()
    except OSError:
        pass  # it holds other work, or is not there


def _move(folder: Path) -> None:
    journal = folder / WORK / JOURNAL
    plan = read_json(journal)
    work = work_folder(folder, plan["from"])
    try:
        for name in plan["stale"]:
            old = folder / name
            if old.is_dir() and not old.is_symlink():
                shutil.rmtree(old)
            else:
                old.unlink(missing_ok=True)
        for name in plan["files"]:
            if (work / name).exists():
                os.replace(work / name, folder / name)
        _sync(folder)
        journal.unlink()
    except OSError as error:
        raise TalkheadError(f"cannot write {folder}: {error.strerror}") from error
    remove_work(folder, Path(plan["from"]).parts[0])


def _sync(path: Path) -> None:
    """Make what was written reach the disk before what comes next does."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except PermissionError:
        return  # folders cannot be opened everywhere
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
