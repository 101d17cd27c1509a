"""Sub-pixel motion of the rigid head: corners of the skin, tracked straight from a few reference frames to every other.

A face mesh network places its points with an error of about a pixel that changes with pose and expression. Patches of the
picture itself (Lucas and Kanade 1981, pyramidal after Bouguet 2001) are repeatable to about a tenth of one, and since
every frame is matched to its reference directly, nothing drifts.
"""

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from process_data.tracking.bundle_adjustment import unproject
from shared.camera import project, rotvec_from_rotation
from shared.landmarks import eye_opening, lip_opening

CORNERS = 90  # tracked a reference
SPACING = 1 / 80  # between corners, of the picture's size
APART_DEGREES = 9.0  # a further reference is taken where the head is turned this much away from all others
MOST_REFERENCES = 4  # a shot
REACH_DEGREES = 16.0  # corners are looked for in frames turned up to this much away, and always from the nearest reference
CALM = 0.4  # quantile: references have lips less and eyes more open than this
ROUND_TRIP_PIXELS = 0.35  # forward and back again, at 512²
JUMP_PIXELS = 8.0  # between prediction and match, at 512²
LUCAS_KANADE: dict[str, Any] = dict(winSize=(15, 15), maxLevel=2, flags=cv2.OPTFLOW_USE_INITIAL_FLOW,
                                    criteria=(cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 25, 0.005))


@dataclass(frozen=True)
class Reference:
    """A frame that others are matched to: grey picture (H,W) uint8, corners (n,2) pixels and their places (n,3) metres in
    head space."""

    gray: np.ndarray
    corners: np.ndarray
    points: np.ndarray


def choose_references(landmarks: np.ndarray, poses: np.ndarray, spans: list[tuple[int, int]],
                      good: np.ndarray) -> tuple[list[int], np.ndarray]:
    """Calm frames that span the poses of each shot, and for every frame (T,2) which two of its shot are nearest; -1: none.

    Two, because frames that show the corners of both tie the references to each other.

    landmarks (T,68,3), poses (T,4,4), good (T,) bool.
    """
    lips, eyes = lip_opening(landmarks), eye_opening(landmarks).mean(1)
    rotations = poses[:, :3, :3].astype(float)
    chosen: list[int] = []
    nearest = np.full((len(poses), 2), -1)
    for start, stop in spans:
        frames = start + np.flatnonzero(good[start:stop])
        if len(frames) == 0:
            continue
        calm = frames[(lips[frames] <= np.quantile(lips[frames], 1 - CALM)) & (eyes[frames] >= np.quantile(eyes[frames], CALM))]
        calm = calm if len(calm) else frames
        turns = rotvec_from_rotation(rotations[frames] @ rotations[frames[len(frames) // 2]].T)
        here = rotvec_from_rotation(rotations[calm] @ rotations[frames[len(frames) // 2]].T)
        picks = [int(np.linalg.norm(here - np.median(turns, 0), axis=1).argmin())]
        while len(picks) < MOST_REFERENCES:
            distance = np.linalg.norm(here[:, None] - here[picks], axis=2).min(1)
            if np.degrees(distance.max()) < APART_DEGREES:
                break
            picks.append(int(distance.argmax()))
        distance = np.linalg.norm(turns[:, None] - here[picks], axis=2)
        order = np.argsort(distance, axis=1)[:, :2]
        near = np.take_along_axis(distance, order, axis=1) < np.radians(REACH_DEGREES)
        near[:, 0] = True
        nearest[frames, : order.shape[1]] = np.where(near, len(chosen) + order, -1)
        chosen.extend(int(calm[k]) for k in picks)
    return chosen, nearest


def make_reference(frame: np.ndarray, pixels: np.ndarray, rigid: np.ndarray, depths: np.ndarray, pose: np.ndarray,
                   intrinsics: tuple[float, ...]) -> Reference:
    """Pick corners on the rigid part of the face of frame (H,W,3) uint8.

    pixels (68,2) projected landmarks, rigid (N,2) pixels of the rigid points and their `depths` (N,) metres along head z,
    pose (4,4).
    """
    gray = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
    size = gray.shape[0]
    mask = rigid_mask(pixels, rigid, gray.shape)
    found = cv2.goodFeaturesToTrack(gray, CORNERS, 0.002, max(3, SPACING * size), mask=mask, blockSize=5)
    # OpenCV counts from the middle of the first pixel, which lies at 0.5
    corners = np.zeros((0, 2)) if found is None else found[:, 0].astype(float) + 0.5
    return Reference(gray, corners, on_surface(corners, rigid, depths, pose, intrinsics))


def rigid_mask(pixels: np.ndarray, rigid: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """uint8 (H,W): the hull of the rigid points, without eyes and lips."""
    mask = np.zeros(shape, np.uint8)
    hull = cv2.convexHull(rigid.astype(np.float32))
    cv2.fillConvexPoly(mask, np.round(hull).astype(np.int32), 255)
    eye = np.linalg.norm(pixels[45] - pixels[36])
    for a, b in ((36, 39), (42, 45)):
        middle, half = np.round((pixels[a] + pixels[b]) / 2).astype(int), np.linalg.norm(pixels[a] - pixels[b]) / 2
        cv2.ellipse(mask, middle.tolist(), (round(0.95 * half), round(0.75 * half)), 0, 0, 360, 0, -1)
    lips = cv2.convexHull(pixels[48:60].astype(np.float32))
    cv2.fillConvexPoly(mask, np.round(lips).astype(np.int32), 0)
    cv2.polylines(mask, [np.round(lips).astype(np.int32)], True, 0, thickness=max(1, round(0.12 * eye)))
    return mask


def on_surface(corners: np.ndarray, rigid: np.ndarray, depths: np.ndarray, pose: np.ndarray,
               intrinsics: tuple[float, ...]) -> np.ndarray:
    """Corners (n,2) pixels -> (n,3) metres in head space, at the depth of the rigid points (N,2) around them."""
    if len(corners) == 0:
        return np.zeros((0, 3))
    distance = ((corners[:, None] - rigid) ** 2).sum(-1)
    reach = np.sort(distance, axis=1)[:, 2:3] + 1e-6
    weight = np.exp(-distance / reach)
    depth = (weight @ depths) / weight.sum(1)
    return unproject(corners[None], depth, pose[None], intrinsics)[0]


def match(frame: np.ndarray, references: list[Reference], nearest: int, pose: np.ndarray, reference_poses: np.ndarray,
          intrinsics: tuple[float, ...]) -> np.ndarray:
    """Pixels (n,2) in a frame (H,W,3) of the corners of reference number `nearest` (-1: none), NaN where they are not found.

    pose (4,4) is a first guess of the frame's, reference_poses (R,4,4) those of the references.
    """
    if nearest < 0 or len(references[nearest].corners) == 0:
        return np.zeros((0, 2))
    reference = references[nearest]
    # what the prediction misses in the reference itself, it misses here too
    offset = reference.corners - project(reference.points, reference_poses[nearest].astype(float), intrinsics)
    guess = project(reference.points, pose.astype(float), intrinsics) + offset
    return _track(reference, cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), guess)


def _track(reference: Reference, gray: np.ndarray, guess: np.ndarray) -> np.ndarray:
    unit = gray.shape[0] / 512
    start = (reference.corners - 0.5).astype(np.float32)[:, None]
    first = (guess - 0.5).astype(np.float32)[:, None]
    there, ok, _ = cv2.calcOpticalFlowPyrLK(reference.gray, gray, start, first.copy(), **LUCAS_KANADE)
    back, ok_back, _ = cv2.calcOpticalFlowPyrLK(gray, reference.gray, there, start.copy(), **LUCAS_KANADE)
    good = (ok & ok_back).ravel().astype(bool)
    good &= np.linalg.norm(back - start, axis=2).ravel() < ROUND_TRIP_PIXELS * max(unit, 0.5)
    good &= np.linalg.norm(there - first, axis=2).ravel() < JUMP_PIXELS * unit
    return np.where(good[:, None], there[:, 0].astype(float) + 0.5, np.nan)
