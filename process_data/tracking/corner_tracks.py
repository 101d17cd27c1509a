"""Sub-pixel motion of the rigid head: corners of the skin, tracked from a few reference frames to every other frame.

The points of a face mesh network have an error of about a pixel that changes with pose and expression. Tracked corners
(Lucas and Kanade 1981, pyramidal after Bouguet 2001) repeat to about a tenth of a pixel. Each frame is matched directly to
its references, so errors do not add up.
"""

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from process_data.tracking.bundle_adjustment import unproject
from shared.camera import project, rotvec_from_rotation
from shared.landmarks import eye_opening, lip_opening

CORNERS = 90  # most corners of a reference
SPACING = 1 / 80  # between corners, of the picture's size
APART_DEGREES = 9.0  # another reference is added while the head is turned by more than this from all others
MOST_REFERENCES = 4  # of a shot
REACH_DEGREES = 16.0  # most turn between a frame and its second reference; the nearest one is always used
CALM = 0.4  # quantile: in references the lips are less open than 1 - CALM and the eyes more open than CALM of the frames
ROUND_TRIP_PIXELS = 0.35  # largest error of tracking forward and back, at 512²
JUMP_PIXELS = 8.0  # largest distance of a match from its prediction, at 512²
LUCAS_KANADE: dict[str, Any] = dict(winSize=(15, 15), maxLevel=2, flags=cv2.OPTFLOW_USE_INITIAL_FLOW,
                                    criteria=(cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 25, 0.005))


@dataclass(frozen=True)
class Reference:
    """A frame that others are matched to: grey picture (H,W) uint8, corners (n,2) pixels, their points (n,3) metres in head
    space."""

    gray: np.ndarray
    corners: np.ndarray
    points: np.ndarray


def choose_references(landmarks: np.ndarray, poses: np.ndarray, spans: list[tuple[int, int]],
                      good: np.ndarray) -> tuple[list[int], np.ndarray]:
    """Choose calm frames (lips closed, eyes open) that span the head poses of each shot.

    landmarks (T,68,3), poses (T,4,4), good (T,) bool: frames with a face. Returns the frame numbers of the references, and
    for each frame (T,2) the indices of the two nearest of its shot, -1 for none. Two, so that frames which show the corners
    of both connect the references.
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
    """Pick corners on the rigid part of the face in a frame (H,W,3) uint8 with the given pose (4,4).

    pixels (68,2): projected landmarks; rigid (N,2): pixels of the rigid points; depths (N,): their z in head space, metres.
    """
    gray = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
    size = gray.shape[0]
    mask = rigid_mask(pixels, rigid, gray.shape)
    found = cv2.goodFeaturesToTrack(gray, CORNERS, 0.002, max(3, SPACING * size), mask=mask, blockSize=5)
    # OpenCV puts the first pixel's centre at 0, here it is at 0.5
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
    """Find the corners of one reference in a frame (H,W,3) uint8: (n,2) pixels, NaN where they are not found.

    nearest: index of the reference, -1 for none; pose (4,4): approximate pose of the frame; reference_poses (R,4,4).
    """
    if nearest < 0 or len(references[nearest].corners) == 0:
        return np.zeros((0, 2))
    reference = references[nearest]
    # the prediction's error in the reference itself is added here too, since it is much the same
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
