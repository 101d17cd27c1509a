"""quality.json of a clip: how well the footage serves, by topic, with numbers, a verdict and advice."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from shared.config import config_from_dict, shown
from shared.errors import TalkheadError
from shared.files import read_json, write_json

QUALITY_FORMAT = 1
VERDICTS = ("good", "fair", "poor", "unknown")


@dataclass(frozen=True)
class Score:
    """One topic: a verdict of VERDICTS, what was found in plain words, what to do better ("" if good), the numbers over the whole
    clip and of each shot (what is unknown lacks), and the frames that are worst, worst first."""

    topic: str
    verdict: str
    found: str
    advice: str = ""
    numbers: dict[str, float] = field(default_factory=dict)
    shots: list[dict[str, float]] = field(default_factory=list)
    worst: list[int] = field(default_factory=list)

    def __str__(self) -> str:
        return f"{self.topic}: {self.verdict}; {self.found}" + (f"; {self.advice}" if self.advice else "")


@dataclass(frozen=True)
class Quality:
    """quality.json."""

    scores: list[Score]
    format: int = QUALITY_FORMAT


def known(numbers: dict[str, float]) -> dict[str, float]:
    """Numbers that are finite, rounded to four digits after the point."""
    return {name: round(float(value), 4) for name, value in numbers.items() if math.isfinite(value)}


def write_scores(path: Path, scores: Sequence[Score]) -> None:
    """Write quality.json."""
    write_json(path, asdict(Quality(list(scores))))


def read_scores(path: Path) -> list[Score]:
    """The scores of a quality.json, none without the file. Raises TalkheadError for anything else."""
    if not path.is_file():
        return []
    values = read_json(path)
    if values.get("format") != QUALITY_FORMAT:
        raise TalkheadError(f"{path}: expected quality format {QUALITY_FORMAT}, found {shown(values.get('format'))}; it may be "
                            "deleted")
    scores = config_from_dict(Quality, values, str(path)).scores
    for score in scores:
        if score.verdict not in VERDICTS:
            raise TalkheadError(f"{path}: a verdict is one of {', '.join(VERDICTS)}, found {shown(score.verdict)}")
    return scores
