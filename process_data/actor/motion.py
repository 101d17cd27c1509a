"""How the synthetic actor moves: head, torso and hand, and the wandering exposure of the film; all drawn from a seed."""

import numpy as np
from scipy.spatial.transform import Rotation

from process_data.actor.look import NOD, PLAIN, TURN, Look
from process_data.actor.scene import EYE_LINE, VISIBLE_HEIGHT
from shared.camera import pose_matrix
from shared.fixations import Fixations
from shared.landmarks import FPS

DISTANCE = 1.0  # metres from the camera to the eyes
UPRIGHT = np.diag([1.0, -1.0, -1.0])  # rotation of a head that faces the camera
PIVOT = np.array([0.0, -0.070, -0.085])  # metres, head space: a lively head turns about the upper end of its neck
HAND_PERIOD, HAND_PASS = 5.0, 1.8  # seconds from one pass of the hand to the next, and how long one lasts
PLACES = 64  # that the eyes look at besides the camera
HAND_AWAY = np.array([0.13, 0.30])  # metres to the right and down, where the hand is between its passes


def reference_pose() -> np.ndarray:
    """(4, 4) float32: the pose that the torso plate is drawn for; the head looks straight at the camera."""
    return pose_matrix(UPRIGHT, np.array([0.0, (EYE_LINE - 0.5) * VISIBLE_HEIGHT, DISTANCE]))


def _wander(rng: np.random.Generator, frames: int, amplitude: float, slow: float = 0.08, fast: float = 0.55) -> np.ndarray:
    """Smooth seeded motion (frames,) that stays within ±amplitude: five sines between slow and fast hertz."""
    time = np.arange(frames) / FPS
    rates = np.exp(rng.uniform(np.log(slow), np.log(fast), 5))
    weights = 1 / np.sqrt(rates)
    phases = rng.uniform(0, 2 * np.pi, 5)
    return amplitude * (weights[:, None] * np.sin(2 * np.pi * rates[:, None] * time + phases[:, None])).sum(0) / weights.sum()


def _swing(rng: np.random.Generator, frames: int, amplitude: float, rate: float) -> np.ndarray:
    """Smooth seeded motion (frames,) to and fro between ±amplitude, about `rate` times a second, now slower, now faster."""
    phase = 2 * np.pi * rate * np.arange(frames) / FPS + rng.uniform(0, 2 * np.pi)
    return amplitude * np.sin(phase + _wander(rng, frames, 2.0, 0.1, 0.5))


def actor_motion(frames: int, size: int, seed: int = 0, look: Look = PLAIN) -> tuple[np.ndarray, np.ndarray]:
    """Natural head poses (T, 4, 4) and torso motion (T, 4), float32, in pixels of a picture of `size` pixels.

    Yaw stays within ±look.turn and pitch within ±look.nod degrees, roll within ±4°; the torso within ±2 % of the picture.
    A head whose turn or nod is not the calm speaker's reaches it every few seconds, with up to some 120 degrees a second
    at 30°, and turns about the neck instead of the eyes.
    """
    rng = np.random.default_rng([seed, 20])
    yaw = _wander(rng, frames, TURN) if look.turn == TURN else _swing(rng, frames, look.turn, 0.3)
    pitch = _wander(rng, frames, NOD) if look.nod == NOD else _swing(rng, frames, look.nod, 0.45)
    angles = np.stack([np.radians(angle) for angle in (yaw, pitch, _wander(rng, frames, 4.0))], 1)
    sway = np.stack([_wander(rng, frames, 0.020, 0.06, 0.3), _wander(rng, frames, 0.010, 0.06, 0.3)], 1)
    lean, near = _wander(rng, frames, 0.025, 0.06, 0.3), _wander(rng, frames, 0.012, 0.06, 0.3)
    rotation = Rotation.from_euler("YXZ", angles).as_matrix() @ UPRIGHT
    translation = np.tile(reference_pose()[:3, 3].astype(float), (frames, 1))
    translation[:, 0] += 0.9 * sway[:, 0] * VISIBLE_HEIGHT + _wander(rng, frames, 0.008)
    translation[:, 1] += 0.9 * sway[:, 1] * VISIBLE_HEIGHT + _wander(rng, frames, 0.004)
    translation[:, 2] += -near * DISTANCE + _wander(rng, frames, 0.012)
    if (look.turn, look.nod) != (TURN, NOD):
        translation += (UPRIGHT - rotation) @ PIVOT
    torso = np.stack([size * sway[:, 0], size * sway[:, 1], lean, 1 + near], 1)
    return pose_matrix(rotation, translation), torso.astype(np.float32)


def exposure_gain(numbers: np.ndarray, seed: int, look: Look) -> np.ndarray:
    """Factor (T,) of the linear light of frames (T,): 1 ± look.exposure, wandering smoothly."""
    return 1 + _wander(np.random.default_rng([seed, 21]), np.max(numbers, initial=0) + 1, look.exposure, 0.1, 0.7)[numbers]


def eye_turns(numbers: np.ndarray, seed: int, look: Look) -> np.ndarray:
    """(T, 2) radians of yaw, to the subject's left, and pitch, up, by which the eyes turn from the camera in frames (T,): within
    ±look.glances to the sides, half of that up and down."""
    places = np.random.default_rng([seed, 23]).uniform(-1, 1, (PLACES, 2)) * np.radians(look.glances) * [1.0, 0.5]
    return Fixations(places, seed).at(0, np.max(numbers, initial=0) + 1)[numbers].astype(float)


def hand_shift(numbers: np.ndarray, seed: int) -> np.ndarray:
    """(T, 2) metres to the right and down from the hand's place below the chin to where it is in frames (T,).

    The first pass begins within half a second.
    """
    rng = np.random.default_rng([seed, 22])
    since = (numbers / FPS - rng.uniform(0.1, 0.5)) % HAND_PERIOD
    phase = np.where(since < HAND_PASS, since / HAND_PASS, 0)
    raised = np.sin(np.pi * phase) ** 2
    return np.outer(1 - raised, HAND_AWAY) + np.outer(np.sin(2 * np.pi * phase), [0.03, 0.0])
