"""The landmark file: the only thing that passes between the stages.

One `.npy`, float32, C order, (T, 68, 3), finite, never pickled: iBUG-68 points in head space, metres,
+x to the subject's left, +y up, +z out of the face, row t belonging to the video frame shown at t/25 s.
"""

from pathlib import Path

import numpy as np

from shared.errors import TalkheadError
from shared.files import write_rows

FPS = 25
SAMPLE_RATE = 16000
SAMPLES_PER_FRAME = SAMPLE_RATE // FPS
N_LANDMARKS = 68
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
    """Load an `.npy` of shape (T, *tail) as float32. Raises TalkheadError if it is missing, pickled or wrong."""
    path = Path(path)
    try:
        array = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise TalkheadError(f"{path} does not exist") from None
    except (OSError, ValueError, EOFError) as error:
        pickled = "pickle" in str(error).lower() or "object" in str(error).lower()
        found = "a pickled or object array, which is never loaded" if pickled else "something else"
        raise TalkheadError(f"{path}: expected a NumPy .npy array of numbers, found {found}") from error
    if isinstance(array, np.lib.npyio.NpzFile):
        array.close()
        raise TalkheadError(f"{path}: expected one .npy array, found an .npz archive")
    return check_array(array, tail, str(path))


def save_array(path: Path | str, array: np.ndarray) -> None:
    """Write float32 (T, ...) as `.npy`, atomically, after the same check as on loading."""
    checked = check_array(np.asarray(array), np.asarray(array).shape[1:], str(path))
    write_rows(path, "<f4", checked.shape, [checked])


def check_landmarks(array: np.ndarray, name: str) -> np.ndarray:
    """Return (T,68,3) float32 metres, or raise TalkheadError naming `name`, what was expected and what was found."""
    return check_array(array, (N_LANDMARKS, 3), name)


def load_landmarks(path: Path | str) -> np.ndarray:
    """Load a landmark file: (T,68,3) float32 metres. Raises TalkheadError for anything else."""
    return load_array(path, (N_LANDMARKS, 3))


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
