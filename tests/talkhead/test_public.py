"""The public package: quick to import, complete, typed, and documented by examples that run."""

import ast
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

import talkhead

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")


def test_importing_is_quick_and_loads_no_torch():
    code = ("import time; start = time.process_time(); import talkhead, sys; took = time.process_time() - start\n"
            "heavy = {'torch', 'numpy', 'cv2', 'av', 'scipy', 'numba'} & {*sys.modules}; print(took, *heavy)")
    seconds, *heavy = min((subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
                           .stdout.split() for _ in range(3)), key=lambda words: float(words[0]))
    assert not heavy and float(seconds) < 0.2


def test_every_public_name_is_there_and_typed_as_it_is():
    for name in talkhead.__all__:
        assert getattr(talkhead, name) is getattr(import_module(talkhead.HOMES[name]), name) and name in dir(talkhead)
    for node in ast.walk(ast.parse(Path(talkhead.__file__).read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module != "typing" and node.module != "importlib":
            for alias in node.names:
                assert talkhead.HOMES[alias.name] == node.module
    with pytest.raises(AttributeError, match="no attribute 'avatar_of'"):
        _ = talkhead.avatar_of


def test_every_public_name_is_documented():
    table = PAGE[PAGE.index("## All public names") :]
    assert {*re.findall(r"`(\w+)`", table[: table.rindex("|")])} >= {*talkhead.__all__}
    for name in talkhead.__all__:
        assert (getattr(talkhead, name).__doc__ or "").strip(), name


@pytest.mark.parametrize("code", ["import talkhead", "from talkhead import synthesize"])
def test_a_foreign_package_in_the_folder_is_answered_by_one_sentence(tmp_path, code):
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "__init__.py").write_text("")
    done = subprocess.run([sys.executable, "-c", f"import sys; sys.path.append({str(ROOT)!r}); {code}"], cwd=tmp_path,
                          capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith("ImportError: another package named 'shared' is in the way: ")


def examples() -> list[str]:
    """The code blocks of docs/python.md."""
    return re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def test_there_are_six_examples():
    assert len(examples()) == 6 and all(ast.parse(code) for code in examples())


@pytest.mark.slow
def test_the_examples_run(tmp_path, monkeypatch):
    from process_data.actor.actor import make_actor
    from shared.media.audio_io import load_audio, save_wav

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    make_actor(tmp_path / "actor", size=128, seconds=6, seed=0, quiet=True)
    (tmp_path / "actor" / "actor.mp4").rename("me.mp4")
    save_wav(Path("speech.wav"), load_audio(Path("me.mp4"))[:16000])
    short = {"finetune": "talkhead.Stage1Config(steps=12, voice_augmentation=False, support_points=320)",
             "train_head": "talkhead.Stage2Config(steps=8, splats=200, rank=6, hidden=16, fits=1)",
             "train_torso": "talkhead.TorsoConfig(steps=6, plate_frames=8)"}
    space: dict = {"talkhead": talkhead}
    for code in examples():
        for name, config in short.items():  # the trainings of the first example, a hundredth as long
            code = code.replace(f"{name}(clip, avatar)", f"{name}(clip, avatar, config={config}, device='cpu')")
        exec(compile(code, "docs/python.md", "exec"), space)
    assert len(talkhead.load_landmarks("spoken.npy")) == 25
    assert np.asarray(space["frames"]).shape[1:] == (128, 128, 3) and space["shown"] + len(space["rest"]) == 25
    for name in ("talk.mp4", "edited.mp4", "head.webm", "head.ply", "edited.avatar/avatar.json", "packed.mp4",
                 "unpacked.avatar/avatar.json"):
        assert Path(name).exists(), name
