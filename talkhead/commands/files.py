"""`talkhead edit` and `talkhead inspect`: landmark files, clips and avatars as files."""

from pathlib import Path

import click

from shared.files import refuse_existing, refuse_inputs
from shared.options import SEED, FiniteFloat
from talkhead.commands.options import PATH, overwrite_option


@click.command()
@click.argument("source", type=PATH, metavar="IN")
@click.option("-o", "--output", type=PATH, required=True, help="Landmark file to write (.npy).")
@click.option("--neutral", type=PATH, help="neutral.npy of the face, or its avatar, for --mouth-gain.  "
              "[default: the row whose lips are most nearly closed]")
@click.option("--mouth-gain", type=FiniteFloat(-5, 5), help="Scale lip and jaw motion, 1 leaves it.")
@click.option("--smile", "smile_amount", type=FiniteFloat(-3, 3), help="Pull the mouth corners: 1 a broad smile, -1 a frown.")
@click.option("--blink", "blink_rate", type=FiniteFloat(0, 20), help="Add blinks: 1 as often as people do, 2 twice as often.")
@click.option("--smooth", "smooth_frames", type=click.IntRange(0, 250), help="Smooth over this many neighbours on each side.")
@click.option("--retime", "speed", type=FiniteFloat(0.1, 10), help="Play this many times faster.")
@click.option("--seed", default=0, show_default=True, type=SEED, help="Seed of the blinks.")
@overwrite_option
def edit(source: Path, output: Path, neutral: Path | None, mouth_gain: float | None, smile_amount: float | None,
         blink_rate: float | None, smooth_frames: int | None, speed: float | None, seed: int,
         overwrite: bool) -> None:
    """Edit a landmark file, .npy or a spreadsheet's .csv; edits apply in the order gain, smile, smooth, retime, blink.

    \b
    talkhead edit predicted.npy -o edited.npy --mouth-gain 1.2 --smile 0.3 --blink 2
    """
    from shared.avatar import load_neutral
    from shared.landmarks import check_output_name, load_landmarks, save_landmarks
    from talkhead.editing import edit as apply

    check_output_name(output)
    rows = load_landmarks(source)
    refuse_existing(output, overwrite)
    refuse_inputs(output, neutral)
    rows = apply(rows, neutral=load_neutral(neutral) if neutral else None, mouth_gain=mouth_gain, smile=smile_amount,
                 smooth=smooth_frames, retime=speed, blink=blink_rate, seed=seed)
    save_landmarks(output, rows)
    click.echo(f"{output}: {len(rows)} frames")


@click.command()
@click.argument("path", type=PATH)
@click.option("--accept", is_flag=True, help="Take over what you edited of an avatar's neutral, motion track and background.")
def inspect(path: Path, accept: bool) -> None:
    """What is this file or folder, and is it valid? One screen.

    \b
    talkhead inspect me
    talkhead inspect predicted.npy
    talkhead inspect me.avatar --accept
    """
    from shared.avatar import Avatar
    from talkhead.inspect import describe

    if accept:
        for file in Avatar(path).accept_edits():
            click.echo(f"{file}: taken over as it is")
    for line in describe(path):
        click.echo(line)
