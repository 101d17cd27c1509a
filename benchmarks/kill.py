"""Kill talkhead at random moments and see that nothing is lost: python benchmarks/kill.py --count 100 --seed 0

Each command (process, the three trainings, synth) runs over an earlier result on a clip of 80 frames of the synthetic actor, is
killed (SIGKILL) at a random moment of its run, and is given again. Checked after each kill: every finished file has its
bytes of before or those of the complete new result, clip and avatar open and are one or the other as a whole; and after the
command ran again: everything equals the uninterrupted result to the byte (videos: to the decoded frame and sample), and
nothing is left over. "group" kills the command with its workers, "parent" the command alone.
"""

import contextlib
import hashlib
import os
import pickle
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import click
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from cli import cli  # noqa: E402
from shared.avatar import PARTS, Avatar  # noqa: E402
from shared.clip import Clip  # noqa: E402
from shared.errors import TalkheadError  # noqa: E402
from shared.media.audio_io import load_audio, save_wav  # noqa: E402
from shared.media.video_io import read_video  # noqa: E402

SECONDS = 3.2  # of the actor's videos
SMALL = {
    "stage1": ["--set", "steps=12", "--set", "check_every=4", "--set", "save_every=3", "--set", "voice_augmentation=false",
               "--set", "support_points=320"],
    "stage2": ["--set", "steps=8", "--set", "splats=200", "--set", "rank=6", "--set", "hidden=16", "--set", "fits=1",
               "--set", "save_seconds=0"],
    "torso": ["--set", "steps=6", "--set", "save_seconds=0", "--set", "plate_frames=8"],
}


@dataclass(frozen=True)
class Command:
    """What is run in the folder, what it must be given to go on after a kill, and the folder or file that it makes."""

    name: str
    arguments: list[str]
    again: list[str]
    makes: str


@dataclass
class Tally:
    """What was seen of one command and one way of killing."""

    killed: int = 0
    in_time: int = 0  # killed before it ended by itself
    lost: int = 0
    half_made: int = 0
    different: int = 0
    left_over: int = 0
    notes: list[str] = field(default_factory=list)


def commands() -> list[Command]:
    """All that are killed, in the order in which a user gives them."""
    cpu = ["--device", "cpu"]
    trainings = [(part, [*words, "me", *SMALL[part], *cpu]) for part, words in
                 (("stage1", ["stage1", "finetune"]), ("stage2", ["stage2", "train"]), ("torso", ["torso", "train"]))]
    process = ["process", "new.mp4", "me", "--workers", "2", "--overwrite"]
    synth = ["synth", "me.avatar", "speech.wav", "-o", "talk.mp4", "--overwrite", *cpu]
    return [Command("process", process, process, "me"),
            *(Command(name, [*words, "--set", "seed=1", "--overwrite"], [*words, "--set", "seed=1"], "me.avatar")
              for name, words in trainings),
            Command("synth", synth, synth, "talk.mp4")]


def make_video(path: Path, size: int, seed: int) -> None:
    """A video of one of the synthetic actors, made in a child: a process that has worked on threads should not fork."""
    pid = os.fork()
    if not pid:
        from process_data.actor.actor import make_actor

        made = make_actor(path.with_suffix(""), size=size, seconds=SECONDS, seed=seed, quiet=True)
        shutil.move(made.video, path)
        shutil.rmtree(path.with_suffix(""))
        os._exit(0)
    os.waitpid(pid, 0)


def start(arguments: list[str], folder: Path, workers_here: bool) -> int:
    """Run the command in a forked child with a process group of its own; returns its pid."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.setsid()
        os.chdir(folder)
        silent = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silent, 1)
        error = os.open(folder / ".stderr", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(error, 2)
        sys.argv = ["talkhead", *arguments]
        if workers_here:
            from process_data.workers import Workers

            def run_here(self: Workers, work: Callable, jobs: list[tuple], *_: object, **__: object) -> None:
                for job in jobs:
                    work(*job)

            Workers.run = run_here  # type: ignore[method-assign, assignment]
        try:
            cli(arguments, prog_name="talkhead")
        except SystemExit as end:
            code = int(end.code or 0)
        except BaseException:
            traceback.print_exc()
    finally:
        os._exit(code)


def finish(arguments: list[str], folder: Path, workers_here: bool) -> int:
    """Run the command to its end; returns its exit code."""
    _, status = os.waitpid(start(arguments, folder, workers_here), 0)
    return os.waitstatus_to_exitcode(status)


def run(arguments: list[str], folder: Path, workers_here: bool) -> None:
    """The same; raises RuntimeError with what it said if it fails."""
    if code := finish(arguments, folder, workers_here):
        raise RuntimeError(f"{' '.join(arguments)}: exit code {code}\n{(folder / '.stderr').read_text()}")


def kill_at(moment: float, arguments: list[str], folder: Path, group: bool, workers_here: bool) -> bool:
    """Run the command and kill it after `moment` seconds; returns whether it still ran then."""
    pid = start(arguments, folder, workers_here)
    time.sleep(moment)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL) if group else os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    return os.WIFSIGNALED(status)


def finished(folder: Path) -> dict[str, str]:
    """Digest of every file that counts as finished, by its path in `folder`. Raises TalkheadError for one that cannot be read.

    A child of its own decodes the videos: forked after that, mediapipe would crash.
    """
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            found: dict[str, str] | TalkheadError = _digests(folder)
        except TalkheadError as error:
            found = error
        with os.fdopen(writing, "wb") as file:
            pickle.dump(found, file)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as file:
        found = pickle.load(file)
    os.waitpid(pid, 0)
    if isinstance(found, TalkheadError):
        raise found
    return found


def _digests(folder: Path) -> dict[str, str]:
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.is_file() and not any(part.startswith(".") for part in name.parts) and "training" not in name.parts:
            found[str(name)] = digest(path)
    return found


def digest(path: Path) -> str:
    """Of a video its frames and samples, of anything else its bytes."""
    value = hashlib.sha256()
    if path.name == "talk.mp4":
        for frame in read_video(path):
            value.update(frame.tobytes())
        value.update(load_audio(path).tobytes())
    else:
        value.update(path.read_bytes())
    return value.hexdigest()


def check_kill(folder: Path, makes: str, before: dict[str, str], after: dict[str, str], tally: Tally) -> None:
    """Every finished file is the old or the new one; what the command makes is one of them as a whole once it is opened."""
    now = {}
    try:
        now = finished(folder)
    except TalkheadError as error:
        tally.half_made += 1
        tally.notes.append(str(error))
    lost = [name for name in before if name in after and name not in now]
    wrong = [name for name, value in now.items() if value not in (before.get(name), after.get(name))
             and not name.endswith("poses_fitted.json")]
    tally.lost += bool(lost)
    tally.half_made += bool(wrong)
    try:
        if (folder / "me").exists():
            Clip(folder / "me").check()
        avatar = Avatar(folder / "me.avatar")
        if avatar.json.is_file():
            avatar.require(*(part for part in PARTS if avatar.part(part).is_file()))
    except TalkheadError as error:
        tally.lost += 1
        tally.notes.append(str(error))
    fitted = ("poses_fitted.npy", "poses_fitted.json")  # of the clip, though a training of the avatar makes them
    whole = [{name: value for name, value in state.items() if name.split("/")[0] == makes and not name.endswith(fitted)}
             for state in (finished(folder), before, after)]
    if whole[0] not in whole[1:]:
        tally.half_made += 1
        wrong += [name for name in whole[0] if whole[0][name] not in (whole[1].get(name), whole[2].get(name))] or ["a mixture"]
    tally.notes += [f"lost: {name}" for name in lost] + [f"half made: {name}" for name in wrong]


def check_end(folder: Path, after: dict[str, str], tally: Tally) -> None:
    """The result is that of the uninterrupted run, and no temporary file or lock is left."""
    now = finished(folder)
    different = sorted(name for name in {*now, *after} if now.get(name) != after.get(name))
    tally.different += bool(different)
    left = [str(path.relative_to(folder)) for path in folder.rglob(".*")
            if path.name not in (".cache", ".stderr") and path.exists()]
    tally.left_over += bool(left)
    tally.notes += [f"different: {name}" for name in different] + [f"left over: {name}" for name in left]


def prepare(root: Path, size: int, workers_here: bool) -> Path:
    """A folder with all that the commands read and, from a first round, all that they make."""
    folder = root / "start"
    folder.mkdir()
    for name, seed in (("old", 0), ("new", 1)):
        make_video(folder / f"{name}.mp4", size, seed)
    save_wav(folder / "speech.wav", load_audio(folder / "old.mp4")[:16000])
    run(["process", "old.mp4", "me"], folder, workers_here)
    for command in commands()[1:4]:
        run([*command.again[:-2]], folder, workers_here)
    run(["synth", "me.avatar", "speech.wav", "-o", "talk.mp4", "--seed", "5", "--device", "cpu"], folder, workers_here)
    return folder


def measure(command: Command, began: Path, root: Path, count: int, rng: np.random.Generator, group: bool,
            workers_here: bool) -> Tally:
    """Kill one command `count` times, at moments spread over its run."""
    before, reference = finished(began), root / "reference"
    shutil.copytree(began, reference)
    started = time.monotonic()
    run(command.arguments, reference, workers_here)
    length = time.monotonic() - started
    after = finished(reference)
    shutil.rmtree(reference)
    tally, folder = Tally(), root / "work"
    for moment in rng.permutation(length * (np.arange(count) + rng.random(count)) / count):
        shutil.copytree(began, folder)
        tally.killed += 1
        tally.in_time += kill_at(float(moment), command.arguments, folder, group, workers_here)
        check_kill(folder, command.makes, before, after, tally)
        if finish(command.again, folder, workers_here):  # killed before it began, or after it had ended
            run(command.arguments, folder, workers_here)
        check_end(folder, after, tally)
        shutil.rmtree(folder)
        print(f"{command.name}: {tally.killed} of {count} kills, lost {tally.lost}, half made {tally.half_made}, differs "
              f"{tally.different}, left over {tally.left_over}", file=sys.stderr, flush=True)
    return tally


@click.command()
@click.option("--count", default=100, show_default=True, type=click.IntRange(1), help="Kills of each command, in each way.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Seed of the moments.")
@click.option("--only", multiple=True, type=click.Choice([command.name for command in commands()]), help="Commands to kill.")
@click.option("--how", type=click.Choice(["both", "group", "parent"]), default="both", show_default=True, help="What is killed.")
@click.option("--size", default=128, show_default=True, type=click.IntRange(96), help="Pixels a side of the actor's video.")
@click.option("--clip", type=click.Path(path_type=Path), help="Clip to train on instead of the actor's; takes trainings named "
              "by --only.")
@click.option("--workers-here", is_flag=True, help="Do the work of `process` in its own process, which starts faster.")
def main(count: int, seed: int, only: tuple[str, ...], how: str, size: int, clip: Path | None, workers_here: bool) -> None:
    """Kill -9 talkhead's commands at random moments, check what is left, and run them again."""
    import process_data.pipeline  # noqa: F401
    import talkhead.speaking  # noqa: F401  # what every child would load otherwise
    import talkhead.training  # noqa: F401

    with tempfile.TemporaryDirectory(prefix="kill-") as scratch:
        if clip is None:
            began = prepare(Path(scratch), size, workers_here)
        else:
            began = Path(scratch) / "start"
            shutil.copytree(clip, began / "me")
            for command in commands()[1:4]:
                if command.name in only:
                    run(command.again[:-2], began, workers_here)
        click.echo("         killed  times running  lost half made differs left over")
        failed = False
        for command in commands():
            if only and command.name not in only:
                continue
            for group in (True, False):
                if how != "both" and (how == "group") != group:
                    continue
                tally = measure(command, began, Path(scratch), count, np.random.default_rng(seed), group, workers_here)
                click.echo(f"{command.name:8} {'group' if group else 'parent':7} {tally.killed:5} {tally.in_time:7} "
                           f"{tally.lost:5} {tally.half_made:9} {tally.different:7} {tally.left_over:9}")
                for note in dict.fromkeys(tally.notes):
                    click.echo(f"    {note}")
                failed |= bool(tally.notes)
    sys.exit(failed)


if __name__ == "__main__":
    main()
