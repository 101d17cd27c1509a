"""The avatar as one file: packed, unpacked, and what is in it in plain words."""

import dataclasses
import io
import json
import math
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from hashlib import sha256
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from PIL import Image

from shared.avatar import COMMANDS, PARTS, Avatar, check_contents
from shared.avatar_file import (
    MANIFEST,
    MEMBERS,
    MOST_RATIO,
    ClipName,
    Licence,
    Manifest,
    Member,
    checkpoint_header,
    extract_checked,
    open_avatar_file,
)
from shared.errors import TalkheadError
from shared.files import atomic_path, refuse_existing, refuse_inputs
from shared.lock import lock_output
from shared.media.video_io import read_png
from shared.publish import whole_folder
from shared.version import installed_version

DENSE = (".png", ".mp4")  # endings of what is compressed already
BASE_LICENCES = [  # of the base model and the speech encoder that ship: stage1_audio2lmk/data/SOURCES.md
    Licence("base model and speech encoder of talkhead", "Apache-2.0", "talkhead"),
    Licence("OpenAI's Whisper tiny and base, from which the speech encoder was distilled", "MIT, Copyright (c) 2022 OpenAI",
            "https://github.com/openai/whisper"),
    Licence("LibriSpeech (V. Panayotov et al.), on which the speech encoder was trained", "CC BY 4.0", "https://www.openslr.org/12"),
    Licence("GRID (M. Cooke et al. 2006), faces tracked to landmarks, on which both were trained", "CC BY 4.0",
            "https://doi.org/10.5281/zenodo.3625687"),
    Licence("HDTF (Z. Zhang et al. 2021), faces tracked to landmarks, on which both were trained", "CC BY 4.0",
            "https://github.com/MRzzm/HDTF"),
]
OTHER_BASE = Licence("base model or speech encoder that is not the one of this talkhead", "unknown", "ask who made it")


def pack(avatar: Avatar | Path | str, output: Path | str, *, figures: Mapping[str, Any] | None = None,
         overwrite: bool = False) -> Path:
    """Make one file of an avatar; returns its path. The same avatar gives the same bytes, where zlib is the same.

    `figures`, what was measured, are added to those in avatar.json: numbers and texts, in groups. Of paths in the headers of
    checkpoints only the last name is kept. Raises TalkheadError for an avatar that is not whole or has unaccepted edits.
    """
    avatar, output = avatar if isinstance(avatar, Avatar) else Avatar(avatar), Path(output)
    if output.is_dir():
        same = "the folder that is packed" if output.resolve() == avatar.root.resolve() else "a folder"
        raise TalkheadError(f"{output} is {same}; name a file, such as {output.with_name(output.stem)}.packed.avatar")
    refuse_inputs(output, *avatar.files())
    refuse_existing(output, overwrite)
    avatar.require(*(part for part in PARTS if avatar.part(part).is_file()))
    if avatar.layers.is_file():
        avatar.verify("layers")
    avatar.load_neutral(), avatar.load_motion()
    avatar.check_background()
    if edited := avatar.edited():
        raise TalkheadError(f"{edited[0]} is not as training wrote it; if the edit is yours, run `talkhead inspect {avatar.root} "
                            "--accept` first")
    with lock_output(output), atomic_path(output) as partial:
        _write(partial, _cleaned(avatar, figures or {})[1])
        with open_avatar_file(partial) as archive:  # what is made can be opened
            archive.extract(None)
    return output


def unpack(file: Path | str, output: Path | str, *, overwrite: bool = False) -> Path:
    """Make a folder of an avatar file, to train its parts on or edit it; returns the folder. Raises TalkheadError."""
    file, output = Path(file), Path(output)
    if file.is_dir():
        raise TalkheadError(f"{file} is a folder already; name an avatar file")
    refuse_inputs(output, file)
    refuse_existing(output, overwrite)
    if output.exists() and not (output.is_dir() and Avatar(output).json.is_file()):
        raise TalkheadError(f"{output} is no avatar folder, so it will not be replaced; name another folder")
    with open_avatar_file(file) as archive, lock_output(output):
        with whole_folder(output, "avatar.json", MEMBERS.__contains__) as partial:
            extract_checked(archive, partial, check_contents)
    return output


def describe_avatar(avatar: Avatar) -> Iterator[str]:
    """Lines that say whose avatar it is, what it is made of, who allowed it. Raises TalkheadError."""
    made = manifest_of(avatar)
    yield f"avatar {made.name!r}: {made.width}x{made.height}, {_megabytes(sum(f.size for f in made.files.values()))} of parts" + (
        f", {_megabytes(avatar.root.stat().st_size)} as one file of talkhead {made.talkhead}" if avatar.packed else "")
    yield f"  clip: {f'{made.clip.name!r}, identity {made.clip.sha256[:16]}…' if made.clip else 'unknown'}"
    yield f"  consent: {made.consent if made.consent is not None else 'no note'}"
    for name, known in made.files.items():
        yield f"  {name}: {_megabytes(known.size)}"
    for part in PARTS:
        if f"{part}.safetensors" not in made.files:
            yield f"  {part}: not trained yet; `talkhead {COMMANDS[part]} CLIP`"
    for name, value in _flat(made.figures):
        yield f"  {name}: {value:.4g}" if isinstance(value, float) else f"  {name}: {value}"
    for licence in made.licences:
        yield f"  contains {licence.what}: {licence.licence}, {licence.source}"


def manifest_of(avatar: Avatar) -> Manifest:
    """The manifest of an avatar file, or the one that packing a folder would give it. Raises TalkheadError."""
    if not avatar.packed:
        return _cleaned(avatar, {})[0]
    avatar.check()
    with open_avatar_file(avatar.root) as archive:
        return archive.manifest


def manifest_json(manifest: Manifest) -> str:
    """A manifest as it stands in the file."""
    return _json(manifest).decode()


def _write(path: Path, files: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name in MEMBERS:
            if name not in files:
                continue
            member, data = zipfile.ZipInfo(name), files[name]  # of 1980, the same whenever it is made
            member.create_system, member.external_attr = 3, 0o100644 << 16
            size = len(data) if name.endswith(DENSE) else len(zlib.compress(data))
            gains = size < 0.98 * len(data) < 0.98 * MOST_RATIO * size
            archive.writestr(member, data, zipfile.ZIP_DEFLATED if gains else zipfile.ZIP_STORED)


def _cleaned(avatar: Avatar, figures: Mapping[str, Any]) -> tuple[Manifest, dict[str, bytes]]:
    """The manifest and the members of an avatar's file, in which no path of this machine stands."""
    before = {path.name: path.read_bytes() for path in avatar.contents() if path.is_file()}
    files = {name: _without_paths(data, avatar.folder / name) for name, data in before.items()}
    hashes = {name: sha256(data).hexdigest() for name, data in files.items()}
    info = avatar.info
    info = replace(info, figures=_plain({**info.figures, **figures}),
                   files={name: hashes[name] for name in info.files if name in hashes},
                   parts={part: known | {"sha256": digest} for part, known in info.parts.items()
                          if (digest := hashes.get(f"{part}.safetensors"))})
    files["avatar.json"] = _json(info)
    settings = {}
    for part in PARTS:
        if (data := files.get(f"{part}.safetensors")) is not None:
            meta = checkpoint_header(data, avatar.part(part)).meta
            settings[part] = meta.get("settings", meta.get("config", {}))
    clip = next((ClipName(known["name"], known["clip"]) for known in info.parts.values()), None)
    manifest = Manifest(
        installed_version() or "unknown", info.name, info.width, info.height,
        {name: Member(len(files[name]), sha256(files[name]).hexdigest()) for name in MEMBERS if name in files},
        clip, settings, info.figures, _licences(files.get("stage1.safetensors")), info.consent)
    return manifest, files | {MANIFEST: _json(manifest)}


def _without_paths(data: bytes, path: Path) -> bytes:
    """A member without paths of this machine and without notes that other programs leave in pictures."""
    if path.suffix == ".safetensors":
        header = checkpoint_header(data, path)
        meta = {"talkhead": json.dumps(_plain(header.meta))}
        if header.whole["__metadata__"].keys() == meta.keys() and _plain(header.meta) == header.meta:
            return data
        text = json.dumps(header.whole | {"__metadata__": meta}).encode()
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(8, "little") + text + data[header.start :]
    if path.suffix == ".png" and not _bare(data):
        picture = io.BytesIO()
        Image.fromarray(read_png(path)).save(picture, "png")
        return picture.getvalue()
    return data


def _bare(png: bytes) -> bool:
    """Whether a picture is a PNG of nothing but its pixels."""
    at = 8
    while png.startswith(b"\x89PNG\r\n\x1a\n") and at + 12 <= len(png):
        kind = png[at + 4 : at + 8]
        at += 12 + int.from_bytes(png[at : at + 4], "big")
        if kind == b"IEND":
            return at == len(png)
        if kind not in (b"IHDR", b"PLTE", b"IDAT"):
            return False
    return False


def _plain(value: Any) -> Any:
    """`value` as JSON can hold it: numbers that are not finite as null, of paths from the root only the last name."""
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    if hasattr(value, "tolist"):  # of NumPy and torch
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Path):
        return value.name
    if isinstance(value, str):
        return next((kind(value).name for kind in (PurePosixPath, PureWindowsPath) if kind(value).is_absolute()), value)
    return value


def _json(value: Any) -> bytes:
    return json.dumps(dataclasses.asdict(value), indent=2, allow_nan=False).encode() + b"\n"


def _licences(stage1: bytes | None) -> list[Licence]:
    """Of the weights in a stage 1 that came from a base model."""
    if stage1 is None:
        return []
    from stage1_audio2lmk.checkpoint import SHIPPED_BASE
    from stage1_audio2lmk.encoders.transformers_encoder import TRANSFORMERS

    meta, own = checkpoint_header(stage1, "stage 1").meta, _tensors(stage1)
    if isinstance(meta.get("encoder"), dict) and meta["encoder"].get("kind") == TRANSFORMERS:
        own = {name: data for name, data in own.items() if not name.startswith("encoder.")}  # a projection fitted to the clip
    base = {name if name.startswith("encoder.") else f"prior.{name}": data
            for name, data in _tensors(SHIPPED_BASE.read_bytes()).items()}
    foreign = {name: data for name, data in own.items() if name.startswith(("encoder.", "prior."))}
    if not foreign:
        return []
    return BASE_LICENCES if all(base.get(name) == data for name, data in foreign.items()) else [OTHER_BASE]


def _tensors(data: bytes) -> dict[str, bytes]:
    header = checkpoint_header(data, "stage 1")
    places = {name: known["data_offsets"] for name, known in header.whole.items() if name != "__metadata__"}
    return {name: data[header.start + start : header.start + stop] for name, (start, stop) in places.items()}


def _flat(values: Mapping[str, Any], group: str = "") -> Iterator[tuple[str, Any]]:
    """Nested groups of values, one by one with the names of the groups."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{group}{name} ")
        else:
            yield f"{group}{name}", value


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.2f} MB"
