"""Commands as controllers want them, as plain data. When to use which is said in docs/controllers.md."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ki_ros.execution.beat import Waypoint
from ki_ros.execution.guard import Guard

_SAME = 1e-6
"""Share of its limit by which jerks differ that are the same but for rounding."""

_SHORTEST = 0.1
"""A trajectory is not over before this, also where the arm stands [s]: one that comes late would be refused."""


class TrajectoryAdapter:
    """The last tick's command as a trajectory that replaces the one before.

    joint_trajectory_controller on Jazzy rejects a trajectory that ends in motion unless it is told otherwise. So the
    command is followed by the guard's way to rest, which keeps the limits of the arm. While commands keep coming only
    the command is reached; when they stop coming, the arm comes to rest along it by itself.

    A trajectory that says when it begins is a piece of one motion, whenever it arrives: what of the commands before is
    still ahead comes first. One that does not begins with the controller's next cycle, which may be one cycle beside
    the beat; so that the controller has the longest time to make up for that, the command comes first.

    Between two points the controller goes along a cubic. So does the way to rest for as long as no joint's jerk
    changes, and points are where one does: the controller follows it exactly.

    Args:
        guard: that the commands come from.
        stamped: whether trajectories say when they begin.
    """

    def __init__(self, guard: Guard, *, stamped: bool) -> None:
        self._guard, self._stamped = guard, stamped

    def points(self, waypoints: Sequence[Waypoint]) -> tuple[Waypoint, ...]:
        """Waypoints up to the last tick's command, and what follows; the last point is at rest."""
        *first, command = waypoints
        first = first if self._stamped else []
        times, positions, velocities = self._guard.to_rest()
        moving = np.flatnonzero(velocities.any(axis=1))
        last = moving[-1] + 1 if len(moving) else 0
        chosen = [0, *(1 + self._changes(times, positions, velocities, last)), last] if last else [0]
        points = [*first, *(Waypoint(float(times[i]) + command.time, positions[i], velocities[i]) for i in chosen)]
        if points[-1].time < _SHORTEST:
            points.append(replace(points[-1], time=_SHORTEST))
        return tuple(points)

    def _changes(self, times: np.ndarray, positions: np.ndarray, velocities: np.ndarray, last: int) -> np.ndarray:
        """Numbers, less one, of the points between the first and the last behind which a joint has another jerk."""
        time = np.diff(times[: last + 1])[:, None]
        way, speeds = np.diff(positions[: last + 1], axis=0), velocities[:last] + velocities[1 : last + 1]
        jerks = 6 * (speeds * time - 2 * way) / time**3
        return np.flatnonzero((np.abs(np.diff(jerks, axis=0)) > _SAME * self._guard.limits.jerk).any(axis=1))


class OnChange:
    """Lets a value pass when it differs from the last that passed: for interfaces that take goals and not streams."""

    def __init__(self, tolerance: float = 1e-3) -> None:
        self._tolerance = tolerance
        self._last: float | None = None

    def passes(self, value: float | None) -> bool:
        """Whether to send the value. None is never sent, and the value after it always is."""
        if value is None:
            self._last = None
            return False
        if self._last is not None and abs(value - self._last) <= self._tolerance:
            return False
        self._last = value
        return True
