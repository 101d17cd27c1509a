"""Clips that train on the first seconds only, and the plot of what came of them."""

import numpy as np
import pytest
from PIL import Image

from shared.clip import Clip, ClipInfo, ExcludedSpan, Shot
from shared.errors import TalkheadError
from tools.quality_against_seconds import PANELS, first_seconds, plot, shortened_clip


@pytest.fixture
def clip(tmp_path):
    made = Clip(tmp_path / "me")
    made.root.mkdir()
    made.save_info(ClipInfo("me", "me.mov", "00", 16, 16, 200, (20.0, 20.0, 8.0, 8.0), (0, 0, 16),
                            [Shot(0, 200, "background.png")], [ExcludedSpan(10, 20, "hand")],
                            split={"train": [(0, 100), (120, 150)], "test": [(150, 200)]}))
    for name in ("video.mp4", "landmarks.npy", "poses_fitted.npy"):
        (made.root / name).write_bytes(b"x")
    (made.root / "training").mkdir()
    return Clip(made.root)


def test_the_first_good_frames_of_train_are_kept_and_the_others_stay(clip):
    assert first_seconds(clip, 1) == {"train": [(0, 10), (20, 35)], "test": [(150, 200)]}
    assert first_seconds(clip, 4) == {"train": [(0, 10), (20, 100), (120, 130)], "test": [(150, 200)]}
    assert first_seconds(clip, 99)["train"] == [(0, 10), (20, 100), (120, 150)]
    with pytest.raises(TalkheadError, match="the split 'train' holds no good frame"):
        first_seconds(clip.with_split({"train": [(10, 20)]}), 1)


def test_a_shortened_clip_shares_files_but_nothing_that_training_writes(clip, tmp_path):
    for _ in range(2):  # a second run changes nothing
        made = shortened_clip(clip, 1, clip.info.split, tmp_path / "1s")
        assert Clip(made.root).info.split["train"] == [(0, 10), (20, 35)]
        assert sorted(path.name for path in made.root.iterdir()) == [".cache", "clip.json", "landmarks.npy", "video.mp4"]
        assert made.video.resolve() == clip.video.resolve()
    assert Clip(clip.root).info.split["train"] == [(0, 100), (120, 150)]


def test_the_plot_shows_every_curve(tmp_path):
    rows = {x: {key: x for _, curves in PANELS for _, key, _ in curves} for x in (5.0, 51.0)}
    plot(rows, "me", tmp_path / "quality.png")
    plot(rows, "me", tmp_path / "quality.svg")
    picture = np.asarray(Image.open(tmp_path / "quality.png").convert("RGB"))
    assert (picture[0] == 255).all() and {(0xc8, 0x45, 0x2c), (0x1f, 0x5f, 0xa8)} <= set(map(tuple, picture.reshape(-1, 3)))
    assert (tmp_path / "quality.svg").read_text().startswith("<?xml")
