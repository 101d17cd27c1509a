"""Second pass over the video: background plates and colours from samples, then labels, alpha and torso motion of each frame."""

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from process_data.detection.detection_pass import read_mattes
from process_data.segmentation.background import background_plate
from process_data.segmentation.colors import FACE_OUTLINE, PersonColors, filled, learn_colors
from process_data.segmentation.segmenter import Segmenter
from process_data.tracking.torso_motion import choose_references, fill_and_smooth
from process_data.tracking.torso_warp import COLUMNS, WarpTracker
from process_data.workers import Workers, chunk_spans, report_done
from shared.arrays import evenly
from shared.clip import Clip, Shot, seen_file
from shared.files import write_arrays, write_rows
from shared.media.video_io import GrayVideoWriter, join_gray_videos, read_png, read_video, write_png

PERSON_MATTE = 13  # of 255: pixels with a larger coarse matte are not used for the background plate
COLOR_SAMPLES = 48  # frames that the person's colours are learned from
SEEK_FROM = 60  # frames between samples from which jumping to each is faster than reading all frames between


@dataclass(frozen=True)
class Face:
    """The face in n frames: projected landmarks (n,68,2) in pixels, and pixels to a metre (n,) at its depth."""

    pixels: np.ndarray
    metre: np.ndarray

    def part(self, start: int, stop: int) -> "Face":
        """The frames start ≤ t < stop of it."""
        return Face(self.pixels[start:stop], self.metre[start:stop])


def write_plates(clip: Clip, shots: list[Shot], face: Face, good: np.ndarray, samples: int, work: Path, workers: Workers,
                 quiet: bool = False) -> PersonColors:
    """Write the background plate of every shot and which of its pixels were seen; returns the person's colours.

    good (T,) bool: frames with a face; samples: frames of each shot that the plate is estimated from.
    """
    jobs = []
    for shot in shots:
        frames = shot.start + np.flatnonzero(good[shot.start : shot.stop])
        frames = frames if len(frames) else np.arange(shot.start, shot.stop)
        wanted = frames[evenly(len(frames), samples)]
        learn = max(2, round(COLOR_SAMPLES * (shot.stop - shot.start) / len(good)))
        if not _sample_file(work, shot.start).is_file():
            jobs.append((clip.video, clip.root / shot.background, wanted, face.pixels[wanted], learn, work, shot.start))
    if jobs:
        workers.run(write_plate, jobs, sum(len(job[2]) for job in jobs), 0, "background", quiet=quiet)
    samples_of: dict[str, list[np.ndarray]] = {"frames": [], "mattes": [], "numbers": []}
    for shot in shots:
        with np.load(_sample_file(work, shot.start)) as stored:
            for name, found in samples_of.items():
                found.extend(stored[name])
    return learn_colors(samples_of["frames"], samples_of["mattes"], face.pixels[samples_of["numbers"]])


def write_plate(video: Path, plate_file: Path, wanted: np.ndarray, pixels: np.ndarray, learn: int, work: Path, key: int) -> None:
    """Write the background plate of one shot, from its frames `wanted` (n,) with landmarks (n,68,2) pixels.

    `learn` of these frames are kept in work/samples_NNNNNNN.npz, `key` being the number, for the person's colours.
    """
    frames, people, mattes = [], [], []
    for frame, matte, points in zip(_frames_at(video, wanted), _mattes_at(work, wanted), pixels):
        height, width = frame.shape[:2]
        covered = (cv2.resize(matte, (width, height)) > PERSON_MATTE) | filled(points[FACE_OUTLINE], height, width)
        reach = max(3, height // 56)  # the person is widened by this many pixels
        frames.append(frame)
        mattes.append(matte)
        people.append(cv2.dilate(covered.astype(np.uint8), np.ones((reach, reach), np.uint8)) > 0)
        report_done()
    plate, seen = background_plate(np.stack(frames), np.stack(people))
    write_png(plate_file, plate)
    write_png(seen_file(plate_file), seen * np.uint8(255))
    kept = evenly(len(frames), learn)
    write_arrays(_sample_file(work, key), frames=np.stack(frames)[kept], mattes=np.stack(mattes)[kept], numbers=wanted[kept])


def _frames_at(video: Path, wanted: np.ndarray):
    if len(wanted) > 1 and np.diff(wanted).max() > SEEK_FROM:
        for t in wanted:
            yield from read_video(video, start=int(t), stop=int(t) + 1)
        return
    yield from read_video(video, start=int(wanted[0]), stop=int(wanted[-1]) + 1, only=set(wanted.tolist()))


def _mattes_at(work: Path, wanted: np.ndarray):
    for t in wanted:
        yield next(read_mattes(work, int(t), int(t) + 1))


def _sample_file(work: Path, start: int) -> Path:
    return work / f"samples_{start:07d}.npz"


def segment_frames(clip: Clip, shots: list[Shot], face: Face, poses: np.ndarray, good: np.ndarray, colors: PersonColors,
                 work: Path, workers: Workers, quiet: bool = False) -> tuple[np.ndarray, list[int]]:
    """Write labels.mkv and alpha.mkv; returns the torso motion (T, 4 + 2·n²), similarities and warps, and the numbers of shots
    whose torso does not match.

    poses (T,4,4); good (T,) bool: frames with a face. An interrupted run continues from the chunks in `work`.
    """
    count = len(good)
    spans = [(shot.start, shot.stop) for shot in shots]
    numbers = choose_references(spans, poses, good)
    references = []
    for shot, t in zip(shots, numbers):
        frame = next(read_video(clip.video, start=t, stop=t + 1))
        labels, _ = _segmenter(clip, shot, colors)(frame, _around(work, shot, t), face.pixels[t], float(face.metre[t]))
        references.append((frame, labels))
    tracker = WarpTracker(references, face.pixels[numbers], spans)
    parts = chunk_spans(count)
    jobs = [(clip, shots, face.part(a, b), colors, tracker, work, a, b) for a, b in parts if not _torso_file(work, a).is_file()]
    if jobs:
        tracker.motion(numbers[0], *references[0], face.pixels[numbers[0]])  # compiles it here once, instead of in every worker
        left = sum(job[-1] - job[-2] for job in jobs)
        workers.run(segment_chunk, jobs, count, count - left, "labels and torso", quiet=quiet)
    join_gray_videos([_chunk_file(work, "labels", a) for a, _ in parts], clip.labels)
    join_gray_videos([_chunk_file(work, "alpha", a) for a, _ in parts], clip.alpha)
    return fill_and_smooth(np.concatenate([np.load(_torso_file(work, a)) for a, _ in parts]), spans), tracker.unmatched


def segment_chunk(clip: Clip, shots: list[Shot], face: Face, colors: PersonColors, tracker: WarpTracker, work: Path, start: int,
                stop: int) -> None:
    """Write labels, alpha and torso motion of frames start ≤ t < stop to `work`; `face` holds only these frames."""
    height, width = tracker.size
    motion = np.full((stop - start, COLUMNS), np.nan)
    segmenter, current = None, None
    with (GrayVideoWriter(_chunk_file(work, "labels", start), width, height) as labels_video,
          GrayVideoWriter(_chunk_file(work, "alpha", start), width, height) as alpha_video):
        first = max(0, start - 1)
        mattes = dict(enumerate(read_mattes(work, first, stop + 1), start=first))
        for t, frame in enumerate(read_video(clip.video, start=start, stop=stop), start=start):
            shot = next(s for s in shots if s.start <= t < s.stop)
            if segmenter is None or shot is not current:
                segmenter, current = _segmenter(clip, shot, colors), shot
            near = [mattes[k] for k in (t - 1, t, t + 1) if shot.start <= k < shot.stop]
            labels, alpha = segmenter(frame, np.stack(near), face.pixels[t - start], float(face.metre[t - start]))
            motion[t - start] = tracker.motion(t, frame, labels, face.pixels[t - start])
            labels_video.write(labels)
            alpha_video.write(alpha)
            report_done()
    write_rows(_torso_file(work, start), "<f8", motion.shape, [motion])


def _around(work: Path, shot: Shot, t: int) -> np.ndarray:
    return np.stack(list(read_mattes(work, max(shot.start, t - 1), min(shot.stop, t + 2))))


def _segmenter(clip: Clip, shot: Shot, colors: PersonColors) -> Segmenter:
    plate = clip.root / shot.background
    return Segmenter(colors, read_png(plate), read_png(seen_file(plate))[..., 0] > 0)


def _chunk_file(work: Path, name: str, start: int) -> Path:
    return work / f"{name}_{start:07d}.mkv"


def _torso_file(work: Path, start: int) -> Path:
    return work / f"torso_warp_{start:07d}.npy"
