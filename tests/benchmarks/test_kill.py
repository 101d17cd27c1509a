"""The short form of benchmarks/kill.py: a training is killed at random moments, loses nothing and ends the same."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "kill.py"


@pytest.mark.slow
@pytest.mark.parametrize("count", ["1", "3"])
def test_a_killed_training_loses_nothing_and_ends_as_if_it_had_not_been(short_cartoon, tmp_path, count):
    done = subprocess.run([sys.executable, str(SCRIPT), "--count", count, "--only", "stage2", "--how", "group", "--clip",
                           str(short_cartoon.root)], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    name, how, kills, in_time, *faults = done.stdout.splitlines()[-1].split()
    assert [name, how, kills, *faults] == ["stage2", "group", count, "0", "0", "0", "0"]
    assert int(in_time) >= int(count) - 1  # the last moment may come after the end, on a machine that is quicker by then
