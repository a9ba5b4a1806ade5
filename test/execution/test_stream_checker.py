"""The checker of commands finds what is planted for it, and nothing in a motion that keeps the limits."""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np
import pytest
from stream_checker import TABLE, Stream, at_one_kilohertz, rounding, velocity_interval, violations

from ki_ros.rig import ROBOTS

MIDDLE = {name: np.array([(row[0] + row[1]) / 2 for row in table]) for name, table in TABLE.items()}


def smooth(name: str, rate: float, share: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A sine of every joint that reaches a share of its velocity and less of everything else."""
    times = np.arange(0, 4, 1 / rate)
    top = np.array([row[2] for row in TABLE[name]])
    omega = 2.0
    positions = MIDDLE[name] - 0.1 * top * share * np.cos(omega * times[:, None]) * 5
    return times, positions, 0.1 * top * share * omega * 5 * np.sin(omega * times[:, None])


def kinds(found) -> set[tuple[str, int]]:
    return {(violation.kind, violation.joint) for violation in found}


def test_the_rigs_velocity_limits_are_the_tables():
    for name, robot in ROBOTS.items():
        for share in np.linspace(-0.01, 1.01, 203):
            q = robot.position_lower + share * (robot.position_upper - robot.position_lower)
            lowest, highest = velocity_interval(name, q[None])
            np.testing.assert_allclose(robot.velocity_limits(q), (lowest[0], highest[0]), atol=1e-12)


@pytest.mark.parametrize("name", TABLE)
@pytest.mark.parametrize("rate", [100.0, 250.0])
def test_a_motion_within_the_limits_passes(name, rate):
    times, positions, velocities = smooth(name, rate, 0.3)
    stream = Stream(name, 1 / rate)
    for q, v in zip(positions, velocities, strict=True):
        stream.add(1 / rate, q, v)
    assert stream.violations() == []
    assert violations(name, times, positions) == []


@pytest.mark.parametrize("name", TABLE)
@pytest.mark.parametrize("joint", [0, 3, 6])
def test_what_is_planted_is_found(name, joint):
    times, positions, _ = smooth(name, 1000.0, 0.3)
    lower, upper, top, acceleration, _ = TABLE[name][joint]

    def changed(to) -> set[tuple[str, int]]:
        moved = positions.copy()
        moved[:, joint] = to
        return kinds(violations(name, times, moved))

    q = positions[:, joint]
    assert ("position", joint) in changed(q + upper - q.max() + 0.001)
    assert ("position", joint) in changed(q + lower - q.min() - 0.001)
    middle = MIDDLE[name][joint]
    assert changed(middle + (times - 2) * top * 0.1) == set()
    fast = changed(middle + (times - 2) * top * 1.001 * (np.abs(times - 2) < 0.3))
    assert ("velocity", joint) in fast
    bend = 0.5 * 1.001 * acceleration * np.where(times < 2, 0, np.minimum(times - 2, 0.1)) ** 2
    ramp = np.where(times > 2.1, 1.001 * acceleration * 0.1 * (times - 2.1), 0)
    assert ("acceleration", joint) in changed(middle - 0.5 + bend + ramp)
    # An acceleration below the limit that turns round from one sample to the next.
    since = np.clip(times - 2, 0, 0.05), np.clip(times - 2.05, 0, 0.05)
    swing = 0.9 * acceleration * (0.5 * since[0] ** 2 + since[1] * 0.05 - 0.5 * since[1] ** 2)
    assert changed(middle - 0.4 + swing) == {("jerk", joint)}
    # A seam: one sample later the path is a milliradian further on.
    assert {("jerk", joint), ("acceleration", joint)} <= changed(q + 0.001 * (times > 2))


def test_a_velocity_that_is_only_too_fast_near_the_limit_is_found_for_the_fr3():
    times = np.arange(0, 0.3, 1e-3)
    positions = np.tile(MIDDLE["fr3"], (len(times), 1))
    positions[:, 4] = 2.8065 - 0.2 + 2.0 * (times - 0.3)
    assert kinds(violations("fr3", times, positions)) == set()
    positions[:, 4] += 0.15
    assert kinds(violations("fr3", times, positions)) == {("velocity", 4)}


def test_what_happens_between_two_commands_is_found():
    """Positions that are fine by themselves, with velocities that make the motion between them swing."""
    times, positions, velocities = smooth("panda", 100.0, 0.3)
    assert violations("panda", times, positions) == []
    assert violations("panda", *at_one_kilohertz(times, positions, velocities)) == []
    velocities[50, 2] += 0.5
    assert {kind for kind, joint in kinds(violations("panda", *at_one_kilohertz(times, positions, velocities)))} == {
        "acceleration",
        "jerk",
    }


def test_rounding_is_what_exact_arithmetic_says():
    """Third differences of positions that are rounded lie as far from the exact ones as they are said to, at most."""
    rng = np.random.default_rng(5)
    times = np.cumsum(rng.uniform(1e-4, 1e-3, 200))
    exact = [Fraction(float(t)) ** 2 * 7 + Fraction(3) for t in times]
    positions = np.array([[float(q)] for q in exact])

    def third(values) -> list[Fraction]:
        t = [Fraction(float(x)) for x in times]
        for order in (1, 2, 3):
            values = [(b - a) * order / (t[i + order] - t[i]) for i, (a, b) in enumerate(itertools.pairwise(values))]
        return values

    rounded = third([Fraction(float(q)) for q in positions[:, 0]])
    off = np.array([abs(float(a - b)) for a, b in zip(rounded, third(exact), strict=True)])
    said = rounding(times, positions, 3)[:, 0]
    assert np.all(off <= said)
    # And it is no excuse for more than that.
    assert (off / said).max() > 0.2
