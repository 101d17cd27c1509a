"""Cuts: where the picture changes much more between two frames than it does around them."""

import numpy as np

NEIGHBOURS = 6  # frames on each side that a change is compared with
RATIO = 5.0  # a cut changes the picture this many times as much as the frames around it
LEAST_CHANGE = 0.02  # of full scale
FLOOR = 0.002  # of full scale, added to the neighbours' change, so that noise on a still picture is no cut


def find_cuts(change: np.ndarray) -> list[int]:
    """Mean change (T,) of the picture from the frame before, of full scale -> indices of the first frame after each cut."""
    cuts = []
    for t in range(1, len(change)):
        around = np.concatenate([change[max(1, t - NEIGHBOURS) : t], change[t + 1 : t + NEIGHBOURS + 1]])
        usual = float(np.median(around)) if len(around) else 0.0
        if change[t] > LEAST_CHANGE and change[t] > RATIO * (usual + FLOOR):
            cuts.append(t)
    return cuts


def shots_between(cuts: list[int], frames: int) -> list[tuple[int, int]]:
    """Cuts and the number of frames -> (start, stop) of every shot."""
    edges = [0, *cuts, frames]
    return [(a, b) for a, b in zip(edges, edges[1:]) if b > a]
