"""Pictures with alpha as a video: what comes back, in any order, and what is refused."""

import numpy as np
import pytest

from shared.errors import TalkheadError
from shared.media.layer_video import GROUP, LayerVideo, write_layers

COUNT, WIDTH, HEIGHT = 2 * GROUP + 3, 31, 22


def smooth_pictures():
    """A coloured slope that drifts, with soft alpha."""
    y, x, t = np.mgrid[:HEIGHT, :WIDTH, :COUNT].transpose(0, 3, 1, 2)
    waves = [np.sin(x / 9 + t / 11), np.cos(y / 7), np.sin((x + y) / 13), np.tanh((x - WIDTH / 2 - t / 5) / 4)]
    return np.stack([127.5 + 127 * wave for wave in waves], -1).round().astype(np.uint8)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    path, pictures = tmp_path_factory.mktemp("layers") / "torso.mp4", smooth_pictures()
    assert write_layers(path, pictures, WIDTH, HEIGHT) == COUNT
    return path, pictures


def test_pictures_come_back_in_any_order(written):
    path, pictures = written
    with LayerVideo(path, WIDTH, HEIGHT, COUNT, kept=0) as video:
        for index in (0, COUNT - 1, GROUP, GROUP - 1, 5, 2 * GROUP, 4):
            difference = video[index].astype(float) - pictures[index]
            assert np.sqrt(np.square(difference).mean()) < 9 and np.abs(difference).max() < 80
        assert len(video._decoded) <= 2


def test_same_pictures_make_the_same_bytes(written, tmp_path):
    path, pictures = written
    write_layers(tmp_path / "again.mp4", iter(pictures), WIDTH, HEIGHT)
    assert (tmp_path / "again.mp4").read_bytes() == path.read_bytes()


def test_another_size_or_number_is_refused(written):
    with pytest.raises(TalkheadError, match=r"expected pictures and number \(32, 44, 26\), found \(32, 44, 27\)"):
        LayerVideo(written[0], WIDTH, HEIGHT, COUNT - 1).__enter__()


def test_a_cut_file_is_refused(written, tmp_path):
    whole = written[0].read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) * 2 // 3])
    with pytest.raises(TalkheadError, match="cut.mp4"), LayerVideo(tmp_path / "cut.mp4", WIDTH, HEIGHT, COUNT) as video:
        [video[index] for index in range(COUNT)]
