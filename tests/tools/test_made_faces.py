from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from shared.clip import Clip
from shared.landmarks import lip_opening
from shared.media.audio_io import save_wav
from stage1_audio2lmk.config import Stage1Config
from stage1_audio2lmk.dataset import load_recording
from tools import made_faces
from tools.made_faces import mouth_of


def test_lips_meet_for_p_b_m_and_open_for_vowels() -> None:
    gap = mouth_of([(0.0, "SIL"), (0.2, "AA"), (0.6, "B"), (0.8, "AA"), (1.2, "SIL")], 40)[:, 1]
    assert gap[17] < 0.3 and gap[9] > 5 and gap[24] > 5 and gap[-1] < 0.3


def test_unknown_phonemes_are_neutral() -> None:
    odd, schwa = (mouth_of([(0.0, "SIL"), (0.2, name), (0.8, "SIL")], 25) for name in ("<?>", "@"))
    np.testing.assert_array_equal(odd, schwa)


def test_recordings_to_clips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    for k in range(5):
        level = 0.3 if k == 4 else 0.1
        save_wav(tmp_path / "read" / f"{'test' if k == 0 else 'train'}{k}.wav", level * rng.normal(size=640 * 30))
    marks = [(0.0, "SIL"), (0.3, "AA"), (0.9, "SIL")]
    monkeypatch.setattr(made_faces, "said_in", lambda samples: [] if samples.std() > 0.2 else marks)
    result = CliRunner().invoke(made_faces.main, [str(tmp_path / "read"), "-o", str(tmp_path / "clips"), "--together", "2",
                                                  "--test", "test"], catch_exceptions=False)
    assert result.exit_code == 0
    clips = [Clip(folder) for folder in sorted((tmp_path / "clips").iterdir())]
    assert [clip.info.frames for clip in clips] == [60, 30]  # one is for tests, in another no phones are heard
    opening = lip_opening(clips[0].load_landmarks())
    assert opening[12] > opening[0] + 0.005 and opening[42] > opening[0] + 0.005
    assert len(load_recording(clips[0], 1, Stage1Config()).features) == 60
