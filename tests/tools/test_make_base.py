from pathlib import Path

import numpy as np
import pytest
import torch

from process_data.actor.identity import make_identity
from process_data.actor.proportions import neutral_landmarks
from shared.clip import Clip
from shared.files import write_json
from shared.landmarks import save_array, save_landmarks
from shared.media.audio_io import save_wav
from stage1_audio2lmk.config import Stage1Config
from stage1_audio2lmk.dataset import Recording, clip_samples, make_feature_fn
from stage1_audio2lmk.kernel_ridge import FOLDS
from stage1_audio2lmk.lips import lip_gap
from stage1_audio2lmk.model import motion_of
from tools.make_base import ACTOR, actor_recording, fit_base, thinned
from tools.talker_clips import shift_sound, write_clip


class Loudness:
    """A toy speech encoder: a row is the frame's mean log-mel."""

    size, look_ahead = 1, 0

    def info(self) -> dict:
        return {"kind": "loudness"}

    def encode(self, samples: np.ndarray, features: np.ndarray) -> np.ndarray:
        return features[:, :320].mean(1, keepdims=True) / 4

    def stream(self) -> None:
        raise NotImplementedError


def talker(folder: Path, seed: int, frames: int = 100) -> Path:
    """A folder of a talker whose lips open with the loudness of noise."""
    rng = np.random.default_rng(seed)
    loud = np.repeat(rng.uniform(0.001, 0.3, frames // 4), 4)
    neutral = neutral_landmarks(make_identity(0)).reshape(1, 68, 3).astype(np.float32)
    landmarks = np.repeat(neutral, frames, 0)
    landmarks[:, 60:68, 1] -= 0.02 * loud[:, None].astype(np.float32)
    folder.mkdir(parents=True)
    save_landmarks(folder / "landmarks.npy", landmarks)
    save_landmarks(folder / "neutral.npy", neutral)
    save_array(folder / "poses.npy", np.repeat(np.eye(4, dtype=np.float32)[None], frames, 0))
    save_wav(folder / "audio.flac", (np.repeat(loud, 640) * rng.normal(size=640 * frames) / 4).astype(np.float32))
    half = frames // 2
    write_json(folder / "source.json", {
        "speaker": f"s{seed}", "tracked_at_px": 512, "intrinsics": [1126.4, 1126.4, 256, 256],
        "segments": [[0, half], [half, frames]], "bad": [[10, 12, "lost"]], "lag_ms": None})
    return folder


def test_talkers_become_clips(tmp_path: Path) -> None:
    clip = write_clip(talker(tmp_path / "a", 1), tmp_path / "clips", 7)
    assert clip.info.name == "s1_sentence7" and [shot.start for shot in clip.info.shots] == [0, 50]
    assert clip.split("train").tolist() == [k for k in range(100) if k not in (10, 11)]
    assert len(clip.load_audio()) == 64000


def test_sound_is_shifted_by_the_lag() -> None:
    samples = np.arange(1, 1601, dtype=np.float32)
    later, earlier = shift_sound(samples, 50), shift_sound(samples, -50)
    assert len(later) == len(earlier) == 1600
    np.testing.assert_array_equal(later, np.concatenate([np.zeros(800), samples[:800]]))
    np.testing.assert_array_equal(earlier, np.concatenate([samples[800:], np.zeros(800)]))


def test_thinned_keeps_so_many_good_frames() -> None:
    good = torch.arange(50) % 5 != 0
    found = thinned(Recording("a", torch.zeros(50, 1), torch.zeros(50, 111), good, 1, 40), 10)
    assert int(found.good.sum()) == 10 and found.val_start == 50 and not (found.good & ~good).any()


def test_a_base_moves_the_lips_of_someone_new(tmp_path: Path) -> None:
    clips = [write_clip(talker(tmp_path / f"t{k}", k), tmp_path / "clips", k) for k in range(FOLDS + 1)]
    config = Stage1Config(mel_terms=False, components=4, support_points=400, val_share=0.01, steps=0)
    model, speakers, fit = fit_base(clips[:FOLDS], Loudness(), config, actor=False)
    assert speakers == [f"s{k}" for k in range(FOLDS)] and fit.sharpening == 0 and model.transformer is None
    new = Clip(tmp_path / "clips" / f"t{FOLDS}")
    rows = torch.from_numpy(make_feature_fn(Loudness())(clip_samples(new)))
    found = motion_of(model, rows, 0).unflatten(-1, (-1, 3))[:, -1, 1].numpy()
    true = (new.load_landmarks() - new.load_neutral())[:, 67, 1]
    assert np.corrcoef(found, true)[0, 1] > 0.8


def test_the_actor_is_a_speaker_whose_lips_follow_its_sound() -> None:
    pytest.importorskip("espeakng_loader", reason="espeakng-loader makes the actor's speech")
    found = actor_recording(3, make_feature_fn(Loudness()))
    opening = lip_gap(found.displacement.unflatten(-1, (-1, 3)))
    assert found.name == ACTOR and found.speaker == 3 and found.good.all() and len(found.features) == len(found.displacement)
    assert np.corrcoef(opening, found.features[:, -1])[0, 1] > 0.4 and 0.003 < opening.max() < 0.05
