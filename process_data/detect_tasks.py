"""MediaPipe's `tasks` with model files of the user's: for releases after 0.10.21, which carry no models.

The face landmarker has the solutions' 478 points in the same order and scale. Where the solutions are importable they
still do what no model file is given for.
"""

from pathlib import Path

import cv2
import numpy as np

from process_data.detect_mediapipe import (
    CONFIDENCE,
    MESH_SCHEME,
    MediaPipeDetector,
    hand_pixels,
    largest_first,
    matte_bytes,
    mesh_pixels,
    solutions_available,
)
from process_data.detector import MATTE_SIZE, quiet_native_logs
from shared.errors import TalkheadError

LANDMARKER = "face_landmarker.task"
SEGMENTER = "selfie_segmenter.tflite"
HAND_LANDMARKER = "hand_landmarker.task"
FRAME_MS = 40
MAX_FACES = 3


class TasksDetector:
    """The `Detector` of mediapipe's tasks; each model loads when it is first asked for, files are looked for at once."""

    scheme = MESH_SCHEME

    def __init__(self, landmarker: Path | None = None, models: Path | None = None) -> None:
        """`landmarker`: the face landmarker's file; `models`: folder of the other models, by default beside it.

        Raises TalkheadError naming the file that is missing.
        """
        _import_mediapipe()
        self._solutions = MediaPipeDetector() if solutions_available() else None
        self._landmarker = _find_landmarker(landmarker, models)
        folder = models or self._landmarker.parent
        self._segmenter, self._hand_landmarker = folder / SEGMENTER, folder / HAND_LANDMARKER
        if self._solutions is None and not self._segmenter.is_file():
            raise TalkheadError(f"{SEGMENTER}, which finds the person, is not in {folder}; download it from MediaPipe's "
                                "image segmenter page and put it there")
        self._models: dict = {}
        self._time = 0

    def points(self, frame: np.ndarray) -> np.ndarray | None:
        """(478,3) float32 pixels, or None where no face is found."""
        found = self._run("mesh", frame, self._time).face_landmarks
        self._time += FRAME_MS
        return mesh_pixels(found[0], frame) if found else None

    def person(self, frame: np.ndarray) -> np.ndarray:
        """(256,256) uint8 matte."""
        if self._solutions is not None:
            return self._solutions.person(frame)
        small = cv2.resize(frame, (MATTE_SIZE, MATTE_SIZE), interpolation=cv2.INTER_AREA)
        masks = [mask.numpy_view() for mask in self._run("person", small).confidence_masks]
        # a model of one class shows the person, a model of several starts with the background
        person = masks[0] if len(masks) == 1 else 1 - masks[0]
        return matte_bytes(person.reshape(person.shape[:2]))

    def faces(self, frame: np.ndarray) -> np.ndarray:
        """(n,4) float32 left, top, right, bottom in pixels, largest first; without the solutions from three faces' points."""
        if self._solutions is not None:
            return self._solutions.faces(frame)
        found = [mesh_pixels(face, frame)[:, :2] for face in self._run("faces", frame).face_landmarks]
        return largest_first(np.array([(*face.min(0), *face.max(0)) for face in found], np.float32).reshape(-1, 4))

    def hands(self, frame: np.ndarray) -> list[np.ndarray]:
        """Each (21,2) float32 pixels; [] without a model for hands."""
        if self._hand_landmarker.is_file():
            return [hand_pixels(hand, frame) for hand in self._run("hands", frame).hand_landmarks]
        return self._solutions.hands(frame) if self._solutions is not None else []

    def restart(self) -> None:
        """Forget the face followed so far; only the mesh remembers anything."""
        if "mesh" in self._models:
            self._models.pop("mesh").close()
        self._time = 0

    def close(self) -> None:
        """Close every model that was loaded; a later call loads it anew."""
        for model in self._models.values():
            model.close()
        self._models.clear()
        if self._solutions is not None:
            self._solutions.close()

    def _run(self, name: str, frame: np.ndarray, *time: int):
        path = {"person": self._segmenter, "hands": self._hand_landmarker}.get(name, self._landmarker)
        create, method = _CREATE[name]
        if name in self._models:
            return getattr(self._models[name], method)(_image(frame), *time)
        with quiet_native_logs():  # native code prints while the model loads and at its first frame
            try:
                self._models[name] = create(path)
            except (RuntimeError, ValueError, OSError) as error:
                raise TalkheadError(f"{path} is not a model that this mediapipe can read; download it again") from error
            return getattr(self._models[name], method)(_image(frame), *time)


def _import_mediapipe():
    try:
        with quiet_native_logs():
            import mediapipe
            import mediapipe.tasks.python.vision  # noqa: F401
    except ImportError as error:
        raise TalkheadError(f"mediapipe cannot be imported ({error}); install talkhead anew: pip install -e .") from error
    return mediapipe


def _find_landmarker(landmarker: Path | None, models: Path | None) -> Path:
    if landmarker is not None:
        if not landmarker.is_file():
            raise TalkheadError(f"{landmarker} does not exist; download {LANDMARKER} from MediaPipe's face landmarker page")
        return landmarker
    if models is None:
        raise TalkheadError(f"this mediapipe carries no models; download {LANDMARKER} from MediaPipe's face landmarker page "
                            "and name it with --landmarker FILE")
    if not (models / LANDMARKER).is_file():
        raise TalkheadError(f"{LANDMARKER} is not in {models}; download it from MediaPipe's face landmarker page and put it "
                            "there, or name it with --landmarker FILE")
    return models / LANDMARKER


def _image(frame: np.ndarray):
    import mediapipe

    return mediapipe.Image(image_format=mediapipe.ImageFormat.SRGB, data=np.ascontiguousarray(frame))


def _base(path: Path):
    from mediapipe.tasks.python import BaseOptions

    return BaseOptions(model_asset_path=str(path))


def _landmark_faces(path: Path, mode: str, faces: int):
    from mediapipe.tasks.python import vision

    return vision.FaceLandmarker.create_from_options(vision.FaceLandmarkerOptions(
        base_options=_base(path), running_mode=vision.RunningMode[mode], num_faces=faces,
        min_face_detection_confidence=CONFIDENCE, min_face_presence_confidence=CONFIDENCE,
        min_tracking_confidence=CONFIDENCE))


def _follow_face(path: Path):
    return _landmark_faces(path, "VIDEO", 1)


def _find_faces(path: Path):
    return _landmark_faces(path, "IMAGE", MAX_FACES)


def _find_person(path: Path):
    from mediapipe.tasks.python import vision

    return vision.ImageSegmenter.create_from_options(vision.ImageSegmenterOptions(base_options=_base(path)))


def _find_hands(path: Path):
    from mediapipe.tasks.python import vision

    return vision.HandLandmarker.create_from_options(vision.HandLandmarkerOptions(base_options=_base(path), num_hands=2))


_CREATE = {"mesh": (_follow_face, "detect_for_video"), "faces": (_find_faces, "detect"), "person": (_find_person, "segment"),
           "hands": (_find_hands, "detect")}
