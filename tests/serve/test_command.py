"""`talkhead serve`: what it says, and what keeps it from starting, in one sentence."""

import dataclasses
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager, nullcontext
from http.client import HTTPConnection
from pathlib import Path

import pytest
from click.testing import CliRunner

from cli import cli
from serve.command import default_folder, find_avatars, start_message
from serve.server import address, listen
from serve.settings import ServeSettings
from shared.avatar import AvatarInfo
from shared.errors import TalkheadError
from talkhead import doctor
from tests.serve.serving import TOKEN, of_type, wait_for


def make_avatars(folder, *names):
    for name in names:
        (folder / name).mkdir(parents=True)
        info = AvatarInfo("me", 64, 64, (100.0, 100.0, 32.0, 32.0), 25)
        (folder / name / "avatar.json").write_text(json.dumps(dataclasses.asdict(info)))


def run(*arguments, **environment):
    return CliRunner().invoke(cli, ["serve", *map(str, arguments)], env=environment)


def test_avatars_are_named_after_their_files(tmp_path):
    make_avatars(tmp_path, "me.avatar", "you", ".hidden.avatar")
    (tmp_path / "packed.avatar").write_bytes(b"x")
    (tmp_path / "notes.txt").write_text("x")
    found = {"me": str(tmp_path / "me.avatar"), "packed": str(tmp_path / "packed.avatar"), "you": str(tmp_path / "you")}
    assert find_avatars([tmp_path]) == found
    assert list(find_avatars([tmp_path / "you", tmp_path])) == ["you", "me", "packed"]  # the first is the default; twice is once
    assert find_avatars([tmp_path / "me.avatar"]) == {"me": found["me"]}


@contextmanager
def port_in_use(root):
    with socket.create_server(("127.0.0.1", 0)) as other:
        yield [root / "me.avatar", "--port", other.getsockname()[1]]


@contextmanager
def folder_in_use(root):
    code = "import sys; from pathlib import Path; from shared.lock import lock_folder\n" \
           "with lock_folder(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", code, root / "jobs"], stdout=subprocess.PIPE, stdin=subprocess.PIPE) as other:
        other.stdout.readline()
        yield [root / "me.avatar"]
        other.stdin.close()


@contextmanager
def nothing_installed(root):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(doctor, "SERVE", ("fastapi", "no_such_module"))
        yield [root / "me.avatar"]


BAD = {
    "serve of what does not exist": lambda root: [root / "none"],
    "serve of a folder without avatars": lambda root: [root / "empty"],
    "two avatars of one name": lambda root: [root / "me.avatar", root / "other"],
    "an avatar whose name has a line end": lambda root: [root / "odd"],
    "an avatar that cannot speak yet": lambda root: [root / "me.avatar"],
    "another --host without a token": lambda root: [root / "me.avatar", "--host", "0.0.0.0"],
    "a short token": lambda root: [root / "me.avatar", "--token", "short"],
    "--tls-cert without --tls-key": lambda root: [root / "me.avatar", "--tls-cert", "c.pem"],
    "a certificate that does not exist": lambda root: [root / "me.avatar", "--tls-cert", "c.pem", "--tls-key", "k.pem"],
    "an --origin that is none": lambda root: [root / "me.avatar", "--origin", "evil"],
    "a --host that is not known": lambda root: [root / "me.avatar", "--host", "host.invalid", "--token", TOKEN],
    "the --host of another machine": lambda root: [root / "me.avatar", "--host", "192.0.2.1", "--token", TOKEN],
    "a port in use": port_in_use,
    "a --folder in which another service works": folder_in_use,
    "serve without the extra": nothing_installed,
}


@pytest.mark.parametrize("what", BAD)
def test_what_keeps_it_from_starting_is_said_as_on_the_page(what, tmp_path):
    make_avatars(tmp_path, "me.avatar", "other/me.avatar", "odd/a\nb.avatar")
    (tmp_path / "empty").mkdir()
    given = BAD[what](tmp_path)
    with nullcontext(given) if isinstance(given, list) else given as arguments:
        result = run("--folder", tmp_path / "jobs", *([] if "--port" in arguments else ["--port", 0]), *arguments)
    page = (Path(__file__).resolve().parents[2] / "docs" / "bad_inputs.md").read_text("utf-8")
    table = dict(re.findall(r"^\| (.+?) \| refused \| (.*?) \|$", page.split("\n## Serve\n")[1].split("\n## ")[0], re.M))
    assert set(table) == set(BAD)
    expected = re.escape(table[what])
    for word, pattern in {"AVATAR": "[^ ]+", "FOLDER": "[^ ]+", "N": "[0-9]+", "…": ".+"}.items():
        expected = re.sub(rf"(?<!\w){word}(?!\w)", pattern, expected)
    assert result.exit_code == 2 and re.fullmatch(f"Error: {expected}\n", result.output), result.output
    assert not (tmp_path / "jobs" / "journal.sqlite3").exists()


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
                      "    app.create_app.__defaults__ = ('tests.serve.fake_worker:main', False)\n    runner.run(cli.cli)\n")
    with subprocess.Popen([sys.executable, script, "serve", tmp_path / "me.avatar", "--folder", tmp_path / "jobs", "--port", "0",
                           "--drain-seconds", "20"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=Path.cwd(),
                          env={**os.environ, "PYTHONPATH": os.getcwd()},
                          preexec_fn=lambda: signal.signal(number, signal.SIG_DFL)) as process:  # under nohup it is ignored
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
