"""`talkhead stage1`: audio to landmarks."""

from pathlib import Path

import click

from shared.options import SEED
from talkhead.commands.options import (
    PATH,
    avatar_option,
    config_options,
    device_option,
    encoder_option,
    liveliness_option,
    overwrite_option,
)
from talkhead.commands.output import print_figures, print_part, print_tables, print_warnings
from talkhead.commands.quick_start import quick_start
from talkhead.commands.runner import CONTINUES, CONTINUES_UNASKED, when_stopped


@click.group()
def stage1() -> None:
    """Audio -> landmarks."""


@stage1.command()
@click.argument("clips", type=PATH, nargs=-1, required=True, metavar="CLIP...")
@click.option("-o", "--output", type=PATH, required=True, help="Where the base model goes (.safetensors).")
@click.option("--speech", type=PATH, metavar="FILE", help="Speech encoder of the model (.safetensors).")
@overwrite_option
@device_option
@config_options
def pretrain(clips: tuple[Path, ...], output: Path, speech: Path | None, overwrite: bool, device: str,
             config_file: Path | None, overrides: tuple[str, ...]) -> None:
    """Train a base model on many people's clips, for unknown voices and to take a share of in `finetune`.

    Clips are read from disk piece by piece. Under torchrun, all its processes share the work, each with a GPU of its own
    if there are any.

    \b
    talkhead stage1 pretrain clips/* -o base.safetensors
    talkhead stage1 pretrain clips/* -o base.safetensors --speech encoder.safetensors --set steps=5000
    torchrun --nproc-per-node 2 --no-python talkhead stage1 pretrain clips/* -o base.safetensors
    """
    when_stopped(CONTINUES_UNASKED if overwrite else CONTINUES)
    from shared.clip import Clip
    from shared.config import load_config
    from stage1_audio2lmk.pretrain import PretrainConfig
    from talkhead.training import pretrain as run

    config = load_config(PretrainConfig, config_file, overrides)
    numbers = run([Clip(folder) for folder in clips], output, config=config, device=device, speech=speech, overwrite=overwrite)
    if numbers is not None:
        print_figures(numbers, output)


@stage1.command()
@click.argument("clip", type=PATH)
@avatar_option
@click.option("--base", type=PATH, help="Base model, a share of which goes into the person's; its speech encoder is "
              "used. `none` for nothing.  [default: the one that ships]")
@click.option("--encoder", metavar="NAME|FOLDER", help="Speech encoder of the transformers library; with --base, where the "
              "base's lies now.")
@overwrite_option
@device_option
@config_options
def finetune(clip: Path, avatar: Path | None, base: Path | None, encoder: str | None, overwrite: bool, device: str,
             config_file: Path | None, overrides: tuple[str, ...]) -> None:
    """Train the avatar's audio -> landmark model on one person's CLIP.

    \b
    talkhead stage1 finetune me
    talkhead stage1 finetune me --base base.safetensors --set support_points=3000
    talkhead stage1 finetune me --base none --set voice_augmentation=false
    talkhead stage1 finetune me --encoder microsoft/wavlm-base-plus
    talkhead stage1 finetune me --encoder microsoft/wavlm-base-plus --set mel_terms=false
    """
    when_stopped(CONTINUES_UNASKED if overwrite else CONTINUES)
    from shared.avatar import Avatar, avatar_folder
    from shared.clip import Clip
    from shared.config import load_config
    from stage1_audio2lmk.config import Stage1Config
    from talkhead.training import finetune as run

    source, target = Clip(clip), Avatar(avatar or avatar_folder(clip))
    start = "shipped" if base is None else None if str(base) == "none" else base
    numbers = run(source, target, config=load_config(Stage1Config, config_file, overrides), device=device, base=start,
                  encoder=encoder, overwrite=overwrite)
    print_part(numbers, target, "stage1", source)


@stage1.command()
@click.argument("audio", type=PATH)
@click.option("--avatar", type=PATH, required=True, help="Avatar whose stage 1 and neutral are used.")
@click.option("-o", "--output", type=PATH, required=True, help="Landmark file to write (.npy).")
@click.option("--neutral", type=PATH, help="Another person's neutral.npy, or avatar, to move instead.")
@click.option("--seed", default=0, show_default=True, type=SEED, help="Seed of blinks and brows.")
@liveliness_option
@encoder_option
@overwrite_option
@device_option
def predict(audio: Path, avatar: Path, output: Path, neutral: Path | None, seed: int, liveliness: float, encoder: str | None,
            overwrite: bool, device: str) -> None:
    """AUDIO (a file, a pipe, or - for standard input) -> landmark file.

    \b
    talkhead stage1 predict speech.wav --avatar me.avatar -o predicted.npy
    """
    with quick_start():
        from shared.avatar import Avatar, load_neutral
        from shared.landmarks import check_output_name, save_landmarks
        from talkhead.synthesis import predict as run
        from talkhead.synthesis import written

    check_output_name(output)
    source = Avatar(avatar)
    with written(output, (audio, neutral, *source.files()), overwrite):
        made = run(source, audio, device=device, neutral=load_neutral(neutral) if neutral else None, seed=seed,
                   liveliness=liveliness, encoder=encoder)
        save_landmarks(output, made.landmarks)
    print_warnings(made.warnings)
    click.echo(f"{output}: {len(made.landmarks)} frames")


@stage1.command("eval")
@click.argument("clip", type=PATH)
@avatar_option
@click.option("--split", "splits", multiple=True, help="Split to measure; may be repeated.  [default: all but train]")
@click.option("--audio", type=PATH, multiple=True, metavar="FILE",
              help="Other sound to measure the lips on, such as another language; - is standard input; may be repeated.")
@click.option("--base", type=PATH, metavar="FILE", help="Measure a base model on this person beside the avatar's model; "
              "`shipped` is the one in the package.")
@click.option("-o", "--output", type=PATH, help="Folder for eval.json and eval.html.  [default: CLIP/training/stage1/eval]")
@encoder_option
@device_option
def stage1_eval(clip: Path, avatar: Path | None, splits: tuple[str, ...], audio: tuple[Path, ...], base: Path | None,
                output: Path | None, encoder: str | None, device: str) -> None:
    """Measure the avatar's audio -> landmark model on held-out frames of CLIP, beside ridge regression and the mean face.

    Prints tables, writes them with the lip openings (JSON) and a page with plots of them (HTML).

    \b
    talkhead stage1 eval me
    talkhead stage1 eval me --split test --audio german.wav --audio music.mp3
    talkhead stage1 eval me --base base.safetensors -o measured
    """
    from shared.avatar import Avatar, avatar_folder
    from shared.clip import Clip
    from shared.training import pick_device
    from stage1_audio2lmk.checkpoint import SHIPPED_BASE
    from stage1_audio2lmk.evaluate import NO_PHONES, PHONES, evaluate_audio2lmk

    source, target = Clip(clip), Avatar(avatar or avatar_folder(clip))
    splits = tuple(source.held_out(splits))
    target.require("stage1")
    folder = output or source.training / "stage1" / "eval"
    tables = evaluate_audio2lmk(source, target.stage1, folder, splits=splits, device=pick_device(device),
                                base=SHIPPED_BASE if str(base) == "shipped" else base, audio=audio, encoder=encoder)
    print_tables(tables)
    if PHONES not in tables:
        click.echo(f"\n{NO_PHONES}")
    click.echo(f"\n{folder / 'eval.html'}")


@stage1.command()
@click.argument("checkpoint", type=PATH)
@click.option("--onnx", "output", type=PATH, required=True, metavar="FILE", help="File to write (.onnx).")
@overwrite_option
def export(checkpoint: Path, output: Path, overwrite: bool) -> None:
    """CHECKPOINT (.safetensors), or that of an avatar -> ONNX, for streams where there is no Python, such as browsers.

    Log-mel rows and a state go in, displacement of the face's points and the next state come out; docs/formats.md says how.
    Needs `pip install talkhead[onnx]`.

    \b
    talkhead stage1 export me.avatar --onnx me.onnx
    talkhead stage1 export base.safetensors --onnx base.onnx --overwrite
    """
    from shared.avatar import Avatar, is_avatar
    from stage1_audio2lmk.onnx_export import OPSET, export_onnx
    from talkhead.synthesis import written

    with written(output, (checkpoint,), overwrite):
        if is_avatar(checkpoint):
            avatar = Avatar(checkpoint)
            avatar.require("stage1")
            checkpoint = avatar.stage1
        said = export_onnx(checkpoint, output)
    click.echo(f"{output}: {output.stat().st_size / 1e6:.1f} MB, ONNX opset {OPSET}, rows of {said['width']}, {said['latency']} "
               "frames of look-ahead")
