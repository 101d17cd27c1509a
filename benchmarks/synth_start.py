"""How long `talkhead synth` takes from the start of its process to the first finished frame, of several trees in turn.

    python benchmarks/synth_start.py me.avatar speech.wav --tree . --tree ../before --runs 10

The trees are run one after the other in every round, so that their ratio holds on a busy machine too; the processor seconds
say more there than the clock. The first round, which compiles and fills caches, is left out.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import click

CODE = """
import os, resource, sys, time
from shared.media.video_io import VideoWriter
show = VideoWriter._show
def first(self):
    show(self)
    used = resource.getrusage(resource.RUSAGE_SELF)
    print("FIRST", time.time(), used.ru_utime + used.ru_stime, len(sys.modules), flush=True)
    os._exit(0)
VideoWriter._show = first
from talkhead_main import main
main()
"""


def first_frame(tree: Path, *arguments: str) -> tuple[float, float, int]:
    """Seconds, processor seconds and imported modules up to the first finished frame of a tree's `synth`."""
    start = time.time()
    done = subprocess.run([sys.executable, "-c", CODE, "synth", *arguments], cwd=tree, capture_output=True, text=True,
                          env=os.environ | {"PYTHONPATH": str(tree)})
    found = [line.split() for line in done.stdout.splitlines() if line.startswith("FIRST")]
    if not found:
        raise click.ClickException(f"{tree}: {done.stderr.strip() or 'no frame was written'}")
    return float(found[0][1]) - start, float(found[0][2]), int(found[0][3])


@click.command()
@click.argument("avatar", type=click.Path(exists=True, path_type=Path))
@click.argument("audio", type=click.Path(exists=True, path_type=Path))
@click.option("--tree", "trees", type=click.Path(exists=True, path_type=Path), multiple=True, default=["."],
              help="Sources to run; may be repeated.")
@click.option("--runs", default=10, show_default=True, type=click.IntRange(1))
@click.option("--device", default="cpu", show_default=True)
def main(avatar: Path, audio: Path, trees: tuple[Path, ...], runs: int, device: str) -> None:
    """Print for each tree the least and the median of seconds, processor seconds, and the number of modules."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = (str(avatar.resolve()), str(audio.resolve()), "-o", f"{folder}/talk.mp4", "--device", device)
        rounds = [[first_frame(Path(tree).resolve(), *arguments) for tree in trees] for _ in range(runs + 1)][1:]
    for tree, found in zip(trees, zip(*rounds)):
        clock, used, modules = zip(*found)
        click.echo(f"{tree}: {min(clock):.2f} s, median {median(clock):.2f}; processor {min(used):.2f} s, median "
                   f"{median(used):.2f}; {modules[0]} modules")


if __name__ == "__main__":
    main()
