"""The schedule against a brute-force one, and the path between two targets."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ki_ros.chunk import ActionChunk
from ki_ros.execution.schedule import OpenLoopSchedule, Segment
from ki_ros.rig import ActionSpace

MS = 1_000_000
DT_NS = 66_666_667
NEVER = 10**15


def make(horizon=15, dt=1 / 15, sequence=0):
    return ActionChunk(0, sequence, 1, ActionSpace.JOINT_POSITION, dt, np.zeros((horizon, 8)))


def test_rows_follow_each_other_in_time():
    schedule = OpenLoopSchedule(8, NEVER)
    schedule.offer(make(), observed_ns=0)
    rows = [step.row for t in range(0, 700 * MS, MS) if (step := schedule.advance(t)) is not None]
    assert rows == [min(t * MS // DT_NS, 7) for t in range(len(rows))]
    assert len(rows) == pytest.approx(8 * 1000 / 15, abs=1)


@given(age=st.integers(0, 2_000_000_000), horizon=st.integers(1, 20), count=st.integers(1, 20), skip=st.booleans())
def test_the_first_row_is_the_one_nearest_in_time(age, horizon, count, skip):
    schedule = OpenLoopSchedule(count, NEVER, skip_elapsed=skip)
    schedule.offer(make(horizon), observed_ns=0)
    step = schedule.advance(age)
    nearest = min(range(2000), key=lambda row: abs(row * DT_NS - age)) if skip else 0
    if nearest >= horizon:
        assert step is None
        assert schedule.expired
        return
    # At the middle between two rows either is as near.
    assert abs(step.row * DT_NS - age) <= abs(nearest * DT_NS - age) + 1 or not skip
    assert step.row < horizon
    assert step.start_ns == age
    rows = {s.row for t in range(age, age + 21 * DT_NS, DT_NS // 4) if (s := schedule.advance(t)) is not None}
    assert rows == set(range(step.row, min(horizon, step.row + count)))


def test_the_newest_chunk_follows_without_a_gap():
    schedule = OpenLoopSchedule(2, NEVER)
    schedule.offer(make(sequence=1), observed_ns=0)
    assert schedule.advance(0).chunk.observation_sequence == 1
    schedule.offer(make(sequence=2), observed_ns=30 * MS)
    schedule.offer(make(sequence=3), observed_ns=2 * DT_NS)
    assert schedule.advance(100 * MS).chunk.observation_sequence == 1
    step = schedule.advance(2 * DT_NS + 7 * MS)
    assert (step.chunk.observation_sequence, step.row, step.start_ns) == (3, 0, 2 * DT_NS)


def test_after_a_pause_it_begins_anew():
    schedule = OpenLoopSchedule(2, NEVER)
    schedule.offer(make(), observed_ns=0)
    schedule.advance(0)
    assert schedule.advance(3 * DT_NS) is None
    assert not schedule.expired
    schedule.offer(make(), observed_ns=10 * DT_NS)
    assert schedule.advance(10 * DT_NS + 5).start_ns == 10 * DT_NS + 5


def test_a_chunk_that_waited_too_long_is_dropped():
    schedule = OpenLoopSchedule(8, max_age_ns=500 * MS)
    schedule.offer(make(horizon=100), observed_ns=0)
    assert schedule.advance(501 * MS) is None
    assert schedule.expired
    assert schedule.advance(0) is None


def test_nothing_is_left_after_clear():
    schedule = OpenLoopSchedule(8, NEVER)
    schedule.offer(make(), 0)
    schedule.advance(0)
    schedule.offer(make(), 0)
    schedule.clear()
    assert schedule.advance(1) is None


def test_an_impossible_horizon_is_refused():
    with pytest.raises(ValueError, match="open_loop_horizon is 0"):
        OpenLoopSchedule(0, NEVER)


@given(share=st.floats(-1, 2))
def test_a_segment_is_a_straight_line(share):
    start, target = np.arange(7.0), np.arange(7.0) ** 2
    position = Segment(start, target, 100 * MS, 200 * MS).position(round((100 + 100 * share) * MS))
    np.testing.assert_allclose(
        position, [np.interp(share, [0, 1], ends) for ends in zip(start, target, strict=True)], atol=1e-6
    )
