import struct
from fractions import Fraction

import av
import numpy as np
import pytest

from shared.errors import TalkheadError
from shared.media.audio_io import iter_audio, load_audio, save_wav
from shared.media.video_io import (
    GrayVideoWriter,
    TransparentVideoWriter,
    VideoWriter,
    probe,
    read_gray_video,
    read_png,
    read_transparent_video,
    read_video,
    write_png,
)


def gray_level_video(path, times, size=(48, 64), rate=1000, sound=None):
    """A video whose k-th frame, shown from times[k] (seconds), is a flat grey of 4·k; sound (n,) at 16 kHz starts at zero."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
        stream.time_base = Fraction(1, rate)
        stream.codec_context.time_base = Fraction(1, rate)
        stream.options = {"crf": "5", "bf": "0"}
        track = None if sound is None else container.add_stream("pcm_s16le", rate=16000, layout="mono")
        for k, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(np.full((*size, 3), 4 * k, np.uint8), format="rgb24")
            frame.pts, frame.time_base = int(round(time * rate)), Fraction(1, rate)
            for packet in stream.encode(frame):
                container.mux(packet)
        if track is not None:
            frame = av.AudioFrame.from_ndarray((sound[None] * 32767).astype(np.int16), format="s16", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = 16000, 0, Fraction(1, 16000)
            container.mux(track.encode(frame))
            container.mux(track.encode(None))
        for packet in stream.encode(None):
            container.mux(packet)


def levels(path):
    return [round(float(frame.mean()) / 4) for frame in read_video(path)]


@pytest.mark.parametrize("start, stop", [(0, None), (3, 17), (12, 13)])
def test_only_some_frames_are_the_same_as_of_all(tmp_path, start, stop):
    path = tmp_path / "uneven.mp4"
    gray_level_video(path, [0, 0.04, 0.2, 0.28, 0.3, 0.44, 0.6, 0.64, 0.8])
    whole = list(read_video(path))
    wanted = [k for k in range(1, len(whole), 3) if k >= start and (stop is None or k < stop)]
    found = list(read_video(path, start=start, stop=stop, only=set(wanted)))
    assert len(found) == len(wanted)
    assert all(np.array_equal(a, whole[k]) for a, k in zip(found, wanted))


def test_decoding_follows_timestamps(tmp_path):
    gray_level_video(tmp_path / "cfr25.mp4", np.arange(20) / 25)
    assert levels(tmp_path / "cfr25.mp4") == list(range(20))
    gray_level_video(tmp_path / "cfr30.mp4", np.arange(30) / 30)
    expected = [round(k / 25 * 30 - 1e-3) for k in range(25)]
    assert levels(tmp_path / "cfr30.mp4") == expected
    # a variable rate: a pause of 0.4 s is filled by holding a frame
    times = np.concatenate([np.arange(5) / 25, 0.6 + np.arange(5) / 25])
    got = levels(tmp_path / "cfr25.mp4")
    gray_level_video(tmp_path / "vfr.mp4", times)
    got = levels(tmp_path / "vfr.mp4")
    assert len(got) == 20 and got[:5] == [0, 1, 2, 3, 4] and got[15:] == [5, 6, 7, 8, 9]


def test_a_late_first_frame_is_repeated_from_time_zero(tmp_path):
    gray_level_video(tmp_path / "late.mkv", 0.2 + np.arange(10) / 25, sound=np.zeros(9600))
    assert levels(tmp_path / "late.mkv") == [0] * 5 + list(range(10))
    assert abs(probe(tmp_path / "late.mkv").start - 0.2) < 1e-6


def test_video_writer_makes_browser_video_with_sound_in_step(tmp_path):
    rng = np.random.default_rng(0)
    sound = np.convolve(rng.standard_normal(16000 * 2), np.ones(8) / 8, "same").astype(np.float32) * 0.3
    path = tmp_path / "out.mp4"
    with VideoWriter(path, 64, 48, audio=sound) as writer:
        for k in range(50):
            writer.write(np.full((48, 64, 3), 4 * k, np.uint8))
    with av.open(str(path)) as container:
        assert container.streams.video[0].codec_context.pix_fmt == "yuv420p"
        assert container.streams.audio[0].codec_context.name == "aac"
    head = path.read_bytes()
    assert head.index(b"moov") < head.index(b"mdat")  # faststart
    assert [round(float(f.mean()) / 4) for f in read_video(path)] == list(range(50))
    heard = load_audio(path)
    assert abs(len(heard) - 32000) <= 1024
    shifts = range(-1200, 1200)
    best = max(shifts, key=lambda s: float(heard[4000:9000] @ sound[4000 + s : 9000 + s]))
    assert abs(best) <= 16  # a millisecond


def test_video_writer_leaves_nothing_after_an_error(tmp_path):
    with pytest.raises(RuntimeError):
        with VideoWriter(tmp_path / "x.mp4", 64, 48) as writer:
            writer.write(np.zeros((48, 64, 3), np.uint8))
            raise RuntimeError
    with pytest.raises(TalkheadError, match="at least one frame"):
        with VideoWriter(tmp_path / "x.mp4", 64, 48):
            pass
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(TalkheadError, match="even, found 63x48"):
        VideoWriter(tmp_path / "x.mp4", 63, 48)


def soft_disc(k, size=(48, 64)):
    """RGBA: a disc with a soft rim that moves with k, colours that are nothing special, opaque to clear."""
    y, x = np.mgrid[: size[0], : size[1]]
    alpha = np.clip(255 * (18 - np.hypot(x - 24 - k, y - 24)) / 8, 0, 255)
    return np.stack([200 - 2 * k + 0 * x, 40 + 2 * y, 90 + x, alpha], -1).astype(np.uint8)


@pytest.mark.parametrize("name, color, rim, sound_codec", [("t.mov", 1.0, 2, "pcm_s16le"), ("t.webm", 4.0, 12, "opus")])
def test_transparent_video_keeps_alpha_color_and_sound(tmp_path, name, color, rim, sound_codec):
    rng = np.random.default_rng(0)
    sound = np.convolve(rng.standard_normal(16000), np.ones(8) / 8, "same").astype(np.float32) * 0.3
    frames = [soft_disc(k) for k in range(25)]
    with TransparentVideoWriter(tmp_path / name, 64, 48, audio=sound) as writer:
        for frame in frames:
            writer.write(frame)
    got = list(read_transparent_video(tmp_path / name))
    assert len(got) == 25
    for shown, frame in zip(got, frames):
        assert np.abs(shown[..., 3].astype(int) - frame[..., 3]).max() <= rim
        opaque = frame[..., 3] > 250
        assert np.abs(shown.astype(int) - frame)[opaque].mean() < color
        assert shown[~opaque][:, 3].min() <= 1
    with av.open(str(tmp_path / name)) as container:
        assert container.streams.video[0].codec_context.colorspace == 1  # BT.709
        assert container.streams.audio[0].codec_context.name == sound_codec
    assert probe(tmp_path / name).frames_estimate == 25
    heard = load_audio(tmp_path / name)
    assert abs(len(heard) - 16000) <= 1024
    best = max(range(-1200, 1200), key=lambda s: float(heard[4000:9000] @ sound[4000 + s : 9000 + s]))
    assert abs(best) <= 16


def test_transparent_video_refuses_what_cannot_hold_it(tmp_path):
    with pytest.raises(TalkheadError, match="x.mp4: the video's name should end in .mov or .webm"):
        TransparentVideoWriter(tmp_path / "x.mp4", 64, 48)
    with pytest.raises(TalkheadError, match=r"expected a uint8 frame \(48, 64, 4\), found uint8 \(48, 64, 3\)"):
        with TransparentVideoWriter(tmp_path / "x.mov", 64, 48) as writer:
            writer.write(np.zeros((48, 64, 3), np.uint8))
    assert list(tmp_path.iterdir()) == []


def test_gray_video_is_lossless(tmp_path):
    frames = np.random.default_rng(0).integers(0, 5, (7, 48, 64)).astype(np.uint8)
    with GrayVideoWriter(tmp_path / "l.mkv", 64, 48) as writer:
        for frame in frames:
            writer.write(frame)
    np.testing.assert_array_equal(np.stack(list(read_gray_video(tmp_path / "l.mkv"))), frames)


@pytest.mark.parametrize("rate", [8000, 44100, 96000])
def test_audio_of_any_rate_keeps_pitch_and_length(tmp_path, rate):
    t = np.arange(rate) / rate
    save_wav(tmp_path / "a.wav", 0.5 * np.sin(2 * np.pi * 440 * t), rate)
    samples = load_audio(tmp_path / "a.wav")
    assert abs(len(samples) - 16000) < 40
    spectrum = np.abs(np.fft.rfft(samples[:16000]))
    assert abs(spectrum.argmax() - 440) <= 1


def test_six_channels_become_mono(tmp_path):
    with av.open(str(tmp_path / "six.wav"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=48000, layout="5.1")
        data = (np.random.default_rng(0).normal(size=(1, 48000 * 6)) * 3000).astype(np.int16)
        frame = av.AudioFrame.from_ndarray(data, format="s16", layout="5.1")
        frame.sample_rate = 48000
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)
    samples = load_audio(tmp_path / "six.wav")
    assert samples.ndim == 1 and abs(len(samples) - 16000) < 40 and samples.std() > 0.01


def test_audio_chunks_join_to_the_whole(tmp_path):
    save_wav(tmp_path / "a.wav", np.random.default_rng(0).uniform(-1, 1, 40000))
    chunks = list(iter_audio(tmp_path / "a.wav", seconds=0.7))
    assert [len(c) for c in chunks] == [11200, 11200, 11200, 6400]
    np.testing.assert_array_equal(np.concatenate(chunks), load_audio(tmp_path / "a.wav"))


def test_bad_media_are_refused_with_a_sentence(tmp_path):
    (tmp_path / "text.mp4").write_text("this is no video")
    for reader in (probe, load_audio, lambda p: next(read_video(p))):
        with pytest.raises(TalkheadError, match="text.mp4 is not a"):
            reader(tmp_path / "text.mp4")
        with pytest.raises(TalkheadError, match="does not exist"):
            reader(tmp_path / "none.mp4")
    gray_level_video(tmp_path / "mute.mp4", np.arange(5) / 25)
    with pytest.raises(TalkheadError, match="has no audio track"):
        load_audio(tmp_path / "mute.mp4")
    save_wav(tmp_path / "empty.wav", np.zeros(0))
    with pytest.raises(TalkheadError, match="holds 0 samples"):
        load_audio(tmp_path / "empty.wav")
    with pytest.raises(TalkheadError, match="has no video track"):
        probe(tmp_path / "empty.wav")


def test_png_round_trip(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (5, 6, 3)).astype(np.uint8)
    write_png(tmp_path / "a.png", image)
    np.testing.assert_array_equal(read_png(tmp_path / "a.png"), image)


# the transformation in the track header of a video filmed with the phone turned, as FFmpeg writes it, and what
# numpy.rot90 must do to show it upright
@pytest.mark.parametrize("matrix, turns", [
    ((0, -65536, 0, 65536, 0, 0), 1), ((-65536, 0, 0, 0, -65536, 0), 2), ((0, 65536, 0, -65536, 0, 0), 3),
])
def test_the_rotation_flag_of_phones_is_applied(tmp_path, matrix, turns):
    stored = np.zeros((48, 64, 3), np.uint8)
    stored[:16, :24] = 255
    path = tmp_path / "turned.mp4"
    with VideoWriter(path, 64, 48) as writer:
        for _ in range(3):
            writer.write(stored)
    data = bytearray(path.read_bytes())
    header = data.index(b"tkhd")
    data[header + 44 : header + 68] = struct.pack(">6i", *matrix)
    path.write_bytes(data)
    upright = np.rot90(stored, turns)
    frame = next(read_video(path))
    assert frame.shape == upright.shape and np.abs(frame.astype(int) - upright).mean() < 8
    assert (probe(path).width, probe(path).height) == (upright.shape[1], upright.shape[0])
