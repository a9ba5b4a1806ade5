"""The schedule against a brute-force one."""

from __future__ import annotations

import gc
import math
import weakref

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ki_ros.chunk import ActionChunk
from ki_ros.execution.schedule import (
    SCHEDULES,
    LatencyCompensated,
    RealTime,
    Synchronous,
    TemporalEnsemble,
    make_schedule,
)
from ki_ros.rig import ActionSpace

MS = 1_000_000
DT_NS = 66_666_667
NEVER = 10**15


def make(horizon=15, dt=1 / 15, sequence=0):
    return ActionChunk(0, sequence, 1, ActionSpace.JOINT_POSITION, dt, np.zeros((horizon, 8)))


def filled(value, space=ActionSpace.JOINT_POSITION):
    return ActionChunk(0, 1, 1, space, 1 / 15, np.full((15, 8), value))


def test_rows_follow_each_other_in_time():
    schedule = LatencyCompensated(8, NEVER)
    schedule.offer(make(), observed_ns=0)
    rows = [step.row for t in range(0, 700 * MS, MS) if (step := schedule.advance(t)) is not None]
    assert rows == [min(t * MS // DT_NS, 7) for t in range(len(rows))]
    assert len(rows) == pytest.approx(8 * 1000 / 15, abs=1)


@given(age=st.integers(0, 2_000_000_000), horizon=st.integers(1, 20), count=st.integers(1, 20))
def test_the_first_row_is_the_one_nearest_in_time(age, horizon, count):
    schedule = LatencyCompensated(count, NEVER)
    schedule.offer(make(horizon), observed_ns=0)
    step = schedule.advance(age)
    nearest = min(range(2000), key=lambda row: abs(row * DT_NS - age))
    if nearest >= horizon:
        assert step is None
        assert schedule.expired
        return
    # At the middle between two rows either is as near.
    assert abs(step.row * DT_NS - age) <= abs(nearest * DT_NS - age) + 1
    assert step.row < horizon
    assert step.start_ns == age
    rows = {s.row for t in range(age, age + 21 * DT_NS, DT_NS // 4) if (s := schedule.advance(t)) is not None}
    assert rows == set(range(step.row, min(horizon, step.row + count)))


def test_the_newest_chunk_follows_without_a_gap():
    schedule = LatencyCompensated(2, NEVER)
    schedule.offer(make(sequence=1), observed_ns=0)
    assert schedule.advance(0).observation_sequence == 1
    schedule.offer(make(sequence=2), observed_ns=30 * MS)
    schedule.offer(make(sequence=3), observed_ns=2 * DT_NS)
    assert schedule.advance(100 * MS).observation_sequence == 1
    step = schedule.advance(2 * DT_NS + 7 * MS)
    assert (step.observation_sequence, step.row, step.start_ns) == (3, 0, 2 * DT_NS)


def test_after_a_pause_it_begins_anew():
    schedule = LatencyCompensated(2, NEVER)
    schedule.offer(make(), observed_ns=0)
    schedule.advance(0)
    assert schedule.advance(3 * DT_NS) is None
    assert not schedule.expired
    schedule.offer(make(), observed_ns=10 * DT_NS)
    assert schedule.advance(10 * DT_NS + 5).start_ns == 10 * DT_NS + 5


def scheduled(name, max_age_ns=NEVER):
    return make_schedule(name, open_loop_horizon=8, max_age_ns=max_age_ns, ensemble_decay=0.1)


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_chunk_that_waited_too_long_is_dropped(name):
    schedule = scheduled(name, 500 * MS)
    schedule.offer(make(horizon=100), observed_ns=0)
    assert schedule.advance(501 * MS) is None
    assert schedule.expired
    assert schedule.advance(502 * MS) is None


@pytest.mark.parametrize("name", SCHEDULES)
def test_nothing_is_left_after_clear(name):
    schedule = scheduled(name)
    schedule.offer(make(), 0)
    assert schedule.advance(0) is not None
    schedule.offer(make(), 0)
    schedule.clear()
    assert schedule.advance(1) is None


def test_what_cannot_be_scheduled_is_refused():
    for schedule in (LatencyCompensated, Synchronous):
        with pytest.raises(ValueError, match="open_loop_horizon is 0"):
            schedule(0, NEVER)
    with pytest.raises(ValueError, match="decay is nan"):
        TemporalEnsemble(float("nan"), NEVER)
    with pytest.raises(ValueError, match="schedule is 'eager'; use one of synchronous"):
        scheduled("eager")


# Synchronous: the arm stands still while the policy thinks


def test_whoever_stops_to_think_begins_with_row_0_of_an_answer_to_what_is_seen_at_rest():
    schedule = Synchronous(2, NEVER)
    schedule.offer(make(sequence=1), observed_ns=0)
    assert schedule.advance(200 * MS).row == 0
    rest = 200 * MS + 2 * DT_NS
    # Seen while the arm moved: its row 0 would take the arm back there.
    schedule.offer(make(sequence=2), observed_ns=rest - 1)
    assert schedule.advance(rest) is None
    schedule.offer(make(sequence=3), observed_ns=rest - 1)
    assert schedule.advance(rest + 10 * MS) is None
    assert not schedule.expired
    schedule.offer(make(sequence=4), observed_ns=rest)
    step = schedule.advance(rest + 90 * MS)
    assert (step.observation_sequence, step.row, step.start_ns) == (4, 0, rest + 90 * MS)


# Real time: the next row is the newest chunk's


@given(
    arrivals=st.lists(st.tuples(st.integers(0, 60), st.integers(0, 300)), min_size=1, max_size=5),
    horizon=st.integers(4, 15),
)
def test_each_row_is_that_of_the_newest_chunk_that_had_come_when_it_began(arrivals, horizon):
    """Chunks arrive at multiples of 10 ms, so many milliseconds after their observations."""
    schedule, when, step, offered = RealTime(NEVER), {}, None, {}
    for sequence, (at, delay) in enumerate(sorted(arrivals), 1):
        when.setdefault(at * 10 * MS, []).append((sequence, at * 10 * MS - delay * MS))
    for now in range(0, 2000 * MS, 10 * MS):
        for sequence, observed in when.get(now, []):
            schedule.offer(make(horizon, sequence=sequence), observed)
            offered[sequence] = observed
        before, step = step, schedule.advance(now)
        if step is None:
            # Nothing that has come has a row for now.
            newest = max(offered, default=None)
            assert newest is None or now - offered[newest] > (horizon - 0.5) * DT_NS - 10 * MS
            continue
        assert step.start_ns <= now < step.end_ns
        if before is not None and step != before and now < before.end_ns + DT_NS:
            assert step.start_ns == before.end_ns
        if step != before:
            assert step.observation_sequence == max(offered)
        # The row's time is within half a step of the time that it is executed at.
        assert abs(offered[step.observation_sequence] + step.row * DT_NS - step.start_ns) <= DT_NS / 2 + 20


def test_without_a_newer_chunk_it_is_executed_to_its_end():
    schedule = RealTime(NEVER)
    schedule.offer(make(horizon=5), observed_ns=0)
    rows = [step.row for t in range(0, 500 * MS, 10 * MS) if (step := schedule.advance(t)) is not None]
    assert rows == [min(t * 10 * MS // DT_NS, 4) for t in range(len(rows))]
    assert len(rows) == 34


# Temporal ensemble: a brute force that knows nothing of steps


@given(
    times=st.lists(st.integers(0, 900), min_size=1, max_size=6, unique=True),
    decay=st.floats(-2, 2),
    now=st.integers(0, 1500),
    seed=st.integers(0, 100),
)
def test_the_ensemble_is_the_weighted_mean_of_all_that_is_said_about_the_moment(times, decay, now, seed):
    random, schedule = np.random.default_rng(seed), TemporalEnsemble(decay, 700 * MS)
    now_ns, said = now * MS, []
    for sequence, time in enumerate(sorted(times)):
        chunk = ActionChunk(0, sequence, 1, ActionSpace.JOINT_POSITION, 1 / 15, random.normal(size=(10, 8)))
        schedule.offer(chunk, time * MS)
        # A row is for the time within half a step of it; those to come are for the first row.
        rows = [row for row in range(10) if abs(time * MS + row * DT_NS - now_ns) <= DT_NS / 2]
        row = 0 if now <= time else (rows[0] if rows else None)
        if row is not None and now - time <= 700:
            said.append(chunk.actions[row])
    step = schedule.advance(now_ns)
    if not said:
        assert step is None
        assert schedule.expired
        return
    weights = [math.exp(-decay * i) for i in range(len(said))]
    expected = sum(w * action for w, action in zip(weights, said, strict=True)) / sum(weights)
    np.testing.assert_allclose(step.action, expected, atol=1e-12)
    assert step.start_ns == now_ns


def test_the_ensemble_s_steps_follow_each_other_and_take_in_what_has_come():
    schedule = TemporalEnsemble(0.0, NEVER)
    schedule.offer(filled(0.0), 0)
    first = schedule.advance(0)
    schedule.offer(filled(1.0), 30 * MS)
    assert schedule.advance(60 * MS) is first
    second = schedule.advance(DT_NS + 3 * MS)
    assert second.start_ns == first.end_ns == DT_NS
    np.testing.assert_allclose(second.action, 0.5)


def test_the_ensemble_does_not_keep_what_nobody_asks_for():
    schedule, kept = TemporalEnsemble(0.0, 500 * MS), []
    for i in range(300):
        chunk = filled(float(i))
        kept.append(weakref.ref(chunk))
        schedule.offer(chunk, i * 67 * MS)
        del chunk
    gc.collect()
    assert sum(each() is not None for each in kept) < 20


def test_the_ensemble_mixes_no_action_spaces():
    schedule = TemporalEnsemble(0.0, NEVER)
    schedule.offer(filled(0.0), 0)
    schedule.offer(filled(1.0, ActionSpace.JOINT_VELOCITY), 10 * MS)
    step = schedule.advance(20 * MS)
    assert step.action_space is ActionSpace.JOINT_VELOCITY
    np.testing.assert_allclose(step.action, 1.0)
