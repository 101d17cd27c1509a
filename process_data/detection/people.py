"""Which of several faces belongs to the person of the clip: faces -> tracks within a shot -> people -> one person.

Decided once for the whole video, by position and appearance, so that the result does not depend on chunks or workers. A
face that is seen alone belongs to the person unless it looks quite different.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from shared.errors import TalkheadError

APPEARANCE_SHAPE = (11, 8, 3)  # an appearance is a small upright picture of the face: rows, columns, colours
EYES, MOUTH = (0.5, 0.45), (0.5, 0.72)  # place of the middle of the eyes and of the mouth in it, of its width and height
FINE = 8  # times as large it is cut out, then averaged
SAME_APPEARANCE = 0.25  # rms difference of appearances, frame to frame, up to which a face may be the same
# rms difference of mean appearances from which two faces never seen together belong to two people. Measured: up to .30 for
# one person in other light and framing; above .35 for 87 % of 176 pairs of people
OTHER_APPEARANCE = 0.35
NEAR = 0.6  # most that a face moves, in face sizes, and that the logarithm of its size changes, from frame to frame
GAP = 12  # frames that a face may be missing within a track
TOGETHER = 3  # frames in which two tracks must be seen together to be two people
SEEN = 0.1  # people seen in fewer frames than this share of the one seen most are not counted from the left
MOST = 150  # tracks, the largest, that are clustered into people; the others are assigned to the people found


@dataclass(frozen=True)
class Faces:
    """All n faces seen: frames (n,), ascending; centres (n,2) and sizes (n,) in pixels; appearances (n,11,8,3)."""

    frames: np.ndarray
    centres: np.ndarray
    sizes: np.ndarray
    appearances: np.ndarray


def check_person(person: str) -> None:
    """Raise TalkheadError unless `person` is empty, left, right or a whole number from 1."""
    if person not in ("", "left", "right") and not (person.isdecimal() and int(person) >= 1):
        raise TalkheadError(f"--person takes left, right or a number from 1, counted from the left; found {person!r}")


def appearance(frame: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Frame (H,W,3) uint8 and landmarks (68, 2 or 3) pixels of a face -> its appearance (11,8,3) float16, scaled to mean 1."""
    height, width = APPEARANCE_SHAPE[0] * FINE, APPEARANCE_SHAPE[1] * FINE
    eyes, mouth = points[[36, 39, 42, 45], :2].mean(0), points[[48, 54], :2].mean(0)
    down = mouth - eyes
    scale = height * (MOUTH[1] - EYES[1]) / max(float(np.hypot(*down)), 1e-6)
    unit = down / max(float(np.hypot(*down)), 1e-6)
    turn = scale * np.array([[unit[1], -unit[0]], unit])
    shift = np.array([EYES[0] * width, EYES[1] * height]) - turn @ eyes
    fine = cv2.warpAffine(frame, np.column_stack([turn, shift]), (width, height), borderMode=cv2.BORDER_REPLICATE)
    small = cv2.resize(fine, APPEARANCE_SHAPE[1::-1], interpolation=cv2.INTER_AREA).astype(np.float32)
    return (small / max(float(small.mean()), 1.0)).astype(np.float16)


def find_people(faces: Faces, spans: list[tuple[int, int]]) -> np.ndarray:
    """Number of the person, from 0, that each face (n,) belongs to; `spans`: the shots."""
    tracks = _tracks(faces, spans)
    return _joined(faces, tracks)[tracks] if len(tracks) else tracks


def choose(faces: Faces, people: np.ndarray, person: str, near: tuple[float, float] | None = None) -> int:
    """Number of the person of the clip, of people (n,) as of `find_people`: the one nearest to `near` (x, y) pixels, if given;
    else the one that `person` names ("left", "right", a number from the left); else the one with the largest face overall.

    Raises TalkheadError if there are fewer people than `person` says.
    """
    found = np.unique(people)
    times = np.array([(people == k).sum() for k in found])
    found = found[times >= SEEN * times.max()]
    places = np.array([np.median(faces.centres[people == k], axis=0) for k in found])
    if near is not None:
        return int(found[np.linalg.norm(places - near, axis=1).argmin()])
    if person:
        return int(found[np.argsort(places[:, 0], kind="stable")[rank(person, len(found))]])
    return int(found[np.argmax([(faces.sizes[people == k] ** 2).sum() for k in found])])


def rank(person: str, count: int) -> int:
    """Place from the left, from 0, that `person` names among `count` people. Raises TalkheadError if there are fewer."""
    place = {"left": 0, "right": count - 1}.get(person)
    if place is None:
        place = int(person) - 1
    if place >= count:
        raise TalkheadError(f"--person {person}: only {count} {'person is' if count == 1 else 'people are'} seen in the video")
    return place


def boxes_of(frames: list[np.ndarray], person: str) -> list[np.ndarray]:
    """Face boxes (n,4) of sampled frames, largest first -> the person's box (4,) in each frame that shows the person.

    The person is told by place from the left among the faces at least half as high as the largest: that of `person`, by
    default the place with the largest faces.
    """
    kept = [boxes[_heights(boxes) >= _heights(boxes)[0] / 2] for boxes in frames if len(boxes)]
    if not kept:
        return []
    count = int(np.median([len(boxes) for boxes in kept]))
    if count == 1 and not person:
        return [boxes[0] for boxes in kept]
    ordered = [boxes[np.argsort(boxes[:, 0], kind="stable")] for boxes in kept if len(boxes) == count]
    if not ordered:
        return [boxes[0] for boxes in kept]
    place = rank(person, count) if person else int(np.mean([_heights(boxes) for boxes in ordered], axis=0).argmax())
    return [boxes[place] for boxes in ordered]


def _heights(boxes: np.ndarray) -> np.ndarray:
    return boxes[:, 3] - boxes[:, 1]


def _distance(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.sqrt(np.mean((a.astype(np.float32) - b.astype(np.float32)) ** 2)))


def _tracks(faces: Faces, spans: list[tuple[int, int]]) -> np.ndarray:
    """Number of the track of each face (n,): faces of one shot that follow each other, are near and look alike."""
    tracks = np.zeros(len(faces.frames), int)
    starts = {start for start, _ in spans}
    last: dict[int, int] = {}  # track -> its latest face
    number, before = 0, -1
    for t in np.unique(faces.frames).tolist():
        here = np.flatnonzero(faces.frames == t).tolist()
        if any(before < start <= t for start in starts):
            last.clear()
        last = {track: k for track, k in last.items() if t - faces.frames[k] <= GAP}
        pairs = []
        for track, k in last.items():
            for n in here:
                moved = np.linalg.norm(faces.centres[n] - faces.centres[k]) / faces.sizes[k]
                grown = abs(np.log(faces.sizes[n] / faces.sizes[k]))
                apart = _distance(faces.appearances[n], faces.appearances[k])
                if max(moved, grown) < NEAR and apart < SAME_APPEARANCE:
                    pairs.append((moved + grown + apart, track, n))
        taken: set[int] = set()
        for _, track, n in sorted(pairs):
            if n not in taken and faces.frames[last[track]] != t:
                tracks[n], last[track] = track, n
                taken.add(n)
        for n in here:
            if n not in taken:
                tracks[n], last[number] = number, n
                number += 1
        before = t
    return tracks


def _joined(faces: Faces, tracks: np.ndarray) -> np.ndarray:
    """Number of the person of each track: the most similar tracks are joined first, except those seen together."""
    count = int(tracks.max()) + 1
    when = [set(faces.frames[tracks == k].tolist()) for k in range(count)]
    appearances = [faces.appearances[tracks == k].astype(np.float32).mean(0) for k in range(count)]
    order = sorted(range(count), key=lambda k: (-float((faces.sizes[tracks == k] ** 2).sum()), k))
    people = {k: [k] for k in order[:MOST]}
    apart = {(a, b): _distance(appearances[a], appearances[b]) for a in people for b in people if a < b}
    while apart:
        (a, b), least = min(apart.items(), key=lambda item: (item[1], item[0]))
        if least > OTHER_APPEARANCE:
            break
        del apart[a, b]
        if len(when[a] & when[b]) >= TOGETHER:
            continue
        share = len(when[a]) / (len(when[a]) + len(when[b]))
        appearances[a], when[a] = share * appearances[a] + (1 - share) * appearances[b], when[a] | when[b]
        people[a] += people.pop(b)
        apart = {pair: value for pair, value in apart.items() if b not in pair}
        for k in people:
            if k != a and (pair := (min(a, k), max(a, k))) and len(when[a] & when[k]) < TOGETHER:
                apart[pair] = _distance(appearances[a], appearances[k])
    for k in order[MOST:]:
        free = [a for a in people if len(when[a] & when[k]) < TOGETHER] or list(people)
        people[min(free, key=lambda a: _distance(appearances[a], appearances[k]))].append(k)
    person = np.zeros(count, int)
    for number, members in enumerate(people.values()):
        person[members] = number
    return person
