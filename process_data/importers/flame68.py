"""Meshes of FLAME's topology (5023 vertices): reading them, and the 68 iBUG landmarks on them.

FLAME's own landmark embedding may not be redistributed, so every landmark is one vertex. Most vertex numbers are those of
SAiD (yunik1004/SAiD, data/FLAME_landmarks.txt, Apache-2.0); the brows and the ends of the jaw, which lie too low there, are
those that NPHM and MonoNPHM document. The inner lip points 61–63 and 65–67 are our own: they lie where closed lips touch,
so that a closed mouth has no opening (with SAiD's it is 3 mm open, and two of NPHM's lower points lie on the upper lip).
All but the brows' outer ends were checked on the published mean face; check_face tests them on each mesh.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from shared.errors import TalkheadError
from shared.landmarks import BROW_LEFT, BROW_RIGHT, EYE_CORNER_DISTANCE, EYE_LEFT, EYE_RIGHT, LIPS, MIRROR

FLAME_VERTICES = 5023
FLAME68 = np.array(
    [2212, 2705, 3056, 3424, 3423, 3421, 3419, 3416, 3414, 3635, 3643, 3646, 3650, 3652, 2004, 1569, 730]
    + [1984, 3157, 335, 3705, 3684, 3851, 3863, 16, 2138, 571]
    + [3560, 3561, 3501, 3564, 2751, 2793, 3556, 1676, 1623]
    + [2428, 2453, 2494, 3631, 2278, 2359, 3832, 1343, 1218, 1154, 995, 829]
    + [2820, 2864, 2774, 3543, 1657, 1749, 1703, 1774, 1802, 3503, 2905, 2881]
    + [2845, 2784, 3533, 1667, 1730, 1826, 3509, 2928]
)
# landmarks that speech hardly moves, by which two meshes are aligned
STILL = [0, 16, 27, 28, 29, 30, 31, 33, 35, 36, 39, 42, 45]
# angle in radians by which the bridge of the nose lies before the chin: 9.5 mm on 126 mm in MediaPipe's canonical face, whose
# axes the tracker's head space follows; 8.3 mm on 112 mm in FLAME's mean face
FACE_LEAN = float(np.arctan2(9.5, 126.0))

_PLY_TYPES = {"char": "i1", "int8": "i1", "uchar": "u1", "uint8": "u1", "short": "i2", "int16": "i2", "ushort": "u2",
              "uint16": "u2", "int": "i4", "int32": "i4", "uint": "u4", "uint32": "u4", "float": "f4", "float32": "f4",
              "double": "f8", "float64": "f8"}
_PLY_ORDERS = {"ascii": "", "binary_little_endian": "<", "binary_big_endian": ">"}
Element = tuple[str, str, int, list[str], list[str]]  # name, byte order or "", count, property names, property types
_FACE_NAMES = ("face", "faces_idx", "full_lmk_faces_idx", "static_lmk_faces_idx", "lmk_face_idx")
_WEIGHT_NAMES = ("barycentric", "bary_coords", "full_lmk_bary_coords", "static_lmk_bary_coords", "lmk_b_coords")


@dataclass(frozen=True)
class Embedding:
    """The landmarks on the mesh: numbers of three vertices each (68,3), and their weights (68,3), which sum to 1."""

    vertices: np.ndarray
    weights: np.ndarray

    def points(self, mesh: np.ndarray) -> np.ndarray:
        """Meshes (..., 5023, 3) -> landmarks (..., 68, 3) in the mesh's own space and unit."""
        return np.einsum("...kic,ki->...kc", mesh[..., self.vertices, :], self.weights)


def default_embedding() -> Embedding:
    """The embedding FLAME68, one vertex for each landmark."""
    return _of_vertices(FLAME68)


def _of_vertices(numbers: np.ndarray) -> Embedding:
    return Embedding(np.repeat(numbers[:, None], 3, 1), np.tile([1.0, 0.0, 0.0], (68, 1)))


def read_ply(path: Path | str) -> np.ndarray:
    """Vertices (5023,3) float64 of an ASCII or binary PLY file. Raises TalkheadError: no PLY, cut short, wrong count."""
    path = Path(path)
    data, elements, body = _ply_header(path)
    if elements[0][0] != "vertex":
        raise TalkheadError(f"{path}: expected a PLY whose first element is 'vertex', found {elements[0][0]!r}")
    _, order, count, names, kinds = elements[0]
    if not {"x", "y", "z"} <= set(names) or any("list" in kind for kind in kinds):
        raise TalkheadError(f"{path}: expected vertices with x, y and z, found {', '.join(names) or 'nothing'}")
    if count != FLAME_VERTICES:
        raise TalkheadError(f"{path}: expected a mesh of FLAME's {FLAME_VERTICES} vertices, found {count}")
    try:
        if order:
            rows = np.frombuffer(data, [(name, order + kind) for name, kind in zip(names, kinds)], count, body)
            vertices = np.stack([rows[axis] for axis in "xyz"], 1).astype(float)
        else:
            lines = data[body:].split(b"\n", count)[:count]
            table = np.array([line.split() for line in lines], float).reshape(count, len(names))
            vertices = table[:, [names.index(axis) for axis in "xyz"]]
    except (ValueError, OverflowError) as error:
        raise TalkheadError(f"{path}: the file ends or breaks before its {count} vertices") from error
    if not np.isfinite(vertices).all():
        raise TalkheadError(f"{path}: some of its vertices are not finite numbers")
    return vertices


def _ply_header(path: Path) -> tuple[bytes, list[Element], int]:
    """The file's bytes, its elements and the place where the data begin. Raises TalkheadError for any other file."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise TalkheadError(f"{path} cannot be read: {error.strerror}") from error
    end = data.find(b"end_header")
    stop = data.find(b"\n", end) + 1
    wrong = TalkheadError(f"{path} is not a PLY mesh")
    if not data.startswith(b"ply") or end < 0 or stop == 0:
        raise wrong
    order = ""
    elements: list[Element] = []
    try:
        for line in data[:end].decode("ascii").splitlines():
            match line.split():
                case ["format", name, _]:
                    order = _PLY_ORDERS[name]
                case ["element", name, count]:
                    elements.append((name, order, int(count), [], []))
                case ["property", "list", count, item, name]:
                    elements[-1][3].append(name)
                    elements[-1][4].append(f"list {_PLY_TYPES[count]} {_PLY_TYPES[item]}")
                case ["property", kind, name]:
                    elements[-1][3].append(name)
                    elements[-1][4].append(_PLY_TYPES[kind])
    except (KeyError, IndexError, ValueError) as error:
        raise wrong from error
    if not elements:
        raise wrong
    return data, elements, stop


def read_triangles(path: Path) -> np.ndarray:
    """Triangles (F,3) of a PLY file. Raises TalkheadError unless its second element is 'face' and holds only triangles."""
    data, elements, body = _ply_header(path)
    wrong = TalkheadError(f"{path}: an embedding of triangles needs a mesh with triangles, and this file holds none")
    if len(elements) < 2 or elements[1][0] != "face" or len(elements[1][4]) != 1 or "list" not in elements[1][4][0]:
        raise wrong
    (_, order, vertices, names, kinds), (_, _, faces, _, (kind,)) = elements[:2]
    try:
        if order:
            start = body + vertices * sum(np.dtype(kind).itemsize for kind in kinds)
            _, length, item = kind.split()
            rows = np.frombuffer(data, [("n", order + length), ("v", order + item, 3)], faces, start)
            sizes, triangles = rows["n"], rows["v"].astype(int)
        else:
            lines = data[body:].split(b"\n", vertices + faces)[vertices : vertices + faces]
            table = np.array([line.split() for line in lines], int).reshape(faces, -1)
            sizes, triangles = table[:, 0], table[:, 1:]
    except (ValueError, OverflowError) as error:
        raise wrong from error
    if faces == 0 or (sizes != 3).any() or triangles.shape[1] != 3:
        raise wrong
    return triangles


def load_embedding(path: Path, mesh: Path | None) -> Embedding:
    """The embedding in a user's file: 68 landmarks, or 51 (points 17–67), to which the jaw of FLAME68 is added.

    JSON: a list of vertex numbers. .npy: (n,) vertex numbers, or (n,4) triangle number and three weights. .npz: the arrays
    `face` (n,) and `barycentric` (n,3), or with the names in FLAME's own files. Triangles are those of the PLY file `mesh`.
    Pickles, such as FLAME's original .pkl, are never loaded. Raises TalkheadError.
    """
    numbers, weights = _read_embedding(path)
    count = len(numbers)
    if count not in (51, 68) or weights is not None and weights.shape != (count, 3):
        found = numbers.shape if weights is None else f"{numbers.shape} and {weights.shape}"
        raise TalkheadError(f"{path}: expected 68 landmarks, or the 51 without the jaw, found {found}")
    if weights is None:
        vertices, weights = np.repeat(numbers[:, None], 3, 1), np.tile([1.0, 0.0, 0.0], (count, 1))
    else:
        if mesh is None:
            raise TalkheadError(f"{path} names triangles, which only the PLY meshes have; give vertex numbers instead")
        triangles = read_triangles(mesh)
        if numbers.min() < 0 or numbers.max() >= len(triangles):
            raise TalkheadError(f"{path}: expected triangles 0 to {len(triangles) - 1}, found {numbers.max()}")
        vertices = triangles[numbers]
    if vertices.min() < 0 or vertices.max() >= FLAME_VERTICES:
        raise TalkheadError(f"{path}: expected vertices 0 to {FLAME_VERTICES - 1}, found {vertices.max()}")
    if not np.allclose(weights.sum(1), 1, atol=1e-3):
        raise TalkheadError(f"{path}: the three weights of each landmark should sum to 1, found {weights.sum(1).min():.3g}")
    if count == 51:
        jaw = default_embedding()
        vertices = np.concatenate([jaw.vertices[:17], vertices])
        weights = np.concatenate([jaw.weights[:17], weights])
    return Embedding(vertices.astype(int), weights)


def _read_embedding(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """(n,) numbers of vertices, or of triangles with (n,3) weights."""
    try:
        if path.suffix.lower() == ".json":
            return _whole(np.array(json.loads(path.read_text(encoding="utf-8"))), path), None
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return (_whole(loaded[:, 0], path), loaded[:, 1:]) if loaded.ndim == 2 else (_whole(loaded, path), None)
        with loaded:
            faces = [loaded[name] for name in _FACE_NAMES if name in loaded]
            weights = [loaded[name] for name in _WEIGHT_NAMES if name in loaded]
        if not faces or not weights:
            raise TalkheadError(f"{path}: expected the arrays 'face' and 'barycentric', found {', '.join(loaded.files)}")
        return _whole(faces[0].reshape(-1), path), weights[0].reshape(-1, 3).astype(float)
    except FileNotFoundError:
        raise TalkheadError(f"{path} does not exist") from None
    except TalkheadError:
        raise
    except Exception as error:  # what NumPy and json raise on damaged files is of many types
        raise TalkheadError(f"{path}: expected JSON, .npy or .npz with numbers; pickled files are never loaded") from error


def _whole(numbers: np.ndarray, path: Path) -> np.ndarray:
    if numbers.ndim != 1 or numbers.dtype.kind not in "iuf" or (numbers != np.round(numbers)).any():
        raise TalkheadError(f"{path}: expected a list of whole numbers, found {numbers.dtype} {numbers.shape}")
    return numbers.astype(int)


def head_frame(neutral: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    """Neutral landmarks (68,3) in any space -> scale, axes (3,3), origin: head space = scale·(point − origin)·axesᵀ.

    Defined by the face alone, whatever axes and unit the mesh has: x from the right to the left outer eye corner; y up, so
    that the line from the chin to the bridge of the nose leans forward by FACE_LEAN; z perpendicular to both.
    """
    right, left = neutral[36], neutral[45]
    x = (left - right) / np.linalg.norm(left - right)
    up = neutral[27] - neutral[8]
    up = up - x * (x @ up)
    up = up / np.linalg.norm(up)
    y = np.cos(FACE_LEAN) * up - np.sin(FACE_LEAN) * np.cross(x, up)
    return EYE_CORNER_DISTANCE / float(np.linalg.norm(left - right)), np.stack([x, y, np.cross(x, y)]), (left + right) / 2


def check_face(neutral: np.ndarray, name: str) -> None:
    """Raise TalkheadError unless the neutral landmarks (68,3), metres in head space, look like a face; `name` is the source.

    Finds meshes whose vertices are in another order than FLAME's, mirrored meshes and wrong embeddings.
    """
    x, y, z = neutral.T
    height = [y[BROW_RIGHT + BROW_LEFT].mean(), y[EYE_RIGHT + EYE_LEFT].mean(), y[30], y[51], y[57], y[8]]
    sides = MIRROR != np.arange(68)
    right = sides & (np.isin(np.arange(68), [*range(8), *BROW_RIGHT, 31, 32, *EYE_RIGHT, 48, 49, 50, 58, 59, 60, 61, 67]))
    mirrored = np.linalg.norm(neutral * [-1, 1, 1] - neutral[MIRROR], axis=1)
    faults = {
        "brows, eyes, nose, lips and chin follow each other downwards": bool((np.diff(height) < 0).all()),
        "the right half lies to the right": bool((x[right] < 0).all() and (x[sides & ~right] > 0).all()),
        "the nose stands out of the face": bool(z[30] > z[LIPS].mean() > z[[0, 16]].mean()),
        "the two halves mirror each other": bool(np.median(mirrored) < 0.012),
        "the closed lips are less than 15 mm apart": bool(np.abs(y[[61, 62, 63]] - y[[67, 66, 65]]).max() < 0.015),
    }
    wrong = [what for what, true in faults.items() if not true]
    if wrong:
        raise TalkheadError(f"{name}: its landmarks are no face: expected that {wrong[0]}; are the vertices in FLAME's order?")
