"""Uploads: what a reader makes of good and of hostile files, and its limits."""

import asyncio
import os
import re
import signal
import socket
import time
import wave
from pathlib import Path

import av
import numpy as np
import pytest

from serve import uploads
from serve.errors import ApiError
from serve.uploads import FORMATS, Uploads
from shared.landmarks import load_landmarks
from shared.media.audio_io import load_audio
from shared.media.container import media_url, open_media
from tests.serve.hostile import ROWS, SECONDS, film, hostile_files, npy, wav

DOCS = Path(__file__).resolve().parents[2] / "docs" / "videos.md"
SENDS = {"any": "input_reference", "sound": "audio", "landmarks": "landmarks"}


def table(heading):
    """The rows of a table of docs/videos.md as name -> (status, code, sentence)."""
    text = DOCS.read_text().split(f"### {heading}\n")[1].split("\n#")[0]
    rows = [[cell.strip() for cell in line.strip("| \n").split(" | ")] for line in text.splitlines() if line.startswith("| ")]
    return {name: (int(status), code, sentence) for name, status, code, sentence in rows[1:]}


def pattern(sentence):
    """A sentence of the table; N stands for a number."""
    return re.sub(r"\bN\b", r"[\\d.]+", re.escape(sentence).replace(r"\ ", " "))


@pytest.fixture(scope="module")
def listener():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(0.05)
        yield listening


@pytest.fixture(scope="module")
def hostile(tmp_path_factory, listener):
    return hostile_files(tmp_path_factory.mktemp("hostile"), listener.getsockname()[1])


def answer(folder, data, kind="any", most=SECONDS, rate=None):
    """What the reader answers, run here without its limits."""
    (folder / "x.upload").write_bytes(data)
    return uploads._answer({"path": str(folder / "x.upload"), "output": str(folder / "out"), "kind": kind, "rate": rate,
                            "most": most, "memory": 1 << 30})


@pytest.mark.parametrize("name", table("Files"))
def test_hostile_files_are_refused_as_the_docs_say(name, hostile, listener, tmp_path):
    status, code, sentence = table("Files")[name]
    data, kind = hostile[name]
    found = answer(tmp_path, data, kind)
    found["refused"] = found["refused"].replace(str(tmp_path / "x.upload"), SENDS[kind])
    assert (found["status"], found["code"]) == (status, code)
    assert re.fullmatch(pattern(sentence), found["refused"]), found["refused"]
    assert not (tmp_path / "out").exists() and len(list(tmp_path.iterdir())) == 1
    with pytest.raises(TimeoutError):
        listener.accept()


def test_the_docs_name_all_hostile_files(hostile):
    assert list(table("Files")) == list(hostile) and len(hostile) >= 15


def test_playlists_would_be_followed_without_the_list_of_formats(hostile, tmp_path):
    (tmp_path / "real.wav").write_bytes(wav(1))
    path = tmp_path / "x.upload"
    path.write_bytes(hostile["a list of FFmpeg's concat format"].data)
    with av.open(media_url(path)) as opened:
        assert opened.format.name == "concat" and len(opened.streams.audio) == 1
    with pytest.raises(Exception, match="is not a sound file"):
        open_media(path, "sound file", FORMATS)


@pytest.mark.parametrize("rate, kept", [(8000, 16000), (16000, 16000), (44100, 44100), (96000, 48000)])
def test_sound_becomes_plain_wav_at_its_own_rate_within_bounds(tmp_path, rate, kept):
    assert answer(tmp_path, wav(1.5, rate)) == {"kind": "sound", "length": 1.5 * kept, "rate": kept}
    with wave.open(str(tmp_path / "out")) as file:
        assert (file.getframerate(), file.getnchannels(), file.getnframes()) == (kept, 1, 1.5 * kept)
    assert answer(tmp_path, wav(1.5, rate), rate=16000)["length"] == 24000
    if rate == 16000:
        wanted = 3000 / 32768 * np.sin(np.arange(24000) / 20)
        assert np.abs(load_audio(tmp_path / "out") - wanted).max() < 2 / 32768


def test_films_and_landmarks_are_taken(tmp_path):
    assert answer(tmp_path, film(tmp_path, sound=True))["kind"] == "sound"
    for dtype in (np.float32, np.float64, ">f4"):
        assert answer(tmp_path, npy(ROWS.astype(dtype))) == {"kind": "landmarks", "length": 50, "rate": 25}
        (tmp_path / "out").rename(tmp_path / "out.npy")
        assert np.array_equal(load_landmarks(tmp_path / "out.npy"), ROWS)


def test_a_full_disk_is_told_without_the_servers_paths(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    sound = wav(1)
    monkeypatch.setattr("wave.Wave_write.writeframes", full)
    found = answer(tmp_path, sound)
    assert found == {"status": 507, "code": "server_disk", "refused": "cannot write the server's folder/upload: No space left "
                                                                      "on device"}


# -- the process


def read(folder, data, kind="any", **limits):
    async def run():
        reader = Uploads(SECONDS, **limits)
        try:
            return await reader.read(folder / "x.upload", folder / "out", kind, "input_reference")
        finally:
            reader.stop()
    (folder / "x.upload").write_bytes(data)
    return asyncio.run(run())


def test_a_reader_reads_one_file_in_a_process_of_its_own(tmp_path):
    assert read(tmp_path, wav(2, 22050)) == uploads.Read("sound", 44100, 22050)
    with pytest.raises(ApiError, match="^input_reference is empty") as error:
        read(tmp_path, b"")
    assert (error.value.status, error.value.code, error.value.param) == (400, "upload_refused", "input_reference")


def test_a_reader_takes_no_more_memory_than_it_may(tmp_path):
    many = npy(np.tile(ROWS.astype(np.float64), (5, 1, 1)))
    assert read(tmp_path, many, memory=512 << 20).length == 250
    with pytest.raises(ApiError, match="takes over 0 MB of memory to read; convert it") as error:
        read(tmp_path, many, memory=0)
    assert error.value.code == "upload_too_large" and not (tmp_path / "out").exists()


def test_a_reader_takes_no_more_time_than_it_may(tmp_path):
    with pytest.raises(ApiError, match="reading input_reference took over 0.01 s, so it was stopped") as error:
        read(tmp_path, wav(9), seconds=0.01)
    assert error.value.code == "upload_too_slow" and [path.name for path in tmp_path.iterdir()] == ["x.upload"]


def test_what_a_killed_reader_had_written_goes(tmp_path):
    (tmp_path / ".out.partial-123").write_bytes(b"half")
    with pytest.raises(ApiError):
        read(tmp_path, b"")
    assert [path.name for path in tmp_path.iterdir()] == ["x.upload"]


def test_a_reader_that_is_killed_costs_one_upload(tmp_path, monkeypatch):
    async def run():
        reader = Uploads(SECONDS)
        (tmp_path / "x.upload").write_bytes(wav(1))
        reader.start()
        os.kill(reader._spare._process.pid, signal.SIGKILL)  # which had nothing to do yet
        reader._spare._process.join()
        assert (await reader.read(tmp_path / "x.upload", tmp_path / "out", "any", "input_reference")).length == 16000

        def no_process():
            raise OSError(11, "Resource temporarily unavailable")

        reader.stop()
        monkeypatch.setattr(uploads, "_Reader", no_process)
        with pytest.raises(ApiError, match="cannot start a process to read the upload: Resource temp") as error:
            await reader.read(tmp_path / "x.upload", tmp_path / "out", "any", "input_reference")
        assert error.value.status == 503
        monkeypatch.undo()
        monkeypatch.setattr(uploads, "MOST_WAITING", 0)
        with pytest.raises(ApiError, match="0 uploads are waiting") as error:
            await reader.read(tmp_path / "x.upload", tmp_path / "out", "any", "input_reference")
        assert error.value.status == 429 and error.value.headers == {"Retry-After": "5"}
        reader.stop()
    asyncio.run(run())
    at_work = uploads._Reader()
    assert at_work._pipe.poll(60)
    os.kill(at_work._process.pid, signal.SIGKILL)
    found = at_work.read({"path": "PATH"}, 5)
    assert found == {"status": 400, "code": "upload_unreadable", "refused": "PATH made its reader end; it is damaged, so convert "
                                                                            "it"}
    at_work.kill()


def test_a_reader_whose_server_is_gone_ends(tmp_path):
    reader = uploads._Reader()
    process = reader._process
    reader._pipe.recv_bytes()
    reader._pipe.close()
    began = time.monotonic()
    process.join(10)
    assert process.exitcode == 0 and time.monotonic() - began < 10


