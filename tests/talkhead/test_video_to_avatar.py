"""`talkhead train`: refused before any work; goes on where it was killed; its report plays."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from cli import cli
from process_data.check import VideoCheck, judged
from shared.avatar import Avatar
from shared.clip import Clip
from shared.consent import Consent
from shared.errors import TalkheadError
from shared.files import sha256, write_json
from shared.media.video_io import VideoWriter
from talkhead import synthesis
from talkhead import video_to_avatar as module
from talkhead.commands.train import NEEDED
from talkhead.held_out import FIGURES, VIDEO, measure_held_out
from talkhead.train_report import TOLD, told, write_train_report
from talkhead.video_to_avatar import RECORD, TrainConfig, recorded_consent, train_avatar, work_of

ROOT = Path(__file__).resolve().parents[2]
NO_NOTE = Consent("", "2026-11-28", skipped=True)
SMALL = ["--set", "stage1.support_points=320", "--set", "stage1.voice_augmentation=false", "--set", "stage2.steps=8",
         "--set", "stage2.splats=200", "--set", "stage2.rank=6", "--set", "stage2.hidden=16", "--set", "stage2.fits=1",
         "--set", "stage2.save_seconds=0", "--set", "torso.steps=6", "--set", "torso.save_seconds=0", "--set",
         "torso.plate_frames=8"]


@pytest.fixture
def video(tmp_path):
    with VideoWriter(tmp_path / "me.mp4", 16, 16) as writer:
        writer.write(np.zeros((16, 16, 3), np.uint8))
    return tmp_path / "me.mp4"


def said(*arguments, **more):
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments], **more)
    assert result.exit_code == 2, result.output
    return result.output.strip()


def test_without_a_terminal_the_consent_note_is_asked_for_before_any_work(video):
    output = video.with_suffix(".avatar")
    assert said("train", video, "-o", output) == f"Error: {NEEDED}"
    assert sorted(path.name for path in video.parent.iterdir()) == ["me.mp4"]
    assert all(option in NEEDED for option in ("--consent-who", "--consent-statement", "--consent-use", "--no-consent-note"))


@pytest.mark.parametrize("options,sentence", [
    (["--no-consent-note", "--consent-who", "Ada"],
     "--no-consent-note says that there is no note; leave it out, or the other --consent options"),
    (["--consent-use", "lectures"], "--consent-statement and --consent-use say what somebody allowed; add --consent-who NAME"),
    (["--consent-who", "Ada", "--consent-statement", "no.wav"],
     "--consent-statement no.wav does not exist; name the file in which they say so"),
    (["--no-consent-note", "-o", "me.zip"], "me.zip: the name of an avatar file should end in .avatar"),
    (["--no-consent-note", "--set", "stage3.steps=1"], "--set: unknown key 'stage3'"),
])
def test_options_that_do_not_go_together(video, options, sentence):
    assert sentence in said("train", video, *options)


@pytest.mark.parametrize("typed,note", [
    ("Ada\n\nlectures; tests\n", {"who": "Ada", "uses": ["lectures", "tests"], "skipped": False}),
    ("\ny\n", {"who": "", "uses": [], "skipped": True}),
])
def test_on_a_terminal_the_note_is_typed_in(video, monkeypatch, typed, note):
    from talkhead.commands import train as command

    class Terminal:
        stdin = stderr = type("Stream", (), {"isatty": staticmethod(lambda: True)})

    given = {}

    def stop(*_, consent, **__):
        given.update(consent.to_dict())
        raise TalkheadError("far enough")

    monkeypatch.setattr(command, "sys", Terminal)
    monkeypatch.setattr(module, "train_avatar", stop)
    said("train", video, "-o", video.with_suffix(".avatar"), input=typed)
    assert given.items() >= note.items()


def test_nothing_is_replaced_unasked_and_work_of_another_video_is_not_gone_on_with(video):
    output, work = video.with_suffix(".avatar"), video.with_suffix(".training")
    assert work_of(output) == work and recorded_consent(output) is None
    with pytest.raises(TalkheadError, match=r"^no consent note is given for .*me\.avatar; see `talkhead train --help`$"):
        train_avatar(video, output)
    work.mkdir(exist_ok=True)
    (work / "letter.txt").touch()
    with pytest.raises(TalkheadError, match=r"me\.training holds other files; move them, or name another avatar with -o$"):
        train_avatar(video, output, consent=NO_NOTE)
    (work / "letter.txt").unlink()
    write_json(work / RECORD, {"steps": {}, "video": "0" * 64, "name": "you.mp4", "consent": NO_NOTE.to_dict()})
    assert recorded_consent(output) == NO_NOTE
    with pytest.raises(TalkheadError, match=r"holds the work of another video, 'you\.mp4'; name another avatar with -o, or add "
                                            "--restart to begin anew there$"):
        train_avatar(video, output)
    for existing in (video.with_suffix(".report.html"), output):
        existing.write_text("mine")
        with pytest.raises(TalkheadError, match=f"{existing.name} exists already; add --overwrite to replace it$"):
            train_avatar(video, output)
    output.unlink()
    output.mkdir()
    with pytest.raises(TalkheadError, match=r"me\.avatar is a folder; name a file that is not there yet with -o$"):
        train_avatar(video, output)


def test_the_report_tells_each_figure_a_verdict():
    opening, velocity = TOLD[:2]
    assert [told(opening, value) for value in (0.8, 0.6, 0.1)] == ["good", "fair", "weak"]
    assert [told(velocity, value) for value in (1.0, 0.7, 1.5, 3.0)] == ["good", "fair", "fair", "weak"]


def report_of(chain, folder):
    """The report of the chain's avatar, with made verdicts on its recording; returns its path and the clip."""
    clip, avatar = Clip(chain / "me"), Avatar(chain / "me.avatar")
    measure_held_out(avatar, clip, folder / "held_out", device=torch.device("cpu"), quiet=True)
    rows = [judged("echo, RT60", 0.9), judged("wide open (ah, ow)", 0.1), judged("blinks", None)]
    checked = VideoCheck("me.mp4", 6.4, 6.4, rows)
    write_train_report(folder / "me.report.html", clip, checked, folder / "held_out", folder / "me.avatar")
    return folder / "me.report.html", clip


@pytest.mark.slow
def test_the_report_shows_held_out_frames_figures_and_advice(chain, tmp_path, monkeypatch):
    loaded = []
    for name in ("load_head", "load_torso"):
        load = getattr(synthesis, name)
        monkeypatch.setattr(synthesis, name, lambda *given, load=load, name=name: loaded.append(name) or load(*given))
    path, clip = report_of(chain, tmp_path)
    assert sorted(loaded) == ["load_head", "load_torso"]  # once each
    html, figures = path.read_text(), json.loads((tmp_path / "held_out" / FIGURES).read_text())
    start, stop = clip.info.split["test"][0]
    assert start <= figures["start"] and figures["start"] + figures["frames"] <= stop
    assert "Record in a room with soft furniture, nearer to the microphone." in html and "Read: “Father, the car" in html
    assert 'class="poor"' in html and "me.training" not in html and "http" not in html
    assert re.search(r'href="[^"]*/me/report.html"', html)
    assert (tmp_path / "held_out" / VIDEO).stat().st_size < 2_200_000 and len(html) < 3_100_000
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium here to play the video in")
    played = path.with_name("played.html")
    played.write_text(html.replace("</body>", """<script>const v = document.querySelector("video"); v.muted = true;
        v.ontimeupdate = () => { if (v.currentTime > .05) document.title = `${v.duration} ${v.readyState} ${v.videoWidth}` };
        v.play()</script></body>"""))
    page = subprocess.run([browser, "--headless", "--no-sandbox", "--autoplay-policy=no-user-gesture-required",
                           f"--user-data-dir={tmp_path / 'browser'}", "--virtual-time-budget=20000", "--dump-dom",
                           played.as_uri()],
                          capture_output=True, text=True, timeout=120).stdout
    found = re.search(r"<title>([\d.]+) (\d) (\d+)</title>", page)
    assert found, page[:300]
    assert float(found[1]) == pytest.approx(figures["frames"] / 25, abs=0.1)
    assert int(found[2]) >= 2 and int(found[3]) == 2 * clip.info.width  # HAVE_CURRENT_DATA


def train(folder, *options, until=None):
    """Run the command in a process of its own; SIGKILL it with its children once `until` is true. Returns what it said."""
    code = "from talkhead_main import main; main()"
    with open(folder / "said.txt", "w") as out:
        process = subprocess.Popen([sys.executable, "-c", code, "train", "me.mp4", "--device", "cpu", *SMALL, *options],
                                   cwd=folder,
                                   env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"},
                                   stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True)
        while process.poll() is None:
            if until is not None and until():
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                return None
            time.sleep(0.02)
    text = (folder / "said.txt").read_text()
    assert process.returncode == 0 and until is None, text
    return text


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_run_that_is_killed_goes_on_and_gives_the_same_avatar(tmp_path):
    from process_data.actor.actor import make_actor

    made = make_actor(tmp_path / "actor", size=128, seconds=3.2, seed=0, quiet=True)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        folder.mkdir()
        shutil.copyfile(made.video, folder / "me.mp4")
    note = ["--consent-who", "The actor", "--consent-use", "tests"]
    train(whole, *note)
    work = killed / "me.training"
    train(killed, *note, until=lambda: any((work / "me" / ".partial").glob("*/matte_*.mkv")))
    train(killed, until=lambda: (work / "me" / "training" / "stage2" / "state.safetensors").is_file())  # the note is known
    train(killed, until=lambda: (work / "me" / "training" / "torso" / "unfinished").is_file())
    text = train(killed)
    assert text.count("done before") >= 4 and "8/8 report" in text
    assert sha256(killed / "me.avatar") == sha256(whole / "me.avatar")
    assert (killed / "me.report.html").read_text() == (whole / "me.report.html").read_text()
    assert Avatar(whole / "me.avatar").info.consent.who == "The actor"
    refused = CliRunner().invoke(cli, ["train", str(killed / "me.mp4"), "-o", str(killed / "me.avatar"), "--no-consent-note"])
    assert "me.avatar exists already; add --overwrite to replace it" in refused.output
    before = {part: sha256(work / "me.avatar" / f"{part}.safetensors") for part in ("stage1", "stage2", "torso")}
    text = train(killed, "--overwrite", "--set", "torso.steps=7", "--discard")  # what depends on the change is done anew
    assert text.count("done before") == 4 and "5/8 torso     done in" in text and not work.exists()
    assert Avatar(killed / "me.avatar").info.parts["torso"]["sha256"] != before["torso"]
    assert Avatar(killed / "me.avatar").info.parts["stage2"]["sha256"] == before["stage2"]


def test_pictures_are_decoded_while_stage_1_is_trained(monkeypatch):
    trains, decoded = threading.Event(), threading.Event()

    def finetune(clip, avatar, **how):
        trains.set()
        assert decoded.wait(10) and how == {"device": "cpu", "config": "mine"}

    def decode():
        assert trains.wait(10)
        decoded.set()

    def refuse():
        raise TalkheadError("labels.mkv: expected 6 frames as in clip.json, found 5")

    monkeypatch.setattr(module, "finetune", finetune)
    training = module._Training.__new__(module._Training)
    training.avatar, training.config, training.clip = None, SimpleNamespace(stage1="mine"), SimpleNamespace(decode=decode)
    training._finetune(device="cpu")
    training.clip.decode = refuse
    with pytest.raises(TalkheadError, match="found 5"):
        training._finetune(device="cpu")


def test_settings_of_the_steps_are_groups():
    assert TrainConfig().stage2.steps == 0 and TrainConfig().process.max_size == 512
