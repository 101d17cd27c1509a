"""A cartoon person as a clip folder: flat polygons through the landmarks, exact labels and poses."""

from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from shared.camera import pose_matrix, project, rotation_from_rotvec
from shared.clip import Clip, ClipInfo, Shot
from shared.fixations import Fixations
from shared.gaze import save_gaze
from shared.landmarks import save_array, save_landmarks
from shared.media.video_io import GrayVideoWriter, VideoWriter, write_png
from stage2_gaussian.train import Trainer


def neutral_face() -> np.ndarray:
    """(68, 3) metres: a plausible face, outer eye corners 0.09 m apart."""
    def arc(cx, cy, rx, ry, degrees):
        a = np.radians(degrees)
        return np.stack([cx + rx * np.cos(a), cy + ry * np.sin(a)], 1)

    eye = [180, 120, 60, 0, -60, -120]
    xy = np.concatenate([
        arc(0, 0, 0.07, 0.115, np.linspace(180, 360, 17)),
        arc(-0.032, 0.012, 0.022, 0.012, np.linspace(160, 20, 5)),
        arc(0.032, 0.012, 0.022, 0.012, np.linspace(160, 20, 5)),
        np.stack([np.zeros(4), np.linspace(0, -0.035, 4)], 1),
        np.stack([np.linspace(-0.012, 0.012, 5), np.full(5, -0.045)], 1),
        arc(-0.0315, 0, 0.0135, 0.006, eye),
        arc(0.0315, 0, 0.0135, 0.006, eye),
        arc(0, -0.072, 0.025, 0.012, np.linspace(180, -150, 12)),
        arc(0, -0.072, 0.018, 0.002, np.linspace(180, -135, 8)),
    ])
    z = 0.03 - 8 * (xy[:, 0] ** 2) - 2 * np.minimum(xy[:, 1] + 0.05, 0) ** 2
    z[27:36] += 0.012
    return np.concatenate([xy, z[:, None]], 1).astype(np.float32)


def make_clip(root: Path, size: int, frames: int, held_out: int, looks: np.ndarray | None = None) -> Clip:
    """Write the cartoon's clip folder: the mouth opens, the eyes blink, the head sways. With a gaze (frames, 2) it has irises."""
    neutral = neutral_face()
    t = np.arange(frames)
    landmarks = np.repeat(neutral[None], frames, 0)
    opening = 0.012 * (1 + np.sin(t * 0.9)) / 2
    lower = [*range(55, 60), 65, 66, 67]
    landmarks[:, lower, 1] -= opening[:, None]
    landmarks[:, 5:12, 1] -= 0.7 * opening[:, None]
    shut = (t % 9 == 4)[:, None]
    for upper, under in ((37, 41), (38, 40), (43, 47), (44, 46)):
        landmarks[:, [upper], 1] = np.where(shut, landmarks[:, [under], 1], landmarks[:, [upper], 1])
    sway = np.stack([0.05 * np.sin(t * 0.31), 0.1 * np.sin(t * 0.17), 0 * t], 1)
    rotation = np.diag([1.0, -1, -1]) @ rotation_from_rotvec(sway)
    shift = np.stack([0.01 * np.sin(t * 0.23), 0.02 + 0 * t, 0.8 + 0 * t], 1)
    poses = pose_matrix(rotation, shift)
    intrinsics = (2.4 * size, 2.4 * size, size / 2, size / 2)
    y, x = np.mgrid[:size, :size] / size
    plate = (np.stack([0.3 + 0.2 * x, 0.4 + 0.2 * y, 0.6 - 0.2 * x], -1) * 255).astype(np.uint8)
    skull = np.radians(np.linspace(0, 180, 20))
    crown = np.stack([0.075 * np.cos(skull), 0.12 * np.sin(skull), np.full(20, -0.03)], 1)
    root.mkdir(parents=True)
    with VideoWriter(root / "video.mp4", size, size, crf=4) as video, \
            GrayVideoWriter(root / "labels.mkv", size, size) as labels:
        for k in range(frames):
            point = project(landmarks[k].astype(float), poses[k], intrinsics)
            top = project(crown, poses[k], intrinsics)
            picture, label = Image.fromarray(plate), Image.new("L", (size, size))

            def draw(polygon, color, value=None, picture=picture, label=label):
                path = [tuple(p) for p in polygon]
                ImageDraw.Draw(picture).polygon(path, fill=color)
                if value:
                    ImageDraw.Draw(label).polygon(path, fill=value)

            low = size * 0.78
            draw([(0, size), (size * 0.2, low), (size * 0.8, low), (size, size)], (60, 70, 110), 1)
            draw([(size * 0.42, size * 0.6), (size * 0.58, size * 0.6), (size * 0.6, low), (size * 0.4, low)],
                 (190, 140, 120), 2)
            draw(np.concatenate([point[:17], top]), (220, 170, 145), 3)
            draw(np.concatenate([top, point[17:27] - [0, size * 0.03]]), (70, 45, 30), 3)
            for eye in (slice(36, 42), slice(42, 48)):
                draw(point[eye], (245, 245, 245))
                if looks is not None:
                    width = np.linalg.norm(point[eye][3] - point[eye][0])
                    middle = (point[eye][0] + point[eye][3]) / 2 + looks[k] * width
                    corner = np.full(2, 0.25 * width)
                    ImageDraw.Draw(picture).ellipse([*(middle - corner), *(middle + corner)], fill=(20, 40, 90))
            draw(point[48:60], (180, 80, 80))
            draw(point[60:68], (60, 15, 20), 4)
            video.write(np.asarray(picture))
            labels.write(np.asarray(label))
    clip = Clip(root)
    save_landmarks(clip.landmarks, landmarks)
    save_landmarks(clip.neutral, neutral[None])
    save_array(clip.poses, poses)
    save_array(clip.torso_motion, np.tile(np.array([0, 0, 0, 1], np.float32), (frames, 1)))
    if looks is not None:
        save_gaze(clip.gaze, looks)
    write_png(clip.background, plate)
    clip.save_info(ClipInfo("cartoon", "none", "0" * 64, size, size, frames, intrinsics, (0, 0, size),
                            [Shot(0, frames, "background.png")],
                            split={"train": [(0, frames - held_out)], "test": [(frames - held_out, frames)]}))
    return clip


@pytest.fixture(scope="session")
def cartoon(tmp_path_factory) -> Clip:
    """40 frames of 96 × 96 pixels, the last 8 held out."""
    return make_clip(tmp_path_factory.mktemp("clips") / "cartoon", 96, 40, 8)


@pytest.fixture(scope="session")
def looking_cartoon(tmp_path_factory) -> Clip:
    """As `cartoon`, with eyes that look around and a gaze.npy that says where."""
    looks = Fixations(np.random.default_rng(0).uniform(-0.2, 0.2, (40, 2)) * [1, 0.2], 3).at(0, 40)
    return make_clip(tmp_path_factory.mktemp("clips") / "looking", 96, 40, 8, looks)


@pytest.fixture
def short_cartoon(tmp_path) -> Clip:
    """8 frames of 96 × 96 pixels, the last one held out; with a torso at rest, so that an avatar can be made of it."""
    clip = make_clip(tmp_path / "clips" / "cartoon", 96, 8, 1)
    save_array(clip.torso_motion, np.tile(np.array([0, 0, 0, 1], np.float32), (8, 1)))
    return clip


@pytest.fixture(scope="session")
def face() -> np.ndarray:
    """The cartoon's neutral landmarks (68, 3)."""
    return neutral_face()


@pytest.fixture
def tight_memory(monkeypatch) -> None:
    """A GPU whose memory holds one frame a step."""
    step = Trainer._advance

    def tight(self):
        if self.batch_size > 1:
            raise torch.OutOfMemoryError("no room")
        return step(self)

    monkeypatch.setattr(Trainer, "_advance", tight)


@pytest.fixture
def killed_at(monkeypatch):
    """`with killed_at(step):` expects that what is inside is interrupted before that training step."""
    @contextmanager
    def killed(at: int):
        step = Trainer.advance

        def dies(self):
            if self.step == at:
                raise KeyboardInterrupt
            return step(self)

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(Trainer, "advance", dies)
            yield

    return killed
