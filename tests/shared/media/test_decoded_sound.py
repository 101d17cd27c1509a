"""Sound that is decoded once, kept on the disk as it is, and cut out of a longer recording."""

from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction

import av
import numpy as np
import pytest

from shared.errors import TalkheadError
from shared.media import audio_io, sound_track
from shared.media.audio_io import load_audio, save_wav
from shared.media.spool import DecodedSound
from shared.media.video_io import VideoWriter


def noise(seconds, channels=2, rate=48000):
    return (0.2 * np.random.default_rng(1).standard_normal((channels, int(seconds * rate)))).clip(-0.9, 0.9).astype(np.float32)


def record(path, codec, sound, layout, rate=48000):
    """`sound` (channels, n) at `rate` in a file."""
    with av.open(str(path), "w") as out:
        stream = out.add_stream(codec, rate=rate, layout=layout)
        frame = av.AudioFrame.from_ndarray(sound, format="fltp", layout=layout)
        frame.sample_rate = rate
        for piece in av.AudioResampler(format=stream.format, layout=layout, rate=rate, frame_size=1024).resample(frame):
            out.mux(stream.encode(piece))
        out.mux(stream.encode(None))
    return path


@pytest.fixture
def decoded_frames(monkeypatch):
    """Counts the frames of sound that are decoded, by file."""
    counts = {}
    decode = audio_io.decode

    def counting(container, stream):
        for frame in decode(container, stream):
            counts[container.name] = counts.get(container.name, 0) + 1
            yield frame

    monkeypatch.setattr(audio_io, "decode", counting)
    return counts


@pytest.mark.parametrize("name, codec, layout", [("a.wav", "pcm_s16le", "mono"), ("a.wav", "pcm_f32le", "stereo"),
                                                 ("a.m4a", "aac", "stereo"), ("a.flac", "flac", "5.1"),
                                                 ("a.wav", "pcm_u8", "quad")])
def test_it_is_what_the_file_gives(tmp_path, name, codec, layout):
    sound = noise(1.3, av.AudioLayout(layout).nb_channels)
    sound[1:] *= 0.001  # one channel alone is heard
    path = record(tmp_path / name, codec, sound, layout)
    with DecodedSound(path, tmp_path / "out") as kept:
        for seconds in (0.5, 0.3):
            pieces = list(kept.pieces(seconds))
            assert {len(piece) for piece in pieces[:-1]} == {int(16000 * seconds)}
            np.testing.assert_array_equal(np.concatenate(pieces), load_audio(path))
        assert kept.seconds == pytest.approx(len(load_audio(path)) / 16000, abs=1e-4)
        assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("name, codec", [("a.wav", "pcm_s16le"), ("a.m4a", "aac")])
def test_all_that_synthesis_reads_is_decoded_once(tmp_path, decoded_frames, name, codec):
    path = record(tmp_path / name, codec, noise(20), "stereo")
    with av.open(str(path)) as container:
        frames = sum(1 for _ in container.decode(audio=0))
    for video in ("t.mp4", "t.mkv"):  # copied, if it is AAC, and encoded
        decoded_frames.clear()
        with DecodedSound(path, tmp_path) as sound:
            heard = sum(map(len, sound.pieces(2.0)))
            with VideoWriter(tmp_path / video, 32, 32, audio=sound) as writer:
                for _ in range(500):
                    writer.write(np.zeros((32, 32, 3), np.uint8))
        assert abs(heard - 320000) < 400 and decoded_frames == {f"file:{path}": frames}
        assert abs(len(load_audio(tmp_path / video)) - 320000) < 1100


@pytest.mark.parametrize("name, codec", [("a.wav", "pcm_s16le"), ("a.m4a", "aac"), ("a.opus", "libopus")])
@pytest.mark.parametrize("start, end", [(0.517, 1.2), (0.0, 0.8), (1.7, None), (0.5, 99.0)])
def test_a_part_is_the_same_part_of_the_whole(tmp_path, name, codec, start, end):
    path = record(tmp_path / name, codec, noise(2.0), "stereo")
    whole = load_audio(path)
    first, last = round(16000 * start), len(whole) if end is None else min(len(whole), round(16000 * end))
    with DecodedSound(path, tmp_path, start, end) as part:
        heard = np.concatenate(list(part.pieces(0.25)))
        assert abs(len(heard) - (last - first)) <= 1 and part.seconds == pytest.approx((last - first) / 16000, abs=1e-3)
        with VideoWriter(tmp_path / "t.mkv", 32, 32, audio=part) as writer:  # FLAC keeps every sample
            for _ in range(round(part.seconds * 25)):
                writer.write(np.zeros((32, 32, 3), np.uint8))
    inside = slice(40, min(len(heard), last - first) - 40)  # a resampler rings at the ends
    np.testing.assert_allclose(heard[inside], whole[first:last][inside], atol=0.02)  # half a sample of 48 kHz apart at most
    written = load_audio(tmp_path / "t.mkv")
    if codec != "aac" or start:  # a copy of AAC into .mkv is encoded, all else exact
        np.testing.assert_allclose(written[inside][: len(written) - 80], heard[inside][: len(written) - 80], atol=0.02)


def test_several_threads_may_read_at_a_time(tmp_path):
    path = record(tmp_path / "a.wav", "pcm_s16le", noise(4.0), "stereo")
    true = load_audio(path)
    with DecodedSound(path, tmp_path) as sound, ThreadPoolExecutor(4) as pool:
        for heard in pool.map(lambda seconds: np.concatenate(list(sound.pieces(seconds))), [0.01, 0.02, 0.05, 0.1]):
            np.testing.assert_array_equal(heard, true)


def test_a_start_behind_the_end_is_told(tmp_path):
    save_wav(tmp_path / "a.wav", noise(1.0, 1, 16000)[0])
    with pytest.raises(TalkheadError, match=r"a.wav has no sound after 1.5 s$"), DecodedSound(tmp_path / "a.wav", tmp_path, 1.5):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["a.wav"]


def test_a_disk_that_takes_no_sound_is_a_sentence(tmp_path, monkeypatch):
    class Full:
        def write(self, data):
            raise OSError(28, "No space left on device")

        def close(self):
            pass

    save_wav(tmp_path / "a.wav", noise(1.0, 1, 16000)[0])
    monkeypatch.setattr("shared.media.spool.tempfile.TemporaryFile", lambda dir: Full())
    with pytest.raises(TalkheadError, match="cannot write in .*: No space left on device"):
        DecodedSound(tmp_path / "a.wav", tmp_path).__enter__()


def test_a_part_from_the_middle_is_not_copied(tmp_path, monkeypatch):
    monkeypatch.setattr(sound_track, "_may_be_copied", lambda *_: pytest.fail("whole packets would be out of step"))
    path = record(tmp_path / "a.m4a", "aac", noise(1.0), "stereo")
    with DecodedSound(path, tmp_path, 0.3) as part, VideoWriter(tmp_path / "t.mp4", 32, 32, audio=part) as writer:
        writer.write(np.zeros((32, 32, 3), np.uint8))
    with av.open(str(tmp_path / "t.mp4")) as made:
        assert made.streams.audio[0].duration * made.streams.audio[0].time_base == Fraction(1, 25)
