"""`talkhead stage2`: landmarks to the Gaussian head."""

from pathlib import Path
from typing import Any

import click

from shared.errors import TalkheadError
from shared.options import FiniteFloat
from talkhead.commands.options import (
    PATH,
    avatar_option,
    config_options,
    device_option,
    overwrite_option,
    pose_limit_option,
)
from talkhead.commands.output import print_part, print_tables, print_warnings
from talkhead.commands.quick_start import quick_start
from talkhead.commands.runner import CONTINUES, CONTINUES_UNASKED, when_stopped

COVERED = "covered"  # the value of --orbit for what the clip shows


class Swing(FiniteFloat):
    """Degrees of --orbit, or COVERED."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == COVERED:
            return value
        try:
            float(value)
        except ValueError:
            self.fail(f"{value!r} is neither a number of degrees nor {COVERED}", param, ctx)
        return super().convert(value, param, ctx)


@click.group()
def stage2() -> None:
    """Landmarks -> Gaussian head."""


@stage2.command("train")
@click.argument("clip", type=PATH)
@avatar_option
@overwrite_option
@device_option
@config_options
def stage2_train(clip: Path, avatar: Path | None, overwrite: bool, device: str, config_file: Path | None,
                 overrides: tuple[str, ...]) -> None:
    """Train the avatar's Gaussian head on CLIP.

    \b
    talkhead stage2 train me
    talkhead stage2 train me --set steps=3000
    """
    when_stopped(CONTINUES_UNASKED if overwrite else CONTINUES)
    from shared.avatar import Avatar, avatar_folder
    from shared.clip import Clip
    from shared.config import load_config
    from shared.training import pick_device
    from stage2_gaussian.config import Stage2Config
    from talkhead.training import train_head

    config = load_config(Stage2Config, config_file, overrides)
    source, target = Clip(clip), Avatar(avatar or avatar_folder(clip))
    numbers = train_head(source, target, config=config, device=pick_device(device), overwrite=overwrite)
    print_part(numbers, target, "stage2", source)


@stage2.command("render")
@click.argument("landmarks", type=PATH)
@click.option("--avatar", type=PATH, required=True, help="Avatar folder.")
@click.option("-o", "--output", type=PATH, required=True,
              help="Folder for RGBA pictures, or a video with transparency: .mov (ProRes 4444) or .webm (VP9).")
@click.option("--poses", default="loop", show_default=True, help="loop, still, or a poses .npy file.")
@pose_limit_option
@click.option("--orbit", type=Swing(-180, 180), metavar="DEGREES|covered",
              help="Swing the camera around the head, this far to either side, or as far as the avatar's clip shows the head; "
                   "negative goes the other way first.")
@click.option("--period", type=FiniteFloat(0.04, 3600), metavar="SECONDS",
              help="Time of one swing of --orbit there and back.  [default: the whole sequence]")
@click.option("--audio", type=PATH, help="Sound to put under a video; - is standard input.")
@overwrite_option
@device_option
def stage2_render(landmarks: Path, avatar: Path, output: Path, poses: str, pose_limit: bool, orbit: float | str | None,
                  period: float | None, audio: Path | None, overwrite: bool, device: str) -> None:
    """LANDMARKS -> the head alone, over nothing: RGBA pictures or a transparent video.

    A folder also gets the poses and torso motion that belong to the pictures, for `torso composite`. Where --orbit goes beyond
    the views in the training video it shows splats that no picture ever checked; a warning names these frames.

    \b
    talkhead stage2 render edited.npy --avatar me.avatar -o frames --poses still
    talkhead stage2 render edited.npy --avatar me.avatar -o head.mov --audio speech.wav
    talkhead stage2 render edited.npy --avatar me.avatar -o head.webm --poses still --orbit covered --period 4
    """
    with quick_start():
        from shared.avatar import Avatar
        from talkhead.free_view import Orbit, render_free_view

    if period is not None and orbit is None:
        raise TalkheadError(f"--period {period:g} is the time of a swing; add --orbit DEGREES")
    swing = None if orbit is None else Orbit(None if isinstance(orbit, str) else orbit, period)
    made = render_free_view(Avatar(avatar), landmarks, output, poses=poses, orbit=swing, audio=audio, pose_limit=pose_limit,
                            device=device, overwrite=overwrite)
    print_warnings(made.warnings)
    click.echo(f"{output}: {made.frames} RGBA frames")


@stage2.command("export")
@click.argument("avatar", type=PATH)
@click.option("-o", "--output", type=PATH, required=True, help="Splat file to write (.ply).")
@click.option("--landmarks", type=PATH, help="Landmark file whose expression the head shows.  [default: at rest]")
@click.option("--frame", type=click.IntRange(0, 10_000_000), help="Row of --landmarks.  [default: 0]")
@overwrite_option
def stage2_export(avatar: Path, output: Path, landmarks: Path | None, frame: int | None, overwrite: bool) -> None:
    """AVATAR -> its head as a 3DGS .ply file, which splat viewers and editors open.

    Exported at rest, it can be edited and put back with `stage2 import`.

    \b
    talkhead stage2 export me.avatar -o head.ply
    talkhead stage2 export me.avatar -o smile.ply --landmarks edited.npy --frame 40
    """
    from shared.avatar import Avatar
    from shared.landmarks import load_landmarks
    from talkhead.splat_file import export_head

    if frame is not None and landmarks is None:
        raise TalkheadError(f"--frame {frame} is a row of a landmark file; add --landmarks FILE")
    rows = None if landmarks is None else load_landmarks(landmarks)
    at = frame or 0
    if rows is not None and at >= len(rows):
        raise TalkheadError(f"--frame {at}: {landmarks} has {len(rows)} rows, 0 to {len(rows) - 1}")
    count = export_head(Avatar(avatar), output, landmarks=None if rows is None else rows[at],
                        frame=f"with the expression of row {at}", inputs=[landmarks] if landmarks else [], overwrite=overwrite)
    click.echo(f"{output}: {count} splats")


@stage2.command("import")
@click.argument("ply", type=PATH, metavar="PLY")
@click.option("--avatar", type=PATH, required=True, help="Avatar that the splats were exported from.")
@click.option("-o", "--output", type=PATH,
              help="New avatar folder with the edited head.  [default: AVATAR itself, which needs --overwrite]")
@overwrite_option
def stage2_import(ply: Path, avatar: Path, output: Path | None, overwrite: bool) -> None:
    """Splats that were edited in a viewer -> the head of an avatar.

    Splats may be deleted, recoloured, moved and added; each moves with the face as the original at its place, or the
    nearest one, did. Without -o the head that the avatar had is kept beside the new one.

    \b
    talkhead stage2 import edited.ply --avatar me.avatar -o edited.avatar
    talkhead stage2 import edited.ply --avatar me.avatar --overwrite
    """
    from shared.avatar import Avatar
    from talkhead.splat_file import import_head

    changes, warnings, file = import_head(Avatar(avatar), ply, output, overwrite=overwrite)
    print_warnings(warnings)
    click.echo(f"{changes.same} splats as they were, {changes.edited} edited, {changes.new} moved or added, {changes.gone} gone")
    click.echo(f"{file}: the avatar with the edited head" if output else f"{avatar}: the head from before is kept in {file}")


@stage2.command("eval")
@click.argument("clip", type=PATH)
@avatar_option
@click.option("--split", "splits", multiple=True, help="Split to measure.  [default: all but train]")
@click.option("--align/--no-align", default=True, help="Measure also with each frame's pose fitted to its picture, or not.  "
              "[default: --align]")
@click.option("--every", default=1, show_default=True, type=click.IntRange(1, 10_000_000), help="Measure each N-th frame only.")
@click.option("--lpips", type=PATH, metavar="FOLDER",
              help="Measure LPIPS too; the folder holds alexnet-owt-7be5be79.pth and alex.pth.")
@click.option("-o", "--output", type=PATH, help="Folder for eval.json and eval.html.  [default: CLIP/training/stage2/eval]")
@device_option
def stage2_eval(clip: Path, avatar: Path | None, splits: tuple[str, ...], align: bool, every: int, lpips: Path | None,
                output: Path | None, device: str) -> None:
    """Measure the head over the true frame, without the torso network, on held-out frames of CLIP.

    PSNR, SSIM and flicker; prints tables, writes them with every frame's figures (JSON) and a sheet to look at (HTML).

    \b
    talkhead stage2 eval me
    talkhead stage2 eval me --split test --every 10 --no-align
    """
    from shared.avatar import Avatar, avatar_folder, refined_poses
    from shared.clip import Clip
    from shared.training import pick_device
    from stage2_gaussian.evaluation.evaluate import evaluate_head

    source, target = Clip(clip), Avatar(avatar or avatar_folder(clip))
    source.require_video()
    target.require("stage2")
    folder = output or source.training / "stage2" / "eval"
    tables = evaluate_head(source, target.stage2, folder, splits=source.held_out(splits), device=pick_device(device),
                           align=align, every=every, lpips=lpips, poses=refined_poses(target, source))
    print_tables(tables)
    click.echo(f"\n{folder / 'eval.html'}")
