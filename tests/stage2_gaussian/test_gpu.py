"""What only a GPU shows: graphs give what eager code gives, in rendering and in training."""

import pytest
import torch

from shared.clip import Clip
from stage2_gaussian.checkpoint import load_head, save_head
from stage2_gaussian.config import Stage2Config, resolve
from stage2_gaussian.dataset import HeadDataset
from stage2_gaussian.rasterize import rasterize
from stage2_gaussian.render import _graphs, render_head
from stage2_gaussian.train import Trainer, new_head

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")]
CONFIG = Stage2Config(splats=1500, steps=200, rank=8, hidden=32, batch=4, fits=0)


@pytest.fixture(params=["cartoon", "looking_cartoon"])
def clip(request) -> Clip:
    """A clip without and one with a gaze."""
    return request.getfixturevalue(request.param)


def trainer_on_gpu(clip: Clip) -> Trainer:
    device = torch.device("cuda")
    indices = clip.split("train")
    config = resolve(CONFIG, device, clip.info.width, clip.info.height)
    data = HeadDataset(clip, indices, device)
    return Trainer(new_head(clip, indices, config).to(device), data, config)


def test_a_graph_renders_what_eager_code_renders(clip, tmp_path):
    trainer = trainer_on_gpu(clip)
    for _ in range(20):
        trainer.advance()
    save_head(tmp_path / "head.safetensors", trainer.head, {})
    head, data = load_head(tmp_path / "head.safetensors", "cuda"), trainer.data
    assert (head.blend.gaze is not None) == clip.gaze.is_file()
    for rows in (slice(0, 1), slice(3, 7), slice(8, 9)):
        landmarks, poses = data.landmarks[rows], data.poses[rows]
        for gaze in (None, data.gaze[rows]):
            with torch.no_grad():
                splats = head(landmarks, poses, gaze=gaze)._asdict()
                expected = rasterize(**splats, intrinsics=data.intrinsics, width=96, height=96)
                found = render_head(head, landmarks, poses, data.intrinsics, 96, 96, gaze=gaze)
            assert torch.allclose(found, torch.cat(expected, -1), atol=1e-5)
    assert len(_graphs[head]) == (4 if clip.gaze.is_file() else 2)


def test_training_with_graphs_follows_training_without(clip, monkeypatch):
    graphed = trainer_on_gpu(clip)
    losses = [float(sum(graphed.advance()[0].values())) for _ in range(60)]
    assert graphed.captured
    monkeypatch.setattr(Trainer, "_capture", lambda self, inputs: None)
    eager = trainer_on_gpu(clip)
    expected = [float(sum(eager.advance()[0].values())) for _ in range(60)]
    assert not eager.captured and losses[0] == pytest.approx(expected[0], rel=1e-4)
    assert losses == pytest.approx(expected, rel=0.03)  # atomics in the backward pass differ from run to run


def test_out_of_memory_halves_the_batch(cartoon, tight_memory):
    trainer = trainer_on_gpu(cartoon)
    with pytest.warns(UserWarning, match="goes on with 1 frames a step"):
        trainer.advance()
    assert trainer.batch_size == 1 and trainer.step == 1
