"""What is wrong with a recording's sound, told in sentences; it comes in pieces, so that an hour needs no more memory."""

from collections.abc import Iterable, Iterator

import numpy as np

from shared.landmarks import SAMPLE_RATE

SILENT = 0.01  # peak of full scale below which nobody speaks
DIVIDED = 1e-4  # peak of sound whose integers were divided twice
CLIPPED, CLIPPED_SHARE = 0.999, 0.001
TOO_LOUD_SHARE = 0.5  # of the samples at full scale, more than a clipped recording has
OFF_CENTRE = 0.05  # mean of full scale
SHORT_SECONDS = 0.5


class SoundCheck:
    """Statistics of sound (n,) at 16 kHz in [−1, 1] that comes in pieces."""

    def __init__(self) -> None:
        self.samples = self.clipped = 0
        self.total = 0.0
        self.low, self.high = np.inf, -np.inf

    def push(self, piece: np.ndarray) -> None:
        """Add a piece (n,)."""
        if len(piece):
            self.samples += len(piece)
            self.clipped += int((np.abs(piece) > CLIPPED).sum())
            self.total += float(piece.sum(dtype=np.float64))
            self.low, self.high = min(self.low, float(piece.min())), max(self.high, float(piece.max()))

    def listen(self, pieces: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Yield the pieces as they come, having added each."""
        for piece in pieces:
            self.push(piece)
            yield piece

    @property
    def seconds(self) -> float:
        return self.samples / SAMPLE_RATE

    def warnings(self, learning: bool = False) -> list[str]:
        """Sentences for the person who recorded it, either to learn from it or to make an avatar speak it."""
        if self.samples == 0:
            return []
        found = []
        if self.seconds < SHORT_SECONDS:
            found.append(f"the sound is only {self.seconds:.2f} s long")
        peak, mean = (self.high - self.low) / 2, self.total / self.samples
        if peak < SILENT:
            found.append("the sound is almost silent; " + ("nothing can be learned from it" if learning else
                                                           "the lips hardly move with it"))
            if 0 < peak < DIVIDED:
                found.append(f"the sound's peak is {peak:.1e} of full scale; its samples seem to be scaled wrongly")
        if self.clipped > TOO_LOUD_SHARE * self.samples and peak > CLIPPED:
            found.append(f"{100 * self.clipped / self.samples:.0f} % of the sound lies at or beyond full scale; samples that are "
                         "floats should lie between -1 and 1")
        elif self.clipped > CLIPPED_SHARE * self.samples:
            found.append("the sound is clipped; record it less loud")
        if abs(mean) > OFF_CENTRE:
            found.append(f"the sound's mean is {mean:.2f} of full scale instead of 0 (a DC offset); take it off with a high-pass")
        return found
