"""`talkhead avatar`: an avatar as one file."""

from pathlib import Path

import click

from talkhead.commands.options import PATH, overwrite_option


@click.group()
def avatar() -> None:
    """An avatar as one file, to keep and pass on; all that reads a folder reads the file."""


@avatar.command("pack")
@click.argument("folder", type=PATH)
@click.option("-o", "--output", type=PATH, required=True, help="Avatar file to write.")
@overwrite_option
def pack_avatar(folder: Path, output: Path, overwrite: bool) -> None:
    """Make one file of the avatar in FOLDER.

    It holds what an avatar is made of and a manifest, no pictures of trainings or evaluations and no paths of this machine.

    \b
    talkhead avatar pack me.avatar -o packed/me.avatar
    talkhead avatar pack me.avatar -o packed/me.avatar --overwrite
    """
    from shared.avatar import PARTS, Avatar
    from talkhead.avatar_file import pack

    made = Avatar(pack(folder, output, overwrite=overwrite))
    lacks = [part for part in PARTS if not made.part(part).is_file()]
    click.echo(f"{output}: {output.stat().st_size / 1e6:.1f} MB" + (f", without {' and '.join(lacks)}" if lacks else ""))


@avatar.command("unpack")
@click.argument("file", type=PATH)
@click.option("-o", "--output", type=PATH, required=True, help="Avatar folder to write.")
@overwrite_option
def unpack_avatar(file: Path, output: Path, overwrite: bool) -> None:
    """Make a folder of the avatar FILE, to edit it or to train its parts anew.

    \b
    talkhead avatar unpack packed/me.avatar -o me.avatar
    talkhead avatar unpack packed/me.avatar -o me.avatar --overwrite
    """
    from talkhead.avatar_file import unpack

    click.echo(f"{unpack(file, output, overwrite=overwrite)}: unpacked")


@avatar.command("show")
@click.argument("path", type=PATH, metavar="AVATAR")
@click.option("--json", "as_json", is_flag=True, help="Print the manifest as JSON instead.")
def show_avatar(path: Path, as_json: bool) -> None:
    """Say what is in AVATAR, a file or a folder: whose it is, its parts, of which clip, who allowed it, licences.

    \b
    talkhead avatar show me.avatar
    talkhead avatar show me.avatar --json
    """
    from shared.avatar import Avatar
    from talkhead.avatar_file import describe_avatar, manifest_json, manifest_of

    if as_json:
        click.echo(manifest_json(manifest_of(Avatar(path))), nl=False)
        return
    for line in describe_avatar(Avatar(path)):
        click.echo(line)
