"""Conversations over the WebSocket: what goes through, tickets and places, what each end is told when the other fails."""

import json
import threading
import time

import pytest
from websockets.exceptions import ConnectionClosed

from serve import live_socket
from serve.protocol import Kind, unpack_header
from serve.tickets import Tickets
from tests.serve.fake_worker import PICTURE, Seed
from tests.serve.hostile_sockets import empty, ended
from tests.serve.serving import TOKEN, of_type, serving, wait_for


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("service")) as service:
        service.wait_ready()
        yield service


def test_sound_goes_in_and_rows_and_pictures_come_out(service):
    one, ready = service.talk(avatar="you", codec="h264", sample_rate=48000, format="f32", want=["landmarks", "video"])
    assert one.subprotocol == "talkhead.live.1" and ready["id"].startswith("live_")
    assert (ready["avatar"], ready["codec"], ready["sample_rate"]) == ("you", "h264", 48000)
    one.send(bytes(4 * 1920) + bytes(4 * 100))
    one.send(bytes(4 * 1820))
    found = [unpack_header(one.recv(timeout=5)) for _ in range(4)]
    assert [(head.kind, head.frame, head.sample) for head, _ in found] == [
        (Kind.ROW, 0, 0), (Kind.VIDEO, 0, 0), (Kind.ROW, 1, 1920), (Kind.VIDEO, 1, 1920)]
    assert found[1][1] == PICTURE
    one.send(json.dumps({"type": "ack", "frame": 1}))
    assert of_type(one, "acked")["frame"] == 1
    one.send(json.dumps({"type": "stats", "epoch": 0, "played": 960, "av_offset_ms": -40}))
    told = of_type(one, "told")
    assert (told["epoch"], told["sample"]) == (0, 960)
    assert service.app.state.metrics.av_offset.total == pytest.approx(0.04)
    one.close()
    empty(service)


def test_epochs_are_counted_as_the_worker_does(service):
    one, _ = service.talk()
    end = json.dumps({"type": "segment.end"})
    one.send(end)  # of nothing
    one.send(bytes(1280))
    one.send(end)
    assert of_type(one, "segment.finished") == {"type": "segment.finished", "epoch": 0, "position": 640, "interrupted": False}
    one.send(bytes(1280))
    one.send(json.dumps({"type": "interrupt", "epoch": 2}))
    assert of_type(one, "segment.finished")["interrupted"] is True
    one.send(bytes(1280))
    one.send(end)
    assert of_type(one, "segment.finished")["epoch"] == 2
    one.send(json.dumps({"type": "interrupt", "epoch": 3}))  # that of the next sound, of which none has come
    one.send(bytes(1280))
    one.send(json.dumps({"type": "interrupt", "epoch": 3}))
    assert ended(one) == "error `bad_epoch`, close 1008"


def test_a_browser_needs_and_gets_a_ticket(service):
    given = service.ask("POST", "/v1/live", Origin=f"http://127.0.0.1:{service.port}").json
    assert set(given) == {"id", "url", "ticket", "expires_in", "protocol"} and given["url"] == f"/v1/live/{given['id']}"
    one = service.socket(given["url"], given["ticket"], origin=f"http://127.0.0.1:{service.port}")
    one.send(json.dumps({"type": "session.init"}))
    assert json.loads(one.recv(timeout=5))["id"] == given["id"]
    assert one.subprotocol == "talkhead.live.1"  # and not the ticket
    one.close()


def test_a_program_needs_no_subprotocol(service):
    with service.socket(subprotocols=None) as one:
        one.send(json.dumps({"type": "session.init"}))
        assert json.loads(one.recv(timeout=5))["type"] == "session.ready"


def test_with_a_token_both_ways_lead_in(tmp_path):
    with serving(tmp_path, token=TOKEN) as service:
        service.wait_ready()
        bearer = {"Authorization": f"Bearer {TOKEN}"}
        service.socket(additional_headers=bearer).close()
        given = service.ask("POST", "/v1/live", **bearer).json
        service.socket(given["url"], given["ticket"]).close()
        assert service.ask("POST", "/v1/live").code == "no_token"


def test_a_ticket_keeps_a_place_until_it_is_used_or_old(tmp_path):
    with serving(tmp_path, conversations=1) as service:
        service.wait_ready()
        given = service.ask("POST", "/v1/live").json
        assert service.ask("GET", "/readyz").code == "too_many_conversations"
        assert ended(service.socket()) == "error `too_many_conversations`, close 1013"
        one = service.socket(given["url"], given["ticket"])
        assert service.ask("POST", "/v1/live").status == 429
        one.close()
        empty(service)
        service.app.state.live.tickets.seconds = 0.3
        service.ask("POST", "/v1/live")
        assert service.ask("GET", "/readyz").status == 503
        wait_for(lambda: service.ask("GET", "/readyz").status == 200, 3)
        rejected = service.app.state.metrics.live_rejected.values
        assert rejected == {"too_many_conversations": 2.0}


def test_tickets():
    now = 0.0
    tickets = Tickets(30.0, lambda: now)
    (one, first), (two, second) = tickets.issue(), tickets.issue()
    assert one != two and first != second and len(tickets) == 2
    assert tickets.take(first, two) is None and tickets.take("", one) is None
    assert tickets.take(first, one) == one and tickets.take(first, one) is None
    assert tickets.take(second) == two
    tickets.issue()
    now = 30.0
    assert len(tickets) == 0


def test_a_slow_client_costs_others_nothing(service, monkeypatch):
    monkeypatch.setattr(live_socket, "CLOSE_SECONDS", 0.3)
    slow, _ = service.talk(seed=Seed.FLOOD)
    one, _ = service.talk()
    began = time.monotonic()
    one.send(bytes(1280))
    one.recv(timeout=5)
    assert time.monotonic() - began < 3
    assert ended(slow).endswith("close 1008")
    one.close()
    empty(service)


def test_an_end_that_the_worker_wants_is_told(service):
    one, _ = service.talk(seed=Seed.CLOSE)
    one.send(bytes(1280))
    error = of_type(one, "error")
    assert (error["code"], error["message"]) == ("input_too_fast", "too much sound waits")
    with pytest.raises(ConnectionClosed) as closed:
        one.recv(timeout=5)
    assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (1008, "input_too_fast")


def test_before_a_worker_is_up_clients_are_told_to_wait(tmp_path):
    with serving(tmp_path, "tests.serve.fake_worker:never_up") as service:
        assert service.ask("GET", "/readyz").code == "loading"
        answer = service.ask("POST", "/v1/live")
        assert (answer.status, answer.code) == (503, "loading") and int(answer.headers["retry-after"]) > 0
        assert ended(service.socket()) == "error `loading`, close 1013"
        assert service.ask("GET", "/healthz").status == 200


def test_a_service_that_is_asked_to_end_tells_its_clients(tmp_path):
    with serving(tmp_path, drain_seconds=3.0) as service:
        service.wait_ready()
        polite, rude = service.talk()[0], service.talk()[0]
        service.server.handle_exit(15)
        assert of_type(polite, "session.closing") == {"type": "session.closing", "seconds": 3.0}
        assert service.ask("GET", "/readyz").code == "closing" and service.ask("POST", "/v1/live").status == 503
        assert service.ask("GET", "/healthz").status == 200
        assert ended(service.socket()) == "error `closing`, close 1001"
        rude.send(bytes(1280))  # may go on
        assert of_type(rude, "session.closing") and rude.recv(timeout=5)
        polite.close()
        assert ended(rude) == "error `closing`, close 1001"
        service.thread.join(10)
        assert not service.thread.is_alive()


@pytest.mark.slow
def test_a_service_whose_clients_have_gone_waits_no_longer(tmp_path):
    with serving(tmp_path, drain_seconds=60.0) as service:
        service.wait_ready()
        one, _ = service.talk()
        service.server.handle_exit(15)
        of_type(one, "session.closing")
        one.close()
        service.thread.join(10)
        assert not service.thread.is_alive()


@pytest.mark.slow
def test_many_conversations_at_once(tmp_path):
    with serving(tmp_path, conversations=24, live_workers=2) as service:
        service.wait_ready()
        wait_for(lambda: len(service.app.state.workers.up) == 2)
        found = []

        def speak(k):
            one, ready = service.talk(seed=k)
            for _ in range(25):
                one.send(bytes(1280))
            one.send(json.dumps({"type": "segment.end"}))
            frames = []
            while not isinstance(message := one.recv(timeout=20), str):
                head, _ = unpack_header(message)
                frames.append((head.kind, head.frame))
            found.append((ready["worker"], frames))
            one.close()

        threads = [threading.Thread(target=speak, args=(k,)) for k in range(24)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        expected = [(kind, k) for k in range(25) for kind in (Kind.ROW, Kind.VIDEO)]
        assert len(found) == 24 and all(frames == expected for _, frames in found)
        assert sorted(worker for worker, _ in found) == [0] * 12 + [1] * 12  # each to the one with fewest
