"""Options that several commands share, and the types of their values."""

from pathlib import Path
from typing import Any

import click

from shared.options import FiniteFloat

PATH = click.Path(path_type=Path)


def device_option(function: Any) -> Any:
    """Add --device."""
    return click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")(function)


def config_options(function: Any) -> Any:
    """Add --config and --set."""
    function = click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE",
                            help="Change one setting; may be repeated.")(function)
    return click.option("--config", "config_file", type=PATH, help="YAML file with settings.")(function)


def avatar_option(function: Any) -> Any:
    """Add --avatar, which defaults to the folder beside the clip."""
    return click.option("--avatar", type=PATH, help="Avatar folder.  [default: CLIP.avatar beside the clip]")(function)


liveliness_option = click.option("--liveliness", default=1.0, show_default=True, type=FiniteFloat(0, 3),
                                 help="How far the brows move with the voice; 0 leaves them still.")
encoder_option = click.option("--encoder", metavar="NAME|FOLDER", help="Where the model's speech encoder lies now, if it has "
                              "one.  [default: where it was in training]")
pose_limit_option = click.option("--pose-limit/--no-pose-limit", default=True, help="Hold poses from a file or another clip to "
                                 "those that the avatar's clip shows, and a little beyond; or not.  [default: --pose-limit]")
overwrite_option = click.option("--overwrite", is_flag=True, help="Replace what is already there.")
mark_option = click.option("--mark/--no-mark", default=True, help="Say in the file that it is made: metadata, signature, "
                           "invisible mark; or not.  [default: --mark]")
label_option = click.option("--label", type=click.Choice(["none", "start", "throughout"]), default="none", show_default=True,
                            help="Letters in the picture that say so, for the first 2 s or throughout.")
