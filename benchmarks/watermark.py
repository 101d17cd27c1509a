"""The invisible mark: whether its bits survive what happens to videos, what it costs the picture, false alarms, speed.

    python -m benchmarks.watermark VIDEO... --seconds 2 5 -o watermark.json

Takes 2- and 5-second pieces of videos, marks each with another random message from a random frame number on, treats them, and
reads the mark without knowing size, start or crop. False alarms are counted on unmarked pieces, as they are and treated.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

import av
import cv2
import numpy as np
import torch

from shared.files import write_json
from shared.landmarks import FPS
from shared.media.video_io import probe, read_video
from shared.metrics import psnr
from shared.watermark.detect import detect
from shared.watermark.mark import Watermark
from shared.watermark.payload import Payload
from stage2_gaussian.evaluation.flicker import deviation

BITS = 48


def encode(frames: np.ndarray, crf: int, codec: str = "libx264", fps: int = FPS) -> np.ndarray:
    """uint8 (T, H, W, 3), even sizes -> the same after an encoder, read at 25 frames a second."""
    return read_back(encoded(frames, crf, codec, fps))


def encoded(frames: np.ndarray, crf: int, codec: str = "libx264", fps: int = FPS) -> BytesIO:
    """uint8 (T, H, W, 3) -> a Matroska file."""
    file = BytesIO()
    with av.open(file, "w", format="matroska") as container:
        stream = container.add_stream(codec, rate=fps)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        stream.options = {"crf": str(crf)} | ({"preset": "veryfast"} if codec == "libx264" else
                                              {"b:v": "0", "cpu-used": "6", "deadline": "realtime"})
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    file.seek(0)
    return file


def read_back(file: BytesIO) -> np.ndarray:
    """All frames, at 25 a second by their time stamps, as `read_video` takes them."""
    with av.open(file) as container:
        decoded = [(float(frame.time or 0), frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
    times = np.array([moment for moment, _ in decoded])
    ticks = np.arange(round((times[-1] + np.median(np.diff(times))) * FPS)) / FPS
    return np.stack([decoded[k][1] for k in np.abs(times[:, None] - ticks).argmin(0)])


def scaled(frames: np.ndarray, height: int) -> np.ndarray:
    """To a height, the width in proportion, both even."""
    width = round(frames.shape[2] * height / frames.shape[1] / 2) * 2
    way = cv2.INTER_AREA if height < frames.shape[1] else cv2.INTER_CUBIC
    return np.stack([cv2.resize(frame, (width, height), interpolation=way) for frame in frames])


def cropped(frames: np.ndarray, rng: np.random.Generator, share: float = 0.1) -> np.ndarray:
    """Cut `share` off both axes, somewhere."""
    height, width = (round(size * (1 - share) / 2) * 2 for size in frames.shape[1:3])
    top, left = rng.integers(frames.shape[1] - height + 1), rng.integers(frames.shape[2] - width + 1)
    return np.ascontiguousarray(frames[:, top : top + height, left : left + width])


def phone(frames: np.ndarray) -> np.ndarray:
    """480p, a little brighter and with more contrast, 30 frames a second (every fifth twice), crf 30."""
    bright = np.clip(scaled(frames, 480).astype(np.float32) * 1.06 + 5, 0, 255).astype(np.uint8)
    thirty = bright[np.minimum(np.arange(round(len(bright) * 30 / FPS)) * FPS // 30, len(bright) - 1)]
    return encode(thirty, 30, fps=30)


Treatment = Callable[[np.ndarray, np.random.Generator], np.ndarray]
TREATMENTS: dict[str, Treatment] = {
    "crf 18": lambda frames, rng: encode(frames, 18),
    "crf 23": lambda frames, rng: encode(frames, 23),
    "crf 28": lambda frames, rng: encode(frames, 28),
    "crf 35": lambda frames, rng: encode(frames, 35),
    "360p, crf 26": lambda frames, rng: encode(scaled(encode(frames, 18), 360), 26),
    "10 % cropped, crf 23": lambda frames, rng: encode(cropped(encode(frames, 18), rng), 23),
    "WebM VP9, crf 36": lambda frames, rng: encode(encode(frames, 18), 36, "libvpx-vp9"),
    "phone-like": lambda frames, rng: phone(encode(frames, 18)),
    "10 % cropped, 360p, crf 28": lambda frames, rng: encode(scaled(cropped(encode(frames, 18), rng), 360), 28),
}
QUICK = ("crf 28", "10 % cropped, 360p, crf 28")


def pieces(videos: list[Path], seconds: float, most: int) -> Iterator[tuple[str, np.ndarray]]:
    """Name and uint8 (T, H, W, 3) of up to `most` pieces a video, evenly spread, of at most 512 pixels in height, even sizes."""
    for video in videos:
        total, length = round(probe(video).duration * FPS), round(seconds * FPS)
        count = min(most, total // length)
        for start in np.linspace(0, total - length, count + 1)[:-1].astype(int) if count else ():
            piece = np.stack(list(read_video(video, start=int(start), stop=int(start) + length)))
            piece = scaled(piece, 512) if piece.shape[1] > 512 else piece
            yield video.stem, np.ascontiguousarray(piece[:, : piece.shape[1] // 2 * 2, : piece.shape[2] // 2 * 2])


@dataclass
class Tally:
    """Of one treatment: messages and bits that were read, of how many pieces."""

    pieces: int = 0
    messages: int = 0
    wrong: int = 0  # messages read that were not the one sent
    bits: float = 0.0
    lost: list[str] = field(default_factory=list)

    def add(self, name: str, sent: Payload, frames: np.ndarray) -> None:
        """A message not found counts half of its bits, which guessing would give."""
        found = detect(frames)
        right = found is not None and found.payload == sent
        self.pieces += 1
        self.messages += right
        self.wrong += found is not None and not right
        bits = np.unpackbits(np.frombuffer(sent.to_bytes() + (found.payload.to_bytes() if found else bytes(6)), np.uint8))
        self.bits += float((bits[:BITS] == bits[BITS:]).sum()) if found else BITS / 2
        if not right:
            self.lost.append(name)

    def row(self) -> dict[str, float]:
        """Shares in percent."""
        return {"pieces": self.pieces, "messages %": 100 * self.messages / self.pieces,
                "bits %": 100 * self.bits / BITS / self.pieces, "wrong": self.wrong}


def survival(videos: list[Path], seconds: float, most: int, treatments: dict[str, Treatment], seed: int) -> dict[str, Tally]:
    """Marked pieces through each treatment."""
    rng = np.random.default_rng(seed)
    tallies = {name: Tally() for name in treatments}
    for name, frames in pieces(videos, seconds, most):
        sent = Payload(int(rng.integers(1 << 28)))
        marked = Watermark(sent, frames.shape[2], frames.shape[1]).mark(frames, int(rng.integers(100_000)))
        for treatment, treat in treatments.items():
            tallies[treatment].add(name, sent, treat(marked, rng))
        done = (f"{key} {tally.messages}/{tally.pieces}" for key, tally in tallies.items())
        print(f"{seconds:g} s of {name}:", *done, sep=" | ", flush=True)
    return tallies


def cost(videos: list[Path], seconds: float = 2.0, seed: int = 0) -> dict[str, dict[str, float]]:
    """By video: PSNR of the mark in dB; flicker (grey levels, mean over the picture) without and with it, as drawn and after
    crf 18; size of the crf-18 file over that of the unmarked one."""
    rng = np.random.default_rng(seed)
    found = {}
    for name, frames in pieces(videos, seconds, 1):
        marked = Watermark(Payload(int(rng.integers(1 << 28))), frames.shape[2], frames.shape[1]).mark(frames, 0)
        files = [encoded(sequence, 18) for sequence in (frames, marked)]
        before, after, before_18, after_18 = (
            float(deviation(torch.from_numpy(sequence)).mean()) for sequence in (frames, marked, *map(read_back, files)))
        found[name] = {"PSNR": psnr(marked, frames), "flicker": before, "marked": after, "crf 18": before_18,
                       "marked, crf 18": after_18, "size": files[1].getbuffer().nbytes / files[0].getbuffer().nbytes}
    return found


def false_alarms(videos: list[Path], most: int, wanted: int, seconds: float = 2.0) -> dict[str, int]:
    """Marks found in unmarked pieces, every third as it is, at crf 28, at 360p."""
    count = alarms = 0
    for _, frames in pieces(videos, seconds, most):
        if count == wanted:
            break
        seen = encode(frames, 28) if count % 3 == 1 else scaled(frames, 360) if count % 3 == 2 else frames
        alarms += detect(seen) is not None
        count += 1
    return {"pieces": count, "alarms": alarms}


def speed(sizes: tuple[int, ...] = (256, 512), rounds: int = 20) -> dict[str, float]:
    """Milliseconds a frame on one core, the least of `rounds`, of marking four frames at a time."""
    frames = {size: np.random.default_rng(0).integers(0, 256, (4, size, size, 3), dtype=np.uint8) for size in sizes}
    found = {}
    for size, batch in frames.items():
        mark = Watermark(Payload(1), size, size)
        mark.mark(batch, 0)
        times = []
        for _ in range(rounds):
            begin = time.perf_counter()
            mark.mark(batch, 0)
            times.append(time.perf_counter() - begin)
        found[f"{size}²"] = 1000 * min(times) / len(batch)
    return found


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos", type=Path, nargs="+")
    parser.add_argument("--seconds", type=float, nargs="*", default=[2.0, 5.0])
    parser.add_argument("--pieces", type=int, default=2, help="of each video, for each length")
    parser.add_argument("--alarms", type=int, default=200, help="unmarked pieces")
    parser.add_argument("--quick", action="store_true", help="two treatments only")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--output", type=Path, default=Path("watermark.json"))
    options = parser.parse_args()
    chosen = {name: TREATMENTS[name] for name in (QUICK if options.quick else TREATMENTS)}
    result: dict[str, object] = {"milliseconds a frame": speed(), "cost": cost(options.videos, seed=options.seed)}
    print(result, flush=True)
    for seconds in options.seconds:
        tallies = survival(options.videos, seconds, options.pieces, chosen, options.seed)
        result[f"{seconds:g} s"] = {name: tally.row() | {"lost": tally.lost} for name, tally in tallies.items()}
        for name, tally in tallies.items():
            shown = {key: round(value, 1) for key, value in tally.row().items()}
            print(f"{seconds:g} s  {name:28}", shown, *tally.lost, flush=True)
        write_json(options.output, result)
    if options.alarms:
        most = -(-options.alarms // len(options.videos))
        result["false alarms"] = false_alarms(options.videos, 2 * most, options.alarms)
        print(result["false alarms"])
    write_json(options.output, result)


if __name__ == "__main__":
    main()
