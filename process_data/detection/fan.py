"""Face-alignment's 3-D FAN as a second detector: its 68 points, with MediaPipe's matte, face boxes and hands.

FAN expects the bounding box of the 68 points. It is estimated from MediaPipe's face box, so face-alignment's own face
detector and its weights are not needed.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError

import numpy as np

from process_data.detection.base import Detector, Scheme
from process_data.detection.mediapipe_tasks import MAX_FACES, MediaPipeDetector
from shared.errors import TalkheadError

WEIGHTS = ("3DFAN4-7835d9f11d.pth.tar", "depth-2a464da4ea.pth.tar")
# without its dependencies: its opencv-python would overwrite opencv-contrib-python
INSTALL = "pip install -e '.[fan]' && pip install --no-deps 'face-alignment>=1.5,<2'"
# rigid points: bridge and wings of the nose and corners of the eyes; less trusted: brows and the ends of the jaw
_STEADY, _UNSURE = [27, 28, 29, 30, 31, 32, 33, 34, 35, 36, 39, 42, 45], [*range(17, 27), 0, 1, 15, 16]
FAN_SCHEME = Scheme(68, np.arange(68), np.array(_STEADY + _UNSURE),
                    np.array([1.0] * len(_STEADY) + [0.3] * len(_UNSURE)), None)
# box of the 68 points relative to MediaPipe's face box, in widths of that; mean of 200 frames of 21 people, deviation < .05
CENTRE_BELOW, WIDTH, HEIGHT = 0.07, 0.85, 0.88


class FanDetector:
    """The `Detector` of face-alignment, on the GPU where there is one; its weights load, or download, at once."""

    scheme = FAN_SCHEME

    def __init__(self, landmarker: Path | None = None, models: Path | None = None) -> None:
        """FAN's weights lie in models/checkpoints, else in torch's hub folder; `landmarker` as in MediaPipeDetector.

        Raises TalkheadError: face-alignment is not installed, weights are missing or damaged.
        """
        self._network = _load_network(models)
        self._mediapipe: Detector = MediaPipeDetector(landmarker)

    def points(self, frame: np.ndarray) -> np.ndarray | None:
        """(68,3) float32 pixels of the largest face, None without one; frames do not depend on each other."""
        faces = self._points(frame, self.faces(frame)[:1])
        return faces[0] if len(faces) else None

    def everyone(self, frame: np.ndarray) -> np.ndarray:
        """(n,68,3) float32 pixels of up to four faces, the largest first."""
        return self._points(frame, self.faces(frame)[:MAX_FACES])

    def _points(self, frame: np.ndarray, boxes: np.ndarray) -> np.ndarray:
        if len(boxes) == 0:
            return np.zeros((0, 68, 3), np.float32)
        found = self._network.get_landmarks_from_image(frame, detected_faces=[framing(box) for box in boxes])
        return np.asarray(found, np.float32) * np.array([1, 1, -1], np.float32)  # FAN's z grows towards the camera

    def person(self, frame: np.ndarray) -> np.ndarray:
        """(256,256) uint8 matte, MediaPipe's."""
        return self._mediapipe.person(frame)

    def faces(self, frame: np.ndarray) -> np.ndarray:
        """(n,4) float32 left, top, right, bottom in pixels, largest first, MediaPipe's."""
        return self._mediapipe.faces(frame)

    def hands(self, frame: np.ndarray) -> list[np.ndarray]:
        """Each (21,2) float32 pixels, MediaPipe's."""
        return self._mediapipe.hands(frame)

    def restart(self) -> None:
        """Forget the frames seen so far."""
        self._mediapipe.restart()

    def close(self) -> None:
        """Close MediaPipe's models."""
        self._mediapipe.close()


def framing(box: np.ndarray) -> np.ndarray:
    """MediaPipe's face box (4,) -> the box (4,) that the 68 points are likely to fill."""
    left, top, right, bottom = box
    across, down, size = (left + right) / 2, (top + bottom) / 2, right - left
    down = down + CENTRE_BELOW * size
    half_width, half_height = WIDTH * size / 2, HEIGHT * size / 2
    return np.array([across - half_width, down - half_height, across + half_width, down + half_height])


def _load_network(models: Path | None):
    try:
        import face_alignment
        import torch
    except ImportError as error:
        raise TalkheadError(f"the detector fan needs face-alignment ({error}); install it with: {INSTALL}") from error
    with _hub_folder(models) as folder:
        try:
            return face_alignment.FaceAlignment(
                face_alignment.LandmarksType.THREE_D, device="cuda" if torch.cuda.is_available() else "cpu",
                face_detector="folder", flip_input=False, compile=False)
        except OSError as error:
            missing = [name for name in WEIGHTS if not (folder / name).is_file()]
            if not missing:
                raise
            raise TalkheadError(f"{' and '.join(missing)} could not be downloaded from www.adrianbulat.com ({error}); put "
                                f"{'it' if len(missing) == 1 else 'them'} into {folder}") from error
        except (RuntimeError, KeyError, EOFError, UnpicklingError) as error:
            raise TalkheadError(f"the weights {' and '.join(WEIGHTS)} in {folder} are damaged or of another release; delete "
                                "them, so that they are downloaded again") from error


@contextmanager
def _hub_folder(models: Path | None) -> Iterator[Path]:
    """Where face-alignment looks for weights: `models`/checkpoints, or that of torch's hub; yields the folder."""
    import torch

    before = torch.hub.get_dir()
    if models is not None:
        torch.hub.set_dir(str(models))
    try:
        yield Path(torch.hub.get_dir()) / "checkpoints"
    finally:
        torch.hub.set_dir(before)
