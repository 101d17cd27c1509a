import sys
from types import SimpleNamespace
from urllib.error import URLError

import numpy as np
import pytest
import torch

from process_data.detection import fan
from process_data.detection.detector import open_detector
from shared.errors import TalkheadError

FRAME = np.zeros((200, 200, 3), np.uint8)
BOX = np.array([50, 40, 150, 140], np.float32)


class FakeNetwork:
    """Stands for face_alignment.FaceAlignment: the points lie in the box that it is given, z grows to the camera."""

    def __init__(self, landmarks_type, **options):
        assert landmarks_type == 3 and options["face_detector"] == "folder" and options["compile"] is False
        for name in fan.WEIGHTS:
            if not (self.folder() / name).is_file():
                raise URLError("no network")
            if (self.folder() / name).read_bytes() == b"damaged":
                raise RuntimeError("Error(s) in loading state_dict")

    @staticmethod
    def folder():
        from pathlib import Path

        return Path(torch.hub.get_dir()) / "checkpoints"

    def get_landmarks_from_image(self, frame, detected_faces):
        (box,) = detected_faces
        across, down = np.linspace(box[0], box[2], 68), np.linspace(box[1], box[3], 68)
        return [np.stack([across, down, np.arange(68.0)], -1)]


@pytest.fixture
def weights(tmp_path, monkeypatch):
    """A folder with all weights, and a face_alignment that loads them."""
    monkeypatch.setitem(sys.modules, "face_alignment",
                        SimpleNamespace(FaceAlignment=FakeNetwork, LandmarksType=SimpleNamespace(THREE_D=3)))
    (tmp_path / "checkpoints").mkdir()
    for name in fan.WEIGHTS:
        (tmp_path / "checkpoints" / name).touch()
    return tmp_path


def sentence(folder=None) -> str:
    with pytest.raises(TalkheadError) as error:
        open_detector("fan", models=folder)
    return str(error.value)


def test_points_of_the_largest_face(weights, monkeypatch):
    before = torch.hub.get_dir()
    detector = open_detector("fan", models=weights)
    assert torch.hub.get_dir() == before
    monkeypatch.setattr(detector._mediapipe, "faces", lambda frame: np.array([BOX, BOX / 2]))
    points = detector.points(FRAME)
    assert points.shape == (68, 3) and points.dtype == np.float32
    assert np.allclose(points[[0, -1], 0], [57.5, 142.5]) and np.allclose(points[[0, -1], 1], [53, 141])
    assert np.array_equal(points[:, 2], -np.arange(68))  # away from the camera
    assert np.array_equal(points, detector.points(FRAME))


def test_no_face_and_mediapipes_half(weights):
    detector = open_detector("fan", models=weights)
    assert detector.points(FRAME) is None
    assert detector.person(FRAME).shape == (256, 256)
    assert detector.hands(FRAME) == []
    detector.restart()
    detector.close()


def test_without_the_package_the_command_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "face_alignment", None)
    assert sentence() == (
        "the detector fan needs face-alignment (import of face_alignment halted; None in sys.modules); install it with: "
        "pip install -e '.[fan]' && pip install --no-deps 'face-alignment>=1.5,<2'")


def test_missing_weights_are_named(weights):
    (weights / "checkpoints" / "depth-2a464da4ea.pth.tar").unlink()
    assert sentence(weights) == ("depth-2a464da4ea.pth.tar could not be downloaded from www.adrianbulat.com (<urlopen error no "
                                 f"network>); put it into {weights / 'checkpoints'}")
    (weights / "checkpoints" / "3DFAN4-7835d9f11d.pth.tar").unlink()
    assert sentence(weights).startswith("3DFAN4-7835d9f11d.pth.tar and depth-2a464da4ea.pth.tar could not be downloaded")


def test_damaged_weights_are_named(weights):
    (weights / "checkpoints" / "3DFAN4-7835d9f11d.pth.tar").write_bytes(b"damaged")
    assert "are damaged or of another release" in sentence(weights)
