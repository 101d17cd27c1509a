import numpy as np
import pytest

from process_data.segmentation.background import background_plate, fill_smoothly, masked_median
from process_data.shots import find_cuts, shots_between
from shared.media.video_io import read_video


def changes(small):
    """What the first pass hands on: mean change (T,) of small pictures (T,h,w,3) from one to the next."""
    return np.concatenate([[0], np.abs(np.diff(small.astype(np.float32), axis=0)).mean((1, 2, 3)) / 255])


def test_cuts_are_found_and_motion_is_not_a_cut():
    rng = np.random.default_rng(0)
    scenes = rng.integers(60, 190, (3, 48, 48, 3)).astype(float)
    frames = []
    for k in range(90):
        moving = np.roll(scenes[k // 30], k % 30 // 10, axis=1)
        frames.append(np.clip(moving + rng.normal(size=(48, 48, 3)), 0, 255))
    smooth = [np.full((48, 48, 3), 100 + 50 * np.sin(k / 9)) for k in range(60)]
    assert find_cuts(changes(np.stack(smooth).astype(np.uint8))) == []
    found = find_cuts(changes(np.stack(frames).astype(np.uint8)))
    assert {30, 60} <= set(found)
    assert find_cuts(np.zeros(1)) == []
    assert shots_between([30, 60], 90) == [(0, 30), (30, 60), (60, 90)]
    assert shots_between([], 7) == [(0, 7)]


@pytest.mark.realdata
def test_the_anchor_clip_has_its_four_cuts(realdata_dir):
    import cv2

    small = np.stack([cv2.resize(frame, (48, 48), interpolation=cv2.INTER_AREA)
                      for frame in read_video(realdata_dir / "clips" / "anchor71s.mp4")])
    assert find_cuts(changes(small)) == [176, 702, 953, 1429]


def test_the_plate_is_what_stands_behind_a_moving_person():
    rng = np.random.default_rng(0)
    plate = np.kron(rng.integers(0, 256, (8, 8, 3)), np.ones((8, 8, 1))).astype(np.uint8)
    frames = np.repeat(plate[None], 12, 0)
    person = np.zeros((12, 64, 64), bool)
    for t in range(12):
        person[t, 20:, 4 * t : 4 * t + 20] = True
    frames[person] = 255
    noisy = np.clip(frames + rng.normal(size=frames.shape) * 2, 0, 255).astype(np.uint8)
    made, seen = background_plate(noisy, person)
    np.testing.assert_array_equal(seen, ~person.all(0))
    assert np.abs(made[seen].astype(int) - plate[seen]).mean() < 2


def test_what_is_free_too_seldom_does_not_count_as_seen():
    frames = np.full((40, 16, 16, 3), 80, np.uint8)
    person = np.zeros((40, 16, 16), bool)
    person[1:, 4:8] = person[2:, 8:12] = True
    frames[0, 4:8] = 255
    plate, seen = background_plate(frames, person)
    assert not seen[4:8].any() and seen[8:12].all() and (plate == 80).all()
    nobody, everywhere = background_plate(frames, np.ones_like(person))
    assert nobody.shape == (16, 16, 3) and not everywhere.any()


def test_masked_median_equals_a_slow_one():
    rng = np.random.default_rng(1)
    frames = rng.integers(0, 256, (7, 70, 5, 3)).astype(np.uint8)
    person = rng.random((7, 70, 5)) < 0.4
    median, free = masked_median(frames, person)
    for y, x in [(0, 0), (65, 3), (69, 4), (33, 2)]:
        values = frames[~person[:, y, x], y, x]
        assert free[y, x] == len(values)
        if len(values):
            np.testing.assert_allclose(median[y, x], np.median(values, axis=0))


def test_filling_keeps_the_known_and_continues_a_gradient():
    image = np.repeat(np.linspace(0, 100, 64, dtype=np.float32)[None, :, None], 64, 0).repeat(3, 2)
    known = np.ones((64, 64), bool)
    known[20:40, 20:40] = False
    filled = fill_smoothly(np.where(known[..., None], image, 0), known)
    np.testing.assert_array_equal(filled[known], image[known])
    assert np.abs(filled - image).max() < 15
