"""What is wrong with a recording: stretches that training skips, and sentences that tell a person what to do better."""

import numpy as np

from process_data.config import ProcessConfig
from process_data.detection.detection_pass import FACES_EVERY, HANDS_EVERY
from shared.camera import euler_degrees
from shared.clip import Bad
from shared.landmarks import FPS, lip_opening
from shared.media.sound_check import SoundCheck

SHORT_SECONDS = 30
LAG_WARNING_MS = 45
SECOND_FACE = 0.5  # of the main face's height: smaller faces do not disturb
ALWAYS = 0.5  # share of the looks from which a second face is part of the picture, not an incident
TINY_FACE = 0.16  # of the picture's width between the eyes' outer corners
STILL_LIPS_MM = 1.0  # between the lips' widest and narrowest opening; speech opens them by more
STILL_PICTURE = 2e-4  # of full scale, change from frame to frame; any camera's noise is more
LEAST_HELD = 0.5  # of the held-out end that should be good, else it is taken from before


def stretches(flags: np.ndarray, reason: str) -> list[Bad]:
    """Runs of True in flags (T,) as bad stretches."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flags, [False]]).astype(int)))
    return [Bad(int(a), int(b), reason) for a, b in zip(edges[::2], edges[1::2])]


def around(frames: np.ndarray, every: int, count: int) -> np.ndarray:
    """Flags (T,) of all frames that a look every `every` frames stands for."""
    flags = np.zeros(count, bool)
    for t in np.asarray(frames, int):
        flags[max(0, t - every + 1) : t + every] = True
    return flags


def second_faces(faces: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """Rows (frame, l, t, r, b) of all faces seen and landmarks (T,68,2) pixels -> frames (n,) that show a large second face."""
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
    """Rows (frame, l, t, r, b) of hands and landmarks (T,68,2) pixels -> frames (n,) in which one covers the mouth."""
    if len(hands) == 0:
        return np.zeros(0, int)
    lips = pixels[hands[:, 0].astype(int), 48:]
    low, high = lips.min(1), lips.max(1)
    apart = (hands[:, 1] > high[:, 0]) | (hands[:, 3] < low[:, 0]) | (hands[:, 2] > high[:, 1]) | (hands[:, 4] < low[:, 1])
    return np.unique(hands[~apart, 0].astype(int))


def find_bad(lost: np.ndarray, inside: np.ndarray, poses: np.ndarray, pixels: np.ndarray, faces: np.ndarray,
             hands: np.ndarray, config: ProcessConfig, *, others: np.ndarray | None = None,
             blank: np.ndarray | None = None) -> list[Bad]:
    """Bad stretches: lost (T,) and inside (T,) bool, poses (T,4,4), landmarks (T,68,2) pixels, rows of faces and hands.

    Flags (T,) bool: in `others` frames somebody else is seen, `blank` frames hold no picture.
    """
    count = len(lost)
    others, blank = (np.zeros(count, bool) if flags is None else flags for flags in (others, blank))
    turned = np.abs(euler_degrees(poses[:, :3, :3])[:, 0]) > config.max_turn_degrees
    found = stretches(blank, "no picture") + stretches(lost & ~blank & ~others, "no face")
    found += stretches(lost & ~blank & others, "another person")
    found += stretches(~inside & ~lost, "the face leaves the picture")
    found += stretches(turned & ~lost, "the head turns too far")
    found += stretches(around(hands_at_mouth(hands, pixels), HANDS_EVERY, count) & ~lost, "a hand at the mouth")
    second = second_faces(faces, pixels)
    if len(second) * FACES_EVERY < ALWAYS * count:
        found += stretches(around(second, FACES_EVERY, count) & ~lost, "a second face")
    return sorted(found, key=lambda bad: (bad.start, bad.stop))


def cuts_of_takes(spans: list[tuple[int, int]], blank: np.ndarray) -> list[int]:
    """Frames at which a shot that shows something follows another; a black end, blank (T,) all over, is no take."""
    return [start for start, stop in spans if not blank[start:stop].all()][1:]


def warnings(cuts: list[int], bad: list[Bad], lag: float | None, corrected: bool, samples: np.ndarray, pixels: np.ndarray,
             faces: np.ndarray, size: int) -> list[str]:
    """Sentences for the person who recorded: what was found and what to do about it."""
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
        frames = sum(b.stop - b.start for b in bad if b.reason == reason)
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


def still(landmarks: np.ndarray, change: np.ndarray) -> list[str]:
    """A sentence if the lips of landmarks (T,68,3) never move; change (T,) of the picture from frame to frame tells why."""
    opening = 1000 * lip_opening(landmarks)
    if np.percentile(opening, 95) - np.percentile(opening, 5) >= STILL_LIPS_MM:
        return []
    frozen = len(change) > 1 and np.percentile(change[1:], 90) < STILL_PICTURE
    return [("the picture stands still and " if frozen else "") + "the lips do not move; nothing can be learned of speech: film "
            "the person while they speak"]


def default_split(good: np.ndarray, test_share: float) -> dict[str, list[tuple[int, int]]]:
    """Train on the beginning, test on the last share of frames; good (T,) tells which can be used.

    Where most of that end cannot be used, such as a black one, the last share of the good frames is held out.
    """
    count = len(good)
    held, stop = int(round(count * (1 - test_share))), count
    where = np.flatnonzero(good)
    if held < count and len(where) and good[held:].mean() < LEAST_HELD:
        held, stop = int(where[min(len(where) - 1, int(round(len(where) * (1 - test_share))))]), int(where[-1]) + 1
    return {"train": [(0, held)], "test": [(held, stop)]}
