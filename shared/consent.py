"""The consent note: who allowed an avatar of themselves, when, and for what. Kept in avatar.json, copied into what is signed."""

import dataclasses
import re
from dataclasses import dataclass
from datetime import date as Date
from typing import Any

from shared.config import config_from_dict, shown
from shared.errors import TalkheadError

LONGEST_TEXT = 200  # characters of a name or of a use
MOST_USES = 20
SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Consent:
    """A person's consent, as the maker of the avatar recorded it; nothing here proves that it was given.

    who: name of the person shown. date: ISO 8601 day on which they agreed, YYYY-MM-DD. statement_sha256: 64 lower-case
    hexadecimal digits, the SHA-256 of a file in which they say so (`shared.files.sha256`); the file stays with the maker.
    uses: what they allowed, in their words. skipped: the maker was asked for a consent note and gave none; the other fields
    but `date` are then empty. Raises TalkheadError for anything else.
    """

    who: str
    date: str
    statement_sha256: str | None = None
    uses: tuple[str, ...] = ()
    skipped: bool = False

    def __post_init__(self) -> None:
        try:
            Date.fromisoformat(self.date if len(self.date) == len("2026-11-28") else "")
        except ValueError:
            raise TalkheadError(f"date should be a day such as 2026-11-28, found {shown(self.date)}") from None
        if self.skipped:
            if self.who or self.statement_sha256 is not None or self.uses:
                raise TalkheadError("a skipped consent note says nothing but its date; leave out who, statement_sha256 and uses")
            return
        _check_text("who", self.who)
        if self.statement_sha256 is not None and not SHA256.fullmatch(self.statement_sha256):
            raise TalkheadError("statement_sha256 should be 64 hexadecimal digits in lower case, "
                                f"found {shown(self.statement_sha256)}")
        if len(self.uses) > MOST_USES:
            raise TalkheadError(f"uses should be at most {MOST_USES} texts, found {len(self.uses)}")
        for use in self.uses:
            _check_text("uses", use)

    def to_dict(self) -> dict[str, Any]:
        """Values that JSON can hold, for `from_dict`."""
        return dataclasses.asdict(self) | {"uses": list(self.uses)}

    @classmethod
    def from_dict(cls, values: Any, where: str = "consent") -> "Consent":
        """What `to_dict` gave. Raises TalkheadError, beginning with `where`."""
        return config_from_dict(cls, values, where)

    def __str__(self) -> str:
        if self.skipped:
            return f"none recorded ({self.date})"
        uses = f", for: {'; '.join(self.uses)}" if self.uses else ""
        statement = f", statement of SHA-256 {self.statement_sha256[:16]}…" if self.statement_sha256 else ", no statement kept"
        return f"{self.who}, {self.date}{uses}{statement}"


def _check_text(field: str, text: str) -> None:
    if not text.strip() or len(text) > LONGEST_TEXT or not text.isprintable():
        raise TalkheadError(f"{field} should be one line of 1 to {LONGEST_TEXT} characters, found {shown(text)}")
