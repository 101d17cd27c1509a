"""Which marks a video carries, and what can be concluded of them."""

import itertools
import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from shared.avatar import Avatar
from shared.config import shown
from shared.consent import Consent
from shared.errors import TalkheadError
from shared.landmarks import FPS
from shared.media.container import open_media
from shared.media.video_io import probe, read_video
from shared.watermark.detect import SHORTEST, detect
from shared.watermark.payload import avatar_id
from talkhead.provenance import AIGC, ASSERTION, INSTALL, MIME, OFFLINE, SOURCE_TYPE, load_signer, shown_id

SECONDS = 120.0  # of a video in which the invisible mark is looked for
ID = re.compile("[0-9a-f]{7}")
MARKED, NOTHING, CONTRADICTS = 0, 1, 3  # exit codes; 2 is an error


@dataclass(frozen=True)
class Metadata:
    """Fields of the container that say that the video is made: the maker's words, and the avatar's id if they are talkhead's."""

    maker: str
    avatar: str | None


@dataclass(frozen=True)
class Signature:
    """A C2PA signature. intact: the file is as it was signed. issuer: "own" (this user's key), "trusted" (vouched for by the
    authority that was named), or "unknown". signer: what it calls itself. problems: C2PA's codes. made: whether it says that
    trained algorithms made the video. avatar and consent: as talkhead signs them."""

    intact: bool
    issuer: str
    signer: str
    problems: tuple[str, ...]
    made: bool
    avatar: str | None
    consent: Consent | None


@dataclass(frozen=True)
class InvisibleMark:
    """avatar: the id in it. chance: bound of the probability of finding one in an unmarked video. seen: share of the marked
    picture's area that is left."""

    avatar: str
    chance: float
    seen: float


@dataclass(frozen=True)
class Verification:
    """What was found in a video. unread: sentences about what could not be looked at. wanted: the avatar's id that it should
    have, if one was named."""

    metadata: Metadata | None
    signature: Signature | None
    invisible: InvisibleMark | None
    unread: tuple[str, ...] = ()
    wanted: str | None = None

    def avatars(self) -> set[str]:
        """Ids of the avatars that the marks name."""
        return {mark.avatar for mark in (self.metadata, self.signature, self.invisible) if mark is not None and mark.avatar}

    def contradictions(self) -> Iterator[str]:
        """Sentences about what does not go together."""
        if self.signature is not None and not self.signature.intact:
            changed = any("mismatch" in problem for problem in self.signature.problems)
            why = "the file was changed after signing" if changed else "it is not valid"
            yield f"The signature is broken: {why} ({', '.join(self.signature.problems)})."
        if len(self.avatars()) > 1:
            yield f"The marks name different avatars: {', '.join(sorted(self.avatars()))}."
        if self.wanted is not None and self.avatars() and self.avatars() != {self.wanted}:
            yield f"The marks are not those of the avatar that you named, {self.wanted}."

    def sentences(self) -> Iterator[str]:
        """All of it in plain words, the conclusion last."""
        if self.signature is not None and self.signature.intact:
            yield "The signature is intact: the file is as it was signed. " + {
                "own": "It was signed with the key of this user.",
                "trusted": "The authority that you named vouches for the signer.",
                "unknown": f"Its issuer is unknown: nobody vouches for the signer, who goes by {shown(self.signature.signer)}.",
            }[self.signature.issuer]
        if self.signature is not None and self.signature.made:
            yield "The signed manifest says that trained algorithms made the video" + (
                f", with avatar {self.signature.avatar}." if self.signature.avatar else ".")
        if self.signature is not None and self.signature.avatar:
            yield f"Consent note: {self.signature.consent or 'none in the avatar'}."
        if self.metadata is not None:
            named = f", avatar {self.metadata.avatar}" if self.metadata.avatar else ""
            yield f"The metadata says that the video is AI-generated, by {shown(self.metadata.maker)}{named}."
        if self.invisible is not None:
            crop = "" if self.invisible.seen > 0.97 else f", of which {100 * self.invisible.seen:.0f} % of the area are left"
            chance = max(self.invisible.chance, 1e-99)
            yield (f"The picture carries the invisible mark of avatar {self.invisible.avatar}{crop}; the chance of finding one "
                   f"in an unmarked video is below {chance:.0e}.")
        yield from self.unread
        yield from self.contradictions()
        yield self.conclusion()

    def conclusion(self) -> str:
        """One sentence."""
        if any(self.contradictions()):
            return "The marks contradict each other or the file: do not rely on them."
        if self.signature is not None:
            return "The video is marked." if self.signature.made else "The video is signed, but not said to be made."
        if self.invisible is not None and self.metadata is None:
            return ("The signature and the metadata are gone, if there were any; the picture still carries the mark of avatar "
                    f"{self.invisible.avatar}. Anybody could put it there, so it is a strong hint and no proof.")
        if self.invisible is not None:
            return "The video is marked, without a signature that was read; its marks are strong hints and no proof."
        if self.metadata is not None:
            return "Only the metadata is left, which anybody can write or remove."
        return "No mark was found. This proves nothing: marks can be removed, and other makers leave none."

    def exit_code(self) -> int:
        """MARKED, NOTHING or CONTRADICTS."""
        if any(self.contradictions()):
            return CONTRADICTS
        return MARKED if self.metadata or self.signature or self.invisible else NOTHING

    def to_dict(self) -> dict[str, Any]:
        """Values that JSON can hold, sentences and exit code included."""
        return asdict(self) | {"sentences": list(self.sentences()), "exit_code": self.exit_code()}


def verify(path: Path | str, *, trust: Path | str | None = None, avatar: Path | str | None = None,
           seconds: float = SECONDS) -> Verification:
    """Look for all marks in the video `path`.

    `trust`: PEM file of an authority's certificate, such as the signer's authority.pem. `avatar`: one that the marks should
    name. `seconds`: of the video's beginning in which the invisible mark is looked for. Raises TalkheadError for a file that
    is no readable video.
    """
    path = Path(path)
    wanted = None if avatar is None else shown_id(avatar_id(Avatar(avatar).info))
    length = probe(path).duration
    signature, unread = read_signature(path, None if trust is None else Path(trust))
    found = detect(itertools.islice(read_video(path), round(seconds * FPS)))
    unread_mark = []
    if found is None and min(length, seconds) < SHORTEST:
        unread_mark = [f"{min(length, seconds):.1f} s are too short to look for the invisible mark, which takes {SHORTEST:g} s."]
    elif found is None and length > seconds + 1 / FPS:
        unread_mark = [f"The invisible mark was looked for in the first {seconds:g} of {length:.0f} s."]
    mark = None
    if found is not None:
        left, right, top, bottom = found.crop
        mark = InvisibleMark(shown_id(found.payload.avatar), found.chance, min(1.0, (right - left) * (bottom - top)))
    return Verification(read_metadata(path), signature, mark, (*unread, *unread_mark), wanted)


def read_metadata(path: Path) -> Metadata | None:
    """What the container's fields say: talkhead's own, or the AIGC field of any maker."""
    with open_media(path, "video") as container:
        fields = {key.lower(): value for key, value in container.metadata.items()}
    aigc: Any = None
    try:
        aigc = json.loads(fields.get(AIGC.lower(), "null"))
    except (ValueError, RecursionError):
        pass
    software = fields.get("software", "")
    if isinstance(aigc, dict) and str(aigc.get("Label")) in ("1", "2", "3"):
        maker, number = str(aigc.get("ContentProducer", "")), str(aigc.get("ProduceID", ""))
        return Metadata(maker, number if maker.startswith("talkhead") and ID.fullmatch(number) else None)
    if software.startswith("talkhead"):
        said = re.search(r"avatar ([0-9a-f]{7})\b", fields.get("comment", ""))
        return Metadata(software, said[1] if said else None)
    return None


def read_signature(path: Path, trust: Path | None = None) -> tuple[Signature | None, tuple[str, ...]]:
    """The active C2PA manifest, if there is one, and sentences about what could not be looked at. Raises TalkheadError for an
    unreadable `trust` file."""
    anchors = {"own": _own_authority(), "trusted": None if trust is None else _certificate(trust)}
    try:
        import c2pa
    except ImportError:
        return None, (f"No signature was looked for: c2pa-python is not installed; run {INSTALL}.",)
    states = {}
    text = ""
    for issuer, anchor in [("unknown", None), *anchors.items()]:
        if issuer != "unknown" and anchor is None:
            continue
        settings = OFFLINE | ({"trust": {"user_anchors": anchor}} if anchor else {})
        try:
            with (c2pa.Context.from_dict(settings) as context, open(path, "rb") as file,
                  c2pa.Reader(MIME.get(path.suffix.lower(), path.suffix.lower().lstrip(".") or "mp4"), file,
                              context=context) as reader):
                states[issuer] = reader.get_validation_state()
                text = text or reader.json()
        except c2pa.C2paError as error:
            if str(error).startswith(("ManifestNotFound", "NotSupported")):
                return None, ()
            return Signature(False, "unknown", "", (" ".join(str(error).split())[:200],), False, None, None), ()
    issuer = next((issuer for issuer in anchors if states.get(issuer) == "Trusted"), "unknown")
    return _signature(json.loads(text), states["unknown"] != "Invalid", issuer), ()


def _signature(store: dict[str, Any], intact: bool, issuer: str) -> Signature:
    """Of C2PA's JSON of a file."""
    active = store.get("manifests", {}).get(store.get("active_manifest"), {})
    assertions = {entry.get("label"): entry.get("data") for entry in active.get("assertions", [])}
    own = assertions.get(ASSERTION) or {}
    number, note = own.get("avatar"), own.get("consent")
    try:
        consent = None if note is None else Consent.from_dict(note)
    except TalkheadError:  # signed by something else than talkhead
        consent = None
    problems = tuple(status.get("code", "") for status in store.get("validation_status", [])
                     if status.get("code") != "signingCredential.untrusted")
    signer = active.get("signature_info", {})
    return Signature(intact, issuer, str(signer.get("issuer") or signer.get("common_name") or ""), problems,
                     SOURCE_TYPE in json.dumps(assertions), number if ID.fullmatch(str(number)) else None, consent)


def _own_authority() -> str | None:
    """PEM of the certificate that this user's key was made with; None if there is none."""
    try:
        signer = load_signer(make=False)
    except (OSError, ValueError):
        return None
    return None if signer is None else signer.authority


def _certificate(path: Path) -> str:
    try:
        text = path.read_text(encoding="ascii")
    except FileNotFoundError:
        raise TalkheadError(f"{path} does not exist") from None
    except (OSError, ValueError):
        text = ""
    if "-----BEGIN CERTIFICATE-----" not in text:
        raise TalkheadError(f"{path} is not a PEM certificate; --trust takes the signer's authority.pem")
    return text
