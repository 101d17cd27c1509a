import importlib.util
import multiprocessing
import os
import random
import signal
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from click.testing import CliRunner

from shared.clip import Clip
from shared.landmarks import lip_opening
from stage1_audio2lmk.config import Stage1Config
from stage1_audio2lmk.dataset import load_recording
from stage1_audio2lmk.encoders.train_speech_encoder import read_corpus


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    path = Path(__file__).parents[2] / "tools" / "speech_corpora.py"
    spec = importlib.util.spec_from_file_location("speech_corpora", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_lips_meet_for_p_b_m_and_open_for_vowels(tool: ModuleType) -> None:
    for marks in ([(0.0, "SIL"), (0.2, "AA"), (0.6, "B"), (0.8, "AA"), (1.2, "SIL")],
                  [(0.0, "_"), (0.2, "a"), (0.6, "p"), (0.8, "A:"), (1.2, "_")]):
        gap = tool.mouth_of(marks, 40)[:, 1]
        assert gap[17] < 0.3 and gap[9] > 5 and gap[24] > 5 and gap[-1] < 0.3


def test_unknown_phonemes_are_neutral(tool: ModuleType) -> None:
    odd, schwa = (tool.mouth_of([(0.0, "_"), (0.2, name), (0.8, "_")], 25) for name in ("<?>", "@"))
    np.testing.assert_array_equal(odd, schwa)


def test_recognised_phones_lie_between_pauses(tool: ModuleType) -> None:
    class Phone:
        def __init__(self, name: str, start: int) -> None:
            self.name, self.start, self.duration = name, start, 10

    class Decoder:
        heard = "some words"

        def hyp(self) -> object:
            return type("Hypothesis", (), {"hypstr": self.heard})()

        def get_alignment(self) -> list[list[Phone]]:
            return [[Phone("+NSN+" if k == 3 else "AH", 10 * k + 20) for k in range(12)]]

        def __getattr__(self, name: str) -> object:
            return lambda *arguments, **named: None

    marks = tool.recognise(np.zeros(16000 * 2), Decoder())
    assert marks[0] == (0.0, "SIL") and marks[-1] == (1.4, "SIL")
    assert marks[4] == (0.5, "SIL") and marks[5] == (0.6, "AH")
    silent = Decoder()
    silent.heard = ""
    assert tool.recognise(np.zeros(16000), silent) == []


def test_sentences_follow_the_seed(tool: ModuleType) -> None:
    a, b, c = (tool.sentence(random.Random(seed)) for seed in (1, 1, 2))
    assert a == b != c and 6 <= len(a.split()) <= 13


def test_corpus_to_clips(tool: ModuleType, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)

    def found():
        for k in range(4):
            yield f"{'test' if k == 0 else 'train'}{k}.wav", 0.1 * rng.normal(size=640 * 30), [(0.0, "_"), (0.3, "a"), (0.9, "_")]

    tool.write_corpus(tmp_path / "corpus", "espeak", ("test",), found())
    utterances, kinds = read_corpus(tmp_path / "corpus")
    assert [u.test for u in utterances] == [True, False, False, False] and set(kinds) == {"espeak"}
    assert all(u.mouth.shape == (30, 5) and len(u.phones) == 120 for u in utterances)
    result = CliRunner().invoke(tool.main, ["faces", str(tmp_path / "corpus"), "-o", str(tmp_path / "clips"), "--together", "2"],
                                catch_exceptions=False)
    assert result.exit_code == 0
    clips = [Clip(folder) for folder in sorted((tmp_path / "clips").iterdir())]
    assert [clip.info.frames for clip in clips] == [60, 30]  # the test recording is left out
    opening = lip_opening(clips[0].load_landmarks())
    assert opening[12] > opening[0] + 0.005 and opening[42] > opening[0] + 0.005
    assert len(load_recording(clips[0], 1, Stage1Config()).features) == 60


def test_a_part_that_crashes_is_left_out(tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                         capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(tool.multiprocessing, "Process", multiprocessing.get_context("fork").Process)
    monkeypatch.setattr(tool, "say_part", lambda seed, seconds, out: os.kill(os.getpid(), signal.SIGKILL) if seed == 1
                        else out.write_text(f"{seed} {seconds}"))
    parts = [(seed, 2.0, tmp_path / str(seed)) for seed in range(4)]
    assert [file.read_text() for file in tool.in_processes(parts, 2)] == ["0 2.0", "2 2.0", "3 2.0"]
    assert capsys.readouterr().err == "part 1 crashed (-9) and is left out\n"
