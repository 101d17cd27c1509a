"""VOCASET -> one landmark clip for each sentence, for `talkhead stage1 pretrain`: landmarks and sound, no video.

Two public layouts are read: meshes `unposedcleaneddata/SUBJECT/sentenceNN/sentenceNN.000001.ply` with
`audio/SUBJECT/sentenceNN.wav` (and `templates/SUBJECT.ply`, if present, as the neutral), or arrays of their vertices
`vertices_npy/SUBJECT_sentenceNN.npy` (N, 15069) with `wav/SUBJECT_sentenceNN.wav`. Pickles are never loaded.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from hashlib import sha256
from pathlib import Path

import numpy as np
from scipy.signal import resample_poly

from process_data.importers.flame68 import (
    FLAME_VERTICES,
    STILL,
    Embedding,
    check_face,
    default_embedding,
    head_frame,
    load_embedding,
    read_ply,
)
from process_data.pipeline import BUILT, check_target, clip_lock, finish_clip, save_with_content
from shared.camera import pose_matrix, umeyama
from shared.clip import Clip, ClipInfo, Shot
from shared.errors import TalkheadError
from shared.landmarks import FPS, SAMPLE_RATE, SAMPLES_PER_FRAME, lip_opening, save_array, save_landmarks
from shared.media.audio_io import load_audio, save_wav
from shared.progress import progress
from shared.publish import remove_work, work_folder
from shared.torso_motion import AT_REST
from shared.version import installed_versions

VOCA_FPS = 60.0  # meshes a second
LEAST_FRAMES = 2  # of a sentence
NO_VIDEO = "made of meshes: landmarks and sound, no video; for stage 1 only"
SIZE = 512  # side in pixels that clip.json states, though there is no picture
FOCAL_SIZES = 2.2  # focal length in picture sizes, as in ProcessConfig
DISTANCE = 1.0  # metres from the camera to the face
REST_SHARE = 0.25  # share of a sentence's frames, those with the least open lips, whose median is its neutral
LENGTH_TOLERANCE = 0.2  # largest difference in length of sound and meshes, of the meshes' length
_UPRIGHT = np.diag([1.0, -1.0, -1.0])  # rotation of a head that faces the camera
_NUMBER = re.compile(r"(\d+)\.ply$")


@dataclass(frozen=True)
class Sentence:
    """One recording: its speaker, its name, its meshes (a folder of PLY files or one .npy) and its sound."""

    subject: str
    name: str
    meshes: Path
    sound: Path
    template: Path | None = None

    @property
    def clip(self) -> str:
        return f"{self.subject}_{self.name}"


@dataclass
class VocaImport:
    """Result of import_voca: names of the clips made, of those that existed before, of sentences left out; and warnings."""

    made: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def import_voca(root: Path, out: Path, *, embedding: Path | None = None, fps: float = VOCA_FPS, overwrite: bool = False,
                quiet: bool = False) -> VocaImport:
    """Make a landmark clip `out`/SUBJECT_sentenceNN of every sentence under `root` that has sound.

    Finished clips are kept, so that an interrupted import continues; with `overwrite` they are made again. Raises
    TalkheadError: no such folder, no meshes, a mesh of another topology, no usable sentence.
    """
    sentences = find_sentences(root)
    done = VocaImport()
    points: Embedding | None = None
    with progress(len(sentences), "sentences", quiet=quiet, unit="sentence") as bar:
        for sentence in sentences:
            clip = Clip(out / sentence.clip)
            if clip.exists() and not overwrite:
                done.kept.append(sentence.clip)
            else:
                check_target(clip, sentence.sound, sentence.meshes)
                points = points or _embedding(embedding, sentence)
                unfit, warnings = _import_sentence(sentence, clip, points, fps)
                (done.left_out if unfit else done.made).append(sentence.clip)
                done.warnings += [f"{sentence.clip}: {warning}" for warning in warnings]
            bar.update()
    if not done.made and not done.kept:
        raise TalkheadError(f"none of the {len(sentences)} sentences under {root} can be used; {done.warnings[0]}")
    return done


def _embedding(path: Path | None, sentence: Sentence) -> Embedding:
    if path is None:
        return default_embedding()
    mesh = next(iter(sorted(sentence.meshes.glob("*.ply"))), None) if sentence.meshes.is_dir() else None
    return load_embedding(path, mesh)


def find_sentences(root: Path) -> list[Sentence]:
    """The sentences under a folder of either layout, in order of name. Raises TalkheadError if there are none."""
    if not root.is_dir():
        raise TalkheadError(f"{root} is no folder")
    found = list(_mesh_folders(root)) or list(_vertex_files(root))
    if found:
        return sorted(found, key=lambda sentence: sentence.clip)
    pickled = [path.name for folder in (root, root / "trainingdata") for name in ("data_verts.npy", "subj_seq_to_idx.pkl")
               if (path := folder / name).is_file()]
    if pickled:
        raise TalkheadError(f"{root} holds VOCASET's training arrays ({', '.join(pickled)}), whose index is a pickle, and "
                            "pickles are never loaded; download the meshes, unposedcleaneddata.zip and audio.zip")
    raise TalkheadError(f"{root}: no meshes found; expected unposedcleaneddata/SUBJECT/sentenceNN/*.ply with "
                        "audio/SUBJECT/sentenceNN.wav, or vertices_npy/SUBJECT_sentenceNN.npy with wav/")


def _mesh_folders(root: Path) -> Iterator[Sentence]:
    for folder in sorted((root / "unposedcleaneddata").glob("*/*")):
        if folder.is_dir() and any(folder.glob("*.ply")):
            subject, name = folder.parent.name, folder.name
            template = root / "templates" / f"{subject}.ply"
            yield Sentence(subject, name, folder, root / "audio" / subject / f"{name}.wav",
                           template if template.is_file() else None)


def _vertex_files(root: Path) -> Iterator[Sentence]:
    for file in sorted((root / "vertices_npy").glob("*.npy")):
        subject, _, name = file.stem.rpartition("_")
        yield Sentence(subject or "unknown", name, file, root / "wav" / f"{file.stem}.wav")


def _import_sentence(sentence: Sentence, clip: Clip, points: Embedding, fps: float) -> tuple[bool, list[str]]:
    """Write the clip, unless the sound is missing or does not fit; returns whether it was left out, and warnings."""
    if not sentence.sound.is_file():
        return True, [f"left out, since {sentence.sound} does not exist"]
    recorded, missing = _read_landmarks(sentence, points)
    samples = load_audio(sentence.sound)
    sound_seconds, mesh_seconds = len(samples) / SAMPLE_RATE, len(recorded) / fps
    if abs(sound_seconds - mesh_seconds) > LENGTH_TOLERANCE * mesh_seconds:
        return True, [f"left out, since the sound lasts {sound_seconds:.2f} s and the {len(recorded)} meshes "
                      f"{mesh_seconds:.2f} s at {fps:g} frames a second; if this is so everywhere, give the right rate "
                      "with --fps"]
    landmarks, neutral = to_head_space(resample(recorded, fps), _template(sentence, points))
    check_face(neutral[0], str(sentence.meshes))
    warnings = [f"{missing} of {len(recorded)} meshes are missing; filled in from their neighbours"] if missing else []
    _write_clip(sentence, clip, landmarks, neutral, samples, warnings, sha256(recorded.tobytes()).hexdigest())
    return False, warnings


def _write_clip(sentence: Sentence, clip: Clip, landmarks: np.ndarray, neutral: np.ndarray, samples: np.ndarray,
                warnings: list[str], digest: str) -> None:
    """Write all files that stage 1 reads and move them to their place at once; poses and torso motion are constant."""
    with clip_lock(clip):
        remove_work(clip.root, BUILT)
        try:
            _write_files(sentence, Clip(work_folder(clip.root, BUILT)), landmarks, neutral, samples, warnings, digest)
        except TalkheadError:
            remove_work(clip.root, BUILT)
            raise
        finish_clip(clip, BUILT)


def _write_files(sentence: Sentence, clip: Clip, landmarks: np.ndarray, neutral: np.ndarray, samples: np.ndarray,
                 warnings: list[str], digest: str) -> None:
    count = len(landmarks)
    save_landmarks(clip.landmarks, landmarks)
    save_landmarks(clip.neutral, neutral)
    save_array(clip.poses, pose_matrix(np.tile(_UPRIGHT, (count, 1, 1)), np.tile([0, 0, DISTANCE], (count, 1))))
    save_array(clip.torso_motion, np.tile(np.array(AT_REST, np.float32), (count, 1)))
    length = count * SAMPLES_PER_FRAME
    save_wav(clip.audio, np.pad(samples[:length], (0, max(0, length - len(samples)))))
    focal = FOCAL_SIZES * SIZE
    save_with_content(clip, ClipInfo(
        name=sentence.clip, source_name=sentence.meshes.name, source_sha256=digest, width=SIZE, height=SIZE, frames=count,
        intrinsics=(focal, focal, SIZE / 2, SIZE / 2), crop=(0, 0, SIZE), shots=[Shot(0, count, clip.background.name)],
        split={"train": [(0, count)]}, versions=installed_versions("talkhead"), warnings=[NO_VIDEO, *warnings]))


def _template(sentence: Sentence, points: Embedding) -> np.ndarray | None:
    return None if sentence.template is None else points.points(read_ply(sentence.template))


def _read_landmarks(sentence: Sentence, points: Embedding) -> tuple[np.ndarray, int]:
    """Landmarks (N,68,3) of every frame in the mesh's own space, missing meshes interpolated, and how many were missing."""
    if sentence.meshes.is_dir():
        files = {int(match.group(1)): path for path in sentence.meshes.glob("*.ply") if (match := _NUMBER.search(path.name))}
        if not files:
            raise TalkheadError(f"{sentence.meshes}: the PLY files have no frame numbers, as in sentence01.000001.ply")
        numbers = np.array(sorted(files))
        present = np.stack([points.points(read_ply(files[int(number)])) for number in numbers])
    else:
        present = points.points(_read_vertices(sentence.meshes))
        numbers = np.arange(1, len(present) + 1)
    # frames are numbered from 1; in some recordings a few are missing, also at the start
    whole = np.arange(min(1, numbers[0]), numbers[-1] + 1)
    if len(whole) < LEAST_FRAMES:
        raise TalkheadError(f"{sentence.meshes}: expected {LEAST_FRAMES} meshes or more, found {len(whole)}")
    filled = np.stack([np.interp(whole, numbers, column) for column in present.reshape(len(present), -1).T], 1)
    return filled.reshape(-1, 68, 3), len(whole) - len(numbers)


def _read_vertices(path: Path) -> np.ndarray:
    """(N,5023,3) float64 from an array (N, 15069) or (N, 5023, 3). Raises TalkheadError."""
    try:
        vertices = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # what NumPy raises on damaged headers is of many types
        raise TalkheadError(f"{path}: expected a NumPy array of numbers; pickled arrays are never loaded") from error
    wide = FLAME_VERTICES * 3
    shape = getattr(vertices, "shape", None)
    if shape is None or len(shape) < 2 or shape[0] < 1 or shape[1:] not in ((wide,), (FLAME_VERTICES, 3)) \
            or vertices.dtype.kind != "f":
        raise TalkheadError(f"{path}: expected FLAME vertices (frames, {wide}), found {shape}")
    rows = np.asarray(vertices, float).reshape(-1, FLAME_VERTICES, 3)
    if not np.isfinite(rows).all():
        raise TalkheadError(f"{path}: some of its vertices are not finite numbers")
    return rows


def resample(rows: np.ndarray, fps: float) -> np.ndarray:
    """Rows (N, ...) at `fps` a second -> (T, ...) at 25 a second; row t is the one at t/25 s, up to the end of the recording.

    Polyphase FIR resampling with zero phase (Kaiser window, β = 5, cut off at 12.5 Hz), so without aliasing and delay.
    Beyond the ends the first and the last row are repeated.
    """
    ratio = Fraction(FPS / fps).limit_denominator(1000)
    if ratio == 1:
        return rows
    flat = rows.reshape(len(rows), -1)
    last = int((len(rows) - 1) * ratio + Fraction(1, 1000))
    padding = 20 * max(1, round(1 / ratio))
    # the padding in front is a whole number of output frames, so that row 0 stays at time 0
    front = -(-padding // ratio.denominator) * ratio.denominator
    long = np.concatenate([np.repeat(flat[:1], front, 0), flat, np.repeat(flat[-1:], padding, 0)])
    start = front * ratio.numerator // ratio.denominator
    out = resample_poly(long, ratio.numerator, ratio.denominator, axis=0)[start : start + last + 1]
    return out.reshape(-1, *rows.shape[1:])


def to_head_space(rows: np.ndarray, template: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Landmarks (T,68,3) in any space and unit -> (T,68,3) float32 metres in head space, and the neutral (1,68,3).

    The neutral is the `template` (68,3), aligned to the recording by the points that hardly move, or else the median of the
    frames whose lips are least open. One similarity is used for all frames, since VOCASET has no head motion.
    """
    rest = _rest(rows)
    if template is not None:
        _, rotation, shift = umeyama(template[STILL], rest[STILL], with_scale=False)
        rest = template @ rotation.T + shift
    scale, axes, origin = head_frame(rest)
    moved, neutral = (scale * (points - origin) @ axes.T for points in (rows, rest[None]))
    return moved.astype(np.float32), neutral.astype(np.float32)


def _rest(rows: np.ndarray) -> np.ndarray:
    scale, axes, origin = head_frame(np.median(rows, axis=0))
    opening = lip_opening(scale * (rows - origin) @ axes.T)
    return np.median(rows[opening <= np.quantile(opening, REST_SHARE)], axis=0)
