"""Damages valid data files in seeded ways and feeds them to what reads them.

Landmarks, poses, tables, clip.json, avatars, checkpoints, splat files, pictures and settings are made small and valid,
then bits flip, ends are cut, bytes go in, headers and JSON values change. Whoever reads them may refuse (TalkheadError) or
take them; any other exception, a hang, or memory beyond the limit is reported and makes the exit code 1.

    python benchmarks/fuzz_data.py --count 2000 --seed 0
"""

import argparse
import hashlib
import io
import json
import multiprocessing
import os
import queue
import resource
import shutil
import struct
import sys
import tempfile
import traceback
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from shared.errors import TalkheadError  # noqa: E402

SIZE = 32  # pixels of the pictures
FRAMES = 30
ODD_VALUES = [None, True, False, 0, -1, 1, 2**31, 2**63, -2**63, 10**30, 0.5, 1e308, -1e308, float("nan"), float("inf"), "",
              "580", "\x00", "x" * 5000, "../../etc/passwd", [], [[]], {}, {"a": {}}, [0, 0], ["a"], [None]]


def make_samples(folder: Path) -> None:
    """Valid files of every kind under `folder`: a clip, an avatar, single files."""
    import torch

    from process_data.report.scores import Score, write_scores
    from shared.avatar import Avatar
    from shared.camera import pose_matrix
    from shared.clip import Clip, ClipInfo, ExcludedSpan, Shot
    from shared.config import config_to_dict
    from shared.face_check import TEMPLATE
    from shared.files import write_json
    from shared.gaze import save_gaze
    from shared.landmarks import save_array, save_landmarks
    from shared.media.audio_io import save_wav
    from shared.media.video_io import write_png
    from shared.phones import save_phones
    from shared.torso_motion import save_torso_motion
    from stage1_audio2lmk.checkpoint import save_model
    from stage1_audio2lmk.config import Stage1Config
    from stage1_audio2lmk.encoders.speech_encoder import SpeechEncoder, SpeechEncoderConfig, save_speech_encoder
    from stage1_audio2lmk.kernel import KernelRegressor
    from stage1_audio2lmk.model import LandmarkModel, new_model
    from stage2_gaussian.checkpoint import save_head
    from stage2_gaussian.head import Head
    from stage2_gaussian.ply import canonical_gaussians, write_ply
    from talkhead.avatar_file import pack
    from torso_styleunet.checkpoint import save_torso
    from torso_styleunet.config import TorsoConfig
    from torso_styleunet.model import Torso

    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    rows = (TEMPLATE + rng.normal(scale=0.001, size=(FRAMES, 68, 3))).astype(np.float32)
    poses = pose_matrix(np.tile(np.diag([1.0, -1, -1]), (FRAMES, 1, 1)), np.tile([0, 0, 0.8], (FRAMES, 1)))
    motion = np.tile([0.0, 0, 0, 1], (FRAMES, 1))
    picture = rng.integers(0, 255, (SIZE, SIZE, 3), np.uint8)
    clip, avatar = Clip(folder / "clip"), Avatar(folder / "avatar")
    for path in (clip.landmarks, folder / "rows.npy"):
        save_landmarks(path, rows)
    for path in (clip.neutral, avatar.neutral):
        save_landmarks(path, TEMPLATE[None])
    for path in (clip.poses, avatar.poses):
        save_array(path, poses)
    for path in (clip.torso_motion, avatar.motion):
        save_torso_motion(path, np.concatenate([motion, rng.normal(size=(FRAMES, 18))], 1))
    for path in (clip.background, avatar.background):
        write_png(path, picture)
    for path in (clip.gaze, avatar.gaze):
        save_gaze(path, rng.uniform(-0.2, 0.2, (FRAMES, 2)))
    save_wav(clip.audio, np.zeros(640 * FRAMES, np.float32))
    camera = (60.0, 60.0, SIZE / 2, SIZE / 2)
    clip.save_info(ClipInfo("me", "me.mov", "00", SIZE, SIZE, FRAMES, camera, (0, 0, SIZE), [Shot(0, FRAMES, "background.png")],
                            excluded=[ExcludedSpan(3, 5, "no face")],
                            split={"train": [(0, 25)], "test": [(25, FRAMES)]}, lag_ms=1.5,
                            versions={"talkhead": "0"}, warnings=["short"]))
    save_phones(clip.phones, [(0.0, "SIL"), (0.2, "M"), (0.4, "AA"), (1.0, "SIL")], "made")
    write_scores(clip.quality, [Score("torso", "fair", "it moves", "sit still", {"torso_rms": 3.25}, [{"shot": 1.0}], [7])])
    write_json(avatar.json, {"name": "me", "width": SIZE, "height": SIZE, "intrinsics": camera, "fps": 25, "format": 1})
    np.savez(folder / "rows.npz", rows=rows)
    lines = [",".join(f"{axis}{k}" for k in range(68) for axis in "xyz")]
    lines += [",".join(f"{value:.6f}" for value in row.ravel()) for row in rows[:4]]
    (folder / "rows.csv").write_text("\n".join(lines), encoding="utf-8")
    small = Stage1Config(dim=16, layers=1, heads=2, components=4, window=5)
    save_model(avatar.stage1, LandmarkModel(KernelRegressor(small.kernel(0), 20), new_model(small, 1).transformer), ["me"])
    places = torch.from_numpy(rng.normal(size=(60, 3)) * 0.05).float()
    head = Head(torch.from_numpy(TEMPLATE).float(), places, torch.full((60,), 0.006), torch.rand(60, 3), moving=20, rank=6,
                hidden=8, pose_rank=2, eyes=10)
    save_head(avatar.stage2, head, {"clip": "me", "config": {}})
    write_ply(folder / "head.ply", canonical_gaussians(head))
    torso = TorsoConfig(steps=1, batch=2, channels=4, max_channels=8, levels=2, style_dim=8)
    save_torso(avatar.torso, Torso(torso, SIZE, SIZE, 2))
    pack(avatar, folder / "me.avatar", figures={"stage2": {"psnr": 30.5}})
    save_speech_encoder(folder / "encoder.safetensors", SpeechEncoder(SpeechEncoderConfig(dim=16, layers=1, heads=2, size=8)), {})
    settings = config_to_dict(Stage1Config())
    text = "\n".join(f"{name}: {json.dumps(value)}" for name, value in settings.items())
    (folder / "settings.yaml").write_text("# settings\n" + text + "\n", encoding="utf-8")


def readers() -> dict[str, list[Callable[[Path], Any]]]:
    """Path in the samples -> functions of the folder that read it."""
    from process_data.report.scores import read_scores
    from shared.avatar import Avatar
    from shared.clip import Clip
    from shared.config import load_config
    from shared.landmarks import load_array, load_landmarks
    from shared.media.audio_io import load_audio
    from shared.media.video_io import read_png
    from shared.phones import load_phones
    from shared.poses import load_poses
    from stage1_audio2lmk.checkpoint import load_model
    from stage1_audio2lmk.config import Stage1Config
    from stage1_audio2lmk.encoders.speech_encoder import load_speech_encoder
    from stage2_gaussian.checkpoint import load_head
    from stage2_gaussian.ply import read_ply
    from talkhead.avatar_file import describe_avatar
    from talkhead.inspect import describe
    from talkhead.splat_file import import_head
    from torso_styleunet.checkpoint import load_torso

    def clip(folder: Path) -> None:
        opened = Clip(folder / "clip")
        for load in (opened.load_landmarks, opened.load_poses, opened.load_torso_motion, opened.load_gaze, opened.load_neutral,
                     opened.load_plates):
            load()
        for name in opened.info.split:
            opened.split(name)
        opened.shot_of_frames()

    def avatar(folder: Path, name: str = "avatar") -> None:
        opened = Avatar(folder / name)
        opened.require("stage1", "stage2", "torso")
        for load in (opened.load_neutral, opened.load_motion, opened.load_gaze, opened.load_background):
            load()

    def inspect(name: str) -> Callable[[Path], Any]:
        return lambda folder: list(describe(folder / name))

    def of(name: str, *functions: Callable[[Path], Any]) -> list[Callable[[Path], Any]]:
        return [*(lambda folder, function=function: function(folder / name) for function in functions), inspect(name)]

    return {
        "rows.npy": of("rows.npy", load_landmarks, load_poses, lambda path: load_array(path, (4,))),
        "rows.npz": of("rows.npz", load_landmarks),
        "rows.csv": of("rows.csv", load_landmarks),
        "clip/clip.json": [clip, inspect("clip"), inspect("clip/clip.json")],
        "clip/landmarks.npy": [clip],
        "clip/poses.npy": [clip, inspect("clip/poses.npy")],
        "clip/torso.npy": [clip, inspect("clip/torso.npy")],
        "clip/torso_warp.npy": [clip, inspect("clip/torso_warp.npy")],
        "clip/gaze.npy": [clip, inspect("clip/gaze.npy")],
        "clip/phones.json": of("clip/phones.json", load_phones),
        "clip/quality.json": of("clip/quality.json", read_scores),
        "clip/audio.wav": of("clip/audio.wav", load_audio),
        "clip/background.png": [clip, *of("clip/background.png", read_png)],
        "avatar/avatar.json": [avatar, inspect("avatar"), inspect("avatar/avatar.json")],
        "avatar/motion_poses.npy": [avatar],
        "avatar/stage1.safetensors": [inspect("avatar"), *of("avatar/stage1.safetensors", lambda path: load_model(path, "cpu"))],
        "avatar/stage2.safetensors": of("avatar/stage2.safetensors", lambda path: load_head(path, "cpu")),
        "avatar/torso.safetensors": of("avatar/torso.safetensors", load_torso),
        "me.avatar": [lambda folder: avatar(folder, "me.avatar"), inspect("me.avatar"),
                      lambda folder: list(describe_avatar(Avatar(folder / "me.avatar")))],
        "encoder.safetensors": of("encoder.safetensors", load_speech_encoder),
        "head.ply": [*of("head.ply", read_ply), lambda folder: import_head(Avatar(folder / "avatar"), folder / "head.ply",
                                                                           folder / "new.avatar", overwrite=True)],
        "settings.yaml": of("settings.yaml", lambda path: load_config(Stage1Config, path)),
    }


def damaged_bytes(data: bytes, rng: np.random.Generator) -> bytes:
    """Bits flipped, bytes cut out, put in, repeated or set; half the time near the start, where headers are."""
    out = bytearray(data)
    for _ in range(int(rng.integers(1, 5))):
        reach = len(out) if rng.random() < 0.5 else min(len(out), 256)
        at = int(rng.integers(0, max(1, reach)))
        size = int(2 ** rng.uniform(0, 8))
        match int(rng.integers(0, 7)):
            case 0:
                if out:
                    out[at] ^= 1 << int(rng.integers(0, 8))
            case 1:
                del out[at:]
            case 2:
                del out[at : at + size]
            case 3:
                out[at:at] = rng.bytes(size)
            case 4:
                out[at : at + size] = bytes([int(rng.choice([0, 255, 0x30, 0x7B, 0x5B, 0x0A]))]) * size
            case 5:
                out[at:at] = out[at : at + size] * int(rng.integers(1, 20))
            case 6:
                number = struct.pack("<q", int(rng.choice([-1, 0, 2**31 - 1, 2**40, 2**62])))
                out[at : at + 8] = number
    return bytes(out)


def damaged_json(value: Any, rng: np.random.Generator) -> Any:
    """One or two values, keys or lists somewhere within changed."""
    value = json.loads(json.dumps(value))
    for _ in range(int(rng.integers(1, 3))):
        at, key, spots = {"": value}, "", []
        stack = [(at, "")]
        while stack:
            at, key = stack.pop()
            spots.append((at, key))
            inner = at[key]
            keys = inner if isinstance(inner, dict) else range(len(inner)) if isinstance(inner, list) else ()
            stack += [(inner, k) for k in keys]
        at, key = spots[int(rng.integers(1, len(spots)))] if len(spots) > 1 else spots[0]
        match int(rng.integers(0, 6)):
            case 0 | 1 | 2:
                at[key] = ODD_VALUES[int(rng.integers(0, len(ODD_VALUES)))]
            case 3:
                del at[key]
            case 4:
                if isinstance(at[key], (int, float)):
                    at[key] = str(at[key]) if rng.random() < 0.5 else at[key] * float(rng.choice([-1, 1e-6, 1e6, 1.5]))
                elif isinstance(at[key], list):
                    at[key] = at[key] * int(rng.integers(0, 4))
            case 5:
                if isinstance(at, dict):
                    at[f"{key}_"] = at[key]
    return value


def damaged_text(text: str, rng: np.random.Generator) -> bytes:
    """JSON or YAML text with oddities that no parser's own writer makes."""
    at = int(rng.integers(0, max(1, len(text))))
    odd = ["[" * 100000, "{" * 5000, "9" * 5000, "\x00", "\ufeff", "NaN", "-Infinity", "1e999", "\t", "&a ", "*a", "<<: ",
           "!!python/name:os ", "\ud800", "2020-13-45", "0x", ": ", "- ", "\r", "'", '"', "#"]
    text = text[:at] + str(rng.choice(np.array(odd, object))) + text[at + int(rng.integers(0, 3)) :]
    encoding = str(rng.choice(["utf-8", "utf-8", "utf-8-sig", "utf-16", "latin-1"]))
    return text.encode(encoding, "surrogatepass" if encoding != "latin-1" else "replace")


def damaged_avatar(data: bytes, rng: np.random.Generator) -> bytes:
    """An avatar file with one member damaged, or its manifest, the other hashes and checksums right; or with its end damaged."""
    if rng.random() < 0.4:  # where the directory is
        return damaged_bytes(data[::-1], rng)[::-1]
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    manifest = json.loads(files["manifest.json"])
    name = str(rng.choice(sorted(files)))
    files[name] = mutated(Path(name), files[name], rng)
    if name != "manifest.json":
        manifest["files"][name] = {"size": len(files[name]), "sha256": hashlib.sha256(files[name]).hexdigest()}
        info = json.loads(files["avatar.json"]) if name != "avatar.json" else {"files": {}, "parts": {}}
        for known, key in ((info["files"], name), (info["parts"].get(name.removesuffix(".safetensors"), {}), "sha256")):
            if key in known:
                known[key] = manifest["files"][name]["sha256"]
        if name != "avatar.json":
            files["avatar.json"] = json.dumps(info).encode()
            manifest["files"]["avatar.json"] = {"size": len(files["avatar.json"]),
                                                "sha256": hashlib.sha256(files["avatar.json"]).hexdigest()}
        files["manifest.json"] = json.dumps(manifest).encode()
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for key, content in files.items():
            archive.writestr(zipfile.ZipInfo(key), content, zipfile.ZIP_DEFLATED if rng.random() < 0.5 else zipfile.ZIP_STORED)
    return out.getvalue()


def mutated(path: Path, data: bytes, rng: np.random.Generator) -> bytes:
    """A damaged copy of a valid file's bytes, by what kind of file it is."""
    if path.suffix == ".avatar" and rng.random() < 0.8:
        return damaged_avatar(data, rng)
    if path.suffix == ".json" and rng.random() < 0.6:
        return json.dumps(damaged_json(json.loads(data), rng)).encode()
    if path.suffix in (".json", ".yaml", ".csv") and rng.random() < 0.6:
        return damaged_text(data.decode(), rng)
    if path.suffix == ".safetensors" and rng.random() < 0.7:
        size = struct.unpack("<Q", data[:8])[0]
        header = json.loads(data[8 : 8 + size])
        if rng.random() < 0.5:
            header["__metadata__"]["talkhead"] = json.dumps(damaged_json(json.loads(header["__metadata__"]["talkhead"]), rng))
        elif rng.random() < 0.4:  # numbers that are none
            body = bytearray(data[8 + size :])
            at = int(rng.integers(0, len(body) - 4))
            body[at : at + 4] = struct.pack("<f", float(rng.choice([np.nan, np.inf, -np.inf, 1e38])))
            return data[: 8 + size] + bytes(body)
        else:
            header = damaged_json(header, rng)
        text = json.dumps(header).encode()
        return struct.pack("<Q", len(text)) + text + data[8 + size :]
    if path.suffix == ".npy" and rng.random() < 0.4:
        start = struct.unpack("<H", data[8:10])[0]
        shape = [int(2 ** rng.uniform(0, 45)) if rng.random() < 0.4 else int(rng.choice([1, 3, 4, 68, FRAMES, 0, -1]))
                 for _ in range(int(rng.integers(0, 5)))]
        kind = str(rng.choice(["<f4", ">f8", "<f2", "|u1", "|O", "<c8", "<U5", "|S3", "<M8[s]", "|b1", "<f16", "x"]))
        text = f"{{'descr': {kind!r}, 'fortran_order': {rng.choice(['True', 'False', '1'])}, 'shape': {tuple(shape)}, }}"
        text = (text.ljust(start - 1)[: start - 1] + "\n").encode()
        return data[:8] + struct.pack("<H", len(text)) + text + data[10 + start :]
    if path.suffix == ".npy" and rng.random() < 0.3:
        rows = np.frombuffer(data[-(len(data) - 128) :], np.float32).copy()
        rows[int(rng.integers(0, len(rows)))] = rng.choice([np.nan, np.inf, 1e30, 1e6, -5])
        return data[:128] + rows.tobytes()
    if path.suffix == ".png" and rng.random() < 0.4:  # another size in the header, its checksum right
        header = b"IHDR" + struct.pack(">II", *(int(2 ** rng.uniform(0, 31)) for _ in range(2))) + data[24:29]
        return data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:]
    return damaged_bytes(data, rng)


def try_one(folder: Path, name: str, data: bytes, functions: list[Callable[[Path], Any]]) -> tuple[list[str], bool]:
    """What goes wrong when the file `name` is replaced by `data`: tracebacks; and whether it was refused by any reader."""
    path, found, refused = folder / name, [], False
    before = path.read_bytes()
    path.write_bytes(data)
    try:
        for function in functions:
            try:
                function(folder)
            except TalkheadError as error:
                refused = True
                if "\n" in str(error) or len(str(error)) > 1000:
                    found.append(f"a sentence of {len(str(error))} letters: {str(error)[:300]!r}")
            except Exception:
                found.append(traceback.format_exc())
    finally:
        path.write_bytes(before)
        shutil.rmtree(folder / "new.avatar", ignore_errors=True)
    return found, refused


def work(folder: Path, numbers: list[int], seed: int, memory: int, said: Any) -> None:
    """A child: tries the cases `numbers`, telling each before it begins and what came of it."""
    import torch

    torch.set_num_threads(1)
    warnings.simplefilter("error", RuntimeWarning)
    samples = Path(tempfile.mkdtemp(dir=folder))
    os.environ["XDG_CACHE_HOME"] = str(samples)  # where avatar files are unpacked
    shutil.copytree(folder / "samples", samples / "s")
    every = readers()
    for name, functions in every.items():  # the first use of a library takes memory that is not the case's
        found, _ = try_one(samples / "s", name, (samples / "s" / name).read_bytes(), functions)
        if found:
            said.put((-1, name, found, False, 0))
            return
    base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + (memory << 20), resource.RLIM_INFINITY))
    for number in numbers:
        name, data = case(samples / "s", number, seed)
        said.put((number, name, None, False, 0))
        found, refused = try_one(samples / "s", name, data, every[name])
        said.put((number, name, found, refused, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024 - base))
    shutil.rmtree(samples)
    said.put(None)


def case(folder: Path, number: int, seed: int) -> tuple[str, bytes]:
    """The file and its damaged bytes of one case."""
    rng = np.random.default_rng([seed, number])
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and path.name != "neutral.npy"
                   and not str(path.relative_to(folder)).startswith(("avatar/background", "avatar/motion_torso")))
    name = names[number % len(names)]
    return name, mutated(Path(name), (folder / name).read_bytes(), rng)


def fuzz(count: int, seed: int = 0, *, seconds: float = 60, memory: int = 2048, per_child: int = 200, keep: Path | None = None,
         say: Callable[[str], None] = print) -> int:
    """Try `count` cases in child processes; returns the number of faults. Damaged files that make one go to `keep`."""
    faults: Counter[str] = Counter()
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        make_samples(folder / "samples")
        todo, most, refusals = list(range(count)), 0, 0
        while todo:
            said = context.Queue()
            child = context.Process(target=work, args=(folder, todo[:per_child], seed, memory, said), daemon=True)
            child.start()
            last, limit = None, 600.0  # the first message waits for imports
            while True:
                try:
                    message = said.get(timeout=limit)
                except queue.Empty:
                    faults["hang"] += 1
                    say(f"case {last}: no answer in {limit:g} s")
                    break
                if message is None:
                    break
                number, name, found, refused, grown = message
                last, limit = (number, name), seconds
                if number < 0:
                    raise RuntimeError(f"the valid {name} is not read: {found[0]}")
                if number in todo:
                    todo.remove(number)
                if found is None:
                    continue
                most, refusals = max(most, grown), refusals + refused
                if grown > memory:
                    found.append(f"{grown} MB of memory")
                for text in found:
                    faults[text.strip().splitlines()[-1][:150]] += 1
                    say(f"case {number}, {name}:\n{text}")
                if found and keep is not None:
                    keep.mkdir(parents=True, exist_ok=True)
                    (keep / f"{number}-{Path(name).name}").write_bytes(case(folder / "samples", number, seed)[1])
            child.kill()
            child.join()
        say(f"{count} damaged files, {refusals} refused, {sum(faults.values())} faults, at most {most} MB of memory more than "
            "before")
        for text, times in faults.most_common():
            say(f"  {times}x {text}")
    return sum(faults.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--count", type=int, default=2000, help="damaged files to try")
    parser.add_argument("--seed", type=int, default=0, help="of the damage")
    parser.add_argument("--seconds", type=float, default=60, help="that one file may take")
    parser.add_argument("--memory", type=int, default=2048, help="megabytes that one file may take beyond what libraries do")
    parser.add_argument("--keep", type=Path, help="folder for the files that make a fault")
    options = parser.parse_args()
    sys.exit(1 if fuzz(options.count, options.seed, seconds=options.seconds, memory=options.memory, keep=options.keep) else 0)


if __name__ == "__main__":
    main()
