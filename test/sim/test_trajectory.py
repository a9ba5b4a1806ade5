import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ki_ros.rig import PANDA, ROBOTS
from ki_ros.sim.control import LIMIT_MARGIN, JointSetpoint
from ki_ros.sim.trajectory import JointTrajectory, TrajectoryFollower

ZERO = np.zeros(7)


def test_it_passes_through_its_points_with_their_velocities():
    points = np.arange(14, dtype=float).reshape(2, 7) / 10
    speeds = np.stack([np.full(7, 0.3), ZERO])
    follower = TrajectoryFollower(JointTrajectory([0.5, 1.0], points, speeds), 2.0, 2.0, ZERO, ZERO)
    for time, position, velocity in ((2.0, ZERO, ZERO), (2.5, points[0], speeds[0]), (3.0, points[1], ZERO)):
        q, qd = follower.sample(time)
        np.testing.assert_allclose(q, position, atol=1e-12)
        np.testing.assert_allclose(qd, velocity, atol=1e-12)
    before, _ = follower.sample(2.7 - 1e-6)
    after, _ = follower.sample(2.7 + 1e-6)
    np.testing.assert_allclose((after - before) / 2e-6, follower.sample(2.7)[1], atol=1e-4)


def test_without_velocities_it_goes_straight():
    follower = TrajectoryFollower(JointTrajectory([1.0], np.ones((1, 7))), 0.0, 0.0, ZERO, ZERO)
    q, qd = follower.sample(0.25)
    np.testing.assert_allclose(q, 0.25)
    np.testing.assert_allclose(qd, 1.0)
    np.testing.assert_allclose(follower.sample(9.0)[0], 1.0)


def test_points_of_the_past_are_left_out_and_a_past_trajectory_is_refused():
    trajectory = JointTrajectory([0.1, 0.2], np.stack([np.full(7, 5.0), np.ones(7)]))
    follower = TrajectoryFollower(trajectory, 0.0, 0.15, ZERO, ZERO)
    assert follower.sample(0.16)[0].max() < 1.0
    with pytest.raises(ValueError, match=r"last point was 0\.800 s ago"):
        TrajectoryFollower(trajectory, 0.0, 1.0, ZERO, ZERO)


def test_joints_are_matched_by_name():
    names = list(reversed(PANDA.joint_names))
    trajectory = JointTrajectory.from_named(names, PANDA.joint_names, [1.0], [list(range(7))])
    np.testing.assert_array_equal(trajectory.positions[0], [6, 5, 4, 3, 2, 1, 0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([], np.zeros((0, 7))), "at least one point"),
        (([1.0, 1.0], np.zeros((2, 7))), "time_from_start must start at 0 or later and increase"),
        (([-1.0], np.zeros((1, 7))), "time_from_start"),
        (([1.0], np.zeros((1, 6))), r"positions must have shape \(1, 7\)"),
        (([1.0], np.full((1, 7), np.nan)), "positions has a value that is not finite"),
        (([1.0], np.zeros((1, 7)), np.full((1, 7), np.inf)), "velocities has a value that is not finite"),
    ],
)
def test_a_bad_trajectory_is_refused_by_name(arguments, message):
    with pytest.raises(ValueError, match=message):
        JointTrajectory(*arguments)


def test_foreign_joints_are_refused_by_name():
    with pytest.raises(ValueError, match="joint_names must be panda_joint1"):
        JointTrajectory.from_named(["elbow"], PANDA.joint_names, [1.0], [[0.0]])
    with pytest.raises(ValueError, match="positions of point 0 must have 7 values, got 1"):
        JointTrajectory.from_named(PANDA.joint_names, PANDA.joint_names, [1.0], [[0.0]])


@given(
    name=st.sampled_from(sorted(ROBOTS)),
    targets=st.lists(st.lists(st.floats(-1e3, 1e3), min_size=7, max_size=7), min_size=1, max_size=3),
)
@settings(max_examples=30, deadline=None)
def test_the_setpoint_keeps_every_limit_whatever_is_commanded(name, targets):
    robot = ROBOTS[name]
    setpoint = JointSetpoint(robot, np.clip(ZERO, robot.position_lower, robot.position_upper), 0.001)
    for target in targets:
        setpoint.set_target(np.array(target))
        for step in range(300):
            setpoint.advance(0.001 * step)
            assert np.all(setpoint.position >= robot.position_lower + LIMIT_MARGIN - 1e-9)
            assert np.all(setpoint.position <= robot.position_upper - LIMIT_MARGIN + 1e-9)
            assert np.all(np.abs(setpoint.velocity) <= robot.velocity + 1e-9)


@given(velocity=st.lists(st.floats(-1e3, 1e3), min_size=7, max_size=7))
@settings(max_examples=10, deadline=None)
def test_the_setpoint_goes_on_at_a_velocity_to_the_limits_at_most(velocity):
    setpoint = JointSetpoint(PANDA, np.clip(ZERO, PANDA.position_lower, PANDA.position_upper), 0.001)
    setpoint.set_velocity(np.array(velocity))
    for step in range(3000):
        setpoint.advance(0.001 * step)
        assert np.all(setpoint.position >= PANDA.position_lower + LIMIT_MARGIN - 1e-9)
        assert np.all(setpoint.position <= PANDA.position_upper - LIMIT_MARGIN + 1e-9)
        assert np.all(np.abs(setpoint.velocity) <= PANDA.velocity + 1e-9)


def test_the_setpoint_keeps_its_velocity_until_the_next_command():
    setpoint = JointSetpoint(PANDA, np.array([0, 0, 0, -1.5, 0, 1.5, 0]), 0.001)
    start, speed = setpoint.position, np.linspace(-0.3, 0.3, 7)
    setpoint.set_velocity(speed)
    assert not setpoint.settled
    for step in range(500):
        setpoint.advance(0.001 * step)
    np.testing.assert_allclose(setpoint.position - start, speed * 0.5, atol=1e-9)
    np.testing.assert_allclose(setpoint.feedforward, speed)
    stopped = setpoint.position
    setpoint.set_velocity(ZERO)
    setpoint.advance(0.5)
    np.testing.assert_array_equal(setpoint.position, stopped)
    assert setpoint.settled
    assert not setpoint.feedforward.any()


def test_the_setpoint_arrives_and_settles():
    setpoint = JointSetpoint(PANDA, np.full(7, -0.1) * [1, 1, 1, 10, 1, -10, 1], 0.001)
    target = setpoint.position + 0.2
    setpoint.set_target(target)
    assert not setpoint.settled
    for step in range(300):
        setpoint.advance(0.001 * step)
    assert setpoint.settled
    np.testing.assert_array_equal(setpoint.position, target)
