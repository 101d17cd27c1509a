"""Arrays: evenly spread indices, runs of frames, and reading files that people edit.

Such files are `.npy` arrays, checked before anything is allocated, and tables of a spreadsheet.
"""

import csv
import io
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from shared.errors import TalkheadError

MOST_ROWS = 1_000_000  # eleven hours of video
LARGEST_TABLE = 256 << 20  # bytes of text
COUNTERS = ("", "frame", "frames", "index", "no", "nr", "row", "t", "time", "time_s", "timestamp", "second", "seconds", "s")
_ADDRESS = re.compile(r"(https?|ftp|s3|gs|rtmp|rtsp|file):/", re.IGNORECASE)
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d{1,4})?", re.ASCII)


def evenly(count: int, most: int) -> np.ndarray:
    """At most `most` of the indices 0 … count − 1, ascending, spread from the first to the last and rounded down."""
    return np.linspace(0, count - 1, min(count, most)).astype(int)


def runs(frames: Sequence[int] | np.ndarray) -> list[tuple[int, int]]:
    """Ascending frame numbers (n,) -> the runs start ≤ t < stop of consecutive ones; `runs(np.flatnonzero(flags))` of flags."""
    numbers = np.asarray(frames, int)
    breaks = np.flatnonzero(np.diff(numbers) != 1) + 1
    return [(int(run[0]), int(run[-1]) + 1) for run in np.split(numbers, breaks) if len(run)]


def savgol(values: np.ndarray, window: int) -> np.ndarray:
    """Savitzky–Golay filter of degree 2 over the first axis: values (T, ...) with T ≥ `window`, which is odd -> the same shape.

    The first and last window // 2 values are those of the outermost windows' parabolas, as in scipy's `savgol_filter`, whose
    import takes a second.
    """
    half = window // 2
    powers = np.vander(np.arange(-half, half + 1.0), 3)
    fit = powers @ np.linalg.pinv(powers)  # (window, window): values -> those of their parabola
    out = np.empty(values.shape)
    out[half : len(values) - half] = np.lib.stride_tricks.sliding_window_view(values, window, axis=0) @ fit[half]
    out[:half] = np.tensordot(fit[:half], values[:window], 1)
    out[len(values) - half :] = np.tensordot(fit[half + 1 :], values[-window:], 1)
    return out.astype(values.dtype)


class NpyHeader(NamedTuple):
    """The header of an `.npy` file, where its numbers begin and how many bytes of them there are."""

    shape: tuple[int, ...]
    dtype: np.dtype
    fortran: bool
    start: int
    size: int


def read_start(path: Path, size: int = 16) -> bytes:
    """The first bytes of a file. Raises TalkheadError if it is missing, a folder, empty or may not be read."""
    try:
        if path.is_dir():
            raise TalkheadError(f"{path} is a folder; name a file")
        with open(path, "rb") as file:
            start = file.read(size)
    except FileNotFoundError:
        raise TalkheadError(missing(path)) from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise TalkheadError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if not start:
        raise TalkheadError(f"{path} is empty (0 bytes); copy or make it again")
    return start


def is_address(path: Path) -> bool:
    """Whether a path is in truth a web address, such as https://…."""
    return bool(_ADDRESS.match(str(path)))


def missing(path: Path) -> str:
    """The error message for a path that does not exist."""
    if is_address(path):
        return f"{path} is an address; download the file first and name it"
    return f"{path} does not exist"


def npy_header(path: Path) -> NpyHeader:
    """Read only the header of an `.npy` file. Raises TalkheadError for any other file."""
    start = read_start(path)
    if not start.startswith(b"\x93NUMPY"):
        raise TalkheadError(f"{path}: expected a NumPy .npy array of numbers, found {_kind_of(start, path)}")
    try:
        with open(path, "rb") as file:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, fortran, dtype = read(file)
            at = file.tell()
            size = file.seek(0, io.SEEK_END) - at
    except Exception as error:  # what NumPy raises on damaged headers is of many types
        raise TalkheadError(f"{path}: the header of the .npy file is damaged; copy or make it again") from error
    if any(isinstance(side, bool) or side < 0 for side in shape):
        raise TalkheadError(f"{path}: the header of the .npy file is damaged: it tells the shape {shape}")
    return NpyHeader(shape, dtype, fortran, at, size)


def _kind_of(start: bytes, path: Path) -> str:
    """The kind of file that begins with the bytes `start`, in words."""
    if start.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return "a zip or .npz archive; unpack the one array that is meant"
    if start[0] == 0x80 and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return "a pickled object, which is never loaded"
    for magic, kind in ((b"\x89PNG", "a picture"), (b"\xff\xd8\xff", "a picture"), (b"RIFF", "sound or video"),
                        (b"\x89HDF", "an HDF5 file"), (b"MATLAB", "a MATLAB file"), (b"ply", "a .ply file")):
        if start.startswith(magic):
            return kind
    if all(byte in b"\t\r\n" or 32 <= byte < 127 for byte in start.removeprefix(b"\xef\xbb\xbf")):
        return "text" if path.suffix.lower() != ".npy" else "text; a spreadsheet's table is read if its name ends in .csv"
    return "something else"


def read_npy(path: Path, tail: tuple[int, ...], explain: Callable[[tuple[int, ...]], str] = lambda shape: "") -> np.ndarray:
    """The array (T, *tail) of numbers in an `.npy` file, of the type and byte order that it has there.

    `explain` says of a wrong shape what it may be. Nothing is allocated beyond the file's own size. Raises TalkheadError for
    anything else, whatever the bytes.
    """
    header = npy_header(path)
    shape, dtype = header.shape, header.dtype
    wanted = f"({', '.join(['T', *map(str, tail)])}) float32 with T >= 1"
    if dtype.hasobject:
        raise TalkheadError(f"{path} is a pickled or object array, which is never loaded; expected numbers {wanted}")
    if dtype.kind not in "fiu":
        raise TalkheadError(f"{path}: expected numbers {wanted}, found dtype {dtype}")
    if shape[1:] != tail or len(shape) != len(tail) + 1 or shape[0] < 1:
        hint = explain(shape)
        raise TalkheadError(f"{path}: expected shape {wanted}, found {_shown(shape)}{'; ' + hint if hint else ''}")
    if shape[0] > MOST_ROWS:
        raise TalkheadError(f"{path} tells of {shape[0]} rows; at most {MOST_ROWS}, eleven hours, are read")
    size = math.prod(shape) * dtype.itemsize
    if header.size != size:
        fault = "is cut short" if header.size < size else "is damaged"
        raise TalkheadError(f"{path} {fault}: its header tells of {size} bytes of numbers, found {header.size}; copy or make it "
                            "again")
    with open(path, "rb") as file:
        file.seek(header.start)
        numbers = np.fromfile(file, dtype, math.prod(shape))
    return numbers.reshape(shape[::-1]).T if header.fortran else numbers.reshape(shape)


def _shown(shape: tuple[int, ...]) -> str:
    text = str(shape)
    return text if len(text) <= 80 else text[:77] + "..."


def read_table(path: Path, columns: int, fps: float) -> np.ndarray:
    """A spreadsheet's table -> (T, columns) float64, row by row a frame at `fps`.

    Columns are parted by commas, semicolons or tabs; decimal commas are read where the columns are not parted by commas. The
    first line may name the columns. A column before the others is left out if it counts the frames or their times. Raises
    TalkheadError, with the line, for anything that is not complete.
    """
    read_start(path)
    if path.stat().st_size > LARGEST_TABLE:
        raise TalkheadError(f"{path} has {path.stat().st_size >> 20} MB of text, over {LARGEST_TABLE >> 20}; save it as .npy")
    text = _decoded(path)
    first = text.split("\n", 1)[0]
    mark = max(";\t,", key=first.count)
    try:
        lines = [(number, cells) for number, cells in enumerate(csv.reader(io.StringIO(text), delimiter=mark, strict=True), 1)
                 if any(cell.strip() for cell in cells)]
    except csv.Error as error:
        raise TalkheadError(f"{path} is no table that can be read: {error}") from error
    header = bool(lines) and not any(_is_number(cell, mark) for cell in lines[0][1])
    names, rows = (lines[0][1], lines[1:]) if header else (None, lines)
    if not rows:
        raise TalkheadError(f"{path} holds no rows of numbers")
    width = len(rows[0][1])
    if width not in (columns, columns + 1):
        raise TalkheadError(f"{path}: expected {columns} numbers in a line, x y z of every point, found {width} in line "
                            f"{rows[0][0]}")
    table = np.empty((len(rows), width))
    for out, (number, cells) in zip(table, rows):
        if len(cells) != width:
            raise TalkheadError(f"{path}: expected {width} numbers in line {number} as in the first, found {len(cells)}")
        for k, cell in enumerate(cells):
            if not _is_number(cell, mark):
                found = f"found {cell[:30]!r}" if cell.strip() else "the cell is empty"
                raise TalkheadError(f"{path}: line {number}, column {k + 1} should be a number, {found}")
            out[k] = float(cell.strip().replace(",", "."))
    if width == columns:
        return table
    counted, expected = table[:, 0] - table[0, 0], np.arange(len(table))
    named = len(table) > 1 if names is None else names[0].strip().lower() in COUNTERS
    if not named or not any(np.allclose(counted, expected * step, atol=step / 5) for step in (1, 1 / fps, 1000 / fps)):
        raise TalkheadError(f"{path}: expected {columns} numbers in a line, found {width}, and the first column is no count of "
                            f"frames or times of {fps:g} frames a second; take it out")
    return table[:, 1:]


def _decoded(path: Path) -> str:
    data = path.read_bytes()
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        raise TalkheadError(f"{path} is no text in UTF-8; save the table as CSV UTF-8") from error


def _is_number(cell: str, mark: str) -> bool:
    plain = cell.strip()
    return bool(_NUMBER.fullmatch(plain if mark == "," else plain.replace(",", ".", 1)))
