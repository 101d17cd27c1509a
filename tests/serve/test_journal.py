"""The journal: order, states, what is forgotten, what other files it refuses."""

import sqlite3
from dataclasses import replace

import pytest

from serve.journal import Job, Journal
from shared.errors import TalkheadError


def job(id, **changes):
    return replace(Job(id, "me", {"end": 1.5}, ".mp4", 10.0, 1.5, "64x64", "hello"), **changes)


@pytest.fixture
def journal(tmp_path):
    journal = Journal(tmp_path / "journal.sqlite3")
    yield journal
    journal.close()


def test_jobs_are_taken_in_order_and_come_back_whole(journal):
    for name in "abc":
        assert journal.add(job(name, key=f"key-{name}", digest="0"), 10)
    first = journal.claim(20.0)
    assert first == job("a", state="in_progress", tries=1, started=20.0, key="key-a", digest="0")
    assert journal.of_key("key-b").id == "b" and journal.of_key("other") is None and journal.get("none") is None
    assert journal.claim(21.0).id == "b"
    journal.give_back("a", tried=True)
    journal.give_back("b", tried=False)
    assert [journal.claim(22.0).id for _ in range(3)] == ["a", "b", "c"] and journal.claim(23.0) is None
    assert (journal.get("a").tries, journal.get("b").tries) == (2, 1)


def test_the_queue_is_bounded_by_what_waits(journal):
    assert journal.add(job("a"), 2) and journal.add(job("b"), 2) and not journal.add(job("c"), 2)
    journal.claim(1.0)
    assert journal.add(job("c"), 2)
    assert journal.counts() == {"queued": 2, "in_progress": 1, "completed": 0, "failed": 0, "cancelled": 0, "expired": 0}


def test_only_a_job_in_progress_completes_and_only_one_that_waits_ends(journal):
    journal.add(job("a"), 9)
    assert not journal.complete("a", 5.0, 9.0, 1.48, 1000, [])
    journal.claim(1.0)
    assert journal.complete("a", 5.0, 9.0, 1.48, 1000, ["too quiet"])
    done = journal.get("a")
    assert (done.state, done.finished, done.expires, done.seconds, done.bytes, done.warnings) == (
        "completed", 5.0, 9.0, 1.48, 1000, ["too quiet"])
    assert not journal.complete("a", 6.0, 9.0, 1.48, 1, []) and not journal.end("a", 6.0, "cancelled", "cancelled", "")
    journal.give_back("a", tried=True)
    assert journal.get("a") == done
    journal.add(job("b"), 9)
    assert not journal.delete("b") and journal.end("b", 6.0, "failed", "refused", "why") and journal.delete("b")


def test_pages_go_both_ways_and_begin_behind_any_job(journal):
    for name in "abcde":
        journal.add(job(name), 9)
    assert [one.id for one in journal.page(None, 2, True)] == ["e", "d"]
    assert [one.id for one in journal.page("d", 2, True)] == ["c", "b"]
    assert [one.id for one in journal.page("d", 2, False)] == ["e"]
    assert journal.page("none", 2, True) is None


def test_results_expire_by_age_and_the_oldest_by_size(journal):
    for k, name in enumerate("abcd"):
        journal.add(job(name), 9)
        journal.claim(0.0)
        journal.complete(name, 10.0 + k, 100.0 + k, 1.0, 40, [])
    assert [one.id for one in journal.expire(50.0, 120, 0.0)] == ["a"]  # the newest three have 120 bytes
    assert journal.get("a").state == "expired" and journal.get("a").expires == 50.0
    assert [one.id for one in journal.expire(101.5, 120, 0.0)] == ["b"]
    assert [journal.get(name).state for name in "cd"] == ["completed"] * 2
    assert journal.expire(101.5, 120, 60.0) == [] and journal.get("a") is None and journal.get("b") is not None
    assert sorted(one.id for one in journal.expire(101.5, 10, 60.0)) == ["c", "d"]  # not even the newest fits


def test_what_is_written_survives_without_closing(journal, tmp_path):
    journal.add(job("a"), 9)
    other = Journal(tmp_path / "journal.sqlite3")
    assert other.claim(1.0).id == "a" and journal.get("a").state == "in_progress"
    other.close()


def test_a_transaction_that_fails_changes_nothing(journal):
    journal.add(job("a", key="one"), 9)
    with pytest.raises(sqlite3.IntegrityError):
        journal.add(job("b", key="one"), 9)
    assert journal.counts()["queued"] == 1 and journal.add(job("c"), 9)


@pytest.mark.parametrize("content, sentence", [
    (b"no database" * 100, "is no journal of jobs, or it is damaged"),
    (None, "cannot be opened or written"),
    (77, "expected journal version 1, found 77")])
def test_a_file_that_is_no_journal_is_refused(tmp_path, content, sentence):
    path = tmp_path / "journal.sqlite3"
    if content is None:
        path.mkdir()
    elif isinstance(content, bytes):
        path.write_bytes(content)
    else:
        with sqlite3.connect(path) as db:
            db.execute(f"PRAGMA user_version = {content}")
        db.close()
    with pytest.raises(TalkheadError, match=sentence):
        Journal(path)
