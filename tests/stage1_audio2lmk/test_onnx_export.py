"""The exported graph, run by onnxruntime as docs/formats.md says, against `LandmarkStream`."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from cli import cli
from shared.errors import TalkheadError
from shared.landmarks import MOVING
from stage1_audio2lmk.audio.dc_blocker import DCBlocker
from stage1_audio2lmk.audio.features import FEATURE_SIZE, features, silence_row
from stage1_audio2lmk.checkpoint import load_model, save_model
from stage1_audio2lmk.config import Stage1Config
from stage1_audio2lmk.encoders.speech_encoder import SpeechEncoder, SpeechEncoderConfig
from stage1_audio2lmk.model import LandmarkModel
from stage1_audio2lmk.onnx_export import export_onnx, make_step
from stage1_audio2lmk.stream import LandmarkStream, Predictor
from tests.stage1_audio2lmk.conftest import random_model

CPU = torch.device("cpu")
SMALL = Stage1Config(dim=32, layers=2, heads=2, window=9, components=4, formants=False)


def encoder_of(size: int, window: int = 7, look_ahead: int = 2) -> SpeechEncoder:
    made = SpeechEncoder(SpeechEncoderConfig(dim=24, layers=2, heads=2, window=window, size=size, look_ahead=look_ahead))
    made.mean.fill_(-8.0)
    made.scale.fill_(3.0)
    return made.eval().requires_grad_(False)


def saved(path: Path, case: str) -> Path:
    """A checkpoint whose every weight is random."""
    torch.manual_seed(0)
    if case == "everything":  # an encoder, a prior with another kernel, two transformers, formants
        prior = random_model(dataclasses.replace(SMALL, mel_terms=False, window=5), size=8)
        own = random_model(dataclasses.replace(SMALL, formants=True, kernel_past=6), size=8)
        model, encoder = LandmarkModel(own.kernel, own.transformer, prior, 0.5), encoder_of(8)
    elif case == "as made by default":  # no transformer was kept: log-mel is all that goes in
        prior, own = random_model(dataclasses.replace(SMALL, mel_terms=False), size=8), random_model(SMALL, size=8)
        prior.transformer = None
        model, encoder = LandmarkModel(own.kernel, None, prior, 0.5), encoder_of(8, look_ahead=3)
    elif case == "window of one":
        model, encoder = random_model(dataclasses.replace(SMALL, window=1, look_ahead=0), size=8), encoder_of(8, 1, 0)
    else:  # without an encoder
        model, encoder = random_model(SMALL), None
    model.silence[:FEATURE_SIZE] = torch.from_numpy(silence_row().copy())
    if encoder is not None:
        quiet = np.repeat(silence_row()[None], 40, axis=0)
        model.silence[FEATURE_SIZE:] = torch.from_numpy(encoder.encode(np.zeros(0, np.float32), quiet)[-1])
    save_model(path, model, ["one"], encoder)
    return path


def long_speech(seconds: int) -> np.ndarray:
    """(n,) harmonics that glide, pause and hiss."""
    rng = np.random.default_rng(1)
    time = np.arange(seconds * 16000) / 16000
    phase = 2 * np.pi * np.cumsum(120 + 40 * np.sin(1.3 * time)) / 16000
    voice = sum(np.sin(k * phase) / k for k in range(1, 20)) * (np.sin(2 * np.pi * 0.7 * time) > -0.5)
    return (0.1 * voice + 0.01 * rng.normal(size=len(time))).astype(np.float32)


def run_graph(path: Path, rows: np.ndarray, sizes: list[int]) -> np.ndarray:
    """Feature rows (T, 338) -> displacement (T, 68, 3): the loop of docs/formats.md."""
    runtime = pytest.importorskip("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1
    session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    said: dict[str, Any] = json.loads(session.get_modelmeta().custom_metadata_map["talkhead"])
    silence = np.full(said["width"], said["silence"]["log_mel"], np.float32)
    silence[320:] = said["silence"]["formants"]
    every = np.concatenate([rows[:, : said["width"]], np.repeat(silence[None], said["latency"], axis=0)])
    state = {name: np.zeros(shape, np.int32 if name == "count" else np.float32) for name, shape in said["states"].items()}
    out, at, turn = [], 0, 0
    while at < len(every):
        size = sizes[turn % len(sizes)]
        moved, *after = session.run(None, {"rows": every[at : at + size], **state})
        state = dict(zip(state, after, strict=True))
        assert {name: list(value.shape) for name, value in state.items()} == said["states"]
        out.append(moved)
        at, turn = at + size, turn + 1
    return np.concatenate(out)[said["latency"] :]


@pytest.mark.slow
@pytest.mark.parametrize("case", ["as made by default", "everything", "without an encoder", "window of one"])
def test_the_graph_gives_what_the_stream_gives(tmp_path: Path, case: str) -> None:
    """To 1e-4 of the largest displacement, 20 s of sound, one to seven rows a call."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    checkpoint = saved(tmp_path / "model.safetensors", case)
    export_onnx(checkpoint, tmp_path / "model.onnx")
    loaded = load_model(checkpoint, CPU)
    sound = long_speech(20)
    stream = LandmarkStream(Predictor(loaded.model, ["one"], CPU, loaded.encoder), np.zeros((68, 3), np.float32), blinks=False)
    known = np.concatenate([stream.push(sound), stream.flush()])
    rows = features(DCBlocker().pass_through(sound))
    scale = np.abs(known).max()
    for sizes in ([1], [1, 2, 3, 4, 5, 6, 7], [7], [250]):
        found = run_graph(tmp_path / "model.onnx", rows, sizes)
        assert found.dtype == np.float32 and found.shape == known.shape == (500, 68, 3)
        np.testing.assert_allclose(found, known, rtol=0, atol=1e-4 * scale)
    assert known[:, MOVING].std(0).max() > 0.05 * scale  # it moves


@pytest.mark.parametrize("case", ["everything", "as made by default", "window of one", "without an encoder"])
def test_the_graphs_function_gives_what_the_stream_gives(tmp_path: Path, case: str) -> None:
    """The same without onnxruntime and its exporter, in less time."""
    loaded = load_model(saved(tmp_path / "model.safetensors", case), CPU)
    predictor = Predictor(loaded.model, ["one"], CPU, loaded.encoder)
    step, sound = make_step(predictor), long_speech(4)
    stream = LandmarkStream(predictor, np.zeros((68, 3), np.float32), blinks=False)
    known = np.concatenate([stream.push(sound), stream.flush()])
    rows = torch.from_numpy(features(DCBlocker().pass_through(sound)))[:, : step.width]
    rows = torch.cat([rows, step.quiet.expand(step.latency, -1)])
    for sizes in ([1] * 200, [1, 2, 3, 4, 5, 6, 7] * 4):
        state = [torch.zeros(kept.shape, dtype=kept.dtype) for kept in step.states()]
        out = []
        for part in rows.split([*sizes, len(rows) - sum(sizes)] if sum(sizes) < len(rows) else 1):
            with torch.inference_mode():
                moved, *state = step(part, state)
            assert [tuple(value.shape) for value in state] == [kept.shape for kept in step.states()]
            out.append(moved)
        found = torch.cat(out)[step.latency :].numpy()
        np.testing.assert_allclose(found, known, rtol=0, atol=1e-5 * np.abs(known).max())


def test_an_external_encoder_is_refused(tmp_path: Path) -> None:
    class Other:
        size, look_ahead = 8, 2

        def info(self) -> dict:
            return {"kind": "transformers", "name": "some/encoder"}

    model: Any = Other()
    with pytest.raises(TalkheadError, match="its speech encoder, some/encoder, is no part of the model"):
        make_step(Predictor(random_model(SMALL, size=8), ["one"], CPU, model))


def test_the_command_refuses_to_overwrite(tmp_path: Path) -> None:
    checkpoint, target = saved(tmp_path / "model.safetensors", "without an encoder"), tmp_path / "model.onnx"
    target.write_text("mine")
    refused = CliRunner().invoke(cli, ["stage1", "export", str(checkpoint), "--onnx", str(target)])
    assert refused.exit_code != 0 and "add --overwrite" in str(refused.exception or refused.output) + refused.output
    assert target.read_text() == "mine"


@pytest.mark.slow
def test_the_command_says_what_it_wrote(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    checkpoint, target = saved(tmp_path / "model.safetensors", "without an encoder"), tmp_path / "model.onnx"
    made = CliRunner().invoke(cli, ["stage1", "export", str(checkpoint), "--onnx", str(target)])
    assert made.exit_code == 0, made.output
    assert "ONNX opset 18" in made.output and target.stat().st_size > 10_000
