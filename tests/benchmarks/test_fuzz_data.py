"""A short form of benchmarks/fuzz_data.py."""

import importlib.util
import json
import struct
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "fuzz_data.py"


@pytest.fixture(scope="module")
def fuzz_data():
    spec = importlib.util.spec_from_file_location("fuzz_data", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def samples(fuzz_data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("samples")
    fuzz_data.make_samples(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield folder


@pytest.mark.slow
def test_a_hundred_damaged_files_make_no_traceback(fuzz_data, samples):
    every, refused, faults = fuzz_data.readers(), 0, []
    for name, functions in every.items():
        assert fuzz_data.try_one(samples, name, (samples / name).read_bytes(), functions)[0] == []
    for number in range(100):
        name, data = fuzz_data.case(samples, number, seed=1)
        assert name in every
        found, said = fuzz_data.try_one(samples, name, data, every[name])
        refused, faults = refused + said, faults + [(number, name, text) for text in found]
    assert not faults
    assert refused > 60


def test_cases_are_seeded_and_of_every_file(fuzz_data, samples):
    names = {fuzz_data.case(samples, number, 0)[0] for number in range(40)}
    assert names == set(fuzz_data.readers())
    assert fuzz_data.case(samples, 7, 0) == fuzz_data.case(samples, 7, 0)
    assert any(fuzz_data.case(samples, number, 0) != fuzz_data.case(samples, number, 1) for number in range(10))


def test_a_fault_is_told_and_the_file_put_back(fuzz_data, samples):
    def fails(folder):
        raise KeyError("x")

    found, refused = fuzz_data.try_one(samples, "rows.npy", b"x", [fails])
    assert len(found) == 1 and "KeyError" in found[0] and not refused
    assert np.load(samples / "rows.npy").shape == (fuzz_data.FRAMES, 68, 3)


def test_headers_are_changed_within_their_structure(fuzz_data, samples):
    rng, seen = np.random.default_rng(0), set()
    path = samples / "avatar/stage2.safetensors"
    for _ in range(60):
        data = fuzz_data.mutated(Path("a.safetensors"), path.read_bytes(), rng)
        try:
            size = struct.unpack("<Q", data[:8])[0]
            seen.add(json.dumps(json.loads(data[8 : 8 + size])))
        except (ValueError, struct.error, OverflowError):
            continue
    assert len(seen) > 20
