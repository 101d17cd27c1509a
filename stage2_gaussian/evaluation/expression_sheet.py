"""Expression sheet: renders of a head with landmarks edited beyond the training range."""

from collections.abc import Callable
from typing import Literal, NamedTuple

import cv2
import numpy as np
import torch

from shared.camera import project
from shared.errors import TalkheadError
from shared.image import over
from shared.landmark_edit import apply_blink, mouth_gain, smile
from shared.landmarks import BROW_LEFT, BROW_RIGHT, EYE_LEFT, EYE_RIGHT, JAW, LIPS, eye_opening, lip_opening
from stage2_gaussian.head import Head
from stage2_gaussian.render import render_head

BROW_RAISE = np.array([0.0, 0.008, -0.001])  # metres: left, up, forward
JAW_SHIFT = np.array([0.007, 0.0, 0.0])  # metres
COLUMNS = 4
CAPTION = 22  # pixels above each cell
ROOM = 1.55  # side of a cell over the extent of the landmarks
GREY = 0.5  # backdrop where no plate is given


def closed_eyes(landmarks: np.ndarray, sides: tuple[list[int], ...] = (EYE_RIGHT, EYE_LEFT)) -> np.ndarray:
    """(T, 68, 3) with the lids of `sides` brought together."""
    out, shut = landmarks.copy(), apply_blink(landmarks, np.ones(len(landmarks)))
    for side in sides:
        out[:, side] = shut[:, side]
    return out


def raised_brow(landmarks: np.ndarray) -> np.ndarray:
    """(T, 68, 3) with the left brow up by BROW_RAISE and the right one down by a quarter of it."""
    out = landmarks.copy()
    out[:, BROW_LEFT] += BROW_RAISE
    out[:, BROW_RIGHT] -= BROW_RAISE / 4
    return out


def jaw_sideways(landmarks: np.ndarray, neutral: np.ndarray) -> np.ndarray:
    """(T, 68, 3) with chin and lower lip shifted by JAW_SHIFT, the shift dying away upwards to ears and nose.

    The share of the shift is the depth of a point of the `neutral` (68, 3) below the nose, as part of the chin's.
    """
    base, chin = neutral[33, 1], neutral[8, 1]
    share = np.clip((base - neutral[:, 1]) / (base - chin), 0, 1)
    out = landmarks.copy()
    moving = JAW + LIPS
    out[:, moving] += share[moving, None] * JAW_SHIFT
    return out


def half_smile(landmarks: np.ndarray) -> np.ndarray:
    """(T, 68, 3) with the left mouth corner pulled as in a smile and the right one left alone."""
    change = smile(landmarks, 1.0) - landmarks
    middle = landmarks[:, [62], :1]
    side = np.clip((landmarks[..., :1] - middle) / (landmarks[:, [54], :1] - middle), 0, 1)
    return landmarks + side * change


class Edit(NamedTuple):
    """`change` maps landmarks (T, 68, 3) and the neutral (68, 3) to (T, 68, 3); `start` says which frame it is applied to."""

    start: Literal["typical", "widest"]
    change: Callable[[np.ndarray, np.ndarray], np.ndarray]


EDITS: dict[str, Edit] = {
    "typical": Edit("typical", lambda rows, neutral: rows.copy()),
    "widest mouth": Edit("widest", lambda rows, neutral: rows.copy()),
    "mouth 1.5 x": Edit("widest", lambda rows, neutral: mouth_gain(rows, neutral, 1.5)),
    "mouth 2 x": Edit("widest", lambda rows, neutral: mouth_gain(rows, neutral, 2.0)),
    "smile": Edit("typical", lambda rows, neutral: smile(rows, 1.0)),
    "frown": Edit("typical", lambda rows, neutral: smile(rows, -0.7)),
    "half a smile": Edit("typical", lambda rows, neutral: half_smile(rows)),
    "wide and smiling": Edit("widest", lambda rows, neutral: smile(rows, 0.7)),
    "eyes closed": Edit("typical", lambda rows, neutral: closed_eyes(rows)),
    "wink": Edit("typical", lambda rows, neutral: closed_eyes(rows, (EYE_LEFT,))),
    "one brow up": Edit("typical", lambda rows, neutral: raised_brow(rows)),
    "jaw sideways": Edit("typical", jaw_sideways),
}


def starting_rows(landmarks: np.ndarray) -> dict[str, int]:
    """Row of a typical frame (lips and lids nearest to their medians) and of the widest mouth in (T, 68, 3)."""
    curves = np.concatenate([lip_opening(landmarks)[:, None], eye_opening(landmarks)], 1)
    away = np.abs(curves - np.median(curves, 0)).sum(1)
    return {"typical": int(away.argmin()), "widest": int(lip_opening(landmarks).argmax())}


@torch.no_grad()
def make_expression_sheet(head: Head, landmarks: np.ndarray, poses: np.ndarray, neutral: np.ndarray,
                          intrinsics: tuple[float, ...], width: int, height: int,
                          plate: np.ndarray | None = None) -> np.ndarray:
    """Labelled renders of `head` with its training landmarks edited as in EDITS -> uint8 (H, W, 3).

    landmarks (T, 68, 3) metres and poses (T, 4, 4) of the filmed frames, neutral (68, 3); plate (height, width, 3) uint8,
    grey by default. Raises TalkheadError if there are not as many poses as landmarks.
    """
    if len(landmarks) != len(poses):
        raise TalkheadError(f"the sheet of edits needs as many poses as landmarks, found {len(poses)} and {len(landmarks)}")
    rows = starting_rows(landmarks)
    device = head.positions.device
    backdrop = torch.full((height, width, 3), GREY, device=device)
    if plate is not None:
        backdrop = torch.as_tensor(plate, device=device).float() / 255
    cells = []
    side = _cell_size(landmarks, poses, intrinsics, width, height)
    for name, edit in EDITS.items():
        t = rows[edit.start]
        pose, shape = poses[t : t + 1], edit.change(landmarks[t : t + 1], neutral).astype(np.float32)
        rgba = render_head(head, torch.from_numpy(shape), torch.from_numpy(pose), intrinsics, width, height)
        picture = (over(rgba, backdrop[None])[0].clamp(0, 1) * 255).round().byte().cpu().numpy()
        cells.append(_cell(picture, project(landmarks[t], poses[t], intrinsics), side, name))
    cells += [np.full_like(cells[0], 255)] * (-len(cells) % COLUMNS)
    return np.concatenate([np.concatenate(cells[k : k + COLUMNS], 1) for k in range(0, len(cells), COLUMNS)], 0)


def _cell_size(landmarks: np.ndarray, poses: np.ndarray, intrinsics: tuple[float, ...], width: int, height: int) -> int:
    """Side in pixels of a square that holds the face of every frame, at most the picture's shorter side."""
    points = project(landmarks, poses, intrinsics)
    return min(width, height, int(np.ceil(ROOM * np.ptp(points, axis=1).max())))


def _cell(picture: np.ndarray, points: np.ndarray, side: int, name: str) -> np.ndarray:
    """The square of `side` pixels around the face's points (68, 2), below its caption: uint8 (side + CAPTION, side, 3)."""
    height, width = picture.shape[:2]
    middle = (points.min(0) + points.max(0)) / 2
    left, top = (int(np.clip(round(c - side / 2), 0, limit - side)) for c, limit in zip(middle, (width, height)))
    strip = np.full((CAPTION, side, 3), 255, np.uint8)
    cv2.putText(strip, name, (4, CAPTION - 7), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (0, 0, 0), 1, cv2.LINE_AA)
    return np.concatenate([strip, picture[top : top + side, left : left + side]], 0)
