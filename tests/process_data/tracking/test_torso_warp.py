"""The warp against deformations that are known: drawn by looking each pixel up where the formula of docs/formats.md says."""

import cv2
import numpy as np
import pytest
import torch

from process_data.tracking.torso_motion import TorsoTracker, compose, fill_and_smooth, inverse, pyramid
from process_data.tracking.torso_warp import COLUMNS, GRID, Lattice, WarpTracker, stiffness
from shared.clip import HEAD, TORSO
from torso_styleunet.warp import frame_to_plate, pixel_centres

SIZE = 256
FACE = np.random.default_rng(3).uniform(-30, 30, (68, 2)).astype(np.float32) + [128, 60]


def smooth_noise(seed, sigma, size=SIZE):
    noise = np.random.default_rng(seed).normal(size=(size, size, 3))
    return cv2.normalize(cv2.GaussianBlur(noise, (0, 0), sigma), None, 0, 255, cv2.NORM_MINMAX).astype(np.float32)


def bend(seed, pixels):
    """Random smooth control points (GRID, GRID, 2) of about `pixels`."""
    coarse = np.random.default_rng(seed).normal(size=(4, 4, 2)).astype(np.float32)
    return pixels * cv2.resize(coarse, (GRID, GRID), interpolation=cv2.INTER_CUBIC)


def row(similarity, warp):
    return np.concatenate([np.asarray(similarity, np.float32), warp.ravel().astype(np.float32)])


def lookup(motion, size=SIZE):
    """Where each pixel of a frame lies in the reference: (size, size, 2)."""
    return frame_to_plate(pixel_centres(size, size, "cpu")[None], torch.from_numpy(motion[None]), size, size)[0].numpy()


def scene(motion, noise=0.0):
    """(frame, labels) of a torso under `motion` before a still room, a head above it that hides its top."""
    mask = np.zeros((SIZE, SIZE), np.uint8)
    cv2.ellipse(mask, (128, 250), (100, 130), 0, 0, 360, 1, -1)
    places = lookup(motion) - 0.5
    moved = cv2.remap(smooth_noise(0, 3) / 3 + 20, places, None, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
    over = cv2.remap(mask.astype(np.float32), places, None, cv2.INTER_LINEAR)
    frame = smooth_noise(1, 12) / 4 + 150
    frame = frame * (1 - over[..., None]) + moved * over[..., None]
    labels = (over > 0.5).astype(np.uint8) * TORSO
    cv2.circle(frame, (128, 90), 45, (220, 170, 140), -1)
    cv2.circle(labels, (128, 90), 45, HEAD, -1)
    frame += np.random.default_rng(2).normal(0, noise, frame.shape) if noise else 0
    return np.clip(frame, 0, 255).astype(np.uint8), labels


def apart(found, truth, labels):
    """Distances, pixels, between where two motions look the torso's pixels up."""
    return np.linalg.norm(lookup(np.asarray(found, np.float32)) - lookup(truth), axis=-1)[labels == TORSO]


REST = row([0, 0, 0, 1], np.zeros((GRID, GRID, 2)))


@pytest.fixture(scope="module")
def tracker():
    return WarpTracker([scene(REST)], FACE[None], [(0, 9)])


@pytest.mark.parametrize("seed", range(4))
def test_known_deformations_are_recovered(tracker, seed):
    truth = row([3.0 * seed - 4, 2.0 - seed, 0.02 * seed, 1.01], bend(seed, 3.0))
    frame, labels = scene(truth, noise=3.0)
    found = tracker.motion(1, frame, labels, FACE)
    without = row(found[:4], np.zeros((GRID, GRID, 2)))
    left, before = apart(found, truth, labels), apart(without, truth, labels)
    assert before.mean() > 1.0
    assert left.mean() < 0.4 * before.mean() and left.mean() < 0.45


def test_a_similarity_alone_is_not_bent(tracker):
    truth = row([5, -3, 0.03, 1.02], np.zeros((GRID, GRID, 2)))
    frame, labels = scene(truth, noise=3.0)
    found = tracker.motion(1, frame, labels, FACE)
    assert apart(found, truth, labels).max() < 0.5 and np.abs(found[4:]).max() < 1.5


def test_the_similarity_is_the_one_without_a_warp_and_no_frame_depends_on_others(tracker):
    frame, labels = scene(row([2, 1, 0.01, 1], bend(7, 3.0)))
    plain = TorsoTracker([scene(REST)], FACE[None], [(0, 9)])
    found = tracker.motion(4, frame, labels, FACE)
    np.testing.assert_array_equal(found[:4], plain.similarity(4, pyramid(frame), labels, FACE))
    tracker.motion(5, *scene(row([-6, 0, 0, 1], bend(8, 3.0))), FACE)
    np.testing.assert_array_equal(tracker.motion(4, frame, labels, FACE), found)


def test_another_shot_is_bent_onto_the_same_reference_and_other_clothes_are_not():
    truths = [REST, row([4, 2, 0, 1], bend(1, 3.0)), row([4, 2, 0, 1.0], bend(1, 3.5))]
    other = np.ascontiguousarray(255 - smooth_noise(7, 5)).astype(np.uint8), np.full((SIZE, SIZE), TORSO, np.uint8)
    shots = [scene(REST), scene(truths[1]), other]
    tracker = WarpTracker(shots, np.stack([FACE] * 3), [(0, 5), (5, 8), (8, 9)])
    assert tracker.unmatched == [2]
    frame, labels = scene(truths[2])
    assert apart(tracker.motion(6, frame, labels, FACE), truths[2], labels).mean() < 0.25
    assert np.isnan(tracker.motion(8, *other, FACE)[4:]).all()


def test_where_nothing_is_found_there_is_no_warp():
    blank = np.full((64, 64, 3), 128, np.uint8), np.full((64, 64), TORSO, np.uint8)
    tracker = WarpTracker([blank], FACE[None], [(0, 9)])
    rows = np.array([tracker.motion(t, *blank, FACE) for t in range(9)])
    assert np.isnan(rows).all() and rows.shape == (9, COLUMNS)
    np.testing.assert_array_equal(fill_and_smooth(rows, [(0, 9)]), np.tile(REST, (9, 1)))


def test_chained_warps_lead_where_one_after_the_other_does():
    lattice, zoom = Lattice(SIZE, SIZE), compose(np.array([6.0, -4, 0.03, 1.1]), np.array([SIZE / 2, SIZE / 2]))
    second, first = bend(1, 2.0), bend(2, 2.0)
    both = lattice.chained(zoom, second, first)
    points = np.random.default_rng(0).uniform(60, 200, (50, 2))
    there = lattice.moved(second, points @ zoom[:, :2].T + zoom[:, 2])
    back = inverse(zoom)
    home = lattice.moved(first, there @ back[:, :2].T + back[:, 2])
    assert np.linalg.norm(home - points, axis=1).mean() > 1
    assert np.linalg.norm(lattice.moved(both, points) - home, axis=1).max() < 0.15
    np.testing.assert_allclose(lattice.chained(np.eye(2, 3), second, 0 * first), second, atol=1e-5)


def test_warps_are_filled_and_smoothed_within_shots_like_similarities():
    t = np.arange(20.0)
    rows = np.tile(REST.astype(float), (20, 1))
    rows[:, 4] = np.where(t < 10, 0.1 * t, 5)
    rows[3, 4:] = np.nan
    out = fill_and_smooth(rows, [(0, 10), (10, 20)])
    np.testing.assert_allclose(out[:, 4], np.where(t < 10, 0.1 * t, 5), atol=1e-5)
    assert out.dtype == np.float32 and (out[:, :4] == [0, 0, 0, 1]).all()


def test_planes_bend_nothing():
    y, x = np.mgrid[:5, :5]
    plane = (2 * x - 3 * y + 1.0).ravel()
    held = stiffness(5, LENGTH := 0.003, 0.1)
    np.testing.assert_allclose(plane @ held @ plane, LENGTH * plane @ plane, rtol=1e-9)
    assert (x * y).ravel() @ held @ (x * y).ravel() > 1
