"""Initial Gaussians: pixels of training frames unprojected onto a surface through the landmarks and an average skull."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from scipy.spatial import cKDTree

from shared.camera import project
from shared.clip import HEAD, MOUTH, Clip
from shared.errors import TalkheadError
from shared.head_surface import head_surface
from shared.landmarks import EYE_LEFT, EYE_RIGHT, LIPS, lip_opening
from shared.torso_motion import SIMILARITY
from stage2_gaussian.falling_hair import FallingHair
from stage2_gaussian.skinning import Skinning

VIEWS = 16  # training frames that Gaussians are sampled from
OPEN_VIEWS = 6  # frames with the widest mouth that teeth and tongue are sampled from
MOUTH_SHARE = 0.06  # of the Gaussians, behind the lips
MOUTH_DEPTH = 0.012  # metres behind the surface of the lips
DETAIL = 3.0  # extra density in the boxes around eyes and mouth
EYE_REACH, EYE_POINTS = 0.003, 12  # metres around the opening of an eye; points on a line of its outline
DETAIL_BOXES = ((LIPS, 0.15), (EYE_RIGHT, 0.3), (EYE_LEFT, 0.3))  # landmarks, margin in widths of their bounding box
SIZE = 0.7  # standard deviation of a Gaussian, of the mean distance to its three nearest neighbours: they just overlap
SIZES = (2e-4, 5e-3)  # metres, bounds of that


class CanonicalGaussians(NamedTuple):
    """Gaussians of the neutral face in head space: those of the eyes first, then the others in descending order of how much
    they move."""

    means: np.ndarray  # (N, 3) metres
    scales: np.ndarray  # (N,) metres, standard deviation
    colors: np.ndarray  # (N, 3) in 0..1
    eyes: int  # how many are those of the eyes


def unproject(pixels: np.ndarray, pose: np.ndarray, intrinsics: tuple[float, ...],
              depth: Callable[[np.ndarray], np.ndarray], depth_offset: float = 0.0) -> np.ndarray:
    """Pixels (N, 2) of a view with `pose` (4, 4) head → camera -> points (N, 3) on the surface `depth`, head space.

    `depth_offset` moves the surface back, in metres. Intersects each ray by fixed-point iteration, which converges while
    the face looks at the camera.
    """
    fx, fy, cx, cy = intrinsics
    rays = np.stack([(pixels[:, 0] - cx) / fx, (pixels[:, 1] - cy) / fy, np.ones(len(pixels))], 1) @ pose[:3, :3]
    eye = -pose[:3, 3] @ pose[:3, :3]
    along = np.full(len(pixels), -eye[2]) / rays[:, 2]
    for _ in range(8):
        points = eye + along[:, None] * rays
        along = (depth(points[:, :2]) - depth_offset - eye[2]) / rays[:, 2]
    return eye + along[:, None] * rays


def make_canonical(clip: Clip, indices: np.ndarray, splats: int, rng: np.random.Generator,
                   falling: FallingHair | None = None) -> CanonicalGaussians:
    """Sample `splats` Gaussians from the head pixels of training frames `indices` and undo the frames' expressions, and the
    motion of hair that falls below the jaw.

    Raises TalkheadError if no frame shows a head.
    """
    neutral = clip.load_neutral()[0]
    landmarks, poses, torso = clip.load_landmarks(), clip.load_poses(), clip.load_torso_motion()[:, :SIMILARITY]
    surface = head_surface(neutral)
    skinning = Skinning(torch.from_numpy(neutral))
    views = np.unique(indices[np.linspace(0, len(indices) - 1, VIEWS).round().astype(int)])
    wide = indices[np.argsort(-lip_opening(landmarks[indices]))[:OPEN_VIEWS]]
    inner = int(splats * MOUTH_SHARE)
    points, point_colors = [], []
    for label, frames, count, depth_offset in ((HEAD, views, splats - inner, 0.0), (MOUTH, wide, inner, MOUTH_DEPTH)):
        for t, share in zip(frames, np.diff(np.linspace(0, count, len(frames) + 1).round().astype(int))):
            image, labels = clip.read_frames(np.array([t]))[0], clip.read_labels(np.array([t]))[0]
            rows, columns = np.nonzero(labels == label)
            if len(rows) == 0 or share == 0:
                continue
            density = 1 + DETAIL * _near_detail(np.stack([columns, rows], 1), landmarks[t], poses[t], clip)
            chosen = rng.choice(len(rows), share, p=density / density.sum())
            pixels = np.stack([columns[chosen], rows[chosen]], 1) + rng.random((share, 2))
            found = unproject(pixels, poses[t].astype(float), clip.info.intrinsics, surface, depth_offset)
            if falling is not None:
                found = falling.canonical(*(torch.from_numpy(x).float() for x in (found, neutral, poses[t], torso[t]))).numpy()
            weights = skinning.weights(torch.from_numpy(found).float()).detach().numpy()
            points.append(found - weights @ (landmarks[t] - neutral))
            point_colors.append(image[rows[chosen], columns[chosen]] / 255)
    if not points:
        raise TalkheadError(f"{clip.root}: no training frame has head pixels in labels.mkv; process the video again")
    means = np.concatenate(points).astype(np.float32)
    colors = np.concatenate(point_colors).astype(np.float32)
    motion = np.sqrt(((landmarks[indices] - neutral) ** 2).sum(-1).mean(0))
    influence = skinning.weights(torch.from_numpy(means)).detach().numpy() @ motion
    near_eyes = _near_eyes(means, neutral)
    order = np.argsort(np.where(near_eyes, -np.inf, -influence), kind="stable")
    means, colors = means[order], colors[order]
    distances, _ = cKDTree(means).query(means, k=4)
    scales = np.clip(SIZE * distances[:, 1:].mean(1), *SIZES).astype(np.float32)
    return CanonicalGaussians(means, scales, colors, int(near_eyes.sum()))


def _near_eyes(means: np.ndarray, neutral: np.ndarray) -> np.ndarray:
    """means (N, 3) and the neutral (68, 3), metres -> (N,) bool: in the opening of an eye or within EYE_REACH of it, seen from
    the front.

    What moves there, irises and lids, moves little beside the mouth, or not with any landmark.
    """
    near = np.zeros(len(means), bool)
    for part in (EYE_RIGHT, EYE_LEFT):
        outline = neutral[[*part, part[0]], :2].astype(float)
        along = np.linspace(outline[:-1], outline[1:], EYE_POINTS, axis=1).reshape(-1, 2)
        middle = np.linspace(outline[0], outline[3], EYE_POINTS)  # from corner to corner
        near |= cKDTree(np.concatenate([along, middle])).query(means[:, :2].astype(float))[0] < EYE_REACH
    return near


def _near_detail(pixels: np.ndarray, landmarks: np.ndarray, pose: np.ndarray, clip: Clip) -> np.ndarray:
    """pixels (N, 2) -> (N,) 1 in the boxes around lips and eyes, 0 elsewhere."""
    inside = np.zeros(len(pixels), bool)
    for part, margin in DETAIL_BOXES:
        points = project(landmarks[part], pose, clip.info.intrinsics)
        low, high = points.min(0), points.max(0)
        room = margin * (high[0] - low[0])
        inside |= ((pixels >= low - room) & (pixels <= high + room)).all(1)
    return inside.astype(float)
