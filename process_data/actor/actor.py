"""A synthetic person who speaks, with exact ground truth, for tests, demo and benchmarks.

Head, motion, clothes and room are made from a seed; the speech is shipped with the package. A `Look` gives the person long
hair, braids, a beard, spectacles, bare shoulders, lively motion and other things that ordinary videos have. Layers from the
back: background, hair behind the shoulders, neck, torso, head with its other hair, hand. Hair has the label of the head
wherever it falls, bare shoulders and the hand that of the torso, as `process` labels what is neither head nor neck.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from av.video.reformatter import Colorspace
from tqdm import tqdm

from process_data.actor.accessories import add_accessories
from process_data.actor.hair import add_hair
from process_data.actor.head_mesh import LABEL_OF_MATERIAL, HeadMesh, build_head
from process_data.actor.identity import Identity, make_identity
from process_data.actor.look import PLAIN, person
from process_data.actor.look import Look as Look  # part of this module's interface, as the next ones
from process_data.actor.mesh_raster import vertex_normals, visible_triangles
from process_data.actor.motion import DISTANCE, UPRIGHT, exposure_gain, eye_turns, hand_shift
from process_data.actor.motion import actor_motion as actor_motion
from process_data.actor.motion import reference_pose as reference_pose
from process_data.actor.proportions import neutral_landmarks
from process_data.actor.scene import VISIBLE_HEIGHT, paint_background, paint_bare_shoulders, paint_torso
from process_data.actor.shading import compose
from process_data.actor.skin import Skin, build_skin
from process_data.actor.speech import actor_landmarks as actor_landmarks
from process_data.actor.texture import linear_to_srgb, paint_atlas, srgb_to_linear
from process_data.actor.tubes import TubeBuilder, Tubes, add_tubes, hair_light
from process_data.tracking.eyes import iris_offset
from shared.camera import project
from shared.clip import Clip, ClipInfo, Shot
from shared.errors import TalkheadError
from shared.files import write_json
from shared.gaze import save_gaze
from shared.landmarks import FPS, SAMPLES_PER_FRAME, check_array, check_landmarks, save_array, save_landmarks
from shared.media.audio_io import save_wav
from shared.media.video_io import GrayVideoWriter, VideoWriter, write_png

SAMPLES, HAIR_SAMPLES = 2, 4  # visibility samples of a pixel in each direction, without and with strands of hair
GAZE = 0.35  # of the head's rotation that the eyes undo to stay on the camera
AT_CAMERA = np.zeros(2)  # a glance of no turn
IRIS_DEPTH = 0.0105  # metres from the centre of an eyeball to that of the circle of its iris
CLIP_CRF = 6  # H.264 quality of clips with exact truth: nearly lossless
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


class ActorFrame(NamedTuple):
    """One frame and its truth, all (S, S) or (S, S, 3).

    picture: uint8 sRGB; labels: uint8, of shared.clip; alpha: uint8, the share of the pixel in which the person is seen;
    head_alpha: the same of the head with its hair, where neither torso nor hand hide it; person, head: float32, the linear
    light that they send into the pixel, that is clean colour times share; background: uint8 sRGB, the room at this frame's
    exposure. As in a camera, layers mix in linear light: picture = sRGB(person + (1 − alpha) · linear(background)).
    """

    picture: np.ndarray
    labels: np.ndarray
    alpha: np.ndarray
    head_alpha: np.ndarray
    person: np.ndarray
    head: np.ndarray
    background: np.ndarray


def before(light: np.ndarray, alpha: np.ndarray, backdrop: np.ndarray) -> np.ndarray:
    """The picture (S, S, 3) uint8 that the camera would take of a layer of ActorFrame before another backdrop.

    light (S, S, 3) linear light of the layer, alpha (S, S) uint8 its share; backdrop: sRGB uint8, (S, S, 3) or a colour (3,).
    """
    return _to_bytes(light + (1 - alpha[..., None] / 255) * srgb_to_linear(np.asarray(backdrop) / 255))


def _to_bytes(light: np.ndarray) -> np.ndarray:
    return np.round(255 * linear_to_srgb(light)).astype(np.uint8)


def default_intrinsics(size: int) -> tuple[float, float, float, float]:
    """(fx, fy, cx, cy) in pixels of the actor's camera for square pictures of `size` pixels."""
    focal = size * DISTANCE / VISIBLE_HEIGHT
    return focal, focal, size / 2, size / 2


@lru_cache(maxsize=4)
def _skin(seed: int) -> Skin:
    identity = make_identity(seed)
    return build_skin(identity, neutral_landmarks(identity))


@lru_cache(maxsize=4)
def _head(seed: int, ears: bool) -> HeadMesh:
    return build_head(make_identity(seed), _skin(seed), ears)


def make_head(seed: int, look: Look = PLAIN) -> HeadMesh:
    """The head mesh of this seed's person; made once."""
    return _head(seed, not look.covers_ears)


@lru_cache(maxsize=4)
def make_tubes(seed: int, look: Look) -> Tubes:
    """Hair, beard and accessories that this look adds to the head of `make_head`; made once."""
    builder, identity, head = TubeBuilder(), person(seed, look), make_head(seed, look)
    add_hair(builder, identity, head, _skin(seed), look)
    add_accessories(builder, identity, head, look)
    return builder.build()


@lru_cache(maxsize=4)
def _atlas(identity: Identity) -> np.ndarray:
    return paint_atlas(identity, _skin(identity.seed))


@lru_cache(maxsize=4)
def _torso_plate(identity: Identity, size: int, bare: bool) -> np.ndarray:
    return (paint_bare_shoulders if bare else paint_torso)(identity, size)


@lru_cache(maxsize=4)
def _background(identity: Identity, size: int, night: bool) -> np.ndarray:
    return paint_background(identity, size, night)


def make_background(seed: int, size: int, look: Look = PLAIN) -> np.ndarray:
    """The room behind this seed's person: (size, size, 3) uint8 sRGB; made once."""
    return _background(person(seed, look), size, look.dark_room)


def _eye_rotation(pose: np.ndarray, glance: np.ndarray) -> np.ndarray:
    """(3, 3): how the eyes turn in the head, part of the way back to the camera and by `glance` (2,) radians, yaw and pitch."""
    relative = pose[:3, :3].astype(float).T @ UPRIGHT
    yaw, pitch = np.arctan2(relative[0, 2], relative[2, 2]), np.arcsin(np.clip(-relative[1, 2], -1, 1))
    turn_yaw, turn_pitch = GAZE * yaw + glance[0], GAZE * pitch + glance[1]
    cy, sy, cx, sx = np.cos(turn_yaw), np.sin(turn_yaw), np.cos(turn_pitch), np.sin(turn_pitch)
    return np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]]) @ np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])


def _in_head_space(head: HeadMesh, landmarks: np.ndarray, pose: np.ndarray, glance: np.ndarray) -> np.ndarray:
    """Vertices (V, 3) metres in head space, the eyes turned."""
    points, gaze = head.vertices(np.asarray(landmarks, float)), _eye_rotation(pose, glance)
    for number, centre in enumerate(head.eye_centres, start=1):
        eye = head.eye == number
        points[eye] = (points[eye] - centre) @ gaze.T + centre
    return points


def _to_camera(points: np.ndarray, follows: np.ndarray, pose: np.ndarray, torso: np.ndarray,
               intrinsics: tuple[float, float, float, float], size: int) -> np.ndarray:
    """Points (N, 3) of head space -> camera space; follows (N,) blends the head's motion into the torso's."""
    rotation, translation = pose[:3, :3].astype(float), pose[:3, 3].astype(float)
    camera = points @ rotation.T + translation
    blended = follows > 0
    at_rest = reference_pose().astype(float)
    still = points[blended] @ at_rest[:3, :3].T + at_rest[:3, 3]
    dx, dy, angle, scale = (float(value) for value in torso)
    fx, fy, cx_px, cy_px = intrinsics
    middle = np.array([(size / 2 - cx_px) / fx, (size / 2 - cy_px) / fy])
    flat = still[:, :2] / still[:, 2:] - middle
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    still[:, :2] = (flat @ turn.T + middle + [dx / fx, dy / fy]) * still[:, 2:]
    follow = follows[blended][:, None]
    camera[blended] = (1 - follow) * camera[blended] + follow * still
    return camera


def camera_vertices(head: HeadMesh, landmarks: np.ndarray, pose: np.ndarray, torso: np.ndarray,
                    intrinsics: tuple[float, float, float, float], size: int, glance: np.ndarray = AT_CAMERA) -> np.ndarray:
    """Vertices (V, 3) metres in camera space for one frame: landmarks (68, 3), pose (4, 4), torso motion (4,).

    The eyes turn part of the way back to the camera and by `glance` (2,), radians of yaw and pitch; along the neck, the head's
    motion blends into the torso's.
    """
    return _to_camera(_in_head_space(head, landmarks, pose, glance), head.neck, pose, torso, intrinsics, size)


def actor_gaze(landmarks: np.ndarray, poses: np.ndarray, intrinsics: tuple[float, float, float, float], seed: int = 0,
               look: Look = PLAIN) -> np.ndarray:
    """The gaze (T, 2) float32 of a film, as `tracking.eyes.iris_offset` of the true centres of the irises and the landmarks.

    landmarks (T, 68, 3) metres and poses (T, 4, 4) of frames 0 … T − 1.
    """
    centres, glances = make_head(seed, look).eye_centres, eye_turns(np.arange(len(poses)), seed, look)
    ahead = np.array([_eye_rotation(pose, glance)[:, 2] for pose, glance in zip(poses, glances)])
    irises = project(centres + IRIS_DEPTH * ahead[:, None], poses, intrinsics)
    return iris_offset(irises, project(landmarks, poses, intrinsics))


def tube_vertices(tubes: Tubes, head: HeadMesh, landmarks: np.ndarray, pose: np.ndarray, torso: np.ndarray,
                  intrinsics: tuple[float, float, float, float], size: int) -> np.ndarray:
    """As camera_vertices, the vertices (N, 3) of the tubes: hair moves with the head near it, further down with the torso."""
    moved = head.vertices(np.asarray(landmarks, float)) if len(tubes.roots) else head.base
    points = tubes.vertices(head, moved)
    return _to_camera(points, tubes.follow, pose, torso, intrinsics, size)


def _on_screen(vertices: np.ndarray, intrinsics: tuple[float, float, float, float],
               samples: int) -> tuple[np.ndarray, np.ndarray]:
    """Vertices (V, 3) of camera space -> (V, 2) in samples of the picture, (V,) depth."""
    fx, fy, cx, cy = intrinsics
    return (vertices[:, :2] / vertices[:, 2:] * [fx, fy] + [cx, cy]) * samples, np.ascontiguousarray(vertices[:, 2])


def render_actor_layers(landmarks: np.ndarray, poses: np.ndarray, torso_motion: np.ndarray, *, size: int,
                        intrinsics: tuple[float, float, float, float] | None = None, seed: int = 0,
                        look: Look = PLAIN, numbers: np.ndarray | None = None) -> Iterator[ActorFrame]:
    """As render_actor, frames with all their truth."""
    landmarks = check_landmarks(landmarks, "landmarks")
    poses, torso_motion = check_array(poses, (4, 4), "poses"), check_array(torso_motion, (4,), "torso motion")
    if not len(landmarks) == len(poses) == len(torso_motion):
        raise TalkheadError(f"the actor needs as many landmarks as poses and torso motions, found {len(landmarks)}, "
                            f"{len(poses)} and {len(torso_motion)} frames")
    if size < 32 or size % 2:
        raise TalkheadError(f"the actor's size should be an even number of pixels, 32 or more; found {size}")
    identity, head, tubes = person(seed, look), make_head(seed, look), make_tubes(seed, look)
    atlas, plate, room = _atlas(identity), _torso_plate(identity, size, look.bare_shoulders), make_background(seed, size, look)
    intrinsics = default_intrinsics(size) if intrinsics is None else intrinsics
    samples = HAIR_SAMPLES if len(tubes.points) else SAMPLES
    room_light = srgb_to_linear(room / 255)
    numbers = np.arange(len(landmarks)) if numbers is None else numbers
    gains, hand = exposure_gain(numbers, seed, look), hand_shift(numbers, seed)
    glances = eye_turns(numbers, seed, look)
    for shape, pose, torso, gain, away, glance in zip(landmarks, poses, torso_motion, gains, hand, glances, strict=True):
        vertices = camera_vertices(head, shape, pose, torso, intrinsics, size, glance)
        screen, depth = _on_screen(vertices, intrinsics, samples)
        ids, inverse = visible_triangles(screen, depth, head.triangles, size * samples, size * samples)
        normals = vertex_normals(vertices, head.triangles)
        strands = tube_vertices(tubes, head, shape, pose, torso, intrinsics, size)
        strands[tubes.hand_from :, :2] += away
        strand_screen, strand_depth = _on_screen(strands, intrinsics, samples)
        focal = intrinsics[0] * samples
        radius = tubes.radius * focal / strand_depth
        add_tubes(strand_screen, strand_depth, radius, tubes.segments, focal, len(head.triangles), ids, inverse)
        light = hair_light(strands, tubes.normal @ pose[:3, :3].T.astype(float), tubes.segments, tubes.color, tubes.shade,
                           tubes.solid)
        background = room if gain == 1 else _to_bytes(gain * room_light)
        labels, alpha, head_alpha = np.empty((3, size, size), np.uint8)
        body, own = np.empty((2, size, size, 3), np.float32)
        frame = ActorFrame(np.empty((size, size, 3), np.uint8), labels, alpha, head_alpha, body, own, background)
        compose(ids, screen, depth, head.triangles, normals, head.uv, head.occlusion, head.gloss, head.material,
                LABEL_OF_MATERIAL, atlas, strand_screen, radius, tubes.segments, tubes.layer, light, tubes.solid, tubes.gloss,
                plate, torso.astype(float), gain, background, samples, *frame[:6])
        yield frame


def render_actor(landmarks: np.ndarray, poses: np.ndarray, torso_motion: np.ndarray, *, size: int,
                 intrinsics: tuple[float, float, float, float] | None = None, seed: int = 0,
                 look: Look = PLAIN, numbers: np.ndarray | None = None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Draw the person of `seed`: yields (uint8 (size, size, 3) RGB, uint8 (size, size) labels) frame by frame.

    landmarks (T, 68, 3) metres in head space, where the drawn face has its landmarks exactly; poses (T, 4, 4); torso_motion
    (T, 4) in pixels of this size; intrinsics fx, fy, cx, cy in pixels, by default those of make_actor; numbers (T,): of the
    frames in the film, which time exposure and hand, by default 0 … T − 1. Raises TalkheadError for wrong arrays, different
    lengths and a wrong size.
    """
    for frame in render_actor_layers(landmarks, poses, torso_motion, size=size, intrinsics=intrinsics, seed=seed, look=look,
                                     numbers=numbers):
        yield frame.picture, frame.labels


def make_actor(out: Path, *, size: int = 256, seconds: float | None = None, seed: int = 0, look: Look = PLAIN,
               quiet: bool = False) -> ActorTruth:
    """Film the person of `seed` saying the shipped text: out/actor.mp4 with sound, and the truth in the folder out/truth.

    truth holds landmarks.npy, poses.npy, torso.npy, gaze.npy, neutral.npy, labels.mkv, background.png and truth.json (intrinsics,
    size, fps, frames, seed); for a look other than the default alpha.mkv and head_alpha.mkv too, the shares of each pixel in
    which the person, and the head with its hair, are seen, and in truth.json what differs from the default look.
    background.png is the room at the exposure 1. `size` in pixels, even; `seconds` shortens the film. Each file appears only
    when it is complete. Raises TalkheadError for a wrong size or length.
    """
    sound, landmarks = actor_landmarks("train", seed)
    if seconds is not None:
        if not seconds * FPS >= 1:
            raise TalkheadError(f"the actor's film should last at least one frame (0.04 s), found seconds={seconds}")
        landmarks = landmarks[: int(seconds * FPS)]
    frames = len(landmarks)
    sound = sound[: frames * SAMPLES_PER_FRAME]
    poses, torso = actor_motion(frames, size, seed, look)
    out = Path(out)
    truth = ActorTruth(out / "truth", out / "actor.mp4", landmarks, poses, torso,
                       neutral_landmarks(make_identity(seed)).astype(np.float32)[None], default_intrinsics(size), size)
    pictures = render_actor_layers(landmarks, poses, torso, size=size, seed=seed, look=look)
    with ExitStack() as files:
        video = files.enter_context(VideoWriter(truth.video, size, size, audio=sound, crf=16, matrix=Colorspace.ITU601))
        mattes = {name: files.enter_context(GrayVideoWriter(truth.root / f"{name}.mkv", size, size))
                  for name in (("labels",) if look == PLAIN else ("labels", "alpha", "head_alpha"))}
        for frame in tqdm(pictures, "actor", total=frames, disable=quiet, unit="frame"):
            video.write(frame.picture)
            for name, matte in mattes.items():
                matte.write(getattr(frame, name))
    save_landmarks(truth.root / "landmarks.npy", landmarks)
    save_landmarks(truth.root / "neutral.npy", truth.neutral)
    save_array(truth.root / "poses.npy", poses)
    save_array(truth.root / "torso.npy", torso)
    save_gaze(truth.root / "gaze.npy", actor_gaze(landmarks, poses, truth.intrinsics, seed, look))
    write_png(truth.root / "background.png", make_background(seed, size, look))
    write_json(truth.root / "truth.json", {"intrinsics": list(truth.intrinsics), "size": size, "width": size, "height": size,
                                      "fps": FPS, "frames": frames, "seed": seed,
                                      **({} if look == PLAIN else {"look": look.changes()})})
    return truth


def make_actor_clip(root: Path, *, size: int, seconds: float | None = None, seed: int = 0, held_out: float = 0.1,
                    extra: Mapping[str, Performance] | None = None, look: Look = PLAIN) -> Clip:
    """A clip folder of the person of `seed` with exact landmarks, poses, labels and background plate, without tracking.

    The shipped speech, shortened to `seconds`, gives the splits train and test; test is its last share `held_out`. Each item
    of `extra`, a name with landmarks (T, 68, 3), poses (T, 4, 4) and torso motion (T, 4), is appended without sound as a
    split of that name, for expressions that the speech does not contain. A look other than the default gives the clip its
    exact alpha.mkv, too. Raises TalkheadError for a wrong size.
    """
    sound, landmarks = actor_landmarks("train", seed)
    spoken = len(landmarks) if seconds is None else int(seconds * FPS)
    parts: dict[str, Performance] = {"speech": (landmarks[:spoken], *actor_motion(spoken, size, seed, look)), **(extra or {})}
    shapes, poses, torso = (np.concatenate(arrays) for arrays in zip(*parts.values()))
    cut, split, start = round(spoken * (1 - held_out)), {}, 0
    for name, part in parts.items():
        split[name] = [(start, start + len(part[0]))]
        start += len(part[0])
    del split["speech"]
    clip = Clip(root)
    with ExitStack() as files:
        video = files.enter_context(VideoWriter(clip.video, size, size, crf=CLIP_CRF, matrix=Colorspace.ITU601))
        labels = files.enter_context(GrayVideoWriter(clip.labels, size, size))
        alpha = None if look == PLAIN else files.enter_context(GrayVideoWriter(clip.alpha, size, size))
        for frame in render_actor_layers(shapes, poses, torso, size=size, seed=seed, look=look):
            video.write(frame.picture)
            labels.write(frame.labels)
            if alpha is not None:
                alpha.write(frame.alpha)
    save_landmarks(clip.landmarks, shapes)
    save_landmarks(clip.neutral, neutral_landmarks(make_identity(seed)).astype(np.float32)[None])
    save_array(clip.poses, poses)
    save_array(clip.torso_motion, torso)
    save_gaze(clip.gaze, actor_gaze(shapes, poses, default_intrinsics(size), seed, look))
    write_png(clip.background, make_background(seed, size, look))
    samples = np.zeros(start * SAMPLES_PER_FRAME, np.float32)
    samples[: spoken * SAMPLES_PER_FRAME] = sound[: spoken * SAMPLES_PER_FRAME]
    save_wav(clip.audio, samples)
    clip.save_info(ClipInfo("actor", f"synthetic actor, seed {seed}", "0" * 64, size, size, start, default_intrinsics(size),
                            (0, 0, size), [Shot(0, start, clip.background.name)],
                            split={"train": [(0, cut)], "test": [(cut, spoken)], **split}))
    return clip
