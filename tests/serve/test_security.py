"""Who is let in and who is not: every row of docs/serve.md's table, settings that are refused, headers, CORS, TLS."""

import re
import ssl
import subprocess
from types import SimpleNamespace

import pytest
from websockets.sync.client import connect

from serve import server
from serve.security import Guard, check_settings, host_name, is_loopback, normal_origin, own_names
from serve.settings import ServeSettings
from shared.errors import TalkheadError
from tests.serve import hostile_http, hostile_sockets  # noqa: F401  which fill HOSTILE
from tests.serve.serving import HOSTILE, TOKEN, documented, of_type, serving


@pytest.fixture(scope="module")
def services(tmp_path_factory):
    """Four services: without a token, with one, with two conversations, with frequent pings."""
    folder = tmp_path_factory.mktemp("services")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(server, "PING_SECONDS", 0.4)
        pinging = serving(folder / "pinging")
        first = pinging.__enter__()
    with (serving(folder / "open") as open_, serving(folder / "closed", token=TOKEN) as closed,
          serving(folder / "few", conversations=2) as few):
        for service in (first, open_, closed, few):
            service.wait_ready()

        @open_.app.post("/upload")  # takes a body, as the routes of uploads do
        async def upload(body: dict) -> dict:
            return {}

        yield SimpleNamespace(open=open_, closed=closed, few=few, pinging=first)
    pinging.__exit__(None, None, None)


@pytest.mark.parametrize("what", list(HOSTILE))
def test_hostile_clients_get_the_answer_of_the_page(what, services, monkeypatch):
    assert HOSTILE[what](services, monkeypatch) == documented()[what]
    hostile_sockets.empty(services.open)
    assert services.open.ask("GET", "/readyz").status == 200


def test_the_page_has_every_hostile_client_and_no_other():
    assert set(documented()) == set(HOSTILE) and len(HOSTILE) >= 40


def settings(**changes):
    return ServeSettings({"me": "/nowhere/me.avatar"}, "/nowhere", **changes)


@pytest.mark.parametrize("changes, sentence", [
    ({"host": "0.0.0.0"}, "--host 0.0.0.0 can be reached from other machines; give a token with --token or TALKHEAD_TOKEN "
                          "(`openssl rand -hex 16` makes one), or leave --host away"),
    ({"host": "::"}, "--host :: can be reached from other machines; "),
    ({"host": "example.org"}, "--host example.org can be reached from other machines; "),
    ({"token": "short"}, "the token should be 16 to 256 letters, digits and signs without spaces, found 5 characters; "),
    ({"token": "with a space in it, long"}, "the token should be 16 to 256 letters, digits and signs without spaces, "),
    ({"tls_cert": "cert.pem"}, "--tls-cert and --tls-key go together; name both or neither"),
    ({"origins": ("evil.example",)}, "--origin should be as https://avatars.example.org or http://name:8000, found 'evil.exam"),
    ({"origins": ("*",)}, "--origin should be as"),
    ({"origins": ("https://a.example/path",)}, "--origin should be as"),
])
def test_settings_that_are_refused(changes, sentence):
    with pytest.raises(TalkheadError, match="^" + re.escape(sentence)):
        check_settings(settings(**changes))


def test_settings_that_are_fine():
    for changes in ({}, {"host": "localhost"}, {"host": "::1"}, {"host": "127.0.0.2"}, {"host": "0.0.0.0", "token": TOKEN},
                    {"origins": ("https://avatars.example.org", "http://name:8000")}):
        check_settings(settings(**changes))


def test_names_and_origins():
    assert host_name("LOCALHOST:80") == "localhost" and host_name("[::1]:8000") == "::1" and host_name("a.b.") == "a.b"
    assert host_name("") is host_name("a b") is host_name("a:b") is host_name("a@b") is host_name("[::1") is None
    assert normal_origin("HTTPS://A.example") == normal_origin("https://a.example:443") != normal_origin("http://a.example")
    assert normal_origin("null") == "null"
    assert is_loopback("127.3.2.1") and is_loopback("[::1]") and not is_loopback("0.0.0.0") and not is_loopback("localhost.evil")
    assert own_names(settings(origins=("https://a.example",))) == {"localhost", "127.0.0.1", "a.example"}


def test_uploads_may_be_large_and_all_else_small():
    guard = Guard(None, settings(upload_bytes=123_000_000))
    assert guard.limit("/v1/videos") == guard.limit("/v1/landmarks") == guard.limit("/v1/edits") == 123_000_000
    assert guard.limit("/v1/videos_") == guard.limit("/v1/live") == guard.limit("/") == 1 << 20


def test_the_token_opens(services):
    assert services.closed.ask("GET", "/metrics", Authorization=f"Bearer {TOKEN}").status == 200
    assert services.closed.ask("GET", "/metrics", Authorization=f"bearer  {TOKEN} ").status == 200
    for path in ("/healthz", "/health", "/readyz"):
        assert services.closed.ask("GET", path).status == 200
    assert services.closed.ask("GET", "/").status != 401  # the page asks for the token


def test_every_answer_forbids_what_a_page_does_not_need(services):
    for answer in (services.open.ask("GET", "/healthz"), services.open.ask("GET", "/nothing"),
                   services.closed.ask("GET", "/metrics"), services.open.ask("GET", "/healthz", Host="evil.example")):
        assert answer.headers["x-content-type-options"] == "nosniff" and answer.headers["x-frame-options"] == "DENY"
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
        assert "access-control-allow-origin" not in answer.headers and "server" not in answer.headers
    assert services.open.ask("POST", "/v1/nothing").headers["cache-control"] == "no-store"


def test_a_site_that_is_named_may_use_the_service(tmp_path):
    site = "https://site.example"
    with serving(tmp_path, origins=(site,), token=TOKEN) as service:
        answer = service.ask("OPTIONS", "/v1/live", Origin=site, Access_Control_Request_Method="POST")
        assert answer.status == 204 and answer.headers["access-control-allow-origin"] == site
        assert "authorization" in answer.headers["access-control-allow-headers"]
        answer = service.ask("POST", "/v1/live", Origin=site)
        assert (answer.status, answer.headers["access-control-allow-origin"], answer.headers["vary"]) == (401, site, "origin")
        assert service.ask("GET", "/healthz", Host="site.example").status == 200  # a proxy's name
        assert service.ask("GET", "/healthz", Origin="https://other.example").status == 403


def test_tls(tmp_path):
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    make_certificate(cert, key)
    with serving(tmp_path, tls_cert=str(cert), tls_key=str(key)) as service:
        trusting = ssl.create_default_context(cafile=cert)
        trusting.check_hostname = False
        assert service.ask("GET", "/healthz", tls=trusting).status == 200
        own = f"https://127.0.0.1:{service.port}"
        assert service.ask("GET", "/healthz", tls=trusting, Origin=own).status == 200
        assert service.ask("GET", "/healthz", tls=trusting, Origin=own.replace("https", "http")).status == 403
        assert service.raw(b"GET /healthz HTTP/1.1\r\n\r\n", 5) == b""
        service.wait_up()
        with connect(f"wss://127.0.0.1:{service.port}/v1/live", ssl=trusting, compression=None, proxy=None) as one:
            one.send('{"type": "session.init"}')
            assert of_type(one, "session.ready")["avatar"] == "me"


def make_certificate(cert, key):
    try:
        subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
                        "-days", "2", "-subj", "/CN=127.0.0.1", "-keyout", key, "-out", cert], check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("needs the openssl program")


def test_a_certificate_that_cannot_be_used(tmp_path):
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    make_certificate(cert, key)
    server.check_tls(settings(tls_cert=str(cert), tls_key=str(key)))
    with pytest.raises(TalkheadError, match="there is no such file$"):
        server.check_tls(settings(tls_cert=str(tmp_path / "none"), tls_key=str(key)))
    cert.write_text("hello")
    with pytest.raises(TalkheadError, match="should be a certificate and its key in PEM files"):
        server.check_tls(settings(tls_cert=str(cert), tls_key=str(key)))
