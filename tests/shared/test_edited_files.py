"""Files that people edit: what docs/bad_inputs.md says of each under "What people edit" is what happens."""

import io
import json
import os
import re
import shutil
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from cli import cli
from shared.avatar import Avatar
from shared.camera import pose_matrix
from shared.checkpoint import load_checkpoint, save_checkpoint
from shared.clip import Clip, ClipInfo, ExcludedSpan, Shot
from shared.errors import TalkheadError
from shared.face_check import TEMPLATE, check_face
from shared.files import read_json, write_json
from shared.landmark_edit import apply_blink, mouth_gain, smile
from shared.landmarks import MIRROR, TABLES, load_landmarks, save_array, save_landmarks
from shared.media.video_io import write_png
from shared.poses import load_poses
from stage1_audio2lmk.checkpoint import load_model, save_model
from stage1_audio2lmk.config import Stage1Config
from stage1_audio2lmk.encoders.speech_encoder import SpeechEncoder, SpeechEncoderConfig, load_speech_encoder, save_speech_encoder
from stage1_audio2lmk.kernel import KernelRegressor
from stage1_audio2lmk.model import LandmarkModel, new_model
from stage2_gaussian.checkpoint import load_head, save_head
from stage2_gaussian.head import Head
from stage2_gaussian.ply import read_ply
from torso_styleunet.checkpoint import load_torso, save_torso
from torso_styleunet.config import TorsoConfig
from torso_styleunet.model import Torso

PAGE = Path(__file__).resolve().parents[2] / "docs" / "bad_inputs.md"
SECTION = PAGE.read_text("utf-8").split("\n## What people edit\n")[1].split("\n## ")[0]
LINES = re.findall(r"^\| (.+?) \| (.+?) \| (.*?) ?\|$", SECTION, re.M)
TABLE = {what: (happens, sentence) for what, happens, sentence in LINES if what != "input" and not what.startswith("---")}
UPRIGHT = np.diag([1.0, -1, -1])
ROWS = (TEMPLATE + np.random.default_rng(0).normal(scale=0.001, size=(80, 68, 3))).astype(np.float32)
INPUTS = {}  # row of the page -> function (folder) -> arguments of the command


def pattern(sentence):
    text = re.escape(sentence).replace("…", ".*")
    text = re.sub(r"(?<![A-Za-z])N(?![A-Za-z])", r"-?[\\d.e+-]+", text)
    return text.replace("FILE", r"\S+")


def of(row):
    def remember(make):
        INPUTS[row] = make
        return make

    return remember


def run(*arguments):
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def test_every_row_of_the_page_has_its_input():
    assert set(TABLE) == set(INPUTS)


@pytest.mark.parametrize("row", TABLE)
def test_an_edited_file_is_refused_or_read_as_the_page_says(row, tmp_path):
    happens, sentence = TABLE[row]
    result = run(*INPUTS[row](tmp_path))
    lines = [line for line in result.output.splitlines() if line.startswith("Error: ")]
    assert "Traceback" not in result.output
    if happens.startswith("works"):
        assert result.exit_code == 0 and not lines, result.output
        return
    assert result.exit_code == 2 and len(lines) == 1, (result.output, result.exception)
    assert re.fullmatch("Error: " + pattern(sentence), lines[0]), f"{pattern(sentence)}\n\nfound\n\n{lines[0]}"


def npy(folder, array, name="rows.npy", **how):
    np.save(folder / name, array, **how)
    return "inspect", folder / name


def raw(folder, data, name="rows.npy"):
    (folder / name).write_bytes(data)
    return "inspect", folder / name


def saved(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def with_header(text, body=b""):
    data = text.encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(data)) + data + body


def csv_of(rows, mark=",", header=True, first=None, decimal="."):
    lines = [[f"{axis}{k}" for k in range(68) for axis in "xyz"]] if header else []
    lines += [[f"{value:.5f}".replace(".", decimal) for value in row.ravel()] for row in rows]
    if first is not None:
        names, *values = first
        lines = [[str(cell), *line] for cell, line in zip([names, *values] if header else values, lines)]
    return "\n".join(mark.join(line) for line in lines) + "\n"


def table(folder, text, name="rows.csv", encoding="utf-8"):
    (folder / name).write_bytes(text.encode(encoding))
    return "inspect", folder / name


def make_avatar(folder):
    avatar = Avatar(folder / "me.avatar")
    write_json(avatar.json, {"name": "me", "width": 16, "height": 16, "intrinsics": [30, 30, 8, 8], "fps": 25, "format": 1})
    save_landmarks(avatar.neutral, TEMPLATE[None])
    save_array(avatar.poses, pose_matrix(UPRIGHT, np.array([0, 0, 0.8]))[None])
    save_array(avatar.motion, [[0.0, 0, 0, 1]])
    write_png(avatar.background, np.zeros((16, 16, 3), np.uint8))
    small = Stage1Config(dim=8, layers=1, heads=2, components=4, window=5)
    torch.manual_seed(0)
    model = LandmarkModel(KernelRegressor(small.kernel(0), 5), new_model(small, 1).transformer, new_model(small, 2), 0.5)
    save_model(avatar.stage1, model, ["me"])
    save_head(avatar.stage2, Head(torch.from_numpy(TEMPLATE).float(), torch.randn(20, 3) * 0.05, torch.full((20,), 0.005),
                                  torch.rand(20, 3), moving=10, rank=5, hidden=4, pose_rank=2), {})
    save_torso(avatar.torso, Torso(TorsoConfig(steps=1, batch=2, channels=2, max_channels=4, levels=1, style_dim=4), 16, 16, 2))
    return avatar


def make_clip(folder):
    clip = Clip(folder / "clip")
    save_landmarks(clip.landmarks, ROWS[:10])
    save_landmarks(clip.neutral, TEMPLATE[None])
    save_array(clip.poses, np.repeat(pose_matrix(UPRIGHT, np.array([0, 0, 0.8]))[None], 10, 0))
    save_array(clip.torso_motion, np.tile([0.0, 0, 0, 1], (10, 1)))
    clip.save_info(ClipInfo("me", "me.mov", "00", 16, 16, 10, (30.0, 30.0, 8.0, 8.0), (0, 0, 16), [Shot(0, 10, "background.png")],
                            excluded=[ExcludedSpan(1, 2, "no face")], split={"train": [(0, 8)], "test": [(8, 10)]}))
    return clip


def changed(clip_or_avatar, **values):
    write_json(clip_or_avatar.json, {**json.loads(clip_or_avatar.json.read_text()), **values})
    return "inspect", clip_or_avatar.root


INPUTS |= {
    "an empty .npy": lambda d: raw(d, b""),
    "an .npy cut short": lambda d: raw(d, saved(ROWS)[:-5]),
    "an .npy with bytes behind its numbers": lambda d: raw(d, saved(ROWS) + b"123"),
    "an .npy whose header is not closed": lambda d: raw(d, with_header("{'descr': '<f4', 'shape': (2, 68, 3")),
    "an .npy whose header tells of terabytes": lambda d: raw(d, with_header(
        "{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000, 68, 3), }", bytes(100))),
    "a cut-off .npz named .npy": lambda d: raw(d, b"PK\x03\x04" + bytes(50)),
    "a pickle": lambda d: npy(d, np.array([{"a": 1}], object), allow_pickle=True),
    "text named .npy": lambda d: raw(d, b"0.1,0.2,0.3\n0.1,0.2,0.3\n"),
    "a picture named .npy": lambda d: raw(d, b"\x89PNG\r\n\x1a\n" + bytes(50)),
    "a folder named .npy": lambda d: ((d / "rows.npy").mkdir(), ("edit", d / "rows.npy", "-o", d / "out.npy"))[1],
    "an .npy of complex numbers": lambda d: npy(d, ROWS.astype(complex)),
    "landmarks with a value that is not finite": lambda d: npy(d, np.where(np.arange(3) == 2, np.nan, ROWS)),
    "one frame without its axis": lambda d: npy(d, TEMPLATE),
    "landmarks (T, 3, 68)": lambda d: npy(d, ROWS.swapaxes(1, 2)),
    "landmarks (3, 68)": lambda d: npy(d, TEMPLATE.T),
    "landmarks (T, 204)": lambda d: npy(d, ROWS.reshape(-1, 204)),
    "landmarks (1, T, 68, 3)": lambda d: npy(d, ROWS[None]),
    "landmarks (T, 68, 2)": lambda d: npy(d, ROWS[..., :2]),
    "MediaPipe's 478 points": lambda d: npy(d, np.zeros((5, 478, 3))),
    "the 51 inner points": lambda d: npy(d, ROWS[:, 17:]),
    "landmarks in millimetres": lambda d: npy(d, ROWS * 1000),
    "landmarks in centimetres": lambda d: npy(d, ROWS * 100),
    "landmarks in inches": lambda d: npy(d, ROWS / 0.0254),
    "landmarks whose eyes are 1 apart": lambda d: npy(d, ROWS / 0.09),
    "landmarks in pixels": lambda d: npy(d, ROWS * [2000, -2000, -2000] + [256, 200, 0]),
    "landmarks as parts of the picture": lambda d: npy(d, ROWS * [4, -4, -4] + [0.5, 0.4, 0]),
    "landmarks in the camera's space": lambda d: npy(d, ROWS @ UPRIGHT + [0, 0, 0.8]),
    "y down": lambda d: npy(d, ROWS * [1, -1, 1]),
    "z into the face": lambda d: npy(d, ROWS * [1, 1, -1]),
    "OpenCV's axes": lambda d: npy(d, ROWS * [1, -1, -1]),
    "left and right swapped": lambda d: npy(d, ROWS * [-1, 1, 1]),
    "points in mirrored order": lambda d: npy(d, ROWS[:, MIRROR]),
    "z up, as Blender has it": lambda d: npy(d, ROWS[..., [0, 2, 1]] * [1, -1, 1]),
    "points in another order": lambda d: npy(d, ROWS[:, np.random.default_rng(0).permutation(68)]),
    "lips in another order": lambda d: npy(d, ROWS[:, [*range(48), *range(67, 47, -1)]]),
    "a face flat in z": lambda d: npy(d, ROWS * [1, 1, 0]),
    "a head turned by 40 degrees": lambda d: npy(d, ROWS @ np.array(
        [[np.cos(0.7), 0, -np.sin(0.7)], [0, 1, 0], [np.sin(0.7), 0, np.cos(0.7)]])),
    "a face away from the origin": lambda d: npy(d, ROWS + [0, 0.2, 0]),
    "zeros": lambda d: npy(d, ROWS * 0),
    "one row of zeros": lambda d: npy(d, ROWS * (np.arange(80) != 7)[:, None, None]),
    "one point 3 m away": lambda d: npy(d, ROWS + 3 * ((np.arange(80) == 9)[:, None] & (np.arange(68) == 33))[..., None]),
    "a .csv with a header": lambda d: table(d, csv_of(ROWS)),
    "a .csv with semicolons and decimal commas": lambda d: table(d, csv_of(ROWS, ";", decimal=",")),
    "a .tsv with tabs, Windows line ends and a byte order mark": lambda d: table(
        d, csv_of(ROWS, "\t").replace("\n", "\r\n"), "rows.tsv", "utf-8-sig"),
    "a .csv as Excel's Unicode text": lambda d: table(d, csv_of(ROWS, "\t"), encoding="utf-16"),
    "a .csv with a column of frames": lambda d: table(d, csv_of(ROWS, first=["frame", *range(1, 81)])),
    "a .csv with a column of times": lambda d: table(d, csv_of(ROWS, first=["time", *(k / 25 for k in range(80))])),
    "a .csv with times of 30 frames a second": lambda d: table(d, csv_of(ROWS, first=["time", *(k / 30 for k in range(80))])),
    "a .csv with an empty cell": lambda d: table(d, csv_of(ROWS, ";").replace(";", ";;", 250).replace(";;", ";", 249)),
    "a .csv with text in a cell": lambda d: table(d, re.sub(",.*?,", ",#REF!,", csv_of(ROWS, header=False), count=1)),
    "a .csv cut off within a line": lambda d: table(d, csv_of(ROWS)[:-800]),
    "a .csv of a point a line": lambda d: table(d, "\n".join(",".join(map(str, point)) for point in TEMPLATE)),
    "a .csv with all x, then y, then z": lambda d: table(d, csv_of(ROWS.swapaxes(1, 2))),
    "a .csv in millimetres": lambda d: table(d, csv_of(ROWS * 1000)),
    "a .csv with a header alone": lambda d: table(d, csv_of(ROWS[:0])),
    "an .npz": lambda d: (np.savez(d / "a.npz", rows=ROWS, other=ROWS), ("inspect", d / "a.npz"))[1],
    "edit -o out.csv": lambda d: (*("edit", npy(d, ROWS)[1], "-o", d / "out.csv"),),
    "edit -o out": lambda d: (*("edit", npy(d, ROWS)[1], "-o", d / "out"),),
    "edit of a .csv": lambda d: ("edit", table(d, csv_of(ROWS))[1], "-o", d / "out.npy", "--smile", 1),
    "synth --poses Still": lambda d: ("stage2", "render", npy(d, ROWS[:2])[1], "--avatar", make_avatar(d).root,
                                      "-o", d / "frames", "--poses", "Still"),
    "an address": lambda d: ("inspect", "https://example.com/rows.npy"),
    "a missing file": lambda d: ("inspect", d / "none.npy"),
    "an avatar that is an address": lambda d: ("stage2", "export", "https://example.com/me.avatar", "-o", d / "a.ply"),
    "inspect of settings": lambda d: raw(d, b"steps: 5\n", "c.yaml"),
    "inspect of an avatar": lambda d: ("inspect", make_avatar(d).root),
}


def process(*options):
    return lambda folder: ("process", folder / "me.mp4", folder / "clip", *options)


INPUTS |= {
    "--split train=0:5²": process("--split", "train=0:5²"),
    "--split train=0:125 --split test=50:125": process("--split", "train=0:125", "--split", "test=50:125"),
    "--seed -1": lambda d: ("edit", d / "a.npy", "-o", d / "b.npy", "--seed", "-1"),
    "--smile inf": lambda d: ("edit", d / "a.npy", "-o", d / "b.npy", "--smile", "inf"),
    "--blink inf": lambda d: ("edit", d / "a.npy", "-o", d / "b.npy", "--blink", "inf"),
    "--mouth-gain nan": lambda d: ("edit", d / "a.npy", "-o", d / "b.npy", "--mouth-gain", "nan"),
    "--liveliness nan": lambda d: ("synth", d / "a.avatar", d / "a.wav", "--liveliness", "nan"),
    "--orbit nan": lambda d: ("stage2", "render", d / "a.npy", "--avatar", d / "a", "-o", d / "b", "--orbit", "nan"),
    "--period nan": lambda d: ("stage2", "render", d / "a.npy", "--avatar", d / "a", "-o", d / "b", "--orbit", "9",
                               "--period", "nan"),
    "--set lr=.nan": lambda d: ("stage1", "finetune", d / "clip", "--set", "lr=.nan"),
    "--set batch=0": lambda d: ("stage1", "finetune", d / "clip", "--set", "batch=0"),
    "--set heads=3": lambda d: ("stage1", "finetune", d / "clip", "--set", "heads=3"),
    "--set seed=-1": lambda d: ("stage2", "train", d / "clip", "--set", "seed=-1"),
    "--set seed=99999999999999999999": lambda d: ("torso", "train", d / "clip", "--set", "seed=99999999999999999999"),
    "--set lr=[": lambda d: ("stage1", "finetune", d / "clip", "--set", "lr=["),
}


def config(text):
    def make(folder):
        (folder / "c.yaml").write_text(text)
        return "stage1", "finetune", folder / "clip", "--config", folder / "c.yaml"

    return make


INPUTS |= {
    "--config with tabs": config("steps: 3\n\tlr: 1\n"),
    "--config with a key twice": config("steps: 3\nsteps: 4\n"),
    "--config with a list": config("- steps\n"),
    "--config with aliases": config("a: &a [1]\nb: [*a, *a]\n"),
    "phones.json with a digit of stress": lambda f: raw(f, b'{"phones": [[0, "SIL"], [0.4, "AH0"]]}', "phones.json"),
    "phones.json whose times fall": lambda f: raw(f, b'{"phones": [[0, "SIL"], [1, "M"], [0.5, "AA"]]}', "phones.json"),
    "--config with 2,000 brackets": config("steps: " + "[" * 2000),
}


def zipped(folder):
    avatar = make_avatar(folder)
    shutil.make_archive(str(folder / "me"), "zip", avatar.root)
    return folder / "me.zip"


def poses(change):
    def make(folder):
        array = np.repeat(pose_matrix(UPRIGHT, np.array([0.01, 0, 0.8]))[None], 5, 0).astype(float)
        return npy(folder, change(array), "poses.npy")

    return make


def moved(array, row, column, value):
    array[:, row, column] = value
    return array


INPUTS |= {
    "a zipped avatar": lambda d: ("inspect", zipped(d)),
    "a zipped avatar for synth": lambda d: ("synth", zipped(d), "speech.wav", "-o", d / "talk.mp4"),
    "poses with rows and columns swapped": poses(lambda p: p.swapaxes(1, 2)),
    "poses with another last row": poses(lambda p: moved(p, 3, 0, 0.5)),
    "poses whose rotation is scaled": poses(lambda p: p @ np.diag([2, 2, 2, 1])),
    "poses whose rotation is none": poses(lambda p: moved(p, 0, 1, 0.5)),
    "poses that mirror": poses(lambda p: p @ np.diag([-1, 1, 1, 1])),
    "poses with OpenGL's axes": poses(lambda p: np.diag([1, -1, -1, 1]) @ p),
    "poses with the head upside down": poses(lambda p: p @ np.diag([1, -1, -1, 1])),
    "poses in millimetres": poses(lambda p: moved(p, 2, 3, 800)),
    "poses in centimetres": poses(lambda p: moved(p, 2, 3, 80)),
    "poses with the head at the camera": poses(lambda p: moved(p, 2, 3, 0.0)),
}

CLIP_JSON = {
    "clip.json with frames \"580\"": {"frames": "580"}, "clip.json with frames 580.0": {"frames": 580.0},
    "clip.json with frames -1": {"frames": -1}, "clip.json with frames of 10^12": {"frames": 10**12},
    "clip.json with frames null": {"frames": None}, "clip.json with frames true": {"frames": True},
    "clip.json with a start \"a\"": {"bad": [{"start": "a", "stop": 2, "reason": "x"}]},
    "clip.json with a stretch beyond the end": {"bad": [{"start": 1, "stop": 11, "reason": "x"}]},
    "clip.json with a split that is a list": {"split": [[0, 5]]}, "clip.json with name null": {"name": None},
    "clip.json with shots that leave a gap": {"shots": [{"start": 2, "stop": 10, "background": "background.png"}]},
    "clip.json with a background elsewhere": {"shots": [{"start": 0, "stop": 10, "background": "../../secret.png"}]},
    "clip.json with fps 30": {"fps": 30}, "clip.json with an unknown key": {"heigth": 3},
    "clip.json with three intrinsics": {"intrinsics": [30, 30, 8]},
    "clip.json with text in the intrinsics": {"intrinsics": ["30", 30, 8, 8]},
}
AVATAR_JSON = {
    "avatar.json with width \"256\"": {"width": "256"}, "avatar.json with width 0": {"width": 0},
    "avatar.json with width -2": {"width": -2}, "avatar.json with width 256.0": {"width": 256.0},
    "avatar.json with width 10^9": {"width": 10**9}, "avatar.json with three intrinsics": {"intrinsics": [1, 2, 3]},
    "avatar.json with a focal length of 0": {"intrinsics": [0, 30, 8, 8]}, "avatar.json of another format": {"format": [1]},
}
INPUTS |= {row: lambda d, values=values: changed(make_clip(d), **values) for row, values in CLIP_JSON.items()}
INPUTS |= {row: lambda d, values=values: changed(make_avatar(d), **values) for row, values in AVATAR_JSON.items()}


def text_of(data):
    def make(folder):
        clip = make_clip(folder)
        clip.json.write_bytes(data(clip.json.read_bytes()))
        return "inspect", clip.root

    return make


INPUTS |= {
    "clip.json saved by Notepad, with a byte order mark": lambda d: (text_of(lambda b: b"\xef\xbb\xbf" + b)(d), (
        "inspect", d / "clip" / "clip.json"))[1],
    "clip.json with a key twice": text_of(lambda b: b.replace(b'"name"', b'"fps": 25, "name"', 1)),
    "clip.json with NaN": text_of(lambda b: b.replace(b'"lag_ms": null', b'"lag_ms": NaN')),
    "clip.json with 1e999": text_of(lambda b: b.replace(b'"lag_ms": null', b'"lag_ms": 1e999')),
    "clip.json with a number of 5,000 digits": text_of(lambda b: b.replace(b'"lag_ms": null', b'"lag_ms": ' + b"9" * 5000)),
    "clip.json with 100,000 brackets": text_of(lambda b: b"[" * 100000),
    "clip.json in another encoding": text_of(lambda b: b'{"name": "\xe9"}'),
    "clip.json cut off": text_of(lambda b: b[:50]),
    "clip.json with a list": text_of(lambda b: b"[1, 2]"),
    "clip.json without a key": text_of(lambda b: b.replace(b'"frames": 10,', b"")),
}


def checkpoint(name, change):
    """An avatar whose part `name` is saved again with `change` (tensors, meta) applied."""
    def make(folder):
        avatar = make_avatar(folder)
        path = getattr(avatar, name)
        tensors, meta = load_checkpoint(path)
        change(tensors, meta)
        save_checkpoint(path, tensors, meta)
        return "stage2" if name == "stage2" else "inspect", *(
            ("export", avatar.root, "-o", folder / "a.ply") if name == "stage2" else (avatar.root,))

    return make


def spoil(name, value):
    def change(tensors, meta):
        tensors[name].view(-1)[0] = value

    return change


INPUTS |= {
    "a stage 2 with a number that is none": checkpoint("stage2", spoil("positions", np.nan)),
    "a stage 2 without a tensor": checkpoint("stage2", lambda t, m: t.pop("opacities")),
    "a stage 2 with one tensor more": checkpoint("stage2", lambda t, m: t.update(extra=torch.zeros(3))),
    "a stage 2 with a tensor of another shape": checkpoint("stage2", lambda t, m: t.update(colors=torch.zeros(3, 3))),
    "a stage 2 with whole numbers": checkpoint("stage2", lambda t, m: t.update(opacities=t["opacities"].long())),
    "a stage 2 of another format": checkpoint("stage2", lambda t, m: m.update(format=3)),
    "an avatar with a damaged stage 1": checkpoint("stage1", spoil("kernel.basis", np.inf)),
    "an avatar with an absurd stage 1": checkpoint("stage1", lambda t, m: m["model"]["transformer"].update(
        dim=2048, layers=48, heads=8)),
    "an avatar with an absurd torso": checkpoint("torso", lambda t, m: m.update(width=8000, height=8000)),
    "an avatar with a torso of negative size": checkpoint("torso", lambda t, m: m.update(margin=-5)),
    "an avatar with a plate of another size": lambda d: (write_png(make_avatar(d).background, np.zeros((8, 16, 3), np.uint8)),
                                                         ("inspect", d / "me.avatar"))[1],
    "a .safetensors of zeros": lambda d: raw(d, bytes(100), "a.safetensors"),
    "a .safetensors cut short": lambda d: raw(d, make_avatar(d).stage2.read_bytes()[:-9], "a.safetensors"),
    "a .safetensors of another program": lambda d: raw(d, struct.pack("<Q", 16) + b'{"__metadata__":{}}'[:14].ljust(14) + b"}}",
                                                      "a.safetensors"),
}


def ply(change):
    def make(folder):
        avatar = make_avatar(folder)
        assert run("stage2", "export", avatar.root, "-o", folder / "head.ply").exit_code == 0
        data = (folder / "head.ply").read_bytes()
        start = data.index(b"end_header\n") + 11
        header, values = data[:start], np.frombuffer(data[start:], "<f4").copy().reshape(20, 17)
        header, values = change(header, values) or (header, values)
        (folder / "head.ply").write_bytes(header + values.tobytes())
        return "inspect", folder / "head.ply"

    return make


def put(column, value):
    def change(header, values):
        values[3, column] = value

    return change


INPUTS |= {
    "a .ply with a count that is no number": ply(lambda h, v: (h.replace(b"vertex 20", "vertex 5²".encode()), v)),
    "a .ply with a count of 5,000 digits": ply(lambda h, v: (h.replace(b"vertex 20", b"vertex " + b"9" * 5000), v)),
    "a .ply that tells of more splats": ply(lambda h, v: (h.replace(b"vertex 20", b"vertex 999999999"), v)),
    "a .ply with a splat far away": ply(put(0, 1e30)),
    "a .ply with a rotation beyond all bounds": ply(put(13, 1e30)),
    "inspect of a .ply": ply(lambda h, v: None),
    "text named .ply": ply(lambda h, v: (b"hello", v[:0])),
}


@pytest.mark.parametrize("name, load", [
    ("stage1", lambda path: load_model(path, "cpu")), ("stage2", lambda path: load_head(path, "cpu")), ("torso", load_torso),
    ("encoder", load_speech_encoder)])
def test_checkpoints_with_other_meta_or_tensors_are_refused(name, load, tmp_path):
    avatar = make_avatar(tmp_path)
    save_speech_encoder(tmp_path / "encoder", SpeechEncoder(SpeechEncoderConfig(dim=8, layers=1, heads=2, size=4)), {})
    path = getattr(avatar, name, tmp_path / "encoder")
    load(path)
    tensors, meta = load_checkpoint(path)
    metas = [{}, {**meta, "kind": ["x"], "format": 5}]
    if name not in ("stage1", "stage2"):
        metas += [{**meta, "config": None}, {**meta, "config": {"dim": "8"}}, {**meta, "config": {"unknown": 1}}]
    if name == "stage1":
        model = meta["model"]
        metas += [{**meta, "speakers": 3}, {**meta, "speakers": []}, {**meta, "encoder": {"a": 1}}, {**meta, "encoder": 5},
                  {**meta, "encoder": {"kind": "speech encoder", "config": {}}}, {**meta, "format": True}, {**meta, "format": 4},
                  {**meta, "model": None}, {**meta, "model": {key: model[key] for key in model if key != "prior"}},
                  {**meta, "model": {**model, "kernel": {"past": "4"}}},
                  {**meta, "model": {**model, "transformer": {"unknown": 1}}}, {**meta, "model": {**model, "share": 2.0}},
                  {**meta, "model": {**model, "prior": {**model["prior"], "prior": model["prior"]}}}]
    if name == "torso":
        metas += [{**meta, "width": "16"}, {**meta, "height": 16.0}, {**meta, "margin": True}, {**meta, "width": None}]
    for other in metas:
        save_checkpoint(path, tensors, other)
        with pytest.raises(TalkheadError) as caught:
            load(path)
        assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)
    for key, tensor in [(key, tensor) for key, tensor in tensors.items() if tensor.numel()][::4]:
        no_number = torch.full_like(tensor, np.nan) if tensor.is_floating_point() else tensor.float()
        for wrong in (torch.zeros(7, 7, 7, 7), no_number, None):
            others = {k: v for k, v in tensors.items() if k != key} | ({} if wrong is None else {key: wrong})
            save_checkpoint(path, others, meta)
            with pytest.raises(TalkheadError):
                load(path)


def test_a_checkpoint_is_damaged_at_any_byte_or_cut_without_a_traceback(tmp_path):
    data = make_avatar(tmp_path).stage2.read_bytes()
    path, size = tmp_path / "a.safetensors", struct.unpack("<Q", data[:8])[0]
    for at in [*range(0, 8), *range(8, size, 97)]:
        for damaged in (data[:at], data[:at] + b"\xff" + data[at + 1 :], data[:at] + b'"' + data[at:]):
            path.write_bytes(damaged)
            try:
                load_head(path, "cpu")
            except TalkheadError as error:
                assert "\n" not in str(error)


def test_edited_faces_of_any_size_pass():
    moving = ROWS.copy()
    moving[:, 48:, 1] += 0.01 * np.sin(np.arange(80))[:, None]
    for gain in (-3, 0, 3, 5):
        check_face(mouth_gain(moving, TEMPLATE, gain), "gain")
    for amount in (-3, 3):
        check_face(smile(moving, amount).astype(np.float32), "smile")
        check_face(smile(mouth_gain(moving, TEMPLATE, 3), amount).astype(np.float32), "both")
    check_face(apply_blink(moving, np.ones(80)), "blink")
    for scale in (0.6, 1.8):
        check_face(moving * scale, "scale")


@pytest.mark.realdata
def test_every_talker_passes_plain_and_edited(realdata_dir):
    files = sorted((realdata_dir / "talkers").glob("**/landmarks.npy"))
    assert len(files) > 50
    for file in files:
        rows = load_landmarks(file)
        base = np.median(rows, axis=0)
        check_face(load_landmarks(file.with_name("neutral.npy")), str(file))
        for edited in (mouth_gain(rows, base, 3), smile(rows, 3), smile(rows, -3), rows * 1.5, rows[:1]):
            check_face(edited.astype(np.float32), str(file))


def test_all_the_wrong_axes_are_told_apart(tmp_path):
    """After what the sentence says to do, the rows are accepted."""
    for signs in np.array(np.meshgrid([1, -1], [1, -1], [1, -1])).T.reshape(-1, 3):
        rows = ROWS * signs
        try:
            check_face(rows, "rows")
            assert (signs == 1).all()
        except TalkheadError as error:
            axes = re.search(r"multiply ([xyz and]+) by -1", str(error)).group(1).split(" and ")
            assert sorted(axes) == [axis for axis, sign in zip("xyz", signs) if sign < 0]
    for order in ([0, 2, 1], [1, 0, 2], [2, 1, 0], [1, 2, 0], [2, 0, 1]):
        with pytest.raises(TalkheadError) as caught:
            check_face(ROWS[..., order], "rows")
        columns, factors = (json.loads(text) for text in re.findall(r"\[[-\d, ]+\]", str(caught.value)))
        np.testing.assert_array_equal(ROWS[..., order][..., columns] * factors, ROWS)


def test_tables_hold_the_same_numbers_as_the_array(tmp_path):
    for text, encoding, name in ((csv_of(ROWS), "utf-8", "a.csv"), (csv_of(ROWS, ";", decimal=","), "utf-8-sig", "b.CSV"),
                                 (csv_of(ROWS, "\t", header=False), "utf-16", "c.txt"),
                                 (csv_of(ROWS, header=False, first=["", *range(80)]), "utf-8", "d.csv")):
        (tmp_path / name).write_bytes(text.encode(encoding))
        np.testing.assert_allclose(load_landmarks(tmp_path / name), ROWS, atol=6e-6)
    assert TABLES == (".csv", ".tsv", ".txt")


def test_fortran_order_other_numbers_and_capitals_are_read(tmp_path):
    for array in (np.asfortranarray(ROWS), ROWS.astype(">f8"), ROWS.astype(np.float16)):
        np.save(tmp_path / "rows.npy", array)
        np.testing.assert_array_equal(load_landmarks(tmp_path / "rows.npy"), array.astype(np.float32))
    os.rename(tmp_path / "rows.npy", tmp_path / "ROWS.NPY")
    assert run("inspect", tmp_path / "ROWS.NPY").exit_code == 0


def test_inspect_tells_every_part_of_a_folder_and_which_are_wrong(tmp_path):
    avatar = make_avatar(tmp_path)
    save_landmarks(avatar.neutral, TEMPLATE[None])
    np.save(avatar.neutral, TEMPLATE[None] * 1000)
    avatar.torso.write_bytes(avatar.torso.read_bytes()[:-1])
    avatar.stage1.unlink()
    lines = run("inspect", avatar.root).output.splitlines()
    assert "  stage1: not trained yet" in lines and any(re.match(r"  stage2: .* MB, valid", line) for line in lines)
    assert any(line.startswith("  neutral.npy: NOT VALID: ") and "millimetres" in line for line in lines)
    assert lines[-1] == "Error: 2 part(s) are not valid: neutral.npy, torso"


def test_json_is_read_with_a_byte_order_mark_and_only_as_an_object(tmp_path):
    (tmp_path / "a.json").write_bytes(b'\xef\xbb\xbf{"a": 1.5}')
    assert read_json(tmp_path / "a.json") == {"a": 1.5}
    with pytest.raises(TalkheadError, match="cannot be read: Is a directory"):
        read_json(tmp_path)


def test_poses_of_any_head_before_the_camera_pass(tmp_path):
    from shared.camera import rotation_from_rotvec

    rng = np.random.default_rng(0)
    turned = rotation_from_rotvec(rng.uniform(-0.7, 0.7, (50, 3))) @ UPRIGHT
    save_array(tmp_path / "p.npy", pose_matrix(turned, rng.uniform([-0.3, -0.3, 0.3], [0.3, 0.3, 3], (50, 3))))
    assert load_poses(tmp_path / "p.npy").shape == (50, 4, 4)


def test_a_zip_is_never_unpacked(tmp_path):
    with zipfile.ZipFile(tmp_path / "bomb.npy", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("rows.npy", bytes(10_000_000))
    with pytest.raises(TalkheadError, match="a zip or .npz archive"):
        load_landmarks(tmp_path / "bomb.npy")
    with pytest.raises(TalkheadError, match="a picture"):
        read_ply_of_a_picture(tmp_path)


def read_ply_of_a_picture(folder):
    write_png(folder / "a.png", np.zeros((4, 4, 3), np.uint8))
    with pytest.raises(TalkheadError, match="is not a PLY file"):
        read_ply(folder / "a.png")
    load_landmarks(folder / "a.png")
