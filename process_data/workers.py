"""A pool of worker processes for a video split into chunks of frames, with one progress bar over the frames done."""

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.connection import Connection
from multiprocessing.connection import wait as wait_for
from threading import Thread
from typing import Any, NoReturn

from shared import machine
from shared.errors import MachineError
from shared.files import remove_unfinished
from shared.progress import progress

# a video is split by its length alone, so that results do not depend on the number of workers
PARTS = 32  # chunks of a video, unless they would be shorter or longer than allowed
SHORTEST, LONGEST = 50, 250  # frames
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")  # read by numeric libraries when they load
_counter: Any = None  # in a worker: the shared number of frames done


def chunk_spans(frames: int) -> list[tuple[int, int]]:
    """(start, stop) of each chunk of a video of `frames`."""
    length = min(max(-(-frames // PARTS), SHORTEST), LONGEST)
    return [(start, min(start + length, frames)) for start in range(0, frames, length)]


def report_done(frames: int = 1) -> None:
    """Advance the progress bar by `frames`. Called by the jobs; without effect outside a worker."""
    if _counter is not None:
        with _counter.get_lock():
            _counter.value += frames


def _start_worker(counter: Any, parent: Connection) -> None:
    global _counter
    import cv2

    Thread(target=_exit_with, args=(parent,), daemon=True).start()
    signal.signal(signal.SIGTERM, lambda *_: _exit())
    _counter = counter
    cv2.setNumThreads(1)


def _exit_with(parent: Connection) -> None:
    """Exit when the other end of this pipe is closed, as it is when the parent process ends, even if it is killed."""
    wait_for([parent])
    _exit()


def _exit() -> NoReturn:
    remove_unfinished()
    os._exit(1)


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """Block Ctrl-C, which a terminal sends to all processes: for good in processes started here, until the end in this one."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Workers:
    """A pool of processes for several passes over the video. Use as a context manager.

    `count` processes, by default as many as processors and memory allow. Each uses one thread, since the matrices of one
    frame are too small to share. They end when this process ends, also if it is killed.
    """

    def __init__(self, count: int | None = None) -> None:
        self.count = machine.workers(count)

    def __enter__(self) -> "Workers":
        # numeric libraries read these when they load, so they must be set before the processes start
        self._environment = {name: os.environ.get(name) for name in THREADS}
        os.environ.update(dict.fromkeys(THREADS, "1"))
        context = multiprocessing.get_context("spawn")
        watched, self._alive = context.Pipe(duplex=False)
        try:
            with _without_interrupts():
                self._counter = context.Value("q", 0)
        except OSError as error:  # no shared memory
            raise MachineError(f"worker processes cannot be started: {error.strerror}; can /dev/shm be written?") from error
        self._pool = ProcessPoolExecutor(self.count, mp_context=context, initializer=_start_worker,
                                         initargs=(self._counter, watched))
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        if kind is not None:
            self._alive.close()  # the workers exit at once
        self._pool.shutdown(cancel_futures=True)
        self._alive.close()
        for name, value in self._environment.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value

    def _submit(self, work: Callable[..., Any], jobs: Sequence[tuple]) -> set[Future]:
        try:
            with _without_interrupts():
                return {self._pool.submit(work, *job) for job in jobs}
        except OSError as error:  # no more processes, memory or open files for this user
            raise MachineError(f"worker processes cannot be started: {error.strerror}; try --workers 1") from error

    def run(self, work: Callable[..., Any], jobs: Sequence[tuple], frames: int, done: int, title: str, *,
            quiet: bool = False, unit: str = "frame") -> None:
        """Call work(*job) in the pool for every job and wait for all; raises what `work` raises.

        The bar, named `title`, counts to `frames`, of which `done` were finished by an earlier run.
        """
        self._counter.value = done
        with progress(frames, title, initial=done, quiet=quiet, unit=unit) as bar:
            waiting: set[Future] = set()
            try:
                waiting = self._submit(work, jobs)
                while waiting:
                    finished, waiting = wait(waiting, timeout=0.5, return_when=FIRST_COMPLETED)
                    for job in finished:
                        job.result()
                    bar.update(min(frames, self._counter.value) - bar.n)
            except BrokenProcessPool as error:
                raise MachineError(f"a process died during {title!r}; if memory ran out, try --workers 1") from error
            except BaseException:
                for job in waiting:
                    job.cancel()
                raise
