"""What stage 1 asks of a speech encoder: one embedding a video frame of 40 ms, in a stream the same as of the whole.

Sound comes both as samples and as the rows of `audio.features.FeatureStream`, which everything else needs anyway. An encoder
reads whichever it likes, but of the features the log-mel only: formants are 0 where the model does without. Around the sound
there is silence. A row has unit total variance over speech: the variances of its columns add up to about 1, so that the squared
distance of two rows of unlike sounds is about 2, whatever the encoder.
"""

from typing import Any, Protocol

import numpy as np

from shared.landmarks import SAMPLES_PER_FRAME

PIECE = 250  # video frames that `encode_in_pieces` pushes at once


class EncoderStream(Protocol):
    """One recording that comes in pieces. Its state does not grow."""

    def push(self, samples: np.ndarray, features: np.ndarray) -> np.ndarray:
        """samples (640·t,) at 16 kHz, their features (t, FEATURE_SIZE), t ≥ 0 -> rows (m, size) float32 that are now certain."""
        ...

    def flush(self) -> np.ndarray:
        """The rows (k, size) still to come; silence follows the sound. The stream has then ended."""
        ...


class Encoder(Protocol):
    """A speech encoder, always frozen.

    `size`: width of a row. `look_ahead`: frames of future sound, of 40 ms each, that a row depends on at most.
    """

    @property
    def size(self) -> int: ...

    @property
    def look_ahead(self) -> int: ...

    def info(self) -> dict[str, Any]:
        """What a checkpoint records, as JSON can hold it: "kind", and all that tells this encoder from another."""
        ...

    def encode(self, samples: np.ndarray, features: np.ndarray) -> np.ndarray:
        """samples (640·T,), features (T, FEATURE_SIZE) of a whole recording -> rows (T, size) float32, as of `stream`."""
        ...

    def stream(self) -> EncoderStream:
        """A stream for a new recording."""
        ...


def encode_in_pieces(stream: EncoderStream, samples: np.ndarray, features: np.ndarray) -> np.ndarray:
    """samples (640·T,), features (T, FEATURE_SIZE) -> rows (T, size), by a fresh stream, in bounded memory."""
    rows = [stream.push(samples[start * SAMPLES_PER_FRAME : (start + PIECE) * SAMPLES_PER_FRAME], features[start : start + PIECE])
            for start in range(0, len(features), PIECE)]
    return np.concatenate([*rows, stream.flush()])
