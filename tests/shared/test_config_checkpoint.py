import subprocess
import sys
import time
from dataclasses import dataclass, field

import pytest
import torch

from shared.checkpoint import load_checkpoint, pack_optimizer, save_checkpoint, unpack_optimizer
from shared.config import config_from_dict, config_to_dict, load_config
from shared.errors import TalkheadError
from shared.lock import PARTIAL


@dataclass(frozen=True)
class Model:
    dim: int = 64
    dropout: float = 0.1


@dataclass(frozen=True)
class Config:
    steps: int = 10
    name: str | None = None
    rates: tuple[float, ...] = (1e-3, 1e-4)
    model: Model = field(default_factory=Model)


def test_defaults_yaml_and_overrides_stack(tmp_path):
    (tmp_path / "c.yaml").write_text("steps: 5\nmodel:\n  dim: 32\n")
    config = load_config(Config, tmp_path / "c.yaml", ["model.dropout=0", "rates=[1e-2, 1]", "name=x"])
    assert config == Config(5, "x", (0.01, 1.0), Model(32, 0.0))
    assert config_from_dict(Config, config_to_dict(config)) == config


@pytest.mark.parametrize("override, message", [
    ("model.dmi=3", "unknown key 'dmi'; did you mean 'dim'?"),
    ("stesp=3", "did you mean 'steps'?"),
    ("steps=many", "steps should be int, found 'many'"),
    ("model=3", "should be a group of keys, found 3"),
    ("steps", "takes key=value, found 'steps'"),
    ("rates=1", "should be a list, found 1"),
])
def test_wrong_overrides_are_refused(override, message):
    with pytest.raises(TalkheadError) as caught:
        load_config(Config, None, [override])
    assert message in str(caught.value)


def test_optimizer_state_survives_a_checkpoint_exactly(tmp_path):
    def problem():
        torch.manual_seed(0)
        weight = torch.nn.Parameter(torch.randn(3))
        return weight, torch.optim.Adam([weight], lr=0.1)

    def step(weight, optimizer):
        optimizer.zero_grad()
        (weight**2).sum().backward()
        optimizer.step()

    straight, optimizer = problem()
    for _ in range(6):
        step(straight, optimizer)

    first, optimizer = problem()
    for _ in range(3):
        step(first, optimizer)
    tensors, meta = pack_optimizer(optimizer, "adam")
    save_checkpoint(tmp_path / "c.safetensors", {"weight": first, **tensors}, {"step": 3, "adam": meta})

    tensors, meta = load_checkpoint(tmp_path / "c.safetensors")
    second, optimizer = problem()
    second.data.copy_(tensors["weight"])
    unpack_optimizer(optimizer, tensors, meta["adam"], "adam")
    for _ in range(3):
        step(second, optimizer)
    assert torch.equal(second, straight)


def test_damaged_checkpoints_are_refused(tmp_path):
    path = tmp_path / "c.safetensors"
    save_checkpoint(path, {"a": torch.arange(1000.0)}, {})
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(TalkheadError, match="not a talkhead checkpoint, or it is damaged"):
        load_checkpoint(path)
    path.write_bytes(b"junk")
    with pytest.raises(TalkheadError, match="damaged"):
        load_checkpoint(path)
    with pytest.raises(TalkheadError, match="does not exist"):
        load_checkpoint(tmp_path / "none.safetensors")


SAVE_FOR_EVER = """
import sys, torch
from shared.checkpoint import save_checkpoint
tensors = {"a": torch.zeros(12 << 20)}
while True:
    save_checkpoint(sys.argv[1], tensors, {})
    print("saved", flush=True)
"""


def test_a_kill_while_a_checkpoint_is_saved_leaves_only_files_that_are_cleared_away(tmp_path):
    """safetensors' own save_file writes to a name of its own, .tmpXXXXXX, that nothing would clear away."""
    for kill in range(4):
        with subprocess.Popen([sys.executable, "-c", SAVE_FOR_EVER, str(tmp_path / "a.safetensors")],
                              stdout=subprocess.PIPE) as child:
            child.stdout.readline()
            time.sleep(.013 * kill)
            child.kill()
    names = {path.name for path in tmp_path.iterdir()} - {"a.safetensors"}
    assert all(PARTIAL.fullmatch(name) for name in names), names
    tensors, _ = load_checkpoint(tmp_path / "a.safetensors")
    assert len(tensors["a"]) == 12 << 20
