"""How good an avatar becomes with the first N seconds of a video: trains one for each N, measures all on the same frames.

Writes to the output folder: one clip and one avatar for each N (the clip's files are links), `results.json` and a plot. A run
that was interrupted continues with the same command.

    python -m tools.quality_against_seconds me.mp4 --seconds 5 --seconds 20 -o quality
    python -m tools.quality_against_seconds clips/me --split train=0:1286 --split test=1286:1429 -o quality --device cuda
"""

import dataclasses
from pathlib import Path
from typing import Any

import click

from shared.arrays import runs
from shared.clip import Clip
from shared.errors import TalkheadError
from shared.files import make_folder, read_json, write_json
from shared.landmarks import FPS
from talkhead.commands.options import PATH, device_option
from talkhead.commands.process import parse_ranges

SECONDS = (5.0, 10.0, 20.0, 51.0)
OWN = ("clip.json", "poses_fitted.npy", "poses_fitted.json", "training", ".lock")  # of each N; everything else is linked
HEAD, FINISHED, MOUTH = "head over truth psnr", "full psnr", "mouth psnr"
PANELS = (  # title and unit of a panel; its curves: label, what is measured, colour
    ("pictures from tracked landmarks: PSNR, dB", (
        ("head over truth", HEAD, "#1f5fa8"), ("finished frame", FINISHED, "#c8452c"), ("mouth box", MOUTH, "#3a8f4d"))),
    ("lip opening from sound: r", (("in the finished video", "opening r", "#c8452c"), ("stage 1 alone", "driving r", "#1f5fa8"))),
    ("lips from sound: distance, px at 512²", (("in the finished video", "px at 512", "#c8452c"),
                                               ("stage 1 alone", "driving px at 512", "#1f5fa8"))),
)


def first_seconds(clip: Clip, seconds: float) -> dict[str, list[tuple[int, int]]]:
    """The clip's splits, with only the first good frames of train, as many as last `seconds`."""
    train = clip.split("train")[: round(seconds * FPS)]
    if len(train) == 0:
        raise TalkheadError(f"{clip.root}: the split 'train' holds no good frame")
    return clip.info.split | {"train": runs(train)}


def shortened_clip(clip: Clip, seconds: float, split: dict[str, list[tuple[int, int]]], root: Path) -> Clip:
    """A clip folder `root` with the files of `clip`, linked, the decoded frames too, and `first_seconds` of the splits given."""
    made = Clip(root)
    make_folder(root)
    make_folder(clip.cache)
    for path in clip.root.iterdir():
        link = root / path.name
        if path.name not in OWN and not link.is_symlink():
            link.symlink_to(path.resolve())
    made.save_info(dataclasses.replace(clip.info, split=first_seconds(clip.with_split(split), seconds)))
    return made


def measured(clip: Clip, root: Path, device: str, splits: list[str], head_steps: int, torso_steps: int) -> dict[str, Any]:
    """Train what is missing of the avatar `root`, evaluate it -> its eval.json."""
    from shared.avatar import Avatar
    from shared.training import pick_device
    from stage2_gaussian.config import Stage2Config
    from talkhead.evaluation import evaluate_avatar
    from talkhead.training import finetune, train_head, train_torso
    from torso_styleunet.config import TorsoConfig

    avatar, folder = Avatar(root), clip.training / "eval"
    if not avatar.stage1.is_file():
        finetune(clip, avatar, device=device)
    if not avatar.stage2.is_file():
        train_head(clip, avatar, config=Stage2Config(steps=head_steps), device=device)
    if not avatar.torso.is_file():
        train_torso(clip, avatar, config=TorsoConfig(steps=torso_steps), device=device)
    if not (folder / "eval.json").is_file():
        evaluate_avatar(avatar, clip, splits, pick_device(device), folder)
    return read_json(folder / "eval.json")


def figures(tables: dict[str, Any], split: str) -> dict[str, float]:
    """The plotted numbers of one eval.json's tables: pictures at the fitted poses, lips from sound."""
    from talkhead.evaluation import PICTURES
    from talkhead.retracking import SOUND, TITLE

    pictures = tables[PICTURES.format("fitted")][split]
    return {name: pictures[name] for name in (HEAD, FINISHED, MOUTH)} | tables[TITLE.format(split)][SOUND]


def plot(results: dict[float, dict[str, float]], title: str, path: Path) -> None:
    """{seconds: {name: number}} -> a picture of PANELS, in the format that the name of `path` says."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    seconds = sorted(results)
    shown, axes = pyplot.subplots(1, len(PANELS), figsize=(11, 3.4), layout="constrained")
    for axis, (name, curves) in zip(axes, PANELS):
        for label, key, colour in curves:
            points = [(x, results[x][key]) for x in seconds if key in results[x]]
            axis.plot(*zip(*points), "o-", color=colour, label=label, markersize=4)
        axis.set_xscale("log")
        axis.set_xticks(seconds, [f"{x:g}" for x in seconds], minor=False)
        axis.minorticks_off()
        axis.set_xlabel("seconds of video trained on")
        axis.set_title(name, fontsize=10)
        axis.grid(alpha=0.3)
        axis.margins(y=0.15)
        axis.legend(fontsize=8, frameon=False)
        axis.spines[["top", "right"]].set_visible(False)
    shown.suptitle(title, fontsize=11)
    shown.savefig(path, dpi=110, facecolor="white")
    pyplot.close(shown)


@click.command()
@click.argument("source", type=PATH)
@click.option("-s", "--seconds", multiple=True, type=click.FloatRange(1), default=SECONDS, show_default=True,
              help="Of good training frames, from the first on. Repeatable.")
@click.option("--split", "splits", multiple=True, metavar="NAME=START:STOP",
              help="Frames of a split, instead of the clip's own; repeatable, at least train and one other.")
@click.option("-o", "--output", type=PATH, required=True, help="Folder for clips, avatars, results.json and the plot.")
@click.option("--picture", default="quality.svg", show_default=True, help="Name of the plot: .svg or .png.")
@click.option("--head-steps", default=0, show_default=True, help="Of stage 2; 0 is its default.")
@click.option("--torso-steps", default=0, show_default=True, help="Of the torso; 0 is its default.")
@device_option
def main(source: Path, seconds: tuple[float, ...], splits: tuple[str, ...], output: Path, picture: str, head_steps: int,
         torso_steps: int, device: str) -> None:
    """Train avatars on the first seconds of SOURCE, a video or a clip folder, and plot how good they are."""
    from process_data.pipeline import process

    clip = Clip(source)
    if not source.is_dir():
        clip = Clip(output / "clip")
        if not clip.exists():
            clip = process(source, clip.root)
    split = parse_ranges(splits) or clip.info.split
    held = clip.with_split(split).held_out()
    if "train" in held:
        raise TalkheadError(f"{clip.root} has no split besides train; add --split train=START:STOP --split test=START:STOP")
    results: dict[str, dict[float, dict[str, float]]] = {name: {} for name in held}
    for wanted in sorted(set(seconds)):
        short = shortened_clip(clip, wanted, split, output / f"{wanted:g}s")
        length = len(short.split("train")) / FPS
        if any(length in known for known in results.values()):
            continue  # the clip is no longer
        click.echo(f"{length:g} s")
        found = measured(short, output / f"{wanted:g}s.avatar", device, held, head_steps, torso_steps)
        for name, known in results.items():
            known[length] = figures(found["tables"], name)
        write_json(output / "results.json", {"clip": clip.info.name, "splits": results})
        for name, known in results.items():
            target = output / picture
            target = target if name == held[0] else target.with_stem(f"{target.stem}_{name}")
            plot(known, f"{clip.info.name}, held-out frames ({name})", target)
            click.echo(target)


if __name__ == "__main__":
    try:
        main()
    except TalkheadError as error:
        raise SystemExit(f"error: {error}") from error
