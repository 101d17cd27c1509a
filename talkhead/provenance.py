"""What a finished video says of itself: metadata, a C2PA signature by a key made at first use, the invisible and visible marks.

Nothing here needs a network. The signature needs the extra `provenance` (c2pa-python).
"""

import datetime
import json
import os
import tempfile
import warnings
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from shared.avatar import AvatarInfo
from shared.consent import Consent
from shared.errors import MachineError, TalkheadWarning
from shared.files import atomic_path
from shared.label import label
from shared.landmarks import FPS
from shared.version import installed_version
from shared.watermark.mark import Watermark
from shared.watermark.payload import Payload, avatar_id

SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
ASSERTION = "org.talkhead.avatar"  # of our own in the manifest: avatar and consent note
AIGC = "AIGC"  # key of the metadata field of GB 45438-2025
MIME = {".mp4": "video/mp4", ".mov": "video/quicktime"}  # by ending, of what C2PA can sign
Label = Literal["none", "start", "throughout"]
KEY_YEARS = 20  # without a trusted time stamp a signature is valid no longer than its certificate
INSTALL = "pip install 'talkhead[provenance]'"
OFFLINE = {"verify": {"remote_manifest_fetch": False, "ocsp_fetch": False}, "builder": {"thumbnail": {"enabled": False}}}


def shown_id(avatar: int) -> str:
    """An avatar's 28-bit id as metadata, manifest and `verify` show it: 7 hexadecimal digits."""
    return f"{avatar:07x}"


def container_metadata(avatar: int) -> dict[str, str]:
    """Fields of a video that the avatar of this id speaks in; MP4 and MOV keep AIGC only with `movflags=use_metadata_tags`.

    AIGC is the implicit label of GB 45438-2025, whose Label "1" says that the content is generated.
    """
    made = f"talkhead {installed_version() or 'unknown'}"
    aigc = {"Label": "1", "ContentProducer": made, "ProduceID": shown_id(avatar), "ReservedCode1": "", "ContentPropagator": "",
            "PropagateID": "", "ReservedCode2": ""}
    return {"title": "AI-generated video", "software": made, AIGC: json.dumps(aigc),
            "comment": f"AI-generated: {made} made this video of a person who did not say it; avatar {shown_id(avatar)}"}


def config_folder() -> Path:
    """Where the user's signing key lies: $XDG_CONFIG_HOME/talkhead, else ~/.config/talkhead. Raises OSError without a home."""
    named = os.environ.get("XDG_CONFIG_HOME", "")
    try:
        return (Path(named) if os.path.isabs(named) else Path.home() / ".config") / "talkhead"
    except RuntimeError as error:
        raise OSError(f"this user has no home folder: {error}") from error


@dataclass(frozen=True)
class Signer:
    """PEM texts: the private key, the certificate of it and that of its own authority."""

    key: str
    certificate: str
    authority: str


def signer_file() -> Path:
    """The key and both certificates, readable by the user alone."""
    return config_folder() / "signing.pem"


def load_signer(*, make: bool) -> Signer | None:
    """The user's signer; where there is none, one is made and kept if `make`, else None.

    Raises OSError where it can be neither read nor written, ValueError for a damaged file.
    """
    file = signer_file()
    if not file.exists():
        if not make:
            return None
        signer = new_signer()
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        number, name = tempfile.mkstemp(dir=file.parent, prefix=".signing-")  # only its owner may read it
        try:
            with os.fdopen(number, "w", encoding="ascii") as made:
                made.write(signer.key + signer.certificate + signer.authority)
            with suppress(FileExistsError):  # another process was quicker, and its key is the one
                os.link(name, file)
        finally:
            os.unlink(name)
        (file.parent / "authority.pem").write_text(signer.authority, encoding="ascii")
    begin = "-----BEGIN "
    parts = [begin + part for part in file.read_text(encoding="ascii").split(begin)[1:]]
    if len(parts) != 3 or "PRIVATE KEY" not in parts[0] or not all("CERTIFICATE" in part for part in parts[1:]):
        raise ValueError("it is damaged")
    return Signer(*parts)


def new_signer() -> Signer:
    """A new authority, a key, and its certificate by the authority, whose own key is then forgotten: it signs nothing else.

    ECDSA on P-256, with the extensions that C2PA 2.2, section 14.5, asks for.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    begin = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)  # clocks differ
    end = begin + datetime.timedelta(days=365 * KEY_YEARS)
    authority, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))

    def name(common: str) -> Any:
        return x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "talkhead, a user's own key"),
                          x509.NameAttribute(NameOID.COMMON_NAME, common)])

    def certificate(common: str, public: Any, *, signs_others: bool) -> Any:
        usage = {use: False for use in ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
                                        "encipher_only", "decipher_only")}
        built = (x509.CertificateBuilder().subject_name(name(common)).issuer_name(name("authority")).public_key(public)
                 .serial_number(x509.random_serial_number()).not_valid_before(begin).not_valid_after(end)
                 .add_extension(x509.BasicConstraints(signs_others, 0 if signs_others else None), critical=True)
                 .add_extension(x509.KeyUsage(digital_signature=not signs_others, key_cert_sign=signs_others,
                                              crl_sign=signs_others, **usage), critical=True)
                 .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
                 .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key()), critical=False))
        if not signs_others:
            built = built.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION]), critical=False)
        return built.sign(authority, hashes.SHA256())

    def pem(made: Any) -> str:
        return made.public_bytes(serialization.Encoding.PEM).decode()

    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return Signer(private.decode(), pem(certificate("videos", key.public_key(), signs_others=False)),
                  pem(certificate("authority", authority.public_key(), signs_others=True)))


def manifest(avatar: int, consent: Consent | None) -> dict[str, Any]:
    """What is signed: made by trained algorithms, by this talkhead, with this avatar, under this consent note."""
    tool = {"name": "talkhead", "version": installed_version() or "unknown"}
    return {"title": "AI-generated video", "claim_generator_info": [tool], "assertions": [
        {"label": "c2pa.actions.v2", "data": {"actions": [
            {"action": "c2pa.created", "digitalSourceType": SOURCE_TYPE, "softwareAgent": tool}]}},
        {"label": ASSERTION, "data": {"avatar": shown_id(avatar), "consent": None if consent is None else consent.to_dict()}}]}


def sign(path: Path, suffix: str, avatar: int, consent: Consent | None = None) -> None:
    """Put a signed C2PA manifest into the finished video `path` of format `suffix` (".mp4" …), replacing it atomically.

    Where that cannot be done, the file stays as it is and a TalkheadWarning says why.
    """
    if suffix.lower() not in MIME:
        _unsigned(f"C2PA cannot sign {suffix} files; choose {' or '.join(MIME)} for a signature")
        return
    try:
        import c2pa
    except ImportError:
        _unsigned(f"c2pa-python is not installed; run {INSTALL}, or use --no-mark for an unmarked video")
        return
    try:
        signer = load_signer(make=True)
    except (OSError, ValueError) as error:
        _unsigned(f"the signing key in {_place()} can be neither read nor made: "
                  f"{getattr(error, 'strerror', None) or error}; mend or delete it, or set XDG_CONFIG_HOME to a folder for it")
        return
    assert signer is not None
    identity = c2pa.C2paSignerInfo(c2pa.C2paSigningAlg.ES256, (signer.certificate + signer.authority).encode(),
                                   signer.key.encode(), None)
    try:
        with (atomic_path(path) as signed, c2pa.Context.from_dict(OFFLINE) as context, c2pa.Signer.from_info(identity) as hand,
              c2pa.Builder(manifest(avatar, consent), context) as builder,
              open(path, "rb") as source, open(signed, "w+b") as target):
            builder.sign(hand, MIME[suffix.lower()], source, target)
    except c2pa.C2paError as error:
        _unsigned(f"C2PA refuses: {error}")
    except MachineError as error:
        _unsigned(f"it cannot be written a second time: {getattr(error.__cause__, 'strerror', None) or error}")


def _place() -> str:
    with suppress(OSError):
        return str(config_folder())
    return "the user's home folder"


def _unsigned(reason: str) -> None:
    warnings.warn(f"the video is not signed: {reason}", TalkheadWarning, stacklevel=3)


class Marks:
    """All that says of an avatar's videos that they are made. With mark=False only the label, if one is wanted.

    `label` is "none", "start" (2 s) or "throughout"; `fps` of the video.
    """

    def __init__(self, info: AvatarInfo, *, mark: bool = True, label: Label = "none",
                 fps: float = FPS) -> None:
        self.avatar, self.consent = avatar_id(info), info.consent
        self.mark, self.label, self.fps = mark, label, fps
        self._watermark: Watermark | None = None

    def apply(self, frames: np.ndarray, first: int) -> np.ndarray:
        """uint8 (B,H,W,3), or with alpha (B,H,W,4), the first of them frame number `first` -> the same with the invisible mark
        and the label."""
        if frames.shape[-1] == 4:
            return np.concatenate([self.apply(frames[..., :3], first), frames[..., 3:]], -1)
        if self.mark:
            height, width = frames.shape[1:3]
            if self._watermark is None or (self._watermark.height, self._watermark.width) != (height, width):
                self._watermark = Watermark(Payload(self.avatar), width, height, self.fps)
            frames = self._watermark.mark(frames, first)
        if self.label != "none":
            frames = label(frames, first, fps=self.fps, throughout=self.label == "throughout")
        return frames

    def metadata(self) -> dict[str, str]:
        """For the container; empty for an unmarked video."""
        return container_metadata(self.avatar) if self.mark else {}

    def finish(self, path: Path) -> None:
        """Sign the complete file, before it gets its final name. Never raises for what only keeps it from being signed."""
        if self.mark:
            sign(path, path.suffix, self.avatar, self.consent)
