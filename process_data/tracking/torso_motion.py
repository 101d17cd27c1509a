"""Torso motion: one similarity for each frame, from all edges of the torso and its outline.

Every frame is matched directly to the reference frame of its shot, so errors do not add up; the references of the shots are
matched to that of the longest shot, the common reference. Matching is inverse compositional Gauss–Newton on grey levels,
coarse to fine (Baker and Matthews, Lucas–Kanade 20 years on, IJCV 2004), with robust weights against hands, the head and
folds of the clothes.

Points are continuous image coordinates: the centre of pixel (row i, column j) is (j + 0.5, i + 0.5).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from process_data.tracking.bilinear import bilinear
from shared.arrays import savgol
from shared.camera import rotvec_from_rotation, umeyama
from shared.clip import BACKGROUND, TORSO
from shared.compiled import cached_njit
from shared.torso_motion import AT_REST, SIMILARITY

STEADY = [27, 28, 29, 30, 31, 33, 35, 36, 39, 42, 45]  # landmarks that speech hardly moves: nose and corners of the eyes
SMALLEST = 48  # pixels: side of the coarsest level
MOST_LEVELS = 4
BLUR = 0.8  # standard deviation, pixels of each level
POINTS = (10000, 8000, 4000, 3000)  # most points of a level, finest first
NOISE = 10.0  # grey levels: standard deviation by compression, light and folds
SLACK = 0.5  # pixels of a level by which clothes move against the torso
ROBUST = 2.5  # scale of the Cauchy weights, in standard deviations
OUTLINE = 3.0  # pixels of the finest level on either side of the outline that are matched too
LEAST_GRADIENT = 2.5  # grey levels a pixel; flatter points are not matched
LEAST_POINTS = 150  # of a reference that can be matched
LEAST_SEEN = 0.35  # share of the points that must be in the picture and not hidden
ITERATIONS = 30  # most, on each level
CONVERGED = 0.003  # pixels; smaller steps end the iterations
WORST = 0.6  # a match with a larger share of outliers is rejected
LOOP = 0.08  # largest error of matching there and back, of the torso's radius
WINDOW = 5  # Savitzky–Golay, frames
SCALES = (0.4, 2.5)  # a similarity with another scale is a failed match
MIDDLE_GREY = 128.0  # gain acts about this grey level


def decompose(matrix: np.ndarray, center: np.ndarray) -> np.ndarray:
    """Similarity matrix (2,3) acting on pixels -> (dx, dy, angle, scale) about `center` (2,)."""
    scale = float(np.hypot(matrix[0, 0], matrix[1, 0]))
    angle = float(np.arctan2(matrix[1, 0], matrix[0, 0]))
    shift = matrix[:, :2] @ center + matrix[:, 2] - center
    return np.array([*shift, angle, scale])


def compose(motion: np.ndarray, center: np.ndarray) -> np.ndarray:
    """(dx, dy, angle, scale) about `center` -> similarity matrix (2,3) acting on pixels; inverse of `decompose`."""
    dx, dy, angle, scale = motion
    linear = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return np.column_stack([linear, center + [dx, dy] - linear @ center])


def concatenate(second: np.ndarray, first: np.ndarray) -> np.ndarray:
    """The similarity (2,3) that does `first`, then `second`."""
    return np.column_stack([second[:, :2] @ first[:, :2], second[:, :2] @ first[:, 2] + second[:, 2]])


def inverse(matrix: np.ndarray) -> np.ndarray:
    """The inverse of a similarity (2,3)."""
    linear = np.linalg.inv(matrix[:, :2])
    return np.column_stack([linear, -linear @ matrix[:, 2]])


def pixel_numbers(matrix: np.ndarray, size: float = 1.0) -> np.ndarray:
    """Similarity (2,3) of continuous coordinates -> the same for pixel numbers, which OpenCV's warps take: the first pixel's
    centre lies at 0 instead of 0.5; for pictures of `size` times that in which `matrix` is told."""
    return np.column_stack([matrix[:, :2], matrix[:, :2] @ [0.5, 0.5] + matrix[:, 2] * size - 0.5])


def choose_references(spans: Sequence[tuple[int, int]], poses: np.ndarray, good: np.ndarray) -> list[int]:
    """One reference frame for each shot: the good frame (T,) bool whose head pose (T,4,4) is nearest to the shot's median."""
    chosen = []
    rotations = rotvec_from_rotation(poses[:, :3, :3] @ np.diag([1.0, -1.0, -1.0]))
    places = poses[:, :3, 3] / poses[:, 2:3, 3]
    values = np.column_stack([rotations, 3 * places[:, :2], np.log(np.maximum(poses[:, 2, 3], 1e-6))])
    for start, stop in spans:
        frames = np.flatnonzero(good[start:stop]) + start
        if len(frames) == 0:
            chosen.append((start + stop) // 2)
            continue
        here = values[frames]
        chosen.append(int(frames[np.abs(here - np.median(here, 0)).sum(1).argmin()]))
    return chosen


@dataclass(frozen=True)
class Level:
    """Template points of one level: (N, 6) float32 rows x, y (pixels of the full picture), grey level, gradient across
    and down (grey levels a pixel of the full picture), variance of the grey level."""

    number: int
    points: np.ndarray


def pyramid(frame: np.ndarray) -> list[np.ndarray]:
    """Frame (H,W,3) uint8 -> blurred grey pictures float32, finest first, each half as large as the one before."""
    return gray_pyramid(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY))


def gray_pyramid(gray: np.ndarray) -> list[np.ndarray]:
    """The same of a grey picture (H,W) uint8."""
    levels = []
    for _ in range(MOST_LEVELS):
        levels.append(cv2.GaussianBlur(gray, (0, 0), BLUR).astype(np.float32))
        height, width = gray.shape
        if min(height, width) < 2 * SMALLEST:
            break
        gray = cv2.resize(gray, (width // 2, height // 2), interpolation=cv2.INTER_AREA)
    return levels


def torso_and_outline(labels: np.ndarray, shape: tuple[int, int], level: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels (H,W) -> two masks of a level's `shape`: the torso, and a band along its outline against the background, both away
    from head and neck."""
    torso = cv2.morphologyEx((labels == TORSO).astype(np.uint8), cv2.MORPH_OPEN, np.ones((5, 5), np.uint8))
    others = ((labels != TORSO) & (labels != BACKGROUND)).astype(np.uint8)
    height, width = shape
    torso = cv2.resize(torso, (width, height), interpolation=cv2.INTER_NEAREST)
    others = cv2.resize(others, (width, height), interpolation=cv2.INTER_NEAREST)
    to_torso = cv2.distanceTransform(1 - torso, cv2.DIST_L2, 3) if torso.any() else np.full(shape, np.inf)
    clear = 1 - torso - others > 0
    to_room = cv2.distanceTransform((~clear).astype(np.uint8), cv2.DIST_L2, 3) if clear.any() else np.full(shape, np.inf)
    to_others = cv2.distanceTransform(1 - np.minimum(others, 1), cv2.DIST_L2, 3) if others.any() else np.full(shape, np.inf)
    reach = max(1.5, OUTLINE / 2 ** (level / 2))
    outline = (to_torso <= reach) & (to_room <= reach)
    apart = to_others > max(1.0, 4.0 / 2**level)
    return (torso > 0) & apart, outline & apart


def edge_points(gray: np.ndarray, inside: np.ndarray, full: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Every point of a level's grey picture, where `inside` is true, that can be matched -> (N, 6), see `Level`, and its squared
    gradient (N,), grey levels a pixel of the level; `full` is height and width of the whole picture."""
    height, width = gray.shape
    unit, inside = full[1] / width, inside.copy()
    across, down = (cv2.Sobel(gray, cv2.CV_32F, *order, ksize=3, scale=1 / 8) for order in ((1, 0), (0, 1)))
    steep = across**2 + down**2
    inside[[0, -1]] = False
    inside[:, [0, -1]] = False
    rows, columns = np.nonzero(inside & (steep > LEAST_GRADIENT**2))
    variance = NOISE**2 + SLACK**2 * steep[rows, columns]
    points = np.column_stack([(columns + 0.5) * unit, (rows + 0.5) * full[0] / height, gray[rows, columns],
                              across[rows, columns] / unit, down[rows, columns] / unit, variance])
    return np.ascontiguousarray(points, np.float32), steep[rows, columns]


def _template(gray: np.ndarray, labels: np.ndarray, number: int) -> Level:
    torso, outline = torso_and_outline(labels, gray.shape, number)
    (points, steep), most = edge_points(gray, torso | outline, labels.shape), POINTS[number]
    return Level(number, points if len(points) <= most else points[np.sort(np.argpartition(steep, -most)[-most:])])


@cached_njit(fastmath=True)
def _normal_equations(points, picture, labels, matrix, centre, radius, gain, offset, robust, normal, right):
    """Sum up `normal` (6,6) and `right` (6,) of one Gauss–Newton step over the points.

    Unknowns: shift across and down, turn and growth (the last two in pixels at `radius` from `centre`), gain, offset.
    Returns the soft number of outliers and the number of points that are in the picture and not behind the head.
    """
    height, width = picture.shape
    full_height, full_width = labels.shape
    x_unit, y_unit = width / full_width, height / full_height
    normal[:] = 0.0
    right[:] = 0.0
    cost, seen = 0.0, 0
    row = np.empty(6, np.float64)
    for n in range(points.shape[0]):
        x, y, level = points[n, 0], points[n, 1], points[n, 2]
        u = matrix[0, 0] * x + matrix[0, 1] * y + matrix[0, 2]
        v = matrix[1, 0] * x + matrix[1, 1] * y + matrix[1, 2]
        a, b = u * x_unit - 0.5, v * y_unit - 0.5
        if not (a >= 0.0 and b >= 0.0 and a < width - 1 and b < height - 1):
            continue
        if labels[int(v), int(u)] > 1:  # neck, head or mouth lies in front
            continue
        value = bilinear(picture, a, b)
        residual = value - (1 + gain) * level - offset
        strange = residual * residual / (points[n, 5] * robust * robust)
        cost += strange / (1 + strange)
        seen += 1
        weight = 1 / (points[n, 5] * (1 + strange))
        gx, gy = points[n, 3], points[n, 4]
        p, q = (x - centre[0]) / radius, (y - centre[1]) / radius
        row[0] = gx
        row[1] = gy
        row[2] = p * gy - q * gx
        row[3] = p * gx + q * gy
        row[4] = level - MIDDLE_GREY
        row[5] = 1.0
        unexplained = value - level
        for k in range(6):
            scaled = weight * row[k]
            right[k] += scaled * unexplained
            for m in range(k, 6):
                normal[k, m] += scaled * row[m]
    for k in range(6):
        for m in range(k):
            normal[k, m] = normal[m, k]
    return cost, seen


@cached_njit()
def solved(normal, right):
    """Solve normal·x = right, (n,n) symmetric and (n,), in place of `right` by Cholesky's factors, without what is zero to the
    left of each row's first number; False if singular."""
    size = len(right)
    first = np.empty(size, np.int64)
    for i in range(size):
        first[i] = 0
        while normal[i, first[i]] == 0.0 and first[i] < i:
            first[i] += 1
    for i in range(size):
        for j in range(first[i], i + 1):
            value = normal[i, j]
            for k in range(max(first[i], first[j]), j):
                value -= normal[i, k] * normal[j, k]
            if i > j:
                normal[i, j] = value / normal[j, j]
            elif value <= 0.0:
                return False
            else:
                normal[i, i] = np.sqrt(value)
    for i in range(size):
        for k in range(first[i], i):
            right[i] -= normal[i, k] * right[k]
        right[i] /= normal[i, i]
    for i in range(size - 1, -1, -1):
        for k in range(i + 1, size):
            if first[k] <= i:
                right[i] -= normal[k, i] * right[k]
        right[i] /= normal[i, i]
    return True


@cached_njit()
def _gauss_newton(points, picture, labels, matrix, centre, radius, robust, least, converged):
    """Refine the similarity `matrix` (2,3) in place until a step is smaller than `converged` pixels; returns its cost, the
    share of outliers, inf if it fails or fewer than `least` points are seen."""
    normal, step = np.empty((6, 6)), np.empty(6)
    gain = offset = 0.0
    cost = np.inf
    for _ in range(ITERATIONS):
        strange, seen = _normal_equations(points, picture, labels, matrix, centre, radius, gain, offset, robust, normal, step)
        if seen < least:
            return np.inf
        cost = strange / seen
        for k in range(6):
            normal[k, k] *= 1 + 1e-9
        if not solved(normal, step):
            return np.inf
        gain, offset = step[4], step[5] - MIDDLE_GREY * step[4]
        # the inverse of the step's similarity [1 + growth, -turn; turn, 1 + growth] about the centre
        turn, growth = step[2] / radius, 1 + step[3] / radius
        square = growth * growth + turn * turn
        c, s = growth / square, turn / square
        x, y = centre[0] + step[0], centre[1] + step[1]
        across, down = centre[0] - c * x - s * y, centre[1] + s * x - c * y
        for row in matrix:
            p, q = row[0], row[1]
            row[0], row[1], row[2] = p * c - q * s, p * s + q * c, p * across + q * down + row[2]
        if not SCALES[0] < np.hypot(matrix[0, 0], matrix[1, 0]) < SCALES[1]:
            return np.inf
        if np.abs(step[:4]).max() < converged:
            break
    return cost


@dataclass(frozen=True)
class Match:
    """A similarity (2,3) from template to frame, and its cost: the share of outliers, 0 to 1, inf where matching fails."""

    matrix: np.ndarray
    cost: float


class Matcher:
    """Finds the torso of one reference frame in other frames."""

    def __init__(self, frame: np.ndarray, labels: np.ndarray) -> None:
        """Reference frame (H,W,3) uint8 and its labels (H,W)."""
        self.levels = [_template(gray, labels, number) for number, gray in enumerate(pyramid(frame))]
        finest = self.levels[0].points
        self.textured = len(finest) >= LEAST_POINTS
        self.centre = finest[:, :2].mean(0).astype(float) if self.textured else np.zeros(2)
        self.radius = float(np.sqrt(((finest[:, :2] - self.centre) ** 2).sum(1).mean())) if self.textured else 1.0

    def __call__(self, pictures: list[np.ndarray], labels: np.ndarray, guesses: Sequence[np.ndarray]) -> Match | None:
        """A frame's `pyramid`, its labels (H,W) and first guesses (2,3) -> the best match; None if all fail."""
        if not self.textured:
            return None
        found = [self._descend(pictures, labels, guess, len(self.levels) - 1, 2) for guess in guesses]
        best = min(found, key=lambda match: match.cost)
        best = self._descend(pictures, labels, best.matrix, min(1, len(self.levels) - 1), 0)
        return best if best.cost < WORST else None

    def _descend(self, pictures: list[np.ndarray], labels: np.ndarray, matrix: np.ndarray, coarsest: int, finest: int) -> Match:
        """Refine a similarity (2,3) from level `coarsest` down to level `finest`."""
        match = Match(matrix, np.inf)
        for number in range(coarsest, min(finest, coarsest) - 1, -1):
            match = self._refine(self.levels[number], pictures[number], labels, match.matrix)
            if not np.isfinite(match.cost):
                break
        return match

    def _refine(self, level: Level, picture: np.ndarray, labels: np.ndarray, matrix: np.ndarray) -> Match:
        refined = np.array(matrix, float)
        cost = _gauss_newton(level.points, picture, labels, refined, self.centre, self.radius, ROBUST,
                             max(LEAST_SEEN * len(level.points), 6), CONVERGED * (1 << level.number))
        return Match(refined, cost) if np.isfinite(cost) else Match(matrix, np.inf)


def face_similarity(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Similarity (2,3) from landmarks (68,2) pixels of one frame to those of another, by the STEADY ones."""
    scale, rotation, shift = umeyama(source[STEADY].astype(float), target[STEADY].astype(float))
    return np.column_stack([scale * rotation, shift])


class TorsoTracker:
    """Matches every frame to the reference of its shot. Calls do not depend on each other."""

    def __init__(self, references: Sequence[tuple[np.ndarray, np.ndarray]], faces: np.ndarray,
                 spans: Sequence[tuple[int, int]]) -> None:
        """For each of S shots: references, frame (H,W,3) uint8 with labels (H,W); faces (S,68,2), its projected landmarks in
        pixels; spans, start ≤ t < stop.

        `unmatched` lists the shots whose torso does not match that of the common reference; for them the similarity of the
        faces is used.
        """
        self.size = height, width = references[0][1].shape
        self.center = np.array([width / 2, height / 2])
        self.spans, self.faces = list(spans), faces
        self.matchers = [Matcher(frame, labels) for frame, labels in references]
        self.common = max(range(len(self.spans)), key=lambda shot: self.spans[shot][1] - self.spans[shot][0])
        self.unmatched: list[int] = []
        self.from_common = [self._match_common(shot, references) for shot in range(len(references))]

    def similarity(self, t: int, pictures: list[np.ndarray], labels: np.ndarray, face: np.ndarray) -> np.ndarray:
        """(4,) from the common reference to frame t: dx, dy pixels, angle radians, scale, about the picture's middle.

        The frame's `pyramid`, labels (H,W), face (68,2): projected landmarks in pixels. NaN if the torso is not found.
        """
        shot = self.shot_of(t)
        guesses = [face_similarity(self.faces[shot], face), np.eye(2, 3)]
        match = self.matchers[shot](pictures, labels, guesses)
        if match is None:
            return np.full(4, np.nan)
        return decompose(concatenate(match.matrix, self.from_common[shot]), self.center)

    def shot_of(self, t: int) -> int:
        """The number of the shot that holds frame t."""
        return next(k for k, (start, stop) in enumerate(self.spans) if start <= t < stop)

    def _match_common(self, shot: int, references: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
        """Similarity (2,3) from the common reference to this shot's, verified by matching back."""
        if shot == self.common:
            return np.eye(2, 3)
        guess = face_similarity(self.faces[self.common], self.faces[shot])
        there = self.matchers[self.common](pyramid(references[shot][0]), references[shot][1], [guess, np.eye(2, 3)])
        if there is not None:
            frame, labels = references[self.common]
            back = self.matchers[shot](pyramid(frame), labels, [inverse(there.matrix), inverse(guess)])
            if back is not None:
                reach = self.matchers[self.common].radius
                loop = decompose(concatenate(back.matrix, there.matrix), self.matchers[self.common].centre) - AT_REST
                if np.linalg.norm(loop[:2]) + reach * np.linalg.norm(loop[2:]) < 2 * LOOP * reach:
                    both = [decompose(there.matrix, self.center), decompose(inverse(back.matrix), self.center)]
                    return compose(np.mean(both, 0), self.center)
        self.unmatched.append(shot)
        return guess


def fill_and_smooth(motion: np.ndarray, spans: Sequence[tuple[int, int]]) -> np.ndarray:
    """Motion (T, 4 + 2·n²), NaN where similarity or warp were not found -> the same float32, interpolated and smoothed within
    each shot; at rest in shots where nothing was found."""
    out = np.array(motion, float)
    for start, stop in spans:
        out[start:stop, :SIMILARITY] = _fill_and_smooth(out[start:stop, :SIMILARITY], AT_REST)
        if out.shape[1] > SIMILARITY:
            out[start:stop, SIMILARITY:] = _fill_and_smooth(out[start:stop, SIMILARITY:], np.zeros(out.shape[1] - SIMILARITY))
    return out.astype(np.float32)


def _fill_and_smooth(motion: np.ndarray, rest: Sequence[float] | np.ndarray) -> np.ndarray:
    known = np.flatnonzero(~np.isnan(motion[:, 0]))
    if len(known) == 0:
        return np.tile(rest, (len(motion), 1))
    filled = np.stack([np.interp(np.arange(len(motion)), known, column[known]) for column in motion.T], -1)
    return savgol(filled, WINDOW) if len(filled) > WINDOW else filled
