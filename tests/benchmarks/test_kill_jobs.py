"""The short form of benchmarks/kill_jobs.py: processes of the job service are killed, and nothing is lost or made twice."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_killed_at_random_moments_the_job_service_loses_nothing(made_once):
    from tests.serve.small_avatar import make_avatar

    avatar = made_once("small_avatar", make_avatar) / "me.avatar"
    done = subprocess.run([sys.executable, ROOT / "benchmarks" / "kill_jobs.py", avatar, "--count", "3", "--seconds", "0.4"],
                          capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "3 kills, 0 faults" and "videos completed" in done.stdout
