"""Distances between tracked points and the fitted head."""

import numpy as np

from process_data.tracking.bundle_adjustment import PoseFit, Tracks
from process_data.tracking.residuals import residuals
from shared.camera import pose_matrix, project

CAMERA = (600.0, 600.0, 128.0, 128.0)


def test_residuals_are_those_put_in():
    """30 frames of 5 common points and two sets of 4 corners, 3 of which exist in the second; every point off by a known way."""
    rng = np.random.default_rng(0)
    points = np.concatenate([rng.normal(0, 0.03, (13, 3))])
    poses = pose_matrix(np.tile(np.diag([1.0, -1, -1]), (30, 1, 1)), np.array([0, 0, 0.8]) + 0.01 * rng.normal(size=(30, 3)))
    reference = np.stack([np.arange(30) % 2, np.full(30, -1)], axis=1)
    off = 0.1 * (1 + np.arange(30))
    tracks = Tracks(np.full((30, 13, 2), np.nan), reference, np.ones(13), points, 5)
    exact = project(points[tracks.index(slice(None))], poses.astype(float), CAMERA)
    tracks.pixels[:, :5] = exact[:, :5] + [0, 2.0]
    tracks.pixels[:, 5:8] = exact[:, 5:8] + np.stack([off, 0 * off], axis=1)[:, None]
    tracks.pixels[4, 5:] = np.nan  # no corner is found
    good = np.arange(30) < 20
    found = residuals(tracks, PoseFit(points, poses, (0.0, 0.0)), np.array([4, 3]), good, CAMERA)
    np.testing.assert_allclose(found.detector, 2, atol=1e-4)
    np.testing.assert_allclose(found.corners, np.where(np.arange(30) == 4, np.nan, off), atol=1e-4)
    np.testing.assert_allclose(found.followed, np.where(np.arange(30) == 4, 0, np.where(np.arange(30) % 2, 1, 0.75)))
    assert set(found.examples) == set(range(20)) - {4}
    seen, expected = found.examples[19]
    np.testing.assert_allclose(seen - expected, np.tile([off[19], 0], (3, 1)), atol=1e-3)
