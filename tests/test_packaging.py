"""The wheel that people install: what is in it, and that the command and the package work from it, away from the checkout."""

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MODULES = tuple(path.name for path in ROOT.glob("*.py"))
PACKAGES = ("process_data", "serve", "shared", "stage1_audio2lmk", "stage2_gaussian", "talkhead", "torso_styleunet")
pytestmark = pytest.mark.slow


def ran(*command, cwd):
    """What a command prints, which has to succeed; nothing of this checkout or of pytest's environment is on its path."""
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    done = subprocess.run([*map(str, command)], cwd=cwd, env=clean, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def tracked():
    """The files that belong into the wheel: modules, packages and their data, as git has them."""
    if not (ROOT / ".git").exists():
        pytest.skip("a tree without git: what belongs to the project is not known")
    named = subprocess.run(["git", "ls-files", "-z", *MODULES, *PACKAGES], cwd=ROOT, capture_output=True, text=True, check=True)
    return {name for name in named.stdout.split("\0") if name and (ROOT / name).is_file()}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built of a copy of the files that git has, for the build writes into the folder that it builds."""
    pytest.importorskip("setuptools", "70.1")
    folder = tmp_path_factory.mktemp("wheel")
    for name in (*tracked(), "setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        (folder / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "tree" / name).write_bytes((ROOT / name).read_bytes())
    ran(sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-q", "-w", folder,
        folder / "tree", cwd=folder)
    (built,) = folder.glob("talkhead-*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The folder of the commands of an environment with the wheel in it, which finds the libraries of this one."""
    folder = tmp_path_factory.mktemp("env")
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    site = Path(ran(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip())
    ran(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", "-q", wheel, cwd=folder)
    # a plain line of a path file: the folder itself, but not its path files, of which one may lead to this checkout
    (site / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin"


def test_the_wheel_holds_the_packages_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as file:
        held = {name for name in file.namelist() if ".dist-info/" not in name}
        entry = next(file.read(name).decode() for name in file.namelist() if name.endswith("entry_points.txt"))
        licences = [name for name in file.namelist() if Path(name).name == "LICENSE"]
    assert held == tracked()  # so no tests, benchmarks or tools, and every package with its data
    assert "stage1_audio2lmk/data/base.safetensors" in held
    assert "talkhead = talkhead_main:main" in entry and licences


def test_the_command_works_away_from_the_checkout(installed, tmp_path):
    import numpy as np

    from shared.face_check import TEMPLATE

    talkhead = installed / "talkhead"
    assert "0.1.0" in ran(talkhead, "--version", cwd=tmp_path)
    assert "Usage: " in ran(talkhead, "--help", cwd=tmp_path)
    told = subprocess.run([talkhead, "doctor"], cwd=tmp_path, capture_output=True, text=True)  # 1 where the machine lacks
    assert told.returncode in (0, 1) and "Python" in told.stdout and not told.stderr, told.stderr
    np.save(tmp_path / "in.npy", np.repeat(TEMPLATE[None], 10, 0).astype(np.float32))
    assert "out.npy: 10 frames" in ran(talkhead, "edit", "in.npy", "-o", "out.npy", "--smile", 0.5, cwd=tmp_path)
    code = "import talkhead, sys; print(talkhead.__file__, 'torch' in sys.modules); talkhead.load_landmarks('out.npy')"
    where, early = ran(installed / "python", "-c", code, cwd=tmp_path).split()
    assert Path(where).is_relative_to(installed.parent) and early == "False"
    (tmp_path / "shared").mkdir()  # somebody's own folder: the command does not look there, Python does
    (tmp_path / "shared" / "__init__.py").touch()
    assert "0.1.0" in ran(talkhead, "--version", cwd=tmp_path)
    done = subprocess.run([installed / "python", "-c", "import talkhead"], cwd=tmp_path, capture_output=True, text=True)
    said = done.stderr.strip().splitlines()[-1]
    assert said.startswith("ImportError: another package named 'shared' is in the way: ") and "talkhead needs" in said


def test_the_shipped_base_is_installed_and_read(installed, tmp_path):
    code = ("from stage1_audio2lmk.checkpoint import SHIPPED_BASE, load_model; load_model(SHIPPED_BASE, 'cpu'); "
            "print(SHIPPED_BASE); from process_data.actor.speech import actor_landmarks; print(len(actor_landmarks('test')[1]))")
    base, frames = ran(installed / "python", "-c", code, cwd=tmp_path).split()
    assert Path(base).is_relative_to(installed.parent) and int(frames) > 0


def test_an_avatar_of_the_checkout_speaks(installed, chain, tmp_path):
    ran(installed / "talkhead", "synth", chain / "me.avatar", chain / "unheard.wav", "-o", "talk.mp4", "--device", "cpu",
        cwd=tmp_path)
    assert "2.00 s" in ran(installed / "talkhead", "inspect", "talk.mp4", cwd=tmp_path)
