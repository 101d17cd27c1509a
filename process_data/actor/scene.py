"""Torso and background of the synthetic actor: the clothed torso as a flat layer, and the room behind."""

import numpy as np
from scipy.interpolate import PchipInterpolator
from scipy.ndimage import gaussian_filter

from process_data.actor.identity import Identity
from process_data.actor.polygons import signed_distance
from process_data.actor.texture import noise, smoothstep, srgb_to_linear

VISIBLE_HEIGHT = 0.45  # metres that fill the picture at the distance of the eyes
EYE_LINE = 0.40  # of the picture's height, from its top
PLATE_MARGIN = 0.2  # of the picture's size that the torso layer reaches beyond each edge
PLATE_SCALE = 2  # torso layer samples a pixel
KEY_LIGHT = np.array([-0.42, -0.50, -0.76])  # directions to the lights, x right, y down, z away from the camera
FILL_LIGHT = np.array([0.75, -0.10, -0.65])


def _fill(layer: np.ndarray, color, amount: np.ndarray) -> None:
    """Paint a colour over a premultiplied RGBA layer (rows, columns, 4) by amount (rows, columns), in place."""
    color = np.broadcast_to(np.asarray(color, np.float32), (*amount.shape, 3))
    layer *= (1 - amount)[..., None]
    layer[..., :3] += color * amount[..., None]
    layer[..., 3] += amount


def _light(height: np.ndarray, metre: float) -> np.ndarray:
    """Diffuse shading (rows, columns) of a height map in metres with `metre` samples to a metre."""
    dy, dx = np.gradient(height * metre)
    normal = np.stack([dx, dy, -np.ones_like(dx)], -1)
    normal /= np.linalg.norm(normal, axis=-1, keepdims=True)
    key = np.clip((normal @ (KEY_LIGHT / np.linalg.norm(KEY_LIGHT)) + 0.2) / 1.2, 0, 1)
    fill = np.clip(normal @ (FILL_LIGHT / np.linalg.norm(FILL_LIGHT)), 0, 1)
    return (0.26 + 0.80 * key + 0.22 * fill).astype(np.float32)


def _plate_grid(size: int) -> tuple[int, float, np.ndarray, np.ndarray]:
    """Samples along a side of the torso layer and to a metre; metres right of the middle and below a line 20 mm above the
    eyes of each sample."""
    n = round(size * PLATE_SCALE * (1 + 2 * PLATE_MARGIN))
    metre = size * PLATE_SCALE / VISIBLE_HEIGHT
    grid = (np.arange(n) + 0.5) / metre
    x, y = np.meshgrid(grid - (0.5 + PLATE_MARGIN) * VISIBLE_HEIGHT, grid - (EYE_LINE + PLATE_MARGIN) * VISIBLE_HEIGHT + 0.020)
    return n, metre, x, y


def paint_torso(identity: Identity, size: int) -> np.ndarray:
    """(N, N, 4) float32 premultiplied linear RGBA: jacket, shirt and collar, where the neck shows through.

    N = size·PLATE_SCALE·(1 + 2·PLATE_MARGIN); it covers the picture and a margin of PLATE_MARGIN·size around it.
    """
    rng = np.random.default_rng([identity.seed, 6])
    n, metre, x, y = _plate_grid(size)
    side = np.abs(x)
    flat = np.stack([x.ravel(), y.ravel()], 1)
    mirrored = np.stack([side.ravel(), y.ravel()], 1)
    edge = 1.2 / metre

    def inside(polygon, points=flat) -> np.ndarray:
        return signed_distance(points, np.array(polygon, float)).reshape(n, n)

    shoulder = 0.166 + 0.30 * np.clip(side - 0.062, 0, None) + 3.2 * np.clip(side - 0.17, 0, None) ** 2 \
        - 0.6 * np.clip(0.068 - side, 0, None)
    depth = y - shoulder
    body = depth * 0.95
    opening = (0.345 - y) * 0.36 - side  # positive inside the V of the jacket
    wobble = gaussian_filter(rng.standard_normal((n, n)).astype(np.float32), metre * 0.014)
    folds = wobble / wobble.std() * 0.0016
    folds += 0.003 * np.sin(x * 38 + np.abs(x) * 55 - y * 42) * smoothstep(0.10, 0.2, side)
    bulk = -0.10 * (side / 0.23) ** 2 - 0.035 * np.exp(-np.clip(depth, 0, None) / 0.018)
    layer = np.zeros((n, n, 4), np.float32)

    # shirt
    shirt_height = 0.4 * bulk + 0.5 * folds - 0.02 * np.exp(-np.clip(0.062 - side, 0, None) / 0.02)
    stripes = 1 - 0.10 * smoothstep(0.55, 0.9, np.cos(2 * np.pi * x / 0.0085))
    cloth = srgb_to_linear(np.array(identity.shirt)) * (stripes * _light(shirt_height, metre))[..., None]
    neck_hole = np.minimum((0.221 - y) * 0.9 - 0.55 * side, 0.058 - side)
    shade = 1 - 0.45 * np.exp(-np.clip(-neck_hole, 0, None) / 0.014)
    _fill(layer, cloth * shade[..., None], smoothstep(-edge, edge, np.minimum(np.minimum(body, -neck_hole), opening + 0.02)))

    # placket and buttons
    amount = smoothstep(0.0008, 0, np.abs(side - 0.011)) * (y > 0.223) * 0.35
    _fill(layer, cloth * 0.6, amount * layer[..., 3])
    for centre in (0.246, 0.286, 0.326):
        button = smoothstep(0.0042, 0.0036, np.hypot(x, y - centre))
        _fill(layer, srgb_to_linear(np.array(identity.shirt) * 0.62), button)

    # jacket
    weave = 1 + 0.10 * noise(rng, (n, n), 1.6 * size / 256 * PLATE_SCALE / 2) + 0.08 * noise(rng, (n, n), 4 * size / 256)
    check = 1 + 0.30 * np.maximum(smoothstep(0.0016, 0.0006, np.abs((x + 0.013) % 0.034 - 0.017)),
                                  smoothstep(0.0016, 0.0006, np.abs(y % 0.041 - 0.0205)))
    jacket = srgb_to_linear(np.array(identity.jacket)) * 1.15
    jacket_light = _light(bulk + folds, metre)
    coat = jacket * (weave * check * jacket_light)[..., None]
    _fill(layer, coat, smoothstep(-edge, edge, np.minimum(body, -opening)))
    shadow = np.exp(-np.clip(opening, 0, None) / 0.007) * (opening > 0)
    _fill(layer, layer[..., :3] * 0.35, 0.6 * shadow * layer[..., 3])
    lapel = np.array([(0.040, 0.150), (0.074, 0.150), (0.094, 0.222), (0.122, 0.214), (0.116, 0.262), (0.050, 0.420),
                      (-0.03, 0.420), (-0.03, 0.340), (0.03, 0.2)])
    for sign in (-1, 1):
        distance = inside(lapel, np.stack([sign * flat[:, 0], flat[:, 1]], 1))
        distance = np.minimum(distance, -opening)
        soft = _light(bulk + folds + 0.006 * np.clip(distance / 0.004, 0, 1) ** 0.5 * 0.4, metre)
        fall = smoothstep(0.010, 0.0, -distance) * (distance < 0)
        _fill(layer, layer[..., :3] * 0.45, 0.7 * fall * (layer[..., 3] > 0.5) * (opening < 0))
        rim = 1 - 0.25 * np.exp(-np.abs(distance) / 0.0014)
        _fill(layer, jacket * 1.08 * (weave * check * soft * rim)[..., None],
              smoothstep(-edge, edge, np.minimum(distance, body)))

    # collar of the shirt over it
    collar = np.array([(0.054, 0.148), (0.067, 0.152), (0.078, 0.178), (0.050, 0.226), (0.004, 0.221), (0.030, 0.200),
                       (0.048, 0.180)])
    distance = inside(collar, mirrored)
    fall = np.exp(-np.clip(-distance, 0, None) / 0.004) * (distance < 0) * 0.6
    _fill(layer, layer[..., :3] * 0.4, fall * layer[..., 3])
    roll = _light(-0.004 * np.exp(-np.clip(distance, 0, None) / 0.003) - 0.10 * side**2 / 0.08, metre)
    stitch = 1 - 0.18 * np.exp(-(((distance - 0.0035) / 0.0007) ** 2))
    _fill(layer, srgb_to_linear(np.minimum(np.array(identity.shirt) * 1.04, 1)) * (roll * stitch)[..., None],
          smoothstep(-edge, edge, distance))
    return layer


def paint_bare_shoulders(identity: Identity, size: int) -> np.ndarray:
    """The torso of `paint_torso` without jacket and shirt: bare neckline, shoulders and chest, and a top below them."""
    rng = np.random.default_rng([identity.seed, 8])
    n, metre, x, y = _plate_grid(size)
    side = np.abs(x)
    edge = 1.2 / metre
    outline = PchipInterpolator([0, 0.040, 0.056, 0.08, 0.12, 0.155, 0.185, 0.207, 0.222, 0.24, 0.4],
                                [0.110, 0.132, 0.152, 0.168, 0.181, 0.192, 0.208, 0.232, 0.265, 0.34, 0.9])
    body = (y - outline(side)) / np.hypot(1, outline(side, 1))  # metres inside the shoulders
    depth = np.clip(body, 0, None)
    # towards the camera: chest, round shoulders, collar bones with a hollow above, the notch between them
    collar = np.interp(side, [0.012, 0.05, 0.10, 0.15], [0.207, 0.201, 0.193, 0.187])
    along = smoothstep(0.010, 0.022, side) * smoothstep(0.165, 0.12, side)
    height = -1.0 * side**2 - 0.022 * np.exp(-depth / 0.012) - 0.010 * np.exp(-depth / 0.045)
    height += 0.0035 * along * np.exp(-(((y - collar) / 0.006) ** 2))
    height -= 0.0040 * along * np.exp(-(((y - collar + 0.012) / 0.009) ** 2))
    height -= 0.0045 * np.exp(-((x / 0.011) ** 2) - ((y - 0.204) / 0.011) ** 2)
    height += 0.016 * np.exp(-(((side - 0.075) / 0.05) ** 2) - ((y - 0.31) / 0.055) ** 2)
    height += 0.006 * np.exp(-(((side - 0.175) / 0.03) ** 2) - ((y - 0.235) / 0.05) ** 2)
    mottle = 0.7 * noise(rng, (n, n), 0.0022 * metre) + 0.7 * noise(rng, (n, n), 0.007 * metre)
    skin = srgb_to_linear(np.clip(np.array(identity.skin) * [0.97, 0.95, 0.94] * (1 + 0.016 * mottle)[..., None], 0.01, 1))
    armpit = 0.45 * np.exp(-(((side - 0.150 - 0.25 * (y - 0.30)) / 0.006) ** 2)) * smoothstep(0.262, 0.30, y)
    layer = np.zeros((n, n, 4), np.float32)
    beside_neck = smoothstep(0, 1, np.maximum((side - 0.040) / 0.020, (y - 0.172) / 0.040))
    light = (_light(-height, metre) * (1 - armpit))[..., None]
    _fill(layer, (skin + 0.014) * light, smoothstep(-edge, edge, body) * beside_neck)
    hem = y - 0.262 + 0.10 * np.clip(0.07 - side, 0, None) - 0.05 * np.clip(side - 0.1, 0, None)
    wobble = gaussian_filter(rng.standard_normal((n, n)).astype(np.float32), metre * 0.012)
    top = _light(-height + wobble / wobble.std() * 0.0012 - 0.0015 * np.exp(-np.abs(hem - 0.004) / 0.0015), metre)
    covered = np.minimum(body, 0.163 + 0.25 * (y - 0.30) - side)
    fall = smoothstep(-0.008, 0, np.minimum(hem, covered))
    _fill(layer, layer[..., :3] * 0.5, 0.5 * fall * layer[..., 3])
    _fill(layer, srgb_to_linear(np.array(identity.jacket)) * top[..., None],
          smoothstep(-edge, edge, np.minimum(hem, covered)))
    return layer


def paint_background(identity: Identity, size: int, night: bool = False) -> np.ndarray:
    """(size, size, 3) uint8 sRGB: a wall with shelves, a picture and a lamp, out of focus; at night as dark as the hair."""
    rng = np.random.default_rng([identity.seed, 7])
    grid = (np.arange(size) + 0.5) / size
    x, y = np.meshgrid(grid if identity.seed % 2 == 0 else grid[::-1], grid)
    wall = np.array(identity.hair if night else identity.wall)
    lit = 0.2 if night else 1.0
    picture = wall * (1.12 - 0.30 * np.hypot(x - 0.25, y - 0.15))[..., None]
    left = 0.60 + rng.uniform(0, 0.1)
    for shelf in range(4):
        top = 0.02 + 0.24 * shelf
        place = left
        while place < 1.0:
            wide, tall = rng.uniform(0.016, 0.040), rng.uniform(0.12, 0.185)
            color = np.clip(wall * rng.uniform(0.45, 1.1) + rng.normal(0, 0.09, 3), 0.05, 0.95)
            book = (x > place) & (x < place + wide) & (y > top + 0.2 - tall) & (y < top + 0.2)
            picture[book] = color
            place += wide + rng.uniform(0, 0.012)
        picture[(x > left - 0.02) & (y > top + 0.2) & (y < top + 0.222)] = wall * 0.55
    frame = (x > 0.05) & (x < 0.27) & (y > 0.08) & (y < 0.42)
    picture[frame] = wall * 0.5
    inner = (x > 0.068) & (x < 0.252) & (y > 0.098) & (y < 0.402)
    view = np.stack([0.75 - 0.25 * y, 0.80 - 0.15 * y, 0.85 - 0.35 * x], -1)
    picture[inner] = view[inner] * lit
    hills = inner & (y > 0.28 + 0.03 * np.sin(x * 40))
    picture[hills] = np.array((0.38, 0.46, 0.38)) * lit
    picture = gaussian_filter(picture, (size * 0.010, size * 0.010, 0))
    glow = np.exp(-((x - 0.12) ** 2 + (y - 0.62) ** 2) / 0.03)[..., None]
    picture = picture + glow * np.array([0.16, 0.12, 0.05]) * lit
    grain = 0.006 * noise(rng, (size, size), max(0.6, size / 400)) + 0.010 * noise(rng, (size, size), size / 60)
    picture = picture * (1 + grain[..., None]) * 0.92
    return np.round(255 * np.clip(picture, 0, 1)).astype(np.uint8)
