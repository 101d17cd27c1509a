"""`talkhead check`: a recording judged before anything is trained."""

import dataclasses
import json
from pathlib import Path

import click

from talkhead.commands.options import PATH
from talkhead.commands.output import print_check


@click.command()
@click.argument("video", type=PATH)
@click.option("--json", "as_json", is_flag=True, help="Print all as JSON.")
def check(video: Path, as_json: bool) -> None:
    """Judge VIDEO before training, within seconds: framing, light, blur, sound, echo, and how well speech is covered.

    Prints a table with a verdict on each measure, what to change, and what to record in addition. Writes nothing. The exit
    code is 0 unless the video cannot be used.

    \b
    talkhead check me.mp4
    talkhead check me.mp4 --json > check.json
    """
    from process_data.check import check_video

    found = check_video(video)
    if as_json:
        values = dataclasses.asdict(found) | {"to_change": found.to_change(), "to_record": found.to_record()}
        click.echo(json.dumps(values, indent=2, ensure_ascii=False))
    else:
        print_check(found)
