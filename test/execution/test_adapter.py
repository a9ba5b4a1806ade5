"""What a controller gets: trajectories that end at rest, within the limits, and goals only when they change."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.interpolate import CubicHermiteSpline
from stream_checker import TABLE

from ki_ros.execution.adapter import OnChange, TrajectoryAdapter
from ki_ros.execution.beat import Waypoint
from ki_ros.execution.guard import Guard
from ki_ros.rig import PANDA, ROBOTS


def test_an_arm_at_rest_is_told_to_stay():
    guard = Guard(PANDA)
    q = np.array([0, 0, 0, -1.5, 0, 1.5, 0])
    guard.reset(q)
    points = TrajectoryAdapter(guard, stamped=True).points([Waypoint(0.01, q, np.zeros(7))])
    # And to be at rest there for long enough that a late trajectory is not over.
    assert [point.time for point in points] == [0.01, 0.1]
    for point in points:
        assert np.array_equal(point.positions, q)
        assert not point.velocities.any()


@given(
    name=st.sampled_from(sorted(ROBOTS)),
    pace=arrays(np.float64, 7, elements=st.floats(-2, 2)),
    ticks=st.integers(1, 60),
    period=st.sampled_from([0.02, 0.01, 0.004, 0.001]),
)
def test_a_moving_arm_gets_its_way_to_rest_in_few_points(name, pace, ticks, period):
    robot = ROBOTS[name]
    guard = Guard(robot, period=period)
    q = (robot.position_lower + robot.position_upper) / 2
    guard.reset(q)
    for tick in range(ticks):
        done = guard.follow(q + pace * period * (tick + 1), guard.decided, period)
    before = Waypoint(0.3 * period, q, np.zeros(7))
    first, *points = TrajectoryAdapter(guard, stamped=True).points(
        [before, Waypoint(1.3 * period, done.positions, done.velocities)]
    )
    assert first is before
    times = np.array([point.time for point in points])
    assert len(points) <= 30
    assert times[0] == pytest.approx(1.3 * period)
    assert np.all(np.diff(times) > 0)
    np.testing.assert_allclose(points[0].positions, done.positions, atol=1e-9)
    np.testing.assert_allclose(points[0].velocities, done.velocities, atol=1e-9)
    assert not points[-1].velocities.any()
    np.testing.assert_allclose(points[-1].positions, guard.to_rest()[1][-1], atol=1e-12)
    if len(points) < 3:
        return
    # As the controller goes along it: where the guard does, tick by tick, within the guard's limits.
    path = CubicHermiteSpline(times, [p.positions for p in points], [p.velocities for p in points])
    for tick in range(1, round((times[-1] - times[0]) / period) + 1):
        np.testing.assert_allclose(path(times[0] + tick * period), guard.stop(period).positions, atol=1e-7)
    grid = np.linspace(times[0], times[-1], 1000)
    most = 0.9 * np.array(TABLE[name]) * (1 + 1e-3)
    assert np.all(np.abs(path(grid, 2)) <= most[:, 3])
    assert np.all(np.abs(path(grid, 3)) <= most[:, 4])


def test_a_goal_is_sent_when_it_changes():
    gate = OnChange()
    values = [None, 0.0, 0.0, 0.0005, 0.8, 0.8, None, 0.8]
    assert [gate.passes(value) for value in values] == [False, True, False, False, True, False, False, True]
