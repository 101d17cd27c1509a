"""A toy person whose torso motion, labels and plate are exact: drawn from formulas at any motion."""

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch

from shared.clip import Clip, ClipInfo, Shot
from shared.landmarks import save_array
from shared.media.video_io import GrayVideoWriter, VideoWriter, write_png
from shared.training import cpu_threads

SIZE = 64
FOCAL = 2.0 * SIZE


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """These networks are so small that threads only wait for each other."""
    with cpu_threads(1):
        yield


def draw(size: int, motion: np.ndarray, turn: float, background: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """uint8 frame (S, S, 3) and labels (S, S): striped shoulders and a neck at `motion`, a head shifted by `turn`."""
    y, x = np.mgrid[:size, :size] + 0.5
    dx, dy, angle, scale = motion
    u, v = (x - size / 2 - dx) / scale, (y - size / 2 - dy) / scale
    px, py = np.cos(angle) * u + np.sin(angle) * v + size / 2, np.cos(angle) * v - np.sin(angle) * u + size / 2
    px, py = px / size, py / size
    frame, labels = background.astype(float).copy(), np.zeros((size, size), np.uint8)
    torso = py > 0.72 + 1.2 * (px - 0.5) ** 2
    neck = (abs(px - 0.5) < 0.1) & (py > 0.5) & ~torso
    stripes = 0.5 + 0.5 * np.sin(40 * px)
    for mask, label, colour in (
        (torso, 1, np.stack([40 + 120 * stripes, 60 + 0 * px, 160 - 60 * stripes], -1)),
        (neck, 2, np.stack([200 - 40 * py, 150 + 0 * px, 120 + 0 * px], -1)),
        (((x / size - 0.5 - dx / size - turn) / 0.17) ** 2 + ((y / size - 0.38 - dy / size) / 0.24) ** 2 < 1, 3,
         np.stack([220 + 0 * px, 170 - 200 * (x / size - 0.5 - turn) ** 2, 140 + 0 * px], -1)),
    ):
        frame[mask], labels[mask] = colour[mask], label
    return frame.clip(0, 255).round().astype(np.uint8), labels


@pytest.fixture(scope="session")
def toy_clip(tmp_path_factory: pytest.TempPathFactory) -> Clip:
    """24 frames of 64², two shots with plates of their own, frames 20–23 held out."""
    clip = Clip(tmp_path_factory.mktemp("toy") / "clip")
    count, rng = 24, np.random.default_rng(3)
    shots = [Shot(0, 12, "background.png"), Shot(12, count, "background_1.png")]
    plates = [np.full((SIZE, SIZE, 3), colour, np.uint8) + rng.integers(0, 6, (SIZE, SIZE, 1), np.uint8)
              for colour in ((90, 120, 100), (70, 100, 140))]
    t = np.arange(count)
    motion = np.stack([3 * np.sin(t / 3), 2 * np.cos(t / 4), 0.03 * np.sin(t / 2), 1 + 0.02 * np.cos(t / 5)], 1)
    motion = motion.astype(np.float32)
    turn = 0.03 * np.sin(t / 2.5)
    poses = np.tile(np.diag([1, -1, -1, 1]).astype(np.float32), (count, 1, 1))
    poses[:, 0, 3], poses[:, 2, 3] = turn, 1
    with (VideoWriter(clip.video, SIZE, SIZE, crf=0) as video, GrayVideoWriter(clip.labels, SIZE, SIZE) as gray):
        for k in range(count):
            frame, labels = draw(SIZE, motion[k], turn[k], plates[k // 12])
            video.write(frame)
            gray.write(labels)
    for shot, plate in zip(shots, plates):
        write_png(clip.root / shot.background, plate)
    save_array(clip.torso_motion, motion)
    save_array(clip.poses, poses)
    clip.save_info(ClipInfo("toy", "toy.mp4", "0" * 64, SIZE, SIZE, count, (FOCAL, FOCAL, SIZE / 2, SIZE / 2),
                            (0, 0, SIZE), shots, split={"train": [(0, 20)], "test": [(20, 24)]}))
    return clip


@pytest.fixture(scope="session")
def true_heads() -> Callable[[Clip], Callable[[np.ndarray], torch.Tensor]]:
    """Stands in for stage 2: frames cut out by their head labels, the cut softened by a pixel so as not to be exact."""

    def of(clip: Clip) -> Callable[[np.ndarray], torch.Tensor]:
        def head_renderer(indices: np.ndarray) -> torch.Tensor:
            frames = torch.from_numpy(clip.read_frames(indices)).float() / 255
            alpha = torch.from_numpy(clip.read_labels(indices) >= 3).float()[:, None]
            alpha = torch.nn.functional.avg_pool2d(alpha, 3, 1, 1).permute(0, 2, 3, 1)
            return torch.cat([frames * alpha, alpha], -1)

        return head_renderer

    return of
