import numpy as np
import pytest

from shared.errors import TalkheadError
from shared.face_check import TEMPLATE
from shared.landmarks import (
    LIPS,
    MIRROR,
    check_landmarks,
    eye_opening,
    lip_opening,
    load_array,
    load_landmarks,
    save_array,
    save_landmarks,
)


@pytest.fixture
def landmarks():
    return (TEMPLATE + np.random.default_rng(0).normal(size=(4, 68, 3)) * 0.002).astype(np.float32)


def test_round_trip_converts_float64_and_big_endian(tmp_path, landmarks):
    np.save(tmp_path / "a.npy", landmarks.astype(">f8"))
    loaded = load_landmarks(tmp_path / "a.npy")
    assert loaded.dtype == np.float32 and loaded.dtype.isnative
    np.testing.assert_array_equal(loaded, landmarks)
    save_landmarks(tmp_path / "b.npy", loaded)
    np.testing.assert_array_equal(np.load(tmp_path / "b.npy"), landmarks)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.npy", "b.npy"]


@pytest.mark.parametrize("array, found", [
    (np.zeros((3, 68), np.float32), "found (3, 68)"),
    (np.zeros((5, 68, 2), np.float32), "found (5, 68, 2)"),
    (np.zeros((68, 3), np.float32), "found (68, 3)"),
    (np.zeros((0, 68, 3), np.float32), "found (0, 68, 3)"),
    (np.full((2, 68, 3), np.nan), "found nan at (0, 0, 0)"),
    (np.full((2, 68, 3), 1e300), "does not fit float32"),
    (np.zeros((2, 68, 3), complex), "found dtype complex128"),
    (np.array(["x"]), "found dtype"),
])
def test_wrong_arrays_are_refused_with_a_sentence(tmp_path, array, found):
    np.save(tmp_path / "bad.npy", array)
    with pytest.raises(TalkheadError) as caught:
        load_landmarks(tmp_path / "bad.npy")
    assert str(tmp_path / "bad.npy") in str(caught.value) and found in str(caught.value)
    with pytest.raises(TalkheadError):
        check_landmarks(array, "array")


def test_pickled_arrays_and_other_files_are_never_loaded(tmp_path):
    np.save(tmp_path / "pickled.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(TalkheadError, match="pickled or object array, which is never loaded"):
        load_landmarks(tmp_path / "pickled.npy")
    (tmp_path / "text.npy").write_text("hello")
    with pytest.raises(TalkheadError, match="expected a NumPy .npy array"):
        load_landmarks(tmp_path / "text.npy")
    np.savez(tmp_path / "z.npz", a=np.zeros(3))
    (tmp_path / "z.npz").rename(tmp_path / "z.npy")
    with pytest.raises(TalkheadError, match="npz archive"):
        load_landmarks(tmp_path / "z.npy")
    with pytest.raises(TalkheadError, match="does not exist"):
        load_landmarks(tmp_path / "none.npy")


def test_saving_a_wrong_array_leaves_nothing(tmp_path):
    with pytest.raises(TalkheadError):
        save_landmarks(tmp_path / "x.npy", np.zeros((3, 68)))
    assert list(tmp_path.iterdir()) == []


def test_poses_use_the_same_rules(tmp_path):
    save_array(tmp_path / "p.npy", np.eye(4)[None])
    assert load_array(tmp_path / "p.npy", (4, 4)).shape == (1, 4, 4)
    with pytest.raises(TalkheadError, match=r"expected shape \(T, 4\)"):
        load_array(tmp_path / "p.npy", (4,))


def test_mirror_is_an_involution_that_swaps_sides():
    assert sorted(MIRROR) == list(range(68))
    np.testing.assert_array_equal(MIRROR[MIRROR], np.arange(68))
    for right, left in [(0, 16), (17, 26), (36, 45), (39, 42), (48, 54), (60, 64), (31, 35), (41, 46), (59, 55)]:
        assert MIRROR[right] == left
    assert all(MIRROR[k] == k for k in (8, 27, 30, 33, 51, 57, 62, 66))
    assert set(MIRROR[LIPS]) == set(LIPS)


def test_openings_are_signed_metres(landmarks):
    lm = np.zeros((2, 68, 3), np.float32)
    lm[0, [61, 62, 63], 1] = 0.01
    lm[1, [61, 62, 63], 1] = -0.002
    lm[0, [43, 44], 1] = 0.012
    np.testing.assert_allclose(lip_opening(lm), [0.01, -0.002], atol=1e-7)
    np.testing.assert_allclose(eye_opening(lm), [[0, 0.012], [0, 0]], atol=1e-7)


def test_a_folder_in_the_way_is_said_and_left_alone(tmp_path, landmarks):
    (tmp_path / "x.npy").mkdir()
    with pytest.raises(TalkheadError, match="cannot write .*x.npy"):
        save_landmarks(tmp_path / "x.npy", landmarks)
    assert [p.name for p in tmp_path.iterdir()] == ["x.npy"]
