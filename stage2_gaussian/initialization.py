"""Where the Gaussians start: on the person's own face and skull, coloured from training frames."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from scipy.interpolate import RBFInterpolator
from scipy.spatial import cKDTree

from shared.camera import project
from shared.clip import HEAD, MOUTH, Clip
from shared.errors import TalkheadError
from shared.landmarks import EYE_LEFT, EYE_RIGHT, LIPS, lip_opening
from stage2_gaussian.skinning import LandmarkCode

VIEWS = 16  # training frames that the splats are taken from
OPEN_VIEWS = 6  # those with the widest mouth, for teeth and tongue
MOUTH_SHARE = 0.06  # of the splats, behind the lips
MOUTH_DEPTH = 0.012  # metres behind the surface of the lips
DETAIL = 3.0  # extra density around eyes and mouth


class Canonical(NamedTuple):
    """Splats in head space, those that move most first."""

    places: np.ndarray  # (N, 3) metres
    sizes: np.ndarray  # (N,) metres, standard deviation
    colors: np.ndarray  # (N, 3) in 0..1


def head_surface(neutral: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """The front of the head as depth over the face plane: (N, 2) x, y -> (N,) z, metres.

    A thin-plate spline through the 68 landmarks of `neutral` and an arc of an average skull above the ears, the outline
    that hair and ears are seen against; beyond it the depth stays that of the outline.
    """
    ears = neutral[[0, 16]]
    middle, ear_y, ear_z = ears.mean(0)
    half_width = np.ptp(ears[:, 0]) / 2
    angles = np.linspace(0.1, np.pi - 0.1, 15)
    arc = np.stack([middle + half_width * 1.05 * np.cos(angles), ear_y + 0.15 * np.sin(angles),
                    np.full(15, ear_z - 0.01)], 1)
    forehead = [middle, neutral[17:27, 1].max() + 0.04, neutral[17:27, 2].max() - 0.01]
    known = np.concatenate([neutral, arc, [forehead]])
    spline = RBFInterpolator(known[:, :2], known[:, 2], kernel="thin_plate_spline", smoothing=1e-6)

    def depth(xy: np.ndarray) -> np.ndarray:
        return np.clip(spline(xy), ear_z - 0.03, neutral[:, 2].max())

    return depth


def unproject(pixels: np.ndarray, pose: np.ndarray, intrinsics: tuple[float, ...],
              depth: Callable[[np.ndarray], np.ndarray], behind: float = 0.0) -> np.ndarray:
    """Pixels (N, 2) of a view with `pose` (4, 4) head → camera -> points (N, 3) on the surface `depth`, head space.

    `behind` moves the surface back, in metres. Walks along each ray by fixed-point iteration, which converges while the
    face looks at the camera.
    """
    fx, fy, cx, cy = intrinsics
    rays = np.stack([(pixels[:, 0] - cx) / fx, (pixels[:, 1] - cy) / fy, np.ones(len(pixels))], 1) @ pose[:3, :3]
    eye = -pose[:3, 3] @ pose[:3, :3]
    along = np.full(len(pixels), -eye[2]) / rays[:, 2]
    for _ in range(8):
        places = eye + along[:, None] * rays
        along = (depth(places[:, :2]) - behind - eye[2]) / rays[:, 2]
    return eye + along[:, None] * rays


def make_canonical(clip: Clip, indices: np.ndarray, splats: int, rng: np.random.Generator) -> Canonical:
    """Take `splats` Gaussians from the head pixels of training frames `indices`, undone of their expression.

    Raises TalkheadError if no frame shows a head.
    """
    neutral = clip.load_neutral()[0]
    landmarks, poses = clip.load_landmarks(), clip.load_poses()
    surface = head_surface(neutral)
    code = LandmarkCode(torch.from_numpy(neutral))
    views = np.unique(indices[np.linspace(0, len(indices) - 1, VIEWS).round().astype(int)])
    wide = indices[np.argsort(-lip_opening(landmarks[indices]))[:OPEN_VIEWS]]
    inner = int(splats * MOUTH_SHARE)
    places, colors = [], []
    for label, frames, count, behind in ((HEAD, views, splats - inner, 0.0), (MOUTH, wide, inner, MOUTH_DEPTH)):
        for t, share in zip(frames, np.diff(np.linspace(0, count, len(frames) + 1).round().astype(int))):
            image, labels = clip.read_frames(np.array([t]))[0], clip.read_labels(np.array([t]))[0]
            rows, columns = np.nonzero(labels == label)
            if len(rows) == 0 or share == 0:
                continue
            density = 1 + DETAIL * _near_detail(np.stack([columns, rows], 1), landmarks[t], poses[t], clip)
            chosen = rng.choice(len(rows), share, p=density / density.sum())
            pixels = np.stack([columns[chosen], rows[chosen]], 1) + rng.random((share, 2))
            found = unproject(pixels, poses[t].astype(float), clip.info.intrinsics, surface, behind)
            felt = code.weights(torch.from_numpy(found).float()).detach().numpy()
            places.append(found - felt @ (landmarks[t] - neutral))
            colors.append(image[rows[chosen], columns[chosen]] / 255)
    if not places:
        raise TalkheadError(f"{clip.root}: no training frame has head pixels in labels.mkv; process the video again")
    place = np.concatenate(places).astype(np.float32)
    color = np.concatenate(colors).astype(np.float32)
    motion = np.sqrt(((landmarks[indices] - neutral) ** 2).sum(-1).mean(0))
    influence = code.weights(torch.from_numpy(place)).detach().numpy() @ motion
    order = np.argsort(-influence, kind="stable")
    place, color = place[order], color[order]
    distances, _ = cKDTree(place).query(place, k=4)
    sizes = np.clip(0.7 * distances[:, 1:].mean(1), 2e-4, 5e-3).astype(np.float32)
    return Canonical(place, sizes, color)


def _near_detail(pixels: np.ndarray, landmarks: np.ndarray, pose: np.ndarray, clip: Clip) -> np.ndarray:
    """(N,) 1 in the boxes around lips and eyes, 0 elsewhere."""
    inside = np.zeros(len(pixels), bool)
    for part, margin in ((LIPS, 0.15), (EYE_RIGHT, 0.3), (EYE_LEFT, 0.3)):
        points = project(landmarks[part], pose, clip.info.intrinsics)
        low, high = points.min(0), points.max(0)
        room = margin * (high[0] - low[0])
        inside |= ((pixels >= low - room) & (pixels <= high + room)).all(1)
    return inside.astype(float)
