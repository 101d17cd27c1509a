"""Torso warp: what a similarity leaves of the torso's motion, such as a collar that moves against the jacket.

The picture with its similarity taken out differs from the reference by offsets d, a quadratic B-spline with GRID × GRID control
points over the picture: d is estimated by Gauss–Newton on grey levels with the robust weights of the similarity, coarse to fine.
For a template point q with grey level T and gradient g, x + d(x) = q gives x, the frame is looked up there, and the derivative of
that grey level by a control point is exactly -g times its weight at x: the reference's gradients serve every frame, as in
inverse compositional matching. Control points are held by the bending energy of a thin plate (Wahba, Spline models for
observational data, 1990, §2.4, in differences of control points) and a little by their length.

Along the torso's outline the person's mask is matched in the place of grey levels, which would hold the outline to the room.
As with similarities, a frame is matched to the reference of its shot, and the references to the common one.
"""

from collections.abc import Sequence

import numpy as np

from process_data.tracking.bilinear import bilinear
from process_data.tracking.torso_motion import (
    MIDDLE_GREY,
    ROBUST,
    Level,
    TorsoTracker,
    compose,
    concatenate,
    edge_points,
    gray_pyramid,
    inverse,
    pyramid,
    solved,
    torso_and_outline,
)
from shared.clip import BACKGROUND
from shared.compiled import cached_njit
from shared.torso_motion import SIMILARITY

GRID = 7  # control points across and down
COLUMNS = SIMILARITY + 2 * GRID * GRID  # of a torso motion
POINTS = (2400, 1600, 900)  # about the number of points of a level, finest first
BLOCKS = 12  # across and down, over which they are spread
STEPS = (2, 3, 3)  # most Gauss–Newton steps of a level, finest first
COARSEST = 2  # level that matching starts from
INVERSIONS = 2  # steps a Gauss–Newton step, each makes the error smaller by d's gradient, .1 or so
CONVERGED = 0.05  # pixels of a level; smaller steps end its iterations
HELD = (0.001, 0.02)  # weights of the squared control points and of their bending, of the data's mean weight
LINK_POINTS, LINK_STEPS, LINK_HELD = (12000, 8000, 4000), (9, 9, 9), (0.0001, 0.001)  # between the references of shots
CONTRAST = 100  # grey levels between person and background, where the outline is matched
DENSE = 3  # points of a lattice from one control point to the next
COARSER = 6.0  # times as stiff at each coarser level: a loose start falls into wrong places
LEAST_SEEN = 0.2  # share of the points that must be in the picture and not hidden
LEAST_POINTS = 150  # of a reference that can be matched
STEEPEST = 0.5  # largest difference of neighbouring control points, of their distance: d has an inverse


def spread(points: np.ndarray, steep: np.ndarray, most: int, width: int, height: int) -> np.ndarray:
    """About `most` of the points (N, 6) with squared gradients `steep` (N,): the steepest ones of each block of the picture."""
    block = (points[:, 1] * (BLOCKS / height)).astype(int) * BLOCKS + (points[:, 0] * (BLOCKS / width)).astype(int)
    order = np.lexsort((-steep, block))
    sizes = np.bincount(block)
    rank = np.arange(len(points)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return np.ascontiguousarray(points[order[rank < max(1, most // max(int(np.count_nonzero(sizes)), 1))]])


def outlines(labels: np.ndarray) -> list[np.ndarray]:
    """Labels (H,W) -> the person against the background as grey pictures: a pyramid of which the background knows nothing."""
    return gray_pyramid((labels > BACKGROUND) * np.uint8(CONTRAST))


def stiffness(n: int, length: float, bending: float) -> np.ndarray:
    """(n², n²): c·stiffness·c is the energy of n × n control points c, row by row: bending and length with these weights."""
    second = np.diff(np.eye(n), 2, axis=0)
    first, one = np.diff(np.eye(n), axis=0), np.eye(n)
    terms = ((np.kron(second, one), 1), (np.kron(one, second), 1), (np.kron(first, first), 2))
    return bending * sum(weight * term.T @ term for term, weight in terms) + length * np.eye(n * n)


@cached_njit(fastmath=True)
def _normal_equations(points, spots, pictures, labels, matrix, warp, light, robust, normal, right):
    """Sum up `normal` (N,N), its upper triangle, and `right` (N,) of one Gauss–Newton step over the points.

    Points (P,7) are those of `Level` and which of `pictures` (2,h,w) each is looked up in: 0 grey levels, 1 the person's mask.

    Unknowns: the control points row by row, across and down; gain, offset, whose present values are `light` (2,). `spots`
    (P,2), where the points lie before the warp, go INVERSIONS steps of the fixed-point iteration x = q - d(x). Returns the soft
    number of outliers and the number of points that are in the picture and not behind the head.
    """
    height, width = pictures.shape[1:]
    full_height, full_width = labels.shape
    x_unit, y_unit = width / full_width, height / full_height
    n = warp.shape[0]
    last = 2 * n * n
    normal[:] = 0.0
    right[:] = 0.0
    cost, seen = 0.0, 0
    across, down, share = np.empty(3), np.empty(3), np.empty(9)
    products = np.empty(45)
    # sums of each interval of the spline: over products of weights, and over weights
    squares, lines = np.zeros(((n - 2) * (n - 2), 3, 45)), np.zeros(((n - 2) * (n - 2), 6, 9))
    for p in range(points.shape[0]):
        x, y = spots[p, 0], spots[p, 1]
        for _ in range(INVERSIONS):
            u = min(max(x / full_width, 0.0), 1.0) * (n - 2)
            v = min(max(y / full_height, 0.0), 1.0) * (n - 2)
            i, j = min(int(v), n - 3), min(int(u), n - 3)
            s, t = u - j, v - i
            across[0], across[1], across[2] = 0.5 * (1 - s) ** 2, 0.5 + s - s * s, 0.5 * s * s
            down[0], down[1], down[2] = 0.5 * (1 - t) ** 2, 0.5 + t - t * t, 0.5 * t * t
            x, y = float(points[p, 0]), float(points[p, 1])
            for a in range(3):
                for b in range(3):
                    share[3 * a + b] = down[a] * across[b]
                    x -= share[3 * a + b] * warp[i + a, j + b, 0]
                    y -= share[3 * a + b] * warp[i + a, j + b, 1]
        spots[p, 0], spots[p, 1] = x, y
        seen_x = matrix[0, 0] * x + matrix[0, 1] * y + matrix[0, 2]
        seen_y = matrix[1, 0] * x + matrix[1, 1] * y + matrix[1, 2]
        c, r = seen_x * x_unit - 0.5, seen_y * y_unit - 0.5
        if not (c >= 0.0 and r >= 0.0 and c < width - 1 and r < height - 1):
            continue
        if labels[int(seen_y), int(seen_x)] > 1:  # neck, head or mouth lies in front
            continue
        kind = int(points[p, 6])
        value = bilinear(pictures[kind], c, r)
        residual, bright, one = value - points[p, 2], 0.0, 0.0
        if kind == 0:  # light changes what is seen, but not the outline
            residual -= light[0] * points[p, 2] + light[1]
            bright, one = points[p, 2] - MIDDLE_GREY, 1.0
        strange = residual * residual / (points[p, 5] * robust * robust)
        cost += strange / (1 + strange)
        seen += 1
        weight = 1 / (points[p, 5] * (1 + strange))
        gx, gy = weight * points[p, 3], weight * points[p, 4]
        cell, k = i * (n - 2) + j, 0
        for a in range(9):
            for b in range(a, 9):
                products[k] = share[a] * share[b]
                k += 1
        xx, xy, yy = gx * points[p, 3], gx * points[p, 4], gy * points[p, 4]
        for k in range(45):
            squares[cell, 0, k] += xx * products[k]
            squares[cell, 1, k] += xy * products[k]
            squares[cell, 2, k] += yy * products[k]
        for a in range(9):
            lines[cell, 0, a] += gx * residual * share[a]
            lines[cell, 1, a] += gy * residual * share[a]
            lines[cell, 2, a] += gx * bright * share[a]
            lines[cell, 3, a] += gy * bright * share[a]
            lines[cell, 4, a] += gx * one * share[a]
            lines[cell, 5, a] += gy * one * share[a]
        right[last] += weight * residual * bright
        right[last + 1] += weight * residual * one
        normal[last, last] += weight * bright * bright
        normal[last, last + 1] += weight * bright * one
        normal[last + 1, last + 1] += weight * one
    for cell in range(len(lines)):
        first, k = (cell // (n - 2)) * n + cell % (n - 2), 0
        for a in range(9):
            row = 2 * (first + (a // 3) * n + a % 3)
            for axis in range(2):
                right[row + axis] += lines[cell, axis, a]
                normal[row + axis, last] += lines[cell, 2 + axis, a]
                normal[row + axis, last + 1] += lines[cell, 4 + axis, a]
            for b in range(a, 9):
                column = 2 * (first + (b // 3) * n + b % 3)
                normal[row, column] += squares[cell, 0, k]
                normal[row, column + 1] += squares[cell, 1, k]
                normal[row + 1, column + 1] += squares[cell, 2, k]
                if a != b:
                    normal[row + 1, column] += squares[cell, 1, k]
                k += 1
    return cost, seen


@cached_njit()
def _gauss_newton(points, spots, pictures, labels, matrix, warp, light, held, robust, least, steps, converged):
    """Refine the control points `warp` (n,n,2) and `light` (2,), gain and offset, in place; returns the share of outliers
    before the last step, inf where fewer than `least` points are seen."""
    n = warp.shape[0]
    count = 2 * n * n
    normal, step = np.empty((count + 2, count + 2)), np.empty(count + 2)
    cost = np.inf
    for _ in range(steps):
        strange, seen = _normal_equations(points, spots, pictures, labels, matrix, warp, light, robust, normal, step)
        if seen < least:
            return np.inf
        cost = strange / seen
        mean = 0.0
        for k in range(count):
            mean += normal[k, k]
        mean /= count
        for k in range(n * n):
            for m in range(n * n):
                pull = mean * held[k, m]
                if pull == 0.0:
                    continue
                for axis in range(2):
                    if m >= k:
                        normal[2 * k + axis, 2 * m + axis] += pull
                    step[2 * k + axis] -= pull * warp[m // n, m % n, axis]
        for k in range(count + 2):
            normal[k, k] *= 1 + 1e-9
            for m in range(k):
                normal[k, m] = normal[m, k]
        if not solved(normal, step):
            return np.inf
        largest = 0.0
        for k in range(n * n):
            for axis in range(2):
                warp[k // n, k % n, axis] += step[2 * k + axis]
                largest = max(largest, abs(step[2 * k + axis]))
        light[1] += step[count + 1] - MIDDLE_GREY * step[count]
        light[0] += step[count]
        if largest < converged:
            break
    return cost


class WarpMatcher:
    """Finds the warp of a reference frame's torso in other frames."""

    def __init__(self, frame: np.ndarray, labels: np.ndarray, most: Sequence[int] = POINTS, steps: Sequence[int] = STEPS,
                 held: tuple[float, float] = HELD) -> None:
        """Reference frame (H,W,3) uint8 and its labels (H,W); points, steps and stiffness, see POINTS, STEPS and HELD."""
        height, width = labels.shape
        self.levels = []
        for number, (gray, mask) in enumerate(zip(pyramid(frame)[: COARSEST + 1], outlines(labels))):
            torso, outline = torso_and_outline(labels, gray.shape, number)
            found = []
            for kind, (picture, inside) in enumerate(((gray, torso & ~outline), (mask, outline))):
                points, steep = edge_points(picture, inside, labels.shape)
                points = spread(points, steep, most[number] // (1 + 2 * kind), width, height)
                found.append(np.column_stack([points, np.full(len(points), kind, np.float32)]))
            self.levels.append(Level(number, np.concatenate(found)))
        self.textured = len(self.levels[0].points) >= LEAST_POINTS
        self.steps, self.held = steps, stiffness(GRID, *held)
        self.spacing = min(width, height) / (GRID - 2)

    def __call__(self, pictures: list[np.ndarray], labels: np.ndarray, matrix: np.ndarray) -> np.ndarray:
        """A frame's `pyramid`, its labels (H,W), the similarity (2,3) from the reference -> control points (n,n,2) of the warp,
        pixels; NaN where it is not found."""
        warp, light, lost = np.zeros((GRID, GRID, 2)), np.zeros(2), np.full((GRID, GRID, 2), np.nan)
        if not self.textured:
            return lost
        masks = outlines(labels)
        for level in reversed(self.levels):
            spots = level.points[:, :2].astype(float)
            both = np.stack([pictures[level.number], masks[level.number]])
            cost = _gauss_newton(level.points, spots, both, labels, np.asarray(matrix, float), warp, light,
                                 self.held * COARSER**level.number, ROBUST, max(LEAST_SEEN * len(level.points), 6),
                                 self.steps[level.number], CONVERGED * (1 << level.number))
            if not np.isfinite(cost):
                return lost
        steepest = max(np.abs(np.diff(warp, axis=axis)).max() for axis in (0, 1))
        return warp if steepest < STEEPEST * self.spacing else lost


def _weights(places: np.ndarray) -> np.ndarray:
    """(P, GRID) weights of the control points along a side at places (P,), 0 to 1."""
    away = np.abs(np.clip(places, 0, 1)[:, None] * (GRID - 2) - np.arange(GRID) + 0.5)
    return np.where(away < 0.5, 0.75 - away**2, np.maximum(1.5 - away, 0) ** 2 / 2)


class Lattice:
    """Warps as offsets at points spread over a picture, and back."""

    def __init__(self, width: int, height: int) -> None:
        self.size = np.array([width, height], float)
        side = (np.arange(DENSE * (GRID - 2)) + 0.5) / (DENSE * (GRID - 2))
        self.points = np.stack(np.meshgrid(side, side), -1).reshape(-1, 2) * self.size
        self.fit = np.linalg.pinv(self._basis(self.points))

    def _basis(self, points: np.ndarray) -> np.ndarray:
        across, down = _weights(points[:, 0] / self.size[0]), _weights(points[:, 1] / self.size[1])
        return (down[:, :, None] * across[:, None, :]).reshape(len(points), -1)

    def moved(self, warp: np.ndarray, points: np.ndarray) -> np.ndarray:
        """points (P, 2) + d of `warp` (n, n, 2) there."""
        return points + self._basis(points) @ warp.reshape(-1, 2)

    def chained(self, matrix: np.ndarray, second: np.ndarray, first: np.ndarray) -> np.ndarray:
        """The warp (n, n, 2) of a frame onto the common reference: by `second` onto another reference, to which the similarity
        `matrix` (2, 3) leads from the common one, and by `first` from that reference onto the common one."""
        back = inverse(matrix)
        there = self.moved(second, self.points @ matrix[:, :2].T + matrix[:, 2])
        home = self.moved(first, there @ back[:, :2].T + back[:, 2])
        return (self.fit @ (home - self.points)).reshape(GRID, GRID, 2)


class WarpTracker(TorsoTracker):
    """Finds similarity and warp of every frame; for frames of shots in `unmatched` the similarity only."""

    def __init__(self, references: Sequence[tuple[np.ndarray, np.ndarray]], faces: np.ndarray,
                 spans: Sequence[tuple[int, int]]) -> None:
        """Arguments as of `TorsoTracker`."""
        super().__init__(references, faces, spans)
        self.lattice = Lattice(*self.size[::-1])
        self.warps = [WarpMatcher(*reference) for reference in references]
        link = WarpMatcher(*references[self.common], LINK_POINTS, LINK_STEPS, LINK_HELD)
        self.to_common = [self._to_common(link, shot, *references[shot]) for shot in range(len(references))]

    def motion(self, t: int, frame: np.ndarray, labels: np.ndarray, face: np.ndarray) -> np.ndarray:
        """Motion (COLUMNS,) from the common reference to frame t: similarity, then control points, as in docs/formats.md.

        frame (H,W,3) uint8, labels (H,W), face (68,2): projected landmarks in pixels. NaN for what is not found.
        """
        pictures, row, shot = pyramid(frame), np.full(COLUMNS, np.nan), self.shot_of(t)
        row[:SIMILARITY] = self.similarity(t, pictures, labels, face)
        if shot in self.unmatched or np.isnan(row[0]):
            return row
        whole = compose(row[:SIMILARITY], self.center)
        warp = self.warps[shot](pictures, labels, concatenate(whole, inverse(self.from_common[shot])))
        row[SIMILARITY:] = self.lattice.chained(self.from_common[shot], warp, self.to_common[shot]).ravel()
        return row

    def _to_common(self, link: WarpMatcher, shot: int, frame: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Control points (n,n,2) of a shot's reference as a frame of the common one; zeros if not found."""
        if shot == self.common or shot in self.unmatched:
            return np.zeros((GRID, GRID, 2))
        return np.nan_to_num(link(pyramid(frame), labels, self.from_common[shot]))
