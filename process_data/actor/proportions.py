"""Proportions of the synthetic actor's head: landmarks and further points of an adult face, and the rotation of the jaw.

Chosen by hand after MediaPipe's canonical face model (Apache-2.0).
"""

import numpy as np

from process_data.actor.identity import Identity

# landmarks of the average adult in millimetres: the right half, then the midline, then the pairs right - left
_RIGHT = {
    0: (-77, -3, -52), 1: (-76.5, -20, -56), 2: (-75, -38, -56), 3: (-72, -56, -53), 4: (-66, -75, -47),
    5: (-51, -96.5, -26), 6: (-36.5, -106.5, -9), 7: (-19.5, -116, 6),
    17: (-57, 17, -3), 18: (-50, 23, 6), 19: (-40, 26, 13), 20: (-28, 25.5, 18.5), 21: (-14, 22, 21.5),
    31: (-11.5, -43, 24), 32: (-6, -46.5, 27.5),
    36: (-45, 0, 0), 37: (-37, 4.3, 6), 38: (-27, 4.5, 7.5), 39: (-18, -1.5, 6), 40: (-27, -4.2, 6.2), 41: (-37, -3.8, 5),
    48: (-25.5, -70.5, 11), 49: (-15, -64, 21), 50: (-5.5, -60.8, 26.5),
    59: (-15, -77.5, 20), 58: (-7, -80.8, 23.5),
    60: (-22, -70.3, 11.5), 61: (-9, -69.8, 21), 67: (-9, -69.8, 21),
}
_MIDDLE = {8: (0, -121, 11), 27: (0, 5, 20.5), 28: (0, -9, 30.5), 29: (0, -22, 39.5), 30: (0, -33, 45), 33: (0, -47.5, 29),
           51: (0, -62, 27.5), 57: (0, -81.8, 24.5), 62: (0, -70, 22.3), 66: (0, -70, 22.3)}
_PAIR = {0: 16, 1: 15, 2: 14, 3: 13, 4: 12, 5: 11, 6: 10, 7: 9, 17: 26, 18: 25, 19: 24, 20: 23, 21: 22, 31: 35, 32: 34,
         36: 45, 37: 44, 38: 43, 39: 42, 40: 47, 41: 46, 48: 54, 49: 53, 50: 52, 59: 55, 58: 56, 60: 64, 61: 63, 67: 65}
# more points of the right half that shape the skin: x, y, z in millimetres, and how far they follow the jaw (0–1)
SHAPE_PLACES = np.array([
    (0, 13, 22, 0), (0, 22, 23.5, 0), (0, 39, 20.5, 0), (0, 57, 14, 0), (0, 76, 2, 0), (0, 92, -22, 0), (0, 103, -60, 0),
    (0, 98, -105, 0), (-36, 54, 7, 0), (-52, 48, -6, 0), (-64, 38, -20, 0), (-72, 26, -34, 0), (-34, 74, -6, 0),
    (-60, 66, -32, 0), (-46, 84, -40, 0), (-70, 48, -60, 0), (-76, 20, -52, 0), (-78, 5, -75, 0), (-76, 20, -100, 0),
    (-66, 60, -90, 0), (-40, 92, -80, 0), (-78, -10, -70, 0), (-74, -35, -80, 0), (-46, 36, 6, 0), (-22, 36, 18, 0),
    (-8, 12, 20, 0), (-15, 14, 17, 0), (-30, 17, 15.5, 0), (-46, 14, 7, 0), (-58, 6, -8, 0),
    (-32, 10, 12.5, 0), (-18, 4, 8.5, 0), (-52, 0, -4.5, 0), (-45, 8, 5.5, 0), (-22, 9, 11, 0),
    (-32, -12, 6.5, 0), (-20, -8, 8.5, 0), (-44, -10, 2, 0), (-33, -20, 8.5, 0), (-48, -18, 1.5, 0), (-60, -14, -14, 0),
    (-67, -26, -24, 0), (-8, -4, 20.5, 0), (-10, -14, 22.5, 0), (-9, -24, 30, 0), (-16, -22, 15.5, 0), (-6, -33, 42, 0),
    (-12.5, -31, 32, 0), (-16.5, -35, 27.5, 0), (-17.8, -39.5, 22, 0), (-19.5, -37, 15, 0), (-24, -28, 12, 0),
    (-4, -40, 41, 0), (0, -42, 40.5, 0), (-15, -44.5, 20, 0), (-20, -44, 14.5, 0), (-8, -48, 25.2, 0),
    (0, -54, 27, 0), (-4, -55, 27.2, 0), (-13, -55, 22.5, 0), (-22, -56, 16, .05), (-30, -50, 12.5, .05),
    (-40, -42, 9.5, .05), (-50, -34, 3, .02), (-44, -58, 4, .2), (-32, -66, 9, .25), (-31, -76, 8, .5),
    (-56, -56, -14, .2), (-64, -45, -27, .1), (-50, -76, -12, .55), (-36, -88, 6, .85), (-20, -90, 16, .95),
    (0, -89, 18.5, 1), (-10, -90, 18, 1), (0, -98, 20, 1), (0, -107, 21, 1), (-13, -104, 18.5, 1), (-24, -106, 10.5, .95),
    (0, -116, 17, 1), (-60, -86, -33, .5), (0, -121, -2, .9), (-22, -112, -12, .8), (-42, -100, -28, .6), (0, -112, -25, .6),
    (-30, -104, -40, .4), (-56, -84, -52, .25), (0, -100, -45, .2), (-45, -80, -70, .1), (-68, -60, -72, .05),
    (-62, -55, -95, 0), (-40, -78, -95, 0), (0, -90, -70, 0),
])
ANCHORS = np.array([  # points of the skin that no expression moves, millimetres
    (0, 60, 13), (-40, 60, 4), (-66, 45, -25), (0, 92, -22), (-50, 84, -45), (0, 103, -70), (-76, 20, -52), (-78, 0, -75),
    (-76, -30, -76), (-68, -60, -76), (-45, -80, -85), (0, -98, -62), (0, 0, 21.5), (-78, 20, -95), (-45, 90, -90),
    (-30, -102, -52), (0, -38, 42), (-18, -38, 20), (-72, 26, -34),
], float)
JAW_WEIGHT = np.zeros(68)  # how far each landmark follows the jaw
JAW_WEIGHT[[3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13]] = [.08, .3, .68, .9, .98, 1, .98, .9, .68, .3, .08]
JAW_WEIGHT[[48, 54, 60, 64, 49, 53, 50, 51, 52]] = [.42, .42, .44, .44, .05, .05, .02, .02, .02]
JAW_WEIGHT[[55, 56, 57, 58, 59, 65, 66, 67]] = [.88, 1, 1, 1, .88, .93, 1, .93]
JAW_HINGE = np.array([0.0, -22.0, -62.0])  # millimetres
REST_JAW = 0.14  # radians by which the jaw is open in the modelled skin
_MIRROR_X = np.array([-1.0, 1.0, 1.0])


def both_sides(points: np.ndarray) -> np.ndarray:
    """Right-half points (N, ≥3) -> those and their mirror images, points of the midline once."""
    mirrored = points[points[:, 0] != 0].copy()
    mirrored[:, 0] *= -1
    return np.concatenate([points, mirrored])


def average_landmarks() -> np.ndarray:
    """(68, 3) millimetres: the average adult face with closed lips and open eyes."""
    landmarks = np.zeros((68, 3))
    for k, place in {**_RIGHT, **_MIDDLE}.items():
        landmarks[k] = place
    for right, left in _PAIR.items():
        landmarks[left] = landmarks[right] * _MIRROR_X
    return landmarks


def neutral_landmarks(identity: Identity) -> np.ndarray:
    """(68, 3) float64 metres, head space: this person with closed lips, open eyes and relaxed brows."""
    landmarks = identity.reshape(average_landmarks())
    half = (landmarks[45, 0] - landmarks[36, 0]) / 2
    landmarks *= 45 / half
    landmarks -= (landmarks[36] + landmarks[45]) / 2
    return landmarks / 1000


def rotate_jaw(points: np.ndarray, weight: np.ndarray, angle: np.ndarray | float) -> np.ndarray:
    """Rotate points (..., N, 3) mm about the jaw's hinge by weight (N,) times angle (...) radians."""
    turn = np.asarray(angle)[..., None] * weight
    y, z = points[..., 1] - JAW_HINGE[1], points[..., 2] - JAW_HINGE[2]
    sine, cosine = np.sin(turn), np.cos(turn)
    return np.stack(np.broadcast_arrays(points[..., 0], JAW_HINGE[1] + cosine * y - sine * z,
                                        JAW_HINGE[2] + sine * y + cosine * z), -1)
