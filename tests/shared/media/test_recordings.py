"""What people record: clocks, tracks, display matrices, colours, interlacing, channels; and reading as the ffmpeg tool reads."""

import shutil
import struct
import subprocess
import wave
from fractions import Fraction

import av
import numpy as np
import pytest

from shared.errors import TalkheadError
from shared.media import tone_map
from shared.media.audio_io import audio_notes, load_audio
from shared.media.tone_map import BT2020, HLG, PQ
from shared.media.video_io import VideoWriter, probe, read_video, write_png

RATE = 48000
needs_ffmpeg = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs the ffmpeg tool")


def ramp(count=30, size=(48, 64)):
    """Frames whose grey tells their number: 8·k on the left half, a pattern on the right that no symmetry maps onto itself."""
    frames = np.repeat(np.arange(count)[:, None, None, None] * 8, size[0], 1).repeat(size[1], 2).repeat(3, 3).astype(np.uint8)
    frames[:, :16, 32:48, 0] = 250
    frames[:, 8:40, 56:, 2] = 250
    return frames


def clicks(seconds=1.2, at=(0.3, 0.8)):
    """Sound (n,) of short clicks at the given seconds."""
    sound = np.zeros(round(seconds * RATE))
    for time in at:
        sound[round(time * RATE) : round(time * RATE) + 48] = 0.9
    return sound


def record(path, *, frames=(), sounds=(), video="libx264", audio="aac", start=0.0, late=0.0, options=None, video_options=None,
           pixels="yuv420p", colors=None, channels="mono", dispositions=()):
    """Frames at 25 fps from `start` seconds on the file's clock, each sound from start + late on."""
    with av.open(f"file:{path}", "w", options=options or {}) as out:
        tracks = []
        if len(frames):
            track = out.add_stream(video, rate=25)
            size = frames[0].shape[:2] if isinstance(frames[0], np.ndarray) else (frames[0].height, frames[0].width)
            track.height, track.width, track.pix_fmt = *size, pixels
            track.options = video_options or {"crf": "8", "bf": "0"} if video == "libx264" else video_options or {}
            if colors:
                coder = track.codec_context
                coder.color_trc, coder.color_primaries, coder.colorspace = colors
            tracks.append((track, list(_pictures(frames, start))))
        for k, sound in enumerate(sounds):
            track = out.add_stream(audio, rate=RATE, layout=channels)
            if k < len(dispositions):
                track.disposition = dispositions[k]
            tracks.append((track, list(_pieces(track, np.atleast_2d(sound), start + late))))
        for track, items in tracks:
            for item in items:
                out.mux(track.encode(item))
        for track, _ in tracks:
            out.mux(track.encode(None))
    return path


def _pictures(frames, start):
    for k, pixels in enumerate(frames):
        frame = pixels if isinstance(pixels, av.VideoFrame) else av.VideoFrame.from_ndarray(pixels, format="rgb24")
        frame.pts, frame.time_base = round(start * 25) + k, Fraction(1, 25)
        yield frame


def _pieces(track, sound, start):
    form = av.AudioResampler(format=track.format.name, layout=track.layout.name, rate=RATE)
    for at in range(0, sound.shape[1], 960):
        block = np.repeat(sound[:, at : at + 960].astype(np.float32), track.layout.nb_channels, 0)
        frame = av.AudioFrame.from_ndarray(block, format="fltp", layout=track.layout.name)
        frame.sample_rate, frame.time_base, frame.pts = RATE, Fraction(1, RATE), round(start * RATE) + at
        yield from form.resample(frame)


def heard_at(samples):
    """Seconds at which clicks begin in 16 kHz sound."""
    loud = np.flatnonzero(np.abs(samples) > 0.3 * np.abs(samples).max())
    return [loud[0] / 16000, *(loud[1:][np.diff(loud) > 3000] / 16000)]


def numbers(path):
    return [round(float(frame[:, 4:28].mean()) / 8) for frame in read_video(path)]


def wav(path, channels, *, mask=None, floats=False):
    """16 kHz WAV of channels (C, n), with a channel mask or none."""
    data = np.stack(channels, 1)
    data = data.astype("<f4") if floats else (data * 32767).astype("<i2")
    count, bits = data.shape[1], 8 * data.itemsize
    code = 3 if floats else 1
    head = struct.pack("<HHIIHH", 0xFFFE if mask else code, count, 16000, 16000 * count * bits // 8, count * bits // 8, bits)
    if mask:
        head += struct.pack("<HHIH", 22, bits, mask, code) + bytes.fromhex("000000001000800000aa00389b71")
    body = b"fmt " + struct.pack("<I", len(head)) + head + b"data" + struct.pack("<I", data.nbytes) + data.tobytes()
    path.write_bytes(b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WAVE" + body)
    return path


# ------------------------------------------------------------------------------------------------------------------- clocks


@pytest.mark.parametrize("name, options", [
    ("a.mkv", {}), ("a.ts", {}), ("a.mp4", {"movflags": "frag_keyframe+empty_moov+delay_moov"}), ("a.mp4", {}),
])
@pytest.mark.parametrize("start", [0.0, 30.0, 8000.0])
def test_time_zero_is_the_start_of_the_file(tmp_path, name, options, start):
    path = record(tmp_path / name, frames=ramp(), sounds=[clicks()], start=start, options=options)
    got = numbers(path)
    # encoder delay that the format cannot tell moves all by a frame at most, sound and picture alike
    assert 30 <= len(got) <= 31 and got[-29:] == list(range(1, 30)), got
    info = probe(path)
    assert abs(info.duration - 1.2) < 0.1 and info.start < 0.05
    sound = heard_at(load_audio(path))
    assert abs(sound[0] - info.start - 0.3) < 0.01 and abs(sound[1] - sound[0] - 0.5) < 0.002
    assert [round(float(frame[:, 4:28].mean()) / 8) for frame in read_video(path, start=20, stop=22)] == got[20:22]


@pytest.mark.parametrize("late", [0.4, -0.4])
def test_tracks_keep_their_distance(tmp_path, late):
    path = record(tmp_path / "a.mkv", frames=ramp(), sounds=[clicks()], audio="pcm_s16le", start=50, late=late)
    assert np.allclose(heard_at(load_audio(path)), np.array([0.3, 0.8]) + max(late, 0), atol=0.001)
    assert numbers(path) == [0] * max(0, round(-25 * late)) + list(range(30))
    assert abs(probe(path).start - max(-late, 0)) < 0.002


@pytest.mark.parametrize("name, codec", [("a.m4a", "aac"), ("a.mp3", "mp3"), ("a.ogg", "libopus"), ("a.mka", "libopus"),
                                         ("a.flac", "flac")])
def test_encoder_delay_is_taken_off(tmp_path, name, codec):
    path = record(tmp_path / name, sounds=[clicks()], audio=codec)
    samples = load_audio(path)
    assert np.allclose(heard_at(samples), [0.3, 0.8], atol=0.002)
    assert abs(len(samples) / 16000 - 1.2) < 0.025


def test_matroska_with_longer_sound_keeps_the_length_of_its_picture(tmp_path):
    path = record(tmp_path / "a.mkv", frames=ramp(), sounds=[clicks(3.0)], audio="pcm_s16le")
    info = probe(path)
    assert abs(info.duration - 1.2) < 0.05 and info.own_length


# ------------------------------------------------------------------------------------------------------------------- tracks


def test_a_cover_is_not_the_video(tmp_path):
    path = tmp_path / "cover.mkv"
    with av.open(str(path), "w") as out:
        cover, track = out.add_stream("mjpeg", rate=25), out.add_stream("libx264", rate=25)
        cover.width, cover.height, cover.pix_fmt = 320, 180, "yuvj420p"
        track.width, track.height, track.pix_fmt = 64, 48, "yuv420p"
        picture = av.VideoFrame.from_ndarray(np.full((180, 320, 3), 99, np.uint8), format="rgb24")
        picture.pts, picture.time_base = 0, Fraction(1, 25)
        for stream, frames in ((cover, [picture]), (track, _pictures(ramp(), 0))):
            for frame in frames:
                out.mux(stream.encode(frame))
            out.mux(stream.encode(None))
    assert (probe(path).width, probe(path).height, probe(path).notes) == (64, 48, ())
    assert len(numbers(path)) == 30
    song = tmp_path / "song.mkv"
    with av.open(str(song), "w") as out:
        cover, track = out.add_stream("mjpeg", rate=25), out.add_stream("pcm_s16le", rate=RATE, layout="mono")
        cover.width, cover.height, cover.pix_fmt = 64, 48, "yuvj420p"
        out.mux(cover.encode(next(_pictures(ramp(1), 0))))
        for piece in _pieces(track, clicks()[None], 0):
            out.mux(track.encode(piece))
    with pytest.raises(TalkheadError, match="has no video track"):
        probe(song)
    assert np.allclose(heard_at(load_audio(song)), [0.3, 0.8], atol=0.002)


def test_the_default_sound_track_is_heard_and_named(tmp_path):
    path = record(tmp_path / "two.mkv", sounds=[clicks(at=[0.2]), clicks(at=[0.7])], audio="flac", dispositions=(0, 1))
    assert np.allclose(heard_at(load_audio(path)), [0.7], atol=0.002)
    assert audio_notes(path) == ["the file has 2 audio tracks; number 2 (flac, 1 channel) is used"]
    data = path.read_bytes()
    at = data.rindex(b"A_FLAC")
    path.write_bytes(data[:at] + b"A_NONE" + data[at + 6 :])
    assert np.allclose(heard_at(load_audio(path)), [0.2], atol=0.002)
    assert audio_notes(path) == ["the file has 2 audio tracks; number 1 (flac, 1 channel) is used",
                                 "audio track(s) 2 cannot be decoded and are left out"]
    path.write_bytes(path.read_bytes().replace(b"A_FLAC", b"A_NONE"))
    with pytest.raises(TalkheadError, match=r"the audio track \(of an unknown kind\) cannot be decoded; convert the file"):
        load_audio(path)


def test_of_two_video_tracks_the_larger_is_shown_and_named(tmp_path):
    path = tmp_path / "two.mkv"
    with av.open(str(path), "w") as out:
        tracks = [out.add_stream("libx264", rate=25) for _ in range(2)]
        for track, size in zip(tracks, ((48, 64), (96, 128))):
            track.height, track.width, track.pix_fmt = *size, "yuv420p"
            track.disposition = 0
        for track, size in zip(tracks, ((48, 64), (96, 128))):
            for frame in _pictures(ramp(5, size), 0):
                out.mux(track.encode(frame))
            out.mux(track.encode(None))
    assert probe(path).notes == ("the file has 2 video tracks; number 2 (h264, 128x96) is used",)
    assert next(read_video(path)).shape == (96, 128, 3)


# ----------------------------------------------------------------------------------------------------------------- pictures

# the display matrix a, b, c, d of each of the eight ways to lie, and what numpy does to show it upright
MATRICES = [((1, 0, 0, 1), lambda p: p), ((0, -1, 1, 0), np.rot90), ((-1, 0, 0, -1), lambda p: np.rot90(p, 2)),
            ((0, 1, -1, 0), lambda p: np.rot90(p, 3)), ((-1, 0, 0, 1), np.fliplr), ((1, 0, 0, -1), np.flipud),
            ((0, 1, 1, 0), lambda p: p.transpose(1, 0, 2)), ((0, -1, -1, 0), lambda p: np.rot90(p, 2).transpose(1, 0, 2)),
            ((-1.7, 0.2, 0.2, 1.7), np.fliplr)]


def set_matrix(path, a, b, c, d):
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd", data.index(b"moov")) + 44
    data[at : at + 20] = struct.pack(">5i", *(round(65536 * v) for v in (a, b)), 0, *(round(65536 * v) for v in (c, d)))
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("matrix, shown", MATRICES)
def test_display_matrices_are_applied_whole(tmp_path, matrix, shown):
    path = record(tmp_path / "a.mp4", frames=ramp(3))
    before = list(read_video(path))[2]
    set_matrix(path, *matrix)
    upright = list(read_video(path))[2]
    np.testing.assert_array_equal(upright, shown(before))
    info = probe(path)
    assert (info.height, info.width) == upright.shape[:2]
    if shutil.which("ffmpeg") and max(map(abs, matrix)) == 1:
        tool = ffmpeg(path, "-f", "rawvideo", "-pix_fmt", "rgb24", kind=np.uint8).reshape(3, *upright.shape)[2]
        assert np.abs(tool.astype(int) - upright).mean() < 3


def test_interlaced_frames_are_made_whole(tmp_path):
    # a bar that moves by 4 pixels from field to field: combed in every frame as it is stored
    fields = np.full((60, 64, 96, 3), 40, np.uint8)
    for k, field in enumerate(fields):
        field[:, 10 + k : 30 + k] = 220
    woven = fields[::2].copy()
    woven[:, 1::2] = fields[1::2, 1::2]
    path = record(tmp_path / "a.ts", frames=woven, sounds=[clicks()], video="mpeg2video", audio="mp2",
                  video_options={"flags": "+ildct+ilme", "q": "2", "b": "4000000"})
    data = list(read_video(path))
    assert probe(path).interlaced and len(data) in (30, 31)

    def combed(picture):
        rows = picture[8:-8, :, 1].astype(int)
        return np.abs(rows[1:-1] - (rows[:-2] + rows[2:]) / 2).mean()

    assert combed(woven[15]) > 2 and combed(data[15]) < 0.4
    assert np.abs(data[-1].astype(int) - fields[58]).mean() < 12


def wide(sdr, curve, white):
    """An SDR picture (..., 3) in 0 … 1 as R'G'B' of BT.2020 with the HDR curve, white at `white` cd/m²: BT.2100 the other way."""
    light = white * sdr**2.4 @ np.linalg.inv(tone_map.TO_BT709[BT2020]).T
    if curve == PQ:
        power = (np.maximum(light, 0) / 10000) ** 0.1593017578125
        return ((0.8359375 + 18.8515625 * power) / (1 + 18.6875 * power)) ** 78.84375
    if curve == HLG:
        shown = np.maximum(light, 0) / 1000
        scene = shown * np.maximum(shown @ np.array([0.2627, 0.6780, 0.0593]), 1e-9)[..., None] ** (1 / 1.2 - 1)
        low = np.sqrt(3 * np.minimum(scene, 1 / 12))
        return np.where(scene <= 1 / 12, low, 0.17883277 * np.log(np.maximum(12 * scene - 0.28466892, 1e-9)) + 0.55991073)
    return np.maximum(light / white, 0) ** (1 / 2.4)


def portrait(size=(48, 64)):
    """A mid-key picture (H, W, 3) in 0 … 1 with white, black and colours."""
    y, x = np.mgrid[: size[0], : size[1]] / np.array(size)[:, None, None]
    picture = np.stack([0.35 + 0.3 * x, 0.4 + 0.1 * y, 0.5 - 0.2 * x], -1)
    picture[4:12, 4:16], picture[36:44, 4:16], picture[4:12, 48:60] = 1.0, 0.02, (0.8, 0.3, 0.2)
    return picture


@pytest.mark.parametrize("curve, white, name, most", [(HLG, 203, "HDR (HLG)", 12), (HLG, 1000, "HDR (HLG)", 12),
                                                      (PQ, 100, "HDR (PQ)", 12), (PQ, 203, "HDR (PQ)", 12),
                                                      (PQ, 1000, "HDR (PQ)", 12), (14, 1, "in BT.2020 colours", 3)])
def test_high_dynamic_range_looks_as_the_same_picture_in_standard_range(tmp_path, curve, white, name, most):
    picture = portrait()
    signal = (wide(picture, curve, white) * 65535).round().astype(np.uint16)
    frames = []
    for _ in range(3):
        frame = av.VideoFrame.from_ndarray(signal, format="rgb48le")
        frames.append(frame.reformat(format="yuv420p10le", dst_colorspace=9, dst_color_range=1))
    path = record(tmp_path / "a.mkv", frames=frames, pixels="yuv420p10le", colors=(curve, BT2020, 9))
    found = list(read_video(path))
    assert np.abs(found[1] / 255 - picture).mean() * 255 < most
    assert probe(path).notes == (f"the video is {name} and was converted to standard colours (BT.709); film in standard "
                                 "dynamic range if you can",)
    np.testing.assert_array_equal(next(read_video(path, start=1)), found[1])


def test_the_table_of_colors_is_the_formula():
    signal = np.random.default_rng(0).uniform(0, 1, (40, 50, 3))
    mapper = tone_map.ToneMapper((HLG, BT2020), 203.0, 1000.0)
    frame = av.VideoFrame.from_ndarray((signal * 65535).astype(np.uint16), format="rgb48le")
    table = mapper.convert(frame).to_ndarray() / 65535
    assert np.abs(table - tone_map.standard(signal, (HLG, BT2020), 203.0, 1000.0)).mean() < 0.002


# -------------------------------------------------------------------------------------------------------------------- sound

TONE = 0.4 * np.sin(2 * np.pi * 220 * np.arange(32000) / 16000)
NONE = np.zeros_like(TONE)
HISS = 1e-4 * np.random.default_rng(0).normal(size=len(TONE))


@pytest.mark.parametrize("floats", [False, True])
@pytest.mark.parametrize("channels, mask", [
    ([TONE], None), ([TONE, TONE], None), ([TONE, NONE], None), ([HISS, TONE], None), ([TONE, -TONE], None),
    ([TONE, -0.8 * TONE], None), ([TONE, np.where(np.arange(len(TONE)) < 16000, TONE, -TONE)], None),
    ([NONE, NONE, TONE, NONE, NONE, NONE], 0x3F), ([TONE] * 6, 0x3F), ([TONE] + [HISS] * 8, None),
    ([NONE] * 17 + [TONE], None), ([TONE] * 32, None), ([HISS] * 31 + [TONE], None)])
def test_speech_is_heard_on_whichever_channel_it_is(tmp_path, channels, mask, floats):
    samples = load_audio(wav(tmp_path / "a.wav", channels, mask=mask, floats=floats))
    assert len(samples) == len(TONE)
    assert abs(abs(samples @ TONE) / (TONE @ TONE) - 1) < 0.02


def test_ordinary_stereo_is_the_mean(tmp_path):
    noise = np.random.default_rng(1).uniform(-0.5, 0.5, (2, 16000))
    samples = load_audio(wav(tmp_path / "a.wav", noise))
    np.testing.assert_allclose(samples, (noise * 32767).astype(int).mean(0) / 32768, atol=1e-4)


# ------------------------------------------------------------------------------------------------------------ names, pictures


@pytest.mark.parametrize("name", ["12:30", "-x", "concat:a", "a|b", "%03d", "http:"])
def test_any_name_is_a_file(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with wave.open(str(tmp_path / f"{name}.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16000)
        file.writeframes(bytes(32000))
    assert len(load_audio(f"{name}.wav")) == 16000
    with VideoWriter(f"{name}.mp4", 64, 48) as writer:
        writer.write(ramp(1)[0])
    assert probe(f"{name}.mp4").width == 64


def test_what_is_no_file_is_refused_with_a_sentence(tmp_path):
    write_png(tmp_path / "face.png", ramp(1)[0])
    with pytest.raises(TalkheadError, match="face.png is a picture, not a video; name the recording that shows the person"):
        probe(tmp_path / "face.png")
    for name, sentence in (("https://a.org/b.mp4", "https:/a.org/b.mp4 is an address; download the video and name the file"),
                           ("-", "a video cannot be read from a pipe; save it as a file and name that"),
                           ("/dev/null", "/dev/null is a pipe or a device; save the video as a file and name that"),
                           ("a" * 300, "a+ may not be read: File name too long")):
        with pytest.raises(TalkheadError, match=sentence):
            probe(name)


# ------------------------------------------------------------------------------------------------------- as ffmpeg reads them


def ffmpeg(path, *options, kind):
    command = ["ffmpeg", "-v", "error", "-i", f"file:{path}", *options, "-"]
    return np.frombuffer(subprocess.run(command, capture_output=True, check=True).stdout, kind)


@needs_ffmpeg
@pytest.mark.parametrize("name, video, audio, options", [
    ("a.mp4", "libx264", "aac", {}), ("b.mkv", "libx264", "libopus", {}), ("c.ts", "libx264", "aac", {}),
    ("d.webm", "libvpx", "libopus", {}), ("e.avi", "mpeg4", "mp3", {}), ("f.mov", "mpeg4", "pcm_s16le", {}),
    ("g.mp4", "libx264", "aac", {"movflags": "frag_keyframe+empty_moov"})])
@pytest.mark.parametrize("start", [0.0, 7.0])
def test_reading_agrees_with_the_ffmpeg_tool(tmp_path, name, video, audio, options, start):
    path = record(tmp_path / name, frames=ramp(), sounds=[clicks()], video=video, audio=audio, start=start, options=options,
                  video_options={"b": "4000000"} if video != "libx264" else None)
    own = np.stack(list(read_video(path)))
    tool = ffmpeg(path, "-fps_mode", "cfr", "-r", "25", "-f", "rawvideo", "-pix_fmt", "rgb24", kind=np.uint8)
    tool = tool.reshape(-1, *own.shape[1:])
    assert abs(len(own) - len(tool)) <= 1
    last = min(len(own), len(tool)) - 2
    shift = min((-1, 0, 1), key=lambda s: np.abs(own[2:last].astype(int) - tool[2 + s : last + s]).mean())
    assert np.abs(own[2:last].astype(int) - tool[2 + shift : last + shift]).mean() < 5
    sound = ffmpeg(path, "-af", "aresample=async=1:first_pts=0", "-ac", "1", "-ar", "16000", "-f", "f32le", kind="<f4")
    assert np.allclose(heard_at(load_audio(path)), heard_at(sound), atol=0.008)  # versions differ by Opus' delay


@needs_ffmpeg
@pytest.mark.parametrize("matrix, spread", [("bt709", "tv"), ("bt709", "pc"), ("smpte170m", "tv"), (None, None)])
def test_matrix_and_range_are_honoured_as_ffmpeg_does(tmp_path, matrix, spread):
    frames = np.repeat((portrait() * 255).astype(np.uint8)[None], 3, 0)
    numbers = {"bt709": 1, "smpte170m": 5, None: None}[matrix]
    coded = []
    for pixels in frames:
        frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
        frame = frame.reformat(format="yuv420p", dst_colorspace=numbers, dst_color_range={"tv": 1, "pc": 2, None: None}[spread])
        coded.append(frame)
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as out:
        track = out.add_stream("libx264", rate=25)
        track.height, track.width, track.pix_fmt, track.options = 48, 64, "yuv420p", {"crf": "5"}
        if numbers:
            track.codec_context.colorspace = {1: 1, 5: 6}[numbers]
        if spread:
            track.codec_context.color_range = {"tv": 1, "pc": 2}[spread]
        for frame in _pictures(coded, 0):
            out.mux(track.encode(frame))
        out.mux(track.encode(None))
    own = np.stack(list(read_video(path)))
    tool = ffmpeg(path, "-f", "rawvideo", "-pix_fmt", "rgb24", kind=np.uint8).reshape(own.shape)
    assert np.abs(own.astype(int) - tool).mean() < 1.5
    assert np.abs(own[1].astype(int) - frames[1]).mean() < 5


