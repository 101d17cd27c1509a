"""Any samples -> samples that the features can take: finite, within ±1, without a constant offset."""

import numpy as np

from shared.compiled import cached_njit
from shared.errors import TalkheadError
from shared.landmarks import SAMPLE_RATE

DC_HZ = 10.0  # corner of the high-pass filter that takes a constant offset away


class DCBlocker:
    """Samples as they come -> finite, within ±1 and free of a constant offset, by a filter of one zero and one pole."""

    def __init__(self) -> None:
        pole = 1 - 2 * np.pi * DC_HZ / SAMPLE_RATE
        scale = (1 + pole) / 2
        self.scale, self.pole = scale, pole
        self.state: float | None = None

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
            self.state = -self.scale * limited[0]
        clean = np.empty(len(limited), np.float32)
        self.state = _filter(limited, self.scale, self.pole, self.state, clean)
        return clean


@cached_njit()
def _filter(samples: np.ndarray, scale: float, pole: float, state: float, out: np.ndarray) -> float:
    """y[t] = scale · (x[t] − x[t−1]) + pole · y[t−1], as scipy's `lfilter` sums it, whose import takes a second; -> new state."""
    for t in range(len(samples)):
        y = scale * samples[t] + state
        state = pole * y - scale * samples[t]
        out[t] = y
    return state
