"""Avatar files: what docs/bad_inputs.md says of each under "Avatar files" is what happens, and no byte gets out."""

import dataclasses
import hashlib
import io
import json
import os
import pickle
import re
import stat
import struct
import threading
import time
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.numpy import save

from shared import avatar_file
from shared.avatar import Avatar, is_avatar, load_neutral
from shared.avatar_file import MANIFEST, AvatarFile, open_avatar_file
from shared.camera import pose_matrix
from shared.consent import Consent
from shared.errors import TalkheadError
from shared.face_check import TEMPLATE
from shared.files import read_json
from shared.machine import cache_folder
from talkhead.avatar_file import pack, unpack

PAGE = Path(__file__).resolve().parents[2] / "docs" / "bad_inputs.md"
SECTION = PAGE.read_text("utf-8").split("\n## Avatar files\n")[1].split("\n## ")[0]
TABLE = {what: sentence for what, sentence in re.findall(r"^\| (.+?) \| refused \| (.*?) ?\|$", SECTION, re.M)}
SIZE = 16
STORED, DEFLATED, LZMA = 0, 8, 14
LINK, FOLDER, DEVICE, PLAIN = (mode << 16 for mode in (stat.S_IFLNK, stat.S_IFDIR, stat.S_IFCHR, stat.S_IFREG))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "talkhead" / "avatars"


def npy(array, allow_pickle=False):
    data = io.BytesIO()
    np.save(data, array, allow_pickle=allow_pickle)
    return data.getvalue()


def png(size=SIZE):
    data = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (size, size, 3), np.uint8)).save(data, "png")
    return data.getvalue()


def checkpoint(meta=None, size=2000):
    numbers = np.random.default_rng(1).normal(size=size).astype(np.float32)
    return save({"numbers": numbers}, {"talkhead": json.dumps(meta or {"config": {"steps": 3}})})


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def contents(**changes):
    """The files of an avatar with a stage 2, before it is packed."""
    poses = pose_matrix(np.tile(np.diag([1.0, -1, -1]), (6, 1, 1)), np.tile([0, 0, 0.8], (6, 1)))
    files = {"neutral.npy": npy(TEMPLATE[None].astype(np.float32)), "motion_poses.npy": npy(poses.astype(np.float32)),
             "motion_torso.npy": npy(np.zeros((6, 4), np.float32)), "background.png": png(), "stage2.safetensors": checkpoint()}
    return files | {name.replace("__", "."): data for name, data in changes.items()}


def make_folder(root, files=None, **info):
    files = contents() if files is None else files
    root.mkdir(parents=True)
    for name, data in files.items():
        (root / name).write_bytes(data)
    parts = {"stage2": {"sha256": sha256(files["stage2.safetensors"]), "clip": "ab" * 32, "name": "me"}}
    named = {name: sha256(files[name]) for name in ("neutral.npy", "motion_poses.npy", "motion_torso.npy", "background.png")}
    values = {"name": "me", "width": SIZE, "height": SIZE, "intrinsics": [30, 30, 8, 8], "fps": 25, "parts": parts,
              "files": named, "format": 1} | info
    (root / "avatar.json").write_text(json.dumps(values))
    return Avatar(root)


# A zip archive, field by field, so that any of them can be wrong


def member(name, data, *, method=STORED, **fields):
    """A member: its name, its bytes in the file, and the fields of its two headers, those named local_… of the first alone."""
    if method == DEFLATED:
        press = zlib.compressobj(9, zlib.DEFLATED, -15)
        packed = press.compress(data) + press.flush()
    else:
        packed = data
    known = {"name": name.encode() if isinstance(name, str) else name, "packed": packed, "method": method, "flags": 0,
             "crc": zlib.crc32(data), "size": len(data), "packed_size": len(packed), "mode": PLAIN, "extra": b"", "comment": b"",
             "gap": b"", "at": None}
    return known | fields


def archive(members, *, between=b"", before=b"", behind=b"", **end):
    """Bytes of a zip archive of `members`; `end` are fields of its end that are to be wrong."""
    out, directory = bytearray(before), bytearray()
    for made in members:
        out += made["gap"]
        at = len(out) if made["at"] is None else made["at"]
        local = made | {key[6:]: value for key, value in made.items() if key.startswith("local_")}
        out += struct.pack("<4s5H3L2H", b"PK\x03\x04", 20, local["flags"], local["method"], 0, 33, local["crc"],
                           local["packed_size"], local["size"], len(local["name"]), len(local["extra"]))
        out += local["name"] + local["extra"] + made["packed"]
        directory += struct.pack("<4s6H3L5H2L", b"PK\x01\x02", 0x314, 20, made["flags"], made["method"], 0, 33, made["crc"],
                                 made["packed_size"], made["size"], len(made["name"]), len(made["extra"]), len(made["comment"]),
                                 0, 0, made["mode"], at)
        directory += made["name"] + made["extra"] + made["comment"]
    out += between
    known = {"disk": 0, "first": 0, "here": len(members), "count": len(members), "length": len(directory), "start": len(out),
             "comment": 0} | end
    out += directory + struct.pack("<4s4H2LH", b"PK\x05\x06", *known.values())
    return bytes(out + behind)


def whole(manifest=None, raw_manifest=None, method=STORED, avatar_json=None, **changes):
    """Members of a good avatar file, but for `changes` of its files, of keys of its manifest or of the manifest's bytes."""
    files = contents(**changes)
    named = {name: sha256(files[name]) for name in ("neutral.npy", "motion_poses.npy", "motion_torso.npy", "background.png")}
    info = {"name": "me", "width": SIZE, "height": SIZE, "intrinsics": [30, 30, 8, 8], "fps": 25, "files": named, "format": 1,
            "parts": {"stage2": {"sha256": sha256(files["stage2.safetensors"]), "clip": "ab" * 32, "name": "me"}}}
    files = {"avatar.json": json.dumps(info).encode() if avatar_json is None else avatar_json, **files}
    known = {"talkhead": "0.1.0", "name": "me", "width": SIZE, "height": SIZE, "format": 1,
             "files": {name: {"size": len(data), "sha256": sha256(data)} for name, data in files.items()}} | (manifest or {})
    data = json.dumps(known).encode() if raw_manifest is None else raw_manifest
    return [member(MANIFEST, data), *(member(name, data, method=method) for name, data in files.items())]


def changed(index=1, **fields):
    members = whole()
    members[index] |= fields
    return archive(members)


def more(name, data=b"x", **fields):
    return archive([*whole(), member(name, data, **fields)])


def cut(share):
    data = archive(whole())
    return data[: int(len(data) * share) if share < 1 else len(data) - 1]


def zip_of(files):
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as made:
        for name, content in files.items():
            made.writestr(name, content)
    return data.getvalue()


def overlapping():
    """Two members of the directory that are one place in the file."""
    members = whole()
    at = 0
    for made in members[:3]:
        at += 30 + len(made["name"]) + len(made["packed"])
    return archive([*members, members[3] | {"name": b"torso.safetensors", "at": at, "packed": b""}])


def telling(more):
    """A stage 2 whose headers and manifest tell of `more` bytes than it unpacks to."""
    data = contents()["stage2.safetensors"]
    files = {made["name"].decode(): {"size": made["size"], "sha256": sha256(made["packed"])} for made in whole()[1:]}
    size = len(data) + more
    files["stage2.safetensors"] = {"size": size, "sha256": sha256(data[:size])}
    made = member("stage2.safetensors", data, method=DEFLATED, size=size)
    return archive([*whole(manifest={"files": files})[:-1], made | {"crc": zlib.crc32(data[:size])}])


def nested(depth):
    return b'{"a":' * depth + b"1" + b"}" * depth


def torch_file():
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as made:
        made.writestr("archive/data.pkl", pickle.dumps([os.getcwd]))
    return data.getvalue()


def picture_of(width):
    good = png()
    header = b"IHDR" + struct.pack(">II", width, width) + good[24:29]
    return good[:12] + header + struct.pack(">I", zlib.crc32(header)) + good[33:]


HOSTILE = {  # row of the page -> function that makes the file's bytes
    "a member ../evil.py": lambda: more("../evil.py"),
    "a member /etc/evil": lambda: more("/etc/evil"),
    "a member ..\\evil.py": lambda: more("..\\evil.py"),
    "a member C:evil.py": lambda: more("C:evil.py"),
    "a member in a folder": lambda: more("sub/torso.safetensors"),
    "a member of another kind": lambda: more("run.py"),
    "a name in other letters": lambda: more("TORSO.safetensors"),
    "a name with a NUL": lambda: more(b"torso.safetensors\0.py"),
    "a name of look-alike letters": lambda: more("torso․safetensors".encode(), flags=0x800),
    "a member twice": lambda: archive([*whole(), whole()[1]]),
    "a symbolic link": lambda: more("torso.safetensors", b"/etc/passwd", mode=LINK),
    "a folder as member": lambda: more("torso.safetensors/", b"", mode=FOLDER),
    "a device as member": lambda: more("torso.safetensors", mode=DEVICE),
    "an encrypted member": lambda: changed(flags=1),
    "a flag for a data descriptor": lambda: changed(flags=8),
    "a member compressed with LZMA": lambda: changed(method=LZMA),
    "a bomb: 64 MB of zeros": lambda: archive([*whole(), member("stage1.safetensors", bytes(64 << 20), method=DEFLATED)]),
    "a neutral.npy of 3 MB": lambda: archive(whole(neutral__npy=npy(np.tile(TEMPLATE, (2000, 1, 1))))),
    "a bomb: a member that tells of 4 GB": lambda: more("torso.safetensors", b"x" * 100, size=0xFFFFFFF0, packed_size=100),
    "a bomb: members of 256 MB, three of them": lambda: archive([*whole(), *(
        member(name, b"", method=DEFLATED, packed=bytes(3 << 20), packed_size=3 << 20, size=250 << 20)
        for name in ("stage1.safetensors", "torso.safetensors", "torso_layers.mp4"))]),
    "a member that swells beyond the size it tells": lambda: telling(-8000),
    "a member that is smaller than the size it tells": lambda: telling(9),
    "members that overlap": overlapping,
    "a gap between members": lambda: changed(gap=b"\x7fELF"),
    "bytes before the directory": lambda: archive(whole(), between=b"\x7fELF"),
    "bytes before the first member": lambda: archive(whole(), before=b"#!/bin/sh\n"),
    "bytes behind the end": lambda: archive(whole(), behind=b"<?php ?>"),
    "a comment": lambda: archive(whole(), comment=5, behind=b"hello"),
    "a directory that is elsewhere": lambda: archive(whole(), start=0),
    "zip64": lambda: archive(whole(), start=0xFFFFFFFF, count=0xFFFF, here=0xFFFF),
    "a zip64 extra field": lambda: changed(extra=struct.pack("<HHQQ", 1, 16, 1 << 40, 1 << 40)),
    "a volume of several": lambda: archive(whole(), disk=1, first=1),
    "a directory that tells of 65,000 members": lambda: archive(whole(), count=65000, here=65000),
    "a name that differs where the member stands": lambda: changed(local_name=b"stage1.json"),
    "a size that differs where the member stands": lambda: changed(local_size=3),
    "a wrong checksum": lambda: changed(crc=1),
    "a wrong SHA-256": lambda: archive(whole(manifest={"files": {
        made["name"].decode(): {"size": made["size"], "sha256": "0" * 64} for made in whole()[1:]}})),
    "a size that is not the manifest's": lambda: archive(whole(manifest={"files": {
        made["name"].decode(): {"size": 1, "sha256": "0" * 64} for made in whole()[1:]}})),
    "a member that lacks": lambda: archive(whole()[:-1]),
    "a member that the manifest does not name": lambda: more("torso.safetensors"),
    "a file cut in the middle": lambda: cut(0.5),
    "a file cut by a byte": lambda: cut(1),
    "an empty avatar file": lambda: b"",
    "text": lambda: b"my avatar\n",
    "a folder zipped by hand": lambda: zip_of({"me.avatar/avatar.json": b"{}"}),
    "another zip archive": lambda: zip_of({"a.txt": b"a"}),
    "a newer version": lambda: archive([
        *whole(manifest={"format": 2, "talkhead": "3.1", "voice": {}}), member("voice.safetensors", b"x")]),
    "a version that is text": lambda: archive(whole(manifest={"format": "1"})),
    "a manifest with an unknown key": lambda: archive(whole(manifest={"widht": 3})),
    "a manifest that is no JSON": lambda: archive(whole(raw_manifest=b"not JSON")),
    "a manifest that is a list": lambda: archive(whole(raw_manifest=b"[1]")),
    "a manifest with NaN": lambda: archive(whole(manifest={"figures": {"psnr": float("nan")}})),
    "a manifest with a key twice": lambda: archive(whole(raw_manifest=b'{"format": 1, "format": 1}')),
    "a manifest with 100,000 brackets": lambda: archive(whole(raw_manifest=nested(100000))),
    "a manifest with 40 brackets": lambda: archive(whole(manifest={"figures": json.loads(nested(40))})),
    "a manifest of 2 MB": lambda: archive(whole(raw_manifest=b" " * (2 << 20))),
    "a manifest with a consent that avatar.json lacks": lambda: archive(whole(manifest={
        "consent": {"who": "Someone Else", "date": "2026-11-28"}})),
    "a manifest with a consent of an impossible day": lambda: archive(whole(manifest={
        "consent": {"who": "Me", "date": "2026-02-30"}})),
    "an avatar.json with 1e999": lambda: archive(whole(avatar_json=b'{"width": 1e999}')),
    "an avatar.json with 40 brackets": lambda: archive(whole(avatar_json=nested(40))),
    "an avatar.json that names another head": lambda: archive(whole(avatar_json=(made := whole())[1]["packed"].replace(
        sha256(made[-1]["packed"]).encode(), b"0" * 64))),
    "a pickled neutral.npy": lambda: archive(whole(neutral__npy=npy(np.array([os.getcwd], object), True))),
    "a neutral.npy that is a pickle": lambda: archive(whole(neutral__npy=pickle.dumps([1]))),
    "a stage 2 that torch.save wrote": lambda: archive(whole(stage2__safetensors=torch_file())),
    "a stage 2 that is a pickle": lambda: archive(whole(stage2__safetensors=pickle.dumps([1]))),
    "a stage 2 whose header tells of 2^60 bytes": lambda: archive(whole(stage2__safetensors=struct.pack("<Q", 2**60) + b"{}")),
    "a stage 2 of another program": lambda: archive(whole(stage2__safetensors=save({"a": np.zeros(3)}))),
    "motion tracks of two lengths": lambda: archive(whole(motion_torso__npy=npy(np.zeros((5, 4), np.float32)))),
    "a torso warp of another length": lambda: archive(whole(motion_torso_warp__npy=npy(np.zeros((5, 3, 3, 2), np.float32)))),
    "a torso warp that is not square": lambda: archive(whole(motion_torso_warp__npy=npy(np.zeros((6, 3, 4, 2), np.float32)))),
    "a gaze of another length": lambda: archive(whole(motion_gaze__npy=npy(np.zeros((5, 2), np.float32)))),
    "a gaze in degrees": lambda: archive(whole(motion_gaze__npy=npy(np.outer(np.arange(6) == 2, [0, 12.5]).astype(np.float32)))),
    "a background of another size": lambda: archive(whole(background__png=png(8))),
    "a background that tells of 60,000x60,000": lambda: archive(whole(background__png=picture_of(60000))),
}


def said(path):
    with pytest.raises(TalkheadError) as refused:
        Avatar(path).require("stage2")
    return str(refused.value)


def everything(folder):
    return sorted(path for path in folder.rglob("*") if path.name != "me.avatar")


def test_the_page_lists_what_is_tried():
    assert TABLE.keys() == HOSTILE.keys() and len(HOSTILE) >= 30


@pytest.mark.parametrize("row", HOSTILE)
def test_hostile_files_are_refused_with_a_sentence(row, tmp_path, cache):
    path = tmp_path / "me.avatar"
    path.write_bytes(HOSTILE[row]())
    text = said(path)
    assert "\n" not in text and len(text) < 400, text
    wanted = re.escape(TABLE[row].replace("\\|", "|")).replace("…", ".*").replace("FILE", re.escape(str(path)))
    assert re.fullmatch(re.sub(r"(?<![A-Za-z\d])N(?![A-Za-z])", r"\\d+", wanted), text), text
    left = [file for file in everything(tmp_path) if file.is_file()]
    assert left == [], left  # neither outside nor in the cache


def test_a_good_file_made_by_hand_is_taken(tmp_path):
    """So that what refuses the others is what is wrong with them."""
    for method in (STORED, DEFLATED):
        (tmp_path / f"{method}.avatar").write_bytes(archive(whole(method=method)))
        Avatar(tmp_path / f"{method}.avatar").require("stage2")


def test_a_huge_file_is_refused_unread(tmp_path):
    with open(tmp_path / "me.avatar", "wb") as file:
        file.truncate(1 << 40)  # sparse
    assert said(tmp_path / "me.avatar") == f"{tmp_path / 'me.avatar'} has 1048576 MB; an avatar file has at most 512"


def test_packed_and_unpacked_is_the_same_avatar(tmp_path):
    consent = Consent("Me", "2026-11-28", uses=("demo",))
    folder = make_folder(tmp_path / "me.avatar", consent=consent.to_dict())
    path = pack(folder, tmp_path / "packed" / "me.avatar", figures={"stage2": {"psnr": np.float32(31.5)}})
    packed = Avatar(path)
    packed.require("stage2")
    assert packed.info == dataclasses.replace(folder.info, figures={"stage2": {"psnr": 31.5}}) and packed.info.consent == consent
    for one, other in zip(folder.contents(), packed.contents()):
        assert one.name == other.name and one.exists() == other.exists()
        assert not one.exists() or one.name == "avatar.json" or one.read_bytes() == other.read_bytes()
    back = Avatar(unpack(path, tmp_path / "back"))
    assert back.info == packed.info
    assert pack(back, tmp_path / "again.avatar").read_bytes() == path.read_bytes() == pack(packed, tmp_path / "b").read_bytes()
    with pytest.raises(TalkheadError, match="exists already; add --overwrite"):
        unpack(path, tmp_path / "back")
    (tmp_path / "back" / "mine.txt").write_text("stays")
    unpack(path, tmp_path / "back", overwrite=True)
    assert (tmp_path / "back" / "mine.txt").exists() and Avatar(tmp_path / "back").info == packed.info


def test_the_same_avatar_gives_the_same_bytes(tmp_path):
    one, other = make_folder(tmp_path / "one"), make_folder(tmp_path / "elsewhere" / "other")
    for k, file in enumerate(reversed(other.contents())):
        if file.exists():
            os.utime(file, (k, k))
    assert pack(one, tmp_path / "1").read_bytes() == pack(other, tmp_path / "2").read_bytes()
    with zipfile.ZipFile(tmp_path / "1") as made:
        assert made.testzip() is None
        assert [info.filename for info in made.infolist()] == [name for name in avatar_file.MEMBERS if name in made.namelist()]
        kinds = {info.filename: info.compress_type for info in made.infolist()}
        assert kinds["motion_torso.npy"] == kinds["stage2.safetensors"] == DEFLATED and kinds["background.png"] == STORED


def test_the_manifest_tells_what_is_inside(tmp_path):
    folder = make_folder(tmp_path / "me")
    with open_avatar_file(pack(folder, tmp_path / "me.avatar", figures={"stage2": {"psnr": float("nan")}})) as opened:
        manifest = opened.manifest
    assert manifest.files.keys() == {file.name for file in folder.contents() if file.exists()}
    assert manifest.files["stage2.safetensors"] == avatar_file.Member(*(
        (len(data), sha256(data)) for data in [folder.stage2.read_bytes()]).__next__())
    assert manifest.clip == avatar_file.ClipName("me", "ab" * 32) and manifest.settings == {"stage2": {"steps": 3}}
    assert manifest.figures == {"stage2": {"psnr": None}} and manifest.format == 1 and manifest.consent is None


def test_no_path_of_the_machine_and_no_notes_get_in(tmp_path):
    picture = io.BytesIO()
    notes = PngInfo()
    notes.add_text("Comment", "/home/someone/secret.xcf")
    Image.open(io.BytesIO(png())).save(picture, "png", pnginfo=notes)
    meta = {"encoder": {"kind": "transformers", "name": "/home/someone/wavlm"}, "speakers": ["me"],
            "settings": {"encoder": "C:\\Users\\someone\\wavlm"}}
    folder = make_folder(tmp_path / "me", contents(stage1__safetensors=checkpoint(meta), background__png=picture.getvalue()))
    (folder.folder / "eval").mkdir()
    (folder.folder / "eval" / "picture.png").write_bytes(png())
    (folder.folder / "stage2.before-import-1.safetensors").write_bytes(b"old")
    figures = {"report": "/home/someone/eval.html", "page": Path("/home/someone")}
    packed = Avatar(pack(folder, tmp_path / "me.avatar", figures=figures))
    packed.check()
    for file in (path for path in packed.contents() if path.exists()):
        assert b"someone" not in file.read_bytes().replace(b'"page": "someone"', b""), file
    header = avatar_file.checkpoint_header(packed.stage1.read_bytes(), "stage 1")
    assert header.meta["encoder"]["name"] == header.meta["settings"]["encoder"] == "wavlm"
    assert packed.info.figures == {"report": "eval.html", "page": "someone"}
    np.testing.assert_array_equal(packed.load_background(), folder.load_background())
    before = avatar_file.checkpoint_header(folder.stage1.read_bytes(), "stage 1")
    assert packed.stage1.read_bytes()[header.start :] == folder.stage1.read_bytes()[before.start :]
    assert {file.name for file in packed.folder.iterdir()} == {file.name for file in folder.contents() if file.exists()}


def test_what_is_not_whole_is_not_packed(tmp_path):
    folder = make_folder(tmp_path / "me.avatar")
    with pytest.raises(TalkheadError, match=r"is the folder that is packed; name a file, such as .*me\.packed\.avatar$"):
        pack(folder, folder.root)
    with pytest.raises(TalkheadError, match="there is no avatar here"):
        pack(tmp_path / "none", tmp_path / "a")
    folder.neutral.write_bytes(npy((TEMPLATE[None] * 1.01).astype(np.float32)))
    with pytest.warns(match="as training wrote it"), pytest.raises(TalkheadError, match="--accept` first"):
        pack(folder, tmp_path / "a")
    folder.accept_edits()
    pack(folder, tmp_path / "a")
    with pytest.raises(TalkheadError, match="exists already; add --overwrite"):
        pack(folder, tmp_path / "a")
    folder.stage2.write_bytes(b"damaged")
    folder.forget()
    with pytest.raises(TalkheadError, match="not the file that training wrote"):
        pack(folder, tmp_path / "a", overwrite=True)
    folder.background.unlink()
    assert Avatar(tmp_path / "a").info.name == "me"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "cache", "me.avatar"]


def test_an_avatar_file_is_not_written_into(tmp_path):
    path = pack(make_folder(tmp_path / "me"), tmp_path / "me.avatar")
    avatar = Avatar(path)
    for write in (avatar.accept_edits, lambda: avatar.save_info(avatar.info), avatar.require_folder):
        with pytest.raises(TalkheadError, match=r"me\.avatar is one file, which is only read; make a folder of it with "
                                                r"`talkhead avatar unpack .*me\.avatar -o FOLDER`"):
            write()
    with pytest.raises(TalkheadError, match=r"me\.avatar: the avatar has no torso yet"):
        avatar.require("torso")
    assert avatar.files() == [path] and is_avatar(path) and is_avatar(tmp_path / "me")
    np.testing.assert_array_equal(load_neutral(path), load_neutral(tmp_path / "me" / "neutral.npy"))


# What is unpacked and kept


@pytest.fixture
def reads(monkeypatch):
    """Paths of the avatar files that were unpacked or compared."""
    found, real = [], AvatarFile.extract
    monkeypatch.setattr(AvatarFile, "extract", lambda self, folder: (found.append(self.path), real(self, folder))[1])
    return found


def test_a_file_that_was_opened_before_is_not_read_again(tmp_path, reads, cache):
    path = pack(make_folder(tmp_path / "me", contents(stage1__safetensors=checkpoint(size=6_000_000))), tmp_path / "me.avatar")
    reads.clear()
    first = Avatar(path).folder
    assert first.parent == cache and stat.S_IMODE(cache.stat().st_mode) == 0o700
    begin = time.perf_counter()
    again = Avatar(path)
    again.require("stage1", "stage2")
    assert time.perf_counter() - begin < 0.03  # 24 MB; some 1.5 ms
    assert again.folder == first and reads == [path]


def test_what_is_kept_is_made_anew_where_it_or_the_file_changed(tmp_path, reads):
    one, other = make_folder(tmp_path / "one"), make_folder(tmp_path / "other", name="other")
    path = pack(one, tmp_path / "me.avatar")
    kept = Avatar(path).folder
    (kept / "neutral.npy").write_bytes(b"changed")
    Avatar(path).load_neutral()
    (kept / "more").write_text("more")
    assert not (Avatar(path).folder / "more").exists()
    pack(other, path, overwrite=True)
    assert Avatar(path).info.name == "other" and not kept.exists()
    data = bytearray(path.read_bytes())
    data[-300] ^= 1
    path.write_bytes(data)
    assert said(path)


def test_an_avatar_in_use_is_never_two(tmp_path):
    path = pack(make_folder(tmp_path / "one"), tmp_path / "me.avatar")
    avatar = Avatar(path)
    avatar.check()
    pack(make_folder(tmp_path / "other", name="other"), path, overwrite=True)
    assert avatar.info.name == "me" and avatar.load_neutral() is not None
    Avatar(path).check()
    with pytest.raises(TalkheadError, match=r"me\.avatar was replaced while it was being used; start again"):
        avatar.load_neutral()


def test_what_is_kept_goes_with_its_file_and_stays_below_the_limit(tmp_path, cache, monkeypatch):
    paths = [pack(make_folder(tmp_path / str(k), name=str(k)), tmp_path / f"{k}.avatar") for k in range(4)]
    folders = [Avatar(path).folder for path in paths]
    for k, path in enumerate(paths):
        record = next(file for file in cache.glob("*.json") if read_json(file)["file"] == str(path))
        os.utime(record, (k, k))
    paths[3].unlink()
    monkeypatch.setattr(avatar_file, "LARGEST_CACHE", 2.5 * sum(file.stat().st_size for file in folders[0].iterdir()))
    last = Avatar(pack(make_folder(tmp_path / "5"), tmp_path / "5.avatar")).folder
    assert [folder.exists() for folder in folders] == [False, False, True, False] and last.exists()


def test_copies_and_threads_share_what_is_unpacked(tmp_path, cache):
    path = pack(make_folder(tmp_path / "me"), tmp_path / "me.avatar")
    copy = tmp_path / "copy" / "me.avatar"
    copy.parent.mkdir()
    copy.write_bytes(path.read_bytes())
    found = []
    threads = [threading.Thread(target=lambda path=path: found.append(Avatar(path).folder)) for path in [path, copy] * 4]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8 and len(set(found)) == 1
    assert len([folder for folder in cache.iterdir() if folder.is_dir()]) == 1


def test_a_cache_that_others_can_write_into_is_not_used(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    (tmp_path / "cache" / "talkhead").mkdir(parents=True)
    (tmp_path / "cache" / "talkhead").chmod(0o777)
    assert cache_folder("avatars") not in (tmp_path / "cache" / "talkhead" / "avatars", None)
    (tmp_path / "cache" / "talkhead").chmod(0o700)
    assert cache_folder("avatars") == tmp_path / "cache" / "talkhead" / "avatars"
