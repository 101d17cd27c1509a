"""Locks that name their holder and no dead process keeps; folders that change at once or not at all."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from shared import lock, publish
from shared.errors import TalkheadError
from shared.files import refuse_inputs, same_file
from shared.lock import folder_lock, holder, lock_folder, lock_output, output_lock, remove_abandoned
from shared.publish import WORK, finish_move, work_folder

ROOT = Path(__file__).resolve().parents[2]
HOLD = """
import sys, time
from pathlib import Path
from shared.lock import lock_folder, lock_output
with {call}(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@contextlib.contextmanager
def other_process(call, path):
    """Another process that holds a lock."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    child = subprocess.Popen([sys.executable, "-c", HOLD.format(call=call), str(path)], stdout=subprocess.PIPE, env=environment)
    try:
        assert child.stdout.readline() == b"held\n"
        yield child
    finally:
        child.kill()
        child.wait()
        child.stdout.close()


def test_a_second_run_is_refused_and_told_which_process_is_at_work(tmp_path):
    with other_process("lock_folder", tmp_path / "me") as child:
        with pytest.raises(TalkheadError, match=rf"me is being written by another talkhead, process {child.pid} since "
                                                r"20\d\d-.*; wait until it ends, or stop it"):
            with lock_folder(tmp_path / "me"):
                pass
        assert f"process {child.pid}" in holder(folder_lock(tmp_path / "me"))
        child.send_signal(signal.SIGKILL)
        child.wait()
        assert folder_lock(tmp_path / "me").is_file() and holder(folder_lock(tmp_path / "me")) is None
        with lock_folder(tmp_path / "me"):  # the lock of a dead process is taken over
            assert json.loads(folder_lock(tmp_path / "me").read_text())["pid"] == os.getpid()
    assert list((tmp_path / "me").iterdir()) == []


def test_an_output_is_made_by_one_process_at_a_time(tmp_path):
    with other_process("lock_output", tmp_path / "talk.mp4") as child:
        with pytest.raises(TalkheadError, match=f"talk.mp4 is being written by another talkhead, process {child.pid} "):
            with lock_output(tmp_path / "talk.mp4"):
                pass
        with lock_output(tmp_path / "other.mp4"):
            pass


def test_a_lock_leaves_nothing_and_may_be_taken_twice_by_one_process(tmp_path):
    with lock_output(tmp_path / "new" / "folder" / "a.npy"):
        with lock_output(tmp_path / "new" / "folder" / "a.npy"):
            assert (tmp_path / "new" / "folder").is_dir()
        assert output_lock(tmp_path / "new" / "folder" / "a.npy").is_file()
    assert list(tmp_path.iterdir()) == []
    name = 80 * "長"  # 240 bytes, to which nothing can be added
    with lock_output(tmp_path / name):
        assert len(list(tmp_path.iterdir())) == 1
    (tmp_path / "file").write_text("mine")
    with pytest.raises(TalkheadError, match="cannot create the folder .*file: File exists"):
        with lock_folder(tmp_path / "file"):
            pass
    assert (tmp_path / "file").read_text() == "mine"


def test_without_file_locks_the_process_named_must_be_dead(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "fcntl", None)
    file = folder_lock(tmp_path)
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    for pid, host, free in ((dead.pid, lock.socket.gethostname(), True), (os.getppid(), lock.socket.gethostname(), False),
                            (dead.pid, "elsewhere", False)):
        file.write_text(json.dumps({"pid": pid, "host": host, "since": "now", "command": "talkhead process"}))
        if free:
            with lock_folder(tmp_path):
                pass
        else:
            with pytest.raises(TalkheadError, match=f"process {pid}{' on elsewhere' if host == 'elsewhere' else ''} since now"):
                with lock_folder(tmp_path):
                    pass
    file.write_bytes(b"\xff{")  # damaged: nobody's
    with lock_folder(tmp_path):
        pass


def test_what_killed_processes_left_half_written_goes(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    for pid in (dead.pid, os.getppid()):
        (tmp_path / f".talk.partial-{pid}.mp4").touch()
        (tmp_path / f".other.partial-{pid}.mp4").touch()
    with lock_output(tmp_path / "talk.mp4"):
        pass
    assert {path.name for path in tmp_path.iterdir()} == {
        f".talk.partial-{os.getppid()}.mp4", f".other.partial-{dead.pid}.mp4", f".other.partial-{os.getppid()}.mp4"}
    remove_abandoned(tmp_path, age=3600)
    assert (tmp_path / f".other.partial-{dead.pid}.mp4").exists()
    remove_abandoned(tmp_path)
    assert not (tmp_path / f".other.partial-{dead.pid}.mp4").exists()


def state(folder):
    return {path.name: path.read_text() for path in folder.iterdir() if path.is_file() and path.name != ".lock"}


OLD = {"a": "old a", "b": "old b", "gone": "old", "list.json": "old list"}
NEW = {"a": "new a", "b": "old b", "c": "new c", "list.json": "new list"}


@pytest.fixture
def folder(tmp_path):
    """A folder with the old files, and the new ones in its work folder."""
    root = tmp_path / "folder"
    work = work_folder(root, "key/built")
    work.mkdir(parents=True)
    for name, text in OLD.items():
        (root / name).write_text(text)
    (root / "derived").mkdir()
    (root / "derived" / "state").write_text("old")
    for name in ("a", "c", "list.json"):
        (work / name).write_text(NEW[name])
    return root


@pytest.mark.parametrize("kill", range(12))
def test_killed_at_any_step_the_folder_is_the_old_or_the_new_one(folder, kill):
    """A forked child moves the files and kills itself before its step number `kill`."""
    steps = ("replace", "rename", "unlink", "rmdir", "fsync")
    pid = os.fork()
    if not pid:
        count = 0

        def deadly(call):
            def step(*arguments, **more):
                nonlocal count
                count += 1
                if count > kill:
                    os.kill(os.getpid(), signal.SIGKILL)
                return call(*arguments, **more)
            return step

        for name in steps:
            setattr(os, name, deadly(getattr(os, name)))
        publish.publish(folder, "key/built", last="list.json", stale=["gone", "derived", "a"])
        os._exit(0)
    os.waitpid(pid, 0)
    begun = (folder / WORK / "move.json").is_file()
    finish_move(folder)
    if state(folder) == OLD:
        assert not begun and (folder / "derived" / "state").is_file()
        publish.publish(folder, "key/built", last="list.json", stale=["gone", "derived", "a"])
    assert state(folder) == NEW and not (folder / "derived").exists() and not (folder / WORK / "key" / "built").exists()


def test_who_opens_a_folder_waits_for_a_move_that_goes_on(folder, monkeypatch):
    (folder / WORK / "move.json").write_text(json.dumps({"from": "key/built", "files": ["a"], "stale": []}))
    with other_process("lock_folder", folder) as child:
        monkeypatch.setattr(publish, "PATIENCE", 0.2)
        began = time.monotonic()
        with pytest.raises(TalkheadError, match=f"process {child.pid} "):
            finish_move(folder)
        assert time.monotonic() - began >= 0.2
    finish_move(folder)
    assert (folder / "a").read_text() == "new a"


def test_an_output_that_is_an_input_is_refused_by_any_path(tmp_path):
    source, link, hard = tmp_path / "a.npy", tmp_path / "link.npy", tmp_path / "hard.npy"
    source.write_text("mine")
    link.symlink_to(source)
    os.link(source, hard)
    for output in (source, link, hard, tmp_path / "x" / ".." / "a.npy"):
        (tmp_path / "x").mkdir(exist_ok=True)
        assert same_file(output, source)
        with pytest.raises(TalkheadError, match="is the same file as .*, which is read; name another output"):
            refuse_inputs(output, None, source)
    with pytest.raises(TalkheadError, match="a.npy, which is read, lies in .*, which would be replaced"):
        refuse_inputs(tmp_path, source)
    refuse_inputs(tmp_path / "new.npy", source, None)


def test_a_folder_of_output_is_replaced_at_once_and_not_at_all_on_an_error(tmp_path):
    folder = tmp_path / "frames"
    with publish.whole_folder(folder, "b", lambda name: name != "mine") as work:
        (work / "a").write_text("1")
        (work / "b").write_text("1")
    (folder / "mine").write_text("kept")
    with pytest.raises(KeyboardInterrupt), publish.whole_folder(folder, "b", lambda name: name != "mine") as work:
        (work / "b").write_text("2")
        raise KeyboardInterrupt
    assert state(folder) == {"a": "1", "b": "1", "mine": "kept"} and not (folder / WORK).exists()
    with publish.whole_folder(folder, "b", lambda name: name in ("a", "b")) as work:
        (work / "b").write_text("2")
        assert state(folder)["b"] == "1"
    assert state(folder) == {"b": "2", "mine": "kept"} and sorted(path.name for path in folder.iterdir()) == ["b", "mine"]
