"""A synthetic person who speaks, with exact ground truth, for tests, demo and benchmarks.

Head, motion, clothes and room are made from a seed; the speech is shipped with the package.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from av.video.reformatter import Colorspace
from scipy.spatial.transform import Rotation
from tqdm import tqdm

from process_data.actor.head_mesh import LABEL_OF_MATERIAL, HeadMesh, build_head
from process_data.actor.identity import make_identity
from process_data.actor.mesh_raster import vertex_normals, visible_triangles
from process_data.actor.proportions import neutral_landmarks
from process_data.actor.scene import EYE_LINE, VISIBLE_HEIGHT, paint_background, paint_torso
from process_data.actor.shading import compose
from process_data.actor.skin import Skin, build_skin
from process_data.actor.speech import actor_landmarks as actor_landmarks  # part of this module's interface
from process_data.actor.texture import paint_atlas
from shared.camera import pose_matrix
from shared.clip import Clip, ClipInfo, Shot
from shared.errors import TalkheadError
from shared.files import write_json
from shared.landmarks import FPS, SAMPLES_PER_FRAME, check_array, check_landmarks, save_array, save_landmarks
from shared.media.audio_io import save_wav
from shared.media.video_io import GrayVideoWriter, VideoWriter, write_png

DISTANCE = 1.0  # metres from the camera to the eyes
SAMPLES = 2  # visibility samples of a pixel in each direction
GAZE = 0.35  # of the head's rotation that the eyes undo to stay on the camera
CLIP_CRF = 6  # H.264 quality of clips with exact truth: nearly lossless
_UPRIGHT = np.diag([1.0, -1.0, -1.0])  # rotation of a head that faces the camera
Performance = tuple[np.ndarray, np.ndarray, np.ndarray]  # landmarks (T, 68, 3), poses (T, 4, 4), torso motion (T, 4)


@dataclass(frozen=True)
class ActorTruth:
    """Files of make_actor and their truth: landmarks, poses, torso motion and neutral as in a clip folder."""

    root: Path
    video: Path
    landmarks: np.ndarray
    poses: np.ndarray
    torso_motion: np.ndarray
    neutral: np.ndarray
    intrinsics: tuple[float, float, float, float]
    size: int


def default_intrinsics(size: int) -> tuple[float, float, float, float]:
    """(fx, fy, cx, cy) in pixels of the actor's camera for square pictures of `size` pixels."""
    focal = size * DISTANCE / VISIBLE_HEIGHT
    return focal, focal, size / 2, size / 2


def reference_pose() -> np.ndarray:
    """(4, 4) float32: the pose that the torso plate is drawn for; the head looks straight at the camera."""
    return pose_matrix(_UPRIGHT, np.array([0.0, (EYE_LINE - 0.5) * VISIBLE_HEIGHT, DISTANCE]))


def _wander(rng: np.random.Generator, frames: int, amplitude: float, slow: float = 0.08, fast: float = 0.55) -> np.ndarray:
    """Smooth seeded motion (frames,) that stays within ±amplitude: five sines between slow and fast hertz."""
    time = np.arange(frames) / FPS
    rates = np.exp(rng.uniform(np.log(slow), np.log(fast), 5))
    weights = 1 / np.sqrt(rates)
    phases = rng.uniform(0, 2 * np.pi, 5)
    return amplitude * (weights[:, None] * np.sin(2 * np.pi * rates[:, None] * time + phases[:, None])).sum(0) / weights.sum()


def actor_motion(frames: int, size: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Natural head poses (T, 4, 4) and torso motion (T, 4), float32, in pixels of a picture of `size` pixels.

    Yaw stays within ±10°, pitch ±6°, roll ±4°; the torso within ±2 % of the picture.
    """
    rng = np.random.default_rng([seed, 20])
    yaw, pitch, roll = (np.radians(_wander(rng, frames, degrees)) for degrees in (10.0, 6.0, 4.0))
    sway = np.stack([_wander(rng, frames, 0.020, 0.06, 0.3), _wander(rng, frames, 0.010, 0.06, 0.3)], 1)
    lean, near = _wander(rng, frames, 0.025, 0.06, 0.3), _wander(rng, frames, 0.012, 0.06, 0.3)
    rotation = Rotation.from_euler("YXZ", np.stack([yaw, pitch, roll], 1)).as_matrix() @ _UPRIGHT
    translation = np.tile(reference_pose()[:3, 3].astype(float), (frames, 1))
    translation[:, 0] += 0.9 * sway[:, 0] * VISIBLE_HEIGHT + _wander(rng, frames, 0.008)
    translation[:, 1] += 0.9 * sway[:, 1] * VISIBLE_HEIGHT + _wander(rng, frames, 0.004)
    translation[:, 2] += -near * DISTANCE + _wander(rng, frames, 0.012)
    torso = np.stack([size * sway[:, 0], size * sway[:, 1], lean, 1 + near], 1)
    return pose_matrix(rotation, translation), torso.astype(np.float32)


@lru_cache(maxsize=4)
def _skin(seed: int) -> Skin:
    identity = make_identity(seed)
    return build_skin(identity, neutral_landmarks(identity))


@lru_cache(maxsize=4)
def make_head(seed: int) -> HeadMesh:
    """The head mesh of this seed's person; made once."""
    return build_head(make_identity(seed), _skin(seed))


@lru_cache(maxsize=4)
def _atlas(seed: int) -> np.ndarray:
    return paint_atlas(make_identity(seed), _skin(seed))


@lru_cache(maxsize=4)
def _torso_plate(seed: int, size: int) -> np.ndarray:
    return paint_torso(make_identity(seed), size)


@lru_cache(maxsize=4)
def make_background(seed: int, size: int) -> np.ndarray:
    """The room behind this seed's person: (size, size, 3) uint8 sRGB; made once."""
    return paint_background(make_identity(seed), size)


def camera_vertices(head: HeadMesh, landmarks: np.ndarray, pose: np.ndarray, torso: np.ndarray,
                    intrinsics: tuple[float, float, float, float], size: int) -> np.ndarray:
    """Vertices (V, 3) metres in camera space for one frame: landmarks (68, 3), pose (4, 4), torso motion (4,).

    The eyes turn part of the way back to the camera; along the neck, the head's motion blends into the torso's.
    """
    rotation, translation = pose[:3, :3].astype(float), pose[:3, 3].astype(float)
    points = head.vertices(np.asarray(landmarks, float))
    relative = rotation.T @ _UPRIGHT
    yaw, pitch = np.arctan2(relative[0, 2], relative[2, 2]), np.arcsin(np.clip(-relative[1, 2], -1, 1))
    turn_yaw, turn_pitch = GAZE * yaw, GAZE * pitch
    cy, sy, cx, sx = np.cos(turn_yaw), np.sin(turn_yaw), np.cos(turn_pitch), np.sin(turn_pitch)
    gaze = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]]) @ np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    for number, centre in enumerate(head.eye_centres, start=1):
        eye = head.eye == number
        points[eye] = (points[eye] - centre) @ gaze.T + centre
    camera = points @ rotation.T + translation
    neck = head.neck > 0
    at_rest = reference_pose().astype(float)
    still = points[neck] @ at_rest[:3, :3].T + at_rest[:3, 3]
    dx, dy, angle, scale = (float(value) for value in torso)
    fx, fy, cx_px, cy_px = intrinsics
    middle = np.array([(size / 2 - cx_px) / fx, (size / 2 - cy_px) / fy])
    flat = still[:, :2] / still[:, 2:] - middle
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    still[:, :2] = (flat @ turn.T + middle + [dx / fx, dy / fy]) * still[:, 2:]
    follow = head.neck[neck][:, None]
    camera[neck] = (1 - follow) * camera[neck] + follow * still
    return camera


def render_actor(landmarks: np.ndarray, poses: np.ndarray, torso_motion: np.ndarray, *, size: int,
                 intrinsics: tuple[float, float, float, float] | None = None, seed: int = 0,
                 ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Draw the person of `seed`: yields (uint8 (size, size, 3) RGB, uint8 (size, size) labels) frame by frame.

    landmarks (T, 68, 3) metres in head space, where the drawn face has its landmarks exactly; poses (T, 4, 4); torso_motion
    (T, 4) in pixels of this size; intrinsics fx, fy, cx, cy in pixels, by default those of make_actor. Raises TalkheadError
    for wrong arrays, different lengths and a wrong size.
    """
    landmarks = check_landmarks(landmarks, "landmarks")
    poses, torso_motion = check_array(poses, (4, 4), "poses"), check_array(torso_motion, (4,), "torso motion")
    if not len(landmarks) == len(poses) == len(torso_motion):
        raise TalkheadError(f"the actor needs as many landmarks as poses and torso motions, found {len(landmarks)}, "
                            f"{len(poses)} and {len(torso_motion)} frames")
    if size < 32 or size % 2:
        raise TalkheadError(f"the actor's size should be an even number of pixels, 32 or more; found {size}")
    head, atlas = make_head(seed), _atlas(seed)
    plate, background = _torso_plate(seed, size), make_background(seed, size)
    fx, fy, cx, cy = intrinsics = default_intrinsics(size) if intrinsics is None else intrinsics
    for shape, pose, torso in zip(landmarks, poses, torso_motion):
        vertices = camera_vertices(head, shape, pose, torso, intrinsics, size)
        screen = (vertices[:, :2] / vertices[:, 2:] * [fx, fy] + [cx, cy]) * SAMPLES
        depth = np.ascontiguousarray(vertices[:, 2])
        ids, _ = visible_triangles(screen, depth, head.triangles, size * SAMPLES, size * SAMPLES)
        normals = vertex_normals(vertices, head.triangles)
        picture, labels = np.empty((size, size, 3), np.uint8), np.empty((size, size), np.uint8)
        compose(ids, screen, depth, head.triangles, normals, head.uv, head.occlusion, head.gloss, head.material,
                LABEL_OF_MATERIAL, atlas, plate, torso.astype(float), background, SAMPLES, picture, labels)
        yield picture, labels


def make_actor(out: Path, *, size: int = 256, seconds: float | None = None, seed: int = 0, quiet: bool = False) -> ActorTruth:
    """Film the person of `seed` saying the shipped text: out/actor.mp4 with sound, and the truth in the folder out/truth.

    truth holds landmarks.npy, poses.npy, torso.npy, neutral.npy, labels.mkv, background.png and truth.json (intrinsics,
    size, fps, frames, seed). `size` in pixels, even; `seconds` shortens the film. Each file appears only when it is
    complete. Raises TalkheadError for a wrong size or length.
    """
    sound, landmarks = actor_landmarks("train", seed)
    if seconds is not None:
        if not seconds * FPS >= 1:
            raise TalkheadError(f"the actor's film should last at least one frame (0.04 s), found seconds={seconds}")
        landmarks = landmarks[: int(seconds * FPS)]
    frames = len(landmarks)
    sound = sound[: frames * SAMPLES_PER_FRAME]
    poses, torso = actor_motion(frames, size, seed)
    out = Path(out)
    truth = ActorTruth(out / "truth", out / "actor.mp4", landmarks, poses, torso,
                       neutral_landmarks(make_identity(seed)).astype(np.float32)[None], default_intrinsics(size), size)
    pictures = render_actor(landmarks, poses, torso, size=size, seed=seed)
    with (VideoWriter(truth.video, size, size, audio=sound, crf=16, matrix=Colorspace.ITU601) as video,
          GrayVideoWriter(truth.root / "labels.mkv", size, size) as matte):
        for picture, labels in tqdm(pictures, "actor", total=frames, disable=quiet, unit="frame"):
            video.write(picture)
            matte.write(labels)
    save_landmarks(truth.root / "landmarks.npy", landmarks)
    save_landmarks(truth.root / "neutral.npy", truth.neutral)
    save_array(truth.root / "poses.npy", poses)
    save_array(truth.root / "torso.npy", torso)
    write_png(truth.root / "background.png", make_background(seed, size))
    write_json(truth.root / "truth.json", {"intrinsics": list(truth.intrinsics), "size": size, "width": size, "height": size,
                                      "fps": FPS, "frames": frames, "seed": seed})
    return truth


def make_actor_clip(root: Path, *, size: int, seconds: float | None = None, seed: int = 0, held_out: float = 0.1,
                    extra: Mapping[str, Performance] | None = None) -> Clip:
    """A clip folder of the person of `seed` with exact landmarks, poses, labels and background plate, without tracking.

    The shipped speech, shortened to `seconds`, gives the splits train and test; test is its last share `held_out`. Each item
    of `extra`, a name with landmarks (T, 68, 3), poses (T, 4, 4) and torso motion (T, 4), is appended without sound as a
    split of that name, for expressions that the speech does not contain. Raises TalkheadError for a wrong size.
    """
    sound, landmarks = actor_landmarks("train", seed)
    spoken = len(landmarks) if seconds is None else int(seconds * FPS)
    parts: dict[str, Performance] = {"speech": (landmarks[:spoken], *actor_motion(spoken, size, seed)), **(extra or {})}
    shapes, poses, torso = (np.concatenate(arrays) for arrays in zip(*parts.values()))
    cut, split, start = round(spoken * (1 - held_out)), {}, 0
    for name, part in parts.items():
        split[name] = [(start, start + len(part[0]))]
        start += len(part[0])
    del split["speech"]
    clip = Clip(root)
    with (VideoWriter(clip.video, size, size, crf=CLIP_CRF, matrix=Colorspace.ITU601) as video,
          GrayVideoWriter(clip.labels, size, size) as matte):
        for picture, labels in render_actor(shapes, poses, torso, size=size, seed=seed):
            video.write(picture)
            matte.write(labels)
    save_landmarks(clip.landmarks, shapes)
    save_landmarks(clip.neutral, neutral_landmarks(make_identity(seed)).astype(np.float32)[None])
    save_array(clip.poses, poses)
    save_array(clip.torso_motion, torso)
    write_png(clip.background, make_background(seed, size))
    samples = np.zeros(start * SAMPLES_PER_FRAME, np.float32)
    samples[: spoken * SAMPLES_PER_FRAME] = sound[: spoken * SAMPLES_PER_FRAME]
    save_wav(clip.audio, samples)
    clip.save_info(ClipInfo("actor", f"synthetic actor, seed {seed}", "0" * 64, size, size, start, default_intrinsics(size),
                            (0, 0, size), [Shot(0, start, clip.background.name)],
                            split={"train": [(0, cut)], "test": [(cut, spoken)], **split}))
    return clip
