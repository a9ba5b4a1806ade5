"""The guard against limits that are written down here a second time."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ki_ros.execution.guard import Guard, GuardOptions
from ki_ros.execution.state import Intervention
from ki_ros.rig import FR3, PANDA, ROBOTS

DT = 0.01

# The manufacturer's tables, independent of ki_ros.rig. Joint: (lower, upper, velocity, acceleration).
TABLE = {
    "panda": [
        (-2.8973, 2.8973, 2.175, 15.0),
        (-1.7628, 1.7628, 2.175, 7.5),
        (-2.8973, 2.8973, 2.175, 10.0),
        (-3.0718, -0.0698, 2.175, 12.5),
        (-2.8973, 2.8973, 2.61, 15.0),
        (-0.0175, 3.7525, 2.61, 20.0),
        (-2.8973, 2.8973, 2.61, 20.0),
    ],
    "fr3": [
        (-2.7437, 2.7437, 2.62, 10.0),
        (-1.7837, 1.7837, 2.62, 10.0),
        (-2.9007, 2.9007, 2.62, 10.0),
        (-3.0421, -0.1518, 2.62, 10.0),
        (-2.8065, 2.8065, 5.26, 10.0),
        (0.5445, 4.5169, 4.18, 10.0),
        (-3.0159, 3.0159, 5.26, 10.0),
    ],
}
# The FR3's velocity limits by position, joint by joint (offset, slope, lower stop, upper stop).
FR3_CURVES = [
    (0.30, 12.0, -2.750100, 2.75010),
    (0.20, 5.17, -1.791800, 1.79180),
    (0.20, 7.0, -2.906500, 2.90650),
    (0.30, 8.0, -3.048100, -0.1458),
    (0.35, 34.0, -2.810100, 2.81010),
    (0.35, 11.0, 0.54092, 4.52050),
    (0.35, 34.0, -3.019600, 3.01960),
]


def velocity_interval(name: str, joint: int, q: float) -> tuple[float, float]:
    top = TABLE[name][joint][2]
    if name == "panda":
        return -top, top
    offset, slope, lower, upper = FR3_CURVES[joint]
    highest = min(top, max(0.0, -offset + math.sqrt(max(0.0, slope * (upper - q)))))
    lowest = max(-top, min(0.0, offset - math.sqrt(max(0.0, slope * (q - lower)))))
    return lowest, highest


def test_the_rigs_velocity_limits_are_the_tables():
    for name, robot in ROBOTS.items():
        for share in np.linspace(-0.01, 1.01, 203):
            q = robot.position_lower + share * (robot.position_upper - robot.position_lower)
            lowest, highest = robot.velocity_limits(q)
            for joint in range(7):
                assert (lowest[joint], highest[joint]) == pytest.approx(velocity_interval(name, joint, q[joint]))


def anything():
    return arrays(np.float64, 7, elements=st.floats(allow_nan=True, allow_infinity=True))


def shares():
    return arrays(np.float64, 7, elements=st.floats(0, 1))


@given(
    name=st.sampled_from(sorted(ROBOTS)),
    at=shares(),
    velocity=arrays(np.float64, 7, elements=st.floats(-6, 6)),
    wanted=st.one_of(anything(), arrays(np.float64, 7, elements=st.floats(-4, 4))),
    lag=arrays(np.float64, 7, elements=st.floats(-1, 1)),
    dt=st.floats(0, DT),
    velocity_scale=st.floats(0.1, 1),
    margin=st.floats(0, 0.2),
)
def test_a_command_keeps_every_limit(name, at, velocity, wanted, lag, dt, velocity_scale, margin):
    robot, table = ROBOTS[name], np.array(TABLE[name])
    guard = Guard(robot, GuardOptions(velocity_scale=velocity_scale, position_margin=margin))
    previous = robot.position_lower + at * (robot.position_upper - robot.position_lower)
    result = guard.limit(previous, velocity, wanted, previous + lag, dt)
    assert np.all(np.isfinite(result.positions))
    step = result.positions - previous
    tolerance = 1e-9
    for joint in range(7):
        lower, upper, _, acceleration = table[joint]
        assert lower - tolerance <= result.positions[joint] <= upper + tolerance
        # Inside the margin's range it stays there, outside of it it does not go further out.
        assert result.positions[joint] >= min(lower + margin, previous[joint]) - tolerance
        assert result.positions[joint] <= max(upper - margin, previous[joint]) + tolerance
        lowest, highest = velocity_interval(name, joint, previous[joint])
        assert velocity_scale * lowest * dt - tolerance <= step[joint] <= velocity_scale * highest * dt + tolerance
        # Speed grows by at most the acceleration's share; it may shrink to nothing at once.
        before = velocity[joint] if velocity[joint] * step[joint] > 0 else 0.0
        assert abs(step[joint]) <= (abs(before) + acceleration * dt) * dt + tolerance
        # It never leads the arm by more than the limit, unless the arm has left by itself.
        lead_before, lead = abs(lag[joint]), abs(step[joint] - lag[joint])
        assert lead <= max(lead_before, 0.3) + tolerance


@given(name=st.sampled_from(sorted(ROBOTS)), at=shares(), lag=arrays(np.float64, 7, elements=st.floats(-1, 1)))
def test_staying_is_always_allowed(name, at, lag):
    robot = ROBOTS[name]
    previous = robot.position_lower - 0.05 + at * (robot.position_upper - robot.position_lower + 0.1)
    result = Guard(robot).limit(previous, robot.velocity, previous, previous + lag, DT)
    assert np.array_equal(result.positions, previous)
    assert result.interventions == ()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused(value):
    previous = np.array([0, 0, 0, -1.5, 0, 1.5, 0])
    wanted = previous + 0.001
    wanted[2] = value
    result = Guard(PANDA).limit(previous, np.zeros(7), wanted, previous, DT)
    assert result.refused
    assert np.array_equal(result.positions, previous)


def test_velocity_scaling_keeps_the_direction():
    previous = np.array([0, 0, 0, -1.5, 0, 1.5, 0])
    velocity = PANDA.velocity * np.array([1, 1, -1, 1, 1, -1, 0])
    direction = np.array([1, 0.5, -0.25, 0.1, 0, -0.9, 0]) * 0.1
    result = Guard(PANDA).limit(previous, velocity, previous + direction, previous, DT)
    step = result.positions - previous
    assert result.interventions == (Intervention.VELOCITY_LIMITED,)
    assert step[0] == pytest.approx(0.9 * 2.175 * DT)
    np.testing.assert_allclose(step / step[0], direction / direction[0], atol=1e-9)


def test_a_joint_at_its_limit_does_not_hold_up_the_others():
    for robot in (PANDA, FR3):
        for margin in (0.0, 0.05):
            guard = Guard(robot, GuardOptions(position_margin=margin))
            previous = (robot.position_lower + robot.position_upper) / 2
            previous[0] = guard.upper[0]
            result = guard.limit(previous, np.zeros(7), previous + 0.0005, previous, DT)
            step = result.positions - previous
            assert step[0] == 0
            np.testing.assert_allclose(step[1:], 0.0005, rtol=1e-6)


def test_the_approach_to_a_limit_can_be_braked():
    """Driven into its limit at full speed, the command's deceleration stays near the arm's own."""
    guard = Guard(PANDA)
    q, velocity = np.array([0, 0, 0, -1.5, 0, 1.5, 0]), np.zeros(7)
    speeds = []
    for _ in range(300):
        result = guard.limit(q, velocity, q + np.eye(7)[1], q, DT)
        velocity = (result.positions - q) / DT
        q = result.positions
        speeds.append(velocity[1])
    assert q[1] == pytest.approx(1.7628 - 0.05, abs=1e-3)
    assert max(speeds) == pytest.approx(0.9 * 2.175)
    assert np.diff(speeds).min() / DT >= -7.5 - 1e-6


@pytest.mark.parametrize(
    "wrong",
    [
        {"velocity_scale": 0},
        {"velocity_scale": 1.1},
        {"acceleration_scale": np.nan},
        {"position_margin": -0.1},
        {"max_tracking_error": 0},
    ],
)
def test_impossible_options_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        GuardOptions(**wrong)
