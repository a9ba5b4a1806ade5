"""A leader's commands through the executor: followed smoothly, begun from close by only, held when they end."""

from __future__ import annotations

import numpy as np
import pytest
from execution_bench import MS, Bench
from stream_checker import Stream

from ki_ros.execution.executor import ExecutorOptions
from ki_ros.execution.state import Reason, State


@pytest.fixture
def bench() -> Bench:
    bench = Bench(options=ExecutorOptions(source="teleoperation"))
    bench.joint_state()
    assert bench.executor.enable(bench.now) is None
    return bench


def follow(bench: Bench, command, seconds: float, rate: float = 30.0, gripper: float | None = None):
    """Ticks while a leader commands `command(seconds since now)` at a rate."""
    begin, due = bench.now, bench.now
    ticks = []
    while bench.now < begin + seconds * 1e9:
        if bench.now >= due:
            assert bench.executor.receive_command(bench.now, 0, command((bench.now - begin) / 1e9), gripper) is None
            due += round(1e9 / rate)
        ticks.append((bench.now, bench.tick()))
    return ticks


def test_the_arm_follows_a_leader_smoothly(bench):
    q = bench.q.copy()
    stream = Stream("panda", 0.01)
    wanted = lambda t: q + 0.4 * (1 - np.cos(2 * t))  # noqa: E731
    ticks = follow(bench, wanted, 4.0)
    for _, tick in ticks:
        assert tick.state is State.EXECUTING
        stream.add(0.01, tick.positions, tick.velocities)
    assert stream.violations() == []
    # A command is gone to in one and a half times the time until the next.
    begin = ticks[0][0]
    away = [tick.positions - wanted((now - begin) / 1e9 - 1.5 / 30) for now, tick in ticks[20:]]
    assert np.abs(away).max() < 0.015
    # The speed is the leader's, not a stop and a start with each command.
    for now, tick in ticks[50:]:
        assert abs(tick.velocities[0] - 0.8 * np.sin(2 * ((now - begin) / 1e9 - 1.5 / 30))) < 0.1


def test_a_leader_that_is_far_away_moves_nothing_until_it_is_close(bench):
    q = bench.q.copy()
    for _, tick in follow(bench, lambda _t: q + 0.5, 0.5):
        assert (tick.state, tick.reason) == (State.HOLDING, Reason.START_POSE)
        assert np.array_equal(tick.positions, q)
    assert follow(bench, lambda _t: q + 0.2, 1.0)[-1][1].state is State.EXECUTING
    np.testing.assert_allclose(bench.q, q + 0.2, atol=1e-6)


def test_commands_that_end_hold_the_arm(bench):
    q = bench.q.copy()
    follow(bench, lambda t: q + 0.5 * t, 1.0)
    for _ in range(60):
        tick = bench.tick()
    assert (tick.state, tick.reason) == (State.HOLDING, Reason.STALE_COMMAND)
    assert not tick.velocities.any()
    # From the leader's new place the arm is not fetched.
    assert follow(bench, lambda _t: bench.q * 0 + q + 2.0, 0.2)[-1][1].reason is Reason.START_POSE


def test_a_leader_that_jumps_away_is_not_followed(bench):
    q = bench.q.copy()
    follow(bench, lambda t: q + 0.2 * t, 1.0)
    here = bench.q.copy()
    ticks = follow(bench, lambda _t: q + 1.2, 1.0)
    assert {tick.reason for _, tick in ticks} == {Reason.START_POSE}
    assert np.abs(bench.q - here).max() < 0.05
    # It is again when the leader has come back to the arm.
    assert follow(bench, lambda _t: q + 0.3, 0.5)[-1][1].state is State.EXECUTING


def test_the_age_of_a_command_is_that_of_its_stamp(bench):
    q, give = bench.q.copy(), bench.executor.receive_command
    assert "0.250 s old; max_command_age is 0.2 s" in give(bench.now, 250 * MS, q, None)
    assert "0.100 s in the future" in give(bench.now, -100 * MS, q, None)
    assert bench.tick().reason is Reason.WAITING_FOR_COMMAND
    assert give(bench.now, 150 * MS, q, None) is None
    assert bench.tick().state is State.EXECUTING
    for _ in range(5):
        tick = bench.tick()
    assert tick.reason is Reason.STALE_COMMAND
    # One that has been overtaken changes nothing.
    assert give(bench.now, 0, q, None) is None
    assert give(bench.now, 50 * MS, q + 0.2, None) is None
    for _ in range(10):
        tick = bench.tick()
    np.testing.assert_allclose(tick.positions, q, atol=1e-9)


def test_what_is_not_finite_is_refused_and_holds(bench):
    q = bench.q.copy()
    follow(bench, lambda t: q + 0.3 * t, 0.5)
    assert "not finite" in bench.executor.receive_command(bench.now, 0, q * np.nan, None)
    assert bench.tick().reason is Reason.WAITING_FOR_COMMAND
    assert "6 positions" in bench.executor.receive_command(bench.now, 0, q[:6], None)


def test_the_gripper_follows_and_the_operator_stops(bench):
    q = bench.q.copy()
    assert follow(bench, lambda _t: q, 0.1)[-1][1].gripper is None
    assert follow(bench, lambda _t: q, 0.1, gripper=0.5)[-1][1].gripper == pytest.approx(0.4)
    bench.executor.stop(bench.now)
    assert follow(bench, lambda t: q + t, 0.3)[-1][1].reason is Reason.STOPPED
    assert np.array_equal(bench.q, q)


def test_a_policys_executor_takes_no_commands(make_bench):
    bench = make_bench().start()
    assert "source" in bench.executor.receive_command(bench.now, 0, bench.q, None)
    with pytest.raises(ValueError, match="source is 'joystick'"):
        ExecutorOptions(source="joystick")


def test_after_a_pause_the_leader_is_followed_from_rest(bench):
    q = bench.q.copy()
    follow(bench, lambda t: q + 0.3 * np.sin(2 * t), 0.5)
    last = bench.ticks[-1][1].positions
    bench.now += 200_000_000
    ticks = [tick for _, tick in follow(bench, lambda t: q + 0.3 * np.sin(2 * t + 1.0), 1.0, rate=200.0)]
    waited = [tick.positions is None for tick in ticks].index(False)
    assert waited >= 5
    assert {tick.reason for tick in ticks[:waited]} == {Reason.STALE_JOINT_STATE, Reason.AWAITING_REST}
    assert np.array_equal(ticks[waited].positions, last)
    assert not ticks[waited].velocities.any()
    assert ticks[-1].state is State.EXECUTING
