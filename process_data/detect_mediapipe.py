"""MediaPipe's `solutions` (releases up to 0.10.21, which carry their models): 478 mesh points, matte, faces, hands."""

import cv2
import numpy as np

from process_data.detector import MATTE_SIZE, Scheme, quiet_native_logs
from process_data.landmarks68 import MESH68, RIGID, RIGID_WEIGHT

CONFIDENCE = 0.4
MESH_SCHEME = Scheme(478, MESH68, RIGID, RIGID_WEIGHT, ([468, 469, 470, 471, 472], [473, 474, 475, 476, 477]))


def solutions_available() -> bool:
    """Does the installed mediapipe still have the API that carries its models?"""
    try:
        with quiet_native_logs():
            import mediapipe.python.solutions  # noqa: F401
    except ImportError:
        return False
    return True


def _face_mesh():
    from mediapipe.python.solutions.face_mesh import FaceMesh

    return FaceMesh(refine_landmarks=True, max_num_faces=1, min_detection_confidence=CONFIDENCE,
                    min_tracking_confidence=CONFIDENCE)


def _person():
    from mediapipe.python.solutions.selfie_segmentation import SelfieSegmentation

    return SelfieSegmentation(model_selection=0)


def _faces():
    from mediapipe.python.solutions.face_detection import FaceDetection

    return FaceDetection(model_selection=1, min_detection_confidence=CONFIDENCE)


def _hands():
    from mediapipe.python.solutions.hands import Hands

    return Hands(static_image_mode=True, model_complexity=0, max_num_hands=2)


_CREATE = {"mesh": _face_mesh, "person": _person, "faces": _faces, "hands": _hands}


class MediaPipeDetector:
    """The `Detector` of mediapipe's solutions; each model loads when it is first asked for."""

    scheme = MESH_SCHEME

    def __init__(self) -> None:
        self._models: dict = {}

    def _run(self, name: str, frame: np.ndarray):
        frame = np.ascontiguousarray(frame)
        if name in self._models:
            return self._models[name].process(frame)
        with quiet_native_logs():  # native code prints while the graph opens, which ends within its first frame
            self._models[name] = _CREATE[name]()
            return self._models[name].process(frame)

    def points(self, frame: np.ndarray) -> np.ndarray | None:
        """(478,3) float32 pixels, or None where no face is found."""
        found = self._run("mesh", frame).multi_face_landmarks
        return mesh_pixels(found[0].landmark, frame) if found else None

    def person(self, frame: np.ndarray) -> np.ndarray:
        """(256,256) uint8 matte; the model works at that size, whatever it is given."""
        small = cv2.resize(frame, (MATTE_SIZE, MATTE_SIZE), interpolation=cv2.INTER_AREA)
        return matte_bytes(self._run("person", small).segmentation_mask)

    def faces(self, frame: np.ndarray) -> np.ndarray:
        """(n,4) float32 left, top, right, bottom in pixels, largest first."""
        found = self._run("faces", frame).detections or []
        boxes = [detection.location_data.relative_bounding_box for detection in found]
        height, width = frame.shape[:2]
        return largest_first(np.array([(b.xmin, b.ymin, b.xmin + b.width, b.ymin + b.height) for b in boxes], np.float32)
                             .reshape(-1, 4) * np.array([width, height, width, height], np.float32))

    def hands(self, frame: np.ndarray) -> list[np.ndarray]:
        """Each (21,2) float32 pixels."""
        found = self._run("hands", frame).multi_hand_landmarks or []
        return [hand_pixels(hand.landmark, frame) for hand in found]

    def restart(self) -> None:
        """Forget the face followed so far; only the mesh remembers anything."""
        if "mesh" in self._models:
            self._models.pop("mesh").close()

    def close(self) -> None:
        """Close every model that was loaded; a later call loads it anew."""
        for model in self._models.values():
            model.close()
        self._models.clear()


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
