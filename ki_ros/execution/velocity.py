"""Velocities for a controller that takes nothing else, such that the arm keeps to the positions that were commanded."""

from __future__ import annotations

import numpy as np

from ki_ros.rig import Robot

CORRECTION_TIME = 0.2
"""Time in which a joint comes back to its command [s]: several times longer than a joint state is old."""

CORRECTION_SHARE = 0.3
"""Share of a joint's velocity that coming back may take: where the arm brakes, its acceleration is so much greater."""

_GROWTH = 0.1
"""Share of a joint's acceleration limit with which a correction may grow: what the guard leaves of it by default."""


class VelocityAdapter:
    """Commands as velocities, each of which the controller applies until the next one comes.

    The next one comes a little earlier or later than planned, so the arm ends up beside the command. A step of a
    policy in `joint_velocity` space leads from the command to a target relative to the measured position: a difference
    between the two would be travelled again with every step, and grow. So every velocity that moves a joint also
    brings it back to where it was commanded to be by now.

    The slower a joint, the less is corrected, so that no velocity makes a step. At zero velocity nothing is: an arm
    that is held stands still.

    Args:
        robot: whose limits hold.
        period: from one command to the next [s].
    """

    def __init__(self, robot: Robot, period: float) -> None:
        self._robot = robot
        self._growth = _GROWTH * robot.acceleration * period
        self._correction = np.zeros_like(robot.velocity)
        self._due: np.ndarray | None = None

    def velocities(self, positions: np.ndarray, velocities: np.ndarray, measured: np.ndarray | None) -> np.ndarray:
        """Velocities (7,) [rad/s] to send for a command.

        Args:
            positions: of the command (7,) [rad]: where the arm is to be when the next one comes.
            velocities: of the command (7,) [rad/s]; all zero to hold.
            measured: joint positions (7,) [rad]; None where they are not known.
        """
        due, self._due = self._due, positions
        if not velocities.any() or due is None or measured is None:
            self._correction = np.zeros_like(velocities)
            return velocities
        highest, before = CORRECTION_SHARE * np.abs(velocities), self._correction
        wanted = np.clip((due - measured) / CORRECTION_TIME, before - self._growth, before + self._growth)
        self._correction = correction = np.clip(wanted, -highest, highest)
        slowest, fastest = self._robot.velocity_limits(positions)
        return np.clip(velocities + correction, np.minimum(slowest, velocities), np.maximum(fastest, velocities))
