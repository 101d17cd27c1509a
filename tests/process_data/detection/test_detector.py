import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from process_data.detection.detector import open_detector
from process_data.detection.fan import FAN_SCHEME
from process_data.detection.mediapipe_tasks import (
    LANDMARKER,
    MESH_SCHEME,
    MODELS,
    SHIPPED,
    MediaPipeDetector,
    find_models,
    largest_first,
    matte_bytes,
    squared,
)
from shared.errors import TalkheadError
from shared.landmarks import LIPS
from shared.media.video_io import read_video


@pytest.fixture(scope="module")
def frames(tmp_path_factory):
    """Ten frames of the synthetic actor, 256²."""
    from process_data.actor.actor import make_actor

    truth = make_actor(tmp_path_factory.mktemp("actor"), size=256, seconds=0.4, seed=0, quiet=True)
    return list(read_video(truth.video))


@pytest.mark.parametrize("scheme", [MESH_SCHEME, FAN_SCHEME])
def test_a_scheme_names_points_that_exist_and_do_not_speak(scheme):
    assert scheme.landmarks68.shape == (68,) and len(set(scheme.landmarks68)) == 68
    assert scheme.rigid.shape == scheme.rigid_weight.shape
    for points in (scheme.landmarks68, scheme.rigid):
        assert points.min() >= 0 and points.max() < scheme.count
    assert len(set(scheme.rigid)) == len(scheme.rigid)
    assert not set(scheme.rigid) & set(scheme.landmarks68[LIPS])
    assert (scheme.rigid_weight > 0).all() and (scheme.rigid_weight <= 1).all()
    for iris in scheme.irises or ():
        assert len(iris) == 5 and max(iris) < scheme.count and not set(iris) & set(scheme.landmarks68)


def test_opening_imports_no_library_before_it_is_needed():
    code = ("import sys, process_data.detection.detector, process_data.detection.mediapipe_tasks, process_data.detection.fan; "
            "print([name for name in ('mediapipe', 'torch', 'face_alignment') if name in sys.modules])")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                          cwd=Path(__file__).parents[3])
    assert done.stdout.strip() == "[]"


def test_what_mediapipe_draws_and_records_with_is_imported_when_it_is_used():
    code = ("import sys; from process_data.detection.detector import open_detector; open_detector()\n"
            "assert not {'matplotlib', 'matplotlib.pyplot', 'sounddevice'} & sys.modules.keys()\n"
            "from mediapipe.tasks.python.vision import drawing_utils\n"
            "import matplotlib.pyplot; assert drawing_utils.plt.figure is matplotlib.pyplot.figure\n"
            "from process_data.detection.mediapipe_tasks import _imported_later\n"
            "with _imported_later(('wave', 'cmd')):\n"
            "    import cmd, wave\n"
            "    assert callable(wave.open)  # used at once\n"
            "assert 'wave' in sys.modules and 'cmd' not in sys.modules and callable(cmd.Cmd)")
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[3])


def test_an_unknown_detector_lists_those_there_are():
    with pytest.raises(TalkheadError) as error:
        open_detector("dlib")
    assert str(error.value) == "no detector is called 'dlib'; there are mediapipe, fan"


@pytest.mark.slow
def test_mediapipe_finds_the_actor(frames):
    detector = open_detector()
    assert isinstance(detector, MediaPipeDetector)
    points = [detector.points(frame) for frame in frames]
    first = points[0]
    assert first.shape == (478, 3) and first.dtype == np.float32
    nose, right, left, chin = first[[4, 33, 263, 152]]
    assert right[0] < nose[0] < left[0] and right[1] < nose[1] < chin[1]  # upright, the subject's right on the left
    assert nose[2] < right[2] and nose[2] < left[2]  # z grows away from the camera
    for iris, corners in zip(MESH_SCHEME.irises, ((33, 133), (362, 263))):
        assert first[corners[0], 0] < first[iris[0], 0] < first[corners[1], 0]
        assert np.abs(first[iris[1:], :2].mean(0) - first[iris[0], :2]).max() < 1  # the centre is the first of them
    (face,) = detector.faces(frames[0])
    assert (face[:2] < nose[:2]).all() and (nose[:2] < face[2:]).all()
    matte = detector.person(frames[0])
    assert matte.shape == (256, 256) and matte.dtype == np.uint8
    assert matte[int(nose[1]), int(nose[0])] > 200 and matte[2, 2] < 60
    assert detector.hands(frames[0]) == []
    assert np.array_equal(detector.person(frames[0]), matte)  # whatever came between
    mesh = detector._models["mesh"]
    detector.restart()
    again = [detector.points(frame) for frame in frames]
    assert np.array_equal(points, again) and detector._models["mesh"] is mesh  # which has not been opened anew
    detector.close()


def test_hands_are_not_loaded_before_they_are_asked_for(frames):
    detector = open_detector()
    detector.points(frames[0])
    assert set(detector._models) == {"mesh"}
    detector.close()
    assert not detector._models


def test_a_picture_without_a_face(frames):
    detector = open_detector()
    empty = np.full_like(frames[0], 90)
    assert detector.points(empty) is None
    assert detector.faces(empty).shape == (0, 4)
    detector.close()


def test_boxes_are_sorted_and_mattes_have_one_size():
    boxes = np.array([[0, 0, 2, 2], [0, 0, 5, 5], [1, 1, 4, 4]], np.float32)
    assert largest_first(boxes)[:, 2].tolist() == [5, 4, 2]
    matte = matte_bytes(np.full((64, 48), 1.7, np.float32))
    assert matte.shape == (256, 256) and (matte == 255).all()


def test_a_picture_is_squared_in_its_middle():
    square, scale, left, top = squared(np.full((40, 100, 3), 7, np.uint8), 50)
    assert square.shape == (50, 50, 3) and (scale, left, top) == (0.5, 0, 15)
    assert (square[15:35] == 7).all() and square.sum() == 7 * 20 * 50 * 3
    square, scale, left, top = squared(np.full((100, 40, 3), 7, np.uint8), 200)
    assert square.shape == (100, 100, 3) and (scale, left, top) == (1, 30, 0)


def test_small_faces_in_tall_pictures_are_found_where_they_are(frames):
    picture = np.full((1280, 720, 3), 90, np.uint8)
    picture[700:956, 400:656] = frames[0]
    detector = open_detector()
    (inside,), (face,) = detector.faces(frames[0]), detector.faces(picture)
    detector.close()
    assert np.abs(face - [400, 700, 400, 700] - inside).max() < 0.15 * (inside[2] - inside[0])


def test_nothing_is_said_and_nothing_leaves_the_machine(tmp_path):
    code = ("import os, numpy as np; from process_data.detection.detector import open_detector\n"
            "detector = open_detector(); frame = np.zeros((96, 96, 3), np.uint8)\n"
            "detector.points(frame), detector.faces(frame), detector.person(frame), detector.hands(frame)\n"
            "assert os.environ['https_proxy'] == 'http://127.0.0.1:9'\n"
            "detector.restart(); detector.points(frame); detector.close()\n"
            "assert os.environ['https_proxy'] == 'http://own'")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[3],
                          env=os.environ | {"https_proxy": "http://own", "HOME": str(tmp_path / "none")})
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def sentence(**options) -> str:
    with pytest.raises(TalkheadError) as error:
        open_detector("mediapipe", **options)
    return str(error.value)


def test_files_of_the_user_take_the_place_of_those_that_ship(tmp_path):
    assert sentence(models=tmp_path) == (f"{tmp_path} holds none of {', '.join(MODELS.values())}; leave --models out for those "
                                         "that ship")
    file = tmp_path / LANDMARKER
    assert sentence(landmarker=file) == f"{file} does not exist; leave --landmarker out for the one that ships, or name a file"
    file.touch()
    shipped = find_models(None, None)
    assert shipped == {name: SHIPPED / model for name, model in MODELS.items()}
    assert find_models(None, tmp_path) == shipped | {"mesh": file}
    other = tmp_path / "other.task"
    other.touch()
    assert find_models(other, tmp_path) == shipped | {"mesh": other}


@pytest.mark.parametrize("content", [b"no model", b"", b"PK" + bytes(40)])
def test_a_damaged_file_is_named(tmp_path, content):
    file = tmp_path / LANDMARKER
    file.write_bytes(content)
    detector = open_detector(landmarker=file)
    with pytest.raises(TalkheadError) as error:
        detector.points(np.zeros((64, 64, 3), np.uint8))
    assert str(error.value) == f"{file} is not a model that this mediapipe can read; get it anew"


def test_mediapipe_that_does_not_load_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "mediapipe", None)
    assert sentence().startswith("mediapipe cannot be imported (") and sentence().endswith("tells what is missing")


def test_a_container_without_sys_is_told(monkeypatch, tmp_path):
    monkeypatch.setattr("process_data.detection.mediapipe_tasks.PROCESSORS", tmp_path / "possible")
    monkeypatch.setattr(sys, "platform", "linux")
    assert sentence() == f"mediapipe needs {tmp_path / 'possible'}, which is not there; mount /sys"


@pytest.mark.realdata
@pytest.mark.parametrize("name", ["anchor71s", "portrait20s_hevc", "portrait10s_hevc"])
def test_one_face_in_real_pictures(realdata_dir, name):
    detector = open_detector()
    for frame in list(read_video(realdata_dir / f"clips/{name}.mp4", stop=51))[::25]:
        (face,) = detector.faces(frame)
        (x, y), size = (face[:2] + face[2:]) / 2, face[2] - face[0]
        left, top = int(max(0, x - 1.4 * size)), int(max(0, y - 1.4 * size))  # as the crop shows it
        detector.restart()
        points = detector.points(frame[top : int(y + 1.4 * size), left : int(x + 1.4 * size)])[:, :2] + [left, top]
        assert np.abs(points.mean(0) - [x, y]).max() < 0.2 * size
    detector.close()
