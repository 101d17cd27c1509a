"""One conversation: sound in, rows of landmarks out when they are due, a resting face between them.

Speech comes in segments, one an epoch. `hear` turns waiting sound into rows, at most AHEAD before they are due; `take` gives what
is to be shown at a tick. Time is passed in.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from serve.idle import MotionCursor, Place
from serve.playhead import Playhead
from serve.protocol import EPOCHS, QUEUE_SECONDS, Flag, ProtocolError, SessionInit, is_newer
from serve.resample import SoundIn
from shared.landmarks import N_LANDMARKS, SAMPLES_PER_FRAME
from stage1_audio2lmk.audio.features import levels
from stage1_audio2lmk.stream import LandmarkStream
from stage1_audio2lmk.upper_face import Liveliness

AHEAD = 25  # rows that are made before they are due
PIECE = 10  # frames of sound that one conversation may turn into rows before others get their turn
HOLD = 3  # ticks for which the last row stays when sound is late; then the face comes to rest
AT_ONCE = 2  # pictures of one tick; where more are due the oldest are dropped
FADE = 0.6  # of a step between speech and rest, what is left of it one picture later
SILENCE_DB = -120.0


class Row(NamedTuple):
    """Landmarks (68,3) metres as they are shown, the sample of the epoch's speech that they belong to, and where the head is."""

    landmarks: np.ndarray
    place: Place
    epoch: int
    sample: int
    flags: Flag
    heard: float  # when the last of the sound that it depends on came


@dataclass
class Segment:
    """The speech of one epoch."""

    epoch: int
    sound: SoundIn
    stream: LandmarkStream
    waiting: deque[np.ndarray] = field(default_factory=deque)  # pieces at 16 kHz
    received: int = 0  # samples at the client's rate
    converted: int = 0  # samples at 16 kHz that came out of `sound`
    pushed: int = 0  # samples at 16 kHz that `stream` has
    arrivals: deque[tuple[int, float]] = field(default_factory=deque)  # (samples at 16 kHz so far, when)
    levels: np.ndarray = field(default_factory=lambda: np.zeros(0))  # dB of the frames whose rows are still to come
    rest: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))  # pushed, and not yet a whole frame
    rows: int = 0
    shown: int = 0
    ended: bool = False  # the client has said all
    flushed: bool = False  # all rows are made
    began: float | None = None  # when its first sound came
    playhead: Playhead | None = None


class Conversation:
    """State of one client's conversation with an avatar.

    `new_stream` makes a `LandmarkStream` without blinks; `neutral` (68,3) is the resting face; `tell` is called with each text
    message for the client.
    """

    def __init__(self, init: SessionInit, new_stream: Callable[[], LandmarkStream], neutral: np.ndarray, cursor: MotionCursor,
                 look_ahead: int, tell: Callable[[dict], None]) -> None:
        self.init, self.neutral, self.cursor, self.tell = init, neutral.reshape(N_LANDMARKS, 3), cursor, tell
        self.new_stream, self.look_ahead = new_stream, look_ahead
        self.face = Liveliness(init.seed)
        self.rows: deque[Row] = deque()
        self.segments: deque[Segment] = deque()
        self.epoch = 0  # of the sound that comes next
        self.speaking, self.starved = False, HOLD
        self.shown = self.neutral  # the landmarks shown last
        self.step, self.was_idle = np.zeros_like(self.neutral), True  # what still has to fade; whether a row of rest was shown
        self.late = 0  # pictures dropped because they were due before others

    def sound(self, data: bytes, now: float) -> None:
        """PCM of the client. Raises ProtocolError, also when too much waits."""
        if not self.segments or self.segments[-1].epoch != self.epoch:
            self.segments.append(Segment(self.epoch, SoundIn(self.init), self.new_stream()))
        segment = self.segments[-1]
        self._add(segment, segment.sound.push(data), now)
        segment.received += len(data) // self.init.bytes_per_sample
        segment.began = now if segment.began is None else segment.began
        per_frame = self.init.samples_per_frame
        waiting = sum(part.received - part.shown * per_frame for part in self.segments)
        if waiting > (QUEUE_SECONDS + 1) * self.init.sample_rate:
            raise ProtocolError("input_too_fast", f"{waiting / self.init.sample_rate:.1f} s of speech wait to be spoken, at most "
                                f"{QUEUE_SECONDS:g} s may; send it as it is spoken")

    def end(self) -> None:
        """The speech of this epoch is complete; what comes belongs to the next. Nothing if none came."""
        if self.segments and self.segments[-1].epoch == self.epoch:
            segment = self.segments[-1]
            segment.ended = True
            self._add(segment, segment.sound.flush(), None)
            self.epoch = (self.epoch + 1) % EPOCHS

    def interrupt(self, epoch: int) -> None:
        """Forget all speech of before `epoch`, at once. Raises ProtocolError for one of which there is sound already."""
        heard = bool(self.segments) and self.segments[-1].epoch == self.epoch
        if not is_newer(epoch, self.epoch) and (heard or epoch != self.epoch):
            raise ProtocolError("bad_epoch", f"interrupt should name an epoch after {self.epoch}, found {epoch}")
        if self.rows:
            self.cursor.place = self.rows[0].place  # nearly where it was shown last: one frame of the track further
        for segment in self.segments:
            self._finish(segment, interrupted=True)
        self.segments.clear()
        self.rows.clear()
        self.epoch, self.starved = epoch, HOLD
        self.step, self.was_idle = self.shown - self.neutral, True

    def heard(self, epoch: int, sample: int, now: float) -> None:
        """The client plays this sample of this epoch now."""
        if self.segments and self.segments[0].epoch == epoch and self.segments[0].playhead is not None:
            self.segments[0].playhead.heard(now, sample / self.init.samples_per_frame)

    def hear(self, now: float) -> list[Row]:
        """Turn waiting sound into rows -> the new ones. At most PIECE frames of sound in one call."""
        if len(self.rows) >= AHEAD:
            return []
        for segment in self.segments:
            if segment.flushed:
                continue
            fresh = self._rows(segment)
            new = [self._row(segment, landmarks, level) for landmarks, level in fresh]
            if segment.flushed:
                if not new:
                    new = [self._row(segment, self.neutral, SILENCE_DB)]  # so that something ends it
                new[-1] = new[-1]._replace(flags=Flag.END)
            self.rows.extend(new)
            return new
        return []

    @property
    def busy(self) -> bool:
        """Whether `hear` has work to do."""
        return len(self.rows) < AHEAD and any(part.waiting or part.ended and not part.flushed for part in self.segments)

    def take(self, now: float) -> list[Row]:
        """What is to be shown at this tick: rows of speech that are due, or a row of the resting face; nothing while sound is
        a little late."""
        due = self._due(now)
        if due:
            self.starved = 0
            self._state(True)
            shown = [self._show(row) for row in due]
            self.late += len(due) - AT_ONCE if len(due) > AT_ONCE else 0
            if due[-1].flags & Flag.END:
                self._finish(self.segments.popleft(), interrupted=False)
            return shown[-AT_ONCE:]
        if self.rows:
            return []  # not due yet: the client's clock is behind
        self.starved += 1
        speech_goes_on = bool(self.segments)
        if speech_goes_on and self.starved <= HOLD:
            return []
        self._state(False)
        segment = self.segments[0] if self.segments else None
        epoch = segment.epoch if segment else self.epoch
        row = Row(self._alive(self.neutral, SILENCE_DB), self.cursor.next(False), epoch,
                  segment.shown * self.init.samples_per_frame if segment else 0, Flag.IDLE, now)
        return [self._show(row)]

    def _due(self, now: float) -> list[Row]:
        if not self.rows:
            return []
        segment = self.segments[0]
        if segment.playhead is None:
            segment.playhead = Playhead(now, segment.shown)
        latest, due = segment.playhead.due(now), []
        while self.rows and self.rows[0].epoch == segment.epoch and segment.shown <= latest:
            due.append(self.rows.popleft())
            segment.shown += 1
        if not self.rows and not segment.flushed:
            segment.playhead.wait(now, segment.shown - 1)
        return due

    def _add(self, segment: Segment, samples: np.ndarray, now: float | None) -> None:
        if len(samples):
            segment.waiting.append(samples)
        segment.converted += len(samples)
        if now is not None:
            segment.arrivals.append((segment.converted, now))

    def _rows(self, segment: Segment) -> list[tuple[np.ndarray, float]]:
        """Push at most PIECE frames of a segment's sound -> (landmarks, level of the sound in dB) of each row that is certain."""
        budget, pieces = PIECE * SAMPLES_PER_FRAME, []
        while segment.waiting and budget > 0:
            piece = segment.waiting.popleft()
            if len(piece) > budget:
                segment.waiting.appendleft(piece[budget:])
                piece = piece[:budget]
            budget -= len(piece)
            pieces.append(piece)
        rows = np.zeros((0, N_LANDMARKS, 3), np.float32)
        if pieces:
            fresh = np.concatenate(pieces)
            segment.pushed += len(fresh)
            rows = segment.stream.push(fresh)
            self._measure(segment, fresh)
        if segment.ended and not segment.waiting:
            segment.flushed = True
            self._measure(segment, np.zeros(-segment.pushed % SAMPLES_PER_FRAME, np.float32))
            rows = np.concatenate([rows, segment.stream.flush()])
        loud = segment.levels[: len(rows)]
        segment.levels = segment.levels[len(rows) :]
        return list(zip(rows, loud))

    def _measure(self, segment: Segment, fresh: np.ndarray) -> None:
        sound = np.concatenate([segment.rest, fresh])
        whole = len(sound) // SAMPLES_PER_FRAME * SAMPLES_PER_FRAME
        if whole:
            segment.levels = np.concatenate([segment.levels, levels(sound[:whole])])
        segment.rest = sound[whole:]

    def _row(self, segment: Segment, landmarks: np.ndarray, level: float) -> Row:
        needed = (segment.rows + 1 + self.look_ahead) * SAMPLES_PER_FRAME
        while len(segment.arrivals) > 1 and segment.arrivals[0][0] < min(needed, segment.converted):
            segment.arrivals.popleft()
        sample = segment.rows * self.init.samples_per_frame
        segment.rows += 1
        return Row(self._alive(landmarks, level), self.cursor.next(True), segment.epoch, sample, Flag(0), segment.arrivals[0][1])

    def _alive(self, landmarks: np.ndarray, level: float) -> np.ndarray:
        return self.face.apply(landmarks[None], np.array([level]))[0]

    def _show(self, row: Row) -> Row:
        """The row as it looks after what was shown before: where speech breaks off, the mouth closes instead of jumping."""
        idle = bool(row.flags & Flag.IDLE)
        if idle and not self.was_idle:
            self.step = self.shown - row.landmarks
        self.was_idle = idle
        self.step = FADE * self.step
        self.shown = row.landmarks + self.step
        return row._replace(landmarks=self.shown)

    def _state(self, speaking: bool) -> None:
        if speaking != self.speaking:
            self.speaking = speaking
            self.tell({"type": "state", "state": "speaking" if speaking else "idle",
                       "epoch": self.segments[0].epoch if self.segments else self.epoch})

    def _finish(self, segment: Segment, interrupted: bool) -> None:
        position = min(segment.shown * self.init.samples_per_frame, segment.received)
        self.tell({"type": "segment.finished", "epoch": segment.epoch, "position": position, "interrupted": interrupted})
