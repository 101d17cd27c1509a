"""Signed distances to polygons, for painting and for cutting holes into meshes."""

import numba
import numpy as np

from shared.compiled import cached_njit


@cached_njit(parallel=True)
def signed_distance(points: np.ndarray, polygon: np.ndarray) -> np.ndarray:
    """Points (N, 2), polygon (K, 2), closed implicitly -> distance (N,) to its edge, positive inside (even-odd rule)."""
    n, k = points.shape[0], polygon.shape[0]
    out = np.empty(n)
    for i in numba.prange(n):
        x, y = points[i, 0], points[i, 1]
        best = np.inf
        inside = False
        for j in range(k):
            ax, ay = polygon[j, 0], polygon[j, 1]
            bx, by = polygon[(j + 1) % k, 0], polygon[(j + 1) % k, 1]
            ex, ey = bx - ax, by - ay
            length = ex * ex + ey * ey + 1e-30
            along = min(1.0, max(0.0, ((x - ax) * ex + (y - ay) * ey) / length))
            dx, dy = x - ax - along * ex, y - ay - along * ey
            best = min(best, dx * dx + dy * dy)
            if (ay > y) != (by > y) and x < ax + (y - ay) * ex / ey:
                inside = not inside
        out[i] = np.sqrt(best) if inside else -np.sqrt(best)
    return out
