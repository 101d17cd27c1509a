"""The file of a model: what goes in comes out, built-in encoder and base included, and what does not belong is refused."""

from pathlib import Path

import pytest
import torch

from shared.checkpoint import load_checkpoint, save_checkpoint
from shared.errors import TalkheadError
from stage1_audio2lmk.checkpoint import SHIPPED_BASE, load_model, save_model
from stage1_audio2lmk.config import Stage1Config
from stage1_audio2lmk.encoders.speech_encoder import SpeechEncoder, SpeechEncoderConfig
from stage1_audio2lmk.model import LandmarkModel
from tests.stage1_audio2lmk.conftest import random_model

SMALL = Stage1Config(dim=16, layers=1, heads=2, window=5, components=4)


def with_prior(size: int) -> LandmarkModel:
    prior = random_model(Stage1Config(dim=24, layers=2, heads=2, mel_terms=not size, look_ahead=1), 3, size, points=7)
    own = random_model(SMALL, 1, size, points=5)
    return LandmarkModel(own.kernel, None, prior, 0.35)


@pytest.mark.parametrize("size", [0, 8])
def test_a_model_comes_out_as_it_went_in(tmp_path: Path, size: int) -> None:
    model = with_prior(size)
    encoder = SpeechEncoder(SpeechEncoderConfig(dim=16, layers=1, heads=2, size=8)) if size else None
    save_model(tmp_path / "m", model, ["one"], encoder, SMALL)
    loaded = load_model(tmp_path / "m", "cpu")
    assert loaded.speakers == ["one"] and loaded.model.share == 0.35 and loaded.model.transformer is None
    assert loaded.model.prior is not None and loaded.model.prior.kernel.config == model.prior.kernel.config
    assert loaded.model.state_dict().keys() == model.state_dict().keys()
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], value) and loaded.model.state_dict()[name].dtype == value.dtype
    assert not any(value.requires_grad for value in loaded.model.parameters())
    tensors, meta = load_checkpoint(tmp_path / "m")
    assert (meta["kind"], meta["format"], meta["settings"]["dim"]) == ("stage1", 3, 16)
    if encoder is not None:
        assert isinstance(loaded.encoder, SpeechEncoder) and loaded.encoder.config == encoder.config
        for name, value in encoder.state_dict().items():
            assert tensors[f"encoder.{name}"].dtype == torch.float16
            assert torch.equal(loaded.encoder.state_dict()[name], value.half().float())


def test_a_file_of_an_older_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "old.safetensors"
    for meta in ({"config": {"dim": 32}, "speakers": ["one"]}, {"format": 2}):
        save_checkpoint(path, {"basis": torch.zeros(1)}, {"kind": "stage1", **meta})
        with pytest.raises(TalkheadError) as caught:
            load_model(path, "cpu")
        assert str(caught.value) == f"{path} was made by an older talkhead; run `talkhead stage1 finetune` again"
    save_checkpoint(path, {}, {"kind": "stage1", "format": 4})
    with pytest.raises(TalkheadError) as caught:
        load_model(path, "cpu")
    assert str(caught.value) == f"{path} was made by a newer talkhead: its format is 4, this one reads 3; update talkhead"


def test_parts_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    encoder = SpeechEncoder(SpeechEncoderConfig(dim=16, layers=1, heads=2, size=6))
    save_model(tmp_path / "m", with_prior(8), ["one"], encoder)
    with pytest.raises(TalkheadError, match="m is damaged: its model compares embeddings of 8 numbers, its encoder gives 6"):
        load_model(tmp_path / "m", "cpu")
    save_model(tmp_path / "m", with_prior(0), ["one"], SpeechEncoder(SpeechEncoderConfig(dim=16, layers=1, heads=2, size=8)))
    with pytest.raises(TalkheadError, match="embeddings of 0 numbers, its encoder gives 8"):
        load_model(tmp_path / "m", "cpu")
    mixed = with_prior(8)
    mixed.prior = with_prior(0).prior
    save_model(tmp_path / "m", mixed, ["one"], SpeechEncoder(SpeechEncoderConfig(dim=16, layers=1, heads=2, size=8)))
    with pytest.raises(TalkheadError, match="m is damaged: its parts are for different encoders"):
        load_model(tmp_path / "m", "cpu")


def test_the_shipped_base_is_a_base_with_an_encoder() -> None:
    loaded = load_model(SHIPPED_BASE, "cpu")
    assert SHIPPED_BASE.stat().st_size < 10e6
    assert loaded.model.prior is None and not loaded.model.kernel.config.mel_terms and len(loaded.model.kernel.support_embedding)
    assert isinstance(loaded.encoder, SpeechEncoder) and loaded.encoder.size == loaded.model.size
