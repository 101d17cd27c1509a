"""The application: what it loads, health, the page, errors in one shape, OpenAPI."""

import os
import subprocess
import sys

import pytest
from fastapi import FastAPI
from pydantic import BaseModel

from serve import app as module
from shared.errors import MachineError, TalkheadError
from tests.serve.serving import serving

HEAVY = ("torch", "numba", "av", "cv2", "scipy", "mediapipe")


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    page = tmp_path_factory.mktemp("page")
    (page / "index.html").write_text("<!doctype html><title>me</title>")
    (page / "live.js").write_text("'use strict'")
    (page.parent / "secret.js").write_text("no")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "PAGE", page)
        with serving(tmp_path_factory.mktemp("service")) as service:
            add_routes(service.app)
            service.wait_ready()
            yield service


class Wish(BaseModel):
    """A body with fields that may be wrong."""

    seconds: int
    name: str = ""


def add_routes(app: FastAPI) -> None:
    @app.post("/wish")
    async def wish(wish: Wish) -> dict:
        return wish.model_dump()

    @app.get("/refused/{kind}")
    async def refused(kind: str) -> dict:
        raise {"user": TalkheadError("speech.wav is empty"), "machine": MachineError("the disk is full"),
               "ours": ZeroDivisionError("secret")}[kind]


@pytest.mark.slow
def test_the_interface_process_loads_nothing_heavy(tmp_path):
    """Not at its start, and not after it has answered."""
    code = ("import sys\nfrom pathlib import Path\nfrom tests.serve.serving import serving\nif __name__ == '__main__':\n"
            "    with serving(Path(sys.argv[1])) as service:\n        service.wait_ready()\n"
            "        service.talk()[0].close()\n"
            "        for path in ('/', '/metrics', '/openapi.json', '/v1/avatars', '/v1/models', '/v1/videos'):\n"
            "            service.ask('GET', path)\n"
            f"    print([name for name in {HEAVY!r} if name in sys.modules])\n")
    script = tmp_path / "service.py"
    script.write_text(code)
    done = subprocess.run([sys.executable, script, tmp_path], env={**os.environ, "PYTHONPATH": "."},
                          capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_making_the_application_loads_nothing_heavy():
    code = ("import sys; from serve.app import create_app; from serve.settings import ServeSettings; import serve.command; "
            f"create_app(ServeSettings({{}}, '/nowhere')); print([name for name in {HEAVY!r} if name in sys.modules])")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_health(service):
    for path in ("/healthz", "/health"):
        assert (service.ask("GET", path).status, service.ask("GET", path).json) == (200, {"status": "ok"})
    assert service.ask("GET", "/readyz").json == {"status": "ready"}


def test_the_page_and_its_files(service):
    answer = service.ask("GET", "/")
    assert answer.status == 200 and answer.headers["content-type"].startswith("text/html") and b"<title>me" in answer.body
    answer = service.ask("GET", "/page/live.js")
    assert answer.status == 200 and "javascript" in answer.headers["content-type"]
    assert answer.headers["cache-control"] == "no-cache"
    assert service.ask("GET", "/page/secret.js").code == service.ask("GET", "/page/..%2fsecret.js").code == "not_found"


@pytest.mark.parametrize("method, path, status, code, message", [
    ("GET", "/nothing", 404, "not_found", "there is nothing at /nothing"),
    ("DELETE", "/healthz", 405, "method_not_allowed", "/healthz does not take DELETE"),
    ("GET", "/refused/user", 400, "invalid_value", "speech.wav is empty"),
    ("GET", "/refused/machine", 503, "machine", "the disk is full"),
    ("GET", "/refused/ours", 500, "failed", "something went wrong in the service; its log tells what"),
    ("GET", "/{0}{path}%7B", 404, "not_found", "there is nothing at /{0}{path}{"),
])
def test_errors_have_one_shape(service, method, path, status, code, message):
    answer = service.ask(method, path)
    assert (answer.status, answer.code) == (status, code)
    assert answer.json["error"]["message"] == message
    assert answer.json["error"]["type"] == ("server_error" if status >= 500 else "invalid_request_error")


def test_a_failure_is_answered_as_all_else_is(service, caplog):
    answer = service.ask("GET", "/refused/ours")
    assert answer.headers["x-content-type-options"] == "nosniff" and b"secret" not in answer.body
    assert "ZeroDivisionError" in caplog.text


def test_a_wrong_field_is_named(service):
    answer = service.ask("POST", "/wish", b'{"seconds": "many"}', Content_Type="application/json")
    assert (answer.status, answer.code, answer.json["error"]["param"]) == (422, "invalid_value", "seconds")
    assert answer.json["error"]["message"].startswith("seconds: ")
    answer = service.ask("POST", "/wish", b"{", Content_Type="application/json")
    assert (answer.status, answer.code) == (422, "invalid_value")
    assert service.ask("POST", "/wish", b'{"seconds": 5}', Content_Type="application/json").json["seconds"] == 5


def test_405_says_what_is_taken(service):
    assert service.ask("DELETE", "/healthz").headers["allow"] == "GET"


def test_openapi_and_no_page_that_loads_from_elsewhere(service):
    answer = service.ask("GET", "/openapi.json")
    paths = answer.json["paths"]
    assert answer.status == 200 and {"/v1/live", "/healthz", "/readyz", "/metrics"} <= set(paths)
    for path in ("/docs", "/redoc", "/docs/oauth2-redirect"):
        assert service.ask("GET", path).status == 404
