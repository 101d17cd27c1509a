"""3D Gaussian splatting on the CPU: forward and backward kernels in numba, the same image as gsplat's.

Projection, blur, culling and blending follow Kerbl et al., "3D Gaussian Splatting", SIGGRAPH 2023, in gsplat 1.5's
conventions: EWA projection with the Jacobian clamped at 1.3 tan(fov/2), 0.3 square pixels of blur, pixel centres at
integer + 0.5, alpha at most 0.999, alpha below 1/255 skipped, and a pixel closed before its transmittance falls to 1e-4.

How it is fast: splats are sorted by depth once (radix) and dealt to 16 × 16 tiles by a counting sort. A tile takes its
splats front to back, 64 at a time; it first finds which of its 32 blocks of 4 × 2 pixels each one's 1/255 ellipse
touches, then walks block by block through the splats that touch the block, so that the eight pixels' colours and
transmittances stay in SIMD registers and a closed block stops at once. Threads take tiles as they become free. The
backward pass walks the same way again, recomputing alpha, and writes one gradient row per (tile, splat) pair; those rows
are then summed splat by splat, so there are no races and the result does not depend on the number of threads.
"""

from typing import Any

import numba
import numpy as np
import torch
import torch.nn.functional as F
from numba import njit, prange
from torch import Tensor

from shared.compiled import cached_njit
from stage2_gaussian.rasterize.simd import (
    LANES,
    any_lane,
    bit_lanes,
    broadcast,
    load,
    lowest_bit,
    next_task,
    no_bits,
    square_root,
    store,
    total,
    where,
)

TILE = 16
BLOCKS = TILE * TILE // LANES  # of a tile, each 4 pixels wide and 2 high, numbered down its 8 rows, then across
PLANE = BLOCKS * LANES  # floats of one plane of a tile, block by block
CHUNK = 64  # splats that a tile takes at a time: the bits of a word
CHANNELS = 3
BLUR = np.float32(0.3)
NEAR = np.float32(0.01)
ALPHA_MAX = np.float32(0.999)
ALPHA_MIN = np.float32(1 / 255)
T_STOP = np.float32(1e-4)
LOG2_E_8 = np.float32(1.4426950408889634 / 8)
LEAST = np.float32(np.log2(1 / 255) / 8)
# 2**e for -1 <= e <= 0 by a polynomial, to a relative 8e-8; its eighth power is alpha, to 3e-6
C0, C1, C2, C3, C4, C5 = 0.999999925, 0.693142253, 0.240172189, 0.055279722, 0.009188611, 0.000938788
MARGIN = np.float32(1e-3)  # of ln(opacity / ALPHA_MIN), so that rounding never leaves a touched block out

# Columns of a splat's record. log2(alpha) / 8 = LOG_OPACITY - (A dx² + B dx dy + C dy²), (dx, dy) from pixel to centre. In
# row dy the ellipse reaches sqrt(WIDE - NARROW dy²) to both sides of U + SLOPE dy; its rightmost point is at dy = TIP.
U, V, A, B, C, LOG_OPACITY, COLOR, SLOPE, WIDE, NARROW, TIP, RECORD = 0, 1, 2, 3, 4, 5, 6, 9, 10, 11, 12, 16
SUMS = 9  # gradient columns of a pair: d = -d loss / d sigma summed as it is and times dx, dy, dx², dx dy, dy²; colours

STRIPS = 2  # that an image's rows of tiles are cut into, to deal splats to in parallel
RADIX_BITS = 12  # that one pass of the sort by depth looks at
GRID = np.array([  # pixel centres within a block: x, y; and the first of each of a tile's 8 pairs of rows
    [0.5, 1.5, 2.5, 3.5, 0.5, 1.5, 2.5, 3.5],
    [0.5, 0.5, 0.5, 0.5, 1.5, 1.5, 1.5, 1.5],
    [0.5, 2.5, 4.5, 6.5, 8.5, 10.5, 12.5, 14.5],
], np.float32)

_fast: Any = {"fastmath": {"reassoc", "contract", "arcp", "nsz", "nnan"}, "error_model": "numpy"}
_sees_nan: Any = {**_fast, "fastmath": _fast["fastmath"] - {"nnan"}}


@cached_njit(parallel=True, **_sees_nan)
def _project(means, quats, scales, opacities, colors, fx, fy, cx, cy, width, height, records, boxes, keys):
    """Camera-space Gaussians (M, ·) -> records (M, RECORD), tile boxes (M, 4) and depth keys (M,), 0 where not in view."""
    limit_left, limit_right = cx / fx + np.float32(0.15) * width / fx, (width - cx) / fx + np.float32(0.15) * width / fx
    limit_up, limit_down = cy / fy + np.float32(0.15) * height / fy, (height - cy) / fy + np.float32(0.15) * height / fy
    half = np.float32(0.5)
    for m in prange(len(means)):
        boxes[m, 0] = boxes[m, 1] = boxes[m, 2] = boxes[m, 3] = 0
        keys[m] = 0
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
        log_opacity = np.log(opacity)
        reach = np.float32(2) * (log_opacity - np.log(ALPHA_MIN) + MARGIN)
        half_x, half_y = np.sqrt(reach * xx), np.sqrt(reach * yy)
        if not (u + half_x > 0 and u - half_x < width and v + half_y > 0 and v - half_y < height):
            continue
        # first and last column and row of pixel centres within reach
        left, right = max(np.ceil(u - half_x - half), np.float32(0)), min(np.floor(u + half_x - half), np.float32(width - 1))
        up, down = max(np.ceil(v - half_y - half), np.float32(0)), min(np.floor(v + half_y - half), np.float32(height - 1))
        if left > right or up > down:
            continue
        inverse = np.float32(1) / determinant
        records[m, U], records[m, V] = u, v
        records[m, A], records[m, C] = half * LOG2_E_8 * yy * inverse, half * LOG2_E_8 * xx * inverse
        records[m, B] = -LOG2_E_8 * xy * inverse
        records[m, LOG_OPACITY] = LOG2_E_8 * log_opacity
        for c in range(CHANNELS):
            records[m, COLOR + c] = colors[m, c]
        records[m, SLOPE] = -xy / yy
        records[m, WIDE], records[m, NARROW] = reach * determinant / yy, determinant / (yy * yy)
        records[m, TIP] = -xy / xx * half_x
        boxes[m, 0], boxes[m, 1] = int(left) // TILE, int(right) // TILE + 1
        boxes[m, 2], boxes[m, 3] = int(up) // TILE, int(down) // TILE + 1
        keys[m] = np.float32(z).view(np.uint32)


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


@cached_njit(**_fast)
def _sort_and_count(keys, boxes, tiles_x, order, visible, counts):
    """keys (B, N) and boxes (B, N, 4) -> order (B, N) with visible (B,) as in `_sort`, counts (B, tiles) as in `_count`."""
    for b in range(len(keys)):
        visible[b] = _sort(keys[b], order[b])
        _count(boxes[b], tiles_x, counts[b])


@cached_njit(parallel=True, **_fast)
def _deal(order, visible, boxes, tiles_x, tiles, cursor, splat):
    """Write the indices in (B·N,) of each tile's splats into splat (I,), tile by tile, nearest first.

    cursor (B, tiles) enters as the beginning of each tile's run, and is used up.
    """
    count = order.shape[1]
    for task in prange(STRIPS * len(order)):
        b, strip = task // STRIPS, task % STRIPS
        top, bottom = strip * (tiles // tiles_x) // STRIPS, (strip + 1) * (tiles // tiles_x) // STRIPS
        for k in range(visible[b]):
            m = order[b, k]
            left, right = boxes[b, m, 0], boxes[b, m, 1]
            for ty in range(max(boxes[b, m, 2], top), min(boxes[b, m, 3], bottom)):
                for t in range(ty * tiles_x + left, ty * tiles_x + right):
                    splat[cursor[b, t]] = b * count + m
                    cursor[b, t] += 1


@cached_njit(**_fast)
def _count(boxes, tiles_x, counts):
    """counts (tiles,) = how many boxes (N, 4) cover each tile: the sums, along x and y, of signs at their corners."""
    columns, rows = tiles_x + 1, len(counts) // tiles_x + 1
    corners = np.zeros(rows * columns, np.int32)
    for m in range(len(boxes)):
        left, right = boxes[m, 0], boxes[m, 1]
        top, bottom = boxes[m, 2] * columns, boxes[m, 3] * columns
        corners[top + left] += 1
        corners[top + right] -= 1
        corners[bottom + left] -= 1
        corners[bottom + right] += 1
    above = np.zeros(tiles_x, np.int64)
    for y in range(rows - 1):
        running = 0
        for x in range(tiles_x):
            running += corners[y * columns + x]
            above[x] += running
            counts[y * tiles_x + x] = above[x]


@cached_njit(**_fast)
def _sort(keys, order):
    """Stable radix sort: order[:n] = the indices of the n nonzero keys (N,) uint32, by key. Returns n."""
    low, high = np.uint32(0xFFFFFFFF), np.uint32(0)
    for key in keys:
        if key:
            low, high = min(low, key), max(high, key)
    source, target = np.empty(len(keys), np.uint64), np.empty(len(keys), np.uint64)
    n = 0
    for m in range(len(keys)):
        if keys[m]:
            source[n] = np.uint64(keys[m] - low) << np.uint64(32) | np.uint64(m)
            n += 1
    mask = np.uint64((1 << RADIX_BITS) - 1)
    shift = 0
    while n and (high - low) >> shift:
        begin = np.zeros(1 << RADIX_BITS, np.int64)
        place = np.uint64(32 + shift)
        for k in range(n):
            begin[np.int64((source[k] >> place) & mask)] += 1
        running = 0
        for digit in range(1 << RADIX_BITS):
            running, begin[digit] = running + begin[digit], running
        for k in range(n):
            digit = np.int64((source[k] >> place) & mask)
            target[begin[digit]] = source[k]
            begin[digit] += 1
        source, target = target, source
        shift += RADIX_BITS
    for k in range(n):
        order[k] = np.int32(source[k] & np.uint64(0xFFFFFFFF))
    return n


@cached_njit(**_fast)
def _touch(records, splat, begin, count, x0, y0, words):
    """Which of a tile's blocks each of the splats splat[begin : begin + count] reaches.

    Bit k % 32 of words[k // 32 · BLOCKS + block] is set for splat begin + k.
    """
    rows = load(GRID, 2 * LANES) + y0
    for word in range(CHUNK // 32):
        column_0 = column_1 = column_2 = column_3 = no_bits()
        for k in range(32 * word, min(count, 32 * word + 32)):
            p = splat[begin + k] * RECORD
            u, v = broadcast(records, p + U) - x0, broadcast(records, p + V)
            slope, tip = broadcast(records, p + SLOPE), broadcast(records, p + TIP)
            wide, narrow = broadcast(records, p + WIDE), broadcast(records, p + NARROW)
            high = v - rows
            low = high - 1.0
            dy = _clamp(tip, low, high)
            right = u + slope * dy + square_root(wide - narrow * dy * dy)  # NaN where the ellipse does not reach the rows
            dy = _clamp(0.0 - tip, low, high)
            left = u + slope * dy - square_root(wide - narrow * dy * dy)
            bit = bit_lanes(k - 32 * word)
            column_0 = column_0 | where((left <= 3.5) & (right >= 0.5), bit, 0)
            column_1 = column_1 | where((left <= 7.5) & (right >= 4.5), bit, 0)
            column_2 = column_2 | where((left <= 11.5) & (right >= 8.5), bit, 0)
            column_3 = column_3 | where((left <= 15.5) & (right >= 12.5), bit, 0)
        store(words, word * BLOCKS, column_0)
        store(words, word * BLOCKS + LANES, column_1)
        store(words, word * BLOCKS + 2 * LANES, column_2)
        store(words, word * BLOCKS + 3 * LANES, column_3)


@njit(inline="always")
def _clamp(x, low, high):
    x = where(x < low, low, x)
    return where(x > high, high, x)


@njit(inline="always")
def _alpha(records, p, px, py):
    """Alpha of the splat with record p at eight pixels, before the cap of ALPHA_MAX, 0 below ALPHA_MIN; and dx, dy."""
    dx, dy = broadcast(records, p + U) - px, broadcast(records, p + V) - py
    slant = broadcast(records, p + A) * dx + broadcast(records, p + B) * dy
    e = broadcast(records, p + LOG_OPACITY) - broadcast(records, p + C) * dy * dy - slant * dx
    square = e * e
    root = (C0 + C1 * e) + square * ((C2 + C3 * e) + square * (C4 + C5 * e))
    root = root * root
    root = root * root
    return where(e >= LEAST, root * root, 0.0), dx, dy


@cached_njit(parallel=True, **_fast)
def _forward(start, splat, records, tiles_x, tiles, counter, scratch, scratch_words, rgb, alpha):
    """Blend every tile. rgb (B, H, W, 3) and alpha (B, H, W, 1) enter as zeros; counter (1,) zero; scratch one row a thread.

    A closed pixel's transmittance is set to 0.
    """
    height, width = rgb.shape[1:3]
    for worker in prange(len(scratch)):
        planes, words = scratch[worker], scratch_words[worker]
        while True:
            t = next_task(counter)
            if t >= len(start) - 1:
                break
            b, y0, x0 = t // tiles, t % tiles // tiles_x * TILE, t % tiles % tiles_x * TILE
            if start[t] == start[t + 1]:
                continue
            _open(planes, 5, x0, y0, width, height)
            closed = np.uint64(0)
            for begin in range(start[t], start[t + 1], CHUNK):
                _touch(records, splat, begin, min(CHUNK, start[t + 1] - begin), x0, y0, words)
                for block in range(BLOCKS):
                    bits = np.uint64(words[block]) | np.uint64(words[BLOCKS + block]) << np.uint64(32)
                    if bits and not (closed >> np.uint64(block)) & np.uint64(1):
                        px, py = _pixels(block, x0, y0)
                        if not _blend(records, splat, begin, bits, px, py, planes, block * LANES):
                            closed |= np.uint64(1) << np.uint64(block)
                if closed == np.uint64(0xFFFFFFFF):
                    break
            _write(planes, rgb, alpha, b, y0, x0)


@cached_njit(**_fast)
def _write(planes, rgb, alpha, b, y0, x0):
    """Copy the colours and alpha of the tile at (x0, y0) to image b of rgb (B, H, W, 3) and alpha (B, H, W, 1)."""
    for y in range(y0, min(y0 + TILE, rgb.shape[1])):
        for x in range(x0, min(x0 + TILE, rgb.shape[2])):
            at = _at(x - x0, y - y0)
            for c in range(CHANNELS):
                rgb[b, y, x, c] = planes[(1 + c) * PLANE + at]
            alpha[b, y, x, 0] = planes[4 * PLANE + at]


@cached_njit(**_fast)
def _blend(records, splat, begin, bits, px, py, planes, at):
    """Put the splats begin + k, for each set bit k, on the block at `at` of the planes transmittance, red, green, blue, alpha.

    Returns False once every pixel is closed.
    """
    through, red = load(planes, at), load(planes, PLANE + at)
    green, blue = load(planes, 2 * PLANE + at), load(planes, 3 * PLANE + at)
    opaque = load(planes, 4 * PLANE + at)
    while bits:
        p = splat[begin + lowest_bit(bits)] * RECORD
        bits &= bits - np.uint64(1)
        alpha, _, _ = _alpha(records, p, px, py)
        alpha = where(alpha < ALPHA_MAX, alpha, ALPHA_MAX)
        weight = alpha * through
        after = through - weight
        stays = after > T_STOP
        weight = where(stays, weight, 0.0)
        through = where(stays, after, 0.0)
        red = red + weight * broadcast(records, p + COLOR)
        green = green + weight * broadcast(records, p + COLOR + 1)
        blue = blue + weight * broadcast(records, p + COLOR + 2)
        opaque = opaque + weight
    store(planes, at, through)
    store(planes, PLANE + at, red)
    store(planes, 2 * PLANE + at, green)
    store(planes, 3 * PLANE + at, blue)
    store(planes, 4 * PLANE + at, opaque)
    return any_lane(through > 0.0)


@njit(inline="always")
def _at(x, y):
    """Place in a plane of the tile's pixel in column x and row y."""
    return (x & ~3) * 2 * LANES + (y & ~1) * 4 + (y & 1) * 4 + (x & 3)


@cached_njit(**_fast)
def _open(planes, count, x0, y0, width, height):
    """Set a tile's transmittances, the first of `count` planes, to 1 in the image and to 0, closed, outside; the rest to 0."""
    for block in range(BLOCKS):
        px, py = _pixels(block, x0, y0)
        store(planes, block * LANES, where((px < width) & (py < height), 1.0, 0.0))
    for i in range(PLANE, count * PLANE):
        planes[i] = 0


@njit(inline="always")
def _pixels(block, x0, y0):
    """Columns and rows of the centres of a block's pixels."""
    return load(GRID, 0) + (x0 + block // 8 * 4), load(GRID, LANES) + (y0 + block % 8 * 2)


@cached_njit(parallel=True, **_fast)
def _backward(start, splat, pair, records, tiles_x, tiles, counter, scratch, scratch_words, rgb, alpha, grad_rgb,
              grad_alpha, pair_grad):
    """Gradients of each (tile, splat) pair -> pair_grad (I, SUMS), zeros on entry. Other arguments as in `_forward`.

    The second plane enters as sum_c rgb·grad_rgb + alpha·grad_alpha and is used up front to back: what is left of it
    behind a splat is the part of the loss that the splat's alpha dims.
    """
    height, width = rgb.shape[1:3]
    for worker in prange(len(scratch)):
        planes, words = scratch[worker], scratch_words[worker]
        sums = planes[6 * PLANE :]
        while True:
            t = next_task(counter)
            if t >= len(start) - 1:
                break
            b, y0, x0 = t // tiles, t % tiles // tiles_x * TILE, t % tiles % tiles_x * TILE
            _open(planes, 6, x0, y0, width, height)
            _read(planes, rgb, alpha, grad_rgb, grad_alpha, b, y0, x0)
            closed = np.uint64(0)
            for begin in range(start[t], start[t + 1], CHUNK):
                count = min(CHUNK, start[t + 1] - begin)
                _touch(records, splat, begin, count, x0, y0, words)
                for i in range(count * SUMS * LANES):
                    sums[i] = 0
                for block in range(BLOCKS):
                    bits = np.uint64(words[block]) | np.uint64(words[BLOCKS + block]) << np.uint64(32)
                    if bits and not (closed >> np.uint64(block)) & np.uint64(1):
                        px, py = _pixels(block, x0, y0)
                        if not _blend_backward(records, splat, begin, bits, px, py, planes, block * LANES, sums):
                            closed |= np.uint64(1) << np.uint64(block)
                for k in range(count):
                    for j in range(SUMS):
                        pair_grad[pair[begin + k], j] = total(load(sums, (k * SUMS + j) * LANES))
                if closed == np.uint64(0xFFFFFFFF):
                    break


@cached_njit(**_fast)
def _read(planes, rgb, alpha, grad_rgb, grad_alpha, b, y0, x0):
    """Fill the planes after the first of a tile: see `_backward`; then the gradients of alpha, red, green and blue."""
    for y in range(y0, min(y0 + TILE, rgb.shape[1])):
        for x in range(x0, min(x0 + TILE, rgb.shape[2])):
            at = _at(x - x0, y - y0)
            rest = alpha[b, y, x, 0] * grad_alpha[b, y, x, 0]
            planes[2 * PLANE + at] = grad_alpha[b, y, x, 0]
            for c in range(CHANNELS):
                rest += rgb[b, y, x, c] * grad_rgb[b, y, x, c]
                planes[(3 + c) * PLANE + at] = grad_rgb[b, y, x, c]
            planes[PLANE + at] = rest


@cached_njit(**_fast)
def _blend_backward(records, splat, begin, bits, px, py, planes, at, sums):
    """As `_blend`, adding each splat's gradients to sums (CHUNK · SUMS · LANES,), lane by lane."""
    through, rest = load(planes, at), load(planes, PLANE + at)
    grad_alpha, grad_red = load(planes, 2 * PLANE + at), load(planes, 3 * PLANE + at)
    grad_green, grad_blue = load(planes, 4 * PLANE + at), load(planes, 5 * PLANE + at)
    while bits:
        k = lowest_bit(bits)
        p = splat[begin + k] * RECORD
        bits &= bits - np.uint64(1)
        raw, dx, dy = _alpha(records, p, px, py)
        capped = raw > ALPHA_MAX
        alpha = where(capped, ALPHA_MAX, raw)
        weight = alpha * through
        after = through - weight
        stays = after > T_STOP
        weight = where(stays, weight, 0.0)
        sensitivity = (grad_alpha + grad_red * broadcast(records, p + COLOR)
                       + grad_green * broadcast(records, p + COLOR + 1) + grad_blue * broadcast(records, p + COLOR + 2))
        rest = rest - weight * sensitivity
        slope = through * sensitivity - rest / (1.0 - alpha)
        d = where(stays, where(capped, 0.0, raw * slope), 0.0)
        through = where(stays, after, 0.0)
        d_x, d_y = d * dx, d * dy
        s = k * SUMS * LANES
        store(sums, s, load(sums, s) + d)
        store(sums, s + LANES, load(sums, s + LANES) + d_x)
        store(sums, s + 2 * LANES, load(sums, s + 2 * LANES) + d_y)
        store(sums, s + 3 * LANES, load(sums, s + 3 * LANES) + d_x * dx)
        store(sums, s + 4 * LANES, load(sums, s + 4 * LANES) + d_x * dy)
        store(sums, s + 5 * LANES, load(sums, s + 5 * LANES) + d_y * dy)
        store(sums, s + 6 * LANES, load(sums, s + 6 * LANES) + weight * grad_red)
        store(sums, s + 7 * LANES, load(sums, s + 7 * LANES) + weight * grad_green)
        store(sums, s + 8 * LANES, load(sums, s + 8 * LANES) + weight * grad_blue)
    store(planes, at, through)
    store(planes, PLANE + at, rest)
    return any_lane(through > 0.0)


@cached_njit(**_fast)
def _pairs_of_splats(boxes, splat):
    """pair (I,) of each place in tile order, and first (M + 1,): splat m has the pairs first[m] : first[m + 1]."""
    first = np.zeros(len(boxes) + 1, np.int64)
    for m in range(len(boxes)):
        first[m + 1] = first[m] + (boxes[m, 1] - boxes[m, 0]) * (boxes[m, 3] - boxes[m, 2])
    cursor = first.copy()
    pair = np.empty(len(splat), np.int32)
    for k in range(len(splat)):
        pair[k] = cursor[splat[k]]
        cursor[splat[k]] += 1
    return pair, first


@cached_njit(parallel=True, **_fast)
def _project_backward(means, quats, scales, opacities, fx, fy, cx, cy, width, height, records, first, pair_grad,
                      grad_means, grad_quats, grad_scales, grad_opacities, grad_colors):
    """Sum the pairs of each splat and carry the sums through the projection. All outputs enter as zeros."""
    limit_left, limit_right = cx / fx + np.float32(0.15) * width / fx, (width - cx) / fx + np.float32(0.15) * width / fx
    limit_up, limit_down = cy / fy + np.float32(0.15) * height / fy, (height - cy) / fy + np.float32(0.15) * height / fy
    for m in prange(len(means)):
        if first[m] == first[m + 1]:
            continue
        go = sx = sy = sxx = sxy = syy = np.float32(0)
        for p in range(first[m], first[m + 1]):
            go += pair_grad[p, 0]
            sx += pair_grad[p, 1]
            sy += pair_grad[p, 2]
            sxx += pair_grad[p, 3]
            sxy += pair_grad[p, 4]
            syy += pair_grad[p, 5]
            for c in range(CHANNELS):
                grad_colors[m, c] += pair_grad[p, SUMS - CHANNELS + c]
        grad_opacities[m] = go / opacities[m]
        a, b, c2 = records[m, A] * 2 / LOG2_E_8, records[m, B] / LOG2_E_8, records[m, C] * 2 / LOG2_E_8
        gu, gv = -(a * sx + b * sy), -(b * sx + c2 * sy)
        ga, gb, gc = np.float32(-0.5) * sxx, -sxy, np.float32(-0.5) * syy
        # conic = covariance^-1, so d covariance = -conic G conic with G = [[ga, gb/2], [gb/2, gc]]
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


def _bin(keys, boxes, tiles_x, tiles):
    """Deal splats to tiles, nearest first.

    keys (B, N), boxes (B, N, 4) -> start (B·tiles + 1,) of each tile's run, and splat (I,), indices in (B·N,).
    """
    order, visible = np.empty(keys.shape, np.int32), np.empty(len(keys), np.int64)
    start = np.zeros(len(keys) * tiles + 1, np.int64)
    _sort_and_count(keys, boxes, tiles_x, order, visible, start[1:].reshape(-1, tiles))
    np.cumsum(start, out=start)
    splat = np.empty(start[-1], np.int32)
    _deal(order, visible, boxes, tiles_x, tiles, start[:-1].reshape(-1, tiles).copy(), splat)
    return start, splat


class _Rasterize(torch.autograd.Function):
    @staticmethod
    def forward(ctx, means, quats, scales, opacities, colors, camera, width, height):
        images, count = opacities.shape
        flat = [np.ascontiguousarray(x.detach().numpy().reshape(images * count, *x.shape[2:]), np.float32)
                for x in (means, quats, scales, opacities, colors)]
        camera = tuple(np.float32(value) for value in camera)
        tiles_x, tiles_y = -(-width // TILE), -(-height // TILE)
        records = np.empty((images * count, RECORD), np.float32)
        boxes = np.empty((images * count, 4), np.int16)
        keys = np.empty(images * count, np.uint32)
        _project(*flat, *camera, width, height, records, boxes, keys)
        start, splat = _bin(keys.reshape(images, count), boxes.reshape(images, count, 4), tiles_x, tiles_x * tiles_y)
        rgb = np.zeros((images, height, width, CHANNELS), np.float32)
        alpha = np.zeros((images, height, width, 1), np.float32)
        _forward(start, splat, records, tiles_x, tiles_x * tiles_y, *_scratch(5 * PLANE), rgb, alpha)
        ctx.saved = (flat, camera, records, boxes, start, splat)
        outputs = torch.from_numpy(rgb), torch.from_numpy(alpha)
        ctx.save_for_backward(*outputs)  # notices if they are changed in place
        return outputs

    @staticmethod
    def backward(ctx, grad_rgb, grad_alpha):
        flat, camera, records, boxes, start, splat = ctx.saved
        rgb, alpha = (x.numpy() for x in ctx.saved_tensors)
        images, height, width, _ = rgb.shape
        tiles = (len(start) - 1) // images
        pair, first = _pairs_of_splats(boxes, splat)
        pair_grad = np.zeros((len(splat), SUMS), np.float32)
        _backward(start, splat, pair, records, -(-width // TILE), tiles, *_scratch(6 * PLANE + CHUNK * SUMS * LANES), rgb,
                  alpha, np.ascontiguousarray(grad_rgb.numpy()), np.ascontiguousarray(grad_alpha.numpy()), pair_grad)
        grads = [np.zeros_like(x) for x in flat]
        _project_backward(*flat[:4], *camera, width, height, records, first, pair_grad, *grads)
        shaped = [torch.from_numpy(g).reshape(images, -1, *g.shape[1:]) for g in grads]
        return (*shaped, None, None, None)


def _scratch(floats: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A counter of tasks at zero, and for each thread `floats` float32 and the words of a chunk."""
    threads = numba.get_num_threads()
    return np.zeros(1, np.int64), np.empty((threads, floats), np.float32), np.empty((threads, CHUNK), np.uint32)


def rasterize_cpu(means: Tensor, quats: Tensor, scales: Tensor, opacities: Tensor, colors: Tensor,
                  intrinsics: tuple[float, ...], width: int, height: int) -> tuple[Tensor, Tensor]:
    """Splat B images of N Gaussians each on the CPU; arguments and results as in `rasterize.rasterize`, float32.

    Three colour channels are fast; more or fewer are blended three at a time.
    """
    channels = colors.shape[-1]
    if channels == CHANNELS:
        return _Rasterize.apply(means, quats, scales, opacities, colors, intrinsics, width, height)
    parts = [_Rasterize.apply(means, quats, scales, opacities, group, intrinsics, width, height)
             for group in F.pad(colors, (0, -channels % CHANNELS)).split(CHANNELS, -1)]
    return torch.cat([rgb for rgb, _ in parts], -1)[..., :channels], parts[0][1]
