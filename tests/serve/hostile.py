"""Files that nobody should send, by the names that they have in docs/videos.md."""

import io
import pickle
import struct
import wave
import zipfile
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np

from serve.uploads import Kind
from shared.face_check import TEMPLATE

ROWS = np.tile(TEMPLATE, (50, 1, 1)).astype(np.float32)  # a landmark file of two seconds
SECONDS = 10.0  # the most that the tests' server takes


class Hostile(NamedTuple):
    """The bytes, and as what they are sent."""

    data: bytes
    kind: Kind = "any"


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def with_header(text: str, body: bytes = b"") -> bytes:
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode() + body


def wav(seconds: float, rate: int = 16000) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(rate)
        out.writeframes((3000 * np.sin(np.arange(round(seconds * rate)) / 20)).astype("<i2").tobytes())
    return file.getvalue()


def film(folder: Path, sound: bool, name: str = "film.mp4") -> bytes:
    """A short film, with sound or without."""
    with av.open(str(folder / name), "w") as out:
        picture = out.add_stream("mpeg4", rate=25)
        picture.width = picture.height = 32
        picture.pix_fmt = "yuv420p"
        track = out.add_stream("aac", rate=16000, layout="mono") if sound else None
        for k in range(25):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 5 * k, np.uint8), format="rgb24")
            out.mux(picture.encode(frame))
            if track is not None:
                heard = av.AudioFrame.from_ndarray(np.zeros((1, 640), np.float32), format="fltp", layout="mono")
                heard.sample_rate, heard.pts = 16000, 640 * k
                out.mux(track.encode(heard))
        out.mux(picture.encode())
        if track is not None:
            out.mux(track.encode())
    return (folder / name).read_bytes()


def live_silence(folder: Path, seconds: int) -> bytes:
    """Much silence in few bytes, in a stream that does not say how long it is."""
    with av.open(str(folder / "live.mkv"), "w", format="matroska", options={"live": "1"}) as out:
        track = out.add_stream("flac", rate=8000, layout="mono")
        for k in range(seconds):
            heard = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.int16), format="s16", layout="mono")
            heard.sample_rate, heard.pts = 8000, 8000 * k
            out.mux(track.encode(heard))
        out.mux(track.encode())
    return (folder / "live.mkv").read_bytes()


def zip_bomb(size: int) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as out:
        out.writestr("landmarks.npy", bytes(size))
    return file.getvalue()


def hostile_files(folder: Path, port: int) -> dict[str, Hostile]:
    """All of them; the playlists refer to folder/real.wav, and to `port` of 127.0.0.1."""
    (folder / "real.wav").write_bytes(wav(1))
    whole = film(folder, sound=True)
    holed = ROWS.copy()
    holed[3, 2, 1] = np.nan
    manifest = ('<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" mediaPresentationDuration="PT1S" '
                'profiles="urn:mpeg:dash:profile:isoff-on-demand:2011"><Period><AdaptationSet mimeType="audio/mp4">'
                f'<Representation id="1" bandwidth="1"><BaseURL>http://127.0.0.1:{port}/a.mp4</BaseURL></Representation>'
                "</AdaptationSet></Period></MPD>")
    return {
        "an empty file": Hostile(b""),
        "text named speech.wav": Hostile(b"this is no sound at all\n" * 20),
        "an mp4 cut off before its index": Hostile(whole[: whole.index(b"moov") - 4]),
        "a film without sound": Hostile(film(folder, sound=False)),
        "a picture": Hostile(b"\x89PNG\r\n\x1a\n" + bytes(200)),
        "an HLS playlist of a file on the server": Hostile(
            f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile:{folder}/real.wav\n#EXT-X-ENDLIST\n".encode()),
        "an HLS playlist of another host": Hostile(
            f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nhttp://127.0.0.1:{port}/a.ts\n#EXT-X-ENDLIST\n".encode()),
        "a list of FFmpeg's concat format": Hostile(b"ffconcat version 1.0\nfile real.wav\n"),
        "a DASH manifest of another host": Hostile(manifest.encode()),
        "an SDP that opens a port": Hostile(
            b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=audio 5004 RTP/AVP 0\n"),
        "sound longer than is taken": Hostile(wav(SECONDS + 1)),
        "a live stream of silence that names no length": Hostile(live_silence(folder, 60)),
        "random bytes": Hostile(np.random.default_rng(0).bytes(5000)),
        "a pickled .npy": Hostile(npy(np.array([{"a": 1}], dtype=object))),
        "a bare pickle": Hostile(pickle.dumps([1, 2, 3])),
        "a zip bomb, .npz": Hostile(zip_bomb(50_000_000)),
        "a .npy whose header tells of a million million rows": Hostile(
            with_header("{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000, 68, 3), }\n")),
        "a .npy whose header tells of more than is there": Hostile(
            with_header("{'descr': '<f4', 'fortran_order': False, 'shape': (100, 68, 3), }\n", b"few")),
        "a .npy whose header is code": Hostile(with_header("{'descr': __import__('os').getcwd(), 'shape': (1,)}\n")),
        "a .npy whose header is 60,000 brackets": Hostile(with_header("[" * 60_000)),
        "landmarks with a NaN": Hostile(npy(holed)),
        "landmarks with axes swapped": Hostile(npy(ROWS.swapaxes(1, 2))),
        "landmarks in millimetres": Hostile(npy(ROWS * 1000)),
        "noise in the shape of landmarks": Hostile(npy(np.random.default_rng(0).normal(size=(5, 68, 3)))),
        "landmarks longer than is taken": Hostile(npy(np.tile(ROWS, (6, 1, 1)))),
        "words in a .npy": Hostile(npy(np.array(["a"]))),
        "landmarks in the field audio": Hostile(npy(ROWS), "sound"),
        "sound in the field landmarks": Hostile(wav(1), "landmarks"),
    }
