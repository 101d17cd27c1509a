"""What commands print: warnings, what a training returned, tables."""

from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:  # the classes take a second to import, and help is printed without them
    from process_data.check import VideoCheck
    from shared.avatar import Avatar
    from shared.clip import Clip
    from talkhead.synthesis import Rendered


def print_warnings(warnings: list[str]) -> None:
    """Print each warning on a line of its own."""
    for warning in warnings:
        click.echo(f"  warning: {warning}")


def print_video(path: Path, made: "Rendered") -> None:
    """Print what may be wrong with a video, its name and its length."""
    from shared.landmarks import FPS

    print_warnings(made.warnings)
    click.echo(f"{path}: {made.frames} frames, {made.frames / FPS:.1f} s")


def above_bars() -> AbstractContextManager[None]:
    """While it is open, what is printed does not run into a progress bar."""
    from tqdm import tqdm

    return tqdm.external_write_mode()


def print_figures(numbers: dict[str, Any], out: Path) -> None:
    """Print what a training returned."""
    text = ", ".join(f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
                     for key, value in numbers.items() if isinstance(value, (int, float, str)))
    click.echo(f"{out}: {text}")


def print_part(numbers: dict[str, Any], avatar: "Avatar", part: str, clip: "Clip") -> None:
    """Print what the training of an avatar's part returned, and which parts do not go with it."""
    from talkhead.training import others_of_another_clip

    print_figures(numbers, avatar.part(part))
    print_warnings(others_of_another_clip(avatar, clip))


def print_clip(clip: "Clip") -> None:
    """Print the size of a clip that was made, its warnings, what its footage allows and where its report lies."""
    from process_data.report.scores import read_scores

    info = clip.info
    click.echo(f"{clip.root}: {info.frames} frames of {info.width}x{info.height}, {len(info.shots)} shot(s)")
    print_warnings(info.warnings)
    for score in read_scores(clip.quality):
        click.echo(f"  {score}")
    click.echo(f"Look at {clip.report} before training.")


def print_check(found: "VideoCheck") -> None:
    """Print what was found in a recording: a table, what to change and what to record in addition."""
    click.echo(f"{found.video}: {found.seconds:.1f} s of video, {found.seconds_seen:.1f} s of its picture looked at\n")
    wide = max(len(row.name) for row in found.measures)
    for row in found.measures:
        click.echo(f"{row.group:<11} {row.name:<{wide}}  {row.text:>18}  {row.verdict}")
    for title, texts in (("to change:", found.to_change()), ("record in addition:", found.to_record())):
        if texts:
            click.echo(f"\n{title}")
            for text in texts:
                click.echo(f"  - {text}")


def print_tables(tables: dict[str, dict[str, dict[str, float]]]) -> None:
    """Print each table under its title."""
    for title, table in tables.items():
        click.echo(f"\n{title}\n{format_table(table)}")


def format_table(table: dict[str, dict[str, float]]) -> str:
    """{row: {column: number}} -> aligned text."""
    columns = list(dict.fromkeys(column for row in table.values() for column in row))
    cells = [["", *columns]]
    for name, row in table.items():
        cells.append([name, *(f"{row[c]:.4g}" if c in row else "-" for c in columns)])
    widths = [max(len(line[k]) for line in cells) for k in range(len(columns) + 1)]
    return "\n".join("  ".join(cell.ljust(w) if k == 0 else cell.rjust(w)
                               for k, (cell, w) in enumerate(zip(line, widths))) for line in cells)
