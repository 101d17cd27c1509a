import copy
import dataclasses
import time

import numpy as np
import pytest
import torch

from shared.errors import TalkheadError
from stage1_audio2lmk.audio.dc_blocker import DCBlocker
from stage1_audio2lmk.audio.features import features
from stage1_audio2lmk.config import Stage1Config
from stage1_audio2lmk.model import LandmarkModel
from stage1_audio2lmk.stream import BLOCK, LandmarkStream, ModelStream, Predictor, predict
from tests.stage1_audio2lmk.conftest import random_model

NEUTRAL = np.random.default_rng(3).normal(scale=0.03, size=(68, 3)).astype(np.float32)


def run(stream: LandmarkStream, sound: np.ndarray, sizes: list[int]) -> np.ndarray:
    rows, at, turn = [], 0, 0
    while at < len(sound):
        size = sizes[turn % len(sizes)]
        rows.append(stream.push(sound[at : at + size]))
        at, turn = at + size, turn + 1
    return np.concatenate([*rows, stream.flush()])


def state_bytes(value: object, seen: set[int] | None = None) -> int:
    """Bytes of every array below `value`, the whole buffer where one is a view of it; the model itself is left out."""
    seen = set() if seen is None else seen
    if id(value) in seen or isinstance(value, torch.nn.Module):
        return 0
    seen.add(id(value))
    if isinstance(value, np.ndarray):
        return value.nbytes if value.base is None else state_bytes(value.base, seen)
    if isinstance(value, torch.Tensor):
        return value.untyped_storage().nbytes()
    if isinstance(value, (list, tuple)):
        return sum(state_bytes(item, seen) for item in value)
    return sum(state_bytes(item, seen) for item in vars(value).values()) if hasattr(value, "__dict__") else 0


@pytest.mark.parametrize("sizes", [[0, 160], [639], [640], [641, 1, 0, 5000], [16000], [77, 3001, 12, 640]])
def test_any_chunks_equal_the_whole(predictor: Predictor, speech: np.ndarray, sizes: list[int]) -> None:
    whole = predict(predictor, speech[:-100], NEUTRAL, seed=5)
    rows = run(LandmarkStream(predictor, NEUTRAL, seed=5), speech[:-100], sizes)
    assert rows.dtype == np.float32 and rows.shape == whole.shape == (100, 68, 3)
    np.testing.assert_allclose(rows, whole, rtol=0, atol=1e-5)


def test_single_samples_and_random_chunks_equal_the_whole(predictor: Predictor, speech: np.ndarray) -> None:
    rng = np.random.default_rng(0)
    for sound, sizes in ((speech[:8000], [1]), (speech, [int(n) for n in rng.integers(0, 3000, 200)])):
        whole = predict(predictor, sound, NEUTRAL)
        np.testing.assert_allclose(run(LandmarkStream(predictor, NEUTRAL), sound, sizes), whole, rtol=0, atol=1e-5)


@pytest.mark.parametrize("changes", [{}, {"kernel_past": 7}, {"look_ahead": 0, "kernel_past": 0}, {"look_ahead": 3},
                                     {"layers": 0}, {"window": 1}, {"formants": False}, {"size": 8},
                                     {"size": 8, "mel_terms": False, "look_ahead": 0}])
def test_rows_are_those_of_the_network_on_everything(speech: np.ndarray, changes: dict) -> None:
    """The reference is one pass of `LandmarkModel.forward`, which knows neither caches nor pieces."""
    torch.manual_seed(0)
    size = changes.pop("size", 0)
    config = Stage1Config(**{"dim": 32, "layers": 2, "heads": 2, "window": 9, "components": 4} | changes)
    prior = random_model(dataclasses.replace(config, kernel_past=6), size=size)
    model = random_model(config, size=size)
    with_prior = LandmarkModel(model.kernel, model.transformer, prior, 0.5)
    with_prior.silence.copy_(model.silence)
    rows = features(speech[: 640 * 70])
    embedding = np.random.default_rng(0).normal(size=(70, size)).astype(np.float32)
    for tried in (model, with_prior):
        with torch.no_grad():
            whole = tried(torch.from_numpy(np.concatenate([rows, embedding], 1))[None], torch.tensor([1]))[0].numpy()
        for cuts in ([], [1, 2, 3, 4, 5, 40], [30, 31]):
            stream, late = ModelStream(tried, 1, tried.prepare()), [max(0, cut - 3) for cut in cuts]
            parts = [stream.push(*pair) for pair in zip(np.split(rows, cuts), np.split(embedding, late), strict=True)]
            found = np.concatenate([*parts, stream.flush(embedding[:0])])
            np.testing.assert_allclose(found, whole, rtol=0, atol=1e-5)


def test_without_a_transformer_there_are_no_formants(predictor: Predictor, speech: np.ndarray) -> None:
    model = copy.deepcopy(predictor.model)
    model.transformer = None
    stream = LandmarkStream(Predictor(model, predictor.speakers, predictor.device), NEUTRAL, blinks=False)
    assert stream.state.features.voice is None  # nothing reads formants
    rows = run(stream, speech, [3000]) - NEUTRAL
    with torch.no_grad():
        whole = model(torch.from_numpy(features(DCBlocker().pass_through(speech)))[None], torch.tensor([0]))[0].numpy()
    np.testing.assert_allclose(rows, whole, rtol=0, atol=1e-5)


def test_rows_come_out_as_soon_as_they_are_certain(predictor: Predictor, speech: np.ndarray) -> None:
    """Latency: 80 ms of look-ahead and the frame itself, not a sample more."""
    stream = LandmarkStream(predictor, NEUTRAL)
    assert len(stream.push(speech[: 640 * 3 - 1])) == 0
    assert len(stream.push(speech[640 * 3 - 1 : 640 * 3])) == 1
    counts = [len(stream.push(speech[640 * k : 640 * (k + 1)])) for k in range(3, 12)]
    assert counts == [1] * 9
    assert len(stream.flush()) == 2


@pytest.mark.parametrize("count, frames", [(0, 1), (1, 1), (640, 1), (641, 2)])
def test_short_sound(predictor: Predictor, count: int, frames: int) -> None:
    stream = LandmarkStream(predictor, NEUTRAL)
    assert len(stream.push(np.full(count, 0.1, np.float32))) == 0
    rows = stream.flush()
    assert rows.shape == (frames, 68, 3) and np.isfinite(rows).all()


def test_streams_share_the_kernels_table(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    first = LandmarkStream(predictor, NEUTRAL)
    monkeypatch.setattr(type(predictor.model.kernel), "prepare", lambda _: pytest.fail("made again"))
    second = LandmarkStream(predictor, NEUTRAL)
    second.reset()
    assert first.state.model.prepared is second.state.model.prepared


def test_reset_begins_anew(predictor: Predictor, speech: np.ndarray) -> None:
    stream = LandmarkStream(predictor, NEUTRAL, seed=4)
    first = run(stream, speech, [7000])
    assert len(stream.flush()) == 0
    with pytest.raises(TalkheadError, match=r"flushed; call reset\(\)"):
        stream.push(speech)
    stream.reset()
    np.testing.assert_array_equal(run(stream, speech, [7000]), first)
    stream.reset()
    stream.push(0.3 * speech[:12345])
    stream.reset()
    np.testing.assert_array_equal(run(stream, speech, [7000]), first)


def test_state_does_not_grow_over_minutes(predictor: Predictor, speech: np.ndarray) -> None:
    stream = LandmarkStream(predictor, NEUTRAL)
    sizes = []
    for _ in range(45):  # three minutes
        for start in range(0, len(speech), 16000):
            stream.push(speech[start : start + 16000])
        sizes.append(state_bytes(stream))
    assert len(set(sizes[2:])) == 1 and sizes[-1] - state_bytes(predictor.model.prepare()) < 100_000


def test_a_long_chunk_leaves_no_larger_state_than_short_ones(predictor: Predictor, speech: np.ndarray) -> None:
    stream, other = LandmarkStream(predictor, NEUTRAL), LandmarkStream(predictor, NEUTRAL)
    long = np.tile(speech, 10)
    stream.push(long)
    for start in range(0, len(long), 16000):
        other.push(long[start : start + 16000])
    assert state_bytes(stream) == state_bytes(other)


def test_a_long_chunk_goes_through_in_blocks(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    forward = ModelStream.push

    def watched(self: ModelStream, features: np.ndarray, embedding: np.ndarray) -> np.ndarray:
        seen.append(len(features))
        return forward(self, features, embedding)

    monkeypatch.setattr(ModelStream, "push", watched)
    assert len(LandmarkStream(predictor, NEUTRAL).push(np.zeros(640 * 2000, np.float32))) == 1998
    assert len(seen) == 8 and max(seen) == BLOCK


def test_a_constant_offset_is_not_heard(predictor: Predictor, speech: np.ndarray) -> None:
    plain = predict(predictor, speech, NEUTRAL, blinks=False)
    np.testing.assert_allclose(predict(predictor, speech + 0.2, NEUTRAL, blinks=False), plain, atol=2e-5)
    silence = predict(predictor, np.zeros(16000, np.float32), NEUTRAL, blinks=False)
    np.testing.assert_allclose(predict(predictor, np.full(16000, 0.2, np.float32), NEUTRAL, blinks=False), silence, atol=1e-6)


@pytest.mark.parametrize("kind", ["nan", "infinite", "huge", "clipped", "noise", "impulse", "tone", "offset step"])
def test_bad_sound_gives_finite_rows(predictor: Predictor, speech: np.ndarray, kind: str) -> None:
    sound = speech.copy()
    if kind in ("nan", "infinite"):
        sound[::97] = np.nan if kind == "nan" else np.inf
    else:
        rng = np.random.default_rng(0)
        sound = {"huge": 1e30 * sound, "clipped": np.clip(30 * sound, -1, 1), "impulse": np.eye(1, 64000, 32000)[0],
                 "noise": rng.normal(size=64000), "tone": np.sin(np.arange(64000) * 0.4),
                 "offset step": np.repeat([-0.9, 0.9], 32000)}[kind]
    stream = LandmarkStream(predictor, NEUTRAL)
    rows = run(stream, np.asarray(sound, np.float32), [5000])
    assert rows.shape == (100, 68, 3) and np.isfinite(rows).all()
    later = LandmarkStream(predictor, NEUTRAL)
    later.push(np.asarray(sound, np.float32))
    calm = later.push(np.zeros(16000 * 8, np.float32))[-5:]  # bad sound does not stay in the state
    rest = LandmarkStream(predictor, NEUTRAL).push(np.zeros(16000 * 8, np.float32))[-5:]
    lips = list(range(17)) + list(range(48, 68))
    np.testing.assert_allclose(calm[:, lips], rest[:, lips], atol=1e-5)


@pytest.mark.parametrize("samples", [np.zeros((10, 2), np.float32), np.zeros(10, np.int16)])
def test_other_samples_are_refused(predictor: Predictor, samples: np.ndarray) -> None:
    with pytest.raises(TalkheadError, match=f"mono samples .* found {samples.dtype}"):
        LandmarkStream(predictor, NEUTRAL).push(samples)


def test_keeps_up_with_the_sound_frame_by_frame(speech: np.ndarray) -> None:
    """The network in its usual size on one core; the goal is 0.1 of real time, the limit allows for a loaded machine."""
    torch.manual_seed(0)
    model = random_model(Stage1Config(), points=Stage1Config.support_points)
    stream = LandmarkStream(Predictor(model, ["one"], torch.device("cpu")), NEUTRAL)
    stream.push(speech[:6400])
    start = time.process_time()
    run(stream, speech, [640])
    assert (time.process_time() - start) / (len(speech) / 16000) < 0.3
