"""An arm that is sent velocities keeps to the commanded positions, however unevenly they are sent."""

from __future__ import annotations

import numpy as np
import pytest
from execution_bench import DT, Bench
from hypothesis import given
from hypothesis import strategies as st

from ki_ros.execution.guard import Guard
from ki_ros.execution.velocity import CORRECTION_SHARE, VelocityAdapter
from ki_ros.rig import FR3, PANDA

PERIOD = 0.01


def test_velocities_of_an_arm_that_keeps_up_pass_as_they_are():
    adapter, q = VelocityAdapter(PANDA, PERIOD), np.zeros(7)
    speed = np.linspace(-1, 1, 7)
    for _ in range(50):
        arm, q = q, q + speed * PERIOD
        np.testing.assert_allclose(adapter.velocities(q, speed, arm), speed, atol=1e-12)


def test_a_held_arm_gets_zeros_wherever_it_is():
    adapter, q, apart = VelocityAdapter(PANDA, PERIOD), np.zeros(7), np.full(7, 0.1)
    adapter.velocities(q, np.full(7, 0.5), q)
    for _ in range(3):
        assert not adapter.velocities(q, np.zeros(7), q + apart).any()
    # It comes back with the next motion.
    assert np.all(adapter.velocities(q, np.full(7, 0.5), q + apart) < 0.5)


def test_what_is_not_known_is_not_corrected():
    adapter, speed = VelocityAdapter(PANDA, PERIOD), np.full(7, 0.5)
    # The first command of all, and one without a joint state.
    for measured in (np.ones(7), None):
        np.testing.assert_array_equal(adapter.velocities(np.zeros(7), speed, measured), speed)


@given(
    gaps=st.lists(st.floats(0.001, 0.03), min_size=50, max_size=200),
    speed=st.floats(-1.5, 1.5),
    offset=st.floats(-0.3, 0.3),
)
def test_the_arm_comes_back_to_its_commands_within_the_limits(gaps, speed, offset):
    for robot in (PANDA, FR3):
        adapter, command = VelocityAdapter(robot, PERIOD), np.array([0, 0, 0, -1.5, 0, 2.0, 0])
        arm, sent, apart = command + offset, np.zeros(7), []
        adapter.velocities(command, np.zeros(7), arm)
        for i, gap in enumerate(gaps):
            arm = arm + sent * gap
            apart.append(np.abs(arm - command).max())
            # There and back, as far as the limits are away.
            velocities = np.full(7, speed if i // 25 % 2 == 0 else -speed)
            command = command + velocities * gap
            sent = adapter.velocities(command, velocities, arm)
            slowest, fastest = robot.velocity_limits(command)
            assert np.all((sent >= slowest) & (sent <= fastest))
            assert np.all(np.abs(sent - velocities) <= CORRECTION_SHARE * np.abs(velocities) + 1e-12)
        # No further than it was, but for what it moves in the longest gap.
        assert apart[-1] <= abs(offset) + 2 * 0.03 * abs(speed) + 1e-9


def test_a_joint_beside_its_command_is_not_jerked():
    """From rest and to rest again as the guard leads it, with a joint 50 mrad off: within the arm's acceleration."""
    adapter, guard, q = VelocityAdapter(PANDA, PERIOD), Guard(PANDA, period=PERIOD), np.zeros(7)
    q[3], q[5] = -1.5, 2.0
    guard.reset(q)
    sent = []
    for tick in range(200):
        done = guard.follow(q + 0.3, guard.decided, PERIOD) if tick < 20 else guard.stop(PERIOD)
        sent.append(adapter.velocities(done.positions, done.velocities, done.positions + 0.05))
    assert np.max(sent) > 0.3
    # Where it brakes, the correction ends with the motion.
    strongest = np.abs(np.diff(sent, axis=0)) / PERIOD
    assert np.all(strongest[:20] <= PANDA.acceleration)
    assert np.all(strongest <= (1 + CORRECTION_SHARE) * 0.9 * PANDA.acceleration)
    assert not sent[-1].any()


@pytest.mark.parametrize("corrected", [True, False])
def test_steps_relative_to_the_arm_do_not_run_away(corrected):
    """Ticks that come after 8 and 12 ms in turn. Uncorrected, the distance of command and arm grows by itself."""
    bench = Bench().start()
    adapter, sent, apart, due = VelocityAdapter(PANDA, PERIOD), np.zeros(7), [], bench.now
    row = np.array([0.05, -0.05, 0.05, 0.05, -0.05, 0.05, 0.05, 0.0])
    for i in range(600):
        if bench.now >= due:
            bench.chunk(row if i // 100 % 2 == 0 else -row)
            due += round(DT * 1e9)
        gap = 12 if i % 2 else 8
        bench.now += gap * 1_000_000
        bench.q = bench.q + sent * gap * 1e-3
        bench.joint_state()
        tick = bench.executor.tick(bench.now)
        assert tick.positions is not None, tick.reason
        apart.append(np.abs(tick.positions - bench.q).max())
        sent = adapter.velocities(tick.positions, tick.velocities, bench.q) if corrected else tick.velocities
    assert (max(apart) < 0.02) == corrected, max(apart)
