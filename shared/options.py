"""Types of command-line options."""

import math
import re
from typing import Any

import click

from shared.config import HIGHEST_SEED

SEED = click.IntRange(0, HIGHEST_SEED)


class Seconds(click.ParamType):
    """A time as seconds, minutes:seconds or hours:minutes:seconds, such as 75.5 or 1:15.5 -> seconds."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        found = re.fullmatch(r"(?:(?:(\d{1,3}):)?(\d{1,3}):)?(\d{1,6}(?:\.\d{1,9})?)", str(value).strip())
        hours, minutes, seconds = (float(part or 0) for part in found.groups()) if found else (0.0, 0.0, -1.0)
        if found is None or (found[2] is not None and seconds >= 60) or (found[1] is not None and minutes >= 60):
            self.fail(f"{value!r} is no time; write seconds, or minutes:seconds such as 1:15.5", param, ctx)
        return 3600 * hours + 60 * minutes + seconds


class FiniteFloat(click.FloatRange):
    """A number between two bounds, both included; click's own range lets nan pass."""

    def __init__(self, low: float, high: float) -> None:
        super().__init__(low, high)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number", param, ctx)
        return number
