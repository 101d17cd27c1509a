"""Inner lip points put on the visible edge."""

import numpy as np
import pytest

from process_data.tracking.lip_edges import FADE, POINTS, REACH, correct_lips, lip_evidence

SKIN, LIP, TEETH, CAVITY = (200, 150, 125), (165, 95, 85), (215, 205, 190), (40, 15, 12)
MIDDLE = np.array([256.0, 330.0])
THICK = 12.0


def face(opening: float, turn: float = 0.0, unit: float = 1.0) -> np.ndarray:
    """Landmarks (68,2) of a face whose inner lips are `opening` pixels apart, in a picture of 512·unit pixels."""
    points = np.tile(MIDDLE, (68, 1))
    points[36], points[45] = (206, 230), (306, 230)
    for column, x in enumerate((-9, 0, 9)):
        for point, y in ((61, -opening / 2), (50, -opening / 2 - THICK), (67, opening / 2), (56, opening / 2 + THICK)):
            # the lower points of a column are numbered from the other side
            step = column if point in (61, 50) else -column
            points[{67: 67, 56: 58}.get(point, point) + step] = MIDDLE + (x, y)
    cosine, sine = np.cos(np.radians(turn)), np.sin(np.radians(turn))
    return ((points - 256) @ np.array([[cosine, sine], [-sine, cosine]]) + 256) * unit


def picture(opening: float, mouth: tuple[int, int, int] = CAVITY, turn: float = 0.0, size: int = 512, noise: float = 3.0,
            seed: int = 0) -> np.ndarray:
    """A blurred and noised mouth between lips: (size,size,3) uint8."""
    unit = size / 512
    image = np.full((size, size, 3), SKIN, np.uint8)
    top, left = int(300 * unit), int(150 * unit)
    y, x = np.mgrid[top:int(390 * unit), left:int(380 * unit)] + 0.5
    cosine, sine = np.cos(np.radians(turn)), np.sin(np.radians(turn))
    down = (256 + (y / unit - 256) * cosine - (x / unit - 256) * sine - MIDDLE[1]) * unit
    region = np.broadcast_to(np.array(SKIN, float), (*down.shape, 3))
    for half, color in ((opening / 2 + THICK, LIP), (opening / 2, mouth)):
        # an edge that a Gaussian of about one pixel has blurred
        share = np.clip((half * unit - np.abs(down)) / 2 + 0.5, 0, 1)[..., None]
        region = region + share**2 * (3 - 2 * share) * (half > 0) * (np.array(color) - region)
    region = region + np.random.default_rng(seed).normal(0, noise, region.shape)
    image[top:top + len(y), left:left + y.shape[1]] = np.clip(np.round(region), 0, 255)
    return image


def gap(pixels: np.ndarray) -> np.ndarray:
    return np.linalg.norm(pixels[..., POINTS[:3], :] - pixels[..., POINTS[3:], :], axis=-1).mean(-1)


@pytest.mark.parametrize("mouth", [TEETH, CAVITY])
@pytest.mark.parametrize(("turn", "size"), [(0.0, 512), (20.0, 512), (-15.0, 256)])
def test_evidence_is_where_the_lip_ends(mouth, turn, size):
    # detected 2 px too high and 1.5 px too low, in pixels of 512²
    found = face(12, turn, size / 512)
    up = (face(0, turn, size / 512)[61] - face(2, turn, size / 512)[67]) / np.linalg.norm(face(0)[61] - face(2)[67])
    found[POINTS[:3]] += 2.0 * up
    found[POINTS[3:]] -= 1.5 * up
    evidence = lip_evidence(picture(12, mouth, turn, size), found)
    assert evidence.shape == (6, 2)
    assert (evidence[:, 1] > 0.3).all()
    np.testing.assert_allclose(evidence[:3, 0], 2.0, atol=0.45 * (512 / size))
    np.testing.assert_allclose(evidence[3:, 0], 1.5, atol=0.45 * (512 / size))


def test_nothing_is_seen_without_an_edge():
    flat = np.full((512, 512, 3), LIP, np.uint8)
    assert not lip_evidence(flat, face(12)).any()
    assert not lip_evidence(picture(12), face(1)).any()
    assert not lip_evidence(picture(12), np.full((68, 2), np.nan)).any()


def exaggerated(openings: np.ndarray) -> np.ndarray:
    """What a detector makes of them: wide mouths a sixth too open, all of it the upper lip's."""
    pixels = np.stack([face(opening) for opening in openings])
    pixels[:, POINTS[:3], 1] -= (openings / 6)[:, None]
    return pixels


def test_clip_is_corrected_by_how_far_the_mouth_is_open():
    openings = 6.5 + 6.5 * np.sin(np.arange(120) / 4)
    pixels = exaggerated(openings)
    evidence = np.stack([lip_evidence(picture(opening, seed=t), p) for t, (opening, p) in enumerate(zip(openings, pixels))])
    corrected = correct_lips(pixels, evidence, np.ones(120, bool), 1.0)
    assert gap(pixels).max() / openings.max() > 1.16
    assert abs(gap(corrected).max() / openings.max() - 1) < 0.04
    closed = gap(pixels) <= FADE[0]
    assert closed.any()
    np.testing.assert_array_equal(corrected[closed], pixels[closed])
    others = np.setdiff1d(np.arange(68), POINTS)
    np.testing.assert_array_equal(corrected[:, others], pixels[:, others])


def clip_with(offset: np.ndarray, trust: float) -> tuple[np.ndarray, np.ndarray]:
    openings = np.linspace(0, 16, 200)
    evidence = np.zeros((200, 6, 2), np.float32)
    evidence[..., 0], evidence[..., 1] = offset, trust
    return np.stack([face(opening) for opening in openings]), evidence


def test_chance_finds_change_nothing():
    pixels, evidence = clip_with(np.full((200, 6), -2.0), 1.0)
    evidence[np.arange(200) % 3 > 0] = 0
    np.testing.assert_array_equal(correct_lips(pixels, evidence, np.ones(200, bool), 1.0), pixels)
    np.testing.assert_array_equal(correct_lips(pixels, 0 * evidence, np.ones(200, bool), 1.0), pixels)


def test_outliers_hardly_move_the_curve():
    random = np.random.default_rng(1)
    offset = 1.0 + random.normal(0, 0.2, (200, 6))
    offset[random.random((200, 6)) < 0.15] = -3.4
    pixels, evidence = clip_with(offset, 0.8)
    moved = correct_lips(pixels, evidence, np.ones(200, bool), 1.0) - pixels
    wide = gap(pixels) > FADE[1]
    assert abs(moved[wide][:, POINTS[:3], 1].mean() - 1.0) < 0.25
    assert abs(moved[wide][:, POINTS[3:], 1].mean() + 1.0) < 0.25


def test_frames_without_a_face_and_the_size_of_the_picture():
    pixels, evidence = clip_with(np.full((200, 6), 1.5), 1.0)
    good = np.arange(200) % 10 != 0
    pixels[~good] = np.nan
    evidence[~good] = np.nan
    corrected = correct_lips(pixels, evidence, good, 1.0)
    assert np.isfinite(corrected[good]).all()
    assert np.isnan(corrected[~good]).all()
    assert np.abs(corrected[good] - pixels[good]).max() <= REACH
    np.testing.assert_allclose(correct_lips(pixels / 2, evidence, good, 0.5)[good], corrected[good] / 2, atol=1e-9)
    np.testing.assert_array_equal(correct_lips(pixels, evidence, np.zeros(200, bool), 1.0), pixels)
