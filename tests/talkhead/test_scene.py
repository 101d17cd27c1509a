"""Backgrounds, sizes and transparency of finished pictures, against slow references."""

import gc
import tracemalloc

import numpy as np
import pytest
from PIL import Image

from shared.errors import TalkheadError
from shared.media.audio_io import save_wav
from shared.media.video_io import VideoWriter, frame_rate, write_png
from talkhead.scene import Playing, Scene, background_file, cover, frame_size, open_backdrop

RNG = np.random.default_rng(0)
TAKES = "--background takes plate, none, a colour such as white or #00ff00, a picture or a video, found"
PLATE = RNG.integers(0, 256, (64, 64, 3), np.uint8)


def person(count=3, size=64):
    """Premultiplied RGBA: a soft disc of noise that touches the lower edge."""
    y, x = np.mgrid[:size, :size] / size - 0.5
    alpha = np.clip(2 - 6 * np.hypot(x, (y - 0.2)), 0, 1)
    straight = RNG.integers(0, 256, (count, size, size, 3)) * alpha[..., None]
    return np.concatenate([straight, np.broadcast_to(255 * alpha[..., None], (count, size, size, 1))], 3).round().astype(np.uint8)


def over(rgba, behind):
    return rgba[..., :3] + (1 - rgba[..., 3:] / 255) * behind


@pytest.mark.parametrize("background, colour", [("white", 255), ("black", 0), ("#00ff00", (0, 255, 0)), ("Green", (0, 128, 0)),
                                                ("rgb(10, 20, 30)", (10, 20, 30)), ("#abc", (0xAA, 0xBB, 0xCC))])
def test_a_colour_is_seen_through_what_the_person_leaves(background, colour):
    scene, rgba = Scene(PLATE, background), person()
    assert (scene.width, scene.height, scene.plain, scene.transparent) == (64, 64, True, False)
    np.testing.assert_allclose(scene.compose(rgba, 0), over(rgba, np.broadcast_to(colour, (3,))), atol=0.51)


def test_the_own_plate_is_the_plain_case():
    assert Scene(PLATE).plain and Scene(PLATE, size="64").plain
    assert not Scene(PLATE, size="66").plain and not Scene(PLATE, "none").plain
    rgba = person()
    np.testing.assert_allclose(Scene(PLATE).compose(rgba, 5), over(rgba, PLATE), atol=0.51)


def test_transparent_pictures_have_straight_colours():
    rgba = person()
    made = Scene(PLATE, "none").compose(rgba, 0)
    np.testing.assert_array_equal(made[..., 3], rgba[..., 3])
    np.testing.assert_allclose(made[..., :3] * (made[..., 3:] / 255), rgba[..., :3], atol=0.51)
    assert (made[rgba[..., 3] == 0] == 0).all()


@pytest.mark.parametrize("size, picture", [("128", (128, 128)), ("128x64", (128, 64)), ("64x128", (64, 128)),
                                           ("100X128", (100, 128))])
def test_nothing_is_stretched(size, picture):
    rgba, (width, height) = person(1), picture
    side = min(picture)
    straight = Image.fromarray(rgba[0], "RGBa").convert("RGBA")
    large = np.array(straight.resize((side, side), Image.Resampling.BICUBIC).convert("RGBa"))
    left = (width - side) // 2
    for background, top, bars in (("white", height - side, 255), ("plate", (height - side) // 2, 0)):
        scene = Scene(PLATE, background, size)
        made = scene.compose(rgba, 0)[0].astype(float)
        assert made.shape == (height, width, 3)
        inside = np.s_[top : top + side, left : left + side]
        plate = np.array(Image.fromarray(PLATE).resize((side, side), Image.Resampling.BICUBIC))
        true = over(large.astype(float), 255 if background == "white" else plate)
        assert np.abs(made[inside] - true).mean() < 6  # two cubic filters, which differ a little
        made[inside] = bars
        assert (made == bars).all()
    assert Scene(PLATE, "none", size).compose(rgba, 0).shape == (1, height, width, 4)


def test_a_picture_covers_the_scene_from_its_middle(tmp_path):
    wide = np.zeros((60, 200, 3), np.uint8)
    wide[:, 70:130] = (200, 100, 50)
    write_png(tmp_path / "wide.png", wide)
    write_png(tmp_path / "high.png", wide.transpose(1, 0, 2))
    for name in ("wide.png", "high.png"):
        assert (open_backdrop(tmp_path / name, 30, 30).at(7, 2) == (200, 100, 50)).all()
    assert open_backdrop(tmp_path / "wide.png", 30, 30).at(0, 5).shape == (1, 30, 30, 3)
    whole = open_backdrop(tmp_path / "wide.png", 100, 30).at(0, 1)[0]
    assert (whole[:, :34] == 0).all() and (whole[:, 36:64] == (200, 100, 50)).all() and (whole[:, 66:] == 0).all()


def test_a_phone_picture_stands_upright(tmp_path):
    picture = Image.fromarray(np.repeat(np.array([[0], [255]], np.uint8), 32, 0).repeat(64, 1))  # dark above, bright below
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    picture.save(tmp_path / "phone.png", exif=exif)
    made = open_backdrop(tmp_path / "phone.png", 64, 64).at(0, 1)[0]
    assert made[:20].mean() > 250 and made[-20:].mean() < 5


def video(path, count, fps=25, size=(48, 32)):
    """Frame k of 25 a second has the level 4 k; written at `fps`."""
    with VideoWriter(path, *size, fps=frame_rate(fps), crf=1) as writer:
        for k in range(count):
            writer.write(np.full((size[1], size[0], 3), 4 * k, np.uint8))


def test_a_video_plays_in_time_over_and_over(tmp_path):
    video(tmp_path / "b.mp4", 10)
    playing = Playing(tmp_path / "b.mp4", 16, 16)
    levels = np.concatenate([playing.at(first, 4) for first in range(0, 24, 4)]).mean((1, 2, 3)) / 4
    np.testing.assert_allclose(levels, np.arange(24) % 10, atol=0.4)
    for first in (17, 3, 25):  # from anywhere
        np.testing.assert_allclose(playing.at(first, 2).mean((1, 2, 3)) / 4, np.arange(first, first + 2) % 10, atol=0.4)


@pytest.mark.parametrize("fps", [12.5, 50, 30])
def test_a_video_of_another_rate_keeps_its_speed(tmp_path, fps):
    video(tmp_path / "b.mp4", 50, fps)
    levels = Playing(tmp_path / "b.mp4", 32, 32).at(0, 50).mean((1, 2, 3)) / 4
    assert np.abs(levels - np.arange(50)).max() <= max(1.0, 25 / fps / 2) + 0.4  # never more than a frame of either away


def test_a_long_video_takes_no_memory(tmp_path):
    video(tmp_path / "b.mp4", 60, size=(256, 256))
    playing = Playing(tmp_path / "b.mp4", 64, 64)
    playing.at(0, 2)
    gc.collect()
    tracemalloc.start()
    for first in range(2, 180, 2):
        playing.at(first, 2)
    assert tracemalloc.get_traced_memory()[1] < 3 * 256 * 256 * 3 + 200_000
    tracemalloc.stop()


def test_cut_off_shoulders_are_told():
    broad = np.full((1, 64, 64, 4), 255, np.uint8)
    told = ("the person reaches the sides of the avatar's picture and is cut off there, in the midst of this wider one; choose a "
            "--size of the avatar's own shape, or a higher one")
    for background, size, expected in (("white", "128x64", [told]), ("white", "64x128", []), ("plate", "128x64", []),
                                       ("white", "64", [])):
        scene = Scene(PLATE, background, size)
        scene.compose(broad, 0)
        assert scene.warnings() == expected
    scene = Scene(PLATE, "white", "128x64")
    scene.compose(person(), 0)
    assert scene.warnings() == []


@pytest.mark.parametrize("given, size", [(None, (50, 40)), ("720", (900, 720)), ("1280x720", (1280, 720)),
                                         (" 1280X720 ", (1280, 720)),
                                         ("1280×720", (1280, 720)), ("66", (82, 66))])
def test_sizes_are_a_height_or_both(given, size):
    assert frame_size(given, 50, 40) == size


@pytest.mark.parametrize("given", ["721", "1281x720", "0", "62", "8194", "1280x", "x720", "large", "-720",
                                   "1280x720x3", "12.8x7"])
def test_other_sizes_are_refused(given):
    told = "expected a height or WIDTHxHEIGHT in even numbers from 64 to 8192, such as 720 or 1280x720"
    with pytest.raises(TalkheadError, match=f"^--size {given}: {told}$"):
        frame_size(given, 64, 64)


@pytest.mark.parametrize("given, told", [
    ("whit", f"{TAKES} 'whit'; did you mean 'white'?"),
    ("#12345", f"{TAKES} '#12345'"),
    ("None", f"{TAKES} 'None'; did you mean 'none'?"),
    ("gone.jpg", "gone.jpg does not exist"),
    ("empty.mp4", "empty.mp4 is empty (0 bytes); copy or record it again"),
    ("text.png", "text.png is not a readable picture; copy or make it again"),
    (".", ". is a folder; name a picture or video in it"),
    ("a.wav", "a.wav holds neither picture nor video; name a file that does"),
])
def test_what_is_no_background_is_refused(tmp_path, monkeypatch, given, told):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.png").write_text("hello " * 100)
    save_wav(tmp_path / "a.wav", np.zeros(1600, np.float32))
    with pytest.raises(TalkheadError) as error:
        open_backdrop(given, 64, 64)
    assert str(error.value) == told


def test_files_among_backgrounds_are_known():
    assert [background_file(name) for name in ("plate", "none", "white", "#123456")] == [None] * 4
    assert str(background_file("beach.jpg")) == "beach.jpg"


def test_cover_is_a_crop_of_the_resized_picture():
    picture = RNG.integers(0, 256, (300, 500, 3), np.uint8)
    np.testing.assert_array_equal(cover(picture, 500, 300), picture)
    np.testing.assert_array_equal(cover(picture, 300, 300), picture[:, 100:400])
    np.testing.assert_array_equal(cover(picture, 500, 100), picture[100:200])
    halved = picture[:, 100:400].reshape(150, 2, 150, 2, 3).mean((1, 3))
    np.testing.assert_allclose(cover(picture, 150, 150), halved, atol=1)
