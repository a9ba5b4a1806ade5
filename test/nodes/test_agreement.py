"""What the policy node makes of the executor's status and of its own chunks."""

from __future__ import annotations

import time

import numpy as np
import pytest

from ki_ros.chunk import ActionChunk
from ki_ros.commitment import Commitment
from ki_ros.msg import ExecutorStatus
from ki_ros.nodes.agreement import Agreement, within
from ki_ros.rig import ActionSpace

EPOCH, STAMP, PERIOD, SECOND = 7, 10**12, round(1e9 / 15), 10**9


def chunk(sequence: int = 3, epoch: int = EPOCH, stamp: int = STAMP) -> ActionChunk:
    rows = np.arange(15.0)[:, None] * np.ones(8)
    return ActionChunk(stamp, sequence, epoch, ActionSpace.JOINT_POSITION, 1 / 15, rows)


def status(**changes) -> ExecutorStatus:
    usual = {"state": ExecutorStatus.EXECUTING, "epoch": EPOCH, "observation_sequence": 3, "schedule": "rtc"}
    return ExecutorStatus(**(usual | changes))


@pytest.fixture
def agreement() -> Agreement:
    """Two answers are known, the first of which took long."""
    agreement = Agreement()
    agreement.sent(chunk(2, stamp=STAMP - PERIOD), STAMP - PERIOD + 5 * SECOND)
    agreement.sent(chunk(), STAMP + SECOND // 10)
    return agreement


def test_the_arm_is_committed_to_what_it_does_until_the_answer_comes(agreement: Agreement) -> None:
    commitment = agreement.commitment(STAMP + 2 * PERIOD, EPOCH, status())
    assert agreement.delay == 0.1
    assert commitment.rows == 2
    np.testing.assert_array_equal(commitment.actions[:, 0], np.arange(2.0, 15.0))


def test_a_chunk_that_began_late_is_as_much_behind(agreement: Agreement) -> None:
    commitment = agreement.commitment(STAMP + 3 * PERIOD, EPOCH, status(shift=2 / 15))
    np.testing.assert_array_equal(commitment.actions[:, 0], np.arange(1.0, 15.0))
    # The shift is that of the chunk that is executed, and not of the one that was sent after it.
    commitment = agreement.commitment(STAMP + 3 * PERIOD, EPOCH, status(shift=2 / 15, observation_sequence=2))
    np.testing.assert_array_equal(commitment.actions[:, 0], np.arange(3.0, 15.0))


@pytest.mark.parametrize(
    "changes",
    [
        {"schedule": "latency_compensated"},
        {"schedule": ""},
        {"state": ExecutorStatus.HOLDING},
        {"state": ExecutorStatus.DISABLED},
        {"epoch": EPOCH + 1},
    ],
)
def test_an_arm_that_does_something_else_is_committed_to_nothing(agreement: Agreement, changes: dict) -> None:
    assert agreement.commitment(STAMP + PERIOD, EPOCH, status(**changes)) is None


def test_nothing_is_agreed_with_across_instructions_or_without_an_executor(agreement: Agreement) -> None:
    assert agreement.commitment(STAMP + PERIOD, EPOCH + 1, status(epoch=EPOCH + 1)) is None
    assert agreement.commitment(STAMP + PERIOD, EPOCH, None) is None


def test_a_chunk_that_was_refused_binds_nobody(agreement: Agreement, monkeypatch: pytest.MonkeyPatch) -> None:
    """The executor still executes another one when the last has been there for long."""
    before = status(observation_sequence=2)
    assert agreement.commitment(STAMP + PERIOD, EPOCH, before) is not None
    later = time.monotonic() + 1.0
    monkeypatch.setattr(time, "monotonic", lambda: later)
    assert agreement.commitment(STAMP + PERIOD, EPOCH, before) is None
    assert agreement.commitment(STAMP + PERIOD, EPOCH, status()) is not None


def test_without_a_delay_nothing_is_known() -> None:
    agreement = Agreement()
    assert agreement.commitment(STAMP + PERIOD, EPOCH, status()) is None
    agreement.sent(chunk(), STAMP + SECOND // 10)
    assert agreement.commitment(STAMP + PERIOD, EPOCH, status()) is None, "the first answer is no measure"
    agreement.sent(chunk(), STAMP - 3 * SECOND)
    assert agreement.delay is None, "nor is one from before a clock was set back"
    agreement.sent(chunk(), None)
    assert agreement.delay is None, "nor one that nobody knows the time of"


def test_no_more_than_the_model_was_trained_with() -> None:
    commitment = Commitment(np.zeros((9, 8)), 5)
    assert within(commitment, 3).rows == 3
    assert within(commitment, 6).rows == 5
    assert within(commitment, 3).actions is commitment.actions
