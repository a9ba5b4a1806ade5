"""Controller adapters: a command as the controller of the arm or the gripper wants it, as plain data.

When to use which:

    forward_command    forward_command_controller, and anything else that takes bare positions. The controller applies
                       each value at once and keeps the last one: the stream is the trajectory.
    joint_trajectory   joint_trajectory_controller. It interpolates in its own, faster loop and feeds velocities
                       forward. Needs `interpolate_from_desired_state: true`: without it each message starts a new
                       spline at the measured position, and the arm creeps.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ki_ros.execution.guard import Guard


@dataclass(frozen=True)
class TrajectoryPoint:
    """`positions` (7,) [rad] and `velocities` (7,) [rad/s], float64, `time_from_start` seconds after reception."""

    time_from_start: float
    positions: np.ndarray
    velocities: np.ndarray


class TrajectoryAdapter:
    """A command as a short trajectory that begins on reception (zero stamp) and replaces the one before.

    joint_trajectory_controller on Jazzy rejects a trajectory that ends in motion unless it is told otherwise. So a
    command in motion is followed by a point at rest, `stop_time` later, where a constant deceleration ends. While
    commands keep coming that point is never reached; when they stop coming, the arm comes to rest there by itself.

    Args:
        guard: whose position limits the point at rest keeps.
        period: time until the command's own point [s]: the period of the commands.
        stop_time: time from there to rest [s].
    """

    def __init__(self, guard: Guard, period: float, stop_time: float = 0.1) -> None:
        for name, value in (("period", period), ("stop_time", stop_time)):
            if not value > 0:
                raise ValueError(f"{name} is {value} s; expected more than 0")
        self._guard = guard
        self._period = period
        self._stop_time = stop_time

    def points(self, positions: np.ndarray, velocities: np.ndarray) -> tuple[TrajectoryPoint, ...]:
        """One or two points for a command: positions (7,) [rad], velocities (7,) [rad/s]. The last one is at rest."""
        command = TrajectoryPoint(self._period, positions, velocities)
        if not velocities.any():
            return (command,)
        rest = np.clip(
            positions + velocities * (self._stop_time / 2),
            np.minimum(self._guard.lower, positions),
            np.maximum(self._guard.upper, positions),
        )
        return command, TrajectoryPoint(self._period + self._stop_time, rest, np.zeros_like(velocities))


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
