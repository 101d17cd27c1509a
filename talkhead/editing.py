"""Several edits of a landmark sequence in their fixed order; `shared.landmark_edit` has each of them by itself."""

import numpy as np

from shared import landmark_edit
from shared.landmarks import lip_opening


def edit(landmarks: np.ndarray, *, neutral: np.ndarray | None = None, mouth_gain: float | None = None,
         smile: float | None = None, smooth: int | None = None, retime: float | None = None, blink: float | None = None,
         seed: int = 0) -> np.ndarray:
    """landmarks (T,68,3) metres -> edited (T',68,3); edits apply in the order mouth_gain, smile, smooth, retime, blink.

    mouth_gain scales the displacement of lips and jaw from `neutral` (68,3), by default the row whose lips are most nearly
    closed; smile 1 is a broad smile, −1 a frown; smooth is a number of neighbour frames on each side; retime 2 plays twice as
    fast; blink 1 adds blinks as often as people blink, drawn from `seed`. Raises TalkheadError for a value out of its range.
    """
    if mouth_gain is not None:
        rest = landmarks[int(np.abs(lip_opening(landmarks)).argmin())] if neutral is None else np.asarray(neutral)
        landmarks = landmark_edit.mouth_gain(landmarks, rest, mouth_gain)
    if smile is not None:
        landmarks = landmark_edit.smile(landmarks, smile)
    if smooth is not None:
        landmarks = landmark_edit.smooth(landmarks, smooth)
    if retime is not None:
        landmarks = landmark_edit.retime(landmarks, retime)
    if blink is not None:
        landmarks = landmark_edit.blink(landmarks, blink, np.random.default_rng(seed))
    return landmarks
