"""Sound of any length -> landmarks of any face, in bounded memory and the same in chunks as at once."""

from collections.abc import Iterable, Iterator

import numpy as np

from shared.errors import TalkheadError
from stage1_audio2lmk.stream import LandmarkStream, Predictor, load_predictor, speaker_index

__all__ = ["Predictor", "iter_predict", "load_predictor", "predict", "speaker_index"]


def iter_predict(predictor: Predictor, audio: Iterable[np.ndarray], neutral: np.ndarray, *, seed: int = 0,
                 speaker: str | None = None, blinks: bool = True, liveliness: float = 1.0) -> Iterator[np.ndarray]:
    """Chunks of sound (n,) at 16 kHz -> chunks of landmarks (t,68,3) metres; equal to `predict` of the whole.

    Memory is bounded by the chunk and the model's reach. At least one frame comes out, ceil(n/640) in all. `blinks` False
    leaves the network's motion alone; `liveliness` scales what brows and lids do besides blinks, 0 is nothing. Raises
    TalkheadError for a liveliness that is no number of 0 or more.
    """
    if not 0 <= liveliness < np.inf:
        raise TalkheadError(f"liveliness should be a number from 0 on, found {liveliness}")
    stream = LandmarkStream(predictor, neutral, seed=seed, speaker=speaker, blinks=blinks, liveliness=liveliness)
    for chunk in audio:
        rows = stream.push(chunk)
        if len(rows):
            yield rows
    rows = stream.flush()
    if len(rows):
        yield rows


def predict(predictor: Predictor, audio: np.ndarray, neutral: np.ndarray, *, seed: int = 0, speaker: str | None = None,
            blinks: bool = True, liveliness: float = 1.0) -> np.ndarray:
    """audio (n,) at 16 kHz, neutral (1,68,3) or (68,3) -> landmarks (ceil(n/640),68,3) float32 metres."""
    return np.concatenate(list(iter_predict(predictor, [audio], neutral, seed=seed, speaker=speaker, blinks=blinks,
                                            liveliness=liveliness)))
