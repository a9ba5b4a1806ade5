"""When the stream of chunks counts as dead."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ki_ros.execution.watchdog import ChunkWatchdog

MS = 1_000_000


def fed(intervals, factor=2.5):
    watchdog, now = ChunkWatchdog(250 * MS, factor), 0
    watchdog.feed(now)
    for interval in intervals:
        now += interval * MS
        watchdog.feed(now)
    return watchdog, now


@pytest.mark.parametrize(
    ("intervals", "factor", "gap"),
    [
        ([], 2.5, 250),
        ([67] * 4, 2.5, 250),  # too few to know
        ([67] * 20, 2.5, 167.5),
        ([67] * 20, 0.0, 250),
        ([10] * 20, 2.5, 100),
        ([200] * 20, 2.5, 250),
        ([67] * 10 + [5000] + [67] * 4, 2.5, 167.5),  # one outage changes nothing
        ([10] * 20 + [90] * 15, 2.5, 225),  # a policy that has become slower is given its time
    ],
)
def test_the_gap_that_is_tolerated(intervals, factor, gap):
    watchdog, now = fed(intervals, factor)
    assert watchdog.gap_ns == gap * MS
    assert watchdog.alive(now + round(gap * MS))
    assert not watchdog.alive(now + round(gap * MS) + 1)


def test_it_is_not_alive_before_the_first_chunk():
    watchdog, now = fed([67] * 20)
    watchdog.restart()
    assert not watchdog.fed
    assert not watchdog.alive(now)


@given(st.lists(st.integers(0, 10_000), max_size=50), st.floats(0, 100))
def test_the_cap_holds_whatever_came_before(intervals, factor):
    watchdog, now = fed(intervals, factor)
    assert not watchdog.alive(now + 250 * MS + 1)
