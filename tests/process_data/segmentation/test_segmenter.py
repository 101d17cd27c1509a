import pickle

import cv2
import numpy as np
import pytest

from process_data.actor.actor import actor_motion, default_intrinsics, make_background, render_actor
from process_data.actor.identity import make_identity
from process_data.actor.proportions import neutral_landmarks
from process_data.segmentation.colors import learn_colors, sample_masks
from process_data.segmentation.layers import Layer, ShotLayers
from process_data.segmentation.segmenter import Segmenter, _tidy_odds, face_is_inside, tidy
from shared.camera import project
from shared.clip import BACKGROUND, HEAD, NECK, TORSO

SIZE = 192
METRE = 300.0
SKIN, DARK, BLOND, BLUE, WALL = (215, 165, 140), (50, 35, 30), (200, 160, 70), (50, 70, 140), (150, 170, 160)


def coarse(labels):
    """A person matte as a network makes it: 256², blurred, a little too large."""
    person = cv2.dilate((labels != BACKGROUND).astype(np.float32), np.ones((3, 3)))
    return (cv2.GaussianBlur(cv2.resize(person, (256, 256)), (0, 0), 2) * 255).astype(np.uint8)


@pytest.fixture(scope="module")
def actor():
    """Six frames, labels, mattes, landmarks in pixels and the plate."""
    landmarks = np.repeat(neutral_landmarks(make_identity(0)).astype(np.float32)[None], 6, 0)
    poses, torso = (array[::25] for array in actor_motion(150, SIZE))
    frames, labels = (np.stack(arrays) for arrays in zip(*render_actor(landmarks, poses, torso, size=SIZE)))
    pixels = project(landmarks.astype(float), poses.astype(float), default_intrinsics(SIZE))
    return frames, labels, np.stack([coarse(image) for image in labels]), pixels, make_background(0, SIZE)


def overlap(found, true):
    return (found & true).sum() / (found | true).sum()


@pytest.mark.slow
def test_the_actor_is_cut_out(actor):
    frames, truth, mattes, pixels, plate = actor
    cut = Segmenter(learn_colors(frames, mattes, pixels), plate, np.ones((SIZE, SIZE), bool))
    metre = default_intrinsics(SIZE)[0]
    for t in (0, 3):
        labels, alpha = cut(frames[t], mattes[t : t + 1], pixels[t], metre)
        assert overlap(labels >= HEAD, truth[t] >= HEAD) > 0.97
        assert overlap((labels == TORSO) | (labels == NECK), (truth[t] == TORSO) | (truth[t] == NECK)) > 0.98
        assert overlap(labels == NECK, truth[t] == NECK) > 0.8
        soft = cv2.GaussianBlur((truth[t] > 0).astype(np.float32), (0, 0), 0.7)
        assert np.abs(alpha / 255 - soft).mean() < 0.008
        np.testing.assert_array_equal(labels != BACKGROUND, alpha > 127)


def test_the_order_of_frames_does_not_matter(actor):
    frames, _, mattes, pixels, plate = actor
    colors = learn_colors(frames, mattes, pixels)
    again = pickle.loads(pickle.dumps(learn_colors(frames[::-1], mattes[::-1], pixels[::-1])))
    np.testing.assert_allclose(again.table, colors.table)
    assert (again.skin_level, again.apart) == (colors.skin_level, colors.apart)
    cut = Segmenter(colors, plate, np.ones((SIZE, SIZE), bool))
    first = cut(frames[2], mattes[1:4], pixels[2], METRE)
    cut(frames[5], mattes[4:6], pixels[5], METRE)
    for one, other in zip(first, cut(frames[2], mattes[1:4], pixels[2], METRE)):
        np.testing.assert_array_equal(one, other)


def portrait(hair, clothes, skin=SKIN):
    """Someone with long hair, flat colours with noise: frame, matte, landmarks in pixels."""
    picture = np.full((SIZE, SIZE, 3), WALL, np.uint8)
    person = np.zeros((SIZE, SIZE), np.uint8)
    middle = SIZE // 2

    def paint(color, draw, *arguments):
        draw(picture, *arguments, color, -1)
        draw(person, *arguments, 255, -1)

    def ellipse(image, centre, axes, color, thickness):
        cv2.ellipse(image, centre, axes, 0, 0, 360, color, thickness)

    paint(clothes, cv2.rectangle, (10, 130), (SIZE - 10, SIZE))
    paint(skin, cv2.rectangle, (middle - 14, 95), (middle + 14, 140))
    paint(hair, cv2.rectangle, (middle - 38, 60), (middle - 18, 150))
    paint(hair, cv2.rectangle, (middle + 18, 60), (middle + 38, 150))
    paint(hair, ellipse, (middle, 60), (38, 42))
    paint(skin, ellipse, (middle, 72), (27, 38))
    noise = np.random.default_rng(0).normal(size=picture.shape) * 4
    landmarks = np.zeros((68, 2))
    jaw = np.radians(np.linspace(180, 0, 17))
    landmarks[:17] = np.stack([middle + 27 * np.cos(jaw), 72 + 38 * np.sin(jaw)], 1)
    landmarks[17:27] = np.stack([middle + np.linspace(-20, 20, 10), np.full(10, 52.0)], 1)
    landmarks[27:36] = [middle, 75]
    landmarks[[31, 35]] = [[middle - 5, 80], [middle + 5, 80]]
    landmarks[36:42], landmarks[42:48] = [middle - 12, 62], [middle + 12, 62]
    landmarks[36, 0], landmarks[45, 0] = middle - 16, middle + 16
    lips = np.radians(np.linspace(180, -150, 12))
    landmarks[48:60] = np.stack([middle + 10 * np.cos(lips), 92 + 3 * np.sin(lips)], 1)
    landmarks[60:] = [middle, 92]
    matte = cv2.GaussianBlur(cv2.resize(person, (256, 256)), (0, 0), 1)
    return np.clip(picture + noise, 0, 255).astype(np.uint8), matte, landmarks


@pytest.mark.parametrize(("hair", "clothes", "falls"), [(DARK, BLUE, True), (BLOND, BLUE, True), (DARK, DARK, False)])
def test_falling_hair_is_head_where_it_differs_from_the_clothes(hair, clothes, falls):
    frame, matte, points = portrait(hair, clothes)
    colors = learn_colors([frame], [matte], points[None])
    assert colors.apart == falls
    plate = np.full_like(frame, WALL)
    labels, _ = Segmenter(colors, plate, np.ones((SIZE, SIZE), bool))(frame, matte[None], points, METRE)
    middle = SIZE // 2
    strands = np.concatenate([labels[115:145, middle - 35 : middle - 22], labels[115:145, middle + 22 : middle + 35]])
    assert (strands == HEAD).mean() > 0.99 if falls else (strands != HEAD).all()
    assert (labels[118:124, middle - 8 : middle + 8] == NECK).all()
    assert (labels[155:, 15:-15] == TORSO).all() and (labels[40:90, middle - 20 : middle + 20] >= HEAD).all()


def test_dark_hair_over_bare_dark_shoulders():
    skin, shoulders, hair = (104, 68, 52), (96, 62, 47), (40, 29, 27)
    frame, matte, points = portrait(hair, shoulders, skin)
    colors = learn_colors([frame], [matte], points[None])
    labels, _ = Segmenter(colors, np.full_like(frame, WALL), np.ones((SIZE, SIZE), bool))(frame, matte[None], points, METRE)
    middle = SIZE // 2
    strands = np.concatenate([labels[115:145, middle - 35 : middle - 22], labels[115:145, middle + 22 : middle + 35]])
    between = np.concatenate([labels[118:145, middle - 14 : middle - 4], labels[118:145, middle + 4 : middle + 14]])
    assert (strands == HEAD).mean() > 0.98 and (between >= HEAD).mean() < 0.02
    assert (labels[118:124, middle - 8 : middle + 8] == NECK).all()
    assert (labels[135:, 14 : middle - 43] == TORSO).all() and (labels[135:, middle + 43 : -14] == TORSO).all()
    assert (labels[156:, 15:-15] == TORSO).all()


def test_what_the_layers_know_outweighs_a_colour_that_fits_both():
    frame, matte, points = portrait(DARK, DARK)
    colors = learn_colors([frame], [matte], points[None])
    middle, half = SIZE // 2, SIZE // 2
    hair, known = np.zeros((half, half), np.float32), np.full((half, half, 1), 49, np.float32)
    hair[20:76, middle // 2 - 19 : middle // 2 - 9] = hair[20:76, middle // 2 + 9 : middle // 2 + 19] = 1
    still = np.concatenate([cv2.resize(frame, (half, half), interpolation=cv2.INTER_AREA).astype(np.float32), known], -1)
    layer = Layer(still, 12 * hair - 6)
    layers = ShotLayers(layer, layer, cv2.resize(matte, (half, half)), points)
    cut = Segmenter(colors, np.full_like(frame, WALL), np.ones((SIZE, SIZE), bool), layers)
    labels, _ = cut(frame, matte[None], points, METRE, np.eye(2, 3))
    strands = np.concatenate([labels[115:140, middle - 34 : middle - 22], labels[115:140, middle + 22 : middle + 34]])
    assert (strands == HEAD).mean() > 0.95 and (labels[160:, 15:-15] == TORSO).all()


def test_a_knot_that_the_coarse_matte_misses_is_kept_where_the_plate_shows_it():
    frame, matte, points = portrait(DARK, BLUE)
    cv2.circle(frame, (SIZE // 2, 14), 10, DARK, -1)
    full = matte.copy()
    cv2.circle(full, (128, 19), 13, 255, -1)
    colors = learn_colors([frame], [matte], points[None])
    half, plate, seen = SIZE // 2, np.full_like(frame, WALL), np.ones((SIZE, SIZE), bool)
    unknown = Layer(np.zeros((half, half, 4), np.float32), np.zeros((half, half), np.float32))
    layers = ShotLayers(unknown, unknown, cv2.resize(full, (half, half)), points)
    knot = slice(7, 11), slice(SIZE // 2 - 5, SIZE // 2 + 5)
    without, _ = Segmenter(colors, plate, seen)(frame, matte[None], points, METRE)
    labels, alpha = Segmenter(colors, plate, seen, layers)(frame, matte[None], points, METRE)
    assert (without[knot] == BACKGROUND).all()
    assert (labels[knot] == HEAD).all() and (alpha[knot] > 170).all()
    assert alpha[4:20, SIZE // 2 + 16 : SIZE // 2 + 30].max() < 8


def test_a_dark_suit_in_a_narrow_picture_is_no_hair():
    """The head fills so much of the picture that nothing lies far beside it; the suit has nearly the colour of the hair."""
    frame, matte, points = portrait(DARK, (38, 34, 36))
    narrow = slice(SIZE // 2 - 64, SIZE // 2 + 64)
    frame, matte = frame[14:142, narrow], np.ascontiguousarray(cv2.resize(matte, (SIZE, SIZE))[14:142, narrow])
    frame[116:, :] = np.where(cv2.resize(matte, (128, 128))[116:, :, None] > 127, np.uint8([20, 22, 30]), frame[116:])
    points = points - [SIZE // 2 - 64, 14]
    skin, hair, clothes = sample_masks(matte, points, 128, 128)
    assert clothes[116:, :10].mean() > 0.3 and clothes[116:, -10:].mean() > 0.3
    assert not clothes[:100].any() and not (clothes & (hair | skin)).any()


def test_the_shadow_of_the_chin_is_neck_though_it_has_the_colour_of_the_hair():
    brown = (120, 80, 60)
    frame, matte, points = portrait(brown, BLUE, (200, 150, 125))
    middle = SIZE // 2
    frame[112:126, middle - 14 : middle + 14] = np.clip(
        np.array([124, 86, 68]) + np.random.default_rng(1).normal(size=(14, 28, 3)) * 4, 0, 255)
    colors = learn_colors([frame], [matte], points[None])
    labels, _ = Segmenter(colors, np.full_like(frame, WALL), np.ones((SIZE, SIZE), bool))(frame, matte[None], points, METRE)
    assert (labels[114:124, middle - 9 : middle + 9] == NECK).mean() > 0.95
    strands = np.concatenate([labels[115:145, middle - 35 : middle - 22], labels[115:145, middle + 22 : middle + 35]])
    assert (strands == HEAD).mean() > 0.95


def test_specks_beside_the_shoulders_are_no_head():
    person, face = np.zeros((96, 96), bool), np.zeros((96, 96), bool)
    face[20:50, 35:60] = True
    person[15:55, 30:65] = person[55:, 5:90] = True
    person[70, 93] = person[30, 5] = True
    odds = np.where(person, -2.0, 0).astype(np.float32)
    odds[15:55, 30:65], odds[30:32, 40:42], odds[70, 93] = 2, -2, 1
    _tidy_odds(odds, person, face)
    assert (odds[15:55, 30:65] > 0).all()
    assert odds[70, 93] < 0 and odds[30, 5] < 0 and (odds[57:, 5:90] < 0).all()


def test_specks_and_holes_are_tidied():
    alpha = np.zeros((200, 200), np.uint8)
    alpha[50:, 60:140] = 255
    alpha[100:104, 100:104] = 0
    alpha[20:25, 20:25] = 200
    alpha[120:160, 90:110] = 0
    tidy(alpha, np.array([70.0, 60.0]))
    assert (alpha[100:104, 100:104] == 255).all() and alpha[:50].max() == 0
    assert alpha[130, 100] == 0 and alpha[60, 70] == 255


def test_faces_that_leave_the_picture_are_found():
    pixels = np.full((2, 68, 2), 50.0)
    pixels[1, :10] = -5
    np.testing.assert_array_equal(face_is_inside(pixels, 100, 100), [True, False])
