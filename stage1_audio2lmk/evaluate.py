"""Stage 1 beside its baselines on frames of a clip that no training saw, and on any other sound."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from shared.clip import Clip, good_frames
from shared.errors import TalkheadError
from shared.files import write_json
from shared.landmarks import FPS, LIPS, SAMPLES_PER_FRAME, lip_opening
from shared.media.audio_io import load_audio
from shared.media.spool import readable_again
from shared.metrics import correlation, lag_ms, landmark_distance, velocity_ratio
from shared.phones import load_phones, shifted
from shared.report_page import ReportPage
from stage1_audio2lmk.audio.features import levels
from stage1_audio2lmk.baselines import REACH, mean_face, ridge
from stage1_audio2lmk.closure import CONTACT, SETTLE_FRAMES, SOUNDS, gap_figures, opening_scale, phone_figures
from stage1_audio2lmk.dataset import clip_samples
from stage1_audio2lmk.stream import Predictor, load_predictor, predict

Table = dict[str, dict[str, float]]
QUIET = {"silence mm": "digital silence", "noise mm": "white noise −40 dB"}  # columns of the first table, and their sounds
HELD, NOBODY, PHONES, OTHERS = ("stage 1 against its baselines", "lips where nobody speaks", "lips by phones",
                                "other recordings")  # titles of tables
IN_SYNC, LEAST_LAG_MS = "tracked, lag taken out", 40  # row of a video that is so much out of step with its sound
LEAST_FRAMES = 10  # of a split, for a correlation to be one
CLOSED = 0.001  # metres above the neutral's opening
PAUSE_DB, SILENT_DB = 30, -60  # below the loud parts of a recording; of full scale, whatever the loud parts
PAUSE_MARGIN = 5  # frames of a pause on each side that belong to the speech beside it
LEAST_PAUSE = 5  # frames left over
STRIP_FRAMES = 500  # of one plot, 20 s
STRIPS = 6  # plots of one curve at most
STRIP_SIZE = (1400, 220)  # pixels
MARGIN = 40  # pixels left of and below a plot's curves
COLOURS = {"tracked": (30, 30, 30), "stage 1": (214, 60, 40), "ridge ±4": (70, 120, 200), "base, zero-shot": (40, 150, 80)}
PROTOCOL = (
    "Lips px: mean distance of the 20 lip points in pixels of a 512-wide picture. Opening r: correlation of the inner-lip "
    "opening. Velocity: mean speed of the lips over the true one. Lag: how late the opening comes. Silence mm: lip opening above "
    "the neutral's in digital silence; noise mm: in white noise at −40 dB. Ridge sees ± 4 frames of log-mel; it and the mean "
    "face are of the train split.")
NOBODY_SPEAKS = (
    "Lip opening above the neutral's in sound in which nobody speaks, all of it made: mean and 95th percentile, in millimetres. "
    "Levels are below full scale; breath is at −35 dB, music at −20 dB.")
BY_PHONES = (
    f"Lips touch below the opening of closed lips plus {CONTACT:g} of the clip's spread (from there to the 90th percentile of "
    "the tracked opening); closed are the neutral's, or the tracked 5th percentile where that is lower. Contact: share of /p b "
    "m/ in which they do. False contact: share of the frames of unrounded vowels, 80 ms away from /p b m f v w/ and pauses, in "
    "which they do. Apex ms: how far the lowest moment is from the tracked one, median; 120 where the lips do not dip. Peaks: "
    "height of the widest opening in open vowels over the tracked one, median. After speech: mean speed of the lips in the "
    "first 200 ms of a pause. None is good alone: a closed mouth has every contact, an open one every peak; and the tracked "
    "row, which is the video itself, is not perfect either. Phones are where the sound has them; of a video out of step with "
    "its sound, a row shows its lips with that lag taken out.")
NO_PHONES = ("Contacts by phones are left out, since the clip has no phones.json; `python -m tools.phone_times CLIP` writes it, "
             "and docs/formats.md describes it.")
OTHER_SOUND = (
    "Sound without a true face. Amplitude: standard deviation of the lip opening over the tracked one's in the train split. "
    f"Closed: share of the frames whose lips are less than {1000 * CLOSED:g} mm further open than the neutral's. Pauses mm: mean "
    f"opening above the neutral's where the sound is {PAUSE_DB} dB below its loud parts or near silence; none where it never is.")
NOTES = {HELD: PROTOCOL, NOBODY: NOBODY_SPEAKS, PHONES: BY_PHONES, OTHERS: OTHER_SOUND}


def compare(predicted: np.ndarray, true: np.ndarray, poses: np.ndarray, intrinsics: tuple[float, ...]) -> dict[str, float]:
    """Landmarks (T,68,3) against the tracked ones, both projected with the tracked poses (T,4,4).

    "lips px": mean distance of the 20 lip points in pixels of a 512-wide picture. "opening r": correlation of the signed
    inner-lip opening. "velocity": mean lip speed over the true one. "lag ms": how late the opening comes.
    """
    opening, truth = lip_opening(predicted), lip_opening(true)
    return {"lips px": landmark_distance(predicted, true, LIPS, poses, intrinsics, size=512),
            "opening r": correlation(opening, truth), "velocity": velocity_ratio(predicted, true, LIPS),
            "lag ms": lag_ms(truth, opening)}


def quiet_gaps(predictor: Predictor, neutral: np.ndarray) -> dict[str, np.ndarray]:
    """Lip opening above the neutral's (n,) in each of SOUNDS, in metres, after a second to settle."""
    rest = lip_opening(neutral.reshape(1, 68, 3))
    return {name: lip_opening(predict(predictor, make(), neutral, blinks=False)[SETTLE_FRAMES:]) - rest
            for name, make in SOUNDS.items()}


def quiet_openings(gaps: dict[str, np.ndarray]) -> dict[str, float]:
    """`quiet_gaps` -> mean lip opening in each of QUIET sounds above the neutral's, in millimetres."""
    return {column: float(1000 * gaps[name].mean()) for column, name in QUIET.items()}


class Curves(NamedTuple):
    """Lip openings (T,) in metres by name, the level of their sound (T,) in dB, and the frames (n,) that are of interest."""

    openings: dict[str, np.ndarray]
    level: np.ndarray
    frames: np.ndarray


def evaluate(clip: Clip, checkpoint: Path, *, splits: Iterable[str], device: torch.device,
             base: Path | None = None) -> dict[str, dict[str, float]]:
    """{"split: stage 1": {…}, "split: ridge ±4": {…}, "split: mean face": {…}}; the baselines are fitted on "train".

    With `base`, another checkpoint, there are rows "split: base, zero-shot" too. Raises TalkheadError for an unknown split
    or one with next to no good frames.
    """
    return _tables(clip, _predictors(checkpoint, base, device), list(splits))[0][HELD]


def _predictors(checkpoint: Path, base: Path | None, device: torch.device, encoder: str | None = None) -> dict[str, Predictor]:
    ours = {"stage 1": load_predictor(checkpoint, device, encoder)}
    return ours | ({"base, zero-shot": load_predictor(base, device)} if base else {})


def _tables(clip: Clip, predictors: dict[str, Predictor], splits: list[str]) -> tuple[dict[str, Table], dict[str, Curves]]:
    """The table of `evaluate` and those of closure.py by title, and the curves by split."""
    info = clip.info
    held = {split: _enough_frames(clip, split) for split in splits}
    landmarks, poses, neutral = clip.load_landmarks(), clip.load_poses(), clip.load_neutral()
    marks = load_phones(clip.phones) if clip.phones.is_file() else []
    samples, train = clip_samples(clip), _enough_frames(clip, "train")
    rows = {name: predict(predictor, samples, neutral, blinks=False) for name, predictor in predictors.items()}
    gaps = {name: quiet_gaps(predictor, neutral) for name, predictor in predictors.items()}
    rows["ridge ±4"] = ridge(samples, landmarks, train)
    gaps["ridge ±4"] = _quiet_ridge(samples, landmarks, train, neutral)
    rows["mean face"] = mean_face(landmarks, train, info.frames)
    gaps["mean face"] = dict.fromkeys(SOUNDS, lip_opening(rows["mean face"][:1]) - lip_opening(neutral))
    shown = {"tracked": landmarks} | {name: row for name, row in rows.items() if name != "mean face"}
    openings = {name: lip_opening(row) for name, row in shown.items()}
    tables = {HELD: {f"{split}: {name}": compare(row[frames], landmarks[frames], poses[frames], info.intrinsics)
                     | quiet_openings(gaps[name]) for split, frames in held.items() for name, row in rows.items()},
              NOBODY: {sound: {f"{name} {column}": value for name, found in gaps.items()
                               for column, value in gap_figures(found[sound]).items()} for sound in SOUNDS}}
    if marks:
        scale = opening_scale(openings["tracked"][good_frames(info.excluded, info.frames)], float(lip_opening(neutral)[0]))
        tables[PHONES] = {}
        for split, frames in held.items():
            seen, late = np.isin(np.arange(info.frames), frames), info.lag_ms or 0.0
            table = {"tracked": phone_figures(landmarks, landmarks, scale, marks, seen)}
            if abs(late) >= LEAST_LAG_MS:
                table[IN_SYNC] = phone_figures(landmarks, landmarks, scale, shifted(marks, late / 1000), seen)
            table |= {name: phone_figures(row, landmarks, scale, marks, seen) for name, row in rows.items()}
            tables[PHONES] |= {f"{split}: {name}": row for name, row in table.items()}
    return tables, {split: Curves(openings, levels(samples), frames) for split, frames in held.items()}


def _enough_frames(clip: Clip, split: str) -> np.ndarray:
    """Frames of a split. Raises TalkheadError if it has next to none."""
    frames = clip.split(split)
    if len(frames) < LEAST_FRAMES:
        raise TalkheadError(f"{clip.root}: the split {split!r} holds {len(frames)} good frames; at least {LEAST_FRAMES} "
                            "are needed to measure it")
    return frames


def _quiet_ridge(samples: np.ndarray, landmarks: np.ndarray, train: np.ndarray, neutral: np.ndarray) -> dict[str, np.ndarray]:
    """Like `quiet_gaps`, of ridge: the sounds follow the clip; frames that hear the next one are left out."""
    sounds = {name: make() for name, make in SOUNDS.items()}
    counts = [len(sound) // SAMPLES_PER_FRAME for sound in sounds.values()]
    rows = ridge(np.concatenate([samples, *sounds.values()]), np.pad(landmarks, ((0, sum(counts)), (0, 0), (0, 0))), train)
    parts = np.split(lip_opening(rows) - lip_opening(neutral), len(landmarks) + np.cumsum([0, *counts]))[1:]
    return {name: part[SETTLE_FRAMES : len(part) - REACH] for name, part in zip(sounds, parts)}


def pauses(level: np.ndarray) -> np.ndarray:
    """Level (T,) in dB -> (T,) bool: frames in the inside of a pause; none where fewer than LEAST_PAUSE are."""
    loud = (level > max(np.percentile(level, 95) - PAUSE_DB, SILENT_DB)).astype(float)
    near = np.convolve(np.pad(loud, PAUSE_MARGIN), np.ones(2 * PAUSE_MARGIN + 1), "valid")
    quiet = near < 0.5
    return quiet if quiet.sum() >= LEAST_PAUSE else np.zeros(len(level), bool)


def opening_stats(opening: np.ndarray, level: np.ndarray, rest: float, spread: float) -> dict[str, float]:
    """What can be said of a lip opening (T,) without its truth, with the level (T,) of its sound in dB.

    `rest` is the neutral's opening and `spread` the standard deviation of the opening in training, in metres.
    """
    row = {"seconds": len(opening) / FPS, "amplitude": float(opening.std() / max(spread, 1e-9)),
           "closed": float((opening < rest + CLOSED).mean())}
    quiet = pauses(level)
    return row | ({"pauses mm": float(1000 * (opening[quiet].mean() - rest))} if quiet.any() else {})


def _other_sound(clip: Clip, predictors: dict[str, Predictor],
                 sounds: dict[str, np.ndarray]) -> tuple[Table, dict[str, Curves]]:
    """Table and curves of sounds (n,) by name without a face, after the tracked train split to compare with."""
    neutral, train = clip.load_neutral(), clip.split("train")
    rest, truth = float(lip_opening(neutral)[0]), lip_opening(clip.load_landmarks())[train]
    table = {"train split, tracked": opening_stats(truth, levels(clip_samples(clip))[train], rest, float(truth.std()))}
    curves = {}
    for name, samples in sounds.items():
        level = levels(samples)
        openings = {which: lip_opening(predict(predictor, samples, neutral, blinks=False))
                    for which, predictor in predictors.items()}
        curves[name] = Curves(openings, level, np.arange(len(level)))
        for which, opening in openings.items():
            table[f"{name}: {which}"] = opening_stats(opening, level, rest, float(truth.std()))
    return table, curves


def _load_sound(file: Path) -> np.ndarray:
    """The sound (n,) of a file or a pipe."""
    with readable_again(file) as sound:
        return load_audio(sound)


def _names(files: Sequence[Path]) -> dict[str, Path]:
    """Files by name, or as they were given where two have the same name."""
    files = list(dict.fromkeys(files))
    names = [file.name for file in files]
    return {file.name if names.count(file.name) == 1 else str(file): file for file in files}


def evaluate_audio2lmk(clip: Clip, checkpoint: Path, folder: Path, *, splits: Iterable[str], device: torch.device,
                       base: Path | None = None, audio: Sequence[Path] = (), encoder: str | None = None) -> dict[str, Table]:
    """{title: {row: {column: number}}} of the splits and of other recordings; writes eval.json and eval.html to `folder`.

    Plots show the lip opening over time. A recording may be a pipe, or `-` for standard input. `encoder` says where the
    checkpoint's encoder lies now. Raises TalkheadError like `evaluate`, and for a recording that cannot be read.
    """
    predictors = _predictors(checkpoint, base, device, encoder)
    sounds = {name: _load_sound(file) for name, file in _names(audio).items()}
    tables, curves = _tables(clip, predictors, list(splits))
    if sounds:
        tables[OTHERS], others = _other_sound(clip, predictors, sounds)
        curves |= others
    rest = float(lip_opening(clip.load_neutral())[0])
    page = ReportPage(f"Audio to landmarks on {clip.info.name}", STRIP_SIZE[0])
    for title in tables:
        page.table(title, tables[title])
        page.text(NOTES[title])
    if PHONES not in tables:
        page.text(NO_PHONES)
    for name, curve in curves.items():
        page.heading(f"Lip opening, {name}")
        add_plots(page, curve, rest)
    write_json(folder / "eval.json", {"clip": clip.info.name, "tables": tables, "curves": {
        name: {"frames": curve.frames.tolist(), "opening mm": {
            which: np.round(1000 * opening[curve.frames], 3).tolist() for which, opening in curve.openings.items()}}
        for name, curve in curves.items()}})
    page.write(folder / "eval.html")
    return tables


def add_plots(page: ReportPage, curve: Curves, rest: float) -> None:
    """Plots of the curves, STRIP_FRAMES each; `rest` is the neutral's opening in metres."""
    names = ", ".join(curve.openings)
    starts = range(int(curve.frames[0]), int(curve.frames[-1]) + 1, STRIP_FRAMES)
    every = [opening[curve.frames] for opening in curve.openings.values()]
    low, high = 1000 * min(rest, *(x.min() for x in every)), 1000 * max(rest + CLOSED, *(x.max() for x in every))
    for start in starts[:STRIPS]:
        stop = min(start + STRIP_FRAMES, int(curve.frames[-1]) + 1)
        if not ((curve.frames >= start) & (curve.frames < stop)).any():
            continue
        page.figure(plot(curve, rest, start, stop, low, high), f"{start / FPS:.1f} to {stop / FPS:.1f} s: {names}")
    if len(starts) > STRIPS:
        page.text(f"The first {STRIPS * STRIP_FRAMES / FPS:.0f} s are shown.")


def plot(curve: Curves, rest: float, start: int, stop: int, low: float, high: float) -> np.ndarray:
    """Lip openings at start ≤ t < stop from `low` to `high` mm over time, over the sound's level in grey -> uint8 (H,W,3).

    The dashed line is the neutral's opening, `rest` metres. Curves break where frames are missing.
    """
    width, height = STRIP_SIZE
    image = Image.new("RGB", STRIP_SIZE, "white")
    draw, font = ImageDraw.Draw(image), ImageFont.load_default()

    def across(t: float) -> float:
        return MARGIN + (t - start) / STRIP_FRAMES * (width - MARGIN - 10)

    def up(mm: float) -> float:
        return height - MARGIN / 2 - (mm - low) / max(high - low, 1e-6) * (height - MARGIN)

    for t in range(start, stop):
        tall = (height - MARGIN) / 2 * float(np.clip((curve.level[t] + 60) / 60, 0, 1))
        draw.rectangle([across(t), up(low) - tall, across(t + 1), up(low)], fill=(228, 228, 228))
    for second in range(-(-start // FPS), stop // FPS + 1):
        draw.line([across(second * FPS), up(low), across(second * FPS), up(low) + 4], fill=(120, 120, 120))
        draw.text((across(second * FPS) - 6, up(low) + 6), str(second), fill=(90, 90, 90), font=font)
    for mm in range(int(np.ceil(low)), int(high) + 1, 2 if high - low < 16 else 5):
        draw.text((4, up(mm) - 6), f"{mm} mm", fill=(90, 90, 90), font=font)
    for x in range(MARGIN, width - 10, 12):
        draw.line([x, up(1000 * rest), x + 6, up(1000 * rest)], fill=(150, 150, 150))
    frames = curve.frames[(curve.frames >= start) & (curve.frames < stop)]
    for part in np.split(frames, np.flatnonzero(np.diff(frames) != 1) + 1):
        for name, opening in curve.openings.items():
            points = [(across(t + 0.5), up(1000 * float(opening[t]))) for t in part]
            draw.line(points, fill=COLOURS[name], width=2, joint="curve")
    for k, name in enumerate(curve.openings):
        draw.text((MARGIN + 10 + 110 * k, 2), name, fill=COLOURS[name], font=font)
    return np.asarray(image)
