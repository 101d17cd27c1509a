from pathlib import Path

import numpy as np
import pytest

from process_data import detect_tasks
from process_data.detect_mediapipe import MESH_SCHEME
from process_data.detect_tasks import TasksDetector
from process_data.detector import open_detector
from shared.errors import TalkheadError
from shared.video_io import read_video

mediapipe = pytest.importorskip("mediapipe")
MATTE_MODEL = Path(mediapipe.__file__).parent / "modules/selfie_segmentation/selfie_segmentation.tflite"


@pytest.fixture
def newer(monkeypatch):
    """A mediapipe without solutions."""
    monkeypatch.setattr("process_data.detect_mediapipe.solutions_available", lambda: False)
    monkeypatch.setattr(detect_tasks, "solutions_available", lambda: False)


def sentence(**options) -> str:
    with pytest.raises(TalkheadError) as error:
        open_detector("mediapipe", **options)
    return str(error.value)


def test_without_solutions_and_files_the_option_is_named(newer):
    assert sentence() == ("this mediapipe carries no models; download face_landmarker.task from MediaPipe's face landmarker "
                          "page and name it with --landmarker FILE")


def test_missing_files_are_named(newer, tmp_path):
    assert sentence(models=tmp_path) == (
        f"face_landmarker.task is not in {tmp_path}; download it from MediaPipe's face landmarker page and put it there, or "
        "name it with --landmarker FILE")
    file = tmp_path / "face_landmarker.task"
    assert sentence(landmarker=file) == (f"{file} does not exist; download face_landmarker.task from MediaPipe's face "
                                         "landmarker page")
    file.touch()
    assert sentence(landmarker=file) == (
        f"selfie_segmenter.tflite, which finds the person, is not in {tmp_path}; download it from MediaPipe's image "
        "segmenter page and put it there")


def test_a_damaged_file_is_named(tmp_path):
    file = tmp_path / "face_landmarker.task"
    file.write_bytes(b"no model")
    detector = open_detector(landmarker=file)
    with pytest.raises(TalkheadError) as error:
        detector.points(np.zeros((64, 64, 3), np.uint8))
    assert str(error.value) == f"{file} is not a model that this mediapipe can read; download it again"


def test_the_matte_of_a_file_is_that_of_the_solutions(newer, tmp_path):
    from process_data.synthetic import make_actor

    truth = make_actor(tmp_path / "actor", size=256, seconds=0.2, seed=0, quiet=True)
    frame = next(read_video(truth.video))
    (tmp_path / "face_landmarker.task").touch()
    (tmp_path / "selfie_segmenter.tflite").write_bytes(MATTE_MODEL.read_bytes())
    detector = open_detector(models=tmp_path)
    assert isinstance(detector, TasksDetector)
    matte = detector.person(frame)
    assert matte.shape == (256, 256) and matte.dtype == np.uint8
    from process_data.detect_mediapipe import MediaPipeDetector

    difference = np.abs(matte.astype(int) - MediaPipeDetector().person(frame))
    assert difference.max() <= 2 and matte.max() > 200 > 60 > matte[2, 2]
    assert detector.hands(frame) == []
    detector.close()


@pytest.mark.realdata
def test_the_landmarker_agrees_with_the_solutions(realdata_dir):
    frames = [frame for frame, _ in zip(read_video(realdata_dir / "clips/anchor71s.mp4"), range(12))]
    tasks = open_detector(landmarker=realdata_dir / "models/face_landmarker.task")
    solutions = open_detector()
    found = np.array([tasks.points(frame) for frame in frames])
    expected = np.array([solutions.points(frame) for frame in frames])
    error = np.linalg.norm((found - expected)[:, MESH_SCHEME.landmarks68, :2], axis=-1)
    assert error.mean() < 2.2 and error.max() < 8, f"{error.mean():.2f} pixels apart, at most {error.max():.2f}"
    assert np.corrcoef(found[..., 2].ravel(), expected[..., 2].ravel())[0, 1] > 0.99
    assert 0.9 < found[..., 2].std() / expected[..., 2].std() < 1.1
    tasks.restart()
    assert np.array_equal(found, [tasks.points(frame) for frame in frames])
    tasks.close()
    solutions.close()


@pytest.mark.realdata
def test_faces_without_solutions(realdata_dir, newer, tmp_path):
    (tmp_path / "selfie_segmenter.tflite").touch()
    frame = next(read_video(realdata_dir / "clips/anchor71s.mp4"))
    detector = open_detector(landmarker=realdata_dir / "models/face_landmarker.task", models=tmp_path)
    (face,) = detector.faces(frame)
    points = detector.points(frame)[:, :2]
    assert np.abs(face - [*points.min(0), *points.max(0)]).max() < 5
    assert detector.faces(np.full_like(frame, 90)).shape == (0, 4)
    detector.close()
