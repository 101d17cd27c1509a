"""Second pass over the video: background plates and colours from samples, then labels, alpha and torso motion of each frame."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from process_data.detection.detection_pass import read_mattes
from process_data.segmentation.background import background_plate, often_clear
from process_data.segmentation.colors import FACE_OUTLINE, PersonColors, above_jaw, filled, learn_colors
from process_data.segmentation.layers import ShotLayers, build_layers
from process_data.segmentation.segmenter import Segmenter
from process_data.tracking.torso_motion import (
    choose_references,
    compose,
    concatenate,
    face_similarity,
    fill_and_smooth,
    inverse,
    pyramid,
)
from process_data.tracking.torso_warp import COLUMNS, WarpTracker
from process_data.workers import Workers, chunk_spans, report_done
from shared.arrays import evenly
from shared.clip import Clip, Shot, seen_file
from shared.files import write_arrays, write_rows
from shared.media.video_io import GrayVideoWriter, join_gray_videos, read_frames_at, read_png, read_video, write_png
from shared.torso_motion import SIMILARITY

PERSON_MATTE = 13  # of 255: pixels with a larger coarse matte may be the person's
USUAL_MATTE = 64  # of 255: mean matte at a place of the head from which the person may be there in every frame
BESIDE = 1 / 150  # of the picture's size: nearer to the person the background is filled in
PLATE_MARGIN = 1 / 64  # nearer than this it counts as seen beside the person only, since hair beyond the matte may tint it
SEEN, SEEN_BESIDE = 255, 128  # values in the picture of what was seen
KNOT = 1 / 128  # of the coarse matte's size: half the width of the least that counts as missed in a frame's matte
LAYER_SAMPLES = 24  # frames of a shot in which the layers that move with head and torso are looked for
COLOR_SAMPLES = 48  # frames that the person's colours are learned from


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
            jobs.append((clip, shot, wanted, face.pixels[wanted], learn, work))
    if jobs:
        workers.run(write_plate, jobs, sum(len(job[2]) for job in jobs), 0, "background", quiet=quiet)
    samples_of: dict[str, list[np.ndarray]] = {"frames": [], "mattes": [], "numbers": []}
    for shot in shots:
        with np.load(_sample_file(work, shot.start)) as stored:
            for name, found in samples_of.items():
                found.extend(stored[name])
    return learn_colors(samples_of["frames"], samples_of["mattes"], face.pixels[samples_of["numbers"]])


def write_plate(clip: Clip, shot: Shot, wanted: np.ndarray, pixels: np.ndarray, learn: int, work: Path) -> None:
    """Write the background plate of one shot, from its frames `wanted` (n,) with landmarks (n,68,2) pixels.

    `learn` of these frames are kept in work/samples_NNNNNNN.npz, the number being the shot's start, for the person's colours.
    """
    frames = []
    for frame in read_frames_at(clip.video, wanted):
        frames.append(frame)
        report_done()
    near = [_around(work, shot, t) for t in wanted.tolist()]
    person = covered([mattes.max(0) for mattes in near], pixels, *frames[0].shape[:2])
    plate, shown = background_plate(np.stack(frames), person, BESIDE * len(person[0]))
    seen = shown & often_clear(person, PLATE_MARGIN * len(person[0]))
    write_png(clip.root / shot.background, plate)
    write_png(seen_file(clip.root / shot.background), np.where(seen, SEEN, shown * SEEN_BESIDE).astype(np.uint8))
    kept = evenly(len(frames), learn)
    write_arrays(_sample_file(work, shot.start), frames=np.stack(frames)[kept], numbers=wanted[kept],
                 mattes=np.stack([near[k][min(1, wanted[k] - shot.start)] for k in kept]))


def covered(mattes: Sequence[np.ndarray], pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Where the person is or may be in n frames, (n,height,width) bool, from coarse mattes (h,w) uint8 and landmarks (n,68,2).

    Beside all that the coarse mattes do not surely leave out, and the faces, this is what mattes of other frames cover at the
    same place of the head above the jaw: a knot of hair that the network sees now and then.
    """
    small = mattes[0].shape
    scale = small[1] / width
    mean = pixels.mean(0)
    moves = [face_similarity(mean * scale, points * scale) for points in pixels]
    usual = np.mean([cv2.warpAffine(matte, move, small[::-1], flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
                     for matte, move in zip(mattes, moves)], axis=0).astype(np.float32)
    knot = np.ones((2 * round(KNOT * small[1]) + 1,) * 2, np.uint8)
    people = []
    for matte, move, points in zip(mattes, moves, pixels):
        again = (cv2.warpAffine(usual, move, small[::-1]) > USUAL_MATTE) & (matte <= PERSON_MATTE)
        again &= above_jaw(points * scale, *small)
        missed = cv2.morphologyEx(again.view(np.uint8) * np.uint8(255), cv2.MORPH_OPEN, knot)
        mask = cv2.resize(np.maximum(matte, missed), (width, height)) > PERSON_MATTE
        people.append(mask | filled(points[FACE_OUTLINE], height, width))
    return np.stack(people)


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
        segmenter = Segmenter(colors, *_plate(clip, shot))
        labels, _ = segmenter(frame, _around(work, shot, t), face.pixels[t], float(face.metre[t]))
        references.append((frame, labels))
    tracker = WarpTracker(references, face.pixels[numbers], spans)
    parts = chunk_spans(count)
    jobs = [(clip, shots, face.part(a, b), colors, tracker, work, a, b) for a, b in parts if not _torso_file(work, a).is_file()]
    if jobs:
        tracker.motion(numbers[0], *references[0], face.pixels[numbers[0]])  # compiles it here once, instead of in every worker
        _write_layers(clip, shots, face, good, colors, tracker, work, workers, quiet)
        left = sum(job[-1] - job[-2] for job in jobs)
        workers.run(segment_chunk, jobs, count, count - left, "labels and torso", quiet=quiet)
    join_gray_videos([_chunk_file(work, "labels", a) for a, _ in parts], clip.labels)
    join_gray_videos([_chunk_file(work, "alpha", a) for a, _ in parts], clip.alpha)
    return fill_and_smooth(np.concatenate([np.load(_torso_file(work, a)) for a, _ in parts]), spans), tracker.unmatched


def _write_layers(clip: Clip, shots: list[Shot], face: Face, good: np.ndarray, colors: PersonColors, tracker: WarpTracker,
                  work: Path, workers: Workers, quiet: bool) -> None:
    jobs = []
    for number, shot in enumerate(shots):
        if not _layer_file(work, shot).is_file():
            frames = shot.start + np.flatnonzero(good[shot.start : shot.stop])
            wanted = frames[evenly(len(frames), LAYER_SAMPLES)]
            jobs.append((clip, number, shot, wanted, Face(face.pixels[wanted], face.metre[wanted]), colors, tracker, work))
    if jobs:
        workers.run(write_layers, jobs, sum(len(job[3]) for job in jobs), 0, "layers", quiet=quiet)


def write_layers(clip: Clip, number: int, shot: Shot, wanted: np.ndarray, face: Face, colors: PersonColors,
                 tracker: WarpTracker, work: Path) -> None:
    """Write to `work` what moves with head and torso in shot `number`, from its frames `wanted` (n,) with their `face`.

    An empty file stands for a shot of too few frames.
    """
    segmenter = Segmenter(colors, *_plate(clip, shot))
    samples = []
    for t, frame, pixels, metre in zip(wanted.tolist(), read_frames_at(clip.video, wanted), face.pixels, face.metre):
        draft = segmenter.draft(frame, _around(work, shot, t), pixels, float(metre))
        torso = _from_reference(tracker, number, tracker.similarity(t, pyramid(frame), draft.labels, pixels))
        if torso is not None:
            samples.append(draft.sample(tracker.faces[number], torso))
        report_done()
    layers = build_layers(samples, tracker.faces[number])
    if layers is None:
        write_arrays(_layer_file(work, shot))
    else:
        layers.save(_layer_file(work, shot))


def _from_reference(tracker: WarpTracker, number: int, motion: np.ndarray) -> np.ndarray | None:
    """Torso motion (4,) from the common reference -> similarity (2,3) from the reference of shot `number`; None for NaN."""
    if np.isnan(motion).any():
        return None
    return concatenate(compose(motion, tracker.center), inverse(tracker.from_common[number]))


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
                segmenter, current = Segmenter(colors, *_plate(clip, shot), _layers(work, shot)), shot
            near = [mattes[k] for k in (t - 1, t, t + 1) if shot.start <= k < shot.stop]
            draft = segmenter.draft(frame, np.stack(near), face.pixels[t - start], float(face.metre[t - start]))
            motion[t - start] = tracker.motion(t, frame, draft.labels, face.pixels[t - start])
            torso = _from_reference(tracker, shots.index(shot), motion[t - start, :SIMILARITY])
            labels_video.write(segmenter.labels(draft, torso))
            alpha_video.write(draft.alpha)
            report_done()
    write_rows(_torso_file(work, start), "<f8", motion.shape, [motion])


def _around(work: Path, shot: Shot, t: int) -> np.ndarray:
    return np.stack(list(read_mattes(work, max(shot.start, t - 1), min(shot.stop, t + 2))))


def _plate(clip: Clip, shot: Shot) -> tuple[np.ndarray, np.ndarray]:
    """The shot's background plate (H,W,3) uint8 and which of its pixels were seen, beside the person too, (H,W) bool."""
    plate = clip.root / shot.background
    return read_png(plate), read_png(seen_file(plate))[..., 0] > 0


def _layers(work: Path, shot: Shot) -> ShotLayers | None:
    with np.load(_layer_file(work, shot)) as stored:
        empty = not stored.files
    return None if empty else ShotLayers.load(_layer_file(work, shot))


def _layer_file(work: Path, shot: Shot) -> Path:
    return work / f"layers_{shot.start:07d}.npz"


def _chunk_file(work: Path, name: str, start: int) -> Path:
    return work / f"{name}_{start:07d}.mkv"


def _torso_file(work: Path, start: int) -> Path:
    return work / f"torso_warp_{start:07d}.npy"
