"""What a controller gets: trajectories that end at rest, within the limits, and goals only when they change."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.interpolate import CubicHermiteSpline
from stream_checker import TABLE, violations

from ki_ros.execution.adapter import OnChange, TrajectoryAdapter
from ki_ros.execution.guard import Guard
from ki_ros.rig import PANDA, ROBOTS


def test_an_arm_at_rest_gets_one_point():
    guard = Guard(PANDA)
    q = np.array([0, 0, 0, -1.5, 0, 1.5, 0])
    guard.reset(q)
    (point,) = TrajectoryAdapter(guard).points()
    assert point.time_from_start == 0.01
    assert np.array_equal(point.positions, q)
    assert not point.velocities.any()


@given(
    name=st.sampled_from(sorted(ROBOTS)),
    pace=arrays(np.float64, 7, elements=st.floats(-2, 2)),
    ticks=st.integers(1, 60),
)
def test_a_moving_arm_gets_a_way_to_rest_within_the_limits(name, pace, ticks):
    robot = ROBOTS[name]
    guard = Guard(robot)
    q = (robot.position_lower + robot.position_upper) / 2
    guard.reset(q)
    for tick in range(ticks):
        done = guard.follow(q + pace * 0.01 * (tick + 1), guard.decided, 0.01)
    points = TrajectoryAdapter(guard).points()
    times = np.array([point.time_from_start for point in points])
    assert len(points) <= 10
    assert times[0] == pytest.approx(0.01)
    assert np.all(np.diff(times) > 0)
    np.testing.assert_allclose(points[0].positions, done.positions, atol=1e-9)
    np.testing.assert_allclose(points[0].velocities, done.velocities, atol=1e-9)
    assert not points[-1].velocities.any()
    np.testing.assert_allclose(points[-1].positions, guard.to_rest()[1][-1], atol=1e-12)
    if len(points) < 3:
        return
    # As the controller goes along it.
    path = CubicHermiteSpline(times, [p.positions for p in points], [p.velocities for p in points])
    grid = np.arange(times[0], times[-1], 1e-3)
    kinds = {violation.kind for violation in violations(name, grid, path(grid), 1.0, 1.0)}
    assert kinds <= {"acceleration", "jerk"}
    # Where a joint comes to rest between two points, the cubic through them brakes harder than the guard does.
    second = np.diff(path(grid), n=2, axis=0) * 1e6
    assert np.all(np.abs(second) <= 3 * np.array(TABLE[name])[:, 3])


def test_a_goal_is_sent_when_it_changes():
    gate = OnChange()
    values = [None, 0.0, 0.0, 0.0005, 0.8, 0.8, None, 0.8]
    assert [gate.passes(value) for value in values] == [False, True, False, False, True, False, False, True]
