"""`talkhead doctor`: what this machine can do."""

import sys

import click


@click.command()
def doctor() -> None:
    """What this machine can do, and the fix for each lack."""
    from talkhead.doctor import diagnose

    ok = True
    for found in diagnose():
        ok = ok and (found.ok or not found.needed)
        click.echo(f"{'ok  ' if found.ok else 'LACK' if found.needed else 'none'}  {found.what}")
        if not found.ok and found.fix:
            click.echo(f"      {found.fix}")
    sys.exit(0 if ok else 1)
