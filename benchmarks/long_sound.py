"""An avatar speaks for an hour: memory while it does, and picture against sound in the written file.

python benchmarks/long_sound.py AVATAR --minutes 60 [--folder DIR] [--codec aac] [-- MORE OPTIONS OF SYNTH]

The sound is the actor's test sentences over and over, each time a whole number of frames long, with a click at every minute.
`talkhead synth` runs in a process of its own, whose proportional set size (PSS, with its children) is read once a second. Then
the file is measured:

- time stamps: of every picture against k/fps, of the end of both tracks against the sound that was given;
- clicks: where they are in the file's sound, against where they were put;
- mouth: brightness of the mouth's region over the first and the last repetitions, and by how many frames the last is shifted
  against the first (by correlation, to a fraction of a frame), less the same shift of the sound. With --poses still, which is
  given unless the options name other poses, nothing else moves there.
"""

import json
import subprocess
import sys
import tempfile
import time
import wave
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import click
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from shared.avatar import Avatar  # noqa: E402
from shared.camera import project  # noqa: E402
from shared.landmarks import FPS, SAMPLE_RATE, SAMPLES_PER_FRAME  # noqa: E402
from shared.media.audio_io import iter_audio, load_audio  # noqa: E402
from talkhead.motion import MotionTrack  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
SPEECH = ROOT / "process_data/data/actor_test.flac"
CLICK = 40  # samples: 2.5 ms
NEAR = SAMPLE_RATE // 5  # samples around its place in which a click is looked for
MOUTH = slice(48, 68)
REACH = 12  # frames by which the mouth's curves are shifted against each other


def sentence() -> np.ndarray:
    """The speech that is repeated, a whole number of frames long and not louder than half of full scale."""
    speech = load_audio(SPEECH)
    speech = speech[: len(speech) // SAMPLES_PER_FRAME * SAMPLES_PER_FRAME]
    return 0.5 * speech / np.abs(speech).max()


def write_sound(path: Path, minutes: float, codec: str) -> int:
    """Write the sound to `path`.wav and, unless `codec` is wav, encode it -> its length in samples of 16 kHz."""
    speech, total = sentence(), round(minutes * 60 * SAMPLE_RATE)
    raw = path.with_suffix(".wav")
    with wave.open(str(raw), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        for start in range(0, total, len(speech)):
            piece = speech[: total - start].copy()
            for at in clicks(start, start + len(piece)):
                piece[at - start : at - start + CLICK] = 1.0
            file.writeframes((32767 * piece).astype("<i2").tobytes())
    if codec != "wav":
        with av.open(str(raw)) as source, av.open(str(path), "w") as out:
            stream = out.add_stream(codec, rate=48000, layout="stereo")
            for frame in source.decode(audio=0):
                out.mux(stream.encode(frame))
            out.mux(stream.encode(None))
        raw.unlink()
    return total


def clicks(start: int, stop: int) -> range:
    """Samples within start … stop at which a click begins: one second into every minute."""
    minute, first = 60 * SAMPLE_RATE, SAMPLE_RATE
    return range(first + -(-(start - first) // minute) * minute if start > first else first, stop - CLICK, minute)


def pss(process: int) -> int:
    """Bytes of memory of a process and its children, shared pages counted by share."""
    total = 0
    try:
        for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total = 1024 * int(line.split()[1])
        for task in Path(f"/proc/{process}/task").iterdir():
            total += sum(pss(int(child)) for child in (task / "children").read_text().split())
    except (OSError, ValueError):
        pass  # it has just ended
    return total


def run(arguments: list[str]) -> tuple[float, list[int]]:
    """Run talkhead -> seconds, and bytes of memory once a second."""
    began, memory = time.monotonic(), []
    process = subprocess.Popen([sys.executable, "-c", "from talkhead_main import main; main()", *arguments], cwd=ROOT)
    while process.poll() is None:
        memory.append(pss(process.pid))
        time.sleep(1)
    if process.returncode:
        sys.exit(process.returncode)
    return time.monotonic() - began, memory


def time_stamps(video: Path) -> dict[str, float]:
    """Milliseconds by which a picture's time misses k/fps at most, number of pictures, and ends of the tracks in seconds."""
    with av.open(str(video)) as container:
        picture, sound = container.streams.video[0], container.streams.audio[0]
        fps, starts = picture.average_rate, []
        end_picture = end_sound = Fraction(0)
        for packet in container.demux(picture, sound):
            if packet.pts is None:
                continue
            end = (packet.pts + (packet.duration or 0)) * packet.time_base
            if packet.stream is picture:
                starts.append(packet.pts * packet.time_base)
                end_picture = max(end_picture, end)
            else:
                end_sound = max(end_sound, end)
    missed = max(abs(start - k / fps) for k, start in enumerate(sorted(starts)))
    return {"pictures": len(starts), "worst picture ms": 1000 * float(missed), "picture ends s": float(end_picture),
            "sound ends s": float(end_sound)}


def click_times(video: Path, total: int) -> np.ndarray:
    """Milliseconds (n,) by which each click of the file is late."""
    late, start = [], 0
    before = np.zeros(0, np.float32)
    for piece in iter_audio(video, seconds=30.0):
        heard = np.concatenate([before, piece])
        first = start - len(before)
        for at in clicks(0, total):
            if first + NEAR <= at < start + len(piece) - NEAR and (start == 0 or at >= start - NEAR):
                around = heard[at - first - NEAR : at - first + NEAR]
                energy = np.convolve(around**2, np.ones(CLICK), "valid")
                late.append((int(energy.argmax()) - NEAR) * 1000 / SAMPLE_RATE)
        before, start = heard[-2 * NEAR :], start + len(piece)
    return np.array(late)


def mouth_box(avatar: Avatar) -> tuple[slice, slice]:
    """Rows and columns of the mouth in the middle pose."""
    info = avatar.info
    pose = MotionTrack(avatar, "still").poses[0]
    pixels = np.asarray(project(avatar.load_neutral()[0, MOUTH], pose, info.intrinsics))
    (left, top), (right, bottom) = pixels.min(0).astype(int), pixels.max(0).astype(int) + 1
    return slice(top, bottom), slice(left, right)


def mouth_curve(video: Path, box: tuple[slice, slice], start: int, count: int) -> np.ndarray:
    """Mean brightness (count,) of the mouth in pictures `start` … of the file."""
    return np.array([picture[box].mean() for picture in pictures(video, start, count)])


def pictures(video: Path, start: int, count: int) -> Iterator[np.ndarray]:
    with av.open(str(video)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        container.seek(max(0, int((start - 1) / stream.average_rate / stream.time_base)), stream=stream)
        for frame in container.decode(stream):
            k = round(frame.pts * frame.time_base * stream.average_rate)
            if start <= k < start + count:
                yield frame.to_ndarray(format="gray")
            if k >= start + count - 1:
                return


def shift(one: np.ndarray, other: np.ndarray, reach: int) -> float:
    """By how many places curve `other` (n,) is late against `one`, at most `reach`, to a fraction."""
    inner = slice(reach, len(one) - reach)
    a = one[inner] - one[inner].mean()
    fits = []
    for lag in range(-reach, reach + 1):
        b = other[reach + lag : len(other) - reach + lag]
        b = b - b.mean()
        fits.append(float(a @ b / np.sqrt((a @ a) * (b @ b) + 1e-12)))
    best = int(np.clip(np.argmax(fits), 1, 2 * reach - 1))
    left, peak, right = fits[best - 1 : best + 2]
    return best - reach + 0.5 * (left - right) / (left - 2 * peak + right - 1e-12)


def measure(avatar: Avatar, video: Path, total: int) -> dict[str, float]:
    """All that is measured on the written file."""
    late = click_times(video, total)
    found: dict[str, float] = {"given s": total / SAMPLE_RATE, **time_stamps(video), "clicks": len(late)}
    if len(late):
        found |= {"first click late ms": late[0], "last click late ms": late[-1], "spread of clicks ms": float(np.ptp(late))}
    period = len(sentence()) // SAMPLES_PER_FRAME
    last = (total // SAMPLES_PER_FRAME // period - 1) * period  # where the last whole repetition begins
    if last >= 2 * period:
        with av.open(str(video)) as container:
            rate = container.streams.video[0].average_rate / FPS
        box = mouth_box(avatar)
        early, late_curve = (mouth_curve(video, box, int(at * rate), int(period * rate)) for at in (period, last))
        found["mouth of the last repetition late, frames"] = shift(early, late_curve, REACH)
    return found


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("avatar", type=click.Path(path_type=Path))
@click.option("--minutes", default=60.0, show_default=True, type=click.FloatRange(0.5, 600))
@click.option("--folder", type=click.Path(path_type=Path), help="Where sound and video are kept.  [default: nowhere]")
@click.option("--codec", default="wav", show_default=True, type=click.Choice(["wav", "aac", "flac"]),
              help="Of the sound: wav and flac are encoded into the video, aac is copied.")
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
def main(avatar: Path, minutes: float, folder: Path | None, codec: str, options: tuple[str, ...]) -> None:
    """Speak for MINUTES, and print what was measured as JSON."""
    with tempfile.TemporaryDirectory() as temporary:
        place = folder or Path(temporary)
        place.mkdir(parents=True, exist_ok=True)
        sound, video = place / f"sound.{ {'aac': 'm4a'}.get(codec, codec) }", place / "long.mp4"
        total = write_sound(sound, minutes, codec)
        still = [] if "--poses" in options else ["--poses", "still"]
        seconds, memory = run(["synth", str(avatar.absolute()), str(sound.absolute()), "-o", str(video.absolute()), "--overwrite",
                               *still, *options])
        tenths = [max(part, default=0) / 2**20 for part in np.array_split(np.array(memory), 10) if len(part)]
        found = measure(Avatar(avatar), video, total)
        found |= {"seconds": seconds, "times real time": total / SAMPLE_RATE / seconds, "peak MB": max(memory) / 2**20}
        print(json.dumps({key: round(float(value), 3) for key, value in found.items()} |
                         {"peak MB in each tenth of the time": [round(value) for value in tenths]}, indent=2))


if __name__ == "__main__":
    main()
