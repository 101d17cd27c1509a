"""The texture of the synthetic head: skin, lips, brows, hair, eyes, teeth. Numbers without a name are artistic."""

import numpy as np
from scipy.ndimage import gaussian_filter, map_coordinates, zoom

from process_data.actor.head_mesh import EYE, MOUTH, NECK, SKIN, TILES
from process_data.actor.identity import Identity
from process_data.actor.polygons import signed_distance
from process_data.actor.skin import (
    BROWS,
    LIDS,
    LIP_INNER,
    LIP_OUTER,
    Skin,
    chart_uv,
    from_chart,
    hair_field,
    landmark_loop,
    spline_weights,
    to_chart,
    uv_chart,
)

ATLAS = (1280, 1024)  # rows, columns; the skin takes the upper 1024 rows
SKIN_SIZE = 1024
SHADE = [0.72, 0.60, 0.58]  # of the skin's colour, in its shaded areas


def srgb_to_linear(color: np.ndarray) -> np.ndarray:
    """sRGB in [0, 1] -> linear light, IEC 61966-2-1."""
    color = np.asarray(color)
    return np.where(color <= 0.04045, color / 12.92, ((np.maximum(color, 0) + 0.055) / 1.055) ** 2.4)


def linear_to_srgb(light: np.ndarray) -> np.ndarray:
    """Linear light -> sRGB in [0, 1], clipped, IEC 61966-2-1."""
    light = np.clip(light, 0, 1)
    return np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)


def noise(rng: np.random.Generator, shape: tuple[int, int], sigma: float | tuple[float, float]) -> np.ndarray:
    """Smooth noise (rows, columns) float32 of zero mean and unit deviation, blurred by sigma pixels."""
    shrink = max(1, int(np.min(sigma) // 3))
    small = tuple(-(-n // shrink) + 1 for n in shape)
    field = gaussian_filter(rng.standard_normal(small).astype(np.float32), np.divide(sigma, shrink), mode="wrap")
    if shrink > 1:
        field = zoom(field, shrink, order=1)
    field = field[: shape[0], : shape[1]]
    return (field - field.mean()) / (field.std() + 1e-12)


def smoothstep(low: float, high: float, x: np.ndarray) -> np.ndarray:
    """0 below low, 1 above high, smooth between."""
    t = np.clip((x - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def _blend(picture: np.ndarray, color, amount: np.ndarray) -> None:
    """Mix a colour into the picture (rows, columns, 3) by amount (rows, columns), 0 … 1, in place."""
    picture += amount[..., None] * (np.asarray(color, np.float32) - picture)


def _strokes(amount: np.ndarray, starts: np.ndarray, ends: np.ndarray, width: float) -> None:
    """Darken `amount` (rows, columns) along tapering straight hairs from starts to ends (N, 2), texels, u then v."""
    for start, end in zip(starts, ends):
        low = np.floor(np.minimum(start, end) - 3).astype(int)
        high = np.ceil(np.maximum(start, end) + 3).astype(int)
        x, y = np.meshgrid(np.arange(low[0], high[0]) + 0.5, np.arange(low[1], high[1]) + 0.5)
        direction = end - start
        along = np.clip(((x - start[0]) * direction[0] + (y - start[1]) * direction[1]) / (direction @ direction), 0, 1)
        distance = np.hypot(x - start[0] - along * direction[0], y - start[1] - along * direction[1])
        hair = np.clip(1.2 - distance / (width * (1 - 0.6 * along)), 0, 1) * 0.75
        window = amount[low[1] : high[1], low[0] : high[0]]
        np.maximum(window, hair, out=window)


def _spot(points: np.ndarray, centre, radii) -> np.ndarray:
    """Gaussian spot (rows, columns) at the points (rows, columns, 3) mm around centre (x, y), on both sides of the face."""
    x, y = np.abs(points[..., 0]) - centre[0], points[..., 1] - centre[1]
    return np.exp(-((x / radii[0]) ** 2) - (y / radii[1]) ** 2)


def paint_skin(identity: Identity, skin: Skin) -> np.ndarray:
    """(1024, 1024, 3) float32 sRGB on the chart of the skin, occlusion included."""
    rng = np.random.default_rng([identity.seed, 3])
    n = SKIN_SIZE
    points = _chart_points(skin)
    base = np.array(identity.skin, np.float32)
    picture = np.broadcast_to(base, (n, n, 3)).copy()
    _paint_tones(picture, points, identity, skin.rest, rng)
    _paint_nostrils(picture, points, base, skin.rest)
    _paint_lips(picture, points, base, skin.rest, rng)
    _paint_lids(picture, points, identity, skin.rest)
    _paint_brows(picture, identity, skin.rest, rng)
    _paint_hair(picture, points, identity, rng)
    return np.clip(picture, 0.01, 1)


def _chart_points(skin: Skin) -> np.ndarray:
    """Place (1024, 1024, 3) float32 mm of every texel of the skin's picture on the rest face."""
    coarse = 129  # places computed exactly along each side; the others are interpolated
    axis = np.linspace(0, 1, coarse)
    u, v = np.meshgrid(axis, axis)
    chart = uv_chart(np.stack([u.ravel(), v.ravel()], 1))
    shrink = np.minimum(1, 2.25 / np.maximum(np.hypot(chart[:, 0], chart[:, 1]), 1e-9))
    chart *= shrink[:, None]
    places = from_chart(chart, skin.radius_of(chart)).reshape(coarse, coarse, 3)
    at = (np.arange(SKIN_SIZE) + 0.5) / SKIN_SIZE * (coarse - 1)
    grid = np.meshgrid(at, at, indexing="ij")
    return np.stack([map_coordinates(places[..., k], grid, order=1) for k in range(3)], -1).astype(np.float32)


def _frontal(points: np.ndarray) -> np.ndarray:
    """Texels (rows, columns) bool on the front of the face."""
    return (points[..., 2] > -60) & (np.abs(points[..., 0]) < 85)


def _paint_tones(picture: np.ndarray, points: np.ndarray, identity: Identity, rest: np.ndarray, rng: np.random.Generator) -> None:
    """Mottling, red and shaded areas, freckles; in place, as the functions below. rest (68, 3) mm: the rest landmarks."""
    n = len(picture)
    x, y = points[..., 0], points[..., 1]
    base = np.array(identity.skin, np.float32)
    mottle = 0.6 * noise(rng, (n, n), 3) + 0.8 * noise(rng, (n, n), 11) + 0.8 * noise(rng, (n, n), 34)
    picture *= (1 + 0.016 * mottle)[..., None]
    picture[..., 0] *= 1 + 0.012 * noise(rng, (n, n), 22)
    red, shade = base * [1.02, 0.80, 0.78], base * SHADE
    _blend(picture, red, 0.38 * _spot(points, (42, -34), (19, 15)))
    _blend(picture, red, 0.50 * _spot(points, (0, -36), (14, 9)))
    _blend(picture, red, 0.30 * _spot(points, (0, -112), (18, 12)))
    _blend(picture, shade, 0.28 * _spot(points, (25, -9), (15, 6)))
    _blend(picture, shade, 0.40 * _spot(points, (19, 5), (7, 9)))
    _blend(picture, shade, 0.25 * _spot(points, (33, 9), (17, 4)))
    _blend(picture, shade, 0.25 * _spot(points, (25, -52), (5, 13)) + 0.16 * _spot(points, (0, -54), (3, 6)))
    _blend(picture, shade, 0.35 * _spot(points, (0, rest[57, 1] - 5), (17, 4)))
    _blend(picture, shade, 0.30 * _spot(points, (18, -44), (5, 5)))
    _blend(picture, base * 0.45, 0.75 * smoothstep(-112, -136, y + 0.12 * np.abs(x)))
    spots = noise(rng, (n, n), 1.7) * smoothstep(50, 15, np.hypot(np.abs(x) - 30, y + 24))
    _blend(picture, base * [0.74, 0.60, 0.50], identity.freckles * 0.4 * smoothstep(1.4, 2.2, spots))


def _paint_nostrils(picture: np.ndarray, points: np.ndarray, base: np.ndarray, rest: np.ndarray) -> None:
    x, y = points[..., 0], points[..., 1]
    nose = rest[[32, 34]].mean(0)
    nostril = np.exp(-(((np.abs(x) - 8.0) / 4.0) ** 2) - ((y - nose[1] - 2.2 - 0.1 * np.abs(x)) / 2.0) ** 2)
    nostril *= points[..., 2] > 10
    _blend(picture, base * 0.16, np.clip(1.25 * nostril, 0, 0.92))


def _paint_lips(picture: np.ndarray, points: np.ndarray, base: np.ndarray, rest: np.ndarray, rng: np.random.Generator) -> None:
    n = len(picture)
    x, y = points[..., 0], points[..., 1]
    window = _frontal(points) & (np.abs(y - rest[57, 1] + 10) < 45) & (np.abs(x) < 45)
    flat = points[window][:, :2].astype(np.float64)
    outer = signed_distance(flat, (landmark_loop(LIP_OUTER) @ rest)[:, :2])
    inner = signed_distance(flat, (landmark_loop(LIP_INNER) @ rest)[:, :2])
    lip_color = base * [0.88, 0.62, 0.62]
    amount = np.zeros((n, n), np.float32)
    amount[window] = smoothstep(-1.0, 1.2, outer) * 0.9
    wrinkles = 1 + 0.05 * noise(rng, (n, n), (7, 1.4))
    _blend(picture, lip_color * wrinkles[..., None], amount)
    rim = np.zeros((n, n), np.float32)
    rim[window] = np.exp(-((outer + 1.5) / 1.5) ** 2) * 0.10
    _blend(picture, np.minimum(base * 1.2, 1), rim)
    dark = np.zeros((n, n), np.float32)
    dark[window] = smoothstep(-1.2, 0.0, inner) * 0.5
    _blend(picture, base * [0.38, 0.20, 0.20], dark)


def _paint_lids(picture: np.ndarray, points: np.ndarray, identity: Identity, rest: np.ndarray) -> None:
    """Lash lines and creases."""
    n = len(picture)
    x, y, frontal = points[..., 0], points[..., 1], _frontal(points)
    base = np.array(identity.skin, np.float32)
    shade = base * SHADE
    for upper, lower in LIDS:
        s = np.linspace(0, 1, 40)
        for knots, side in ((upper, 1), (lower, -1)):
            edge = spline_weights(knots, s) @ rest
            box = frontal & (np.abs(x - edge[:, 0].mean()) < 24) & (np.abs(y) < 20)
            here = points[box][:, :2].astype(np.float64)
            arc = np.concatenate([edge[:, :2], edge[::-1, :2] + [0, 1e-3]])
            lash = -signed_distance(here, arc)
            mask = np.zeros((n, n), np.float32)
            mask[box] = np.exp(-((np.abs(lash) / (1.5 if side > 0 else 0.8)) ** 2)) * (0.92 if side > 0 else 0.40)
            _blend(picture, np.array(identity.hair) * 0.25 + base * 0.05, mask)
            crease = edge[:, :2] + np.outer(np.sin(np.pi * np.clip(s, .1, .9)) ** 0.5, [0, 5.2 if side > 0 else -6.5])
            arc = np.concatenate([crease, crease[::-1] + [0, 1e-3]])
            fold = np.zeros((n, n), np.float32)
            fold[box] = np.exp(-((signed_distance(here, arc) / 1.3) ** 2)) * (0.42 if side > 0 else 0.16)
            _blend(picture, shade * 0.8, fold)


def _paint_brows(picture: np.ndarray, identity: Identity, rest: np.ndarray, rng: np.random.Generator) -> None:
    n = len(picture)
    hairs = np.zeros((n, n), np.float32)
    for knots, side in zip(BROWS, (-1, 1)):
        s = rng.uniform(0, 1, 300)
        outward = s if side > 0 else 1 - s  # 0 at the nose, 1 at the temple
        spine = spline_weights(knots, s) @ rest
        thick = np.interp(outward, [0, .25, .7, 1], [1.6, 2.9, 2.0, 0.7])
        root = spine + [0, -1.2, 0]
        root[:, 1] += rng.uniform(-1, 1, len(s)) * thick
        lean = np.interp(outward, [0, .3, 1], [1.3, 0.65, -0.25]) + rng.normal(0, 0.12, len(s))
        length = np.interp(outward, [0, .5, 1], [4.5, 6, 5])
        tip = root + np.stack([side * np.cos(lean) * length, np.sin(lean) * length, -0.3 * length], 1)
        _strokes(hairs, chart_uv(to_chart(root)) * n, chart_uv(to_chart(tip)) * n, 1.6)
    _blend(picture, np.array(identity.hair) * 0.9, np.clip(gaussian_filter(hairs, 0.8), 0, 0.85))


def _paint_hair(picture: np.ndarray, points: np.ndarray, identity: Identity, rng: np.random.Generator) -> None:
    """Strands that run back over the head, away from the face."""
    n = len(picture)
    uu, vv = np.meshgrid((np.arange(n) + 0.5) / n - 0.5, 0.5 - (np.arange(n) + 0.5) / n)
    angle, away = np.arctan2(vv, uu), np.hypot(uu, vv)
    bent = angle + 0.35 * np.sin(3 * away * 6 + 1.0) * (away - 0.1)
    strands = np.zeros((n, n), np.float32)
    for period, weight in ((420, 0.5), (1400, 0.7), (2600, 0.5)):
        line = gaussian_filter(rng.standard_normal((period, 12)).astype(np.float32), (0.6, 1.0), mode="wrap")
        turn = (bent + np.pi) / (2 * np.pi) * period
        strands += weight * map_coordinates(line / line.std(), [turn, away * 24], order=1, mode="wrap")
    field = hair_field(identity, points.reshape(-1, 3)).reshape(n, n) + 2.2 * strands + 1.5 * noise(rng, (n, n), 6)
    shine = 0.55 * np.exp(-((away - 0.27) / 0.05) ** 2)
    hair = np.array(identity.hair, np.float32) * (1 + 0.28 * strands + shine)[..., None]
    cover = smoothstep(-2.0, 5.0, field)
    picture += cover[..., None] * (np.clip(hair, 0.01, 1) - picture)


def paint_eye(identity: Identity, size: tuple[int, int]) -> np.ndarray:
    """(rows, columns, 3) sRGB of the eyeball, its axis in the middle; the corners have the colour of the lids' margins."""
    rng = np.random.default_rng([identity.seed, 4])
    rows, columns = size
    x, y = np.meshgrid((np.arange(columns) + 0.5) / columns * 2 - 1, (np.arange(rows) + 0.5) / rows * 2 - 1)
    polar = np.hypot(x, y) * 1.5
    angle = np.arctan2(y, x)
    picture = np.broadcast_to(np.array([0.90, 0.87, 0.85]), (rows, columns, 3)).copy()
    _blend(picture, (0.84, 0.62, 0.58), 0.5 * smoothstep(0.6, 1.1, polar))
    rays = sum(np.sin(k * angle + rng.uniform(0, 6.28)) for k in (9, 14, 23, 31)) / 4
    iris = np.array(identity.iris) * (1.15 + 0.28 * rays + 0.35 * smoothstep(0.42, 0.22, polar))[..., None]
    inside = smoothstep(0.53, 0.48, polar)
    picture += inside[..., None] * (iris - picture)
    _blend(picture, np.array(identity.iris) * 0.30, 0.8 * np.exp(-((polar - 0.49) / 0.045) ** 2))
    _blend(picture, (0.02, 0.02, 0.02), smoothstep(0.23, 0.19, polar))
    _blend(picture, np.array(identity.skin) * [0.62, 0.44, 0.40], (np.hypot(x, y) > 0.97).astype(float))
    return np.clip(picture, 0.01, 1)


def paint_mouth(identity: Identity, size: tuple[int, int]) -> np.ndarray:
    """(rows, columns, 3) sRGB: the ramp from lip to throat above, below it the teeth, at the bottom the tongue."""
    rows, columns = size
    u, v = np.meshgrid((np.arange(columns) + 0.5) / columns, (np.arange(rows) + 0.5) / rows)
    lip = np.array(identity.skin) * [0.80, 0.50, 0.50]
    t = smoothstep(0.05, 0.3, u)[..., None]
    picture = lip * (1 - t) + np.array([0.42, 0.16, 0.15]) * t
    teeth = (v > 0.5) & (v < 0.735)
    along = (u % 0.5) / 0.5
    # eight visible teeth across the arch; the gaps are where the sine of the tooth count is near zero
    place = np.sign(along - 0.5) * np.abs((along - 0.5) * 2) ** 1.15
    gap = np.abs(np.sin(np.pi * 4.2 * place))
    enamel = np.array([0.93, 0.90, 0.84]) * (0.80 + 0.20 * smoothstep(0.0, 0.30, gap))[..., None]
    gum = smoothstep(0.535, 0.52, v)[..., None]
    enamel = enamel * (1 - gum) + np.array([0.72, 0.42, 0.40]) * gum
    picture = np.where(teeth[..., None], enamel, picture)
    return np.where((v >= 0.735)[..., None], np.array([0.74, 0.40, 0.39]), picture)


def paint_neck(identity: Identity, size: tuple[int, int]) -> np.ndarray:
    """(rows, columns, 3) sRGB of the neck's skin, around × down."""
    rng = np.random.default_rng([identity.seed, 5])
    mottle = 0.7 * noise(rng, size, 4) + 0.7 * noise(rng, size, 12)
    return np.clip(np.array(identity.skin) * [0.97, 0.95, 0.94] * (1 + 0.016 * mottle)[..., None], 0.01, 1)


def paint_atlas(identity: Identity, skin: Skin) -> np.ndarray:
    """(1280, 1024, 3) float32 linear light: the texture of each material at its tile."""
    atlas = np.zeros((*ATLAS, 3), np.float32)
    for material, paint in ((SKIN, None), (EYE, paint_eye), (MOUTH, paint_mouth), (NECK, paint_neck)):
        left, top, width, height = TILES[material]
        rows = slice(round(top * ATLAS[0]), round((top + height) * ATLAS[0]))
        columns = slice(round(left * ATLAS[1]), round((left + width) * ATLAS[1]))
        size = (rows.stop - rows.start, columns.stop - columns.start)
        atlas[rows, columns] = srgb_to_linear(paint_skin(identity, skin) if paint is None else paint(identity, size))
    return atlas
