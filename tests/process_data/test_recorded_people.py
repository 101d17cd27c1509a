"""What `process` makes of people who lie on the side, of squares, blank ends, still lips, and of how the file was read."""

import os

import numpy as np
import pytest
from click.testing import CliRunner

from cli import cli
from process_data import quality, video
from process_data.actor.actor import make_actor
from process_data.config import ProcessConfig
from process_data.detection.detector import open_detector
from shared.errors import TalkheadError
from shared.media.audio_io import save_wav
from shared.media.video_io import VideoWriter, probe, read_video, write_png


def film(path, frames, audio=None):
    with VideoWriter(path, frames[0].shape[1], frames[0].shape[0], audio=audio) as writer:
        for frame in frames:
            writer.write(np.ascontiguousarray(frame))
    return path


@pytest.fixture(scope="module")
def actor(tmp_path_factory):
    """Frames (12,160,160,3) of the synthetic actor."""
    truth = make_actor(tmp_path_factory.mktemp("actor"), size=160, seconds=0.5, quiet=True)
    return np.stack(list(read_video(truth.video)))[:12]


@pytest.mark.parametrize("turns, sentence", [
    (0, None), (1, "lies on the side; turn the video by 90 degrees clockwise"),
    pytest.param(2, "is upside down; turn the video by 180 degrees", marks=pytest.mark.slow),
    pytest.param(3, "lies on the side; turn the video by 90 degrees counter-clockwise", marks=pytest.mark.slow)])
def test_people_who_do_not_stand_upright_are_refused(tmp_path, actor, turns, sentence):
    path = film(tmp_path / "a.mp4", np.rot90(actor, turns, axes=(1, 2)))
    detector = open_detector()
    try:
        if sentence is None:
            assert video.choose_crop(path, probe(path), ProcessConfig(), detector)[0] == (0, 0, 160)
        else:
            with pytest.raises(TalkheadError, match=f"a.mp4: the person {sentence} and process it again"):
                video.choose_crop(path, probe(path), ProcessConfig(), detector)
    finally:
        detector.close()


class OneFace:
    """A detector that sees the same face in each frame."""

    def __init__(self, box):
        self.box = box

    def faces(self, frame):
        return np.array([self.box], np.float32)

    def restart(self):
        pass


@pytest.mark.parametrize("height, crop", [(100, (0, 0, 400)), (60, (104, 119, 192))])
def test_square_pictures_are_cropped_where_the_face_is_small(tmp_path, monkeypatch, height, crop):
    monkeypatch.setattr(video, "upright_error", lambda frame, detector: 0.0)
    path = film(tmp_path / "a.mp4", np.zeros((3, 400, 400, 3), np.uint8))
    face = OneFace((200 - height / 2, 200 - height / 2, 200 + height / 2, 200 + height / 2))
    found, boxes = video.choose_crop(path, probe(path), ProcessConfig(), face)
    assert found == crop
    np.testing.assert_array_equal(boxes, [face.box] * 3)


def test_a_black_end_is_no_cut():
    blank = np.zeros(300, bool)
    assert quality.cuts_of_takes([(0, 100), (100, 200), (200, 300)], blank) == [100, 200]
    blank[200:] = blank[150:160] = True
    assert quality.cuts_of_takes([(0, 100), (100, 200), (200, 300)], blank) == [100]
    assert quality.cuts_of_takes([(0, 200), (200, 300)], blank) == []
    assert quality.cuts_of_takes([(0, 100), (100, 200), (200, 300)], ~blank) == [200]  # what comes after black is the first take


def test_frames_without_a_picture_are_told_from_those_without_a_face(tmp_path, actor):
    frames = np.concatenate([np.zeros_like(actor[:3]), actor, np.full_like(actor[:5], 16)])
    path = film(tmp_path / "a.mp4", frames)
    lost = np.zeros(20, bool)
    lost[[0, 1, 2, 6, 15, 16, 17, 18, 19]] = True
    blank = video.no_picture(path, lost, 0.0)
    assert np.flatnonzero(blank).tolist() == [0, 1, 2, 15, 16, 17, 18, 19]
    assert np.flatnonzero(video.no_picture(path, np.zeros(20, bool), 0.6)).tolist() == list(range(15))
    assert not video.no_picture(path, np.zeros(20, bool), 0.08).any()
    points = np.random.default_rng(0).uniform(40, 100, (20, 68, 2))
    none = np.zeros((0, 5))
    bad = quality.find_excluded(lost, np.ones(20, bool), np.repeat(np.eye(4)[None], 20, 0), points, none, none,
                                ProcessConfig(max_turn_degrees=180), blank=blank)
    assert [(b.start, b.stop, b.reason) for b in bad] == [(0, 3, "no picture"), (6, 7, "no face"), (15, 20, "no picture")]
    said = quality.recording_warnings([], bad, None, False, np.ones(100), points, np.zeros((0, 5)), 160)
    assert "no picture in 8 frame(s), which are skipped; cut them off" in said


def test_the_held_out_frames_are_good_ones():
    good = np.ones(200, bool)
    assert quality.default_split(good, 0.1) == {"train": [(0, 180)], "test": [(180, 200)]}
    good[195:] = False  # some bad ones do not matter
    good[20:40] = False
    assert quality.default_split(good, 0.1) == {"train": [(0, 180)], "test": [(180, 200)]}
    good[150:] = False
    split = quality.default_split(good, 0.1)
    (start, stop), = split["test"]
    assert split["train"] == [(0, start)] and stop == 150 and good[start:stop].sum() == 13
    assert quality.default_split(good, 0.0) == {"train": [(0, 200)], "test": [(200, 200)]}


def test_lips_that_never_move_are_told():
    rows = np.repeat(np.random.default_rng(0).normal(scale=0.05, size=(1, 68, 3)), 100, 0)
    rows[:, 51] = rows[:, 62] = rows[:, 66] = rows[:, 57] = 0
    change = np.full(100, 0.01)
    sentence = "the lips do not move; nothing can be learned of speech: film the person while they speak"
    assert quality.still_warnings(rows, change) == [sentence]
    assert quality.still_warnings(rows, 0 * change)[0].startswith("the picture stands still and the lips do not move; ")
    moving = rows.copy()
    moving[:, 60:68] *= 1 + 0.2 * np.sin(np.arange(100))[:, None, None]
    assert quality.still_warnings(moving, change) == []


def test_a_file_is_told_to_be_cut_off_only_by_its_own_tracks(tmp_path, actor):
    save_wav(tmp_path / "long.wav", np.zeros(16000 * 3))
    path = film(tmp_path / "a.mkv", np.repeat(actor, 3, 0), audio=tmp_path / "long.wav")
    info = probe(path)
    assert video.notes(path, info, 36) == []
    assert video.notes(path, info, 20)[0].startswith("the file should last 1.4 s, but only 0.8 s of video can be read")


def test_what_is_no_recording_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_png("face.png", np.full((128, 128, 3), 90, np.uint8))
    os.mkfifo("pipe")
    for name, sentence in (("face.png", "face.png is a picture, not a video; name the recording that shows the person"),
                           ("https://a.org/b.mp4", "https:/a.org/b.mp4 is an address; download the video and name the file"),
                           ("-", "a video cannot be read from a pipe; save it as a file and name that"),
                           ("pipe", "pipe is a pipe or a device; save the video as a file and name that")):
        result = CliRunner().invoke(cli, ["process", name, "clip"])
        assert result.exit_code == 2 and result.output.strip().splitlines()[-1] == f"Error: {sentence}"
        assert not (tmp_path / "clip").exists()


