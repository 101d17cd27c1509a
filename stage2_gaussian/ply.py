"""The head's canonical Gaussians as a 3DGS .ply file that splat viewers open and editors change, and back.

The file is that of Kerbl et al., "3D Gaussian Splatting", SIGGRAPH 2023, with colours of spherical harmonics' degree 0.
Its axes are head space turned by half around z: viewers take y as pointing down, as COLMAP does, and the common ones look
at the scene from +z, where the face then looks. docs/formats.md describes it for users.
"""

import itertools
import re
import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import nn

from shared.avatar import Avatar, replace_edited_head
from shared.camera import quaternion_from_matrix, quaternion_multiply
from shared.checkpoint import load_checkpoint
from shared.errors import TalkheadError
from shared.files import atomic_path
from shared.lock import lock_output
from shared.publish import whole_folder
from stage2_gaussian.checkpoint import load_head, save_head
from stage2_gaussian.head import ATTRIBUTES, LARGEST, Head

C0 = 0.28209479177387814  # the spherical harmonic of degree 0
HALF_TURN = np.array([-1, -1, 1], np.float32)  # head space -> file and back
PLACE, COLOR, OPACITY = ("x", "y", "z"), ("f_dc_0", "f_dc_1", "f_dc_2"), ("opacity",)
SCALE, ROTATION = ("scale_0", "scale_1", "scale_2"), ("rot_0", "rot_1", "rot_2", "rot_3")
NEEDED = (*PLACE, *COLOR, *OPACITY, *SCALE, *ROTATION)
WRITTEN = (*PLACE, "nx", "ny", "nz", *NEEDED[3:])
TYPES = {"char": "i1", "uchar": "u1", "short": "i2", "ushort": "u2", "int": "i4", "uint": "u4", "float": "f4", "double": "f8",
         "int8": "i1", "uint8": "u1", "int16": "i2", "uint16": "u2", "int32": "i4", "uint32": "u4", "float32": "f4",
         "float64": "f8"}
LONGEST_HEADER = 1 << 16  # bytes
LARGEST_NUMBER = 1e6  # of a place in metres or of a rotation
POSED = "talkhead posed"  # starts the comment of a file that holds no canonical splats
EXACT = 1e-6  # metres: an editor that turns a file and turns it back moves splats by less
SAME = 1e-5  # attributes that differ by less were not edited
FOREIGN = 0.02  # metres between splats and the avatar's, in the median, from which on a file is of something else


class Cloud(NamedTuple):
    """Gaussians in head space, as the head's parameters hold them; float32."""

    positions: np.ndarray  # (N, 3) metres
    rotations: np.ndarray  # (N, 4) wxyz, unit length
    log_scales: np.ndarray  # (N, 3) of metres
    opacities: np.ndarray  # (N,) logit
    colors: np.ndarray  # (N, 3), 0..1 and beyond


class Changes(NamedTuple):
    """What an edited file did to a head, counted in splats."""

    same: int  # as they were
    edited: int  # where they were, with another colour, size, rotation or opacity
    new: int  # moved or added
    gone: int  # of the avatar's that no splat of the file stands for


def _unit(quats: np.ndarray) -> np.ndarray:
    return (quats / np.linalg.norm(quats, axis=1, keepdims=True)).astype(np.float32)


def canonical(head: Head) -> Cloud:
    """The head at rest: what its landmarks move."""
    values = {name: getattr(head, name).detach().cpu().float().numpy() for name in ATTRIBUTES}
    return Cloud(values["positions"], _unit(values["rotations"]), np.minimum(values["log_scales"], np.float32(LARGEST)),
                 values["opacities"], values["colors"])


@torch.no_grad()
def posed(head: Head, landmarks: np.ndarray, pose: np.ndarray) -> Cloud:
    """The head with the expression `landmarks` (68, 3), as it looks from `pose` (4, 4), but in head space."""
    device = head.positions.device
    view = torch.as_tensor(pose, device=device)
    splats = head(torch.as_tensor(landmarks, device=device)[None], view[None])
    back = quaternion_from_matrix(view[:3, :3].T)
    means = (splats.means[0] - view[:3, 3]) @ view[:3, :3]
    quats = quaternion_multiply(back, splats.quats[0])
    values = (means, quats, torch.log(splats.scales[0]), torch.logit(splats.opacities[0], 1e-6), splats.colors[0])
    places, rotations, *rest = (value.cpu().float().numpy() for value in values)
    return Cloud(places, _unit(rotations), *rest)


def write_ply(path: Path | str, cloud: Cloud, comment: str = "talkhead canonical") -> None:
    """Write a binary little-endian 3DGS file, atomically. `comment` is one line of the header."""
    w, x, y, z = cloud.rotations.T
    table = np.zeros(len(cloud.positions), [(name, "<f4") for name in WRITTEN])
    columns = [*(cloud.positions * HALF_TURN).T, *((cloud.colors - 0.5) / C0).T, cloud.opacities, *cloud.log_scales.T,
               -z, -y, x, w]
    for name, column in zip(NEEDED, columns):
        table[name] = column
    header = ["ply", "format binary_little_endian 1.0", f"comment {comment}", f"element vertex {len(table)}",
              *(f"property float {name}" for name in WRITTEN), "end_header", ""]
    with atomic_path(path) as partial, open(partial, "wb") as file:
        file.write("\n".join(header).encode("ascii"))
        file.write(table.tobytes())


def read_ply(path: Path | str) -> tuple[Cloud, list[str]]:
    """Read a binary 3DGS file of any writer -> (splats, warnings); properties that a head has no use for are left out.

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

    rotations, places = columns(ROTATION), columns(PLACE)
    lengths = np.linalg.norm(rotations.astype(np.float64), axis=1)
    if len(zero := np.flatnonzero(lengths < 1e-12)):
        raise TalkheadError(f"{path}: the rotation of splat {zero[0]} is zero; mend or delete it")
    for what, size in (("rotation", lengths), ("place", np.abs(places).max(1))):
        if len(wrong := np.flatnonzero(size > LARGEST_NUMBER)):
            raise TalkheadError(f"{path}: the {what} of splat {wrong[0]} reaches {size[wrong[0]]:.3g}; mend or delete it")
    warnings = []
    bands = [name for name in layout.names or () if name.startswith("f_rest_")]
    if any(table[name].any() for name in bands):
        warnings.append(f"colours that change with the view ({len(bands)} f_rest_ properties) are left out")
    log_scales = columns(SCALE)
    if large := int((log_scales > LARGEST + SAME).any(1).sum()):
        warnings.append(f"{large} splat(s) larger than {1000 * np.exp(LARGEST):.0f} mm will be shown that large")
    a, b, c, d = _unit(rotations).T
    return Cloud(places * HALF_TURN, np.stack([d, c, -b, -a], 1), log_scales, values["opacity"],
                 columns(COLOR) * np.float32(C0) + np.float32(0.5)), warnings


def _header(path: Path, data: bytes) -> tuple[str, list[list[str]], int]:
    """-> byte order of NumPy, the header's lines in words, where the data begin."""
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
    """The number of splats and the layout of one, from a header in words."""
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


def match(cloud: Cloud, originals: Cloud) -> np.ndarray:
    """(M,) for every splat of `cloud` which of the `originals` it stands for: that at the same place, else the nearest.

    Where several lie at one place, they are told apart by their other attributes.
    """
    _, source = cKDTree(originals.positions).query(cloud.positions)
    both = [np.concatenate(pair) for pair in zip(originals, cloud)]
    _, place = np.unique(np.round(both[0] / EXACT), axis=0, return_inverse=True)
    place = place.reshape(-1)
    order = np.lexsort((*(column for value in both[1:] for column in value.reshape(len(place), -1).T), place))
    of_cloud = order >= len(originals.positions)
    theirs, ours = order[~of_cloud], order[of_cloud]
    _, a, b = np.intersect1d(_numbered(place[theirs]), _numbered(place[ours]), assume_unique=True, return_indices=True)
    source[ours[b] - len(originals.positions)] = theirs[a]
    return source


def _numbered(places: np.ndarray) -> np.ndarray:
    """Sorted numbers (N,) of places -> (N,) numbers that also tell the first, second, … at each place apart."""
    starts = np.flatnonzero(np.diff(places, prepend=-1))
    rank = np.arange(len(places)) - np.repeat(starts, np.diff(starts, append=len(places)))
    return (places.astype(np.int64) << 32) + rank


@torch.no_grad()
def replace_splats(head: Head, cloud: Cloud) -> Changes:
    """Put `cloud` in the place of the head's splats; each inherits how its original moves, those that move come first.

    `head` comes fresh from a file. Attributes that were not edited keep their value to the bit. Raises TalkheadError if the
    splats lie elsewhere.
    """
    originals = canonical(head)
    source = match(cloud, originals)
    order = np.argsort(source, kind="stable")
    source, cloud = source[order], Cloud(*(value[order] for value in cloud))
    kept = [np.isclose(new, old[source], rtol=0, atol=SAME).reshape(len(source), -1).all(1)
            for new, old in zip(cloud, originals)]
    distance = np.linalg.norm(cloud.positions - originals.positions[source], axis=1)
    if np.median(distance) > FOREIGN:
        raise TalkheadError(f"the file's splats lie {100 * np.median(distance):.1f} cm from the avatar's; it seems to be of "
                            "another head, turned or scaled")
    head.select(torch.from_numpy(source).to(head.positions.device))
    for name, value, same in zip(ATTRIBUTES, cloud, kept):
        old = getattr(head, name)
        keep = torch.from_numpy(same).to(old.device).view(-1, *[1] * (old.dim() - 1))
        setattr(head, name, nn.Parameter(torch.where(keep, old, torch.from_numpy(value).to(old)), requires_grad=False))
    unmoved, unedited = kept[0], np.logical_and.reduce(kept)
    return Changes(same=int(unedited.sum()), edited=int((unmoved & ~unedited).sum()), new=int((~unmoved).sum()),
                   gone=len(originals.positions) - len(np.unique(source)))


def export_head(avatar: Avatar, path: Path, *, landmarks: np.ndarray | None = None, frame: str = "") -> int:
    """Write the avatar's head as .ply, at rest or with the expression `landmarks` (68, 3); returns the number of splats.

    `frame` says in the file which expression it is.
    """
    avatar.require("stage2")
    head = load_head(avatar.stage2, "cpu")
    if landmarks is None:
        cloud = canonical(head)
        write_ply(path, cloud)
    else:
        poses = avatar.load_motion()[0]
        cloud = posed(head, landmarks, poses[len(poses) // 2])
        write_ply(path, cloud, f"{POSED} {frame}")
    return len(cloud.positions)


def import_head(avatar: Avatar, path: Path, output: Path | None) -> tuple[Changes, list[str], Path]:
    """Make an edited .ply the avatar's head -> (what changed, warnings, a file to tell the user).

    With `output` a copy of the avatar gets it, and that folder is returned; without it the avatar itself, and what is
    returned is the file that keeps the head it had. Raises TalkheadError before anything is written.
    """
    avatar.require("stage2")
    if output is not None and output.exists() and not Avatar(output).json.is_file():
        raise TalkheadError(f"{output} is no avatar, so it will not be replaced; name another folder")
    cloud, warnings = read_ply(path)
    head, meta = load_head(avatar.stage2, "cpu"), load_checkpoint(avatar.stage2)[1]
    try:
        changes = replace_splats(head, cloud)
    except TalkheadError as error:
        raise TalkheadError(f"{path}: {error}") from error
    if 2 * changes.new > len(head.positions):
        warnings.append(f"{changes.new} of {len(head.positions)} splats were moved or added; a file that was exported with "
                        "--landmarks shows an expression and should not be imported")
    meta, trained = {**meta, "imported": path.name}, avatar.trained_head()
    if output is None or output.resolve() == avatar.root.resolve():
        kept = _keep(avatar.stage2)
        save_head(avatar.work("stage2"), head, meta)
        replace_edited_head(avatar, trained)
        return changes, warnings, kept
    own = {file.name for file in avatar.files()}
    with lock_output(output), whole_folder(output, avatar.json.name, own.__contains__) as partial:
        new = Avatar(partial)
        for file in avatar.files():
            if file.is_file() and file != avatar.stage2:
                shutil.copyfile(file, partial / file.name)
        save_head(new.work("stage2"), head, meta)
        replace_edited_head(new, trained)
    return changes, warnings, output


def _keep(file: Path) -> Path:
    """Copy `file` beside itself under a name that is free: stage2.before-import-1.safetensors, …"""
    names = (file.with_name(f"{file.stem}.before-import-{k}{file.suffix}") for k in itertools.count(1))
    free = next(name for name in names if not name.exists())
    with atomic_path(free) as partial:
        shutil.copyfile(file, partial)
    return free
