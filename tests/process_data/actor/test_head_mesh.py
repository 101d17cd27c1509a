"""The mesh rasteriser against a slow reference, and the head mesh against its landmarks."""

import numpy as np
import pytest
from scipy.spatial import ConvexHull

from process_data.actor.head_mesh import build_head
from process_data.actor.identity import make_identity
from process_data.actor.mesh_raster import perspective_weights, vertex_normals, visible_triangles
from process_data.actor.polygons import signed_distance
from process_data.actor.proportions import neutral_landmarks
from process_data.actor.skin import LIDS, LIP_INNER, build_skin, spline_weights
from shared.landmark_edit import apply_blink


@pytest.fixture(scope="module")
def head():
    identity = make_identity(0)
    return build_head(identity, build_skin(identity, neutral_landmarks(identity)))


def slow_visible(points, depth, triangles, height, width):
    """Every pixel against every triangle, with barycentric weights from a linear solve."""
    ids, nearest = np.full((height, width), -1), np.zeros((height, width))
    for f, corners in enumerate(triangles):
        matrix = np.vstack([points[corners].T, np.ones(3)])
        (ax, ay), (bx, by), (cx, cy) = points[corners]
        if (bx - ax) * (cy - ay) - (by - ay) * (cx - ax) >= 0:
            continue
        for row in range(height):
            for column in range(width):
                weights = np.linalg.solve(matrix, [column + 0.5, row + 0.5, 1])
                if weights.min() >= 0 and weights @ (1 / depth[corners]) > nearest[row, column]:
                    nearest[row, column] = weights @ (1 / depth[corners])
                    ids[row, column] = f
    return ids, nearest


def test_rasteriser_equals_slow_reference():
    rng = np.random.default_rng(0)
    points = rng.uniform(-4, 26, (24, 2))
    depth = rng.uniform(0.5, 2.0, 24)
    triangles = rng.permutation(24).reshape(8, 3).astype(np.int32)
    ids, inverse = visible_triangles(points, depth, triangles, 20, 22)
    expected_ids, expected_inverse = slow_visible(points, depth, triangles, 20, 22)
    assert (expected_ids >= 0).sum() > 50
    np.testing.assert_array_equal(ids, expected_ids)
    np.testing.assert_allclose(inverse, expected_inverse, atol=1e-9)


def test_triangles_behind_the_camera_or_turned_away_are_not_drawn():
    points = np.array([[0.0, 0.0], [0.0, 8.0], [8.0, 0.0]])
    front, back = np.array([[0, 1, 2]], np.int32), np.array([[0, 2, 1]], np.int32)
    assert (visible_triangles(points, np.ones(3), front, 8, 8)[0] >= 0).any()
    assert not (visible_triangles(points, np.ones(3), back, 8, 8)[0] >= 0).any()
    assert not (visible_triangles(points, np.array([1.0, 1.0, -1.0]), front, 8, 8)[0] >= 0).any()


def test_perspective_weights_recover_the_point_in_space():
    corners = np.array([[-1.0, -1.0, 2.0], [1.5, -0.5, 4.0], [0.0, 1.2, 3.0]])
    place = np.array([0.2, 0.5, 0.3]) @ corners
    weights = perspective_weights(corners[:, :2] / corners[:, 2:], corners[:, 2], 0, 1, 2, *(place[:2] / place[2]))
    np.testing.assert_allclose(weights, [0.2, 0.5, 0.3], atol=1e-12)


def test_normals_of_a_sphere_point_outwards():
    vertices = np.random.default_rng(1).normal(size=(2000, 3))
    vertices /= np.linalg.norm(vertices, axis=1, keepdims=True)
    triangles = ConvexHull(vertices).simplices
    a, b, c = (vertices[triangles[:, k]] for k in range(3))
    inward = (np.cross(b - a, c - a) * a).sum(1) < 0
    triangles[inward] = triangles[inward][:, [0, 2, 1]]
    assert ((vertex_normals(vertices, triangles) * vertices).sum(1) > 0.97).all()


def test_signed_distance_of_a_square():
    square = np.array([[0.0, 0.0], [2.0, 0.0], [2.0, 2.0], [0.0, 2.0]])
    points = np.array([[1.0, 1.0], [1.0, 1.8], [3.0, 1.0], [3.0, 3.0]])
    np.testing.assert_allclose(signed_distance(points, square), [1.0, 0.2, -1.0, -np.sqrt(2)], atol=1e-12)


def test_landmark_vertices_are_the_landmarks(head):
    edited = head.neutral + np.random.default_rng(2).normal(0, 0.004, (68, 3))
    np.testing.assert_array_equal(head.vertices(edited)[:68], edited)


def test_the_skin_around_a_landmark_follows_it(head):
    moved = head.neutral.copy()
    moved[[65, 66, 67, 55, 56, 57, 58, 59]] += [0, -0.01, 0]
    change = np.linalg.norm(head.vertices(moved) - head.vertices(head.neutral), axis=1)[: head.skin_count]
    rest = head.vertices(head.neutral)[: head.skin_count]
    below = np.linalg.norm(rest - head.neutral[57] - [0, -0.003, 0], axis=1) < 0.004
    brow = (rest[:, 1] > 0.01) & (rest[:, 2] > -0.01)
    assert below.sum() >= 3 and change[below].min() > 0.004
    assert change[brow].max() < 0.001


def test_closed_lips_leave_no_gap_and_closed_lids_meet(head):
    s = np.linspace(0, 1, 33)
    upper, lower = (spline_weights(knots, s) @ head.neutral for knots in LIP_INNER)
    assert np.abs(upper - lower).max() < 1e-6
    closed = apply_blink(head.neutral[None], np.ones(1))[0]
    for pair in LIDS:
        upper, lower = (spline_weights(knots, s) @ closed for knots in pair)
        assert np.abs(upper - lower).max() < 2e-4


def test_neutral_follows_the_landmark_convention():
    for seed in range(4):
        neutral = neutral_landmarks(make_identity(seed))
        np.testing.assert_allclose(neutral[45] - neutral[36], [0.09, 0, 0], atol=1e-9)
        np.testing.assert_allclose((neutral[45] + neutral[36]) / 2, 0, atol=1e-9)
