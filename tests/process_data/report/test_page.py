import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from process_data.actor.actor import actor_landmarks, actor_motion, default_intrinsics
from process_data.report import footage, page
from process_data.report.charts import POINTS, Curve, curves_json, thin, ticks
from process_data.report.page import draw_cut_out, draw_landmarks, draw_unseen, jitter, write_report
from shared.camera import project
from shared.clip import Clip, ClipInfo, ExcludedSpan, Shot
from shared.gaze import save_gaze
from shared.landmarks import FPS, SAMPLES_PER_FRAME, lip_opening, save_array, save_landmarks
from shared.media import video_io
from shared.media.audio_io import save_wav
from shared.media.video_io import GrayVideoWriter, VideoWriter, write_png

FRAMES, SIZE = 120, 96


@pytest.fixture
def clip(tmp_path):
    """A clip folder with real landmarks and sound of the actor and grey pictures."""
    made = Clip(tmp_path / "clip")
    made.root.mkdir()
    sound, landmarks = actor_landmarks("train", 0)
    poses, torso = actor_motion(FRAMES, SIZE, 0)
    save_wav(made.audio, sound[: FRAMES * SAMPLES_PER_FRAME])
    save_landmarks(made.landmarks, landmarks[:FRAMES])
    save_landmarks(made.neutral, landmarks[:1])
    save_array(made.poses, poses)
    save_array(made.torso_motion, torso)
    with (VideoWriter(made.video, SIZE, SIZE, audio=np.zeros(FRAMES * SAMPLES_PER_FRAME, np.float32)) as video,
          GrayVideoWriter(made.labels, SIZE, SIZE) as labels):
        for t in range(FRAMES):
            video.write(np.full((SIZE, SIZE, 3), t, np.uint8))
            labels.write(np.full((SIZE, SIZE), t % 5, np.uint8))
    for name in ("background.png", "background_01.png"):
        write_png(made.root / name, np.full((SIZE, SIZE, 3), 90, np.uint8))
    made.save_info(ClipInfo(
        name="<Anna & co>", source_name="film.mp4", source_sha256="0" * 64, width=SIZE, height=SIZE, frames=FRAMES,
        intrinsics=default_intrinsics(SIZE), crop=(4, 0, 100),
        shots=[Shot(0, 70, "background.png"), Shot(70, FRAMES, "background_01.png")],
        excluded=[ExcludedSpan(30, 40, "a hand covers the mouth"), ExcludedSpan(90, 91, "the face is lost")],
        split={"train": [(0, 100)], "test": [(100, FRAMES)]}, warnings=["the sound is clipped; record it less loud"],
        lag_ms=-72.4))
    return made


class Page(HTMLParser):
    """Tags that must be closed, in order; every address; the text."""

    def __init__(self, text):
        super().__init__()
        self.open, self.addresses, self.text = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)
        self.addresses += [value for name, value in attributes if name in ("src", "href")]

    def handle_startendtag(self, tag, attributes):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def embedded(text: str) -> dict:
    return json.loads(re.search(r'<script type="application/json" id="curves">(.*?)</script>', text, re.S)[1])


def test_the_page_is_whole_and_needs_no_network(clip):
    write_report(clip)
    text = clip.report.read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == [] and len(page.addresses) >= 18
    assert all(address.startswith("data:image/jpeg;base64,") for address in page.addresses)
    assert "http:" not in text and "https:" not in text and "nan" not in re.sub(r"base64,[^\"]*", "", text)
    assert len(text) < 1_000_000


def test_it_says_what_is_known_of_the_clip(clip):
    write_report(clip)
    text = Page(clip.report.read_text(encoding="utf-8")).text
    for words in ("<Anna & co>", "film.mp4", "4.8 s", "96 × 96", "90.8 %", "72 ms", "lips before the sound",
                  "The sound is clipped; record it less loud.", "a hand covers the mouth", "1.20–1.60", "3.60–3.64",
                  "train, 3.6 s good", "test, 0.8 s good", "hissing (s, z, sh, ch, f)", "shot 2: 2.8–4.8 s", "scarce"):
        assert words in text, words


def test_the_curves_can_be_read_back(clip):
    looks = np.random.default_rng(0).normal(0, 0.1, (FRAMES, 2)).astype(np.float32)
    save_gaze(clip.gaze, looks)
    write_report(clip)
    found = embedded(clip.report.read_text(encoding="utf-8"))
    assert found["fps"] == FPS and found["frames"] == FRAMES
    assert list(found["curves"]) == ["Lips: opening", "Lids: right", "Lids: left", "Gaze: to the right", "Gaze: down",
                                    "Head: yaw", "Head: pitch", "Head: roll", "Torso: to the right", "Torso: down"]
    lips = found["curves"]["Lips: opening"]
    assert lips["frame"] == list(range(FRAMES)) and lips["unit"] == "mm apart"
    np.testing.assert_allclose(lips["value"], 1000 * lip_opening(clip.load_landmarks()), atol=0.006)
    np.testing.assert_allclose(found["curves"]["Gaze: down"]["value"], looks[:, 1], atol=0.0006)
    clip.gaze.unlink()
    write_report(clip)
    assert "Gaze: down" not in embedded(clip.report.read_text(encoding="utf-8"))["curves"]


def test_a_long_curve_is_thinned_but_keeps_every_blink():
    lids = np.zeros(90_000)
    blinks = np.arange(50, 90_000, 130)
    lids[blinks] = 1
    kept = thin(lids)
    assert len(kept) <= POINTS and (np.diff(kept) > 0).all()
    assert len(np.intersect1d(kept, blinks)) > 600  # one of each stretch of 120 frames that has one
    lids[:3000] = np.nan
    curve = json.loads(curves_json(90_000, {"Lids": [Curve("right", lids, 2)]}, {"Lids": "0 to 1"}))["curves"]["Lids: right"]
    assert curve["value"][0] is None and max(v for v in curve["value"] if v is not None) == 1
    assert len(thin(np.zeros(POINTS))) == POINTS


@pytest.mark.parametrize("low, high, expected", [
    (0, 10, [0, 5, 10]), (-0.31, 0.12, [-0.2, 0]), (3, 3, [3]), (0, 71, [0, 20, 40, 60]), (0, 3600, [0, 1000, 2000, 3000])])
def test_ticks_are_round_and_inside(low, high, expected):
    np.testing.assert_allclose(ticks(low, high, 4), expected, atol=1e-12)


def test_only_some_good_frames_are_looked_at(clip, monkeypatch):
    asked = []
    read = video_io.read_video

    def counted(path, start, stop, only):
        asked.append((start, stop, only))
        return read(path, start=start, stop=stop, only=only)

    monkeypatch.setattr(video_io, "read_video", counted)
    write_report(clip)
    ((start, stop, only),) = asked
    bad = {t for b in clip.info.excluded for t in range(b.start, b.stop)}
    assert len(only) == footage.FEWEST and not bad & only and (start, stop) == (min(only), max(only) + 1) == (0, FRAMES)


def test_frames_far_apart_are_jumped_to(clip):
    frames = np.array([3, 80])
    near, far = (list(footage.samples(clip, frames[:k])) for k in (1, 2))
    assert [sample.t for sample in far] == [3, 80] and [sample.shot for sample in far] == [0, 1]
    np.testing.assert_array_equal(near[0].picture, far[0].picture)
    assert abs(int(far[1].picture.mean()) - 80) < 3  # frame t is of grey level t


def test_landmarks_are_drawn_where_they_are(clip):
    pixels = project(clip.load_landmarks(), clip.load_poses(), clip.info.intrinsics)[0]
    drawn = draw_landmarks(np.zeros((SIZE, SIZE, 3), np.uint8), pixels)
    green = np.argwhere(drawn[..., 1] > 200)[:, ::-1]
    low, high = pixels.min(0), pixels.max(0)
    side = page.FACE_MARGIN * (high - low).max()
    there = (pixels - (low + high) / 2 + side / 2) * page.THUMBNAIL / side
    nearest = np.linalg.norm(green[None] + 0.5 - there[:, None], axis=-1).min(axis=1)
    assert nearest.max() < 1.5


def test_holes_of_the_cut_out_and_unseen_background_stand_out():
    grey = np.full((48, 48, 3), 100, np.uint8)
    alpha = np.full((48, 48), 255, np.uint8)
    alpha[:, 24:] = 0
    composite = draw_cut_out(grey, alpha)
    assert (composite[:, :24] == 100).all() and (composite[:, 24:] == page.BACKDROP).all()
    hatched = draw_unseen(grey, alpha > 0)
    changed = (hatched != grey).any(axis=-1)
    assert not changed[:, :24].any() and 0.3 < changed[:, 24:].mean() < 0.7


def test_jitter_measures_noise_and_not_motion():
    rng = np.random.default_rng(0)
    moving = np.linspace(0, 200, 500)[:, None, None] + np.zeros((500, 68, 2))
    assert jitter(moving) < 1e-6
    assert jitter(moving + rng.normal(0, 0.3, moving.shape)) == pytest.approx(0.3, rel=0.1)
    assert jitter(moving[:2]) == 0


def test_a_clip_of_one_frame_and_no_good_one(clip):
    info = clip.info
    for path in (clip.landmarks, clip.poses, clip.torso_motion):
        save_array(path, np.load(path)[:1])
    clip.save_info(ClipInfo(**{**info.__dict__, "frames": 1, "shots": [Shot(0, 1, "background.png")], "split": {},
                               "excluded": [ExcludedSpan(0, 1, "the face is lost")], "warnings": [], "lag_ms": None}))
    write_report(clip)
    page = Page(clip.report.read_text(encoding="utf-8"))
    assert page.open == [] and "lag cannot be told" in page.text
