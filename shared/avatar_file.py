"""The avatar file: the files of an avatar folder and a manifest in one zip, checked before and while it is unpacked.

Its layout is narrower than zip allows, so that nothing hides in it: known names only, one behind the other without a gap,
stored or deflated, no comments, no extra fields, nothing before the first or behind the directory. docs/formats.md has it.
"""

import hashlib
import os
import re
import stat
import struct
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from shared import machine
from shared.config import config_from_dict, shown
from shared.consent import Consent
from shared.errors import TalkheadError
from shared.files import atomic_path, parse_json, read_json, remove, sha256, write_json
from shared.lock import lock_folder
from shared.publish import PATIENCE

AVATAR_FILE_FORMAT = 1
MANIFEST = "manifest.json"
MB = 1 << 20
MEMBERS = {  # name -> most bytes, in the order in which they stand in the file
    MANIFEST: MB, "avatar.json": MB, "neutral.npy": MB, "motion_poses.npy": 64 * MB, "motion_torso.npy": 32 * MB,
    "motion_torso_warp.npy": 64 * MB, "motion_gaze.npy": 32 * MB, "background.png": 64 * MB, "torso_layers.mp4": 256 * MB,
    "stage1.safetensors": 256 * MB, "stage2.safetensors": 256 * MB, "torso.safetensors": 256 * MB,
}
LARGEST = 512 * MB  # bytes, of the file and of all that is in it
MOST_MEMBERS = 64  # of any version
MOST_RATIO = 100  # of a member's size to its size in the file
DEEPEST_JSON = 16  # brackets within brackets
LARGEST_CACHE = 1024 * MB  # bytes of unpacked avatars that are kept
LOCAL, END = b"PK\x03\x04", b"PK\x05\x06"  # how a member and the end of the directory begin
END_SIZE = 22  # bytes of the end without a comment
COPY_AGAIN = "copy it again"
NOT_MADE = "`talkhead avatar pack` made no such file, so it is not opened"
_guard = threading.Lock()  # of the cache, between threads; between processes its lock file is


@dataclass(frozen=True)
class Member:
    """Size in bytes and SHA-256 of a file in the avatar."""

    size: int
    sha256: str


@dataclass(frozen=True)
class ClipName:
    """The clip that the avatar was trained on: its name and its identity, see `Clip.identity`."""

    name: str
    sha256: str


@dataclass(frozen=True)
class Licence:
    """Of what others made and the avatar contains: what, under which licence, from where."""

    what: str
    licence: str
    source: str


@dataclass(frozen=True)
class Manifest:
    """manifest.json of an avatar file: what is inside, of which clip, trained how, allowed by whom. Sizes in bytes."""

    talkhead: str
    name: str
    width: int
    height: int
    files: dict[str, Member]
    clip: ClipName | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    figures: dict[str, Any] = field(default_factory=dict)
    licences: list[Licence] = field(default_factory=list)
    consent: Consent | None = None
    format: int = AVATAR_FILE_FORMAT


class Unpacked(NamedTuple):
    """Where an avatar file has been unpacked, and the SHA-256 of its manifest, which tells it from all others."""

    folder: Path
    key: str


def is_avatar_file(start: bytes) -> bool:
    """Whether a file that begins with `start` (≥ 43 bytes) is meant as an avatar file: its first member is the manifest."""
    return start.startswith(LOCAL) and start[30:].startswith(MANIFEST.encode())


class AvatarFile:
    """An avatar file, open for reading, whose layout and manifest are as they should be; see `open_avatar_file`."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path, self._file = path, file
        directory = self._check_ends()
        with self._told():
            self._zip = zipfile.ZipFile(file)
            members = self._zip.infolist()
        self._check_names(members)
        manifest = next(member for member in members if member.orig_filename == MANIFEST)
        data = b"".join(self._read(manifest, MEMBERS[MANIFEST]))
        where = f"{path}: {MANIFEST}"
        values = parse_json(data, where)
        self._check_format(values)
        self._check_layout(members, directory)
        refuse_deep(values, where)
        self.key = hashlib.sha256(data).hexdigest()
        self.manifest = config_from_dict(Manifest, values, where)
        self._members = {member.orig_filename: member for member in members if member is not manifest}
        for name in sorted(self._members.keys() ^ self.manifest.files.keys()):
            what = "has {} that its manifest does not name" if name in self._members else "lacks {} that its manifest names"
            raise TalkheadError(f"{path} {what.format(shown(name))}; {COPY_AGAIN}")
        for name, known in self.manifest.files.items():
            if known.size != self._members[name].file_size:
                raise TalkheadError(f"{path}: {name} has {self._members[name].file_size} bytes, its manifest says {known.size}; "
                                    f"{COPY_AGAIN}")

    def extract(self, folder: Path | None) -> None:
        """Write the members into `folder`, or with None only read them. Raises TalkheadError where one is damaged."""
        for name, known in self.manifest.files.items():
            digest = hashlib.sha256()
            with open(os.devnull if folder is None else folder / name, "wb") as target:
                for piece in self._read(self._members[name], known.size):
                    digest.update(piece)
                    target.write(piece)
            if digest.hexdigest() != known.sha256:
                raise TalkheadError(f"{self.path}: {name} is not what the manifest names: its SHA-256 differs; {COPY_AGAIN}")

    def _check_ends(self) -> int:
        """Where the directory begins. Raises TalkheadError unless the file is a zip archive from first to last byte."""
        path, file = self.path, self._file
        first, size = file.read(4), file.seek(0, os.SEEK_END)
        if size > LARGEST:
            raise TalkheadError(f"{path} has {size // MB} MB; an avatar file has at most {LARGEST // MB}")
        file.seek(max(0, size - END_SIZE - 0xFFFF))
        tail = file.read()
        at = tail.rfind(END)
        if first not in (LOCAL, END):
            kind = "has bytes before its first member" if at >= 0 else "is neither an avatar folder nor an avatar file"
            raise TalkheadError(f"{path} {kind}; {NOT_MADE if at >= 0 else 'name one'}")
        if not 0 <= at <= len(tail) - END_SIZE:
            raise TalkheadError(f"{path} is cut short: its end is missing; {COPY_AGAIN}")
        if len(tail) - at > END_SIZE:
            raise TalkheadError(f"{path} has bytes behind its end, or a comment; {NOT_MADE}")
        _, disk, start_disk, here, count, length, start, comment = struct.unpack("<4s4H2LH", tail[at:])
        if 0xFFFF in (disk, start_disk, here, count) or 0xFFFFFFFF in (length, start):
            raise TalkheadError(f"{path} is a zip archive of the form for over 4 GB (zip64); {NOT_MADE}")
        if disk or start_disk or here != count:
            raise TalkheadError(f"{path} is one volume of a zip archive in several; {NOT_MADE}")
        if count > MOST_MEMBERS:
            raise TalkheadError(f"{path} tells of {count} members; an avatar file has at most {MOST_MEMBERS}")
        if comment or start + length + END_SIZE != size:
            raise TalkheadError(f"{path}: the directory should stand at byte {start}, just before the end; bytes were put into "
                                f"the file or cut out; {COPY_AGAIN}")
        file.seek(0)
        return start

    def _check_names(self, members: list[zipfile.ZipInfo]) -> None:
        names = [member.orig_filename for member in members]
        if MANIFEST not in names:
            if any(re.split(r"[/\\]", name)[-1] in ("avatar.json", "clip.json") for name in names):
                raise TalkheadError(f"{self.path} is a zipped folder; unzip it and name the folder, of which `talkhead avatar "
                                    "pack` makes one file")
            raise TalkheadError(f"{self.path} is a zip archive, but no avatar file: it has no {MANIFEST}")
        for member in members:
            name, kind = member.orig_filename, stat.S_IFMT(member.external_attr >> 16)
            reasons = {
                "is a link": kind == stat.S_IFLNK,
                "is a folder": kind == stat.S_IFDIR or name.endswith("/") or bool(member.external_attr & 0x10),
                "is no plain file": kind not in (0, stat.S_IFREG, stat.S_IFLNK, stat.S_IFDIR),
                "leads out of the folder": name.startswith(("/", "\\")) or ":" in name or ".." in re.split(r"[/\\]", name),
                "has a name of odd characters": not (name.isascii() and name.isprintable()),
                "is encrypted": bool(member.flag_bits & 1),
                "is compressed in a way that is not read": member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED),
                "stands in it twice": names.count(name) > 1,
            }
            self._refuse(member, reasons)

    def _check_format(self, values: dict[str, Any]) -> None:
        found = values.get("format")
        if not isinstance(found, int) or isinstance(found, bool) or found < 1:
            raise TalkheadError(f"{self.path}: {MANIFEST}: format should be {AVATAR_FILE_FORMAT}, found {shown(found)}")
        if found > AVATAR_FILE_FORMAT:
            by = f" {shown(values['talkhead'])}" if isinstance(values.get("talkhead"), str) else ""
            raise TalkheadError(f"{self.path} was made by a newer talkhead{by}: its format is {found}, this one reads "
                                f"{AVATAR_FILE_FORMAT}; update talkhead")

    def _check_layout(self, members: list[zipfile.ZipInfo], directory: int) -> None:
        """Names, sizes and places of all members, of which the directory starts at byte `directory`."""
        at = 0
        for member in members:
            name, size, packed = member.orig_filename, member.file_size, member.compress_size
            self._file.seek(member.header_offset)
            header = self._file.read(30).ljust(30, b"\0")
            magic, _, *local = struct.unpack("<4s5H3L2H", header)
            said = [member.flag_bits, member.compress_type, *local[2:4], member.CRC, packed, size, len(name), 0]
            reasons = {
                "is no part of an avatar": name not in MEMBERS,
                f"has {size} bytes, too many": size > MEMBERS.get(name, 0),
                "is stored in another size than its own": member.compress_type == zipfile.ZIP_STORED and packed != size,
                f"would swell to over {MOST_RATIO} times its size in the file": size > MOST_RATIO * packed,
                "has a flag, comment or extra field": bool(member.flag_bits or member.extra or member.comment),
                "lies over another member, or leaves a gap": member.header_offset != at,
                "is told otherwise in the directory than where it stands": magic != LOCAL or local != said,
            }
            self._refuse(member, reasons)
            at += len(header) + len(name) + packed
        if at != directory or self._zip.start_dir != directory:
            raise TalkheadError(f"{self.path} has bytes between its last member and its directory; {NOT_MADE}")
        total = sum(member.file_size for member in members)
        if total > LARGEST:
            raise TalkheadError(f"{self.path} would unpack to {total // MB} MB; an avatar has at most {LARGEST // MB}")

    def _refuse(self, member: zipfile.ZipInfo, reasons: dict[str, bool]) -> None:
        for reason, holds in reasons.items():
            if holds:
                raise TalkheadError(f"{self.path}: its member {shown(member.orig_filename)} {reason}; {NOT_MADE}")

    def _read(self, member: zipfile.ZipInfo, most: int) -> Iterator[bytes]:
        """A member's bytes in pieces, at most as many as the directory says and `most`, its checksum compared."""
        if member.file_size > most:
            self._refuse(member, {f"has {member.file_size} bytes, too many": True})
        with self._told(), self._zip.open(member) as source:
            count = 0
            while piece := source.read(MB):
                count += len(piece)
                yield piece
            if count != member.file_size:
                raise EOFError(f"{member.orig_filename} ends early")

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except (TalkheadError, OSError, MemoryError):
            raise
        except Exception as error:  # what zipfile raises on damaged archives is of many types
            why = " ".join(str(error).split())[:100]
            raise TalkheadError(f"{self.path} is a damaged zip archive ({why or type(error).__name__}); {COPY_AGAIN}") from error


@contextmanager
def open_avatar_file(path: Path) -> Iterator[AvatarFile]:
    """Open an avatar file; nothing of it is unpacked yet. Raises TalkheadError for any other file, with the reason."""
    try:
        file = open(path, "rb")
    except OSError as error:
        raise TalkheadError(f"{path} cannot be read: {error.strerror}") from error
    with file:
        yield AvatarFile(path, file)


def refuse_deep(values: Any, where: str) -> None:
    """Raise TalkheadError, beginning with `where`, for JSON of too many brackets within brackets."""
    level = [values]
    for _ in range(DEEPEST_JSON):
        level = [inner for value in level if isinstance(value, (dict, list))
                 for inner in (value.values() if isinstance(value, dict) else value)]
    if level:
        raise TalkheadError(f"{where} has over {DEEPEST_JSON} brackets within brackets; that is no file of talkhead")


class Header(NamedTuple):
    """The header of a .safetensors file: the JSON that talkhead put there, all of it, and where the numbers begin."""

    meta: dict[str, Any]
    whole: dict[str, Any]
    start: int


def checkpoint_header(data: bytes, where: Path | str) -> Header:
    """The header of a checkpoint's bytes, read without torch. Raises TalkheadError, beginning with `where`, for anything else."""
    start = 8 + int.from_bytes(data[:8], "little")
    if data[8:9] != b"{" or start > min(MB, len(data)):
        pickled = data.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"))
        kind = "a pickled file, which is never loaded" if pickled else "damaged, or another program's"
        raise TalkheadError(f"{where} is {kind}; expected a .safetensors file of talkhead")
    whole = parse_json(data[8:start], f"{where}: its header")
    try:
        text = whole["__metadata__"]["talkhead"].encode()
    except (KeyError, TypeError, AttributeError):
        raise TalkheadError(f"{where} is not a talkhead checkpoint: its header does not tell what it is") from None
    meta = parse_json(text, f"{where}: its header")
    refuse_deep(meta, f"{where}: its header")
    return Header(meta, whole, start)


def unpacked(path: Path, check: Callable[[Path, Manifest], None]) -> Unpacked:
    """The folder, which only this user can write into, that holds what is in an avatar file; unpacked unless it is there.

    `check` looks at a freshly unpacked folder. A file that has not been touched since is not read again. What is kept is
    removed when its file is gone or has changed, the longest unused first when it is over LARGEST_CACHE. Raises TalkheadError.
    """
    cache = machine.cache_folder("avatars")
    if cache is None:
        raise TalkheadError(f"{path} cannot be opened: no folder can be written to unpack it into; let XDG_CACHE_HOME name "
                            f"one, or run `talkhead avatar unpack {path} -o FOLDER`")
    record = cache / f"{hashlib.sha256(os.fsencode(path.absolute())).hexdigest()[:32]}.json"
    with _guard:
        known = _known(record)
        if known is None:
            with lock_folder(cache, wait=PATIENCE):
                known = _known(record) or _unpack(path, cache, record, check)
        with suppress(OSError):
            os.utime(record)  # it was used now
        return known


def _unpack(path: Path, cache: Path, record: Path, check: Callable[[Path, Manifest], None]) -> Unpacked:
    seen = _seen(path)
    with open_avatar_file(path) as archive:
        name = path.name
        while len(os.fsencode(name)) > 100:
            name = name[1:]
        folder = cache / f"{archive.key[:32]}.{name}"
        if _holds(folder, archive.manifest):  # of a copy of the file
            archive.extract(None)
        else:
            remove(folder)
            with atomic_path(folder) as partial:
                partial.mkdir()
                extract_checked(archive, partial, check)
        write_json(record, {"file": str(path.absolute()), "seen": seen, "key": archive.key, "folder": folder.name,
                            "members": {file.name: _seen(file) for file in sorted(folder.iterdir())}})
    _prune(cache, folder)
    return Unpacked(folder, archive.key)


def extract_checked(archive: AvatarFile, folder: Path, check: Callable[[Path, Manifest], None]) -> None:
    """Unpack into `folder` and `check` it there, whose errors then name the avatar file."""
    archive.extract(folder)
    try:
        check(folder, archive.manifest)
    except TalkheadError as error:
        raise TalkheadError(str(error).replace(str(folder), str(archive.path))) from error


def _holds(folder: Path, manifest: Manifest) -> bool:
    """Whether a folder has the files that the manifest names, and no others."""
    named = {name: known.sha256 for name, known in manifest.files.items()}
    try:
        return {file.name: sha256(file) for file in folder.iterdir()} == named
    except OSError:
        return False


def _known(record: Path) -> Unpacked | None:
    """What is unpacked of the file that a record names, if neither has been touched since."""
    try:
        known = read_json(record)
        folder = record.parent / known["folder"]
        if known["seen"] != _seen(Path(known["file"])) or folder.parent != record.parent:
            return None
        if known["members"] != {file.name: _seen(file) for file in sorted(folder.iterdir())}:
            return None
        return Unpacked(folder, known["key"])
    except (TalkheadError, OSError, KeyError, TypeError, ValueError):
        return None


def _seen(file: Path) -> list[int]:
    """What changes when a file is written, replaced or moved."""
    found = file.stat()
    return [found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns]


def _prune(cache: Path, keep: Path) -> None:
    """Remove what is unpacked of files that are gone or changed, and the longest unused beyond LARGEST_CACHE."""
    used: dict[str, float] = {}
    for record in cache.glob("*.json"):
        if (known := _known(record)) is None:
            remove(record)
        else:
            used[known.folder.name] = max(record.stat().st_mtime, used.get(known.folder.name, 0))
    room = LARGEST_CACHE
    for folder in sorted((path for path in cache.iterdir() if path.is_dir()), key=lambda path: -used.get(path.name, 0)):
        room -= sum(file.stat().st_size for file in folder.iterdir())
        if folder != keep and (folder.name not in used or room < 0):
            remove(folder)
