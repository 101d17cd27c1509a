"""Do landmark rows lie in head space? Other units, axes and orders of points are recognised and refused with the reason.

Only points that speech hardly moves decide about axes and order, so that any edit of the mouth passes.
"""

import itertools

import numpy as np

from shared.errors import TalkheadError

# a face at rest in head space, millimetres: the synthetic actor's
TEMPLATE = np.array([
    -78, -13, -47, -78, -30, -49, -77, -47, -47, -69, -81, -33, -61, -94, -22, -52, -101, -11, -34, -113, 5, -15, -119, 18,
    -2, -120, 20, 11, -119, 18, 30, -113, 6, 49, -102, -12, 57, -95, -26, 65, -83, -38, 74, -48, -51, 76, -31, -54,
    77, -14, -52, -58, 18, -4, -51, 26, 3, -41, 32, 9, -28, 32, 15, -13, 31, 18, 15, 30, 17, 30, 32, 13, 43, 32, 7,
    52, 26, 1, 59, 18, -6, 1, 9, 20, 1, -6, 32, 2, -17, 45, 1, -25, 49, -16, -42, 25, -7, -43, 32, 0, -42, 33, 7, -43, 32,
    16, -42, 26, -45, 0, 0, -38, 5, 7, -27, 6, 8, -17, -2, 6, -27, -4, 8, -37, -4, 7, 18, -2, 6, 29, 6, 8, 39, 5, 6,
    45, 0, 0, 38, -4, 7, 28, -4, 8, -22, -72, 17, -12, -62, 31, -5, -58, 35, 2, -59, 36, 8, -58, 35, 14, -61, 33,
    23, -71, 19, 14, -78, 30, 8, -80, 32, 1, -80, 32, -6, -80, 31, -12, -78, 28, -20, -71, 19, -4, -68, 31, 1, -69, 32,
    6, -68, 32, 21, -71, 21, 6, -69, 30, 1, -69, 30, -5, -69, 29,
], np.float64).reshape(68, 3) / 1000
CALM = [0, 16, *range(17, 48)]  # ends of the jaw, brows, nose, eyes
PARTS = {"0-16, the jaw": range(17), "48-67, the lips": range(48, 68)}
EYE_DISTANCE = 0.09  # metres between points 36 and 45
OTHER_SIZE = 2.0  # factor on it from which on the unit is another
ALIKE = 0.8  # cosine to the template that a face of this order of points reaches along the right axes
CLEARLY = 0.08  # by which other axes must be better than the right ones
TURN = 25.0  # degrees that a head at rest may be turned
AWAY = 0.5  # eye distances that the middle of the eyes may lie from the origin
FAR = 1.0  # metres from the origin beyond which no point of a face lies
OFF = 0.15  # metres between the middle of jaw or lips and where the template has it
RELATED = 0.3  # cosine to the template's that the places of jaw and lips from right to left reach
LEAST_ROWS = 75  # from which on they are looked at
LOOKED_AT = 2000  # rows that the median face is taken of
# (unit, its name for the user, metres): the distance of the eyes tells
UNITS = (("millimetres: divide by 1000", 1e-3), ("centimetres: divide by 100", 1e-2), ("inches: multiply by 0.0254", 0.0254))


def check_face(rows: np.ndarray, name: str) -> None:
    """Raise TalkheadError, with the likely reason, unless `rows` (T,68,3), finite, are faces in head space, metres."""
    step = -(-len(rows) // LOOKED_AT)
    face = np.median(rows[::step].astype(np.float64), axis=0)
    if problem := _problem(face) or (_mixed_order(face) if len(rows) >= LEAST_ROWS else ""):
        raise TalkheadError(f"{name}: {problem}")
    if len(far := np.argwhere(np.abs(rows).max(2) > FAR)):
        row, point = far[0]
        raise TalkheadError(f"{name}: point {point} of row {row} lies at {_place(rows[row, point])}, over {FAR:g} m "
                            "from the face")
    size = np.linalg.norm(rows[:, 45] - rows[:, 36], axis=1)
    if len(odd := np.flatnonzero((size < EYE_DISTANCE / 5) | (size > EYE_DISTANCE * 5))):
        raise TalkheadError(f"{name}: row {odd[0]} is no face: its outer eye corners are {size[odd[0]]:.3g} m apart, expected "
                            f"about {EYE_DISTANCE}")


def looks_like_a_face(rows: np.ndarray) -> bool:
    """Whether `rows` (T,68,3), of any unit and place, have the points of a face along the right axes."""
    alike, order, signs = _axes(np.median(rows[:LOOKED_AT].astype(np.float64), axis=0))
    return alike > ALIKE and (order, signs) == ((0, 1, 2), (1, 1, 1))


def _place(point: np.ndarray) -> str:
    return "(" + ", ".join(f"{value:.3g}" for value in point) + ")"


def _problem(face: np.ndarray) -> str:
    """What is wrong with a face (68,3), or ""."""
    middle, size = (face[36] + face[45]) / 2, float(np.linalg.norm(face[45] - face[36]))
    spread = np.ptp(face, axis=0)
    if spread.max() == 0:
        return "all 68 points lie in one place; expected a face"
    if spread[2] < 1e-3 * spread.max():
        return "all points have the same z; expected three dimensions, found a flat face"
    alike, order, signs = _axes(face)
    away = float(np.linalg.norm(middle)) / max(size, 1e-30)
    if away > AWAY and order == (0, 1, 2) and signs[0] == 1 and signs[1] == signs[2] and middle[2] > 2 * np.abs(middle[:2]).max():
        return (f"the face lies {middle[2]:.3g} before the origin, as in a camera's space; expected head space, with the pose "
                "taken out")
    picture = away > AWAY and order == (0, 1, 2) and signs[0] == 1 and signs[1] == -1
    if picture and alike > ALIKE - 0.2:
        if -0.5 < face[:, :2].min() and face[:, :2].max() < 1.5:
            return ("x and y look like parts of the picture, 0 to 1 with y down, as MediaPipe gives them; expected metres in "
                    "head space")
        return "x and y look like pixels, with y down; expected metres in head space"
    if alike < ALIKE:
        turned, angle = _rotation(face)
        if turned > ALIKE:
            return f"the head is turned by {angle:.0f} degrees; expected head space, with the pose taken out"
        return "the points are no face in the iBUG-68 order; expected jaw 0-16, brows, nose, eyes, lips 48-67"
    angle = _rotation(face[:, order] * signs)[1]
    if angle > TURN:
        return f"the head is turned by {_rotation(face)[1]:.0f} degrees; expected head space, with the pose taken out"
    unit = _unit(size)
    if (order, signs) != ((0, 1, 2), (1, 1, 1)):
        return _other_axes(order, signs) + (f"; and the unit is another, {unit}" if unit else "")
    if unit:
        return unit
    if away > AWAY:
        return (f"the middle between the outer eye corners lies at {_place(middle)}; expected the origin there, so subtract it "
                "from all points")
    scale = size / EYE_DISTANCE
    for part, points in PARTS.items():
        found, expected = face[points].mean(0) / scale, TEMPLATE[points].mean(0)
        if np.linalg.norm(found - expected) > OFF:
            return f"points {part}, lie around {_place(found)} m, expected near {_place(expected)}; is their order another?"
    return ""


def _mixed_order(face: np.ndarray) -> str:
    """What is wrong with the order of jaw or lips from right to left, or ""; edits change heights and depths far more."""
    for part, points in PARTS.items():
        found, expected = (shape[points, 0] - shape[points, 0].mean() for shape in (face, TEMPLATE))
        if (found * expected).sum() < RELATED * np.linalg.norm(found) * np.linalg.norm(expected):
            return f"points {part}, are in another order than iBUG-68's"
    return ""


def _unit(size: float) -> str:
    """What the distance of the outer eye corners says about the unit, or "" where it is right."""
    if EYE_DISTANCE / OTHER_SIZE <= size <= EYE_DISTANCE * OTHER_SIZE:
        return ""
    expected = f"the outer eye corners are {size:.3g} apart, expected about {EYE_DISTANCE} m"
    for text, metres in UNITS:
        if EYE_DISTANCE / 1.5 <= size * metres <= EYE_DISTANCE * 1.5:
            return f"{expected}; that looks like {text}"
    return f"{expected}; multiply by {EYE_DISTANCE / size:.3g}"


def _axes(face: np.ndarray) -> tuple[float, tuple[int, ...], tuple[int, ...]]:
    """The order and signs of axes under which the calm points are most like the template, and the cosine reached; the right
    axes unless others are clearly better."""
    found, expected = (points[CALM] - points[CALM].mean(0) for points in (face, TEMPLATE))
    cross = found.T @ expected / max(np.linalg.norm(found) * np.linalg.norm(expected), 1e-300)
    own = float(np.trace(cross))
    best = own
    order: tuple[int, ...] = (0, 1, 2)
    signs: tuple[int, ...] = (1, 1, 1)
    for tried in itertools.permutations(range(3)):
        for turned in itertools.product((1, -1), repeat=3):
            alike = float(sum(sign * cross[axis, k] for k, (axis, sign) in enumerate(zip(tried, turned))))
            if alike > max(best, own + CLEARLY):
                best, order, signs = alike, tried, turned
    return best, order, signs


def _other_axes(order: tuple[int, ...], signs: tuple[int, ...]) -> str:
    if order != (0, 1, 2):
        return ("its axes are others; expected x to the subject's left, y up, z out of the face, as "
                f"rows[..., {list(order)}] * {list(signs)} seems to have them")
    said = {0: "left and right are swapped, by x to the subject's right or points in mirrored order", 1: "y points down",
            2: "z points into the face"}
    wrong = [axis for axis in range(3) if signs[axis] < 0]
    axes = " and ".join("xyz"[axis] for axis in wrong)
    return f"{' and '.join(said[axis] for axis in wrong)}; multiply {axes} by -1"


def _rotation(face: np.ndarray) -> tuple[float, float]:
    """Cosine to the template after the best rotation, and its angle in degrees (Kabsch 1976)."""
    found, expected = (points[CALM] - points[CALM].mean(0) for points in (face, TEMPLATE))
    u, singular, vt = np.linalg.svd(found.T @ expected)
    sign = np.sign(np.linalg.det(u @ vt))
    rotation = u @ np.diag([1, 1, sign]) @ vt
    alike = (singular * [1, 1, sign]).sum() / max(np.linalg.norm(found) * np.linalg.norm(expected), 1e-300)
    return float(alike), float(np.degrees(np.arccos(np.clip((np.trace(rotation) - 1) / 2, -1, 1))))
