"""Faults of a recording: the frames that training skips, and warnings that say what to do better."""

import numpy as np

from process_data.config import ProcessConfig
from process_data.detection.detection_pass import FACES_EVERY, HANDS_EVERY
from shared.arrays import runs
from shared.camera import euler_degrees
from shared.clip import ExcludedSpan
from shared.landmarks import FPS, lip_opening
from shared.media.sound_check import SoundCheck

SHORT_SECONDS = 30  # a shorter clip is warned of
LAG_WARNING_MS = 45  # a larger lag is warned of; people notice about one frame, 40 ms
SECOND_FACE = 0.5  # of the main face's height: smaller faces do not disturb
ALWAYS = 0.5  # share of the searched frames from which a second face is part of the scene, and no frame is skipped for it
TINY_FACE = 0.16  # of the picture's width between the eyes' outer corners
STILL_LIPS_MM = 1.0  # between the 5th and 95th percentile of lip opening; speech moves them by more
STILL_PICTURE = 2e-4  # change from frame to frame, of full scale; the noise of any camera is more
LEAST_HELD = 0.5  # share of good frames that the clip's end needs to serve as test split


def excluded_spans(flags: np.ndarray, reason: str) -> list[ExcludedSpan]:
    """Flags (T,) bool -> a span for each run of True."""
    return [ExcludedSpan(start, stop, reason) for start, stop in runs(np.flatnonzero(flags))]


def frames_around(frames: np.ndarray, every: int, count: int) -> np.ndarray:
    """Flags (T,) of the frames nearer than `every` to one of `frames` (n,), when only every `every`-th was searched."""
    flags = np.zeros(count, bool)
    for t in np.asarray(frames, int):
        flags[max(0, t - every + 1) : t + every] = True
    return flags


def second_faces(faces: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """Frames (n,) that show a large second face.

    faces (m,5): rows frame, left, top, right, bottom in pixels; pixels (T,68,2): projected landmarks of the person.
    """
    if len(faces) == 0:
        return np.zeros(0, int)
    frames = faces[:, 0].astype(int)
    own = pixels[frames]
    middle = (faces[:, 1:3] + faces[:, 3:5]) / 2
    inside = (middle >= own.min(1)) & (middle <= own.max(1))
    height = own[..., 1].max(1) - own[..., 1].min(1)
    other = ~inside.all(1) & (faces[:, 4] - faces[:, 2] > SECOND_FACE * height)
    return np.unique(frames[other])


def hands_at_mouth(hands: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """Frames (n,) in which the box of a hand, hands (m,5) as in `second_faces`, overlaps that of the lips, pixels (T,68,2)."""
    if len(hands) == 0:
        return np.zeros(0, int)
    lips = pixels[hands[:, 0].astype(int), 48:]
    low, high = lips.min(1), lips.max(1)
    apart = (hands[:, 1] > high[:, 0]) | (hands[:, 3] < low[:, 0]) | (hands[:, 2] > high[:, 1]) | (hands[:, 4] < low[:, 1])
    return np.unique(hands[~apart, 0].astype(int))


def find_excluded(lost: np.ndarray, inside: np.ndarray, poses: np.ndarray, pixels: np.ndarray, faces: np.ndarray,
             hands: np.ndarray, config: ProcessConfig, *, others: np.ndarray | None = None,
             blank: np.ndarray | None = None) -> list[ExcludedSpan]:
    """The spans that training skips, in order of their start.

    Flags (T,) bool: no face was found (`lost`), the landmarks lie in the picture (`inside`), somebody else is seen
    instead (`others`), there is no picture (`blank`). poses (T,4,4); pixels (T,68,2) projected landmarks; faces and hands
    (m,5) as in `second_faces`.
    """
    count = len(lost)
    others, blank = (np.zeros(count, bool) if flags is None else flags for flags in (others, blank))
    turned = np.abs(euler_degrees(poses[:, :3, :3])[:, 0]) > config.max_turn_degrees
    found = excluded_spans(blank, "no picture") + excluded_spans(lost & ~blank & ~others, "no face")
    found += excluded_spans(lost & ~blank & others, "another person")
    found += excluded_spans(~inside & ~lost, "the face leaves the picture")
    found += excluded_spans(turned & ~lost, "the head turns too far")
    found += excluded_spans(frames_around(hands_at_mouth(hands, pixels), HANDS_EVERY, count) & ~lost, "a hand at the mouth")
    second = second_faces(faces, pixels)
    if len(second) * FACES_EVERY < ALWAYS * count:
        found += excluded_spans(frames_around(second, FACES_EVERY, count) & ~lost, "a second face")
    return sorted(found, key=lambda span: (span.start, span.stop))


def cuts_of_takes(spans: list[tuple[int, int]], blank: np.ndarray) -> list[int]:
    """First frames of the shots but the first one, without shots that are blank (T,) bool all over, such as a black end."""
    return [start for start, stop in spans if not blank[start:stop].all()][1:]


def recording_warnings(cuts: list[int], excluded: list[ExcludedSpan], lag: float | None, corrected: bool, samples: np.ndarray,
                       pixels: np.ndarray, faces: np.ndarray, size: int) -> list[str]:
    """Sentences for the person who recorded: what was found and what to do about it.

    cuts: first frames of shots; lag in milliseconds, None if unknown, and whether the sound was shifted by it
    (`corrected`); samples (n,) 16 kHz; pixels (T,68,2) landmarks; faces (m,5) as in `second_faces`; size of the picture.
    """
    count = len(pixels)
    found = []
    if count < SHORT_SECONDS * FPS:
        found.append(f"only {count / FPS:.1f} s long; record 1 to 5 minutes for an avatar that speaks well")
    if cuts:
        shown = ", ".join(map(str, cuts[:8])) + (" and more" if len(cuts) > 8 else "")
        found.append(f"{len(cuts)} cut(s), at frames {shown}; one uncut take is better")
    for reason, advice in (("no picture", "cut them off"),
                           ("no face", "look into the camera all the time"),
                           ("another person", "be alone in the picture, or name yourself with --person"),
                           ("the face leaves the picture", "step back a little, or hold the camera still"),
                           ("the head turns too far", "face the camera"),
                           ("a hand at the mouth", "keep your hands below your chin"),
                           ("a second face", "be alone in the picture")):
        frames = sum(span.stop - span.start for span in excluded if span.reason == reason)
        if frames:
            found.append(f"{reason} in {frames} frame(s), which are skipped; {advice}")
    second = second_faces(faces, pixels)
    if len(second) * FACES_EVERY >= ALWAYS * count:
        found.append("a second face is in the picture most of the time; be alone in it, or crop the video")
    if lag is not None and abs(lag) > LAG_WARNING_MS:
        remedy = "the sound was shifted to go with them" if corrected else "--fix-sync shifts the sound"
        found.append(f"the lips move about {abs(lag):.0f} ms {'after' if lag > 0 else 'before'} the sound; {remedy}")
    sound = SoundCheck()
    sound.push(samples)
    found += sound.warnings(learning=True)
    between = np.median(np.linalg.norm(pixels[:, 45] - pixels[:, 36], axis=1))
    if between < TINY_FACE * size:
        found.append(f"the face is small, {between:.0f} pixels between the eyes; come closer or zoom in")
    return found


def still_warnings(landmarks: np.ndarray, change: np.ndarray) -> list[str]:
    """One sentence if the lips of landmarks (T,68,3) never move, else none.

    change (T,): mean change of the picture from the frame before, of full scale; it tells a frozen picture from closed lips.
    """
    opening = 1000 * lip_opening(landmarks)
    if np.percentile(opening, 95) - np.percentile(opening, 5) >= STILL_LIPS_MM:
        return []
    frozen = len(change) > 1 and np.percentile(change[1:], 90) < STILL_PICTURE
    return [("the picture stands still and " if frozen else "") + "the lips do not move; nothing can be learned of speech: film "
            "the person while they speak"]


def default_split(good: np.ndarray, test_share: float) -> dict[str, list[tuple[int, int]]]:
    """Splits "train" and "test" as ranges start ≤ t < stop: the last `test_share` of the frames is the test.

    Where less than half of that end is good (T,) bool, such as a black one, the last share of the good frames is taken.
    """
    count = len(good)
    start, stop = int(round(count * (1 - test_share))), count
    where = np.flatnonzero(good)
    if start < count and len(where) and good[start:].mean() < LEAST_HELD:
        start, stop = int(where[min(len(where) - 1, int(round(len(where) * (1 - test_share))))]), int(where[-1]) + 1
    return {"train": [(0, start)], "test": [(start, stop)]}
