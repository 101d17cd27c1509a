"""`process` and the imports never harm what is there: not the source, not another folder, not the clip from before."""

import contextlib
import dataclasses
import os

import numpy as np
import pytest
from click.testing import CliRunner

from cli import cli
from process_data import pipeline
from process_data.pipeline import BUILT, finish_clip, save_with_content
from shared.camera import pose_matrix
from shared.clip import Clip, ClipInfo, Shot
from shared.errors import TalkheadError
from shared.face_check import TEMPLATE
from shared.files import write_json
from shared.landmarks import save_array, save_landmarks
from shared.lock import lock_folder
from shared.media.audio_io import save_wav
from shared.media.video_io import VideoWriter, write_png
from shared.publish import WORK, work_folder

FRAMES = 80


def pose(distance):
    """(1, 4, 4) head → camera: upright, facing the camera."""
    return pose_matrix(np.diag([1.0, -1, -1]), np.array([0, 0, distance]))[None].astype(np.float32)


def film(path, grey=120, frames=FRAMES):
    with VideoWriter(path, 128, 128, audio=np.full(frames * 640, 0.1, np.float32)) as writer:
        for _ in range(frames):
            writer.write(np.full((128, 128, 3), grey, np.uint8))
    return path


def write_clip(clip, grey, name="me"):
    """Every file of a clip, of a grey picture."""
    film(clip.video, grey, 4)
    save_wav(clip.audio, np.zeros(4 * 640))
    save_landmarks(clip.landmarks, np.repeat(TEMPLATE[None], 4, 0))
    save_landmarks(clip.neutral, TEMPLATE[None])
    save_array(clip.poses, np.repeat(pose(0.8), 4, 0))
    save_array(clip.torso_motion, np.zeros((4, 4)))
    for path in (clip.labels, clip.alpha, clip.report):
        path.write_bytes(bytes([grey]))
    write_png(clip.background, np.full((128, 128, 3), grey, np.uint8))
    save_with_content(clip, ClipInfo(name, "a.mp4", "00", 128, 128, 4, (300.0, 300.0, 64.0, 64.0), (0, 0, 128),
                                     [Shot(0, 4, "background.png")], split={"train": [(0, 4)]}))


@pytest.fixture
def clip(tmp_path):
    """A finished clip with all that a training leaves in it, and a file of the user's."""
    made = Clip(tmp_path / "me")
    write_clip(made, 50)
    write_png(made.root / "background_01.png", np.zeros((128, 128, 3), np.uint8))
    made.save_fitted_poses(made.load_poses(), "head")
    made.read_frames(np.array([0]))
    (made.training / "stage2" / "eval").mkdir(parents=True)
    (made.training / "stage2" / "state.safetensors").write_bytes(b"state")
    (made.root / "notes.txt").write_text("mine")
    return made


@pytest.fixture
def stub(monkeypatch):
    """Tracking is left out: the clip that is made is of one grey, set by the test."""
    wanted = {"grey": 90}

    def made(source, target, work, *_):
        write_clip(Clip(work / BUILT), wanted["grey"], target.root.name)

    monkeypatch.setattr(pipeline, "_process", made)
    return wanted


def everything(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def run(*arguments):
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def refused(result, sentence):
    assert result.exit_code == 2, (result.output, result.exception)
    lines = [line for line in result.output.replace("\r", "\n").splitlines() if line.startswith("Error: ")]
    assert len(lines) == 1 and sentence in lines[0], result.output


@pytest.mark.parametrize("way", ["path", "from inside", "symbolic link", "hard link", "link in the clip", "folder link"])
def test_the_source_is_never_written_over(way, tmp_path):
    folder = tmp_path / "me"
    folder.mkdir()
    source = film(folder / "video.mp4", frames=4)
    place, target = source, folder
    if way == "symbolic link":
        place = tmp_path / "link.mp4"
        place.symlink_to(source)
    elif way == "hard link":
        place = tmp_path / "hard.mp4"
        os.link(source, place)
    elif way == "link in the clip":
        place = source.rename(tmp_path / "recording.mp4")
        source.symlink_to(place)
    elif way == "folder link":
        target = tmp_path / "linked"
        target.symlink_to(folder)
    before = everything(tmp_path)
    for options in ([], ["--overwrite"]):
        with contextlib.chdir(folder):
            names = ("video.mp4", ".") if way == "from inside" else (place, target)
            refused(run("process", *names, *options), "would be written over; name another folder for the clip")
        assert everything(tmp_path) == before


def test_nor_is_a_source_that_is_another_file_of_the_clip(clip, tmp_path):
    before = everything(tmp_path)
    for name in ("audio.wav", "background_01.png", "training/stage2/state.safetensors"):
        refused(run("process", clip.root / name, clip.root, "--overwrite"), "is the same file as")
    refused(run("process", clip.video, clip.root), "is a finished clip already; add --overwrite")
    assert everything(tmp_path) == before


@pytest.mark.parametrize("kind", ["documents", "the recording", "an avatar", "hidden files"])
def test_a_folder_of_other_things_is_left_alone(kind, tmp_path):
    source, folder = film(tmp_path / "a.mp4", frames=4), tmp_path / "me"
    folder.mkdir()
    if kind == "an avatar":
        write_json(folder / "avatar.json", {})
    elif kind == "the recording":
        source = source.rename(folder / "take.mp4")
    else:
        (folder / (".secret" if kind == "hidden files" else "poses.npy")).write_text("mine")
    before = everything(tmp_path)
    for options in ([], ["--overwrite"]):
        refused(run("process", source, folder, *options),
                "is an avatar folder; name another" if kind == "an avatar" else "is no clip and holds other files (")
    assert everything(tmp_path) == before


@pytest.mark.parametrize("content", ["nothing", "a Finder file", "an interrupted run"])
def test_an_empty_folder_or_an_interrupted_run_is_taken(content, tmp_path, stub):
    source, folder = film(tmp_path / "a.mp4", frames=4), tmp_path / "me"
    folder.mkdir()
    if content == "a Finder file":
        (folder / ".DS_Store").touch()
    elif content == "an interrupted run":
        work_folder(folder, "0123").mkdir(parents=True)
        (folder / "video.mp4").write_bytes(b"as older versions left it")
    assert run("process", source, folder).exit_code == 0
    assert Clip(folder).info.frames == 4 and not (folder / WORK).exists()


def test_a_refused_run_leaves_the_finished_clip_as_it_was(clip, tmp_path, monkeypatch):
    before = everything(tmp_path)
    source = film(tmp_path / "two.mp4", frames=6)
    before["two.mp4"] = source.read_bytes()
    refused(run("process", source, clip.root, "--overwrite", "--split", "train=0:99999"), "train=0:99999: the clip has 6 frames")
    assert everything(tmp_path) == before

    def nobody(video, count, *_, **__):
        from process_data.detection.detection_pass import Detections

        return Detections(np.full((count, 3, 3), np.nan, np.float32), np.zeros(count), np.zeros((0, 5)), np.zeros((0, 5)),
                        np.zeros(count, bool), None)

    monkeypatch.setattr(pipeline.detection_pass, "detect_video", nobody)
    refused(run("process", source, clip.root, "--overwrite"), "no face is found in any of 6 frames")
    assert everything(tmp_path) == before
    empty = tmp_path / "empty"
    empty.mkdir()
    refused(run("process", source, empty), "no face is found")
    assert everything(tmp_path) == before and list(empty.iterdir()) == []


def test_an_interrupted_run_leaves_the_finished_clip_and_its_own_work(clip, tmp_path, monkeypatch):
    source, before = film(tmp_path / "new.mp4", frames=6), everything(clip.root)

    def stop(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pipeline.detection_pass, "detect_video", stop)
        assert run("process", source, clip.root, "--overwrite").exit_code == 130
    now = everything(clip.root)
    work = {name: data for name, data in now.items() if name.startswith(WORK)}
    assert {name: data for name, data in now.items() if name not in work} == before
    assert any(name.endswith("clip/video.mp4") for name in work)
    # a refusal of another run does not take the work away
    refused(run("process", source, clip.root, "--overwrite", "--split", "train=0:99999"), "the clip has 6 frames")
    assert everything(clip.root) == now


def test_what_was_derived_from_another_video_goes_with_it(clip, tmp_path, stub):
    source = film(tmp_path / "a.mp4", frames=4)
    stub["grey"] = 50  # the same content: what was derived from it holds
    assert run("process", source, clip.root, "--overwrite").exit_code == 0
    assert clip.fitted_poses.is_file() and (clip.training / "stage2" / "state.safetensors").is_file() and clip.cache.is_dir()
    assert not (clip.root / "background_01.png").exists()  # of a shot that is no more
    stub["grey"] = 51
    assert run("process", source, clip.root, "--overwrite").exit_code == 0
    assert sorted(path.name for path in clip.root.iterdir()) == sorted([
        "alpha.mkv", "audio.wav", "background.png", "clip.json", "labels.mkv", "landmarks.npy", "neutral.npy", "notes.txt",
        "poses.npy", "report.html", "torso.npy", "video.mp4"])
    assert Clip(clip.root).changed() == [] and (clip.root / "notes.txt").read_text() == "mine"


def test_a_clip_whose_manifest_is_damaged_can_be_made_again(clip, tmp_path, stub):
    clip.json.write_text("{")
    assert run("process", film(tmp_path / "a.mp4", frames=4), clip.root, "--overwrite").exit_code == 0
    assert Clip(clip.root).info.frames == 4 and not clip.training.exists()


def test_a_move_that_was_cut_short_is_finished_by_whoever_opens_the_clip(clip, monkeypatch):
    new = Clip(work_folder(clip.root, "key/clip"))
    write_clip(new, 70)
    wanted = everything(new.root)
    with monkeypatch.context() as patch:
        patch.setattr("shared.publish._move", lambda folder: None)
        patch.setattr("shutil.rmtree", lambda *_, **__: None)
        finish_clip(clip, "key/clip")
    assert clip.video.read_bytes() != wanted["video.mp4"]
    assert Clip(clip.root).exists()
    assert {name: everything(clip.root)[name] for name in wanted} == wanted
    assert not clip.training.exists() and not (clip.root / WORK).exists()


def test_one_run_a_clip(clip, tmp_path, stub):
    """Locks are held by open files: a second one in this process stands for another process."""
    from shared import lock

    source = film(tmp_path / "a.mp4", frames=4)
    for folder in (clip.root, clip.training / "stage2"):
        with lock_folder(folder):
            held = set(lock._held)
            lock._held.clear()
            refused(run("process", source, clip.root, "--overwrite"), f"written by another talkhead, process {os.getpid()}")
            assert "in use: " in run("inspect", clip.root).output
            lock._held.update(held)
    assert run("process", source, clip.root, "--overwrite").exit_code == 0


def test_voca_clips_change_at_once_too(tmp_path, monkeypatch):
    from process_data.importers import voca

    clip = Clip(tmp_path / "anna_sentence01")
    sentence = voca.Sentence("anna", "sentence01", tmp_path / "meshes", tmp_path / "s.wav")
    arguments = (np.zeros((5, 68, 3), np.float32), np.zeros((1, 68, 3), np.float32), np.zeros(5 * 640, np.float32), [], "00")
    voca._write_clip(sentence, clip, *arguments)
    before = everything(clip.root)

    def full(*_):
        raise TalkheadError("cannot write: No space left on device")

    monkeypatch.setattr(voca, "save_wav", full)
    with pytest.raises(TalkheadError, match="No space"):
        voca._write_clip(dataclasses.replace(sentence, name="sentence01"), clip, *arguments)
    assert everything(clip.root) == before and Clip(clip.root).info.content
