"""A short form of benchmarks/fuzz_media.py: damaged media files are read or refused, fast and in bounded memory."""

import importlib
from pathlib import Path

import pytest


@pytest.mark.slow
def test_damaged_media_files_are_read_or_refused(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[2] / "benchmarks"))
    assert not importlib.import_module("fuzz_media").fuzz(60, seed=1, quiet=True)
