"""How the `talkhead` command runs and ends: signals, errors as one sentence, output that always arrives."""

import errno
import os
import re
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import click

from shared import machine
from shared.errors import TalkheadError, TalkheadWarning

STARTS_ANEW = "Stopped; nothing was written. The same command starts anew."
CONTINUES = "Stopped. The same command continues where it was."
CONTINUES_UNASKED = "Stopped. The same command without --overwrite continues where it was."
STOPPED = "talkhead.stopped"  # key of the click context's meta: what to print after Ctrl-C


class Stopped(KeyboardInterrupt):
    """The system asks the process to end, as `docker stop`, `kill` and a closed terminal do."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


@contextmanager
def plain_warnings() -> Iterator[None]:
    """Print a TalkheadWarning as one sentence, once."""
    with warnings.catch_warnings():
        warnings.simplefilter("default", TalkheadWarning)
        show = warnings.showwarning

        def plain(message: Any, category: Any, *rest: Any, **more: Any) -> None:
            if issubclass(category, TalkheadWarning):
                print_error(f"Warning: {one_line(str(message))}")
            else:
                show(message, category, *rest, **more)

        warnings.showwarning = plain
        yield


class Main(click.Group):
    """Prints what a user can mend as one sentence and exits with 2; a traceback only with --debug."""

    def main(self, *arguments: Any, **options: Any) -> Any:
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="backslashreplace")
        return super().main(*arguments, **options)

    def make_context(self, *arguments: Any, **options: Any) -> click.Context:
        try:
            return super().make_context(*arguments, **options)
        except OSError as error:  # help and version are printed here
            if error.errno == errno.EPIPE:
                raise
            print_error(f"Error: {sentence(error)}")
            raise click.exceptions.Exit(2) from error

    def invoke(self, context: click.Context) -> Any:
        try:
            with plain_warnings():
                return super().invoke(context)
        except KeyboardInterrupt as stop:
            print_error("\n" + context.meta.get(STOPPED, STARTS_ANEW))
            context.exit(128 + getattr(stop, "number", signal.SIGINT))
        except (TalkheadError, OSError, MemoryError, ImportError) as error:
            if context.params.get("debug") or getattr(error, "errno", None) == errno.EPIPE:
                raise  # click ends quietly where nobody reads what is printed
            print_error(f"Error: {one_line(sentence(error))}")
            context.exit(2)


def sentence(error: Exception) -> str:
    """What is said of an error that the user or the machine causes."""
    if isinstance(error, MemoryError):
        return "there is not enough memory"
    if isinstance(error, ImportError):
        return f"{error}; `talkhead doctor` tells what is missing"
    if isinstance(error, OSError):
        return f"{error.filename or 'the output'} cannot be read or written: {error.strerror or error}"
    return str(error)


def one_line(text: str) -> str:
    """`text` with what a terminal does not print as it is (in file names: line ends, control characters) as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class Printable:
    """A text stream on which file names cannot move the cursor, change colours or turn the reading direction."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write `text` with all that is not printed as it is, but line ends and tabs, as escapes."""
        return self._stream.write(re.sub(r"[^\n\t]+", lambda found: one_line(found[0]), text))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def print_error(text: str) -> None:
    """One line on stderr. Where stdout or stderr cannot be written, nothing more is tried."""
    with suppress(OSError):
        click.echo(text, err=True)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def when_stopped(text: str) -> None:
    """Print `text` if the running command is stopped by Ctrl-C or by the system."""
    click.get_current_context().meta[STOPPED] = text


def run(command: click.Command) -> None:
    """Run the command line's root `command` in this process, which ends with it."""
    open_missing_streams()
    sys.stdout = Printable(sys.stdout)
    machine.limit_threads()
    machine.do_without_home()
    stops = [number for name in ("SIGTERM", "SIGHUP") if (number := getattr(signal, name, None))
             and signal.getsignal(number) is not signal.SIG_IGN]  # as nohup has it
    for number in stops:
        signal.signal(number, stop)
    try:
        command(prog_name="talkhead")
    finally:
        for number in (signal.SIGINT, *stops):
            signal.signal(number, signal.SIG_IGN)  # ending, and not twice


def stop(number: int, _: Any) -> None:
    """Signal handler: end as after Ctrl-C."""
    raise Stopped(number)


def open_missing_streams() -> None:
    """Where the command was started without stdin, stdout or stderr, no file may get their numbers: libraries print there."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
    sys.stdout = sys.stdout or open(os.devnull, "w", encoding="utf-8")
    sys.stderr = sys.stderr or open(os.devnull, "w", encoding="utf-8")
