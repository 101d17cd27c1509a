"""Flicker of arrays whose noise is known, the choice of the still stretch, and that a held pose does not flicker at all."""

import numpy as np
import pytest
import torch

from shared.camera import pose_matrix
from shared.clip import BACKGROUND, HEAD, MOUTH, NECK
from stage2_gaussian.config import Stage2Config, resolve
from stage2_gaussian.dataset import HeadDataset
from stage2_gaussian.evaluation.flicker import deviation, landmark_motion, measure_flicker, still_regions, stillest_stretch
from stage2_gaussian.train import new_head

CPU = torch.device("cpu")


def test_noise_keeps_its_deviation_and_steady_change_counts_nothing():
    rng = np.random.default_rng(0)
    noise = torch.from_numpy(100 + rng.normal(0, 3, (50, 40, 40, 3)))
    assert float(deviation(noise).mean()) == pytest.approx(3, rel=0.01)
    drift = torch.arange(50.0)[:, None, None, None].expand(50, 4, 4, 3)
    assert not deviation(drift).any()
    assert not deviation(torch.full((15, 4, 4, 3), 77, dtype=torch.uint8)).any()


@pytest.mark.parametrize("hertz, gain", [(12.5, 4 / 6**0.5), (2.0, 0.1010)])
def test_fast_change_counts_more_than_slow(hertz, gain):
    t = np.arange(50) / 25
    wave = torch.from_numpy(100 + 5 * np.sqrt(2) * np.cos(2 * np.pi * hertz * t + 0.7 * (hertz < 12)))
    if hertz == 12.5:
        wave = torch.from_numpy(100 + 5 * (-1.0) ** np.arange(50))
    value = float(deviation(wave[:, None, None, None].expand(50, 1, 1, 3)))
    assert value == pytest.approx(5 * gain, rel=0.02)


def test_landmark_motion_is_in_pixels():
    poses = np.stack([pose_matrix(np.diag([1.0, -1, -1]), np.array([x, 0, 0.5])) for x in (0, 0, 0.001)])
    moved = landmark_motion(np.zeros((3, 68, 3)), poses, (1000, 1000, 128, 128))
    assert moved == pytest.approx([0, 0, 2], abs=1e-3)


def test_the_longest_stretch_that_is_nearly_as_still_as_any():
    motion, shots = np.full(200, 1.0), np.zeros(200, int)
    motion[60:90] = 0.1
    rows = stillest_stretch(motion, np.arange(200), shots)
    assert rows.tolist() == list(range(59, 90))  # the first frame's own motion lies before the stretch
    motion[61:] = 0.1
    assert len(stillest_stretch(motion, np.arange(200), shots)) == 50
    assert len(stillest_stretch(0 * motion, np.arange(20), shots)) == 20


def test_a_stretch_crosses_neither_cuts_nor_gaps():
    motion, shots = np.full(100, 0.5), np.repeat([0, 1], 50)
    motion[42:58] = 0.0
    rows = stillest_stretch(motion, np.arange(100), shots)
    assert len(set(shots[rows])) == 1
    indices = np.array([t for t in range(100) if t % 16])
    assert np.ptp(indices[stillest_stretch(motion, indices, np.zeros(100, int))]) == 14
    assert len(stillest_stretch(motion, np.array([t for t in range(100) if t % 15]), shots)) == 0
    assert len(stillest_stretch(motion, np.arange(0), shots)) == 0


def test_regions_keep_away_from_what_moves_and_from_the_neck():
    labels = torch.full((3, 40, 40), BACKGROUND)
    labels[:, 10:30, 10:30] = HEAD
    labels[1, 18:22, 18:22] = MOUTH
    labels[2, 10:30, 30] = HEAD  # the outline of one frame
    labels[:, 30:, 10:30] = NECK
    found = still_regions(labels, 2)
    inside = found["head"].nonzero()
    assert inside.amin(0).tolist() == [12, 12] and inside.amax(0).tolist() == [27, 27]
    edge = found["hair edge"]
    assert not (edge & found["head"]).any() and not edge[28:, 8:32].any()
    assert edge[8, 20] and edge[11, 20] and not edge[7, 20] and not edge[12, 20]
    assert edge[20, 32] and edge[20, 28] and not edge[20, 33]


@pytest.fixture(scope="module")
def still(cartoon):
    """An untrained head and 16 frames, all with the first one's landmarks."""
    head = new_head(cartoon, cartoon.split("train"), resolve(Stage2Config(splats=600, rank=6, hidden=16), CPU, 96, 96))
    data = HeadDataset(cartoon, np.arange(16), CPU)
    data.landmarks = data.landmarks[:1].expand(16, -1, -1).contiguous()
    return head.requires_grad_(False), data


def test_a_head_that_is_held_does_not_flicker(still):
    head, data = still
    held = data.poses[:1].expand(16, -1, -1).contiguous()
    found = measure_flicker(head, data, held, batch=5)
    assert found["head"][1] == (0, 0) and found["hair edge"][1] == (0, 0)
    assert found["head"][0].mean > 0.1  # the cartoon sways


def test_jitter_of_the_pose_is_flicker(still):
    head, data = still
    rng = np.random.default_rng(0)
    values = []
    for shake in (0.0005, 0.002):
        jittered = data.poses[:1].repeat(16, 1, 1)
        jittered[:, :2, 3] += torch.from_numpy(rng.normal(0, shake, (16, 2))).float()
        values.append(measure_flicker(head, data, jittered, batch=8)["head"][1])
    assert 0.1 < values[0].mean < 0.5 * values[1].mean and values[1].high > 2 * values[1].mean
