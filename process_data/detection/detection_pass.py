"""First pass over the video: runs the detector on every frame, chunk by chunk in worker processes."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing.util import Finalize
from pathlib import Path

import cv2
import numpy as np

from process_data import shots
from process_data.detection import people
from process_data.detection.base import MATTE_SIZE, Detector, Scheme
from process_data.detection.detector import open_detector
from process_data.workers import Workers, chunk_spans, report_done
from shared.files import write_arrays
from shared.media.video_io import GrayVideoWriter, read_gray_video, read_video

WARM_UP = 2  # frames before a chunk that are shown to the detector first, since it follows faces
SMALL = 48  # side of the pictures whose change tells cuts, pixels
FACES_EVERY = 10  # frames between two searches for face boxes
HANDS_EVERY = 5  # frames between two searches for hands


@dataclass(frozen=True)
class DetectorChoice:
    """The arguments of `open_detector`, so that each worker can open its own."""

    name: str = "mediapipe"
    landmarker: Path | None = None
    models: Path | None = None


@dataclass(frozen=True)
class Detections:
    """Detections of a video.

    points (T,P,3) float32 pixels: the chosen person's landmark, rigid and iris points, numbered as in `scheme`; NaN in
    frames without the person. others (T,) bool: somebody else is seen instead. change (T,): mean change of the picture from
    the frame before, of full scale. faces and hands (n,5): rows of frame, left, top, right, bottom in pixels, of every 10th
    and every 5th frame.
    """

    points: np.ndarray
    others: np.ndarray
    change: np.ndarray
    faces: np.ndarray
    hands: np.ndarray
    scheme: Scheme


@lru_cache(maxsize=1)
def _detector(choice: DetectorChoice) -> Detector:
    detector = open_detector(choice.name, landmarker=choice.landmarker, models=choice.models)
    Finalize(None, detector.close, exitpriority=0)  # at the end of the worker, while threads can still be started
    return detector


def kept_points(scheme: Scheme) -> tuple[np.ndarray, Scheme]:
    """Numbers (P,) of the detector's points that are used later, and the scheme renumbered to these."""
    irises = scheme.irises or ([], [])
    kept = np.unique(np.concatenate([scheme.landmarks68, scheme.rigid, irises[0], irises[1]]).astype(int))
    place = {int(point): k for k, point in enumerate(kept)}

    def moved(points) -> np.ndarray:
        return np.array([place[int(p)] for p in points], int)

    return kept, Scheme(len(kept), moved(scheme.landmarks68), moved(scheme.rigid), scheme.rigid_weight,
                        (moved(irises[0]).tolist(), moved(irises[1]).tolist()) if scheme.irises else None)


def detect_chunk(video: Path, start: int, stop: int, choice: DetectorChoice, work: Path) -> None:
    """Write the detections of frames start ≤ t < stop to work/seen_NNNNNNN.npz and their mattes to work/matte_NNNNNNN.mkv."""
    detector = _detector(choice)
    detector.restart()
    kept, _ = kept_points(detector.scheme)
    count = stop - start
    points, appearances, seen_in = [], [], []
    change = np.zeros(count, np.float32)
    faces, hands = [], []
    before: np.ndarray | None = None
    first = max(0, start - WARM_UP)
    with GrayVideoWriter(_matte_file(work, start), MATTE_SIZE, MATTE_SIZE) as writer:
        for t, frame in enumerate(read_video(video, start=first, stop=stop), start=first):
            # there is nothing before the first frame: the detector is warmed up with that frame itself
            for _ in range(WARM_UP if t == 0 else 0):
                detector.everyone(frame)
            found = detector.everyone(frame)
            small = cv2.resize(frame, (SMALL, SMALL), interpolation=cv2.INTER_AREA).astype(np.float32)
            if t >= start:
                points += list(found[:, kept])
                appearances += [people.appearance(frame, face[detector.scheme.landmarks68]) for face in found]
                seen_in += [t] * len(found)
                if before is not None:
                    change[t - start] = np.abs(small - before).mean() / 255
                if t % FACES_EVERY == 0:
                    faces += [(t, *box) for box in detector.faces(frame)]
                if t % HANDS_EVERY == 0:
                    hands += [(t, *hand.min(0), *hand.max(0)) for hand in detector.hands(frame)]
                writer.write(detector.person(frame))
                report_done()
            before = small
    write_arrays(_detection_file(work, start), change=change, seen_in=np.array(seen_in, int),
                 points=np.array(points, np.float32).reshape(-1, len(kept), 3),
                 looks=np.array(appearances, np.float16).reshape(-1, *people.APPEARANCE_SHAPE),
                 faces=np.array(faces, np.float32).reshape(-1, 5), hands=np.array(hands, np.float32).reshape(-1, 5))


def detect_video(video: Path, frames: int, work: Path, choice: DetectorChoice, workers: Workers, quiet: bool = False, *,
            person: str = "", near: tuple[float, float] | None = None) -> Detections:
    """Detections of all `frames` of a video; chunks that an interrupted run has left in `work` are not computed again.

    `person` and `near` name the person as in `people.choose`. Raises TalkheadError as the detector does, and if there are
    fewer people than `person` says.
    """
    parts = chunk_spans(frames)
    jobs = [(video, a, b, choice, work) for a, b in parts if not _detection_file(work, a).is_file()]
    left = sum(b - a for _, a, b, *_ in jobs)
    if jobs:
        workers.run(detect_chunk, jobs, frames, frames - left, "tracking face", quiet=quiet)
    pieces: dict[str, list[np.ndarray]] = {"points": [], "looks": [], "seen_in": [], "change": [], "faces": [], "hands": []}
    for start, _ in parts:
        with np.load(_detection_file(work, start)) as stored:
            for name, found in pieces.items():
                found.append(stored[name])
    detector = open_detector(choice.name, landmarker=choice.landmarker, models=choice.models)
    scheme = kept_points(detector.scheme)[1]
    seen = {name: np.concatenate(found) for name, found in pieces.items()}
    points, others = one_person(seen["points"], seen["looks"], seen["seen_in"], scheme,
                                shots.shots_between(shots.find_cuts(seen["change"]), frames), person, near)
    return Detections(points, others, seen["change"], seen["faces"], seen["hands"], scheme)


def one_person(points: np.ndarray, appearances: np.ndarray, seen_in: np.ndarray, scheme: Scheme, spans: list[tuple[int, int]],
               person: str, near: tuple[float, float] | None) -> tuple[np.ndarray, np.ndarray]:
    """Pick the chosen person's face in each frame.

    points (n,P,3) and appearances (n,11,8,3) of all faces, in frames seen_in (n,); spans: the shots. Returns points (T,P,3),
    NaN where the person is not seen, and others (T,) bool, where somebody else is seen instead.
    """
    count = spans[-1][1]
    chosen, others = np.full((count, *points.shape[1:]), np.nan, np.float32), np.zeros(count, bool)
    if len(points) == 0:
        return chosen, others
    face = points[:, scheme.landmarks68, :2]
    sizes = np.sqrt(np.maximum(np.ptp(face, axis=1).prod(axis=1), 1.0))
    faces = people.Faces(seen_in, face.mean(1), sizes, appearances)
    person_of = people.find_people(faces, spans)
    own = person_of == people.choose(faces, person_of, person, near)
    others[seen_in] = True
    others[seen_in[own]] = False
    chosen[seen_in[own]] = points[own]
    return chosen, others


def _detection_file(work: Path, start: int) -> Path:
    return work / f"seen_{start:07d}.npz"


def _matte_file(work: Path, start: int) -> Path:
    return work / f"matte_{start:07d}.mkv"


def read_mattes(work: Path, start: int, stop: int) -> Iterator[np.ndarray]:
    """Stream the uint8 (256,256) person mattes of frames start ≤ t < stop."""
    starts = sorted(int(path.stem.removeprefix("matte_")) for path in work.glob("matte_*.mkv"))
    for first, after in zip(starts, [*starts[1:], stop]):
        if first < stop and start < after:
            yield from read_gray_video(_matte_file(work, first), max(0, start - first), stop - first)
