from pathlib import Path

import numpy as np
import pytest
import torch

from shared.errors import TalkheadError
from shared.training import generator
from stage1_audio2lmk.encoders.teacher import (
    AHEAD,
    PAST,
    WINDOW,
    Teacher,
    by_length,
    parse_teacher,
    target_basis,
    targets_of,
    whisper_mel,
)
from tests.stage1_audio2lmk.tiny_encoders import save_models

pytest.importorskip("transformers")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_models(tmp_path_factory.mktemp("models"), "whisper", "hubert")


def sound(frames: int, seed: int) -> torch.Tensor:
    return 0.1 * torch.randn(640 * frames, generator=generator(seed)) * torch.linspace(0.1, 1, 640 * frames)


def test_mel_is_that_of_the_feature_extractor(models: Path) -> None:
    import transformers

    extractor = transformers.AutoFeatureExtractor.from_pretrained(models / "whisper")
    sounds = [sound(75, seed).numpy() for seed in (1, 2)]  # as long as the extractor wants, which pads
    expected = extractor(sounds, sampling_rate=16000, return_tensors="pt").input_features
    found = whisper_mel(torch.from_numpy(np.stack(sounds)), torch.from_numpy(extractor.mel_filters).float())
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("layer", [1, 2])
def test_rows_are_the_states_of_windows(models: Path, layer: int) -> None:
    """Of each frame's window, encoded alone by transformers' own encoder behind whose sound positions are cut off."""
    import transformers

    teacher = Teacher(str(models / "whisper"), layer, CPU)
    short, long = sound(7, 1), sound(40, 2)
    rows = teacher.rows([short, long])
    assert [tuple(x.shape) for x in rows] == [(7, 16), (40, 16)] and rows[0].dtype == torch.half
    torch.testing.assert_close(rows[1], teacher.rows([long])[0], atol=2e-3, rtol=2e-3)
    full = transformers.AutoModel.from_pretrained(models / "whisper", dtype=torch.float32).encoder.eval()
    padded = torch.cat([torch.zeros(PAST * 640), long, torch.zeros(AHEAD * 640)])
    mel = whisper_mel(padded[None], teacher.filters)[0]
    for frame in (0, 13, 39):
        x = mel[None, :, 4 * frame : 4 * (frame + WINDOW)]
        with torch.no_grad():
            x = torch.nn.functional.gelu(full.conv2(torch.nn.functional.gelu(full.conv1(x)))).mT
            x = x + full.embed_positions.weight[: x.shape[1]]
            for block in full.layers[:layer]:
                x = block(x, None)
        torch.testing.assert_close(rows[1][frame].float(), x[0, 2 * PAST : 2 * PAST + 2].mean(0), atol=5e-3, rtol=5e-3)


def test_targets_have_unit_variance_and_half_whitened_components() -> None:
    rows = torch.randn(4000, 6, generator=generator(0)) * torch.tensor([8.0, 4, 2, 1, 0.5, 0]) + 3
    mean, matrix = target_basis(rows, 4)
    found = (rows - mean) @ matrix
    assert float(found.var(0).sum()) == pytest.approx(1, abs=1e-3)
    spread = found.std(0)
    assert (spread[:-1] / spread[1:]).tolist() == pytest.approx([2**0.5] * 3, rel=0.05)
    assert target_basis(rows)[1].shape == (6, 5)  # what does not vary is no component


def test_targets_of_all_teachers_in_the_order_of_the_recordings(models: Path) -> None:
    teachers = [Teacher(str(models / "whisper"), layer, CPU) for layer in (1, 2)]
    sounds = [sound(frames, frames) for frames in (30, 20, 25)]
    targets = targets_of(teachers, sounds, [0, 2], quiet=True)
    assert targets.shape == (75, 32) and targets.dtype == torch.half
    states = [torch.cat(teacher.rows([sounds[0], sounds[2]])) for teacher in teachers]
    expected = [(teacher.rows([sounds[1]])[0].float() - mean) @ matrix
                for teacher, (mean, matrix) in zip(teachers, map(target_basis, states))]
    found = targets[30:50].float()
    torch.testing.assert_close(found.square().sum(1), torch.cat(expected, 1).square().sum(1), atol=0.02, rtol=0.02)


def test_groups_by_length() -> None:
    assert list(by_length([5, 1, 9, 2, 2], 6)) == [[1, 3, 4], [0], [2]]


def test_refusals(models: Path) -> None:
    assert parse_teacher("a:b:3") == ("a:b", 3)
    for text in ("folder", "folder:", ":2", "folder:-1"):
        with pytest.raises(TalkheadError, match="a teacher is FOLDER:LAYER, found"):
            parse_teacher(text)
    with pytest.raises(TalkheadError, match="has the layers 1 to 2, found 3"):
        Teacher(str(models / "whisper"), 3, CPU)
    with pytest.raises(TalkheadError, match="a model of the kind 'hubert'; a teacher must be a Whisper"):
        Teacher(str(models / "hubert"), 1, CPU)
    assert len(Teacher(str(models / "whisper"), 1, CPU).info()["sha256"]) == 64
