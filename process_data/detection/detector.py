"""Opens one of the detectors by name."""

from pathlib import Path

from process_data.detection.base import Detector
from process_data.detection.mediapipe_tasks import MediaPipeDetector
from shared.errors import TalkheadError

DETECTORS = ("mediapipe", "fan")


def open_detector(name: str = "mediapipe", *, landmarker: Path | None = None, models: Path | None = None) -> Detector:
    """Open "mediapipe" or "fan"; models load at their first use.

    `landmarker` is a face_landmarker.task, `models` a folder of model files that replace the shipped ones. Raises
    TalkheadError: unknown name, missing files, face-alignment not installed.
    """
    if name not in DETECTORS:
        raise TalkheadError(f"no detector is called {name!r}; there are {', '.join(DETECTORS)}")
    if name == "fan":
        from process_data.detection.fan import FanDetector

        return FanDetector(landmarker, models)

    return MediaPipeDetector(landmarker, models)
