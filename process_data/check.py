"""A recording judged before anything is trained: framing, light, sharpness, sound, and what it shows of speech.

All of the sound is measured, and of the picture all of a short video or BURSTS stretches spread over a long one, with the
detector of `process` but without its fits. Seconds of mouth shapes are those of the stretches, times the whole over them.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from process_data import lip_lag
from process_data.check_picture import background_change, face_blur, face_light, flicker_of, small_gray
from process_data.check_sound import Sound, measure_sound
from process_data.config import ProcessConfig
from process_data.detection.base import Detector, Scheme
from process_data.detection.detector import open_detector
from process_data.quality import LAG_WARNING_MS
from process_data.report.speech_coverage import CLASSES, CLOSED, classify
from process_data.shots import find_cuts, shots_between
from process_data.tracking.bundle_adjustment import initial_poses, mean_shape, unproject
from process_data.tracking.eyes import blink
from process_data.tracking.track import head_space
from shared.arrays import runs
from shared.camera import euler_degrees
from shared.errors import TalkheadError
from shared.landmarks import FPS, SAMPLES_PER_FRAME, lip_opening
from shared.media.audio_io import load_audio
from shared.media.video_io import VideoInfo, probe, read_video
from shared.progress import progress

BURSTS, BURST = 8, 75  # stretches of so many frames that are looked at; of a video that is not longer, every frame
PICTURE_EVERY = 5  # frames between two whose light and sharpness are measured
HEAD_OF_FACE = 1.45  # height of a head over that from brows to chin
BELOW = 0.35  # heights of the face that the picture goes on below the chin where shoulders are seen
SHOULDERS = 1.5  # in widths of the face: what of the person is so wide below the chin are shoulders
BLINK = 0.6  # closing of the lids from which an eye is shut
LAG_MARGIN = lip_lag.REACH // lip_lag.HOPS_PER_FRAME  # frames of sound beyond a stretch that its lag may need
MOTION_BLUR = 0.08  # above the usual blur: a frame in motion
VERDICTS = ("good", "fair", "poor", "unknown")
TEETH = ("ten seconds of teeth and wide vowels: smile, the teeth showing, and "
         + CLASSES["spread (ee, ih)"][1])


@dataclass(frozen=True)
class Measure:
    """One row: what was measured, its value and unit ("" with None where it is unknown), a verdict of VERDICTS, and what to
    do, unless it is good. Rows of the group "speech" say what to record in addition, the others what to change."""

    group: str
    name: str
    value: float | None
    unit: str
    verdict: str
    advice: str = ""

    @property
    def text(self) -> str:
        """Value and unit as they are printed."""
        if self.value is None:
            return "not known"
        digits = 0 if abs(self.value) >= 20 or self.value == round(self.value) else 1 if abs(self.value) >= 1 else 2
        return f"{self.value:.{digits}f} {self.unit}".strip()


@dataclass(frozen=True)
class VideoCheck:
    """What `check_video` found: seconds of the video and of its picture that was looked at, and all measures in order."""

    video: str
    seconds: float
    seconds_seen: float
    measures: list[Measure]

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "VideoCheck":
        """What `dataclasses.asdict` gave."""
        return cls(**{**values, "measures": [Measure(**row) for row in values["measures"]]})

    def to_change(self) -> list[str]:
        """What to do better, the poor first."""
        return self._advice(lambda measure: measure.group != "speech")

    def to_record(self) -> list[str]:
        """What to record in addition, the scarcest first."""
        return self._advice(lambda measure: measure.group == "speech")

    def _advice(self, chosen: Callable[[Measure], bool]) -> list[str]:
        rows = [measure for measure in self.measures if measure.advice and chosen(measure)]
        return list(dict.fromkeys(row.advice for verdict in ("poor", "fair") for row in rows if row.verdict == verdict))


class Row(NamedTuple):
    """How a value is judged: it is good from `good` on and fair from `fair` on, upwards or, where good < fair, downwards;
    `over`: the values from which it is no longer good, and no longer fair, with the advice for that side."""

    group: str
    unit: str
    fair: float
    good: float
    advice: str
    over: tuple[float, float, str] | None = None


# the limits of process, of common practice, or set on anchor71s, speaker10s, portrait20s, generated15s_3 and _7, and the actor
HEAD_SIZE = "the head should take 1/4 to 1/2 of the picture's height"
ROWS = {
    "face, brows to chin": Row("framing", "px", 80, 150, "come closer to the camera, or film with more pixels (1080p)"),
    "head, of the shorter side": Row("framing", "%", 15, 25, f"come closer; {HEAD_SIZE}",
                                     (65, 85, f"step back, until the shoulders are seen; {HEAD_SIZE}")),
    "room above the head": Row("framing", "% of the head", -5, 8, "leave some room above the head; nothing of it may be cut off"),
    "face in the picture": Row("framing", "% of the time", 95, 99.5, "stay in the picture, facing the camera, all the time"),
    "shoulders seen": Row("framing", "% of the time", 50, 90, "let neck and shoulders be seen below the head"),
    "other faces": Row("framing", "% of the time", 20, 1, "be alone in the picture, without a mirror or an inset"),
    "brightest skin": Row("light", "of 255", 95, 130, "put more light on the face"),
    "burnt-out skin": Row("light", "%", 8, 2, "put less light on the face, or lower the exposure"),
    "light from one side": Row("light", "stops", 1.6, 0.8, "light the face evenly from the front, as a window before you does"),
    "flicker": Row("light", "%", 1.5, 0.6, "use daylight or lamps that do not flicker, and lock the exposure"),
    "blur of the face": Row("sharpness", "of 1", 0.66, 0.56, "focus on the face and lock it, clean the lens, use more light"),
    "blur in motion": Row("sharpness", "% of the time", 20, 5, "use more light, so that the shutter is short, and move calmly"),
    "camera motion": Row("background", "% of the picture", 1.0, 0.3, "put the camera on a tripod"),
    "moving background": Row("background", "%", 15, 4, "choose a background in which nothing moves"),
    "level of the speech": Row("sound", "dBFS", -45, -35, "come nearer to the microphone, or turn it up",
                               (-12, -6, "turn the microphone down")),
    "speech over noise": Row("sound", "dB", 18, 28, "record in a quiet room, with the microphone near, without music"),
    "clipped": Row("sound", "%", 0.1, 0.01, "turn the microphone down"),
    "echo, RT60": Row("sound", "s", 0.6, 0.4, "record in a room with soft furniture, nearer to the microphone"),
    "lag of the lips": Row("sound", "ms", 120, LAG_WARNING_MS, "sound and picture are apart; process them with --fix-sync"),
    "speech": Row("speech", "s", 20, 60, "one to three minutes of varied speech"),
    "listening, mouth shut": Row("speech", "s", 2, 10, "half a minute of listening: look into the camera with the mouth shut"),
    "lips closed (p, b, m)": Row("speech", "s", 0.5, 1.5, CLASSES["closed lips (p, b, m)"][1]),
    "wide open (ah, ow)": Row("speech", "s", 0.5, 1.5, CLASSES["wide open (ah, ow)"][1]),
    "spread (ee)": Row("speech", "s", 0.5, 1.5, TEETH),
    "rounded (oo)": Row("speech", "s", 0.5, 1.5, CLASSES["rounded (oo, oh, w)"][1]),
    "blinks": Row("speech", "", 2, 8, "blink as you usually do"),
    "head turned, range": Row("speech", "degrees", 6, 20, "turn the head slowly by 20 degrees to either side while you speak"),
    "head nodded, range": Row("speech", "degrees", 4, 12, "raise and lower the head slowly by 10 degrees while you speak"),
}
SHAPES = {"lips closed (p, b, m)": "closed lips (p, b, m)", "wide open (ah, ow)": "wide open (ah, ow)",
          "spread (ee)": "spread (ee, ih)", "rounded (oo)": "rounded (oo, oh, w)"}  # rows and their classes of speech


def judged(name: str, value: float | None) -> Measure:
    """The row `name` of ROWS for a value; unknown for None and NaN."""
    row = ROWS[name]
    if value is None or math.isnan(value):
        return Measure(row.group, name, None, "", "unknown")
    advice, upwards = row.advice, row.good > row.fair
    verdict = next((word for word, limit in (("good", row.good), ("fair", row.fair))
                    if (value >= limit if upwards else value <= limit)), "poor")
    if row.over is not None and value > row.over[0]:
        verdict, advice = "fair" if value <= row.over[1] else "poor", row.over[2]
    return Measure(row.group, name, float(value), row.unit, verdict, "" if verdict == "good" else advice)


def check_video(video: Path | str, *, config: ProcessConfig = ProcessConfig(), quiet: bool = False) -> VideoCheck:
    """Judge a recording within seconds, writing nothing. Raises TalkheadError where it cannot be used: no video, no sound, no
    face, shorter than `config.min_good_seconds`."""
    video = Path(video)
    info = probe(video)
    samples = load_audio(video)
    if info.duration < config.min_good_seconds:
        raise TalkheadError(f"{video} lasts {info.duration:.1f} s; at least {config.min_good_seconds:g} s are needed, 1 to 3 "
                            "minutes are good")
    sound = measure_sound(samples)
    with closing(open_detector()) as detector:
        seen = look(video, info, detector, quiet)
        found = np.isfinite(seen.points[:, 0, 0])
        if not found.any():
            raise TalkheadError(f"{video}: no face is found in any of {len(found)} frames; film one person, facing the camera")
        rows = [*_framing(seen, found, info, detector.scheme), *_light_and_sharpness(seen), *_background(seen),
                *_sound(sound), *_speech(seen, found, sound, samples, info, detector.scheme, config)]
    return VideoCheck(video.name, info.duration, len(found) / FPS, rows)


@dataclass
class Seen:
    """What the detector and the eye of `check_picture` saw in T frames of the stretches `spans` (start, stop).

    points (T,P,3) pixels of the largest face, NaN without one; faces (T,) their number; level (T,) mean grey level of the
    picture; light (n,3), blur (n,) of the face and whether shoulders show (n,), in every PICTURE_EVERY-th frame with a face;
    shift and changed of the background in the longest shot of each stretch.
    """

    spans: list[tuple[int, int]]
    points: np.ndarray
    faces: np.ndarray
    level: np.ndarray
    light: np.ndarray
    blur: np.ndarray
    shift: list[float | None]
    changed: list[float | None]
    shoulders: list[bool]

    def split(self, values: np.ndarray) -> Iterator[np.ndarray]:
        """Values (T, ...) of each stretch."""
        yield from np.split(values, np.cumsum([stop - start for start, stop in self.spans])[:-1])


def stretches(frames: int) -> list[tuple[int, int]]:
    """Stretches (start, stop) of a video of so many frames that are looked at."""
    if frames <= BURSTS * BURST:
        return [(0, frames)]
    starts = np.linspace(0, frames - BURST, BURSTS).round().astype(int)
    return [(int(start), int(start) + BURST) for start in starts]


def look(video: Path, info: VideoInfo, detector: Detector, quiet: bool = False) -> Seen:
    """Look at the stretches of a video."""
    seen = Seen([], np.zeros(0), np.zeros(0), np.zeros(0), np.zeros(0), np.zeros(0), [], [], [])
    nobody = np.full((detector.scheme.count, 3), np.nan, np.float32)
    points: list[np.ndarray] = []
    faces, level, light, blur = [], [], [], []
    spans = stretches(info.frames_estimate)
    with progress(spans[-1][1] if len(spans) == 1 else BURSTS * BURST, "looking", quiet=quiet, unit="frame") as bar:
        for start, stop in spans:
            detector.restart()
            kept: list[tuple[int, np.ndarray, np.ndarray]] = []  # frame of the stretch, grey picture, matte
            change: list[float] = []
            before: np.ndarray | None = None
            for k, frame in enumerate(read_video(video, start=start, stop=stop)):
                found = detector.everyone(frame)
                largest = max(found, key=lambda face: np.ptp(face[:, 1]), default=nobody)
                own = largest[detector.scheme.landmarks68, :2]
                small = small_gray(frame)
                change.append(float(cv2.absdiff(small, before).mean()) / 255 if before is not None else 0.0)
                before = small
                if k % PICTURE_EVERY == 0:
                    kept.append((k, small, detector.person(frame)))
                    if len(found):
                        light.append(face_light(frame, own))
                        blur.append(face_blur(frame, own))
                        seen.shoulders.append(_shows_shoulders(kept[-1][2], own / [frame.shape[1], frame.shape[0]]))
                points.append(largest)
                faces.append(len(found))
                level.append(float(small.mean()))
                bar.update()
            if kept:
                seen.spans.append((start, start + len(change)))
                first, last = max(shots_between(find_cuts(np.array(change)), len(change)), key=lambda shot: shot[1] - shot[0])
                shot = [row for row in kept if first <= row[0] < last] or kept
                shift, changed = background_change(shot[0][1], shot[-1][1], [matte for *_, matte in shot])
                seen.shift.append(shift)
                seen.changed.append(changed)
    seen.points, seen.faces, seen.level = np.array(points), np.array(faces), np.array(level)
    seen.light, seen.blur = np.array(light).reshape(-1, 3), np.array(blur)
    return seen


def _shows_shoulders(matte: np.ndarray, face: np.ndarray) -> bool:
    """Whether a matte (h,w) 0–255 is wide below the chin of a face (68,2), in shares of the picture, and goes on there."""
    width, height = np.ptp(face, axis=0) * [matte.shape[1], matte.shape[0]]
    below = matte[max(0, int(face[8, 1] * matte.shape[0])) :] > 127
    return bool(len(below) > BELOW * height and below.sum(axis=1).max() > SHOULDERS * width)


def _framing(seen: Seen, found: np.ndarray, info: VideoInfo, scheme: Scheme) -> list[Measure]:
    face = seen.points[found][:, scheme.landmarks68, :2]
    height = face[..., 1].max(1) - face[..., 1].min(1)
    head = HEAD_OF_FACE * height
    above = face[:, 8, 1] - head  # the head's top
    inside = (face.min((1, 2)) >= 0) & (face[..., 0].max(1) < info.width) & (face[..., 1].max(1) < info.height)
    return [judged("face, brows to chin", float(np.median(height))),
            judged("head, of the shorter side", 100 * float(np.median(head)) / min(info.width, info.height)),
            judged("room above the head", 100 * float(np.median(above / head))),
            judged("face in the picture", 100 * float(inside.sum()) / len(found)),
            judged("shoulders seen", 100 * float(np.mean(seen.shoulders))),
            judged("other faces", 100 * float((seen.faces > 1).mean()))]


def _light_and_sharpness(seen: Seen) -> list[Measure]:
    bright, burnt, sides = np.nanmedian(seen.light, axis=0)
    usual = float(np.median(seen.blur))
    return [judged("brightest skin", bright), judged("burnt-out skin", 100 * burnt), judged("light from one side", sides),
            judged("flicker", 100 * float(np.median([flicker_of(part) for part in seen.split(seen.level)]))),
            judged("blur of the face", usual),
            judged("blur in motion", 100 * float((seen.blur > usual + MOTION_BLUR).mean()))]


def _background(seen: Seen) -> list[Measure]:
    def largest(values: list[float | None]) -> float | None:
        known = [100 * value for value in values if value is not None]
        return float(np.quantile(known, 0.75)) if known else None

    return [judged("camera motion", largest(seen.shift)), judged("moving background", largest(seen.changed))]


def _sound(sound: Sound) -> list[Measure]:
    level = sound.speech_level
    return [judged("level of the speech", level), judged("speech over noise", level - sound.noise_level),
            judged("clipped", 100 * sound.clipped), judged("echo, RT60", sound.reverberation)]


def _speech(seen: Seen, found: np.ndarray, sound: Sound, samples: np.ndarray, info: VideoInfo, scheme: Scheme,
            config: ProcessConfig) -> list[Measure]:
    numbers = np.concatenate([np.arange(start, stop) for start, stop in seen.spans])
    samples = np.pad(samples, (0, max(0, (int(numbers[-1]) + 1) * SAMPLES_PER_FRAME - len(samples))))
    heard = samples[: len(samples) // SAMPLES_PER_FRAME * SAMPLES_PER_FRAME].reshape(-1, SAMPLES_PER_FRAME)
    landmarks, poses = _landmarks(seen.points[found], scheme, info, config)
    sounds = heard[numbers[found]].reshape(-1)
    classes = classify(sounds, landmarks)
    shut = classes["silence"] & (1000 * lip_opening(landmarks) < CLOSED)
    whole = info.frames_estimate / len(found)  # of the video, in what was seen of it
    angles = euler_degrees(poses[:, :3, :3])
    yaw, pitch = (float(np.ptp(np.quantile(angles[:, k], (0.02, 0.98)))) for k in (0, 1))
    shutting = [len(runs(np.flatnonzero(part))) for part in seen.split(_spread(blink(landmarks).min(axis=1) > BLINK, found))]
    lag = _lag(seen, landmarks, found, heard)
    return [judged("lag of the lips", None if lag is None else abs(lag)), judged("speech", sound.speech_seconds),
            judged("listening, mouth shut", whole * shut.sum() / FPS),
            *(judged(row, whole * classes[name].sum() / FPS) for row, name in SHAPES.items()),
            judged("blinks", round(whole * sum(shutting))), judged("head turned, range", yaw),
            judged("head nodded, range", pitch)]


def _landmarks(points: np.ndarray, scheme: Scheme, info: VideoInfo, config: ProcessConfig) -> tuple[np.ndarray, np.ndarray]:
    """The detector's points (n,P,3) -> landmarks (n,68,3) metres in head space, poses (n,4,4), without the fits of `process`."""
    face = points[:, scheme.landmarks68, 1]
    focal = config.focal_sizes * config.crop_faces * float(np.median(np.ptp(face, axis=1)))
    intrinsics = (focal, focal, info.width / 2, info.height / 2)
    shape = mean_shape(points, scheme.rigid, scheme.rigid_weight, scheme.landmarks68)
    poses = initial_poses(points[:, scheme.rigid], shape[scheme.rigid], scheme.rigid_weight, intrinsics)
    landmarks = unproject(points[:, scheme.landmarks68, :2], shape[scheme.landmarks68, 2], poses, intrinsics)
    space = head_space(landmarks, np.ones(len(landmarks), bool))
    return space.landmarks(landmarks), space.poses(poses)


def _spread(values: np.ndarray, found: np.ndarray) -> np.ndarray:
    """Values (n, ...) of the frames that are `found` (T,) -> (T, ...), those of the frame before (or the first) in between."""
    return values[np.maximum(np.cumsum(found) - 1, 0)]


def _lag(seen: Seen, landmarks: np.ndarray, found: np.ndarray, heard: np.ndarray) -> float | None:
    """`lip_lag.estimate_lag` over all stretches, each with the sound around it, under lips that rest there: so that every
    lag that may be tried is judged by the same frames. heard (F,640): the sound of each frame of the video."""
    rows, numbers = [], []
    for (start, stop), part in zip(seen.spans, seen.split(_spread(landmarks, found))):
        before, after = min(LAG_MARGIN, start), min(LAG_MARGIN, len(heard) - stop)
        rows.append(np.concatenate([part[:1].repeat(before, 0), part, part[-1:].repeat(after, 0)]))
        numbers.append(np.arange(start - before, stop + after))
    return lip_lag.estimate_lag(heard[np.concatenate(numbers)].reshape(-1), np.concatenate(rows))
