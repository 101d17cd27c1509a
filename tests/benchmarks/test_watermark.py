import numpy as np
import pytest

from benchmarks.watermark import TREATMENTS, Tally, cost, cropped, false_alarms, phone, survival
from shared.watermark.payload import Payload
from tests.shared.watermark.scene import scene
from tests.talkhead.marked_video import unmarked_video


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    return unmarked_video(tmp_path_factory.mktemp("carrier") / "v.mp4")


def test_counts_messages_bits_and_false_alarms(video):
    tally = survival([video], 2.0, 1, {"crf 18": TREATMENTS["crf 18"]}, 0)["crf 18"]
    assert tally.row() == {"pieces": 1, "messages %": 100.0, "bits %": 100.0, "wrong": 0} and not tally.lost
    assert false_alarms([video], 1, 5) == {"pieces": 1, "alarms": 0}


def test_a_lost_message_counts_half_of_its_bits():
    tally = Tally()
    tally.add("a", Payload(1), np.zeros((60, 32, 32, 3), np.uint8))
    assert tally.row()["bits %"] == 50.0 and tally.row()["messages %"] == 0.0 and tally.lost == ["a"]


def test_the_cost_is_that_of_the_marked_video(video):
    (row,) = cost([video]).values()
    assert 40 < row["PSNR"] < 50 and row["marked"] >= row["flicker"] > 0 and row["size"] > 0.9


def test_treatments_keep_the_length_and_change_the_size():
    frames = scene(50, 96, 64)
    assert cropped(frames, np.random.default_rng(0)).shape == (50, 58, 86, 3)
    assert phone(frames).shape == (50, 480, 720, 3)
