"""The synthetic actor's hair as strands: long, curly, in braids, in a knot, and a beard. Lengths are millimetres of head space.

Strands start on the scalp, run along the head to its side or back, and fall from there. Numbers without a name are artistic.
"""

from collections.abc import Callable

import numpy as np
from scipy.interpolate import CubicSpline
from scipy.spatial import cKDTree

from process_data.actor.head_mesh import HeadMesh
from process_data.actor.identity import Identity
from process_data.actor.look import Look
from process_data.actor.mesh_raster import vertex_normals
from process_data.actor.skin import Skin, hair_field
from process_data.actor.texture import smoothstep, srgb_to_linear
from process_data.actor.tubes import BEHIND, HEAD_LAYER, MIDDLE, TubeBuilder

BUN = np.array([0.0, 134.0, -112.0])  # middle of the knot
BUN_AXIS = np.array([0.0, 0.75, -0.66])
BUN_RADIUS = 26.0
BRAID = np.array([(72, -56, -94), (80, -92, -84), (88, -130, -62), (85, -168, -30), (78, -205, -8), (73, -250, 0)], float)
PLAIT_WIDTH, PLAIT_DEPTH, PLAIT_LENGTH, PLAIT_RADIUS = 6.5, 4.0, 38.0, 5.2
Surface = Callable[[np.ndarray], np.ndarray]  # unit directions (..., 3) from MIDDLE -> distance (...) of the head's surface


def add_hair(builder: TubeBuilder, identity: Identity, head: HeadMesh, skin: Skin, look: Look) -> None:
    """Add all the strands that the look wants to the builder."""
    rng = np.random.default_rng([identity.seed, 10])
    base = head.base[: head.skin_count] * 1000
    field = hair_field(identity, skin.points)[skin.triangles].mean(1)
    surface = _surface(base)
    color = srgb_to_linear(np.array(identity.hair))
    if look.hair == "long":
        _add_long(builder, rng, _scalp(rng, base, skin.triangles, field, 2800), surface, color)
    elif look.hair == "curly":
        _add_curly(builder, rng, _scalp(rng, base, skin.triangles, field, 330), surface, color)
    elif look.hair == "braids":
        _add_braids(builder, rng, _scalp(rng, base, skin.triangles, field, 1500), surface, color)
    if look.bun:
        _add_bun(builder, rng, _scalp(rng, base, skin.triangles, field, 1300), surface, color)
    if look.beard:
        _add_beard(builder, rng, head, skin, identity, color)


def _surface(points: np.ndarray) -> Surface:
    direction = points - MIDDLE
    distance = np.linalg.norm(direction, axis=1)
    tree = cKDTree(direction / distance[:, None])

    def radius(towards: np.ndarray) -> np.ndarray:
        gap, near = tree.query(towards.reshape(-1, 3), 6)
        weight = 1 / (gap + 0.02) ** 2
        return ((distance[near] * weight).sum(1) / weight.sum(1)).reshape(towards.shape[:-1])

    return radius


def _places(rng: np.random.Generator, points: np.ndarray, triangles: np.ndarray, dense: np.ndarray,
            count: int) -> tuple[np.ndarray, np.ndarray]:
    """Random places on triangles (F, 3), dense (F,) to an area: their corners (count, 3) and weights of these (count, 3)."""
    a, b, c = (points[triangles[:, k]] for k in range(3))
    area = dense * np.linalg.norm(np.cross(b - a, c - a), axis=1)
    chosen = triangles[rng.choice(len(triangles), count, p=area / area.sum())]
    u = rng.random((count, 2))
    u = np.where(u.sum(1, keepdims=True) > 1, 1 - u, u)
    return chosen, np.concatenate([1 - u.sum(1, keepdims=True), u], 1)


def _scalp(rng: np.random.Generator, points: np.ndarray, triangles: np.ndarray, field: np.ndarray, count: int) -> np.ndarray:
    """Random roots (count, 3) on triangles (F, 3) that lie `field` (F,) millimetres inside the hair; dense at the hairline."""
    corners, weights = _places(rng, points, triangles, np.where(field < 7, 3.0, 1.0) * (field > 0.5), count)
    return (points[corners] * weights[..., None]).sum(1)


def _polar(points: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points (N, 3) -> about MIDDLE the angle from straight up, the angle from the front, 0 to π, and the side, ±1."""
    x, y, z = (points - MIDDLE).T
    return np.arctan2(np.hypot(x, z), y), np.arctan2(np.abs(x), z), np.where(x < 0, -1.0, 1.0)


def _direction(theta: np.ndarray, phi: np.ndarray, side: np.ndarray) -> np.ndarray:
    """The inverse of _polar, as unit directions (N, K, 3) of angles (N, K) and sides (N,)."""
    return np.stack([side[:, None] * np.sin(theta) * np.sin(phi), np.cos(theta), np.sin(theta) * np.cos(phi)], -1)


def _along_scalp(roots: np.ndarray, surface: Surface, theta_end: np.ndarray, phi_end: np.ndarray, lift: np.ndarray,
                 count: int) -> np.ndarray:
    """Paths (N, count, 3) over the head from the roots, first to the side and then down; lift (N,) above the surface there."""
    theta, phi, side = _polar(roots)
    t = np.linspace(0, 1, count)
    towards = _direction(theta[:, None] + np.outer(theta_end - theta, t),
                         phi[:, None] + np.outer(phi_end - phi, 1 - (1 - t) ** 2.5), side)
    return MIDDLE + towards * (surface(towards) + 1 + lift[:, None] * t**0.6)[..., None]


def _curtain(rng: np.random.Generator, roots: np.ndarray, surface: Surface, volume: float, lengths: tuple[float, float],
             ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Paths (N, 30, 3) of hair that is parted in the middle and falls over the shoulders, where it falls in front of them
    (N,) bool, and its place in the body of hair (N,), 0 inside to 1 outside. lengths: mean and deviation below the eyes."""
    n = len(roots)
    theta, phi, side = _polar(roots)
    outside = np.clip(1.1 - theta / np.radians(95) + 0.25 * rng.standard_normal(n), 0, 1)
    # hair from above the forehead frames the face, hair from the crown falls further back
    aside = np.radians(81 + 38 * np.clip(1 - theta / np.radians(58), 0, 1) + 4 * rng.standard_normal(n))
    azimuth = np.maximum(phi, aside)
    over = _along_scalp(roots, surface, np.maximum(np.radians(98), theta + 0.06), azimuth, 2 + volume * outside, 12)
    front = azimuth < np.radians(102) + np.radians(5) * rng.standard_normal(n)
    start = over[:, -1]
    end = -np.maximum(rng.normal(*lengths, n), 120)
    y = start[:, 1:2] + np.outer(1, np.linspace(0, 1, 19)[1:]) * (end - start[:, 1])[:, None]
    fallen = smoothstep(-25, -172, y)
    x_low = np.where(front, side * (58 + 30 * rng.random(n) + 0.5 * volume), start[:, 0] * 0.9)
    z_low = np.where(front, -34 + 14 * outside, start[:, 2] - 6)
    fall = np.stack([start[:, :1] + (x_low - start[:, 0])[:, None] * fallen, y,
                     start[:, 2:] + (z_low - start[:, 2])[:, None] * fallen], -1)
    return np.concatenate([over, fall], 1), front, outside


def _noise(rng: np.random.Generator, n: int, count: int, waves: float) -> np.ndarray:
    """Smooth random curves (n, count, 3) of unit deviation with up to `waves` periods."""
    t = np.linspace(0, 1, count)
    rate, phase = rng.uniform(0.3, 1, (2, n, 1, 3)) * waves, rng.uniform(0, 2 * np.pi, (2, n, 1, 3))
    return np.sin(2 * np.pi * rate * t[:, None] + phase).sum(0)


def _shades(rng: np.random.Generator, color: np.ndarray, n: int, clump: np.ndarray | None = None) -> np.ndarray:
    """Colours (n, 1, 3) of hairs around a linear colour; hairs of one clump are alike."""
    factor = 0.25 * rng.standard_normal(n)
    if clump is not None:
        factor += 0.32 * rng.standard_normal(clump.max() + 1)[clump]
    warm = np.outer(rng.standard_normal(n), [0.06, 0.0, -0.06])
    return (color * np.exp(factor[:, None] + warm))[:, None]


def _wisps(rng: np.random.Generator, paths: np.ndarray, share: float, reach: float) -> np.ndarray:
    """Let a share of the strands (N, K, 3) stand away from the others, in place; returns which (N,) bool."""
    stray = rng.random(len(paths)) < share
    outward = paths[stray] - MIDDLE
    outward[..., 1] = np.maximum(outward[..., 1], 0)
    outward /= np.linalg.norm(outward, axis=-1, keepdims=True)
    t = np.linspace(0, 1, paths.shape[1])
    far = rng.exponential(reach, stray.sum())[:, None] * np.sin(np.pi * t ** rng.uniform(0.5, 2.5, (stray.sum(), 1)))
    paths[stray] += outward * far[..., None]
    return stray


def _taper(radius: np.ndarray, count: int, end: float = 0.3) -> np.ndarray:
    """Radii (N, count) of strands that grow thin towards the tip; radius (N,)."""
    return np.outer(radius, 1 - (1 - end) * np.linspace(0, 1, count) ** 3)


def _add_long(builder: TubeBuilder, rng: np.random.Generator, roots: np.ndarray, surface: Surface, color: np.ndarray) -> None:
    paths, front, outside = _curtain(rng, roots, surface, 9.0, (226, 16))
    n, count = paths.shape[:2]
    t = np.linspace(0, 1, count)
    # strands join into locks towards their tips
    middle = paths[:, 14]
    seeds = rng.choice(n, n // 16, replace=False)
    lock = cKDTree(middle[seeds]).query(middle)[1]
    guide = paths[seeds[lock]]
    same = front == front[seeds[lock]]
    join = 0.65 * same[:, None] * smoothstep(0.3, 1, t)
    paths[..., ::2] += (join[..., None] * (guide - paths))[..., ::2]
    wave = rng.uniform(0, 2 * np.pi, len(seeds))[lock]
    paths[..., 0] += 4.5 * smoothstep(0.35, 1, t) * np.sin(paths[..., 1] / 26 + wave[:, None])
    paths[..., 2] += 4.5 * smoothstep(0.35, 1, t) * np.cos(paths[..., 1] / 26 + wave[:, None])
    paths += 1.1 * smoothstep(0.2, 1, t)[:, None] * _noise(rng, n, count, 2.0)
    stray = _wisps(rng, paths, 0.06, 5.0)
    fine = stray | (rng.random(n) < 0.3)
    radius = np.where(fine, 0.2, rng.uniform(0.45, 0.75, n))
    shade = (0.40 + 0.60 * outside)[:, None] * np.where(front, 1.0, 0.62)[:, None]
    builder.add(paths, _taper(radius, count), _shades(rng, color, n, lock), shade=shade,
                layer=np.where(front, HEAD_LAYER, BEHIND))


def _add_curly(builder: TubeBuilder, rng: np.random.Generator, roots: np.ndarray, surface: Surface, color: np.ndarray) -> None:
    """Locks of hairs along common helices."""
    count, hairs = 110, 8
    guides, front, outside = _curtain(rng, roots, surface, 20.0, (185, 26))
    n = len(guides)
    guides = CubicSpline(np.arange(guides.shape[1]), guides, axis=1)(np.linspace(0, guides.shape[1] - 1, count))
    tangent = np.gradient(guides, axis=1)
    step = np.linalg.norm(tangent, axis=-1)
    tangent /= step[..., None]
    length = np.cumsum(step, 1)
    outward = guides - MIDDLE
    outward[..., 1] = np.maximum(outward[..., 1], 0)
    outward -= (outward * tangent).sum(-1, keepdims=True) * tangent
    outward /= np.linalg.norm(outward, axis=-1, keepdims=True)
    across = np.cross(tangent, outward)
    turn = rng.choice([-1, 1], n)[:, None] * 2 * np.pi * length / rng.uniform(20, 30, n)[:, None]
    width = smoothstep(0, 60, length) * rng.uniform(4.0, 7.5, n)[:, None] + 1.0
    lock = np.repeat(np.arange(n), hairs)
    turn, width = turn[lock] + rng.uniform(0, 2 * np.pi, n)[lock, None] + rng.normal(0, 0.25, n * hairs)[:, None], width[lock]
    paths = guides[lock] + width[..., None] * (np.cos(turn)[..., None] * outward[lock] + np.sin(turn)[..., None] * across[lock])
    paths += rng.normal(0, 1.0, (n * hairs, 1, 3)) + 0.5 * _noise(rng, n * hairs, count, 6.0)
    stray = _wisps(rng, paths, 0.08, 8.0)
    radius = np.where(stray | (rng.random(n * hairs) < 0.3), 0.2, rng.uniform(0.4, 0.7, n * hairs))
    rim = 0.70 + 0.30 * np.cos(turn)  # a curl's inner half lies in the shadow of its outer one
    shade = (0.40 + 0.60 * outside[lock])[:, None] * np.where(front[lock], 1.0, 0.62)[:, None] * rim
    builder.add(paths, _taper(radius, count), _shades(rng, color, n * hairs, lock), shade=shade,
                layer=np.where(front[lock], HEAD_LAYER, BEHIND))


def _add_braids(builder: TubeBuilder, rng: np.random.Generator, roots: np.ndarray, surface: Surface, color: np.ndarray) -> None:
    """Hair combed tight to below the ears, and from there two plaits of three bundles over the shoulders."""
    theta, _, side = _polar(roots)
    n, count = len(roots), 16
    gather_theta, gather_phi, _ = _polar(BRAID[:1])
    behind_ear = np.full(n, gather_phi[0] + np.radians(4))
    paths = _along_scalp(roots, surface, np.maximum(theta, gather_theta[0] - 0.35), behind_ear, 2 + 3 * rng.random(n), count)
    t = np.linspace(0, 1, count)
    knot = BRAID[0] * np.stack([side, np.ones(n), np.ones(n)], 1) + rng.normal(0, 2.5, (n, 3))
    pull = smoothstep(0.55, 1, t)[:, None]
    paths += pull * (knot[:, None] - paths)
    paths += 0.6 * _noise(rng, n, count, 2.0) * np.sin(np.pi * t)[:, None]
    stray = _wisps(rng, paths, 0.05, 3.0)
    radius = np.where(stray, 0.2, rng.uniform(0.4, 0.7, n))
    builder.add(paths, np.outer(radius, np.ones(count)), _shades(rng, color, n), shade=rng.uniform(0.6, 1.0, n)[:, None])

    count, hairs = 130, 46
    s = np.linspace(0, 1, count)
    for mirror in (-1.0, 1.0):
        line = CubicSpline(np.linspace(0, 1, len(BRAID)), BRAID * [mirror, 1, 1])(s)
        tangent = np.gradient(line, axis=0)
        length = np.cumsum(np.linalg.norm(tangent, axis=1))
        tangent /= np.linalg.norm(tangent, axis=1, keepdims=True)
        outward = np.array([0.35 * mirror, 0, 1.0]) - tangent * (tangent @ [0.35 * mirror, 0, 1.0])[:, None]
        outward /= np.linalg.norm(outward, axis=1, keepdims=True)
        across = np.cross(tangent, outward)
        grown = smoothstep(0, 0.06, s) * (1 - 0.35 * s)
        for bundle in range(3):
            phase = 2 * np.pi * (length / PLAIT_LENGTH + bundle / 3)
            core = line + (grown * PLAIT_WIDTH * np.sin(phase))[:, None] * across \
                + (grown * PLAIT_DEPTH * np.sin(2 * phase))[:, None] * outward
            wide = PLAIT_RADIUS * (0.5 + 0.5 * grown)
            along = np.gradient(core, axis=0)
            along /= np.linalg.norm(along, axis=1, keepdims=True)
            up = outward - (outward * along).sum(1, keepdims=True) * along
            up /= np.linalg.norm(up, axis=1, keepdims=True)
            right = np.cross(along, up)
            builder.add(core[None], 0.85 * wide, 0.55 * color, solid=True)
            angle = rng.uniform(0, 2 * np.pi, hairs)[:, None] + np.outer(rng.normal(0.6, 0.4, hairs), length / PLAIT_LENGTH)
            loose = np.where(rng.random(hairs) < 0.2, rng.exponential(2.0, hairs), 0)[:, None] \
                * np.abs(np.sin(np.outer(rng.uniform(3, 9, hairs), s) + rng.uniform(0, 6, (hairs, 1))))
            out = np.cos(angle)[..., None] * up + np.sin(angle)[..., None] * right
            paths = core + (wide * rng.uniform(0.88, 1.02, (hairs, 1)) + loose)[..., None] * out
            front = ((core - line) * outward).sum(1) / PLAIT_DEPTH
            shade = np.clip(0.72 + 0.28 * front, 0.4, 1.0) * rng.uniform(0.7, 1.1, (hairs, 1))
            radius = np.where(loose.max(1) > 0.5, 0.2, rng.uniform(0.35, 0.55, hairs))
            builder.add(paths, np.outer(radius, np.ones(count)), _shades(rng, color, hairs), shade=shade, normal=out)


def _add_bun(builder: TubeBuilder, rng: np.random.Generator, roots: np.ndarray, surface: Surface, color: np.ndarray) -> None:
    """Hair combed up to a knot behind the crown, wound of strands around a solid core."""
    roots = roots[_polar(roots)[0] < np.radians(80)]
    n, count = len(roots), 14
    start = roots - MIDDLE
    start /= np.linalg.norm(start, axis=1, keepdims=True)
    axis = BUN_AXIS / np.linalg.norm(BUN_AXIS)
    foot = BUN - MIDDLE - 0.8 * BUN_RADIUS * axis + rng.normal(0, 7, (n, 3))
    end = foot / np.linalg.norm(foot, axis=1, keepdims=True)
    t = np.linspace(0, 1, count)
    towards = start[:, None] + t[:, None] * (end - start)[:, None]
    towards /= np.linalg.norm(towards, axis=-1, keepdims=True)
    paths = MIDDLE + towards * (surface(towards) + 1.5 + rng.uniform(0, 3, (n, 1)) * np.sin(np.pi * t))[..., None]
    paths += smoothstep(0.6, 1, t)[:, None] * (MIDDLE + foot[:, None] - paths)
    stray = _wisps(rng, paths, 0.06, 4.0)
    builder.add(paths, np.outer(np.where(stray, 0.2, rng.uniform(0.4, 0.7, n)), np.ones(count)), _shades(rng, color, n),
                shade=rng.uniform(0.6, 1.0, n)[:, None])

    builder.add(BUN + np.array([[-0.3 * axis, 0.3 * axis]]), BUN_RADIUS - 1, 0.45 * color, solid=True, follow=0.0)
    n, count = 420, 40
    tilted = axis + 0.28 * rng.standard_normal((n, 3))
    tilted /= np.linalg.norm(tilted, axis=1, keepdims=True)
    first = np.cross(tilted, [1.0, 0.2, 0.1])
    first /= np.linalg.norm(first, axis=1, keepdims=True)
    second = np.cross(tilted, first)
    turn = rng.uniform(0, 2 * np.pi, (n, 1)) + rng.uniform(2.5, 5.5, (n, 1)) * np.linspace(0, 1, count)
    high = np.arcsin(rng.uniform(-0.75, 0.97, n))[:, None] + 0.25 * np.sin(turn + rng.uniform(0, 6, (n, 1)))
    out = np.cos(high)[..., None] * (np.cos(turn)[..., None] * first[:, None] + np.sin(turn)[..., None] * second[:, None]) \
        + np.sin(high)[..., None] * tilted[:, None]
    loose = np.where(rng.random(n) < 0.14, rng.exponential(4.0, n), 0)[:, None] * np.sin(np.pi * np.linspace(0, 1, count))
    ridges = 1.6 * np.sin(3 * high + turn)
    paths = BUN + (BUN_RADIUS + rng.uniform(-1.5, 1.0, (n, 1)) + ridges + loose)[..., None] * out
    radius = np.where(loose.max(1) > 1, 0.2, rng.uniform(0.4, 0.7, n))
    builder.add(paths, np.outer(radius, np.ones(count)), _shades(rng, color, n), shade=0.8 + 0.12 * ridges, normal=out,
                follow=0.0)


def _add_beard(builder: TubeBuilder, rng: np.random.Generator, head: HeadMesh, skin: Skin, identity: Identity,
               color: np.ndarray) -> None:
    """Short hairs on jaw, chin and upper lip; their roots move with the skin."""
    base = head.base[: head.skin_count] * 1000
    x, y, z = base.T
    side, length = np.abs(x), identity.face_length
    y = y / length
    cheek = np.interp(side, [0, 27, 33, 45, 60, 72, 90], [-87, -88, -70, -66, -48, -12, -8])
    beard = (y < cheek) & (z > -72) & (y > -150)
    moustache = (side < 31) & (y < -52.5 - 0.004 * side**2) & (y > np.interp(side, [0, 6, 27, 31], [-60, -60.5, -70, -78]))
    hairy = (beard | moustache)[skin.triangles].all(1)
    into = smoothstep(0, 14, np.where(beard, cheek - y, 14))[skin.triangles].mean(1)  # thin at the cheeks
    corners, weights = _places(rng, base, skin.triangles, hairy * (0.15 + 0.85 * into), 6500)
    normals = vertex_normals(head.base, head.triangles)
    root = (base[corners] * weights[..., None]).sum(1)
    out = (normals[corners] * weights[..., None]).sum(1)
    out /= np.linalg.norm(out, axis=1, keepdims=True)
    n, count = len(root), 5
    above = root[:, 1] > -66 * length
    side_way = np.where(above, 1.1, 0.15) * np.sign(root[:, 0])
    down = np.stack([side_way, np.full(n, -1.0), np.where(above, 0.0, 0.1)], 1) + 0.35 * rng.standard_normal((n, 3))
    long = np.where(above, 6.0, 5 + 9 * smoothstep(-70, -118, root[:, 1])) * rng.uniform(0.6, 1.15, n)
    t = np.linspace(0, 1, count)
    lean = out[:, None] * (0.75 * t - 0.35 * t**2)[:, None] + down[:, None] * (0.15 * t + 0.6 * t**2)[:, None]
    paths = root[:, None] + long[:, None, None] * lean
    radius = _taper(np.where(rng.random(n) < 0.35, 0.2, rng.uniform(0.25, 0.4, n)), count)
    builder.add(paths, radius, _shades(rng, 1.2 * color, n), shade=0.75 + 0.25 * t, normal=np.repeat(out[:, None], count, 1),
                follow=0.0, rooted=(corners, weights))
