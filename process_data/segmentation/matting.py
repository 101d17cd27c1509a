"""Full-resolution alpha from coarse person mattes: by difference from the background plate, else by a guided filter."""

import cv2
import numpy as np

from shared.compiled import cached_njit

INNER, OUTER = 3, 5  # pixels of the coarse matte inside and outside its outline that are computed anew
CERTAIN = 12  # grey levels from 0 or 255 within which the coarse matte is taken as it is
GUIDE_RADIUS = 1 / 64  # of the picture's size
GUIDE_EPSILON = 6.5  # grey levels squared
GUIDE_SCALE = 0.25  # resolution at which the guided filter finds its coefficients
CELLS = 32  # cells across the picture over which local colours are averaged
REACH = 2.0  # cells around a pixel whose foreground colours are tried
ENOUGH = 32  # pixels of a cell from which its colour counts in full
FIT = 150.0  # squared error, in grey levels, at which a candidate colour has a quarter of the weight of a perfect one
LIGHT_CHANGE = 16.0  # most grey levels by which changing light may shift the background from its plate
NOISE = 1600.0  # squared contrast of foreground and plate at which colours are trusted as much as the coarse matte
FILLED = 6400.0  # the same where the plate was filled in
TEXTURE = 1 / 32  # of the picture's size: reach over which the variance of the seen plate is measured
FILLED_NOISE = 4.0  # added to FILLED for each unit of that variance, since filling in cannot restore texture
BARE = 10.0  # grey levels from the plate within which a pixel shows the plate
FOREIGN = (18.0, 40.0)  # distance from the line plate - foreground, grey levels: still a mixture, surely another foreground
INSIDE_DOUBT = 0.4  # share of the colours' trust that is lost where the coarse matte says person
OUTSIDE_DOUBT = 3.0  # where it says background, so many times the squared contrast is needed in addition
MISSED = 100.0  # grey levels by which a coarse matte may fall below the expected one
STRETCH = 0.04  # of alpha's range that is cut off at both ends


def steady_matte(mattes: np.ndarray) -> np.ndarray:
    """Coarse mattes (k,h,w) uint8 of neighbouring frames -> their median (h,w) uint8, which flickers less without a lag."""
    if len(mattes) == 3:
        first, second, third = mattes
        return np.maximum(np.minimum(first, second), np.minimum(np.maximum(first, second), third))
    return np.median(mattes, axis=0).astype(np.uint8)


def guided(frame: np.ndarray, coarse: np.ndarray) -> np.ndarray:
    """Frame (H,W,3) and matte (H,W), uint8 -> matte (H,W) uint8 that follows the frame's edges.

    Fast guided filter (He, Sun, Tang, PAMI 2013; He, Sun, arXiv:1505.00996).
    """
    radius = max(4, round(GUIDE_RADIUS * frame.shape[1]))
    return cv2.ximgproc.guidedFilter(frame, coarse, radius, GUIDE_EPSILON, scale=GUIDE_SCALE)


def plate_noise(plate: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Squared contrast (H,W) float32 that a foreground colour needs to be told from the plate.

    plate (H,W,3) uint8, seen (H,W) bool. Larger where the plate was filled in, and more so if the seen plate nearby is not
    smooth.
    """
    weight = seen.astype(np.float32)
    size = 2 * max(1, round(TEXTURE * len(plate))) + 1

    def spread(values: np.ndarray) -> np.ndarray:
        return cv2.boxFilter(values, -1, (size, size), normalize=False)

    count = spread(weight)
    image = plate.astype(np.float32) * weight[..., None]
    mean = spread(image) / np.maximum(count, 1)[..., None]
    variance = (spread(image * image) / np.maximum(count, 1)[..., None] - mean * mean).sum(-1)
    noise = np.where(count >= 8, FILLED + FILLED_NOISE * np.maximum(variance, 0), np.float32(1e9))
    return np.where(seen, np.float32(NOISE), noise).astype(np.float32)


@cached_njit()
def _cell_colors(frame, plate, seen, low, high, certain, cells):
    """Sums (2,cells,cells,4) over each cell: colour and count of the sure foreground, and difference from the plate and count
    of the sure background."""
    height, width = low.shape
    sums = np.zeros((2, cells, cells, 4), np.float32)
    for y in range(height):
        row = y * cells // height
        for x in range(width):
            cell = sums[0, row, x * cells // width]
            if low[y, x] >= 255 - certain:
                cell[0] += frame[y, x, 0]
                cell[1] += frame[y, x, 1]
                cell[2] += frame[y, x, 2]
                cell[3] += 1
            elif high[y, x] <= certain and seen[y, x]:
                cell = sums[1, row, x * cells // width]
                cell[0] += np.float32(frame[y, x, 0]) - np.float32(plate[y, x, 0])
                cell[1] += np.float32(frame[y, x, 1]) - np.float32(plate[y, x, 1])
                cell[2] += np.float32(frame[y, x, 2]) - np.float32(plate[y, x, 2])
                cell[3] += 1
    return sums


@cached_njit()
def _light_changes(sums, reach, limit):
    """Mean difference from the plate (cells,cells,3) around each cell; 0 where it exceeds `limit`, so is not just light."""
    cells = sums.shape[0]
    change = np.zeros((cells, cells, 3), np.float32)
    for row in range(cells):
        for column in range(cells):
            total = np.zeros(4, np.float32)
            for j in range(max(0, row - reach), min(cells, row + reach + 1)):
                for i in range(max(0, column - reach), min(cells, column + reach + 1)):
                    for k in range(4):
                        total[k] += sums[j, i, k]
            if total[3] == 0:
                continue
            largest = max(abs(total[0]), abs(total[1]), abs(total[2])) / total[3]
            for k in range(3):
                change[row, column, k] = total[k] / total[3] if largest <= limit else np.float32(0)
    return change


@cached_njit(fastmath=True, error_model="numpy")
def _mix(colors, row, column, reach, fit, r, g, b, dr, dg, db):
    """The foreground's share of one pixel, by the foreground colours nearby, weighted by nearness and fit.

    The pixel differs by (dr,dg,db) from its background (r,g,b); row and column are its place in cells. Returns share,
    squared contrast and squared error; the contrast is -1 without foreground nearby.
    """
    cells = colors.shape[0]
    closeness = np.float32(1) / (reach * reach)
    total, mixed, contrast, off = np.float32(1e-12), np.float32(0), np.float32(0), np.float32(0)
    for j in range(max(0, int(row - reach)), min(cells, int(row + reach) + 1)):
        for i in range(max(0, int(column - reach)), min(cells, int(column + reach) + 1)):
            down, right = np.float32(j) + np.float32(0.5) - row, np.float32(i) + np.float32(0.5) - column
            near = np.float32(1) - (down * down + right * right) * closeness
            if near <= 0 or colors[j, i, 3] <= 0:
                continue
            fr, fg, fb = colors[j, i, 0] - r, colors[j, i, 1] - g, colors[j, i, 2] - b
            square = fr * fr + fg * fg + fb * fb
            share = (dr * fr + dg * fg + db * fb) / max(square, np.float32(1))
            share = min(max(share, np.float32(0)), np.float32(1))
            er, eg, eb = dr - share * fr, dg - share * fg, db - share * fb
            error = er * er + eg * eg + eb * eb
            fits = fit + error
            weight = near * colors[j, i, 3] / (fits * fits)
            total += weight
            mixed += weight * share
            contrast += weight * square
            off += weight * error
    if contrast == 0:
        return mixed, np.float32(-1), off
    return mixed / total, contrast / total, off / total


@cached_njit(fastmath=True, error_model="numpy")
def _solve(frame, plate, seen, noise, coarse, soft, low, high, colors, changes, certain, reach, fit, bare, foreign,
           foreign_sure, inside_doubt, outside_doubt, stretch):
    """Alpha (H,W) uint8: 255 or 0 where the coarse matte is certain, else from colours and the filtered matte."""
    height, width = low.shape
    cells = colors.shape[0]
    alpha = np.empty((height, width), np.uint8)
    for y in range(height):
        row = y * cells // height
        for x in range(width):
            if low[y, x] >= 255 - certain:
                alpha[y, x] = 255
                continue
            if high[y, x] <= certain:
                alpha[y, x] = 0
                continue
            column = x * cells // width
            r = plate[y, x, 0] + changes[row, column, 0]
            g = plate[y, x, 1] + changes[row, column, 1]
            b = plate[y, x, 2] + changes[row, column, 2]
            dr, dg, db = frame[y, x, 0] - r, frame[y, x, 1] - g, frame[y, x, 2] - b
            place_y, place_x = np.float32((y + 0.5) * cells / height), np.float32((x + 0.5) * cells / width)
            mixed, contrast, off = _mix(colors, place_y, place_x, reach, fit, r, g, b, dr, dg, db)
            filtered = soft[y, x] / np.float32(255)
            value = filtered
            if contrast >= 0:
                needed = noise[y, x] * (1 + outside_doubt * max(0.0, 1 - coarse[y, x] / 40.0))
                trust = contrast**2 / (contrast**2 + needed**2)
                trust *= 1 - inside_doubt * min(max((coarse[y, x] - 200) / 50, 0.0), 1.0)
                if seen[y, x]:
                    strange = (np.sqrt(off) - foreign) / (foreign_sure - foreign)
                    strange = min(max(strange, 0.0), 1.0) * min(max((coarse[y, x] - 40) / 88.0, 0.0), 1.0)
                    mixed = mixed + strange * (1 - mixed)
                    trust = max(trust, strange)
                    if coarse[y, x] < 200 and dr * dr + dg * dg + db * db < bare * bare and contrast > 9 * bare * bare:
                        mixed, trust = 0.0, 1.0
                value = trust * mixed + (1 - trust) * filtered
            value = (value - stretch) / (1 - 2 * stretch)
            alpha[y, x] = np.uint8(min(max(value, 0.0), 1.0) * 255 + 0.5)
    return alpha


def refine(frame: np.ndarray, mattes: np.ndarray, plate: np.ndarray, seen: np.ndarray, noise: np.ndarray,
           expected: np.ndarray | None = None) -> np.ndarray:
    """Alpha, the person's share of each pixel, (H,W) uint8.

    frame (H,W,3) uint8; mattes (k,h,w) uint8 of the frame and its neighbours; plate (H,W,3) uint8 with seen (H,W) bool;
    noise (H,W): `plate_noise` of these two; expected (h,w) uint8: the usual coarse matte at the same place of the head, which
    the frame's own may not fall far below. Where the coarse matte is uncertain, a pixel I is taken as a mixture of the
    plate B and the nearby foreground colour F that fits best: alpha = (I - B)·(F - B) / |F - B|². The larger the contrast
    |F - B|², the more this is trusted; the rest is the coarse matte, sharpened by a guided filter.
    """
    height, width = frame.shape[:2]
    matte = np.ascontiguousarray(steady_matte(mattes))
    if expected is not None:
        matte = np.maximum(matte, cv2.subtract(expected, MISSED))
    inner, outer = (np.ones((2 * reach + 1, 2 * reach + 1), np.uint8) for reach in (INNER, OUTER))
    coarse, low, high = (cv2.resize(m, (width, height), interpolation=cv2.INTER_LINEAR)
                         for m in (matte, cv2.erode(matte, inner), cv2.dilate(matte, outer)))
    soft = guided(frame, coarse)
    colors, changed = _cell_colors(frame, plate, seen, low, high, CERTAIN, CELLS)
    colors[..., :3] /= np.maximum(colors[..., 3:], 1)
    colors[..., 3] = np.minimum(colors[..., 3], ENOUGH)
    changes = _light_changes(changed, round(REACH), LIGHT_CHANGE)
    return _solve(frame, plate, seen, noise, coarse, soft, low, high, colors, changes, CERTAIN, np.float32(REACH),
                  np.float32(FIT), BARE, *FOREIGN, INSIDE_DOUBT, OUTSIDE_DOUBT, STRETCH)
