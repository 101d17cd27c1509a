"""With a stream whose rows are numbered, and a clock that the test turns."""

import numpy as np
import pytest

from process_data.actor.identity import make_identity
from process_data.actor.proportions import neutral_landmarks
from serve.conversation import AHEAD, AT_ONCE, HOLD, Conversation, Row
from serve.idle import MotionCursor
from serve.protocol import Flag, ProtocolError, SessionInit

LOOK_AHEAD = 2
NEUTRAL = np.zeros((68, 3), np.float32)
FRAME = np.full(640, 1000, "<i2").tobytes()  # 40 ms
LIPS = slice(48, 68)


class CountingStream:
    """Row t has its number at the lips; comes when the sound of frame t + LOOK_AHEAD is complete."""

    def __init__(self) -> None:
        self.samples = self.rows = 0

    def push(self, samples: np.ndarray) -> np.ndarray:
        self.samples += len(samples)
        return self._until(self.samples // 640 - LOOK_AHEAD)

    def flush(self) -> np.ndarray:
        return self._until(-(-self.samples // 640))

    def _until(self, count: int) -> np.ndarray:
        rows = np.zeros((max(0, count - self.rows), 68, 3), np.float32)
        rows[:, LIPS, 1] = np.arange(self.rows, self.rows + len(rows))[:, None]
        self.rows += len(rows)
        return rows


class Talk:
    """A conversation that ticks every 40 ms."""

    def __init__(self, **init: object) -> None:
        self.told: list[dict] = []
        self.now = 100.0
        self.speech = Conversation(SessionInit(**init), CountingStream, NEUTRAL, MotionCursor(100, (40, 60)), LOOK_AHEAD,
                                   self.told.append)

    def tick(self, count: int = 1, sound: bytes = b"") -> list[list[Row]]:
        shown = []
        for _ in range(count):
            if sound:
                self.speech.sound(sound, self.now)
            while self.speech.busy:
                self.speech.hear(self.now)
            shown.append(self.speech.take(self.now))
            self.now += 0.04
        return shown


def samples(shown: list[list[Row]]) -> list[int]:
    return [row.sample for rows in shown for row in rows if not row.flags & Flag.IDLE]


def test_speech_as_it_is_spoken_is_shown_row_by_row_behind_its_look_ahead():
    talk = Talk()
    shown = talk.tick(50, FRAME)
    assert [len(rows) for rows in shown] == [1] * 50
    assert [bool(rows[0].flags & Flag.IDLE) for rows in shown[:4]] == [True, True, False, False]
    assert samples(shown) == [640 * k for k in range(48)]
    assert [row.landmarks[50, 1] for rows in shown for row in rows][2:] == list(range(48))


def test_speech_that_comes_at_once_is_shown_at_25_pictures_a_second():
    talk = Talk()
    talk.speech.sound(FRAME * 100, talk.now)
    talk.speech.end()
    shown = talk.tick(110)
    assert samples(shown) == [640 * k for k in range(100)]
    assert [bool(rows[0].flags & Flag.END) for rows in shown[:101]] == [False] * 99 + [True, False]
    assert [message["type"] for message in talk.told] == ["state", "segment.finished", "state"]
    assert talk.told[1] == {"type": "segment.finished", "epoch": 0, "position": 64000, "interrupted": False}


def test_no_more_than_a_second_is_made_before_it_is_due():
    talk = Talk()
    talk.speech.sound(FRAME * 200, talk.now)
    talk.tick(3)
    assert AHEAD <= len(talk.speech.rows) < AHEAD + 10


def test_a_part_of_a_frame_at_the_end_is_shown_and_its_position_is_that_of_the_sound():
    talk = Talk(sample_rate=48000)
    talk.speech.sound(np.zeros(48000 + 700, "<i2").tobytes(), talk.now)
    talk.speech.end()
    shown = talk.tick(40)
    assert samples(shown) == [1920 * k for k in range(26)]
    assert talk.told[-2]["position"] == 48700


def test_an_interrupt_takes_effect_at_the_next_tick_and_the_mouth_closes_without_a_jump():
    talk = Talk()
    talk.speech.sound(FRAME * 100, talk.now)
    before = talk.tick(20)[-1][0]
    talk.speech.interrupt(5)
    after = [rows[0] for rows in talk.tick(12)]
    assert all(row.flags & Flag.IDLE and row.epoch == 5 and row.sample == 0 for row in after)
    opening = [row.landmarks[50, 1] for row in [before, *after]]
    assert all(0.5 < b / a < 0.7 for a, b in zip(opening, opening[1:])) and opening[-1] < 0.1
    assert np.abs(np.diff([row.place.frame for row in [before, *after]])).max() <= 2
    assert {"type": "segment.finished", "epoch": 0, "position": 20 * 640, "interrupted": True} in talk.told
    talk.speech.sound(FRAME * 10, talk.now)
    assert {row.epoch for rows in talk.tick(5) for row in rows} == {5}


@pytest.mark.parametrize("epoch", [0, 40000])
def test_an_interrupt_of_the_past_is_refused(epoch):
    talk = Talk()
    talk.speech.sound(FRAME, talk.now)
    with pytest.raises(ProtocolError, match=f"interrupt should name an epoch after 0, found {epoch}"):
        talk.speech.interrupt(epoch)


def test_an_interrupt_after_the_end_of_speech_may_name_the_epoch_that_comes_next():
    talk = Talk()
    talk.speech.sound(FRAME * 50, talk.now)
    talk.speech.end()
    talk.tick(10)
    talk.speech.interrupt(1)
    assert all(row.flags & Flag.IDLE for rows in talk.tick(5) for row in rows) and talk.speech.epoch == 1


def test_segments_follow_each_other_without_a_pause():
    talk = Talk()
    for _ in range(3):
        talk.speech.sound(FRAME * 10, talk.now)
        talk.speech.end()
    shown = [row for rows in talk.tick(30) for row in rows]
    assert [(row.epoch, row.sample // 640) for row in shown] == [(epoch, k) for epoch in range(3) for k in range(10)]
    assert [message["epoch"] for message in talk.told if message["type"] == "segment.finished"] == [0, 1, 2]
    talk.speech.end()  # nothing was said
    assert talk.speech.epoch == 3


def test_the_face_holds_while_sound_is_a_little_late_then_rests_and_goes_on_where_it_was():
    talk = Talk()
    talk.tick(10, FRAME)
    waiting = talk.tick(HOLD + 2)
    assert [len(rows) for rows in waiting] == [0] * HOLD + [1, 1] and waiting[-1][0].flags & Flag.IDLE
    assert waiting[-1][0].sample == 8 * 640
    assert samples(talk.tick(5, FRAME)) == [640 * k for k in range(8, 13)]


def test_after_a_stall_of_the_machine_the_oldest_pictures_are_dropped_and_counted():
    talk = Talk()
    talk.speech.sound(FRAME * 50, talk.now)
    talk.tick(5)
    talk.now += 0.4
    shown = talk.tick(5)
    assert [row.sample // 640 for row in shown[0]] == [14, 15] and len(shown[0]) == AT_ONCE
    assert samples(shown[1:]) == [640 * k for k in range(16, 20)]
    assert talk.speech.late == 9


def test_more_than_thirty_seconds_waiting_are_refused():
    talk = Talk()
    talk.speech.sound(FRAME * 25 * 30, talk.now)
    with pytest.raises(ProtocolError, match=r"31.5 s of speech wait to be spoken, at most 30 s may; send it as it is spoken"):
        talk.speech.sound(FRAME * 38, talk.now)


def test_a_silent_face_blinks_and_keeps_its_lips_closed():
    """Of a drawn face: the lids of a flat one would not move."""
    neutral = neutral_landmarks(make_identity(0)).astype(np.float32)
    speech = Conversation(SessionInit(seed=3), CountingStream, neutral, MotionCursor(100, (40, 60)), LOOK_AHEAD, print)
    rows = [row.landmarks for k in range(500) for row in speech.take(k / 25)]
    gap = np.array([face[37, 1] - face[41, 1] for face in rows])
    closed = gap < 0.4 * gap.max()
    assert len(rows) == 500 and 2 <= (np.diff(closed.astype(int)) == 1).sum() <= 12
    np.testing.assert_array_equal(np.array(rows)[:, LIPS], np.repeat(neutral.reshape(1, 68, 3)[:, LIPS], 500, axis=0))
