"""Real-time chunking in the policy node: what the arm is committed to while an observation is answered."""

from __future__ import annotations

import time
from dataclasses import replace

from ki_ros import msg
from ki_ros.chunk import ActionChunk
from ki_ros.commitment import Commitment, DelayEstimate, commit
from ki_ros.execution.schedule import REAL_TIME
from ki_ros.nodes import stamps

_SETTLED = 0.2
"""So long after a chunk was sent [s] the executor is executing it, or has refused it."""


class Agreement:
    """The last chunk that was sent, and how long answers take. One thread."""

    def __init__(self) -> None:
        self._delay = DelayEstimate()
        self._sent: ActionChunk | None = None
        self._sent_at = 0.0

    @property
    def delay(self) -> float | None:
        """Expected time from an observation's stamp to its chunk [s]; None before it is known."""
        return self._delay.seconds

    def sent(self, chunk: ActionChunk, now: int | None) -> None:
        """A chunk has left.

        Args:
            chunk: that was sent.
            now: when, on the clock of its stamp, which is the robot's [ns]; None for not known.
        """
        self._sent, self._sent_at = chunk, time.monotonic()
        # A clock that was set back says nothing about how long thinking takes.
        if now is not None and now >= chunk.stamp:
            self._delay.add((now - chunk.stamp) / stamps.NANOSECONDS)

    def commitment(self, stamp: int, epoch: int, status: msg.ExecutorStatus | None) -> Commitment | None:
        """What the arm will do from an observation of that stamp [ns] on; None where a chunk need agree with nothing:
        the schedule does not ask for it, the arm is at rest, or nothing is known of the delay yet.

        Args:
            stamp, epoch: of the observation.
            status: the executor's newest; None for none.
        """
        sent = self._sent
        if status is None or status.schedule not in REAL_TIME or status.state != msg.ExecutorStatus.EXECUTING:
            return None
        if sent is None or sent.epoch != epoch or status.epoch != epoch or self._delay.seconds is None:
            return None
        if time.monotonic() - self._sent_at > _SETTLED and status.observation_sequence != sent.observation_sequence:
            return None
        shift = status.shift if status.observation_sequence == sent.observation_sequence else 0.0
        return commit(sent, stamp, self._delay.seconds, shift)


def within(commitment: Commitment, rows: int) -> Commitment:
    """The same with no more committed rows than a model was trained to go on from."""
    return replace(commitment, rows=min(commitment.rows, rows))
