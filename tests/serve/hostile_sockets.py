"""What hostile clients of the WebSocket do; each function returns the answer that docs/serve.md gives."""

import json
import socket
import time

from websockets.exceptions import ConnectionClosed

from serve import connections, live_socket
from tests.serve.fake_worker import Seed
from tests.serve.serving import TOKEN, frame, handshake, hostile, read_all, status, wait_for


def refused(service, path="/v1/live", **headers):
    """The status with which a handshake is refused."""
    return status(service.raw(handshake(service.port, path, **headers)))


def ended(one):
    """How the service ends a conversation: the error that it sends and the close code."""
    error = None
    try:
        while True:
            message = one.recv(timeout=10)
            if isinstance(message, str) and json.loads(message)["type"] == "error":
                error = json.loads(message)
                assert set(error) == {"type", "code", "message"} and error["message"]
    except ConnectionClosed as closed:
        code = closed.rcvd.code if closed.rcvd else 1006
    return f"error `{error['code']}`, close {code}" if error else f"close {code}"


def raw_talk(service, **init):
    """A conversation on a bare socket."""
    one = socket.create_connection(("127.0.0.1", service.port), timeout=10)
    one.sendall(handshake(service.port))
    assert b" 101 " in one.recv(4096)
    one.sendall(frame(json.dumps({"type": "session.init", **init}).encode(), 1))
    return one


def close_code(data):
    """Of the close frame at the end of what came; the service masks nothing."""
    at = data.rindex(b"\x88")
    return int.from_bytes(data[at + 2:at + 4], "big")


def empty(service):
    wait_for(lambda: not service.app.state.live.sockets)


def origin(service):
    return f"http://127.0.0.1:{service.port}"


@hostile("a WebSocket of a page, without a ticket")
def no_ticket(services, patch):
    return refused(services.open, Origin=origin(services.open))


@hostile("a WebSocket without token and ticket")
def no_token(services, patch):
    return refused(services.closed)


@hostile("a WebSocket with a wrong token")
def wrong_token(services, patch):
    return refused(services.closed, Authorization=f"Bearer {TOKEN}x")


@hostile("a ticket that was never given")
def wrong_ticket(services, patch):
    return refused(services.closed, Sec_WebSocket_Protocol="talkhead.live.1, ticket.AAAA")


@hostile("a ticket for the second time")
def reused_ticket(services, patch):
    given = services.open.ask("POST", "/v1/live").json
    services.open.socket(given["url"], given["ticket"], origin=origin(services.open)).close()
    return refused(services.open, given["url"], Sec_WebSocket_Protocol=f"talkhead.live.1, ticket.{given['ticket']}")


@hostile("a ticket for another conversation")
def other_ticket(services, patch):
    one, two = (services.open.ask("POST", "/v1/live").json for _ in range(2))
    found = refused(services.open, one["url"], Sec_WebSocket_Protocol=f"talkhead.live.1, ticket.{two['ticket']}")
    services.open.app.state.live.tickets._open.clear()
    return found


@hostile("a ticket that is too old")
def old_ticket(services, patch):
    patch.setattr(services.open.app.state.live.tickets, "seconds", 0.0)
    given = services.open.ask("POST", "/v1/live").json
    return refused(services.open, given["url"], Sec_WebSocket_Protocol=f"talkhead.live.1, ticket.{given['ticket']}")


@hostile("a WebSocket of another site's page, with a ticket")
def foreign_page(services, patch):
    given = services.open.ask("POST", "/v1/live").json
    found = refused(services.open, given["url"], Sec_WebSocket_Protocol=f"talkhead.live.1, ticket.{given['ticket']}",
                    Origin="https://evil.example")
    services.open.app.state.live.tickets._open.clear()
    return found


@hostile("a WebSocket under another name")
def foreign_name(services, patch):
    return refused(services.open, Host="evil.example")


@hostile("another subprotocol")
def subprotocol(services, patch):
    return refused(services.open, Sec_WebSocket_Protocol="talkhead.live.9")


@hostile("a WebSocket to another path")
def other_path(services, patch):
    return refused(services.open, "/v1/videos")


@hostile("a handshake without a key, or of an old version")
def bad_handshake(services, patch):
    assert refused(services.open, Sec_WebSocket_Version="7").startswith("4")
    return refused(services.open, Sec_WebSocket_Key="")


@hostile("more WebSockets than conversations")
def too_many(services, patch):
    held = [services.open.talk()[0] for _ in range(4)]
    found = ended(services.open.socket())
    for one in held:
        one.close()
    return found


@hostile("fragments without end")
def fragments(services, patch):
    one = raw_talk(services.open)
    try:
        for k in range(64):
            one.sendall(frame(bytes(65536), 0 if k else 2, final=False))
    except OSError:
        pass
    data = read_all(one)
    one.close()
    return f"close {close_code(data)}"


@hostile("frames without mask, or of an unknown kind")
def bad_frames(services, patch):
    found = set()
    for bad in (frame(b"{}", 1, masked=False), frame(b"", 11), b"\xf1\x80" + bytes(4)):
        one = raw_talk(services.open)
        one.sendall(bad)
        found.add(f"close {close_code(read_all(one))}")
        one.close()
    assert len(found) == 1
    return found.pop()


@hostile("a client that reads nothing")
def never_reads(services, patch):
    patch.setattr(live_socket, "CLOSE_SECONDS", 0.2)
    with socket.socket() as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        one.connect(("127.0.0.1", services.open.port))
        one.sendall(handshake(services.open.port))
        assert b" 101 " in one.recv(4096)
        one.sendall(frame(json.dumps({"type": "session.init", "seed": Seed.FLOOD}).encode(), 1))
        wait_for(lambda: services.open.app.state.live.sockets)
        began = time.monotonic()
        empty(services.open)
        assert time.monotonic() - began < 10
        time.sleep(0.5)
        other, _ = services.open.talk()  # others go on
        other.close()
        one.settimeout(10)
        data = read_all(one)  # what the system had taken before
        assert len(data) < 6_000_000
    return "error `client_too_slow`, close 1008, or cut off after 5 s"


@hostile("a client that reads slowly more than it can")
def slow(services, patch):
    patch.setattr(connections, "FLUSH_SECONDS", 0.5)
    one = raw_talk(services.open, seed=Seed.FLOOD)
    time.sleep(0.5)
    data = read_all(one)
    one.close()
    error = json.loads(data[data.rindex(b'{"type": "error"'):data.rindex(b"}") + 1])
    return f"error `{error['code']}`, close {close_code(data)}"


@hostile("a client that answers no ping")
def no_pong(services, patch):
    one = raw_talk(services.pinging)
    wait_for(lambda: services.pinging.app.state.live.sockets)
    began = time.monotonic()
    data = read_all(one)
    assert time.monotonic() - began < 8
    one.close()
    empty(services.pinging)
    return f"close {close_code(data)} after 40 s"
