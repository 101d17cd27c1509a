"""Any samples -> samples that the features can take: finite, within ±1, without a constant offset."""

import numpy as np
from scipy.signal import lfilter

from shared.errors import TalkheadError
from shared.landmarks import SAMPLE_RATE

DC_HZ = 10.0  # corner of the high-pass filter that takes a constant offset away


class DCBlocker:
    """Samples as they come -> finite, within ±1 and free of a constant offset, by a filter of one zero and one pole."""

    def __init__(self) -> None:
        pole = 1 - 2 * np.pi * DC_HZ / SAMPLE_RATE
        scale = (1 + pole) / 2
        self.numerator, self.denominator = np.array([scale, -scale]), np.array([1, -pole])
        self.state: np.ndarray | None = None

    def pass_through(self, samples: np.ndarray) -> np.ndarray:
        """(n,) floats, NaN as silence -> (n,) float32. Raises TalkheadError for another shape or whole numbers."""
        samples = np.asarray(samples)
        if samples.ndim != 1 or samples.dtype.kind != "f":
            raise TalkheadError(f"expected mono samples (n,) as floats within ±1, found {samples.dtype} {samples.shape}")
        if not len(samples):
            return np.zeros(0, np.float32)
        limited = samples.astype(np.float32).clip(-1, 1).astype(np.float64)
        limited[np.isnan(limited)] = 0
        if self.state is None:  # as if the first sample had been there for ever: an offset makes no click
            self.state = -self.numerator[:1] * limited[0]
        clean, self.state = lfilter(self.numerator, self.denominator, limited, zi=self.state)
        return clean.astype(np.float32)
