import cv2
import numpy as np

from process_data.torso_motion import compose, decompose, track_torso
from shared.clip import TORSO


def test_compose_and_decompose_are_inverse():
    center = np.array([128.0, 100.0])
    motion = np.array([12.0, -7.0, 0.1, 1.08])
    np.testing.assert_allclose(decompose(compose(motion, center), center), motion, atol=1e-12)
    # a point to the right of the centre turns clockwise in the image for a positive angle
    moved = compose(np.array([0, 0, np.pi / 2, 1.0]), center) @ [138, 100, 1]
    np.testing.assert_allclose(moved, [128, 110], atol=1e-9)


def test_known_similarities_are_recovered_to_half_a_pixel_also_after_a_cut():
    rng = np.random.default_rng(0)
    cloth = cv2.GaussianBlur(rng.integers(0, 256, (256, 256, 3)).astype(np.uint8), (0, 0), 2)
    cloth = cv2.normalize(cloth, None, 0, 255, cv2.NORM_MINMAX)
    labels = np.zeros((256, 256), np.uint8)
    labels[60:250, 20:236] = TORSO
    center = np.array([128.0, 128.0])
    t = np.arange(40)
    truth = np.stack([6 * np.sin(t / 7), 4 * np.cos(t / 9) - 4, 0.04 * np.sin(t / 11), 1 + 0.02 * np.sin(t / 8)], -1)
    truth[25:, 0] += 30  # a jump cut
    pairs = []
    for row in truth:
        matrix = compose(row, center)
        matrix = matrix.copy()
        matrix[:, 2] += matrix[:, :2] @ [0.5, 0.5] - 0.5  # warpAffine counts from pixel centres
        pairs.append((cv2.warpAffine(cloth, matrix, (256, 256)), cv2.warpAffine(labels, matrix, (256, 256), flags=0)))
    found = track_torso(iter(pairs), (cloth, labels), [(0, 25), (25, 40)])
    assert np.abs(found[:, :2] - truth[:, :2]).max() < 0.5
    assert np.abs(found[:, 2] - truth[:, 2]).max() < 0.003
    assert np.abs(found[:, 3] - truth[:, 3]).max() < 0.003


def test_without_texture_the_torso_stays_where_it_is():
    blank = np.full((64, 64, 3), 128, np.uint8)
    labels = np.full((64, 64), TORSO, np.uint8)
    found = track_torso(iter([(blank, labels)] * 9), (blank, labels), [(0, 9)])
    np.testing.assert_array_equal(found, np.tile(np.float32([0, 0, 0, 1]), (9, 1)))
