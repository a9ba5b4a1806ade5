"""Commands as controllers want them, as plain data. When to use which is said in docs/controllers.md."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ki_ros.execution.guard import Guard

_MOST_POINTS = 10
"""Of a trajectory: between them the controller interpolates, by a cubic."""


@dataclass(frozen=True)
class TrajectoryPoint:
    """`positions` (7,) [rad] and `velocities` (7,) [rad/s], float64, `time_from_start` seconds after reception."""

    time_from_start: float
    positions: np.ndarray
    velocities: np.ndarray


class TrajectoryAdapter:
    """The last tick's command as a trajectory that begins on reception (zero stamp) and replaces the one before.

    joint_trajectory_controller on Jazzy rejects a trajectory that ends in motion unless it is told otherwise. So the
    command is followed by the guard's way to rest, which keeps the limits of the arm. While commands keep coming only
    its first point is reached; when they stop coming, the arm comes to rest along it by itself.

    Args:
        guard: that the commands come from.
    """

    def __init__(self, guard: Guard) -> None:
        self._guard = guard

    def points(self) -> tuple[TrajectoryPoint, ...]:
        """The command, which is reached a period after reception, and what follows; the last point is at rest."""
        times, positions, velocities = self._guard.to_rest()
        moving = np.flatnonzero(velocities.any(axis=1))
        last = moving[-1] + 1 if len(moving) else 0
        chosen = np.unique(np.linspace(0, last, min(last + 1, _MOST_POINTS)).round().astype(int))
        return tuple(TrajectoryPoint(float(times[i]) + self._guard.period, positions[i], velocities[i]) for i in chosen)


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
