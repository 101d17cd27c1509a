import multiprocessing
import os
import random
import signal
from pathlib import Path

import numpy as np
import pytest

from shared.media.audio_io import load_audio
from tools import speech_corpora


def test_sentences_follow_the_seed() -> None:
    a, b, c = (speech_corpora.sentence(random.Random(seed)) for seed in (1, 1, 2))
    assert a == b != c and 6 <= len(a.split()) <= 13


def test_recordings_follow_the_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Speaker:
        def say(self, text: str, voice: str, speed: int, pitch: int, span: int) -> np.ndarray:
            return np.sin(np.arange(16000 + 100 * len(text)) * pitch / 100)

    monkeypatch.setattr(speech_corpora, "Speaker", Speaker)
    for folder, seed in (("a", 3), ("b", 3), ("c", 4)):
        speech_corpora.say_part(seed, 3.0, tmp_path / folder)
    a, b, c = (sorted((tmp_path / folder).iterdir()) for folder in "abc")
    assert a[0].name == "said03_00000.wav" and [x.read_bytes() for x in a] == [x.read_bytes() for x in b]
    assert a[0].read_bytes() != c[0].read_bytes()
    sounds = [load_audio(file) for file in a]
    assert all(len(sound) % 640 == 0 for sound in sounds) and 3.0 <= sum(map(len, sounds)) / 16000 < 9


def test_a_part_that_crashes_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(speech_corpora.multiprocessing, "Process", multiprocessing.get_context("fork").Process)
    monkeypatch.setattr(speech_corpora, "say_part", lambda seed, seconds, out: os.kill(os.getpid(), signal.SIGKILL)
                        if seed == 1 else (out / str(seed)).write_text(f"{seed} {seconds}"))
    assert list(speech_corpora.in_processes([(seed, 2.0, tmp_path) for seed in range(4)], 2)) == [0, 1, 2, 3]
    assert sorted(file.read_text() for file in tmp_path.iterdir()) == ["0 2.0", "2 2.0", "3 2.0"]
    assert capsys.readouterr().err == "part 1 crashed (-9) and is not complete\n"
