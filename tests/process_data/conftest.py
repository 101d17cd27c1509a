import pickle

import pytest

from process_data.actor.actor import make_actor
from process_data.config import ProcessConfig
from process_data.pipeline import process
from shared.clip import Clip


@pytest.fixture(scope="session")
def actor_clip(made_once):
    """A processed clip of three seconds of the synthetic actor, and the truth about it."""
    def make(root):
        truth = make_actor(root, size=256, seconds=3.2, seed=0, quiet=True)
        process(truth.video, root / "clip", config=ProcessConfig(), quiet=True)
        (root / "truth.pickle").write_bytes(pickle.dumps(truth))

    root = made_once("actor", make)
    return Clip(root / "clip"), pickle.loads((root / "truth.pickle").read_bytes())
