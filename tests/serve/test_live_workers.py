"""Live workers that die, hang or talk nonsense: their conversations are told, others notice nothing, and they are replaced."""

import os
import signal
import threading
import time

import pytest

from serve import live_workers
from serve.live_workers import LiveWorkers, gpu_count
from serve.metrics import Metrics
from serve.settings import ServeSettings
from tests.serve.fake_worker import Seed
from tests.serve.hostile_sockets import empty, ended
from tests.serve.serving import serving, wait_for


@pytest.fixture
def two(tmp_path):
    """A service with two workers, which are soon replaced and soon taken to hang."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LiveWorkers.__init__, "__kwdefaults__", {"silence": 1.5, "pause": 0.1})
        with serving(tmp_path, live_workers=2) as service:
            wait_for(lambda: len(service.app.state.workers.up) == 2, 30)
            yield service


def fails(service, seed):
    """One conversation makes its worker fail; the other, of the other worker, goes on. -> how the first ends."""
    one, ready = service.talk(seed=seed)
    other, other_ready = service.talk()
    assert {ready["worker"], other_ready["worker"]} == {0, 1}
    one.send(bytes(1280))
    found = ended(one)
    other.send(bytes(1280))
    assert len(other.recv(timeout=5)) == 16 + 820
    wait_for(lambda: len(service.app.state.workers.up) == 2, 20)
    again, ready_again = service.talk()
    assert ready_again["worker"] == ready["worker"]
    for socket in (again, other):
        socket.close()
    empty(service)
    assert service.app.state.metrics.worker_restarts.values[""] == 1
    return found


def test_a_worker_that_dies(two):
    assert fails(two, Seed.DIE) == "error `worker_lost`, close 1012"


@pytest.mark.slow
def test_a_worker_that_hangs(two):
    began = time.monotonic()
    assert fails(two, Seed.HANG) == "error `worker_lost`, close 1012"
    assert time.monotonic() - began > 1.5


@pytest.mark.slow
def test_a_worker_that_talks_nonsense(two):
    assert fails(two, Seed.NONSENSE) == "error `worker_lost`, close 1012"


@pytest.mark.slow
def test_a_worker_that_is_killed(two):
    one, ready = two.talk()
    os.kill(two.app.state.workers._workers[ready["worker"]].process.pid, signal.SIGKILL)
    assert ended(one) == "error `worker_lost`, close 1012"
    wait_for(lambda: len(two.app.state.workers.up) == 2, 20)


def test_a_worker_that_takes_no_sound_stops_nobody_else(two):
    """Its pipe fills; what its client sends waits in the network, and the other worker's client is answered at once."""
    one, ready = two.talk()
    other, _ = two.talk()
    pid = two.app.state.workers._workers[ready["worker"]].process.pid
    os.kill(pid, signal.SIGSTOP)
    try:
        for _ in range(4):
            one.send(bytes(1_000_000))
        began = time.monotonic()
        other.send(bytes(1280))
        other.recv(timeout=5)
        assert time.monotonic() - began < 1
        assert sum(worker._outgoing.qsize() for worker in two.app.state.workers._workers.values()) <= 1
    finally:
        os.kill(pid, signal.SIGCONT)
    assert len(one.recv(timeout=10)) == 16 + 820
    for socket in (one, other):
        socket.close()


def test_workers_end_with_the_service_and_are_not_asked_by_signals(tmp_path):
    with serving(tmp_path) as service:
        service.wait_ready()
        pid = service.app.state.workers._workers[0].process.pid
        for number in (signal.SIGINT, signal.SIGTERM):  # as Ctrl-C and systemd send them to all
            os.kill(pid, number)
        time.sleep(0.3)
        service.talk()[0].close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.slow
def test_a_worker_ends_with_a_service_that_is_killed(tmp_path):
    import subprocess
    import sys

    code = ("import sys, time\nfrom pathlib import Path\nfrom tests.serve.serving import serving\nif __name__ == '__main__':\n"
            "    with serving(Path(sys.argv[1]), 'tests.serve.fake_worker:never_up') as service:\n"
            "        print(service.app.state.workers._workers[0].process.pid, flush=True)\n        time.sleep(60)\n")
    script = tmp_path / "service.py"
    script.write_text(code)
    with subprocess.Popen([sys.executable, script, tmp_path], stdout=subprocess.PIPE, text=True,
                          env={**os.environ, "PYTHONPATH": os.getcwd()}) as service:
        pid = int(service.stdout.readline())
        service.kill()

    def gone():
        try:
            return open(f"/proc/{pid}/stat").read().split(")")[1].split()[0] == "Z"
        except FileNotFoundError:
            return True

    wait_for(gone)


@pytest.mark.slow
def test_a_service_whose_workers_never_load_gives_up(tmp_path, monkeypatch):
    monkeypatch.setattr(LiveWorkers.__init__, "__kwdefaults__", {"silence": 5.0, "pause": 0.05})
    with serving(tmp_path, "tests.serve.fake_worker:cannot_load") as service:
        service.thread.join(30)
        assert service.server.hopeless and not service.thread.is_alive()


def test_a_service_whose_avatars_are_refused_gives_up_at_once(tmp_path, capfd):
    with serving(tmp_path, "tests.serve.fake_worker:refuses") as service:
        service.thread.join(30)
        assert service.server.hopeless and service.app.state.metrics.worker_restarts.values[""] == 1
    assert "live worker 0: me.avatar is damaged\n" in capfd.readouterr().err


def test_workers_get_no_secrets():
    workers = LiveWorkers(ServeSettings({}, "", token="t" * 16, tls_key="key", tls_cert="cert", live_workers=3), Metrics())
    assert workers.count == workers.settings.live_workers == 3
    assert workers.settings.token is workers.settings.tls_key is workers.settings.tls_cert is None


def test_gpus_are_counted_without_loading_cuda(monkeypatch, tmp_path):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    monkeypatch.setattr(live_workers, "DEVICES", tmp_path)
    assert gpu_count("auto") == gpu_count("cuda") == 2
    assert gpu_count("cpu") == 0 and gpu_count("cuda:1") == 1
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert gpu_count("auto") == 1
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert gpu_count("auto") == 0


@pytest.mark.slow
def test_after_the_interface_stood_still_no_worker_is_blamed(two):
    """As after the machine slept: nothing was heard for long, but nobody was listening."""
    one, ready = two.talk()
    stood = threading.Event()
    two.app.state.workers._workers[0].loop.call_soon_threadsafe(lambda: (time.sleep(4.0), stood.set()))
    assert stood.wait(10)
    time.sleep(1.0)
    one.send(bytes(1280))
    assert len(one.recv(timeout=5)) == 16 + 820
    assert two.app.state.metrics.worker_restarts.values[""] == 0
    one.close()
