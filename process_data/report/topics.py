"""Verdicts on the footage of a clip, in plain words, with advice and pictures of the worst frames.

Distances are pixels of the clip's video; the limits are for a video of 512 pixels.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from process_data.report.footage import RING, Plate, Sample, edges, ring, torso_fits
from process_data.report.scores import VERDICTS, Score, known
from process_data.tracking.residuals import Residuals
from shared.clip import Clip, good_frames
from shared.landmarks import FPS

MOST_WORST, APART = 4, FPS  # worst frames shown of a topic, and frames between two of them
MARK, JUMPS = (255, 60, 190), (255, 214, 64)  # pink, yellow
FOUND = (40, 255, 90)  # green
LONGER = 10  # times its length at which the error of a corner is drawn
MARGIN = 1.25  # of the head's size that is shown
UNIT = 512  # pixels of a video that the limits are for


@dataclass(frozen=True)
class Limit:
    """A number is good up to `good` and fair up to `fair`; what to do if it is not good."""

    good: float
    fair: float
    advice: str

    def verdict(self, value: float) -> str:
        """One of VERDICTS; unknown for NaN."""
        if np.isnan(value):
            return "unknown"
        return "good" if value <= self.good else "fair" if value <= self.fair else "poor"


# set on the actors of seeds 0 and 1, person6s and generated15s, whose pictures were looked at: the calm and clear ones are good,
# those with visible faults are not; docs/experiments/process.md has the table, and what other clips get
LIMITS = {
    "doubtful_share": Limit(0.25, 0.5, "choose a plain background that is clearly lighter or darker than the hair, and stand a "
                                       "metre before it"),
    "edge_flicker_px": Limit(0.8, 1.6, "use more light, so that hair is not blurred, put loose hair back, and move calmly"),
    "border_flicker_px": Limit(0.9, 1.8, "wear a collar that differs in colour from neck and hair, keep loose hair behind the "
                                         "shoulders, and move calmly"),
    "ring_unseen_share": Limit(0.5, 0.75, "sit a metre before a plain wall, and move head and shoulders a little to every "
                                         "side while you speak: what is never seen behind you is made up"),
    "corner_p95_px": Limit(1.0, 2.0, "turn the head more slowly, with more light, so that no frame is blurred"),
    "lost_share": Limit(0.25, 0.5, "use more light from the front, keep hair and hands off the face, and turn the head by no "
                                   "more than some 20°"),
    "torso_rms": Limit(5.0, 10.0, "wear clothes that lie still, without stripes or gloss, and keep the shoulders calm"),
    "torso_outlier_share": Limit(0.015, 0.05, "keep the hands below the picture, and wear clothes that do not fold as you move"),
}
STRONG_SPEED = 40.0  # degrees a second, reached in the fastest twentieth of the frames


@dataclass(frozen=True)
class Topic:
    """A score, and by frame the pictures (h,w,3) uint8 of its worst frames, in which `marked` is marked."""

    score: Score
    pictures: dict[int, np.ndarray]
    marked: str


def judge(clip: Clip, looked: Sequence[Sample], residuals: Residuals | None, earlier: Sequence[Score] = ()) -> list[Topic]:
    """Judge a clip by the frames looked at and the residuals of its tracking; without these, poses are as in `earlier` scores."""
    plates = {shot: Plate.read(clip, shot) for shot in sorted({sample.shot for sample in looked})}
    return [_edges(clip, looked, plates), _plate(clip, looked, plates), _poses(clip, looked, residuals, earlier),
            _torso(clip, looked)]


def pick_worst(frames: np.ndarray, values: np.ndarray) -> list[int]:
    """Frames (n,) with the largest values (n,), worst first, at least APART from each other; NaN is left out."""
    chosen: list[int] = []
    for k in np.argsort(-values, kind="stable"):
        if len(chosen) < MOST_WORST and np.isfinite(values[k]) and all(abs(frames[k] - t) >= APART for t in chosen):
            chosen.append(int(frames[k]))
    return chosen


def worst_poses(clip: Clip, residuals: Residuals | None) -> list[int]:
    """The good frames whose corners lie farthest from where the head puts them, of those that `residuals` has examples of."""
    if residuals is None:
        return []
    good = good_frames(clip.info.excluded, clip.info.frames)
    frames = np.array(sorted(t for t in residuals.examples if good[t]), int)
    return pick_worst(frames, residuals.corners[frames])


def _score(topic: str, clip: Clip, numbers: dict[str, float], shots: list[dict[str, float]], found: str,
           worst: list[int]) -> Score:
    """The verdict is the worst of those on the numbers that have a limit; the advice goes with it."""
    unit = clip.info.width / UNIT
    verdicts = {name: limit.verdict(numbers[name] / (unit if name.endswith("_px") else 1))
                for name, limit in LIMITS.items() if name in numbers}
    told = [name for name, verdict in verdicts.items() if verdict != "unknown"]
    if not told:
        return Score(topic, "unknown", found)
    decides = max(told, key=lambda name: VERDICTS.index(verdicts[name]))
    advice = "" if verdicts[decides] == "good" else LIMITS[decides].advice
    return Score(topic, verdicts[decides], found, advice, known(numbers), [known(row) for row in shots], worst)


def _by_shot(clip: Clip, looked: Sequence[Sample], values: dict[str, np.ndarray]) -> list[dict[str, float]]:
    """Means of values (n,) over the frames looked at in each shot."""
    shot_of = np.array([sample.shot for sample in looked])
    return [{"shot": shot + 1} | {name: _mean(each[shot_of == shot]) for name, each in values.items()}
            for shot in range(len(clip.info.shots))]


def _mean(values: np.ndarray) -> float:
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else float("nan")


def _high(values: np.ndarray) -> float:
    """95th percentile of what is known."""
    finite = values[np.isfinite(values)]
    return float(np.quantile(finite, 0.95)) if len(finite) else float("nan")


def _drawn(looked: Sequence[Sample], worst: list[int], draw: Callable[[int], np.ndarray]) -> dict[int, np.ndarray]:
    place = {sample.t: k for k, sample in enumerate(looked)}
    return {t: draw(place[t]) for t in worst}


def _edges(clip: Clip, looked: Sequence[Sample], plates: dict[int, Plate]) -> Topic:
    found = [edges(sample, plates[sample.shot]) for sample in looked]
    wide = clip.info.width / looked[0].small.shape[1]  # pixels of the video to one that was measured
    values = {"doubtful_share": np.array([each.share for each in found]),
              "edge_flicker_px": wide * np.array([each.edge for each in found]),
              "border_flicker_px": wide * np.array([each.border for each in found])}
    numbers = {name: _mean(each) for name, each in values.items()}
    share, edge, border = numbers.values()
    if np.isnan(share):
        return Topic(Score("hair edges", "unknown", "the head's outline is not in the picture"), {}, "")
    text = (f"along {100 * share:.0f} % of the head's outline hair and background are too alike to tell, or the background was "
            f"never seen; the outline flickers by {_px(edge)}, the border to neck and clothes by {_px(border)}")
    bad = (values["doubtful_share"] / LIMITS["doubtful_share"].fair
           + np.nan_to_num(values["edge_flicker_px"]) / LIMITS["edge_flicker_px"].fair)
    worst = pick_worst(np.array([sample.t for sample in looked]), bad)

    def draw(k: int) -> np.ndarray:
        marked = mark(looked[k].picture, found[k].doubtful)
        return _head_crop(looked[k], mark(marked, found[k].jumps, JUMPS))

    return Topic(_score("hair edges", clip, numbers, _by_shot(clip, looked, values), text, worst), _drawn(looked, worst, draw),
                 "where alpha along the head is in doubt (pink), and where it or the label jumps to the next frame (yellow)")


def _plate(clip: Clip, looked: Sequence[Sample], plates: dict[int, Plate]) -> Topic:
    masks = [ring(sample) for sample in looked]
    seen = [plates[sample.shot].seen for sample in looked]
    if any(each is None for each in seen):
        return Topic(Score("background", "unknown", "it is not recorded what of the background was seen"), {}, "")
    hidden = [mask & ~each for mask, each in zip(masks, seen) if each is not None]
    unseen = np.array([off.sum() / mask.sum() if mask.any() else np.nan for off, mask in zip(hidden, masks)])
    whole = np.array([np.mean(each) for each in seen if each is not None])
    values = {"seen_share": whole, "ring_unseen_share": unseen}
    numbers = {name: _mean(each) for name, each in values.items()}
    text = (f"{100 * numbers['seen_share']:.0f} % of the background was seen, of the ring along the head's outline, which turns "
            f"uncover, {100 * (1 - numbers['ring_unseen_share']):.0f} %")
    worst = pick_worst(np.array([sample.t for sample in looked]), unseen)
    pictures = _drawn(looked, worst, lambda k: _head_crop(looked[k], mark(looked[k].picture, hidden[k])))
    return Topic(_score("background", clip, numbers, _by_shot(clip, looked, values), text, worst), pictures,
                 f"where what is behind was never seen, within {100 * RING:.0f} % of the picture's width of the outline")


def _poses(clip: Clip, looked: Sequence[Sample], residuals: Residuals | None, earlier: Sequence[Score]) -> Topic:
    if residuals is None:
        kept = next((score for score in earlier if score.topic == "head poses"), None)
        return Topic(kept or Score("head poses", "unknown", "the clip holds no residuals of its tracking"), {}, "")
    good, shot_of = good_frames(clip.info.excluded, clip.info.frames), clip.shot_of_frames()
    speed = head_speed(clip.load_poses(), shot_of)

    def of(chosen: np.ndarray) -> dict[str, float]:
        corners, detector = residuals.corners[chosen], residuals.detector[chosen]
        return {"corner_median_px": _median(corners), "corner_p95_px": _high(corners), "detector_median_px": _median(detector),
                "detector_p95_px": _high(detector), "lost_share": _mean(1 - residuals.followed[chosen]),
                "speed_p95": _high(speed[chosen])}

    numbers = of(good)
    shots = [{"shot": shot + 1} | of(good & (shot_of == shot)) for shot in range(len(clip.info.shots))]
    text = (f"in half of the frames tracked points of the skin lie within {_px(numbers['corner_median_px'])} of the fitted head, "
            f"in 95 % within {_px(numbers['corner_p95_px'])} (the detector's points {_px(numbers['detector_median_px'])} and "
            f"{_px(numbers['detector_p95_px'])}); {100 * numbers['lost_share']:.0f} % of the points are lost; the head turns by "
            f"up to {numbers['speed_p95']:.0f}° a second")
    if numbers["speed_p95"] > STRONG_SPEED:
        text += ", so much that training will have to refine the poses by the pictures"
    worst = worst_poses(clip, residuals)
    pictures = _drawn(looked, worst, lambda k: _corners(looked[k], clip.info.width, *residuals.examples[looked[k].t]))
    return Topic(_score("head poses", clip, numbers, shots, text, worst), pictures,
                 f"tracked points of the skin (green) and their error, {LONGER} times as long (pink)")


def _torso(clip: Clip, looked: Sequence[Sample]) -> Topic:
    found = torso_fits(clip, looked)
    rms = np.array([each.rms for each in found])
    values = {"torso_rms": rms, "torso_outlier_share": np.array([each.share for each in found])}
    numbers = {name: _mean(each) for name, each in values.items()} | {"torso_rms_p95": _high(rms)}
    if np.isnan(numbers["torso_rms"]):
        return Topic(Score("torso", "unknown", "hardly anything of the torso is in the picture"), {}, "")
    text = (f"one picture of the clothes, moved with the torso, misses the frames by {numbers['torso_rms']:.1f} grey levels, in "
            f"the worst twentieth by {numbers['torso_rms_p95']:.1f}; {100 * numbers['torso_outlier_share']:.1f} % of it is quite "
            "different (hands, hair, folds)")
    worst = pick_worst(np.array([sample.t for sample in looked]), np.where(values["torso_outlier_share"] > 0, rms, np.nan))
    pictures = _drawn(looked, worst, lambda k: mark(looked[k].picture, found[k].off))
    return Topic(_score("torso", clip, numbers, _by_shot(clip, looked, values), text, worst), pictures,
                 "where a frame differs from the moved picture of the clothes")


def head_speed(poses: np.ndarray, shot_of: np.ndarray) -> np.ndarray:
    """Poses (T,4,4) and the shot of each frame (T,) -> degrees a second that the head turns from the frame before, (T,); NaN at
    the start of a shot."""
    turns = np.einsum("tij,tij->t", poses[1:, :3, :3].astype(float), poses[:-1, :3, :3].astype(float))
    speed = FPS * np.degrees(np.arccos(np.clip((turns - 1) / 2, -1, 1)))
    return np.concatenate([[np.nan], np.where(np.diff(shot_of) == 0, speed, np.nan)])


def _median(values: np.ndarray) -> float:
    finite = values[np.isfinite(values)]
    return float(np.median(finite)) if len(finite) else float("nan")


def _px(value: float) -> str:
    return "an unknown distance" if np.isnan(value) else f"{value:.2f} px"


def mark(picture: np.ndarray, mask: np.ndarray, color: tuple[int, int, int] = MARK) -> np.ndarray:
    """Picture (h,w,3) with a mask of any size tinted."""
    at = cv2.resize(mask.astype(np.uint8), picture.shape[1::-1], interpolation=cv2.INTER_NEAREST) > 0
    out = picture.copy()
    out[at] = (0.35 * picture[at] + 0.65 * np.array(color)).astype(np.uint8)
    return out


def _head_crop(sample: Sample, picture: np.ndarray) -> np.ndarray:
    """The square of a picture of a sample that its head and the ring around it fill."""
    rows, columns = np.nonzero(sample.head > 127)
    if not len(rows):
        return picture
    scale = len(picture) / len(sample.head)
    low, high = np.array([columns.min(), rows.min()]) * scale, np.array([columns.max(), rows.max()]) * scale
    side = MARGIN * float((high - low).max()) + 2 * RING * len(picture)
    return _square(picture, (low + high) / 2, side)


def _square(picture: np.ndarray, middle: np.ndarray, side: float) -> np.ndarray:
    """A square of `side` pixels about `middle` (x, y), moved and cut so that it lies in the picture."""
    side = int(min(side, *picture.shape[:2]))
    x, y = np.clip(np.round(middle - side / 2).astype(int), 0, np.array(picture.shape[1::-1]) - side)
    return picture[y : y + side, x : x + side]


def _corners(sample: Sample, width: int, seen: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """The face with its corners where they were `seen` (n,2), pixels of a video `width` wide, and lines towards `expected`."""
    low, high = seen.min(0), seen.max(0)
    side = 1.6 * float((high - low).max())
    corner = (low + high) / 2 - side / 2
    scale, kept = 300 / side, len(sample.picture) / width
    turn = np.array([[scale / kept, 0, -scale * corner[0]], [0, scale / kept, -scale * corner[1]]])
    out = cv2.warpAffine(sample.picture, turn, (300, 300), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    ends = seen + LONGER * (expected - seen)
    for start, end in zip(*(np.round((points - corner) * scale * 16 - 8).astype(int).tolist() for points in (seen, ends))):
        cv2.line(out, start, end, MARK, 1, cv2.LINE_AA, 4)
        cv2.circle(out, start, 24, FOUND, -1, cv2.LINE_AA, 4)
    return out
