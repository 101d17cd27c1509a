"""report.html, to look at before training: one self-contained file that needs no network; and quality.json, its scores."""

import base64
from collections.abc import Callable, Iterator, Sequence
from html import escape

import cv2
import numpy as np

from process_data.report.charts import (
    SCRIPT,
    STYLE,
    Curve,
    coverage_bars,
    curves_json,
    histogram,
    line_chart,
    split_chart,
)
from process_data.report.footage import Sample, reduced, sample_frames, samples
from process_data.report.scores import read_scores, write_scores
from process_data.report.speech_coverage import SpeechCoverage, speech_coverage
from process_data.report.topics import Topic, judge, worst_poses
from process_data.tracking.eyes import blink
from process_data.tracking.residuals import Residuals
from shared.camera import euler_degrees, project
from shared.clip import HEAD, MOUTH, NECK, TORSO, Clip, ClipInfo, good_frames
from shared.files import write_text
from shared.landmarks import FPS, NOSE, SAMPLES_PER_FRAME, lip_opening
from shared.media.video_io import read_png

SHEET_FRAMES = 8  # of a contact sheet
THUMBNAIL = 300  # side of its pictures, pixels
FACE_MARGIN = 1.35  # the contact sheet shows this many times the landmarks' extent
PLATES = 8  # most background plates shown
ROWS = 40  # most rows of the table of excluded spans
NAMES = {TORSO: "torso", NECK: "neck", HEAD: "head", MOUTH: "mouth"}
LABEL_COLORS = {TORSO: (66, 135, 245), NECK: (245, 191, 66), HEAD: (66, 200, 120), MOUTH: (220, 60, 90)}
BACKDROP = (255, 60, 190)  # pink behind the cut-out: shows its holes
HATCH = (255, 60, 190)  # pink stripes on unseen background
IN_SYNC_MS = 40  # one frame: a smaller lag counts as in sync
# numbers of quality.json that are shown by shot: their column, factor and form
COLUMNS = {"doubtful_share": ("outline in doubt", 100, "{:.0f} %"), "edge_flicker_px": ("outline flickers", 1, "{:.2f} px"),
           "border_flicker_px": ("border flickers", 1, "{:.2f} px"), "seen_share": ("background seen", 100, "{:.0f} %"),
           "ring_unseen_share": ("ring not seen", 100, "{:.0f} %"), "corner_median_px": ("half within", 1, "{:.2f} px"),
           "corner_p95_px": ("95 % within", 1, "{:.2f} px"), "lost_share": ("points lost", 100, "{:.0f} %"),
           "speed_p95": ("turns a second", 1, "{:.0f}°"), "torso_rms": ("off by", 1, "{:.1f} grey levels"),
           "torso_outlier_share": ("quite different", 100, "{:.1f} %")}
UNITS = {"Lips": "mm apart", "Lids": "0 open, 1 closed", "Gaze": "eye widths", "Head": "degrees", "Torso": "pixels"}


def _picture(image: np.ndarray) -> str:
    size = min(THUMBNAIL, image.shape[0])
    small = cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA)
    ok, data = cv2.imencode(".jpg", cv2.cvtColor(small, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 84])
    assert ok
    return "data:image/jpeg;base64," + base64.b64encode(data.tobytes()).decode()


def _figure(image: np.ndarray, caption: str) -> str:
    return (f'<figure><img loading="lazy" width="{THUMBNAIL}" height="{THUMBNAIL}" alt="{escape(caption)}" '
            f'src="{_picture(image)}"><figcaption>{escape(caption)}</figcaption></figure>')


def draw_landmarks(frame: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """The face of a frame (H,W,3) as a square of THUMBNAIL pixels, with dots at the landmarks (68,2) pixels."""
    low, high = pixels.min(axis=0), pixels.max(axis=0)
    side = FACE_MARGIN * float((high - low).max())
    scale = THUMBNAIL / max(side, 1.0)
    corner = (low + high) / 2 - side / 2
    turn = np.array([[scale, 0, -scale * corner[0]], [0, scale, -scale * corner[1]]])
    # a picture much larger than the thumbnail is blurred first, against aliasing
    soft = cv2.GaussianBlur(frame, (0, 0), 0.5 / scale) if scale < 0.6 else frame
    out = cv2.warpAffine(soft, turn, (THUMBNAIL, THUMBNAIL), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    for u, v in (pixels - corner) * scale:
        cv2.circle(out, (round(u * 16 - 8), round(v * 16 - 8)), 28, (40, 255, 90), -1, cv2.LINE_AA, 4)
    return out


def draw_labels(frame: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Frame (H,W,3) tinted by its labels (H,W)."""
    out = frame.astype(np.float32) * 0.6
    for label, color in LABEL_COLORS.items():
        out[labels == label] += 0.4 * np.array(color)
    return out.clip(0, 255).astype(np.uint8)


def draw_cut_out(frame: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Frame (H,W,3) over the BACKDROP by alpha (H,W) 0–255."""
    share = alpha[..., None].astype(np.float32) / 255
    return (frame * share + np.array(BACKDROP, np.float32) * (1 - share)).round().astype(np.uint8)


def draw_unseen(plate: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Background plate (H,W,3) with stripes where `seen` (H,W) bool is false."""
    rows, columns = np.indices(seen.shape)
    stripe = max(4, seen.shape[0] // 48)
    hatched = ~seen & ((rows + columns) // stripe % 2 == 0)
    out = plate.copy()
    out[hatched] = (0.35 * plate[hatched] + 0.65 * np.array(HATCH)).astype(np.uint8)
    return out


def jitter(pixels: np.ndarray) -> float:
    """Landmarks (T,68,2) pixels -> standard deviation of the noise of the nose, pixels.

    From second differences, whose variance is six times that of white noise; by the median over frames, fast movements of
    the head do not count.
    """
    if len(pixels) < 3:
        return 0.0
    change = np.diff(pixels[:, NOSE].astype(float), n=2, axis=0)
    return float(np.median(np.sqrt(np.square(change).mean(axis=(1, 2)) / 6)))


def _one(stream: Callable[[int, int], Iterator[np.ndarray]], t: int) -> np.ndarray:
    return next(iter(stream(t, t + 1)))


def _chosen(looked: Sequence[Sample]) -> list[Sample]:
    """SHEET_FRAMES of the frames looked at, evenly spread."""
    places = (np.arange(SHEET_FRAMES) + 0.5) / SHEET_FRAMES * len(looked)
    return [looked[k] for k in sorted({int(place) for place in places})]


def _time(t: int) -> str:
    return f"{t / FPS:.2f} s, frame {t}"


def _sheets(clip: Clip, looked: Sequence[Sample], pixels: np.ndarray) -> str:
    """Contact sheets of landmarks and labels and, if the clip has alpha, of the cut-out. pixels (T,68,2): landmarks."""
    tracked, labelled, cut_out = [], [], []
    for sample in _chosen(looked):
        t, frame = sample.t, sample.picture
        side = len(frame)
        tracked.append(_figure(draw_landmarks(frame, pixels[t] * side / clip.info.width), _time(t)))
        labels = cv2.resize(_one(clip.label_frames, t), (side, side), interpolation=cv2.INTER_NEAREST)
        labelled.append(_figure(draw_labels(frame, labels), _time(t)))
        if clip.alpha.is_file():
            cut_out.append(_figure(draw_cut_out(frame, reduced(_one(clip.alpha_frames, t), side)), _time(t)))
    legend = "".join(f'<span><i style="background:rgb{LABEL_COLORS[k]}"></i>{name}</span>' for k, name in NAMES.items())
    out = ('<h2>Tracked landmarks</h2><p class="soft">The dots should sit on lips, lids, brows, nose and jaw.</p>'
           f'<div class="sheet">{"".join(tracked)}</div><h2>Labels</h2><div class="legend">{legend}</div>'
           f'<div class="sheet">{"".join(labelled)}</div>')
    if cut_out:
        out += ('<h2>Cut-out</h2><p class="soft">Pink inside the person is a hole; background around the hair is too wide a '
                f'cut.</p><div class="sheet">{"".join(cut_out)}</div>')
    return out


def _plates(clip: Clip) -> str:
    """Background plates of the longest shots, hatched where the background was never seen."""
    shots = clip.info.shots
    longest = sorted(sorted(range(len(shots)), key=lambda k: shots[k].start - shots[k].stop)[:PLATES])
    figures = []
    for k in longest:
        plate, caption = read_png(clip.plate_path(k)), f"{shots[k].start / FPS:.1f}–{shots[k].stop / FPS:.1f} s"
        if len(shots) > 1:
            caption = f"shot {k + 1}: {caption}"
        if clip.seen_path(k).is_file():
            seen = read_png(clip.seen_path(k))[..., 0] > 127
            plate, caption = draw_unseen(plate, seen), f"{caption}, {100 * (1 - seen.mean()):.0f} % never seen"
        figures.append(_figure(plate, caption))
    more = f' The {PLATES} longest of {len(shots)} shots are shown.' if len(shots) > PLATES else ""
    return ('<h2>Background</h2><p class="soft">What is behind the person. Striped where it is never seen and had to be made '
            f'up.{more}</p><div class="sheet">{"".join(figures)}</div>')


def _topics(clip: Clip, topics: Sequence[Topic]) -> str:
    """A card for each topic: verdict, what was found, what to do better, the shots, the worst frames."""
    cards = []
    for topic in topics:
        score = topic.score
        advice = f'<p><b>To film it better:</b> {escape(score.advice)}.</p>' if score.advice else ""
        sheet = "".join(_figure(topic.pictures[t], _time(t)) for t in score.worst if t in topic.pictures)
        pictures = (f'<p class="soft small">The worst frames; marked: {escape(topic.marked)}.</p><div class="sheet">{sheet}</div>'
                    if sheet else "")
        cards.append(f'<div class="card"><div class="head"><h3>{escape(score.topic[:1].upper() + score.topic[1:])}</h3>'
                     f'<span class="verdict {score.verdict}">{score.verdict}</span></div>'
                     f'<p>{escape(score.found[:1].upper() + score.found[1:])}.</p>{advice}{_shot_table(clip.info, score.shots)}'
                     f'{pictures}</div>')
    return ('<h2>What the footage allows</h2><p class="soft">How well hair, background, head and clothes can be learned from '
            f'this recording. The numbers are in quality.json.</p><div class="topics">{"".join(cards)}</div>')


def _shot_table(info: ClipInfo, shots: Sequence[dict[str, float]]) -> str:
    """The numbers of each shot, if there are several."""
    shown = [row for row in shots if len(row) > 1][:PLATES]
    if len(info.shots) < 2 or not shown:
        return ""
    names = [name for name in dict.fromkeys(key for row in shown for key in row) if name in COLUMNS]
    heads = "".join(f'<th class="n">{COLUMNS[name][0]}</th>' for name in names)

    def cell(name: str, row: dict[str, float]) -> str:
        _, factor, form = COLUMNS[name]
        return f'<td class="n">{form.format(factor * row[name]) if name in row else "–"}</td>'

    rows = "".join(f'<tr><td class="n">{row["shot"]:.0f}</td>{"".join(cell(name, row) for name in names)}</tr>' for row in shown)
    rest = len(shots) - len(shown)
    more = f'<p class="soft small">And {rest} more in quality.json.</p>' if rest else ""
    return f'<div class="scroll"><table><tr><th class="n">Shot</th>{heads}</tr>{rows}</table></div>{more}'


def _curves(clip: Clip, landmarks: np.ndarray, poses: np.ndarray) -> dict[str, list[Curve]]:
    angles, torso, lids = euler_degrees(poses[:, :3, :3]), clip.load_torso_motion(), blink(landmarks)
    gaze = clip.load_gaze()
    curves = {"Lips": [Curve("opening", 1000 * lip_opening(landmarks))],
              "Lids": [Curve("right", lids[:, 0], 2), Curve("left", lids[:, 1], 2)]}
    if not np.isnan(gaze).all():
        curves["Gaze"] = [Curve("to the right", gaze[:, 0], 3), Curve("down", gaze[:, 1], 3)]
    curves["Head"] = [Curve(name, angles[:, k]) for k, name in enumerate(("yaw", "pitch", "roll"))]
    curves["Torso"] = [Curve("to the right", torso[:, 0]), Curve("down", torso[:, 1])]
    return curves


def _length(seconds: float) -> str:
    whole = int(round(seconds))
    return f"{seconds:.1f} s" if seconds < 60 else f"{whole // 60} min {whole % 60} s"


def _lag(lag: float | None) -> tuple[str, str]:
    if lag is None:
        return "unknown", "lips and sound: lag cannot be told"
    if abs(lag) < IN_SYNC_MS:
        return "in sync", f"lips {abs(lag):.0f} ms {'after' if lag > 0 else 'before'} the sound"
    return f"{abs(lag):.0f} ms", f"lips {'after' if lag > 0 else 'before'} the sound"


def _tiles(clip: Clip, pixels: np.ndarray) -> str:
    info = clip.info
    facts = [(_length(info.frames / FPS), f"{info.frames} frames at {FPS} a second"),
             (f"{info.width} × {info.height}", f"pixels; square of {info.crop[2]} at {info.crop[0]}, {info.crop[1]}"),
             (f"{100 * good_frames(info.excluded, info.frames).mean():.3g} %", "of the frames are good"),
             _lag(info.lag_ms),
             (f"{jitter(pixels):.2f} px", "noise of the landmarks"),
             (str(len(info.shots)), "shot, no cut" if len(info.shots) == 1 else "shots")]
    tiles = "".join(f'<div class="tile"><b>{escape(value)}</b><span>{escape(what)}</span></div>' for value, what in facts)
    return f'<div class="tiles">{tiles}</div>'


def _notes(info: ClipInfo, found: list[SpeechCoverage]) -> str:
    """The warnings of the clip, and one line that names the classes of speech that are scarce."""
    notes = [text[:1].upper() + text[1:] + ("" if text.endswith((".", "!")) else ".") for text in info.warnings]
    scarce = [c.name for c in found if not c.enough]
    if scarce:
        notes.append(f"Little of: {', '.join(scarce)}. How to add some is said under “What the recording shows”.")
    if not notes:
        return '<ul class="notes"><li class="fine">Nothing to complain about.</li></ul>'
    return f'<ul class="notes">{"".join(f"<li>{escape(n)}</li>" for n in notes)}</ul>'


def _excluded_table(info: ClipInfo) -> str:
    if not info.excluded:
        return '<p class="soft">None: every frame can be used.</p>'
    rows = "".join(f'<tr><td class="n">{span.start / FPS:.2f}–{span.stop / FPS:.2f}</td>'
                   f'<td class="n">{span.stop - span.start}</td><td>{escape(span.reason)}</td></tr>'
                   for span in info.excluded[:ROWS])
    rest = info.excluded[ROWS:]
    left_out = sum(span.stop - span.start for span in rest)
    more = f'<p class="soft small">And {len(rest)} more, {left_out} frames; see clip.json.</p>' if rest else ""
    return ('<p class="soft">Training skips these frames.</p><div class="card scroll"><table><tr><th class="n">Seconds</th>'
            f'<th class="n">Frames</th><th>Why</th></tr>{rows}</table></div>{more}')


def write_report(clip: Clip, residuals: Residuals | None = None) -> None:
    """Write report.html and quality.json of a finished clip.

    `residuals` are those of the clip's tracking; without them the score of the poses is that of an earlier quality.json. The page
    holds all pictures and charts; the values of the charts are JSON in its element `curves`. Only some frames are looked at.
    Raises TalkheadError if a file of the clip is missing or wrong.
    """
    info = clip.info
    looked = list(samples(clip, np.union1d(sample_frames(clip), np.array(worst_poses(clip, residuals), int))))
    topics = judge(clip, looked, residuals, read_scores(clip.quality))
    write_scores(clip.quality, [topic.score for topic in topics])
    landmarks, poses = clip.load_landmarks(), clip.load_poses()
    pixels = project(landmarks, poses, info.intrinsics)
    curves = _curves(clip, landmarks, poses)
    found = speech_coverage(clip.load_audio()[: SAMPLES_PER_FRAME * info.frames], landmarks)
    least = {"Lips": (0.0, 5.0), "Lids": (0.0, 1.0), "Head": (-5.0, 5.0), "Torso": (-2.0, 2.0)}
    charts = "".join(line_chart(title, UNITS[title], group, info, least.get(title)) for title, group in curves.items())
    page = f"""<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{escape(info.name)}: report</title><style>{STYLE}</style></head><body><main>
<h1>{escape(info.name)}</h1><div class="soft">made from {escape(info.source_name)}</div>{_tiles(clip, pixels)}
<h2>Before you train</h2>{_notes(info, found)}
{_topics(clip, topics)}
{_sheets(clip, looked, pixels)}
{_plates(clip)}
<h2>Curves</h2><p class="soft">Over the whole clip, in seconds. Dashed lines are cuts, shaded stretches are skipped.</p>
<div class="card charts">{split_chart(info, {name: len(clip.split(name)) for name in info.split})}{charts}</div>
<h2>What the recording shows</h2><p class="soft">Sorted by loudness, spectrum and lip shape, not by understanding the words:
take the seconds as a guide. An avatar speaks badly what it has hardly seen.</p>
<div class="two"><div class="card">
<div class="head"><h3>Mouth opening <span class="soft small">mm, % of the frames</span></h3></div>
{histogram(1000 * lip_opening(landmarks), "mm", "Histogram of the mouth opening")}</div>
<div class="card"><div class="head"><h3>Sounds and shapes</h3></div>{coverage_bars(found)}</div></div>
<h2>Bad stretches</h2>{_excluded_table(info)}
</main><script type="application/json" id="curves">{curves_json(info.frames, curves, UNITS)}</script>
<script>{SCRIPT}</script></body></html>
"""
    write_text(clip.report, page)
