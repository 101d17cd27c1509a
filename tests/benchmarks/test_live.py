"""The load benchmark with the drawn avatar, for some seconds."""

import asyncio
from pathlib import Path

import psutil
import pytest

import benchmarks.live as bench
from tests.serve.drawn_avatar import Service

EXAMPLE = Path(__file__).parents[2] / "serve" / "page" / "example.mp3"


@pytest.mark.slow
def test_two_conversations_are_measured_and_nothing_is_dropped(monkeypatch):
    monkeypatch.setattr(bench, "UTTERANCES", 1)
    monkeypatch.setattr(bench, "SETTLE_SECONDS", 0.5)
    service = Service()
    try:
        process = psutil.Process(service.process.pid)
        result = asyncio.run(bench.measure(service.url, process, 2, bench.speech(EXAMPLE, 6.0), "video"))
    finally:
        service.stop()
    assert result.conversations == 2 and result.expected == 300
    assert result.dropped <= 15
    assert 0 < result.first_row_beyond_look_ahead < result.first_picture < 1000
    assert 35 < result.gap_p50 < 45
    assert abs(result.offset_end - result.offset_start) < 80
    assert 50 < result.memory_start < 2000
    assert len(result.rows) == 8
