import json
import shutil
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

import cli
from process_data.config import ProcessConfig
from process_data.importers import adnerf
from process_data.importers.adnerf import (
    BLUE,
    RED,
    WHITE,
    _head_color,
    _like_frames,
    color_codes,
    find_pictures,
    fit_alpha,
    labels_of,
    read_focal,
    read_split,
)
from shared.clip import BACKGROUND, HEAD, MOUTH, NECK, TORSO, Clip, ExcludedSpan
from shared.errors import TalkheadError
from shared.landmarks import INNER51
from shared.media.audio_io import load_audio, save_wav
from shared.media.video_io import GrayVideoWriter, read_gray_video, read_png, read_video
from shared.metrics import landmark_motion_error

COLORS = np.zeros((5, 3), np.uint8)  # of AD-NeRF's files
COLORS[[BACKGROUND, TORSO, NECK, HEAD, MOUTH]] = (255, 255, 255), (255, 0, 0), (0, 255, 0), (0, 0, 255), (0, 0, 255)
LOST = [10, 11]  # frames without a picture
OWN = 20  # the frame without a parsing


def save(path, rgb):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rgb).save(path, quality=95)


@pytest.fixture(scope="module")
def data(actor_clip, tmp_path_factory):
    """The synthetic actor as an AD-NeRF data folder with a gap, its labels lowered by 8 pixels to tell them from ours."""
    _, truth = actor_clip
    root = tmp_path_factory.mktemp("adnerf") / "actor"
    for t, frame in enumerate(read_video(truth.video)):
        if t not in LOST:
            save(root / "ori_imgs" / f"{t}.jpg", frame)
    for t, labels in enumerate(read_gray_video(truth.root / "labels.mkv")):
        if t != OWN:
            save(root / "parsing" / f"{t}.png", COLORS[np.roll(labels, 8, axis=0)])
    save(root / "bc.jpg", read_png(truth.root / "background.png"))
    save_wav(root / "aud.wav", load_audio(truth.video))
    torch.save({"focal": torch.tensor([600.0]), "euler": torch.zeros(80, 3)}, root / "track_params.pt")
    for name, frames in (("train", range(70)), ("val", range(70, 82))):
        (root / f"transforms_{name}.json").write_text(json.dumps({"focal_len": 1.0, "frames": [{"img_id": t} for t in frames]}))
    return root, truth


@pytest.fixture(scope="module")
def imported(data, tmp_path_factory):
    """The clip made of the data folder, and what the command said."""
    folder = tmp_path_factory.mktemp("imported")
    result = CliRunner().invoke(cli.cli, ["import", "adnerf", str(data[0]), str(folder / "clip"), "--workers", "1"])
    assert result.exit_code == 0, result.output
    assert [path.name for path in folder.iterdir()] == ["clip"]
    return Clip(folder / "clip"), result.output


@pytest.mark.slow
def test_a_data_folder_becomes_a_clip(data, imported):
    truth, (clip, said) = data[1], imported
    assert "2 picture(s) are missing or unreadable" in said
    assert "1 frame(s) have no picture in parsing/" in said
    assert "4 frame(s) of the transforms files have no picture" in said
    info = clip.info
    assert (info.name, info.source_name, info.frames) == ("clip", "actor", 80)
    assert info.intrinsics[0] == pytest.approx(600.0)
    assert info.split == {"train": [(0, 10), (12, 70)], "test": [(70, 80)]}
    assert ExcludedSpan(10, 12, "the picture is missing") in info.excluded
    kept = np.delete(np.arange(80), LOST)
    assert landmark_motion_error(clip.load_landmarks()[kept], truth.landmarks[kept], INNER51) < 0.0015
    assert np.abs(read_png(clip.background).astype(int) - read_png(truth.root / "background.png")).mean() < 3
    assert len(clip.load_audio()) == 80 * 640


@pytest.mark.slow
def test_the_labels_are_those_of_the_folder_and_the_mouths_ours(data, imported):
    mouths = 0
    for t, (found, true) in enumerate(zip(imported[0].label_frames(), read_gray_video(data[1].root / "labels.mkv"))):
        lowered = np.where(np.roll(true, 8, axis=0) == MOUTH, HEAD, np.roll(true, 8, axis=0))
        same = (np.where(found == MOUTH, HEAD, found) == lowered).mean()
        assert same < 0.99 if t == OWN else same == 1
        mouths += (found == MOUTH).any()
    assert mouths > 5


@pytest.mark.slow
def test_labels_replaced_twice_are_replaced_once_and_alpha_keeps_to_them(data, imported, tmp_path):
    root, clip = data[0], Clip(shutil.copytree(imported[0].root, tmp_path / "clip"))
    before = list(clip.label_frames())
    with GrayVideoWriter(clip.alpha, 256, 256) as writer:
        for _ in before:
            writer.write(np.full((256, 256), 130, np.uint8))
    adnerf.replace_labels(root, find_pictures(root), clip, (256, 256), quiet=True)
    assert all((a == b).all() for a, b in zip(before, clip.label_frames(), strict=True))
    for t, alpha in enumerate(clip.alpha_frames()):
        person, wide = (before[t] > 0).astype(np.uint8), np.ones((9, 9))
        outside, inside = alpha[cv2.dilate(person, wide) == 0], alpha[cv2.erode(person, wide) > 0]
        assert (outside == (130 if t == OWN else 0)).all() and (inside == (130 if t == OWN else 255)).all()
        assert (alpha == 130).any()


@pytest.mark.slow
def test_what_exists_is_not_replaced_unasked(data, imported):
    with pytest.raises(TalkheadError, match="is a finished clip already; add --overwrite"):
        adnerf.import_adnerf(data[0], imported[0].root, config=ProcessConfig())
    with pytest.raises(TalkheadError, match="is no clip and holds other files"):
        adnerf.import_adnerf(data[0], data[0].parent, config=ProcessConfig())


def test_a_stopped_import_goes_on(data, tmp_path, monkeypatch):
    root, _ = data
    seen = []

    def stopped(video, clip_dir, **settings):
        seen.append((video, video.stat().st_mtime_ns, settings["config"].focal_sizes))
        if len(seen) == 1:
            raise KeyboardInterrupt
        raise TalkheadError("no face")

    monkeypatch.setattr(adnerf, "process", stopped)
    with pytest.raises(KeyboardInterrupt):
        adnerf.import_adnerf(root, tmp_path / "clip", config=ProcessConfig(), quiet=True)
    with pytest.raises(TalkheadError, match="no face"):
        adnerf.import_adnerf(root, tmp_path / "clip", config=ProcessConfig(), quiet=True)
    assert seen[0] == seen[1] and seen[0][2] == pytest.approx(600 / 256)
    assert not list(tmp_path.iterdir())


def test_labels_by_color():
    picture = np.array([[(255, 255, 255), (250, 3, 0), (0, 255, 0), (0, 0, 255), (100, 100, 100), (0, 0, 0), (0, 0, 254)]],
                       np.uint8)
    ours = np.array([[MOUTH, MOUTH, HEAD, HEAD, HEAD, HEAD, MOUTH]], np.uint8)
    codes = color_codes(picture)
    assert labels_of(codes, ours, BLUE).tolist() == [[BACKGROUND, TORSO, NECK, HEAD, HEAD, HEAD, MOUTH]]
    assert labels_of(codes, ours, RED).tolist() == [[BACKGROUND, MOUTH, NECK, TORSO, HEAD, HEAD, TORSO]]


def test_the_head_is_told_by_its_place_not_by_its_color(actor_clip):
    clip, _ = actor_clip
    ours = next(clip.label_frames(30, 31))
    for head, torso in ((RED, BLUE), (BLUE, RED)):
        codes = np.select([np.isin(ours, (HEAD, MOUTH)), ours == TORSO], [head, torso], WHITE)
        assert _head_color(clip, {30: codes}) == head
    assert _head_color(clip, {30: np.full(ours.shape, WHITE)}) is None and _head_color(clip, {}) is None


def test_pictures_are_cropped_and_scaled_as_the_frames_were():
    across, down = np.meshgrid(np.arange(120), np.arange(80))
    picture = np.stack([across, down, 0 * down], -1).astype(np.uint8)
    clip = SimpleNamespace(info=SimpleNamespace(crop=(30, 10, 60), width=20, height=20))
    cut = _like_frames(picture, (120, 80), clip, cv2.INTER_AREA)
    assert cut.shape == (20, 20, 3) and cut[0, 0].tolist() == [31, 11, 0] and cut[19, 19].tolist() == [88, 68, 0]
    half = _like_frames(picture[::2, ::2], (120, 80), clip, cv2.INTER_NEAREST)
    assert np.abs(half.astype(int) - cut).max() <= 2
    assert _like_frames(picture[:, :90], (120, 80), clip, cv2.INTER_NEAREST) is None


def test_alpha_follows_the_labels_and_keeps_its_edge():
    person = np.zeros((256, 256), bool)
    person[:, :100] = True
    alpha = np.full((256, 256), 130, np.uint8)
    fitted = fit_alpha(alpha, person)
    assert (fitted[:, 98:102] == 130).all() and (fitted[:, :97] == 255).all() and (fitted[:, 103:] == 0).all()


def make_pictures(root, numbers, size=(64, 48)):
    for number in numbers:
        save(root / "ori_imgs" / f"{number}.jpg", np.full((size[1], size[0], 3), number % 256, np.uint8))
    return find_pictures(root)


def test_split_of_the_transforms_files(tmp_path):
    pictures = make_pictures(tmp_path, range(100, 120))
    assert read_split(tmp_path, pictures) == (None, [])

    def write(name, numbers):
        (tmp_path / f"transforms_{name}.json").write_text(json.dumps({"frames": [{"img_id": k} for k in numbers]}))

    write("train", range(100, 116))
    assert read_split(tmp_path, pictures) == ({"train": [(0, 16)], "test": [(16, 20)]}, [])
    write("train", [100, 101, 102, 105, 106, 500])
    write("val", [106, 107])
    split, notes = read_split(tmp_path, pictures)
    assert split == {"train": [(0, 3), (5, 6)], "test": [(6, 8)]}
    assert notes == ["1 frame(s) of the transforms files have no picture",
                     "1 frame(s) are in both transforms files; they are tested, not trained"]
    write("train", [106])
    assert read_split(tmp_path, pictures)[0] is None
    (tmp_path / "transforms_train.json").write_text('{"frames": [{"id": 3}]}')
    with pytest.raises(TalkheadError, match="expected frames with an img_id each"):
        read_split(tmp_path, pictures)


def test_focal_length(tmp_path):
    assert read_focal(tmp_path, (512, 512)) == (None, [])
    (tmp_path / "transforms_train.json").write_text('{"focal_len": 1024}')
    assert read_focal(tmp_path, (512, 512)) == (2.0, [])
    assert read_focal(tmp_path, (640, 512))[0] is None
    torch.save({"focal": torch.tensor([768.0])}, tmp_path / "track_params.pt")
    assert read_focal(tmp_path, (512, 512)) == (1.5, [])
    torch.save({"focal": torch.tensor([7.0])}, tmp_path / "track_params.pt")
    assert "does not suit" in read_focal(tmp_path, (512, 512))[1][0]
    torch.save({"focal": ExcludedSpan(0, 1, "an object")}, tmp_path / "track_params.pt")
    assert "never loaded" in read_focal(tmp_path, (512, 512))[1][0]


def test_odd_oblong_pictures_and_broken_ones_are_written(tmp_path):
    pictures = make_pictures(tmp_path, range(1, 11), (65, 48))
    (tmp_path / "ori_imgs/1.jpg").write_bytes(b"broken")
    (tmp_path / "ori_imgs/5.jpg").unlink()
    pictures = find_pictures(tmp_path)
    save_wav(tmp_path / "aud.wav", np.zeros(16000 * 2))
    missing, notes = adnerf._write_video(tmp_path, pictures, (65, 48), tmp_path / "v.mp4", True)
    frames = list(read_video(tmp_path / "v.mp4"))
    assert missing == [0, 4] and len(frames) == 10 and frames[0].shape == (48, 64, 3)
    assert "the pictures last 0.4 s and the sound 2.0 s" in notes[1]
    save(tmp_path / "ori_imgs/7.jpg", np.zeros((20, 20, 3), np.uint8))
    with pytest.raises(TalkheadError, match="7.jpg: expected a picture of 65x48 like the others, found 20x20"):
        adnerf._write_video(tmp_path, pictures, (65, 48), tmp_path / "w.mp4", True)
    assert not (tmp_path / "w.mp4").exists()


def test_unfit_folders_are_refused(tmp_path):
    run = adnerf.import_adnerf
    with pytest.raises(TalkheadError, match="no AD-NeRF-style data folder: it has no folder ori_imgs"):
        run(tmp_path, tmp_path / "clip", config=ProcessConfig())
    (tmp_path / "ori_imgs").mkdir()
    with pytest.raises(TalkheadError, match="holds no pictures named 0.jpg"):
        run(tmp_path, tmp_path / "clip", config=ProcessConfig())
    with pytest.raises(TalkheadError, match="only 3 of these 51 are there"):
        make_pictures(tmp_path, [0, 1, 50])
    (tmp_path / "ori_imgs/50.jpg").unlink()
    with pytest.raises(TalkheadError, match="holds no aud.wav"):
        run(tmp_path, tmp_path / "clip", config=ProcessConfig())
    assert not (tmp_path / "clip").exists()
