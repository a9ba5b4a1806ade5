"""What the controllers are sent."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ki_ros.execution.adapter import OnChange, TrajectoryAdapter
from ki_ros.execution.guard import Guard
from ki_ros.rig import FR3, PANDA


def test_a_command_at_rest_is_one_point():
    q = np.arange(7.0)
    (point,) = TrajectoryAdapter(Guard(PANDA), 0.01).points(q, np.zeros(7))
    assert point.time_from_start == 0.01
    assert np.array_equal(point.positions, q)
    assert not point.velocities.any()


@given(
    share=arrays(np.float64, 7, elements=st.floats(0, 1)),
    velocity=arrays(np.float64, 7, elements=st.floats(-2, 2)),
    stop=st.floats(0.01, 1),
)
def test_a_command_in_motion_ends_at_rest_inside_of_the_limits(share, velocity, stop):
    for robot in (PANDA, FR3):
        guard = Guard(robot)
        q = guard.lower + share * (guard.upper - guard.lower)
        points = TrajectoryAdapter(guard, 0.01, stop).points(q, velocity)
        assert np.array_equal(points[0].positions, q)
        assert np.array_equal(points[0].velocities, velocity)
        last = points[-1]
        assert not last.velocities.any()
        assert np.all((last.positions >= guard.lower) & (last.positions <= guard.upper))
        # As far as a constant deceleration goes, or to the limit.
        assert np.all(np.abs(last.positions - q) <= np.abs(velocity) * stop / 2 + 1e-12)
        times = [point.time_from_start for point in points]
        assert times == sorted(set(times))


@pytest.mark.parametrize("wrong", [{"period": 0}, {"period": 0.01, "stop_time": float("nan")}])
def test_impossible_times_are_refused(wrong):
    with pytest.raises(ValueError, match="expected more than 0"):
        TrajectoryAdapter(Guard(PANDA), **wrong)


def test_goals_are_sent_on_change():
    gate = OnChange()
    assert [gate.passes(v) for v in (0.0, 0.0, 0.8, 0.8, None, None, 0.8, 0.8)] == [1, 0, 1, 0, 0, 0, 1, 0]
