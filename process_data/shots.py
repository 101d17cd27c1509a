"""Cuts: where the picture changes much more between two frames than it does around them."""

import numpy as np

NEIGHBOURS = 6  # frames on each side that a change is compared with
RATIO = 5.0  # a cut changes the picture this many times more than its neighbours
LEAST_CHANGE = 0.02  # of full scale
FLOOR = 0.002  # added to the neighbours' change, so that a still picture does not make cuts of noise


def find_cuts(small: np.ndarray) -> list[int]:
    """Small frames (T,h,w,3) uint8 -> indices of the first frame after each cut."""
    if len(small) < 2:
        return []
    change = np.array([np.abs(b.astype(np.float32) - a).mean() / 255 for a, b in zip(small, small[1:])])
    cuts = []
    for k, value in enumerate(change):
        around = np.delete(change[max(0, k - NEIGHBOURS) : k + NEIGHBOURS + 1], min(k, NEIGHBOURS))
        usual = float(np.median(around)) if len(around) else 0.0
        if value > LEAST_CHANGE and value > RATIO * (usual + FLOOR):
            cuts.append(k + 1)
    return cuts


def shots_between(cuts: list[int], frames: int) -> list[tuple[int, int]]:
    """Cuts and the number of frames -> (start, stop) of every shot."""
    edges = [0, *cuts, frames]
    return [(a, b) for a, b in zip(edges, edges[1:]) if b > a]
