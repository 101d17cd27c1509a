"""Any machine: read-only installs, no home folder, containers, full disks, odd names, encodings, permissions, signals."""

import errno
import io
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
from contextlib import contextmanager
from pathlib import Path

import click
import cv2
import numpy as np
import pytest
import torch
from click.testing import CliRunner

from cli import cli
from shared import machine
from shared.avatar import avatar_folder
from shared.checkpoint import load_checkpoint, save_checkpoint
from shared.errors import TalkheadError
from shared.face_check import TEMPLATE
from shared.files import atomic_path, read_json, write_arrays, write_json, write_rows, write_text
from shared.landmarks import load_landmarks, save_array, save_landmarks
from shared.media.audio_io import load_audio, save_wav
from shared.media.video_io import GrayVideoWriter, TransparentVideoWriter, VideoWriter, read_png, read_video, write_png
from shared.report_page import ReportPage
from shared.training import TensorBoard, pick_device
from stage2_gaussian.ply import PlyGaussians, write_ply
from talkhead.commands.runner import Printable
from talkhead.doctor import diagnose

ROOT = Path(__file__).resolve().parents[1]
RNG = np.random.default_rng(0)
NOISE = RNG.integers(0, 255, (3, 128, 128, 4)).astype(np.uint8)
OURS = ("cli.py", "talkhead_guard.py", "talkhead_main.py", "talkhead", "serve", "process_data", "shared", "stage1_audio2lmk",
        "stage2_gaussian", "torso_styleunet")
COMMAND = "import talkhead_main; talkhead_main.main()"
NOT_UTF8 = os.fsdecode(b"caf\xe9")


def python(*arguments, path=(), **options):
    """Run Python with `path` before our own folder, as PYTHONPATH."""
    environment = {**os.environ, **options.pop("env", {}), "PYTHONPATH": os.pathsep.join(map(str, [*path, ROOT]))}
    options.setdefault("cwd", "/")  # -c and -m put the current folder first
    return subprocess.run([sys.executable, *map(str, arguments)], env=environment, text=True,
                          capture_output=True, timeout=120, **options)


def run(*arguments):
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def one_sentence(text):
    """What is printed is one line, `Error: …`."""
    lines = text.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("Error: "), text
    return lines[0]


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "rows.npy"
    save_landmarks(path, TEMPLATE + RNG.normal(0, 0.002, (30, 68, 3)))
    return path


# -- packages of the same names


def foreign(folder, name):
    """A package that somebody else calls `name`, or a module if that is cli."""
    if name == "cli":
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "cli.py").write_text("def app(): pass\n")
    else:
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").write_text("")
    return folder


@pytest.mark.parametrize("name", ["shared", "cli", "process_data"])
def test_a_foreign_package_on_the_path_is_named(tmp_path, name):
    other = foreign(tmp_path / "other", name)
    found = other / ("cli.py" if name == "cli" else f"{name}/__init__.py")
    ways = {"the command": (["-c", COMMAND, "--version"], [other], tmp_path),
            "python -m": (["-m", "cli", "--version"], [other], tmp_path),
            "in the folder": (["-m", "cli", "--version"], [], other)}
    if name == "cli":  # what Python then runs is not ours
        del ways["python -m"], ways["in the folder"]
    for way, (arguments, path, where) in ways.items():
        done = python(*arguments, path=path, cwd=where)
        assert done.returncode == 2, way
        said = one_sentence(done.stderr)
        assert f"another package named '{name}' is in the way: {found}; talkhead needs {ROOT}" in said


def test_a_folder_named_shared_beside_the_user_is_named(tmp_path):
    """Without __init__.py it counts as a package where ours comes later by way of an editable install."""
    (tmp_path / "shared").mkdir()
    code = f"""
        import importlib.abc, importlib.machinery, sys
        class Editable(importlib.abc.MetaPathFinder):
            def find_spec(self, name, path=None, target=None):
                return importlib.machinery.PathFinder.find_spec(name, [{str(ROOT)!r}]) if path is None else None
        sys.meta_path.insert(sys.meta_path.index(importlib.machinery.PathFinder) + 1, Editable())
        {COMMAND}
        """
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}  # which may lead to ours
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code), "--version"], cwd=tmp_path, env=environment,
                          capture_output=True, text=True)
    assert done.returncode == 2 and f"is in the way: {tmp_path / 'shared'}; talkhead needs" in one_sentence(done.stderr)


def test_importing_from_python_says_it_too(tmp_path):
    other = foreign(tmp_path / "other", "shared")
    for name in ("talkhead.doctor", "process_data.workers", "stage1_audio2lmk.config", "stage2_gaussian.config"):
        done = python("-c", f"import {name}", path=[other])
        assert done.returncode == 1
        assert done.stderr.splitlines()[-1].startswith("ImportError: another package named 'shared' is in the way: ")
    fine = python("-c", "import process_data.config", path=[foreign(tmp_path / "mine", "cli")])
    assert fine.returncode == 0, fine.stderr  # a user's own cli.py does not disturb the library


def test_files_that_another_package_wrote_over_ours(tmp_path):
    for name in OURS[:6]:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    shutil.copytree(ROOT / "shared", tmp_path / "shared", ignore=shutil.ignore_patterns("__pycache__"))
    for name in OURS[7:]:
        (tmp_path / name).mkdir()
        shutil.copy(ROOT / name / "__init__.py", tmp_path / name)
    init = tmp_path / "shared" / "__init__.py"
    init.write_text('"""Helpers of another project."""\n')
    for arguments in (["-c", COMMAND, "doctor"], ["-m", "cli", "doctor"]):
        done = python(*arguments, path=[tmp_path])
        assert done.returncode == 2
        assert f"another package has written over {init}, which belongs to talkhead" in one_sentence(done.stderr)
    init.unlink()  # uninstalling the other one takes ours away
    done = python("-c", COMMAND, "doctor", path=[tmp_path])
    assert done.returncode == 2 and f"talkhead is incomplete: {init} is missing" in one_sentence(done.stderr)
    shutil.copy(ROOT / "shared" / "__init__.py", init)
    (tmp_path / "shared" / "errors.py").unlink()
    wheel = "import sys; sys.meta_path[:] = [f for f in sys.meta_path if 'Editable' not in str(f)]; "  # as one installs
    done = python("-c", wheel + COMMAND, "doctor", path=[tmp_path])
    assert done.returncode == 2
    assert "talkhead is incomplete: No module named 'shared.errors'; install it again" in one_sentence(done.stderr)


def test_the_installed_command_starts_at_the_guard():
    assert "talkhead = talkhead_main:main" in (ROOT / "setup.cfg").read_text()
    assert "    talkhead_guard\n" in (ROOT / "setup.cfg").read_text()


# -- read-only installs, no home


COMPILED = """
from shared.compiled import cached_njit

@cached_njit(fastmath=True)
def twice(x):
    return 2 * x
"""


def test_compiled_code_where_neither_the_package_nor_home_can_be_written(tmp_path):
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "compiled_code.py").write_text(COMPILED)
    (tmp_path / "lib" / "__pycache__").write_text("a file, so that nobody can write into a folder of this name")
    (tmp_path / "tmp").mkdir()
    environment = {"HOME": "/proc/none", "XDG_CACHE_HOME": "/proc/none", "TMPDIR": str(tmp_path / "tmp"), "NUMBA_CACHE_DIR": ""}
    code = "from compiled_code import twice; print(twice(21), sum(twice.stats.cache_hits.values()))"
    for hits in (0, 1):  # the second process finds what the first has compiled
        done = python("-c", code, path=[tmp_path / "lib"], env=environment)
        assert done.stdout.split() == ["42", str(hits)], done.stderr
    (folder,) = (tmp_path / "tmp").glob("talkhead-numba*")
    assert folder.stat().st_mode & 0o777 == 0o700 and list(folder.rglob("*.nbi"))
    folder.chmod(0o777)  # anybody could have put code there
    done = python("-c", code, path=[tmp_path / "lib"], env=environment)
    assert done.stdout.split() == ["42", "0"], done.stderr


def test_a_cache_that_is_damaged_or_cannot_be_written_is_left_alone(tmp_path):
    (tmp_path / "compiled_code.py").write_text(COMPILED)
    code = "from compiled_code import twice; print(twice(21), sum(twice.stats.cache_hits.values()))"
    assert python("-c", code, path=[tmp_path]).stdout.split() == ["42", "0"]
    (index,) = (tmp_path / "__pycache__").glob("*.nbi")
    index.write_bytes(b"")
    for hits in (0, 1):
        assert python("-c", code, path=[tmp_path]).stdout.split() == ["42", str(hits)]
    code = """
        import errno
        from numba.core import caching
        def full(self, name, data): raise OSError(errno.ENOSPC, "No space left on device")
        caching.IndexDataCacheFile._save_data = full
        from compiled_code import twice
        print(twice(21.0))
        """
    assert python("-c", textwrap.dedent(code), path=[tmp_path]).stdout.split() == ["42.0"]


def test_libraries_that_want_a_home_get_the_temporary_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/proc/none")
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", "mine")
    monkeypatch.delenv("MPLCONFIGDIR", raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    machine.do_without_home()
    assert os.environ["MPLCONFIGDIR"] == str(machine.private_folder("matplotlib"))
    assert os.environ["TORCH_EXTENSIONS_DIR"] == "mine"
    assert Path(os.environ["MPLCONFIGDIR"]).parent == tmp_path
    (tmp_path / "a").mkdir()
    (tmp_path / f"talkhead-link-{os.getuid()}").symlink_to(tmp_path / "a")
    assert machine.private_folder("link") is None


# -- containers


def system(root, groups, **limits):
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(groups)
    for name, text in limits.items():
        path = root / "sys/fs/cgroup" / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_limits_of_control_groups_of_either_version(tmp_path):
    two = system(tmp_path / "2", "0::/app.slice/job\n", cpu_dot_max="max 100000\n", memory_dot_max="4000000000\n",
                 app_dot_slice__cpu_dot_max="150000 100000\n", app_dot_slice__job__cpu_dot_max="800000 100000\n",
                 app_dot_slice__job__memory_dot_max="max\n")
    assert machine.cpu_quota(two) == 1.5 and machine.memory_limit(two) == 4_000_000_000
    # of version 1, in a container: the name is that of the host, and only the top is to be seen
    one = system(tmp_path / "1", "4:memory:/docker/abc\n3:cpu,cpuacct:/docker/abc\n2:cpuset:/\n0::/\n",
                 **{"cpu,cpuacct__cpu_dot_cfs_quota_us": "50000\n", "cpu,cpuacct__cpu_dot_cfs_period_us": "100000\n",
                    "memory__memory_dot_limit_in_bytes": "1300000000\n"})
    assert machine.cpu_quota(one) == 0.5 and machine.memory_limit(one) == 1_300_000_000
    free = system(tmp_path / "0", "1:memory:/\n2:cpu:/\n", cpu__cpu_dot_cfs_quota_us="-1\n",
                  cpu__cpu_dot_cfs_period_us="100000\n", memory__memory_dot_limit_in_bytes="9223372036854771712\n")
    assert machine.cpu_quota(free) is None and machine.memory_limit(free) is None
    assert machine.cpu_quota(tmp_path / "none") is None


def test_as_many_workers_as_processors_and_memory_allow(monkeypatch):
    monkeypatch.setattr(machine, "cpu_quota", lambda: None)
    monkeypatch.setattr(machine, "memory_limit", lambda: None)
    monkeypatch.setattr(machine, "_physical_memory", lambda: 64e9)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(24)), raising=False)
    assert machine.workers() == 24
    monkeypatch.setattr(machine, "memory_limit", lambda: 4e9)
    assert machine.workers() == 6
    monkeypatch.setattr(machine, "cpu_quota", lambda: 2.5)
    assert machine.workers() == machine.threads() == 3
    monkeypatch.setattr(machine, "memory_limit", lambda: 1e8)
    assert machine.workers() == 1 and machine.workers(7) == 7
    for name in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        monkeypatch.setenv(name, "")  # so that it is put back as it was, also if it was not there
        monkeypatch.delenv(name)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    machine.limit_threads()
    assert [os.environ[f"{name}_NUM_THREADS"] for name in ("OMP", "NUMBA", "OPENBLAS")] == ["1", "3", "1"]
    monkeypatch.delenv("NUMBA_NUM_THREADS")
    monkeypatch.delenv("OPENBLAS_NUM_THREADS")


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="the system binds no processes to processors")
def test_a_bound_process_counts_its_own_processors():
    code = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); "
    assert python("-c", code + "from shared import machine; print(machine.workers())").stdout.strip() == "1"


# -- full disks


@contextmanager
def full_disk(bytes_left):
    """No file of this process may grow beyond `bytes_left`; the error is EFBIG where a full disk gives ENOSPC."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_left, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def write_video(path, writer=VideoWriter, channels=3, **options):
    with writer(path, 128, 128, **options) as video:
        for _ in range(30):
            for picture in NOISE:
                video.write(picture[..., :channels] if channels > 1 else picture[..., 0])


def write_frames(path):
    with atomic_path(path) as partial:
        partial.mkdir()
        save_array(partial / "poses.npy", np.zeros((2, 4)))
        write_png(partial / "000000.png", NOISE[0])


def copy_folder(path):
    source = path.with_name("source")
    source.mkdir(exist_ok=True)
    (source / "big").write_bytes(NOISE.tobytes() * 4) if not (source / "big").exists() else None
    with atomic_path(path) as partial:
        shutil.copytree(source, partial)


def write_curves(path):
    board = TensorBoard(path)
    for k in range(5):
        board.image("picture", NOISE[0, ..., :3], k)
    board.close()


def write_report(path):
    page = ReportPage("measured")
    page.picture(NOISE[..., :3].reshape(-1, 128, 3))
    page.write(path)


GAUSSIANS = PlyGaussians(*(RNG.normal(size=shape).astype(np.float32)
                           for shape in ((2000, 3), (2000, 4), (2000, 3), (2000,), (2000, 3))))
WRITERS = {
    "landmarks.npy": lambda path: save_array(path, RNG.normal(size=(300, 68, 3))),
    "settings.json": lambda path: write_json(path, {"text": "x" * 30000}),
    "page.html": lambda path: write_text(path, "x" * 30000),
    "report.html": write_report,
    "arrays.npz": lambda path: write_arrays(path, a=RNG.normal(size=9000)),
    "rows.npy": lambda path: write_rows(path, "<f4", (3, 9000), (RNG.normal(size=(1, 9000)) for _ in range(3))),
    "sound.wav": lambda path: save_wav(path, RNG.uniform(-1, 1, 30000)),
    "talk.mp4": write_video,
    "sound.mkv": lambda path: write_video(path, audio=np.zeros(60000, np.float32)),
    "head.mov": lambda path: write_video(path, TransparentVideoWriter, 4),
    "head.webm": lambda path: write_video(path, TransparentVideoWriter, 4),
    "labels.mkv": lambda path: write_video(path, GrayVideoWriter, 1),
    "plate.png": lambda path: write_png(path, NOISE[0]),
    "model.safetensors": lambda path: save_checkpoint(path, {"a": torch.zeros(9000)}, {}),
    "head.ply": lambda path: write_ply(path, GAUSSIANS),
    "frames": write_frames,
    "copy.avatar": copy_folder,
    "curves": write_curves,
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_is_one_sentence_with_the_final_name(tmp_path, name):
    if name == "copy.avatar":
        (tmp_path / "source").mkdir()
        (tmp_path / "source" / "big").write_bytes(NOISE.tobytes())
    before = set(tmp_path.iterdir())
    with full_disk(20000), pytest.raises(TalkheadError) as found:
        WRITERS[name](tmp_path / name)
    text = str(found.value)
    assert text.startswith(f"cannot write {tmp_path / name}") and text.endswith(": File too large") and ".partial" not in text
    if name != "curves":  # they grow in place
        assert set(tmp_path.iterdir()) == before
        WRITERS[name](tmp_path / name)  # and with room it is there
        assert (tmp_path / name).exists() and not list(tmp_path.glob("*.partial*"))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.ENAMETOOLONG,
                                    errno.EACCES, errno.ENOTEMPTY, errno.EBUSY])
def test_whatever_the_system_refuses(tmp_path, number):
    with pytest.raises(TalkheadError) as found, atomic_path(tmp_path / "out.bin") as partial:
        partial.write_bytes(b"half")
        raise OSError(number, os.strerror(number))
    assert str(found.value) == f"cannot write {tmp_path / 'out.bin'}: {os.strerror(number)}"
    assert not list(tmp_path.iterdir())


def test_an_error_about_another_file_is_not_put_on_the_one_being_written(tmp_path):
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "out.bin"):
        open(tmp_path / "missing.bin", "rb")
    with pytest.raises(TalkheadError, match="^other.npy is wrong$"), atomic_path(tmp_path / "out.bin"):
        raise TalkheadError("other.npy is wrong")


def test_pieces_that_do_not_make_the_array_leave_nothing(tmp_path):
    with pytest.raises(ValueError, match="5 numbers"):
        write_rows(tmp_path / "a.npy", "<f4", (3, 2), [np.zeros(5)])
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
def test_output_that_cannot_be_written_or_that_nobody_reads(rows):
    out = rows.with_name("out.npy")
    edit = ["edit", str(rows), "-o", str(out), "--overwrite"]
    for arguments in (edit, ["--help"]):
        with open("/dev/full", "w") as full:
            done = subprocess.run([sys.executable, "-m", "cli", *arguments], stdout=full, stderr=subprocess.PIPE, text=True,
                                  cwd=ROOT)
        assert done.returncode == 2
        assert one_sentence(done.stderr) == "Error: the output cannot be read or written: No space left on device"
    with open("/dev/full", "w") as full:
        assert subprocess.run([sys.executable, "-m", "cli", "edit", "none", "-o", "x"], stderr=full, cwd=ROOT).returncode == 2
    command = f"{sys.executable} -m cli {' '.join(edit)}"
    for streams in ("| true", ">&- 2>&- <&-"):  # no library may print into a file that got the number of stderr
        out.unlink()
        done = subprocess.run(["bash", "-c", f"{command} {streams}"], capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == 0 and not done.stderr and load_landmarks(out).shape == (30, 68, 3), streams


# -- names


@pytest.mark.parametrize("name", ["a" * 251 + ".npy", "脸" * 83 + ".NPY", "-x.npy", "12:30.npy",
                                  "it's 100% \"so\".npy", "two\nlines\x1b[31m.npy", "\u202eright to left.npy", NOT_UTF8 + ".npy",
                                  " blanks .npy"])
def test_any_name_that_the_system_takes(tmp_path, monkeypatch, rows, name):
    monkeypatch.chdir(tmp_path)
    for given in (name, tmp_path / name):
        done = run("edit", rows, "-o", given, "--overwrite")
        assert done.exit_code == 0, done.output
        np.testing.assert_array_equal(load_landmarks(tmp_path / name), load_landmarks(rows))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["rows.npy", name])
    done = run("edit", rows, "-o", given)
    assert done.exit_code == 2 and one_sentence(done.stderr).endswith("exists already; add --overwrite to replace it")
    assert not {"\x1b", "\u202e"} & set(done.stderr)
    shown = io.StringIO()
    click.echo(f"{name}\t: 30 frames", file=Printable(shown))
    assert not {"\x1b", "\u202e"} & set(shown.getvalue()) and shown.getvalue().endswith("\t: 30 frames\n")
    assert run("edit", "-o", "back.npy", "--", name).exit_code == run("edit", f"./{name}", "-o", "again.npy").exit_code == 0


def test_video_pictures_sound_and_checkpoints_under_odd_names(tmp_path):
    for name in ("脸" * 83, "a" * 243, NOT_UTF8):
        video, sound, model, plate = (tmp_path / f"{name}{ending}" for ending in (".mp4", ".wav", ".bin", ".png"))
        write_video(video)
        write_video(video.with_suffix(".mkv"), GrayVideoWriter, 1)
        save_wav(sound, np.zeros(1600))
        save_checkpoint(model, {"a": torch.ones(2)}, {"name": name})
        write_png(plate, NOISE[0, ..., :3])
        assert sum(1 for _ in read_video(video)) == 90 and len(load_audio(sound)) == 1600
        assert load_checkpoint(model)[1] == {"name": name}
        np.testing.assert_array_equal(read_png(plate), NOISE[0, ..., :3])
    write_curves(tmp_path / NOT_UTF8)


@pytest.mark.parametrize("name", ["a." + "b" * 253, "脸" * 85, "." + "a" * 254, "ends in a blank "])
def test_any_name_of_a_file_or_folder_without_an_ending(tmp_path, name):
    write_text(tmp_path / name, "text")
    assert [path.name for path in tmp_path.iterdir()] == [name] and (tmp_path / name).read_text() == "text"


def test_text_with_names_that_are_not_utf8(tmp_path):
    write_json(tmp_path / "a.json", {"name": NOT_UTF8})
    assert read_json(tmp_path / "a.json") == {"name": NOT_UTF8}
    page = ReportPage(NOT_UTF8)
    page.write(tmp_path / "a.html")
    assert "caf\\udce9" in (tmp_path / "a.html").read_text(encoding="utf-8")


def test_names_that_are_too_long_are_one_sentence(tmp_path, rows):
    for output in (tmp_path / ("a" * 252 + ".npy"), tmp_path / ("a" * 256) / "b.npy", tmp_path / "a/b" / ("脸" * 90 + ".npy")):
        done = run("edit", rows, "-o", output)
        assert done.exit_code == 2 and one_sentence(done.stderr).endswith(": File name too long")
    assert run("edit", tmp_path / ("a" * 300), "-o", "x.npy").exit_code == 2
    assert "File name too long" in one_sentence(run("synth", tmp_path / ("a" * 300), rows, "-o", tmp_path / "x.mp4").stderr)


def test_the_avatar_lies_beside_a_clip_that_is_named_by_dots(tmp_path, monkeypatch):
    (tmp_path / "me" / "inner").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "me")
    assert avatar_folder(Path(".")) == tmp_path / "me.avatar"
    assert avatar_folder(Path("inner/..")) == tmp_path / "me.avatar"
    assert avatar_folder(Path("inner/")) == Path("inner.avatar") and avatar_folder(Path("../me")) == Path("../me.avatar")
    monkeypatch.chdir(tmp_path / "me" / "inner")
    assert avatar_folder(Path("..")) == tmp_path / "me.avatar"
    with pytest.raises(TalkheadError, match="^/ has no name to name an avatar after; add --avatar FOLDER$"):
        avatar_folder(Path("/"))
    for command in (["stage1", "finetune"], ["stage1", "eval"], ["stage2", "train"], ["stage2", "eval"], ["torso", "train"]):
        assert run(*command, ".").exit_code == 2 and run(*command, "/").exit_code == 2
    with atomic_path(".") as partial:  # the current folder itself, as `render -o . --overwrite` has it
        partial.mkdir()
        (partial / "0.png").touch()
        Path("../inner").resolve().rmdir()
    assert [path.name for path in (tmp_path / "me" / "inner").iterdir()] == ["0.png"]
    with pytest.raises(TalkheadError, match="^cannot write /: Is a directory$"), atomic_path("/"):
        pass


# -- encodings


@pytest.mark.parametrize("environment", [
    {"PYTHONIOENCODING": "cp1252"},
    pytest.param({"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}, marks=pytest.mark.slow),
    pytest.param({"PYTHONIOENCODING": "ascii:strict"}, marks=pytest.mark.slow),
    pytest.param({"LC_ALL": "POSIX"}, marks=pytest.mark.slow)])
def test_output_in_an_encoding_that_lacks_the_characters(tmp_path, rows, environment):
    for name in ("😀 脸.npy", NOT_UTF8 + ".npy"):
        done = python("-m", "cli", "edit", rows, "-o", tmp_path / name, env=environment, errors="replace")
        assert done.returncode == 0 and done.stdout.strip().endswith(": 30 frames") and not done.stderr
        assert load_landmarks(tmp_path / name).shape == (30, 68, 3)
        done = python("-m", "cli", "edit", rows, "-o", tmp_path / name, env=environment, errors="replace")
        assert done.returncode == 2 and "exists already" in one_sentence(done.stderr)


# -- permissions


@contextmanager
def nobody():
    """As another user: root is refused nothing."""
    if os.geteuid():
        yield
        return
    os.setegid(65534)
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


@pytest.fixture
def open_folder():
    """A folder that everybody may enter and write into."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o777)
        yield Path(folder)


def test_what_may_not_be_read_or_written_is_one_sentence(open_folder, rows):
    source = shutil.copy(rows, open_folder / "rows.npy")
    locked, blind, kept = (open_folder / name for name in ("locked", "blind", "kept.npy"))
    locked.mkdir(mode=0o555)
    blind.mkdir(mode=0o755)
    shutil.copy(rows, blind / "rows.npy")
    blind.chmod(0o644)
    shutil.copy(rows, kept)
    kept.chmod(0o444)
    (open_folder / "video.mp4").write_bytes(b"x")
    (open_folder / "video.mp4").chmod(0)
    run("edit", source, "-o", open_folder / "first.npy"), run("process", "none.mp4", "c"), run("inspect", source)  # all imported
    with nobody():
        said = {
            "out": run("edit", source, "-o", locked / "out.npy"),
            "folder": run("edit", source, "-o", locked / "new" / "out.npy"),
            "blind": run("edit", blind / "rows.npy", "-o", open_folder / "out.npy"),
            "into blind": run("edit", source, "-o", blind / "out.npy"),
            "video": run("process", open_folder / "video.mp4", open_folder / "clip"),
        }
    for case, done in said.items():
        assert done.exit_code == 2, (case, done.output, done.exception)
    sentences = {case: one_sentence(done.stderr) for case, done in said.items()}
    assert sentences["out"] == f"Error: cannot write {locked / 'out.npy'}: Permission denied"
    assert sentences["folder"] == f"Error: cannot create the folder {locked / 'new'}: Permission denied"
    assert "Permission denied" in sentences["into blind"] and str(blind) in sentences["into blind"]
    assert sentences["video"] == f"Error: {open_folder / 'video.mp4'} may not be read: Permission denied"
    assert str(blind / "rows.npy") in sentences["blind"]
    with nobody():  # a file that may not be written is replaced only where that was asked for
        assert run("edit", source, "-o", kept).exit_code == 2
    before = kept.read_bytes()
    assert run("edit", source, "-o", kept, "--overwrite", "--smile", 0.5).exit_code == 0 and kept.read_bytes() != before


# -- the command as a whole


@pytest.mark.parametrize("name, sentence", [
    ("mps", "--device 'mps' is not supported; use auto, cpu, cuda or cuda:N"), ("xpu", "'xpu' is not supported"),
    ("meta", "'meta' is not supported"), ("nonsense", "'nonsense' is not supported"), ("", "'' is not supported"),
    ("cuda:x", "'cuda:x' is not supported"), ("cuda:-1", "'cuda:-1' is not supported"), ("cpu:1", "'cpu:1' is not supported"),
    ("cuda:9", "--device 'cuda:9': this machine has 2 CUDA GPU(s), numbered from 0"),
    ("cuda:99999999999999999999", "is not supported")])
def test_devices_that_are_not_there(monkeypatch, name, sentence):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert pick_device("cuda:1") == torch.device("cuda:1") and pick_device("cpu") == torch.device("cpu")
    with pytest.raises(TalkheadError) as found:
        pick_device(name)
    assert sentence in str(found.value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(TalkheadError):
        pick_device("cuda")


def test_what_the_machine_lacks_is_one_sentence(monkeypatch, tmp_path):
    for error, said in ((MemoryError(), "there is not enough memory"),
                        (ImportError("libGL.so.1: cannot open shared object file"),
                         "libGL.so.1: cannot open shared object file; `talkhead doctor` tells what is missing"),
                        (PermissionError(13, "Permission denied", "/x"), "/x cannot be read or written: Permission denied"),
                        (OSError(28, "No space left"), "the output cannot be read or written: No space left")):
        def fail(*_, raised=error):
            raise raised

        monkeypatch.setattr("talkhead.inspect.describe", fail)
        done = run("inspect", tmp_path)
        assert done.exit_code == 2 and one_sentence(done.stderr) == f"Error: {said}"
        assert run("--debug", "inspect", tmp_path).exception is error


def lines():
    return {finding.what: finding for finding in diagnose()}


def refuse(*_, **__):
    raise OSError(errno.ENOSYS, "not implemented")


def test_doctor_tells_what_would_fail(monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "cpu_quota", lambda: 0.5)
    monkeypatch.setattr(machine, "memory_limit", lambda: 1_000_000_000)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    monkeypatch.setattr("shared.compiled.cache_place", lambda: None)
    monkeypatch.setattr("talkhead_guard.PACKAGES", ("shared", "json"))
    monkeypatch.setattr("multiprocessing.synchronize.SemLock.__init__", refuse)
    monkeypatch.setattr(sys, "getfilesystemencoding", lambda: "ascii")
    found = lines()
    assert found[f"0.5 of {os.cpu_count()} processors, to which the container is held"].ok
    assert "`talkhead process` starts 1 worker process(es)" in found
    memory = found["1.0 GB of memory, to which the container is held"]
    assert not memory.ok and "needs about 2 GB" in memory.fix
    lacks = {what for what, finding in found.items() if not finding.ok}
    for word in ("temporary folder", "compiled code", "json/__init__.py is missing", "share memory", "file names are in ascii"):
        assert any(word in what for what in lacks), (word, lacks)
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert any(what.startswith("the current folder: No such file") for what in lines())


def test_doctor_speaks_of_torchaudio_only_where_a_gpu_is(monkeypatch):
    if not torch.cuda.is_available():
        assert not any("torchaudio" in what for what in lines())
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "a GPU")
    for there in (None, len):
        monkeypatch.setattr("stage1_audio2lmk.audio.device_front_end.torchaudio_resample", lambda there=there: there)
        (found,) = [finding for what, finding in lines().items() if "torchaudio" in what]
        assert found.ok == (there is not None) and not found.needed and "pip install 'talkhead[gpu]'" in found.fix


def test_an_opencv_without_contrib_modules_is_told(monkeypatch, tmp_path):
    fix = ("run `pip uninstall -y opencv-python opencv-python-headless`, then `pip install --force-reinstall --no-deps "
           "opencv-contrib-python`")
    assert any(finding.ok for what, finding in lines().items() if what.startswith("OpenCV "))
    monkeypatch.delattr(cv2, "ximgproc")
    (found,) = [finding for what, finding in lines().items() if what.startswith("OpenCV ")]
    assert not found.ok and found.needed and found.fix == fix
    assert found.what == (f"OpenCV {cv2.__version__} here lacks cv2.ximgproc: opencv-contrib-python is not installed, or "
                          "opencv-python, installed beside it, has written over it")
    (tmp_path / "ori_imgs").mkdir()
    for command in (["process", tmp_path / "me.mp4"], ["import", "adnerf", tmp_path]):
        done = run(*command, tmp_path / "clip")
        assert done.exit_code == 2 and one_sentence(done.stderr) == f"Error: {found.what}; {fix}"
    assert not (tmp_path / "clip").exists()


STOPPED = """
import sys, time, types
from cli import main
import shared.landmarks
from shared.files import atomic_path

def wait(*_, **__):
    with atomic_path("half.bin") as partial:
        partial.write_bytes(b"half")
        print("ready", flush=True)
        time.sleep(SECONDS)

shared.landmarks.load_landmarks = wait
sys.modules["process_data.importers.voca"] = types.SimpleNamespace(import_voca=wait)
main()
"""
CONTINUES, ANEW = ["import", "voca", "voca", "clips"], ["edit", "in.npy", "-o", "out.npy"]


def stopped(number, folder, arguments, seconds=60, **options):
    """Start a command that works for so long, send it a signal -> its exit code and what it says."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    options.setdefault("preexec_fn", lambda: signal.signal(number, signal.SIG_DFL))  # under nohup it would be ignored
    code = STOPPED.replace("SECONDS", str(seconds))
    with subprocess.Popen([sys.executable, "-c", code, *arguments], cwd=folder, env=environment, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, text=True, **options) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        _, said = process.communicate(timeout=100)
    return process.returncode, said.strip()


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130)])
def test_a_stopped_command_cleans_up_and_says_what_can_be_continued(tmp_path, number, code):
    assert stopped(number, tmp_path, CONTINUES) == (code, "Stopped. The same command continues where it was.")
    assert stopped(number, tmp_path, ANEW) == (code, "Stopped; nothing was written. The same command starts anew.")
    assert not list(tmp_path.iterdir())


def test_a_closed_terminal_does_not_stop_what_nohup_started(tmp_path):
    code, _ = stopped(signal.SIGHUP, tmp_path, CONTINUES, 0.5, preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    assert code not in (129, -signal.SIGHUP) and (tmp_path / "half.bin").exists()
