"""Stages of a pipeline side by side: one thread for each, short queues between them, so that memory stays bounded."""

from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from queue import Empty, Full, Queue
from threading import Event, Thread
from typing import Any, TypeVar

T = TypeVar("T")
END: Any = object()
PAUSE = 0.05  # seconds between two looks whether the other side has given up


def ahead(items: Iterable[T], size: int = 2) -> Generator[T, None, None]:
    """`items` in their order, made in a thread that is at most `size` of them ahead; its error is raised where it belongs.

    The thread ends when the iteration ends or is closed.
    """
    queue: Queue = Queue(size)
    closed = Event()

    def put(item: Any) -> bool:
        while not closed.is_set():
            with suppress(Full):
                queue.put(item, timeout=PAUSE)
                return True
        return False

    def make() -> None:
        try:
            for item in items:
                if not put((item, None)):
                    break
            else:
                put((END, None))
        except BaseException as error:  # raised again where the items are used
            put((END, error))
        finally:
            if hasattr(items, "close"):
                items.close()

    thread = Thread(target=make, name="ahead", daemon=True)
    thread.start()
    try:
        while True:
            item, error = queue.get()
            if error is not None:
                raise error
            if item is END:
                return
            yield item
    finally:
        closed.set()
        thread.join()


@contextmanager
def behind(consume: Callable[[T], object], size: int = 4) -> Iterator[Callable[[T], None]]:
    """Yield a function that hands items to `consume` in a thread, which is at most `size` of them behind.

    All are consumed when the context ends. An error of `consume` is raised by the next call or at the end; on an error inside
    the context what waits is dropped.
    """
    queue: Queue = Queue(size)
    failed: list[BaseException] = []
    dropped = Event()

    def work() -> None:
        while (item := queue.get()) is not END:
            if failed or dropped.is_set():
                continue
            try:
                consume(item)
            except BaseException as error:  # raised again by whoever hands over the next item
                failed.append(error)

    def hand_over(item: T) -> None:
        if failed:
            raise failed[0]
        queue.put(item)

    thread = Thread(target=work, name="behind", daemon=True)
    thread.start()
    try:
        yield hand_over
    except BaseException:
        dropped.set()
        with suppress(Empty):
            while True:
                queue.get_nowait()
        raise
    finally:
        queue.put(END)
        thread.join()
    if failed:
        raise failed[0]
