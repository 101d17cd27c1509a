"""Training on the cartoon: it learns, resumes exactly, and its file can be rendered and measured."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from shared.camera import project
from shared.clip import Clip
from shared.errors import TalkheadError
from stage2_gaussian.config import Stage2Config, resolve
from stage2_gaussian.dataset import HeadFrames, matte, sampling_weights
from stage2_gaussian.evaluate import evaluate
from stage2_gaussian.gaussians import head_surface, make_canonical, unproject
from stage2_gaussian.losses import PictureLoss
from stage2_gaussian.render import load_head, render_head
from stage2_gaussian.train import Trainer, new_head, train

CPU = torch.device("cpu")
SMALL = Stage2Config(splats=1500, steps=80, rank=8, hidden=32)


@pytest.fixture(scope="module")
def trained(cartoon, tmp_path_factory) -> tuple[Path, dict]:
    folder = tmp_path_factory.mktemp("trained")
    numbers = train(cartoon, folder / "head.safetensors", config=SMALL, device=CPU, state_dir=folder / "state",
                    quiet=True)
    return folder / "head.safetensors", numbers


def test_held_out_frames_come_out_right(cartoon, trained):
    path, numbers = trained
    table = evaluate(cartoon, path, splits=["test"], device=CPU, quiet=True)
    assert numbers["steps"] == 80 and numbers["seconds"] > 0 and numbers["megabytes"] < 1
    assert table["test"]["head psnr"] > 20 and table["test"]["mouth psnr"] > 20
    assert table["test"]["full psnr"] > table["test"]["head psnr"]


def test_fitted_poses_do_not_make_it_worse(cartoon, trained):
    table = evaluate(cartoon, trained[0], splits=["test"], device=CPU, quiet=True, align=True)["test"]
    assert table["aligned full psnr"] > table["full psnr"] - 0.05


def test_the_mouth_follows_the_landmarks(cartoon, trained):
    head = load_head(trained[0], CPU)
    landmarks, poses = cartoon.load_landmarks(), cartoon.load_poses()
    height = landmarks[:, 62, 1] - landmarks[:, 66, 1]
    pair = [int(height.argmin()), int(height.argmax())]
    pose = torch.from_numpy(poses[[0, 0]])
    info = cartoon.info
    shut, wide = render_head(head, torch.from_numpy(landmarks[pair]), pose, info.intrinsics, info.width, info.height)
    u, v = project(landmarks[pair[1]][[62, 66]].mean(0, keepdims=True), poses[0], info.intrinsics)[0].astype(int)
    assert wide[v, u, 0] < shut[v, u, 0] - 0.1  # the cavity is darker than the lips


def test_resumed_equals_uninterrupted(cartoon, tmp_path, monkeypatch):
    config = Stage2Config(splats=400, steps=12, rank=6, hidden=16, save_seconds=0.0)
    train(cartoon, tmp_path / "whole", config=config, device=CPU, state_dir=tmp_path / "a", quiet=True)
    step = Trainer.advance

    def dies(self):
        if self.step == 7:
            raise KeyboardInterrupt
        return step(self)

    monkeypatch.setattr(Trainer, "advance", dies)
    with pytest.raises(KeyboardInterrupt):
        train(cartoon, tmp_path / "halves", config=config, device=CPU, state_dir=tmp_path / "b", quiet=True)
    assert not (tmp_path / "halves").exists() and (tmp_path / "b" / "state.safetensors").is_file()
    monkeypatch.setattr(Trainer, "advance", step)
    train(cartoon, tmp_path / "halves", config=config, device=CPU, state_dir=tmp_path / "b", quiet=True)
    assert (tmp_path / "whole").read_bytes() == (tmp_path / "halves").read_bytes()


def test_a_state_of_other_settings_is_refused(cartoon, tmp_path):
    config = Stage2Config(splats=200, steps=2, rank=5, hidden=8)
    train(cartoon, tmp_path / "head", config=config, device=CPU, state_dir=tmp_path, quiet=True)
    other = Stage2Config(splats=200, steps=3, rank=5, hidden=8)
    with pytest.raises(TalkheadError, match="another config"):
        train(cartoon, tmp_path / "head", config=other, device=CPU, state_dir=tmp_path, quiet=True)


def test_a_file_of_another_kind_is_refused(tmp_path):
    from shared.checkpoint import save_checkpoint

    save_checkpoint(tmp_path / "x", {"a": torch.zeros(1)}, {"format": "else"})
    with pytest.raises(TalkheadError, match="gaussian-head"):
        load_head(tmp_path / "x", CPU)


def test_a_clip_without_head_pixels_is_refused(cartoon, tmp_path):
    shutil.copytree(cartoon.root, tmp_path / "clip", ignore=shutil.ignore_patterns(".cache"))
    from shared.video_io import GrayVideoWriter
    with GrayVideoWriter(tmp_path / "clip" / "labels.mkv", 96, 96) as labels:
        for _ in range(40):
            labels.write(np.zeros((96, 96), np.uint8))
    with pytest.raises(TalkheadError, match="head pixels"):
        train(Clip(tmp_path / "clip"), tmp_path / "head", config=SMALL, device=CPU, state_dir=tmp_path, quiet=True)


def test_splats_start_on_the_pixels_they_are_taken_from(cartoon):
    depth = head_surface(cartoon.load_neutral()[0])
    pose = cartoon.load_poses()[3].astype(float)
    pixels = np.random.default_rng(0).uniform([30, 30], [66, 66], (50, 2))
    places = unproject(pixels, pose, cartoon.info.intrinsics, depth)
    assert np.allclose(project(places, pose, cartoon.info.intrinsics), pixels, atol=1e-6)
    assert np.abs(depth(places[:, :2]) - places[:, 2]).max() < 1e-3
    canonical = make_canonical(cartoon, cartoon.split("train"), 500, np.random.default_rng(0))
    assert canonical.places.shape == (500, 3) and np.isfinite(canonical.places).all()


def test_an_untrained_head_already_resembles_the_person(cartoon):
    config = resolve(SMALL, CPU, 96, 96)
    head = new_head(cartoon, cartoon.split("train"), config)
    data = HeadFrames(cartoon, cartoon.split("test"), CPU)
    batch = data.batch(np.arange(2))
    with torch.no_grad():
        rgba = render_head(head, batch.landmarks, batch.poses, data.intrinsics, data.width, data.height)
    assert float(((rgba[..., 3] > 0.5) == (batch.head > 0.5)).float().mean()) > 0.9


def test_a_perfect_picture_costs_nothing(cartoon):
    data = HeadFrames(cartoon, cartoon.split("test"), CPU)
    batch, kept = data.batch(np.arange(2)), data.pictures(np.arange(2))
    alpha = batch.alpha[..., None]
    terms = PictureLoss(Stage2Config())(batch.frames - (1 - alpha) * batch.behind, alpha, kept.frames, kept.behind,
                                        kept.alpha, kept.sure, data.boxes[:2])
    assert float(terms.abs().max()) < 1e-5


def test_rare_expressions_are_drawn_more_often(cartoon):
    landmarks = cartoon.load_landmarks()
    chance = sampling_weights(landmarks)
    shut = landmarks[:, 37, 1] == landmarks[:, 41, 1]
    assert chance.sum() == pytest.approx(1) and chance[shut].mean() > 1.5 * chance[~shut].mean()


def test_the_matte_finds_the_share_of_the_head_in_a_mixed_pixel():
    head, plate = torch.tensor([0.3, 0.2, 0.1]), torch.tensor([0.1, 0.4, 0.9])
    share = torch.clamp((20.0 - torch.arange(40)) / 6 + 0.5, 0, 1)  # soft edge, 6 pixels wide
    frames = (share[:, None] * head + (1 - share[:, None]) * plate).expand(1, 30, 40, 3)
    labels = (torch.arange(40) < 20).expand(1, 30, 40)
    alpha, sure, open_air = matte(frames, plate.expand_as(frames), labels, ~labels, 5)
    assert (alpha - share).abs().max() < 0.05 and bool(sure.all())
    assert open_air[0, 0].nonzero().flatten().tolist() == list(range(20, 25))
    body = (torch.arange(30) > 20)[None, :, None] & ~labels
    clothed = torch.where(body[..., None], torch.tensor([0.8, 0.8, 0.7]), frames)
    _, sure, open_air = matte(clothed, plate.expand_as(frames), labels, ~labels & ~body, 5)
    assert not sure[0, 25, 15:25].any() and not open_air[0, 21:].any() and bool(sure[0, :14].all())
