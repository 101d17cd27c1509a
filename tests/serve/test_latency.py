"""`talkhead latency` with real live workers and a small avatar under two names."""

import shutil

import pytest

from shared.files import read_json
from tests.commands import talkhead


@pytest.mark.slow
def test_conversations_are_spread_over_the_avatars(chain, tmp_path):
    for name in ("one", "two"):
        shutil.copytree(chain / "me.avatar", tmp_path / f"{name}.avatar")
    said = talkhead("latency", "one.avatar", "two.avatar", "--conversations", 3, "--minute", 3, "--live-workers", 1, "--codec",
                    "jpeg", "--device", "cpu", "--audio", chain / "unheard.wav", "--json", "figures.json", cwd=tmp_path)
    figures = read_json(tmp_path / "figures.json")
    assert list(figures) == ["jpeg pictures"] and figures["jpeg pictures"]["conversations"] == 3
    assert figures["jpeg pictures"]["missing"] < 1 and figures["jpeg pictures"]["first_ms"] > 0
    assert "1 live workers" in said
