"""Charts of report.html as HTML and SVG: curves over time, histogram, bars; and the style and script of the page.

A chart is an SVG of the lines alone, which stretches with the page, between HTML labels, which do not.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from process_data.report.speech_coverage import SpeechCoverage
from shared.clip import ClipInfo
from shared.landmarks import FPS

POINTS = 1500  # most points of a curve
DENSE = 4  # a curve over more than DENSE * POINTS frames looks like a band and is drawn finer
MANY_SHOTS = 30  # cuts of more shots are drawn fainter
WIDTH, HEIGHT = 1000, 120  # units of a chart's SVG
BINS = 28  # of the histogram
SPLIT_COLORS = 3  # colours --split0 … --split2 of the style

STYLE = """
:root { color-scheme: light dark; --page: #f6f7f9; --card: #ffffff; --ink: #1c2230; --soft: #5d6678; --line: #e1e5ec;
--grid: #edf0f4; --accent: #2f6fde; --good: #1f9d63; --goodback: #e7f6ee; --warn: #b97400; --warnback: #fff5df;
--bad: #d6455d; --badfill: #d6455d2e; --c0: #2f6fde; --c1: #e07b28; --c2: #1f9d63; --split0: #7fa8ee; --split1: #f0b27a;
--split2: #b79be8 }
@media (prefers-color-scheme: dark) { :root { --page: #12151b; --card: #1b2028; --ink: #e6e9ef; --soft: #98a2b3;
--line: #2d3440; --grid: #262c36; --accent: #6fa0f5; --good: #4cc38a; --goodback: #16291f; --warn: #e9b04b;
--warnback: #2c2514; --bad: #f0788c; --badfill: #f0788c38; --c0: #6fa0f5; --c1: #f0a05a; --c2: #4cc38a; --split0: #3f67ad;
--split1: #a56a34; --split2: #6d55a3 } }
* { box-sizing: border-box } html { -webkit-text-size-adjust: 100% }
body { font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; margin: 0; background: var(--page);
color: var(--ink) }
main { max-width: 1120px; margin: 0 auto; padding: 32px 20px 64px }
h1 { font-size: 26px; line-height: 1.2; margin: 0 0 4px; overflow-wrap: anywhere } h2 { font-size: 18px; margin: 40px 0 4px }
h3 { font-size: 15px; margin: 0; font-weight: 600 } h3 .small { font-weight: 400; margin-left: 4px }
p { margin: 0 0 12px; max-width: 72ch } .soft { color: var(--soft) }
.small { font-size: 13px }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px; margin: 20px 0 0 }
.tile, .card { background: var(--card); border: 1px solid var(--line); border-radius: 10px }
.tile { padding: 12px 14px } .tile b { display: block; font-size: 20px; line-height: 1.3; font-weight: 600 }
.tile span { display: block; font-size: 13px; line-height: 1.4; color: var(--soft) } .card { padding: 16px }
.notes { display: grid; gap: 8px; margin: 12px 0 0; padding: 0; list-style: none }
.notes li { padding: 10px 14px; border-radius: 8px; border-left: 4px solid var(--warn); background: var(--warnback) }
.notes li.fine { border-color: var(--good); background: var(--goodback) }
.topics { display: grid; grid-template-columns: minmax(0, 1fr); gap: 12px; margin-top: 12px } .topics p { margin-bottom: 8px }
.topics .sheet { margin-top: 8px }
.verdict { font-size: 13px; line-height: 1; padding: 4px 10px; border-radius: 999px; color: var(--soft); background: var(--grid) }
.verdict.good { color: var(--good); background: var(--goodback) }
.verdict.fair { color: var(--warn); background: var(--warnback) }
.verdict.poor { color: var(--bad); background: var(--badfill) }
.sheet { display: grid; grid-template-columns: repeat(auto-fill, minmax(230px, 1fr)); gap: 12px; margin-top: 12px }
figure { margin: 0 } figure img { width: 100%; height: auto; display: block; border-radius: 8px; background: var(--grid) }
figcaption { font-size: 13px; color: var(--soft); margin-top: 4px; line-height: 1.4 }
.legend { display: flex; flex-wrap: wrap; gap: 2px 16px; font-size: 13px; color: var(--soft) }
.legend i { display: inline-block; width: 12px; height: 12px; border-radius: 3px; margin-right: 6px; vertical-align: -1px }
.legend i.stroke { height: 3px; width: 16px; vertical-align: 4px; border-radius: 2px }
.legend b { color: var(--ink); font-weight: 600; font-variant-numeric: tabular-nums; margin-left: 6px }
.charts { display: grid; gap: 20px; margin-top: 12px }
.head { display: flex; flex-wrap: wrap; gap: 2px 20px; align-items: baseline; margin-bottom: 8px }
.plot { display: grid; grid-template-columns: 40px minmax(0, 1fr); grid-template-rows: 120px 20px }
.plot.low { grid-template-rows: 34px 20px } .plot.high { grid-template-rows: 220px 20px }
.plot svg { grid-area: 1 / 2; width: 100%; height: 100%; display: block; overflow: hidden; border-radius: 4px }
.area { grid-area: 1 / 2; position: relative; cursor: crosshair; touch-action: pan-y }
.area i { position: absolute; top: 0; bottom: 0; width: 1px; background: var(--ink); opacity: .55; display: none;
pointer-events: none }
.y, .x { position: relative; font-size: 12px; line-height: 16px; color: var(--soft); font-variant-numeric: tabular-nums }
.y { grid-area: 1 / 1 } .y span { position: absolute; right: 8px; transform: translateY(-50%) }
.x { grid-area: 2 / 2 } .x span { position: absolute; top: 4px; transform: translateX(-50%); white-space: nowrap }
.x span.first { transform: none } .x span.last { transform: translateX(-100%) }
.grid { stroke: var(--grid); stroke-width: 1 } .cut { stroke: var(--soft); stroke-width: 1; stroke-dasharray: 3 3 }
.skip { fill: var(--badfill) } .curve { fill: none; stroke-width: 1.4; stroke-linejoin: round }
.curve.dense { stroke-width: .8; opacity: .6 } .cut.dense { opacity: .3 }
.grid, .cut, .curve { vector-effect: non-scaling-stroke } .bar { fill: var(--c0) }
.two { display: grid; grid-template-columns: minmax(0, 2fr) minmax(0, 3fr); gap: 20px; margin-top: 12px; align-items: start }
.cover { display: grid; gap: 12px } .cover .row { display: grid; grid-template-columns: minmax(0, 1fr) auto; gap: 2px 12px }
.cover .track { grid-column: 1 / 3; height: 8px; border-radius: 4px; background: var(--grid); overflow: hidden }
.cover .track div { height: 100%; border-radius: 4px; background: var(--good) }
.cover .scarce .track div { background: var(--warn) }
.cover .num { font-variant-numeric: tabular-nums; font-size: 13px; color: var(--soft); white-space: nowrap; align-self: center }
.cover .scarce .num { color: var(--warn) } .cover .say { grid-column: 1 / 3; font-size: 13px; color: var(--soft) }
.scroll { overflow-x: auto } table { border-collapse: collapse; width: 100% }
th, td { text-align: left; padding: 7px 12px 7px 0; border-bottom: 1px solid var(--line); vertical-align: top }
tr:last-child td { border-bottom: 0 } th { font-size: 13px; font-weight: 600; color: var(--soft) }
.n { width: 1%; padding-right: 28px; font-variant-numeric: tabular-nums; white-space: nowrap }
@media (max-width: 720px) { main { padding: 20px 14px 48px } .two { grid-template-columns: minmax(0, 1fr) }
.sheet { grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 8px } .x span.odd { display: none } .card { padding: 12px }
.tiles { grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 8px } .tile b { font-size: 18px } h1 { font-size: 22px } }
"""

# one crosshair through all charts; the values under it stand beside the names of the curves
SCRIPT = """
const data = JSON.parse(document.getElementById("curves").textContent);
const areas = [...document.querySelectorAll(".area[data-time]")];
function show(share) {
  const frame = share * (data.frames - 1);
  for (const area of areas) { const line = area.querySelector("i");
    line.style.display = "block"; line.style.left = 100 * share + "%"; }
  for (const out of document.querySelectorAll("b[data-curve]")) {
    const curve = data.curves[out.dataset.curve];
    let low = 0, high = curve.frame.length - 1;
    while (low < high) { const mid = (low + high) >> 1; if (curve.frame[mid] < frame) low = mid + 1; else high = mid; }
    if (low > 0 && frame - curve.frame[low - 1] < curve.frame[low] - frame) low--;
    const value = curve.value[low];
    out.textContent = value === null ? "–" : value.toFixed(curve.digits);
  }
  for (const out of document.querySelectorAll("b[data-now]")) out.textContent = (frame / data.fps).toFixed(2) + " s";
}
for (const area of areas) {
  area.addEventListener("pointermove", e => {
    const box = area.getBoundingClientRect();
    show(Math.min(1, Math.max(0, (e.clientX - box.left) / box.width)));
  });
  area.addEventListener("pointerleave", () => {
    document.querySelectorAll(".area i").forEach(line => line.style.display = "none");
    document.querySelectorAll("b[data-curve], b[data-now]").forEach(out => out.textContent = "");
  });
}
"""


@dataclass(frozen=True)
class Curve:
    """One value for each frame (T,), NaN where unknown; `digits`: decimals to show."""

    name: str
    values: np.ndarray
    digits: int = 1


def thin(values: np.ndarray, limit: int = POINTS) -> np.ndarray:
    """Curve (T,) -> at most `limit` frame numbers, ascending: the lowest and highest value of each of limit/2 equal parts.

    So a peak of one frame remains visible in an hour. Of a part that is all NaN the first frame is kept, as a gap.
    """
    count = len(values)
    if count <= limit:
        return np.arange(count)
    kept: set[int] = set()
    for piece in np.array_split(np.arange(count), limit // 2):
        known = piece[np.isfinite(values[piece])]
        kept.update((int(known[values[known].argmin()]), int(known[values[known].argmax()])) if len(known) else (int(piece[0]),))
    return np.array(sorted(kept))


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """About `count` multiples of 1, 2 or 5 · 10ⁿ within [low, high]."""
    raw = max(high - low, 1e-9) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * k for k in (1, 2, 5, 10) if power * k >= raw * 0.999)
    return [step * k for k in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _label(value: float) -> str:
    return f"{value:.6g}".replace("-", "−")


def curves_json(frames: int, curves: dict[str, list[Curve]], units: dict[str, str]) -> str:
    """The curves as JSON for a <script>: fps, frames and, by name, unit, digits, frame numbers and values (null = unknown).

    Curves of more than POINTS frames are thinned.
    """
    content = {}
    for title, group in curves.items():
        for curve in group:
            kept = thin(curve.values)
            content[f"{title}: {curve.name}"] = {
                "unit": units[title], "digits": curve.digits, "frame": kept.tolist(),
                "value": [round(float(v), curve.digits + 1) if np.isfinite(v) else None for v in curve.values[kept]]}
    return json.dumps({"fps": FPS, "frames": frames, "curves": content}, separators=(",", ":")).replace("</", "<\\/")


def time_axis(frames: int) -> str:
    """The axis in seconds below a chart over all frames."""
    seconds = max(frames - 1, 1) / FPS
    places = ticks(0, seconds, 8)
    spans = []
    for k, place in enumerate(places):
        share = 100 * place / seconds
        side = ("first" if k == 0 else "last" if share > 97 else "") + (" odd" if k % 2 else "")
        spans.append(f'<span class="{side}" style="left:{share:.2f}%">{_label(place)}{" s" if k == 0 else ""}</span>')
    return f'<div class="x">{"".join(spans)}</div>'


def _across(frame: float, frames: int) -> float:
    return min(frame / max(frames - 1, 1), 1.0) * WIDTH


def _marks(info: ClipInfo, height: float) -> str:
    """Excluded spans as shaded boxes and cuts as dashed lines."""
    out = []
    for span in info.excluded:
        left, right = _across(span.start, info.frames), _across(span.stop, info.frames)
        out.append(f'<rect class="skip" x="{left:.1f}" width="{max(right - left, 1.5):.1f}" y="0" height="{height}"/>')
    kind = "cut dense" if len(info.shots) > MANY_SHOTS else "cut"
    for shot in info.shots[1:]:
        x = _across(shot.start, info.frames)
        out.append(f'<line class="{kind}" x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{height}"/>')
    return "".join(out)


def _path(values: np.ndarray, low: float, high: float) -> str:
    """SVG path of a curve (T,) drawn between the values low and high, with gaps at NaN."""
    pieces, pen = [], "M"
    for t in thin(values):
        if np.isfinite(values[t]):
            y = HEIGHT * (high - values[t]) / (high - low)
            pieces.append(f"{pen}{_across(t, len(values)):.1f} {y:.1f}")
            pen = "L"
        else:
            pen = "M"
    return "".join(pieces)


def line_chart(title: str, unit: str, group: Sequence[Curve], info: ClipInfo, least: tuple[float, float] | None = None) -> str:
    """Curves over the whole clip with cuts and excluded spans; the value axis includes the range `least`."""
    known = np.concatenate([curve.values[np.isfinite(curve.values)] for curve in group])
    reach = np.concatenate([known, np.array(least or (), float)])
    low, high = (float(reach.min()), float(reach.max())) if len(reach) else (0.0, 1.0)
    room = max(0.05 * (high - low), 1e-3)
    low, high = low - room, high + room
    places = ticks(low, high, 5)

    def height(value: float) -> float:
        return 100 * (high - value) / (high - low)

    labels = "".join(f'<span style="top:{height(v):.1f}%">{_label(v)}</span>' for v in places)
    grid = "".join(f'<line class="grid" x1="0" x2="{WIDTH}" y1="{height(v) * HEIGHT / 100:.1f}" '
                   f'y2="{height(v) * HEIGHT / 100:.1f}"/>' for v in places)
    kind = "curve dense" if info.frames > DENSE * POINTS else "curve"
    lines = "".join(f'<path class="{kind}" style="stroke:var(--c{k})" d="{_path(curve.values, low, high)}"/>'
                    for k, curve in enumerate(group))
    legend = "".join(f'<span><i class="stroke" style="background:var(--c{k})"></i>{escape(curve.name)}'
                     f'<b data-curve="{escape(title)}: {escape(curve.name)}"></b></span>' for k, curve in enumerate(group))
    return (f'<div><div class="head"><h3>{escape(title)} <span class="soft small">{escape(unit)}</span></h3>'
            f'<div class="legend">{legend}</div></div><div class="plot"><div class="y">{labels}</div>'
            f'<div class="area" data-time><svg viewBox="0 0 {WIDTH} {HEIGHT}" preserveAspectRatio="none" role="img" '
            f'aria-label="{escape(title)} over time">{grid}{_marks(info, HEIGHT)}{lines}</svg><i></i></div>'
            f'{time_axis(info.frames)}</div></div>')


def split_chart(info: ClipInfo, good: dict[str, int]) -> str:
    """A strip over the whole clip that shows splits, cuts and excluded spans; `good`: number of good frames of each split."""
    color = {name: f"var(--split{k % SPLIT_COLORS})" for k, name in enumerate(info.split)}
    boxes = []
    for name, ranges in info.split.items():
        for start, stop in ranges:
            left, right = _across(start, info.frames), _across(stop, info.frames)
            boxes.append(f'<rect style="fill:{color[name]}" x="{left:.1f}" width="{max(right - left, 1):.1f}" y="6" '
                         'height="22"/>')
    legend = [f'<span><i style="background:{color[name]}"></i>{escape(name.replace("_", " "))}, '
              f'{good[name] / FPS:.1f} s good</span>' for name in info.split]
    if len(info.shots) > 1:
        legend.append('<span><i class="stroke" style="background:var(--soft)"></i>cut</span>')
    if info.excluded:
        legend.append('<span><i style="background:var(--badfill)"></i>skipped</span>')
    return (f'<div><div class="head"><h3>Use of the frames</h3><div class="legend">{"".join(legend)}'
            '<span><b data-now></b></span></div></div><div class="plot low"><div class="y"></div><div class="area" data-time>'
            f'<svg viewBox="0 0 {WIDTH} 34" preserveAspectRatio="none" role="img" aria-label="Splits of the clip">'
            f'{"".join(boxes)}{_marks(info, 34)}</svg><i></i></div>{time_axis(info.frames)}</div></div>')


def histogram(values: np.ndarray, unit: str, name: str) -> str:
    """Histogram of values (T,), in per cent of the frames; `name` is its label for screen readers."""
    low, high = float(values.min()), max(float(np.quantile(values, 0.999)), float(values.min()) + 1e-3)
    counts, edges = np.histogram(np.clip(values, low, high), BINS, (low, high))
    share = 100 * counts / len(values)
    top = max(float(share.max()) * 1.05, 1e-6)
    gap = WIDTH / BINS
    bars = "".join(f'<rect class="bar" x="{k * gap + gap * 0.08:.1f}" width="{gap * 0.84:.1f}" y="{HEIGHT * (1 - s / top):.1f}" '
                   f'height="{HEIGHT * s / top:.1f}"><title>{edges[k]:.1f} to {edges[k + 1]:.1f} {unit}: {s:.1f} %</title></rect>'
                   for k, s in enumerate(share))
    levels = ticks(0, top, 4)
    labels = "".join(f'<span style="top:{100 * (1 - v / top):.1f}%">{_label(v)}</span>' for v in levels)
    grid = "".join(f'<line class="grid" x1="0" x2="{WIDTH}" y1="{HEIGHT * (1 - v / top):.1f}" y2="{HEIGHT * (1 - v / top):.1f}"/>'
                   for v in levels)
    under = "".join(f'<span style="left:{100 * (v - low) / (high - low):.1f}%">{_label(v)}</span>' for v in ticks(low, high, 5))
    return (f'<div class="plot high"><div class="y">{labels}</div><div class="area" style="cursor:auto">'
            f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" preserveAspectRatio="none" role="img" aria-label="{escape(name)}">{grid}{bars}'
            f'</svg></div><div class="x">{under}</div></div>')


def coverage_bars(found: Sequence[SpeechCoverage]) -> str:
    """A bar for each class of speech, with advice under those that are scarce."""
    longest = max(max(c.seconds for c in found), 1e-6)
    rows = []
    for c in found:
        say = "" if c.enough else f'<div class="say">To add some: {escape(c.advice)}</div>'
        rows.append(f'<div class="row{"" if c.enough else " scarce"}"><div>{escape(c.name)}</div><div class="num">'
                    f'{c.seconds:.1f} s · {"enough" if c.enough else "scarce"}</div><div class="track">'
                    f'<div style="width:{100 * c.seconds / longest:.1f}%"></div></div>{say}</div>')
    return f'<div class="cover">{"".join(rows)}</div>'
