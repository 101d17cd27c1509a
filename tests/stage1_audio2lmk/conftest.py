from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from process_data.actor.speech import actor_landmarks
from shared.clip import Clip, ClipInfo, Shot
from shared.landmarks import save_array, save_landmarks
from shared.media.audio_io import save_wav
from shared.training import cpu_threads
from stage1_audio2lmk.audio.features import MELS
from stage1_audio2lmk.config import Stage1Config
from stage1_audio2lmk.model import LandmarkModel, new_model
from stage1_audio2lmk.stream import Predictor

INTRINSICS = (1126.4, 1126.4, 256.0, 256.0)


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """Networks of toy size are faster on one thread, above all where several test runs share a machine."""
    with cpu_threads(1):
        yield


def write_clip(root: Path, sound: np.ndarray, landmarks: np.ndarray, neutral: np.ndarray,
               split: dict[str, list[tuple[int, int]]]) -> Clip:
    """A clip folder with what stage 1 reads: sound, landmarks, neutral and one frontal pose."""
    pose = np.diag([1, -1, -1, 1]).astype(np.float32)
    pose[2, 3] = 1.0
    clip = Clip(root)
    root.mkdir(parents=True)
    save_wav(clip.audio, sound)
    save_landmarks(clip.landmarks, landmarks)
    save_landmarks(clip.neutral, neutral.reshape(1, 68, 3))
    save_array(clip.poses, np.repeat(pose[None], len(landmarks), axis=0))
    shots = [Shot(0, len(landmarks), "background.png")]
    clip.save_info(ClipInfo(root.name, "toy", "0" * 64, 512, 512, len(landmarks), INTRINSICS, (0, 0, 512), shots,
                            split=split))
    return clip


@pytest.fixture(scope="session")
def make_clip() -> Callable[..., Clip]:
    """`write_clip`, for tests that need another clip."""
    return write_clip


@pytest.fixture(scope="session")
def actor_clip(tmp_path_factory: pytest.TempPathFactory) -> Clip:
    """The synthetic actor's training utterance with its true landmarks; the last fifth is "test"."""
    sound, landmarks = actor_landmarks("train")
    frames = len(landmarks)
    neutral = landmarks[np.argmin(np.abs(landmarks - landmarks[:1]).sum((1, 2)))]
    cut = int(frames * 0.8)
    return write_clip(tmp_path_factory.mktemp("clips") / "actor", sound, landmarks, neutral,
                      {"train": [(0, cut)], "test": [(cut, frames)]})


def random_model(config: Stage1Config, speakers: int = 1, size: int = 0, points: int = 40) -> LandmarkModel:
    """A model whose every weight is random, drawn from torch's own generator, in evaluation mode."""
    model = new_model(config, speakers, size)
    kernel, transformer = model.kernel, model.transformer
    assert transformer is not None
    for value in transformer.parameters():
        torch.nn.init.normal_(value, std=0.1)
    transformer.mean.fill_(-3.0)
    transformer.scale.fill_(3.0)
    kernel.similarity.mean.fill_(-3.0)
    kernel.similarity.scale.fill_(3.0)
    kernel.support_mel = torch.empty(points, kernel.similarity.taps, MELS).normal_(-3, 3).half()
    kernel.support_embedding = (torch.randn(points, size) / max(1, size) ** 0.5).half()
    kernel.weights = 0.1 * torch.randn(config.components, points)
    kernel.familiar = torch.rand(points)
    kernel.bias = 0.1 * torch.randn(config.components)
    for part in (kernel, transformer):
        torch.nn.init.normal_(part.basis, std=0.002)
    return model.eval().requires_grad_(False)


@pytest.fixture
def predictor() -> Predictor:
    """An untrained network of two speakers whose every weight is random, so that nothing is hidden by zeros."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = random_model(Stage1Config(dim=32, layers=2, heads=2, window=6, components=4), speakers=2)
    return Predictor(model, ["first", "second"], torch.device("cpu"))


@pytest.fixture
def speech() -> np.ndarray:
    """(n,) four seconds of harmonics that glide, pause and hiss."""
    rng = np.random.default_rng(0)
    time = np.arange(4 * 16000) / 16000
    phase = 2 * np.pi * np.cumsum(120 + 30 * np.sin(2 * np.pi * time)) / 16000
    voice = sum(np.sin(k * phase) / k for k in range(1, 20)) * (np.sin(2 * np.pi * 1.5 * time) > -0.5)
    return (0.1 * voice + 0.01 * rng.normal(size=len(time))).astype(np.float32)
