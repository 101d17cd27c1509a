"""Interlaced frames -> whole ones, by FFmpeg's bwdif."""

from collections.abc import Iterable, Iterator
from fractions import Fraction

import av
from av.filter import Graph


def deinterlaced(frames: Iterable[av.VideoFrame], time_base: Fraction) -> Iterator[av.VideoFrame]:
    """Yield the frames at their own times; those flagged as interlaced are made whole, the others stay as they are."""
    graph: Graph | None = None
    form = None
    for frame in frames:
        if graph is None and not frame.interlaced_frame:
            yield frame
            continue
        if form != (frame.width, frame.height, frame.format.name):
            yield from _rest(graph)
            graph, form = _open(frame, time_base), (frame.width, frame.height, frame.format.name)
        assert graph is not None
        graph.vpush(frame)
        yield from _ready(graph)
    yield from _rest(graph)


def _open(frame: av.VideoFrame, time_base: Fraction) -> Graph:
    graph = Graph()
    source = graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=time_base)
    graph.link_nodes(source, graph.add("bwdif", "mode=send_frame:deint=interlaced"), graph.add("buffersink")).configure()
    return graph


def _rest(graph: Graph | None) -> Iterator[av.VideoFrame]:
    if graph is not None:
        graph.vpush(None)
        yield from _ready(graph)


def _ready(graph: Graph) -> Iterator[av.VideoFrame]:
    while True:
        try:
            yield graph.vpull()
        except (av.error.BlockingIOError, av.error.EOFError):
            return
