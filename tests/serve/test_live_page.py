"""The page at `/` in headless Chromium: the microphone is a file, and what is drawn is measured."""

import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.live import service as serving
from process_data.actor.actor import actor_landmarks
from shared.avatar import Avatar
from shared.media.audio_io import load_audio, save_wav
from tests.serve.drawn_avatar import Service

playwright = pytest.importorskip("playwright.sync_api", reason="no Playwright: pip install playwright")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: the page is not tested; apt install chromium")
EXAMPLE = Path(__file__).parents[2] / "serve" / "page" / "example.mp3"
DRAWN_MOUTH = (100, 158, 56, 34)  # x, y, width, height of the picture
# Tells the messages that are sent, the level of each 40 ms of sound, when sounds are stopped, and of each picture what it shows
# and how dark its mouth is: in red, in which lips are as light as skin
SPY = """
window.sent = []; window.levels = []; window.stops = []; window.shown = [];
const send = WebSocket.prototype.send;
WebSocket.prototype.send = function (data) {
  if (typeof data === "string") sent.push(JSON.parse(data));
  else {
    const step = sent[0].sample_rate / 25;
    for (let k = 0; k < data.length; k += step) levels.push(Math.hypot(...data.subarray(k, k + step)));
  }
  send.call(this, data);
};
const stop = AudioScheduledSourceNode.prototype.stop;
AudioScheduledSourceNode.prototype.stop = function (...when) { stops.push(performance.now()); stop.apply(this, when); };
document.addEventListener("DOMContentLoaded", () => {
  const face = document.querySelector("#face");
  face.addEventListener("shown", ({ detail }) => {
    const mouth = face.getContext("2d").getImageData(...MOUTH).data;
    let red = 0;
    for (let k = 0; k < mouth.length; k += 4) red += mouth[k];
    shown.push({ ...detail, dark: 255 - red / mouth.length * 4 });
  });
});
"""
Open = Callable[..., Any]


@pytest.fixture(scope="module")
def microphone(tmp_path_factory) -> Path:
    """A sentence at 48 kHz, as Chromium's file for a microphone."""
    path = tmp_path_factory.mktemp("sound") / "microphone.wav"
    save_wav(path, np.repeat(load_audio(EXAMPLE), 3), 48000)
    return path


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        yield started.chromium


def launch(chromium: Any, microphone: Path) -> Any:
    """A browser whose microphone hears a file, over and over."""
    return chromium.launch(executable_path=CHROMIUM, args=[
        "--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream", f"--use-file-for-fake-audio-capture={microphone}",
        "--autoplay-policy=no-user-gesture-required", "--host-resolver-rules=MAP avatar.test 127.0.0.1", "--no-proxy-server"])


@pytest.fixture(scope="module")
def browser(chromium, microphone) -> Iterator[Any]:
    browser = launch(chromium, microphone)
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    service = Service("--origin", "http://avatar.test")
    yield service
    service.stop()


@pytest.fixture
def open_page(browser) -> Iterator[Open]:
    yield from opening(browser)


def opening(browser: Any) -> Iterator[Open]:
    """`open_page(url, state="ready", script="", mouth=…, **options)` -> a page in that state; no script of it may have failed."""
    contexts, failures = [], []

    def opened(url: str, state: str = "ready", script: str = "", mouth: tuple = DRAWN_MOUTH, **options: Any) -> Any:
        contexts.append(browser.new_context(viewport={"width": 1200, "height": 860}, **options))
        page = contexts[-1].new_page()
        page.on("pageerror", lambda error: failures.append(str(error)))
        page.on("console", lambda said: failures.append(said.text) if "Content Security Policy" in said.text else None)
        page.add_init_script(SPY.replace("MOUTH", json.dumps(mouth)) + script)
        page.goto(url)
        until(page, state)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert failures == []


def until(page: Any, state: str) -> None:
    try:
        page.wait_for_selector(f"body[data-state={state}]", timeout=30_000)
    except playwright.TimeoutError as late:
        raise AssertionError(f"not {state} within 30 s: {page.url} says {page.inner_text('body')[:500]!r}") from late


def status(page: Any) -> str:
    return page.inner_text("#status")


def keep_picture(page: Any, name: str) -> None:
    """A screenshot into the folder TALKHEAD_SCREENSHOTS, for people to look at."""
    if folder := os.environ.get("TALKHEAD_SCREENSHOTS"):
        page.screenshot(path=Path(folder, f"{name}.png"))


def wait(page: Any, expression: str, seconds: float = 30.0) -> None:
    """Until the expression is true in the page; Playwright's own function needs an eval that the page's policy forbids."""
    end = time.monotonic() + seconds
    while not page.evaluate(expression):
        assert time.monotonic() < end, f"not within {seconds:g} s: {expression}; the page says {status(page)!r}"
        time.sleep(0.05)


def trouble(page: Any, text: str) -> None:
    """Until the page tells this trouble."""
    wait(page, f"document.querySelector('#trouble').textContent.startsWith({text!r})")


def lips_against_sound(page: Any, spread: int = 0, decibels: bool = False) -> tuple[float, np.ndarray]:
    """Over the pictures of the first epoch's speech: correlation between how dark the mouth is and the level of the sound that
    was sent for that picture, linear or in dB, both averaged over `spread` pictures before and behind; and by how many ms each
    came after its sound."""
    shown = page.evaluate("shown")
    levels = np.array(page.evaluate("levels"))
    levels = 20 * np.log10(levels + 1000) if decibels else levels  # 1000 is -63 dB of full scale
    step = page.evaluate("sent[0].sample_rate") // 25
    speech = [picture for picture in shown if not picture["idle"] and picture["epoch"] == 0]
    assert len(speech) > 50, f"only {len(speech)} pictures of speech were shown"
    numbers, dark = (np.array(values) for values in zip(*((picture["sample"] // step, picture["dark"]) for picture in speech)))
    near = np.abs(numbers[:, None] - numbers) <= spread
    loud, dark = (near @ values / near.sum(axis=1) for values in (levels[numbers], dark))
    offsets = [picture["offset"] for picture in speech if picture["offset"] is not None]
    return float(np.corrcoef(loud, dark)[0, 1]), np.array(offsets)


def test_lips_follow_the_microphone_and_an_interruption_is_obeyed_at_once(service, open_page):
    page = open_page(service.url)
    page.click("#speak")
    until(page, "speaking")
    time.sleep(4)
    keep_picture(page, "speaking")
    correlation, offsets = lips_against_sound(page)
    assert correlation > 0.8
    assert 0 <= np.median(offsets) < 40
    began = page.evaluate("document.querySelector('#interrupt').click() || performance.now()")
    time.sleep(0.6)
    late = [picture for picture in page.evaluate("shown") if picture["epoch"] == 0 and picture["now"] > began + 80]
    assert late == []
    assert page.evaluate("sent.findLast(data => data.type === 'interrupt')") == {"type": "interrupt", "epoch": 1}
    assert page.evaluate("shown.at(-1)")["epoch"] == 1
    assert status(page) == "Interrupted. Speak, or choose a sound."
    keep_picture(page, "interrupted")
    page.click("#speak")  # and it can be spoken to again
    until(page, "speaking")
    page.click("#speak")
    until(page, "ready")
    assert status(page) == "Ready. Speak, or choose a sound."


def test_a_sound_file_is_heard_with_its_pictures_and_acknowledged(service, open_page, tmp_path):
    save_wav(tmp_path / "hello.wav", load_audio(EXAMPLE)[:40000])
    page = open_page(service.url)
    page.set_input_files("#file", tmp_path / "hello.wav")
    until(page, "speaking")
    assert status(page) == "Speaking hello.wav."
    until(page, "ready")
    correlation, offsets = lips_against_sound(page)
    assert correlation > 0.8
    assert np.abs(offsets).max() < 200
    assert page.evaluate("sent.filter(data => data.type === 'segment.end').length") == 1
    assert page.evaluate("sent.filter(data => data.type === 'ack').length") >= 60
    assert page.evaluate("sent.findLast(data => data.type === 'stats').epoch") == 0
    assert page.inner_text("#latency").endswith(" ms") and page.inner_text("#offset").endswith(" ms")


def test_escape_stops_the_sound_at_once(service, open_page):
    page = open_page(service.url)
    page.click("#example")
    until(page, "speaking")
    press = "document.dispatchEvent(new KeyboardEvent('keydown', {key: 'Escape'}))"
    assert 0 <= page.evaluate(f"(began => {press} && stops.at(-1) - began)(performance.now())") < 80
    assert page.is_disabled("#interrupt")


def test_without_webcodecs_pictures_come_as_jpeg(service, open_page):
    page = open_page(service.url, script="delete window.VideoDecoder;")
    assert "256 × 256, JPEG" in page.inner_text("#format")
    assert "This browser lacks WebCodecs" in page.inner_text("#notice")
    page.click("#example")
    until(page, "speaking")
    time.sleep(3)
    keep_picture(page, "no_webcodecs")
    correlation, _ = lips_against_sound(page)
    assert correlation > 0.8


def test_plain_http_from_elsewhere_is_explained_and_files_still_work(service, open_page):
    page = open_page(service.url.replace("127.0.0.1", "avatar.test"))
    assert page.is_disabled("#speak")
    assert status(page) == "Ready. Choose a sound."
    notice = page.inner_text("#notice")
    assert "This page came over plain http, for which browsers switch off the microphone, and WebCodecs" in notice
    page.click("#example")
    until(page, "speaking")
    wait(page, "shown.filter(picture => !picture.idle).length > 10")
    keep_picture(page, "plain_http")


def test_what_is_no_sound_is_refused_with_a_sentence(service, open_page, tmp_path):
    (tmp_path / "notes.txt").write_text("no sound")
    page = open_page(service.url)
    page.set_input_files("#file", tmp_path / "notes.txt")
    wait(page, "document.querySelector('#status').textContent.includes('notes.txt holds no sound')")


@pytest.mark.slow
def test_the_keyboard_reaches_everything_and_focus_is_seen(service, open_page):
    page = open_page(service.url)
    reached = []
    for _ in range(5):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id"))
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    assert reached == ["avatar", "speak", "choose", "example", "hear"]
    page.focus("#speak")
    page.keyboard.press("Space")
    until(page, "speaking")
    assert page.get_attribute("#speak", "aria-pressed") == "true"
    page.keyboard.press("Space")
    until(page, "ready")
    assert page.evaluate("sent.at(-1).type") in ("ack", "segment.end")


@pytest.mark.slow
@pytest.mark.parametrize("width, scheme", [(390, "light"), (390, "dark"), (1200, "dark"), (1800, "light")])
def test_fits_every_width(service, open_page, width, scheme):
    page = open_page(service.url, color_scheme=scheme, reduced_motion="reduce")
    page.set_viewport_size({"width": width, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for name in ("speak", "choose", "example", "interrupt"):
        box = page.locator(f"#{name}").bounding_box()
        assert box["height"] >= 44 and box["x"] >= 0 and box["x"] + box["width"] <= width
    keep_picture(page, f"{width}_{scheme}")


@pytest.mark.slow
def test_nothing_is_asked_of_other_hosts(service, open_page, browser):
    context = browser.new_context()
    page, asked = context.new_page(), []
    page.on("request", lambda request: asked.append(request.url))
    page.on("websocket", lambda socket: asked.append(socket.url))
    page.goto(service.url)
    until(page, "ready")
    page.click("#example")
    until(page, "speaking")
    context.close()
    assert len(asked) > 8
    assert [url for url in asked if not url.startswith((service.url, service.live))] == []


@pytest.mark.slow
@pytest.mark.parametrize("codec", ["vp8", "h264", "jpeg"])
def test_a_codec_can_be_asked_for(service, open_page, codec):
    page = open_page(f"{service.url}/?codec={codec}")
    assert f"256 × 256, {codec.upper()}" in page.inner_text("#format")
    wait(page, "shown.length > 20")


@pytest.mark.slow
def test_another_avatar_can_be_picked(service, open_page):
    page = open_page(service.url)
    page.select_option("#avatar", "other")
    until(page, "ready")
    wait(page, "sent.filter(data => data.type === 'session.init').length === 2")
    assert page.evaluate("sent.findLast(data => data.type === 'session.init').avatar") == "other"


@pytest.mark.slow
def test_a_lost_worker_is_told_and_the_page_connects_again(open_page):
    service = Service()
    try:
        page = open_page(service.url)
        service.worker().kill()
        trouble(page, "The program that draws this avatar broke off.")
        keep_picture(page, "lost")
        until(page, "ready")
        assert page.is_hidden("#veil")
    finally:
        service.stop()


@pytest.mark.slow
def test_after_a_server_stood_still_pictures_are_with_their_sound_again(service, open_page):
    page = open_page(service.url)
    page.click("#speak")
    until(page, "speaking")
    time.sleep(1)
    service.worker().send_signal(signal.SIGSTOP)
    time.sleep(2)
    service.worker().send_signal(signal.SIGCONT)
    before = page.evaluate("parseInt(document.querySelector('#latency').textContent)")
    time.sleep(8)
    correlation, offsets = lips_against_sound(page)
    assert correlation > 0.8
    assert np.abs(np.median(offsets[-25:])) < 80
    assert page.evaluate("parseInt(document.querySelector('#latency').textContent)") < before + 200


@pytest.mark.slow
def test_a_token_is_asked_for(open_page):
    service = Service("--token", "a token of sixteen", "--conversations", "1")
    try:
        page = open_page(service.url, "error")
        assert page.inner_text("#trouble") == "This server asks for its access token."
        page.fill("#token", "wrong")
        page.keyboard.press("Enter")
        trouble(page, "The server does not know this token.")
        keep_picture(page, "token")
        page.fill("#token", "a token of sixteen")
        page.keyboard.press("Enter")
        until(page, "ready")
        full = open_page(service.url, "error")
        full.fill("#token", "a token of sixteen")
        full.keyboard.press("Enter")
        trouble(full, "All 1 conversations are taken")
        keep_picture(full, "full")
    finally:
        service.stop()


@pytest.mark.slow
def test_a_trained_avatar_opens_its_mouth_as_the_microphone_is_loud(chain, chromium, tmp_path):
    sound = actor_landmarks("test", seed=0)[0]
    words = [np.pad(part, (0, 16000)) for part in np.split(sound[: 5 * 24000], 5)]  # with a second of silence between them
    save_wav(tmp_path / "microphone.wav", np.repeat(np.concatenate(words), 3), 48000)
    with serving(chain / "me.avatar", 1, "cpu") as (url, _):
        browser = launch(chromium, tmp_path / "microphone.wav")
        pages = opening(browser)
        page = next(pages)(url, mouth=mouth_of(chain / "me.avatar"))
        page.click("#speak")
        until(page, "speaking")
        wait(page, "shown.filter(picture => !picture.idle).length > 300", 90)
        keep_picture(page, "trained")
        correlation, _ = lips_against_sound(page, spread=3, decibels=True)
        began = page.evaluate("document.querySelector('#interrupt').click() || performance.now()")
        time.sleep(1)
        assert not [picture for picture in page.evaluate("shown") if picture["epoch"] == 0 and picture["now"] > began + 80]
        next(pages, None)
        browser.close()
    assert correlation > 0.5


def mouth_of(folder: Path) -> tuple[int, int, int, int]:
    """x, y, width, height of where an avatar's resting mouth is in the pictures of its motion track."""
    avatar = Avatar(folder)
    poses, _ = avatar.load_motion()
    fx, fy, cx, cy = avatar.info.intrinsics
    lips = avatar.load_neutral().reshape(68, 3)[48:] @ poses[:, :3, :3].transpose(0, 2, 1) + poses[:, None, :3, 3]
    points = lips[..., :2] / lips[..., 2:] * (fx, fy) + (cx, cy)
    low, high = points.min(axis=(0, 1)), points.max(axis=(0, 1))
    margin = (high - low)[1] / 8
    low, high = np.floor(low - margin).astype(int), np.ceil(high + margin).astype(int)
    return *low.tolist(), *(high - low).tolist()
