"""What single frames tell of the footage, on pictures of which the truth is known."""

import cv2
import numpy as np
import pytest

from process_data.report import footage
from process_data.report.footage import RING, SIDE, Plate, Sample, edges, moved, ring, torso_fit
from process_data.segmentation.matting import plate_noise
from process_data.tracking.torso_motion import compose
from shared.clip import BACKGROUND, HEAD, TORSO

RADIUS, MIDDLE = 60.0, np.array([128.0, 120.0])
ROWS, COLUMNS = np.indices((SIDE, SIDE)) + 0.5


def disc(x=MIDDLE[0], y=MIDDLE[1], radius=RADIUS):
    """uint8 (SIDE,SIDE), 255 in a disc, soft over one pixel."""
    return (255 * np.clip(radius + 0.5 - np.hypot(COLUMNS - x, ROWS - y), 0, 1)).round().astype(np.uint8)


def sample(picture, labels, alpha, after=None, head=None):
    return Sample(0, 0, picture, picture, labels, alpha, (np.uint8(255) * (labels >= HEAD)) if head is None else head, after)


def plate(color, seen=None):
    color = np.broadcast_to(np.asarray(color, np.uint8), (SIDE, SIDE, 3)).copy()
    return Plate(color, seen, plate_noise(color, np.ones((SIDE, SIDE), bool) if seen is None else seen))


def portrait(hair, room):
    """A disc of hair before a background (…,3), as a sample."""
    alpha = disc()
    share = alpha[..., None] / 255
    picture = (share * np.array(hair) + (1 - share) * room).round().astype(np.uint8)
    return sample(picture, np.where(alpha > 127, HEAD, BACKGROUND).astype(np.uint8), alpha)


def test_alpha_is_in_doubt_where_hair_and_background_are_alike():
    room = np.where(COLUMNS[..., None] < MIDDLE[0], 200, 50) + np.zeros(3)
    found = edges(portrait((40, 30, 35), room), plate(room))
    assert found.share == pytest.approx(0.5, abs=0.06)
    assert not found.doubtful[:, :110].any()
    right = found.band[:, 146:]
    assert found.doubtful[:, 146:][right].mean() > 0.95
    away = np.abs(np.hypot(COLUMNS - MIDDLE[0], ROWS - MIDDLE[1]) - RADIUS)
    assert away[found.band].max() < footage.BAND * SIDE + 2


def test_alpha_is_in_doubt_where_the_background_was_filled_in_unless_it_differs_much():
    hole = (ROWS > 80) & (ROWS < 92)
    for level, doubt in ((100, 1.0), (250, 0.0)):  # 36 and 186 grey levels from the hair in each channel
        found = edges(portrait((64, 64, 64), np.full((SIDE, SIDE, 3), level)), plate(level, ~hole))
        assert found.doubtful[hole & found.band].mean() == pytest.approx(doubt, abs=0.05)
        assert not found.doubtful[~hole].any()


@pytest.mark.parametrize("shift", [0.0, 0.6, 1.5])
def test_flicker_is_the_mean_way_of_the_edge(shift):
    """A disc that jumps sideways by s moves its edge by s·|cos| along the normal: 2 s / pi in the mean."""
    still = portrait((30, 30, 30), np.full((SIDE, SIDE, 3), 220))
    jumped = sample(still.small, still.labels, still.alpha, (disc(MIDDLE[0] + shift), disc(MIDDLE[0] + shift)), head=disc())
    assert edges(jumped, plate(220)).edge == pytest.approx(2 * shift / np.pi, rel=0.12, abs=1e-6)
    assert np.isnan(edges(still, plate(220)).edge)  # the last frame of a shot
    clothes = still.labels.copy()
    clothes[ROWS > MIDDLE[1]] = np.where(still.alpha > 127, HEAD, TORSO)[ROWS > MIDDLE[1]]
    below = sample(still.small, clothes, np.where(clothes > 0, 255, still.alpha).astype(np.uint8), jumped.after, head=disc())
    assert edges(below, plate(220)).border == pytest.approx(2 * shift / np.pi, rel=0.15, abs=1e-6)


def test_the_ring_lies_on_both_sides_of_the_outline_against_the_background():
    head = portrait((30, 30, 30), np.full((SIDE, SIDE, 3), 220))
    inner, outer = RADIUS - RING * SIDE, RADIUS + RING * SIDE
    around = ring(head)
    assert around.sum() == pytest.approx(np.pi * (outer**2 - inner**2), rel=0.05)
    away = np.hypot(COLUMNS - MIDDLE[0], ROWS - MIDDLE[1])
    assert away[around].min() > inner - 2 and away[around].max() < outer + 2
    labels = head.labels.copy()
    labels[ROWS > MIDDLE[1]] = np.where(labels[ROWS > MIDDLE[1]] == HEAD, HEAD, TORSO)
    assert not ring(sample(head.small, labels, head.alpha))[ROWS > MIDDLE[1] + RING * SIDE + 1].any()


def clothes(seed=0):
    """A sample of textured clothes in the lower half."""
    texture = cv2.GaussianBlur(np.random.default_rng(seed).uniform(0, 255, (SIDE, SIDE)).astype(np.float32), (0, 0), 4)
    gray = (128 + 6 * (texture - texture.mean())).clip(30, 220).astype(np.uint8)
    labels = np.where(ROWS > 100, TORSO, BACKGROUND).astype(np.uint8)
    return sample(np.dstack([gray] * 3), labels, np.where(labels > 0, 255, 0).astype(np.uint8))


def seen_again(reference, matrix, change=lambda picture: picture):
    alpha = moved(reference.alpha, matrix)
    return sample(change(moved(reference.small, matrix)), np.where(alpha > 127, TORSO, BACKGROUND).astype(np.uint8), alpha)


def test_a_reference_that_is_moved_right_explains_the_torso():
    reference, motion = clothes(), np.array([4.0, -3.0, 0.03, 1.02])
    matrix = compose(motion, np.array([SIDE / 2, SIDE / 2]))
    frame = seen_again(reference, matrix, lambda picture: (0.8 * picture.astype(float) + 20).round().astype(np.uint8))
    right, wrong = torso_fit(frame, reference, matrix), torso_fit(frame, reference, np.eye(2, 3))
    assert right.rms < 1.5 and right.share == 0 and wrong.rms > 5 * right.rms


def test_what_covers_the_torso_is_marked():
    reference = clothes()

    def hand(picture):
        out = picture.copy()
        out[150:180, 60:100] = 255 * (picture[150:180, 60:100] < 128)
        return out

    found = torso_fit(seen_again(reference, np.eye(2, 3), hand), reference, np.eye(2, 3))
    assert found.off[152:178, 62:98].mean() > 0.95 and found.off[200:].sum() == found.off[:145].sum() == 0
    assert found.share == pytest.approx(30 * 40 / found.seen.sum(), rel=0.15)


def test_without_a_torso_nothing_is_said_of_it():
    empty = sample(*(np.zeros(shape, np.uint8) for shape in ((SIDE, SIDE, 3), (SIDE, SIDE), (SIDE, SIDE))))
    found = torso_fit(empty, empty, np.eye(2, 3))
    assert np.isnan(found.rms) and np.isnan(found.share) and not found.seen.any()
    assert np.isnan(edges(empty, plate(0)).share) and not ring(empty).any()
