"""A client's PCM, in pieces of any size -> 16 kHz float."""

from fractions import Fraction

import av
import numpy as np
from av.audio.frame import AudioFrame
from av.audio.resampler import AudioResampler

from serve.protocol import ProtocolError, SessionInit
from shared.landmarks import SAMPLE_RATE


class SoundIn:
    """Pieces of PCM as a `SessionInit` says they come -> (n,) float32 within ±1 at 16 kHz; its filter runs on between pieces."""

    def __init__(self, init: SessionInit) -> None:
        self.init = init
        self._resampler = None if init.sample_rate == SAMPLE_RATE else AudioResampler("flt", "mono", SAMPLE_RATE)
        self._at = 0

    def push(self, data: bytes) -> np.ndarray:
        """Raises ProtocolError for parts of samples and for what is no number."""
        if len(data) % self.init.bytes_per_sample:
            raise ProtocolError("bad_sound", f"sound should come in whole samples of {self.init.bytes_per_sample} bytes, found "
                                f"{len(data)} bytes")
        if self.init.format == "s16":
            samples = np.frombuffer(data, "<i2").astype(np.float32) / 32768
        else:
            samples = np.frombuffer(data, "<f4").astype(np.float32)
            if not np.isfinite(samples).all():
                raise ProtocolError("bad_sound", "sound should be finite numbers, found NaN or infinity")
            samples = samples.clip(-1, 1)
        if self._resampler is None or not len(samples):
            return samples
        frame = AudioFrame.from_ndarray(samples[None], "flt", "mono")
        frame.sample_rate, frame.pts, frame.time_base = self.init.sample_rate, self._at, Fraction(1, self.init.sample_rate)
        self._at += len(samples)
        return self._joined(self._resampler.resample(frame))

    def flush(self) -> np.ndarray:
        """What the filter still holds; after it, a new segment needs a new SoundIn."""
        return self._joined(self._resampler.resample(None)) if self._resampler and self._at else np.zeros(0, np.float32)

    def _joined(self, frames: list[av.AudioFrame]) -> np.ndarray:
        return np.concatenate([np.zeros(0, np.float32), *(frame.to_ndarray()[0] for frame in frames)])
