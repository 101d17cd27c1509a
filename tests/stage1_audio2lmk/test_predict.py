import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from shared.checkpoint import save_checkpoint
from shared.errors import TalkheadError
from shared.landmarks import BROW_LEFT, BROW_RIGHT, JAW, LIPS, eye_opening
from stage1_audio2lmk.checkpoint import save_model
from stage1_audio2lmk.stream import Predictor, iter_predict, load_predictor, predict


@pytest.fixture
def neutral() -> np.ndarray:
    """(1,68,3) a face whose lids are 1 cm apart."""
    rest = np.random.default_rng(3).normal(scale=0.03, size=(1, 68, 3)).astype(np.float32)
    for upper, lower in ((37, 41), (38, 40), (43, 47), (44, 46)):
        rest[0, upper, 1], rest[0, lower, 1] = 0.005, -0.005
    return rest


def chunks(sound: np.ndarray, sizes: list[int]) -> Iterator[np.ndarray]:
    at = 0
    while at < len(sound):
        size = sizes[at % len(sizes)]
        yield sound[at : at + size]
        at += size


@pytest.mark.parametrize("sizes", [[160], [639], [641, 1, 5000], [16000], [77, 3001, 12, 640]])
def test_chunks_equal_the_whole(predictor: Predictor, speech: np.ndarray, neutral: np.ndarray, sizes: list[int]) -> None:
    whole = predict(predictor, speech[:-100], neutral, seed=5)
    parts = list(iter_predict(predictor, chunks(speech[:-100], sizes), neutral, seed=5))
    np.testing.assert_allclose(np.concatenate(parts), whole, atol=1e-5)
    assert len(whole) == -(-(len(speech) - 100) // 640)


@pytest.mark.parametrize("count, frames", [(0, 1), (1, 1), (639, 1), (640, 1), (641, 2), (6400, 10)])
def test_length(predictor: Predictor, neutral: np.ndarray, count: int, frames: int) -> None:
    rows = predict(predictor, np.full(count, 0.01, np.float32), neutral)
    assert rows.shape == (frames, 68, 3) and rows.dtype == np.float32 and np.isfinite(rows).all()


def test_long_sound_in_bounded_memory(predictor: Predictor, speech: np.ndarray, neutral: np.ndarray) -> None:
    """A minute more costs no memory beyond one chunk: what an hour needs is what 20 seconds need."""

    def peak(pieces: int) -> int:
        sound = (speech for _ in range(pieces))
        tracemalloc.start()
        rows = sum(len(part) for part in iter_predict(predictor, sound, neutral))
        highest = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert rows == 100 * pieces
        return highest

    short = peak(5)
    assert peak(20) < 1.05 * short + 10_000


def test_blinks_follow_the_seed_and_move_lids_only(predictor: Predictor, neutral: np.ndarray) -> None:
    sound = np.zeros(20 * 16000, np.float32)
    first, again, other, none = (predict(predictor, sound, neutral, seed=s, blinks=b)
                                 for s, b in ((1, True), (1, True), (2, True), (1, False)))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0.001
    np.testing.assert_array_equal(first[:, JAW + LIPS], none[:, JAW + LIPS])
    assert eye_opening(none).std() < 1e-6
    assert eye_opening(first).min() < 0.001 < 0.009 < np.median(eye_opening(first))
    still = BROW_RIGHT + BROW_LEFT + list(range(27, 36))
    np.testing.assert_allclose(first[:, still], np.repeat(neutral[:, still], len(first), 0), atol=1e-7)


def test_any_neutral_and_both_shapes(predictor: Predictor, speech: np.ndarray, neutral: np.ndarray) -> None:
    flat = predict(predictor, speech, neutral[0], blinks=False)
    np.testing.assert_array_equal(flat, predict(predictor, speech, neutral, blinks=False))
    shifted = predict(predictor, speech, neutral + 0.01, blinks=False)
    np.testing.assert_allclose(shifted - flat, 0.01, atol=1e-6)


def test_named_and_unknown_speakers(predictor: Predictor, speech: np.ndarray, neutral: np.ndarray) -> None:
    unknown = predict(predictor, speech, neutral, blinks=False)
    np.testing.assert_array_equal(unknown, predict(predictor, speech, neutral, blinks=False, speaker="nobody"))
    assert np.abs(unknown - predict(predictor, speech, neutral, blinks=False, speaker="second")).max() > 1e-5


def test_keeps_up_with_the_sound(predictor: Predictor, speech: np.ndarray, neutral: np.ndarray) -> None:
    start = time.process_time()  # of one thread; a busy machine makes no difference
    list(iter_predict(predictor, chunks(speech, [1600]), neutral))
    assert time.process_time() - start < 4


def test_saved_model_predicts_the_same(predictor: Predictor, speech: np.ndarray, neutral: np.ndarray,
                                       tmp_path: Path) -> None:
    save_model(tmp_path / "m.safetensors", predictor.model, predictor.speakers)
    loaded = load_predictor(tmp_path / "m.safetensors", torch.device("cpu"))
    assert loaded.speakers == ["first", "second"]
    np.testing.assert_array_equal(predict(loaded, speech, neutral), predict(predictor, speech, neutral))


def test_a_wrong_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TalkheadError, match="does not exist"):
        load_predictor(tmp_path / "none.safetensors", torch.device("cpu"))
    save_checkpoint(tmp_path / "head.safetensors", {"x": torch.zeros(1)}, {"kind": "stage2"})
    with pytest.raises(TalkheadError, match="stage2"):
        load_predictor(tmp_path / "head.safetensors", torch.device("cpu"))
