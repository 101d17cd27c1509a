import cv2
import numpy as np
import pytest

from process_data.segmentation.layers import HEADLIKE, LEAST_SAMPLES, TORSOLIKE, Sample, ShotLayers, build_layers, moved
from process_data.tracking.torso_motion import compose, concatenate, inverse

HALF = 64
CENTER = np.array([HALF, HALF], float)
FACE = np.random.default_rng(5).uniform(40, 90, (68, 2))


def texture(seed):
    """Noise of one grey colour: nothing but its motion tells it from another seed's."""
    noise = cv2.GaussianBlur(np.random.default_rng(seed).normal(size=(HALF, HALF)).astype(np.float32), (0, 0), 1.2)
    return np.repeat(np.clip(110 + 160 * noise, 0, 255)[..., None], 3, -1).astype(np.uint8)


def person(k):
    """Frame k: hair that moves with the head on the left, clothes that move with the torso on the right -> sample, hair."""
    head = compose(np.array([6 * np.sin(k), 4 * np.cos(1.7 * k), 0.04 * np.sin(2.1 * k), 1.0]), CENTER)
    torso = compose(np.array([3 * np.cos(1.3 * k), 2 * np.sin(0.7 * k), 0.0, 1 + 0.02 * np.sin(k)]), CENTER)
    hair = np.zeros((HALF, HALF), np.uint8)
    hair[8:56, 10:30] = 1
    in_front = moved(hair, head) > 0
    picture = np.where(in_front[..., None], moved(texture(0), head), moved(texture(1), torso))
    noisy = picture + np.random.default_rng(k).normal(size=picture.shape) * 3
    everywhere, nothing = np.ones((HALF, HALF), bool), np.zeros((HALF, HALF), np.float32)
    matte = np.full((HALF, HALF), 255, np.uint8)
    return Sample(np.clip(noisy, 0, 255).astype(np.uint8), everywhere, nothing, matte, head, torso), in_front


@pytest.fixture(scope="module")
def layers():
    return build_layers([person(k)[0] for k in range(24)], FACE)


def test_motion_alone_tells_hair_from_clothes_of_the_same_colour(layers):
    for k in (100, 101):
        sample, hair = person(k)
        odds = layers.evidence(sample.picture, sample.head, sample.torso)
        inside = np.zeros_like(hair)
        inside[12:52, 14:50] = True  # in all samples in the picture
        edge = cv2.dilate(hair.astype(np.uint8), np.ones((5, 5))) - cv2.erode(hair.astype(np.uint8), np.ones((5, 5))) > 0
        right = (odds > 0) == hair
        assert right[inside & ~edge].mean() > 0.95
        motion = layers.motion(sample.picture, sample.head, sample.torso)
        assert motion.max() <= HEADLIKE and motion.min() >= -TORSOLIKE
        assert motion[hair & ~edge].mean() > 1 and motion[inside & ~hair & ~edge].mean() < -0.4


def test_one_common_motion_tells_nothing():
    samples = [person(k)[0]._replace(torso=person(k)[0].head) for k in range(12)]
    layers = build_layers(samples, FACE)
    np.testing.assert_array_equal(layers.motion(samples[0].picture, samples[0].head, samples[0].torso), 0)


def test_without_the_torso_what_the_head_shows_is_left(layers):
    sample, hair = person(50)
    np.testing.assert_array_equal(layers.evidence(sample.picture, sample.head, None), moved(layers.head.odds, sample.head))


def test_layers_move_to_and_fro_and_are_stored(layers, tmp_path):
    matrix = compose(np.array([5.0, -3.0, 0.1, 1.1]), CENTER)
    image = cv2.GaussianBlur(texture(3), (0, 0), 3)
    again = moved(moved(image, matrix), inverse(matrix))
    assert np.abs(again.astype(int) - image)[16:48, 16:48].mean() < 2
    np.testing.assert_allclose(concatenate(matrix, inverse(matrix)), np.eye(2, 3), atol=1e-12)
    layers.save(tmp_path / "layers.npz")
    stored = ShotLayers.load(tmp_path / "layers.npz")
    for ours, theirs in ((stored.head, layers.head), (stored.torso, layers.torso)):
        np.testing.assert_array_equal(ours.color, theirs.color)
        np.testing.assert_array_equal(ours.odds, theirs.odds)


def test_too_few_frames_give_no_layers():
    samples = [person(k)[0] for k in range(LEAST_SAMPLES)]
    assert build_layers(samples, FACE) is not None
    assert build_layers(samples[1:], FACE) is None
