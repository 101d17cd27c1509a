"""What a written video can be besides 25 fps: other frame rates, metadata, a last step before it gets its name."""

import shutil
from fractions import Fraction

import av
import numpy as np
import pytest

from shared.errors import TalkheadError
from shared.media.audio_io import load_audio
from shared.media.video_io import TransparentVideoWriter, VideoWriter, frame_rate, nearest_frame, read_video

RATES = ["1", "10", "12.5", "23.976", "24", "25", "29.97", "30", "48", "50", "59.94", "60", "120"]


@pytest.mark.parametrize("given, rate", [("24", 24), (30, 30), ("29.97", Fraction(30000, 1001)), (29.97, Fraction(30000, 1001)),
                                         ("30000/1001", Fraction(30000, 1001)), ("23.98", Fraction(24000, 1001)),
                                         ("59.94", Fraction(60000, 1001)),
                                         ("12.5", Fraction(25, 2)), ("29.9", Fraction(299, 10))])
def test_rates_are_read_as_people_write_them(given, rate):
    assert frame_rate(given) == rate


@pytest.mark.parametrize("given", ["0", "0.5", "121", "-25", "nan", "inf", "1/0", "fast", ""])
def test_rates_that_no_video_has_are_refused(given):
    with pytest.raises(TalkheadError, match="^--fps .*: expected 1 to 120 frames a second, such as 24, 29.97 or 30000/1001$"):
        frame_rate(given)


@pytest.mark.parametrize("rate", RATES)
def test_each_frame_is_the_nearest_in_time(rate):
    fps = frame_rate(rate)
    for k in [*range(300), 10**6, 10**9 + 7]:
        around = [int(k * 25 / fps) + step for step in range(-2, 4)]
        best = min(around, key=lambda j: (abs(Fraction(j, 25) - k / fps), j))
        assert nearest_frame(k, fps) == best


@pytest.mark.parametrize("name", ["t.mp4", "t.mkv"])
@pytest.mark.parametrize("rate", RATES)
def test_written_files_show_it_and_last_as_long(tmp_path, name, rate):
    fps, count = frame_rate(rate), 53
    with VideoWriter(tmp_path / name, 32, 32, fps=fps, audio=np.full(count * 640, 0.1, np.float32), crf=4) as writer:
        for level in range(count):
            writer.write(np.full((32, 32, 3), 4 * level, np.uint8))
    with av.open(str(tmp_path / name)) as made:
        frames = list(made.decode(video=0))
        stream = made.streams.video[0]
        assert float(stream.average_rate) == pytest.approx(float(fps), rel=1e-3 if name == "t.mkv" else 0)
        if name == "t.mp4":  # Matroska counts milliseconds
            assert stream.duration * stream.time_base == len(frames) / fps
            assert [frame.pts * frame.time_base for frame in frames] == [k / fps for k in range(len(frames))]
        else:
            np.testing.assert_allclose([frame.time for frame in frames], [float(k / fps) for k in range(len(frames))], atol=6e-4)
    levels = [round(frame.to_ndarray(format="rgb24").mean() / 4) for frame in frames]
    assert levels == [min(count - 1, nearest_frame(k, fps)) for k in range(len(frames))]
    assert Fraction(count, 25) <= len(frames) / fps < Fraction(count, 25) + 1 / fps
    sound = load_audio(tmp_path / name)
    assert abs(len(sound) - 640 * count) <= 1024 and (sound[2000 : 640 * count - 2000] > 0.05).all()


def test_twice_the_rate_read_at_25_fps_is_what_was_written(tmp_path):
    with VideoWriter(tmp_path / "t.mp4", 32, 32, fps=50, crf=4) as writer:
        for level in range(20):
            writer.write(np.full((32, 32, 3), 10 * level, np.uint8))
    assert [round(frame.mean() / 10) for frame in read_video(tmp_path / "t.mp4")] == list(range(20))


@pytest.mark.parametrize("name, writer", [("t.mp4", VideoWriter), ("t.mov", VideoWriter), ("t.mkv", VideoWriter),
                                          ("a.mov", TransparentVideoWriter), ("a.webm", TransparentVideoWriter)])
@pytest.mark.parametrize("metadata", [{"title": "Größe", "comment": "made"},
                                      {"comment": "made", "talkhead_made": '{"by": "me"}'}])
def test_metadata_comes_back(tmp_path, name, writer, metadata):
    with writer(tmp_path / name, 32, 32, metadata=metadata) as video:
        video.write(np.zeros((32, 32, video.channels), np.uint8))
    with av.open(str(tmp_path / name)) as made:
        found = {key.lower(): value for key, value in made.metadata.items()}
    assert metadata.items() <= found.items()


def test_the_last_step_sees_the_whole_file_before_it_has_its_name(tmp_path):
    seen = []

    def sign(partial):
        assert not (tmp_path / "t.mp4").exists()
        seen.append(sum(1 for _ in read_video(partial)))
        shutil.copyfile(partial, tmp_path / "copy.mp4")
        with open(partial, "ab") as file:
            file.write(b"signature")

    with VideoWriter(tmp_path / "t.mp4", 32, 32, finish=sign) as writer:
        for _ in range(7):
            writer.write(np.zeros((32, 32, 3), np.uint8))
    assert seen == [7] and (tmp_path / "t.mp4").read_bytes() == (tmp_path / "copy.mp4").read_bytes() + b"signature"


def test_without_its_last_step_there_is_no_file(tmp_path):
    def refuse(partial):
        raise TalkheadError("no key to sign with")

    with pytest.raises(TalkheadError, match="no key"), VideoWriter(tmp_path / "t.mp4", 32, 32, finish=refuse) as writer:
        writer.write(np.zeros((32, 32, 3), np.uint8))
    with pytest.raises(RuntimeError), VideoWriter(tmp_path / "t.mp4", 32, 32, finish=lambda _: pytest.fail("called")) as writer:
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
