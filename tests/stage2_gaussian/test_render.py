"""The cache of CUDA graphs, with graphs that only count how often they are captured."""

import gc

import pytest
import torch

from stage2_gaussian import render
from stage2_gaussian.head import Head

CAMERA = (160.0, 160.0, 32.0, 32.0)


@pytest.fixture
def captured(monkeypatch) -> list[int]:
    """Batch sizes of the graphs in the order of their capture."""
    counts = []

    class Graph:
        def __init__(self, head, count, *camera):
            self.positions = head.positions
            counts.append(count)

    monkeypatch.setattr(render, "ProjectionGraph", Graph)
    return counts


def make_head(face) -> Head:
    return Head(torch.from_numpy(face), torch.from_numpy(face), torch.full((68,), 0.004), torch.rand(68, 3), moving=20, rank=5,
                hidden=8, pose_rank=2).requires_grad_(False)


def test_a_graph_is_captured_once_for_each_head_and_batch(face, captured):
    heads = make_head(face), make_head(face)
    graphs = [render._graph(head, count, CAMERA, 64, 64, False, False) for head in heads for count in (1, 4)]
    assert captured == [1, 4, 1, 4] and len(set(map(id, graphs))) == 4
    assert render._graph(heads[0], 4, CAMERA, 64, 64, False, False) is graphs[1] and len(captured) == 4


def test_the_oldest_of_many_graphs_goes(face, captured):
    head = make_head(face)
    for count in range(1, render.GRAPHS + 2):
        render._graph(head, count, CAMERA, 64, 64, False, False)
    assert len(render._graphs[head]) == render.GRAPHS
    render._graph(head, 2, CAMERA, 64, 64, False, False)
    render._graph(head, 1, CAMERA, 64, 64, False, False)
    assert captured == [*range(1, render.GRAPHS + 2), 1]


def test_a_pruned_head_gets_new_graphs_and_a_head_that_is_gone_keeps_none(face, captured):
    before = len(render._graphs)
    head = make_head(face)
    render._graph(head, 1, CAMERA, 64, 64, False, False)
    head.select(torch.arange(50))
    render._graph(head, 1, CAMERA, 64, 64, False, False)
    assert captured == [1, 1]
    del head
    gc.collect()
    assert len(render._graphs) == before
