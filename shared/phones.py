"""When each phone is said: phones.json, made by `python -m tools.phone_times` or by hand."""

import math
from pathlib import Path
from typing import NamedTuple

from shared.config import shown
from shared.errors import TalkheadError
from shared.files import read_json, write_json

SILENCE, UNKNOWN = "SIL", "SPN"  # nobody speaks; speech or other sound of which nobody said what it is
PHONES = frozenset("AA AE AH AO AW AY B CH D DH EH ER EY F G HH IH IY JH K L M N NG OW OY P R S SH T TH UH UW V W Y Z ZH".split())

Marks = list[tuple[float, str]]  # begin of each phone in seconds, and its name; the last one lasts to the end


class Phone(NamedTuple):
    """What is said from `start` to `stop` seconds."""

    start: float
    stop: float
    name: str


def load_phones(path: Path | str) -> Marks:
    """Read phones.json. Raises TalkheadError unless it holds ARPABET names without stress, at times that rise from 0 or later."""
    path = Path(path)
    found = read_json(path).get("phones")
    if not isinstance(found, list) or not found:
        raise TalkheadError(f'{path}: expected "phones": [[seconds, name], …], found {shown(found)}')
    marks: Marks = []
    for entry in found:
        match entry:
            case [int() | float() as start, str() as name] if not isinstance(start, bool):
                pass
            case _:
                raise TalkheadError(f"{path}: expected [seconds, name] for every phone, found {shown(entry)}")
        if name not in PHONES and name not in (SILENCE, UNKNOWN):
            raise TalkheadError(f"{path}: expected an ARPABET phone without a digit, {SILENCE} or {UNKNOWN}, found {shown(name)}")
        if not math.isfinite(start) or start < (marks[-1][0] if marks else 0):
            raise TalkheadError(f"{path}: times should rise from 0 on, found {shown(start)} after "
                                f"{marks[-1][0] if marks else 0:g}")
        marks.append((float(start), name))
    return marks


def save_phones(path: Path | str, marks: Marks, source: str) -> None:
    """Write phones.json, atomically; `source` says who or what found the times."""
    write_json(path, {"source": source, "phones": [list(mark) for mark in marks]})


def intervals(marks: Marks, seconds: float) -> list[Phone]:
    """Marks of a recording of so many seconds -> phones that last; what comes before the first mark is left out."""
    stops = [start for start, _ in marks[1:]] + [seconds]
    return [Phone(start, min(stop, seconds), name) for (start, name), stop in zip(marks, stops) if start < min(stop, seconds)]


def shifted(marks: Marks, seconds: float) -> Marks:
    """The same phones so much later; what would begin before 0 begins there."""
    return [(max(0.0, start + seconds), name) for start, name in marks]
