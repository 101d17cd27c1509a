"""The synthetic actor's identity: proportions and colours, all drawn from one seed."""

from dataclasses import dataclass

import numpy as np

SKIN = [(0.82, 0.62, 0.52), (0.74, 0.52, 0.40), (0.58, 0.38, 0.27), (0.86, 0.68, 0.58), (0.66, 0.45, 0.33)]
HAIR = [(0.16, 0.10, 0.07), (0.08, 0.06, 0.05), (0.30, 0.18, 0.10), (0.42, 0.28, 0.15), (0.24, 0.22, 0.21)]
IRIS = [(0.30, 0.20, 0.10), (0.25, 0.36, 0.44), (0.28, 0.34, 0.20), (0.20, 0.13, 0.08)]
JACKET = [(0.16, 0.20, 0.31), (0.30, 0.31, 0.33), (0.30, 0.20, 0.17), (0.15, 0.28, 0.25), (0.36, 0.30, 0.22)]
SHIRT = [(0.82, 0.85, 0.90), (0.72, 0.80, 0.90), (0.88, 0.84, 0.80), (0.60, 0.68, 0.78)]
WALL = [(0.50, 0.58, 0.62), (0.64, 0.58, 0.50), (0.46, 0.54, 0.48), (0.56, 0.52, 0.60)]


@dataclass(frozen=True)
class Identity:
    """Colours are sRGB in [0, 1]; widths, lengths and fullness are factors around 1; brow_height and hairline are mm."""

    seed: int
    skin: tuple[float, float, float]
    hair: tuple[float, float, float]
    iris: tuple[float, float, float]
    jacket: tuple[float, float, float]
    shirt: tuple[float, float, float]
    wall: tuple[float, float, float]
    freckles: float
    jaw_width: float
    face_length: float
    nose_length: float
    nose_width: float
    lip_fullness: float
    mouth_width: float
    brow_height: float
    hairline: float

    def reshape(self, points: np.ndarray) -> np.ndarray:
        """Points (N, 3) mm of the average head -> the same points of this person's head.

        Smooth in space; the eye corners stay in place, as the definition of head space demands.
        """
        x, y, z = np.asarray(points, float).T
        below = np.clip(-y / 110, 0, 1.2)
        width = 1 + (self.jaw_width - 1) * below**1.5
        mouth = np.exp(-((y + 71) / 14) ** 2 - (x / 40) ** 2)
        nose = np.exp(-((y + 36) / 18) ** 2 - (x / 24) ** 2)
        new_x = x * width * (1 + (self.mouth_width - 1) * mouth) * (1 + (self.nose_width - 1) * nose)
        new_y = y * np.where(y < 0, self.face_length, 1)
        new_y += (self.lip_fullness - 1) * (y + 70) * np.exp(-((y + 70) / 14) ** 2 - (x / 32) ** 2)
        new_y += self.brow_height * np.exp(-((y - 24) / 12) ** 2)
        new_z = z + (self.nose_length - 1) * 40 * np.exp(-((y + 33) / 20) ** 2 - (x / 14) ** 2)
        return np.stack([new_x, new_y, new_z], 1)


def make_identity(seed: int) -> Identity:
    """The person of this seed: seeds 0, 1, 2, … are different people, the same seed is always the same person."""
    rng = np.random.default_rng([seed, 1])

    def pick(colors) -> tuple[float, float, float]:
        red, green, blue = np.clip(np.array(colors[seed % len(colors)]) * rng.uniform(0.94, 1.06), 0, 1)
        return float(red), float(green), float(blue)

    return Identity(
        seed=seed, skin=pick(SKIN), hair=pick(HAIR), iris=pick(IRIS), jacket=pick(JACKET),
        shirt=pick(SHIRT), wall=pick(WALL),
        freckles=float(rng.uniform(0.1, 0.7)),
        jaw_width=float(rng.uniform(0.93, 1.05)),
        face_length=float(rng.uniform(0.97, 1.04)),
        nose_length=float(rng.uniform(0.9, 1.12)),
        nose_width=float(rng.uniform(0.92, 1.08)),
        lip_fullness=float(rng.uniform(0.95, 1.2)),
        mouth_width=float(rng.uniform(0.95, 1.06)),
        brow_height=float(rng.uniform(-1.5, 2.0)),
        hairline=float(rng.uniform(-6, 5)),
    )
