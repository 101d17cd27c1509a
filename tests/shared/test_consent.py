import dataclasses
import json

import pytest

from shared.config import config_from_dict
from shared.consent import Consent
from shared.errors import TalkheadError

HASH = "0123456789abcdef" * 4


@dataclasses.dataclass(frozen=True)
class Holder:
    """Has a consent note as avatar.json has one."""

    consent: Consent | None = None


@pytest.mark.parametrize("consent", [
    Consent("Jane Doe", "2026-11-28", HASH, ("our course on bees", "until 2028")),
    Consent("陈洁", "2026-02-01"),
    Consent("", "2026-11-28", skipped=True),
])
def test_comes_back_from_json_alone_and_within_another_dataclass(consent):
    assert Consent.from_dict(json.loads(json.dumps(consent.to_dict()))) == consent
    written = json.loads(json.dumps(dataclasses.asdict(Holder(consent))))
    assert config_from_dict(Holder, written).consent == consent
    assert config_from_dict(Holder, {}).consent is None


@pytest.mark.parametrize(("values", "message"), [
    (dict(who="", date="2026-11-28"), "who should be one line of 1 to 200 characters, found ''"),
    (dict(who="a\nb", date="2026-11-28"), "who should be one line"),
    (dict(who="Jane", date="28.11.2026"), "date should be a day such as 2026-11-28, found '28.11.2026'"),
    (dict(who="Jane", date="2026-02-30"), "date should be a day"),
    (dict(who="Jane", date="2026-11-28", statement_sha256="AB"), "statement_sha256 should be 64 hexadecimal digits"),
    (dict(who="Jane", date="2026-11-28", uses=["x" * 201]), "uses should be one line of 1 to 200"),
    (dict(who="Jane", date="2026-11-28", uses=["x"] * 21), "uses should be at most 20 texts, found 21"),
    (dict(who="Jane", date="2026-11-28", skipped=True), "a skipped consent note says nothing but its date"),
    (dict(who="Jane"), "consent: the key 'date' is missing"),
    (dict(who="Jane", date="2026-11-28", use="x"), "did you mean 'uses'?"),
])
def test_a_wrong_note_is_refused_with_its_value(values, message):
    with pytest.raises(TalkheadError) as error:
        Consent.from_dict(values)
    assert str(error.value).startswith("consent: ") and message in str(error.value)


def test_reads_as_one_line():
    assert str(Consent("Jane Doe", "2026-11-28", HASH, ("courses", "tests"))) == (
        "Jane Doe, 2026-11-28, for: courses; tests, statement of SHA-256 0123456789abcdef…")
    assert str(Consent("Jane Doe", "2026-11-28")) == "Jane Doe, 2026-11-28, no statement kept"
    assert str(Consent("", "2026-11-28", skipped=True)) == "none recorded (2026-11-28)"
