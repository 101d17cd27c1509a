"""The avatar, a folder or one file: all that synthesis reads. No training frames, no machine path."""

import dataclasses
import shutil
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, overload

import numpy as np

from shared.arrays import is_address, missing, read_start
from shared.avatar_file import Manifest, Unpacked, checkpoint_header, is_avatar_file, refuse_deep, unpacked
from shared.clip import Clip, check_picture
from shared.config import config_from_dict, shown
from shared.consent import Consent
from shared.errors import TalkheadError, TalkheadWarning
from shared.files import make_folder, read_json, refuse_unreachable, sha256, write_json
from shared.gaze import optional_gaze, save_gaze
from shared.landmarks import load_landmarks, save_array
from shared.lock import lock_folder
from shared.media.video_io import read_png
from shared.pose_range import PoseRange
from shared.poses import load_poses
from shared.publish import PATIENCE, finish_move, publish, work_folder
from shared.torso_motion import load_torso_motion, save_torso_motion

AVATAR_FORMAT = 1
TRACK = ("motion_poses.npy", "motion_torso.npy")
WARP, GAZE = "motion_torso_warp.npy", "motion_gaze.npy"  # optional
LONGEST_TRACK = 750  # frames; longer ones would only make the stored torso larger
PARTS = ("stage1", "stage2", "torso")
COMMANDS = {"stage1": "stage1 finetune", "stage2": "stage2 train", "torso": "torso train"}  # that train a part


@dataclass(frozen=True)
class AvatarInfo:
    """avatar.json: the person's name, picture size and intrinsics (fx, fy, cx, cy in pixels).

    parts says of each trained part the "sha256" of its file, the identity and the name of its "clip", and of an edited head
    "trained", the hash that training gave it. files holds the SHA-256 of the other files by name. Both lack in older avatars.
    layers is of the stored torso: its "sha256", and in "of" what it was drawn from, see `layers_source`. figures are what was
    measured, by part, and consent says who allowed the avatar. pose_range is what the training frames show of the head's turns.
    """

    name: str
    width: int
    height: int
    intrinsics: tuple[float, float, float, float]
    fps: int
    parts: dict[str, dict[str, str]] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    layers: dict[str, str] = field(default_factory=dict)
    figures: dict[str, Any] = field(default_factory=dict)
    consent: Consent | None = None
    pose_range: PoseRange | None = None
    format: int = AVATAR_FORMAT


class _File:
    """An attribute of an avatar: the path of the file of that name in it."""

    def __init__(self, name: str) -> None:
        self.name = name

    @overload
    def __get__(self, avatar: None, owner: Any) -> "_File": ...
    @overload
    def __get__(self, avatar: "Avatar", owner: Any) -> Path: ...
    def __get__(self, avatar: "Avatar | None", owner: Any) -> "Path | _File":
        return self if avatar is None else avatar.folder / self.name


class Avatar:
    """An avatar: a folder, or one file, which is read only and is unpacked where nobody else sees it when it is first used.

    Making the object touches no file; reading does, and finishes an update that was cut short. `root` is what the user named.
    """

    json = _File("avatar.json")
    stage1 = _File("stage1.safetensors")
    stage2 = _File("stage2.safetensors")
    torso = _File("torso.safetensors")
    neutral = _File("neutral.npy")
    poses = _File("motion_poses.npy")
    motion = _File("motion_torso.npy")
    warp = _File(WARP)
    gaze = _File(GAZE)
    background = _File("background.png")
    layers = _File("torso_layers.mp4")

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)
        self._info: AvatarInfo | None = None
        self._verified: set[str] = set()
        self._unpacked: Unpacked | None = None

    @property
    def packed(self) -> bool:
        """Whether this is one file."""
        return self.root.is_file()

    @property
    def folder(self) -> Path:
        """Where the avatar's files lie: `root`, or what was unpacked of it. Raises TalkheadError for a file that is no avatar."""
        if not self.packed:
            return self.root
        if self._unpacked is None or not self._unpacked.folder.is_dir():
            found = unpacked(self.root, check_contents)
            if self._unpacked is not None and self._unpacked.key != found.key:
                raise TalkheadError(f"{self.root} was replaced while it was being used; start again")
            self._unpacked = found
        return self._unpacked.folder

    @property
    def editable(self) -> tuple[Path, ...]:
        """What a user may edit."""
        return self.neutral, self.poses, self.motion, self.warp, self.gaze, self.background

    @property
    def info(self) -> AvatarInfo:
        """avatar.json, read at the first use. Raises TalkheadError if it is missing or wrong."""
        if self._info is None:
            self._info = self._read_info()
        return self._info

    def check(self) -> None:
        """Raise TalkheadError unless this is an avatar whose avatar.json is valid."""
        _ = self.info

    def _read_info(self) -> AvatarInfo:
        refuse_unreachable(self.root)
        if is_address(self.root):
            raise TalkheadError(missing(self.root))
        if not self.root.exists():
            raise TalkheadError(f"{self.root}: there is no avatar here; train one with `talkhead stage1 finetune`, "
                                "`talkhead stage2 train` and `talkhead torso train`")
        finish_move(self.folder)
        if not self.json.is_file():
            raise TalkheadError(f"{self.root} is not an avatar folder (no avatar.json in it)")
        values: dict[str, Any] = read_json(self.json)
        refuse_deep(values, str(self.json))
        if values.get("format") != AVATAR_FORMAT:
            raise TalkheadError(f"{self.json}: expected avatar format {AVATAR_FORMAT}, found {shown(values.get('format'))}")
        info = config_from_dict(AvatarInfo, values, str(self.json))
        check_picture(str(self.json), info.width, info.height, info.intrinsics, info.fps)
        return info

    def require(self, *parts: str) -> None:
        """Raise TalkheadError, naming the command that mends it, unless this is an avatar with all the `parts`, each as its
        training wrote it and all of one clip. Warns of other files that were edited."""
        self.check()
        for part in parts:
            if not self.part(part).is_file():
                pack = " and pack the avatar again" if self.packed else ""
                raise TalkheadError(f"{self.root}: the avatar has no {part} yet; run `talkhead {COMMANDS[part]} CLIP`{pack}")
            self.verify(part)
        self._require_one_clip(parts)
        if "files" not in self._verified:
            self._verified.add("files")
            for path in self.edited():
                warnings.warn(f"{path} is not as training wrote it; if the edit is yours, `talkhead inspect {self.root} "
                              "--accept` takes it over", TalkheadWarning, stacklevel=2)

    def verify(self, part: str) -> None:
        """Raise TalkheadError unless the file of `part`, or the stored torso for "layers", is the one that the manifest names;
        one in no manifest passes."""
        file, known, mend = self.part(part), self.info.parts.get(part), f"{COMMANDS.get(part)} CLIP --overwrite"
        if part == "layers":
            file, known, mend = self.layers, self.info.layers, f"torso layers {self.root}"
        # what was unpacked has been compared
        if known and not self.packed and part not in self._verified and sha256(file) != known["sha256"]:
            raise TalkheadError(f"{file} is not the file that training wrote: its bytes were damaged or replaced; copy the "
                                f"avatar again, or run `talkhead {mend}`")
        self._verified.add(part)

    def _require_one_clip(self, parts: tuple[str, ...]) -> None:
        known = [part for part in parts if part in self.info.parts]
        for part in known[1:]:
            first, other = self.info.parts[known[0]], self.info.parts[part]
            if first["clip"] != other["clip"]:
                name = f"{other['name']!r}{', which has the same name' if first['name'] == other['name'] else ''}"
                raise TalkheadError(
                    f"{self.root}: its {known[0]} was trained on the clip {first['name']!r}, its {part} on another clip, {name}; "
                    f"train both on one: `talkhead {COMMANDS[part]} CLIP --avatar {self.root} --overwrite`")

    def part(self, part: str) -> Path:
        """The file of a part."""
        return self.folder / f"{part}.safetensors"

    def contents(self) -> list[Path]:
        """Every file that makes up an avatar, there or not."""
        return [self.json, *(self.part(part) for part in PARTS), *self.editable, self.layers]

    def files(self) -> list[Path]:
        """What of an avatar lies where the user named it: its `contents`, or the one file."""
        return [self.root] if self.packed else self.contents()

    def require_folder(self) -> None:
        """Raise TalkheadError for an avatar file, which nothing is written into."""
        if self.packed:
            raise TalkheadError(f"{self.root} is one file, which is only read; make a folder of it with `talkhead avatar unpack "
                                f"{self.root} -o FOLDER`, and name that")

    def edited(self) -> list[Path]:
        """Neutral, motion track and background where they are no longer as training wrote them; none of an avatar file."""
        if self.packed or not self.info.files:
            return []
        return [path for path in self.editable if (path.is_file() and path.name in self.info.files or path.name in (WARP, GAZE))
                and self.info.files.get(path.name) != (sha256(path) if path.is_file() else None)]

    def has_layers(self) -> bool:
        """Whether the torso is stored for every frame of the motion track, as torso and track are now."""
        return (bool(self.info.layers) and self.layers.is_file() and self.info.layers["of"] == layers_source(self.info)
                and not {self.poses, self.motion, self.warp} & set(self.edited()))

    def accept_edits(self) -> list[Path]:
        """Take over what `edited` names; returns it. Raises TalkheadError for a file that is not valid."""
        self.require_folder()
        edited = self.edited()
        self.load_neutral(), self.load_motion(), self.load_gaze(), self.load_background()
        files = {name: known for name, known in self.info.files.items() if name not in {path.name for path in edited}}
        files |= {path.name: sha256(path) for path in edited if path.is_file()}
        self.save_info(dataclasses.replace(self.info, files=files))
        return edited

    def save_info(self, info: AvatarInfo) -> None:
        """Write avatar.json, atomically. Raises TalkheadError for an avatar file."""
        self.require_folder()
        write_json(self.json, dataclasses.asdict(info))
        self.forget()

    def forget(self) -> None:
        """Read and verify anew when the avatar is used next."""
        self._info = None
        self._verified.clear()

    def work(self, part: str) -> Path:
        """Where training writes a part, beside those that are there, until it is taken over by `add_part`."""
        return work_folder(self.root, part) / f"{part}.safetensors"

    def trained_head(self) -> str | None:
        """SHA-256 of the head as training wrote it, before any edit; None without a head."""
        if not self.stage2.is_file():
            return None
        known = self.info.parts.get("stage2", {}) if self.json.is_file() else {}
        return known.get("trained") or known.get("sha256") or sha256(self.stage2)

    def load_neutral(self) -> np.ndarray:
        """(1,68,3) float32 metres."""
        return load_landmarks(self.neutral)[:1]

    def load_motion(self) -> tuple[np.ndarray, np.ndarray]:
        """The motion track that synthesis loops: poses (M,4,4) and torso motion (M, 4 + 2·n²), see shared.torso_motion."""
        poses, torso = load_poses(self.poses), load_torso_motion(self.motion)
        if len(poses) != len(torso):
            raise TalkheadError(f"{self.root}: {len(poses)} poses but {len(torso)} torso motions in the motion track")
        return poses, torso

    def load_gaze(self) -> np.ndarray:
        """(M,2) float32 eye widths: the gaze of the motion track's frames; NaN in an avatar without, whose eyes stay ahead."""
        return optional_gaze(self.gaze, len(load_poses(self.poses)))

    def pose_range(self) -> PoseRange:
        """The head poses that the avatar's clip shows; of an older avatar those of its motion track."""
        return self.info.pose_range or PoseRange.of(self.load_motion()[0])

    def check_background(self) -> None:
        """Raise TalkheadError unless the background is of the avatar's size."""
        height, width = self.load_background().shape[:2]
        if (width, height) != (self.info.width, self.info.height):
            raise TalkheadError(f"{self.background}: expected a picture of {self.info.width}x{self.info.height}, found "
                                f"{width}x{height}")

    def load_background(self) -> np.ndarray:
        """(H,W,3) uint8 RGB."""
        return read_png(self.background)


def check_contents(folder: Path, manifest: Manifest) -> None:
    """Raise TalkheadError unless an unpacked avatar is whole, of files that can be read, and what its manifest says it is."""
    avatar = Avatar(folder)
    info = avatar.info
    for key in ("name", "width", "height", "figures", "consent"):
        said, found = getattr(manifest, key), getattr(info, key)
        if said != found:
            raise TalkheadError(f"{folder}: its manifest says of its {key} {str(said)[:100]!r}, its avatar.json "
                                f"{str(found)[:100]!r}; it was put together by hand, so pack it again")
    named = {f"{part}.safetensors": known["sha256"] for part, known in info.parts.items()} | info.files
    if info.layers:
        named[Avatar.layers.name] = info.layers["sha256"]
    for name, known in named.items():
        if name not in manifest.files or manifest.files[name].sha256 != known:
            raise TalkheadError(f"{folder}: {shown(name)} is not the file that its avatar.json names; pack the avatar again")
    avatar.load_neutral(), avatar.load_motion(), avatar.load_gaze()
    avatar.check_background()
    for part in PARTS:
        if avatar.part(part).is_file():
            checkpoint_header(avatar.part(part).read_bytes(), avatar.part(part))


def layers_source(info: AvatarInfo) -> str:
    """What a stored torso was drawn from: hashes of the torso's network and of the motion track, its warp if it has one."""
    track = [info.files.get(name, "") for name in TRACK] + [info.files[name] for name in (WARP,) if name in info.files]
    return " ".join([info.parts.get("torso", {}).get("sha256", ""), *track])


def is_avatar(path: Path) -> bool:
    """Whether a path is meant as an avatar, not as a file of one: a folder or an avatar file."""
    return path.is_dir() or path.is_file() and is_avatar_file(read_start(path, 64))


def load_neutral(path: Path) -> np.ndarray:
    """The face at rest (68,3) of an avatar, or of a landmark file its first row. Raises TalkheadError."""
    return Avatar(path).load_neutral()[0] if is_avatar(path) else load_landmarks(path)[0]


def avatar_folder(clip_folder: Path) -> Path:
    """Where the avatar of a clip lies unless it is named: CLIP.avatar beside the clip. Raises TalkheadError."""
    named = clip_folder if clip_folder.name not in ("", "..") else clip_folder.resolve()  # `.` and `..`
    if not named.name:
        raise TalkheadError(f"{clip_folder} has no name to name an avatar after; add --avatar FOLDER")
    return named.with_name(named.name + ".avatar")


def refuse_other_clip(avatar: Avatar, clip: Clip, part: str, overwrite: bool) -> None:
    """Raise TalkheadError if the avatar holds parts of another clip that training `part` on this one would be mixed with.

    With `overwrite` that is allowed, since the others can be trained anew afterwards; but no torso is trained to a head of
    another clip.
    """
    avatar.require_folder()
    if not avatar.json.is_file():
        return
    others = {name: known for name, known in avatar.info.parts.items()
              if name != part and known["clip"] != clip.identity() and avatar.part(name).is_file()}
    if not others or (overwrite and not (part == "torso" and "stage2" in others)):
        return
    name, known = ("stage2", others["stage2"]) if "stage2" in others else next(iter(others.items()))
    mend = (f"run `talkhead {COMMANDS[name]} {clip.root} --avatar {avatar.root} --overwrite` first" if part == "torso" else
            "name another avatar with --avatar, or add --overwrite and then train its other parts anew too")
    same = " before it was processed again, or one of its name" if known["name"] == clip.info.name else ""
    raise TalkheadError(f"{avatar.root}: its {name} was trained on another clip than {clip.root}, on {known['name']!r}{same}; "
                        f"{mend}")


def refined_poses(avatar: Avatar, clip: Clip) -> np.ndarray:
    """(T,4,4) of the clip as `stage2 train` fitted them with the avatar's head; as tracked where it fitted none for this
    head and this content of the clip. Nowhere else is that decided."""
    poses = clip.load_fitted_poses(avatar.trained_head())
    if poses is not None:
        return poses
    if clip.fitted_poses.is_file():
        warnings.warn(f"{clip.fitted_poses} is not used, since it was fitted with another head than {avatar.stage2}, or the clip "
                      "has changed since; the tracked poses are", TalkheadWarning, stacklevel=2)
    return clip.load_poses()


def add_part(avatar: Avatar, clip: Clip, part: str) -> None:
    """Take over what training wrote to avatar.work(part), at once with the manifest that holds its hash and its clip.

    The avatar must have its other files already, see `create_from_clip`.
    """
    with lock_folder(avatar.root, wait=PATIENCE):
        avatar.forget()
        _publish(avatar, part, avatar.info, {part: _entry(avatar.work(part), clip.identity(), clip.info.name)})


def add_layers(avatar: Avatar) -> None:
    """Take over the stored torso from avatar.work("layers")."""
    with lock_folder(avatar.root, wait=PATIENCE):
        avatar.forget()
        made = {"sha256": sha256(avatar.work("layers").with_name(avatar.layers.name)), "of": layers_source(avatar.info)}
        _publish(avatar, "layers", dataclasses.replace(avatar.info, layers=made), {})


def replace_edited_head(avatar: Avatar, trained: str | None) -> None:
    """Take over an edited head from avatar.work("stage2"): it stays of its clip, and poses fitted with the head of SHA-256
    `trained`, from which it was made, stay its own."""
    with lock_folder(avatar.root, wait=PATIENCE):
        avatar.forget()
        old = avatar.info.parts.get("stage2")
        parts = {"stage2": old | {"sha256": sha256(avatar.work("stage2")), "trained": trained}} if old and trained else {}
        _publish(avatar, "stage2", avatar.info, parts)


def _entry(file: Path, clip: str, name: str) -> dict[str, str]:
    return {"sha256": sha256(file), "clip": clip, "name": name}


def _publish(avatar: Avatar, work: str, info: AvatarInfo, parts: Mapping[str, dict[str, str]], stale: Iterable[str] = ()) -> None:
    made = dataclasses.replace(info, parts={**info.parts, **parts})
    write_json(work_folder(avatar.root, work) / avatar.json.name, dataclasses.asdict(made))
    publish(avatar.root, work, last=avatar.json.name, stale=stale)
    avatar.forget()


def motion_track(clip: Clip, split: str = "train") -> tuple[np.ndarray, int]:
    """Frames (M,) of the longest unbroken stretch of a split within one shot, M ≤ LONGEST_TRACK, and the number of the shot.

    Raises TalkheadError for a clip of which no avatar can be made.
    """
    clip.require_video()
    indices = clip.split(split)
    if len(indices) == 0:
        raise TalkheadError(f"{clip.root}: the split {split!r} holds no good frame")
    shots = clip.shot_of_frames()[indices]
    breaks = np.flatnonzero((np.diff(indices) != 1) | (np.diff(shots) != 0)) + 1
    stretch = max(np.split(np.arange(len(indices)), breaks), key=len)
    for array in (clip.load_poses, clip.load_torso_motion, clip.load_gaze, clip.load_neutral):
        array()
    shot = int(shots[stretch[0]])
    if not clip.plate_path(shot).is_file():
        raise TalkheadError(f"{clip.plate_path(shot)} does not exist")
    return indices[stretch][:LONGEST_TRACK], shot


def create_from_clip(avatar: Avatar, clip: Clip, split: str = "train", *, part: str | None = None) -> None:
    """Write manifest, neutral, motion track and background from `clip`; trained parts already there stay.

    With `part`, what training wrote to avatar.work(part) is taken over as well; all at once. The motion track is the longest
    unbroken stretch of the split within one shot, at the poses of `refined_poses`. A neutral, motion track or background that
    the user edited stays, while the avatar is of one clip. Raises TalkheadError for a clip without video, before anything
    is written.
    """
    track, shot = motion_track(clip, split)
    info = clip.info
    with lock_folder(avatar.root, wait=PATIENCE):
        avatar.forget()
        old = avatar.info if avatar.json.is_file() else None
        work = Avatar(work_folder(avatar.root, part or "files"))
        make_folder(work.root)
        parts = dict(old.parts) if old else {}
        if part is not None:
            parts[part] = _entry(avatar.work(part), clip.identity(), info.name)
        head = work if work.stage2.is_file() else avatar
        poses = refined_poses(head, clip)
        save_array(work.poses, poses[track])
        save_torso_motion(work.motion, clip.load_torso_motion()[track])
        save_gaze(work.gaze, clip.load_gaze()[track])
        save_array(work.neutral, clip.load_neutral())
        shutil.copyfile(clip.plate_path(shot), work.background)
        files = {path.name: sha256(path) for path in work.editable if path.is_file()}
        stale = [path.name for path in (work.warp, work.gaze) if not path.is_file()]
        if old and all(known["clip"] == clip.identity() for known in parts.values()):
            for path in avatar.edited():
                (work.root / path.name).unlink(missing_ok=True)
                files.pop(path.name, None)
                files |= {name: known for name, known in old.files.items() if name == path.name}
                stale = [name for name in stale if name != path.name]
        made = AvatarInfo(info.name, info.width, info.height, info.intrinsics, info.fps, parts, files,
                          old.layers if old else {}, old.figures if old else {}, old.consent if old else None,
                          PoseRange.of(poses[clip.split(split)]))
        _publish(avatar, part or "files", made, {}, stale)
