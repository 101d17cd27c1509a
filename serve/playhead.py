"""Which row of speech is due now: the clock of one segment of speech."""

from shared.landmarks import FPS

STEER = 1.0  # rows by which the lead over the client may wander before it is corrected, and by which it is corrected at once


class Playhead:
    """Row k is due k/25 s after the first. Times are seconds of any one clock.

    Sound that comes too slowly holds it up (`wait`); what the client says it is playing steers it (`heard`), so that two clocks
    that run at different speeds stay together.
    """

    def __init__(self, now: float, row: int = 0) -> None:
        self.start = now - row / FPS
        self._lead: float | None = None  # rows ahead of what the client played when it first told

    def due(self, now: float) -> int:
        """The newest row that should be shown."""
        return int((now - self.start) * FPS + 1e-6)

    def wait(self, now: float, row: int) -> None:
        """There is nothing after `row`: whatever comes next is due at once and not before."""
        if self.due(now) > row:
            self.start = now - row / FPS

    def heard(self, now: float, row: float) -> None:
        """The client plays `row`, a fraction too, now. Keeps the lead over it that there was at first."""
        lead = (now - self.start) * FPS - row
        if self._lead is None:
            self._lead = lead
        elif abs(lead - self._lead) > STEER:
            self.start += min(max(lead - self._lead, -STEER), STEER) / FPS
