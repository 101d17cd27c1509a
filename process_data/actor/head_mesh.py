"""The synthetic actor's head as one mesh: skin, hair, lids, mouth, teeth, tongue, eyes, ears and neck."""

from dataclasses import dataclass

import numpy as np

from process_data.actor.identity import Identity
from process_data.actor.proportions import neutral_landmarks
from process_data.actor.skin import CENTRE, LIDS, LIP_INNER, Skin, chart_uv, hair_field, landmark_loop, to_chart

SKIN, NECK, EYE, MOUTH = 0, 1, 2, 3  # materials
LABEL_OF_MATERIAL = np.array([3, 2, 3, 4], np.uint8)  # HEAD, NECK, HEAD, MOUTH of shared.clip
# where each material's texture lies in the atlas: left, top, width, height in [0, 1], u right, v down
TILES = {SKIN: (0.0, 0.0, 1.0, 0.8), EYE: (0.0, 0.8, 0.2, 0.2), MOUTH: (0.2, 0.8, 0.2, 0.2), NECK: (0.4, 0.8, 0.4, 0.2)}
TILE_INSET = 0.5 / 100  # of a tile, kept free at its edges, so that interpolation does not mix tiles


@dataclass(frozen=True)
class HeadMesh:
    """A mesh of V vertices that is linear in the 68 landmarks, which are its first vertices.

    vertices = base + weights @ (landmarks − neutral): base (V, 3) metres at the neutral (68, 3) metres, weights (V, 68).
    triangles (F, 3) int32; material (F,) uint8; uv (V, 2) atlas coordinates in [0, 1]; occlusion (V,): share of the ambient
    light that arrives; gloss (V,); neck (V,): 1 where a vertex follows the torso instead of the head; eye (V,): 0, or the
    eye that a vertex turns with (1 right, 2 left); eye_centres (2, 3) metres; the first skin_count vertices are the skin.
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


def tile_uv(material: int, uv: np.ndarray) -> np.ndarray:
    """Coordinates (N, 2) in [0, 1] of one material's tile -> (N, 2) atlas coordinates."""
    left, top, width, height = TILES[material]
    return np.clip(uv, TILE_INSET, 1 - TILE_INSET) * [width, height] + [left, top]


class _Builder:
    """Collects the parts of a mesh: vertices (mm) at the neutral face with their landmark weights, and triangles."""

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


def build_head(identity: Identity, skin: Skin, ears: bool = True) -> HeadMesh:
    """The whole head of one person: skin with hair, lids, lips, mouth, teeth, tongue, eyes, ears (unless hidden) and neck."""
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
    if ears:
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


def _add_lids(builder: _Builder, neutral: np.ndarray) -> None:
    """The lids' margins: a narrow band from the edge back to the eyeball."""
    for pair in LIDS:
        loop = landmark_loop(pair, 19)
        edge = loop @ neutral
        n = len(edge)
        back = edge + [0, 0, -4.0]
        back[:, :2] += 0.1 * (edge[:, :2].mean(0) - edge[:, :2])
        uv = np.concatenate([np.full((n, 2), [0.1, 0.92]), np.full((n, 2), [0.1, 0.92])])
        builder.add(np.concatenate([edge, back]), np.concatenate([loop, loop]), grid_triangles(2, n, True), EYE, uv,
                    0.75, 0.2)


def _add_mouth(builder: _Builder, neutral: np.ndarray) -> None:
    """Inner lips, the dark bag behind them, two rows of teeth and a tongue."""
    loop = landmark_loop(LIP_INNER)
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
    """The front caps of two eyeballs; returns their centres (2, 3) mm."""
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
    """The neck; its upper end follows the head, its lower end the torso."""
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
