"""Training of an encoder's last layers together with the model.

Windows then bring the sound itself in the columns after the features, with the past that the encoder hears, and its rows are
made anew at each step. The kernel path compares layers before those that learn and stays as it was solved.
"""

import dataclasses

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from shared.landmarks import SAMPLES_PER_FRAME
from stage1_audio2lmk.audio.features import FEATURE_SIZE, features
from stage1_audio2lmk.dataset import Recording
from stage1_audio2lmk.encoders.pretrained import Encoder
from stage1_audio2lmk.model import LandmarkModel


def features_and_sound(samples: np.ndarray) -> np.ndarray:
    """Samples (640·T,) -> rows (T, FEATURE_SIZE + 640): features and the frame's own sound."""
    return np.concatenate([features(samples), samples.reshape(-1, SAMPLES_PER_FRAME)], 1, dtype=np.float32)


def rows_before(model: LandmarkModel, encoder: Encoder) -> int:
    """Rows that a training window needs before its first."""
    return max(model.before, encoder.context + 1)  # a frame for the encoder's `lead`


def heard_in(windows: Tensor, model: LandmarkModel, encoder: Encoder) -> Tensor:
    """Windows (B, rows_before + L + look_ahead, FEATURE_SIZE + 640) -> padded rows as `LandmarkModel.embed` takes them.

    With gradients for the encoder. A block begins with the window's first row, wherever that is in the file.
    """
    before, ahead = rows_before(model, encoder), model.config.look_ahead
    sound = windows[:, : windows.shape[1] - ahead, FEATURE_SIZE:].flatten(1)
    rows = encoder.forward_blocks(sound, before).flatten(2)
    return torch.cat([windows[:, before - model.before :, :FEATURE_SIZE], F.pad(rows, (0, 0, model.before, ahead))], 2)


def heard_by(encoder: Encoder, recording: Recording, with_sound: Recording) -> Recording:
    """The recording as the encoder hears it now; `with_sound` has rows of `features_and_sound`."""
    plain, sound = with_sound.features.split((FEATURE_SIZE, SAMPLES_PER_FRAME), 1)
    rows = torch.from_numpy(encoder.encode(sound.flatten().numpy())).flatten(1)
    return dataclasses.replace(recording, features=torch.cat([plain, rows], 1))
