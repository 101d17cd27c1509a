"""The synthetic actor's head as a mesh that its 68 landmarks move.

The skin is modelled with the mouth a little open. Its landmarks are vertices; the lip and lid edges are splines through
them; every other vertex follows by radial-basis interpolation of the landmarks' displacement. Because the interpolation
works on a chart in which the lips are apart, they move independently, open onto the mouth and close completely. Every
vertex is a linear function of the 68 landmarks, and the landmark vertices are the landmarks themselves.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.interpolate import CubicSpline, RBFInterpolator
from scipy.spatial import Delaunay, cKDTree

from process_data.polygons import signed_distance
from process_data.synthetic_identity import Identity

CENTRE = np.array([0.0, -25.0, -75.0])  # millimetres; the chart is the directions seen from here
CHART_RADIUS = 2.3  # radians from straight ahead to the chart's edge
SKIN, NECK, EYE, MOUTH = 0, 1, 2, 3  # materials
LABEL_OF_MATERIAL = np.array([3, 2, 3, 4], np.uint8)

# the right half of the average adult's landmarks, millimetres, and those on the midline
_RIGHT = {
    0: (-77, -3, -52), 1: (-76.5, -20, -56), 2: (-75, -38, -56), 3: (-72, -56, -53), 4: (-66, -75, -47),
    5: (-51, -96.5, -26), 6: (-36.5, -106.5, -9), 7: (-19.5, -116, 6),
    17: (-57, 17, -3), 18: (-50, 23, 6), 19: (-40, 26, 13), 20: (-28, 25.5, 18.5), 21: (-14, 22, 21.5),
    31: (-11.5, -43, 24), 32: (-6, -46.5, 27.5),
    36: (-45, 0, 0), 37: (-37, 4.3, 6), 38: (-27, 4.5, 7.5), 39: (-18, -1.5, 6), 40: (-27, -4.2, 6.2), 41: (-37, -3.8, 5),
    48: (-25.5, -70.5, 11), 49: (-15, -64, 21), 50: (-5.5, -60.8, 26.5),
    59: (-15, -77.5, 20), 58: (-7, -80.8, 23.5),
    60: (-22, -70.3, 11.5), 61: (-9, -69.8, 21), 67: (-9, -69.8, 21),
}
_MIDDLE = {8: (0, -121, 11), 27: (0, 5, 20.5), 28: (0, -9, 30.5), 29: (0, -22, 39.5), 30: (0, -33, 45), 33: (0, -47.5, 29),
           51: (0, -62, 27.5), 57: (0, -81.8, 24.5), 62: (0, -70, 22.3), 66: (0, -70, 22.3)}
_PAIR = {0: 16, 1: 15, 2: 14, 3: 13, 4: 12, 5: 11, 6: 10, 7: 9, 17: 26, 18: 25, 19: 24, 20: 23, 21: 22, 31: 35, 32: 34,
         36: 45, 37: 44, 38: 43, 39: 42, 40: 47, 41: 46, 48: 54, 49: 53, 50: 52, 59: 55, 58: 56, 60: 64, 61: 63, 67: 65}

# more places of the right half that shape the skin: x, y, z in millimetres and how far they follow the jaw (0–1)
_SHAPE = np.array([
    (0, 13, 22, 0), (0, 22, 23.5, 0), (0, 39, 20.5, 0), (0, 57, 14, 0), (0, 76, 2, 0), (0, 92, -22, 0), (0, 103, -60, 0),
    (0, 98, -105, 0), (-36, 54, 7, 0), (-52, 48, -6, 0), (-64, 38, -20, 0), (-72, 26, -34, 0), (-34, 74, -6, 0),
    (-60, 66, -32, 0), (-46, 84, -40, 0), (-70, 48, -60, 0), (-76, 20, -52, 0), (-78, 5, -75, 0), (-76, 20, -100, 0),
    (-66, 60, -90, 0), (-40, 92, -80, 0), (-78, -10, -70, 0), (-74, -35, -80, 0), (-46, 36, 6, 0), (-22, 36, 18, 0),
    (-8, 12, 20, 0), (-15, 14, 17, 0), (-30, 17, 15.5, 0), (-46, 14, 7, 0), (-58, 6, -8, 0),
    (-32, 10, 12.5, 0), (-18, 4, 8.5, 0), (-52, 0, -4.5, 0), (-45, 8, 5.5, 0), (-22, 9, 11, 0),
    (-32, -12, 6.5, 0), (-20, -8, 8.5, 0), (-44, -10, 2, 0), (-33, -20, 8.5, 0), (-48, -18, 1.5, 0), (-60, -14, -14, 0),
    (-67, -26, -24, 0), (-8, -4, 20.5, 0), (-10, -14, 22.5, 0), (-9, -24, 30, 0), (-16, -22, 15.5, 0), (-6, -33, 42, 0),
    (-12.5, -31, 32, 0), (-16.5, -35, 27.5, 0), (-17.8, -39.5, 22, 0), (-19.5, -37, 15, 0), (-24, -28, 12, 0),
    (-4, -40, 41, 0), (0, -42, 40.5, 0), (-15, -44.5, 20, 0), (-20, -44, 14.5, 0), (-8, -48, 25.2, 0),
    (0, -54, 27, 0), (-4, -55, 27.2, 0), (-13, -55, 22.5, 0), (-22, -56, 16, .05), (-30, -50, 12.5, .05),
    (-40, -42, 9.5, .05), (-50, -34, 3, .02), (-44, -58, 4, .2), (-32, -66, 9, .25), (-31, -76, 8, .5),
    (-56, -56, -14, .2), (-64, -45, -27, .1), (-50, -76, -12, .55), (-36, -88, 6, .85), (-20, -90, 16, .95),
    (0, -89, 18.5, 1), (-10, -90, 18, 1), (0, -98, 20, 1), (0, -107, 21, 1), (-13, -104, 18.5, 1), (-24, -106, 10.5, .95),
    (0, -116, 17, 1), (-60, -86, -33, .5), (0, -121, -2, .9), (-22, -112, -12, .8), (-42, -100, -28, .6), (0, -112, -25, .6),
    (-30, -104, -40, .4), (-56, -84, -52, .25), (0, -100, -45, .2), (-45, -80, -70, .1), (-68, -60, -72, .05),
    (-62, -55, -95, 0), (-40, -78, -95, 0), (0, -90, -70, 0),
])
_ANCHORS = np.array([  # places of the skin that no expression moves
    (0, 60, 13), (-40, 60, 4), (-66, 45, -25), (0, 92, -22), (-50, 84, -45), (0, 103, -70), (-76, 20, -52), (-78, 0, -75),
    (-76, -30, -76), (-68, -60, -76), (-45, -80, -85), (0, -98, -62), (0, 0, 21.5), (-78, 20, -95), (-45, 90, -90),
    (-30, -102, -52), (0, -38, 42), (-18, -38, 20), (-72, 26, -34),
], float)
JAW_WEIGHT = np.zeros(68)
JAW_WEIGHT[[3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13]] = [.08, .3, .68, .9, .98, 1, .98, .9, .68, .3, .08]
JAW_WEIGHT[[48, 54, 60, 64, 49, 53, 50, 51, 52]] = [.42, .42, .44, .44, .05, .05, .02, .02, .02]
JAW_WEIGHT[[55, 56, 57, 58, 59, 65, 66, 67]] = [.88, 1, 1, 1, .88, .93, 1, .93]
JAW_HINGE = np.array([0.0, -22.0, -62.0])
REST_JAW = 0.14  # radians by which the modelled mouth is open
_MIRROR_X = np.array([-1.0, 1.0, 1.0])


def both_sides(points: np.ndarray) -> np.ndarray:
    """Right-half points (N, ≥3) -> those and their mirror images, points of the midline once."""
    mirrored = points[points[:, 0] != 0].copy()
    mirrored[:, 0] *= -1
    return np.concatenate([points, mirrored])


def average_landmarks() -> np.ndarray:
    """(68, 3) millimetres: the average adult face with closed lips and open eyes."""
    landmarks = np.zeros((68, 3))
    for k, place in {**_RIGHT, **_MIDDLE}.items():
        landmarks[k] = place
    for right, left in _PAIR.items():
        landmarks[left] = landmarks[right] * _MIRROR_X
    return landmarks


def neutral_landmarks(identity: Identity) -> np.ndarray:
    """(68, 3) float64 metres, head space: this person with closed lips, open eyes and relaxed brows."""
    landmarks = identity.reshape(average_landmarks())
    half = (landmarks[45, 0] - landmarks[36, 0]) / 2
    landmarks *= 45 / half
    landmarks -= (landmarks[36] + landmarks[45]) / 2
    return landmarks / 1000


def rotate_jaw(points: np.ndarray, weight: np.ndarray, angle: np.ndarray | float) -> np.ndarray:
    """Turn points (..., N, 3) mm about the jaw's hinge by weight·angle radians; angle broadcasts over the front."""
    turn = np.asarray(angle)[..., None] * weight
    y, z = points[..., 1] - JAW_HINGE[1], points[..., 2] - JAW_HINGE[2]
    sine, cosine = np.sin(turn), np.cos(turn)
    return np.stack(np.broadcast_arrays(points[..., 0], JAW_HINGE[1] + cosine * y - sine * z,
                                        JAW_HINGE[2] + sine * y + cosine * z), -1)


def to_chart(points: np.ndarray) -> np.ndarray:
    """Points (N, 3) mm -> chart (N, 2): the azimuthal equidistant map of their direction from the head's CENTRE."""
    direction = points - CENTRE
    flat = np.hypot(direction[:, 0], direction[:, 1])
    angle = np.arctan2(flat, direction[:, 2])
    return direction[:, :2] * (angle / np.maximum(flat, 1e-9))[:, None]


def from_chart(chart: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """Chart (N, 2) and distance from the CENTRE (N,) mm -> points (N, 3) mm; the inverse of to_chart."""
    angle = np.hypot(chart[:, 0], chart[:, 1])
    flat = (np.sin(angle) / np.maximum(angle, 1e-9))[:, None] * chart
    return CENTRE + radius[:, None] * np.concatenate([flat, np.cos(angle)[:, None]], 1)


def spline_weights(knots: list[int], samples: np.ndarray) -> np.ndarray:
    """Rows (S, 68) that put a point on the natural cubic spline through these landmarks; samples (S,) in [0, 1]."""
    at = np.linspace(0, 1, len(knots))
    rows = np.zeros((len(samples), 68))
    rows[:, knots] = CubicSpline(at, np.eye(len(knots)), bc_type="natural")(samples)
    return rows


LIP_OUTER = ([48, 49, 50, 51, 52, 53, 54], [48, 59, 58, 57, 56, 55, 54])  # upper, lower, both right to left
LIP_INNER = ([60, 61, 62, 63, 64], [60, 67, 66, 65, 64])
LIDS = (([36, 37, 38, 39], [36, 41, 40, 39]), ([42, 43, 44, 45], [42, 47, 46, 45]))
BROWS = ([17, 18, 19, 20, 21], [22, 23, 24, 25, 26])


def _closed(upper: np.ndarray, lower: np.ndarray) -> np.ndarray:
    """Join two runs with common ends into one loop, upper there and lower back."""
    return np.concatenate([upper, lower[-2:0:-1]])


def lip_loop(pair: tuple[list[int], list[int]]) -> np.ndarray:
    """Rows (N, 68) of a closed contour through upper and lower landmarks."""
    return _loop(pair, 65)


def _loop(pair: tuple[list[int], list[int]], count: int) -> np.ndarray:
    s = np.linspace(0, 1, count)
    return _closed(spline_weights(pair[0], s), spline_weights(pair[1], s))


@dataclass(frozen=True)
class HeadMesh:
    """vertices(landmarks) = base + weights @ landmarks; V vertices, the first 68 are the landmarks.

    base (V, 3) metres, weights (V, 68), triangles (F, 3) int32, uv (V, 2) atlas coordinates in [0, 1], occlusion (V,)
    how much ambient light arrives, gloss (V,), material (F,) uint8, neck (V,) 1 where a vertex follows the
    torso instead of the head, eye (V,) 0 or the eye (1 right, 2 left) that it turns with, eye_centres (2, 3) metres,
    neutral (68, 3) metres, skin_count: vertices of the skin proper come first.
    """

    base: np.ndarray
    weights: np.ndarray
    triangles: np.ndarray
    uv: np.ndarray
    occlusion: np.ndarray
    gloss: np.ndarray
    material: np.ndarray
    neck: np.ndarray
    eye: np.ndarray
    eye_centres: np.ndarray
    neutral: np.ndarray
    skin_count: int

    def vertices(self, landmarks: np.ndarray) -> np.ndarray:
        """landmarks (68, 3) metres -> vertices (V, 3) metres, head space."""
        moved = self.base + self.weights @ (landmarks - self.neutral)
        moved[:68] = landmarks
        return moved


# where each material's picture lies in the atlas: offset and extent in [0, 1] atlas coordinates (u right, v down)
TILES = {SKIN: (0.0, 0.0, 1.0, 0.8), EYE: (0.0, 0.8, 0.2, 0.2), MOUTH: (0.2, 0.8, 0.2, 0.2), NECK: (0.4, 0.8, 0.4, 0.2)}


def tile_uv(material: int, uv: np.ndarray) -> np.ndarray:
    """(N, 2) in [0, 1] of one material's own picture -> (N, 2) atlas coordinates."""
    left, top, width, height = TILES[material]
    inset = 0.5 / 100
    return np.clip(uv, inset, 1 - inset) * [width, height] + [left, top]


class _Builder:
    """Collects parts: vertices at the neutral face with their landmark weights, and triangles."""

    def __init__(self) -> None:
        self.parts: list[dict[str, np.ndarray]] = []
        self.triangles: list[np.ndarray] = []
        self.materials: list[np.ndarray] = []
        self.count = 0

    def add(self, points, weights, triangles, material, uv, occlusion=1.0, gloss=0.3, neck=0.0, eye=0) -> int:
        n = len(points)
        full = {"base": points, "weights": weights, "uv": tile_uv(material, uv)}
        for name, value in (("occlusion", occlusion), ("gloss", gloss), ("neck", neck), ("eye", eye)):
            full[name] = np.broadcast_to(np.asarray(value, float), n)
        self.parts.append(full)
        start = self.count
        self.count += n
        self.join(triangles + start, material)
        return start

    def join(self, triangles: np.ndarray, material: int) -> None:
        self.triangles.append(triangles)
        self.materials.append(np.full(len(triangles), material, np.uint8))

    def stack(self, name: str) -> np.ndarray:
        return np.concatenate([part[name] for part in self.parts])


def grid_triangles(rows: int, columns: int, wrap: bool = False) -> np.ndarray:
    """Triangles (F, 3) of a rows × columns grid, anticlockwise when columns run right and rows run down."""
    r, c = np.meshgrid(np.arange(rows - 1), np.arange(columns if wrap else columns - 1), indexing="ij")
    a, b = r * columns + c, r * columns + (c + 1) % columns
    d, e = a + columns, b + columns
    return np.concatenate([np.stack([a, d, b], -1).reshape(-1, 3), np.stack([b, d, e], -1).reshape(-1, 3)])


def _chart_grid(spacing: float, centre: tuple[float, float], radii: tuple[float, float]) -> np.ndarray:
    """A hexagonal grid of chart points inside an ellipse."""
    rx, ry = radii
    ys = np.arange(-ry, ry, spacing * 0.866)
    rows = [np.stack([np.arange(-rx, rx, spacing) + (k % 2) * spacing / 2, np.full(len(np.arange(-rx, rx, spacing)), y)], 1)
            for k, y in enumerate(ys)]
    points = np.concatenate(rows)
    return points[(points[:, 0] / rx) ** 2 + (points[:, 1] / ry) ** 2 < 1] + centre


def _interpolation(centres: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """Matrix (Q, C) that interpolates values at chart places (C, 2) to chart places (Q, 2).

    Radial basis |r|: it overshoots far less than thin plates, so noise on a landmark does not shake the cheeks.
    """
    return RBFInterpolator(centres, np.eye(len(centres)), kernel="linear", smoothing=1e-9)(queries)


@dataclass(frozen=True)
class Skin:
    """The skin with the mouth open: points (V, 3) mm, landmark weights (V, 68), triangles (F, 3), chart (V, 2), the rest
    landmarks (68, 3) mm, radius_of: chart (N, 2) -> distance from the CENTRE (N,) mm, person: average mm -> this head's mm."""

    points: np.ndarray
    weights: np.ndarray
    triangles: np.ndarray
    chart: np.ndarray
    rest: np.ndarray
    radius_of: Callable[[np.ndarray], np.ndarray]
    person: Callable[[np.ndarray], np.ndarray]


def build_skin(identity: Identity, neutral: np.ndarray) -> Skin:
    """The skin of one person, whose neutral landmarks (68, 3) are in metres."""
    average = identity.reshape(average_landmarks())
    scale = 45 / average[45, 0]
    shift = -scale * (average[36] + average[45]) / 2

    def person(points: np.ndarray) -> np.ndarray:
        return identity.reshape(points) * scale + shift

    shape = both_sides(_SHAPE)
    rest = rotate_jaw(neutral * 1000, JAW_WEIGHT, REST_JAW)

    s_lip, s_lid = np.linspace(0, 1, 33), np.linspace(0, 1, 19)
    lip_rows = []
    for fraction in (0.0, 0.14, 0.35, 0.6, 0.82, 1.0):
        for side in (0, 1):
            rows = (1 - fraction) * spline_weights(LIP_OUTER[side], s_lip) + fraction * spline_weights(LIP_INNER[side], s_lip)
            lip_rows.append((fraction, side, rows))
    contour_weights, contour_bulge = [], []
    for fraction, side, rows in lip_rows:
        keep = slice(None) if side == 0 else slice(1, -1)
        taper = np.sin(np.pi * s_lip) ** 0.6
        height = (1.3 if side == 0 else 2.2) * identity.lip_fullness * np.sin(np.pi * fraction ** 0.8) * taper
        contour_weights.append(rows[keep])
        contour_bulge.append(np.stack([np.zeros_like(height), 0 * height, height], 1)[keep])
    lid_offsets = {0: [(0, 0, 0), (0, 1.2, 0.8), (0, 3.6, 2.6)], 1: [(0, 0, 0), (0, -1.2, 0.5), (0, -4.2, 0.8)]}
    for upper, lower in LIDS:
        for side, knots in enumerate((upper, lower)):
            rows = spline_weights(knots, s_lid)
            taper = np.sin(np.pi * np.clip(s_lid, 0.08, 0.92)) ** 0.5
            for step, offset in enumerate(lid_offsets[side]):
                keep = slice(None) if side == 0 and step == 0 else slice(1, -1)
                follow = (1.0, 0.85, 0.3)[step]
                corner = spline_weights([knots[0], knots[-1]], s_lid)
                contour_weights.append((follow * rows + (1 - follow) * corner)[keep])
                residual = (1 - follow) * (rows - corner) @ rest
                contour_bulge.append((residual + np.outer(taper, offset))[keep])
    s_brow = np.linspace(0.05, 0.95, 7)
    for knots in BROWS:
        rows = spline_weights(knots, s_brow)
        for follow, down, back in ((1.0, 4.0, 2.0), (0.5, 8.5, 4.5)):
            offset = np.stack([0 * s_brow, 0 * s_brow - down, -back * (2 * s_brow - 1) ** 2], 1)
            contour_weights.append(follow * rows)
            contour_bulge.append((1 - follow) * rows @ rest + offset)
    contour_weights, contour_bulge = np.concatenate(contour_weights), np.concatenate(contour_bulge)
    contour = contour_weights @ rest + contour_bulge
    fresh = cKDTree(rest).query(contour)[0] > 0.35
    contour_weights, contour = contour_weights[fresh], contour[fresh]
    _, first = np.unique(np.round(contour, 2), axis=0, return_index=True)
    first = np.sort(first)
    contour_weights, contour = contour_weights[first], contour[first]

    # what the landmarks' displacement does to the rest of the skin
    fixed_chart = to_chart(np.concatenate([rest, contour]))
    anchors = to_chart(person(both_sides(_ANCHORS)))
    fixed_weights = np.concatenate([np.eye(68), contour_weights])
    sparse = np.concatenate([np.ones(68, bool), np.arange(len(contour)) % 2 == 0])
    control = np.concatenate([fixed_chart[sparse], anchors])
    control_weights = np.concatenate([fixed_weights[sparse], np.zeros((len(anchors), 68))])

    # the shape is known where the mouth is closed: take it to the open rest by that same displacement
    shape_neutral = person(shape[:, :3])
    shape_chart = to_chart(rotate_jaw(shape_neutral, shape[:, 3], REST_JAW))
    shape_rest = shape_neutral + _interpolation(control, shape_chart) @ control_weights @ (rest - 1000 * neutral)
    known = np.concatenate([rest, contour, shape_rest])
    known_chart = to_chart(known)
    distance = np.linalg.norm(known - CENTRE, axis=1)
    apart = np.ones(len(known), bool)
    pairs = cKDTree(known_chart).query_pairs(0.006, output_type="ndarray")
    apart[pairs.max(1)] = False
    radius_of = RBFInterpolator(known_chart[apart], distance[apart], kernel="thin_plate_spline", smoothing=1e-6)

    kept = [fixed_chart]
    for spacing, gap, centre, radii in ((0.016, 0.010, (0, -0.22), (0.38, 0.36)), (0.028, 0.019, (0, -0.1), (0.95, 0.95)),
                                        (0.06, 0.04, (0, 0), (2.2, 2.2))):
        layer = _chart_grid(spacing, centre, radii)
        kept.append(layer[cKDTree(np.concatenate(kept)).query(layer)[0] > gap])
    free = np.concatenate(kept[1:])
    holes = [to_chart(_loop(LIP_INNER, 65) @ rest)] + [to_chart(_loop(pair, 37) @ rest) for pair in LIDS]
    inside = np.any([signed_distance(free, hole) > 0 for hole in holes], axis=0)
    free = free[~inside]
    chart = np.concatenate([fixed_chart, free])
    triangles = Delaunay(chart).simplices.astype(np.int32)
    centroid = chart[triangles].mean(1)
    triangles = triangles[~np.any([signed_distance(centroid, hole) > 0 for hole in holes], axis=0)]
    u, v = chart[triangles[:, 1]] - chart[triangles[:, 0]], chart[triangles[:, 2]] - chart[triangles[:, 0]]
    clockwise = u[:, 0] * v[:, 1] - u[:, 1] * v[:, 0] < 0
    triangles[clockwise] = triangles[clockwise][:, [0, 2, 1]]

    points = np.concatenate([rest, contour, from_chart(free, radius_of(free))])
    free_weights = _interpolation(control, free) @ control_weights
    fade = np.clip((2.0 - np.hypot(free[:, 0], free[:, 1])) / 0.5, 0, 1)
    weights = np.concatenate([fixed_weights, free_weights * fade[:, None]])
    return Skin(points, weights, triangles, chart, rest, radius_of, person)


def hair_field(identity: Identity, points: np.ndarray) -> np.ndarray:
    """How far inside the hair points (N, 3) mm of the scalp lie: (N,), about millimetres, negative on bare skin."""
    x, y, z = points.T
    side = np.abs(x)
    line = 68 + identity.hairline - 0.0075 * side**2 + 5 * np.exp(-(((side - 30) / 12) ** 2))
    ear = np.clip((4 - y) / 16, 0, 1)  # the hair leaves the ear free, with a sideburn before it
    behind = -z - 42 - 46 * ear**2 * (3 - 2 * ear) - np.clip(-y - 70, 0, None)
    return np.maximum(y - line, np.where(side > 40, behind, -60))


def build_head(identity: Identity, skin: Skin) -> HeadMesh:
    """The whole head of one person: skin with hair, lids, lips, mouth, teeth, tongue, eyes, ears and neck."""
    neutral = neutral_landmarks(identity)
    points, weights, chart, person = skin.points, skin.weights, skin.chart, skin.person
    to_neutral = neutral * 1000 - skin.rest

    builder = _Builder()
    field = hair_field(identity, points)
    rng = np.random.default_rng([identity.seed, 2])
    angle = np.arctan2(chart[:, 1], chart[:, 0])
    clumps = sum(np.sin(k * angle + rng.uniform(0, 6.28) + 2 * np.hypot(chart[:, 0], chart[:, 1])) / k for k in (5, 9, 17, 31))
    grow = np.clip(field / 10, 0, 1)
    above = np.clip((points[:, 1] - 15) / 60, 0, 1)
    top = np.exp(-((points[:, 0] / 76) ** 4))
    lift = grow * grow * (3 - 2 * grow) * (4 + above * (3 + 9 * top + 1.6 * clumps)) + top * np.clip(field / 45, 0, 1) * 9
    lift[:68] = 0
    outward = (points - CENTRE) / np.linalg.norm(points - CENTRE, axis=1, keepdims=True)
    hairy = points + outward * lift[:, None]
    base = hairy + weights @ to_neutral
    gloss = 0.25 + 0.25 * np.exp(-(((base[:, 0]) / 12) ** 2)) * (base[:, 1] < 0)
    lips = (np.abs(base[:, 0]) < 26) & (np.abs(base[:, 1] + 71 * identity.face_length) < 11)
    gloss = np.where(field > 0, 0.06, np.where(lips, 0.55, gloss))
    builder.add(base, weights, skin.triangles, SKIN, chart_uv(chart), 1.0, gloss)
    skin_count = builder.count

    _add_lids(builder, neutral * 1000)
    _add_mouth(builder, neutral * 1000)
    centres = _add_eyes(builder, neutral * 1000)
    _add_ears(builder, person)
    _add_neck(builder, person)

    return HeadMesh(
        base=builder.stack("base") / 1000,
        weights=builder.stack("weights"),
        triangles=np.concatenate(builder.triangles).astype(np.int32),
        uv=builder.stack("uv").astype(np.float32),
        occlusion=builder.stack("occlusion").astype(np.float32),
        gloss=builder.stack("gloss").astype(np.float32),
        material=np.concatenate(builder.materials),
        neck=builder.stack("neck").astype(np.float32),
        eye=builder.stack("eye").astype(np.uint8),
        eye_centres=centres / 1000,
        neutral=neutral,
        skin_count=skin_count,
    )


def chart_uv(chart: np.ndarray) -> np.ndarray:
    """Chart (N, 2) radians -> (N, 2) in [0, 1] of the skin's picture, u right, v down."""
    return np.stack([0.5 + chart[:, 0] / (2 * CHART_RADIUS), 0.5 - chart[:, 1] / (2 * CHART_RADIUS)], 1)


def uv_chart(uv: np.ndarray) -> np.ndarray:
    """The inverse of chart_uv."""
    return np.stack([(uv[:, 0] - 0.5) * 2 * CHART_RADIUS, (0.5 - uv[:, 1]) * 2 * CHART_RADIUS], 1)


def _add_lids(builder: _Builder, neutral: np.ndarray) -> None:
    """The lids' margins: a narrow band from the edge back to the eyeball, and the lashes' dark line on it."""
    for pair in LIDS:
        loop = _loop(pair, 19)
        edge = loop @ neutral
        n = len(edge)
        back = edge + [0, 0, -4.0]
        back[:, :2] += 0.1 * (edge[:, :2].mean(0) - edge[:, :2])
        uv = np.concatenate([np.full((n, 2), [0.1, 0.92]), np.full((n, 2), [0.1, 0.92])])
        builder.add(np.concatenate([edge, back]), np.concatenate([loop, loop]), grid_triangles(2, n, True), EYE, uv,
                    0.75, 0.2)


def _add_mouth(builder: _Builder, neutral: np.ndarray) -> None:
    """Inner lips, the dark bag behind them, two rows of teeth and a tongue."""
    loop = _loop(LIP_INNER, 65)
    edge = loop @ neutral
    n = len(edge)
    sign = np.ones(n)
    sign[65:] = -1
    corner = np.sin(np.pi * np.concatenate([np.linspace(0, 1, 65), np.linspace(1, 0, 65)[1:-1]])) ** 0.5
    rings, shade, ramp = [], [], []
    for depth, up, narrow, dark, u in ((0, 0, 1, 1, .05), (1.6, 0.1, 1, .9, .08), (4, 1.2, 1, .55, .2), (9, 6, .98, .32, .5),
                                       (20, 10, .8, .14, .8), (28, 4, 0, .05, .95)):
        ring = edge.copy()
        ring[:, 0] *= narrow
        ring[:, 1] = ring[:, 1].mean() + (ring[:, 1] - ring[:, 1].mean()) * min(1, 2 * narrow)
        ring[:, 1] += sign * up * corner * min(1, 2 * narrow)
        ring[:, 2] = ring[:, 2] * (1 if depth < 10 else 0.5) - depth if narrow else ring[:, 2].mean() / 2 - depth
        rings.append(ring)
        shade.append(np.full(n, dark))
        ramp.append(np.full(n, u))
    count = len(rings)
    uv = np.stack([np.concatenate(ramp), np.full(n * count, 0.25)], 1)
    weights = np.tile(loop, (count, 1))
    weights[-n:] = loop.mean(0)  # the bag's end is one point
    start = builder.add(np.concatenate(rings), weights, np.zeros((0, 3), int), MOUTH, uv,
                        np.concatenate(shade), 0.5)
    faces = grid_triangles(count, n, True) + start
    lip = faces.min(1) < start + n
    builder.join(faces[lip], SKIN)
    builder.join(faces[~lip], MOUTH)

    jaw = np.zeros(68)
    jaw[[7, 8, 9]] = 0.55 / 3
    jaw[[57, 66]] = 0.2
    upper_front = neutral[62, 2] - 4.5
    _add_teeth(builder, np.zeros(68), neutral[62, 1] + 7.5, neutral[62, 1] - 2.2, upper_front, 0.05)
    _add_teeth(builder, jaw, neutral[66, 1] - 2.6, neutral[66, 1] - 11, upper_front - 2.5, 0.55)
    s, t = np.meshgrid(np.linspace(0, np.pi, 13), np.linspace(0, np.pi / 2, 7), indexing="xy")
    tongue = np.stack([-17 * np.cos(s) * np.sin(t + 0.001), neutral[66, 1] - 10 + 11 * np.sin(s) * np.cos(t) ** 0.7,
                       neutral[66, 2] - 30 + 20 * np.sin(t) * (0.6 + 0.4 * np.sin(s))], -1).reshape(-1, 3)
    builder.add(tongue, np.tile(jaw, (len(tongue), 1)), np.concatenate([grid_triangles(7, 13), grid_triangles(7, 13)[:, ::-1]]),
                MOUTH, np.tile([[0.3, 0.75]], (len(tongue), 1)), 0.55, 0.5)


def _add_teeth(builder: _Builder, follow: np.ndarray, top: float, bottom: float, front: float, u_start: float) -> None:
    columns, rows = 49, 5
    across = np.linspace(-1, 1, columns)
    down = np.linspace(0, 1, rows)
    x = 21 * across
    z = front - 17 * np.abs(across) ** 2.2
    y = top + (bottom - top) * down
    scallop = (0.6 * np.abs(across) ** 2) * (1 if bottom < top else -1)
    points = np.stack([np.broadcast_to(x, (rows, columns)), y[:, None] + down[:, None] * scallop,
                       np.broadcast_to(z, (rows, columns)) + (0.8 * np.sin(np.pi * down))[:, None]], -1).reshape(-1, 3)
    uv = np.stack(np.broadcast_arrays(u_start + 0.4 * (across + 1) / 2, (0.52 + 0.2 * down)[:, None]), -1).reshape(-1, 2)
    shade = np.broadcast_to(0.72 * (1 - np.abs(across) ** 2 * 0.75), (rows, columns)).reshape(-1)
    builder.add(points, np.tile(follow, (len(points), 1)), grid_triangles(rows, columns), MOUTH, uv, shade, 0.6)


def _add_eyes(builder: _Builder, neutral: np.ndarray) -> np.ndarray:
    """Two eyeballs (front caps); returns their centres (2, 3) mm."""
    centres = []
    polar, around = np.linspace(0.02, 1.35, 22), np.linspace(0, 2 * np.pi, 40, endpoint=False)
    p, a = np.meshgrid(polar, around, indexing="ij")
    for number, pair in enumerate(LIDS, start=1):
        corners = neutral[[pair[0][0], pair[0][-1]]].mean(0)
        centre = np.array([corners[0], corners[1] + 1.0, neutral[pair[0][1:3], 2].mean() - 13.2])
        centres.append(centre)
        direction = np.stack([np.sin(p) * np.cos(a), np.sin(p) * np.sin(a), np.cos(p)], -1).reshape(-1, 3)
        uv = 0.5 + 0.5 * (p / 1.5)[..., None] * np.stack([np.cos(a), -np.sin(a)], -1)
        weights = np.zeros((direction.shape[0], 68))
        start = builder.add(centre + 12 * direction, weights, grid_triangles(22, 40, True), EYE,
                            uv.reshape(-1, 2), 1.0, 1.0, 0.0, number)
        tip = builder.add(centre[None] + [[0, 0, 12]], weights[:1], np.zeros((0, 3), int), EYE, np.array([[.5, .5]]), 1.0, 1.0,
                          0.0, number)
        k = np.arange(40)
        builder.join(np.stack([np.full(40, tip), start + k, start + (k + 1) % 40], 1), EYE)
    return np.array(centres)


def _add_ears(builder: _Builder, person) -> None:
    """Two ears: an oval dish with a raised rim, a hollow, and a lobe."""
    radius, around = np.linspace(0.02, 1, 16), np.linspace(0, 2 * np.pi, 48, endpoint=False)
    r, a = np.meshgrid(radius, around, indexing="ij")
    profile_at = [0, .25, .45, .6, .72, .82, .92, 1.0]
    profile = np.interp(r, profile_at, [-5, -4.5, -1, 3, 1.2, 1.0, 4.2, 1.0])
    shade = np.interp(r, profile_at, [.35, .45, .7, 1, .7, .7, 1, .9])
    lobe = np.clip(-np.sin(a) - 0.5, 0, 1) * 2
    profile = profile * (1 - lobe * np.clip((r - .45) * 4, 0, 1)) + lobe * 1.5
    narrow = np.where(np.sin(a) > 0, 1 + 0.12 * np.sin(a), 1 + 0.25 * np.sin(a))
    back = 17 * r * np.sign(np.cos(a)) * np.abs(np.cos(a)) ** 0.75 * narrow
    up = 31 * r * np.sin(a)
    for side in (-1, 1):
        spread = 0.62
        backward = np.array([side * np.sin(spread), 0, -np.cos(spread)])
        outward = np.array([side * np.cos(spread), 0, np.sin(spread)])
        place = person(np.array([[side * 82.0, -21.0, -66.0]]))[0]
        ear = place + back[..., None] * backward + profile[..., None] * outward + up[..., None] * np.array([0, .98, -.12])
        ear = ear.reshape(-1, 3)
        faces = grid_triangles(16, 48, True)
        if side < 0:
            faces = faces[:, ::-1]
        uv = np.tile(chart_uv(to_chart(person(np.array([[side * 66.0, -30.0, -20.0]])))), (len(ear), 1))
        builder.add(ear, np.zeros((len(ear), 68)), faces, SKIN, uv,
                    0.9 * shade.reshape(-1), 0.25)


def _add_neck(builder: _Builder, person) -> None:
    """The neck, whose upper end follows the head and whose lower end the torso."""
    levels = np.linspace(0, 1, 26)
    around = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    t, a = np.meshgrid(levels, around, indexing="ij")
    y = -62 - 150 * t
    wide = np.interp(t, [0, .3, .6, .8, 1], [55, 55, 57, 64, 84])
    deep = np.interp(t, [0, .3, .6, 1], [50, 50, 52, 58])
    z = -82 + 8 * t + deep * np.sin(a) + 3 * np.exp(-((t - .38) / .08) ** 2) * np.clip(np.sin(a), 0, 1) ** 24
    muscle = 2.5 * np.exp(-(((np.abs(np.cos(a)) - (0.75 - 0.55 * t)) / .16) ** 2)) * (np.sin(a) > 0)
    points = np.stack([wide * np.cos(a), y, z + muscle], -1).reshape(-1, 3)
    shade = np.interp(t, [0, .28, .5, .75, 1], [.25, .38, .72, 1, 1]).reshape(-1)
    follow = np.clip((t - 0.15) / 0.6, 0, 1)
    follow = follow * follow * (3 - 2 * follow)
    uv = np.stack([a / (2 * np.pi), t], -1).reshape(-1, 2)
    builder.add(points, np.zeros((len(points), 68)), grid_triangles(26, 64, True)[:, ::-1], NECK, uv, shade, 0.15,
                follow.reshape(-1))
