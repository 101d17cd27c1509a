"""`talkhead verify`: which marks a video carries."""

import json
from pathlib import Path

import click

from shared.options import FiniteFloat
from talkhead.commands.options import PATH


@click.command()
@click.argument("file", type=PATH)
@click.option("--trust", type=PATH, help="Certificate (PEM) of an authority that you trust, such as the signer's authority.pem.")
@click.option("--avatar", type=PATH, help="Avatar that the marks should name.")
@click.option("--seconds", default=120.0, show_default=True, type=FiniteFloat(2, 1e6),
              help="Look for the invisible mark in so much of the video's beginning.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def verify(context: click.Context, file: Path, trust: Path | None, avatar: Path | None, seconds: float, as_json: bool) -> None:
    """Was this video made by talkhead? Looks for metadata, a C2PA signature and the invisible mark; prints what they mean.

    Ends with 0 if a mark was found, 1 if none, 3 if marks contradict each other or the file, 2 for a file that cannot be read.

    \b
    talkhead verify talk.mp4
    talkhead verify talk.mp4 --avatar me.avatar --trust authority.pem --json
    """
    from talkhead.verification import verify as look

    found = look(file, trust=trust, avatar=avatar, seconds=seconds)
    if as_json:
        click.echo(json.dumps(found.to_dict(), indent=2, ensure_ascii=False))
    else:
        for sentence in found.sentences():
            click.echo(sentence)
    context.exit(found.exit_code())
