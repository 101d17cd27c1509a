import numpy as np
import pytest

from shared.errors import TalkheadError
from shared.label import HEIGHT, label


@pytest.mark.parametrize(("height", "width"), [(512, 512), (256, 256), (360, 640), (1920, 1080)])
def test_letters_are_high_enough_in_the_upper_left_corner(height, width):
    frames = np.full((1, height, width, 3), 128, np.uint8)
    labelled = label(frames, 0)[0]
    white = np.argwhere(labelled[..., 0] > 200)
    assert np.ptp(white[:, 0]) >= HEIGHT * min(height, width) and white.max(0)[0] < height / 4
    assert (labelled < 100).any() and (labelled[height // 4 :] == 128).all()
    assert (frames == 128).all()  # what it was given stays


def test_two_seconds_or_throughout_from_any_frame_on():
    frames = np.zeros((10, 64, 64, 3), np.uint8)

    def drawn(first: int, **more) -> int:
        return int((label(frames, first, **more) > 0).any((1, 2, 3)).sum())

    assert [drawn(0), drawn(45), drawn(49), drawn(50), drawn(1000)] == [10, 5, 1, 0, 0]
    assert drawn(45, fps=30) == 10 and drawn(1000, throughout=True) == 10


@pytest.mark.parametrize(("height", "width"), [(2, 2), (16, 16), (40, 4), (8, 300)])
def test_no_picture_is_too_small(height, width):
    frames = np.zeros((2, height, width, 3), np.uint8)
    assert label(frames, 0).shape == frames.shape


@pytest.mark.parametrize("text", ["", " ", "AI生成", "two\nlines"])
def test_a_text_without_letters_is_refused(text):
    with pytest.raises(TalkheadError, match="a label is one line of ASCII letters, found"):
        label(np.zeros((1, 64, 64, 3), np.uint8), 0, text=text)
