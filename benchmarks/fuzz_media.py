"""Feeds thousands of damaged media files to everything that reads media, and reports what no user should see.

    python benchmarks/fuzz_media.py --count 2000 --seed 0 [--keep FOLDER]

Small films and sounds of many formats are made, mutated (bits flipped, cut, blocks swapped or repeated, sizes of boxes changed,
two files joined) and read in child processes as `process`, `synth` and `inspect` read them. A finding is an exception
that is no TalkheadError, a crash of the process, more than 60 s or more than 2 GB of memory. Exit code 1 if there is any;
--keep saves the files behind the findings.
"""

import argparse
import multiprocessing
import os
import resource
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from multiprocessing.connection import Connection
from pathlib import Path

import av
import numpy as np

SECONDS = 60.0  # a file may take
MEMORY = 2 << 30  # bytes that a child may hold
FILES = 100  # that a child reads before a new one takes over
LENGTH = 1.2  # seconds of each film and sound
SIZE = 48  # pixels
FILMS = {"a.mp4": ("libx264", "aac"), "b.mov": ("mpeg4", "pcm_s16le"), "c.mkv": ("libx264", "aac"),
         "d.webm": ("libvpx", "libopus"),
         "e.ts": ("libx264", "aac"), "f.avi": ("mpeg4", "mp3"), "g.mpg": ("mpeg2video", "mp2"), "h.flv": ("libx264", "aac"),
         "fragmented.mp4": ("libx264", "aac")}
SOUNDS = {"j.wav": "pcm_s16le", "k.mp3": "mp3", "l.m4a": "aac", "m.flac": "flac", "n.ogg": "libopus", "o.ogg": "libvorbis"}


def make_seeds(folder: Path) -> list[Path]:
    """One small file of every format that this FFmpeg writes."""
    made = []
    for name, codecs in [*FILMS.items(), *((name, (None, codec)) for name, codec in SOUNDS.items())]:
        path = folder / name
        try:
            _make(path, *codecs)
        except (av.error.FFmpegError, ValueError):
            continue  # an encoder is missing
        made.append(path)
    return made


def _make(path: Path, video: str | None, audio: str) -> None:
    options = {"movflags": "frag_keyframe+empty_moov"} if path.stem == "fragmented" else {}
    rng = np.random.default_rng(0)
    rate = 48000
    with av.open(f"file:{path}", "w", options=options) as out:
        picture = None
        if video:
            picture = out.add_stream(video, rate=25)
            picture.width = picture.height = SIZE
            picture.pix_fmt = "yuv420p"
            picture.codec_context.gop_size = 10
        sound = out.add_stream(audio, rate=rate, layout="stereo" if path.stem in "bjl" else "mono")
        if picture is not None:
            for k in range(round(LENGTH * 25)):
                pixels = np.roll(rng.integers(0, 255, (SIZE, SIZE, 3), dtype=np.uint8) // 4 + 64, k, 1)
                frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
                frame.pts, frame.time_base = k, Fraction(1, 25)
                out.mux(picture.encode(frame))
        samples = (8000 * np.sin(np.arange(round(LENGTH * rate)) / 30)).astype(np.int16)
        wanted = av.AudioResampler(format=sound.format, layout=sound.layout, rate=rate)
        for start in range(0, len(samples), 1024):
            frame = av.AudioFrame.from_ndarray(samples[None, start : start + 1024], format="s16", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = rate, start, Fraction(1, rate)
            for piece in wanted.resample(frame):
                out.mux(sound.encode(piece))
        for stream in (picture, sound):
            if stream is not None:
                out.mux(stream.encode(None))


def flip_bits(data: bytearray, rng: np.random.Generator, others: list[bytes]) -> None:
    """Flip 1 to 200 bits anywhere."""
    for at in rng.integers(0, len(data), int(10 ** rng.uniform(0, 2.3))):
        data[at] ^= 1 << int(rng.integers(8))


def flip_in_head(data: bytearray, rng: np.random.Generator, others: list[bytes]) -> None:
    """Set bytes of the first or the last 600, where most formats keep their structure."""
    at = rng.integers(0, min(600, len(data)), int(rng.integers(1, 12)))
    for k in at if rng.random() < 0.5 else len(data) - 1 - at:
        data[k] = int(rng.choice([0, 1, 127, 128, 255, rng.integers(256)]))


def cut(data: bytearray, rng: np.random.Generator, others: list[bytes]) -> None:
    """Lose the end, the beginning or a piece in the middle."""
    a, b = sorted(int(k) for k in rng.integers(0, len(data), 2))
    where = int(rng.integers(3))
    del data[slice(a, None) if where == 0 else slice(0, min(a, 4096)) if where == 1 else slice(a, b)]


def swap_blocks(data: bytearray, rng: np.random.Generator, others: list[bytes]) -> None:
    """Exchange two blocks, as a damaged disk does."""
    size = int(2 ** rng.uniform(4, 12))
    a, b = (int(k) for k in rng.integers(0, max(1, len(data) - size), 2))
    data[a : a + size], data[b : b + size] = data[b : b + size], data[a : a + size]


def fill_block(data: bytearray, rng: np.random.Generator, others: list[bytes]) -> None:
    """Zeros, ones or noise over a block."""
    size = int(2 ** rng.uniform(3, 12))
    a = int(rng.integers(0, max(1, len(data) - size)))
    data[a : a + size] = [bytes(size), b"\xff" * size, rng.bytes(size)][int(rng.integers(3))]


def change_size(data: bytearray, rng: np.random.Generator, others: list[bytes]) -> None:
    """Another number where a length, a count or a time may stand: four bytes in front of or behind four letters."""
    words = [k for k in range(4, len(data) - 8) if all(97 <= c <= 122 or 65 <= c <= 90 for c in data[k : k + 4])]
    for k in rng.choice(words or [0], int(rng.integers(1, 4))):
        at = k - 4 if rng.random() < 0.5 else k + 4 * int(rng.integers(1, 8))
        value = int(rng.choice([0, 1, 7, 0x7FFFFFFF, 0xFFFFFFFF, rng.integers(1 << 16), rng.integers(1 << 32)]))
        data[at : at + 4] = value.to_bytes(4, "big" if rng.random() < 0.8 else "little")


def join(data: bytearray, rng: np.random.Generator, others: list[bytes]) -> None:
    """Another file, or this one again, behind or in the middle."""
    at = len(data) if rng.random() < 0.6 else int(rng.integers(len(data)))
    data[at:at] = others[int(rng.integers(len(others)))]


MUTATIONS: list[Callable[[bytearray, np.random.Generator, list[bytes]], None]] = [
    flip_bits, flip_in_head, cut, swap_blocks, fill_block, change_size, join]


def mutate(seeds: list[bytes], rng: np.random.Generator) -> tuple[int, bytes, str]:
    """Number of the seed, its damaged bytes and what was done to it."""
    number = int(rng.integers(len(seeds)))
    data = bytearray(seeds[number])
    names = []
    for _ in range(int(rng.integers(1, 4))):
        change = MUTATIONS[int(rng.integers(len(MUTATIONS)))]
        if len(data) > 16:
            change(data, rng, seeds)
            names.append(change.__name__)
    return number, bytes(data), "+".join(names)


def read_everything(path: Path) -> list[str]:
    """Read a file in every way that the commands do; returns the last lines of tracebacks that are no TalkheadError."""
    from process_data.video import notes
    from shared.errors import TalkheadError
    from shared.media.audio_io import audio_notes, iter_audio
    from shared.media.video_io import probe, read_video
    from talkhead.inspect import describe

    def all_of(pieces) -> None:
        for _ in pieces:
            pass

    found = []
    for read in (lambda: notes(path, probe(path), 10), lambda: all_of(read_video(path)),
                 lambda: all_of(read_video(path, start=15, stop=20)), lambda: all_of(iter_audio(path)),
                 lambda: audio_notes(path), lambda: all_of(describe(path))):
        try:
            read()
        except TalkheadError as error:
            if "Errno" in str(error) or "returned" in str(error) or "\n" in str(error):
                found.append(f"sentence: {error}")
        except MemoryError:
            found.append(f"memory: {_place()}")
        except Exception:
            found.append(_place())
    return found


def _place() -> str:
    kind, value, trace = sys.exc_info()
    frame = traceback.extract_tb(trace)[-1]
    return f"{kind.__name__ if kind else ''}: {value} ({Path(frame.filename).name}:{frame.lineno})"


def _child(pipe: Connection) -> None:
    if hasattr(os, "sched_setaffinity"):  # decoders start a thread a processor, and a thread takes addresses
        os.sched_setaffinity(0, set(sorted(os.sched_getaffinity(0))[:2]))
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # FFmpeg's own complaints; PyAV's way of stopping them can deadlock
    # the libraries' own mappings and the stacks and arenas of threads take addresses, not memory
    resource.setrlimit(resource.RLIMIT_AS, (4 * MEMORY + _mapped(), resource.RLIM_INFINITY))
    pipe.send("ready")
    while True:
        found = read_everything(pipe.recv())
        pipe.send((found, _most_memory()))


def _most_memory() -> int:
    """The most bytes that this process had in memory; `getrusage` counts those of the process that started it, too."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


def _mapped() -> int:
    import process_data.video  # noqa: F401
    import talkhead.inspect  # noqa: F401  loads all that the readers need

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return pages * resource.getpagesize()


class Reader:
    """A child process that reads one file after the other, started anew when one of them kills it."""

    def __init__(self) -> None:
        self._process: multiprocessing.process.BaseProcess | None = None
        self._read = 0

    def read(self, path: Path) -> list[str]:
        """What was found wrong with the reading of one file."""
        self._read += 1
        if self._read % FILES == 0:
            self.close()
        if self._process is None:
            context = multiprocessing.get_context("spawn")
            self._pipe, other = context.Pipe()
            self._process = context.Process(target=_child, args=(other,), daemon=True)
            self._process.start()
            other.close()
            self._pipe.recv()
        try:
            self._pipe.send(path)
            if not self._pipe.poll(SECONDS):
                self.close()
                return [f"hang: more than {SECONDS:.0f} s"]
            found, memory = self._pipe.recv()
        except (EOFError, ConnectionError):
            self._process.join()
            code = self._process.exitcode
            self.close()
            return [f"crash: exit code {code}"]
        if memory > MEMORY:
            self.close()
            found = [*found, f"memory: {memory / 1e9:.1f} GB"]
        return found

    def close(self) -> None:
        """End the child."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._process = None


def fuzz(count: int, seed: int, keep: Path | None = None, quiet: bool = False) -> Counter[str]:
    """Read `count` mutated files; returns how often each finding came up."""
    findings: Counter[str] = Counter()
    rng = np.random.default_rng(seed)
    reader = Reader()
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as name:
        folder = Path(name)
        paths = make_seeds(folder)
        seeds = [path.read_bytes() for path in paths]
        try:
            for k in range(count):
                number, data, what = mutate(seeds, rng)
                path = folder / f"{k:05d}{paths[number].suffix}"
                path.write_bytes(data)
                found = reader.read(path)
                for finding in found:
                    finding = finding.replace(str(path), "FILE")
                    if not quiet and findings[finding] < 3:
                        print(f"{k:5d} {paths[number].name} {what}: {finding}", flush=True)
                    findings[finding] += 1
                if found and keep is not None:
                    keep.mkdir(parents=True, exist_ok=True)
                    shutil.copy(path, keep)
                path.unlink()
                if not quiet and (k + 1) % 200 == 0:
                    print(f"{k + 1} files, {sum(findings.values())} findings, {time.perf_counter() - started:.0f} s", flush=True)
        finally:
            reader.close()
    return findings


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path)
    options = parser.parse_args()
    findings = fuzz(options.count, options.seed, options.keep)
    for finding, times in findings.most_common():
        print(f"{times:5d} x {finding}")
    print(f"{options.count} files, {sum(findings.values())} findings")
    sys.exit(1 if findings else 0)


if __name__ == "__main__":
    main()
