"""Work on a video in chunks of frames, on all cores, with one progress bar over the frames done."""

import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from shared.errors import TalkheadError
from shared.training import progress

CHUNK = 250  # frames; fixed, so that results do not depend on the number of workers
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_done: Any = None


def chunks(frames: int) -> list[tuple[int, int]]:
    """(start, stop) of each chunk of a video of `frames`."""
    return [(start, min(start + CHUNK, frames)) for start in range(0, frames, CHUNK)]


def tick(frames: int = 1) -> None:
    """Called by the work itself: so many more frames are done."""
    if _done is not None:
        with _done.get_lock():
            _done.value += frames


def _start_worker(counter: Any) -> None:
    global _done
    import cv2

    _done = counter
    cv2.setNumThreads(1)


class Workers:
    """A pool of processes that stays up for several passes over the video. Use as a context manager.

    Each works on one thread: the small matrices of one frame only make several wait for each other.
    """

    def __init__(self, count: int | None = None) -> None:
        self.count = count or os.cpu_count() or 1

    def __enter__(self) -> "Workers":
        # read when a library loads, so it must stand in the environment that the processes start with
        self._environment = {name: os.environ.get(name) for name in THREADS}
        os.environ.update(dict.fromkeys(THREADS, "1"))
        context = multiprocessing.get_context("spawn")
        self._counter = context.Value("q", 0)
        self._pool = ProcessPoolExecutor(self.count, mp_context=context, initializer=_start_worker, initargs=(self._counter,))
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        self._pool.shutdown(wait=kind is None, cancel_futures=True)
        for name, value in self._environment.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value

    def run(self, work: Callable[..., Any], jobs: Sequence[tuple], frames: int, done: int, title: str, *,
            quiet: bool = False, unit: str = "frame") -> None:
        """Call work(*job) for every job in the pool; `done` of the `frames` were finished before. Raises what work raises."""
        self._counter.value = done
        with progress(frames, title, initial=done, quiet=quiet, unit=unit) as bar:
            waiting = {self._pool.submit(work, *job) for job in jobs}
            try:
                while waiting:
                    finished, waiting = wait(waiting, timeout=0.5, return_when=FIRST_COMPLETED)
                    for job in finished:
                        job.result()
                    bar.update(min(frames, self._counter.value) - bar.n)
            except BrokenProcessPool as error:
                raise TalkheadError(f"a process died during {title!r}; if memory ran out, try --workers 1") from error
            except BaseException:
                for job in waiting:
                    job.cancel()
                raise
