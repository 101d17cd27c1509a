import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from shared.errors import TalkheadError
from shared.media.audio_io import save_wav
from shared.phones import load_phones
from tools import phone_times as tool


class Phone:
    def __init__(self, name: str, start: int) -> None:
        self.name, self.start, self.duration = name, start, 10


class Decoder:
    """Hears twelve phones from 0.4 s on in whatever is long and loud enough; aligning 'wrong' fails."""

    def __init__(self, **settings: object) -> None:
        self.words = ""

    def lookup_word(self, word: str) -> str | None:
        return None if word == "xyzzy" else "AH"

    def hyp(self) -> object:
        return type("Hypothesis", (), {"hypstr": "some words"})()

    def set_align_text(self, words: str) -> None:
        self.words = words

    def set_alignment(self) -> None:
        if self.words == "wrong":
            raise RuntimeError("Failed to stop utterance processing")

    def get_alignment(self) -> list[list[Phone]]:
        return [[Phone("AH" if k % 2 else "M", 10 * k + 40) for k in range(12)]]

    def __getattr__(self, name: str) -> object:
        return lambda *arguments, **named: None


def test_speech_is_cut_in_pauses() -> None:
    sound = np.zeros(60 * 16000)
    for start, stop in ((2, 5), (5.1, 8), (20, 45)):
        sound[round(start * 16000) : round(stop * 16000)] = 0.1
    parts = tool.stretches(sound)
    assert parts[0] == (1.0, 14.0) and parts[-1][1] == 46.0  # an edge of a second, the middle of the pause
    assert len(parts) == 3 and parts[1][0] == 14.0 and parts[1][1] == parts[2][0] and max(b - a for a, b in parts) <= tool.LONGEST
    assert tool.stretches(np.zeros(16000)) == []


def test_text_is_of_all_or_of_lines_with_times(tmp_path: Path) -> None:
    file = tmp_path / "said.txt"
    file.write_text("Place blue,\nby “E” — don’t!\n", encoding="utf-8")
    assert tool.read_text(file, 3.0) == [(0.0, 3.0, "place blue by e don't")]
    file.write_text("0.5\t1.25\tPlace blue\n1.5 3.0 by C.\n")
    assert tool.read_text(file, 3.0) == [(0.5, 1.25, "place blue"), (1.5, 3.0, "by c")]
    file.write_text("0.5 1.25 place\n1.0 3.0 by\n")
    with pytest.raises(TalkheadError, match="'by' should lie between 1.25 and 3.00 s, found 1 to 3"):
        tool.read_text(file, 3.0)


def test_marks_are_those_of_the_recording() -> None:
    """A phone heard at 0.4 s of a stretch that begins 0.3 s before 2 s is said at 2.1 s; what fails is unknown."""
    sound = np.zeros(8 * 16000, np.float32)
    marks = tool.phone_times(sound, Decoder, [(2.0, 4.0, "some words"), (5.0, 6.0, "wrong"), (6.5, 7.9, "more words")])
    assert marks[:3] == [(0.0, "SIL"), (2.1, "M"), (2.2, "AH")] and (3.3, "SIL") in marks
    assert [mark for mark in marks if 4 < mark[0] < 6.55] == [(5.0, "SPN"), (6.0, "SIL")]
    assert marks[-1] == (7.8, "SIL") and [at for at, _ in marks] == sorted(at for at, _ in marks)
    with pytest.raises(TalkheadError, match="does not know the word 'xyzzy'"):
        tool.phone_times(sound, Decoder, [(0.0, 1.0, "some xyzzy")])


def test_the_tool_writes_phones_of_a_clip_or_recording(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pocketsphinx = type("Module", (), {"Decoder": Decoder})
    monkeypatch.setitem(__import__("sys").modules, "pocketsphinx", pocketsphinx)
    save_wav(tmp_path / "audio.wav", 0.1 * np.random.default_rng(0).normal(size=48000))
    (tmp_path / "said.txt").write_text("some words")
    for arguments, source in (([str(tmp_path)], "recognised"), ([str(tmp_path), "--text", str(tmp_path / "said.txt")], "given")):
        done = CliRunner().invoke(tool.main, arguments)
        assert done.exit_code == 0 and "12 phones in 3.0 s" in done.output, done.output
        assert len(load_phones(tmp_path / "phones.json")) == 14
        assert json.loads((tmp_path / "phones.json").read_text())["source"].endswith(source)
    assert "say with -o" in CliRunner().invoke(tool.main, [str(tmp_path / "audio.wav")]).output
    (tmp_path / "said.txt").write_text("wrong")
    done = CliRunner().invoke(tool.main, [str(tmp_path / "audio.wav"), "--text", str(tmp_path / "said.txt"), "-o",
                                          str(tmp_path / "b.json")])
    assert done.exit_code == 0 and "1 stretch(es)" in done.output and load_phones(tmp_path / "b.json")[0] == (0.0, "SPN")
