"""What hostile HTTP clients do; each function returns the answer that docs/serve.md gives. `services` has one with a token and
one without."""

import re
import socket
import time

from serve import connections, security
from tests.serve.serving import TOKEN, hostile, read_all, status


def request(service, *lines, method="GET", path="/healthz", body=b"", host=None):
    head = [f"{method} {path} HTTP/1.1", f"Host: {host or f'127.0.0.1:{service.port}'}", "Connection: close", *lines]
    return status(service.raw("\r\n".join(head).encode() + b"\r\n\r\n" + body))


@hostile("the name of another site as Host (DNS rebinding)")
def foreign_host(services, patch):
    return request(services.open, host=f"evil.example:{services.open.port}")


@hostile("a Host that is no name")
def bad_host(services, patch):
    return request(services.open, host="127.0.0.1/..@evil")


@hostile("two Host headers")
def two_hosts(services, patch):
    return request(services.open, "Host: 127.0.0.1")


@hostile("no Host header")
def no_host(services, patch):
    return status(services.open.raw(b"GET /healthz HTTP/1.1\r\nConnection: close\r\n\r\n"))


@hostile("HTTP/1.0 without Host")
def old_http(services, patch):
    return status(services.open.raw(b"GET /healthz HTTP/1.0\r\n\r\n"))


@hostile("a request of another site's page")
def foreign_origin(services, patch):
    return request(services.open, "Origin: https://evil.example", "Content-Length: 0", method="POST", path="/v1/live")


@hostile("a request of a page on another port of this machine")
def other_port(services, patch):
    return request(services.open, f"Origin: http://127.0.0.1:{services.open.port + 1}")


@hostile("a request of a page without origin (`null`)")
def null_origin(services, patch):
    return request(services.open, "Origin: null")


@hostile("two Origin headers")
def two_origins(services, patch):
    own = f"Origin: http://127.0.0.1:{services.open.port}"
    return request(services.open, own, own)


@hostile("a preflight of another site's page")
def preflight(services, patch):
    answer = services.open.ask("OPTIONS", "/v1/live", Origin="https://evil.example", Access_Control_Request_Method="POST")
    assert not [name for name in answer.headers if name.startswith("access-control-allow")]
    return f"{answer.status} {answer.code}"


@hostile("no token where there is one")
def no_token(services, patch):
    answer = services.closed.ask("GET", "/metrics")
    assert answer.headers["www-authenticate"] == "Bearer"
    return f"{answer.status} {answer.code}"


@hostile("a wrong token")
def wrong_token(services, patch):
    return request(services.closed, f"Authorization: Bearer {TOKEN[:-1]}", path="/metrics")


@hostile("the token as a password (Basic)")
def basic(services, patch):
    return request(services.closed, f"Authorization: Basic {TOKEN}", path="/metrics")


@hostile("the token in the URL")
def token_in_url(services, patch):
    return request(services.closed, path=f"/metrics?token={TOKEN}")


@hostile("two Authorization headers, one of them right")
def two_tokens(services, patch):
    return request(services.closed, "Authorization: Bearer x", f"Authorization: Bearer {TOKEN}", path="/metrics")


@hostile("a path that nothing stands at, without the token")
def unknown_without_token(services, patch):
    return request(services.closed, path="/v1/secrets")


@hostile("a body whose Content-Length is 2 GB")
def large(services, patch):
    patch.setattr(security, "DISCARD_SECONDS", 0.5)
    began = time.monotonic()
    found = request(services.open, f"Content-Length: {2 << 30}", method="POST", path="/v1/videos", body=bytes(100_000))
    assert time.monotonic() - began < 3
    return found


@hostile("a chunked body without end")
def endless(services, patch):
    patch.setattr(security, "DISCARDED", 1 << 20)
    return send_endlessly(services.open, "/upload")


@hostile("a body without end where none is asked for")
def endless_unasked(services, patch):
    patch.setattr(security, "DISCARDED", 1 << 20)
    return f"{send_endlessly(services.open, '/v1/live')}, and closed"


def send_endlessly(service, path):
    with socket.create_connection(("127.0.0.1", service.port), timeout=10) as one:
        one.sendall(f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{service.port}\r\nContent-Type: application/json\r\n"
                    "Transfer-Encoding: chunked\r\n\r\n".encode())
        sent = 0
        try:
            while sent < 64 << 20:
                one.sendall(b"10000\r\n" + bytes(0x10000) + b"\r\n")
                sent += 0x10000
        except OSError:
            pass
        assert sent < 32 << 20  # it was not read to the end
        return status(read_all(one))


@hostile("a body longer than its Content-Length")
def longer(services, patch):
    found = services.open.raw(f"POST /upload HTTP/1.1\r\nHost: 127.0.0.1:{services.open.port}\r\nContent-Length: 2\r\n"
                              "Content-Type: application/json\r\n\r\n{}abcdefgh\r\n\r\n".encode())
    first, second = re.split(rb"(?=HTTP/1\.1 \d)", found)[1:]
    return f"{status(first)}, then {status(second)}"


@hostile("a body shorter than its Content-Length, then silence")
def shorter(services, patch):
    patch.setattr(security, "BODY_SECONDS", 0.3)
    patch.setattr(security, "DISCARD_SECONDS", 0.3)
    return request(services.open, "Content-Length: 1000", "Content-Type: application/json", method="POST", path="/upload",
                   body=b"{")


@hostile("a Content-Length of -1")
def negative(services, patch):
    return request(services.open, "Content-Length: -1", method="POST", path="/v1/live")


@hostile("Content-Length and Transfer-Encoding together")
def smuggled(services, patch):
    return request(services.open, "Content-Length: 5", "Transfer-Encoding: chunked", method="POST", path="/v1/live",
                   body=b"0\r\n\r\n")


@hostile("random bytes, or TLS on the plain port")
def garbage(services, patch):
    return status(services.open.raw(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(256))))


@hostile("a head of a megabyte")
def large_head(services, patch):
    return request(services.open, "X: " + "x" * 1_000_000)


@hostile("half a head, then silence")
def slow_head(services, patch):
    patch.setattr(connections, "HEAD_SECONDS", 0.3)
    assert services.open.raw(b"GET /healthz HT", 5) == services.open.raw(b"", 5) == b""
    return "closed after 15 s"


@hostile("hundreds of connections at once")
def many(services, patch):
    patch.setattr(connections, "MOST_CONNECTIONS", 3)
    held = [socket.create_connection(("127.0.0.1", services.open.port), timeout=5) for _ in range(8)]
    try:
        time.sleep(0.2)
        refused = 0
        for one in held:
            one.settimeout(0.2)
            refused += read_all_closed(one)
        assert refused >= 5
    finally:
        for one in held:
            one.close()
    return "closed beyond 500"


def read_all_closed(one):
    """Whether the other side has closed this connection."""
    try:
        return one.recv(1) == b""
    except TimeoutError:
        return False
    except ConnectionError:
        return True


@hostile("`/page/../app.py`, `..%2f`, `%00` and other names for paths")
def traversal(services, patch):
    found = {request(services.open, path=path) for path in (
        "/page/../app.py", "/page/..%2fapp.py", "/page/%2e%2e/app.py", "/page/..%5capp.py", "/page//etc/passwd", "/page/%00",
        "/page/index.html%00.js", "/page/", "/page", "/page/.", "/page/" + "a" * 5000)}
    assert len(found) == 1
    return found.pop()


@hostile("line ends in a path")
def injected(services, patch):
    raw = services.open.raw(f"GET /%0d%0aSet-Cookie:%20a=b HTTP/1.1\r\nHost: 127.0.0.1:{services.open.port}\r\n"
                            "Connection: close\r\n\r\n".encode())
    assert b"\r\nSet-Cookie" not in raw
    return status(raw)


@hostile("the URL of another host, as to a proxy")
def proxied(services, patch):
    return request(services.open, path="http://evil.example/")


@hostile("CONNECT to another host")
def connected(services, patch):
    return request(services.open, method="CONNECT", path="evil.example:443")


@hostile("a method that a path does not take")
def wrong_method(services, patch):
    return request(services.open, method="DELETE", path="/v1/live")


@hostile("a method that does not exist")
def no_method(services, patch):
    return request(services.open, method="EXPLODE")


@hostile("more POST /v1/live than there are conversations")
def many_tickets(services, patch):
    answers = [services.few.ask("POST", "/v1/live") for _ in range(3)]
    assert [answer.status for answer in answers[:2]] == [200, 200] and int(answers[2].headers["retry-after"]) > 0
    return f"{answers[2].status} {answers[2].code}, with Retry-After"
