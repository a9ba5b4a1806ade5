"""Rows that an arm is committed to, by brute force over time; and the estimate of the delay."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ki_ros.chunk import ActionChunk
from ki_ros.commitment import Commitment, DelayEstimate, commit
from ki_ros.rig import ActionSpace

DT = 1 / 15
ROWS = np.arange(15.0)[:, None] * np.ones(8)


def executing(stamp: int, actions=ROWS) -> ActionChunk:
    return ActionChunk(stamp, 1, 1, ActionSpace.JOINT_POSITION, DT, actions)


@given(periods=st.integers(1, 20), late=st.floats(-0.4, 0.4), delay=st.floats(0, 0.8))
def test_rows_are_matched_by_the_time_that_they_are_for(periods, late, delay):
    stamp = 10**12
    observed = stamp + round((periods + late) * DT * 1e9)
    commitment = commit(executing(stamp), observed, delay)
    if periods >= 15:
        assert commitment is None
        return
    # Row k of the new chunk and what was planned for the same time are less than half a row apart.
    for k, action in enumerate(commitment.actions):
        assert abs((observed - stamp) / 1e9 + k * DT - action[0] * DT) < 0.5 * DT
    assert len(commitment.actions) == 15 - periods
    # Rows that have begun when the answer comes.
    begun = sum(k * DT < delay - 1e-7 for k in range(15))
    assert commitment.rows == min(begun, len(commitment.actions))


def test_nothing_is_made_up():
    actions = executing(0).actions
    commitment = commit(executing(10**9), 10**9 + round(12 * DT * 1e9), 0.5)
    assert commitment.rows == 3
    np.testing.assert_array_equal(commitment.actions, actions[12:])
    # Of a chunk that is over, and of one that is no older than the observation, nothing is left to go on from.
    assert commit(executing(10**9), 10**9 + round(15 * DT * 1e9), 0.1) is None
    assert commit(executing(10**9), 10**9, 0.1) is None


def test_a_chunk_that_is_executed_later_than_meant():
    """Row k is executed at the stamp + shift + k * dt."""
    stamp, shift = 10**12, 3.2 * DT
    for observed_at in (3.3, 5.0, 9.6):
        commitment = commit(executing(stamp), stamp + round(observed_at * DT * 1e9), 2 * DT, shift)
        expected = [k for k in range(15) if shift / DT + k >= observed_at - 0.5]
        assert commitment.actions[:, 0].tolist() == expected
        assert commitment.rows == 2
    # Before it begins, all of it lies ahead.
    assert len(commit(executing(stamp), stamp + round(DT * 1e9), 2 * DT, shift).actions) == 15
    with pytest.raises(ValueError, match="shift is -1"):
        commit(executing(stamp), stamp + 1, 0.1, -1.0)


@pytest.mark.parametrize("delay", [-0.1, float("nan"), float("inf")])
def test_a_delay_that_is_none_is_refused(delay):
    with pytest.raises(ValueError, match="delay is"):
        commit(executing(0), 10**9, delay)
    with pytest.raises(ValueError, match="delay is"):
        DelayEstimate().add(delay)


def test_what_cannot_be_committed_to_is_refused():
    with pytest.raises(ValueError, match="rows is 3; expected 0 to 2"):
        Commitment(np.zeros((2, 8)), 3)
    with pytest.raises(ValueError, match=r"actions has shape \(0, 8\)"):
        Commitment(np.zeros((0, 8)), 0)


def test_the_first_answer_does_not_poison_the_estimate():
    estimate = DelayEstimate(window=3)
    assert estimate.seconds is None
    estimate.add(8.0)
    assert estimate.seconds is None
    for delay, longest in ((0.1, 0.1), (0.3, 0.3), (0.2, 0.3), (0.1, 0.3), (0.1, 0.2), (0.1, 0.1)):
        estimate.add(delay)
        assert estimate.seconds == longest
