"""A short marked video, written as synthesis writes it."""

from pathlib import Path

import av
import numpy as np

from shared.avatar import AvatarInfo
from shared.consent import Consent
from talkhead.provenance import Marks
from tests.shared.watermark.scene import scene

CONSENT = Consent("Jane Doe", "2026-11-01", "ab" * 32, ("tests",))
INFO = AvatarInfo("jane", 192, 160, (400.0, 400.0, 96.0, 80.0), 25,
                  {"stage1": {"sha256": "0", "clip": "a clip", "name": "jane"}}, consent=CONSENT)


def write(path: Path, frames: np.ndarray, metadata: dict[str, str]) -> None:
    """H.264 at crf 18, for MP4 and MOV with all fields of the metadata."""
    options = {"movflags": "faststart+use_metadata_tags"} if path.suffix in (".mp4", ".mov") else {}
    with av.open(str(path), "w", options=options) as container:
        container.metadata.update(metadata)
        stream = container.add_stream("libx264", rate=25, options={"crf": "18", "preset": "veryfast"})
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def marked_video(path: Path, seconds: float = 2.4) -> Path:
    """Marked, signed and with metadata."""
    marks = Marks(INFO)
    write(path, marks.apply(scene(round(25 * seconds)), 0), marks.metadata())
    marks.finish(path)
    return path


def unmarked_video(path: Path) -> Path:
    """Without any mark."""
    write(path, scene(60), {})
    return path
