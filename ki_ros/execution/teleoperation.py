"""A person moves the arm: commands that come one by one, followed through the same guard as a policy's."""

from __future__ import annotations

import statistics
from collections import deque

import numpy as np

from ki_ros.execution.path import Path
from ki_ros.execution.state import Reason
from ki_ros.rig import NUM_JOINTS, gripper_angle

_SHORTEST_NS, _LONGEST_NS = 4_000_000, 100_000_000
"""Bounds of the time that is taken to lie between two commands."""

_INTERVALS = 1.5
"""In so many of these times a command is gone to: by then the next one is there, also where it is a little late."""

_REMEMBERED = 9
"""Intervals whose median is the usual one: the arm's distance behind the leader does not change with each delay."""

_NANOSECONDS = 1_000_000_000


class Teleoperation:
    """Follows the newest command on a smooth path, one and a half times the usual interval behind it.

    A leader that is far from the arm does not move it: following begins when they are close together, ends when they
    are apart by more than a command can mean, and begins again after that or after commands have stopped coming. Times
    are nanoseconds of the caller's clock.

    Args:
        max_age_ns: age of the newest command with which the arm still follows.
        max_start_distance: largest distance of a joint between command and measured position to begin with [rad].
        max_distance: the same to go on with.
    """

    def __init__(self, max_age_ns: int, max_start_distance: float, max_distance: float) -> None:
        self._max_age_ns, self._max_start_distance, self._max_distance = max_age_ns, max_start_distance, max_distance
        self.forget()

    def forget(self) -> None:
        """No command has come."""
        self._command: np.ndarray | None = None
        self._given_ns = 0
        self._intervals: deque[int] = deque(maxlen=_REMEMBERED)
        self._pace = np.zeros(NUM_JOINTS)
        self._new = False
        self.gripper: float | None = None
        self.release()

    def release(self) -> None:
        """The arm follows no more; it may begin to again."""
        self._path: Path | None = None

    def receive(self, given_ns: int, positions: np.ndarray, closedness: float | None) -> str | None:
        """Takes wanted joint positions (7,) [rad] and the gripper's closedness, given at a time.

        None for the gripper leaves it as it is. What was given before the newest command is ignored.

        Returns None, or why they are refused.
        """
        positions = np.asarray(positions, dtype=np.float64)
        if positions.shape != (NUM_JOINTS,):
            return f"teleoperation: {positions.size} positions; expected {NUM_JOINTS}"
        values = positions if closedness is None else np.append(positions, closedness)
        if not np.all(np.isfinite(values)):
            self._command = None
            return "teleoperation: a position that is not finite; the arm is held"
        if self._command is not None:
            if given_ns <= self._given_ns:
                return None
            interval_ns = min(max(given_ns - self._given_ns, _SHORTEST_NS), _LONGEST_NS)
            self._intervals.append(interval_ns)
            self._pace = (positions - self._command) / (interval_ns / _NANOSECONDS)
        self._command, self._given_ns, self._new = positions.copy(), given_ns, True
        if closedness is not None:
            self.gripper = gripper_angle(min(max(closedness, 0.0), 1.0))
        return None

    def reason_to_hold(self, now_ns: int, measured: np.ndarray) -> Reason:
        """Why the arm must not follow now; `NONE` where it may."""
        furthest = self._max_start_distance if self._path is None else self._max_distance
        if self._command is None:
            reason = Reason.WAITING_FOR_COMMAND
        elif now_ns - self._given_ns > self._max_age_ns:
            reason = Reason.STALE_COMMAND
        # Written so that what is not finite is far away.
        elif not np.abs(self._command - measured).max() <= furthest:
            reason = Reason.START_POSE
        else:
            return Reason.NONE
        self.release()
        return reason

    def wanted(self, due_ns: int, here: np.ndarray) -> np.ndarray:
        """Joint positions (7,) [rad] at a time; following begins at `here`. Only where there is no reason to hold."""
        if self._new or self._path is None:
            before, self._new = self._path, False
            start, velocity, pace = here, np.zeros(NUM_JOINTS), np.zeros(NUM_JOINTS)
            if before is not None:
                start, velocity, pace = before.position(due_ns), before.velocity(due_ns), self._pace
            duration_ns = round(_INTERVALS * (statistics.median(self._intervals) if self._intervals else _LONGEST_NS))
            self._path = Path(start, self._command, velocity, pace, due_ns, due_ns + duration_ns)
        return self._path.position(due_ns)
