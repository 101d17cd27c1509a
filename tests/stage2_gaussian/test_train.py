"""Training on the cartoon: it learns, resumes exactly, and its file can be rendered and measured."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from shared.camera import project
from shared.clip import Clip
from shared.errors import TalkheadError
from shared.files import sha256
from shared.head_surface import head_surface
from stage2_gaussian.checkpoint import load_head
from stage2_gaussian.config import Stage2Config, resolve
from stage2_gaussian.dataset import HeadDataset, foreground_colors, make_backdrop, matte, over_colors, sampling_probs
from stage2_gaussian.evaluation.evaluate import evaluate
from stage2_gaussian.initialization import make_canonical, unproject
from stage2_gaussian.losses import PictureLoss
from stage2_gaussian.render import render_head
from stage2_gaussian.train import Trainer, Validation, new_head, split_off_validation, train

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
    assert numbers["steps"] == 80 and numbers["megabytes"] < 1
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


def test_resumed_equals_uninterrupted(cartoon, tmp_path, killed_at):
    config = Stage2Config(splats=400, steps=12, rank=6, hidden=16, save_seconds=0.0)
    train(cartoon, tmp_path / "whole", config=config, device=CPU, state_dir=tmp_path / "a", quiet=True)
    with killed_at(7):
        train(cartoon, tmp_path / "halves", config=config, device=CPU, state_dir=tmp_path / "b", quiet=True)
    assert not (tmp_path / "halves").exists() and (tmp_path / "b" / "state.safetensors").is_file()
    train(cartoon, tmp_path / "halves", config=config, device=CPU, state_dir=tmp_path / "b", quiet=True)
    assert (tmp_path / "whole").read_bytes() == (tmp_path / "halves").read_bytes()
    assert [path.name for path in (tmp_path / "b").iterdir()] == ["curves"]  # the state goes when training is done


@pytest.mark.slow
def test_resumed_with_fits_and_checks_equals_uninterrupted(cartoon, tmp_path, killed_at):
    config = Stage2Config(splats=400, steps=36, rank=6, hidden=16, fits=2, held_out=0.3, save_seconds=0.0)
    folder = tmp_path / "clip"
    shutil.copytree(cartoon.root, folder)
    clip = Clip(folder)
    whole = train(clip, tmp_path / "whole", config=config, device=CPU, state_dir=tmp_path / "a", quiet=True)
    fitted = clip.fitted_poses.read_bytes()
    with killed_at(23):
        train(clip, tmp_path / "halves", config=config, device=CPU, state_dir=tmp_path / "b", quiet=True)
    halves = train(clip, tmp_path / "halves", config=config, device=CPU, state_dir=tmp_path / "b", quiet=True)
    assert (tmp_path / "whole").read_bytes() == (tmp_path / "halves").read_bytes()
    assert clip.fitted_poses.read_bytes() == fitted and whole["val_psnr_db"] == halves["val_psnr_db"]
    fitted = clip.load_fitted_poses(sha256(tmp_path / "halves"))
    assert np.array_equal(fitted, np.load(clip.fitted_poses)) and not np.array_equal(fitted, clip.load_poses())
    assert clip.load_fitted_poses("another head") is None
    train(clip, tmp_path / "plain", config=Stage2Config(splats=200, steps=1, rank=6, hidden=8, fits=0), device=CPU,
          state_dir=tmp_path / "c", quiet=True)
    assert not clip.fitted_poses.exists() and not clip.fitted_record.exists()  # they belonged to another head


def test_the_best_head_is_kept_and_training_stops_when_none_is_better(cartoon, tmp_path, monkeypatch):
    scores = iter([20.0, 30.0, 29.0, 28.0, 27.0, 26.0, 25.0, 24.0, 23.0, 22.0, 21.0, 20.0])
    kept = {}

    def judge(self, head):
        score = next(scores)
        kept[score] = head.positions.detach().clone()
        return score, 0.0

    monkeypatch.setattr(Validation, "score", judge)
    monkeypatch.setattr("stage2_gaussian.train.prune", lambda *_: 0)
    config = Stage2Config(splats=300, steps=36, rank=6, hidden=8, fits=0, held_out=0.3)
    numbers = train(cartoon, tmp_path / "head", config=config, device=CPU, state_dir=tmp_path, quiet=True)
    assert numbers["steps"] == 21 and 25.0 in kept and 24.0 not in kept  # the second check, and PATIENCE more
    assert torch.equal(load_head(tmp_path / "head", CPU).positions, kept[30.0])


def test_the_held_out_stretch_comes_from_the_middle():
    learned, held = split_off_validation(np.arange(100, 300), 0.1)
    assert held.tolist() == list(range(190, 210)) and len(learned) == 180 and not set(held) & set(learned)
    assert len(split_off_validation(np.arange(40), 0.04)[1]) == 0  # two frames tell nothing


def test_out_of_gpu_memory_goes_on_with_half_the_batch(cartoon, tight_memory):
    config = resolve(Stage2Config(splats=200, steps=4, rank=6, hidden=8, batch=4, fits=0), CPU, 96, 96)
    indices = cartoon.split("train")
    trainer = Trainer(new_head(cartoon, indices, config), HeadDataset(cartoon, indices, CPU), config)
    with pytest.warns(UserWarning, match="out of GPU memory: stage 2 goes on with 1 frames a step"):
        trainer.advance()
    assert trainer.batch_size == 1 and trainer.step == 1


@pytest.mark.parametrize("setting, message", [
    ({"rank": 4}, "rank should be 0 or at least 5, found 4"),
    ({"splats": -3}, "splats should be at least 0, found -3"),
    ({"held_out": 0.7}, "held_out should be at most 0.49, found 0.7"),
])
def test_settings_that_cannot_work_are_refused(setting, message):
    with pytest.raises(TalkheadError, match=re.escape(message)):
        resolve(Stage2Config(**setting), CPU, 256, 256)


def test_pictures_are_the_same_kept_or_prepared_again(cartoon, monkeypatch):
    data = HeadDataset(cartoon, cartoon.split("train"), CPU)
    rows = np.array([5, 2, 5, 9])
    first, again = data.frame_tensors(rows), data.frame_tensors(rows[::-1].copy())
    assert sorted(data.kept) == [2, 5, 9]
    monkeypatch.setattr("stage2_gaussian.dataset.KEPT_BYTES", 0)
    streamed = HeadDataset(cartoon, cartoon.split("train"), CPU)
    for a, b, c in zip(first, again, streamed.frame_tensors(rows)):
        assert torch.equal(a, b.flip(0)) and torch.equal(a, c)
    assert streamed.kept == {}


def test_what_the_jaw_hides_has_the_colour_of_the_neck():
    plate, skin, shirt = torch.tensor([10, 20, 200]), torch.tensor([200, 150, 120]), torch.tensor([240, 240, 250])
    head = torch.zeros(1, 40, 40, dtype=torch.bool)
    head[:, 5:25, 10:30] = True
    background = ~head
    background[:, 25:] = False
    frames = torch.where(head[..., None], skin, torch.where(background[..., None], plate, shirt)).byte()
    plates = plate.expand(1, 40, 40, 3).byte()
    backdrop = make_backdrop(frames, plates, head, background, torch.zeros_like(head), 2)
    assert backdrop[0, 24, 20].tolist() == shirt.tolist() and backdrop[0, 10, 20].tolist() == plate.tolist()
    assert backdrop[0, 30, 20].tolist() == shirt.tolist() and backdrop[0, 6, 11].tolist() == plate.tolist()


def test_a_state_of_other_settings_is_refused(cartoon, tmp_path, killed_at):
    config = Stage2Config(splats=200, steps=2, rank=5, hidden=8, save_seconds=0.0)
    with killed_at(1):
        train(cartoon, tmp_path / "head", config=config, device=CPU, state_dir=tmp_path, quiet=True)
    other = Stage2Config(splats=200, steps=3, rank=5, hidden=8, save_seconds=0.0)
    with pytest.raises(TalkheadError, match="unfinished training with other settings"):
        train(cartoon, tmp_path / "head", config=other, device=CPU, state_dir=tmp_path, quiet=True)


def test_a_file_of_another_kind_is_refused(tmp_path):
    from shared.checkpoint import save_checkpoint

    save_checkpoint(tmp_path / "x", {"a": torch.zeros(1)}, {"format": "else"})
    with pytest.raises(TalkheadError, match="gaussian-head"):
        load_head(tmp_path / "x", CPU)


def test_a_clip_without_head_pixels_is_refused(cartoon, tmp_path):
    shutil.copytree(cartoon.root, tmp_path / "clip", ignore=shutil.ignore_patterns(".cache"))
    from shared.media.video_io import GrayVideoWriter
    with GrayVideoWriter(tmp_path / "clip" / "labels.mkv", 96, 96) as labels:
        for _ in range(40):
            labels.write(np.zeros((96, 96), np.uint8))
    with pytest.raises(TalkheadError, match="head pixels"):
        train(Clip(tmp_path / "clip"), tmp_path / "head", config=SMALL, device=CPU, state_dir=tmp_path, quiet=True)


def test_splats_start_on_the_pixels_they_are_taken_from(cartoon):
    depth = head_surface(cartoon.load_neutral()[0])
    pose = cartoon.load_poses()[3].astype(float)
    pixels = np.random.default_rng(0).uniform([30, 30], [66, 66], (50, 2))
    points = unproject(pixels, pose, cartoon.info.intrinsics, depth)
    assert np.allclose(project(points, pose, cartoon.info.intrinsics), pixels, atol=1e-6)
    assert np.abs(depth(points[:, :2]) - points[:, 2]).max() < 1e-3
    canonical = make_canonical(cartoon, cartoon.split("train"), 500, np.random.default_rng(0))
    assert canonical.means.shape == (500, 3) and np.isfinite(canonical.means).all()


def test_an_untrained_head_already_resembles_the_person(cartoon):
    config = resolve(SMALL, CPU, 96, 96)
    head = new_head(cartoon, cartoon.split("train"), config)
    data = HeadDataset(cartoon, cartoon.split("test"), CPU)
    batch = data.batch(np.arange(2))
    with torch.no_grad():
        rgba = render_head(head, batch.landmarks, batch.poses, data.intrinsics, data.width, data.height)
    assert float(((rgba[..., 3] > 0.5) == (batch.head > 0.5)).float().mean()) > 0.9


def test_a_perfect_picture_costs_nothing(cartoon):
    data = HeadDataset(cartoon, cartoon.split("test"), CPU)
    batch, kept = data.batch(np.arange(2)), data.frame_tensors(np.arange(2))
    alpha = batch.alpha[..., None]
    terms = PictureLoss(Stage2Config())(batch.frames - (1 - alpha) * batch.backdrop, alpha, kept.frames, kept.backdrop,
                                        kept.alpha, kept.alpha_valid, data.boxes[:2])
    assert float(terms.abs().max()) < 1e-5


def test_rare_expressions_are_drawn_more_often(cartoon):
    landmarks = cartoon.load_landmarks()
    probs = sampling_probs(landmarks)
    shut = landmarks[:, 37, 1] == landmarks[:, 41, 1]
    assert probs.sum() == pytest.approx(1) and probs[shut].mean() > 1.5 * probs[~shut].mean()


def test_the_matte_finds_the_share_of_the_head_in_a_mixed_pixel():
    head, plate = torch.tensor([0.3, 0.2, 0.1]), torch.tensor([0.1, 0.4, 0.9])
    share = torch.clamp((20.0 - torch.arange(40)) / 6 + 0.5, 0, 1)  # soft edge, 6 pixels wide
    frames = (share[:, None] * head + (1 - share[:, None]) * plate).expand(1, 30, 40, 3)
    labels = (torch.arange(40) < 20).expand(1, 30, 40)
    alpha, alpha_valid, open_air, *_ = matte(frames, plate.expand_as(frames), labels, ~labels, 5)
    assert (alpha - share).abs().max() < 0.05 and bool(alpha_valid.all())
    assert open_air[0, 0].nonzero().flatten().tolist() == list(range(20, 25))
    body = (torch.arange(30) > 20)[None, :, None] & ~labels
    clothed = torch.where(body[..., None], torch.tensor([0.8, 0.8, 0.7]), frames)
    _, alpha_valid, open_air, *_ = matte(clothed, plate.expand_as(frames), labels, ~labels & ~body, 5)
    assert not alpha_valid[0, 25, 15:25].any() and not open_air[0, 21:].any() and bool(alpha_valid[0, :14].all())


def mixed_hair(plate: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A head of noisy brown, opaque left of column 20 and gone right of 26, over a plate (30, 40, 3) -> frame, its colours and
    alpha."""
    g = torch.Generator().manual_seed(0)
    head = torch.tensor([0.3, 0.2, 0.1]) + 0.03 * torch.randn(30, 40, 3, generator=g)
    alpha = torch.clamp((23.0 - torch.arange(40)) / 6 + 0.5, 0, 1).expand(30, 40)
    return alpha[..., None] * head + (1 - alpha)[..., None] * plate, head, alpha


def test_foreground_colours_are_free_of_the_background():
    true_plate = torch.tensor([0.1, 0.9, 0.3]).expand(30, 40, 3)
    frame, head, alpha = mixed_hair(true_plate)
    soft, sure = (alpha > 0.2) & (alpha < 1), alpha == 1
    for plate, known in ((true_plate, True), (torch.tensor([0.5, 0.5, 0.5]).expand(30, 40, 3), False)):
        seen = torch.full((1, 30, 40), known)
        found = foreground_colors(frame[None], plate[None], alpha[None], sure[None], seen, 3)[0]
        off = (found - head)[soft].square().mean().sqrt()
        assert off < (0.02 if known else 0.05)  # a wrong plate that is not trusted does little harm
        assert torch.equal(found[sure], frame[sure].clamp(0, 1))
    trusted = foreground_colors(frame[None], plate[None], alpha[None], sure[None], ~seen, 3)[0]
    assert (trusted - head)[soft].square().mean().sqrt() > 0.1


def test_another_background_looks_as_if_filmed_there(cartoon):
    plate = torch.tensor([0.1, 0.9, 0.3]).expand(30, 40, 3)
    frame, head, alpha = mixed_hair(plate)
    data = HeadDataset(cartoon, cartoon.split("test"), CPU)
    kept = data.frame_tensors(np.arange(2))
    bytes_of = [(255 * x).round().byte()[None].repeat(2, *[1] * x.dim()) for x in (frame, plate, alpha, head * alpha[..., None])]
    open_air = torch.ones(2, 30, 40, dtype=torch.uint8)
    open_air[:, 20:] = 0
    pictures = kept._replace(frames=bytes_of[0], backdrop=bytes_of[1], alpha=bytes_of[2], clean=bytes_of[3], open_air=open_air)
    color = torch.tensor([200, 10, 250], dtype=torch.uint8)
    moved = over_colors(pictures, color.repeat(2, 1), torch.tensor([True, False]))
    expected = 255 * alpha[..., None] * head + (1 - alpha)[..., None] * color.float()
    assert (moved.frames[0, :20].float() - expected[:20]).abs().max() <= 2
    assert torch.equal(moved.backdrop[0, :20], color.expand(20, 40, 3))
    for name in ("frames", "backdrop"):
        old, new = getattr(pictures, name), getattr(moved, name)
        assert torch.equal(new[0, 20:], old[0, 20:]) and torch.equal(new[1], old[1])


def test_hair_in_the_air_has_open_air_behind_it_and_the_jaw_has_not(cartoon):
    data = HeadDataset(cartoon, cartoon.split("test"), CPU, recolorable=True)
    kept = data.frame_tensors(np.arange(2))
    labels = cartoon.read_labels(data.indices[:2])[:, data.rows, data.columns]
    torso = torch.from_numpy((labels == 1) | (labels == 2))
    assert not kept.open_air.bool()[torso].any()
    assert kept.open_air.bool()[torch.from_numpy(labels == 0)].float().mean() > 0.8
