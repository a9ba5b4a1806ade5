"""Faults at the seam between two chunks that other systems have had: none of them moves this arm.

Two more are pinned where they belong: a slow first answer that poisons the estimate of the delay, and a commitment that
is filled up with zeros, in `test_commitment.py`. Joint states and commands in another order than the robot's are in
`test_executor_node.py`, whose arm always reports its joints backwards.
"""

from __future__ import annotations

import numpy as np
import pytest
from execution_bench import DT
from stream_checker import Stream

from ki_ros.execution.executor import ExecutorOptions
from ki_ros.execution.schedule import SCHEDULES
from ki_ros.execution.state import State
from ki_ros.rig import ActionSpace

LATE = 0.2


def checked(ticks) -> np.ndarray:
    stream = Stream("panda", 0.01)
    for _, tick in ticks:
        stream.add(0.01, tick.positions, tick.velocities)
    assert stream.violations() == []
    return np.array([tick.positions for _, tick in ticks])


@pytest.mark.parametrize("name", [name for name in SCHEDULES if name != "synchronous"])
def test_a_chunk_that_finds_nothing_to_execute_does_not_make_the_arm_go_back(make_bench, name):
    """Its first rows are for where the arm was when it was observed. The arm has moved since, to the end of the chunk
    before, and to execute them because there is nothing else would draw it back."""
    options = ExecutorOptions(schedule=name, open_loop_horizon=5, max_chunk_gap=2.0, chunk_gap_intervals=0)
    bench = make_bench(options=options).start()
    q, begin = bench.q.copy(), bench.now

    def rows(observed: float) -> np.ndarray:
        """Where the arm is to be: it goes on at 0.3 rad/s."""
        times = observed + DT * np.arange(1, 16)
        return np.column_stack([q + 0.3 * times[:, None], np.zeros(15)])

    bench.chunk(rows(0.0)[:6], age=0.0, space=ActionSpace.JOINT_POSITION)
    ticks = bench.run(0.45)
    assert ticks[-1][1].state is State.HOLDING, "the rows of the first chunk are over"
    observed = (bench.now - begin) / 1e9 - LATE
    assert bench.chunk(rows(observed), age=LATE, space=ActionSpace.JOINT_POSITION, sequence=2) is None
    ticks += bench.run(0.4)
    positions = checked(ticks)
    executing = [tick.step for _, tick in ticks if tick.observation_sequence == 2]
    assert executing[0] == round(LATE / DT)
    assert np.diff(positions, axis=0).min() >= -1e-12


@pytest.mark.parametrize("name", ["latency_compensated", "rtc", "rtc_trained"])
def test_relative_rows_mean_the_same_in_the_chunk_that_follows(make_bench, name):
    """A row in joint_velocity space counts from where the arm is when it begins, and not from the observation of its
    chunk. So a chunk that agrees with the one before goes on with the motion, whatever the arm has done meanwhile."""
    bench = make_bench(options=ExecutorOptions(schedule=name)).start()
    row = [0.2, -0.1, 0.1, 0.1, 0.2, 0.1, 0.2, 0.0]
    bench.run(0.6, lambda b: b.chunk(row, age=0.1))
    ticks = bench.run(1.0, lambda b: b.chunk(row, age=0.1))
    steps = np.diff(checked(ticks), axis=0) / 0.01
    expected = 0.2 * np.array(row[:7]) / DT
    np.testing.assert_allclose(np.median(steps, axis=0), expected, rtol=0.1)
    assert np.abs(steps - expected).max() < 0.35 * np.abs(expected).max()
    # Somebody pushes the arm: it goes on from there, and is not taken back to where the chunk began.
    bench.q = bench.q + 0.05
    pushed = bench.q.copy()
    after = checked(bench.run(0.5, lambda b: b.chunk(row, age=0.1)))
    assert np.all((after[-1] - pushed) * np.sign(expected) > 0)


@pytest.mark.parametrize("name", SCHEDULES)
def test_motion_from_rest_begins_with_row_0_however_long_the_policy_thought(make_bench, name):
    """Nothing has been executed since the observation: to skip rows would make the arm leap to where it is not yet."""
    if name == "temporal_ensemble":
        options = ExecutorOptions(schedule=name, ensemble_decay=0.0)
    else:
        options = ExecutorOptions(schedule=name)
    bench = make_bench(options=options).start()
    bench.run(0.5)
    rows = np.column_stack([bench.q + 0.08 * np.arange(1, 16)[:, None] * np.ones(7), np.zeros(15)])
    assert bench.chunk(rows, age=0.3, space=ActionSpace.JOINT_POSITION) is None
    ticks = bench.run(4 * DT)
    checked(ticks)
    steps = [tick.step for _, tick in ticks if tick.state is State.EXECUTING]
    assert sorted(set(steps)) == [0, 1, 2, 3]
    # It begins with the next tick, and what that decides is due a period later.
    assert ticks[5][1].shift == pytest.approx(0.3 + 2 * 0.01, abs=0.001)
    # What is observed in motion begins with the row whose time has come, and not later than meant.
    more = rows + 0.08 * 4
    bench.run(0.2, lambda b: b.chunk(more, age=0.1, space=ActionSpace.JOINT_POSITION, sequence=2))
    _, after = bench.ticks[-1]
    if after.observation_sequence == 2:
        assert after.step > 0
        assert after.shift == 0.0


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("rate", [10.0, 15.0, 30.0, 50.0, 100.0, 250.0])
def test_it_does_at_every_rate_and_when_the_tick_is_late(make_bench, name, rate):
    options = ExecutorOptions(schedule=name, command_rate=rate, max_joint_state_age=1.0, max_chunk_gap=1.0)
    for came, late in ((0.1, 0.0), (0.9, 0.0), (0.5, 3.0)):
        bench = make_bench(options=options).start()
        for _ in range(5):
            bench.tick()
        bench.now += round(came * bench.period_ns)
        assert bench.chunk([0.1] * 7 + [0.0], age=0.2, dt=1 / 30, sequence=3) is None
        bench.now += round((late - came) * bench.period_ns)
        tick = bench.tick()
        assert (tick.observation_sequence, tick.step) == (3, 0)


def test_what_was_observed_before_the_arm_came_to_rest_begins_where_its_time_has_come(make_bench):
    """Also if the arm stands by the time that it arrives."""
    bench = make_bench(options=ExecutorOptions(max_chunk_gap=2.0, chunk_gap_intervals=0)).start()
    row = [0.2] * 7 + [0.0]
    bench.chunk(row, age=0.0, rows=5)
    ticks = bench.run(0.5)
    moving = [now for now, tick in ticks if tick.velocities.any()]
    rest = (bench.now - moving[-1]) / 1e9
    assert rest > 0.05
    bench.chunk(row, age=rest + 0.1, sequence=2)
    tick = bench.tick()
    assert (tick.step, tick.shift) == (round((rest + 0.1) / DT), 0.0)
