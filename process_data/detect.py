"""MediaPipe's face mesh and person matte, frame by frame, in parallel over contiguous chunks of a video."""

import multiprocessing
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np

from shared.errors import TalkheadError
from shared.files import atomic_path
from shared.training import progress
from shared.video_io import GrayVideoWriter, read_gray_video, read_video

N_MESH = 478
WARM_UP = 6  # frames before a chunk that let the tracker settle
MATTE_SIZE = 256


@contextmanager
def quiet_native_logs() -> Iterator[None]:
    """Send what native code prints on stderr to nowhere while the models load."""
    os.environ.setdefault("GLOG_minloglevel", "3")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    saved = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(nowhere)


def detect_faces(frames: Iterable[np.ndarray]) -> Iterator[np.ndarray | None]:
    """RGB frames -> box (left, top, right, bottom) in pixels of the largest face of each, or None."""
    with quiet_native_logs():
        from mediapipe.python.solutions import face_detection

        detector = face_detection.FaceDetection(model_selection=1, min_detection_confidence=0.4)
        for frame in frames:
            found = detector.process(frame).detections or []
            height, width = frame.shape[:2]
            boxes = [d.location_data.relative_bounding_box for d in found]
            if not boxes:
                yield None
                continue
            b = max(boxes, key=lambda box: box.width * box.height)
            yield np.array([b.xmin * width, b.ymin * height, (b.xmin + b.width) * width, (b.ymin + b.height) * height])


def track_chunk(video: Path, start: int, stop: int, matte: Path) -> tuple[np.ndarray, list[np.ndarray]]:
    """Frames start ≤ t < stop -> mesh (n,478,3) in pixels (z too; NaN where no face is found), and small grey frames.

    Writes the person matte (256², 0–255) as a lossless grey video to `matte`.
    """
    mesh = np.full((stop - start, N_MESH, 3), np.nan, np.float32)
    small = []
    with quiet_native_logs():
        from mediapipe.python.solutions import face_mesh, selfie_segmentation

        finder = face_mesh.FaceMesh(refine_landmarks=True, max_num_faces=1, min_detection_confidence=0.4,
                                    min_tracking_confidence=0.4)
        cutter = selfie_segmentation.SelfieSegmentation(model_selection=0)
        with GrayVideoWriter(matte, MATTE_SIZE, MATTE_SIZE) as writer:
            for t, frame in enumerate(read_video(video)):
                if t >= stop:
                    break
                if t < start - WARM_UP:
                    continue
                faces = finder.process(frame).multi_face_landmarks
                if t < start:
                    continue
                if t == 0:  # nothing comes before it, so let the tracker settle on the picture itself
                    for _ in range(WARM_UP):
                        faces = finder.process(frame).multi_face_landmarks
                height, width = frame.shape[:2]
                if faces:
                    points = np.array([(p.x, p.y, p.z) for p in faces[0].landmark], np.float32)
                    mesh[t - start] = points * [width, height, width]
                mask = cutter.process(frame).segmentation_mask
                mask = cv2.resize(mask, (MATTE_SIZE, MATTE_SIZE), interpolation=cv2.INTER_LINEAR)
                writer.write((np.clip(mask, 0, 1) * 255).astype(np.uint8))
                small.append(cv2.resize(frame, (48, 48), interpolation=cv2.INTER_AREA))
        finder.close()
        cutter.close()
    return mesh, small


def track(video: Path, frames: int, work: Path, workers: int | None = None, quiet: bool = False) -> None:
    """Track all `frames`; leaves work/mesh.npy (T,478,3), work/small.npy (T,48,48,3), work/matte_NNN.mkv.

    Chunks that an interrupted run finished are kept. Raises TalkheadError if no frame shows a face.
    """
    if (work / "mesh.npy").is_file():
        return
    workers = workers or os.cpu_count() or 1
    pieces = max(workers, -(-frames // 500))
    edges = np.linspace(0, frames, pieces + 1).astype(int)
    waiting = [(k, int(a), int(b)) for k, (a, b) in enumerate(zip(edges, edges[1:])) if not _part(work, k).is_file()]
    context = multiprocessing.get_context("spawn")
    with (ProcessPoolExecutor(min(workers, len(waiting) or 1), mp_context=context) as pool,
          progress(frames, "tracking face", quiet=quiet, unit="frame") as bar):
        jobs = {pool.submit(track_chunk, video, a, b, work / f"matte_{k:03d}.mkv"): (k, b - a) for k, a, b in waiting}
        bar.update(frames - sum(length for _, length in jobs.values()))
        for job in as_completed(jobs):
            k, length = jobs[job]
            mesh, small = job.result()
            with atomic_path(_part(work, k)) as partial:
                np.savez(partial, mesh=mesh, small=np.stack(small))
            bar.update(length)
    parts = [np.load(_part(work, k)) for k in range(pieces)]
    mesh = np.concatenate([part["mesh"] for part in parts])
    if np.isnan(mesh[:, 0, 0]).all():
        raise TalkheadError(f"{video.name}: no face found in any frame; film one person, facing the camera")
    np.save(work / "small.npy", np.concatenate([part["small"] for part in parts]))
    with atomic_path(work / "mesh.npy") as partial:
        np.save(partial, mesh)


def _part(work: Path, k: int) -> Path:
    return work / f"track_{k:03d}.npz"


def mattes(work: Path) -> Iterator[np.ndarray]:
    """Stream the uint8 (256,256) person mattes that `track` wrote."""
    for path in sorted(work.glob("matte_*.mkv")):
        yield from read_gray_video(path)
