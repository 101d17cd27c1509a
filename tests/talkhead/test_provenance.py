import json
import stat
import sys
import warnings

import numpy as np
import pytest

from shared.errors import TalkheadWarning
from shared.label import label
from shared.watermark.mark import Watermark
from shared.watermark.payload import Payload, avatar_id
from talkhead.provenance import AIGC, Marks, container_metadata, load_signer, sign, signer_file
from tests.shared.watermark.scene import scene
from tests.talkhead.marked_video import INFO, unmarked_video


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """An empty config folder."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return tmp_path / "config" / "talkhead"


def test_marks_are_the_watermark_then_the_label_or_nothing_at_all():
    frames = scene(3, 64, 64)
    watermark = Watermark(Payload(avatar_id(INFO)), 64, 64)
    assert (Marks(INFO).apply(frames, 40) == watermark.mark(frames, 40)).all()
    both = Marks(INFO, label="throughout").apply(frames, 400)
    assert (both == label(watermark.mark(frames, 400), 400, throughout=True)).all()
    none = Marks(INFO, mark=False)
    assert none.apply(frames, 0) is frames and none.metadata() == {}


def test_metadata_say_it_twice_for_people_and_in_the_chinese_field():
    found = container_metadata(0x00ABCDE)
    assert "AI-generated" in found["title"] and found["software"].startswith("talkhead ")
    assert found["comment"].endswith("avatar 00abcde")
    aigc = json.loads(found[AIGC])
    assert aigc["Label"] == "1" and aigc["ProduceID"] == "00abcde"
    assert {*aigc} == {"Label", "ContentProducer", "ProduceID", "ReservedCode1", "ContentPropagator", "PropagateID",
                       "ReservedCode2"}


def test_the_key_is_made_once_and_read_by_its_owner_alone(home):
    pytest.importorskip("cryptography")
    assert load_signer(make=False) is None and not home.exists()
    signer = load_signer(make=True)
    assert load_signer(make=True) == load_signer(make=False) == signer
    assert stat.S_IMODE(signer_file().stat().st_mode) == 0o600
    assert (home / "authority.pem").read_text() == signer.authority and "PRIVATE" not in signer.authority
    assert sorted(file.name for file in home.iterdir()) == ["authority.pem", "signing.pem"]


def signed(path, suffix=".mp4") -> str:
    """The warning that signing gives, "" for none."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", TalkheadWarning)
        sign(path, suffix, 1)
    return "; ".join(str(warning.message) for warning in caught)


def test_without_the_extra_one_sentence_says_how_to_get_it(tmp_path, monkeypatch):
    video = unmarked_video(tmp_path / "v.mp4")
    before = video.read_bytes()
    monkeypatch.setitem(sys.modules, "c2pa", None)
    assert signed(video) == ("the video is not signed: c2pa-python is not installed; run pip install 'talkhead[provenance]', "
                             "or use --no-mark for an unmarked video")
    assert video.read_bytes() == before


def test_what_cannot_be_signed_stays_as_it_is(tmp_path, home, monkeypatch):
    pytest.importorskip("c2pa")
    mkv = unmarked_video(tmp_path / "v.mkv")
    assert "C2PA cannot sign .mkv files; choose .mp4 or .mov" in signed(mkv, ".mkv")
    broken = tmp_path / "v.mp4"
    broken.write_bytes(b"no video")
    assert "the video is not signed: C2PA refuses" in signed(broken) and broken.read_bytes() == b"no video"
    home.mkdir(parents=True, exist_ok=True)
    signer_file().write_text("no key")
    assert "can be neither read nor made: it is damaged; mend or delete it" in signed(broken)
    monkeypatch.setenv("XDG_CONFIG_HOME", "/proc/nowhere")
    assert "/proc/nowhere/talkhead can be neither read nor made" in signed(broken)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["config", "v.mkv", "v.mp4"]


def test_a_signed_video_plays_as_before(tmp_path):
    pytest.importorskip("c2pa")
    from shared.media.video_io import read_video

    video = unmarked_video(tmp_path / "v.mp4")
    before, size = np.stack(list(read_video(video))), video.stat().st_size
    assert signed(video) == "" and video.stat().st_size > size
    assert (np.stack(list(read_video(video))) == before).all()
