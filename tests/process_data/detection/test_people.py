"""The chosen person's points, frame by frame, where several people are seen."""

import re
from pathlib import Path

import cv2
import numpy as np
import pytest
from click.testing import CliRunner

from cli import cli
from process_data import quality
from process_data.actor.actor import make_actor
from process_data.config import ProcessConfig
from process_data.detection import detection_pass, people
from process_data.detection.detection_pass import DetectorChoice
from process_data.detection.people import Faces, boxes_of, choose, find_people
from process_data.workers import Workers
from shared.camera import pose_matrix
from shared.errors import TalkheadError
from shared.media.video_io import VideoWriter, read_video

PAGE = (Path(__file__).resolve().parents[3] / "docs/bad_inputs.md").read_text()
FRAMES, SIZE = 60, 128


@pytest.fixture(scope="module")
def actors(tmp_path_factory):
    """Frames (60,128,128,3) of three actors."""
    root = tmp_path_factory.mktemp("actors")
    films = [make_actor(root / str(seed), size=SIZE, seconds=FRAMES / 25, seed=seed, quiet=True) for seed in (0, 2, 3)]
    yield [np.stack(list(read_video(film.video)))[:FRAMES] for film in films]
    detection_pass._detector(DetectorChoice()).close()


def beside(*pictures):
    return np.concatenate(pictures, axis=2)


def seen(tmp_path, frames, person="", *, monkeypatch):
    """Middle (T,2) of the tracked face, NaN where it is lost, and where others are seen instead."""
    video = tmp_path / "v.mp4"
    with VideoWriter(video, frames.shape[2], frames.shape[1], crf=14) as writer:
        for frame in frames:
            writer.write(frame)
    work = tmp_path / "work"
    work.mkdir(exist_ok=True)
    # chunks of 20 frames, in this process: the same as what workers do
    parts = [(a, min(a + 20, len(frames))) for a in range(0, len(frames), 20)]
    for a, b in parts:
        if not detection_pass._detection_file(work, a).is_file():
            detection_pass.detect_chunk(video, a, b, DetectorChoice(), work)
    monkeypatch.setattr(detection_pass, "chunk_spans", lambda count: parts)
    found = detection_pass.detect_video(video, len(frames), work, DetectorChoice(), Workers(1), quiet=True, person=person)
    return found.points[:, found.scheme.landmarks68, :2].mean(1), found.others


@pytest.mark.slow
def test_two_people_side_by_side(tmp_path, actors, monkeypatch):
    a, b, _ = actors
    frames = beside(a, b)
    for person, side in (("left", 0), ("1", 0), ("right", 1), ("2", 1)):
        middle, others = seen(tmp_path, frames, person, monkeypatch=monkeypatch)
        assert (middle[:, 0] // SIZE == side).all() and not others.any()
    with pytest.raises(TalkheadError, match=r"^--person 3: only 2 people are seen in the video$"):
        seen(tmp_path, frames, "3", monkeypatch=monkeypatch)


@pytest.mark.parametrize("swap", [20, pytest.param(33, marks=pytest.mark.slow)])
def test_a_swap_of_sides_is_followed(tmp_path, actors, monkeypatch, swap):
    """At the border of a chunk and within one, by a cut."""
    a, b, _ = actors
    frames = np.concatenate([beside(a[:swap], b[:swap]), beside(b[swap:], a[swap:])])
    (tmp_path / "x").mkdir()
    middle, others = seen(tmp_path / "x", frames, monkeypatch=monkeypatch)
    side = middle[:, 0] // SIZE
    first = side[0]
    assert (side[:swap] == first).all() and (side[swap:] == 1 - first).all() and not others.any()


@pytest.mark.slow
def test_one_leaves_and_comes_back(tmp_path, actors, monkeypatch):
    a, b, _ = actors
    frames = beside(a, b)
    frames[20:40, :, :SIZE] = 120  # the left one is away
    middle, others = seen(tmp_path, frames, "left", monkeypatch=monkeypatch)
    away = np.isnan(middle[:, 0])
    assert away[21:40].all() and not away[:20].any() and not away[43:].any()
    assert np.array_equal(away, others) and (middle[~away, 0] < SIZE).all()


@pytest.mark.slow
def test_the_larger_face_is_kept_to(tmp_path, actors, monkeypatch):
    a, b, _ = actors
    small = np.stack([np.pad(cv2.resize(frame, (88, 88), interpolation=cv2.INTER_AREA), ((40, 0), (20, 20), (0, 0)))
                      for frame in a])
    middle, others = seen(tmp_path, beside(small, b), monkeypatch=monkeypatch)
    assert (middle[:, 0] > SIZE).all() and not others.any()


@pytest.mark.slow
def test_another_person_after_a_cut_is_not_the_same(tmp_path, actors, monkeypatch):
    a, _, c = actors
    painted = c[..., ::-1] // np.array([3, 1, 1], np.uint8)  # the actors alone look too much alike
    middle, others = seen(tmp_path, np.concatenate([a[:25], painted[25:45], a[45:]]), monkeypatch=monkeypatch)
    away = np.isnan(middle[:, 0])
    assert not away[:25].any() and away[25:45].all() and not away[45:].any() and np.array_equal(away, others)


@pytest.mark.slow
def test_one_person_stays_one_through_cuts(tmp_path, actors, monkeypatch):
    a = actors[0]
    frames = np.concatenate([a[:25], np.roll(a[25:45], 20, axis=2), a[45:]])
    middle, others = seen(tmp_path, frames, monkeypatch=monkeypatch)
    assert np.isfinite(middle).all() and not others.any()


def faces_of(*tracks):
    """Faces of (frames, centre, size, grey of the look) each."""
    rows = sorted((t, k) for k, (frames, *_) in enumerate(tracks) for t in frames)
    appearance = [np.linspace(1 - g, 1 + g, 264).reshape(people.APPEARANCE_SHAPE) for *_, g in tracks]
    return Faces(np.array([t for t, _ in rows]), np.array([tracks[k][1] for _, k in rows], float),
                 np.array([tracks[k][2] for _, k in rows], float), np.array([appearance[k] for _, k in rows], np.float16)), [
                     k for _, k in rows]


def test_people_seen_together_are_two_however_alike():
    faces, of = faces_of((range(10), (10, 10), 8, 0.1), (range(10), (60, 10), 8, 0.1))
    found = find_people(faces, [(0, 10)])
    assert (found == found[0]).tolist() == [k == of[0] for k in of]
    assert choose(faces, found, "right") != choose(faces, found, "left") == choose(faces, found, "", near=(20, 0))


def test_looks_outweigh_place_across_a_cut():
    faces, of = faces_of((range(10), (10, 10), 8, 0.1), (range(10), (60, 10), 9, 0.5),
                         (range(10, 20), (60, 10), 8, 0.12), (range(10, 20), (10, 10), 9, 0.48))
    found = find_people(faces, [(0, 10), (10, 20)])
    person = [found[of.index(k)] for k in range(4)]
    assert person[0] == person[2] != person[1] == person[3]
    assert choose(faces, found, "") == person[1]


def test_passers_by_do_not_count_from_the_left():
    faces, of = faces_of((range(100), (50, 10), 8, 0.1), (range(5), (10, 10), 8, 0.6))
    found = find_people(faces, [(0, 100)])
    assert choose(faces, found, "left") == found[of.index(0)]


def test_nobody():
    faces = Faces(np.zeros(0, int), np.zeros((0, 2)), np.zeros(0), np.zeros((0, *people.APPEARANCE_SHAPE), np.float16))
    assert len(find_people(faces, [(0, 10)])) == 0


def test_the_crop_goes_round_the_chosen_person():
    left, right, far = [0, 0, 10, 10], [50, 0, 62, 12], [80, 0, 83, 3]
    appearances = [np.array([right, left, far], float), np.zeros((0, 4)), np.array([right, left], float), np.array([left], float)]
    assert [box.tolist() for box in boxes_of(appearances, "")] == [right, right]
    assert [box.tolist() for box in boxes_of(appearances, "left")] == [left, left]
    assert [box.tolist() for box in boxes_of([np.array([left, far], float)] * 2, "")] == [left, left]
    with pytest.raises(TalkheadError, match="only 2 people"):
        boxes_of(appearances, "3")


@pytest.mark.parametrize("person", ["middle", "0", "-1", "1.5", "²"])
def test_a_wrong_person_is_refused(person, tmp_path):
    sentence = re.search(r"\| --person middle \| refused \| (.+?) \|$", PAGE, re.M)[1]
    (tmp_path / "v.mp4").touch()
    done = CliRunner().invoke(cli, ["process", str(tmp_path / "v.mp4"), str(tmp_path / "c"), "--person", person])
    assert done.exit_code == 2 and sentence.replace("'middle'", repr(person)) in done.output


def test_another_person_is_a_bad_stretch_and_told():
    lost = np.zeros(100, bool)
    lost[10:30] = True
    others = np.zeros(100, bool)
    others[15:30] = True
    poses = np.repeat(pose_matrix(np.diag([1.0, -1, -1]), np.array([0, 0, 0.8]))[None], 100, axis=0)
    pixels = np.random.default_rng(0).uniform(20, 80, (100, 68, 2))
    bad = quality.find_excluded(lost, ~lost, poses, pixels, np.zeros((0, 5)), np.zeros((0, 5)), ProcessConfig(), others=others)
    assert [(b.start, b.stop, b.reason) for b in bad] == [(10, 15, "no face"), (15, 30, "another person")]
    told = quality.recording_warnings([], bad, None, False, np.ones(100) * 0.1, pixels, np.zeros((0, 5)), 100)
    sentence = re.search(r"\| somebody else is seen .+? \| .+? \| (.+?) \|$", PAGE, re.M)[1]
    assert sentence.replace("N", "15") in told
