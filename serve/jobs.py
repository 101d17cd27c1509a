"""Jobs: a journal, a bounded number of worker processes, and what becomes of both when any process is killed.

    root/journal.sqlite3   what there is to do and what was done
    root/uploads/ID.*      checked sound and landmarks of jobs that are not finished
    root/work/ID-TRY/      what one try at a job writes
    root/results/ID.mp4    finished videos, one of each job
"""

import asyncio
import logging
import math
import os
import secrets
import sqlite3
import threading
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

from serve import job_worker
from serve.errors import ApiError
from serve.journal import Job, Journal
from serve.pipe import PipeMessage, pack, unpack
from serve.settings import ServeSettings
from serve.uploads import Uploads
from shared.errors import TalkheadError
from shared.files import make_folder, read_json, remove
from shared.lock import lock_folder

MOST_TRIES = 3  # of a job whose process was killed
GRACE = 5.0  # seconds in which a worker stops a cancelled job by itself
STALL = 900.0  # seconds without a word after which a worker at work is taken for dead
SWEEP = 60.0  # seconds between looks for what has expired
RETRY = 1.0  # seconds after which a journal that could not be written is tried again
MOST_QUICK = 16  # landmarks and edits that may wait

LOG = logging.getLogger("talkhead.serve")
T = TypeVar("T")
Message = dict[str, Any]
CANCELLED = "cancelled", "the video was cancelled"  # code and sentence
WorkerMain = Callable[[Connection, str, int], None]


def new_id() -> str:
    """A job's name, which nobody can guess and which is safe in a path."""
    return f"video_{secrets.token_hex(16)}"


class Worker:
    """A worker process, started at its first task and again after it died."""

    def __init__(self, settings: ServeSettings, index: int, main: WorkerMain) -> None:
        self._settings, self._index, self._main = settings, index, main
        self._process: Any = None
        self._inbox: asyncio.Queue[Message | None] = asyncio.Queue()
        self.job: str | None = None  # at work on

    def start(self) -> None:
        """Start the process, unless it runs. Raises OSError where the system refuses."""
        if self._process is not None and self._process.is_alive():
            return
        self.kill()
        context = get_context("spawn")
        self._connection, other = context.Pipe()
        self._inbox = asyncio.Queue()
        process = context.Process(target=self._main, args=(other, self._settings.to_json(), self._index), daemon=True,
                                  name=f"talkhead-jobs-{self._index}")
        try:
            process.start()
        finally:
            other.close()
        self._process = process
        threading.Thread(target=_receive, args=(self._connection, asyncio.get_running_loop(), self._inbox), daemon=True).start()

    async def run(self, task: Message, told: Callable[[Message], None]) -> Message:
        """Do one task; `told` hears each message, the last one is returned: {"tell": "done" | "failed" | "cancelled"}, or "died"
        for a process that ended or no longer says anything."""
        self.job = task["job"]
        try:
            self.start()
            inbox = self._inbox
            with suppress(OSError):
                self._connection.send_bytes(pack(PipeMessage(task)))
            while True:
                try:
                    message = await asyncio.wait_for(inbox.get(), STALL)
                except TimeoutError:
                    message = None
                if message is None:
                    self.kill()
                    return {"tell": "died"}
                if message.get("job") != task["job"]:
                    continue  # "up", or what was said of the one before
                if message["tell"] in ("done", "failed", "cancelled"):
                    return message
                told(message)
        finally:
            self.job = None

    def cancel(self, job: str) -> None:
        """Let a job end; a worker that is still at it after a while is killed."""
        with suppress(OSError):
            self._connection.send_bytes(pack(PipeMessage({"do": "cancel", "job": job})))
        asyncio.get_running_loop().call_later(GRACE, self._kill_at, job)

    def _kill_at(self, job: str) -> None:
        if self.job == job:
            self.kill()

    def kill(self) -> None:
        """End the process at once, if there is one."""
        if self._process is not None:
            self._process.kill()
            self._process.join(1)
            self._process = None


def _receive(connection: Connection, loop: asyncio.AbstractEventLoop, inbox: "asyncio.Queue[Message | None]") -> None:
    with suppress(RuntimeError):  # the loop has ended
        while True:
            try:
                message = unpack(connection.recv_bytes()).fields
            except (EOFError, OSError):
                connection.close()
                loop.call_soon_threadsafe(inbox.put_nowait, None)
                return
            loop.call_soon_threadsafe(inbox.put_nowait, message)


class Quick:
    """A task of a client that waits for it; its messages come out of `heard`, the last one as `Worker.run` returns it."""

    def __init__(self, task: Message, worker: Worker) -> None:
        self.task, self._worker, self.dropped = task, worker, False
        self.heard: asyncio.Queue[Message] = asyncio.Queue()

    def drop(self) -> None:
        """Nobody waits any more."""
        self.dropped = True
        if self._worker.job == self.task["job"]:
            self._worker.cancel(self.task["job"])


class Jobs:
    """All jobs of a server; `start` and `stop` by its lifespan. `main` is what worker processes run."""

    def __init__(self, settings: ServeSettings, main: WorkerMain = job_worker.main) -> None:
        self.settings, self.root = settings, settings.root
        self.uploads = Uploads(settings.upload_seconds)
        self._workers = [Worker(settings, k, main) for k in range(settings.job_workers)]
        self._quick_worker = Worker(settings, 0, main)
        self._quick: asyncio.Queue[Quick] = asyncio.Queue()
        self._thread = ThreadPoolExecutor(1, "talkhead-journal")
        self._wake = asyncio.Event()
        self._progress: dict[str, int] = {}  # percent of jobs in progress
        self._cancelled: set[str] = set()  # in progress, to be ended
        self._ended: dict[str, asyncio.Event] = defaultdict(asyncio.Event)  # who waits for a cancelled job
        self._watchers: dict[str, set[asyncio.Event]] = defaultdict(set)
        self._tasks: list[asyncio.Task[None]] = []
        self._held = ExitStack()
        self.queue_seconds = [0.0, 0]  # sum and count, of jobs taken up
        self.job_seconds = [0.0, 0]  # of jobs completed

    # -- life

    async def start(self) -> None:
        """Open the journal, put right what a kill left, start the workers. Raises TalkheadError, also if another server uses the
        folder."""
        make_folder(self.root)
        self._held.enter_context(lock_folder(self.root))
        try:
            for name in ("uploads", "work", "results"):
                make_folder(self.root / name)
            self._journal = await self._do(lambda: Journal(self.root / "journal.sqlite3"))
            await self._do(self._recover)
        except BaseException:
            self._held.close()
            raise
        self.uploads.start()
        for worker in self._workers:
            worker.start()
        self._tasks = [asyncio.create_task(self._slot(worker)) for worker in self._workers]
        self._tasks += [asyncio.create_task(self._quick_slot()), asyncio.create_task(self._sweeper())]

    async def stop(self) -> None:
        """End the workers; jobs in progress go back into the queue, which does not count as a try."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for worker in (*self._workers, self._quick_worker):
            worker.kill()
        self.uploads.stop()

        def leave() -> None:
            for job in self._journal.in_state("in_progress"):
                if job.id in self._cancelled:
                    self._journal.end(job.id, time.time(), "cancelled", *CANCELLED)
                elif not self._adopt(job):
                    self._journal.give_back(job.id, tried=False)
                remove(self._folder(job))
            self._journal.close()

        with suppress(sqlite3.Error):
            await self._do(leave)
        self._thread.shutdown()
        self._held.close()

    def _recover(self) -> None:
        now = time.time()
        for job in self._journal.in_state("in_progress"):
            if not self._adopt(job):
                self._again(job, now)
        completed = {job.id for job in self._journal.in_state("completed")}
        waiting = {job.id for job in self._journal.in_state("queued")}
        for path in (self.root / "work").iterdir():
            remove(path)
        for name, known in (("results", completed), ("uploads", waiting)):
            for path in (self.root / name).iterdir():
                if path.name.split(".")[0] not in known:
                    remove(path)

    def _again(self, job: Job, now: float) -> None:
        """A try at a job came to nothing because its process ended."""
        if job.tries < MOST_TRIES:
            self._journal.give_back(job.id, tried=True)
        else:
            self._journal.end(job.id, now, "failed", "worker_died",
                              f"the process that made it ended {job.tries} times; the server's log may say why")

    async def _do(self, work: Callable[[], T]) -> T:
        """`work` with the journal, in the one thread that uses it."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    async def _insist(self, work: Callable[[], T]) -> T:
        """The same, again and again while the disk refuses."""
        while True:
            try:
                return await self._do(work)
            except sqlite3.OperationalError as error:
                LOG.warning("the journal cannot be written, so this waits: %s", error)
                await asyncio.sleep(RETRY)

    # -- what clients ask for

    async def create(self, job: Job) -> Job:
        """Put a new job into the queue. Raises ApiError if that is full, or the disk."""
        try:
            added = await self._do(lambda: self._journal.add(job, self.settings.queued_jobs))
        except sqlite3.OperationalError as error:
            raise ApiError(507, "server_disk", f"the server's journal cannot be written: {error}") from error
        if not added:
            raise self.full()
        self._wake.set()
        return job

    def full(self) -> ApiError:
        """The answer to one job too many."""
        mean = self.job_seconds[0] / self.job_seconds[1] if self.job_seconds[1] else 10.0
        return ApiError(429, "queue_full", f"{self.settings.queued_jobs} videos are waiting already; try again later",
                        headers={"Retry-After": str(max(1, min(3600, math.ceil(mean))))})

    async def refuse_if_full(self) -> None:
        """Raise ApiError if no job can be added."""
        if (await self._do(self._journal.counts))["queued"] >= self.settings.queued_jobs:
            raise self.full()

    async def get(self, id: str) -> Job | None:
        return await self._do(lambda: self._journal.get(id))

    async def of_key(self, key: str) -> Job | None:
        return await self._do(lambda: self._journal.of_key(key))

    async def page(self, after: str | None, limit: int, newest_first: bool) -> list[Job] | None:
        return await self._do(lambda: self._journal.page(after, limit, newest_first))

    async def counts(self) -> dict[str, int]:
        """How many jobs are in each state, for metrics."""
        return {str(state): count for state, count in (await self._do(self._journal.counts)).items()}

    def progress(self, job: Job) -> int:
        """Percent, 0 to 100."""
        if job.state in ("completed", "expired"):
            return 100
        return self._progress.get(job.id, 0) if job.state == "in_progress" else 0

    def result(self, job: Job) -> Path:
        return self.root / "results" / f"{job.id}{job.ending}"

    def upload(self, id: str, ending: str) -> Path:
        return self.root / "uploads" / f"{id}{ending}"

    async def cancel(self, id: str) -> Job | None:
        """End a job that is not finished; the job as it then is, which may have been finished just before."""
        while True:
            if await self._do(lambda: self._end_queued(id, time.time())):
                self._clear(id)
            job = await self.get(id)
            if job is None or not job.waiting:
                return job
            if job.state == "in_progress":
                gone = self._ended[id]
                self._cancelled.add(id)
                for worker in self._workers:
                    if worker.job == id:
                        worker.cancel(id)
                await gone.wait()

    def _end_queued(self, id: str, now: float) -> bool:
        ended = self._journal.end(id, now, "cancelled", *CANCELLED, since=("queued",))
        if ended:
            self._forget_uploads(id)
        return ended

    async def delete(self, id: str) -> bool:
        """Cancel a job if need be, and forget it with its result; False if there is no such job."""
        job = await self.cancel(id)
        if job is None or not await self._do(lambda: self._journal.delete(id)):
            return False
        remove(self.result(job))
        self._changed(id)
        return True

    async def watch(self, id: str) -> AsyncIterator[Job | None]:
        """The job now and after each change, None when nothing has changed for a while; ends with it."""
        changed = asyncio.Event()
        self._watchers[id].add(changed)
        try:
            while True:
                changed.clear()
                job = await self.get(id)
                if job is None:
                    return
                yield job
                if not job.waiting:
                    return
                while True:
                    try:
                        await asyncio.wait_for(changed.wait(), 15)
                        break
                    except TimeoutError:
                        yield None
        finally:
            self._watchers[id].discard(changed)
            if not self._watchers[id]:
                del self._watchers[id]

    @contextmanager
    def quickly(self, do: str, **fields: Any) -> Iterator[Quick]:
        """Give a task "landmarks" or "edit" to the worker for such; its `output` lies in a folder that is there inside `with`.

        Raises ApiError 429 where too many wait.
        """
        if self._quick.qsize() >= MOST_QUICK:
            raise ApiError(429, "busy", f"{self._quick.qsize()} requests are waiting; try again", headers={"Retry-After": "2"})
        folder = self.root / "work" / f"quick_{secrets.token_hex(16)}"
        try:
            folder.mkdir()
        except OSError as error:
            raise ApiError(507, "server_disk", f"the server cannot write: {error.strerror}") from error
        task = Quick({"do": do, "job": folder.name, "folder": str(folder), "output": str(folder / "rows.npy"), **fields},
                     self._quick_worker)
        self._quick.put_nowait(task)
        try:
            yield task
        finally:
            task.drop()
            remove(folder)

    # -- what goes on meanwhile

    async def _slot(self, worker: Worker) -> None:
        """One worker does job after job."""
        while True:
            self._wake.clear()
            job = await self._insist(lambda: self._journal.claim(time.time()))
            if job is None:
                await self._wake.wait()
                continue
            self._wake.set()  # there may be more for the other workers
            try:
                await self._make(job, worker)
            except Exception:
                LOG.exception("job %s", job.id)
                fault = {"tell": "failed", "code": "server_fault", "message": "a fault of the server; its log says more"}
                await self._insist(partial(self._finish, job, fault))
                self._clear(job.id)

    async def _make(self, job: Job, worker: Worker) -> None:
        self.queue_seconds[0] += time.time() - job.created
        self.queue_seconds[1] += 1
        self._note(job.id, 0)
        folder, avatar = self._folder(job), self.settings.avatars.get(job.avatar)
        if job.id in self._cancelled:
            last: Message = {"tell": "cancelled"}
        elif avatar is None:
            last = {"tell": "failed", "code": "model_not_found", "message": f"there is no avatar {job.avatar!r} here any more"}
        else:
            task = {**job.options, "do": "video", "job": job.id, "avatar": job.avatar, "avatar_path": avatar,
                    "folder": str(folder), "output": str(folder / f"video{job.ending}")}
            for name in ("sound", "landmarks"):
                task[name] = str(self.upload(job.id, task[name])) if task[name] else None
            try:
                last = await worker.run(task, lambda message: self._note(job.id, message["percent"]))
            except OSError:
                LOG.exception("no process for jobs, so they wait")
                last = {"tell": "put off"}
                await asyncio.sleep(RETRY)
        await self._insist(lambda: self._finish(job, last))
        self._clear(job.id)
        remove(folder)

    def _finish(self, job: Job, last: Message) -> None:
        """What came of a try is put into the journal, and a result into its place."""
        now = time.time()
        if job.id in self._cancelled:
            self._journal.end(job.id, now, "cancelled", *CANCELLED)
        elif last["tell"] == "failed":
            self._journal.end(job.id, now, "failed", last["code"], last["message"])
        elif last["tell"] == "put off":
            self._journal.give_back(job.id, tried=False)
        elif not self._adopt(job):
            self._again(job, now)
        else:
            self.job_seconds[0] += now - (job.started or now)
            self.job_seconds[1] += 1
            self._expire()
        found = self._journal.get(job.id)
        if found is None or not found.waiting:
            self._forget_uploads(job.id)

    def _adopt(self, job: Job) -> bool:
        """Take over what a try has finished, if it has; the same again where this was cut short."""
        folder, result = self._folder(job), self.result(job)
        try:
            made = read_json(folder / job_worker.DONE)
        except TalkheadError:
            return False
        video = folder / f"video{job.ending}"
        if video.is_file():
            os.replace(video, result)
            _sync(result.parent)
        if not result.is_file():
            return False
        now = time.time()
        return self._journal.complete(job.id, now, self._expiry(now), made["seconds"], result.stat().st_size, made["warnings"])

    async def _quick_slot(self) -> None:
        while True:
            quick = await self._quick.get()
            if not quick.dropped:
                try:
                    last = await self._quick_worker.run(quick.task, quick.heard.put_nowait)
                except OSError:
                    LOG.exception("no process for %s", quick.task["do"])
                    last = {"tell": "died"}
                quick.heard.put_nowait(last)
            if quick.dropped:  # the worker may have made it again
                remove(Path(quick.task["folder"]))

    async def _sweeper(self) -> None:
        while True:
            await self._insist(self._expire)
            try:
                for worker in self._workers:
                    worker.start()  # one that ended while it had nothing to do
            except OSError:
                LOG.exception("no process for jobs")
            await asyncio.sleep(SWEEP)

    def _expire(self) -> None:
        now = time.time()
        kept = self.settings.keep_hours * 3600
        for job in self._journal.expire(now, self.settings.keep_bytes, now - kept):
            remove(self.result(job))

    def _expiry(self, now: float) -> float:
        return now + self.settings.keep_hours * 3600

    def _folder(self, job: Job) -> Path:
        return self.root / "work" / f"{job.id}-{job.tries}"

    def _note(self, id: str, percent: int) -> None:
        self._progress[id] = percent
        self._changed(id)

    def _changed(self, id: str) -> None:
        for event in self._watchers.get(id, ()):
            event.set()

    def _clear(self, id: str) -> None:
        """A try at a job has ended, or the job was never tried: forget what is only known while it lasts."""
        self._progress.pop(id, None)
        self._cancelled.discard(id)
        if (gone := self._ended.pop(id, None)) is not None:
            gone.set()
        self._changed(id)

    def _forget_uploads(self, id: str) -> None:
        for path in (self.root / "uploads").glob(f"{id}.*"):
            remove(path)


def _sync(folder: Path) -> None:
    """Make a move within `folder` reach the disk."""
    with suppress(PermissionError):  # folders cannot be opened everywhere
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
