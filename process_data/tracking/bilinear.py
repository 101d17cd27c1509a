"""Looking up grey levels between pixels, in compiled loops."""

from shared.compiled import cached_njit


@cached_njit(fastmath=True)
def bilinear(picture, x, y):
    """A picture (H,W) at x, y counted from the first pixel's centre; 0 ≤ x < W - 1 and 0 ≤ y < H - 1."""
    i, j = int(y), int(x)
    s, t = x - j, y - i
    return ((picture[i, j] * (1 - s) + picture[i, j + 1] * s) * (1 - t)
            + (picture[i + 1, j] * (1 - s) + picture[i + 1, j + 1] * s) * t)
