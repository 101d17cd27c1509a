import json

import pytest
from click.testing import CliRunner

from cli import cli
from shared.media.video_io import read_video
from shared.watermark.payload import avatar_id
from talkhead.provenance import shown_id
from talkhead.verification import CONTRADICTS, MARKED, NOTHING, InvisibleMark, Metadata, Verification, verify
from tests.talkhead.marked_video import INFO, marked_video, unmarked_video, write

ID = shown_id(avatar_id(INFO))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with marked.mp4 and the config folder of who signed it."""
    pytest.importorskip("c2pa")
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CONFIG_HOME", str(folder / "signer"))
        marked_video(folder / "marked.mp4")
    return folder


@pytest.fixture(autouse=True)
def stranger(tmp_path, monkeypatch):
    """The config folder of somebody else."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "stranger"))


def test_intact_but_nobody_vouches(made, tmp_path):
    found = verify(made / "marked.mp4")
    assert found.exit_code() == MARKED and found.avatars() == {ID} and found.signature.intact
    text = " ".join(found.sentences())
    assert "The signature is intact" in text and "Its issuer is unknown: nobody vouches" in text
    assert "Consent note: Jane Doe, 2026-11-01, for: tests" in text and text.endswith("The video is marked.")
    assert not (tmp_path / "stranger").exists()  # looking makes no key


def test_intact_for_the_signer_and_for_who_trusts_them(made, monkeypatch):
    authority = made / "signer" / "talkhead" / "authority.pem"
    assert verify(made / "marked.mp4", trust=authority).signature.issuer == "trusted"
    monkeypatch.setenv("XDG_CONFIG_HOME", str(made / "signer"))
    assert "signed with the key of this user" in " ".join(verify(made / "marked.mp4").sentences())


def test_one_changed_bit_breaks_the_signature(made, tmp_path):
    data = bytearray((made / "marked.mp4").read_bytes())
    data[-4000] ^= 1
    (tmp_path / "changed.mp4").write_bytes(data)
    found = verify(tmp_path / "changed.mp4")
    assert found.exit_code() == CONTRADICTS
    assert "The signature is broken: the file was changed after signing (assertion.bmffHash.mismatch)." in found.sentences()


def test_only_the_invisible_mark_is_left_after_a_new_encoding(made, tmp_path):
    import numpy as np

    write(tmp_path / "again.mp4", np.stack(list(read_video(made / "marked.mp4"))), {})
    found = verify(tmp_path / "again.mp4")
    assert found.exit_code() == MARKED and found.metadata is None and found.signature is None
    assert found.conclusion().startswith("The signature and the metadata are gone, if there were any; the picture still carries "
                                         f"the mark of avatar {ID}.")


def test_only_the_metadata_of_others(tmp_path):
    import numpy as np

    aigc = json.dumps({"Label": "1", "ContentProducer": "someone", "ProduceID": "0000001"})
    write(tmp_path / "v.mkv", np.zeros((30, 64, 64, 3), np.uint8), {"AIGC": aigc})
    found = verify(tmp_path / "v.mkv")
    assert found.metadata == Metadata("someone", None) and found.exit_code() == MARKED
    assert "1.2 s are too short to look for the invisible mark, which takes 2 s." in found.sentences()
    assert found.conclusion() == "Only the metadata is left, which anybody can write or remove."


def test_nothing_proves_nothing(tmp_path):
    found = verify(unmarked_video(tmp_path / "v.mp4"))
    assert found.exit_code() == NOTHING and found.conclusion().startswith("No mark was found. This proves nothing")


def test_marks_of_different_avatars_contradict():
    mixed = Verification(Metadata("talkhead 0.1.0", "0000001"), None, InvisibleMark("0000002", 1e-9, 1.0))
    assert mixed.exit_code() == CONTRADICTS
    assert "The marks name different avatars: 0000001, 0000002." in mixed.sentences()
    other = Verification(None, None, InvisibleMark("0000002", 1e-9, 1.0), wanted="0000003")
    assert "The marks are not those of the avatar that you named, 0000003." in other.sentences()


def test_the_command_prints_sentences_or_json_and_ends_with_the_code(made, tmp_path):
    run = CliRunner().invoke
    said = run(cli, ["verify", str(made / "marked.mp4")])
    assert said.exit_code == 0 and said.output.splitlines()[-1] == "The video is marked."
    found = json.loads(run(cli, ["verify", str(made / "marked.mp4"), "--json"]).output)
    assert found["invisible"]["avatar"] == ID and found["signature"]["consent"]["who"] == "Jane Doe" and not found["exit_code"]


@pytest.mark.parametrize(("arguments", "message"), [
    (["nothing.mp4"], "nothing.mp4 does not exist"),
    (["text.mp4"], "text.mp4 is not a video that FFmpeg can read"),
    (["v.mp4", "--trust", "text.mp4"], "text.mp4 is not a PEM certificate; --trust takes the signer's authority.pem"),
    (["v.mp4", "--seconds", "nan"], "nan"),
])
def test_bad_inputs_end_with_2(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.mp4").write_text("not a video")
    write(tmp_path / "v.mp4", __import__("numpy").zeros((3, 64, 64, 3), "uint8"), {})
    done = CliRunner().invoke(cli, ["verify", *arguments])
    assert done.exit_code == 2 and message in done.output
