"""What this process may use of the machine: processors and memory, container limits included."""

import math
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/")
WORKER_BYTES = 0.6e9  # of memory that one process of `talkhead process` takes
UNLIMITED = 1 << 60  # bytes; version 1 of control groups writes a number beyond for "no limit"


def cpus() -> float:
    """Processors that this process may use: those it is bound to, or the quota of its control group, such as 1.5."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(bound, cpu_quota() or bound)


def memory() -> int | None:
    """Bytes of memory that this process may use: all there are, or the limit of its control group; None if unknown."""
    known = [limit for limit in (_physical_memory(), memory_limit()) if limit]
    return min(known, default=None)


def threads() -> int:
    """Threads that can run at once."""
    return max(1, math.ceil(cpus()))


def workers(count: int | None = None) -> int:
    """How many worker processes to start, unless the user named a `count`."""
    if count is None:
        have = memory()
        count = threads() if have is None else min(threads(), int(have / WORKER_BYTES))
    return max(1, min(count, 61) if os.name == "nt" else count)  # Windows cannot wait for more


def limit_threads() -> None:
    """Tell the libraries how to use the processors; read when they load, and by the processes that this one starts.

    Threads that wait sleep instead of spinning: torch's and numba's pools take turns, and on a busy machine each would wait at
    the expense of the other. numpy's matrices are small here, and its threads spin, so it gets one. Where the container may
    use fewer processors than the machine has, they are told how many. What the user has set stays.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    quota = cpu_quota()
    if quota is not None:
        for name in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS"):
            os.environ.setdefault(name, str(threads()))


def private_folder(name: str) -> Path | None:
    """A folder below the temporary one that only this user can write into, as what is loaded from it runs; None if there is
    none."""
    user = os.getuid() if hasattr(os, "getuid") else None  # elsewhere each user has a temporary folder of his own
    return _private(Path(tempfile.gettempdir()) / (f"talkhead-{name}" if user is None else f"talkhead-{name}-{user}"))


def cache_folder(name: str) -> Path | None:
    """A folder that only this user can write into, for what can be made again: in $XDG_CACHE_HOME or ~/.cache, else a
    `private_folder`."""
    return _user_folder("XDG_CACHE_HOME", "~/.cache", name)


def state_folder(name: str) -> Path | None:
    """A folder that only this user can write into, for what should outlast the process: in $XDG_STATE_HOME or ~/.local/state,
    else a `private_folder`."""
    return _user_folder("XDG_STATE_HOME", "~/.local/state", name)


def _user_folder(variable: str, default: str, name: str) -> Path | None:
    named = Path(os.environ.get(variable, ""))
    folder = (named if named.is_absolute() else Path(os.path.expanduser(default))) / "talkhead"
    kept = folder.is_absolute() and _private(folder) and _private(folder / name)
    return kept or private_folder(name)


def _private(folder: Path) -> Path | None:
    """Make a folder that only this user can read; None if others can write into it or it cannot be made."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.lstat()
    except OSError:
        return None
    mine = not hasattr(os, "getuid") or found.st_uid == os.getuid() and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    return folder if mine and stat.S_ISDIR(found.st_mode) and os.access(folder, os.W_OK) else None


def do_without_home() -> None:
    """Where the home folder cannot be written, let libraries that keep files there use the temporary folder.

    They are matplotlib, which mediapipe loads, and torch when it compiles gsplat. What the user has set stays.
    """
    if not os.access(os.path.expanduser("~"), os.W_OK):
        for variable, name in (("MPLCONFIGDIR", "matplotlib"), ("TORCH_EXTENSIONS_DIR", "torch")):
            folder = private_folder(name)
            if folder is not None:
                os.environ.setdefault(variable, str(folder))


def cpu_quota(root: Path = ROOT) -> float | None:
    """Processors that the control group may use on average; None without a limit."""
    found = []
    for folder in _groups("cpu", root):
        quota = _words(folder / "cpu.max") or _words(folder / "cpu.cfs_quota_us") + _words(folder / "cpu.cfs_period_us")
        if len(quota) == 2 and quota[0].isdigit() and int(quota[1]) > 0:
            found.append(int(quota[0]) / int(quota[1]))
    return min(found, default=None)


def memory_limit(root: Path = ROOT) -> int | None:
    """Bytes that the control group may use; None without a limit."""
    found = []
    for folder in _groups("memory", root):
        words = _words(folder / "memory.max") or _words(folder / "memory.limit_in_bytes")
        if words and words[0].isdigit() and int(words[0]) < UNLIMITED:
            found.append(int(words[0]))
    return min(found, default=None)


def _groups(controller: str, root: Path) -> Iterator[Path]:
    """Folders that may hold limits of this process: its control group of either version, and all above it.

    In a container the group's name may be that of the host, where only the topmost of them is to be seen.
    """
    mounted = root / "sys/fs/cgroup"
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, names, path = (line.split(":", 2) + ["", ""])[:3]
        if names and controller not in names.split(","):
            continue
        tops = [mounted / controller, mounted / names] if names else [mounted, mounted / "unified"]
        for top in tops:
            group = top / path.strip("/")
            yield from (place for place in (group, *group.parents) if place == top or top in place.parents)


def _physical_memory() -> int | None:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None


def _words(file: Path) -> list[str]:
    return _text(file).split()


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
