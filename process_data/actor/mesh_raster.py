"""A z-buffer for triangle meshes: the visible triangle of each pixel and the place on it."""

import numba
import numpy as np

from shared.compiled import cached_njit

BANDS = 8  # horizontal strips that threads fill independently


@cached_njit(fastmath=False)
def _fill_band(points, depth, triangles, top, bottom, ids, zbuffer):
    width = ids.shape[1]
    for f in range(triangles.shape[0]):
        a, b, c = triangles[f, 0], triangles[f, 1], triangles[f, 2]
        ay, by, cy = points[a, 1], points[b, 1], points[c, 1]
        low, high = min(ay, by, cy), max(ay, by, cy)
        if high < top or low > bottom:
            continue
        ax, bx, cx = points[a, 0], points[b, 0], points[c, 0]
        area = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)
        if area >= 0.0 or depth[a] <= 0.0 or depth[b] <= 0.0 or depth[c] <= 0.0:
            continue
        first_row, last_row = max(top, int(np.floor(low))), min(bottom - 1, int(np.floor(high)))
        first_col = max(0, int(np.floor(min(ax, bx, cx))))
        last_col = min(width - 1, int(np.floor(max(ax, bx, cx))))
        inv_a, inv_b, inv_c = 1.0 / depth[a], 1.0 / depth[b], 1.0 / depth[c]
        for row in range(first_row, last_row + 1):
            y = row + 0.5
            for col in range(first_col, last_col + 1):
                x = col + 0.5
                wa = ((bx - x) * (cy - y) - (by - y) * (cx - x)) / area
                wb = ((cx - x) * (ay - y) - (cy - y) * (ax - x)) / area
                wc = 1.0 - wa - wb
                if wa < 0.0 or wb < 0.0 or wc < 0.0:
                    continue
                inverse = wa * inv_a + wb * inv_b + wc * inv_c
                if inverse > zbuffer[row, col]:
                    zbuffer[row, col] = inverse
                    ids[row, col] = f


@cached_njit(parallel=True)
def _fill(points, depth, triangles, ids, zbuffer):
    height = ids.shape[0]
    for band in numba.prange(BANDS):
        _fill_band(points, depth, triangles, band * height // BANDS, (band + 1) * height // BANDS, ids, zbuffer)


def visible_triangles(points: np.ndarray, depth: np.ndarray, triangles: np.ndarray,
                      height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """The front triangle at every pixel centre (column + 0.5, row + 0.5).

    points (V, 2) float32 pixels, depth (V,) float32 metres in front of the camera, triangles (F, 3) int32. Only triangles
    whose corners run anticlockwise on the screen (y down) and lie in front of the camera are drawn. Returns triangle
    numbers (H, W) int32, −1 for none, and inverse depth (H, W) float64 in 1/m, 0 for none; the depth test interpolates
    the inverse depth, since that is linear on the screen.
    """
    ids = np.full((height, width), -1, np.int32)
    zbuffer = np.zeros((height, width))
    _fill(points, depth, triangles, ids, zbuffer)
    return ids, zbuffer


@cached_njit()
def perspective_weights(points, depth, a, b, c, x, y):
    """Perspective-correct weights of the corners a, b, c at the pixel (x, y); they sum to 1."""
    ax, ay, bx, by, cx, cy = points[a, 0], points[a, 1], points[b, 0], points[b, 1], points[c, 0], points[c, 1]
    area = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)
    wa = ((bx - x) * (cy - y) - (by - y) * (cx - x)) / area / depth[a]
    wb = ((cx - x) * (ay - y) - (cy - y) * (ax - x)) / area / depth[b]
    wc = ((ax - x) * (by - y) - (ay - y) * (bx - x)) / area / depth[c]
    total = wa + wb + wc
    return wa / total, wb / total, wc / total


@cached_njit()
def vertex_normals(vertices, triangles):
    """Unit normals (V, 3), the area-weighted mean over the triangles at each vertex; vertices (V, 3)."""
    normals = np.zeros_like(vertices)
    for f in range(triangles.shape[0]):
        a, b, c = triangles[f, 0], triangles[f, 1], triangles[f, 2]
        ux, uy, uz = vertices[b, 0] - vertices[a, 0], vertices[b, 1] - vertices[a, 1], vertices[b, 2] - vertices[a, 2]
        vx, vy, vz = vertices[c, 0] - vertices[a, 0], vertices[c, 1] - vertices[a, 1], vertices[c, 2] - vertices[a, 2]
        nx, ny, nz = uy * vz - uz * vy, uz * vx - ux * vz, ux * vy - uy * vx
        for v in (a, b, c):
            normals[v, 0] += nx
            normals[v, 1] += ny
            normals[v, 2] += nz
    for v in range(normals.shape[0]):
        length = np.sqrt(normals[v, 0] ** 2 + normals[v, 1] ** 2 + normals[v, 2] ** 2) + 1e-20
        normals[v, 0] /= length
        normals[v, 1] /= length
        normals[v, 2] /= length
    return normals
