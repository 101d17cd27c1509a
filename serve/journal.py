"""The journal of jobs: one SQLite file in which every job stands from its creation to its expiry. What it says survives kill -9
and the loss of power."""

import json
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from shared.errors import TalkheadError

State = Literal["queued", "in_progress", "completed", "failed", "cancelled", "expired"]
STATES: tuple[State, ...] = ("queued", "in_progress", "completed", "failed", "cancelled", "expired")
WAITING = ("queued", "in_progress")
VERSION = 1
TABLE = """
CREATE TABLE jobs (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    state TEXT NOT NULL,
    avatar TEXT NOT NULL,
    options TEXT NOT NULL,
    ending TEXT NOT NULL,
    created REAL NOT NULL,
    seconds REAL NOT NULL,
    size TEXT NOT NULL,
    prompt TEXT,
    key TEXT UNIQUE,
    digest TEXT,
    tries INTEGER NOT NULL DEFAULT 0,
    started REAL,
    finished REAL,
    expires REAL,
    bytes INTEGER NOT NULL DEFAULT 0,
    warnings TEXT NOT NULL DEFAULT '[]',
    error_code TEXT,
    error_message TEXT
);
CREATE INDEX jobs_by_state ON jobs (state, number);
"""


@dataclass(frozen=True)
class Job:
    """A video to be made. `options` are plain values for the worker, `ending` is the result's (".mp4"), `seconds` its length,
    `bytes` its size; times are seconds since 1970. `key` and `digest` are of the request that may be repeated."""

    id: str
    avatar: str
    options: dict[str, Any]
    ending: str
    created: float
    seconds: float
    size: str
    prompt: str | None = None
    key: str | None = None
    digest: str | None = None
    state: State = "queued"
    tries: int = 0
    started: float | None = None
    finished: float | None = None
    expires: float | None = None
    bytes: int = 0
    warnings: list[str] = field(default_factory=list)
    error_code: str | None = None
    error_message: str | None = None

    @property
    def waiting(self) -> bool:
        """Whether it is still to be made."""
        return self.state in WAITING


COLUMNS = tuple(Job.__dataclass_fields__)
_SELECT = f"SELECT {', '.join(COLUMNS)} FROM jobs"


class Journal:
    """Each method is one transaction, on the disk when it returns. Used by one thread at a time.

    Raises TalkheadError for a file that is no journal, and sqlite3.OperationalError where the disk refuses.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")
            version = self._db.execute("PRAGMA user_version").fetchone()[0]
            if version == 0:
                self._db.executescript(f"BEGIN IMMEDIATE; {TABLE} PRAGMA user_version = {VERSION}; COMMIT;")
        except sqlite3.OperationalError as error:
            raise TalkheadError(f"{path} cannot be opened or written: {error}; name another folder with --folder") from error
        except sqlite3.DatabaseError as error:
            raise TalkheadError(f"{path} is no journal of jobs, or it is damaged ({error}); move it away") from error
        if version not in (0, VERSION):
            raise TalkheadError(f"{path}: expected journal version {VERSION}, found {version}; another version of talkhead wrote "
                                "it, so name another folder with --folder")

    def close(self) -> None:
        self._db.close()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield self._db
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise

    # -- reading

    def get(self, id: str) -> Job | None:
        return self._first("WHERE id = ?", id)

    def of_key(self, key: str) -> Job | None:
        """The job that was created under an Idempotency-Key."""
        return self._first("WHERE key = ?", key)

    def page(self, after: str | None, limit: int, newest_first: bool) -> list[Job] | None:
        """At most `limit` jobs in the order of their creation, those after the job `after`; None if there is no such job."""
        order, beyond = ("DESC", "<") if newest_first else ("ASC", ">")
        if after is None:
            return self._all(f"ORDER BY number {order} LIMIT ?", limit)
        found = self._db.execute("SELECT number FROM jobs WHERE id = ?", (after,)).fetchone()
        return None if found is None else self._all(f"WHERE number {beyond} ? ORDER BY number {order} LIMIT ?", found[0], limit)

    def in_state(self, *states: State) -> list[Job]:
        """All jobs in one of the states, oldest first."""
        return self._all(f"WHERE state IN ({', '.join('?' * len(states))}) ORDER BY number", *states)

    def counts(self) -> dict[State, int]:
        """How many jobs are in each state."""
        found = dict(self._db.execute("SELECT state, COUNT(*) FROM jobs GROUP BY state"))
        return {state: found.get(state, 0) for state in STATES}

    # -- writing

    def add(self, job: Job, most_queued: int) -> bool:
        """Put a new job at the end of the queue; False, with nothing done, if that is full."""
        row = {name: getattr(job, name) for name in COLUMNS}
        row |= {"options": json.dumps(job.options), "warnings": json.dumps(job.warnings)}
        with self._transaction() as db:
            if db.execute("SELECT COUNT(*) FROM jobs WHERE state = 'queued'").fetchone()[0] >= most_queued:
                return False
            db.execute(f"INSERT INTO jobs ({', '.join(COLUMNS)}) VALUES ({', '.join(':' + name for name in COLUMNS)})", row)
        return True

    def claim(self, now: float) -> Job | None:
        """Take the oldest queued job, which is then in progress and has been tried once more; None if there is none."""
        with self._transaction() as db:
            found = db.execute("SELECT id FROM jobs WHERE state = 'queued' ORDER BY number LIMIT 1").fetchone()
            if found is None:
                return None
            db.execute("UPDATE jobs SET state = 'in_progress', tries = tries + 1, started = ? WHERE id = ?", (now, found[0]))
        return self.get(found[0])

    def give_back(self, id: str, tried: bool) -> None:
        """A job in progress goes back to its place in the queue; unless it was `tried`, this does not count."""
        self._db.execute("UPDATE jobs SET state = 'queued', started = NULL, tries = tries - ? WHERE id = ? AND "
                         "state = 'in_progress'", (0 if tried else 1, id))

    def complete(self, id: str, now: float, expires: float, seconds: float, size: int, warnings: list[str]) -> bool:
        """A job in progress is finished, its result of `size` bytes in place; False if it no longer is in progress."""
        done = self._db.execute("UPDATE jobs SET state = 'completed', finished = ?, expires = ?, seconds = ?, bytes = ?, "
                                "warnings = ? WHERE id = ? AND state = 'in_progress'",
                                (now, expires, seconds, size, json.dumps(warnings), id))
        return done.rowcount > 0

    def end(self, id: str, now: float, state: Literal["failed", "cancelled"], code: str, message: str,
            since: tuple[str, ...] = WAITING) -> bool:
        """A job in one of the states `since` ends without a result; False if it is in none of them."""
        done = self._db.execute("UPDATE jobs SET state = ?, finished = ?, expires = ?, error_code = ?, error_message = ? "
                                f"WHERE id = ? AND state IN ({', '.join('?' * len(since))})",
                                (state, now, now, code, message, id, *since))
        return done.rowcount > 0

    def expire(self, now: float, most_bytes: int, forget_before: float) -> list[Job]:
        """Results that are due, and the oldest while all together have more than `most_bytes`, expire; returned are these jobs.
        What ended before `forget_before` is forgotten, but for results that are kept."""
        with self._transaction() as db:
            kept = self._all("WHERE state = 'completed' ORDER BY finished DESC, number DESC")
            room, due = most_bytes, []
            for job in kept:
                room -= job.bytes
                if room < 0 or (job.expires or now) <= now:
                    due.append(job)
            db.executemany("UPDATE jobs SET state = 'expired', expires = min(expires, ?) WHERE id = ?",
                           [(now, job.id) for job in due])
            db.execute("DELETE FROM jobs WHERE state IN ('failed', 'cancelled', 'expired') AND max(finished, expires) < ?",
                       (forget_before,))
        return due

    def delete(self, id: str) -> bool:
        """Forget a job that is neither queued nor in progress; False if there is no such job."""
        done = self._db.execute("DELETE FROM jobs WHERE id = ? AND state NOT IN ('queued', 'in_progress')", (id,))
        return done.rowcount > 0

    def _first(self, where: str, *values: Any) -> Job | None:
        found = self._all(where, *values)
        return found[0] if found else None

    def _all(self, where: str, *values: Any) -> list[Job]:
        jobs = [Job(*row) for row in self._db.execute(f"{_SELECT} {where}", values)]
        return [replace(job, options=json.loads(str(job.options)), warnings=json.loads(str(job.warnings))) for job in jobs]
