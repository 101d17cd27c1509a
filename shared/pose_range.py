"""Which head poses a clip shows, and poses held to that range.

Angles are yaw, pitch and roll of `euler_degrees`, taken from the clip's mean pose. Left and right are the person's own.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from shared.camera import euler_degrees, rotation_from_euler
from shared.errors import TalkheadError

TAIL = 0.005  # share of the frames at either end that does not widen a range: so few teach a head little, or were mistracked
MARGIN = 2.0  # degrees beyond the range to which a pose may turn
DEPTH_ROOM = 1.5  # of the farthest, and one over it of the nearest distance: what lies between is left alone
DEPTH_MARGIN = 1.1  # the same factor beyond that
CLOSEST = 1e-3  # metres: a head that is nearer or behind the camera is taken as so near
TOLD, DEPTH_TOLD = 0.5, 0.01  # degrees, and share of a distance, from which a change is told
WAYS = (("turn the head up to {:.0f}° to the left", "turn the head up to {:.0f}° to the right"),
        ("raise the head up to {:.0f}°", "lower the head up to {:.0f}°"),
        ("tilt the head up to {:.0f}° to the right", "tilt the head up to {:.0f}° to the left"))  # of negative, positive angles


class Limited(NamedTuple):
    """Poses (T,4,4) held to a range, and sentences that tell how many of them were changed and by how much."""

    poses: np.ndarray
    warnings: list[str]


@dataclass(frozen=True)
class PoseRange:
    """`rest`: yaw, pitch and roll of the mean pose; `low` ≤ 0 and `high` ≥ 0: how far the head goes from there; all degrees.
    `nearest` and `farthest`: distance from the camera along its axis, metres. Raises TalkheadError for what is no range."""

    rest: tuple[float, float, float]
    low: tuple[float, float, float]
    high: tuple[float, float, float]
    nearest: float
    farthest: float

    def __post_init__(self) -> None:
        if not all(low <= 0 <= high for low, high in zip(self.low, self.high)) or not 0 < self.nearest <= self.farthest:
            raise TalkheadError(f"a pose range goes from low ≤ 0 to high ≥ 0 and from nearest to farthest > 0, found "
                                f"{self.low} to {self.high} and {self.nearest:g} to {self.farthest:g}")

    @classmethod
    def of(cls, poses: np.ndarray) -> "PoseRange":
        """The range of poses (T,4,4), without the TAIL at either end."""
        angles = euler_degrees(poses[:, :3, :3].astype(float))
        rest = angles.mean(0)
        low, high = np.quantile(angles - rest, (TAIL, 1 - TAIL), axis=0)
        nearest, farthest = np.quantile(poses[:, 2, 3].astype(float), (TAIL, 1 - TAIL))
        return cls(_three(rest), _three(np.minimum(low, 0)), _three(np.maximum(high, 0)), float(nearest), float(farthest))

    def away(self, poses: np.ndarray) -> np.ndarray:
        """Poses (T,4,4) -> (T,3) yaw, pitch and roll from the mean pose, −180 … 180 degrees."""
        return (euler_degrees(poses[:, :3, :3].astype(float)) - self.rest + 180) % 360 - 180

    def limited(self, poses: np.ndarray) -> Limited:
        """Poses (T,4,4) of which each angle beyond the range saturates smoothly, at most MARGIN further, see `softly`.

        Poses within the range stay as they are, to the bit. The place of the head's origin stays too, but for a distance that
        is extreme (DEPTH_ROOM): such a head is moved along its ray, so that it stays where it is in the picture.
        """
        away, depth = self.away(poses), np.maximum(poses[:, 2, 3].astype(float), CLOSEST)
        kept = softly(away, np.array(self.low), np.array(self.high), MARGIN)
        near, far = np.log(self.nearest / DEPTH_ROOM), np.log(self.farthest * DEPTH_ROOM)
        factor = np.exp(softly(np.log(depth), near, far, np.log(DEPTH_MARGIN))) / depth
        out = poses.copy()
        turned, moved = (kept != away).any(1), np.abs(factor - 1) > 1e-9
        out[turned, :3, :3] = rotation_from_euler(self.rest + kept[turned])
        out[moved, :3, 3] *= factor[moved, None]
        return Limited(out, self._told(away, kept) + self._told_of_depth(depth, factor))

    def _told(self, away: np.ndarray, kept: np.ndarray) -> list[str]:
        changed = np.abs(away - kept)
        frame, axis = np.unravel_index(changed.argmax(), changed.shape)
        if changed[frame, axis] < TOLD:
            return []
        side = int(away[frame, axis] > 0)
        shown = (self.low, self.high)[side][axis]
        return [f"the poses {WAYS[axis][side].format(abs(away[frame, axis]))}, the clip shows {abs(shown):.0f}°: "
                f"{(changed.max(1) >= TOLD).sum()} of {len(away)} frames were turned back to at most {abs(shown) + MARGIN:.0f}°; "
                "--no-pose-limit keeps them"]

    def _told_of_depth(self, depth: np.ndarray, factor: np.ndarray) -> list[str]:
        frame = int(np.abs(np.log(factor)).argmax())
        if abs(factor[frame] - 1) < DEPTH_TOLD:
            return []
        far = factor[frame] < 1
        way, shown, most = ("as far as", self.farthest, "at most") if far else ("as near as", self.nearest, "at least")
        return [f"the poses bring the head {way} {depth[frame]:.2f} m, the clip shows {shown:.2f} m: "
                f"{(np.abs(factor - 1) >= DEPTH_TOLD).sum()} of {len(depth)} frames were moved to {most} "
                f"{depth[frame] * factor[frame]:.2f} m; --no-pose-limit keeps them"]

    def __str__(self) -> str:
        (left, up, tilted_right), (right, down, tilted_left) = self.low, self.high
        return (f"turns {-left:.0f}° left and {right:.0f}° right, {-up:.0f}° up and {down:.0f}° down, tilts {tilted_left:.0f}° "
                f"left and {-tilted_right:.0f}° right, {self.nearest:.2f} to {self.farthest:.2f} m away")


def softly(values: np.ndarray, low: np.ndarray | float, high: np.ndarray | float, margin: float) -> np.ndarray:
    """Values between `low` and `high` as they are, others at most `margin` beyond: limit ± margin · tanh(excess / margin).

    Monotone, and smooth to the first derivative, which is 1 at the limit.
    """
    inside = np.clip(values, low, high)
    return inside + margin * np.tanh((values - inside) / margin)


def _three(values: np.ndarray) -> tuple[float, float, float]:
    return float(values[0]), float(values[1]), float(values[2])
