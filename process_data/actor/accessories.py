"""What the synthetic actor wears, and the hand that passes: solid tubes in millimetres of head space."""

import numpy as np

from process_data.actor.head_mesh import HeadMesh
from process_data.actor.identity import Identity
from process_data.actor.look import Look
from process_data.actor.texture import srgb_to_linear
from process_data.actor.tubes import HAND, TubeBuilder

FRAME, GOLD = (0.10, 0.08, 0.09), (0.85, 0.66, 0.30)  # sRGB
WRIST, KNUCKLES = np.array([80.0, -246.0, 58.0]), np.array([44.0, -182.0, 66.0])


def add_accessories(builder: TubeBuilder, identity: Identity, head: HeadMesh, look: Look) -> None:
    """Add spectacles, earrings and the hand, as the look wants them; the hand, which moves by itself, is last."""
    if look.glasses:
        _add_glasses(builder, head.neutral * 1000)
    if look.earrings:
        _add_earrings(builder, look.covers_ears)
    if look.hand:
        _add_hand(builder, srgb_to_linear(np.array(identity.skin)))


def _add_glasses(builder: TubeBuilder, neutral: np.ndarray) -> None:
    color = srgb_to_linear(np.array(FRAME))
    around = np.linspace(0, 2 * np.pi, 49)
    depth = neutral[27, 2] + 7
    for mirror in (-1, 1):
        middle = abs(neutral[[36, 39], 0].mean())
        x = middle + 25 * np.sign(np.cos(around)) * np.abs(np.cos(around)) ** 0.75
        y = -4 + 18.5 * np.sign(np.sin(around)) * np.abs(np.sin(around)) ** 0.75
        rim = np.stack([mirror * x, y, depth - 0.0042 * x**2], 1)
        builder.add(rim[None], 1.5, color, solid=True, gloss=0.7, follow=0.0)
        arm = np.array([(56, 6, depth - 13), (64, 5, depth - 30), (81, 2, -50), (84, 0, -74)]) * [mirror, 1, 1]
        builder.add(arm[None], 1.4, color, solid=True, gloss=0.7, follow=0.0)
    bridge = np.array([(-7, 1, depth), (-4, 4, depth + 1.5), (0, 5, depth + 2), (4, 4, depth + 1.5), (7, 1, depth)])
    builder.add(bridge[None], 1.5, color, solid=True, gloss=0.7, follow=0.0)


def _add_earrings(builder: TubeBuilder, before_hair: bool) -> None:
    around = np.linspace(0, 2 * np.pi, 25)
    for mirror in (-1, 1):
        middle = np.array([77.0 * mirror, -68.0, -42.0] if before_hair else [90.0 * mirror, -63.0, -66.0])
        flat = np.array([0.6 * mirror, 0.0, 0.8])
        hoop = middle + 11 * (np.outer(np.sin(around), flat) + np.outer(np.cos(around), [0, 1, 0]))
        builder.add(hoop[None], 1.3, srgb_to_linear(np.array(GOLD)), solid=True, gloss=0.9, follow=0.0)


def _add_hand(builder: TubeBuilder, skin: np.ndarray) -> None:
    """A right hand seen from its back, the fingers a little bent, and the forearm."""
    up = KNUCKLES - WRIST
    up /= np.linalg.norm(up)
    across = np.cross(up, [0, 0, 1.0])
    across /= np.linalg.norm(across)

    def add(points, radius) -> None:
        builder.add(np.array([points]), np.array(radius), skin, layer=HAND, solid=True, gloss=0.15, follow=1.0)

    add([WRIST, WRIST + [25, -70, -6], WRIST + [75, -190, -12]], [22.0, 27.0, 36.0])
    for k, (length, radius) in enumerate(((64, 8.2), (71, 8.6), (66, 8.2), (52, 7.2))):
        place = k - 1.5
        base = KNUCKLES + 16.5 * place * across + (4 - 3 * place**2) * up
        add([WRIST + 9 * place * across - 4 * up, base], [14.0, 10.5])
        spread = up + 0.13 * place * across
        joints = [base, base + 0.45 * length * spread + [0, 0, 5], base + 0.75 * length * spread + [0, 0, 2],
                  base + 0.98 * length * spread + [0, 0, -7]]
        add(joints, [radius + 1.0, radius, radius - 0.6, radius - 1.6])
    thumb = WRIST - 14 * across
    add([thumb, thumb - 26 * across + 26 * up, thumb - 34 * across + 52 * up, thumb - 36 * across + 70 * up],
        [14.0, 11.0, 9.0, 7.5])
