"""`talkhead torso`: shoulders, neck and background."""

from pathlib import Path

import click

from talkhead.commands.options import PATH, avatar_option, config_options, device_option, overwrite_option
from talkhead.commands.output import print_part, print_warnings
from talkhead.commands.quick_start import quick_start
from talkhead.commands.runner import CONTINUES, CONTINUES_UNASKED, when_stopped


@click.group()
def torso() -> None:
    """Shoulders, neck and background."""


@torso.command("train")
@click.argument("clip", type=PATH)
@avatar_option
@overwrite_option
@device_option
@config_options
def torso_train(clip: Path, avatar: Path | None, overwrite: bool, device: str, config_file: Path | None,
                overrides: tuple[str, ...]) -> None:
    """Train the avatar's torso on CLIP; the Gaussian head must be trained before.

    \b
    talkhead torso train me
    """
    when_stopped(CONTINUES_UNASKED if overwrite else CONTINUES)
    from shared.avatar import Avatar, avatar_folder
    from shared.clip import Clip
    from shared.config import load_config
    from talkhead.training import train_torso
    from torso_styleunet.config import TorsoConfig

    config = load_config(TorsoConfig, config_file, overrides)
    source, target = Clip(clip), Avatar(avatar or avatar_folder(clip))
    numbers = train_torso(source, target, config=config, device=device, overwrite=overwrite)
    print_part(numbers, target, "torso", source)


@torso.command()
@click.argument("avatar", type=PATH)
@device_option
def layers(avatar: Path, device: str) -> None:
    """Draw the torso of AVATAR's motion track anew, after that or the torso was edited; `torso train` ends with it.

    \b
    talkhead torso layers me.avatar
    """
    from shared.avatar import Avatar
    from talkhead.training import draw_layers

    target = Avatar(avatar)
    count = draw_layers(target, device=device)
    click.echo(f"{target.layers}: {count} frames, {target.layers.stat().st_size / 1e6:.1f} MB")


@torso.command()
@click.argument("frames", type=PATH)
@click.option("--avatar", type=PATH, required=True, help="Avatar folder.")
@click.option("-o", "--output", type=PATH, required=True, help="Video to write (.mp4, .mov or .mkv).")
@click.option("--audio", type=PATH, help="Sound to put under it; - is standard input.")
@overwrite_option
@device_option
def composite(frames: Path, avatar: Path, output: Path, audio: Path | None, overwrite: bool, device: str) -> None:
    """FRAMES folder (from `stage2 render`) -> video with torso and background.

    \b
    talkhead torso composite frames --avatar me.avatar -o talk.mp4 --audio speech.wav
    """
    with quick_start():
        from shared.avatar import Avatar
        from talkhead.synthesis import composite_folder

    made = composite_folder(Avatar(avatar), frames, output, audio=audio, device=device, overwrite=overwrite)
    print_warnings(made.warnings)
    click.echo(f"{output}: {made.frames} frames")
