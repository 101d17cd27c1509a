"""Steps of a long command: one line each, the time left in all, and which of them are done, so that none is done twice."""

import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from tqdm import tqdm

from shared.files import read_json, write_json
from shared.progress import under_heading

PRIOR_SECONDS = 20.0  # of expected time that the first measured seconds are weighed against


def spoken(seconds: float) -> str:
    """A length of time in words: `40 s`, `2 min 5 s`, `1 h 10 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    return f"{whole // 60} min {whole % 60} s" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60} min"


class TimeLeft:
    """The time that steps still take, from what each is expected to take; corrects itself as they end."""

    def __init__(self, expected: Mapping[str, float]) -> None:
        """`expected`: seconds by step, in their order."""
        self._expected = dict(expected)
        self._taken = self._planned = PRIOR_SECONDS

    def ended(self, step: str, seconds: float | None) -> None:
        """A step took `seconds`, or None: it had been done before, which tells nothing of this machine."""
        planned = self._expected.pop(step)
        if seconds is not None:
            self._taken += seconds
            self._planned += planned

    def seconds(self, elapsed: float = 0.0, own: float = 0.0) -> float:
        """Seconds left, the first step left having run for `elapsed` and saying itself that it needs `own` more."""
        pace = self._taken / self._planned
        first, *others = self._expected.values() or [0.0]
        return max(own, first * pace - elapsed) + sum(others) * pace


class Steps:
    """Shows steps on stderr: on a terminal their progress bars under a heading, elsewhere a line at the start and one at the
    end of each; nothing where `quiet`."""

    def __init__(self, expected: Mapping[str, float], quiet: bool = False) -> None:
        self._names, self._left = list(expected), TimeLeft(expected)
        self._quiet, self._bars = quiet, sys.stderr.isatty()

    @property
    def silent(self) -> bool:
        """Whether the steps' own bars should be left out."""
        return self._quiet or not self._bars

    def _number(self, name: str) -> str:
        return f"{self._names.index(name) + 1}/{len(self._names)}"

    def _say(self, name: str, text: str) -> None:
        if not self._quiet:
            tqdm.write(f"{self._number(name)} {name.ljust(max(map(len, self._names)))}  {text}", file=sys.stderr)

    def skip(self, name: str) -> None:
        """The step was done by an earlier run."""
        self._left.ended(name, None)
        self._say(name, "done before")

    @contextmanager
    def run(self, name: str) -> Iterator[None]:
        """The step runs inside."""
        start = time.perf_counter()

        def heading(own: float) -> str:
            left = self._left.seconds(time.perf_counter() - start, own)
            return f"{self._number(name)} {name}, about {spoken(left)} left in all · "

        if self.silent:
            self._say(name, f"started, about {spoken(self._left.seconds())} left in all")
        with nullcontext() if self.silent else under_heading(heading):
            yield
        taken = time.perf_counter() - start
        self._left.ended(name, taken)
        self._say(name, f"done in {spoken(taken)}")


def fingerprint(inputs: Any) -> str:
    """SHA-256 of a value that JSON can hold."""
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()


class Record:
    """Which steps are done, in a JSON file: of each the fingerprint of its inputs and, while it runs, the result that it
    replaces. A result is known by its content, and its being there is not enough."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.values: dict[str, Any] = read_json(path) if path.is_file() else {"steps": {}}

    def set(self, **values: Any) -> None:
        """Write values beside the steps."""
        self.values |= values
        write_json(self._path, self.values)

    def do(self, name: str, inputs: Any, result: Callable[[], str | None], work: Callable[[], None],
           forget: Callable[[], None] = lambda: None) -> bool:
        """Do a step unless it is done with these inputs; returns whether it was done now.

        `result` gives the digest of what the step makes, None without; `work` makes it, going on where it was killed;
        `forget` removes what an unfinished run with other inputs left. Killed at any moment, the same call goes on.
        """
        key, known, found = fingerprint(inputs), self.values["steps"].get(name, {}), result()
        if known.get("inputs") != key:
            forget()
            known = {"inputs": key, "replaces": found}
            self._write(name, known)
        elif found is not None and found != known.get("replaces") and found == known.get("result", found):
            if "result" not in known:
                self._write(name, {"inputs": key, "result": found})
            return False
        work()
        self._write(name, {"inputs": key, "result": result()})
        return True

    def _write(self, name: str, entry: dict[str, Any]) -> None:
        self.set(steps=self.values["steps"] | {name: entry})
