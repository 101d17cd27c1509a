"""`talkhead train`: from a video to an avatar file in one command."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from shared.errors import TalkheadError
from talkhead.commands.options import PATH, config_options, device_option, overwrite_option
from talkhead.commands.output import print_warnings
from talkhead.commands.runner import CONTINUES, when_stopped

if TYPE_CHECKING:
    from shared.consent import Consent

ASKED = ("An avatar is made only of people who agreed to it. The consent note, which goes into the avatar, says who and for "
         "which uses, and keeps the SHA-256 of a recorded statement. Without a note, leave the name empty.")
NEEDED = ("who agreed to this avatar? Add --consent-who NAME, with --consent-statement FILE and --consent-use TEXT, or "
          "--no-consent-note to leave the note out")


@click.command()
@click.argument("video", type=PATH)
@click.option("-o", "--output", type=PATH, help="Avatar file to write.  [default: the video's name with .avatar, here]")
@click.option("--consent-who", metavar="NAME", help="Who is shown and agreed to the avatar.")
@click.option("--consent-statement", type=PATH, metavar="FILE", help="Recording or text in which they say so; only "
              "its SHA-256 is kept.")
@click.option("--consent-use", "uses", multiple=True, metavar="TEXT", help="A use that they allowed; may be repeated.")
@click.option("--no-consent-note", is_flag=True, help="Keep no consent note; the avatar then says that there is none.")
@click.option("--person", default="", metavar="left|right|N", help="Whom to keep to where several people are in the picture.")
@click.option("--restart", is_flag=True, help="Begin anew instead of going on with the work of an earlier run.")
@click.option("--keep/--discard", default=True, help="Keep the folder of the work beside the avatar, or remove it in the end.  "
              "[default: --keep]")
@overwrite_option
@device_option
@config_options
def train(video: Path, output: Path | None, consent_who: str | None, consent_statement: Path | None, uses: tuple[str, ...],
          no_consent_note: bool, person: str, restart: bool, keep: bool, overwrite: bool, device: str, config_file: Path | None,
          overrides: tuple[str, ...]) -> None:
    """VIDEO of one person -> one avatar file: check, process, finetune, head, torso, measure, pack, report.

    The work lies in a folder NAME.training beside the avatar; the same command goes on there where it was stopped, and does
    nothing twice. NAME.report.html beside it shows held-out frames as a video, figures, and what to record better. Settings
    are those of the steps: process.…, stage1.…, stage2.…, torso.….

    \b
    talkhead train me.mp4 -o me.avatar
    talkhead train me.mp4 --consent-who "Ada Lovelace" --consent-statement yes.wav --consent-use "lectures"
    talkhead train me.mp4 --no-consent-note --set stage2.steps=3000
    """
    when_stopped(CONTINUES)
    output = output or Path(video.stem + ".avatar")
    consent = _consent(output, restart, consent_who, consent_statement, uses, no_consent_note)

    from shared.config import load_config
    from talkhead.video_to_avatar import TrainConfig, train_avatar

    if person:
        overrides = (*overrides, f"process.person={person!r}")
    made = train_avatar(video, output, consent=consent, config=load_config(TrainConfig, config_file, overrides), device=device,
                        overwrite=overwrite, restart=restart, discard=not keep)
    print_warnings(made.warnings)
    click.echo(f"{made.avatar}: {made.avatar.stat().st_size / 1e6:.1f} MB; look at {made.report}")
    click.echo(f"talkhead synth {made.avatar} speech.wav -o talk.mp4")


def _consent(output: Path, restart: bool, who: str | None, statement: Path | None, uses: tuple[str, ...],
             skipped: bool) -> "Consent | None":
    """The consent note that the options give, or that is typed in; None where the work has one. Raises TalkheadError."""
    from datetime import date

    from shared.consent import Consent
    from shared.files import sha256
    from talkhead.video_to_avatar import recorded_consent

    today = date.today().isoformat()
    if skipped:
        if who or statement or uses:
            raise TalkheadError("--no-consent-note says that there is no note; leave it out, or the other --consent options")
        return Consent("", today, skipped=True)
    if not who:
        if statement or uses:
            raise TalkheadError("--consent-statement and --consent-use say what somebody allowed; add --consent-who NAME")
        if not restart and recorded_consent(output) is not None:
            return None
        if not (sys.stdin.isatty() and sys.stderr.isatty()):
            raise TalkheadError(NEEDED)
        click.echo(ASKED, err=True)
        who = click.prompt("Who is shown and agreed", default="", show_default=False, err=True).strip()
        if not who:
            if not click.confirm("Keep no consent note in the avatar", err=True):
                raise TalkheadError(NEEDED)
            return Consent("", today, skipped=True)
        file = click.prompt("File with the recorded statement (empty: none)", default="", show_default=False, err=True).strip()
        statement = Path(file) if file else None
        uses = tuple(use.strip() for use in click.prompt("Allowed uses, separated by ;", default="", show_default=False,
                                                         err=True).split(";") if use.strip())
    if statement is not None and not statement.is_file():
        raise TalkheadError(f"--consent-statement {statement} does not exist; name the file in which they say so")
    return Consent(who, today, None if statement is None else sha256(statement), uses)
