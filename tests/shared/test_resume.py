"""The state of a stopped training: saved and loaded exactly, and refused by any other training with one sentence."""

import pytest
import torch

from shared.checkpoint import save_checkpoint
from shared.errors import TalkheadError
from shared.resume import STATE, TrainState
from shared.training import ema_update

INPUTS = {"clip": "a", "settings": {"steps": 5, "betas": (0.9, 0.99)}}


def small_training():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = torch.nn.Linear(3, 2)
    return model, torch.optim.Adam(model.parameters(), lr=0.1)


def advance(model, optimizer, steps):
    for k in range(steps):
        optimizer.zero_grad()
        (model(torch.full((1, 3), 0.3 * k + 0.1)) - 1).square().sum().backward()
        optimizer.step()


def test_what_was_saved_comes_back_exactly(tmp_path):
    state = TrainState(tmp_path, INPUTS)
    assert state.load() is None
    model, optimizer = small_training()
    advance(model, optimizer, 2)
    state.save({"model": model.state_dict(), "rng": torch.arange(3)}, {"optimizer": optimizer}, step=2, best=[1.5, None])
    saved = TrainState(tmp_path, INPUTS).load()
    other, its_optimizer = small_training()
    other.load_state_dict(saved.group("model"))
    saved.restore_optimizer("optimizer", its_optimizer)
    assert saved.progress == {"step": 2, "best": [1.5, None]} and saved.tensors["rng"].tolist() == [0, 1, 2]
    assert saved.group("absent") == {}
    for one in ((model, optimizer), (other, its_optimizer)):
        advance(*one, 3)
    assert torch.equal(model.weight, other.weight) and torch.equal(model.bias, other.bias)
    state.remove()
    assert state.load() is None and list(tmp_path.iterdir()) == []


def test_seconds_of_interrupted_runs_count(tmp_path):
    first = TrainState(tmp_path, INPUTS)
    first.save({}, {})
    spent = first.seconds
    again = TrainState(tmp_path, INPUTS)
    assert again.seconds < spent + 1
    again.load()
    assert again.seconds > 0 and again._seconds_before <= spent


@pytest.mark.parametrize(("changed", "what"), [
    ({"clip": "b"}, "another clip"), ({"settings": {}}, "other settings"), ({"head": "c"}, "another head"),
    ({"clip": "b", "settings": {}}, "another clip and other settings")])
def test_a_training_of_anything_else_is_refused_by_name(tmp_path, changed, what):
    TrainState(tmp_path, INPUTS).save({}, {}, step=3)
    with pytest.raises(TalkheadError, match=f"holds an unfinished training with {what}; repeat that one to finish it, or add "
                                            "--overwrite to start anew$"):
        TrainState(tmp_path, INPUTS | changed).load()


@pytest.mark.parametrize("meta", [
    {"inputs": {"clip": "a", "settings": {"steps": 5, "betas": [0.9, 0.99]}}, "adam": {}, "history": {"step": 3}},  # stage 1
    {"inputs": {"clip": "a", "settings": {"steps": 5, "betas": [0.9, 0.99]}}, "seconds": 3.0, "step": 3, "optimizer": {}}])
def test_a_state_of_an_earlier_version_is_refused(tmp_path, meta):
    save_checkpoint(tmp_path / STATE, {}, meta)
    with pytest.raises(TalkheadError, match="an unfinished training with another version of talkhead; .*--overwrite"):
        TrainState(tmp_path, INPUTS).load()


def test_the_fingerprint_tells_inputs_apart(tmp_path):
    state = TrainState(tmp_path, INPUTS)
    assert state.fingerprint("clip") == TrainState(tmp_path, {"clip": "a"}).fingerprint("clip")
    assert len({state.fingerprint(), state.fingerprint("clip"), TrainState(tmp_path, {"clip": "b"}).fingerprint("clip")}) == 3


def test_an_average_follows_quickly_at_first_and_copies_integers():
    model = torch.nn.BatchNorm1d(2)
    averaged = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        model.weight.fill_(2.0)
        model.num_batches_tracked.fill_(7)
    ema_update(averaged, model, 0, 0.995)
    assert averaged["weight"].tolist() == pytest.approx([1.9, 1.9]) and averaged["num_batches_tracked"] == 7
    ema_update(averaged, model, 10**6, 0.5)
    assert averaged["weight"].tolist() == pytest.approx([1.95, 1.95])
