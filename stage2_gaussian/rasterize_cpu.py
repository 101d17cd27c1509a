"""3D Gaussian splatting on the CPU: forward and backward kernels in numba, the same image as gsplat's.

Projection, blur, culling and blending follow Kerbl et al., "3D Gaussian Splatting", SIGGRAPH 2023, in gsplat 1.5's
conventions: EWA projection with the Jacobian clamped at 1.3 tan(fov/2), 0.3 square pixels of blur, pixel centres at
integer + 0.5, alpha at most 0.999, alpha below 1/255 skipped, and a pixel closed before its transmittance falls to 1e-4.

How it is fast: splats are sorted by depth once and dealt to 16 × 16 tiles by a counting sort; a tile walks its splats
front to back and touches only the rows and the half rows that the splat's 1/255 ellipse reaches; planes of 8 adjacent
pixels vectorise. The backward pass walks the same way again, recomputing alpha, and writes one gradient row per
(tile, splat) pair; those rows are then summed splat by splat, so there are no races and the result does not depend on
the number of threads.
"""

from typing import Any

import numpy as np
import torch
from numba import njit, prange
from torch import Tensor

TILE = 16
LANES = 8
BLUR = np.float32(0.3)
NEAR = np.float32(0.01)
ALPHA_MAX = np.float32(0.999)
ALPHA_MIN = np.float32(1 / 255)
T_STOP = np.float32(1e-4)
GEOMETRY = 6  # gradient columns before the colours: u, v, three of the conic, opacity

_fast: Any = {"fastmath": {"reassoc", "contract", "arcp", "nsz", "nnan"}, "cache": True, "error_model": "numpy"}


@njit(inline="always")
def _exp_negative(s):
    """exp(-s) for s >= 0, float32, relative error below 3e-7: 2**f by a polynomial, 2**i by exponent bits."""
    y = max(s * np.float32(-1.4426950408889634), np.float32(-120))
    i = np.int32(y) - np.int32(1)  # y <= 0, so this is at or below floor(y)
    f = y - np.float32(i) - np.float32(0.5)
    p = np.float32(0.000154653179)
    p = p * f + np.float32(0.00133952854)
    p = p * f + np.float32(0.00961803993)
    p = p * f + np.float32(0.0555034067)
    p = p * f + np.float32(0.240226511)
    p = p * f + np.float32(0.6931472)
    p = p * f + np.float32(1.0)
    return p * np.float32(1.4142135623730951) * np.int32((i + np.int32(127)) << np.int32(23)).view(np.float32)


@njit(parallel=True, **_fast)
def _project(means, quats, scales, opacities, fx, fy, cx, cy, width, height, splats, boxes):
    """Camera-space Gaussians (M, ·) -> splats (M, 7) [u, v, conic a b c, opacity, ln(255 opacity)], tile boxes (M, 4)."""
    limit_left, limit_right = cx / fx + np.float32(0.15) * width / fx, (width - cx) / fx + np.float32(0.15) * width / fx
    limit_up, limit_down = cy / fy + np.float32(0.15) * height / fy, (height - cy) / fy + np.float32(0.15) * height / fy
    tiles_x, tiles_y = (width + TILE - 1) // TILE, (height + TILE - 1) // TILE
    for m in prange(len(means)):
        boxes[m, 0] = boxes[m, 1] = boxes[m, 2] = boxes[m, 3] = 0
        x, y, z = means[m, 0], means[m, 1], means[m, 2]
        opacity = opacities[m]
        if not (z >= NEAR and opacity >= ALPHA_MIN):
            continue
        r = _rotation(quats[m, 0], quats[m, 1], quats[m, 2], quats[m, 3])
        rz = np.float32(1) / z
        tx = min(limit_right, max(-limit_left, x * rz))
        ty = min(limit_down, max(-limit_up, y * rz))
        ju, jv = fx * rz, fy * rz
        xx = yy = BLUR
        xy = np.float32(0)
        for k in range(3):  # covariance = sum over axes of (J R s_k)(J R s_k)^T
            s = scales[m, k]
            pu = ju * (r[k] - tx * r[6 + k]) * s
            pv = jv * (r[3 + k] - ty * r[6 + k]) * s
            xx += pu * pu
            xy += pu * pv
            yy += pv * pv
        determinant = xx * yy - xy * xy
        if not determinant > 0:
            continue
        u, v = fx * x * rz + cx, fy * y * rz + cy
        reach = np.log(opacity / ALPHA_MIN)
        half_x, half_y = np.sqrt(2 * reach * xx), np.sqrt(2 * reach * yy)
        if not (u + half_x > 0 and u - half_x < width and v + half_y > 0 and v - half_y < height):
            continue
        splats[m, 0], splats[m, 1] = u, v
        splats[m, 2], splats[m, 3], splats[m, 4] = yy / determinant, -xy / determinant, xx / determinant
        splats[m, 5], splats[m, 6] = opacity, reach
        boxes[m, 0] = max(0, int(np.floor((u - half_x) / TILE)))
        boxes[m, 1] = min(tiles_x, int(np.floor((u + half_x) / TILE)) + 1)
        boxes[m, 2] = max(0, int(np.floor((v - half_y) / TILE)))
        boxes[m, 3] = min(tiles_y, int(np.floor((v + half_y) / TILE)) + 1)


@njit(inline="always")
def _rotation(w, x, y, z):
    """Quaternion, normalised here -> the nine entries of its rotation matrix, row by row."""
    n = np.float32(1) / np.sqrt(w * w + x * x + y * y + z * z)
    w, x, y, z = w * n, x * n, y * n, z * n
    one, two = np.float32(1), np.float32(2)
    return (
        one - two * (y * y + z * z), two * (x * y - w * z), two * (x * z + w * y),
        two * (x * y + w * z), one - two * (x * x + z * z), two * (y * z - w * x),
        two * (x * z - w * y), two * (y * z + w * x), one - two * (x * x + y * y),
    )


@njit(**_fast)
def _bin(order, boxes, count, tiles_x, tiles):
    """Deal splats to tiles, nearest first.

    order (B, count): each image's splats by depth; boxes (B·count, 4). Returns start (B·tiles + 1,) of each tile's run,
    splat (I,) and pair (I,) in tile order, and first (B·count + 1,) so that the pairs of splat m are first[m]:first[m+1].
    """
    images = len(order)
    first = np.zeros(images * count + 1, np.int64)
    start = np.zeros(images * tiles + 1, np.int64)
    for m in range(images * count):
        base = (m // count) * tiles
        for ty in range(boxes[m, 2], boxes[m, 3]):
            for tx in range(boxes[m, 0], boxes[m, 1]):
                start[base + ty * tiles_x + tx + 1] += 1
        first[m + 1] = first[m] + (boxes[m, 1] - boxes[m, 0]) * (boxes[m, 3] - boxes[m, 2])
    for t in range(images * tiles):
        start[t + 1] += start[t]
    cursor = start.copy()
    splat = np.empty(start[-1], np.int32)
    pair = np.empty(start[-1], np.int32)
    for b in range(images):
        for k in range(count):
            m = b * count + order[b, k]
            p = first[m]
            for ty in range(boxes[m, 2], boxes[m, 3]):
                for tx in range(boxes[m, 0], boxes[m, 1]):
                    t = b * tiles + ty * tiles_x + tx
                    splat[cursor[t]] = m
                    pair[cursor[t]] = p
                    cursor[t] += 1
                    p += 1
    return start, splat, pair, first


@njit(inline="always")
def _rows(s, y0):
    """First and one past the last row of the tile at row y0 whose pixel centres the splat's ellipse reaches."""
    half = np.sqrt(np.float32(2) * s[6] * s[2] / (s[2] * s[4] - s[3] * s[3]))
    top = max(0, int(np.ceil(s[1] - half - np.float32(0.5))) - y0)
    bottom = min(TILE, int(np.floor(s[1] + half - np.float32(0.5))) - y0 + 1)
    return top, bottom


@njit(inline="always")
def _lanes(s, dy, x0):
    """First and one past the last group of LANES pixels, of the tile at column x0, that the ellipse reaches in this row."""
    middle = s[0] + s[3] * dy / s[2]
    inside = np.float32(2) * s[6] / s[2] - (s[4] - s[3] * s[3] / s[2]) / s[2] * dy * dy
    half = np.sqrt(max(inside, np.float32(0)))
    left = max(0, int(np.ceil(middle - half - np.float32(0.5))) - x0)
    right = min(TILE - 1, int(np.floor(middle + half - np.float32(0.5))) - x0)
    return left // LANES, right // LANES + 1 if right >= left else 0


@njit(parallel=True, **_fast)
def _forward(lanes, start, splat, splats, colors, tiles_x, tiles, image, transmittance, scratch):
    """Blend every tile. image (B, C, Hp, Wp) zeros and transmittance (B, Hp, Wp) ones, both padded to whole tiles.

    A closed pixel's transmittance is stored negated. lanes is LANES, passed at run time because LLVM unrolls a short loop
    of constant length instead of vectorising it.
    """
    channels = colors.shape[1]
    for t in prange(len(start) - 1):
        b, tile = t // tiles, t % tiles
        y0, x0 = tile // tiles_x * TILE, tile % tiles_x * TILE
        weight = scratch[t]
        for k in range(start[t], start[t + 1]):
            if (k - start[t]) % LANES == LANES - 1 and _closed(transmittance[b], y0, x0):
                break
            m = splat[k]
            s = splats[m]
            u, opacity, half_a = s[0], s[5], np.float32(0.5) * s[2]
            top, bottom = _rows(s, y0)
            for row in range(top, bottom):
                dy = s[1] - (np.float32(y0 + row) + np.float32(0.5))
                cross, square = s[3] * dy, np.float32(0.5) * s[4] * dy * dy
                first, last = _lanes(s, dy, x0)
                for lane in range(first, last):
                    left = x0 + lane * LANES
                    through = transmittance[b, y0 + row, left : left + LANES]
                    offset = u - np.float32(left) - np.float32(0.5)
                    for i in range(lanes):
                        dx = offset - np.float32(i)
                        sigma = (half_a * dx + cross) * dx + square
                        alpha = min(ALPHA_MAX, opacity * _exp_negative(max(sigma, np.float32(0))))
                        alpha = alpha if alpha >= ALPHA_MIN else np.float32(0)
                        before = through[i]
                        after = before * (np.float32(1) - alpha)
                        weight[i] = alpha * before if after > T_STOP else np.float32(0)
                        through[i] = after if after > T_STOP else -abs(before)
                    for c in range(channels):
                        color = colors[m, c]
                        plane = image[b, c, y0 + row, left : left + LANES]
                        for i in range(lanes):
                            plane[i] += weight[i] * color


@njit(inline="always")
def _closed(transmittance, y0, x0):
    """True when every pixel of the tile is closed."""
    most = np.float32(-1)
    for row in range(TILE):
        line = transmittance[y0 + row, x0 : x0 + TILE]
        for i in range(TILE):
            most = max(most, line[i])
    return most < 0


@njit(parallel=True, **_fast)
def _backward(lanes, start, splat, pair, splats, colors, tiles_x, tiles, grad_image, grad_alpha, remaining, transmittance,
              scratch, pair_grad):
    """Gradients of each (tile, splat) pair -> pair_grad (I, 6 + C).

    remaining (B, Hp, Wp) enters as sum_c image·grad_image + alpha·grad_alpha and is used up front to back: what is left
    of it behind a splat is the part of the loss that the splat's alpha dims. transmittance (B, Hp, Wp) enters as ones.
    """
    channels = colors.shape[1]
    for t in prange(len(start) - 1):
        b, tile = t // tiles, t % tiles
        y0, x0 = tile // tiles_x * TILE, tile % tiles_x * TILE
        weight, sensitivity = scratch[t, :LANES], scratch[t, LANES:]
        for k in range(start[t], start[t + 1]):
            out = pair_grad[pair[k]]
            if (k - start[t]) % LANES == LANES - 1 and _closed(transmittance[b], y0, x0):
                break
            m = splat[k]
            s = splats[m]
            u, opacity, half_a = s[0], s[5], np.float32(0.5) * s[2]
            sum_u = sum_v = sum_a = sum_b = sum_c = sum_o = np.float32(0)
            top, bottom = _rows(s, y0)
            for row in range(top, bottom):
                dy = s[1] - (np.float32(y0 + row) + np.float32(0.5))
                cross, square = s[3] * dy, np.float32(0.5) * s[4] * dy * dy
                first, last = _lanes(s, dy, x0)
                for lane in range(first, last):
                    left = x0 + lane * LANES
                    through = transmittance[b, y0 + row, left : left + LANES]
                    rest = remaining[b, y0 + row, left : left + LANES]
                    offset = u - np.float32(left) - np.float32(0.5)
                    plane = grad_alpha[b, y0 + row, left : left + LANES]
                    for i in range(lanes):
                        sensitivity[i] = plane[i]
                    for c in range(channels):
                        color = colors[m, c]
                        plane = grad_image[b, c, y0 + row, left : left + LANES]
                        for i in range(lanes):
                            sensitivity[i] += plane[i] * color
                    for i in range(lanes):
                        dx = offset - np.float32(i)
                        sigma = (half_a * dx + cross) * dx + square
                        fall = _exp_negative(max(sigma, np.float32(0)))
                        raw = opacity * fall
                        alpha = min(ALPHA_MAX, raw)
                        alpha = alpha if raw >= ALPHA_MIN else np.float32(0)
                        before = through[i]
                        after = before * (np.float32(1) - alpha)
                        live = after > T_STOP
                        w = alpha * before if live else np.float32(0)
                        weight[i] = w
                        through[i] = after if live else -abs(before)
                        behind = rest[i] - w * sensitivity[i]
                        rest[i] = behind
                        d_alpha = before * sensitivity[i] - behind / (np.float32(1) - alpha)
                        d_alpha = d_alpha if live and raw >= ALPHA_MIN and raw <= ALPHA_MAX else np.float32(0)
                        sum_o += d_alpha * fall
                        d_sigma = -raw * d_alpha
                        sum_u += d_sigma * (np.float32(2) * half_a * dx + cross)
                        sum_v += d_sigma * (s[3] * dx + s[4] * dy)
                        sum_a += d_sigma * dx * dx
                        sum_b += d_sigma * dx * dy
                        sum_c += d_sigma * dy * dy
                    for c in range(channels):
                        plane = grad_image[b, c, y0 + row, left : left + LANES]
                        total = np.float32(0)
                        for i in range(lanes):
                            total += weight[i] * plane[i]
                        out[GEOMETRY + c] += total
            out[0], out[1], out[2], out[3] = sum_u, sum_v, np.float32(0.5) * sum_a, sum_b
            out[4], out[5] = np.float32(0.5) * sum_c, sum_o


@njit(parallel=True, **_fast)
def _project_backward(means, quats, scales, fx, fy, cx, cy, width, height, splats, first, pair_grad, grad_means,
                      grad_quats, grad_scales, grad_opacities, grad_colors):
    """Sum the pairs of each splat and carry the sums through the projection. All outputs enter as zeros."""
    limit_left, limit_right = cx / fx + np.float32(0.15) * width / fx, (width - cx) / fx + np.float32(0.15) * width / fx
    limit_up, limit_down = cy / fy + np.float32(0.15) * height / fy, (height - cy) / fy + np.float32(0.15) * height / fy
    channels = grad_colors.shape[1]
    for m in prange(len(means)):
        if first[m] == first[m + 1]:
            continue
        gu = gv = ga = gb = gc = go = np.float32(0)
        for p in range(first[m], first[m + 1]):
            gu += pair_grad[p, 0]
            gv += pair_grad[p, 1]
            ga += pair_grad[p, 2]
            gb += pair_grad[p, 3]
            gc += pair_grad[p, 4]
            go += pair_grad[p, 5]
            for c in range(channels):
                grad_colors[m, c] += pair_grad[p, GEOMETRY + c]
        grad_opacities[m] = go
        # conic = covariance^-1, so d covariance = -conic G conic with G = [[ga, gb/2], [gb/2, gc]]
        a, b, c2 = splats[m, 2], splats[m, 3], splats[m, 4]
        h = np.float32(0.5) * gb
        p00, p01 = a * ga + b * h, a * h + b * gc
        p10, p11 = b * ga + c2 * h, b * h + c2 * gc
        vxx = -(p00 * a + p01 * b)
        vxy = -(p00 * b + p01 * c2)
        vyy = -(p10 * b + p11 * c2)
        x, y, z = means[m, 0], means[m, 1], means[m, 2]
        rz = np.float32(1) / z
        qw, qx, qy, qz = quats[m, 0], quats[m, 1], quats[m, 2], quats[m, 3]
        r = _rotation(qw, qx, qy, qz)
        free_x = -limit_left < x * rz < limit_right
        free_y = -limit_up < y * rz < limit_down
        tx = min(limit_right, max(-limit_left, x * rz))
        ty = min(limit_down, max(-limit_up, y * rz))
        ju, jv = fx * rz, fy * rz
        g_ju = g_jv = g_tx = g_ty = np.float32(0)
        # gradient of the rotation matrix, row by row
        g00 = g01 = g02 = g10 = g11 = g12 = g20 = g21 = g22 = np.float32(0)
        for k in range(3):
            s = scales[m, k]
            du, dv = r[k] - tx * r[6 + k], r[3 + k] - ty * r[6 + k]
            pu, pv = ju * du * s, jv * dv * s
            g_pu = np.float32(2) * (vxx * pu + vxy * pv)
            g_pv = np.float32(2) * (vxy * pu + vyy * pv)
            grad_scales[m, k] = g_pu * ju * du + g_pv * jv * dv
            g_ju += g_pu * du * s
            g_jv += g_pv * dv * s
            g_du, g_dv = g_pu * ju * s, g_pv * jv * s
            g_tx -= g_du * r[6 + k]
            g_ty -= g_dv * r[6 + k]
            g_third = -(tx * g_du + ty * g_dv)
            if k == 0:
                g00, g10, g20 = g_du, g_dv, g_third
            elif k == 1:
                g01, g11, g21 = g_du, g_dv, g_third
            else:
                g02, g12, g22 = g_du, g_dv, g_third
        g_x = gu * ju + (g_tx * rz if free_x else np.float32(0))
        g_y = gv * jv + (g_ty * rz if free_y else np.float32(0))
        g_z = -rz * (gu * ju * x + gv * jv * y) - rz * (g_ju * ju + g_jv * jv)
        g_z -= (g_tx * x * rz * rz if free_x else np.float32(0)) + (g_ty * y * rz * rz if free_y else np.float32(0))
        grad_means[m, 0], grad_means[m, 1], grad_means[m, 2] = g_x, g_y, g_z
        n = np.float32(1) / np.sqrt(qw * qw + qx * qx + qy * qy + qz * qz)
        w, i, j, l = qw * n, qx * n, qy * n, qz * n
        two, four = np.float32(2), np.float32(4)
        gw = two * (i * (g21 - g12) + j * (g02 - g20) + l * (g10 - g01))
        gi = two * (w * (g21 - g12) + j * (g01 + g10) + l * (g02 + g20)) - four * i * (g11 + g22)
        gj = two * (w * (g02 - g20) + i * (g01 + g10) + l * (g12 + g21)) - four * j * (g00 + g22)
        gl = two * (w * (g10 - g01) + i * (g02 + g20) + j * (g12 + g21)) - four * l * (g00 + g11)
        along = gw * w + gi * i + gj * j + gl * l
        grad_quats[m, 0], grad_quats[m, 1] = n * (gw - along * w), n * (gi - along * i)
        grad_quats[m, 2], grad_quats[m, 3] = n * (gj - along * j), n * (gl - along * l)


class _Rasterize(torch.autograd.Function):
    @staticmethod
    def forward(ctx, means, quats, scales, opacities, colors, camera, width, height):
        images, count, channels = colors.shape
        flat = [np.ascontiguousarray(x.detach().numpy().reshape(images * count, *x.shape[2:]), np.float32)
                for x in (means, quats, scales, opacities, colors)]
        fx, fy, cx, cy = (np.float32(value) for value in camera)
        tiles_x, tiles_y = -(-width // TILE), -(-height // TILE)
        tiles = tiles_x * tiles_y
        splats = np.empty((images * count, 7), np.float32)
        boxes = np.empty((images * count, 4), np.int32)
        _project(*flat[:4], fx, fy, cx, cy, width, height, splats, boxes)
        order = np.argsort(flat[0][:, 2].reshape(images, count), axis=1, kind="stable")
        start, splat, pair, first = _bin(order, boxes, count, tiles_x, tiles)
        image = np.zeros((images, channels, tiles_y * TILE, tiles_x * TILE), np.float32)
        transmittance = np.ones((images, tiles_y * TILE, tiles_x * TILE), np.float32)
        scratch = np.empty((images * tiles, 2 * LANES), np.float32)
        _forward(LANES, start, splat, splats, flat[4], tiles_x, tiles, image, transmittance, scratch)
        alpha = np.float32(1) - np.abs(transmittance)
        ctx.saved = (flat, (fx, fy, cx, cy), splats, start, splat, pair, first, image, alpha, scratch)
        rgb = torch.from_numpy(image)[:, :, :height, :width].permute(0, 2, 3, 1)
        return rgb.contiguous(), torch.from_numpy(alpha)[:, :height, :width, None].contiguous()

    @staticmethod
    def backward(ctx, grad_rgb, grad_alpha):
        flat, camera, splats, start, splat, pair, first, image, alpha, scratch = ctx.saved
        images, height, width, channels = grad_rgb.shape
        count = len(flat[0]) // images
        tiles_x, tiles = image.shape[3] // TILE, (len(start) - 1) // images
        grad_image = np.zeros_like(image)
        grad_image[:, :, :height, :width] = grad_rgb.permute(0, 3, 1, 2).numpy()
        grad_plane = np.zeros_like(alpha)
        grad_plane[:, :height, :width] = grad_alpha[..., 0].numpy()
        remaining = np.einsum("bchw,bchw->bhw", image, grad_image) + alpha * grad_plane
        pair_grad = np.zeros((len(pair), GEOMETRY + channels), np.float32)
        _backward(LANES, start, splat, pair, splats, flat[4], tiles_x, tiles, grad_image, grad_plane, remaining,
                  np.ones_like(alpha), scratch, pair_grad)
        grads = [np.zeros_like(x) for x in flat]
        _project_backward(*flat[:3], *camera, width, height, splats, first, pair_grad, *grads)
        shaped = [torch.from_numpy(g).reshape(images, count, *g.shape[1:]) for g in grads]
        return (*shaped, None, None, None)


def rasterize_cpu(means: Tensor, quats: Tensor, scales: Tensor, opacities: Tensor, colors: Tensor,
                  intrinsics: tuple[float, ...], width: int, height: int) -> tuple[Tensor, Tensor]:
    """Splat B images of N Gaussians each on the CPU; arguments and results as in `rasterize.rasterize`, float32."""
    return _Rasterize.apply(means, quats, scales, opacities, colors, intrinsics, width, height)
