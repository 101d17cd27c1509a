"""`talkhead synth` and `talkhead eval`: what a whole avatar does."""

from pathlib import Path

import click

from shared.options import SEED
from talkhead.commands.options import PATH, device_option, encoder_option, liveliness_option, overwrite_option
from talkhead.commands.output import print_tables, print_warnings


@click.command()
@click.argument("avatar", type=PATH)
@click.argument("audio", type=PATH)
@click.option("-o", "--output", type=PATH, default=Path("talk.mp4"), show_default=True, help="Video to write.")
@click.option("--landmarks", type=PATH, help="Landmark file to show instead of what stage 1 predicts.")
@click.option("--poses", default="loop", show_default=True, help="loop, still, or a poses .npy file.")
@click.option("--seed", default=0, show_default=True, type=SEED, help="Seed of blinks and brows.")
@liveliness_option
@encoder_option
@click.option("--save-landmarks", type=PATH, help="Also write the landmarks that were shown (.npy).")
@overwrite_option
@device_option
def synth(avatar: Path, audio: Path, output: Path, landmarks: Path | None, poses: str, seed: int, liveliness: float,
          encoder: str | None, save_landmarks: Path | None, overwrite: bool, device: str) -> None:
    """AVATAR + AUDIO (a file, a pipe, or - for standard input) -> video in which the avatar speaks it.

    The video has the given sound as it is where its container can hold it, and is as long as the landmarks.

    \b
    talkhead synth me.avatar speech.wav -o talk.mp4
    talkhead synth me.avatar speech.wav --landmarks edited.npy -o edited.mp4
    """
    from shared.avatar import Avatar
    from shared.landmarks import FPS
    from talkhead.synthesis import synthesize

    made = synthesize(Avatar(avatar), audio, output, device=device, landmarks=landmarks, poses=poses, seed=seed,
                      liveliness=liveliness, encoder=encoder, save_landmarks_to=save_landmarks, overwrite=overwrite)
    print_warnings(made.warnings)
    click.echo(f"{output}: {made.frames} frames, {made.frames / FPS:.1f} s")


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
