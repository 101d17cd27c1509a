"""Stages of a pipeline in threads: order, errors, and how far one runs ahead."""

import threading
import time

import pytest

from shared.side_by_side import ahead, behind


def test_items_come_in_order_and_the_maker_stays_near():
    made = []

    def numbers():
        for k in range(20):
            made.append(k)
            yield k

    seen = []
    for k in ahead(numbers(), size=2):
        time.sleep(0.002)
        assert len(made) <= k + 4
        seen.append(k)
    assert seen == list(range(20))


def test_an_error_of_the_maker_is_raised_after_what_came_before():
    def numbers():
        yield 1
        raise OSError("disk")

    stream = ahead(numbers())
    assert next(stream) == 1
    with pytest.raises(OSError, match="disk"):
        next(stream)


def test_leaving_early_ends_the_thread_and_closes_the_source():
    closed = []

    def endless():
        try:
            while True:
                yield 0
        finally:
            closed.append(True)

    before = threading.active_count()
    stream = ahead(endless())
    next(stream)
    stream.close()
    assert closed == [True] and threading.active_count() == before


def test_all_is_consumed_in_order_when_the_context_ends():
    seen = []
    with behind(lambda k: (time.sleep(0.001), seen.append(k)), size=2) as hand_over:
        for k in range(30):
            hand_over(k)
            assert k - len(seen) <= 4
    assert seen == list(range(30))


def test_an_error_of_the_consumer_is_raised():
    def consume(item):
        raise OSError("full")

    with pytest.raises(OSError, match="full"), behind(consume) as hand_over:
        for k in range(100):
            hand_over(k)
            time.sleep(0.001)
    with pytest.raises(OSError, match="full"), behind(consume) as hand_over:
        hand_over(1)


def test_what_waits_is_dropped_after_an_error():
    seen = []
    with pytest.raises(KeyError), behind(lambda k: (time.sleep(0.05), seen.append(k)), size=8) as hand_over:
        for k in range(6):
            hand_over(k)
        raise KeyError
    assert len(seen) <= 2
