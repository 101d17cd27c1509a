"""Entry point of the `talkhead` command: looks for foreign packages before it imports anything of the project's."""

from talkhead_guard import PACKAGES, REINSTALL, check_or_exit, end


def main() -> None:
    """Entry point of the `talkhead` command."""
    check_or_exit("cli", *PACKAGES)
    try:
        from cli import main as run
    except ImportError as error:  # a file of ours is gone
        if str(error.name).split(".")[0] not in ("cli", *PACKAGES):
            raise
        end(f"talkhead is incomplete: {error}; {REINSTALL}")
    run()
