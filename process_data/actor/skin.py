"""The synthetic actor's skin, every vertex a linear function of the 68 landmarks.

The landmarks are vertices themselves; the edges of lips and lids are splines through them; all other vertices follow by
radial-basis interpolation of the landmarks' displacement. The skin is modelled with the mouth a little open and the
interpolation works on a flat chart of it, in which the lips are apart: so they move independently and close completely.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.interpolate import CubicSpline, RBFInterpolator
from scipy.spatial import Delaunay, cKDTree

from process_data.actor.identity import Identity
from process_data.actor.polygons import signed_distance
from process_data.actor.proportions import (
    ANCHORS,
    JAW_WEIGHT,
    REST_JAW,
    SHAPE_PLACES,
    average_landmarks,
    both_sides,
    rotate_jaw,
)

CENTRE = np.array([0.0, -25.0, -75.0])  # millimetres; the chart is the directions seen from here
CHART_RADIUS = 2.3  # radians from straight ahead to the chart's edge
# landmarks of contours, from the subject's right to left: (upper, lower) of the lips and of each eye's lids
LIP_OUTER = ([48, 49, 50, 51, 52, 53, 54], [48, 59, 58, 57, 56, 55, 54])
LIP_INNER = ([60, 61, 62, 63, 64], [60, 67, 66, 65, 64])
LIDS = (([36, 37, 38, 39], [36, 41, 40, 39]), ([42, 43, 44, 45], [42, 47, 46, 45]))
BROWS = ([17, 18, 19, 20, 21], [22, 23, 24, 25, 26])


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
    """Weights (S, 68) of the landmarks for points on the natural cubic spline through `knots`, at samples (S,) in [0, 1]."""
    at = np.linspace(0, 1, len(knots))
    rows = np.zeros((len(samples), 68))
    rows[:, knots] = CubicSpline(at, np.eye(len(knots)), bc_type="natural")(samples)
    return rows


def _closed(upper: np.ndarray, lower: np.ndarray) -> np.ndarray:
    """Join two curves with common ends into a loop: along the upper one and back along the lower one."""
    return np.concatenate([upper, lower[-2:0:-1]])


def landmark_loop(pair: tuple[list[int], list[int]], count: int = 65) -> np.ndarray:
    """Weights (2·count − 2, 68) of the landmarks for a closed contour: along the upper ones, back along the lower ones."""
    s = np.linspace(0, 1, count)
    return _closed(spline_weights(pair[0], s), spline_weights(pair[1], s))


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

    The radial basis is |r|, which overshoots far less than thin plates, so noise on a landmark hardly moves the cheeks.
    """
    return RBFInterpolator(centres, np.eye(len(centres)), kernel="linear", smoothing=1e-9)(queries)


@dataclass(frozen=True)
class Skin:
    """The skin with the mouth a little open.

    points (V, 3) mm; weights (V, 68) of the landmarks; triangles (F, 3); chart (V, 2); rest (68, 3) mm: the landmarks in this
    state; radius_of: chart (N, 2) -> distance (N,) mm from CENTRE; person: mm of the average head -> mm of this head.
    """

    points: np.ndarray
    weights: np.ndarray
    triangles: np.ndarray
    chart: np.ndarray
    rest: np.ndarray
    radius_of: Callable[[np.ndarray], np.ndarray]
    person: Callable[[np.ndarray], np.ndarray]


def _contours(identity: Identity, rest: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Landmark weights (C, 68) and rest places (C, 3) mm of the vertices along lips, lids and brows."""
    s_lip, s_lid = np.linspace(0, 1, 33), np.linspace(0, 1, 19)
    taper = np.sin(np.pi * s_lip) ** 0.6
    weights, offsets = [], []
    for fraction in (0.0, 0.14, 0.35, 0.6, 0.82, 1.0):  # of the way from the lip's outer edge to its inner one
        for side, full in ((0, 1.3), (1, 2.2)):
            rows = (1 - fraction) * spline_weights(LIP_OUTER[side], s_lip) + fraction * spline_weights(LIP_INNER[side], s_lip)
            bulge = full * identity.lip_fullness * np.sin(np.pi * fraction**0.8) * taper
            keep = slice(None) if side == 0 else slice(1, -1)
            weights.append(rows[keep])
            offsets.append(np.outer(bulge, [0, 0, 1])[keep])
    lid_offsets = {0: [(0, 0, 0), (0, 1.2, 0.8), (0, 3.6, 2.6)], 1: [(0, 0, 0), (0, -1.2, 0.5), (0, -4.2, 0.8)]}
    for upper, lower in LIDS:
        for side, knots in enumerate((upper, lower)):
            rows = spline_weights(knots, s_lid)
            taper = np.sin(np.pi * np.clip(s_lid, 0.08, 0.92)) ** 0.5
            for step, offset in enumerate(lid_offsets[side]):
                keep = slice(None) if side == 0 and step == 0 else slice(1, -1)
                follow = (1.0, 0.85, 0.3)[step]
                corner = spline_weights([knots[0], knots[-1]], s_lid)
                weights.append((follow * rows + (1 - follow) * corner)[keep])
                residual = (1 - follow) * (rows - corner) @ rest
                offsets.append((residual + np.outer(taper, offset))[keep])
    s_brow = np.linspace(0.05, 0.95, 7)
    for knots in BROWS:
        rows = spline_weights(knots, s_brow)
        for follow, down, back in ((1.0, 4.0, 2.0), (0.5, 8.5, 4.5)):
            below = np.array([0, -down, 0]) - np.outer(back * (2 * s_brow - 1) ** 2, [0, 0, 1])
            weights.append(follow * rows)
            offsets.append((1 - follow) * rows @ rest + below)
    joined, shift = np.concatenate(weights), np.concatenate(offsets)
    places = joined @ rest + shift
    fresh = cKDTree(rest).query(places)[0] > 0.35  # millimetres: not a landmark again
    joined, places = joined[fresh], places[fresh]
    first = np.sort(np.unique(np.round(places, 2), axis=0, return_index=True)[1])
    return joined[first], places[first]


def build_skin(identity: Identity, neutral: np.ndarray) -> Skin:
    """The skin of one person, whose neutral landmarks (68, 3) are in metres."""
    average = identity.reshape(average_landmarks())
    scale = 45 / average[45, 0]
    shift = -scale * (average[36] + average[45]) / 2

    def person(points: np.ndarray) -> np.ndarray:
        return identity.reshape(points) * scale + shift

    shape = both_sides(SHAPE_PLACES)
    rest = rotate_jaw(neutral * 1000, JAW_WEIGHT, REST_JAW)

    contour_weights, contour = _contours(identity, rest)

    # control points of the interpolation: landmarks, every other contour vertex, and anchors that do not move
    fixed_chart = to_chart(np.concatenate([rest, contour]))
    anchors = to_chart(person(both_sides(ANCHORS)))
    fixed_weights = np.concatenate([np.eye(68), contour_weights])
    sparse = np.concatenate([np.ones(68, bool), np.arange(len(contour)) % 2 == 0])
    control = np.concatenate([fixed_chart[sparse], anchors])
    control_weights = np.concatenate([fixed_weights[sparse], np.zeros((len(anchors), 68))])

    # SHAPE_PLACES are given for a closed mouth: move them to the open one by the same interpolation
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
    holes = [to_chart(landmark_loop(LIP_INNER) @ rest)] + [to_chart(landmark_loop(pair, 37) @ rest) for pair in LIDS]
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
    """Points (N, 3) mm of the skin -> distance (N,) inside the hair, about millimetres, negative on bare skin."""
    x, y, z = points.T
    side = np.abs(x)
    line = 68 + identity.hairline - 0.0075 * side**2 + 5 * np.exp(-(((side - 30) / 12) ** 2))
    ear = np.clip((4 - y) / 16, 0, 1)  # the hair leaves the ear free, with a sideburn before it
    behind = -z - 42 - 46 * ear**2 * (3 - 2 * ear) - np.clip(-y - 70, 0, None)
    return np.maximum(y - line, np.where(side > 40, behind, -60))


def chart_uv(chart: np.ndarray) -> np.ndarray:
    """Chart (N, 2) radians -> coordinates (N, 2) in [0, 1] of the skin's texture, u right, v down."""
    return np.stack([0.5 + chart[:, 0] / (2 * CHART_RADIUS), 0.5 - chart[:, 1] / (2 * CHART_RADIUS)], 1)


def uv_chart(uv: np.ndarray) -> np.ndarray:
    """The inverse of chart_uv."""
    return np.stack([(uv[:, 0] - 0.5) * 2 * CHART_RADIUS, (0.5 - uv[:, 1]) * 2 * CHART_RADIUS], 1)
