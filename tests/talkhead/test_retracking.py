"""What is measured on finished videos, with pictures and landmarks whose figures are known."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from process_data.retrack import KnownHead
from shared.camera import pose_matrix
from shared.clip import BACKGROUND, HEAD, NECK
from shared.face_check import TEMPLATE
from shared.landmarks import LIPS_INNER
from talkhead import retracking
from talkhead.retracking import Masks, Pictures, Retracked, as_record, compare_lips, finished_frames, retrack_split

SIZE, FRAMES = 64, 30
INTRINSICS = (140.8, 140.8, 32.0, 32.0)
POSES = np.repeat(pose_matrix(np.diag([1.0, -1, -1]), np.array([0, 0, 0.8]))[None], FRAMES, 0)


def talking():
    rows = np.repeat(TEMPLATE[None], FRAMES, 0).astype(np.float32)
    rows[:, LIPS_INNER[5:], 1] -= 0.004 * (1 + np.sin(np.arange(FRAMES) / 2))[:, None]
    return rows


@pytest.fixture
def clip():
    """Grey noise; a head above row 40, a neck of 20 columns below."""
    video = np.random.default_rng(0).integers(90, 110, (FRAMES, SIZE, SIZE, 3)).astype(np.uint8)
    labels = np.full((FRAMES, SIZE, SIZE), BACKGROUND, np.uint8)
    labels[:, 10:40, 16:48], labels[:, 40:, 22:42] = HEAD, NECK
    rows, shots = talking(), np.repeat([0, 1], [20, 10])
    return SimpleNamespace(
        info=SimpleNamespace(width=SIZE, height=SIZE, frames=FRAMES, intrinsics=INTRINSICS, excluded=[]), video=video,
        split=lambda name: np.arange(FRAMES), shot_of_frames=lambda: shots, load_landmarks=lambda: rows,
        load_poses=lambda: POSES, load_neutral=lambda: rows[:1], load_torso_motion=lambda: np.zeros((FRAMES, 4), np.float32),
        load_gaze=lambda: np.zeros((FRAMES, 2), np.float32),
        load_plates=lambda: np.stack([np.full((SIZE, SIZE, 3), grey, np.uint8) for grey in (50, 200)]),
        read_frames=lambda index: video[index], read_labels=lambda index: labels[index])


class FlatRenderer:
    """Finished frames are the plate plus the first landmark's and the pose's mark, so that each tells what it was made of."""

    device = torch.device("cpu")

    def plate(self, rgb):
        return torch.as_tensor(rgb).float() / 255

    def head_rgba(self, landmarks, poses, motion, gaze=None):
        return torch.as_tensor(landmarks[:, 0, 0])

    def compose(self, head, poses, motion, background):
        return (background + head[:, None, None, None]).clamp(0, 1)


def test_finished_frames_are_those_of_the_renderer_without_a_mark_over_the_plates_of_their_shots(clip):
    marks = np.linspace(0, 0.2, FRAMES, dtype=np.float32)
    landmarks = np.zeros((FRAMES, 68, 3), np.float32)
    landmarks[:, 0, 0] = marks
    frames = np.arange(3, FRAMES)
    made = np.stack(list(finished_frames(FlatRenderer(), clip, frames, landmarks, POSES)))
    plate = np.where(frames < 20, 50, 200) / 255
    wanted = np.round(255 * np.minimum(plate + marks[frames], 1)).astype(np.uint8)
    assert (made == wanted[:, None, None, None]).all()  # every pixel: nothing is drawn over them


def test_the_jaw_line_and_the_face_are_measured_apart(clip):
    masks = Masks(clip, np.arange(FRAMES))
    regions = masks.of_frame(0)
    band, face = regions["jaw–neck"], regions["face"]
    assert masks.reach == 1 and not (band & face).any()
    assert np.argwhere(band)[:, 0].min() == 39 and np.argwhere(band)[:, 0].max() == 40
    wrong = clip.video.copy()
    wrong[:, band] += 25
    watched = Pictures(clip, np.arange(FRAMES), masks, {0, 29})
    assert sum(1 for _ in watched.watch(wrong)) == FRAMES
    row = watched.row()
    assert row["jaw–neck dB"] == pytest.approx(20 * np.log10(255 / 25), abs=1e-3) and row["face dB"] == pytest.approx(100)
    assert row["flicker"] == pytest.approx(1) and sorted(watched.kept) == [0, 29]


def test_a_still_picture_does_not_flicker(clip):
    frames = np.arange(FRAMES)
    watched = Pictures(clip, frames, Masks(clip, frames), set())
    list(watched.watch(np.repeat(clip.video[:1], FRAMES, 0)))
    assert watched.row()["flicker"] == 0


def test_lips_that_come_late_are_late_and_unrelated_ones_have_no_lag():
    rows = talking()
    head = KnownHead(rows, POSES, TEMPLATE, np.eye(3), TEMPLATE[:, 2], [(0, FRAMES)], INTRINSICS)
    every = np.ones(FRAMES, bool)
    same = compare_lips(rows, every, head)
    assert same["lips px"] == 0 and same["opening r"] == pytest.approx(1) and same["velocity"] == pytest.approx(1)
    late = compare_lips(np.roll(rows, 1, 0), every, head)
    assert late["lag ms"] == pytest.approx(40, abs=8)
    assert late["px at 512"] == pytest.approx(late["lips px"] * 512 / SIZE)
    assert "lag ms" not in compare_lips(np.repeat(rows[:1], FRAMES, 0), every, head)
    assert compare_lips(np.full_like(rows, np.nan), ~every, head) == {"face lost": 1.0}
    every[3] = False
    assert compare_lips(rows, every, head)["face lost"] == pytest.approx(1 / FRAMES)


def test_every_row_is_written_read_and_tracked(clip, monkeypatch):
    seen = {}

    def tracked(pictures, head, detector):
        pictures = np.stack(list(pictures))
        seen[len(seen)] = pictures
        return head.landmarks, np.ones(len(pictures), bool)

    monkeypatch.setattr(retracking, "retrack", tracked)
    driving = {"still": np.zeros((FRAMES, 68, 3), np.float32)}
    made = retrack_split(FlatRenderer(), clip, "test", driving, POSES, None, sheet=2, quiet=True)
    assert list(made.table) == ["true video", "still"] and made.table["still"]["driving r"] == 0
    assert np.abs(seen[0].astype(float) - clip.video).mean() < 5  # the true video, encoded again
    assert np.abs(seen[1][:20].astype(float) - 50).max() <= 2 and np.abs(seen[1][20:].astype(float) - 200).max() <= 2
    assert [len(pictures) for pictures in made.pictures.values()] == [2, 2]
    record = as_record(Retracked({}, np.arange(2), {"a": np.array([0.001, np.nan])}, {}))
    assert record == {"frames": [0, 1], "opening mm": {"a": [1.0, None]}}
