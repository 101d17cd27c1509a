"""The HTTP interface of jobs: requests good and hostile, with a worker that loads nothing; and all of it with the real one."""

import dataclasses
import json
import re
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from starlette.testclient import TestClient

from serve.settings import ServeSettings
from shared.files import write_json
from tests.serve import toy_worker
from tests.serve.hostile import ROWS, SECONDS, npy, wav
from tests.serve.small_app import small_app
from tests.serve.test_uploads import pattern, table

ROOT = Path(__file__).resolve().parents[2]
SOUND = wav(1)


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A client of a server whose avatar has nothing but its manifest, and the server's folder."""
    folder = tmp_path_factory.mktemp("served")
    write_json(folder / "me.avatar" / "avatar.json", {"name": "Me", "width": 64, "height": 48, "figures": {"lips": 1.5}})
    settings = ServeSettings({"me": str(folder / "me.avatar"), "gone": str(folder / "gone.avatar")}, str(folder / "root"),
                             upload_seconds=SECONDS, upload_bytes=1_000_000)
    with TestClient(small_app(settings, toy_worker.main)) as client:
        yield client, folder / "root"


@pytest.fixture(scope="module")
def client(served):
    return served[0]


def create(client, name="speech.wav", headers=None, file=SOUND, field="input_reference", **fields):
    fields = {"model": "me", "prompt": "", **fields}
    files = {field: (name, file)} if file is not None else {name: (None, fields.pop(name)) for name in tuple(fields)}
    return client.post("/v1/videos", data=fields, files=files, headers=headers)


def finished(client, id):
    return client.get(f"/v1/videos/{id}/events") and client.get(f"/v1/videos/{id}").json()


def test_a_video_is_created_followed_downloaded_and_deleted(client, served):
    made = create(client, prompt="hello", seconds="0.5")
    assert made.status_code == 200 and made.headers["openai-poll-after-ms"] == "500"
    video = made.json()
    id = video["id"]
    assert re.fullmatch("video_[0-9a-f]{32}", id)
    assert abs(video.pop("created_at") - time.time()) < 60
    assert video == {"id": id, "object": "video", "model": "me", "status": "queued", "progress": 0, "completed_at": None,
                     "expires_at": None, "seconds": "0.5", "size": "64x48", "prompt": "hello", "error": None, "warnings": []}
    events = client.get(f"/v1/videos/{id}/events")
    assert events.headers["content-type"].startswith("text/event-stream")
    assert events.text.startswith("retry: 2000\n\n") and events.text.count("event: video.in_progress") >= 2
    last = events.text.strip().split("\n\n")[-1].split("\n")
    assert last[:2] == ["id: 1-completed-100", "event: video.completed"]
    video = client.get(f"/v1/videos/{id}").json()
    assert json.loads(last[2].removeprefix("data: ")) == video
    assert (video["status"], video["progress"], video["seconds"], video["warnings"]) == ("completed", 100, "0.2", ["quiet"])
    assert video["expires_at"] - video["completed_at"] in (86400, 86401)
    content = client.get(f"/v1/videos/{id}/content")
    assert content.content == bytes(400) and content.headers["content-type"] == "video/mp4"
    assert client.head(f"/v1/videos/{id}/content").headers["content-length"] == "400"
    part = client.get(f"/v1/videos/{id}/content", headers={"Range": "bytes=390-"})
    assert part.status_code == 206 and len(part.content) == 10 and part.headers["content-range"] == "bytes 390-399/400"
    assert client.get(f"/v1/videos/{id}/content", headers={"Range": "bytes=400-"}).status_code == 416
    assert client.delete(f"/v1/videos/{id}").json() == {"id": id, "object": "video.deleted", "deleted": True}
    assert client.get(f"/v1/videos/{id}").status_code == 404
    assert [path for path in served[1].rglob("*") if id in path.name] == []


def test_events_go_on_where_a_client_left_off(client):
    id = create(client).json()["id"]
    finished(client, id)
    events = client.get(f"/v1/videos/{id}/events", headers={"Last-Event-ID": "1-in_progress-40"})
    assert events.text.count("data:") == 1 and "id: 1-completed-100" in events.text
    assert client.get(f"/v1/videos/{id}/events", headers={"Last-Event-ID": "1-completed-100"}).status_code == 204


def test_lists_go_page_by_page(client):
    names = [create(client).json()["id"] for _ in range(3)]
    newest = client.get("/v1/videos?limit=2").json()
    assert [video["id"] for video in newest["data"]] == names[:0:-1]
    assert newest["has_more"] and newest["last_id"] == names[1] and newest["first_id"] == names[2]
    rest = client.get("/v1/videos", params={"after": names[1], "limit": 1}).json()
    assert [video["id"] for video in rest["data"]] == names[:1]
    assert client.get("/v1/videos", params={"after": names[2], "order": "asc"}).json()["data"] == []


def test_the_same_key_makes_one_video(client):
    key = {"Idempotency-Key": "3f1c"}
    first = create(client, headers=key, prompt="one").json()
    again = create(client, headers=key, prompt="one")
    assert again.status_code == 200 and again.json()["id"] == first["id"]
    with ThreadPoolExecutor(4) as pool:
        names = {found.json()["id"] for found in pool.map(lambda _: create(client, headers={"Idempotency-Key": "par"}), range(4))}
    assert len(names) == 1
    for changed in (dict(prompt="two"), dict(prompt="one", file=wav(0.5))):
        assert create(client, headers=key, **changed).status_code == 422


def test_a_name_with_a_path_stays_a_name(client, served):
    before = sorted(served[1].parent.iterdir())
    for name in ("../../../escaped.wav", "a\x00b" + "x" * 300 + ".wav"):
        assert create(client, name=name).status_code == 200
    assert sorted(served[1].parent.iterdir()) == before


def test_landmarks_alone_or_with_sound(client, served):
    for files in ({"input_reference": ("rows.npy", npy(ROWS))}, {"landmarks": ("r", npy(ROWS))},
                  {"landmarks": ("r", npy(ROWS)), "audio": ("a", SOUND)}):
        made = client.post("/v1/videos", data={"model": "me", "size": "128x256"}, files=files).json()
        assert made["seconds"] == "2" and made["size"] == "128x256"
        assert finished(client, made["id"])["status"] == "completed"
    assert list((served[1] / "uploads").iterdir()) == [] and list((served[1] / "work").iterdir()) == []


def test_cancelling(client):
    id = create(client, seed="1").json()["id"]
    early = client.get(f"/v1/videos/{id}/content")
    assert early.status_code == 409 and early.json()["error"]["code"] == "not_ready" and early.headers["retry-after"] == "1"
    answer = client.post(f"/v1/videos/{id}/cancel")
    assert answer.status_code == 200
    assert answer.json()["status"] == "failed" and answer.json()["error"] == {"code": "cancelled",
                                                                              "message": "the video was cancelled"}
    assert client.post(f"/v1/videos/{id}/cancel").json()["error"]["code"] == "cancelled"
    content = client.get(f"/v1/videos/{id}/content")
    assert content.status_code == 409 and content.json()["error"]["code"] == "cancelled"


def test_a_full_queue_answers_429(client, served):
    jobs = client.app.state.jobs
    slow = [create(client, seed="1").json()["id"], create(client, headers={"Idempotency-Key": "q"}).json()["id"]]
    settings = jobs.settings
    jobs.settings = dataclasses.replace(settings, queued_jobs=1)
    try:
        refused = create(client)
        assert refused.status_code == 429 and refused.json()["error"]["type"] == "rate_limit_error"
        assert refused.json()["error"]["code"] == "queue_full" and int(refused.headers["retry-after"]) >= 1
        assert create(client, headers={"Idempotency-Key": "q"}).json()["id"] == slow[1]  # it is there already
    finally:
        jobs.settings = settings
        for id in slow:
            client.delete(f"/v1/videos/{id}")


def test_avatars_and_models(client):
    found = client.get("/v1/avatars/me").json()
    assert abs(found.pop("created_at") - time.time()) < 600
    assert found == {"object": "avatar", "name": "me", "person": "Me", "width": 64, "height": 48, "fps": 25, "parts": [],
                     "figures": {"lips": 1.5}, "consent": None}
    models = client.get("/v1/models").json()
    assert [model["id"] for model in models["data"]] == ["me", "gone"] and models["data"][0]["object"] == "model"
    assert client.get("/v1/models/me").json() == models["data"][0]
    gone = client.get("/v1/avatars/gone")
    assert gone.status_code == 503
    assert gone.json()["error"]["message"] == "the avatar cannot be read: gone/avatar.json does not exist"


def test_the_reference_is_generated(client):
    paths = client.get("/openapi.json").json()["paths"]
    assert {"/v1/videos", "/v1/videos/{video_id}/events", "/v1/landmarks", "/v1/edits", "/v1/avatars"} <= paths.keys()
    form = paths["/v1/videos"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert form["properties"]["input_reference"] == {"type": "string", "format": "binary"}
    assert {"model", "size", "background", "smile"} <= form["properties"].keys() and not form["additionalProperties"]


# -- hostile requests

PATHS = ["/etc/passwd", "http://127.0.0.1:1/a.png", "../plate.png"]
HOSTILE = {
    "an avatar that is not there": lambda c: create(c, model="you"),
    "a path as the avatar": lambda c: create(c, model="../../me.avatar"),
    "a path as the background": lambda c: create(c, background=PATHS[0]),
    "an address as the background": lambda c: create(c, background=PATHS[1]),
    "a field that is not known": lambda c: create(c, output="/tmp/x.mp4"),
    "a field twice": lambda c: c.post("/v1/videos", files=[("model", (None, "me")), ("model", (None, "me")),
                                                           ("input_reference", ("a.wav", SOUND))]),
    "text in place of the file": lambda c: c.post("/v1/videos", files={"input_reference": (None, "speech.wav")}),
    "a file in place of text": lambda c: c.post("/v1/videos", files={"model": ("me", b"me"), "input_reference": ("a", SOUND)}),
    "no file": lambda c: create(c, file=None),
    "input_reference beside audio": lambda c: c.post("/v1/videos", files=dict.fromkeys(("input_reference", "audio"),
                                                                                       ("a.wav", SOUND))),
    "JSON": lambda c: c.post("/v1/videos", json={"model": "me"}),
    "a form that breaks off": lambda c: c.post("/v1/videos", content=b"--x\r\nContent-Disposition: form-data",
                                               headers={"Content-Type": "multipart/form-data; boundary=x"}),
    "a form without a boundary": lambda c: c.post("/v1/videos", content=b"abc", headers={"Content-Type": "multipart/form-data"}),
    "a thousand fields": lambda c: c.post("/v1/videos", files=[(f"f{k}", (None, "1")) for k in range(1000)]),
    "a field of a megabyte": lambda c: create(c, prompt="a" * 1_000_000),
    "a prompt of 20,000 characters": lambda c: create(c, prompt="a" * 20_000),
    "seconds that are no number": lambda c: create(c, seconds="nan"),
    "a size beyond all bounds": lambda c: create(c, size="100000x100000"),
    "an odd size": lambda c: create(c, size="719x1280"),
    "a seed of 5,000 digits": lambda c: create(c, seed="9" * 5000),
    "frames a second by division": lambda c: create(c, fps="1/0"),
    "transparency in an mp4": lambda c: create(c, background="none", format="mp4"),
    "a file larger than is taken": lambda c: create(c, file=bytes(1_000_001)),
    "an empty Idempotency-Key": lambda c: create(c, headers={"Idempotency-Key": ""}),
    "an Idempotency-Key of another request": lambda c: [create(c, headers={"Idempotency-Key": "k"}, prompt=text)
                                                        for text in "ab"][1],
    "a video that is not there": lambda c: c.get("/v1/videos/video_0"),
    "a path as the video": lambda c: c.get("/v1/videos/..%2f..%2fetc%2fpasswd/content"),
    "a list from nowhere": lambda c: c.get("/v1/videos?after=%27%20OR%201=1"),
    "a list of a million": lambda c: c.get("/v1/videos?limit=1000000"),
    "another variant of the content": lambda c: c.get("/v1/videos/video_0/content?variant=spritesheet"),
    "the end of a finished video": lambda c: c.post(f"/v1/videos/{_done(c)}/cancel"),
    "edits without an edit": lambda c: c.post("/v1/edits", files={"landmarks": ("r", npy(ROWS))}),
    "an edit beyond its range": lambda c: c.post("/v1/edits", data={"smile": "9"}, files={"landmarks": ("r", npy(ROWS))}),
}


def _done(client):
    id = create(client).json()["id"]
    finished(client, id)
    return id


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_requests_are_refused_as_the_docs_say(client, served, name):
    status, code, sentence = table("Requests")[name]
    answer = HOSTILE[name](client)
    assert answer.status_code == status
    if code == "-":  # the router has no such address
        return
    error = answer.json()["error"]
    assert error["code"] == code and error["type"] == "invalid_request_error"
    assert re.fullmatch(pattern(sentence), error["message"]), error["message"]
    assert not list((served[1] / "uploads").glob("*.upload"))


def test_the_docs_name_all_hostile_requests():
    assert list(table("Requests")) == list(HOSTILE)


# -- the real thing


@pytest.fixture(scope="module")
def server(made_once, tmp_path_factory):
    """The address of a server with a real avatar, in a process of its own, and its folder."""
    from tests.serve.small_avatar import make_avatar

    folder = tmp_path_factory.mktemp("server")
    avatar = made_once("small_avatar", make_avatar) / "me.avatar"
    settings = ServeSettings({"me": str(avatar)}, str(folder), port=0, device="cpu")
    process = subprocess.Popen([sys.executable, "-m", "tests.serve.small_app", settings.to_json()], cwd=ROOT, text=True,
                               stdout=subprocess.PIPE)
    try:
        yield f"http://127.0.0.1:{int(process.stdout.readline())}/v1", folder
    finally:
        process.terminate()
        assert process.wait(60) in (0, -15)
        process.stdout.close()


def workers():
    """The job workers of the servers that this process has started."""
    import psutil

    return [child for process in psutil.Process().children() for child in process.children()
            if any("libtorch" in part.path for part in child.memory_maps())]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_openai_package_creates_polls_and_downloads(server, tmp_path):
    import openai

    from shared.media.audio_io import load_audio
    from shared.media.video_io import probe, read_video

    address, folder = server
    client = openai.OpenAI(base_url=address, api_key="none", max_retries=0)
    assert [model.id for model in client.models.list()] == ["me"]
    (tmp_path / "speech.wav").write_bytes(wav(1.2))
    video = client.videos.create_and_poll(model="me", prompt="hello", input_reference=tmp_path / "speech.wav", size="96x128",
                                          extra_body={"background": "white", "label": "start"})
    assert (video.status, video.progress, video.seconds, video.size, video.error) == ("completed", 100, "1.2", "96x128", None)
    client.videos.download_content(video.id).write_to_file(tmp_path / "talk.mp4")
    found = probe(tmp_path / "talk.mp4")
    assert (found.width, found.height) == (96, 128) and len(list(read_video(tmp_path / "talk.mp4"))) == 30
    assert abs(len(load_audio(tmp_path / "talk.mp4")) / 16000 - 1.2) < 0.05
    assert b"trainedAlgorithmicMedia" in (tmp_path / "talk.mp4").read_bytes()
    second = client.videos.create_and_poll(model="me", prompt="", input_reference=("rows.npy", npy(ROWS[:10])),
                                           extra_body={"background": "none", "smile": "0.5"})
    assert second.status == "completed" and second.seconds == "0.4"
    client.videos.download_content(second.id).write_to_file(tmp_path / "talk.webm")
    assert len(list(read_video(tmp_path / "talk.webm"))) == 10
    assert [one.id for one in client.videos.list(limit=1)] == [second.id, video.id]
    assert client.videos.delete(video.id).deleted
    with pytest.raises(openai.NotFoundError, match="there is no video"):
        client.videos.retrieve(video.id)
    with pytest.raises(openai.BadRequestError) as error:
        client.videos.create(prompt="", input_reference=("a.wav", b"nothing"))
    assert error.value.code == "upload_refused" and error.value.param == "input_reference"


@pytest.mark.slow
def test_landmarks_come_as_they_are_made_and_equal_those_of_the_command(server, made_once, tmp_path):
    import httpx2 as httpx

    from shared.avatar import Avatar
    from talkhead.editing import edit
    from talkhead.synthesis import predict
    from tests.serve.small_avatar import make_avatar

    address, folder = server
    (tmp_path / "a.wav").write_bytes(wav(3.333))
    pieces = []
    sent = {"files": {"audio": ("a.wav", wav(3.333))}, "data": {"seed": "5"}}
    with httpx.stream("POST", f"{address}/landmarks", **sent, timeout=120) as got:
        assert got.status_code == 200, got.read()
        length = int(got.headers["content-length"])
        for piece in got.iter_raw():
            pieces.append(piece)
    (tmp_path / "got.npy").write_bytes(b"".join(pieces))
    assert (tmp_path / "got.npy").stat().st_size == length and len(pieces) > 2
    rows = np.load(tmp_path / "got.npy", allow_pickle=False)
    avatar = made_once("small_avatar", make_avatar) / "me.avatar"
    wanted = predict(Avatar(avatar), tmp_path / "a.wav", device="cpu", seed=5).landmarks
    assert rows.shape == (84, 68, 3) and rows.dtype == np.float32
    np.testing.assert_allclose(rows, wanted, atol=1e-6)
    sent = {"files": {"landmarks": ("r", npy(rows))}, "data": {"smile": "0.5", "retime": "2"}}
    edited = httpx.post(f"{address}/edits", **sent, timeout=60)
    (tmp_path / "edited.npy").write_bytes(edited.content)
    np.testing.assert_allclose(np.load(tmp_path / "edited.npy"), edit(rows, smile=0.5, retime=2), atol=1e-6)
    long = {"files": {"audio": ("a.wav", wav(600))}, "timeout": 120}
    with httpx.stream("POST", f"{address}/landmarks", **long) as got, pytest.raises(httpx.RemoteProtocolError):
        for k, _ in enumerate(got.iter_raw()):
            if k == 0:
                for worker in workers():
                    worker.kill()
    with httpx.stream("POST", f"{address}/landmarks", **long) as got:  # a new worker is at it
        next(got.iter_raw())  # and then the client is gone
    limit = time.monotonic() + 30
    while list((folder / "work").iterdir()) + list((folder / "uploads").iterdir()) and time.monotonic() < limit:
        time.sleep(0.1)
    assert list((folder / "work").iterdir()) == [] and list((folder / "uploads").iterdir()) == []


@pytest.mark.slow
def test_a_video_in_progress_is_cancelled_within_seconds(server):
    import httpx2 as httpx

    address, folder = server
    short = httpx.post(f"{address}/videos", files={"audio": ("a.wav", wav(0.2))}, timeout=60).json()["id"]
    httpx.get(f"{address}/videos/{short}/events", timeout=120)  # by then all is loaded
    before = workers()
    id = httpx.post(f"{address}/videos", files={"audio": ("a.wav", wav(120))}, timeout=60).json()["id"]
    limit = time.monotonic() + 60
    while httpx.get(f"{address}/videos/{id}").json()["progress"] == 0:
        assert time.monotonic() < limit
    began = time.monotonic()
    found = httpx.post(f"{address}/videos/{id}/cancel", timeout=60).json()
    assert found["error"]["code"] == "cancelled" and time.monotonic() - began < 5
    assert not [path for path in folder.rglob("*") if id in path.name]
    assert before and before == workers()  # the worker ended it by itself, and has what it loaded


@pytest.mark.slow
def test_a_full_disk_fails_one_video_with_its_sentence(made_once, tmp_path):
    import httpx2 as httpx

    from tests.serve.small_avatar import make_avatar

    if shutil.which("mount") is None:
        pytest.skip("needs mount")
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=700k", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("may not mount a small disk here")
    try:
        avatar = made_once("small_avatar", make_avatar) / "me.avatar"
        settings = ServeSettings({"me": str(avatar)}, str(disk), port=0, device="cpu")
        process = subprocess.Popen([sys.executable, "-m", "tests.serve.small_app", settings.to_json()], cwd=ROOT, text=True,
                                   stdout=subprocess.PIPE)
        try:
            address = f"http://127.0.0.1:{int(process.stdout.readline())}/v1"

            def video(seconds):
                made = httpx.post(f"{address}/videos", files={"audio": ("a.wav", wav(seconds, 16000))}, timeout=60)
                if made.status_code != 200:
                    return made.json()
                httpx.get(f"{address}/videos/{made.json()['id']}/events", timeout=300)
                return httpx.get(f"{address}/videos/{made.json()['id']}").json()

            assert video(0.4)["status"] == "completed"
            (disk / "filler").write_bytes(bytes(150_000))
            failed = video(6)  # 192 kB of upload, and as much again for what is decoded of it
            assert failed["status"] == "failed" and failed["error"]["code"] == "server_machine", failed
            assert "No space left on device" in failed["error"]["message"] and str(disk) not in failed["error"]["message"]
            refused = video(30)
            assert refused["error"]["code"] == "server_disk" and "No space left on device" in refused["error"]["message"]
            (disk / "filler").unlink()
            assert video(0.4)["status"] == "completed"
        finally:
            process.terminate()
            process.wait(60)
            process.stdout.close()
    finally:
        subprocess.run(["umount", "-l", disk], check=True)
