"""Jobs with a worker process that loads nothing: supervision, kills, cancelling, expiry, restarts."""

import asyncio
import contextlib
import os
import signal
import sqlite3
import time
from pathlib import Path

import pytest

from serve import job_worker
from serve import jobs as jobs_module
from serve.errors import ApiError
from serve.jobs import Jobs, new_id
from serve.journal import Job, Journal
from serve.settings import ServeSettings
from shared.errors import TalkheadError
from tests.serve import toy_worker


def settings(folder, **changes):
    return ServeSettings({"me": "nowhere"}, str(folder), **changes)


def job(how="make", **changes):
    id = new_id()
    task = {"options": {"label": how}, "size": None, "end": None, "seconds": 0.2, "sound": ".wav", "landmarks": None}
    return Job(id, **{"avatar": "me", "options": task, "ending": ".mp4", "created": time.time(), "seconds": 0.2, "size": "64x64",
                      **changes})


@contextlib.asynccontextmanager
async def running(folder, **changes):
    jobs = Jobs(settings(folder, **changes), toy_worker.main)
    jobs.uploads.start = lambda: None  # no upload comes
    await jobs.start()
    try:
        yield jobs
    finally:
        await jobs.stop()


async def add(jobs, how="make", **changes):
    one = await jobs.create(job(how, **changes))
    jobs.upload(one.id, ".wav").write_bytes(b"sound")
    return one.id


async def ended(jobs, id):
    return [found async for found in jobs.watch(id) if found][-1]


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*")
                  if path.is_file() and path.parent != folder)


def tries(folder):
    return [line.split()[0] for line in (folder / "tries.txt").read_text().splitlines()]


def test_jobs_are_made_one_after_the_other_and_leave_only_their_results(tmp_path):
    async def run():
        async with running(tmp_path) as jobs:
            names = [await add(jobs), await add(jobs), await add(jobs, "fail"), await add(jobs)]
            seen = [progress for progress in [jobs.progress(one) async for one in jobs.watch(names[0]) if one]]
            found = [await ended(jobs, name) for name in names]
            assert seen == sorted(seen) and seen[-1] == 100 and len(seen) >= 3
            assert [one.state for one in found] == ["completed", "completed", "failed", "completed"]
            assert (found[2].error_code, found[2].error_message) == ("refused", "the sound is odd")
            assert found[0].warnings == ["quiet"] and found[0].bytes == 400
            assert 24 * 3600 - 5 < found[0].expires - time.time() <= 24 * 3600
            assert tries(tmp_path) == names and (await jobs.counts())["completed"] == 3
            assert jobs.queue_seconds[1] == 4 and jobs.job_seconds[1] == 3
        return names
    names = asyncio.run(run())
    assert files(tmp_path) == sorted(f"results/{name}.mp4" for name in (*names[:2], names[3]))


def test_several_workers_share_the_queue(tmp_path):
    async def run():
        async with running(tmp_path, job_workers=2) as jobs:
            names = [await add(jobs) for _ in range(6)]
            assert {(await ended(jobs, name)).state for name in names} == {"completed"}
            return names
    names = asyncio.run(run())
    lines = (tmp_path / "tries.txt").read_text().splitlines()
    assert sorted(line.split()[0] for line in lines) == sorted(names) and len({line.split()[1] for line in lines}) == 2


def test_a_worker_that_dies_is_replaced_and_its_job_has_three_tries(tmp_path):
    async def run():
        async with running(tmp_path) as jobs:
            bad, good = await add(jobs, "die"), await add(jobs)
            found = await ended(jobs, bad)
            assert (found.state, found.error_code, found.tries) == ("failed", "worker_died", 3)
            assert found.error_message == "the process that made it ended 3 times; the server's log may say why"
            assert (await ended(jobs, good)).state == "completed"
            return bad, good
    bad, good = asyncio.run(run())
    assert tries(tmp_path) == [bad] * 3 + [good] and files(tmp_path) == [f"results/{good}.mp4"]


def test_a_result_that_is_whole_is_taken_over_from_a_worker_that_then_died(tmp_path):
    async def run():
        async with running(tmp_path) as jobs:
            found = await ended(jobs, await add(jobs, "dies-late"))
            assert found.state == "completed" and found.tries == 1
    asyncio.run(run())
    assert len(tries(tmp_path)) == 1


def test_where_no_process_can_be_started_jobs_wait(tmp_path, monkeypatch):
    monkeypatch.setattr(jobs_module, "RETRY", 0.02)

    async def run():
        async with running(tmp_path) as jobs:
            worker, refused = jobs._workers[0], []
            worker.kill()
            real = jobs_module.get_context

            def no_process(method):
                refused.append(method)
                if len(refused) < 4:
                    raise OSError(11, "Resource temporarily unavailable")
                return real(method)

            monkeypatch.setattr(jobs_module, "get_context", no_process)
            found = await ended(jobs, await add(jobs))
            assert found.state == "completed" and found.tries == 1 and len(refused) == 4
    asyncio.run(run())


def test_an_idle_worker_that_was_killed_costs_no_job_a_try(tmp_path):
    async def run():
        async with running(tmp_path) as jobs:
            await ended(jobs, await add(jobs))
            os.kill(jobs._workers[0]._process.pid, signal.SIGKILL)
            await asyncio.sleep(0.1)
            found = await ended(jobs, await add(jobs))
            assert found.state == "completed" and found.tries == 1
    asyncio.run(run())


def test_cancelling_what_waits_what_is_at_work_and_what_does_not_listen(tmp_path, monkeypatch):
    monkeypatch.setattr(jobs_module, "GRACE", 0.3)

    async def run():
        async with running(tmp_path) as jobs:
            deaf, waits = await add(jobs, "deaf"), await add(jobs)
            found = await jobs.cancel(waits)
            assert (found.state, found.error_code, found.tries) == ("cancelled", "cancelled", 0)
            while (await jobs.get(deaf)).state != "in_progress" or jobs._workers[0].job is None:
                await asyncio.sleep(0.01)
            began = time.monotonic()
            found, again = await asyncio.gather(jobs.cancel(deaf), jobs.cancel(deaf))
            assert found.state == again.state == "cancelled" and time.monotonic() - began < 5
            works = await add(jobs)
            async for one in jobs.watch(works):
                if jobs.progress(one) >= 20:
                    break
            found = await jobs.cancel(works)
            assert found.state == "cancelled" and found.tries == 1
            done = await add(jobs)
            await ended(jobs, done)
            assert (await jobs.cancel(done)).state == "completed" and await jobs.cancel("none") is None
            assert await jobs.delete(done) and not await jobs.delete(done)
    asyncio.run(run())
    assert files(tmp_path) == []


def test_deleting_at_any_moment_leaves_nothing(tmp_path):
    async def run():
        async with running(tmp_path) as jobs:
            for k in range(12):
                one = await add(jobs)
                await asyncio.sleep(0.012 * k)
                assert await jobs.delete(one) and await jobs.get(one) is None
    asyncio.run(run())
    assert files(tmp_path) == []


def test_a_full_queue_refuses_and_says_when_to_come_again(tmp_path):
    async def run():
        async with running(tmp_path, queued_jobs=1) as jobs:
            await add(jobs, "deaf")
            while (await jobs.counts())["queued"]:
                await asyncio.sleep(0.01)
            await add(jobs)
            for call in (jobs.create(job()), jobs.refuse_if_full()):
                with pytest.raises(ApiError, match="1 videos are waiting already") as error:
                    await call
                assert (error.value.status, error.value.code) == (429, "queue_full")
                assert int(error.value.headers["Retry-After"]) >= 1
    asyncio.run(run())


def test_a_stop_gives_jobs_back_without_counting_a_try(tmp_path):
    async def run():
        async with running(tmp_path) as jobs:
            works, waits = await add(jobs, "deaf"), await add(jobs)
            while not (await jobs.get(works)).state == "in_progress":
                await asyncio.sleep(0.01)
        journal = Journal(tmp_path / "journal.sqlite3")
        assert [(one.id, one.state, one.tries) for one in journal.page(None, 9, False)] == [
            (works, "queued", 0), (waits, "queued", 0)]
        journal.close()
    asyncio.run(run())
    assert len(files(tmp_path)) == 2  # the uploads


def leave(folder, tries=1, result=None, done=False):
    """What a kill leaves of a job in progress: its row, and of its result nothing, or the finished file in one of two places."""
    for name in ("uploads", "work", "results"):
        (folder / name).mkdir(exist_ok=True)
    journal, one = Journal(folder / "journal.sqlite3"), job()
    journal.add(one, 99)
    for _ in range(tries):
        journal.claim(time.time())
        if _ < tries - 1:
            journal.give_back(one.id, tried=True)
    journal.close()
    work = folder / "work" / f"{one.id}-{tries}"
    work.mkdir()
    (folder / "uploads" / f"{one.id}.wav").write_bytes(b"sound")
    (work / ".video.partial-99999.mp4").write_bytes(b"half")
    if result == "work":
        (work / "video.mp4").write_bytes(b"whole")
    elif result == "results":
        (folder / "results" / f"{one.id}.mp4").write_bytes(b"whole")
    if done:
        (work / job_worker.DONE).write_text('{"seconds": 0.2, "warnings": []}')
    return one.id


@pytest.mark.parametrize("case, again", [
    (dict(), True), (dict(result="work"), True),  # the file is there, but nothing says that it is whole
    (dict(result="work", done=True), False), (dict(result="results", done=True), False), (dict(tries=2), True)])
def test_after_a_kill_what_was_finished_stays_and_the_rest_is_made_again(tmp_path, case, again):
    name = leave(tmp_path, **case)
    (tmp_path / "results" / f"{new_id()}.mp4").write_bytes(b"of nobody")
    (tmp_path / "uploads" / f"{new_id()}.upload").write_bytes(b"of nobody")

    async def run():
        async with running(tmp_path) as jobs:
            found = await ended(jobs, name)
            assert found.state == "completed"
    asyncio.run(run())
    assert (tmp_path / "tries.txt").exists() == again
    assert files(tmp_path) == [f"results/{name}.mp4"]
    assert ((tmp_path / "results" / f"{name}.mp4").read_bytes() == b"whole") != again


def test_after_the_third_kill_a_job_has_failed(tmp_path):
    name = leave(tmp_path, tries=3)

    async def run():
        async with running(tmp_path) as jobs:
            assert (await jobs.get(name)).error_code == "worker_died"
    asyncio.run(run())
    assert files(tmp_path) == []


def test_old_results_go_and_the_oldest_where_they_are_too_many(tmp_path):
    async def run():
        async with running(tmp_path, keep_bytes=900) as jobs:
            names = [await add(jobs) for _ in range(3)]  # 400 bytes each
            for name in names:
                await ended(jobs, name)
            assert [(await jobs.get(name)).state for name in names] == ["expired", "completed", "completed"]
            assert files(tmp_path) == sorted(f"results/{name}.mp4" for name in names[1:])
        with contextlib.closing(sqlite3.connect(tmp_path / "journal.sqlite3", isolation_level=None)) as db:
            db.execute("UPDATE jobs SET expires = 1 WHERE id = ?", (names[1],))
        async with running(tmp_path, keep_bytes=900) as jobs:
            await asyncio.sleep(0.2)
            assert [(await jobs.get(name)).state for name in names] == ["expired", "expired", "completed"]
    asyncio.run(run())
    assert len(files(tmp_path)) == 1


def test_a_job_whose_avatar_is_gone_fails(tmp_path):
    async def run():
        async with running(tmp_path) as jobs:
            found = await ended(jobs, await add(jobs, avatar="other"))
            assert (found.error_code, found.error_message) == ("model_not_found", "there is no avatar 'other' here any more")
    asyncio.run(run())


def test_a_journal_that_cannot_be_written_for_a_while_loses_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(jobs_module, "RETRY", 0.02)

    async def run():
        async with running(tmp_path) as jobs:
            refused, real = [], jobs._journal.complete

            def full(*values):
                if len(refused) < 3:
                    refused.append(values)
                    raise sqlite3.OperationalError("database or disk is full")
                return real(*values)

            monkeypatch.setattr(jobs._journal, "complete", full)
            found = await ended(jobs, await add(jobs))
            assert found.state == "completed" and found.tries == 1 and len(refused) == 3

            def no_room(*_):
                raise sqlite3.OperationalError("database or disk is full")

            monkeypatch.setattr(jobs._journal, "add", no_room)
            with pytest.raises(ApiError, match="journal cannot be written: database or disk is full") as error:
                await jobs.create(job())
            assert error.value.status == 507
    asyncio.run(run())


def test_two_servers_do_not_share_a_folder(tmp_path):
    async def run():
        async with running(tmp_path):
            import subprocess
            import sys

            code = ("import asyncio, sys; from serve.jobs import Jobs; from serve.settings import ServeSettings; "
                    "asyncio.run(Jobs(ServeSettings({}, sys.argv[1])).start())")
            done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True,
                                  cwd=Path(__file__).resolve().parents[2])
            assert done.returncode == 1 and "TalkheadError" in done.stderr and str(tmp_path) in done.stderr
    asyncio.run(run())
    with pytest.raises(TalkheadError):
        (tmp_path / "journal.sqlite3").write_bytes(b"nonsense" * 200)
        asyncio.run(Jobs(settings(tmp_path)).start())


def test_the_interface_process_loads_no_torch():
    import subprocess
    import sys

    code = ("import sys; import serve.jobs, serve.videos, serve.avatars, serve.uploads, serve.journal; "
            "print([name for name in ('torch', 'numba', 'av', 'cv2', 'scipy') if name in sys.modules])")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).resolve().parents[2])
    assert done.stdout == "[]\n", done.stdout + done.stderr
