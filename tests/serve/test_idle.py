import numpy as np

from serve.idle import MotionCursor, calm_stretch
from shared.camera import pose_matrix, rotation_from_rotvec


def test_the_head_goes_one_frame_at_a_time_and_rests_in_the_calm_stretch():
    cursor = MotionCursor(50, (20, 29))
    places = [cursor.next(speaking=k < 60 or k >= 150).frame for k in range(300)]
    assert np.abs(np.diff(places)).max() == 1
    assert min(places[:60]) == 0 or max(places[:60]) == 49
    assert set(places[110:150]) == set(range(20, 30))
    assert {0, 49} <= set(places[150:])


def test_a_track_of_one_frame_stands_still():
    cursor = MotionCursor(1, (0, 0))
    assert {cursor.next(speaking).frame for speaking in (True, False, True)} == {0}


def test_the_calm_stretch_is_where_the_head_moves_least():
    turns = np.zeros((300, 3))
    turns[:, 1] = np.cumsum(np.where((np.arange(300) >= 150) & (np.arange(300) < 260), 0.0005, 0.01))
    poses = pose_matrix(rotation_from_rotvec(turns), np.tile([0.0, 0.0, 0.6], (300, 1)))
    first, last = calm_stretch(poses)
    assert 149 <= first and last <= 260 and last - first == 99
    assert calm_stretch(poses[:30]) == (0, 29)
