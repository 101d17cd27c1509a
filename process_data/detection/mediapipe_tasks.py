"""The detector of MediaPipe's tasks, with the model files in process_data/data: 478 mesh points, matte, faces, hands."""

import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np

from process_data.detection.base import MATTE_SIZE, Scheme, quiet_native_logs
from process_data.detection.mesh68 import MESH68, RIGID, RIGID_WEIGHT
from shared.errors import TalkheadError

SHIPPED = Path(__file__).parents[1] / "data"
LANDMARKER = "face_landmarker.task"
FACE_DETECTOR = "face_detector.tflite"
SEGMENTER = "selfie_segmenter.tflite"
HAND_LANDMARKER = "hand_landmarker.task"
MODELS = {"mesh": LANDMARKER, "faces": FACE_DETECTOR, "person": SEGMENTER, "hands": HAND_LANDMARKER}
CONFIDENCE = 0.4  # least confidence of a detection
MAX_FACES = 4  # faces followed at a time; with 1, mediapipe smooths the points, which delays them by half a frame
FRAME_MS = 40  # time stamp step, 25 frames a second
PROCESSORS = Path("/sys/devices/system/cpu/possible")  # mediapipe ends the process if it is missing
FACES_SIZE = 960  # longer side to which pictures are shrunk first; the face model itself works at 192 pixels
# mediapipe sends usage statistics when a task closes; with a proxy that does not exist nothing is sent
NO_REPORTS = {"https_proxy": "http://127.0.0.1:9", "no_proxy": "127.0.0.1"}
# mediapipe imports them for drawing and recording, which takes four fifths of its own import
UNUSED = ("matplotlib", "matplotlib.pyplot", "sounddevice")
EMPTY = np.zeros((64, 64, 3), np.uint8)  # a picture without a face
MESH_SCHEME = Scheme(478, MESH68, RIGID, RIGID_WEIGHT, ([468, 469, 470, 471, 472], [473, 474, 475, 476, 477]))


class MediaPipeDetector:
    """The `Detector` of mediapipe's tasks. Missing files are reported at once; each model loads at its first use."""

    scheme = MESH_SCHEME

    def __init__(self, landmarker: Path | None = None, models: Path | None = None) -> None:
        """`landmarker`: another file for the face landmarker; `models`: a folder whose files replace the shipped ones.

        Raises TalkheadError: mediapipe cannot be imported, a file is missing.
        """
        _import_mediapipe()
        self._files = find_models(landmarker, models)
        self._models: dict = {}
        self._time = 0
        self._environment = {name: os.environ.get(name) for name in NO_REPORTS}

    def points(self, frame: np.ndarray) -> np.ndarray | None:
        """(478,3) float32 pixels of the largest face, or None where no face is found."""
        return largest(self.everyone(frame))

    def everyone(self, frame: np.ndarray) -> np.ndarray:
        """(n,478,3) float32 pixels of up to four faces, in no particular order."""
        found = self._run("mesh", frame, self._time).face_landmarks
        self._time += FRAME_MS
        return np.array([mesh_pixels(face, frame) for face in found], np.float32).reshape(-1, self.scheme.count, 3)

    def person(self, frame: np.ndarray) -> np.ndarray:
        """(256,256) uint8 matte; the model works at this size for every input."""
        small = cv2.resize(frame, (MATTE_SIZE, MATTE_SIZE), interpolation=cv2.INTER_AREA)
        masks = [mask.numpy_view() for mask in self._run("person", small).confidence_masks]
        # a model with one class gives the person, one with several gives the background first
        person = masks[0] if len(masks) == 1 else 1 - masks[0]
        return matte_bytes(person.reshape(person.shape[:2]))

    def faces(self, frame: np.ndarray) -> np.ndarray:
        """(n,4) float32 left, top, right, bottom in pixels, largest first."""
        square, scale, left, top = squared(frame, FACES_SIZE)
        boxes = [found.bounding_box for found in self._run("faces", square).detections]
        found = np.array([(b.origin_x, b.origin_y, b.origin_x + b.width, b.origin_y + b.height) for b in boxes], np.float32)
        return largest_first((found.reshape(-1, 4) - np.array([left, top, left, top], np.float32)) / np.float32(scale))

    def hands(self, frame: np.ndarray) -> list[np.ndarray]:
        """Each (21,2) float32 pixels."""
        return [hand_pixels(hand, frame) for hand in self._run("hands", frame).hand_landmarks]

    def restart(self) -> None:
        """Forget the faces followed so far; only the mesh model keeps them, until it sees a picture without a face."""
        if "mesh" in self._models and len(self.everyone(EMPTY)):
            with quiet_native_logs():
                self._models.pop("mesh").close()

    def close(self) -> None:
        """Close every loaded model; a later call loads it again."""
        if not self._models:
            return
        with quiet_native_logs():
            for model in self._models.values():
                model.close()
        self._models.clear()
        for name, value in self._environment.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value

    def _run(self, name: str, frame: np.ndarray, *time: int):
        create, method = _CREATE[name]
        if name in self._models:
            return getattr(self._models[name], method)(_image(frame), *time)
        os.environ.update(NO_REPORTS)
        with quiet_native_logs():  # native code prints while the model loads and at its first frame
            try:
                self._models[name] = create(self._files[name])
            except (RuntimeError, ValueError, OSError) as error:
                raise TalkheadError(f"{self._files[name]} is not a model that this mediapipe can read; get it anew") from error
            return getattr(self._models[name], method)(_image(frame), *time)


def find_models(landmarker: Path | None, models: Path | None) -> dict[str, Path]:
    """The file of each model by name: from the folder `models` if it is there, else the shipped one; `landmarker`, if given,
    for the mesh.

    Raises TalkheadError that names a missing file.
    """
    if landmarker is not None and not landmarker.is_file():
        raise TalkheadError(f"{landmarker} does not exist; leave --landmarker out for the one that ships, or name a file")
    if models is not None and not any((models / name).is_file() for name in MODELS.values()):
        raise TalkheadError(f"{models} holds none of {', '.join(MODELS.values())}; leave --models out for those that ship")
    files = {}
    for name, file in MODELS.items():
        own = models / file if models is not None else None
        files[name] = own if own is not None and own.is_file() else SHIPPED / file
        if not files[name].is_file():
            raise TalkheadError(f"{files[name]}, which ships with talkhead, is missing; install talkhead anew")
    return files if landmarker is None else files | {"mesh": landmarker}


def mesh_pixels(landmarks, frame: np.ndarray) -> np.ndarray:
    """MediaPipe's relative landmarks of a face -> (N,3) float32 pixels; z has the scale of x, as the model defines it."""
    height, width = frame.shape[:2]
    return np.array([(p.x, p.y, p.z) for p in landmarks], np.float32) * np.array([width, height, width], np.float32)


def hand_pixels(landmarks, frame: np.ndarray) -> np.ndarray:
    """MediaPipe's relative landmarks of a hand -> (21,2) float32 pixels."""
    height, width = frame.shape[:2]
    return np.array([(p.x, p.y) for p in landmarks], np.float32) * np.array([width, height], np.float32)


def matte_bytes(mask: np.ndarray) -> np.ndarray:
    """Float mask 0 … 1 of any size -> (256,256) uint8."""
    if mask.shape[:2] != (MATTE_SIZE, MATTE_SIZE):
        mask = cv2.resize(mask, (MATTE_SIZE, MATTE_SIZE), interpolation=cv2.INTER_LINEAR)
    return (np.clip(mask, 0, 1) * 255).astype(np.uint8)


def largest_first(boxes: np.ndarray) -> np.ndarray:
    """Boxes (n,4) in descending order of area."""
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    return boxes[np.argsort(-area, kind="stable")]


def largest(faces: np.ndarray) -> np.ndarray | None:
    """Points (n,P,3) of n faces -> (P,3) of the one with the largest bounding box; None if n = 0."""
    if len(faces) == 0:
        return None
    return faces[int(np.ptp(faces[:, :, :2], axis=1).prod(axis=1).argmax())]


def squared(frame: np.ndarray, most: int) -> tuple[np.ndarray, float, int, int]:
    """Picture (H,W,3) -> square picture of at most `most` pixels, padded with black; its scale, left and top margin in pixels."""
    scale = min(1.0, most / max(frame.shape[:2]))
    if scale < 1:
        frame = cv2.resize(frame, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    height, width = frame.shape[:2]
    side = max(height, width)
    left, top = (side - width) // 2, (side - height) // 2
    square = np.zeros((side, side, 3), np.uint8)
    square[top : top + height, left : left + width] = frame
    return square, scale, left, top


def _import_mediapipe() -> None:
    if sys.platform == "linux" and not PROCESSORS.exists():
        raise TalkheadError(f"mediapipe needs {PROCESSORS}, which is not there; mount /sys")
    try:
        with quiet_native_logs(), _imported_later(UNUSED):
            _image(EMPTY)  # loads the native library, too
    except (ImportError, OSError) as error:
        raise TalkheadError(f"mediapipe cannot be imported ({error}); `talkhead doctor` tells what is missing") from error


class _Later(ModuleType):
    """Stands for a module that is imported once something of it is used."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        self.leave()
        return getattr(importlib.import_module(self.__name__), name)

    def leave(self) -> None:
        """Make room for the module itself."""
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]


@contextmanager
def _imported_later(names: tuple[str, ...]) -> Iterator[None]:
    """What imports one of these modules here gets a `_Later` for it, unless it has been imported before."""
    absent = {name: _Later(name) for name in names if name not in sys.modules}
    sys.modules.update(absent)
    for name, module in absent.items():
        package, _, own = name.rpartition(".")
        if package in absent:
            setattr(absent[package], own, module)
    try:
        yield
    finally:
        for module in absent.values():
            module.leave()


def _image(frame: np.ndarray):
    import mediapipe

    return mediapipe.Image(image_format=mediapipe.ImageFormat.SRGB, data=np.ascontiguousarray(frame))


def _base(path: Path):
    from mediapipe.tasks.python import BaseOptions

    # as bytes, because native code cannot open paths that are not UTF-8
    return BaseOptions(model_asset_buffer=path.read_bytes())


def _follow_face(path: Path):
    from mediapipe.tasks.python import vision

    return vision.FaceLandmarker.create_from_options(vision.FaceLandmarkerOptions(
        base_options=_base(path), running_mode=vision.RunningMode.VIDEO, num_faces=MAX_FACES,
        min_face_detection_confidence=CONFIDENCE, min_face_presence_confidence=CONFIDENCE,
        min_tracking_confidence=CONFIDENCE))


def _find_faces(path: Path):
    from mediapipe.tasks.python import vision

    return vision.ObjectDetector.create_from_options(vision.ObjectDetectorOptions(
        base_options=_base(path), score_threshold=CONFIDENCE))


def _find_person(path: Path):
    from mediapipe.tasks.python import vision

    return vision.ImageSegmenter.create_from_options(vision.ImageSegmenterOptions(base_options=_base(path)))


def _find_hands(path: Path):
    from mediapipe.tasks.python import vision

    return vision.HandLandmarker.create_from_options(vision.HandLandmarkerOptions(base_options=_base(path), num_hands=2))


_CREATE = {"mesh": (_follow_face, "detect_for_video"), "faces": (_find_faces, "detect"), "person": (_find_person, "segment"),
           "hands": (_find_hands, "detect")}
