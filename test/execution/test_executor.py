"""The state machine: what moves the arm, what holds it, for how long, and what brings it back."""

from __future__ import annotations

import re

import numpy as np
import pytest
from execution_bench import DT, EPOCH, MS, Bench

from ki_ros.chunk import ChunkError, NonFiniteChunkError
from ki_ros.execution.executor import ExecutorOptions
from ki_ros.execution.state import ChunkRefusal, Reason, State
from ki_ros.rig import FR3, PANDA, ActionSpace


def policy(bench: Bench) -> None:
    assert bench.chunk() is None


def time_until_held(ticks, since_ns: int) -> float:
    """Seconds from `since_ns` until the first tick from which on the executor holds, and the arm is brought to rest."""
    executing = [i for i, (_, tick) in enumerate(ticks) if tick.state is State.EXECUTING]
    first = executing[-1] + 1 if executing else 0
    assert first < len(ticks), "the arm is not held"
    brakes([tick for _, tick in ticks[first:]])
    return (ticks[first][0] - since_ns) / 1e9


def brakes(ticks) -> np.ndarray:
    """Requires that the arm comes to rest as fast as a full brake and stays there; returns the position."""
    speeds = np.array([np.abs(tick.velocities) for tick in ticks])
    # What was decided one tick before is still passed.
    assert np.all(np.diff(speeds[1:], axis=0) <= 1e-9), "it goes faster while it is to stop"
    still = next((i for i, speed in enumerate(speeds) if not speed.any()), None)
    assert still is not None, "the arm never came to rest"
    assert still <= np.ceil((speeds[0] / (0.9 * PANDA.acceleration)).max() * 100) + 3
    for tick in ticks[still:]:
        assert np.array_equal(tick.positions, ticks[-1].positions)
        assert not tick.velocities.any()
    return ticks[-1].positions


def moves(ticks) -> bool:
    return any(tick.state is State.EXECUTING and tick.velocities.any() for _, tick in ticks)


def test_nothing_is_sent_while_disabled(make_bench):
    bench = make_bench()
    bench.executor.set_epoch(bench.now, EPOCH)
    for _, tick in bench.run(1.0, policy):
        assert (tick.state, tick.reason, tick.positions) == (State.DISABLED, Reason.DISABLED, None)


def test_enabling_needs_a_fresh_joint_state(make_bench):
    bench = make_bench()
    assert "no joint state" in bench.executor.enable(bench.now)
    bench.joint_state(age_ns=150 * MS)
    assert "0.150 s old" in bench.executor.enable(bench.now)
    assert not bench.executor.enabled
    bench.joint_state()
    assert bench.executor.enable(bench.now) is None


def test_enabling_holds_the_arm_exactly_where_it_is_measured(make_bench):
    bench = make_bench()
    bench.q = PANDA.position_upper + 0.01  # beyond the limits: it is not pulled inside by being enabled
    measured = bench.q.copy()
    bench.start()
    for _, tick in bench.run(0.5):
        assert tick.state is State.HOLDING
        assert np.array_equal(tick.positions, measured)
        assert tick.gripper is None


def test_an_arm_outside_of_its_limits_is_only_moved_inwards(make_bench):
    bench = make_bench()
    bench.q = PANDA.position_upper + 0.01
    bench.start()
    for _, tick in bench.run(0.5, lambda b: b.chunk([1.0] * 7 + [0])):
        assert np.all(tick.positions <= PANDA.position_upper + 0.01)
    last = bench.q.copy()
    bench.run(0.5, lambda b: b.chunk([-1.0] * 7 + [0]))
    assert np.all(bench.q < last)


def test_another_robots_joint_positions_do_not_enable(make_bench):
    bench = make_bench(FR3)
    bench.q = np.zeros(7)  # joint 4 and 6 of an FR3 cannot be at zero
    bench.joint_state()
    assert "is the parameter robot right?" in bench.executor.enable(bench.now)


def test_enabled_at_start_waits_for_the_joint_state(make_bench):
    bench = make_bench()
    bench.joints_on = False
    bench.executor.enable_when_possible(bench.now)
    assert bench.run(0.2)[-1][1].reason is Reason.AWAITING_JOINT_STATE
    bench.joints_on = True
    assert bench.tick().reason is Reason.NO_INSTRUCTION
    bench.executor.disable(bench.now)
    assert bench.tick().reason is Reason.DISABLED


def test_disabling_stops_the_stream_at_once(bench):
    assert moves(bench.run(0.5, policy))
    bench.executor.disable(bench.now)
    for _, tick in bench.run(0.5, policy):
        assert tick.positions is None
    # Enabled again it waits for a new chunk, at the place where the arm is now, once it stands still there.
    bench.q = bench.q + 0.05
    bench.now += MS
    bench.joint_state()
    assert "the arm moves" in bench.executor.enable(bench.now)
    bench.run(0.05)
    bench.now += MS
    bench.joint_state()
    assert bench.executor.enable(bench.now) is None
    expected = bench.q.copy()
    tick = bench.tick()
    assert tick.reason is Reason.WAITING_FOR_CHUNK
    assert np.array_equal(tick.positions, expected)
    # Whose observation is from after that.
    assert bench.chunk(age=0.05) is ChunkRefusal.STALE
    assert not moves(bench.run(0.05))
    assert moves(bench.run(0.5, policy))


def test_a_reset_does_not_end_the_brake(bench):
    assert moves(bench.run(0.5, policy))
    bench.executor.stop(bench.now)
    bench.tick()
    assert "brought to rest" in bench.executor.reset(bench.now)
    brakes([tick for _, tick in bench.run(0.5, policy)])
    assert bench.executor.reset(bench.now) is None
    assert bench.tick().reason is Reason.DISABLED


def test_holds_without_an_instruction(make_bench):
    bench = make_bench()
    bench.joint_state()
    bench.executor.enable(bench.now)
    assert bench.chunk(epoch=0) is ChunkRefusal.WRONG_EPOCH
    assert bench.tick().reason is Reason.NO_INSTRUCTION


def test_steady_chunks_are_executed_without_a_gap(bench):
    bench.run(1.0, policy)
    assert all(tick.state is State.EXECUTING for _, tick in bench.run(5.0, policy))
    assert dict(bench.executor.holds) in ({}, {"waiting_for_chunk": 1})


def test_a_policy_that_is_killed_is_missed_in_time(bench):
    bench.run(2.0, policy)
    died = bench.now
    ticks = bench.run(2.0)
    assert time_until_held(ticks, died) <= 0.2
    assert ticks[-1][1].reason is Reason.STALE_CHUNK
    assert moves(bench.run(0.5, policy))


def test_a_slow_policy_is_missed_at_the_hard_cap(bench):
    bench.run(5.0, policy, interval=0.2)
    bench.run(0.01)
    policy(bench)
    died = bench.now
    assert time_until_held(bench.run(2.0), died) <= 0.25 + 0.02


def test_a_policy_that_becomes_slower_is_given_its_time(bench):
    """It is held at first, as a gap is taken for its end; not for ever."""
    bench.run(3.0, policy)
    bench.run(4.0, policy, interval=0.2)
    assert all(tick.state is State.EXECUTING for _, tick in bench.run(3.0, policy, interval=0.2))


def test_efforts_are_needed_where_they_are_limited(make_bench):
    bench = make_bench(options=ExecutorOptions(max_effort=0.5))
    assert "no efforts, and max_effort is 0.5" in bench.joint_state()
    assert "no efforts" in bench.executor.enable(bench.now)
    assert bench.executor.receive_joint_state(bench.now, 0, bench.q, np.zeros(7)) is None
    assert bench.executor.enable(bench.now) is None


def test_enabling_is_refused_while_stopped_also_before_it_is_disabled(bench):
    bench.run(1.0, policy)
    bench.executor.stop(bench.now)
    assert bench.executor.enabled
    assert "then reset" in bench.executor.enable(bench.now)
    assert bench.run(1.0, policy)[-1][1].reason is Reason.STOPPED
    bench.executor.reset(bench.now)
    assert bench.executor.enable(bench.now) is None


def test_joint_states_that_stop(bench):
    bench.run(1.0, policy)
    stopped = bench.now
    bench.joints_on = False
    ticks = bench.run(1.0, policy)
    assert time_until_held(ticks, stopped) <= 0.12
    assert ticks[-1][1].reason is Reason.STALE_JOINT_STATE
    bench.joints_on = True
    assert bench.tick().reason is Reason.WAITING_FOR_CHUNK
    assert moves(bench.run(0.5, policy))


def test_joint_states_with_a_frozen_stamp_are_stale(bench):
    bench.run(1.0, policy)
    frozen, bench.joints_on = bench.now, False
    for _ in range(20):
        bench.executor.receive_joint_state(bench.now, bench.now - frozen, bench.q)
        bench.chunk()
        tick = bench.tick()
    assert tick.reason is Reason.STALE_JOINT_STATE


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_non_finite_joint_states_are_refused(bench, value):
    bench.run(1.0, policy)
    bench.joints_on = False
    bad = bench.q.copy()
    bad[3] = value
    assert "panda_joint4" in bench.executor.receive_joint_state(bench.now, 0, bad)
    assert bench.run(0.2, policy)[-1][1].reason is Reason.STALE_JOINT_STATE


def test_a_joint_state_from_the_future_is_refused(bench):
    assert "future" in bench.executor.receive_joint_state(bench.now, -200 * MS, bench.q)
    assert bench.executor.measured.refused == 1


@pytest.mark.parametrize(
    ("error", "reason"),
    [(NonFiniteChunkError("NaN"), Reason.NON_FINITE), (ChunkError("shape"), Reason.INVALID_CHUNK)],
)
def test_a_broken_chunk_holds_at_once_until_a_good_one(bench, error, reason):
    bench.run(1.0, policy)
    bench.executor.receive_invalid_chunk(bench.now, EPOCH, error)
    ticks = [tick for _, tick in bench.run(0.5)]
    assert {tick.reason for tick in ticks} == {reason}
    brakes(ticks)
    assert moves(bench.run(0.5, policy))


def test_a_broken_chunk_of_an_old_epoch_changes_nothing(bench):
    bench.run(1.0, policy)
    refusal = bench.executor.receive_invalid_chunk(bench.now, EPOCH - 1, NonFiniteChunkError("NaN"))
    assert refusal is ChunkRefusal.WRONG_EPOCH
    assert bench.tick().state is State.EXECUTING


def test_a_new_epoch_drops_everything_of_the_old_one(bench):
    bench.run(1.0, policy)
    bench.executor.set_epoch(bench.now, EPOCH + 1)
    assert bench.chunk(epoch=EPOCH) is ChunkRefusal.WRONG_EPOCH
    ticks = [tick for _, tick in bench.run(0.5, lambda b: b.chunk(epoch=EPOCH))]
    for tick in ticks:
        assert (tick.state, tick.reason, tick.epoch) == (State.HOLDING, Reason.WAITING_FOR_CHUNK, EPOCH + 1)
    brakes(ticks)
    assert moves(bench.run(0.5, lambda b: b.chunk(epoch=EPOCH + 1)))


def test_an_epoch_that_does_not_come_after_is_refused(bench):
    with pytest.raises(ValueError, match="does not come after"):
        bench.executor.set_epoch(bench.now, EPOCH)


@pytest.mark.parametrize(
    ("age", "refusal"), [(0.6, ChunkRefusal.STALE), (-0.2, ChunkRefusal.FUTURE), (0.5, None), (-0.02, None)]
)
def test_the_age_of_a_chunk(bench, age, refusal):
    assert bench.chunk(age=age) is refusal


def test_the_same_chunk_again_does_not_feed_the_watchdog(bench):
    bench.run(1.0, policy)
    observed = bench.now - 50 * MS
    bench.chunk()
    for _ in range(40):
        refusal = bench.chunk(age=(bench.now - observed) / 1e9)
        assert refusal is ChunkRefusal.OUT_OF_ORDER
        tick = bench.tick()
    assert tick.reason is Reason.STALE_CHUNK


def test_a_chunk_whose_rows_are_all_over_is_not_executed(bench):
    bench.run(1.0, policy)
    bench.executor.set_epoch(bench.now, EPOCH + 1)
    assert bench.chunk(age=0.4, rows=4, epoch=EPOCH + 1) is None
    assert bench.tick().reason is Reason.STALE_CHUNK


def test_the_open_loop_horizon_ends_the_motion(make_bench):
    options = ExecutorOptions(open_loop_horizon=2, max_chunk_gap=5.0)
    bench = make_bench(options=options).start()
    bench.chunk(age=0.0)
    ticks = bench.run(0.5)
    executing = [tick for _, tick in ticks if tick.state is State.EXECUTING]
    assert len(executing) == pytest.approx(2 * DT * 100, abs=1)
    assert {tick.step for tick in executing} == {0, 1}
    assert ticks[-1][1].reason is Reason.CHUNK_EXHAUSTED


def test_a_clock_that_goes_back_holds_and_recovers(bench):
    bench.run(1.0, policy)
    last = bench.ticks[-1][1].positions
    bench.now -= 10_000 * MS
    tick = bench.executor.tick(bench.now)
    assert tick.reason is Reason.STALE_JOINT_STATE
    assert np.array_equal(tick.positions, last)
    assert bench.executor.clock_jumps == 1
    assert moves(bench.run(0.5, policy))


def test_a_late_tick_moves_no_further_than_a_period_allows(bench):
    bench.run(1.0, lambda b: b.chunk([-0.5] * 7 + [0]))
    last = bench.ticks[-1][1].positions
    bench.now += 40 * MS
    tick = bench.tick()
    assert tick.state is State.EXECUTING
    assert np.all(np.abs(tick.positions - last) <= PANDA.velocity * 0.01 * 0.9 + 1e-12)


def test_an_arm_that_was_moved_away_disables_the_executor(bench):
    bench.run(1.0, policy)
    bench.q = bench.q - np.array([0.7, 0, 0, 0, 0, 0, 0])
    tick = bench.tick()
    assert (tick.state, tick.reason, tick.positions) == (State.DISABLED, Reason.TRACKING_LOST, None)
    assert re.match(r"panda_joint1 0\.\d\d rad from its command; .*max_tracking_error, 0.3", bench.executor.figures)
    assert not moves(bench.run(0.5, policy))
    assert bench.executor.enable(bench.now) is None
    bench.run(0.05)
    assert moves(bench.run(0.5, policy))


def test_a_target_far_from_the_arm_is_refused(bench):
    bench.run(1.0, policy)
    last = bench.ticks[-1][1].positions
    for _, tick in bench.run(1.0, lambda b: b.chunk([9.0] * 7 + [0], space=ActionSpace.JOINT_POSITION)):
        if tick.reason is Reason.GUARD_REFUSAL:
            held = tick.positions
    assert tick.reason in (Reason.GUARD_REFUSAL, Reason.WAITING_FOR_CHUNK)
    # The joint that is farthest: the fourth, whose positions are below zero.
    told = r"row \d+ wants panda_joint4 1\d\.\d\d rad from where it is; max_start_distance is 0.3"
    assert re.fullmatch(told, bench.executor.figures)
    assert np.abs(held - last).max() < 0.2  # what was left of the good chunk
    assert moves(bench.run(0.5, policy))


def test_a_step_reaches_its_target_on_time(bench):
    q = bench.q.copy()
    targets = q + np.outer(np.arange(1, 16), np.full(7, 0.01))
    rows = np.column_stack([targets, np.zeros(15)])
    bench.chunk(rows, age=0.0, space=ActionSpace.JOINT_POSITION)
    bench.run(0.01)
    start = bench.ticks[0][0]
    for now, tick in bench.run(0.2):
        ideal = q + 0.01 * (now - start) / 1e9 / DT
        assert np.abs(tick.positions - ideal).max() < 0.004  # the acceleration limit at the beginning, no more


def test_speed_is_even_across_the_seams_of_steps_and_chunks(bench):
    q, begin = bench.q.copy(), bench.now

    def ramp(b: Bench) -> None:
        times = (b.now - begin) / 1e9 + DT * np.arange(1, 16)
        rows = np.column_stack([q + 0.3 * times[:, None], np.zeros(15)])
        b.chunk(rows, age=0.0, space=ActionSpace.JOINT_POSITION)

    ticks = bench.run(2.0, ramp, interval=0.07)
    positions = np.array([tick.positions for _, tick in ticks if tick.state is State.EXECUTING])
    steps = np.diff(positions[20:], axis=0)
    # A chunk begins with the row that is nearest in time, so a seam between chunks may shift the path by half a row.
    assert steps.min() > 0
    assert np.median(np.abs(steps - 0.003)) < 1e-9
    assert (np.abs(steps[:, 0] - 0.003) < 1e-6).mean() > 0.7


def test_joint_velocity_moves_by_what_it_says(bench):
    """One unit is 0.2 rad in a step; a perfect arm is where it was commanded, so n steps move n times as far."""
    start = bench.q.copy()
    bench.run(2.0, lambda b: b.chunk([0.1, 0, 0, 0, 0, 0, 0, 0]))
    moved = bench.q - start
    assert moved[0] == pytest.approx(30 * 0.02, rel=0.03)
    assert np.all(moved[1:] == 0)


@pytest.mark.parametrize(
    ("binarize", "closedness", "angle"), [(True, 0.51, 0.8), (True, 0.5, 0.0), (False, 0.25, 0.2), (False, 7.0, 0.8)]
)
def test_gripper(make_bench, binarize, closedness, angle):
    bench = make_bench(options=ExecutorOptions(binarize_gripper=binarize)).start()
    bench.chunk([0] * 7 + [closedness])
    assert bench.tick().gripper == pytest.approx(angle)
    assert bench.run(2.0)[-1][1].gripper == pytest.approx(angle)  # held, too


def test_a_refused_observation_holds_the_arm_until_a_chunk_from_after_it(make_bench):
    bench = make_bench().start()
    assert moves(bench.run(0.5, policy))
    refused = bench.now
    bench.executor.receive_observation_status(refused, 0, complete=False)
    assert bench.tick().reason is Reason.OBSERVATION_REFUSED
    # Inference on the last good observation may still be under way: its chunk is no evidence that the cameras are back.
    assert bench.chunk(age=0.05) is ChunkRefusal.STALE
    assert bench.tick().state is State.HOLDING
    bench.run(0.1)
    bench.executor.receive_observation_status(bench.now, 0, complete=True)
    assert bench.tick().reason is Reason.OBSERVATION_REFUSED
    assert bench.chunk(age=0.05) is None
    assert bench.tick().state is State.EXECUTING


def test_a_refusal_before_the_first_chunk_is_no_fault(make_bench):
    bench = make_bench().start()
    bench.executor.receive_observation_status(bench.now, 0, complete=False)
    assert bench.tick().reason is Reason.WAITING_FOR_CHUNK


@pytest.mark.parametrize("ahead", [True, False])
def test_an_arm_is_not_held_in_the_midst_of_its_way_to_rest(make_bench, ahead):
    bench = make_bench(options=ExecutorOptions(looks_ahead=ahead)).start()
    bench.run(1.0, policy)
    assert np.abs(bench.tick().velocities).max() > 0.2
    bench.executor.disable(bench.now)
    problem = bench.executor.enable(bench.now)
    assert ("brings the arm to rest" if ahead else "the arm moves") in problem
    assert not bench.executor.enabled
    until = bench.executor.guard.to_rest()[0][-1]
    bench.run(until + 0.1)
    assert bench.executor.enable(bench.now) is None


def test_an_arm_that_rests_is_enabled_again_at_once(make_bench):
    bench = make_bench(options=ExecutorOptions(looks_ahead=True)).start()
    bench.run(0.5)
    bench.executor.disable(bench.now)
    assert bench.executor.enable(bench.now) is None
