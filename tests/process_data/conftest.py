import pytest

from process_data.actor.actor import make_actor
from process_data.config import ProcessConfig
from process_data.pipeline import process


@pytest.fixture(scope="session")
def actor_clip(tmp_path_factory):
    """A processed clip of three seconds of the synthetic actor, and the truth about it."""
    root = tmp_path_factory.mktemp("actor")
    truth = make_actor(root, size=256, seconds=3.2, seed=0, quiet=True)
    return process(truth.video, root / "clip", config=ProcessConfig(), quiet=True), truth
