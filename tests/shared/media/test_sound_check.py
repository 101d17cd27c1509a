"""What is told of sound before an avatar learns from it or speaks it, and pipes kept on the disk."""

import os
import re
import threading
from pathlib import Path

import numpy as np
import pytest

from shared.errors import TalkheadError
from shared.media import spool
from shared.media.audio_io import load_audio, save_wav
from shared.media.sound_check import SoundCheck
from shared.media.spool import readable_again

SPEECH = (0.2 * np.random.default_rng(0).standard_normal(32000)).clip(-0.9, 0.9).astype(np.float32)
PAGE = (Path(__file__).resolve().parents[3] / "docs/bad_inputs.md").read_text(encoding="utf-8")


def warned(sound, learning=False):
    check = SoundCheck()
    for piece in np.array_split(np.asarray(sound, np.float32), 7):  # in pieces as it comes from a file
        check.push(piece)
    whole = SoundCheck()
    whole.push(np.asarray(sound, np.float32))
    assert check.warnings(learning) == whole.warnings(learning)
    return check.warnings(learning)


def of_page(*rows):
    """The sentences of rows of docs/bad_inputs.md as one regular expression."""
    texts = [re.escape(re.search(rf"^\| {re.escape(row)} \| warning[^|]* \| (.+?) \|$", PAGE, re.M)[1]) for row in rows]
    return "; ".join(re.sub(r"(?<![A-Za-z])N(?![A-Za-z])", r"[-\\d.e]+", text) for text in texts)


@pytest.mark.parametrize("sound, rows", [
    (SPEECH, []), (0 * SPEECH, ["sound that is silent, to be spoken"]), (0.01 * SPEECH, ["sound that is silent, to be spoken"]),
    ((5 * SPEECH).clip(-1, 1), ["clipped sound"]),
    ((32768 * SPEECH).clip(-1, 1), ["floating-point sound 32768 times too loud"]),
    (SPEECH / 32768, ["sound that is silent, to be spoken", "floating-point sound 32768 times too quiet"]),
    (SPEECH + 0.1, ["sound with a DC offset"]),
    (0.5 + 0 * SPEECH, ["sound that is silent, to be spoken", "sound with a DC offset"]),
    (SPEECH[:3200], ["sound shorter than half a second"]), ([], []),
], ids=["good", "silent", "quiet", "clipped", "times 32768", "by 32768", "offset", "constant", "short", "none"])
def test_bad_sound_is_told_in_the_sentences_of_the_page(sound, rows):
    found = "; ".join(warned(sound))
    assert re.fullmatch(of_page(*rows), found), found


def test_process_says_that_nothing_can_be_learned_from_silence():
    assert warned(0 * SPEECH, learning=True) == ["the sound is almost silent; nothing can be learned from it"]


def pipe(path, data):
    """A named pipe into which a thread writes `data`."""
    os.mkfifo(path)
    threading.Thread(target=path.write_bytes, args=(data,), daemon=True).start()
    return path


def test_a_pipe_is_read_once_into_a_file(tmp_path):
    save_wav(tmp_path / "a.wav", SPEECH)
    with readable_again(tmp_path / "a.wav") as same, readable_again(None) as nothing:
        assert same == tmp_path / "a.wav" and nothing is None
    with readable_again(pipe(tmp_path / "pipe", (tmp_path / "a.wav").read_bytes())) as copy:
        assert np.array_equal(load_audio(copy), load_audio(tmp_path / "a.wav"))
        assert np.array_equal(load_audio(copy), load_audio(tmp_path / "a.wav"))
    assert not copy.parent.exists()
    with pytest.raises(TalkheadError, match="^" + re.escape(f"{tmp_path / 'text'} is not a media file that FFmpeg can read")):
        with readable_again(pipe(tmp_path / "text", b"no sound" * 100)) as copy:
            load_audio(copy)
    with pytest.raises(TalkheadError, match=r"^/dev/null is a terminal or a device, from which no sound can be read"):
        with readable_again(Path("/dev/null")):
            pass
    with readable_again(tmp_path / "missing") as missing:
        assert missing == tmp_path / "missing"


def test_a_pipe_that_does_not_fit_on_the_disk_is_a_sentence(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(spool.shutil, "copyfileobj", full)
    with pytest.raises(TalkheadError, match="pipe cannot be kept in .*: No space left on device; set TMPDIR to a folder"):
        with readable_again(pipe(tmp_path / "pipe", b"")):
            pass
