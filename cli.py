"""The `talkhead` command: parses, calls, prints. Heavy imports stay inside the command bodies."""

import dataclasses
import errno
import itertools
import os
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import click

import talkhead_guard

talkhead_guard.check_or_exit(*talkhead_guard.PACKAGES)

from shared import machine  # noqa: E402  only now is it certain to be ours
from shared.errors import TalkheadError, TalkheadWarning  # noqa: E402
from shared.files import refuse_existing, refuse_inputs, same_file  # noqa: E402
from shared.options import SEED, FiniteFloat  # noqa: E402

STARTS_ANEW = "Stopped; nothing was written. The same command starts anew."
CONTINUES = "Stopped. The same command continues where it was."
CONTINUES_UNASKED = "Stopped. The same command without --overwrite continues where it was."
STOPPED = "talkhead.stopped"


class Stopped(KeyboardInterrupt):
    """The system asks the process to end, as `docker stop`, `kill` and a closed terminal do."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


@contextmanager
def plain_warnings() -> Iterator[None]:
    """Print a TalkheadWarning as one sentence, once."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("default", TalkheadWarning)
        show = warnings.showwarning

        def plain(message: Any, category: Any, *rest: Any, **more: Any) -> None:
            if issubclass(category, TalkheadWarning):
                print_error(f"Warning: {one_line(str(message))}")
            else:
                show(message, category, *rest, **more)

        warnings.showwarning = plain
        yield


class Main(click.Group):
    """Prints what a user can mend as one sentence and exits with 2; a traceback only with --debug."""

    def main(self, *arguments: Any, **options: Any) -> Any:
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="backslashreplace")
        return super().main(*arguments, **options)

    def make_context(self, *arguments: Any, **options: Any) -> click.Context:
        try:
            return super().make_context(*arguments, **options)
        except OSError as error:  # help and version are printed here
            if error.errno == errno.EPIPE:
                raise
            print_error(f"Error: {sentence(error)}")
            raise click.exceptions.Exit(2) from error

    def invoke(self, context: click.Context) -> Any:
        try:
            with plain_warnings():
                return super().invoke(context)
        except KeyboardInterrupt as stop:
            print_error("\n" + context.meta.get(STOPPED, STARTS_ANEW))
            context.exit(128 + getattr(stop, "number", signal.SIGINT))
        except (TalkheadError, OSError, MemoryError, ImportError) as error:
            if context.params.get("debug") or getattr(error, "errno", None) == errno.EPIPE:
                raise  # click ends quietly where nobody reads what is printed
            print_error(f"Error: {one_line(sentence(error))}")
            context.exit(2)


def sentence(error: Exception) -> str:
    """What is said of an error that the user or the machine causes."""
    if isinstance(error, MemoryError):
        return "there is not enough memory"
    if isinstance(error, ImportError):
        return f"{error}; `talkhead doctor` tells what is missing"
    if isinstance(error, OSError):
        return f"{error.filename or 'the output'} cannot be read or written: {error.strerror or error}"
    return str(error)


def one_line(text: str) -> str:
    """`text` with what a terminal does not print as it is (in file names: line ends, control characters) as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class Printable:
    """A text stream on which file names cannot move the cursor, change colours or turn the reading direction."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write `text` with all that is not printed as it is, but line ends and tabs, as escapes."""
        return self._stream.write(re.sub(r"[^\n\t]+", lambda found: one_line(found[0]), text))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def print_error(text: str) -> None:
    """One line on stderr. Where stdout or stderr cannot be written, nothing more is tried."""
    with suppress(OSError):
        click.echo(text, err=True)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def when_stopped(text: str) -> None:
    """Print `text` if the running command is stopped by Ctrl-C or by the system."""
    click.get_current_context().meta[STOPPED] = text


PATH = click.Path(path_type=Path)
EXAMPLES = {"help_option_names": ["-h", "--help"], "max_content_width": 110}


def device_option(function: Any) -> Any:
    return click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")(function)


def config_options(function: Any) -> Any:
    function = click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE",
                            help="Change one setting; may be repeated.")(function)
    return click.option("--config", "config_file", type=PATH, help="YAML file with settings.")(function)


def avatar_option(function: Any) -> Any:
    return click.option("--avatar", type=PATH, help="Avatar folder.  [default: CLIP.avatar beside the clip]")(function)


liveliness_option = click.option("--liveliness", default=1.0, show_default=True, type=FiniteFloat(0, 3),
                                 help="How far the brows move with the voice; 0 leaves them still.")
place_option = click.option("--encoder", metavar="NAME|FOLDER", help="Where the model's speech encoder lies now, if it has one.  "
                            "[default: where it was in training]")
overwrite_option = click.option("--overwrite", is_flag=True, help="Replace what is already there.")


@click.group(cls=Main, context_settings=EXAMPLES)
@click.option("--debug", is_flag=True, help="Show a traceback when something goes wrong.")
@click.version_option(package_name="talkhead")
def cli(debug: bool) -> None:
    """From a video of one person to an avatar that speaks any audio.

    \b
    talkhead process me.mp4 me            video -> clip folder
    talkhead stage1 finetune me           audio -> landmarks, for this person
    talkhead stage2 train me              landmarks -> Gaussian head
    talkhead torso train me               shoulders and background
    talkhead synth me.avatar speech.wav -o talk.mp4
    """


def main() -> None:
    """Run the command in this process, which ends with it."""
    open_missing_streams()
    sys.stdout = Printable(sys.stdout)
    machine.limit_threads()
    machine.do_without_home()
    stops = [number for name in ("SIGTERM", "SIGHUP") if (number := getattr(signal, name, None))
             and signal.getsignal(number) is not signal.SIG_IGN]  # as nohup has it
    for number in stops:
        signal.signal(number, stop)
    try:
        cli(prog_name="talkhead")
    finally:
        for number in (signal.SIGINT, *stops):
            signal.signal(number, signal.SIG_IGN)  # ending, and not twice


def stop(number: int, _: Any) -> None:
    """Signal handler: end as after Ctrl-C."""
    raise Stopped(number)


def open_missing_streams() -> None:
    """Where the command was started without stdin, stdout or stderr, no file may get their numbers: libraries print there."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
    sys.stdout = sys.stdout or open(os.devnull, "w", encoding="utf-8")
    sys.stderr = sys.stderr or open(os.devnull, "w", encoding="utf-8")


def avatar_of(clip_folder: Path, avatar: Path | None) -> Path:
    """The avatar folder that belongs to a clip, unless one is named. Raises TalkheadError."""
    if avatar is not None:
        return avatar
    named = clip_folder if clip_folder.name not in ("", "..") else clip_folder.resolve()  # `.` and `..`
    if not named.name:
        raise TalkheadError(f"{clip_folder} has no name to name an avatar after; add --avatar FOLDER")
    return named.with_name(named.name + ".avatar")


def named_file(poses: str) -> Path | None:
    """The file that --poses names, if it names one."""
    return None if poses in ("loop", "still") else Path(poses)


def parse_ranges(values: tuple[str, ...]) -> dict[str, list[tuple[int, int]]] | None:
    """("train=0:1286", "test=1286:1429") -> {"train": [(0, 1286)], …}; None if empty. Raises TalkheadError."""
    split: dict[str, list[tuple[int, int]]] = {}
    for value in values:
        name, _, span = value.partition("=")
        start, _, stop = span.partition(":")
        plain = all(re.fullmatch("[0-9]{1,9}", number) for number in (start, stop))
        if not (name and plain and int(start) < int(stop)):
            raise TalkheadError(f"--split takes NAME=START:STOP in frames, found {value!r}")
        split.setdefault(name, []).append((int(start), int(stop)))
    spans = [(name, *span) for name, found in split.items() for span in found]
    for (name, a, b), (other, c, d) in itertools.combinations(spans, 2):
        if name != other and a < d and c < b:
            raise TalkheadError(f"--split {name}={a}:{b} and --split {other}={c}:{d} overlap; a frame has one split")
    return split or None


@cli.command()
@click.argument("video", type=PATH)
@click.argument("clip", type=PATH)
@click.option("--split", "splits", multiple=True, metavar="NAME=START:STOP",
              help="Frames of a split; may be repeated.  [default: train the first 90 %, test the rest]")
@click.option("--detector", type=click.Choice(["mediapipe", "fan"]), default="mediapipe", show_default=True,
              help="What finds the face; fan needs `pip install 'talkhead[fan]'` and its weights.")
@click.option("--landmarker", type=PATH, help="Another face_landmarker.task than the one that ships.")
@click.option("--models", type=PATH, help="Folder with model files that replace those that ship, or with fan's.")
@click.option("--person", default="", metavar="left|right|N", help="Whom to keep to where several people are in the picture; "
              "1 is the first from the left.  [default: the one whose face is largest over the whole video]")
@click.option("--fix-sync", is_flag=True, help="Shift the sound so that it goes with the lips.")
@click.option("--workers", type=click.IntRange(1, 1024),
              help="Processes that work.  [default: as many as processors and memory allow]")
@click.option("--resume/--restart", default=True, help="Continue an interrupted run.  [default: --resume]")
@overwrite_option
@config_options
def process(video: Path, clip: Path, splits: tuple[str, ...], detector: str, landmarker: Path | None, models: Path | None,
            person: str, fix_sync: bool, workers: int | None, resume: bool, overwrite: bool, config_file: Path | None,
            overrides: tuple[str, ...]) -> None:
    """VIDEO -> CLIP folder: tracked landmarks, poses, labels, background, sound, report.

    \b
    talkhead process me.mp4 me
    talkhead process news.mp4 anchor --split train=0:1286 --split test=1286:1429
    talkhead process phone.mov me --fix-sync
    """
    when_stopped(CONTINUES if resume else "Stopped. The same command with --resume continues where it was.")
    from process_data.config import ProcessConfig
    from process_data.observe import DetectorChoice
    from process_data.pipeline import process as run
    from shared.config import load_config

    if fix_sync:
        overrides = (*overrides, "fix_sync=true")
    config = load_config(ProcessConfig, config_file, overrides)
    if person:
        config = dataclasses.replace(config, person=person)
    made = run(video, clip, config=config, detector=DetectorChoice(detector, landmarker, models), resume=resume,
               splits=parse_ranges(splits), workers=workers, overwrite=overwrite)
    info = made.info
    click.echo(f"{clip}: {info.frames} frames of {info.width}x{info.height}, {len(info.shots)} shot(s)")
    for warning in info.warnings:
        click.echo(f"  warning: {warning}")
    click.echo(f"Look at {made.report} before training.")


@cli.command("process-voca")
@click.argument("root", type=PATH)
@click.argument("out", type=PATH)
@click.option("--embedding", type=PATH, help="Your own 68 landmarks on FLAME's mesh (.json, .npy or .npz) instead of ours.")
@click.option("--fps", default=60.0, show_default=True, type=FiniteFloat(1, 1000), help="Meshes a second.")
@overwrite_option
def process_voca(root: Path, out: Path, embedding: Path | None, fps: float, overwrite: bool) -> None:
    """VOCASET folder ROOT -> one landmark clip a sentence under OUT, for `stage1 pretrain`.

    Reads unposedcleaneddata/ with audio/ (and templates/), or vertices_npy/ with wav/. Finished clips are skipped.

    \b
    talkhead process-voca VOCASET clips/voca
    talkhead stage1 pretrain clips/voca/* -o base.safetensors
    """
    when_stopped(CONTINUES)
    from process_data.import_voca import import_voca

    done = import_voca(root, out, embedding=embedding, fps=fps, overwrite=overwrite)
    for warning in done.warnings:
        click.echo(f"  warning: {warning}")
    click.echo(f"{out}: {len(done.made)} clip(s) made, {len(done.kept)} there before, {len(done.left_out)} sentence(s) left out")


@cli.command("import-adnerf")
@click.argument("folder", type=PATH, metavar="DIR")
@click.argument("clip", type=PATH)
@click.option("--workers", type=click.IntRange(1, 1024),
              help="Processes that work.  [default: as many as processors and memory allow]")
@overwrite_option
@config_options
def import_adnerf(folder: Path, clip: Path, workers: int | None, overwrite: bool, config_file: Path | None,
                  overrides: tuple[str, ...]) -> None:
    """Data folder DIR of AD-NeRF, ER-NeRF, GaussianTalker and the like -> CLIP folder.

    Needs ori_imgs/ and aud.wav; parsing/, bc.jpg, transforms_train.json, transforms_val.json and track_params.pt are
    used where they are.

    \b
    talkhead import-adnerf data/obama obama
    talkhead stage1 finetune obama
    """
    when_stopped(CONTINUES)
    from process_data.config import ProcessConfig
    from process_data.import_adnerf import import_adnerf as run
    from shared.config import load_config

    made = run(folder, clip, config=load_config(ProcessConfig, config_file, overrides), workers=workers, overwrite=overwrite)
    info = made.info
    click.echo(f"{clip}: {info.frames} frames of {info.width}x{info.height}, {len(info.shots)} shot(s)")
    for warning in info.warnings:
        click.echo(f"  warning: {warning}")
    click.echo(f"Look at {made.report} before training.")


@cli.group()
def stage1() -> None:
    """Audio -> landmarks."""


@stage1.command()
@click.argument("clips", type=PATH, nargs=-1, required=True, metavar="CLIP...")
@click.option("-o", "--output", type=PATH, required=True, help="Where the base model goes (.safetensors).")
@click.option("--speech", type=PATH, metavar="FILE", help="Speech encoder that the model hears with (.safetensors).")
@overwrite_option
@device_option
@config_options
def pretrain(clips: tuple[Path, ...], output: Path, speech: Path | None, overwrite: bool, device: str,
             config_file: Path | None, overrides: tuple[str, ...]) -> None:
    """Train a base model on many people's clips, for voices that it has never heard and as a start for `finetune`.

    Clips are read from disk piece by piece. Under torchrun, all its processes share the work, each with a GPU of its own
    if there are any.

    \b
    talkhead stage1 pretrain clips/* -o base.safetensors
    talkhead stage1 pretrain clips/* -o base.safetensors --speech encoder.safetensors --set tune_encoder=true
    torchrun --nproc-per-node 2 --no-python talkhead stage1 pretrain clips/* -o base.safetensors
    """
    when_stopped(CONTINUES_UNASKED if overwrite else CONTINUES)
    from chain.training import training_of
    from shared.clip import Clip
    from shared.config import load_config
    from shared.training import pick_device
    from stage1_audio2lmk import distributed
    from stage1_audio2lmk.pretrain import PretrainConfig
    from stage1_audio2lmk.pretrain import pretrain as run

    config = load_config(PretrainConfig, config_file, overrides)
    opened = [Clip(folder) for folder in clips]
    for clip in opened:
        _ = clip.info
    state = output.with_name(output.stem + ".training")
    refuse_inputs(output, speech)
    with distributed.processes(pick_device(device)) as own:
        first = distributed.rank() == 0
        with training_of(output, state, overwrite) if first else nullcontext():
            distributed.wait()
            numbers = run(opened, output, config=config, device=own, state_dir=state, speech=speech)
        if first:
            report(numbers, output)


@stage1.command()
@click.argument("clip", type=PATH)
@avatar_option
@click.option("--base", type=PATH, help="Base model to start from, whose sizes win over --set; "
              "`none` for nothing.  [default: the one that ships]")
@click.option("--encoder", metavar="NAME|FOLDER", help="Speech encoder of the transformers library to hear with; with --base, "
              "where the base's lies now.")
@overwrite_option
@device_option
@config_options
def finetune(clip: Path, avatar: Path | None, base: Path | None, encoder: str | None, overwrite: bool, device: str,
             config_file: Path | None, overrides: tuple[str, ...]) -> None:
    """Train the avatar's audio -> landmark model on one person's CLIP.

    \b
    talkhead stage1 finetune me
    talkhead stage1 finetune me --base base.safetensors --set steps=2000
    talkhead stage1 finetune me --base none --set other_voices=false
    talkhead stage1 finetune me --encoder microsoft/wavlm-base-plus
    talkhead stage1 finetune me --encoder microsoft/wavlm-base-plus --set encoder_tune=2
    """
    when_stopped(CONTINUES_UNASKED if overwrite else CONTINUES)
    from dataclasses import replace

    from chain.training import train_landmarks
    from shared.avatar import Avatar
    from shared.clip import Clip
    from shared.config import load_config
    from shared.training import pick_device
    from stage1_audio2lmk.config import Stage1Config
    from stage1_audio2lmk.train import SHIPPED_BASE

    source, target = Clip(clip), Avatar(avatar_of(clip, avatar))
    if base is None:
        base = None if encoder else SHIPPED_BASE
    elif str(base) == "none":
        base = None
    config = load_config(Stage1Config, config_file, overrides)
    if encoder:  # a folder is found again from anywhere
        config = replace(config, encoder=str(Path(encoder).resolve()) if Path(encoder).is_dir() else encoder)
    refuse_inputs(target.stage1, base)
    numbers = train_landmarks(source, target, config=config, device=pick_device(device), base=base, overwrite=overwrite)
    report_part(numbers, target, "stage1", source)


def tell(warnings: list[str]) -> None:
    """Print warnings, one a line."""
    for warning in warnings:
        click.echo(f"  warning: {warning}")


def report(numbers: dict[str, Any], out: Path) -> None:
    """Print what a training returned."""
    text = ", ".join(f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
                     for key, value in numbers.items() if isinstance(value, (int, float, str)))
    click.echo(f"{out}: {text}")


def report_part(numbers: dict[str, Any], avatar: Any, part: str, clip: Any) -> None:
    """Print what the training of an avatar's part returned, and which parts do not go with it."""
    from chain.training import others_of_another_clip

    report(numbers, avatar.part(part))
    for warning in others_of_another_clip(avatar, clip):
        click.echo(f"  warning: {warning}")


@stage1.command()
@click.argument("audio", type=PATH)
@click.option("--avatar", type=PATH, required=True, help="Avatar whose stage 1 and neutral are used.")
@click.option("-o", "--output", type=PATH, required=True, help="Landmark file to write (.npy).")
@click.option("--neutral", type=PATH, help="Another person's neutral.npy to move instead.")
@click.option("--seed", default=0, show_default=True, type=SEED, help="Seed of blinks and brows.")
@liveliness_option
@place_option
@overwrite_option
@device_option
def predict(audio: Path, avatar: Path, output: Path, neutral: Path | None, seed: int, liveliness: float, encoder: str | None,
            overwrite: bool, device: str) -> None:
    """AUDIO (a file, a pipe, or - for standard input) -> landmark file.

    \b
    talkhead stage1 predict speech.wav --avatar me.avatar -o predicted.npy
    """
    import numpy as np

    from shared.audio_io import iter_audio
    from shared.avatar import Avatar
    from shared.landmarks import check_output_name, load_landmarks, save_landmarks
    from shared.lock import lock_output
    from shared.sound_check import SoundCheck
    from shared.spool import readable_again
    from shared.training import pick_device
    from stage1_audio2lmk.predict import iter_predict, load_predictor

    check_output_name(output)
    source = Avatar(avatar)
    refuse_inputs(output, audio, neutral, *source.files())
    source.require("stage1")
    refuse_existing(output, overwrite)
    with lock_output(output):
        rest = load_landmarks(neutral)[:1] if neutral else source.load_neutral()
        predictor = load_predictor(source.stage1, pick_device(device), encoder)
        check = SoundCheck()
        with readable_again(audio) as sound:
            chunks = iter_predict(predictor, check.listen(iter_audio(sound)), rest, seed=seed, liveliness=liveliness)
            rows = np.concatenate(list(chunks))
        save_landmarks(output, rows)
    tell(check.warnings())
    click.echo(f"{output}: {len(rows)} frames")


@stage1.command("eval")
@click.argument("clip", type=PATH)
@avatar_option
@click.option("--split", "splits", multiple=True, help="Split to measure; may be repeated.  [default: all but train]")
@click.option("--audio", type=PATH, multiple=True, metavar="FILE",
              help="Other sound to measure the lips on, such as another language; - is standard input; may be repeated.")
@click.option("--base", type=PATH, metavar="FILE", help="Measure a base model on this person beside the avatar's model.")
@click.option("-o", "--output", type=PATH, help="Folder for eval.json and eval.html.  [default: CLIP/training/stage1/eval]")
@place_option
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
    from shared.avatar import Avatar
    from shared.clip import Clip
    from shared.training import pick_device
    from stage1_audio2lmk.evaluate import evaluate_audio2lmk

    source, target = Clip(clip), Avatar(avatar_of(clip, avatar))
    splits = tuple(held_out(source, splits))
    target.require("stage1")
    folder = output or source.training / "stage1" / "eval"
    tables = evaluate_audio2lmk(source, target.stage1, folder, splits=splits, device=pick_device(device), base=base, audio=audio,
                                encoder=encoder)
    for title, table in tables.items():
        click.echo(f"\n{title}\n{format_table(table)}")
    click.echo(f"\n{folder / 'eval.html'}")


@cli.group()
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
    from chain.training import train_head
    from shared.avatar import Avatar
    from shared.clip import Clip
    from shared.config import load_config
    from shared.training import pick_device
    from stage2_gaussian.config import Stage2Config

    config = load_config(Stage2Config, config_file, overrides)
    source, target = Clip(clip), Avatar(avatar_of(clip, avatar))
    numbers = train_head(source, target, config=config, device=pick_device(device), overwrite=overwrite)
    report_part(numbers, target, "stage2", source)


@stage2.command("render")
@click.argument("landmarks", type=PATH)
@click.option("--avatar", type=PATH, required=True, help="Avatar folder.")
@click.option("-o", "--output", type=PATH, required=True,
              help="Folder for RGBA pictures, or a video with transparency: .mov (ProRes 4444) or .webm (VP9).")
@click.option("--poses", default="loop", show_default=True, help="loop, still, or a poses .npy file.")
@click.option("--orbit", type=FiniteFloat(-180, 180), metavar="DEGREES",
              help="Swing the camera around the head, this far to either side; negative goes the other way first.")
@click.option("--period", type=FiniteFloat(0.04, 3600), metavar="SECONDS",
              help="Time of one swing of --orbit there and back.  [default: the whole sequence]")
@click.option("--audio", type=PATH, help="Sound to put under a video; - is standard input.")
@overwrite_option
@device_option
def stage2_render(landmarks: Path, avatar: Path, output: Path, poses: str, orbit: float | None, period: float | None,
                  audio: Path | None, overwrite: bool, device: str) -> None:
    """LANDMARKS -> the head alone, over nothing: RGBA pictures or a transparent video.

    A folder also gets the poses and torso motion that belong to the pictures, for `torso composite`. Swings that go more
    than some 15 degrees beyond the views in the training video show splats that no picture ever checked.

    \b
    talkhead stage2 render edited.npy --avatar me.avatar -o frames --poses still
    talkhead stage2 render edited.npy --avatar me.avatar -o head.mov --audio speech.wav
    talkhead stage2 render edited.npy --avatar me.avatar -o head.webm --poses still --orbit 30 --period 4
    """
    from chain.synthesize import HeadView, Orbit, check_head_output, render_to_folder, render_to_video
    from shared.avatar import Avatar
    from shared.lock import lock_output
    from shared.spool import readable_again
    from shared.training import pick_device

    if period is not None and orbit is None:
        raise TalkheadError(f"--period {period:g} is the time of a swing; add --orbit DEGREES")
    refuse_inputs(output, landmarks, audio, named_file(poses), *Avatar(avatar).files())
    refuse_existing(output, overwrite)
    with readable_again(audio) as sound:
        to_video = check_head_output(output, sound)
        view = HeadView(Avatar(avatar), landmarks, poses, None if orbit is None else Orbit(orbit, period))
        picked = pick_device(device)
        with lock_output(output):
            if to_video:
                made = render_to_video(view, output, audio=sound, device=picked)
            else:
                made = render_to_folder(view, output, device=picked)
    tell(made.warnings)
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
    from stage2_gaussian.ply import export_head

    if output.suffix.lower() != ".ply":
        raise TalkheadError(f"{output}: the splat file's name should end in .ply")
    if frame is not None and landmarks is None:
        raise TalkheadError(f"--frame {frame} is a row of a landmark file; add --landmarks FILE")
    rows = None if landmarks is None else load_landmarks(landmarks)
    at = frame or 0
    if rows is not None and at >= len(rows):
        raise TalkheadError(f"--frame {at}: {landmarks} has {len(rows)} rows, 0 to {len(rows) - 1}")
    refuse_inputs(output, landmarks, *Avatar(avatar).files())
    refuse_existing(output, overwrite)
    count = export_head(Avatar(avatar), output, landmarks=None if rows is None else rows[at],
                        frame=f"with the expression of row {at}")
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
    from stage2_gaussian.ply import import_head

    if output is not None and not same_file(output, avatar):
        refuse_inputs(output, ply)
    refuse_existing(output or Avatar(avatar).stage2, overwrite)
    changes, warnings, file = import_head(Avatar(avatar), ply, output)
    for warning in warnings:
        click.echo(f"  warning: {warning}")
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
    """Measure the head over plate and neck colour, without the torso network, on held-out frames of CLIP.

    PSNR, SSIM and flicker; prints tables, writes them with every frame's figures (JSON) and a sheet to look at (HTML).

    \b
    talkhead stage2 eval me
    talkhead stage2 eval me --split test --every 10 --no-align
    """
    from shared.avatar import Avatar, refined_poses, require_video
    from shared.clip import Clip
    from shared.training import pick_device
    from stage2_gaussian.evaluate import evaluate_head

    source, target = Clip(clip), Avatar(avatar_of(clip, avatar))
    require_video(source)
    target.require("stage2")
    folder = output or source.training / "stage2" / "eval"
    tables = evaluate_head(source, target.stage2, folder, splits=held_out(source, splits), device=pick_device(device),
                           align=align, every=every, lpips=lpips, poses=refined_poses(target, source))
    for title, table in tables.items():
        click.echo(f"\n{title}\n{format_table(table)}")
    click.echo(f"\n{folder / 'eval.html'}")


@cli.group()
def torso() -> None:
    """Shoulders, neck and background."""


@torso.command("train")
@click.argument("clip", type=PATH)
@avatar_option
@overwrite_option
@device_option
@config_options
def torso_train(clip: Path, avatar: Path | None, overwrite: bool, device: str, config_file: Path | None,
                overrides: tuple[str, ...]) -> None:
    """Train the avatar's torso on CLIP; the Gaussian head must be trained before.

    \b
    talkhead torso train me
    """
    when_stopped(CONTINUES_UNASKED if overwrite else CONTINUES)
    from chain.training import train_torso
    from shared.avatar import Avatar
    from shared.clip import Clip
    from shared.config import load_config
    from shared.training import pick_device
    from torso_styleunet.config import TorsoConfig

    config = load_config(TorsoConfig, config_file, overrides)
    source, target = Clip(clip), Avatar(avatar_of(clip, avatar))
    numbers = train_torso(source, target, config=config, device=pick_device(device), overwrite=overwrite)
    report_part(numbers, target, "torso", source)


@torso.command()
@click.argument("frames", type=PATH)
@click.option("--avatar", type=PATH, required=True, help="Avatar folder.")
@click.option("-o", "--output", type=PATH, required=True, help="Video to write (.mp4, .mov or .mkv).")
@click.option("--audio", type=PATH, help="Sound to put under it; - is standard input.")
@overwrite_option
@device_option
def composite(frames: Path, avatar: Path, output: Path, audio: Path | None, overwrite: bool, device: str) -> None:
    """FRAMES folder (from `stage2 render`) -> video with torso and background.

    \b
    talkhead torso composite frames --avatar me.avatar -o talk.mp4 --audio speech.wav
    """
    from chain.synthesize import composite_folder
    from shared.avatar import Avatar
    from shared.lock import lock_output
    from shared.spool import readable_again
    from shared.training import pick_device

    refuse_inputs(output, audio, frames, *Avatar(avatar).files())
    refuse_existing(output, overwrite)
    with lock_output(output), readable_again(audio) as sound:
        made = composite_folder(Avatar(avatar), frames, output, audio=sound, device=pick_device(device))
    tell(made.warnings)
    click.echo(f"{output}: {made.frames} frames")


@cli.command()
@click.argument("avatar", type=PATH)
@click.argument("audio", type=PATH)
@click.option("-o", "--output", type=PATH, default=Path("talk.mp4"), show_default=True, help="Video to write.")
@click.option("--landmarks", type=PATH, help="Landmark file to show instead of what stage 1 predicts.")
@click.option("--poses", default="loop", show_default=True, help="loop, still, or a poses .npy file.")
@click.option("--seed", default=0, show_default=True, type=SEED, help="Seed of blinks and brows.")
@liveliness_option
@place_option
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
    from chain.synthesize import synthesize
    from shared.avatar import Avatar
    from shared.landmarks import check_output_name
    from shared.lock import lock_output
    from shared.spool import readable_again
    from shared.training import pick_device

    read = (audio, landmarks, named_file(poses), *Avatar(avatar).files())
    refuse_inputs(output, *read)
    refuse_existing(output, overwrite)
    if save_landmarks:
        check_output_name(save_landmarks)
        refuse_inputs(save_landmarks, *read)
        if save_landmarks.absolute() == output.absolute() or same_file(save_landmarks, output):
            raise TalkheadError(f"--save-landmarks and -o are the same file, {output}; name two")
        refuse_existing(save_landmarks, overwrite)
    with (lock_output(output), lock_output(save_landmarks) if save_landmarks else nullcontext(),
          readable_again(audio) as sound):
        made = synthesize(Avatar(avatar), sound, output, device=pick_device(device), landmarks=landmarks, poses=poses,
                          seed=seed, liveliness=liveliness, encoder=encoder, save_landmarks_to=save_landmarks)
    tell(made.warnings)
    click.echo(f"{output}: {made.frames} frames, {made.frames / 25:.1f} s")


@cli.command()
@click.argument("source", type=PATH, metavar="IN")
@click.option("-o", "--output", type=PATH, required=True, help="Landmark file to write (.npy).")
@click.option("--neutral", type=PATH, help="neutral.npy of the face, for --mouth-gain.  "
              "[default: the row whose lips are most nearly closed]")
@click.option("--mouth-gain", type=FiniteFloat(-5, 5), help="Scale lip and jaw motion, 1 leaves it.")
@click.option("--smile", "smile_amount", type=FiniteFloat(-3, 3), help="Pull the mouth corners: 1 a broad smile, -1 a frown.")
@click.option("--blink", "blink_rate", type=FiniteFloat(0, 20), help="Add blinks: 1 as often as people do, 2 twice as often.")
@click.option("--smooth", "smooth_frames", type=click.IntRange(0, 250), help="Smooth over this many neighbours on each side.")
@click.option("--retime", "speed", type=FiniteFloat(0.1, 10), help="Play this many times faster.")
@click.option("--seed", default=0, show_default=True, type=SEED, help="Seed of the blinks.")
@overwrite_option
def edit(source: Path, output: Path, neutral: Path | None, mouth_gain: float | None, smile_amount: float | None,
         blink_rate: float | None, smooth_frames: int | None, speed: float | None, seed: int,
         overwrite: bool) -> None:
    """Edit a landmark file, .npy or a spreadsheet's .csv; edits apply in the order gain, smile, smooth, retime, blink.

    \b
    talkhead edit predicted.npy -o edited.npy --mouth-gain 1.2 --smile 0.3 --blink 2
    """
    import numpy as np

    from shared import landmark_edit
    from shared.landmarks import check_output_name, lip_opening, load_landmarks, save_landmarks

    check_output_name(output)
    rows = load_landmarks(source)
    refuse_existing(output, overwrite)
    refuse_inputs(output, neutral)
    if mouth_gain is not None:
        rest = load_landmarks(neutral)[0] if neutral else rows[int(np.abs(lip_opening(rows)).argmin())]
        rows = landmark_edit.mouth_gain(rows, rest, mouth_gain)
    if smile_amount is not None:
        rows = landmark_edit.smile(rows, smile_amount)
    if smooth_frames is not None:
        rows = landmark_edit.smooth(rows, smooth_frames)
    if speed is not None:
        rows = landmark_edit.retime(rows, speed)
    if blink_rate is not None:
        rows = landmark_edit.blink(rows, blink_rate, np.random.default_rng(seed))
    save_landmarks(output, rows)
    click.echo(f"{output}: {len(rows)} frames")


@cli.command()
@click.argument("path", type=PATH)
@click.option("--accept", is_flag=True, help="Take over what you edited of an avatar's neutral, motion track and background.")
def inspect(path: Path, accept: bool) -> None:
    """What is this file or folder, and is it valid? One screen.

    \b
    talkhead inspect me
    talkhead inspect predicted.npy
    talkhead inspect me.avatar --accept
    """
    from chain.inspect import describe
    from shared.avatar import Avatar

    if accept:
        for file in Avatar(path).accept_edits():
            click.echo(f"{file}: taken over as it is")
    for line in describe(path):
        click.echo(line)


def held_out(clip: Any, splits: tuple[str, ...]) -> list[str]:
    """The splits asked for, or all but train."""
    return list(splits) or [name for name in clip.info.split if name != "train"] or ["train"]


def format_table(table: dict[str, dict[str, float]]) -> str:
    """{row: {column: number}} -> aligned text."""
    columns = list(dict.fromkeys(column for row in table.values() for column in row))
    cells = [["", *columns]]
    for name, row in table.items():
        cells.append([name, *(f"{row[c]:.4g}" if c in row else "-" for c in columns)])
    widths = [max(len(line[k]) for line in cells) for k in range(len(columns) + 1)]
    return "\n".join("  ".join(cell.ljust(w) if k == 0 else cell.rjust(w)
                               for k, (cell, w) in enumerate(zip(line, widths))) for line in cells)


@cli.command("eval")
@click.argument("avatar", type=PATH)
@click.argument("clip", type=PATH)
@click.option("--split", "splits", multiple=True, help="Split to measure.  [default: all but train]")
@click.option("-o", "--output", type=PATH, help="Folder for eval.json and eval.html.  [default: CLIP/training/eval]")
@device_option
def evaluate(avatar: Path, clip: Path, splits: tuple[str, ...], output: Path | None, device: str) -> None:
    """Measure AVATAR on held-out frames of CLIP: finished frames, landmarks, speed; prints tables, writes JSON and HTML.

    \b
    talkhead eval me.avatar me
    """
    from chain.evaluate import evaluate_avatar
    from shared.avatar import Avatar
    from shared.clip import Clip
    from shared.training import pick_device

    source, target = Clip(clip), Avatar(avatar)
    folder = output or source.training / "eval"
    tables = evaluate_avatar(target, source, held_out(source, splits), pick_device(device), folder)
    for title, table in tables.items():
        click.echo(f"\n{title}\n{format_table(table)}")
    click.echo(f"\n{folder / 'eval.html'}")


@cli.command()
@click.argument("output", type=PATH, default=Path("demo"))
@click.option("--size", default=256, show_default=True, type=click.IntRange(128, 1024), help="Pixels a side.")
@click.option("--seed", default=0, show_default=True, type=SEED, help="Which synthetic person.")
@overwrite_option
@device_option
def demo(output: Path, size: int, seed: int, overwrite: bool, device: str) -> None:
    """The whole chain on the synthetic actor: video, clip, three trainings, talking video, metrics against the truth.

    \b
    talkhead demo
    talkhead demo elsewhere --seed 2
    """
    when_stopped("Stopped. The same command with --overwrite starts anew.")
    import shutil

    from chain.demo import check_demo_folder, run_demo
    from shared.files import atomic_path
    from shared.lock import lock_output
    from shared.training import pick_device

    replaced = check_demo_folder(output)
    if replaced:
        refuse_existing(output, overwrite)
    with lock_output(output):
        if replaced:  # it stays until the new one is done
            with atomic_path(output) as partial:
                tables, video = run_demo(partial, size=size, seed=seed, device=pick_device(device))
                shutil.rmtree(output)
            video = output / video.name
        else:
            tables, video = run_demo(output, size=size, seed=seed, device=pick_device(device))
    for title, table in tables.items():
        click.echo(f"\n{title}\n{format_table(table)}")
    click.echo(f"\n{video}")


@cli.command()
def doctor() -> None:
    """What this machine can do, and the fix for each lack."""
    from chain.doctor import diagnose

    ok = True
    for found in diagnose():
        ok = ok and (found.ok or not found.needed)
        click.echo(f"{'ok  ' if found.ok else 'LACK' if found.needed else 'none'}  {found.what}")
        if not found.ok and found.fix:
            click.echo(f"      {found.fix}")
    sys.exit(0 if ok else 1)


if __name__ == "__main__":
    main()
