"""`talkhead demo`: the whole chain on the synthetic actor."""

import shutil
from pathlib import Path

import click

from shared.files import atomic_path, refuse_existing
from shared.lock import lock_output
from shared.options import SEED
from talkhead.commands.options import PATH, device_option, overwrite_option
from talkhead.commands.output import print_tables
from talkhead.commands.runner import when_stopped


@click.command()
@click.argument("output", type=PATH, default=Path("demo"))
@click.option("--size", default=256, show_default=True, type=click.IntRange(128, 1024), help="Pixels a side.")
@click.option("--seed", default=0, show_default=True, type=SEED, help="Which synthetic person.")
@overwrite_option
@device_option
def demo(output: Path, size: int, seed: int, overwrite: bool, device: str) -> None:
    """The whole chain on the synthetic actor: video, clip, three trainings, talking video, metrics against the truth.

    \b
    talkhead demo
    talkhead demo elsewhere --seed 2
    """
    when_stopped("Stopped. The same command with --overwrite starts anew.")
    from shared.training import pick_device
    from talkhead.demo import check_demo_folder, run_demo

    replaced = check_demo_folder(output)
    if replaced:
        refuse_existing(output, overwrite)
    with lock_output(output):
        if replaced:  # it stays until the new one is done
            with atomic_path(output) as partial:
                tables, video = run_demo(partial, size=size, seed=seed, device=pick_device(device))
                shutil.rmtree(output)
            video = output / video.name
        else:
            tables, video = run_demo(output, size=size, seed=seed, device=pick_device(device))
    print_tables(tables)
    click.echo(f"\n{video}")
