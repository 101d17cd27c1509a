"""What `talkhead check` says: verdicts, coverage of made faces, the whole on the actor, refusals."""

import json

import numpy as np
import pytest
from click.testing import CliRunner
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

from cli import cli
from process_data import check
from process_data.check import ROWS, Seen, VideoCheck, check_video, judged, stretches
from process_data.check_sound import measure_sound
from process_data.config import ProcessConfig
from process_data.detection.base import Scheme
from shared.errors import TalkheadError
from shared.face_check import TEMPLATE
from shared.landmarks import EYE_LEFT, EYE_RIGHT, FPS, SAMPLE_RATE
from shared.media.video_io import VideoInfo, VideoWriter, probe

LOWER_LIP = [55, 56, 57, 58, 59, 65, 66, 67]
SCHEME = Scheme(68, np.arange(68), np.r_[17:36, 36, 39, 42, 45], np.ones(23), None)
INFO = VideoInfo(640, 480, 25.0, 24.0, 0, True, 600, "h264", 0.0, True)


def test_verdicts_upwards_downwards_and_between():
    assert [judged("speech over noise", v).verdict for v in (10, 20, 40)] == ["poor", "fair", "good"]
    assert [judged("echo, RT60", v).verdict for v in (0.9, 0.5, 0.2)] == ["poor", "fair", "good"]
    assert [judged("level of the speech", v).verdict for v in (-50, -40, -20, -8, -3)] == ["poor", "fair", "good", "fair", "poor"]
    assert "come nearer" in judged("level of the speech", -50).advice and "turn the microphone down" in judged(
        "level of the speech", -3).advice
    assert judged("echo, RT60", None).verdict == judged("echo, RT60", float("nan")).verdict == "unknown"
    assert not judged("echo, RT60", 0.2).advice and all(row.advice for row in ROWS.values())


def test_the_poorest_comes_first_and_speech_is_what_to_record():
    rows = [judged("flicker", 1.0), judged("echo, RT60", 0.9), judged("wide open (ah, ow)", 1.0), judged("speech", 3.0)]
    found = VideoCheck("me.mp4", 10, 10, rows)
    assert found.to_change() == [ROWS["echo, RT60"].advice, ROWS["flicker"].advice]
    assert found.to_record() == [ROWS["speech"].advice, ROWS["wide open (ah, ow)"].advice]


def test_a_long_video_is_looked_at_in_stretches():
    assert stretches(600) == [(0, 600)]
    found = stretches(7500)
    assert len(found) == 8 and found[0] == (0, 75) and found[-1] == (7425, 7500)


def made(opening, lids, yaw):
    """Faces (T,68,3) as a detector's pixels: inner lips apart by `opening` mm, lids open by a share, heads turned by `yaw`
    degrees."""
    face = np.repeat(TEMPLATE[None].astype(float), len(opening), axis=0)
    for eye in (EYE_RIGHT, EYE_LEFT):
        middle = face[:, eye, 1].mean(1, keepdims=True)
        face[:, eye, 1] = middle + (face[:, eye, 1] - middle) * lids[:, None]
    face[:, [61, 62, 63], 1] = face[:, [67, 66, 65], 1] = (TEMPLATE[[61, 62, 63], 1] + TEMPLATE[[67, 66, 65], 1]) / 2
    face[:, LOWER_LIP, 1] -= opening[:, None] / 1000
    turned = np.einsum("tij,tnj->tni", Rotation.from_rotvec(np.radians(yaw)[:, None] * [0, 1, 0]).as_matrix(), face)
    return (turned * [2000, -2000, -2000] + [320, 240, 0]).astype(np.float32)


def test_shapes_blinks_and_turns_of_made_faces_are_counted():
    t = np.arange(600)
    opening = np.where((t // 25) % 4 == 0, 9.0, 0.0)  # six seconds wide open, the others closed
    speech = np.repeat((t % 100 < 75) | (t < 100), 640)  # with a tone, but for a second of each four
    lids = np.where(t % 100 < 3, 0.05, 1.0)  # six blinks
    points = made(opening, lids, 12 * np.sin(t / 30))
    samples = (speech * 0.1 * np.sin(2 * np.pi * 300 * np.arange(600 * 640) / SAMPLE_RATE)).astype(np.float32)

    def rows_of(count):
        seen = Seen([(0, count)], points[:count], np.ones(count), np.ones(count), np.zeros((1, 3)), np.zeros(1), [], [], [])
        found = check._speech(seen, np.ones(count, bool), measure_sound(samples), samples, INFO, SCHEME, ProcessConfig())
        return {row.name: row for row in found}

    rows = rows_of(600)
    assert rows["wide open (ah, ow)"].value == pytest.approx(6, abs=0.3)
    assert rows["listening, mouth shut"].value == pytest.approx(5, abs=0.5)
    assert rows["blinks"].value == 6
    assert rows["head turned, range"].value == pytest.approx(24, abs=1.5)
    assert rows["head nodded, range"].value < 1.5 and rows["head nodded, range"].verdict == "poor"
    assert rows["rounded (oo)"].value == 0 and rows["rounded (oo)"].verdict == "poor"
    assert rows_of(300)["wide open (ah, ow)"].value == pytest.approx(6, abs=0.3)  # half of it was seen


class Nobody:
    """A detector that finds nothing."""

    scheme = SCHEME

    def everyone(self, frame):
        return np.zeros((0, 68, 3), np.float32)

    def person(self, frame):
        return np.zeros((256, 256), np.uint8)

    def restart(self):
        pass


@pytest.mark.parametrize("slide,verdict", [(0, "good"), (1, "poor")])
def test_a_cut_is_no_motion_of_the_camera(tmp_path, slide, verdict):
    rng = np.random.default_rng(0)
    scenes = [((gaussian_filter(rng.standard_normal((240, 360)), 5) > 0) * 160 + 40).astype(np.uint8) for _ in range(2)]
    with VideoWriter(tmp_path / "cut.mp4", 320, 200) as writer:
        for t in range(60):
            scene = scenes[t >= 36][:200, slide * (t % 36) : slide * (t % 36) + 320]
            writer.write(np.repeat(scene[..., None], 3, axis=2))
    seen = check.look(tmp_path / "cut.mp4", probe(tmp_path / "cut.mp4"), Nobody(), quiet=True)
    assert seen.spans == [(0, 60)] and judged("camera motion", 100 * seen.shift[0]).verdict == verdict
    assert seen.changed[0] < 0.01 or slide


def test_a_video_that_cannot_be_used_is_a_sentence(tmp_path):
    for name, seconds, sentence in (("short.mp4", 2, "lasts 2.0 s; at least 3 s are needed, 1 to 3 minutes are good"),
                                    ("empty.mp4", 4, "no face is found in any of 100 frames; film one person, facing the cam")):
        with VideoWriter(tmp_path / name, 64, 64, audio=np.zeros(seconds * SAMPLE_RATE, np.float32)) as writer:
            for _ in range(seconds * FPS):
                writer.write(np.full((64, 64, 3), 90, np.uint8))
        with pytest.raises(TalkheadError, match=sentence):
            check_video(tmp_path / name, quiet=True)
    result = CliRunner().invoke(cli, ["check", str(tmp_path / "short.mp4")])
    assert result.exit_code == 2 and result.output.startswith("Error: ")


@pytest.mark.slow
def test_the_actor_is_judged_as_he_is(actor_clip):
    clip, truth = actor_clip
    result = CliRunner().invoke(cli, ["check", str(truth.video), "--json"])
    values = json.loads(result.stdout)
    rows = {row["name"]: row for row in values["measures"]}
    assert result.exit_code == 0 and list(rows) == [name for name in rows if name in ROWS] and len(rows) == len(ROWS)
    assert rows["face in the picture"]["value"] == 100 and rows["other faces"]["value"] == 0
    assert rows["echo, RT60"]["verdict"] in ("good", "unknown") and rows["camera motion"]["verdict"] == "good"
    assert rows["speech"]["verdict"] == "poor" and ROWS["speech"].advice in values["to_record"]
    table = CliRunner().invoke(cli, ["check", str(truth.video)]).stdout
    assert "record in addition:" in table and "echo, RT60" in table
