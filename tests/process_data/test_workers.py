"""Worker processes end with the process that started them, and clips may have any name."""

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from process_data.actor.actor import make_actor
from process_data.config import ProcessConfig
from process_data.pipeline import process
from process_data.report.page import write_report
from process_data.workers import LONGEST, PARTS, SHORTEST, Workers, chunk_spans
from shared.clip import Clip
from shared.errors import MachineError

ROOT = Path(__file__).resolve().parents[2]
BUSY = """
import pathlib, sys, time
from process_data.workers import Workers
from shared.files import atomic_path

def work(folder, ballast):
    with atomic_path(folder / "half.bin") as partial:
        partial.write_bytes(b"half")
        pathlib.Path(folder, f"ready-{partial.name}").touch()
        time.sleep(120)

if __name__ == "__main__":
    try:
        with Workers(2) as pool:
            pool.run(work, [(pathlib.Path(sys.argv[1]), bytes(300_000))] * 20, 40, 0, "busy", quiet=True)
    except KeyboardInterrupt:
        sys.exit(130)
"""


def members(session):
    """Processes of a session that have not ended, by number: the command of each."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            if int(fields[3]) == session and fields[0] != "Z":
                found[int(folder.name)] = (folder / "cmdline").read_text().replace("\0", " ")
        except OSError:
            continue
    return found


def wait_until(true, seconds=60):
    end = time.monotonic() + seconds
    while not true() and time.monotonic() < end:
        time.sleep(0.05)
    return true()


def start(folder, script):
    script.write_text(BUSY)
    return subprocess.Popen([sys.executable, str(script), str(folder)], env={**os.environ, "PYTHONPATH": str(ROOT)},
                            start_new_session=True, stderr=subprocess.PIPE, text=True)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
# a terminal sends Ctrl-C to all of them, systemd SIGTERM
@pytest.mark.parametrize("number, to_all", [
    (signal.SIGKILL, False), pytest.param(signal.SIGTERM, True, marks=pytest.mark.slow),
    pytest.param(signal.SIGINT, True, marks=pytest.mark.slow)])
def test_workers_end_with_their_parent_whatever_ends_it(tmp_path, number, to_all):
    folder = tmp_path / "work"
    folder.mkdir()
    with start(folder, tmp_path / "busy.py") as process:
        assert wait_until(lambda: len(list(folder.glob("ready-*"))) == 2)
        assert len(members(process.pid)) == 4  # this one, two workers and the resource tracker
        (os.killpg if to_all else os.kill)(process.pid, number)
        _, said = process.communicate(timeout=60)
        assert wait_until(lambda: not members(process.pid), 10), members(process.pid)
    assert process.returncode == (130 if number == signal.SIGINT else -number)
    assert "Traceback" not in said
    assert not [path for path in folder.iterdir() if not path.name.startswith("ready-")]  # no worker leaves a half file


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
def test_ctrl_c_while_workers_start_prints_nothing_of_them(tmp_path):
    with start(tmp_path, tmp_path / "busy.py") as process:
        assert wait_until(lambda: len(members(process.pid)) >= 3)  # they exist, and are still loading
        os.killpg(process.pid, signal.SIGINT)
        _, said = process.communicate(timeout=60)
        assert wait_until(lambda: not members(process.pid), 10), members(process.pid)
    assert process.returncode == 130 and not said


def test_without_shared_memory_it_is_one_sentence(monkeypatch):
    def refuse(*_, **__):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("multiprocessing.synchronize.SemLock.__init__", refuse)
    with pytest.raises(MachineError, match="^worker processes cannot be started: Function not implemented; can /dev/shm be"):
        with Workers(1):
            pass


def test_where_no_process_can_be_started_it_is_one_sentence(monkeypatch):
    def refuse(*_, **__):
        raise BlockingIOError(11, "Resource temporarily unavailable")

    with Workers(1) as pool:
        monkeypatch.setattr("multiprocessing.popen_spawn_posix.Popen._launch", refuse)
        with pytest.raises(MachineError, match="^worker processes cannot be started: Resource temporarily unavailable; try"):
            pool.run(abs, [(1,)], 1, 0, "never", quiet=True)


def test_a_machine_that_refuses_does_not_cost_the_work_done_so_far(tmp_path, monkeypatch):
    truth = make_actor(tmp_path, size=128, seconds=3.2, seed=0, quiet=True)

    def refuse(*_, **__):
        raise MachineError("a process died")

    monkeypatch.setattr(Workers, "run", refuse)
    with pytest.raises(MachineError):
        process(truth.video, tmp_path / "clip", config=ProcessConfig(), quiet=True)
    assert list((tmp_path / "clip" / ".partial").rglob("video.json"))


def test_the_report_of_a_clip_whose_names_are_not_utf8(actor_clip, tmp_path):
    clip, _ = actor_clip
    made = Clip(tmp_path / os.fsdecode(b"caf\xe9"))
    shutil.copytree(clip.root, made.root)
    made.save_info(dataclasses.replace(clip.info, name=made.root.name, source_name=os.fsdecode(b"\xff.mp4")))
    assert Clip(made.root).info.name == made.root.name
    made.report.unlink()
    write_report(made)
    page = made.report.read_text(encoding="utf-8")
    assert "caf\\udce9" in page and "\\udcff.mp4" in page
    np.testing.assert_array_equal(next(made.frames()), next(clip.frames()))


@pytest.mark.parametrize("frames", [1, 49, 50, 51, 300, 1601, 5000, 100_001])
def test_chunks_cover_the_video_and_keep_to_their_limits(frames):
    spans = chunk_spans(frames)
    assert spans[0][0] == 0 and spans[-1][1] == frames
    assert [start for start, _ in spans[1:]] == [stop for _, stop in spans[:-1]]
    lengths = [stop - start for start, stop in spans]
    assert all(SHORTEST <= length <= LONGEST for length in lengths[:-1]) and 0 < lengths[-1] <= LONGEST
    assert len(spans) <= max(PARTS, -(-frames // LONGEST))


def test_worker_modules_do_not_load_torch():
    code = ("import sys, process_data.detection.detection_pass, process_data.segmentation.segmentation_pass; "
            "sys.exit('torch' in sys.modules)")
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
