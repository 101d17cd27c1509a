"""`talkhead import`: clips from other projects' data folders."""

from pathlib import Path
from typing import Any

import click

from shared.options import FiniteFloat
from talkhead.commands.options import PATH, config_options, overwrite_option
from talkhead.commands.output import print_clip, print_warnings
from talkhead.commands.runner import CONTINUES, when_stopped


@click.group("import")
def importers() -> None:
    """Clips from other projects' data folders."""


@importers.command("voca")
@click.argument("root", type=PATH)
@click.argument("out", type=PATH)
@click.option("--embedding", type=PATH, help="Your own 68 landmarks on FLAME's mesh (.json, .npy or .npz) instead of ours.")
@click.option("--fps", default=60.0, show_default=True, type=FiniteFloat(1, 1000), help="Meshes a second.")
@overwrite_option
def voca(root: Path, out: Path, embedding: Path | None, fps: float, overwrite: bool) -> None:
    """VOCASET folder ROOT -> one landmark clip a sentence under OUT, for `stage1 pretrain`.

    Reads unposedcleaneddata/ with audio/ (and templates/), or vertices_npy/ with wav/. Finished clips are skipped.

    \b
    talkhead import voca VOCASET clips/voca
    talkhead stage1 pretrain clips/voca/* -o base.safetensors
    """
    when_stopped(CONTINUES)
    from process_data.importers.voca import import_voca

    done = import_voca(root, out, embedding=embedding, fps=fps, overwrite=overwrite)
    print_warnings(done.warnings)
    click.echo(f"{out}: {len(done.made)} clip(s) made, {len(done.kept)} there before, {len(done.left_out)} sentence(s) left out")


@importers.command("adnerf")
@click.argument("folder", type=PATH, metavar="DIR")
@click.argument("clip", type=PATH)
@click.option("--workers", type=click.IntRange(1, 1024),
              help="Processes that work.  [default: as many as processors and memory allow]")
@overwrite_option
@config_options
def adnerf(folder: Path, clip: Path, workers: int | None, overwrite: bool, config_file: Path | None,
           overrides: tuple[str, ...]) -> None:
    """Data folder DIR of AD-NeRF, ER-NeRF, GaussianTalker and the like -> CLIP folder.

    Needs ori_imgs/ and aud.wav; parsing/, bc.jpg, transforms_train.json, transforms_val.json and track_params.pt are
    used where they are.

    \b
    talkhead import adnerf data/obama obama
    talkhead stage1 finetune obama
    """
    when_stopped(CONTINUES)
    from process_data.config import ProcessConfig
    from process_data.importers.adnerf import import_adnerf
    from shared.config import load_config

    config = load_config(ProcessConfig, config_file, overrides)
    print_clip(import_adnerf(folder, clip, config=config, workers=workers, overwrite=overwrite))


def _under_old_name(command: click.Command, old: str) -> click.Command:
    """The command as it was called before, hidden from the help; it says its new name on stderr."""

    def run(**values: Any) -> None:
        click.echo(f"`talkhead {old}` is now called `talkhead import {command.name}`", err=True)
        command.callback(**values)  # type: ignore[misc]

    return click.Command(old, callback=run, params=command.params, help=command.help, hidden=True)


process_voca, import_adnerf = _under_old_name(voca, "process-voca"), _under_old_name(adnerf, "import-adnerf")
