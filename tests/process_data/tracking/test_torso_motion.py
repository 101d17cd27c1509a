import cv2
import numpy as np
import pytest

from process_data.tracking.torso_motion import (
    TorsoTracker,
    choose_references,
    compose,
    concatenate,
    decompose,
    face_similarity,
    fill_and_smooth,
    inverse,
    pyramid,
)
from shared.camera import pose_matrix
from shared.clip import HEAD, TORSO

SIZE = 256
CENTRE = np.array([SIZE / 2, SIZE / 2])


def move(picture, motion, interpolation=cv2.INTER_LINEAR, border=0):
    matrix = compose(motion, CENTRE)
    matrix[:, 2] += matrix[:, :2] @ [0.5, 0.5] - 0.5  # warpAffine counts from pixel centres
    return cv2.warpAffine(picture, matrix, (SIZE, SIZE), flags=interpolation, borderValue=border)


def smooth_noise(seed, sigma):
    noise = np.random.default_rng(seed).normal(size=(SIZE, SIZE, 3))
    return cv2.normalize(cv2.GaussianBlur(noise, (0, 0), sigma), None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)


def person():
    """A patterned torso with round shoulders that reaches below the picture, before a still room; a head in front."""
    mask = np.zeros((SIZE, SIZE), np.uint8)
    cv2.ellipse(mask, (128, 250), (100, 130), 0, 0, 360, 1, -1)
    return smooth_noise(0, 3) // 3 + 20, mask


def scene(motion, face, hand=None, noise=0.0):
    """(frame, labels) with the torso under `motion`, the head at `face` (x, y) and perhaps a hand (x, y) in front."""
    cloth, mask = person()
    frame = smooth_noise(1, 12) // 4 + 150
    over = move(mask.astype(np.float32), motion)[..., None]
    frame = frame * (1 - over) + move(cloth, motion) * over
    labels = (move(mask, motion, cv2.INTER_NEAREST) > 0).astype(np.uint8) * TORSO
    cv2.circle(frame, tuple(int(v) for v in face), 45, (220, 170, 140), -1)
    cv2.circle(labels, tuple(int(v) for v in face), 45, HEAD, -1)
    if hand is not None:
        cv2.circle(frame, hand, 28, (225, 175, 150), -1)
    frame = frame + np.random.default_rng(2).normal(0, noise, frame.shape) if noise else frame
    return np.clip(frame, 0, 255).astype(np.uint8), labels


def face_pixels(face, scale=1.0):
    """(68,2) landmarks of a head in the middle of `face`."""
    return (np.random.default_rng(3).uniform(-30, 30, (68, 2)) * scale + face).astype(np.float32)


def similarity(tracker, t, frame, labels, face):
    return tracker.similarity(t, pyramid(frame), labels, face)


def corners_apart(found, truth):
    """Largest distance, pixels, between where two motions take points on the torso."""
    points = np.array([[40, 250], [216, 250], [60, 170], [196, 170], [128, 200]], float)
    a, b = (points @ matrix[:, :2].T + matrix[:, 2] for matrix in (compose(found, CENTRE), compose(truth, CENTRE)))
    return np.linalg.norm(a - b, axis=1).max()


def test_compose_and_decompose_are_inverse():
    motion = np.array([12.0, -7.0, 0.1, 1.08])
    np.testing.assert_allclose(decompose(compose(motion, CENTRE), CENTRE), motion, atol=1e-12)
    # a point to the right of the centre turns clockwise in the image for a positive angle
    moved = compose(np.array([0, 0, np.pi / 2, 1.0]), CENTRE) @ [138, 128, 1]
    np.testing.assert_allclose(moved, [128, 138], atol=1e-9)


def test_chain_and_inverse():
    a, b = compose(np.array([3, -4, 0.2, 1.1]), CENTRE), compose(np.array([-7, 2, -0.1, 0.9]), CENTRE)
    point = np.array([17.0, 230.0, 1.0])
    np.testing.assert_allclose(concatenate(b, a) @ point, b @ [*(a @ point), 1])
    np.testing.assert_allclose(concatenate(inverse(a), a), np.eye(2, 3), atol=1e-12)


def test_the_reference_is_a_good_frame_near_the_usual_pose():
    angles = np.array([0.5, 0.0, 0.02, -0.4, 0.03, 0.9, 0.9, 0.9])
    turn = np.array([[[np.cos(a), 0, np.sin(a)], [0, 1, 0], [-np.sin(a), 0, np.cos(a)]] for a in angles])
    poses = pose_matrix(turn @ np.diag([1.0, -1.0, -1.0]), np.tile([0, 0, 1.0], (8, 1)))
    good = np.array([True, False, False, True, True, False, False, False])
    assert choose_references([(0, 5), (5, 8)], poses, good) == [4, 6]  # the second shot has no good frame: its middle


@pytest.fixture(scope="module")
def tracked():
    """Two shots, zoomed and shifted against each other; head and torso move on their own. (tracker, truth, scenes, …)."""
    t = np.arange(30)
    truth = np.stack([9 * np.sin(t / 4), 5 * np.cos(t / 5), 0.05 * np.sin(t / 6), 1 + 0.03 * np.sin(t / 5)], -1)
    faces = np.stack([128 + 9 * np.sin(t / 4) + 8 * np.sin(t / 3), 80 + 4 * np.sin(t / 2)], -1)
    zoom = np.array([22.0, 9.0, 0.02, 1.12])
    truth[20:] = [decompose(concatenate(compose(zoom, CENTRE), compose(row, CENTRE)), CENTRE) for row in truth[20:]]
    faces[20:] = faces[20:] @ compose(zoom, CENTRE)[:, :2].T + compose(zoom, CENTRE)[:, 2]
    pixels = np.array([face_pixels(face, 1.12 if t >= 20 else 1.0) for t, face in enumerate(faces)])
    scenes = [scene(row, face) for row, face in zip(truth, faces)]
    numbers = [10, 25]
    tracker = TorsoTracker([scenes[n] for n in numbers], pixels[numbers], [(0, 20), (20, 30)])
    relative = [decompose(concatenate(compose(row, CENTRE), inverse(compose(truth[10], CENTRE))), CENTRE) for row in truth]
    return tracker, np.array(relative), scenes, faces, truth, pixels


def test_known_similarities_are_recovered_also_after_a_zooming_cut(tracked):
    tracker, relative, scenes, _, _, pixels = tracked
    assert tracker.unmatched == []
    found = np.array([similarity(tracker, t, *pair, pixels[t]) for t, pair in enumerate(scenes)])
    assert max(corners_apart(a, b) for a, b in zip(found[:20], relative)) < 0.25
    assert max(corners_apart(a, b) for a, b in zip(found[20:], relative[20:])) < 0.5


def test_the_answer_does_not_depend_on_the_frames_before(tracked):
    tracker, _, scenes, _, _, pixels = tracked
    first = similarity(tracker, 15, *scenes[15], pixels[15])
    for t in (3, 27, 14):
        similarity(tracker, t, *scenes[t], pixels[t])
    np.testing.assert_array_equal(similarity(tracker, 15, *scenes[15], pixels[15]), first)


def test_hands_and_sensor_noise_do_not_pull_it(tracked):
    tracker, relative, _, faces, truth, pixels = tracked
    for t, hand in ((3, (90, 215)), (8, (160, 190)), (17, (128, 225))):
        found = similarity(tracker, t, *scene(truth[t], faces[t], hand, noise=4.0), pixels[t])
        assert corners_apart(found, relative[t]) < 0.4


def test_where_the_torso_is_hidden_it_is_lost(tracked):
    tracker, _, scenes, _, _, pixels = tracked
    hidden = np.full((SIZE, SIZE), HEAD, np.uint8)
    assert np.isnan(similarity(tracker, 4, scenes[4][0], hidden, pixels[4])).all()


def test_another_torso_is_tied_by_the_face_and_said_so():
    pixels = np.array([face_pixels((128, 80))] * 4 + [face_pixels((140, 85), 1.1)] * 2)
    cloth = scene(np.array([0, 0, 0, 1.0]), (128, 80))
    other = np.ascontiguousarray(255 - smooth_noise(7, 5)), np.full((SIZE, SIZE), TORSO, np.uint8)
    tracker = TorsoTracker([cloth, other], pixels[[1, 4]], [(0, 4), (4, 6)])
    assert tracker.unmatched == [1]
    expected = decompose(face_similarity(pixels[1], pixels[4]), CENTRE)
    np.testing.assert_allclose(similarity(tracker, 4, *other, pixels[4]), expected, atol=0.02)


def test_without_texture_the_torso_stays_where_it_is():
    blank = np.full((64, 64, 3), 128, np.uint8), np.full((64, 64), TORSO, np.uint8)
    face = face_pixels((32, 32))
    tracker = TorsoTracker([blank], face[None], [(0, 9)])
    found = fill_and_smooth(np.array([similarity(tracker, t, *blank, face) for t in range(9)]), [(0, 9)])
    np.testing.assert_array_equal(found, np.tile(np.float32([0, 0, 0, 1]), (9, 1)))


def test_gaps_are_filled_and_noise_goes_but_not_across_cuts():
    t = np.arange(60)
    truth = np.stack([10 * np.sin(2 * np.pi * t / 25), 0.1 * t, 0 * t, 1 + 0 * t], -1)  # one hertz
    truth[40:, 0] += 30
    given = truth + np.random.default_rng(0).normal(0, 0.05, truth.shape) * [1, 1, 0.001, 0.001]
    given[[0, 7, 8, 39, 59]] = np.nan
    out = fill_and_smooth(given, [(0, 40), (40, 60)])
    assert out.dtype == np.float32
    inner = np.isfinite(given[:, 0])
    inner[[*range(3), *range(5, 11), *range(36, 43), *range(56, 60)]] = False  # beside gaps and the shots' ends
    assert np.abs(out - truth)[inner].max() < 0.15
    assert np.abs(out - truth)[:, 0].max() < 3  # a gap at a shot's end repeats its neighbour
    assert (out - truth)[inner].std(0)[1] < 0.9 * (given - truth)[inner].std(0)[1]


@pytest.mark.parametrize("size", [80, 150])
def test_small_pictures_have_fewer_levels(size):
    pairs = []
    for shift in (0.0, 8.0):
        frame, labels = scene(np.array([shift, 0, 0, 1.0]), (128, 80))
        pairs.append((cv2.resize(frame, (size, size), interpolation=cv2.INTER_AREA),
                      cv2.resize(labels, (size, size), interpolation=cv2.INTER_NEAREST)))
    face = face_pixels((size / 2, size / 3), size / SIZE)
    found = similarity(TorsoTracker([pairs[0]], face[None], [(0, 2)]), 1, *pairs[1], face)
    np.testing.assert_allclose(found, [8 * size / SIZE, 0, 0, 1], atol=0.15)
