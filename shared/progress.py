"""A progress bar with the time left. Loads no torch, so that worker processes start quickly."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

_heading: Callable[[float], str] | None = None


@contextmanager
def under_heading(heading: Callable[[float], str]) -> Iterator[None]:
    """Inside, each bar of `progress` begins with the text that `heading` gives, and goes when it is done.

    `heading` is called with the seconds that the bar says are left, 0 while it does not know.
    """
    global _heading
    before, _heading = _heading, heading
    try:
        yield
    finally:
        _heading = before


class _Bar(tqdm):
    """A bar that may stand under a heading."""

    @property
    def format_dict(self) -> dict[str, Any]:
        values = super().format_dict
        if _heading is None:
            return values
        done, rest = self.n - self.initial, (self.total or 0) - self.n
        return values | {"prefix": _heading(values["elapsed"] / done * rest if done > 0 else 0.0) + values["prefix"]}


def progress(total: int, desc: str, initial: int = 0, quiet: bool = False, unit: str = "it") -> tqdm:
    """A progress bar on stderr with the time left; silent when `quiet`."""
    return _Bar(total=total, desc=desc, initial=initial, disable=quiet, unit=unit, dynamic_ncols=True, mininterval=0.5,
                leave=_heading is None)
