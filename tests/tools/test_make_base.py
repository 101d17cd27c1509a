import torch

from stage1_audio2lmk.config import Stage1Config
from stage1_audio2lmk.model import LandmarkModel
from tests.stage1_audio2lmk.conftest import random_model
from tools.make_base import without_prior


@torch.no_grad()
def test_kernel_and_a_share_of_a_transformer_become_one_model() -> None:
    """The same displacement for an unknown speaker, without a prior."""
    config = Stage1Config(dim=16, layers=1, heads=2, components=3)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        own, learned = random_model(config, 1, 8), random_model(config, 2, 8, points=0)
        rows = torch.randn(1, 20, 346)
    learned.kernel.bias.zero_()  # as after pretraining
    learned.kernel.rest += 0.01
    model = LandmarkModel(own.kernel, None, learned, 0.6)
    model.silence.copy_(own.silence)
    expected = model(rows, torch.tensor([1]))
    found = without_prior(model)
    assert found.prior is None and found.transformer is not None
    torch.testing.assert_close(found(rows, torch.tensor([0])), expected, atol=1e-7, rtol=0)
    assert expected.abs().max() > 1e-3
