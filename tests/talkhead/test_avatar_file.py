"""An avatar file where a folder is read: the same results; and the commands of `talkhead avatar`."""

import json
import shutil

import numpy as np
import pytest
from click.testing import CliRunner

from cli import cli
from shared.avatar import Avatar
from shared.files import sha256
from shared.media.video_io import read_video
from stage1_audio2lmk.checkpoint import SHIPPED_BASE
from talkhead.avatar_file import BASE_LICENCES, OTHER_BASE, manifest_of, pack
from tests.commands import talkhead


@pytest.fixture(scope="module")
def packed(chain, tmp_path_factory):
    """A folder with `me`, the clip, `me.avatar`, the avatar as one file, and `folder`, the same as a folder."""
    root = tmp_path_factory.mktemp("packed")
    shutil.copytree(chain / "me", root / "me")
    shutil.copytree(chain / "me.avatar", root / "folder")
    for name in ("unheard.wav", "spoken.npy"):
        shutil.copyfile(chain / name, root / name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(root / "cache"))
        talkhead("avatar", "pack", "folder", "-o", "me.avatar", cwd=root)
        yield root


def refused(*arguments, cwd):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(cwd)
        result = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    assert result.exit_code == 2, result.output
    return result.stderr


def test_a_file_speaks_as_the_folder_does(packed):
    for avatar, out in (("folder", "1"), ("me.avatar", "2")):
        talkhead("synth", avatar, "unheard.wav", "-o", f"{out}.mp4", "--save-landmarks", f"{out}.npy", cwd=packed)
    assert (packed / "1.npy").read_bytes() == (packed / "2.npy").read_bytes()
    for one, other in zip(read_video(packed / "1.mp4"), read_video(packed / "2.mp4"), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("command, output", [
    (["stage1", "predict", "unheard.wav", "--avatar", "AVATAR", "-o", "OUT"], "p.npy"),
    (["stage1", "predict", "unheard.wav", "--avatar", "folder", "--neutral", "AVATAR", "-o", "OUT"], "n.npy"),
    (["edit", "spoken.npy", "--neutral", "AVATAR", "--mouth-gain", "1.5", "-o", "OUT"], "e.npy"),
    (["stage2", "export", "AVATAR", "-o", "OUT"], "h.ply"),
])
def test_files_made_of_a_file_are_those_made_of_the_folder(packed, command, output):
    for avatar, out in (("folder", f"a{output}"), ("me.avatar", f"b{output}")):
        talkhead(*({"AVATAR": avatar, "OUT": out}.get(word, word) for word in command), cwd=packed)
    assert (packed / f"a{output}").read_bytes() == (packed / f"b{output}").read_bytes()


def test_rendered_heads_and_their_torso(packed):
    for avatar, out in (("folder", "1"), ("me.avatar", "2")):
        np.save(packed / "few.npy", np.load(packed / "spoken.npy")[:3])
        talkhead("stage2", "render", "few.npy", "--avatar", avatar, "-o", f"heads{out}", cwd=packed)
        talkhead("torso", "composite", f"heads{out}", "--avatar", avatar, "-o", f"heads{out}.mp4", cwd=packed)
    for one, other in zip(read_video(packed / "heads1.mp4"), read_video(packed / "heads2.mp4"), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.slow
def test_evaluations_take_a_file(packed):
    for command in (["stage1", "eval", "me"], ["stage2", "eval", "me", "--every", "10", "--no-align"]):
        talkhead(*command, "--avatar", "me.avatar", "-o", "measured", cwd=packed)
        talkhead(*command, "-o", "measured", cwd=packed)  # the avatar beside the clip, here a file
    talkhead("eval", "me.avatar", "me", "-o", "measured", cwd=packed)
    pytest.importorskip("onnxscript")
    talkhead("stage1", "export", "me.avatar", "--onnx", "me.onnx", cwd=packed)


def test_a_file_is_said_to_be_one_by_what_writes_into_avatars(packed):
    before = sha256(packed / "me.avatar")
    for command in (["stage1", "finetune", "me"], ["stage2", "train", "me"], ["torso", "train", "me", "--overwrite"],
                    ["inspect", "me.avatar", "--accept"]):
        text = refused(*command, cwd=packed)
        assert text == ("Error: me.avatar is one file, which is only read; make a folder of it with `talkhead avatar unpack "
                        "me.avatar -o FOLDER`, and name that\n")
    talkhead("stage2", "export", "me.avatar", "-o", "head.ply", cwd=packed)
    assert "is one file" in refused("stage2", "import", "head.ply", "--avatar", "me.avatar", "--overwrite", cwd=packed)
    onto = ["stage2", "import", "head.ply", "--avatar", "folder", "-o", "me.avatar", "--overwrite"]
    assert "is no avatar folder" in refused(*onto, cwd=packed)
    talkhead("stage2", "import", "head.ply", "--avatar", "me.avatar", "-o", "edited", cwd=packed)
    Avatar(packed / "edited").require("stage1", "stage2", "torso")
    assert "is the same file as me.avatar, which is read" in refused(
        "stage2", "render", "spoken.npy", "--avatar", "me.avatar", "-o", "me.avatar", "--overwrite", cwd=packed)
    assert sha256(packed / "me.avatar") == before


def test_show_and_inspect_say_what_is_inside(packed):
    lines = talkhead("avatar", "show", "me.avatar", cwd=packed)
    info = Avatar(packed / "folder").info
    assert lines.startswith(f"avatar {info.name!r}: {info.width}x{info.height}, ")
    assert "consent: no note" in lines and "stage2.safetensors: " in lines
    assert "Whisper" in lines and "CC BY 4.0" in lines and "https://www.openslr.org/12" in lines
    manifest = json.loads(talkhead("avatar", "show", "me.avatar", "--json", cwd=packed))
    assert manifest == json.loads(talkhead("avatar", "show", "folder", "--json", cwd=packed))
    assert manifest["settings"]["torso"]["levels"] and manifest["clip"]["name"] == info.parts["torso"]["name"]
    lines = talkhead("inspect", "me.avatar", cwd=packed)
    assert lines == talkhead("inspect", "folder", cwd=packed) and "torso: " in lines and ", valid" in lines


def test_unpack_and_pack_by_command(packed):
    assert talkhead("avatar", "unpack", "me.avatar", "-o", "back", cwd=packed) == "back: unpacked\n"
    line = talkhead("avatar", "pack", "back", "-o", "again.avatar", cwd=packed)
    assert line == f"again.avatar: {(packed / 'me.avatar').stat().st_size / 1e6:.1f} MB\n"
    assert (packed / "again.avatar").read_bytes() == (packed / "me.avatar").read_bytes()
    (packed / "back" / "torso.safetensors").unlink()
    assert talkhead("avatar", "pack", "back", "-o", "half.avatar", cwd=packed).endswith(", without torso\n")
    assert "half.avatar: the avatar has no torso yet" in refused("synth", "half.avatar", "unheard.wav", "-o", "x.mp4", cwd=packed)
    assert "add --overwrite" in refused("avatar", "pack", "back", "-o", "again.avatar", cwd=packed)
    assert "is a folder already" in refused("avatar", "unpack", "back", "-o", "more", cwd=packed)


def test_licences_are_those_of_the_sources(packed, tmp_path):
    sources = (SHIPPED_BASE.parent / "SOURCES.md").read_text("utf-8")
    assert all(licence.source in sources and licence.licence.split(",")[0] in sources for licence in BASE_LICENCES[1:])
    assert manifest_of(Avatar(packed / "me.avatar")).licences == BASE_LICENCES
    shutil.copytree(packed / "folder", tmp_path / "other")
    avatar = Avatar(tmp_path / "other")
    data = bytearray(avatar.stage1.read_bytes())
    at = int.from_bytes(data[:8], "little") + 8
    header = json.loads(data[8:at])
    data[at + header["encoder.stem.weight"]["data_offsets"][0]] ^= 1
    avatar.stage1.write_bytes(data)
    values = json.loads(avatar.json.read_text())
    values["parts"]["stage1"]["sha256"] = sha256(avatar.stage1)
    avatar.json.write_text(json.dumps(values))
    assert manifest_of(Avatar(pack(avatar, tmp_path / "other.avatar"))).licences == [OTHER_BASE]
