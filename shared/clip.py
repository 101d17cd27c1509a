"""The clip folder: what `process` makes and training reads. Every path in it is defined here, once."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from shared.arrays import MOST_ROWS
from shared.config import config_from_dict, config_to_dict, shown
from shared.errors import TalkheadError
from shared.files import atomic_path, read_json, refuse_unreachable, sha256, write_json
from shared.gaze import optional_gaze
from shared.landmarks import FPS, load_landmarks, save_array
from shared.lock import remove_abandoned
from shared.media.audio_io import load_audio
from shared.media.video_io import read_gray_video, read_png, read_video
from shared.poses import load_poses
from shared.publish import finish_move
from shared.torso_motion import load_torso_motion, warp_file

CLIP_FORMAT = 1
ABANDONED = 3600.0  # seconds after which a half-written cache file may be removed, whichever host wrote it
LARGEST_SIDE = 8192  # pixels
MOST_PIXELS = 1e6  # of a focal length or a principal point
BACKGROUND, TORSO, NECK, HEAD, MOUTH = range(5)  # values of a label image


@dataclass(frozen=True)
class Shot:
    """Frames start ≤ t < stop between two cuts, and the name of their background plate."""

    start: int
    stop: int
    background: str


@dataclass(frozen=True)
class ExcludedSpan:
    """Frames start ≤ t < stop that training skips, and why."""

    start: int
    stop: int
    reason: str


@dataclass(frozen=True)
class ClipInfo:
    """clip.json. intrinsics are fx, fy, cx, cy in pixels; crop is x, y, size in source pixels; excluded (in the file: "bad")
    are the frames that training skips; split holds ranges start ≤ t < stop by name; lag_ms is how much later than the sound
    the lips move, None where it is unknown; content holds the SHA-256 of each file that `process` wrote, by name (empty in
    older clips)."""

    name: str
    source_name: str
    source_sha256: str
    width: int
    height: int
    frames: int
    intrinsics: tuple[float, float, float, float]
    crop: tuple[int, int, int]
    shots: list[Shot]
    excluded: list[ExcludedSpan] = field(default_factory=list, metadata={"key": "bad"})
    split: dict[str, list[tuple[int, int]]] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    lag_ms: float | None = None
    content: dict[str, str] = field(default_factory=dict)
    fps: int = FPS
    format: int = CLIP_FORMAT

    @staticmethod
    def from_dict(values: dict[str, Any], where: str) -> "ClipInfo":
        if values.get("format") != CLIP_FORMAT:
            raise TalkheadError(f"{where}: expected clip format {CLIP_FORMAT}, found {shown(values.get('format'))}; "
                                "process the video again with this version")
        info = config_from_dict(ClipInfo, values, where)
        check_picture(where, info.width, info.height, info.intrinsics, info.fps)
        check_spans(where, info)
        return info


def check_picture(where: str, width: int, height: int, intrinsics: tuple[float, ...], fps: int) -> None:
    """Raise TalkheadError for a size, a camera or a frame rate that is not supported."""
    if not (2 <= width <= LARGEST_SIDE and 2 <= height <= LARGEST_SIDE):
        raise TalkheadError(f"{where}: width and height should be 2 to {LARGEST_SIDE} pixels, found {shown(width)} and "
                            f"{shown(height)}")
    fx, fy, *centre = intrinsics
    if not (0 < fx < MOST_PIXELS and 0 < fy < MOST_PIXELS and max(map(abs, centre)) < MOST_PIXELS):
        raise TalkheadError(f"{where}: intrinsics should be fx, fy, cx, cy in pixels, fx and fy above 0, found "
                            f"{list(intrinsics)}")
    if fps != FPS:
        raise TalkheadError(f"{where}: fps should be {FPS}, found {shown(fps)}")


def check_spans(where: str, info: ClipInfo) -> None:
    """Raise TalkheadError unless shots, excluded spans and splits lie within the clip and the shots cover it."""
    if not 1 <= info.frames <= MOST_ROWS:
        raise TalkheadError(f"{where}: frames should be 1 to {MOST_ROWS}, found {shown(info.frames)}")
    spans = [("shots", shot.start, shot.stop) for shot in info.shots] + [("bad", span.start, span.stop) for span in info.excluded]
    spans += [(f"split {shown(name)}", *span) for name, found in info.split.items() for span in found]
    for what, start, stop in spans:
        if not 0 <= start <= stop <= info.frames:
            raise TalkheadError(f"{where}: {what} should lie within frames 0 to {info.frames}, found {shown(start)} to "
                                f"{shown(stop)}")
    ends = [0, *(shot.stop for shot in info.shots)]
    if [shot.start for shot in info.shots] != ends[:-1] or ends[-1] != info.frames:
        raise TalkheadError(f"{where}: shots should follow each other from 0 to {info.frames}, found "
                            f"{shown([(shot.start, shot.stop) for shot in info.shots])}")
    for shot in info.shots:
        if shot.background != Path(shot.background).name or not shot.background.isprintable() or not shot.background:
            raise TalkheadError(f"{where}: the background of a shot should be a file in the clip folder, found "
                                f"{shown(shot.background)}")


def good_frames(excluded: Sequence[ExcludedSpan], count: int) -> np.ndarray:
    """(T,) bool: which of `count` frames lie in no excluded span."""
    good = np.ones(count, bool)
    for span in excluded:
        good[span.start : span.stop] = False
    return good


def seen_file(plate: Path) -> Path:
    """The file beside a background plate that marks which of its pixels were seen."""
    return plate.with_name(f"{plate.stem}_seen.png")


class Clip:
    """A clip folder. Making the object touches no file; reading does, and raises TalkheadError where one is wrong."""

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)
        self.json = self.root / "clip.json"
        self.video = self.root / "video.mp4"
        self.audio = self.root / "audio.wav"
        self.landmarks = self.root / "landmarks.npy"
        self.poses = self.root / "poses.npy"
        self.fitted_poses = self.root / "poses_fitted.npy"
        self.fitted_record = self.root / "poses_fitted.json"
        self.neutral = self.root / "neutral.npy"
        self.torso_motion = self.root / "torso.npy"
        self.torso_warp = warp_file(self.torso_motion)
        self.gaze = self.root / "gaze.npy"
        self.labels = self.root / "labels.mkv"
        self.alpha = self.root / "alpha.mkv"
        self.background = self.root / "background.png"
        self.phones = self.root / "phones.json"
        self.report = self.root / "report.html"
        self.quality = self.root / "quality.json"
        self.training = self.root / "training"
        self.cache = self.root / ".cache"
        self._info: ClipInfo | None = None
        self._frame_files: dict[str, FrameFile] = {}

    def exists(self) -> bool:
        """True if this is a finished clip folder (clip.json is written last). Finishes a move that was cut short."""
        finish_move(self.root)
        return self.json.is_file()

    @property
    def info(self) -> ClipInfo:
        """clip.json, read at the first use. Raises TalkheadError if it is missing or wrong."""
        if self._info is None:
            refuse_unreachable(self.root)
            if not self.exists():
                raise TalkheadError(f"{self.root} is not a clip folder (no clip.json in it); make one with "
                                    f"`talkhead process VIDEO {self.root}`")
            self._info = ClipInfo.from_dict(read_json(self.json), str(self.json))
        return self._info

    def save_info(self, info: ClipInfo) -> None:
        """Write clip.json, atomically."""
        write_json(self.json, config_to_dict(info))
        self._info = None

    def check(self) -> None:
        """Raise TalkheadError unless this is a clip folder whose clip.json is valid."""
        _ = self.info

    def require_video(self) -> None:
        """Raise TalkheadError for a clip of landmarks and sound only, as `talkhead import voca` makes."""
        self.check()
        if not self.video.is_file():
            raise TalkheadError(f"{self.root} has no video; it serves `stage1 pretrain` only")

    def with_split(self, split: Mapping[str, list[tuple[int, int]]]) -> "Clip":
        """The same folder with other splits, name -> ranges start ≤ t < stop; nothing is written."""
        view = Clip(self.root)
        view._info = dataclasses.replace(self.info, split=dict(split))
        return view

    def load_landmarks(self) -> np.ndarray:
        """(T,68,3) float32 metres, head space."""
        return self._of_length(load_landmarks(self.landmarks), self.landmarks)

    def load_poses(self) -> np.ndarray:
        """(T,4,4) float32 head → camera."""
        return self._of_length(load_poses(self.poses), self.poses)

    def load_fitted_poses(self, head: str | None) -> np.ndarray | None:
        """(T,4,4) that `stage2 train` fitted with the head file of SHA-256 `head` to this content of the clip; else None.

        Older clips have no record of head and content; their fitted poses are returned unchecked.
        """
        if not self.fitted_poses.is_file():
            return None
        if self.fitted_record.is_file():
            record = read_json(self.fitted_record)
            if record != {"head": head, "clip": self._pictures(), "poses": sha256(self.fitted_poses)}:
                return None
        elif self.info.content:
            return None
        poses = load_poses(self.fitted_poses)
        return poses if len(poses) == self.info.frames else None

    def save_fitted_poses(self, poses: np.ndarray, head: str) -> None:
        """Write poses (T,4,4) with a record: fitted with the head file of SHA-256 `head` to the present content of the clip."""
        self.drop_fitted_poses()
        save_array(self.fitted_poses, poses)
        write_json(self.fitted_record, {"head": head, "clip": self._pictures(), "poses": sha256(self.fitted_poses)})

    def drop_fitted_poses(self) -> None:
        """Remove fitted poses and their record."""
        self.fitted_poses.unlink(missing_ok=True)
        self.fitted_record.unlink(missing_ok=True)

    def content(self) -> dict[str, str]:
        """SHA-256 of each file that training reads, as it is now, by name."""
        plates = [name for shot in self.info.shots for name in (shot.background, seen_file(Path(shot.background)).name)]
        paths = (self.video, self.audio, self.landmarks, self.poses, self.neutral, self.torso_motion, self.torso_warp,
                 self.gaze, self.labels, self.alpha, *(self.root / name for name in dict.fromkeys(plates)))
        return {path.name: sha256(path) for path in paths if path.is_file()}

    def changed(self) -> list[str]:
        """Names of files that are no longer as `process` wrote them."""
        now = self.content()
        return [name for name, digest in self.info.content.items() if now.get(name) != digest]

    def fingerprint(self) -> str:
        """Hexadecimal digest of all that a training reads: the files' bytes, splits, excluded spans, shots, camera."""
        info = self.info
        return _digest(self.content(), info.split, [dataclasses.astuple(span) for span in info.excluded],
                       [dataclasses.astuple(shot) for shot in info.shots], info.frames, info.intrinsics)

    def identity(self) -> str:
        """Hexadecimal digest of video and camera: the same for parts of an avatar that go together.

        Landmarks, poses and splits may be edited between trainings. A clip without video is known by its sound.
        """
        return _digest(sha256(self.video if self.video.is_file() else self.audio), self.info.intrinsics)

    def _pictures(self) -> str:
        """Digest of the content that poses are fitted to."""
        unused = (self.audio.name, self.torso_motion.name, self.torso_warp.name)
        content = {name: value for name, value in self.content().items() if name not in unused}
        return _digest(content, [dataclasses.astuple(span) for span in self.info.excluded], self.info.intrinsics)

    def load_torso_motion(self) -> np.ndarray:
        """(T, 4 + 2·n²) float32 torso motion: dx, dy pixels, angle radians, scale; then the control points of the warp, n = 0
        without one."""
        return self._of_length(load_torso_motion(self.torso_motion), self.torso_motion)

    def load_gaze(self) -> np.ndarray:
        """(T,2) float32 eye widths: the irises' offset from the middle of the eyes, across and down; NaN in a clip without."""
        return optional_gaze(self.gaze, self.info.frames)

    def load_neutral(self) -> np.ndarray:
        """(1,68,3) float32 metres, head space: the face at rest."""
        neutral = load_landmarks(self.neutral)
        if len(neutral) != 1:
            raise TalkheadError(f"{self.neutral}: a neutral holds one frame, found {len(neutral)}")
        return neutral

    def load_audio(self) -> np.ndarray:
        """(n,) float32, 16 kHz mono."""
        return load_audio(self.audio)

    def _of_length(self, array: np.ndarray, path: Path) -> np.ndarray:
        if len(array) != self.info.frames:
            raise TalkheadError(f"{path}: expected {self.info.frames} frames as in clip.json, found {len(array)}")
        return array

    def split(self, name: str) -> np.ndarray:
        """Frame indices (n,) int64 of a split, without the excluded spans. Raises TalkheadError for an unknown name."""
        if name not in self.info.split:
            raise TalkheadError(f"{self.root}: no split {name!r}; this clip has {', '.join(self.info.split) or 'none'}")
        keep = np.zeros(self.info.frames, bool)
        for start, stop in self.info.split[name]:
            keep[start:stop] = True
        return np.flatnonzero(keep & good_frames(self.info.excluded, self.info.frames))

    def held_out(self, splits: Iterable[str] = ()) -> list[str]:
        """Names of the splits to measure on: those asked for, else all but train, else train."""
        return list(splits) or [name for name in self.info.split if name != "train"] or ["train"]

    def shot_of_frames(self) -> np.ndarray:
        """(T,) int index of the shot that each frame belongs to."""
        index = np.zeros(self.info.frames, np.int64)
        for k, shot in enumerate(self.info.shots):
            index[shot.start : shot.stop] = k
        return index

    def plate_path(self, shot: int) -> Path:
        """The background plate of shot number `shot`."""
        return self.root / self.info.shots[shot].background

    def seen_path(self, shot: int) -> Path:
        """A grey picture of that plate: 255 where the background was seen, 128 where only beside the person, 0 where it is filled
        in. May be absent."""
        return seen_file(self.plate_path(shot))

    def load_plates(self) -> np.ndarray:
        """(S,H,W,3) uint8 RGB, one background plate a shot."""
        return np.stack([read_png(self.plate_path(k)) for k in range(len(self.info.shots))])

    def load_seen(self) -> np.ndarray:
        """(S,H,W) bool, one a shot: which pixels of the background plate were seen; all, where no file says."""
        found = []
        for k in range(len(self.info.shots)):
            path = self.seen_path(k)
            whole = np.ones((self.info.height, self.info.width), bool)
            found.append(read_png(path)[..., 0] > 0 if path.is_file() else whole)
        return np.stack(found)

    def frames(self, start: int = 0, stop: int | None = None) -> Iterator[np.ndarray]:
        """Stream uint8 (H,W,3) RGB frames start ≤ t < stop."""
        yield from read_video(self.video, start=start, stop=self._end(stop))

    def label_frames(self, start: int = 0, stop: int | None = None) -> Iterator[np.ndarray]:
        """Stream uint8 (H,W) label images start ≤ t < stop."""
        yield from read_gray_video(self.labels, start, self._end(stop))

    def alpha_frames(self, start: int = 0, stop: int | None = None) -> Iterator[np.ndarray]:
        """Stream uint8 (H,W) images start ≤ t < stop of the person's share of each pixel; clips may be without."""
        yield from read_gray_video(self.alpha, start, self._end(stop))

    def _end(self, stop: int | None) -> int:
        return self.info.frames if stop is None else min(stop, self.info.frames)

    def read_frames(self, indices: np.ndarray) -> np.ndarray:
        """Frames by index -> (N,H,W,3) uint8, from a decoded cache that is made on first use and may be deleted."""
        return self._cached("frames", (3,), self.frames)[np.asarray(indices)]

    def read_labels(self, indices: np.ndarray) -> np.ndarray:
        """Label images by index -> (N,H,W) uint8, cached likewise."""
        return self._cached("labels", (), self.label_frames)[np.asarray(indices)]

    def read_alpha(self, indices: np.ndarray) -> np.ndarray:
        """Alpha images by index -> (N,H,W) uint8, cached likewise."""
        return self._cached("alpha", (), self.alpha_frames)[np.asarray(indices)]

    def decode(self) -> None:
        """Make what is missing of the decoded caches, side by side: the decoders of labels and alpha use one thread each."""
        wanted = {"frames": ((3,), self.frames), "labels": ((), self.label_frames)}
        if self.alpha.is_file():
            wanted["alpha"] = ((), self.alpha_frames)
        with ThreadPoolExecutor(len(wanted)) as pool:
            for done in [pool.submit(self._cached, name, *how) for name, how in wanted.items()]:
                done.result()

    def _cached(self, name: str, channels: tuple[int, ...], source: Callable[[], Iterator[np.ndarray]]) -> "FrameFile":
        if name in self._frame_files:
            return self._frame_files[name]
        info = self.info
        shape = (info.frames, info.height, info.width, *channels)
        source_file = {"frames": self.video, "labels": self.labels, "alpha": self.alpha}[name]
        if not source_file.is_file():
            raise TalkheadError(f"{source_file} does not exist")
        path = self.cache / f"{name}-{sha256(source_file)[:16]}.npy"
        if not path.is_file():
            for other in (self.cache / f"{name}.npy", *self.cache.glob(f"{name}-*.npy")):
                other.unlink(missing_ok=True)  # caches of an earlier file
            remove_abandoned(self.cache, age=ABANDONED)
            with atomic_path(path) as partial, open(partial, "wb") as file:
                np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
                count = 0
                for image in source():
                    file.write(image.tobytes())
                    count += 1
                if count != info.frames:
                    raise TalkheadError(f"{source_file}: expected {info.frames} frames as in clip.json, found {count}")
        frames = self._frame_files[name] = FrameFile(path)
        if frames.shape != shape:
            raise TalkheadError(f"{path}: expected shape {shape}, found {frames.shape}; delete {self.cache}")
        return frames


def _digest(*values: Any) -> str:
    """Hexadecimal digest of values that JSON can hold."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


class FrameFile:
    """A .npy file of uint8 pictures (T, ...), read frame by frame: a mapped file would count as memory in use."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with open(path, "rb") as file:
            np.lib.format.read_magic(file)
            self.shape, _, _ = np.lib.format.read_array_header_1_0(file)
            self.start = file.tell()

    def __getitem__(self, indices: np.ndarray) -> np.ndarray:
        """Pictures by index (n,) -> (n, ...)."""
        out = np.empty((len(indices), *self.shape[1:]), np.uint8)
        size = out[0].nbytes if len(out) else 0
        with open(self.path, "rb") as file:
            for row, t in zip(out, np.arange(self.shape[0])[indices]):
                file.seek(self.start + int(t) * size)
                file.readinto(memoryview(row).cast("B"))
        return out
