"""Several channels of sound -> one in which speech is heard, wherever it was recorded."""

import av
import numpy as np

LOUD = 1e-3  # RMS of full scale; quieter seconds say nothing
SILENT = 0.01  # of the loudest channel's RMS: such a channel holds no speech
WEAK = 0.1  # of the loudest channel's RMS: with more than two channels, weaker ones are left out
CANCELS = 0.25  # the mean's RMS in that of the louder channel; half is what one channel of two gives
OFTEN = 0.05  # share of the loud seconds that may cancel
# what a listener in the middle hears (ITU-R BS.775); channels that are not named count as the front ones
WEIGHTS = {"FL": 0.7071, "FR": 0.7071, "FC": 1.0, "LFE": 0.0, "LFE2": 0.0, "BL": 0.5, "BR": 0.5, "BC": 0.5, "SL": 0.5, "SR": 0.5}


def channels(frame: av.AudioFrame) -> np.ndarray:
    """(C, n) float64 samples of full scale ±1 of a frame of any format."""
    data = frame.to_ndarray()
    if not frame.format.is_planar:
        data = data.reshape(-1, frame.layout.nb_channels).T
    if data.dtype == np.uint8:
        return (data.astype(np.float64) - 128) / 128
    scale = 1.0 if data.dtype.kind == "f" else float(2 ** (8 * data.dtype.itemsize - 1))
    return np.clip(np.nan_to_num(data.astype(np.float64) / scale), -1, 1)


class Loudness:
    """Products of the channels with each other, second by second, of frames of one layout."""

    def __init__(self, layout: av.AudioLayout) -> None:
        self.names = [channel.name for channel in layout.channels]
        self.seconds: list[np.ndarray] = []
        self._sum, self._samples = np.zeros((layout.nb_channels,) * 2), 0

    def add(self, frame: av.AudioFrame) -> None:
        """Take in the next frame."""
        data = channels(frame)
        self._sum += data @ data.T
        self._samples += data.shape[1]
        if self._samples >= frame.sample_rate:
            self._finish()

    def _finish(self) -> None:
        self.seconds.append(self._sum / self._samples)
        self._sum, self._samples = np.zeros_like(self._sum), 0

    def weights(self) -> np.ndarray | None:
        """(C,) share of each channel in the mix, or None where the plain mean of two channels is right.

        One channel of two that is silent is left out; where the mean of two cancels, as with a wire swapped, the louder one
        is taken alone. Of more channels, those that are much weaker than the loudest are left out, the rest is weighted as
        a listener in the middle hears it, and the mix is as loud as the loudest channel.
        """
        if self._samples:
            self._finish()
        products = np.stack(self.seconds or [self._sum])
        whole = products.sum(0)
        level = np.sqrt(np.diagonal(whole))
        louder = np.eye(len(level))[level.argmax()]
        if not level.max() > 0:
            return None if len(level) == 2 else louder
        if len(level) == 2:
            if level.min() < SILENT * level.max() or _cancels(products, np.array([0.5, 0.5])):
                return louder
            return None
        names = self.names if len(self.names) == len(level) else [""] * len(level)
        share = np.array([WEIGHTS.get(name, WEIGHTS["FL"]) for name in names]) * (level >= WEAK * level.max())
        mixed = np.sqrt(max(0.0, share @ whole @ share))
        if not mixed > CANCELS * (share * level).max() or _cancels(products, share):
            return louder
        return share * (level.max() / mixed)


def _cancels(products: np.ndarray, share: np.ndarray) -> bool:
    """Do the channels, mixed by share (C,), cancel in more than a few of the loud seconds? Products (n,C,C)."""
    loudest = np.sqrt((np.diagonal(products, axis1=1, axis2=2) * share**2).max(1)) / share.max()
    mixed = np.sqrt(np.maximum(0.0, np.einsum("i,nij,j->n", share, products, share)))
    loud = loudest > LOUD
    return bool(loud.any()) and bool((mixed[loud] < CANCELS * loudest[loud]).mean() > OFTEN)


def mix(frame: av.AudioFrame, weights: np.ndarray) -> av.AudioFrame:
    """One channel, float, of a frame of several; weights (C,)."""
    mono = av.AudioFrame.from_ndarray((weights @ channels(frame))[None].astype(np.float32), format="fltp", layout="mono")
    mono.sample_rate = frame.sample_rate
    return mono
