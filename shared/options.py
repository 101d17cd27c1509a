"""Types of command-line options."""

import math
from typing import Any

import click

from shared.config import HIGHEST_SEED

SEED = click.IntRange(0, HIGHEST_SEED)


class FiniteFloat(click.FloatRange):
    """A number between two bounds, both included; click's own range lets nan pass."""

    def __init__(self, low: float, high: float) -> None:
        super().__init__(low, high)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number", param, ctx)
        return number
