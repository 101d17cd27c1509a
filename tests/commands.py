"""The command, run in this process."""

import contextlib
from pathlib import Path

from click.testing import CliRunner

from cli import cli


def talkhead(*arguments: object, cwd: Path) -> str:
    """What the command prints in the folder `cwd`; it has to succeed."""
    with contextlib.chdir(cwd):
        result = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.stdout
