"""A short form of benchmarks/fuzz_media.py: damaged media files are read or refused, fast and in bounded memory."""

import importlib.util
from pathlib import Path


def test_damaged_media_files_are_read_or_refused():
    path = Path(__file__).resolve().parents[1] / "benchmarks/fuzz_media.py"
    spec = importlib.util.spec_from_file_location("fuzz_media", path)
    fuzzer = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fuzzer)
    assert not fuzzer.fuzz(60, seed=1, quiet=True)
