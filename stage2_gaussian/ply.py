"""The head's canonical Gaussians as a 3DGS .ply file that splat viewers open and editors change, and back.

The file is that of Kerbl et al., "3D Gaussian Splatting", SIGGRAPH 2023, with colours of spherical harmonics' degree 0.
Its axes are head space rotated by 180° about z: viewers take y as pointing down, as COLMAP does, and the common ones look
at the scene from +z, towards which the face then looks. docs/formats.md describes it for users.
"""

import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import nn

from shared.camera import quaternion_from_matrix, quaternion_multiply
from shared.errors import TalkheadError
from shared.files import atomic_path
from stage2_gaussian.head import ATTRIBUTES, LARGEST, Head

C0 = 0.28209479177387814  # the spherical harmonic of degree 0
HALF_TURN = np.array([-1, -1, 1], np.float32)  # head space -> file and back
MEAN, COLOR, OPACITY = ("x", "y", "z"), ("f_dc_0", "f_dc_1", "f_dc_2"), ("opacity",)
SCALE, QUAT = ("scale_0", "scale_1", "scale_2"), ("rot_0", "rot_1", "rot_2", "rot_3")
NEEDED = (*MEAN, *COLOR, *OPACITY, *SCALE, *QUAT)
WRITTEN = (*MEAN, "nx", "ny", "nz", *NEEDED[3:])
TYPES = {"char": "i1", "uchar": "u1", "short": "i2", "ushort": "u2", "int": "i4", "uint": "u4", "float": "f4", "double": "f8",
         "int8": "i1", "uint8": "u1", "int16": "i2", "uint16": "u2", "int32": "i4", "uint32": "u4", "float32": "f4",
         "float64": "f8"}
LONGEST_HEADER = 1 << 16  # bytes
LARGEST_NUMBER = 1e6  # of a mean in metres or of a quaternion
POSED = "talkhead posed"  # begins the comment of a file that holds an expression instead of the canonical Gaussians
EXACT = 1e-6  # metres: an editor that rotates a file and rotates it back moves Gaussians by less
SAME = 1e-5  # attributes that differ by less were not edited
FOREIGN = 0.02  # metres, median distance from the avatar's Gaussians above which a file is of something else
LEAST_LENGTH = 1e-12  # of a quaternion that is a rotation


class PlyGaussians(NamedTuple):
    """Gaussians in head space in the units of the head's parameters, float32: what a file holds."""

    means: np.ndarray  # (N, 3) metres
    quats: np.ndarray  # (N, 4) wxyz, unit length
    log_scales: np.ndarray  # (N, 3) of metres
    opacities: np.ndarray  # (N,) logits
    colors: np.ndarray  # (N, 3), mostly in 0..1


class Changes(NamedTuple):
    """Difference of an edited file from the head, in numbers of Gaussians."""

    same: int  # unchanged
    edited: int  # at the same mean, with another colour, scale, rotation or opacity
    new: int  # moved or added
    gone: int  # of the head's, without a counterpart in the file


def _unit(quats: np.ndarray) -> np.ndarray:
    return (quats / np.linalg.norm(quats, axis=1, keepdims=True)).astype(np.float32)


def canonical_gaussians(head: Head) -> PlyGaussians:
    """The canonical Gaussians: the head with the neutral expression."""
    values = {name: getattr(head, name).detach().cpu().float().numpy() for name in ATTRIBUTES}
    return PlyGaussians(values["positions"], _unit(values["rotations"]),
                        np.minimum(values["log_scales"], np.float32(LARGEST)), values["opacities"], values["colors"])


@torch.no_grad()
def posed_gaussians(head: Head, landmarks: np.ndarray, pose: np.ndarray) -> PlyGaussians:
    """The head with the expression `landmarks` (68, 3), shaded as at `pose` (4, 4) head → camera, in head space."""
    device = head.positions.device
    view = torch.as_tensor(pose, device=device)
    posed = head(torch.as_tensor(landmarks, device=device)[None], view[None])
    to_head = quaternion_from_matrix(view[:3, :3].T)
    values = ((posed.means[0] - view[:3, 3]) @ view[:3, :3], quaternion_multiply(to_head, posed.quats[0]),
              torch.log(posed.scales[0]), torch.logit(posed.opacities[0], 1e-6), posed.colors[0])
    means, quats, *rest = (value.cpu().float().numpy() for value in values)
    return PlyGaussians(means, _unit(quats), *rest)


def write_ply(path: Path | str, gaussians: PlyGaussians, comment: str = "talkhead canonical") -> None:
    """Write a binary little-endian 3DGS file, atomically. `comment` is one line of the header."""
    w, x, y, z = gaussians.quats.T
    table = np.zeros(len(gaussians.means), [(name, "<f4") for name in WRITTEN])
    columns = [*(gaussians.means * HALF_TURN).T, *((gaussians.colors - 0.5) / C0).T, gaussians.opacities,
               *gaussians.log_scales.T, -z, -y, x, w]
    for name, column in zip(NEEDED, columns):
        table[name] = column
    header = ["ply", "format binary_little_endian 1.0", f"comment {comment}", f"element vertex {len(table)}",
              *(f"property float {name}" for name in WRITTEN), "end_header", ""]
    with atomic_path(path) as partial, open(partial, "wb") as file:
        file.write("\n".join(header).encode("ascii"))
        file.write(table.tobytes())


def read_ply(path: Path | str) -> tuple[PlyGaussians, list[str]]:
    """Read a binary 3DGS file of any writer -> (Gaussians, warnings); properties that a head does not have are ignored.

    Raises TalkheadError: missing, no PLY, ascii, compressed, a property missing, cut short, empty, a value not finite, a
    rotation of zeros, or written by `write_ply` with an expression.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise TalkheadError(f"{path} does not exist") from None
    except OSError as error:
        raise TalkheadError(f"{path} cannot be read: {error.strerror}") from error
    order, lines, body = _header(path, data)
    count, layout = _vertices(path, order, lines)
    if count == 0:
        raise TalkheadError(f"{path} holds no splats")
    if len(data) - body < count * layout.itemsize:
        raise TalkheadError(f"{path} is cut short: {count} splats need {count * layout.itemsize} bytes after the header, "
                            f"found {len(data) - body}; save or copy it again")
    table = np.frombuffer(data, layout, count, body)
    values = {name: _finite(path, table, name) for name in NEEDED}

    def columns(names: tuple[str, ...]) -> np.ndarray:
        return np.stack([values[name] for name in names], 1)

    quats, means = columns(QUAT), columns(MEAN)
    lengths = np.linalg.norm(quats.astype(np.float64), axis=1)
    if len(zero := np.flatnonzero(lengths < LEAST_LENGTH)):
        raise TalkheadError(f"{path}: the rotation of splat {zero[0]} is zero; mend or delete it")
    for what, size in (("rotation", lengths), ("place", np.abs(means).max(1))):
        if len(wrong := np.flatnonzero(size > LARGEST_NUMBER)):
            raise TalkheadError(f"{path}: the {what} of splat {wrong[0]} reaches {size[wrong[0]]:.3g}; mend or delete it")
    warnings = []
    bands = [name for name in layout.names or () if name.startswith("f_rest_")]
    if any(table[name].any() for name in bands):
        warnings.append(f"colours that change with the view ({len(bands)} f_rest_ properties) are left out")
    log_scales = columns(SCALE)
    if large := int((log_scales > LARGEST + SAME).any(1).sum()):
        warnings.append(f"{large} splat(s) larger than {1000 * np.exp(LARGEST):.0f} mm will be shown that large")
    a, b, c, d = _unit(quats).T
    return PlyGaussians(means * HALF_TURN, np.stack([d, c, -b, -a], 1), log_scales, values["opacity"],
                        columns(COLOR) * np.float32(C0) + np.float32(0.5)), warnings


def _header(path: Path, data: bytes) -> tuple[str, list[list[str]], int]:
    """Contents of a file -> NumPy's byte order, the words of the header's lines, the offset of the data in bytes."""
    end = data.find(b"end_header", 0, LONGEST_HEADER)
    if not data.startswith(b"ply") or end < 0 or (body := data.find(b"\n", end) + 1) == 0:
        raise TalkheadError(f"{path} is not a PLY file; name one that a splat viewer saved")
    lines = [line.split() for line in data[:end].decode("ascii", "replace").splitlines() if line.strip()]
    form = next((line[1] for line in lines if line[0] == "format" and len(line) > 1), "none")
    if form not in ("binary_little_endian", "binary_big_endian"):
        raise TalkheadError(f"{path}: expected the PLY format binary_little_endian, found {form[:40]!r}; save it as binary")
    if any(line[0] == "comment" and " ".join(line[1:]).startswith(POSED) for line in lines):
        raise TalkheadError(f"{path} holds the head with an expression; export it without --landmarks to edit it")
    return "<" if form == "binary_little_endian" else ">", lines, body


def _vertices(path: Path, order: str, lines: list[list[str]]) -> tuple[int, np.dtype]:
    """Words of the header's lines -> number of Gaussians and the layout of one."""
    elements = [line for line in lines if line[0] == "element"]
    if not elements or len(elements[0]) < 3 or elements[0][1] != "vertex" or not re.fullmatch("[0-9]{1,12}", elements[0][2]):
        found = " ".join(elements[0])[:80] if elements else "none"
        raise TalkheadError(f"{path}: expected the PLY's first element to be vertex, found {found!r}; "
                            "save it as an uncompressed splat .ply")
    start = lines.index(elements[0]) + 1
    stop = lines.index(elements[1]) if len(elements) > 1 else len(lines)
    properties = [line for line in lines[start:stop] if line[0] == "property"]
    for line in properties:
        if len(line) != 3 or line[1] not in TYPES:
            raise TalkheadError(f"{path}: {' '.join(line)[:80]!r} is no property of a splat; save it as a splat .ply")
    names = [line[2] for line in properties]
    if missing := [name for name in NEEDED if name not in names]:
        raise TalkheadError(f"{path} is no 3DGS file: its vertices have no {', '.join(missing)}")
    if len(set(names)) < len(names):
        raise TalkheadError(f"{path}: the PLY names a property twice")
    return int(elements[0][2]), np.dtype([(line[2], order + TYPES[line[1]]) for line in properties])


def _finite(path: Path, table: np.ndarray, name: str) -> np.ndarray:
    with np.errstate(over="ignore"):
        column = table[name].astype(np.float32)
    if len(bad := np.flatnonzero(~np.isfinite(column))):
        raise TalkheadError(f"{path}: {name} of splat {bad[0]} is {table[name][bad[0]]}; mend or delete it "
                            f"({len(bad)} such value(s))")
    return column


def match(gaussians: PlyGaussians, originals: PlyGaussians) -> np.ndarray:
    """For each of `gaussians` (M) the row of its counterpart among `originals`, (M,): at the same mean, else the nearest.

    Several with the same mean are paired in the order of their other attributes.
    """
    _, source = cKDTree(originals.means).query(gaussians.means)
    both = [np.concatenate(pair) for pair in zip(originals, gaussians)]
    _, group = np.unique(np.round(both[0] / EXACT), axis=0, return_inverse=True)
    group = group.reshape(-1)
    order = np.lexsort((*(column for value in both[1:] for column in value.reshape(len(group), -1).T), group))
    of_file = order >= len(originals.means)
    theirs, ours = order[~of_file], order[of_file]
    _, a, b = np.intersect1d(_numbered(group[theirs]), _numbered(group[ours]), assume_unique=True, return_indices=True)
    source[ours[b] - len(originals.means)] = theirs[a]
    return source


def _numbered(groups: np.ndarray) -> np.ndarray:
    """Sorted group numbers (N,) -> (N,) unique keys from the group and the index within it."""
    starts = np.flatnonzero(np.diff(groups, prepend=-1))
    rank = np.arange(len(groups)) - np.repeat(starts, np.diff(starts, append=len(groups)))
    return (groups.astype(np.int64) << 32) + rank


@torch.no_grad()
def replace_splats(head: Head, gaussians: PlyGaussians) -> Changes:
    """Replace the head's canonical Gaussians, in place; each takes blendshapes and shading of its counterpart (see `match`).

    `head` comes from `load_head`. Attributes that were not edited keep their value to the bit. Raises TalkheadError if the
    Gaussians lie elsewhere.
    """
    originals = canonical_gaussians(head)
    source = match(gaussians, originals)
    order = np.argsort(source, kind="stable")
    source, gaussians = source[order], PlyGaussians(*(value[order] for value in gaussians))
    kept = [np.isclose(new, old[source], rtol=0, atol=SAME).reshape(len(source), -1).all(1)
            for new, old in zip(gaussians, originals)]
    distance = np.linalg.norm(gaussians.means - originals.means[source], axis=1)
    if np.median(distance) > FOREIGN:
        raise TalkheadError(f"the file's splats lie {100 * np.median(distance):.1f} cm from the avatar's; it seems to be of "
                            "another head, turned or scaled")
    head.select(torch.from_numpy(source).to(head.positions.device))
    for name, value, same in zip(ATTRIBUTES, gaussians, kept):
        old = getattr(head, name)
        keep = torch.from_numpy(same).to(old.device).view(-1, *[1] * (old.dim() - 1))
        setattr(head, name, nn.Parameter(torch.where(keep, old, torch.from_numpy(value).to(old)), requires_grad=False))
    unmoved, unedited = kept[0], np.logical_and.reduce(kept)
    return Changes(same=int(unedited.sum()), edited=int((unmoved & ~unedited).sum()), new=int((~unmoved).sum()),
                   gone=len(originals.means) - len(np.unique(source)))
