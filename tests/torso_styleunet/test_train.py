from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from shared.clip import Clip
from shared.errors import TalkheadError
from shared.image import premultiply
from shared.metrics import psnr
from torso_styleunet import train as train_module
from torso_styleunet.checkpoint import load_torso
from torso_styleunet.composite import composite, draw_torso
from torso_styleunet.config import TorsoConfig, resolve
from torso_styleunet.dataset import TorsoDataset, cache_heads
from torso_styleunet.model import Torso
from torso_styleunet.train import Trainer, train

CPU = torch.device("cpu")
TINY = TorsoConfig(steps=4, batch=2, channels=4, max_channels=8, levels=2, style_dim=8, plate_frames=8, save_seconds=0)
Heads = Callable[[Clip], Callable[[np.ndarray], torch.Tensor]]


def run(clip: Clip, heads: Heads, folder: Path, config: TorsoConfig = TINY) -> dict[str, float]:
    return train(clip, heads(clip), folder / "torso.safetensors", config=config, device=CPU,
                 state_dir=folder / "state", quiet=True)


@pytest.fixture(scope="module")
def trained(toy_clip: Clip, true_heads: Heads, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    folder = tmp_path_factory.mktemp("trained")
    config = TorsoConfig(steps=60, batch=4, channels=8, levels=3, max_channels=32)
    return folder / "torso.safetensors", run(toy_clip, true_heads, folder, config)


def frames_of(clip: Clip, heads: Heads, torso: Torso, indices: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    given = (torch.from_numpy(array[indices]) for array in (clip.load_poses(), clip.load_torso_motion()))
    plate = torch.from_numpy(clip.load_plates()[-1]).float() / 255
    made = composite(torso, heads(clip)(indices), *given, plate)
    return made, torch.from_numpy(clip.read_frames(indices)).float() / 255


def test_held_out_frames_are_drawn_better_than_by_the_plate(toy_clip: Clip, true_heads: Heads,
                                                            trained: tuple[Path, dict]) -> None:
    torso = load_torso(trained[0])
    test = toy_clip.split("test")
    plain = train_module.new_torso(toy_clip, toy_clip.split("train"), toy_clip.load_poses(), torso.config, CPU)
    body = toy_clip.read_labels(test) == 1
    made, true = frames_of(toy_clip, true_heads, torso, test)
    before, _ = frames_of(toy_clip, true_heads, plain, test)
    assert psnr(made, true, body) > psnr(before, true, body) + 1
    assert psnr(made, true, body) > 28
    assert trained[1]["steps"] == 60 and trained[1]["train_psnr_db"] > 25


def test_drawing_is_deterministic_batched_and_leaves_an_opaque_head_alone(toy_clip: Clip, true_heads: Heads,
                                                                          trained: tuple[Path, dict]) -> None:
    torso, indices = load_torso(trained[0]), np.array([3, 15, 22])
    heads = true_heads(toy_clip)(indices)
    poses, motion = (torch.from_numpy(a[indices]) for a in (toy_clip.load_poses(), toy_clip.load_torso_motion()))
    background = torch.rand(64, 64, 3, generator=torch.Generator().manual_seed(0))
    full = composite(torso, heads, poses, motion, background)
    assert torch.equal(full, composite(torso, heads, poses, motion, background)), "no flicker from fresh noise"
    for k in range(3):
        one = composite(torso, heads[k : k + 1], poses[k : k + 1], motion[k : k + 1], background)
        torch.testing.assert_close(one[0], full[k], rtol=1e-4, atol=1e-4)
    opaque = heads[..., 3] == 1
    assert torch.equal(full[opaque], heads[..., :3][opaque])

    layer = premultiply(draw_torso(torso, heads, poses, motion), 1).movedim(1, -1)
    assert layer.shape == (3, 64, 64, 4) and bool((layer[..., :3] <= layer[..., 3:] + 1e-6).all())
    behind = layer[..., :3] + (1 - layer[..., 3:]) * background
    expected = heads[..., :3] + (1 - heads[..., 3:]) * behind
    torch.testing.assert_close(full, expected.clamp(0, 1), rtol=1e-4, atol=1e-5)


def test_a_warp_moves_clothes_but_not_the_network_and_zeros_change_no_bit(toy_clip: Clip, true_heads: Heads,
                                                                          trained: tuple[Path, dict]) -> None:
    torso, indices = load_torso(trained[0]), np.array([3, 15])
    heads = true_heads(toy_clip)(indices)
    poses, motion = (torch.from_numpy(a[indices]) for a in (toy_clip.load_poses(), toy_clip.load_torso_motion()))
    plain = draw_torso(torso, heads, poses, motion)
    assert torch.equal(draw_torso(torso, heads, poses, torch.cat([motion, torch.zeros(2, 18)], 1)), plain)
    shifted = torch.cat([motion, torch.tensor([2.0, 0.0]).repeat(9).expand(2, -1)], 1)
    assert torch.equal(torso.code(poses, shifted), torso.code(poses, motion))
    assert (draw_torso(torso, heads, poses, shifted) - plain).abs().mean() > 0.01
    with pytest.raises(TalkheadError, match="a torso motion has 4 numbers a frame, or 4 .* found 7"):
        draw_torso(torso, heads, poses, motion[:, [0, 1, 2, 3, 0, 0, 0]])


def test_neighbouring_frames_move_smoothly(toy_clip: Clip, true_heads: Heads, trained: tuple[Path, dict]) -> None:
    """Half a motion step gives about half the change: nothing jumps with pose or position."""
    torso = load_torso(trained[0])
    head = true_heads(toy_clip)(np.array([5]))
    poses, motion = toy_clip.load_poses(), toy_clip.load_torso_motion()
    steps = np.linspace(0, 1, 9)[:, None]
    path = torch.from_numpy((motion[5] * (1 - steps) + motion[6] * steps).astype(np.float32))
    layers = premultiply(draw_torso(torso, head.expand(9, -1, -1, -1), torch.from_numpy(poses[5:6]).expand(9, -1, -1), path), 1)
    change = (layers[1:] - layers[:-1]).abs().mean((1, 2, 3))
    assert change.max() < 3 * change.mean()


def test_resumed_training_equals_uninterrupted(toy_clip: Clip, true_heads: Heads, tmp_path: Path,
                                               monkeypatch: pytest.MonkeyPatch) -> None:
    advance = Trainer.advance

    def killed(self: Trainer) -> dict[str, torch.Tensor]:
        if self.step == 2:
            raise KeyboardInterrupt
        return advance(self)

    for adversarial in (0.0, 0.01):
        config = TorsoConfig(**{**vars(TINY), "adversarial_weight": adversarial, "r1_every": 2})
        whole, broken = tmp_path / f"whole{adversarial}", tmp_path / f"broken{adversarial}"
        run(toy_clip, true_heads, whole, config)
        with monkeypatch.context() as patch:
            patch.setattr(Trainer, "advance", killed)
            with pytest.raises(KeyboardInterrupt):
                run(toy_clip, true_heads, broken, config)
        assert not (broken / "torso.safetensors").exists()
        with pytest.raises(TalkheadError, match="unfinished training with other settings"):
            run(toy_clip, true_heads, broken, TorsoConfig(**{**vars(config), "steps": 7}))
        run(toy_clip, true_heads, broken, config)
        one, other = (load_file(folder / "torso.safetensors") for folder in (whole, broken))
        assert one.keys() == other.keys()
        for name, tensor in one.items():
            assert torch.equal(tensor, other[name]), name
        assert not list((broken / "state").glob("heads*")), "the cache goes when training is done"


def test_only_training_frames_are_asked_for_and_each_once(toy_clip: Clip, true_heads: Heads, tmp_path: Path) -> None:
    asked: list[int] = []

    def head_renderer(indices: np.ndarray) -> torch.Tensor:
        asked.extend(indices.tolist())
        return true_heads(toy_clip)(indices)

    train(toy_clip, head_renderer, tmp_path / "t.safetensors", config=TINY, device=CPU, state_dir=tmp_path, quiet=True)
    assert asked == list(range(20))


def test_rendered_heads_are_kept_for_the_training_that_they_were_made_for(toy_clip: Clip, true_heads: Heads,
                                                                         tmp_path: Path) -> None:
    indices, calls = np.arange(5), []

    def head_renderer(rows: np.ndarray) -> torch.Tensor:
        calls.append(len(rows))
        return true_heads(toy_clip)(rows)

    path = tmp_path / "heads.npy"
    first = np.array(cache_heads(head_renderer, indices, 64, 64, path, quiet=True))
    assert np.abs(first / 255 - true_heads(toy_clip)(indices).numpy()).max() < 0.003
    cache_heads(head_renderer, indices, 64, 64, path, quiet=True)
    assert calls == [5]
    with pytest.raises(TalkheadError, match=r"found \(5, 64, 64, 3\)"):
        cache_heads(lambda rows: head_renderer(rows)[..., :3], indices, 64, 64, tmp_path / "other.npy", quiet=True)


def test_pairs_stay_within_a_shot(toy_clip: Clip) -> None:
    indices = toy_clip.split("train")
    data = TorsoDataset(toy_clip, indices, np.zeros((20, 64, 64, 4), np.uint8), toy_clip.load_poses(), CPU)
    first, second = data.pairs(500, np.random.default_rng(0)).reshape(2, -1)
    alone = np.isin(first, [11, 19])
    assert alone.any() and (second[alone] == first[alone]).all() and (second[~alone] == first[~alone] + 1).all()


def test_motion_code_ignores_reframing_in_its_first_part_and_is_held_in_range(toy_clip: Clip) -> None:
    torso = train_module.new_torso(toy_clip, toy_clip.split("train"), toy_clip.load_poses(), resolve(TINY, CPU), CPU)
    poses, motion = (torch.from_numpy(a[:4].copy()) for a in (toy_clip.load_poses(), toy_clip.load_torso_motion()))
    code = torso.raw_code(poses, motion)
    shift = 7.0  # pixels: the whole picture moves
    moved_poses, moved_motion = poses.clone(), motion.clone()
    moved_poses[:, 0, 3] += shift / torso.intrinsics[0] * poses[:, 2, 3]
    moved_motion[:, 0] += shift
    moved = torso.raw_code(moved_poses, moved_motion)
    torch.testing.assert_close(moved[:, :6], code[:, :6], rtol=1e-4, atol=1e-4)
    assert torso.code(poses, motion * 100).abs().max() <= 3


@pytest.mark.parametrize("change", [{"batch": 3}, {"channels": -1}, {"levels": 0}])
def test_impossible_configurations_are_refused(change: dict) -> None:
    with pytest.raises(TalkheadError, match=next(iter(change))):
        resolve(TorsoConfig(**change), CPU)


def test_wrong_shapes_and_wrong_files_are_refused(toy_clip: Clip, true_heads: Heads, trained: tuple[Path, dict],
                                                  tmp_path: Path) -> None:
    torso = load_torso(trained[0])
    head, poses, motion = torch.zeros(2, 64, 64, 4), torch.eye(4).expand(2, 4, 4), torch.zeros(2, 4)
    with pytest.raises(TalkheadError, match="motion should be"):
        composite(torso, head, poses, motion[:1], torch.zeros(64, 64, 3))
    with pytest.raises(TalkheadError, match="background should be"):
        composite(torso, head, poses, motion, torch.zeros(32, 64, 3))
    (tmp_path / "bad.safetensors").write_bytes(b"not a checkpoint")
    with pytest.raises(TalkheadError, match="bad.safetensors"):
        load_torso(tmp_path / "bad.safetensors")
