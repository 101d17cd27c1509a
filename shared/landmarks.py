"""The landmark file: the only thing that passes between the stages.

One `.npy`, float32, C order, (T, 68, 3), finite, never pickled: iBUG-68 points in head space, metres,
+x to the subject's left, +y up, +z out of the face, row t belonging to the video frame shown at t/25 s.
"""

from pathlib import Path

import numpy as np

from shared.arrays import read_npy, read_table
from shared.errors import TalkheadError
from shared.face_check import check_face, looks_like_a_face
from shared.files import write_rows

FPS = 25
SAMPLE_RATE = 16000
SAMPLES_PER_FRAME = SAMPLE_RATE // FPS
N_LANDMARKS = 68
TABLES = (".csv", ".tsv", ".txt")  # endings of landmark files that are read as a spreadsheet's table
EYE_CORNER_DISTANCE = 0.09  # metres between points 36 and 45 of every neutral, by convention

JAW = list(range(0, 17))
BROW_RIGHT = list(range(17, 22))
BROW_LEFT = list(range(22, 27))
NOSE = list(range(27, 36))
EYE_RIGHT = list(range(36, 42))
EYE_LEFT = list(range(42, 48))
LIPS_OUTER = list(range(48, 60))
LIPS_INNER = list(range(60, 68))
LIPS = LIPS_OUTER + LIPS_INNER
INNER51 = list(range(17, 68))
MOVING = JAW + LIPS  # the points that sound tells about; brows, eyes and nose stay with the neutral
MOTION_DIM = 3 * len(MOVING)  # numbers in a flattened displacement of the moving points

# index of the point that lies at the mirrored place of the face
MIRROR = np.array(
    list(range(16, -1, -1))
    + list(range(26, 16, -1))
    + [27, 28, 29, 30, 35, 34, 33, 32, 31]
    + [45, 44, 43, 42, 47, 46]
    + [39, 38, 37, 36, 41, 40]
    + [54, 53, 52, 51, 50, 49, 48, 59, 58, 57, 56, 55]
    + [64, 63, 62, 61, 60, 67, 66, 65]
)

_UPPER_INNER = [61, 62, 63]
_LOWER_INNER = [67, 66, 65]


def check_array(array: np.ndarray, tail: tuple[int, ...], name: str) -> np.ndarray:
    """Return `array` as float32 C order if its shape is (T, *tail) with T ≥ 1 and every value is finite.

    Raises TalkheadError with one sentence that names the file, the expected and the found. Never transposes.
    """
    expected = f"({', '.join(['T', *map(str, tail)])}) float32 with T >= 1"
    if not isinstance(array, np.ndarray):
        raise TalkheadError(f"{name}: expected an array {expected}, found {type(array).__name__}")
    if array.dtype.kind not in "fiu":
        raise TalkheadError(f"{name}: expected numbers {expected}, found dtype {array.dtype}")
    if array.ndim != len(tail) + 1 or array.shape[1:] != tail or array.shape[0] < 1:
        raise TalkheadError(f"{name}: expected shape {expected}, found {array.shape}")
    bad = np.argwhere(~np.isfinite(array))
    if len(bad):
        place = tuple(map(int, bad[0]))
        raise TalkheadError(f"{name}: expected finite values, found {array[place]} at {place}")
    with np.errstate(over="ignore"):
        converted = np.ascontiguousarray(array, dtype=np.float32)
    if not np.isfinite(converted).all():
        raise TalkheadError(f"{name}: a value of {np.abs(array).max():.3g} does not fit float32")
    return converted


def load_array(path: Path | str, tail: tuple[int, ...]) -> np.ndarray:
    """Load an `.npy` of shape (T, *tail) as float32. Raises TalkheadError if it is missing, pickled, damaged or wrong."""
    return check_array(read_npy(Path(path), tail), tail, str(path))


def save_array(path: Path | str, array: np.ndarray) -> None:
    """Write float32 (T, ...) as `.npy`, atomically, after the same check as on loading."""
    checked = check_array(np.asarray(array), np.asarray(array).shape[1:], str(path))
    write_rows(path, "<f4", checked.shape, [checked])


def check_landmarks(array: np.ndarray, name: str) -> np.ndarray:
    """Return (T,68,3) float32 metres, or raise TalkheadError naming `name`, what was expected and what was found."""
    return check_array(array, (N_LANDMARKS, 3), name)


def load_landmarks(path: Path | str) -> np.ndarray:
    """Load a landmark file, `.npy` or a complete table (`.csv`, `.tsv`, `.txt`): (T,68,3) float32 metres in head space.

    Raises TalkheadError for anything else; other units, axes and orders of points are recognised (see `face_check`).
    """
    path = Path(path)
    if path.suffix.lower() in TABLES:
        table = read_table(path, N_LANDMARKS * 3, FPS)
        rows = check_landmarks(table.reshape(-1, N_LANDMARKS, 3), str(path))
        sorted_by_axis = rows.reshape(-1, 3, N_LANDMARKS).transpose(0, 2, 1)
        if looks_like_a_face(sorted_by_axis) and not looks_like_a_face(rows):
            raise TalkheadError(f"{path}: the columns hold all x, then all y, then all z; put x y z of each point side by side")
    else:
        rows = check_landmarks(read_npy(path, (N_LANDMARKS, 3), _other_shape), str(path))
    check_face(rows, str(path))
    return rows


def _other_shape(shape: tuple[int, ...]) -> str:
    """What an array that is no (T,68,3) may be, and how to make it one; "" if there is nothing to say."""
    flat = N_LANDMARKS * 3
    match shape:
        case (68, 3):
            return "that is one frame, so use rows[None]"
        case (3, 68) | (_, 3, 68):
            return "the last two axes seem to be swapped, so use rows.swapaxes(-1, -2)" + ("[None]" if len(shape) == 2 else "")
        case (68, 3, _):
            return "the frames seem to come last, so use rows.transpose(2, 0, 1)"
        case (1, _, 68, 3):
            return "the first axis is one too many, so use rows[0]"
        case (_, 1, 68, 3):
            return "the second axis is one too many, so use rows[:, 0]"
        case (_, 68, 4):
            return "four numbers a point seem to be x y z and a weight, so use rows[..., :3]"
        case (_, 68, 2) | (68, 2) | (_, 136) | (136,):
            return "two numbers a point are places in a picture, which do not tell the depth"
        case (_, size) | (size,) if size == flat:
            return f"the rows are flat; if they are x y z of every point, use rows.reshape(-1, {N_LANDMARKS}, 3)"
        case (_, 468 | 478, 2 | 3) | (468 | 478, 2 | 3):
            return f"{shape[-2]} points are MediaPipe's face mesh; 68 of iBUG's order are needed"
        case (_, 51, 3) | (51, 3):
            return "51 points are the inner face; the jaw, points 0-16, is missing"
        case (_, 5023, 3) | (5023, 3):
            return "5023 points are FLAME's mesh; see `talkhead import voca`"
        case (_, 52) | (_, 51) | (_, 61):
            return f"{shape[1]} numbers a frame seem to be blendshape weights, not landmarks"
        case (_, 4, 4) | (4, 4):
            return "4x4 matrices are poses"
        case (_, 4):
            return "four numbers a frame are a torso motion"
    return ""


def check_output_name(path: Path) -> None:
    """Raise TalkheadError unless a landmark file may be written under this name."""
    if path.suffix.lower() != ".npy":
        raise TalkheadError(f"{path}: landmarks are written as a NumPy array, so the name should end in .npy")


def save_landmarks(path: Path | str, landmarks: np.ndarray) -> None:
    """Write a landmark file, atomically. Raises TalkheadError for a wrong array."""
    save_array(path, check_landmarks(np.asarray(landmarks), str(path)))


def lip_opening(landmarks: np.ndarray) -> np.ndarray:
    """landmarks (T,68,3) -> (T,) signed inner-lip opening in metres: mean of upper y − lower y over three pairs."""
    return (landmarks[:, _UPPER_INNER, 1] - landmarks[:, _LOWER_INNER, 1]).mean(axis=1)


def eye_opening(landmarks: np.ndarray) -> np.ndarray:
    """landmarks (T,68,3) -> (T,2) mean lid opening in metres, right eye then left eye."""
    right = (landmarks[:, [37, 38], 1] - landmarks[:, [41, 40], 1]).mean(axis=1)
    left = (landmarks[:, [43, 44], 1] - landmarks[:, [47, 46], 1]).mean(axis=1)
    return np.stack([right, left], axis=1)
