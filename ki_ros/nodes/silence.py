"""Notices that the observation node has fallen silent: without it the policy is blind, and does not say so."""

from __future__ import annotations

from ki_ros.execution.executor import Executor
from ki_ros.execution.schedule import NANOSECONDS
from ki_ros.execution.watchdog import ChunkWatchdog


class ObservationSilence:
    """Tells the executor once that there is no observation when statuses of the observation node have stopped coming.

    A policy that is slow answers the last observation for as long as an inference takes; the executor need not wait for
    that. A graph in which no status ever came is left alone. How long a silence may last is a matter of how often
    statuses usually come, as it is for chunks.

    Args:
        executor: to be told.
    """

    def __init__(self, executor: Executor) -> None:
        options = executor.options
        self._executor = executor
        self._watchdog = ChunkWatchdog(round(options.max_chunk_gap * NANOSECONDS), options.chunk_gap_intervals)
        self._heard_ns = 0

    def heard(self, now_ns: int) -> None:
        """A status has come."""
        if now_ns < self._heard_ns:
            self._watchdog.forget_time()
        self._heard_ns = now_ns
        self._watchdog.feed(now_ns)

    def check(self, now_ns: int) -> bool:
        """To be called before every tick. Whether the executor has been told just now."""
        if not self._watchdog.fed or self._watchdog.alive(now_ns):
            return False
        self._watchdog.restart()
        self._executor.receive_observation_status(now_ns, 0, complete=False)
        return True
