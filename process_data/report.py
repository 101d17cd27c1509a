"""report.html: what a person looks at before training. One self-contained file."""

import base64
from html import escape

import cv2
import numpy as np

from shared.camera import euler_degrees, project
from shared.clip import HEAD, MOUTH, NECK, TORSO, Clip
from shared.files import atomic_path
from shared.landmarks import FPS, eye_opening, lip_opening

SHEET_FRAMES = 8
THUMBNAIL = 320
LABEL_COLOURS = {TORSO: (66, 135, 245), NECK: (245, 191, 66), HEAD: (66, 200, 120), MOUTH: (220, 60, 90)}
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1180px; margin: 2rem auto; padding: 0 1rem; color: #1d2330;
background: #fafafa }
h1 { margin-bottom: 0 } h2 { margin-top: 2rem; font-size: 1.1rem } .facts { color: #667 }
.sheet { display: grid; grid-template-columns: repeat(auto-fill, minmax(260px, 1fr)); gap: 6px }
figure { margin: 0 } img { width: 100%; display: block; border-radius: 4px } figcaption { font-size: 12px; color: #667 }
.warn { background: #fff4d6; border-left: 4px solid #e0a800; padding: .5rem .8rem; margin: .4rem 0 }
.good { background: #e6f6ea; border-left: 4px solid #38a169; padding: .5rem .8rem }
svg { width: 100%; height: 130px; background: #fff; border: 1px solid #e3e6ec; border-radius: 4px }
.legend span { display: inline-block; margin-right: 1.2em } .dot { width: .8em; height: .8em; display: inline-block }
"""


def _picture(image: np.ndarray) -> str:
    small = cv2.resize(image, (THUMBNAIL, THUMBNAIL), interpolation=cv2.INTER_AREA)
    ok, data = cv2.imencode(".jpg", cv2.cvtColor(small, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 85])
    assert ok
    return "data:image/jpeg;base64," + base64.b64encode(data.tobytes()).decode()


def _figure(image: np.ndarray, caption: str) -> str:
    return f'<figure><img alt="{escape(caption)}" src="{_picture(image)}"><figcaption>{escape(caption)}</figcaption></figure>'


def draw_landmarks(frame: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """Frame (H,W,3) with dots at pixels (68,2)."""
    out = frame.copy()
    radius = max(1.5, frame.shape[0] / 220)
    for u, v in pixels:
        cv2.circle(out, (round(u * 16 - 8), round(v * 16 - 8)), round(radius * 16), (40, 255, 90), -1, cv2.LINE_AA, 4)
    return out


def draw_labels(frame: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Frame (H,W,3) tinted by its labels (H,W)."""
    out = frame.astype(np.float32) * 0.6
    for label, colour in LABEL_COLOURS.items():
        out[labels == label] += 0.4 * np.array(colour)
    return out.clip(0, 255).astype(np.uint8)


def _curves(series: dict[str, tuple[np.ndarray, str]], unit: str, cuts: list[int]) -> str:
    count = len(next(iter(series.values()))[0])
    values = np.concatenate([curve for curve, _ in series.values()])
    low, high = float(values.min()), float(values.max())
    span = max(high - low, 1e-6)
    step = max(1, count // 1500)
    lines = [f'<line x1="{c / max(1, count - 1) * 1000:.1f}" x2="{c / max(1, count - 1) * 1000:.1f}" y1="0" y2="130" '
             'stroke="#bbb" stroke-dasharray="3"/>' for c in cuts]
    for curve, colour in series.values():
        points = " ".join(f"{t / max(1, count - 1) * 1000:.1f},{122 - (curve[t] - low) / span * 114:.1f}"
                          for t in range(0, count, step))
        lines.append(f'<polyline fill="none" stroke="{colour}" stroke-width="1.2" points="{points}"/>')
    legend = "".join(f'<span><i class="dot" style="background:{colour}"></i> {escape(name)}</span>'
                     for name, (_, colour) in series.items())
    return (f'<div class="legend">{legend}<span class="facts">{low:.1f} to {high:.1f} {unit}</span></div>'
            f'<svg viewBox="0 0 1000 130" preserveAspectRatio="none">{"".join(lines)}</svg>')


def write_report(clip: Clip) -> None:
    """Write report.html of a finished clip: contact sheet, labels, plates, curves, warnings."""
    info = clip.info
    landmarks, poses, torso = clip.load_landmarks(), clip.load_poses(), clip.load_torso()
    pixels = project(landmarks, poses, info.intrinsics)
    chosen = set(np.linspace(0, info.frames - 1, SHEET_FRAMES).astype(int).tolist())
    tracked, labelled = [], []
    for t, (frame, labels) in enumerate(zip(clip.frames(), clip.label_frames())):
        if t in chosen:
            tracked.append(_figure(draw_landmarks(frame, pixels[t]), f"frame {t}, {t / FPS:.2f} s"))
            labelled.append(_figure(draw_labels(frame, labels), f"frame {t}"))
    plates = [_figure(plate, f"shot {k}: frames {s.start}-{s.stop - 1}")
              for k, (plate, s) in enumerate(zip(clip.load_plates(), info.shots))]
    angles = euler_degrees(poses[:, :3, :3])
    cuts = [shot.start for shot in info.shots[1:]]
    warnings = "".join(f'<p class="warn">{escape(w)}</p>' for w in info.warnings) or \
        '<p class="good">Nothing to complain about.</p>'
    legend = "".join(f'<span><i class="dot" style="background:rgb{c}"></i> {n}</span>'
                     for n, c in zip(("torso", "neck", "head", "mouth"), LABEL_COLOURS.values()))
    eyes = 1000 * eye_opening(landmarks)
    page = f"""<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(info.name)}</title>
<style>{STYLE}</style></head><body><h1>{escape(info.name)}</h1>
<p class="facts">{info.frames} frames, {info.frames / FPS:.1f} s, {info.width}x{info.height}, from {escape(info.source_name)};
{", ".join(f"{name} {len(clip.split(name))}" for name in info.split)} good frames</p>
<h2>Warnings</h2>{warnings}
<h2>Tracked landmarks</h2><div class="sheet">{"".join(tracked)}</div>
<h2>Labels</h2><p class="legend">{legend}</p><div class="sheet">{"".join(labelled)}</div>
<h2>Background plates</h2><div class="sheet">{"".join(plates)}</div>
<h2>Lips</h2>{_curves({"lip opening": (1000 * lip_opening(landmarks), "#c0392b")}, "mm", cuts)}
<h2>Lids</h2>{_curves({"right": (eyes[:, 0], "#2980b9"), "left": (eyes[:, 1], "#27ae60")}, "mm", cuts)}
<h2>Head</h2>{_curves({"yaw": (angles[:, 0], "#8e44ad"), "pitch": (angles[:, 1], "#16a085"),
                       "roll": (angles[:, 2], "#d35400")}, "degrees", cuts)}
<h2>Torso shift</h2>{_curves({"across": (torso[:, 0], "#8e44ad"), "down": (torso[:, 1], "#16a085")}, "pixels", cuts)}
</body></html>
"""
    with atomic_path(clip.report) as partial:
        partial.write_text(page, encoding="utf-8")
