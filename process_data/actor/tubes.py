"""Tubes along polylines, thin for hair and thick for braids, spectacles and fingers, in the z-buffer of the head's mesh."""

from dataclasses import dataclass

import numba
import numpy as np

from process_data.actor.head_mesh import HeadMesh
from process_data.actor.mesh_raster import BANDS
from process_data.actor.scene import FILL_LIGHT, KEY_LIGHT
from process_data.actor.texture import smoothstep
from shared.compiled import cached_njit

BEHIND, HEAD_LAYER, HAND = 0, 1, 2  # layers: behind the torso, with the head before it, before everything
MIDDLE = np.array([0.0, 10.0, -80.0])  # millimetres, head space: the middle of the skull
FOLLOW_FROM, FOLLOW_TO = -60.0, -190.0  # millimetres, head space: above, hair moves with the head, below with the torso
ROOT = 40.0  # millimetres of a hair at its root that the torso does not pull wholly
_KEY = KEY_LIGHT / np.linalg.norm(KEY_LIGHT)
_FILL = FILL_LIGHT / np.linalg.norm(FILL_LIGHT)
_HALF = (_KEY + [0, 0, -1]) / np.linalg.norm(_KEY + [0, 0, -1])


@dataclass(frozen=True)
class Tubes:
    """N vertices of S polylines, joined by M segments, which are drawn as cones with round ends.

    points (N, 3) metres, head space, at the neutral face; radius (N,) metres; color (N, 3) linear; shade (N,): share of the
    light that arrives; normal (N, 3): outwards from the body of hair; solid (N,): lit like a solid tube with this gloss
    (N,), not like a hair; follow (N,): 1 where a vertex moves with the torso, 0 with the head; strand (N,) int32: which
    polyline; roots (S, 3) int32, root_weights (S, 3): vertices of the head's mesh whose displacement it takes part in;
    segments (M, 2) int32; layer (M,) uint8; the vertices from hand_from on are the hand's.
    """

    points: np.ndarray
    radius: np.ndarray
    color: np.ndarray
    shade: np.ndarray
    normal: np.ndarray
    solid: np.ndarray
    gloss: np.ndarray
    follow: np.ndarray
    strand: np.ndarray
    roots: np.ndarray
    root_weights: np.ndarray
    segments: np.ndarray
    layer: np.ndarray
    hand_from: int

    def vertices(self, head: HeadMesh, moved: np.ndarray) -> np.ndarray:
        """moved (V, 3): the head's vertices for some landmarks -> (N, 3) metres, head space; roots stay on the skin."""
        shift = ((moved - head.base)[self.roots] * self.root_weights[..., None]).sum(1)
        return self.points + shift[self.strand]


class TubeBuilder:
    """Collects polylines, given in millimetres of head space, and makes Tubes of them."""

    def __init__(self) -> None:
        self.parts: list[dict[str, np.ndarray]] = []
        self.count = self.strands = 0
        self.hand_from: int | None = None

    def add(self, points: np.ndarray, radius, color, *, layer=HEAD_LAYER, shade=1.0, solid: bool = False, gloss: float = 0.1,
            normal: np.ndarray | None = None, follow: np.ndarray | float | None = None,
            rooted: tuple[np.ndarray, np.ndarray] | None = None) -> None:
        """points (S, K, 3) mm; radius (mm), shade: broadcast to (S, K); color: to (S, K, 3), linear; layer: one or (S,).

        normal (S, K, 3), by default away from the skull's middle, below it from its vertical axis; follow: by default by
        height, but none at the first point; rooted: mesh vertices and weights (S, 3) each.
        """
        s, k = points.shape[:2]
        if self.hand_from is None and np.all(np.equal(layer, HAND)):
            self.hand_from = self.count
        if normal is None:
            normal = points - MIDDLE
            normal[..., 1] = np.maximum(normal[..., 1], 0)
        normal = normal / (np.linalg.norm(normal, axis=-1, keepdims=True) + 1e-9)
        if follow is None:
            length = np.cumsum(np.linalg.norm(np.diff(points, axis=1, prepend=points[:, :1]), axis=-1), 1)
            follow = smoothstep(FOLLOW_FROM, FOLLOW_TO, points[..., 1]) * smoothstep(0, ROOT, length)
        at = self.count + np.arange(s * k).reshape(s, k)
        roots, root_weights = (np.zeros((s, 3), int), np.zeros((s, 3))) if rooted is None else rooted
        full = {"points": points / 1000, "normal": normal, "color": np.broadcast_to(np.asarray(color, float), (s, k, 3))}
        for name, value in (("radius", np.asarray(radius) / 1000), ("shade", shade), ("solid", solid), ("gloss", gloss),
                            ("follow", follow)):
            full[name] = np.broadcast_to(value, (s, k))
        part = {name: value.reshape(s * k, *value.shape[2:]) for name, value in full.items()}
        part |= {"strand": np.repeat(self.strands + np.arange(s), k), "roots": roots, "root_weights": root_weights,
                 "segments": np.stack([at[:, :-1], at[:, 1:]], -1).reshape(-1, 2),
                 "layer": np.repeat(np.broadcast_to(layer, s), k - 1)}
        self.parts.append(part)
        self.count += s * k
        self.strands += s

    def build(self) -> Tubes:
        """All that was added."""
        if not self.parts:
            self.add(np.zeros((0, 2, 3)), 0.0, np.zeros(3))
        types = {"strand": np.int32, "roots": np.int32, "segments": np.int32, "layer": np.uint8, "solid": bool}
        stacked = {name: np.ascontiguousarray(np.concatenate([part[name] for part in self.parts]), types.get(name, np.float64))
                   for name in self.parts[0]}
        return Tubes(**stacked, hand_from=self.count if self.hand_from is None else self.hand_from)


@cached_njit()
def tube_place(screen, radius, a, b, x, y):
    """The place on the tube from vertex a to b nearest to (x, y): its share of the way, the offset from the axis, the radius."""
    dx, dy = screen[b, 0] - screen[a, 0], screen[b, 1] - screen[a, 1]
    px, py = x - screen[a, 0], y - screen[a, 1]
    along = min(1.0, max(0.0, (px * dx + py * dy) / (dx * dx + dy * dy + 1e-12)))
    return along, px - along * dx, py - along * dy, radius[a] + along * (radius[b] - radius[a])


@cached_njit()
def _fill_band(screen, depth, radius, segments, focal, first, top, bottom, ids, zbuffer):
    width = ids.shape[1]
    for s in range(segments.shape[0]):
        a, b = segments[s, 0], segments[s, 1]
        ay, by = screen[a, 1], screen[b, 1]
        wide = max(radius[a], radius[b])
        low, high = min(ay, by) - wide, max(ay, by) + wide
        if high < top or low > bottom or depth[a] <= 0.0 or depth[b] <= 0.0:
            continue
        ax, bx = screen[a, 0], screen[b, 0]
        left, right = min(ax, bx) - wide, max(ax, bx) + wide
        slope, half = 0.0, right - left
        if abs(by - ay) > 1e-6:  # only the columns near the axis
            slope = (bx - ax) / (by - ay)
            half = wide * np.sqrt(1.0 + slope * slope)
        inverse_a, inverse_b = 1.0 / depth[a], 1.0 / depth[b]
        for row in range(max(top, int(np.floor(low))), min(bottom - 1, int(np.floor(high))) + 1):
            y = row + 0.5
            axis = ax + (y - ay) * slope
            start, end = max(left, axis - half, 0.0), min(right, axis + half, width - 1.0)
            for col in range(int(np.floor(start)), int(np.floor(end)) + 1):
                along, ex, ey, r = tube_place(screen, radius, a, b, col + 0.5, y)
                rest = r * r - ex * ex - ey * ey
                if rest < 0.0:
                    continue
                inverse = inverse_a + along * (inverse_b - inverse_a)
                inverse /= 1.0 - np.sqrt(rest) / focal  # the tube's front is nearer than its axis
                if inverse > zbuffer[row, col]:
                    zbuffer[row, col] = inverse
                    ids[row, col] = first + s


@cached_njit(parallel=True)
def add_tubes(screen, depth, radius, segments, focal, first, ids, zbuffer):
    """Draw tubes into triangle numbers and inverse depths of `visible_triangles`, in place, as the numbers first + segment.

    screen (N, 2) and radius (N,) pixels, depth (N,) metres, segments (M, 2); focal: the focal length in pixels.
    """
    height = ids.shape[0]
    for band in numba.prange(BANDS):
        _fill_band(screen, depth, radius, segments, focal, first, band * height // BANDS, (band + 1) * height // BANDS, ids,
                   zbuffer)


@cached_njit()
def hair_light(vertices, normals, segments, color, shade, solid):
    """Linear colour (N, 3) of hair vertices in camera space; solid vertices keep their own colour, for shading by sample.

    Along a hair light scatters by the angle to its tangent (Kajiya and Kay, SIGGRAPH 1989), dimmed on the side of the body
    of hair that the light does not reach.
    """
    count = vertices.shape[0]
    tangents = np.zeros((count, 3))
    for s in range(segments.shape[0]):
        a, b = segments[s, 0], segments[s, 1]
        for k in range(3):
            step = vertices[b, k] - vertices[a, k]
            tangents[a, k] += step
            tangents[b, k] += step
    out = np.empty((count, 3))
    for v in range(count):
        if solid[v]:
            for k in range(3):
                out[v, k] = color[v, k] * shade[v]
            continue
        tx, ty, tz = tangents[v, 0], tangents[v, 1], tangents[v, 2]
        length = np.sqrt(tx * tx + ty * ty + tz * tz) + 1e-12
        tx, ty, tz = tx / length, ty / length, tz / length
        nx, ny, nz = normals[v, 0], normals[v, 1], normals[v, 2]
        key = tx * _KEY[0] + ty * _KEY[1] + tz * _KEY[2]
        half = tx * _HALF[0] + ty * _HALF[1] + tz * _HALF[2]
        lit = min(1.0, max(0.0, (nx * _KEY[0] + ny * _KEY[1] + nz * _KEY[2] + 0.4) / 1.4))
        fill = max(0.0, nx * _FILL[0] + ny * _FILL[1] + nz * _FILL[2])
        diffuse = 0.22 - 0.06 * ny + 0.95 * lit * np.sqrt(max(0.0, 1.0 - key * key)) + 0.28 * fill
        shine = lit * max(0.0, 1.0 - half * half) ** 24
        for k in range(3):
            out[v, k] = shade[v] * (color[v, k] * (diffuse + 1.6 * shine) + 0.02 * shine)
    return out
