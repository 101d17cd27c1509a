import dataclasses

import numpy as np
import pytest
import torch

from shared.landmarks import JAW, LIPS, MOVING
from stage1_audio2lmk import model as model_module
from stage1_audio2lmk.audio.features import FEATURE_SIZE, features
from stage1_audio2lmk.config import Stage1Config
from stage1_audio2lmk.lips import lip_gap
from stage1_audio2lmk.model import LandmarkModel, expand, new_model
from stage1_audio2lmk.stream import Predictor, predict
from stage1_audio2lmk.transformer import STEM_CONTEXT
from tests.stage1_audio2lmk.conftest import random_model

SPEAKER = torch.tensor([1])
SMALL = Stage1Config(dim=16, layers=1, heads=2, window=4, components=3)


def rows(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(1, count, FEATURE_SIZE, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def test_rows_see_two_frames_ahead_and_no_further(predictor: Predictor) -> None:
    model, x = predictor.model, rows(40)
    changed = x.clone()
    changed[:, 25:] += 1.0
    difference = (model(x, SPEAKER) - model(changed, SPEAKER)).abs().amax((0, 2, 3))
    assert difference[:23].max() == 0
    assert difference[23:].min() > 0


@torch.no_grad()
def test_rows_forget_what_lies_beyond_their_reach(predictor: Predictor) -> None:
    model = predictor.model
    reach, x = STEM_CONTEXT + 2 * (6 - 1), rows(60)  # stem and two blocks of window 6
    changed = x.clone()
    changed[:, 10] += 100.0
    difference = (model(x, SPEAKER) - model(changed, SPEAKER)).abs().amax((0, 2, 3))
    assert difference[10 + reach] > 0
    assert difference[10 + reach + 1 :].max() == 0


def test_eighty_milliseconds_of_sound_ahead(predictor: Predictor, speech: np.ndarray) -> None:
    """The same through the whole path, feature windows included: 80 ms after a frame's own sound nothing reaches it."""
    neutral = np.zeros((68, 3), np.float32)
    changed, sample = speech.copy(), 640 * 50
    changed[sample:] = 0.3 * np.random.default_rng(1).normal(size=len(speech) - sample)
    difference = np.abs(predict(predictor, speech, neutral, blinks=False)
                        - predict(predictor, changed, neutral, blinks=False)).max((1, 2))
    frame, look_ahead = 50, predictor.model.ahead
    assert look_ahead * 40 == 80
    assert difference[: frame - look_ahead].max() < 1e-7
    assert difference[frame - look_ahead] > 1e-6


@torch.no_grad()
def test_around_a_recording_there_is_silence(predictor: Predictor) -> None:
    """Rows with digital silence before and after them give what they give alone: its start and end are no events."""
    model, x = predictor.model, rows(30)
    quiet = torch.from_numpy(features(np.zeros(640 * 60, np.float32)))[None]
    for whole in (torch.cat([x, quiet], 1), torch.cat([x, quiet[:, :2]], 1)):
        torch.testing.assert_close(model(whole, SPEAKER)[:, :30], model(x, SPEAKER), atol=1e-6, rtol=0)
    model.transformer = None  # attention does see whether silence was there before, the kernel does not
    later = model(torch.cat([quiet[:, : model.left + 3], x], 1), SPEAKER)[:, model.left + 3 :]
    torch.testing.assert_close(later, model(x, SPEAKER), atol=1e-6, rtol=0)


@pytest.mark.parametrize("count", [1, 3, 60])
def test_digital_silence_is_one_pose_from_the_first_frame_to_the_last(predictor: Predictor, count: int) -> None:
    """With every weight random, transformer and formants included: nothing pops where a file begins or ends."""
    moved = predict(predictor, np.zeros(640 * count, np.float32), np.zeros((68, 3), np.float32), blinks=False)
    middle = predict(predictor, np.zeros(640 * 100, np.float32), np.zeros((68, 3), np.float32), blinks=False)[50]
    assert np.abs(middle).max() > 1e-4
    np.testing.assert_allclose(moved, np.repeat(middle[None], count, 0), rtol=0, atol=1e-6)


@torch.no_grad()
def test_only_lips_and_jaw_move(predictor: Predictor) -> None:
    moved = predictor.model(rows(5), SPEAKER).abs().amax((0, 1, 3))
    still = sorted(set(range(68)) - set(JAW + LIPS))
    assert moved[still].max() == 0 and moved[JAW + LIPS].min() > 0


@torch.no_grad()
def test_speakers_differ_and_the_unknown_is_one(predictor: Predictor) -> None:
    x = rows(5)
    outputs = [predictor.model(x, torch.tensor([k])) for k in range(3)]
    assert not torch.allclose(outputs[0], outputs[1]) and not torch.allclose(outputs[1], outputs[2])


@torch.no_grad()
def test_formants_can_be_left_out(predictor: Predictor) -> None:
    model = random_model(Stage1Config(dim=32, layers=1, heads=2, components=4, formants=False))
    assert not model.uses_formants and predictor.model.uses_formants
    x = rows(5)
    changed = x.clone()
    changed[..., 320:] += 1.0
    assert torch.equal(model(x, SPEAKER), model(changed, SPEAKER))


def test_size() -> None:
    count = sum(value.numel() for value in new_model(Stage1Config(), 1).parameters())
    assert 0.3e6 < count < 2e6


@torch.no_grad()
@pytest.mark.parametrize("size", [0, 6])
def test_a_share_of_the_prior_is_added(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """The prior looks further than the model itself, both ways; it knows nobody's name, and either may lack log-mel."""
    torch.manual_seed(0)
    prior = random_model(dataclasses.replace(SMALL, kernel_past=7, look_ahead=3, mel_terms=not size), 2, size)
    own = random_model(dataclasses.replace(SMALL, look_ahead=1), 2, size)
    x = torch.randn(1, 30, FEATURE_SIZE + size)
    both = LandmarkModel(own.kernel, own.transformer, prior, 0.6)
    both.silence.copy_(own.silence)
    assert (both.left, both.ahead) == (max(prior.left, own.left), 3) and prior.kernel.left == (0 if size else 7)
    basis, known = own.kernel.basis, prior(x, torch.tensor([0]))[:, :, MOVING].flatten(2)
    known = torch.linalg.lstsq(basis.T, known[0].T).solution.T @ basis  # as near as the own components come to it
    own.kernel.familiar.zero_()  # sound of nobody it knows: all of the prior
    torch.testing.assert_close(both(x, SPEAKER), own(x, SPEAKER) + expand(known), atol=1e-6, rtol=0)
    monkeypatch.setattr(model_module, "FAMILIAR", (-2.0, -1.0))  # sound like its own: its share
    torch.testing.assert_close(both(x, SPEAKER), own(x, SPEAKER) + 0.6 * expand(known), atol=1e-6, rtol=0)
    assert LandmarkModel(own.kernel).share == 0 and not LandmarkModel(own.kernel, share=0.5).share


def test_the_less_familiar_the_more_of_the_prior() -> None:
    model = LandmarkModel(random_model(SMALL).kernel, None, random_model(SMALL), 0.4)
    found = model.share_for(torch.tensor([[-3.0, 0.77], [0.845, 0.92], [1.0, 2.0]]))
    torch.testing.assert_close(found, torch.tensor([[1.0, 1.0], [0.7, 0.4], [0.4, 0.4]]))


@pytest.mark.gpu
@torch.no_grad()
def test_gpu_equals_cpu(predictor: Predictor) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA GPU")
    x = rows(50)
    here = predictor.model(x, SPEAKER)
    there = predictor.model.cuda()(x.cuda(), SPEAKER.cuda()).cpu()
    torch.testing.assert_close(here, there, atol=1e-5, rtol=1e-3)


@torch.no_grad()
def test_lips_come_no_closer_than_closed_lips(predictor: Predictor) -> None:
    model, x = predictor.model, rows(60)
    free = lip_gap(model(x, SPEAKER)[0, :, MOVING])
    model.closed.fill_(float(free.median()))
    torch.testing.assert_close(lip_gap(model(x, SPEAKER)[0, :, MOVING]), free.clamp_min(float(free.median())))
