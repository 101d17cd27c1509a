"""`talkhead serve`: what it says, and what keeps it from starting, in one sentence."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from http.client import HTTPConnection
from pathlib import Path

import pytest
from click.testing import CliRunner

from cli import cli
from serve.command import default_folder, find_avatars, start_message
from serve.server import address, listen
from serve.settings import ServeSettings
from shared.errors import TalkheadError
from talkhead import doctor
from tests.serve.serving import TOKEN, of_type, wait_for


def make_avatars(folder, *names):
    for name in names:
        (folder / name).mkdir(parents=True)
        (folder / name / "avatar.json").write_text("{}")


def run(*arguments, **environment):
    return CliRunner().invoke(cli, ["serve", *map(str, arguments)], env=environment)


def refused(result, sentence):
    assert result.exit_code == 2, result.output
    assert re.fullmatch(re.escape(f"Error: {sentence}").replace(r"\.\.\.", ".*") + "\n", result.output), result.output


def test_avatars_are_named_after_their_files(tmp_path):
    make_avatars(tmp_path, "me.avatar", "you", ".hidden.avatar")
    (tmp_path / "packed.avatar").write_bytes(b"x")
    (tmp_path / "notes.txt").write_text("x")
    found = {"me": str(tmp_path / "me.avatar"), "packed": str(tmp_path / "packed.avatar"), "you": str(tmp_path / "you")}
    assert find_avatars([tmp_path]) == found
    assert list(find_avatars([tmp_path / "you", tmp_path])) == ["you", "me", "packed"]  # the first is the default; twice is once
    assert find_avatars([tmp_path / "me.avatar"]) == {"me": found["me"]}


def test_avatars_that_cannot_be_served(tmp_path):
    make_avatars(tmp_path, "me.avatar", "other/me.avatar", "odd/a\nb.avatar")
    (tmp_path / "empty").mkdir()
    refused(run(tmp_path / "none"), f"{tmp_path}/none does not exist; name an avatar, or a folder of avatars")
    refused(run(tmp_path / "empty"),
            f"{tmp_path}/empty: there is no avatar in this folder; name an avatar, or a folder of avatars")
    refused(run(tmp_path, tmp_path / "other"),
            f"{tmp_path}/me.avatar and {tmp_path}/other/me.avatar have one name, 'me', by which clients ask for them; rename one")
    refused(run(tmp_path / "odd"),
            f"{tmp_path}/odd/a\\nb.avatar: an avatar that is served should have a name of 1 to 80 printable characters; "
            "rename it")
    refused(run(tmp_path / "me.avatar", "--folder", tmp_path / "jobs", "--port", 0), f"{tmp_path}/me.avatar/avatar.json...")


def test_settings_that_are_refused_before_anything_starts(tmp_path):
    make_avatars(tmp_path, "me.avatar")
    me, folder = tmp_path / "me.avatar", ("--folder", tmp_path / "jobs")
    refused(run(me, *folder, "--host", "0.0.0.0"),
            "--host 0.0.0.0 can be reached from other machines; give a token with --token or TALKHEAD_TOKEN (`openssl rand -hex "
            "16` makes one), or leave --host away")
    refused(run(me, *folder, "--host", "0.0.0.0", TALKHEAD_TOKEN="short"),
            "the token should be 16 to 256 letters, digits and signs without spaces, found 5 characters; `openssl rand -hex 16` "
            "makes one")
    refused(run(me, *folder, "--tls-cert", "cert.pem"), "--tls-cert and --tls-key go together; name both or neither")
    refused(run(me, *folder, "--tls-cert", "c.pem", "--tls-key", "k.pem"), "--tls-cert c.pem and --tls-key k.pem should be a "
            "certificate and its key in PEM files, the key without a password: there is no such file")
    refused(run(me, *folder, "--origin", "evil"),
            "--origin should be as https://avatars.example.org or http://name:8000, found 'evil'")
    refused(run(me, *folder, "--host", "host.invalid", "--token", TOKEN), "--host host.invalid is no address of this machine...")
    refused(run(me, *folder, "--host", "192.0.2.1", "--token", TOKEN),
            "--host 192.0.2.1 cannot be listened on: Cannot assign requested address; name an address of this machine")
    assert not (tmp_path / "jobs" / "journal.sqlite3").exists()


def test_a_port_in_use(tmp_path):
    make_avatars(tmp_path, "me.avatar")
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        refused(run(tmp_path / "me.avatar", "--folder", tmp_path / "jobs", "--port", port),
                f"port {port} of 127.0.0.1 is in use; name another with --port, or end what uses it")


def test_a_folder_in_use(tmp_path):
    from shared.lock import folder_lock

    make_avatars(tmp_path, "me.avatar")
    (tmp_path / "jobs").mkdir()
    code = "import sys, time; from pathlib import Path; from shared.lock import lock_folder\n" \
           "with lock_folder(Path(sys.argv[1])): print('held', flush=True); time.sleep(30)"
    with subprocess.Popen([sys.executable, "-c", code, tmp_path / "jobs"], stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        result = run(tmp_path / "me.avatar", "--folder", tmp_path / "jobs", "--port", 0)
        other.kill()
    assert result.exit_code == 2 and result.output.startswith("Error: ") and str(other.pid) in result.output
    assert folder_lock(tmp_path / "jobs").exists()


def test_a_missing_extra(tmp_path, monkeypatch):
    make_avatars(tmp_path, "me.avatar")
    monkeypatch.setattr(doctor, "SERVE", ("fastapi", "no_such_module", "nor_this"))
    refused(run(tmp_path / "me.avatar", "--folder", tmp_path / "jobs"), "`talkhead serve` needs no_such_module and nor_this; "
            "install what it needs with `pip install 'talkhead[serve]'`")


def test_the_help_loads_no_interface():
    code = "import sys, cli; cli.cli.make_context('x', ['serve', '-h'], resilient_parsing=True); " \
           "print([m for m in ('torch', 'fastapi', 'uvicorn', 'pydantic') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    help = run("--help").output
    for name in ServeSettings.__dataclass_fields__:
        option = {"upload_bytes": "upload-mb", "upload_seconds": "upload-minutes", "keep_bytes": "keep-gb", "origins": "origin",
                  "avatars": "AVATAR...|FOLDER"}.get(name, name.replace("_", "-"))
        assert option in help


def test_where_jobs_are_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "talkhead" / "serve" and default_folder().stat().st_mode & 0o077 == 0
    monkeypatch.setattr("shared.machine.state_folder", lambda name: None)
    with pytest.raises(TalkheadError, match="name one with --folder$"):
        default_folder()


def test_what_is_said_at_the_start():
    def said(**changes):
        settings = ServeSettings({"me": "", "you": ""}, "/kept", **changes)
        with listen("127.0.0.1", 0) as listener:
            return address(settings, listener), "\n".join(start_message(settings, "http://127.0.0.1:8000"))

    url, text = said()
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+", url)
    assert "me, you" in text and "/kept" in text and "ssh -L 8000:127.0.0.1:8000" in text and "without a token" in text
    url, text = said(host="0.0.0.0", token=TOKEN)
    assert url.startswith(f"http://{socket.gethostname()}:") and "no microphone" in text and TOKEN not in text
    url, text = said(host="::1", tls_cert="c", tls_key="k")
    assert url.startswith("https://[::1]:") and "microphone" not in text and "ssh" not in text


@pytest.mark.slow
@pytest.mark.parametrize("number, seconds", [(signal.SIGTERM, 30), (signal.SIGINT, 5), (signal.SIGHUP, 30)])
def test_the_process_from_start_to_end(tmp_path, number, seconds):
    """With a fake worker: it says when it is ready, ends when it is asked to, with exit code 0, and leaves no process."""
    from websockets.sync.client import connect

    make_avatars(tmp_path, "me.avatar")
    script = tmp_path / "start.py"
    script.write_text("import cli\nfrom serve import app, command\nfrom talkhead.commands import runner\n"
                      "if __name__ == '__main__':\n    command.check_avatars = lambda settings: None\n"
                      "    app.create_app.__defaults__ = ('tests.serve.fake_worker:main',)\n    runner.run(cli.cli)\n")
    with subprocess.Popen([sys.executable, script, "serve", tmp_path / "me.avatar", "--folder", tmp_path / "jobs", "--port", "0",
                           "--drain-seconds", "20"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=Path.cwd(),
                          env={**os.environ, "PYTHONPATH": os.getcwd()}) as process:
        lines = []
        while "Ready" not in (line := process.stdout.readline()):
            lines.append(line)
            assert line, process.stderr.read()
        url = line.split()[-1]
        assert lines[0] == f"talkhead serve: {url}\n" and "  avatars  me\n" in lines
        one = HTTPConnection(url.removeprefix("http://"), timeout=10)
        one.request("GET", "/readyz")
        assert one.getresponse().status == 200
        with connect(url.replace("http", "ws") + "/v1/live", compression=None, proxy=None, close_timeout=1) as client:
            client.send('{"type": "session.init"}')
            of_type(client, "session.ready")
            process.send_signal(number)
            began = time.monotonic()
            of_type(client, "session.closing")
        out, errors = process.communicate(timeout=20)
        assert time.monotonic() - began < seconds
        assert process.returncode == 0 and out == "Stopped. Jobs that were not finished are continued when it is started again.\n"
        assert errors == ""
    wait_for(lambda: not [pid for pid in Path("/proc").glob("[0-9]*") if str(tmp_path).encode() in read(pid / "cmdline")])


def read(path):
    try:
        return path.read_bytes()
    except OSError:
        return b""
