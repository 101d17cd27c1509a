"""`talkhead synth` and `talkhead eval`: what a whole avatar does."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from shared.errors import TalkheadError
from shared.options import SEED, FiniteFloat, Seconds
from talkhead.commands.options import (
    PATH,
    device_option,
    encoder_option,
    label_option,
    liveliness_option,
    mark_option,
    overwrite_option,
    pose_limit_option,
)
from talkhead.commands.output import above_bars, print_tables, print_video
from talkhead.commands.quick_start import quick_start
from talkhead.commands.runner import one_line, print_error, when_stopped

if TYPE_CHECKING:
    from talkhead.provenance import Label


@click.command()
@click.argument("avatar", type=PATH)
@click.argument("audio", type=PATH, nargs=-1, required=True)
@click.option("-o", "--output", type=PATH, default=Path("talk.mp4"), show_default=True,
              help="Video to write; for several sounds a folder, or a pattern such as talks/{name}.mp4.")
@click.option("--start", type=Seconds(), default=0.0, help="Speak from here on: seconds, or minutes:seconds.")
@click.option("--end", type=Seconds(), help="Speak up to here.")
@click.option("--background", default="plate", show_default=True, metavar="plate|none|COLOUR|FILE",
              help="What stands behind: the avatar's own background; nothing, for a transparent .mov or .webm; a colour such as "
                   "white or #00ff00; a picture; a video, which is repeated.")
@click.option("--size", metavar="HEIGHT|WIDTHxHEIGHT", help="Size of the video.  [default: the avatar's]")
@click.option("--fps", default="25", show_default=True, help="Frames a second of the video, such as 30 or 29.97.")
@click.option("--poses", default="loop", show_default=True, help="loop, still, another person's clip, or a poses .npy file.")
@pose_limit_option
@click.option("--head-motion", default=1.0, show_default=True, type=FiniteFloat(0, 1),
              help="How much of the head's motion is shown; 0 is still.")
@click.option("--landmarks", type=PATH, help="Landmark file to show instead of what stage 1 predicts.")
@click.option("--seed", default=0, show_default=True, type=SEED,
              help="Seed of blinks, brows and, where the head does not move as filmed, gaze.")
@liveliness_option
@encoder_option
@mark_option
@label_option
@click.option("--save-landmarks", type=PATH, help="Also write the landmarks that were shown (.npy).")
@overwrite_option
@device_option
def synth(avatar: Path, audio: tuple[Path, ...], output: Path, start: float, end: float | None, background: str,
          size: str | None, fps: str, poses: str, pose_limit: bool, head_motion: float, landmarks: Path | None, seed: int,
          liveliness: float, encoder: str | None, mark: bool, label: "Label", save_landmarks: Path | None, overwrite: bool,
          device: str) -> None:
    """AVATAR + AUDIO (a file, a pipe, or - for standard input) -> video in which the avatar speaks it.

    The video has the given sound as it is where its container can hold it, and is as long as the landmarks. Of several AUDIO
    each becomes a video of its own; one that fails does not stop the others.

    \b
    talkhead synth me.avatar speech.wav -o talk.mp4
    talkhead synth me.avatar speech.wav -o talk.mp4 --background office.jpg --size 1080x1920 --fps 30
    talkhead synth me.avatar speech.wav -o talk.webm --background none --start 1:10 --end 1:25.5
    talkhead synth me.avatar lessons/*.wav -o videos
    """
    with quick_start():
        from shared.avatar import Avatar
        from talkhead.speaking import Speaker, name_outputs, speak_all

    outputs = name_outputs(audio, output)
    speaker = Speaker(Avatar(avatar), device=device, poses=poses, head_motion=head_motion, background=background, size=size,
                      fps=fps, seed=seed, liveliness=liveliness, encoder=encoder, mark=mark, label=label, pose_limit=pose_limit)
    if len(audio) == 1:
        made = speaker.speak(audio[0], outputs[0], landmarks=landmarks, start=start, end=end, save_landmarks_to=save_landmarks,
                             overwrite=overwrite)
        print_video(outputs[0], made)
        return
    for option, value in (("--landmarks", landmarks), ("--save-landmarks", save_landmarks)):
        if value is not None:
            raise TalkheadError(f"{option} {value} is of one sound, found {len(audio)}; leave it out, or give them one by one")
    when_stopped("Stopped; finished videos are kept. The same command makes the others, and says which are there already.")
    failed = 0
    for name, result in zip(outputs, speak_all(speaker, audio, outputs, start=start, end=end, overwrite=overwrite)):
        with above_bars():
            if isinstance(result, TalkheadError):
                failed += 1
                print_error(f"Error: {one_line(str(result))}")
            else:
                print_video(name, result)
    if failed:
        raise TalkheadError(f"{failed} of {len(audio)} videos were not made; the reasons stand above")


@click.command("eval")
@click.argument("avatar", type=PATH)
@click.argument("clip", type=PATH)
@click.option("--split", "splits", multiple=True, help="Split to measure.  [default: all but train]")
@click.option("-o", "--output", type=PATH, help="Folder for eval.json and eval.html.  [default: CLIP/training/eval]")
@click.option("--retrack/--no-retrack", default=True, show_default=True,
              help="Also render videos from the clip's sound and from baselines, and track their lips.")
@device_option
def evaluate(avatar: Path, clip: Path, splits: tuple[str, ...], output: Path | None, retrack: bool, device: str) -> None:
    """Measure AVATAR on held-out frames of CLIP: finished videos, landmarks, speed; prints tables, writes JSON and HTML.

    \b
    talkhead eval me.avatar me
    talkhead eval me.avatar me --split test --no-retrack -o measured
    """
    from shared.avatar import Avatar
    from shared.clip import Clip
    from shared.training import pick_device
    from talkhead.evaluation import evaluate_avatar

    source, target = Clip(clip), Avatar(avatar)
    folder = output or source.training / "eval"
    tables = evaluate_avatar(target, source, source.held_out(splits), pick_device(device), folder, retrack=retrack)
    print_tables(tables)
    click.echo(f"\n{folder / 'eval.html'}")
