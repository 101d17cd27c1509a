"""The `talkhead` command: its root group, under which the commands of talkhead/commands stand."""

import click

import talkhead_guard

talkhead_guard.check_or_exit(*talkhead_guard.PACKAGES)

from serve import command as serve_command  # noqa: E402
from talkhead.commands import (  # noqa: E402
    avatar,
    avatar_file,
    check,
    demo,
    doctor,
    files,
    importers,
    process,
    runner,
    stage1,
    stage2,
    torso,
    train,
    verify,
)

SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 110}


@click.group(cls=runner.Main, context_settings=SETTINGS)
@click.option("--debug", is_flag=True, help="Show a traceback when something goes wrong.")
@click.version_option(package_name="talkhead")
def cli(debug: bool) -> None:
    """From a video of one person to an avatar that speaks any audio.

    \b
    talkhead check me.mp4                 is the recording good? answers in seconds
    talkhead train me.mp4 -o me.avatar    all of the following in one
    talkhead process me.mp4 me            video -> clip folder
    talkhead stage1 finetune me           audio -> landmarks, for this person
    talkhead stage2 train me              landmarks -> Gaussian head
    talkhead torso train me               shoulders and background
    talkhead synth me.avatar speech.wav -o talk.mp4
    talkhead serve me.avatar              talk to it, in a browser or over HTTP
    """


for command in (check.check, train.train, process.process, importers.importers, importers.process_voca, importers.import_adnerf,
                stage1.stage1, stage2.stage2, torso.torso, avatar.synth, avatar.evaluate, avatar_file.avatar, files.edit,
                files.inspect, demo.demo, doctor.doctor, verify.verify, serve_command.serve, serve_command.latency):
    cli.add_command(command)


def main() -> None:
    """Run the command in this process, which ends with it."""
    runner.run(cli)


if __name__ == "__main__":
    main()
