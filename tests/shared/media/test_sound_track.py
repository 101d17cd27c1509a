"""Sound under a written video: copied where it can be, else encoded, and always in step with the given file."""

import random
import shutil
import subprocess
from fractions import Fraction

import av
import numpy as np
import pytest

from shared.media.audio_io import load_audio
from shared.media.video_io import TransparentVideoWriter, VideoWriter

RATE = 48000
STEP = 48  # samples: a millisecond


def bursts(seconds=1.6, channels=2):
    """Noise bursts (n, channels) at 48 kHz, at uneven times, over quiet noise."""
    rng = np.random.default_rng(3)
    sound = 0.01 * rng.standard_normal((int(seconds * RATE), channels))
    for start in (2400, 9000, 27000, 33000, 50500, 66000):
        sound[start : start + 480] += 0.4 * (rng.standard_normal((480, 1)) * np.hanning(480)[:, None])[: len(sound) - start]
    return np.clip(sound, -1, 1).astype(np.float32)


def record(path, codec, *, rate=RATE, layout="stereo", late=0.0, picture=False, title=None, seconds=1.6):
    """A file with `bursts` and, to have a time zero, a picture; its sound begins `late` seconds late."""
    channels = av.AudioLayout(layout).nb_channels
    sound = bursts(seconds, channels)
    with av.open(str(path), "w") as out:
        if title:
            out.metadata["title"] = title
        video = out.add_stream("libx264", rate=25) if picture else None
        stream = out.add_stream(codec, rate=rate, layout=layout)
        if video is not None:
            video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
            for k in range(40):
                frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 100, np.uint8), format="rgb24")
                frame.pts, frame.time_base = k, Fraction(1, 25)
                out.mux(video.encode(frame))
            out.mux(video.encode(None))
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(sound.T), format="fltp", layout=layout)
        frame.sample_rate = RATE
        count = 0
        for piece in av.AudioResampler(format=stream.format, layout=layout, rate=rate, frame_size=1024).resample(frame):
            piece.pts, piece.time_base = round(late * rate) + count, Fraction(1, rate)
            count += piece.samples
            out.mux(stream.encode(piece))
        out.mux(stream.encode(None))
    return path


def spoken(path, audio, frames=40, writer=VideoWriter):
    with writer(path, 64, 48, audio=audio) as video:
        for k in range(frames):
            video.write(np.full((48, 64, video.channels), 4 * k, np.uint8))
    return path


def sound_data(path):
    """The bytes of all packets of sound in a file."""
    with av.open(str(path)) as container:
        return b"".join(bytes(packet) for packet in container.demux(container.streams.audio[0]) if packet.size)


def sound_of(path):
    """Codec, rate and layout of the sound of a file."""
    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        return stream.codec_context.codec.canonical_name, stream.rate, stream.layout.name


def lag(one, other):
    """By how many samples of 48 kHz `other` is late; both (n,) at 16 kHz."""
    size = 1 << 18
    one, other = (np.interp(np.arange(3 * len(x)) / 3, np.arange(len(x)), x) for x in (one, other))
    peak = int(np.fft.irfft(np.fft.rfft(other, size) * np.conj(np.fft.rfft(one, size))).argmax())
    return peak if peak < size // 2 else peak - size


def decoded_by_ffmpeg(path):
    done = subprocess.run(["ffmpeg", "-v", "error", "-i", path, "-vn", "-ac", "1", "-ar", "16000", "-f", "f32le", "-"],
                          capture_output=True, check=True)
    return np.frombuffer(done.stdout, np.float32)


@pytest.mark.parametrize("name, codec, video, copied", [
    ("a.m4a", "aac", "t.mp4", True), ("a.mp4", "libmp3lame", "t.mp4", True), ("a.m4a", "alac", "t.mp4", True),
    ("a.flac", "flac", "t.mp4", True), ("a.opus", "libopus", "t.mp4", True), ("a.ac3", "ac3", "t.mp4", True),
    ("a.wav", "pcm_s16le", "t.mp4", False), ("a.mp2", "mp2", "t.mp4", False), ("a.m4a", "aac", "t.mov", True),
    ("a.wav", "pcm_s24le", "t.mov", True), ("a.flac", "flac", "t.mov", False), ("a.flac", "flac", "t.mkv", True),
    ("a.m4a", "aac", "t.mkv", False), ("a.opus", "libopus", "t.webm", True), ("a.wav", "pcm_s16le", "t.webm", False),
])
def test_the_sound_is_that_of_the_file_and_in_step(tmp_path, name, codec, video, copied):
    source = record(tmp_path / name, codec)
    made = spoken(tmp_path / video, source, writer=TransparentVideoWriter if video == "t.webm" else VideoWriter)
    found = sound_of(made)
    if copied:
        assert found == sound_of(source)
        assert sound_data(source).startswith(sound_data(made)) and len(sound_data(made)) > 0.9 * len(sound_data(source))
    else:
        assert found == ({"mp4": "aac", "mov": "aac", "mkv": "flac", "webm": "opus"}[video[2:]], RATE, "stereo")
    assert abs(lag(load_audio(source), load_audio(made))) <= STEP
    if shutil.which("ffmpeg"):
        assert abs(lag(decoded_by_ffmpeg(source), decoded_by_ffmpeg(made))) <= STEP


@pytest.mark.parametrize("rate, layout, expected", [
    (8000, "mono", (8000, "mono")), (44100, "stereo", (44100, "stereo")), (192000, "stereo", (96000, "stereo")),
    (48000, "5.1", (48000, "5.1")), (48000, "quad", (48000, "stereo")),
])
def test_encoded_sound_keeps_its_rate_and_channels(tmp_path, rate, layout, expected):
    source = record(tmp_path / "a.wav", "pcm_s16le", rate=rate, layout=layout)
    made = spoken(tmp_path / "t.mp4", source)
    assert sound_of(made) == ("aac", *expected)
    assert abs(lag(load_audio(source), load_audio(made))) <= STEP


def test_sound_that_starts_late_keeps_its_silence(tmp_path):
    source = record(tmp_path / "a.mkv", "pcm_s16le", late=0.5, picture=True, seconds=1.0)
    made = spoken(tmp_path / "t.mov", source)
    assert sound_of(made)[0] == "aac"  # where silence has to be put first, it is encoded
    true = np.concatenate([np.zeros(8000, np.float32), bursts(1.0).mean(1)[::3]])
    assert abs(lag(true, load_audio(made))) <= STEP
    if shutil.which("ffmpeg"):
        assert abs(lag(true, decoded_by_ffmpeg(made))) <= STEP


@pytest.mark.parametrize("name, codec", [("a.m4a", "aac"), ("a.flac", "flac"), ("a.wav", "pcm_s16le")])
def test_longer_sound_is_cut_with_the_last_frame(tmp_path, name, codec):
    made = spoken(tmp_path / "t.mp4", record(tmp_path / name, codec), frames=15)
    with av.open(str(made)) as container:
        assert container.duration / av.time_base == pytest.approx(0.6, abs=0.001)
    assert 0.6 * 16000 - 20 <= len(load_audio(made)) <= 0.6 * 16000 + 0.09 * 16000  # whole packets are kept


@pytest.mark.parametrize("name, codec", [("a.m4a", "aac"), ("a.flac", "flac"), ("a.ac3", "ac3"), ("a.wav", "pcm_s16le")])
def test_damaged_sound_does_not_break_the_video(tmp_path, name, codec):
    source = record(tmp_path / name, codec)
    data, rng = bytearray(source.read_bytes()), random.Random(0)
    for _ in range(30):
        data[rng.randrange(len(data) // 3, len(data) * 2 // 3)] ^= rng.randrange(1, 256)
    source.write_bytes(data)
    made = spoken(tmp_path / "t.mp4", source)
    heard = load_audio(source)
    assert abs(lag(heard[:9000], load_audio(made)[:9000])) <= STEP


def test_sound_that_changes_its_rate_is_encoded(tmp_path):
    parts = [record(tmp_path / f"{rate}.aac", "aac", rate=rate, layout=layout, seconds=0.8).read_bytes()
             for rate, layout in ((48000, "stereo"), (44100, "mono"))]
    (tmp_path / "both.aac").write_bytes(b"".join(parts))
    made = spoken(tmp_path / "t.mp4", tmp_path / "both.aac", frames=45)
    heard = load_audio(tmp_path / "both.aac")
    assert abs(lag(heard[16000:26000], load_audio(made)[16000:26000])) <= STEP  # the second part too


def test_nothing_else_of_the_file_gets_into_the_video(tmp_path):
    source = record(tmp_path / "secret-name.mkv", "aac", picture=True, title="private title")
    data = spoken(tmp_path / "t.mp4", source).read_bytes()
    assert b"private title" not in data and b"secret-name" not in data
    with av.open(str(tmp_path / "t.mp4")) as container:
        assert [stream.type for stream in container.streams] == ["video", "audio"]
        assert abs(float(container.streams.video[0].start_time or 0)) == 0
